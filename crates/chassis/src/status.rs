//! Errors on the wire: a gRPC code, a line for people, and `google.rpc` details for programs.
//!
//! Every constructor attaches `ErrorInfo { reason, domain: "verdict" }`. Reasons are UPPER_SNAKE_CASE and stable;
//! clients match on them with [`reason`], never on the text. Messages and field lists are cut to what fits into the
//! headers an answer may have.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// The `domain` of every `ErrorInfo`.
pub const DOMAIN: &str = "verdict";

const MESSAGE_BYTES: usize = 1000;
const FIELD_BYTES: usize = 300;
const FIELDS: usize = 10;

/// One bad field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Path of the field as the contract names it: `features["age"]`, `texts[3]`.
    pub field: String,
    /// What is wrong and what would be right, without the field's name: "is missing; the signature requires a double".
    pub problem: String,
}

impl Field {
    /// Names a field and its problem.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

/// INVALID_ARGUMENT with a `BadRequest` that lists the fields (the first ten, and a line that counts the rest).
pub fn invalid(reason: &'static str, fields: Vec<Field>) -> Status {
    let more = fields.len().saturating_sub(FIELDS);
    let mut fields: Vec<Field> = fields
        .into_iter()
        .take(FIELDS)
        .map(|f| Field { field: limited(f.field, FIELD_BYTES), problem: limited(f.problem, FIELD_BYTES) })
        .collect();
    let mut message = fields.iter().map(|f| format!("`{}` {}", f.field, f.problem)).collect::<Vec<_>>().join("; ");
    if more > 0 {
        message = format!("{}; and {more} more", limited(message, MESSAGE_BYTES - 40));
        fields.push(Field::new("", format!("{more} more fields are wrong")));
    }
    let violations: Vec<_> = fields.into_iter().map(|f| FieldViolation::new(f.field, f.problem)).collect();
    let mut details = info(reason);
    details.set_bad_request(violations);
    status(Code::InvalidArgument, message, details)
}

/// INVALID_ARGUMENT whose message names what is wrong, where that is no single field.
pub fn refused(reason: &'static str, message: impl Into<String>) -> Status {
    status(Code::InvalidArgument, message, info(reason))
}

/// NOT_FOUND with a `ResourceInfo`.
pub fn not_found(reason: &'static str, resource_type: &str, name: &str, message: impl Into<String>) -> Status {
    resource(Code::NotFound, reason, resource_type, name, message)
}

/// ALREADY_EXISTS with a `ResourceInfo`.
pub fn already_exists(reason: &'static str, resource_type: &str, name: &str, message: impl Into<String>) -> Status {
    resource(Code::AlreadyExists, reason, resource_type, name, message)
}

/// ABORTED: someone else was faster; read again and retry.
pub fn aborted(reason: &'static str, message: impl Into<String>) -> Status {
    status(Code::Aborted, message, info(reason))
}

/// FAILED_PRECONDITION: the system is not in the state the call needs; retrying alone doesn't help.
pub fn failed_precondition(reason: &'static str, message: impl Into<String>) -> Status {
    status(Code::FailedPrecondition, message, info(reason))
}

/// DATA_LOSS: what was stored or sent is not what arrived.
pub fn data_loss(reason: &'static str, message: impl Into<String>) -> Status {
    status(Code::DataLoss, message, info(reason))
}

/// OUT_OF_RANGE: past a limit of size or position.
pub fn out_of_range(reason: &'static str, message: impl Into<String>) -> Status {
    status(Code::OutOfRange, message, info(reason))
}

/// DEADLINE_EXCEEDED: the time ran out before the answer was ready.
pub fn deadline_exceeded(reason: &'static str, message: impl Into<String>) -> Status {
    status(Code::DeadlineExceeded, message, info(reason))
}

/// RESOURCE_EXHAUSTED with a `RetryInfo`: too busy, come back after `retry_after`.
pub fn exhausted(reason: &'static str, message: impl Into<String>, retry_after: Duration) -> Status {
    let mut details = info(reason);
    details.set_retry_info(Some(retry_after));
    status(Code::ResourceExhausted, message, details)
}

/// UNAVAILABLE with a `RetryInfo`: something this service needs doesn't answer.
pub fn unavailable(reason: &'static str, message: impl Into<String>, retry_after: Duration) -> Status {
    let mut details = info(reason);
    details.set_retry_info(Some(retry_after));
    status(Code::Unavailable, message, details)
}

/// INTERNAL: logs the whole source chain, once and here; the wire says "internal error" and no more.
pub fn internal(error: &anyhow::Error) -> Status {
    tracing::error!(error = format!("{error:#}"), "internal error");
    internal_unlogged()
}

pub(crate) fn internal_unlogged() -> Status {
    status(Code::Internal, "internal error", info("INTERNAL"))
}

/// Reads the reason of a status made here.
pub fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().filter(|info| info.domain == DOMAIN).map(|info| info.reason)
}

/// Reads the bad fields of a status; empty when it names none.
pub fn fields(status: &Status) -> Vec<Field> {
    let violations = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    violations.into_iter().map(|v| Field { field: v.field, problem: v.description }).collect()
}

/// Reads how long a caller is asked to wait before it tries again.
pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|retry| retry.retry_delay)
}

fn resource(code: Code, reason: &'static str, resource_type: &str, name: &str, message: impl Into<String>) -> Status {
    let mut details = info(reason);
    details.set_resource_info(resource_type, limited(name.to_owned(), FIELD_BYTES), "", "");
    status(code, message, details)
}

fn info(reason: &'static str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::<String, String>::new())
}

fn status(code: Code, message: impl Into<String>, details: ErrorDetails) -> Status {
    Status::with_error_details(code, limited(message.into(), MESSAGE_BYTES), details)
}

fn limited(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_request_names_every_field_in_text_and_details() {
        let status = invalid(
            "FEATURES_INVALID",
            vec![Field::new("features[\"age\"]", "is missing"), Field::new("features[\"sex\"]", "is not a string")],
        );
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "`features[\"age\"]` is missing; `features[\"sex\"]` is not a string");
        assert_eq!(reason(&status).as_deref(), Some("FEATURES_INVALID"));
        assert_eq!(fields(&status)[0], Field::new("features[\"age\"]", "is missing"));
    }

    #[test]
    fn a_thousand_long_fields_still_fit_into_headers() {
        let bad = (0..1000).map(|i| Field::new(format!("{i}{}", "é".repeat(500)), "x".repeat(5000))).collect();
        let status = invalid("MANY", bad);
        assert_eq!(fields(&status).len(), FIELDS + 1);
        let headers = status.into_http::<()>().into_parts().0.headers;
        let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        assert!(size < 16 * 1024, "{size} bytes of headers");
    }

    #[test]
    fn retry_information_survives_the_wire() {
        let status = exhausted("BUSY", "too busy", Duration::from_millis(250));
        assert_eq!(retry_after(&status), Some(Duration::from_millis(250)));
        let there = Status::from_header_map(status.into_http::<()>().headers()).unwrap();
        assert_eq!(retry_after(&there), Some(Duration::from_millis(250)));
        assert_eq!(reason(&there).as_deref(), Some("BUSY"));
    }

    #[test]
    fn an_internal_error_keeps_its_cause_off_the_wire() {
        let status = internal(&anyhow::anyhow!("password 123 is wrong").context("can't connect"));
        assert_eq!(status.message(), "internal error");
        assert_eq!(reason(&status).as_deref(), Some("INTERNAL"));
        assert!(!String::from_utf8_lossy(status.details()).contains("123"));
    }
}
