//! Traces, spans and assessments as MLflow's clients read them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost_types::{Duration, Timestamp};
use serde_json::{Map, Value, json};

use crate::tracking::Millis;
use crate::tracking::spans::{Span, SpanEvent, SpanStatus};
use crate::tracking::traces::{Assessment, Judgement, JudgementError, Source, SourceKind, Trace, TraceState};

/// How the third version of the API writes a point in time.
fn time(Millis(millis): Millis) -> Value {
    let nanos = i32::try_from(millis.rem_euclid(1000) * 1_000_000).unwrap_or_default();
    Timestamp { seconds: millis.div_euclid(1000), nanos }.to_string().into()
}

fn duration(millis: i64) -> Value {
    let nanos = i32::try_from(millis % 1000 * 1_000_000).unwrap_or_default();
    Duration { seconds: millis / 1000, nanos }.to_string().into()
}

fn state(state: TraceState) -> &'static str {
    match state {
        TraceState::StateUnspecified => "STATE_UNSPECIFIED",
        TraceState::Ok => "OK",
        TraceState::Error => "ERROR",
        TraceState::InProgress => "IN_PROGRESS",
    }
}

/// A trace, in the third version of the API.
pub(super) fn trace(trace: Trace) -> Value {
    let Trace {
        id,
        experiment,
        request_time,
        duration: took,
        state: current,
        client_request_id,
        request_preview,
        response_preview,
        metadata,
        tags,
        assessments,
    } = trace;
    let mut fields = json!({
        "trace_id": id,
        "trace_location": {
            "type": "MLFLOW_EXPERIMENT",
            "mlflow_experiment": {"experiment_id": experiment.to_string()},
        },
        "request_time": time(request_time),
        "state": state(current),
        "trace_metadata": metadata,
        "tags": tags,
        "assessments": assessments.into_iter().map(assessment).collect::<Value>(),
    });
    let optional = [
        ("execution_duration", took.map(duration)),
        ("client_request_id", client_request_id.map(Value::from)),
        ("request_preview", request_preview.map(Value::from)),
        ("response_preview", response_preview.map(Value::from)),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            fields[name] = value;
        }
    }
    fields
}

/// A trace, in the second version of the API.
pub(super) fn trace_v2(trace: Trace) -> Value {
    let Trace { id, experiment, request_time, duration, state: current, metadata, tags, .. } = trace;
    let status = match current {
        TraceState::StateUnspecified => "TRACE_STATUS_UNSPECIFIED",
        current => state(current),
    };
    json!({
        "request_id": id,
        "experiment_id": experiment.to_string(),
        "timestamp_ms": request_time.0,
        "execution_time_ms": duration.unwrap_or(0),
        "status": status,
        "request_metadata": super::super::answer::pairs(metadata),
        "tags": super::super::answer::pairs(tags),
    })
}

pub(super) fn assessment(assessment: Assessment) -> Value {
    let Assessment {
        id,
        trace,
        name,
        judgement,
        source: Source { kind, id: source_id },
        span,
        rationale,
        metadata,
        overrides,
        is_valid,
        create_time,
        update_time,
    } = assessment;
    let kind = match kind {
        SourceKind::SourceTypeUnspecified => "SOURCE_TYPE_UNSPECIFIED",
        SourceKind::Human => "HUMAN",
        SourceKind::LlmJudge => "LLM_JUDGE",
        SourceKind::Code => "CODE",
    };
    let mut fields = json!({
        "assessment_id": id,
        "trace_id": trace,
        "assessment_name": name,
        "source": {"source_type": kind},
        "create_time": time(create_time),
        "last_update_time": time(update_time),
        "valid": is_valid,
    });
    if let Some(id) = source_id {
        fields["source"]["source_id"] = id.into();
    }
    for (name, value) in [("span_id", span), ("rationale", rationale), ("overrides", overrides)] {
        if let Some(value) = value {
            fields[name] = value.into();
        }
    }
    if !metadata.is_empty() {
        fields["metadata"] = json!(metadata);
    }
    match judgement {
        Judgement::Feedback { value, error } => {
            fields["feedback"] = json!({"value": value});
            if let Some(JudgementError { code, message, stack_trace }) = error {
                fields["feedback"]["error"] =
                    json!({"error_code": code, "error_message": message, "stack_trace": stack_trace});
            }
        }
        Judgement::Expectation { value: value @ (Value::Array(_) | Value::Object(_)) } => {
            let serialized = json!({"serialization_format": "JSON_FORMAT", "value": value.to_string()});
            fields["expectation"] = json!({"serialized_value": serialized});
        }
        Judgement::Expectation { value } => fields["expectation"] = json!({"value": value}),
    }
    fields
}

