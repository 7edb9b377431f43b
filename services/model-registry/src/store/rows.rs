//! Rows as they come out of either database, and what they become.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::within::{Word, row_within};
use crate::error::Result;
use crate::model::{Artifact, Event, Micros, Model, Origin, Stage, Task, Version};
use crate::names::{ArtifactPath, ModelName, Sha256Hex, VersionId};

/// A page of models: their own rows, in order, and the rows of other tables that belong to them.
pub(super) struct ModelPage<'r> {
    pub(super) models: Vec<ModelRow>,
    pub(super) tags: Vec<(Cow<'r, str>, String, String)>,
    pub(super) aliases: Vec<(Cow<'r, str>, String, i64)>,
}

row_within! {
    pub(super) struct ModelRow {
        name: String,
        description: String,
        create_time: i64,
        update_time: i64,
        revision: i64,
        latest_version: i64,
    }
}

impl ModelPage<'_> {
    pub(super) fn into_models(self) -> Vec<Model> {
        let Self { models, tags, aliases } = self;
        let mut models: Vec<Model> = models.into_iter().map(ModelRow::into_model).collect();
        let names: Vec<ModelName> = models.iter().map(|model| model.name.clone()).collect();
        let places: HashMap<&str, usize> = names.iter().map(ModelName::as_str).zip(0..).collect();
        for (model, key, value) in tags {
            if let Some(at) = places.get(&*model) {
                models[*at].tags.insert(key, value);
            }
        }
        for (model, alias, version) in aliases {
            if let Some(at) = places.get(&*model) {
                models[*at].aliases.insert(alias, version);
            }
        }
        models
    }
}

impl ModelRow {
    fn into_model(self) -> Model {
        let Self { name, description, create_time, update_time, revision, latest_version } = self;
        Model {
            name: ModelName::stored(name),
            description,
            tags: BTreeMap::new(),
            aliases: BTreeMap::new(),
            latest_version,
            create_time: Micros(create_time),
            update_time: Micros(update_time),
            revision,
        }
    }
}

/// A page of versions: their own rows, in order, and the rows of other tables that belong to them.
pub(super) struct VersionPage<'r> {
    pub(super) versions: Vec<VersionRow>,
    pub(super) tags: Vec<(Cow<'r, str>, i64, String, String)>,
    pub(super) aliases: Vec<(Cow<'r, str>, i64, String)>,
    pub(super) artifacts: Vec<(Cow<'r, str>, i64, String, i64, String)>,
}

row_within! {
    pub(super) struct VersionRow {
        model: String,
        version: i64,
        description: String,
        task: Word<Task>,
        signature: Option<String>,
        parameters: String,
        digest: Option<String>,
        source: String,
        run: String,
        run_link: String,
        logged_model: String,
        author: String,
        stage: Word<Stage>,
        create_time: i64,
        update_time: i64,
        revision: i64,
    }
}

#[derive(Default)]
struct Belongings {
    tags: BTreeMap<String, String>,
    aliases: Vec<String>,
    artifacts: Vec<Artifact>,
}

impl VersionPage<'_> {
    pub(super) fn into_versions(self) -> Result<Vec<Version>> {
        let Self { versions: rows, tags, aliases, artifacts } = self;
        let mut belongings: Vec<Belongings> = rows.iter().map(|_| Belongings::default()).collect();
        let ids = rows.iter().map(|row| (row.model.as_str(), row.version));
        let places: HashMap<(&str, i64), usize> = ids.zip(0..).collect();
        let place = |model: &str, version| places.get(&(model, version)).copied();
        for (model, version, key, value) in tags {
            if let Some(at) = place(&model, version) {
                belongings[at].tags.insert(key, value);
            }
        }
        for (model, version, alias) in aliases {
            if let Some(at) = place(&model, version) {
                belongings[at].aliases.push(alias);
            }
        }
        for (model, version, path, size, sha256) in artifacts {
            if let Some(at) = place(&model, version) {
                let (path, sha256) = (ArtifactPath::stored(path), Sha256Hex::stored(sha256));
                let size = size.cast_unsigned();
                belongings[at].artifacts.push(Artifact { path, size, sha256 });
            }
        }
        rows.into_iter().zip(belongings).map(|(row, belongings)| row.into_version(belongings)).collect()
    }
}

impl VersionRow {
    fn into_version(self, belongings: Belongings) -> Result<Version> {
        let Self { model, version, description, task, signature, parameters, digest, .. } = self;
        let Self { source, run, run_link, logged_model, author, stage, create_time, update_time, revision, .. } = self;
        let Belongings { tags, mut aliases, mut artifacts } = belongings;
        aliases.sort();
        artifacts.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Version {
            id: VersionId { model: ModelName::stored(model), number: version },
            description,
            task: task.0,
            signature: signature.as_deref().map(from_json).transpose()?,
            parameters: if parameters == "{}" { BTreeMap::new() } else { from_json(&parameters)? },
            tags,
            artifacts,
            digest,
            aliases,
            origin: Origin { source, run, run_link, logged_model },
            author,
            stage: stage.0,
            create_time: Micros(create_time),
            update_time: Micros(update_time),
            revision,
        })
    }
}

/// A metric's value as both databases keep it: finite, and a mark for NaN.
pub(super) fn kept(value: f64) -> (f64, i64) {
    if value.is_nan() { (0.0, 1) } else { (value.clamp(f64::MIN, f64::MAX), 0) }
}

#[derive(sqlx::FromRow)]
pub(super) struct EventRow {
    sequence: i64,
    time: i64,
    kind: String,
    model: String,
    version: i64,
    alias: String,
    previous_version: i64,
    digest: String,
}

impl EventRow {
    pub(super) fn into_event(self) -> Result<Event> {
        let Self { sequence, time, kind, model, version, alias, previous_version, digest } = self;
        let (time, kind, model) = (Micros(time), from_word(kind)?, ModelName::stored(model));
        Ok(Event { sequence, time, kind, model, version, alias, previous_version, digest })
    }
}

pub(super) fn to_json(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(value).map_err(anyhow::Error::from)?)
}

pub(super) fn from_json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T> {
    Ok(serde_json::from_str(text).map_err(anyhow::Error::from)?)
}

/// The one word an enumeration's value is stored as.
pub(crate) fn to_word(value: &impl Serialize) -> Result<String> {
    match serde_json::to_value(value).map_err(anyhow::Error::from)? {
        serde_json::Value::String(word) => Ok(word),
        other => Err(anyhow::anyhow!("`{other}` is not one word").into()),
    }
}

pub(super) fn from_word<T: DeserializeOwned>(word: String) -> Result<T> {
    Ok(serde_json::from_value(serde_json::Value::String(word)).map_err(anyhow::Error::from)?)
}
