//! What can go wrong, by what the caller can do about it.

use std::time::Duration;

use tonic::{Code, Status};
use verdict_chassis::status::{self, Field};

use crate::document::Collection;

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in rag.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{}", .0.iter().map(|field| format!("`{}` {}", field.field, field.problem)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Field>),
    #[error("collection `{0}` does not exist; the first document ingested into it makes it")]
    CollectionNotFound(Collection),
    #[error("collection `{collection}` has no document `{document_id}`")]
    DocumentNotFound { collection: Collection, document_id: String },
    #[error(
        "collection `{collection}` was embedded by model {stored}, and `{model}` is {served} now: its vectors can't be \
         compared; ingest into a new collection, or serve the old model and name it with --embedder"
    )]
    EmbeddingMismatch { collection: Collection, stored: String, model: String, served: String },
    #[error("there are {0} collections, the most this index keeps open; set QDRANT_URL for more")]
    TooManyCollections(usize),
    #[error("predict does not serve what is needed: {0}")]
    ModelNotServed(String),
    #[error("{message}")]
    Busy { retry_after: Duration, message: String },
    #[error("{dependency} is unavailable")]
    Unavailable { dependency: &'static str, source: anyhow::Error },
    #[error("the deadline passed before the work was done")]
    DeadlineExceeded,
    #[error("internal error")]
    Internal(#[from] anyhow::Error),
}

impl Error {
    /// One bad field.
    pub(crate) fn invalid(field: &str, problem: impl Into<String>) -> Self {
        Self::Invalid(vec![Field::new(field, problem)])
    }

    /// Sorts what predict answered.
    pub(crate) fn from_predict(status: Status) -> Self {
        match status.code() {
            Code::ResourceExhausted => Self::Busy {
                retry_after: status::retry_after(&status).unwrap_or(Duration::from_millis(100)),
                message: format!("predict is busy: {}", status.message()),
            },
            Code::DeadlineExceeded | Code::Cancelled => Self::DeadlineExceeded,
            Code::NotFound => Self::ModelNotServed(status.message().to_owned()),
            Code::InvalidArgument if status::reason(&status).as_deref() == Some("WRONG_TASK") => {
                Self::ModelNotServed(status.message().to_owned())
            }
            Code::Unavailable => Self::Unavailable { dependency: "predict", source: status.into() },
            _ => Self::Internal(anyhow::Error::from(status).context("predict")),
        }
    }

    /// The reason for programs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID_REQUEST",
            Self::CollectionNotFound(_) => "COLLECTION_NOT_FOUND",
            Self::DocumentNotFound { .. } => "DOCUMENT_NOT_FOUND",
            Self::EmbeddingMismatch { .. } => "EMBEDDING_MISMATCH",
            Self::TooManyCollections(_) => "TOO_MANY_COLLECTIONS",
            Self::ModelNotServed(_) => "MODEL_NOT_SERVED",
            Self::Busy { .. } => "BUSY",
            Self::Unavailable { .. } => "DEPENDENCY_UNAVAILABLE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Internal(_) => "INTERNAL",
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let (reason, message) = (error.reason(), error.to_string());
        match error {
            Error::Invalid(fields) => status::invalid(reason, fields),
            Error::CollectionNotFound(collection) => {
                status::not_found(reason, "collection", collection.as_str(), message)
            }
            Error::DocumentNotFound { document_id, .. } => status::not_found(reason, "document", &document_id, message),
            Error::EmbeddingMismatch { .. } | Error::TooManyCollections(_) | Error::ModelNotServed(_) => {
                status::failed_precondition(reason, message)
            }
            Error::Busy { retry_after, .. } => status::exhausted(reason, message, retry_after),
            Error::Unavailable { source, .. } => {
                tracing::warn!(error = format!("{source:#}"), "{message}");
                status::unavailable(reason, message, Duration::from_secs(1))
            }
            Error::DeadlineExceeded => status::deadline_exceeded(reason, message),
            Error::Internal(source) => status::internal(&source),
        }
    }
}
