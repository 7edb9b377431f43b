//! Rows as they come out of either database, and what they become.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::model::{Artifact, Event, Micros, Model, Origin, Version};
use crate::names::{ArtifactPath, ModelName, Sha256Hex, VersionId};

#[derive(sqlx::FromRow)]
pub(super) struct ModelRow {
    pub(super) name: String,
    description: String,
    latest_version: i64,
    create_time: i64,
    update_time: i64,
    revision: i64,
}

impl ModelRow {
    pub(super) fn into_model(self, tags: BTreeMap<String, String>, aliases: BTreeMap<String, i64>) -> Model {
        let Self { name, description, latest_version, create_time, update_time, revision } = self;
        Model {
            name: ModelName::stored(name),
            description,
            tags,
            aliases,
            latest_version,
            create_time: Micros(create_time),
            update_time: Micros(update_time),
            revision,
        }
    }
}

#[derive(sqlx::FromRow)]
pub(super) struct VersionRow {
    model: String,
    version: i64,
    description: String,
    task: String,
    signature: Option<String>,
    parameters: String,
    digest: Option<String>,
    source: String,
    run: String,
    run_link: String,
    logged_model: String,
    author: String,
    stage: String,
    create_time: i64,
    update_time: i64,
    revision: i64,
}

/// What belongs to a version and stands in other tables.
#[derive(Default)]
pub(super) struct VersionParts {
    pub(super) tags: BTreeMap<String, String>,
    pub(super) artifacts: Vec<Artifact>,
    pub(super) aliases: Vec<String>,
}

impl VersionRow {
    pub(super) fn id(&self) -> (String, i64) {
        (self.model.clone(), self.version)
    }

    pub(super) fn into_version(self, parts: VersionParts) -> Result<Version> {
        let Self {
            model,
            version,
            description,
            task,
            signature,
            parameters,
            digest,
            source,
            run,
            run_link,
            logged_model,
            author,
            stage,
            create_time,
            update_time,
            revision,
        } = self;
        let VersionParts { tags, artifacts, aliases } = parts;
        Ok(Version {
            id: VersionId { model: ModelName::stored(model), number: version },
            description,
            task: from_word(task)?,
            signature: signature.as_deref().map(from_json).transpose()?,
            parameters: from_json(&parameters)?,
            tags,
            artifacts,
            digest,
            aliases,
            origin: Origin { source, run, run_link, logged_model },
            author,
            stage: from_word(stage)?,
            create_time: Micros(create_time),
            update_time: Micros(update_time),
            revision,
        })
    }
}

#[derive(sqlx::FromRow)]
pub(super) struct ArtifactRow {
    model: String,
    version: i64,
    path: String,
    size: i64,
    sha256: String,
}

impl ArtifactRow {
    /// The version it belongs to, and the file.
    pub(super) fn into_artifact(self) -> ((String, i64), Artifact) {
        let Self { model, version, path, size, sha256 } = self;
        let (path, sha256) = (ArtifactPath::stored(path), Sha256Hex::stored(sha256));
        ((model, version), Artifact { path, size: size.unsigned_abs(), sha256 })
    }
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

pub(super) fn from_json<T: DeserializeOwned>(text: &str) -> Result<T> {
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
