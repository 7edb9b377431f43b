//! What comes from another MLflow server as it was there: with its ids, its numbers and its times.
//!
//! Each method is one transaction and adds what is missing, all of it or nothing. What is there already stays as it is:
//! the caller reads it beforehand and compares.

use async_trait::async_trait;

use super::{Experiment, LoggedModel, Metric, Run};
use crate::error::Result;
use crate::model::{Model, Version};
use crate::names::{AliasName, VersionId};
use crate::store::Call;

/// All values of a run's metrics, at most a thousand at once; the first error ends them.
pub type History<'a> = Box<dyn Iterator<Item = Result<Vec<Metric>>> + Send + 'a>;

/// Adds what another server has kept.
#[async_trait]
pub trait Imports: Send + Sync {
    /// Adds an experiment and answers its number: `wanted` where that is free, else the next one. Its files are to be kept
    /// here, below that number.
    ///
    /// The experiment every store begins with gives way as long as nothing is in it. None when the name is taken.
    async fn import_experiment(&self, wanted: Option<i64>, experiment: &Experiment) -> Result<Option<i64>>;
    /// Adds a run; `history` takes the place of its latest metrics. False when its id is taken.
    async fn import_run(&self, run: &Run, history: History<'_>) -> Result<bool>;
    /// Adds a logged model. False when its id is taken, be it by a deleted one.
    async fn import_logged_model(&self, model: &LoggedModel) -> Result<bool>;
    /// Adds a registered model without its aliases, unless one of that name was deleted here. False when its name is taken.
    async fn import_model(&self, call: &Call, model: &Model) -> Result<bool>;
    /// Adds a READY version with its files under its number, unless that number was used here. False when it is there.
    async fn import_version(&self, call: &Call, version: &Version) -> Result<bool>;
    /// Points an alias at a version. False when the alias is there, wherever it points.
    async fn import_alias(&self, call: &Call, alias: &AliasName, to: &VersionId) -> Result<bool>;
}
