//! What can go wrong in the registry, by what the caller can do about it.

use std::fmt;
use std::time::Duration;

use tonic::Status;
use verdict_chassis::status;

use crate::names::{AliasName, ArtifactPath, ModelName, VersionId};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// When to try again what a dependency could not answer.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Something the registry keeps, as it is named in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entity {
    Model(ModelName),
    Version(VersionId),
    Alias {
        model: ModelName,
        alias: AliasName,
    },
    Artifact {
        version: VersionId,
        path: ArtifactPath,
    },
    Tag {
        of: String,
        key: String,
    },
    Hold(i64),
    Experiment(String),
    ExperimentNamed(String),
    Run(String),
    LoggedModel(String),
    EvaluationDataset(String),
    Scorer {
        experiment: i64,
        name: String,
        version: Option<i64>,
    },
    /// A tag of something that MLflow tracks.
    TagOf {
        of: String,
        key: String,
    },
    LoggedModelTag {
        model: String,
        key: String,
    },
    Trace(String),
    Assessment {
        trace: String,
        id: String,
    },
    TraceTag {
        trace: String,
        key: String,
    },
    Webhook(String),
    /// A file that is not one of a version.
    File(ArtifactPath),
}

impl Entity {
    fn resource_type(&self) -> &'static str {
        match self {
            Self::Model(_) => "model",
            Self::Version(_) => "version",
            Self::Alias { .. } => "alias",
            Self::Artifact { .. } => "artifact",
            Self::Tag { .. } | Self::TagOf { .. } | Self::LoggedModelTag { .. } | Self::TraceTag { .. } => "tag",
            Self::Hold(_) => "hold",
            Self::Experiment(_) | Self::ExperimentNamed(_) => "experiment",
            Self::Run(_) => "run",
            Self::LoggedModel(_) => "logged model",
            Self::EvaluationDataset(_) => "evaluation dataset",
            Self::Scorer { .. } => "scorer",
            Self::Trace(_) => "trace",
            Self::Assessment { .. } => "assessment",
            Self::Webhook(_) => "webhook",
            Self::File(_) => "file",
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Model(name) => name.to_string(),
            Self::Version(id) => id.to_string(),
            Self::Alias { model, alias } => format!("{model}@{alias}"),
            Self::Artifact { version, path } => format!("{version}:{path}"),
            Self::Tag { of, key } | Self::TagOf { of, key } => format!("{of}#{key}"),
            Self::LoggedModelTag { model, key } => format!("{model}#{key}"),
            Self::TraceTag { trace, key } => format!("{trace}#{key}"),
            Self::Assessment { trace, id } => format!("{trace}/{id}"),
            Self::Trace(id) => id.clone(),
            Self::EvaluationDataset(id) => id.clone(),
            Self::Scorer { experiment, name, version: None } => format!("{experiment}/{name}"),
            Self::Scorer { experiment, name, version: Some(version) } => format!("{experiment}/{name}/{version}"),
            Self::Experiment(name)
            | Self::ExperimentNamed(name)
            | Self::Run(name)
            | Self::LoggedModel(name)
            | Self::Webhook(name) => name.clone(),
            Self::Hold(id) => id.to_string(),
            Self::File(path) => path.to_string(),
        }
    }

    fn not_found(&self) -> &'static str {
        match self {
            Self::Model(_) => "MODEL_NOT_FOUND",
            Self::Version(_) => "VERSION_NOT_FOUND",
            Self::Alias { .. } => "ALIAS_NOT_FOUND",
            Self::Artifact { .. } => "ARTIFACT_NOT_FOUND",
            Self::Tag { .. } | Self::TagOf { .. } | Self::LoggedModelTag { .. } | Self::TraceTag { .. } => {
                "TAG_NOT_FOUND"
            }
            Self::Hold(_) => "HOLD_NOT_FOUND",
            Self::Experiment(_) | Self::ExperimentNamed(_) => "EXPERIMENT_NOT_FOUND",
            Self::Run(_) => "RUN_NOT_FOUND",
            Self::LoggedModel(_) => "LOGGED_MODEL_NOT_FOUND",
            Self::EvaluationDataset(_) => "EVALUATION_DATASET_NOT_FOUND",
            Self::Scorer { .. } => "SCORER_NOT_FOUND",
            Self::Trace(_) => "TRACE_NOT_FOUND",
            Self::Assessment { .. } => "ASSESSMENT_NOT_FOUND",
            Self::Webhook(_) => "WEBHOOK_NOT_FOUND",
            Self::File(_) => "FILE_NOT_FOUND",
        }
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.resource_type(), self.name())
    }
}

