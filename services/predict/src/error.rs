//! What can go wrong in predict, by what the caller can do about it.

use std::time::Duration;

use tonic::Status;
use uuid::Uuid;
use verdict_chassis::status::{self, Field};

use crate::{batch, release::Task};

/// An answer predict does not give.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("model `{asked}` is not served; {served}")]
    NotServed { asked: String, served: String },
    #[error("model `{reference}` is not warm yet: {state}")]
    Loading { reference: String, state: String },
    #[error("model `{model}` {}; this call needs one that {}", .does.does(), .wanted.does())]
    WrongTask { model: String, does: Task, wanted: Task },
    #[error("bad request")]
    Invalid(Vec<Field>),
    #[error("model `{0}` has no policy.json, so it scores but does not decide")]
    NoPolicy(String),
    #[error("model `{0}` has no chat template, so it takes a prompt and no messages")]
    NoChatTemplate(String),
    #[error("the queue of model `{model}` is full")]
    QueueFull { model: String, retry_after: Duration },
    #[error("the deadline passed before the work was done")]
    Expired,
    #[error("request id `{0}` was used for another model or other features")]
    RequestIdReused(String),
    #[error("decision {0} not found")]
    DecisionNotFound(Uuid),
    #[error("too many decisions are waiting to be recorded")]
    LogBusy,
    #[error("the decision log cannot be read")]
    LogUnreadable,
    #[error("the decision may not have been recorded: repeat the call with the same request_id")]
    NotRecorded,
    #[error("internal error")]
    Internal(#[from] anyhow::Error),
}

/// The result of a call.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Makes the error of one wrong field.
    pub fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid(vec![Field { field: field.into(), problem: problem.into() }])
    }

    /// Makes the error of a whole request from the failure of a part of it.
    pub fn failed(failure: batch::Failure) -> Self {
        match failure {
            batch::Failure::Expired => Self::Expired,
            batch::Failure::Panicked => Self::Internal(anyhow::anyhow!("the engine panicked")),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::NotServed { asked, .. } => status::not_found("MODEL_NOT_SERVED", "served model", &asked, message),
            Error::Loading { .. } => status::unavailable("MODEL_LOADING", message, Duration::from_secs(1)),
            Error::WrongTask { .. } => {
                status::invalid("WRONG_TASK", vec![Field { field: "model".to_owned(), problem: message }])
            }
            Error::Invalid(fields) => status::invalid("INVALID_REQUEST", fields),
            Error::NoChatTemplate(_) => status::failed_precondition("NO_CHAT_TEMPLATE", message),
            Error::NoPolicy(_) => status::failed_precondition("NO_POLICY", message),
            Error::QueueFull { retry_after, .. } => status::exhausted("QUEUE_FULL", message, retry_after),
            Error::Expired => status::deadline_exceeded("DEADLINE_EXCEEDED", message),
            Error::RequestIdReused(id) => status::already_exists("REQUEST_ID_REUSED", "decision", &id, message),
            Error::DecisionNotFound(id) => {
                status::not_found("DECISION_NOT_FOUND", "decision", &id.to_string(), message)
            }
            Error::LogBusy => status::exhausted("QUEUE_FULL", message, Duration::from_millis(100)),
            Error::LogUnreadable | Error::NotRecorded => {
                status::unavailable("DECISION_LOG_UNAVAILABLE", message, Duration::from_secs(1))
            }
            Error::Internal(source) => status::internal(&source),
        }
    }
}
