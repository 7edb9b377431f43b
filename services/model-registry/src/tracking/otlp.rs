//! Spans as OpenTelemetry's exporters send them.
//!
//! Texts lose their NULs to U+FFFD: a database can't keep them, and a model's answer is not worth losing for one.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{self as otlp, status::StatusCode};
use serde_json::{Map, Value};

use super::spans::{Content, Span, SpanEvent, SpanStatus, TRACE_ID};
use super::traces::trace_id;
use crate::error::{Error, Result};

pub mod budget;

/// Most values in a text that is read as JSON; a longer one stays a text.
const MAX_DECODED: usize = 10_000;
/// What MLflow puts before the id that OpenTelemetry gives a trace.
const PREFIX: &str = "tr-";
/// Most spans in one request.
const MAX_SPANS: usize = 10_000;
/// Longest name of a span, in characters; what is longer is cut.
const MAX_NAME: usize = 1_000;
/// How deep JSON in a text may nest to be read; what is deeper stays a text, so that what is kept can be read again.
const MAX_DEPTH: usize = 64;

/// Reads the spans of a request.
pub fn spans(request: ExportTraceServiceRequest) -> Result<Vec<Span>> {
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    let spans: Vec<otlp::Span> = scopes.flat_map(|scope| scope.spans).collect();
    match spans.len() {
        0 => Err(Error::Rejected("Invalid OpenTelemetry format - no spans found".to_owned())),
        1..=MAX_SPANS => spans.into_iter().map(span).collect(),
        many => Err(Error::Rejected(format!(
            "A request may hold at most {MAX_SPANS} spans, got {many}; send fewer at once"
        ))),
    }
}

fn span(span: otlp::Span) -> Result<Span> {
    let otel_trace = id("trace_id", &span.trace_id, 16)?;
    let parent =
        if span.parent_span_id.is_empty() { None } else { Some(id("parent_span_id", &span.parent_span_id, 8)?) };
    let mut attributes = read_all(span.attributes, decoded);
    // MLflow's own clients name the trace by themselves.
    let trace = match attributes.get(TRACE_ID).and_then(Value::as_str).filter(|id| !id.is_empty()) {
        Some(named) => named.to_owned(),
        None => format!("{PREFIX}{otel_trace}"),
    };
    trace_id(&trace)?;
    attributes.insert(TRACE_ID.to_owned(), trace.as_str().into());
    let event = |event: otlp::span::Event| {
        let time = nanos("events.time_unix_nano", event.time_unix_nano)?;
        Ok(SpanEvent { name: clean(event.name), time, attributes: read_all(event.attributes, |value| value) })
    };
    let status = span.status.unwrap_or_default();
    let (id, start) = (id("span_id", &span.span_id, 8)?, nanos("start_time_unix_nano", span.start_time_unix_nano)?);
    let end = nanos("end_time_unix_nano", span.end_time_unix_nano)?;
    let read = Span {
        trace,
        id,
        parent,
        name: clean(span.name).chars().take(MAX_NAME).collect(),
        kind: String::new(),
        status: match status.code() {
            StatusCode::Unset => SpanStatus::Unset,
            StatusCode::Ok => SpanStatus::Ok,
            StatusCode::Error => SpanStatus::Error,
        },
        start,
        end: (end > 0).then_some(end),
        content: Content {
            otel_trace,
            message: clean(status.message),
            attributes,
            events: span.events.into_iter().map(event).collect::<Result<_>>()?,
        },
    };
    Ok(read.in_mlflow_s_terms())
}

fn id(field: &str, bytes: &[u8], len: usize) -> Result<String> {
    if bytes.len() == len && bytes.iter().any(|byte| *byte != 0) {
        return Ok(hex::encode(bytes));
    }
    Err(Error::Rejected(format!("'{field}' of a span must be {len} bytes, not all zero; got {} bytes", bytes.len())))
}

fn nanos(field: &str, value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| Error::Rejected(format!("'{field}' of a span is out of range: {value}")))
}

