//! What training leaves behind: experiments, their runs, and the models and files that runs logged.
//!
//! MLflow's tracking store under MLflow's names. Two traits, because two things are kept: [`Experiments`] with what
//! groups runs, [`Runs`] with what they log; what programs in use leave behind is in [`traces`]. The queries are written once and compiled for each database, as those of
//! [`crate::store`].

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::model::{Artifact, Micros, Model, Stage, Version};
use crate::names::{ArtifactPath, ModelName, VersionId};
use crate::search::{Condition, Order};
use crate::store::Call;

mod conventions;
pub mod correlation;
mod drafts;
pub mod import;
pub mod limits;
pub mod otlp;
pub mod page;
pub mod spans;
pub mod traces;

pub use page::Page;

/// The experiment that every store begins with.
pub const DEFAULT_EXPERIMENT: i64 = 0;

/// The tag that is a run's name.
pub const RUN_NAME: &str = "mlflow.runName";

/// Milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub i64);

impl Millis {
    /// Reads the machine's clock, as [`Micros::now`] does.
    pub fn now() -> Self {
        Self(Micros::now().0.div_euclid(1000))
    }
}

/// A group of runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Experiment {
    pub id: i64,
    pub name: String,
    /// Where its runs keep their files, unless they say otherwise.
    pub artifact_location: String,
    pub is_deleted: bool,
    pub tags: BTreeMap<String, String>,
    pub create_time: Millis,
    pub update_time: Millis,
}

/// Where an experiment is to keep its files.
#[derive(Clone, Debug)]
pub enum Location {
    /// In a directory of this root that is named by the experiment's number.
    Below(String),
    At(String),
}

impl Location {
    /// The place itself, for the experiment numbered `id`.
    pub fn of(&self, id: i64) -> String {
        match self {
            Self::Below(root) => format!("{}/{id}", root.trim_end_matches('/')),
            Self::At(place) => place.clone(),
        }
    }
}

/// An experiment before it has its number.
#[derive(Clone, Debug)]
pub struct ExperimentDraft {
    pub name: String,
    pub location: Location,
    pub tags: BTreeMap<String, String>,
}

/// What changes about an experiment.
#[derive(Clone, Debug)]
pub enum ExperimentChange {
    Rename(String),
    Delete,
    Restore,
    SetTag(String, String),
    DeleteTag(String),
}

/// What names an experiment.
#[derive(Clone, Debug)]
pub enum ExperimentRef {
    Id(i64),
    Name(String),
}

/// One execution of somebody's training code.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub id: String,
    pub experiment: i64,
    pub name: String,
    pub user_id: String,
    pub status: RunStatus,
    pub start_time: Millis,
    pub end_time: Option<Millis>,
    pub artifact_uri: String,
    pub is_deleted: bool,
    pub params: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    /// The latest value of each, by key.
    pub metrics: Vec<Metric>,
    pub datasets: Vec<DatasetInput>,
    /// Logged models it read.
    pub model_inputs: Vec<String>,
    /// Logged models it made.
    pub model_outputs: Vec<ModelOutput>,
}

/// How a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RunStatus {
    Running,
    Scheduled,
    Finished,
    Failed,
    Killed,
}

/// A run before it begins.
#[derive(Clone, Debug)]
pub struct RunDraft {
    /// Chosen by the caller of the store: 32 hexadecimal digits.
    pub id: String,
    pub experiment: i64,
    pub name: String,
    pub user_id: String,
    pub start_time: Millis,
    pub tags: BTreeMap<String, String>,
}

/// What changes about a run itself.
#[derive(Clone, Debug)]
pub enum RunChange {
    Update {
        status: Option<RunStatus>,
        end_time: Option<Millis>,
        name: Option<String>,
    },
    Delete,
    Restore,
    DeleteTag(String),
    /// Adds what a 2.x client says of a model to the list that is one of the run's tags.
    NoteModel(serde_json::Value),
}

/// One value of a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    pub key: String,
    pub value: f64,
    pub timestamp: Millis,
    pub step: i64,
    /// The logged model it was measured of.
    pub model: Option<String>,
    /// The dataset it was measured on.
    pub dataset: Option<(String, String)>,
}

/// What is logged at once: all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    pub metrics: Vec<Metric>,
    pub params: Vec<(String, String)>,
    pub tags: Vec<(String, String)>,
}

/// A dataset and how a run used it.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetInput {
    pub name: String,
    pub digest: String,
    pub source_type: String,
    pub source: String,
    pub schema: Option<String>,
    pub profile: Option<String>,
    pub tags: BTreeMap<String, String>,
}

/// A logged model that a run made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOutput {
    pub model: String,
    pub step: i64,
}

/// Which of the living and the deleted are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Active,
    Deleted,
    All,
}

/// What a search is for, and which page of it.
#[derive(Clone, Debug)]
pub struct Search {
    pub conditions: Vec<Condition>,
    pub orders: Vec<Order>,
    pub view: View,
    /// Of runs and logged models: the experiments they belong to. Of experiments: only these, or any where there are none.
    pub experiments: Vec<i64>,
    /// Of logged models: measured on one of these, by name and perhaps digest; empty for any.
    pub datasets: Vec<(String, Option<String>)>,
    /// How many to pass over.
    pub offset: u64,
    pub limit: u32,
}

