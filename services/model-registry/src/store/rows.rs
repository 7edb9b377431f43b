//! Rows as they come out of either database, and what they become.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::model::{Artifact, Event, Micros, Model, Origin, Stage, Task, Version};
use crate::names::{ArtifactPath, ModelName, Sha256Hex, VersionId};

/// A model; what stands in other tables is JSON.
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

/// A page of versions: JSON of their own rows, in order, and of the rows of other tables that belong to them.
#[derive(sqlx::FromRow)]
pub(super) struct VersionPage(String, String, String, String);

#[derive(Deserialize)]
struct VersionRow {
    model: String,
    version: i64,
    description: String,
    task: Task,
    signature: Option<String>,
    parameters: String,
    digest: Option<String>,
    source: String,
    run: String,
    run_link: String,
    logged_model: String,
    author: String,
    stage: Stage,
    create_time: i64,
    update_time: i64,
    revision: i64,
}

#[derive(Default)]
struct Belongings {
    tags: BTreeMap<String, String>,
    aliases: Vec<String>,
    artifacts: Vec<Artifact>,
}

impl VersionPage {
    pub(super) fn into_versions(self) -> Result<Vec<Version>> {
        let Self(versions, tags, aliases, artifacts) = self;
        let rows: Vec<VersionRow> = list(&versions)?;
        let mut belongings: Vec<Belongings> = rows.iter().map(|_| Belongings::default()).collect();
        let ids = rows.iter().map(|row| (row.model.as_str(), row.version));
        let places: HashMap<(&str, i64), usize> = ids.zip(0..).collect();
        let place = |model: &str, version| places.get(&(model, version)).copied();
        for (model, version, key, value) in list::<(Cow<'_, str>, i64, String, String)>(&tags)? {
            if let Some(at) = place(&model, version) {
                belongings[at].tags.insert(key, value);
            }
        }
        for (model, version, alias) in list::<(Cow<'_, str>, i64, String)>(&aliases)? {
            if let Some(at) = place(&model, version) {
                belongings[at].aliases.push(alias);
            }
        }
        for (model, version, path, size, sha256) in list::<(Cow<'_, str>, i64, String, u64, String)>(&artifacts)? {
            if let Some(at) = place(&model, version) {
                let (path, sha256) = (ArtifactPath::stored(path), Sha256Hex::stored(sha256));
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
            task,
            signature: signature.as_deref().map(from_json).transpose()?,
            parameters: if parameters == "{}" { BTreeMap::new() } else { from_json(&parameters)? },
            tags,
            artifacts,
            digest,
            aliases,
            origin: Origin { source, run, run_link, logged_model },
            author,
            stage,
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

/// Reads the rows of another table; mostly there are none.
pub(super) fn list<'a, T: Deserialize<'a>>(json: &'a str) -> Result<Vec<T>> {
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
