//! Where a version serves: what deployments report, and what that says of versions and runs.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::{Micros, Version, check_key, check_text};
use crate::names::{ModelName, VersionId};
use crate::store::Call;

/// Most versions one deployment serves.
const MAX_SERVING: usize = 1000;
/// Longest name of a deployment, reference or digest, in bytes.
const MAX_WORD: usize = 600;

/// What a deployment serves under one of its references.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Serving {
    pub reference: String,
    pub version: VersionId,
    pub digest: String,
}

/// All that a deployment serves.
#[derive(Clone, Debug)]
pub struct Report {
    pub deployment: String,
    pub serving: BTreeSet<Serving>,
    /// When it counts as lost unless it is heard of before.
    pub expires: Micros,
}

impl Report {
    /// Checks names and numbers.
    pub fn check(&self) -> Result<()> {
        check_key("deployment", &self.deployment)?;
        if self.serving.len() > MAX_SERVING {
            return Err(Error::invalid("INVALID_REPORT", "serving", format!("must be at most {MAX_SERVING}")));
        }
        let mut references = BTreeSet::new();
        for Serving { reference, digest, .. } in &self.serving {
            check_text("serving.reference", reference, MAX_WORD)?;
            check_text("serving.digest", digest, MAX_WORD)?;
            if !references.insert(reference) {
                let problem = format!("names `{reference}` twice");
                return Err(Error::invalid("INVALID_REPORT", "serving.reference", problem));
            }
        }
        Ok(())
    }
}

/// A version served by a deployment for a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    pub deployment: String,
    pub serving: Serving,
    pub start: Micros,
    pub seen: Micros,
    pub expires: Micros,
    /// None while it serves.
    pub end: Option<Micros>,
}

/// Which deployments are asked for.
#[derive(Clone, Debug)]
pub struct Filter {
    pub model: Option<ModelName>,
    pub include_ended: bool,
    /// How many to pass over.
    pub offset: i64,
}

/// Deployments and what they serve, each method one transaction.
#[async_trait]
pub trait Lineage: Send + Sync {
    /// Takes what a deployment serves now; whatever else it served has ended.
    async fn report_deployment(&self, now: Micros, report: &Report) -> Result<()>;
    /// Ends what has been lost since before `before`, as of when it was given up; answers how many.
    async fn end_lost_deployments(&self, call: &Call, before: Micros) -> Result<u64>;
    /// Lists deployments, those that began last first.
    async fn deployments(&self, filter: &Filter, limit: u32) -> Result<Vec<Deployment>>;
    /// Lists the newest deployments of each of these versions, at most `limit` of each.
    async fn deployments_of(&self, versions: &[VersionId], limit: u32) -> Result<Vec<Deployment>>;
    /// Finds the versions that a run made; at most a thousand.
    async fn versions_of_run(&self, run: &str) -> Result<Vec<Version>>;
    /// Finds a version and its copies in other models; at most a thousand.
    async fn copies(&self, of: &VersionId) -> Result<Vec<Version>>;
}