/// What went wrong. `reason` is stable: clients match on it, never on the message.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} not found")]
    NotFound(Entity),
    #[error("model `{0}` already exists")]
    ModelExists(ModelName),
    #[error("Experiment(name={0}) already exists")]
    ExperimentExists(String),
    /// What MLflow's clients are refused with INVALID_PARAMETER_VALUE, in the words they know.
    #[error("{0}")]
    Rejected(String),
    /// What the state of something forbids, in the words MLflow's clients know.
    #[error("{0}")]
    InvalidState(String),
    #[error("request id `{0}` was used before for a different call; take a new one")]
    RequestIdReused(String),
    #[error("`{field}` {problem}")]
    Invalid { reason: &'static str, field: String, problem: String },
    /// The caller's expectation no longer holds: read again, then decide.
    #[error("{message}")]
    Conflict { reason: &'static str, message: String },
    /// The state forbids it.
    #[error("{message}")]
    Precondition { reason: &'static str, message: String },
    #[error("{message}")]
    OutOfRange { reason: &'static str, message: String },
    /// Bytes that arrived, or were kept, are not the bytes that were announced.
    #[error("{message}")]
    DataLoss { reason: &'static str, message: String },
    /// Another store keeps the files of what has this place.
    #[error("The files of `{0}` are not kept by this registry: read them where they are")]
    FilesElsewhere(String),
    /// The caller's own stream broke off.
    #[error("the call was broken off: {}", .0.message())]
    BrokenOff(Box<Status>),
    #[error("{dependency} is unavailable")]
    Unavailable { dependency: Dependency, source: anyhow::Error },
    #[error("the registry is stopping; connect again")]
    Stopping,
    #[error("internal error")]
    Internal(#[from] anyhow::Error),
}

/// What the registry itself depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependency {
    Database,
    ArtifactStore,
}

impl fmt::Display for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Database => "the database",
            Self::ArtifactStore => "the artifact store",
        })
    }
}

impl Dependency {
    fn unavailable(self) -> &'static str {
        match self {
            Self::Database => "DATABASE_UNAVAILABLE",
            Self::ArtifactStore => "ARTIFACT_STORE_UNAVAILABLE",
        }
    }
}

impl Error {
    /// A field the caller has to mend.
    pub fn invalid(reason: &'static str, field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { reason, field: field.into(), problem: problem.into() }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::NotFound(entity) => {
                status::not_found(entity.not_found(), entity.resource_type(), &entity.name(), message)
            }
            Error::ModelExists(name) => status::already_exists("MODEL_EXISTS", "model", name.as_str(), message),
            Error::ExperimentExists(name) => status::already_exists("EXPERIMENT_EXISTS", "experiment", &name, message),
            Error::Rejected(_) => status::refused("INVALID_PARAMETER_VALUE", message),
            Error::InvalidState(_) => status::failed_precondition("INVALID_STATE", message),
            Error::RequestIdReused(id) => status::already_exists("REQUEST_ID_REUSED", "request", &id, message),
            Error::Invalid { reason, field, problem } => {
                status::invalid(reason, vec![status::Field { field, problem }])
            }
            Error::Conflict { reason, message } => status::aborted(reason, message),
            Error::Precondition { reason, message } => status::failed_precondition(reason, message),
            Error::OutOfRange { reason, message } => status::out_of_range(reason, message),
            Error::DataLoss { reason, message } => status::data_loss(reason, message),
            Error::FilesElsewhere(_) => status::failed_precondition("FILES_ELSEWHERE", message),
            Error::BrokenOff(status) => *status,
            Error::Unavailable { dependency, source } => {
                tracing::warn!(error = format!("{source:#}"), "{dependency} is unavailable");
                status::unavailable(dependency.unavailable(), message, RETRY_AFTER)
            }
            Error::Stopping => status::unavailable("STOPPING", message, RETRY_AFTER),
            Error::Internal(source) => status::internal(&source),
        }
    }
}
