//! Spans: the steps of a trace, as MLflow's clients and OpenTelemetry's exporters send them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::conventions;

/// Attributes that MLflow reserves.
pub const TRACE_ID: &str = "mlflow.traceRequestId";
pub const INPUTS: &str = "mlflow.spanInputs";
pub const OUTPUTS: &str = "mlflow.spanOutputs";
pub const KIND: &str = "mlflow.spanType";
pub const TOKEN_USAGE: &str = "mlflow.chat.tokenUsage";

/// The kind of a span that says none.
const UNKNOWN: &str = "UNKNOWN";

/// One step of a trace. Times are nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The trace as MLflow names it.
    pub trace: String,
    /// 16 hexadecimal digits.
    pub id: String,
    /// The span it is a part of; None for the root of its trace.
    pub parent: Option<String>,
    pub name: String,
    /// What it does: `LLM`, `TOOL`, `RETRIEVER`, or any word.
    pub kind: String,
    pub status: SpanStatus,
    pub start: i64,
    /// None while it goes on.
    pub end: Option<i64>,
    pub content: Content,
}

/// How a span ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SpanStatus {
    Unset,
    Ok,
    Error,
}

/// What of a span is kept as one JSON object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// The trace as OpenTelemetry names it: 32 hexadecimal digits.
    pub otel_trace: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub attributes: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<SpanEvent>,
}

/// Something that happened during a span.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpanEvent {
    pub name: String,
    pub time: i64,
    pub attributes: Map<String, Value>,
}

impl Span {
    /// Fills in, from the conventions of other libraries, what MLflow names by attributes of its own.
    pub fn in_mlflow_s_terms(mut self) -> Self {
        conventions::translate(&mut self.content.attributes);
        let kind = self.content.attributes.get(KIND).and_then(Value::as_str).filter(|kind| !kind.is_empty());
        self.kind = kind.unwrap_or(UNKNOWN).to_owned();
        self
    }
}
