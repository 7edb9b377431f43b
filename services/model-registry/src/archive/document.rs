//! What an archive says of a version, in the registry's own words.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::oci::invalid;
use crate::error::Result;
use crate::model::{self, Artifact, Micros, Origin, Signature, Task, Version, VersionDraft};
use crate::names::{ModelName, VersionId, version_number};

/// Longest text about where a version comes from, in bytes.
const MAX_ORIGIN: usize = 10_000;

/// Where and when a version was first registered; stays with it from one registry to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    pub id: VersionId,
    pub create_time: Micros,
    /// What was said of its source there; it names nothing here.
    pub origin: Origin,
}

impl Provenance {
    /// That of a version that was registered here.
    pub(super) fn here(version: &Version) -> Self {
        Self { id: version.id.clone(), create_time: version.create_time, origin: version.origin.clone() }
    }
}

/// A version that came in an archive, its files durable.
#[derive(Clone, Debug, Serialize)]
pub struct Arrival {
    pub draft: VersionDraft,
    /// Sorted by path.
    pub artifacts: Vec<Artifact>,
    pub provenance: Provenance,
}

/// The portable part of a version. An unknown field is refused: it would be lost.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    /// Model, number and time are those of the registry that had it first.
    pub(super) model: String,
    pub(super) version: i64,
    pub(super) create_time: String,
    pub(super) digest: String,
    pub(super) description: String,
    task: Task,
    signature: Option<Signature>,
    parameters: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
    source: String,
    run: String,
    run_link: String,
    logged_model: String,
}

impl Document {
    pub(super) fn of(version: &Version, provenance: Provenance) -> Result<Self> {
        let Provenance { id, create_time, origin: Origin { source, run, run_link, logged_model } } = provenance;
        Ok(Self {
            model: id.model.to_string(),
            version: id.number,
            create_time: rfc3339(create_time)?,
            digest: model::digest(&version.artifacts),
            description: version.description.clone(),
            task: version.task,
            signature: version.signature.clone(),
            parameters: version.parameters.clone(),
            tags: version.tags.clone(),
            source,
            run,
            run_link,
            logged_model,
        })
    }

    /// Checks all of it; `into` is the model to add the version to, that of the document if none.
    pub(super) fn into_arrival(self, artifacts: Vec<Artifact>, into: Option<ModelName>) -> Result<Arrival> {
        let is = model::digest(&artifacts);
        if is != self.digest {
            return Err(invalid(format!("has files with the version digest {is}, but says {}", self.digest)));
        }
        let id = VersionId {
            model: ModelName::parse("archive.model", &self.model)?,
            number: version_number("archive.version", self.version)?,
        };
        let Self { source, run, run_link, logged_model, .. } = self;
        for (field, text) in
            [("source", &source), ("run", &run), ("run_link", &run_link), ("logged_model", &logged_model)]
        {
            model::check_text(&format!("archive.{field}"), text, MAX_ORIGIN)?;
        }
        let draft = VersionDraft {
            model: into.unwrap_or_else(|| id.model.clone()),
            description: self.description,
            task: self.task,
            signature: self.signature,
            parameters: self.parameters,
            tags: self.tags,
            origin: None,
        };
        draft.check()?;
        let create_time = micros(&self.create_time)?;
        let provenance = Provenance { id, create_time, origin: Origin { source, run, run_link, logged_model } };
        Ok(Arrival { draft, artifacts, provenance })
    }
}

fn rfc3339(Micros(micros): Micros) -> Result<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).map_err(anyhow::Error::from)?;
    Ok(time.format(&Rfc3339).map_err(anyhow::Error::from)?)
}

fn micros(text: &str) -> Result<Micros> {
    let time = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| invalid(format!("has a `create_time` `{text}`, which is no time as RFC 3339 writes it")))?;
    Ok(Micros(i64::try_from(time.unix_timestamp_nanos() / 1000).map_err(anyhow::Error::from)?))
}