/// Experiments, each method one transaction.
#[async_trait]
pub trait Experiments: Send + Sync {
    /// Adds the experiment that every store begins with, where it is missing.
    async fn add_default_experiment(&self, now: Millis, location: &Location) -> Result<()>;
    /// Adds an experiment and answers its number. A name is taken as long as anything has it, deleted or not.
    async fn create_experiment(&self, now: Millis, draft: &ExperimentDraft) -> Result<i64>;
    /// Finds an experiment, deleted or not.
    async fn experiment(&self, which: &ExperimentRef) -> Result<Experiment>;
    /// Finds those that meet all conditions.
    async fn experiments(&self, search: &Search) -> Result<Page<Experiment>>;
    /// Changes one; its runs are deleted and restored with it.
    async fn change_experiment(&self, now: Millis, id: i64, change: &ExperimentChange) -> Result<()>;
}

/// Runs, each method one transaction.
#[async_trait]
pub trait Runs: Send + Sync {
    /// Begins a run of an active experiment.
    async fn create_run(&self, draft: &RunDraft) -> Result<Run>;
    /// Finds a run, deleted or not.
    async fn run(&self, id: &str) -> Result<Run>;
    /// Finds those that meet all conditions.
    async fn runs(&self, search: &Search) -> Result<Page<Run>>;
    /// Changes one.
    async fn change_run(&self, id: &str, change: &RunChange) -> Result<Run>;
    /// Logs all of it or nothing. A parameter has one value for ever; the same value of a metric counts once.
    async fn log(&self, run: &str, batch: &Batch) -> Result<()>;
    /// Notes what an active run read and made.
    async fn log_uses(&self, run: &str, uses: &Uses) -> Result<()>;
    /// Lists which datasets the runs of these experiments have used for what; at most a thousand.
    async fn dataset_summaries(&self, experiments: &[i64]) -> Result<Vec<DatasetSummary>>;
    /// Lists the values of a metric by timestamp, step and value.
    async fn history(&self, run: &str, key: &str, offset: u64, limit: u32) -> Result<Page<Metric>>;
}

/// A dataset that runs of an experiment have used, and for what.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct DatasetSummary {
    pub experiment: i64,
    pub name: String,
    pub digest: String,
    pub context: Option<String>,
}

/// What a run read and made.
#[derive(Clone, Debug, Default)]
pub struct Uses {
    pub datasets: Vec<DatasetInput>,
    pub model_inputs: Vec<String>,
    pub model_outputs: Vec<ModelOutput>,
}

/// The scheme of files that are kept by this registry.
pub const PROXY: &str = "mlflow-artifacts:";

/// The files that clients have put, by path. Their bytes are in the artifact store and stay there.
#[async_trait]
pub trait Files: Send + Sync {
    /// Notes a file whose bytes are durable, in place of the one with the same path.
    async fn put_file(&self, file: &Artifact) -> Result<()>;
    /// Finds a file.
    async fn file(&self, path: &ArtifactPath) -> Result<Option<Artifact>>;
    /// Lists the files below a directory by their paths; empty for all.
    async fn files_below(&self, dir: &str) -> Result<Vec<Artifact>>;
    /// Forgets a file, or all below a directory; answers how many.
    async fn delete_files(&self, path: &ArtifactPath) -> Result<u64>;
}

/// A model that a run has logged: MLflow 3's unit between a run and a registered version.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedModel {
    /// `m-` and 32 hexadecimal digits.
    pub id: String,
    pub experiment: i64,
    pub name: String,
    pub artifact_location: String,
    pub status: LoggedModelStatus,
    pub model_type: String,
    pub source_run: String,
    pub params: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    /// Each with the run that measured it.
    pub metrics: Vec<(String, Metric)>,
    pub create_time: Millis,
    pub update_time: Millis,
}

/// Whether a logged model's files are all there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LoggedModelStatus {
    Pending,
    Ready,
    UploadFailed,
}

/// A logged model before it is there.
#[derive(Clone, Debug)]
pub struct LoggedModelDraft {
    pub id: String,
    pub experiment: i64,
    pub name: String,
    pub model_type: String,
    pub source_run: String,
    pub params: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
}

/// What changes about a logged model.
#[derive(Clone, Debug)]
pub enum LoggedModelChange {
    Finalize(LoggedModelStatus),
    AddParams(BTreeMap<String, String>),
    SetTags(BTreeMap<String, String>),
    DeleteTag(String),
    Delete,
}

/// Logged models, each method one transaction. A deleted one is not found.
#[async_trait]
pub trait LoggedModels: Send + Sync {
    /// Adds a pending one to an active experiment.
    async fn create_logged_model(&self, now: Millis, draft: &LoggedModelDraft) -> Result<LoggedModel>;
    /// Finds one.
    async fn logged_model(&self, id: &str) -> Result<LoggedModel>;
    /// Finds those that meet all conditions.
    async fn logged_models(&self, search: &Search) -> Result<Page<LoggedModel>>;
    /// Changes one; what is deleted is answered as it was.
    async fn change_logged_model(&self, now: Millis, id: &str, change: &LoggedModelChange) -> Result<LoggedModel>;
}

/// What MLflow's clients do to registered models and versions beyond [`crate::store::Store`].
#[async_trait]
pub trait Registered: Send + Sync {
    /// Finds the models that meet all conditions.
    async fn search_models(&self, search: &Search) -> Result<Page<Model>>;
    /// Finds the versions that meet all conditions, of whatever model.
    async fn search_versions(&self, search: &Search) -> Result<Page<Version>>;
    /// Lists the newest version of each stage of these models; of those that do not exist there is none.
    async fn latest_versions(&self, of: &[ModelName]) -> Result<Vec<Version>>;
    /// Gives a model another name; its versions, aliases and tags follow.
    async fn rename_model(&self, call: &Call, from: &ModelName, to: &ModelName) -> Result<Model>;
    /// Moves a version to a stage, and all others there to the archive where asked.
    async fn move_to_stage(&self, call: &Call, of: &VersionId, stage: Stage, archive_others: bool) -> Result<Version>;
}
