//! Rows as they come out of either database, and what they become.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::model::{Artifact, Event, Micros, Model, Origin, Version};
use crate::names::{ArtifactPath, ModelName, Sha256Hex, VersionId};

/// A model; what stands in other tables is JSON, as are versions.
#[derive(sqlx::FromRow)]
pub(super) struct ModelRow {
    name: String,
    description: String,
    latest_version: i64,
    create_time: i64,
    update_time: i64,
    revision: i64,
    tags: String,
    aliases: String,
}

impl ModelRow {
    pub(super) fn into_model(self) -> Result<Model> {
        let Self { name, description, latest_version, create_time, update_time, revision, tags, aliases } = self;
        Ok(Model {
            name: ModelName::stored(name),
            description,
            tags: pairs(&tags)?,
            aliases: pairs(&aliases)?,
            latest_version,
            create_time: Micros(create_time),
            update_time: Micros(update_time),
            revision,
        })
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
    tags: String,
    aliases: String,
    artifacts: String,
}

impl VersionRow {
    pub(super) fn into_version(self) -> Result<Version> {
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
            tags,
            aliases,
            artifacts,
        } = self;
        let mut aliases: Vec<String> = list::<(String,)>(&aliases)?.into_iter().map(|(alias,)| alias).collect();
        aliases.sort();
        let artifact = |(path, size, sha256): (String, u64, String)| Artifact {
            path: ArtifactPath::stored(path),
            size,
            sha256: Sha256Hex::stored(sha256),
        };
        let mut artifacts: Vec<Artifact> = list(&artifacts)?.into_iter().map(artifact).collect();
        artifacts.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Version {
            id: VersionId { model: ModelName::stored(model), number: version },
            description,
            task: from_word(task)?,
            signature: signature.as_deref().map(from_json).transpose()?,
            parameters: from_json(&parameters)?,
            tags: pairs(&tags)?,
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

/// Reads the rows of another table; mostly there are none.
pub(super) fn list<T: DeserializeOwned>(json: &str) -> Result<Vec<T>> {
    if json == "[]" { Ok(Vec::new()) } else { from_json(json) }
}

/// Reads rows of a key and a value.
pub(super) fn pairs<T: DeserializeOwned>(json: &str) -> Result<BTreeMap<String, T>> {
    Ok(list(json)?.into_iter().collect())
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
