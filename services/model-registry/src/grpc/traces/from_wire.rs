//! Requests as the domain has them. Every conversion names every field, so that none is forgotten.

use prost_types::value::Kind;
use serde_json::{Number, Value};
use verdict_api::registry as api;
use verdict_api::registry::{AssessmentSourceKind, TraceState as State, assessment, update_assessment_request};

use crate::error::{Error, Result};
use crate::search::Problem;
use crate::search::traces::{filter, order};
use crate::tracking::Millis;
use crate::tracking::limits::missing;
use crate::tracking::traces::{
    Assessment, AssessmentChange, Cursor, Judgement, JudgementError, MAX_PAGE, Source, SourceKind, Trace, TraceEnd,
    TraceSearch, TraceState, assessment_id,
};

const DEFAULT_PAGE: u32 = 100;

fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn unknown(field: &str, number: i32) -> Error {
    Error::Rejected(format!("`{field}` is {number}, which is none of its values"))
}

fn state(number: i32) -> Result<TraceState> {
    match State::try_from(number).map_err(|_| unknown("state", number))? {
        State::Unspecified => Ok(TraceState::StateUnspecified),
        State::Ok => Ok(TraceState::Ok),
        State::Error => Ok(TraceState::Error),
        State::InProgress => Ok(TraceState::InProgress),
    }
}

/// A trace, checked.
pub(super) fn trace(trace: Option<api::Trace>) -> Result<Trace> {
    let api::Trace {
        trace_id,
        experiment_id,
        request_time_ms,
        duration_ms,
        state: current,
        client_request_id,
        request_preview,
        response_preview,
        metadata,
        tags,
        assessments,
    } = trace.ok_or_else(|| missing("trace"))?;
    let of_trace = |assessment: api::Assessment| {
        self::assessment(Some(api::Assessment { trace_id: trace_id.clone(), ..assessment }))
    };
    let assessments = assessments.into_iter().map(of_trace).collect::<Result<_>>()?;
    let trace = Trace {
        id: trace_id,
        experiment: experiment_id,
        request_time: Millis(request_time_ms),
        duration: duration_ms,
        state: state(current)?,
        client_request_id: given(client_request_id),
        request_preview: given(request_preview),
        response_preview: given(response_preview),
        metadata: metadata.into_iter().collect(),
        tags: tags.into_iter().collect(),
        assessments,
    };
    trace.checked()
}

/// Which trace has ended and how, checked.
pub(super) fn trace_end(request: api::EndTraceRequest) -> Result<(String, TraceEnd)> {
    let api::EndTraceRequest { trace_id, end_time_ms, state: ended, metadata, tags } = request;
    let (metadata, tags) = (metadata.into_iter().collect(), tags.into_iter().collect());
    let end = TraceEnd { time: Millis(end_time_ms), state: state(ended)?, metadata, tags };
    Ok((trace_id, end.checked()?))
}

pub(super) fn search(request: api::SearchTracesRequest) -> Result<TraceSearch> {
    let api::SearchTracesRequest { experiment_ids, filter: text, order_by, page_size, page_token } = request;
    let refuse = |Problem(problem)| Error::Rejected(problem);
    let size = u32::try_from(page_size).ok().filter(|size| *size <= MAX_PAGE);
    let size = size.ok_or_else(|| Error::Rejected(format!("`page_size` must be 1 to {MAX_PAGE}, or 0")))?;
    let from = Cursor::parse(&page_token);
    Ok(TraceSearch {
        experiments: experiment_ids,
        conditions: filter(&text).map_err(refuse)?,
        orders: order(&order_by).map_err(refuse)?,
        from: from.ok_or_else(|| Error::Rejected("`page_token` is not one this call has given".to_owned()))?,
        limit: if size == 0 { DEFAULT_PAGE } else { size },
    })
}

/// JSON's value for one of Protocol Buffers'; a number without a fraction is a whole one.
fn json(value: Option<prost_types::Value>) -> Value {
    match value.and_then(|value| value.kind) {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(truth)) => truth.into(),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::NumberValue(number)) => {
            // Up to here every whole number has a double of its own.
            const EXACT: f64 = 9_007_199_254_740_992.0;
            let is_whole = number.fract() == 0.0 && number.abs() < EXACT;
            if is_whole { (number as i64).into() } else { Number::from_f64(number).map_or(Value::Null, Value::Number) }
        }
        Some(Kind::ListValue(list)) => list.values.into_iter().map(|value| json(Some(value))).collect(),
        Some(Kind::StructValue(fields)) => {
            Value::Object(fields.fields.into_iter().map(|(key, value)| (key, json(Some(value)))).collect())
        }
    }
}

fn feedback(feedback: api::Feedback) -> Judgement {
    let api::Feedback { value, error } = feedback;
    let error =
        error.map(|api::AssessmentError { code, message, stack_trace }| JudgementError { code, message, stack_trace });
    Judgement::Feedback { value: json(value), error }
}

fn expectation(expectation: api::Expectation) -> Judgement {
    let api::Expectation { value } = expectation;
    Judgement::Expectation { value: json(value) }
}

fn source(source: Option<api::AssessmentSource>) -> Result<Source> {
    let api::AssessmentSource { kind, id } = source.unwrap_or_default();
    let kind = match AssessmentSourceKind::try_from(kind).map_err(|_| unknown("source.kind", kind))? {
        AssessmentSourceKind::Unspecified => SourceKind::SourceTypeUnspecified,
        AssessmentSourceKind::Human => SourceKind::Human,
        AssessmentSourceKind::LlmJudge => SourceKind::LlmJudge,
        AssessmentSourceKind::Code => SourceKind::Code,
    };
    Ok(Source { kind, id: given(id) })
}

/// An assessment, checked, with an id of its own where it has none. What the registry tells is not read.
pub(super) fn assessment(assessment: Option<api::Assessment>) -> Result<Assessment> {
    let api::Assessment {
        assessment_id: id,
        trace_id,
        name,
        judgement,
        source: by,
        span_id,
        rationale,
        metadata,
        overrides,
        valid: _,
        create_time_ms: _,
        update_time_ms: _,
    } = assessment.ok_or_else(|| missing("assessment"))?;
    let now = Millis::now();
    let assessment = Assessment {
        id: given(id).unwrap_or_else(assessment_id),
        trace: trace_id,
        name,
        judgement: match judgement.ok_or_else(|| missing("assessment.judgement"))? {
            assessment::Judgement::Feedback(value) => feedback(value),
            assessment::Judgement::Expectation(value) => expectation(value),
        },
        source: source(by)?,
        span: given(span_id),
        rationale: given(rationale),
        metadata: metadata.into_iter().collect(),
        overrides: given(overrides),
        is_valid: true,
        create_time: now,
        update_time: now,
    };
    assessment.checked()
}

/// Which assessment of which trace changes how, checked.
pub(super) fn assessment_change(request: api::UpdateAssessmentRequest) -> Result<(String, String, AssessmentChange)> {
    let api::UpdateAssessmentRequest { trace_id, assessment_id, name, judgement, rationale, metadata } = request;
    let judgement = judgement.map(|judgement| match judgement {
        update_assessment_request::Judgement::Feedback(value) => feedback(value),
        update_assessment_request::Judgement::Expectation(value) => expectation(value),
    });
    let change = AssessmentChange { name, judgement, rationale, metadata: metadata.into_iter().collect() };
    Ok((trace_id, assessment_id, change.checked()?))
}
