//! Entities as the contract has them. Every conversion names every field, so that none is forgotten.

use prost_types::value::Kind;
use prost_types::{ListValue, NullValue, Struct};
use serde_json::{Map, Value};
use verdict_api::registry::{self as api, AssessmentSourceKind, assessment};

use crate::tracking::spans::{Content, Span, SpanEvent, SpanStatus};
use crate::tracking::traces::{Assessment, Judgement, JudgementError, Source, SourceKind, Trace, TraceState};

impl From<Trace> for api::Trace {
    fn from(trace: Trace) -> Self {
        let Trace {
            id,
            experiment,
            request_time,
            duration,
            state,
            client_request_id,
            request_preview,
            response_preview,
            metadata,
            tags,
            assessments,
        } = trace;
        let state = match state {
            TraceState::StateUnspecified => api::TraceState::Unspecified,
            TraceState::Ok => api::TraceState::Ok,
            TraceState::Error => api::TraceState::Error,
            TraceState::InProgress => api::TraceState::InProgress,
        };
        Self {
            trace_id: id,
            experiment_id: experiment,
            request_time_ms: request_time.0,
            duration_ms: duration,
            state: state.into(),
            client_request_id: client_request_id.unwrap_or_default(),
            request_preview: request_preview.unwrap_or_default(),
            response_preview: response_preview.unwrap_or_default(),
            metadata: metadata.into_iter().collect(),
            tags: tags.into_iter().collect(),
            assessments: assessments.into_iter().map(api::Assessment::from).collect(),
        }
    }
}

impl From<Span> for api::Span {
    fn from(span: Span) -> Self {
        let Span { trace: _, id, parent, name, kind, status, start, end, content } = span;
        let Content { otel_trace: _, message, attributes, events } = content;
        let status = match status {
            SpanStatus::Unset => api::SpanStatus::Unspecified,
            SpanStatus::Ok => api::SpanStatus::Ok,
            SpanStatus::Error => api::SpanStatus::Error,
        };
        let event = |SpanEvent { name, time, attributes }| api::SpanEvent {
            name,
            time_ns: time,
            attributes: Some(fields(attributes)),
        };
        Self {
            span_id: id,
            parent_span_id: parent.unwrap_or_default(),
            name,
            kind,
            status: status.into(),
            message,
            start_time_ns: start,
            end_time_ns: end,
            attributes: Some(fields(attributes)),
            events: events.into_iter().map(event).collect(),
        }
    }
}

impl From<Assessment> for api::Assessment {
    fn from(assessment: Assessment) -> Self {
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
            SourceKind::SourceTypeUnspecified => AssessmentSourceKind::Unspecified,
            SourceKind::Human => AssessmentSourceKind::Human,
            SourceKind::LlmJudge => AssessmentSourceKind::LlmJudge,
            SourceKind::Code => AssessmentSourceKind::Code,
        };
        let judgement = match judgement {
            Judgement::Feedback { value: said, error } => assessment::Judgement::Feedback(api::Feedback {
                value: Some(value(said)),
                error: error.map(|JudgementError { code, message, stack_trace }| api::AssessmentError {
                    code,
                    message,
                    stack_trace,
                }),
            }),
            Judgement::Expectation { value: said } => {
                assessment::Judgement::Expectation(api::Expectation { value: Some(value(said)) })
            }
        };
        Self {
            assessment_id: id,
            trace_id: trace,
            name,
            judgement: Some(judgement),
            source: Some(api::AssessmentSource { kind: kind.into(), id: source_id.unwrap_or_default() }),
            span_id: span.unwrap_or_default(),
            rationale: rationale.unwrap_or_default(),
            metadata: metadata.into_iter().collect(),
            overrides: overrides.unwrap_or_default(),
            valid: is_valid,
            create_time_ms: create_time.0,
            update_time_ms: update_time.0,
        }
    }
}

fn fields(fields: Map<String, Value>) -> Struct {
    Struct { fields: fields.into_iter().map(|(key, field)| (key, value(field))).collect() }
}

fn value(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(NullValue::NullValue.into()),
        Value::Bool(truth) => Kind::BoolValue(truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(items) => Kind::ListValue(ListValue { values: items.into_iter().map(self::value).collect() }),
        Value::Object(map) => Kind::StructValue(fields(map)),
    };
    prost_types::Value { kind: Some(kind) }
}
