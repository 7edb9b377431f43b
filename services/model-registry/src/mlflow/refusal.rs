//! Errors as MLflow's clients know them: a code, a message they match on, an HTTP status.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::error::{Entity, Error};

/// Longest message, in bytes: it quotes what was refused, and that can be long.
const MAX_MESSAGE: usize = 10_000;

/// Why a call is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// A parameter the caller has to mend.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_PARAMETER_VALUE", message)
    }

    /// What is said to the caller.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Something that is not there.
    pub(super) fn missing(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "RESOURCE_DOES_NOT_EXIST", message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, code, mut message } = self;
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        (status, Json(json!({"error_code": code, "message": message}))).into_response()
    }
}

impl From<Entity> for Refusal {
    fn from(missing: Entity) -> Self {
        Self::missing(match missing {
            Entity::Model(name) => format!("Registered Model with name={name} not found"),
            Entity::Version(id) => format!("Model Version (name={}, version={}) not found", id.model, id.number),
            Entity::Alias { model: _, alias } => {
                return Self::invalid(format!("Registered model alias {alias} not found."));
            }
            Entity::Artifact { version, path } => format!("No such artifact: '{path}' of {version}"),
            Entity::Tag { of, key } => format!("No tag with name: {key} in {of}"),
            Entity::TagOf { of, key } => format!("No tag with name: {key} in {of}"),
            Entity::LoggedModelTag { model, key } => {
                format!("No tag with key '{key}' found for model with ID '{model}'.")
            }
            Entity::Hold(id) => format!("Hold with id={id} not found"),
            Entity::Experiment(id) => format!("No Experiment with id={id} exists"),
            Entity::ExperimentNamed(name) => format!("Could not find experiment with name '{name}'"),
            Entity::Run(id) => format!("Run with id={id} not found"),
            Entity::LoggedModel(id) => format!("Logged model with ID '{id}' not found."),
            Entity::EvaluationDataset(id) => format!("Evaluation dataset with id '{id}' not found"),
            Entity::Scorer { experiment, name, version: None } => {
                format!("Scorer with name '{name}' not found for experiment {experiment}.")
            }
            Entity::Scorer { experiment, name, version: Some(version) } => {
                format!("Scorer with name '{name}' and version {version} not found for experiment {experiment}.")
            }
            Entity::Trace(id) => format!("Trace with ID '{id}' not found."),
            Entity::Assessment { trace, id } => format!("Assessment with ID '{id}' not found for trace '{trace}'"),
            Entity::TraceTag { trace, key } => {
                format!("No trace tag with key '{key}' for trace with ID '{trace}'")
            }
            Entity::Webhook(id) => format!("Webhook with ID {id} not found."),
            Entity::File(path) => format!("No such artifact: '{path}'"),
        })
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::NotFound(entity) => entity.into(),
            Error::ModelExists(name) => Self::new(
                StatusCode::BAD_REQUEST,
                "RESOURCE_ALREADY_EXISTS",
                format!("Registered Model (name={name}) already exists."),
            ),
            Error::ExperimentExists(_) => Self::new(StatusCode::BAD_REQUEST, "RESOURCE_ALREADY_EXISTS", message),
            Error::Rejected(_) | Error::Invalid { .. } | Error::OutOfRange { .. } => Self::invalid(message),
            Error::InvalidState(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INVALID_STATE", message),
            Error::Conflict { .. } | Error::RequestIdReused(_) => {
                Self::new(StatusCode::CONFLICT, "RESOURCE_CONFLICT", message)
            }
            Error::Precondition { .. } => Self::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", message),
            Error::DataLoss { .. } => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "DATA_LOSS", message),
            Error::FilesElsewhere(_) => Self::new(StatusCode::NOT_IMPLEMENTED, "NOT_IMPLEMENTED", message),
            Error::BrokenOff(_) => Self::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", message),
            Error::Unavailable { dependency, source } => {
                tracing::warn!(error = format!("{source:#}"), "{dependency} is unavailable");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "TEMPORARILY_UNAVAILABLE", message)
            }
            Error::Stopping => Self::new(StatusCode::SERVICE_UNAVAILABLE, "TEMPORARILY_UNAVAILABLE", message),
            Error::Internal(source) => {
                tracing::error!(error = format!("{source:#}"), "internal error");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", message)
            }
        }
    }
}