fn clean(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

fn read_all(pairs: Vec<KeyValue>, then: fn(Value) -> Value) -> Map<String, Value> {
    pairs.into_iter().map(|KeyValue { key, value, .. }| (clean(key), then(read(value)))).collect()
}

fn read(value: Option<AnyValue>) -> Value {
    use any_value::Value as Any;
    match value.and_then(|value| value.value) {
        None | Some(Any::StringValueStrindex(_)) => Value::Null,
        Some(Any::StringValue(text)) => clean(text).into(),
        Some(Any::BoolValue(truth)) => truth.into(),
        Some(Any::IntValue(number)) => number.into(),
        // JSON has no words for numbers without an end, nor for what is none.
        Some(Any::DoubleValue(number)) if number.is_finite() => number.into(),
        Some(Any::DoubleValue(number)) => number.to_string().into(),
        Some(Any::ArrayValue(array)) => array.values.into_iter().map(|value| read(Some(value))).collect(),
        Some(Any::KvlistValue(list)) => Value::Object(read_all(list.values, |value| value)),
        Some(Any::BytesValue(bytes)) => STANDARD.encode(bytes).into(),
    }
}

/// MLflow's exporters put JSON into a text: a text, list or object in there is what is meant.
fn decoded(value: Value) -> Value {
    let Value::String(text) = &value else { return value };
    let values = text.bytes().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    if values > MAX_DECODED || !text.trim_start().starts_with(['"', '[', '{']) {
        return value;
    }
    match serde_json::from_str::<Value>(text) {
        // An escape may stand for NUL where the text itself holds none.
        Ok(read) if !text.contains("\\u0000") && is_shallow(&read, MAX_DEPTH) => read,
        _ => value,
    }
}

/// Whether a value nests no deeper than this.
fn is_shallow(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(items) => depth > 0 && items.iter().all(|item| is_shallow(item, depth - 1)),
        Value::Object(fields) => depth > 0 && fields.values().all(|field| is_shallow(field, depth - 1)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::ArrayValue;
    use serde_json::json;

    use super::*;

    fn text(text: &str) -> AnyValue {
        AnyValue { value: Some(any_value::Value::StringValue(text.to_owned())) }
    }

    fn pair(key: &str, value: AnyValue) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
    }

    fn one() -> otlp::Span {
        otlp::Span { trace_id: vec![1; 16], span_id: vec![2; 8], name: "s".into(), ..otlp::Span::default() }
    }

    #[test]
    fn a_span_is_read_with_what_its_attributes_mean() {
        let attributes = vec![
            pair("fruit", text("apple")),
            pair("mlflow.spanInputs", text("{\"q\": [1, 2.5]}")),
            pair("openinference.span.kind", text("LLM")),
            pair("not json", text("{\"q\"")),
            pair("nul", text("a\0b")),
            pair("number in a text", text("17")),
        ];
        let read = span(otlp::Span { attributes, ..one() }).unwrap();
        assert_eq!(read.trace, format!("tr-{}", "01".repeat(16)));
        assert_eq!((read.id.as_str(), read.kind.as_str(), read.end), ("0202020202020202", "LLM", None));
        let attributes = Value::Object(read.content.attributes);
        assert_eq!(attributes["mlflow.spanInputs"], json!({"q": [1, 2.5]}));
        assert_eq!((&attributes["not json"], &attributes["nul"]), (&json!("{\"q\""), &json!("a\u{fffd}b")));
        assert_eq!(attributes["number in a text"], json!("17"));
        assert_eq!(attributes[TRACE_ID], read.trace);
    }

    #[test]
    fn what_nests_too_deep_to_be_read_again_stays_a_text() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for (depth, is_read) in [(MAX_DEPTH, true), (MAX_DEPTH + 1, false), (126, false), (5_000, false)] {
            assert_eq!(decoded(nested(depth).into()).is_array(), is_read, "{depth}");
        }
        let mut value = text("x");
        for _ in 0..30 {
            value = AnyValue { value: Some(any_value::Value::ArrayValue(ArrayValue { values: vec![value] })) };
        }
        let read = span(otlp::Span { attributes: vec![pair("deep", value)], ..one() }).unwrap().content;
        let kept = serde_json::to_string(&read).unwrap();
        assert_eq!(serde_json::from_str::<Content>(&kept).unwrap(), read);
    }

    #[test]
    fn a_span_without_ids_or_beyond_time_is_refused() {
        let told = |span: otlp::Span| super::span(span).unwrap_err().to_string();
        assert!(told(otlp::Span { trace_id: vec![0; 16], ..one() }).contains("'trace_id'"));
        assert!(told(otlp::Span { span_id: vec![1; 9], ..one() }).contains("'span_id'"));
        assert!(told(otlp::Span { parent_span_id: vec![1], ..one() }).contains("'parent_span_id'"));
        assert!(told(otlp::Span { start_time_unix_nano: u64::MAX, ..one() }).contains("out of range"));
        let named = pair(TRACE_ID, text(&"x".repeat(51)));
        assert!(told(otlp::Span { attributes: vec![named], ..one() }).contains("trace_id"));
        assert!(spans(ExportTraceServiceRequest::default()).unwrap_err().to_string().contains("no spans"));
    }
}
