//! What callers of either side may ask for: each constructor checks all that MLflow limits, so that neither can forget.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::limits;
use super::{
    ExperimentChange, ExperimentDraft, Location, LoggedModelChange, LoggedModelDraft, Millis, RUN_NAME, RunChange,
    RunDraft, RunStatus,
};
use crate::error::{Error, Result};

impl ExperimentDraft {
    /// Checks an experiment; without a place of its own it keeps its files below `root`.
    pub fn new(name: String, place: Option<String>, root: &str, tags: BTreeMap<String, String>) -> Result<Self> {
        limits::experiment_name(&name)?;
        let location = match place.filter(|place| !place.is_empty()) {
            None => Location::Below(root.to_owned()),
            Some(place) => {
                limits::artifact_location(&place)?;
                Location::At(absolute(place))
            }
        };
        limits::pairs("tags", tags.len())?;
        tags.iter().try_for_each(|(key, value)| limits::experiment_tag(key, value))?;
        Ok(Self { name, location, tags })
    }
}

/// A path without a scheme is one of this machine, from where the registry was started.
fn absolute(location: String) -> String {
    let has_scheme = location.split_once(':').is_some_and(|(scheme, _)| !scheme.contains('/'));
    if has_scheme || location.starts_with('/') {
        return location;
    }
    std::env::current_dir().map_or(location.clone(), |dir| dir.join(&location).display().to_string())
}

impl ExperimentChange {
    pub fn rename(name: String) -> Result<Self> {
        limits::experiment_name(&name)?;
        Ok(Self::Rename(name))
    }

    pub fn set_tag(key: String, value: String) -> Result<Self> {
        limits::experiment_tag(&key, &value)?;
        Ok(Self::SetTag(key, value))
    }
}

impl RunDraft {
    /// Checks a run and gives it its id; it begins now unless told otherwise. Its name may come as a tag.
    pub fn new(
        experiment: i64,
        name: String,
        user_id: String,
        start_time: Option<Millis>,
        tags: BTreeMap<String, String>,
    ) -> Result<Self> {
        run_tags(&tags)?;
        limits::run_name(&name)?;
        limits::user_id(&user_id)?;
        let tagged = tags.get(RUN_NAME).cloned().unwrap_or_default();
        if !name.is_empty() && !tagged.is_empty() && name != tagged {
            return Err(Error::Rejected(format!(
                "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with different values \
                 (run_name='{name}', mlflow.runName='{tagged}')."
            )));
        }
        let id = Uuid::new_v4().simple().to_string();
        let name = [name, tagged].into_iter().find(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| format!("run-{}", &id[..8]));
        Ok(Self { id, experiment, name, user_id, start_time: start_time.unwrap_or_else(Millis::now), tags })
    }
}

fn run_tags(tags: &BTreeMap<String, String>) -> Result<()> {
    limits::pairs("tags", tags.len())?;
    tags.iter().enumerate().try_for_each(|(at, (key, value))| limits::tag(&format!("tags[{at}]"), key, value))
}

fn params(params: &BTreeMap<String, String>) -> Result<()> {
    limits::pairs("params", params.len())?;
    params.iter().enumerate().try_for_each(|(at, (key, value))| limits::param(&format!("params[{at}]"), key, value))
}

impl RunChange {
    /// Changes what is given.
    pub fn update(status: Option<RunStatus>, end_time: Option<Millis>, name: Option<String>) -> Result<Self> {
        limits::run_name(name.as_deref().unwrap_or_default())?;
        Ok(Self::Update { status, end_time, name })
    }
}

impl LoggedModelDraft {
    /// Checks a logged model and gives it its id.
    pub fn new(
        experiment: i64,
        name: Option<String>,
        model_type: String,
        source_run: String,
        params: BTreeMap<String, String>,
        tags: BTreeMap<String, String>,
    ) -> Result<Self> {
        let name = name.filter(|name| !name.is_empty());
        if let Some(name) = &name {
            limits::logged_model_name(name)?;
        }
        limits::model_type(&model_type)?;
        limits::id("source_run_id", &source_run)?;
        self::params(&params)?;
        run_tags(&tags)?;
        let id = format!("m-{}", Uuid::new_v4().simple());
        let name = name.unwrap_or_else(|| format!("model-{}", &id[2..10]));
        Ok(Self { id, experiment, name, model_type, source_run, params, tags })
    }
}

impl LoggedModelChange {
    pub fn add_params(params: BTreeMap<String, String>) -> Result<Self> {
        self::params(&params)?;
        Ok(Self::AddParams(params))
    }

    pub fn set_tags(tags: BTreeMap<String, String>) -> Result<Self> {
        run_tags(&tags)?;
        Ok(Self::SetTags(tags))
    }
}
