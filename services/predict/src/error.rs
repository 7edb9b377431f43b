//! What can go wrong in predict, by what the caller can do about it.

use std::time::Duration;

use tonic::{Code, Status};
use uuid::Uuid;
use verdict_chassis::status::{self, Field};
use verdict_inference::trees::NotExplainable;

use crate::{batch, release::Task, text::ItemFailure};

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
    /// One wrong field, with a reason of its own.
    #[error("`{}` {}", .field.field, .field.problem)]
    Refused { reason: &'static str, field: Field },
    /// One input of several failed, in a call that has no place for the errors of single inputs.
    #[error("`{field}`: {}", .failure.message)]
    Item { field: String, failure: ItemFailure },
    #[error("model `{0}` has no policy.json, so it scores but does not decide")]
    NoPolicy(String),
    #[error("model `{0}` has no chat template, so it takes a prompt and no messages")]
    NoChatTemplate(String),
    #[error("model `{model}` cannot be explained: {why}")]
    NotExplainable { model: String, why: NotExplainable },
    #[error("the queue of model `{model}` is full")]
    QueueFull { model: String, retry_after: Duration },
    #[error("the queue of the model is full, and this call made room for a more urgent one or a tenant with less")]
    PushedOut(Duration),
    #[error("model `{model}` needs about {needed:.1?} for this call, more than its deadline leaves")]
    TooLate { model: String, needed: Duration },
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
    #[error("`{reference}` was not loaded: {message}")]
    NotLoaded { reference: String, message: String },
    #[error("`{reference}` was not loaded: {message}")]
    RegistryUnavailable { reference: String, message: String },
    #[error("`{reference}` is named by {routes}")]
    InRoute { reference: String, routes: String },
    #[error("route `{0}` not found")]
    RouteNotFound(String),
    #[error("route `{0}` was changed by someone else")]
    EtagMismatch(String),
    #[error("request id `{0}` was used for another call")]
    CallReused(String),
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

    /// Makes the error of a `model` that is neither a reference nor a route.
    pub fn model(problem: &str) -> Self {
        Self::field("model", format!("is wrong: {problem}, or a route that is set"))
    }

    /// Returns the code this has on the wire.
    pub fn code(&self) -> Code {
        match self {
            Self::NotServed { .. } | Self::DecisionNotFound(_) | Self::RouteNotFound(_) => Code::NotFound,
            Self::Loading { .. } | Self::LogUnreadable | Self::NotRecorded | Self::RegistryUnavailable { .. } => {
                Code::Unavailable
            }
            Self::WrongTask { .. } | Self::Invalid(_) | Self::Refused { .. } => Code::InvalidArgument,
            Self::Item { failure, .. } => failure.code,
            Self::NoPolicy(_)
            | Self::NoChatTemplate(_)
            | Self::NotExplainable { .. }
            | Self::NotLoaded { .. }
            | Self::InRoute { .. } => Code::FailedPrecondition,
            Self::QueueFull { .. } | Self::PushedOut(_) | Self::LogBusy => Code::ResourceExhausted,
            Self::TooLate { .. } | Self::Expired => Code::DeadlineExceeded,
            Self::RequestIdReused(_) | Self::CallReused(_) => Code::AlreadyExists,
            Self::EtagMismatch(_) => Code::Aborted,
            Self::Internal(_) => Code::Internal,
        }
    }

    /// Makes the error of a request that the queue of `model` did not let in.
    pub fn refused(model: &str, refused: batch::Refused) -> Self {
        let model = model.to_owned();
        match refused {
            batch::Refused::Full { retry_after } => Self::QueueFull { model, retry_after },
            batch::Refused::TooLate { needed } => Self::TooLate { model, needed },
            batch::Refused::Expired => Self::Expired,
        }
    }

    /// Makes the error of a whole request from the failure of a part of it.
    pub fn failed(failure: batch::Failure) -> Self {
        match failure {
            batch::Failure::Expired => Self::Expired,
            batch::Failure::PushedOut(retry_after) => Self::PushedOut(retry_after),
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
            Error::Refused { reason, field } => status::invalid(reason, vec![field]),
            Error::Item { field, failure: ItemFailure { code: Code::InvalidArgument, reason, message } } => {
                status::invalid(reason, vec![Field::new(field, format!("failed: {message}"))])
            }
            Error::Item { failure, .. } => status::internal(&anyhow::anyhow!("{}: {message}", failure.reason)),
            Error::NoPolicy(_) => status::failed_precondition("NO_POLICY", message),
            Error::NotExplainable { .. } => status::failed_precondition("NOT_EXPLAINABLE", message),
            Error::QueueFull { retry_after, .. } => status::exhausted("QUEUE_FULL", message, retry_after),
            Error::PushedOut(retry_after) => status::exhausted("QUEUE_FULL", message, retry_after),
            Error::TooLate { .. } => status::deadline_exceeded("DEADLINE_TOO_SHORT", message),
            Error::Expired => status::deadline_exceeded("DEADLINE_EXCEEDED", message),
            Error::RequestIdReused(id) => status::already_exists("REQUEST_ID_REUSED", "decision", &id, message),
            Error::DecisionNotFound(id) => {
                status::not_found("DECISION_NOT_FOUND", "decision", &id.to_string(), message)
            }
            Error::LogBusy => status::exhausted("QUEUE_FULL", message, Duration::from_millis(100)),
            Error::LogUnreadable | Error::NotRecorded => {
                status::unavailable("DECISION_LOG_UNAVAILABLE", message, Duration::from_secs(1))
            }
            Error::NotLoaded { .. } => status::failed_precondition("MODEL_NOT_LOADED", message),
            Error::RegistryUnavailable { .. } => {
                status::unavailable("REGISTRY_UNAVAILABLE", message, Duration::from_secs(5))
            }
            Error::InRoute { .. } => status::failed_precondition("MODEL_IN_ROUTE", message),
            Error::RouteNotFound(name) => status::not_found("ROUTE_NOT_FOUND", "route", &name, message),
            Error::EtagMismatch(_) => status::aborted("ETAG_MISMATCH", message),
            Error::CallReused(id) => status::already_exists("REQUEST_ID_REUSED", "request", &id, message),
            Error::Internal(source) => status::internal(&source),
        }
    }
}
