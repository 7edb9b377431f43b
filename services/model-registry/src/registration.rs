//! Versions that are registered from files that are somewhere already: of a run, a logged model, another version, elsewhere.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::{self, Origin, Task, Version, VersionDraft};
use crate::names::{ModelName, VersionId};
use crate::store::{Call, Everything};
use crate::tracking::{LoggedModelChange, Millis, limits};
use crate::webhooks::IS_PROMPT;

/// The tag of a logged model that lists its registered versions.
const MODEL_VERSIONS: &str = "mlflow.modelVersions";

/// A version to be registered.
pub(crate) struct Registration {
    pub(crate) model: ModelName,
    pub(crate) description: String,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) origin: Origin,
}

impl Registration {
    /// Checks description and tags by the limits of what gRPC writes.
    pub(crate) fn check(&self) -> Result<()> {
        model::check_described(&self.description, &self.tags)
    }
}

/// Adds the version, READY at once, with the files that are at its source now where this registry keeps them.
///
/// The run of a logged model is that of the version, unless another is given. The logged model the caller names then lists
/// the version.
pub(crate) async fn register(store: &dyn Everything, call: &Call, wanted: Registration) -> Result<Version> {
    let Registration { model, description, tags, mut origin } = wanted;
    let Origin { source, run, run_link: _, logged_model } = &mut origin;
    let logged = match (source.strip_prefix("models:/"), logged_model.is_empty()) {
        (Some(id), _) if !id.contains(['/', '@']) => Some(id.to_owned()),
        (_, false) => Some(logged_model.clone()),
        _ => None,
    };
    let mut home = None;
    if let Some(id) = logged {
        let logged = store.logged_model(&id).await.map_err(|error| match error {
            Error::NotFound(_) => Error::Rejected(format!(
                "Unable to fetch model from model URI source artifact location '{source}'. Error: Logged model with ID \
                 '{id}' not found."
            )),
            error => error,
        })?;
        home = Some(logged.artifact_location);
        if run.is_empty() {
            *run = logged.source_run;
        }
    }
    if tags.get(IS_PROMPT).is_none_or(|is| !is.eq_ignore_ascii_case("true")) {
        let home = match home {
            None if !run.is_empty() => store.run(run).await.ok().map(|run| run.artifact_uri),
            home => home,
        };
        limits::version_source(source, home.as_deref())?;
    }
    limits::origin(&origin)?;
    let listing = origin.logged_model.clone();
    let (task, origin) = (Task::Custom, Some(origin));
    let draft = VersionDraft { model, description, task, signature: None, parameters: BTreeMap::new(), tags, origin };
    let version = store.add_version(call, &draft).await?;
    if !listing.is_empty() && !call.validate_only {
        note(store, &listing, &version.id).await?;
    }
    Ok(version)
}

/// Notes on a logged model that a version was registered of it, once.
async fn note(store: &dyn Everything, logged_model: &str, version: &VersionId) -> Result<()> {
    let before = store.logged_model(logged_model).await?.tags.remove(MODEL_VERSIONS).unwrap_or_default();
    // As Python writes lists: the clients compare texts.
    let entry = format!("{{\"name\": {}, \"version\": {}}}", Value::from(version.model.as_str()), version.number);
    if before.contains(&entry) {
        return Ok(());
    }
    let list = match before.strip_suffix(']') {
        Some(before) => format!("{before}, {entry}]"),
        None => format!("[{entry}]"),
    };
    let tags = BTreeMap::from([(MODEL_VERSIONS.to_owned(), list)]);
    store.change_logged_model(Millis::now(), logged_model, &LoggedModelChange::SetTags(tags)).await?;
    Ok(())
}