fn status(status: SpanStatus) -> &'static str {
    match status {
        SpanStatus::Unset => "STATUS_CODE_UNSET",
        SpanStatus::Ok => "STATUS_CODE_OK",
        SpanStatus::Error => "STATUS_CODE_ERROR",
    }
}

/// Base64 of what is kept in hexadecimal, as Protocol Buffers' JSON writes bytes.
fn bytes(hexadecimal: &str) -> String {
    STANDARD.encode(hex::decode(hexadecimal).unwrap_or_default())
}

/// A trace with its spans, which are OpenTelemetry's.
pub(super) fn trace_with_spans((of, spans): (Trace, Vec<Span>)) -> Value {
    json!({"trace_info": trace(of), "spans": spans.into_iter().map(span).collect::<Value>()})
}

fn span(span: Span) -> Value {
    let Span { trace: _, id, parent, name, kind: _, status: code, start, end, content } = span;
    let event = |SpanEvent { name, time, attributes }| json!({"name": name, "time_unix_nano": time, "attributes": any_pairs(attributes)});
    let mut fields = json!({
        "trace_id": bytes(&content.otel_trace),
        "span_id": bytes(&id),
        "parent_span_id": parent.as_deref().map(bytes).unwrap_or_default(),
        "name": name,
        "start_time_unix_nano": start,
        "attributes": any_pairs(content.attributes),
        "events": content.events.into_iter().map(event).collect::<Value>(),
        "status": {"code": status(code), "message": content.message},
    });
    if let Some(end) = end {
        fields["end_time_unix_nano"] = end.into();
    }
    fields
}

fn any_pairs(attributes: Map<String, Value>) -> Value {
    attributes.into_iter().map(|(key, value)| json!({"key": key, "value": any(value)})).collect()
}

fn any(value: Value) -> Value {
    match value {
        Value::Null => json!({}),
        Value::Bool(truth) => json!({"bool_value": truth}),
        Value::Number(number) if number.is_i64() => json!({"int_value": number}),
        Value::Number(number) => json!({"double_value": number}),
        Value::String(text) => json!({"string_value": text}),
        Value::Array(items) => json!({"array_value": {"values": items.into_iter().map(any).collect::<Value>()}}),
        Value::Object(fields) => json!({"kvlist_value": {"values": any_pairs(fields)}}),
    }
}

/// Spans as MLflow's clients write them into a file: attributes are JSON in a text.
pub(super) fn file(spans: Vec<Span>) -> Value {
    let dict = |span: Span| {
        let Span { trace: _, id, parent, name, kind: _, status: code, start, end, content } = span;
        let event = |SpanEvent { name, time, attributes }| json!({"name": name, "time_unix_nano": time, "attributes": attributes});
        let attribute = |(key, value): (String, Value)| (key, Value::String(value.to_string()));
        json!({
            "trace_id": bytes(&content.otel_trace),
            "span_id": bytes(&id),
            "parent_span_id": parent.as_deref().map(bytes),
            "name": name,
            "start_time_unix_nano": start,
            "end_time_unix_nano": end,
            "events": content.events.into_iter().map(event).collect::<Value>(),
            "status": {"code": status(code), "message": content.message},
            "attributes": Value::Object(content.attributes.into_iter().map(attribute).collect()),
        })
    };
    json!({"spans": spans.into_iter().map(dict).collect::<Value>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_protocol_buffers_do() {
        assert_eq!(time(Millis(1_500)), "1970-01-01T00:00:01.500Z");
        assert_eq!(time(Millis(-500)), "1969-12-31T23:59:59.500Z");
        let parsed = |value: Value| value.as_str().unwrap().parse::<Duration>().unwrap();
        assert_eq!(parsed(duration(1_234)), Duration { seconds: 1, nanos: 234_000_000 });
        assert_eq!(parsed(duration(0)), Duration::default());
    }
}
