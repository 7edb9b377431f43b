//! Traces and assessments as MLflow's clients write them.

use prost_types::{Duration, Timestamp};
use serde_json::Value;

use super::super::experiments::experiment_id;
use super::super::refusal::Refusal;
use super::super::request::{Fields, missing};
use crate::tracking::Millis;
use crate::tracking::traces::{
    Assessment, AssessmentChange, Judgement, JudgementError, Source, SourceKind, Trace, TraceState, assessment_id,
};

type Result<T> = std::result::Result<T, Refusal>;

fn wrong(name: &str, value: impl Into<Value>, wanted: &str) -> Refusal {
    Refusal::invalid(format!("Invalid value {} for parameter '{name}' supplied: it must be {wanted}.", value.into()))
}

fn given(fields: &Fields, name: &str) -> Result<Option<String>> {
    Ok(fields.text(name)?.filter(|text| !text.is_empty()))
}

/// A point in time, as Protocol Buffers' JSON writes it.
fn time(fields: &Fields, name: &str) -> Result<Option<Millis>> {
    let Some(text) = given(fields, name)? else { return Ok(None) };
    let Ok(Timestamp { seconds, nanos }) = text.parse::<Timestamp>() else {
        return Err(wrong(name, text, "a time such as \"2025-01-31T12:00:00Z\""));
    };
    let millis = seconds.checked_mul(1000).map(|millis| millis + i64::from(nanos / 1_000_000));
    millis.map(|millis| Some(Millis(millis))).ok_or_else(|| wrong(name, text, "a time of the years 1 to 9999"))
}

fn duration(fields: &Fields, name: &str) -> Result<Option<i64>> {
    let Some(text) = given(fields, name)? else { return Ok(None) };
    let Ok(Duration { seconds, nanos }) = text.parse::<Duration>() else {
        return Err(wrong(name, text, "a duration such as \"1.5s\""));
    };
    let millis = seconds.checked_mul(1000).map(|millis| millis + i64::from(nanos / 1_000_000));
    millis.map(Some).ok_or_else(|| wrong(name, text, "a duration of less than 10000 years"))
}

/// How a trace is doing, by name or by number.
pub(super) fn state(fields: &Fields, name: &str) -> Result<TraceState> {
    if let Ok(Some(number)) = fields.integer(name) {
        return match number {
            0 => Ok(TraceState::StateUnspecified),
            1 => Ok(TraceState::Ok),
            2 => Ok(TraceState::Error),
            3 => Ok(TraceState::InProgress),
            _ => Err(wrong(name, number, "OK, ERROR or IN_PROGRESS")),
        };
    }
    match fields.text(name)?.as_deref() {
        None | Some("" | "STATE_UNSPECIFIED" | "TRACE_STATUS_UNSPECIFIED") => Ok(TraceState::StateUnspecified),
        Some("OK") => Ok(TraceState::Ok),
        Some("ERROR") => Ok(TraceState::Error),
        Some("IN_PROGRESS") => Ok(TraceState::InProgress),
        Some(other) => Err(wrong(name, other, "OK, ERROR or IN_PROGRESS")),
    }
}

/// The experiment that a location names.
pub(super) fn location(fields: &Fields) -> Result<i64> {
    let experiment = fields.object("mlflow_experiment")?.ok_or_else(|| missing("trace_location.mlflow_experiment"))?;
    experiment_id(&experiment.required("experiment_id")?)
}

/// A trace, in the third version of the API.
pub(super) fn trace(fields: &Fields) -> Result<Trace> {
    let info = fields.object("trace_info")?.ok_or_else(|| missing("trace.trace_info"))?;
    let id = info.required("trace_id")?;
    let at = info.object("trace_location")?.ok_or_else(|| missing("trace.trace_info.trace_location"))?;
    let assessments =
        info.objects("assessments")?.iter().map(|fields| assessment(fields, &id)).collect::<Result<_>>()?;
    let trace = Trace {
        experiment: location(&at)?,
        request_time: time(&info, "request_time")?.unwrap_or_else(Millis::now),
        duration: duration(&info, "execution_duration")?,
        state: state(&info, "state")?,
        client_request_id: given(&info, "client_request_id")?,
        request_preview: info.text("request_preview")?,
        response_preview: info.text("response_preview")?,
        metadata: info.map("trace_metadata")?,
        tags: info.map("tags")?,
        assessments,
        id,
    };
    Ok(trace.checked()?)
}

fn judgement(fields: &Fields) -> Result<Option<Judgement>> {
    match (fields.object("feedback")?, fields.object("expectation")?) {
        (Some(_), Some(_)) => Err(Refusal::invalid("Exactly one of `expectation` or `feedback` should be specified.")),
        (Some(feedback), None) => {
            // The error stood beside the feedback once.
            let error = feedback.object("error")?.or(fields.object("error")?);
            let read = |error: Fields| {
                Ok::<_, Refusal>(JudgementError {
                    code: error.text_or_empty("error_code")?,
                    message: error.text_or_empty("error_message")?,
                    stack_trace: error.text_or_empty("stack_trace")?,
                })
            };
            Ok(Some(Judgement::Feedback {
                value: feedback.value("value").cloned().unwrap_or_default(),
                error: error.map(read).transpose()?,
            }))
        }
        (None, Some(expectation)) => {
            let value = match expectation.object("serialized_value")? {
                None => expectation.value("value").cloned().unwrap_or_default(),
                Some(serialized) => {
                    let text = serialized.required("value")?;
                    serde_json::from_str(&text)
                        .map_err(|_| wrong("expectation.serialized_value.value", text, "JSON in a text"))?
                }
            };
            Ok(Some(Judgement::Expectation { value }))
        }
        (None, None) => Ok(None),
    }
}

fn source(fields: &Fields) -> Result<Source> {
    let Some(source) = fields.object("source")? else {
        return Ok(Source { kind: SourceKind::SourceTypeUnspecified, id: None });
    };
    let kind = match source.text_or_empty("source_type")?.to_ascii_uppercase().as_str() {
        "" | "SOURCE_TYPE_UNSPECIFIED" => SourceKind::SourceTypeUnspecified,
        "HUMAN" => SourceKind::Human,
        "LLM_JUDGE" | "AI_JUDGE" => SourceKind::LlmJudge,
        "CODE" => SourceKind::Code,
        other => return Err(wrong("source.source_type", other, "HUMAN, LLM_JUDGE or CODE")),
    };
    Ok(Source { kind, id: given(&source, "source_id")? })
}

/// An assessment of a trace, with an id of its own where it has none.
pub(super) fn assessment(fields: &Fields, trace: &str) -> Result<Assessment> {
    let now = Millis::now();
    let unknown = || Refusal::invalid("Assessment must have either feedback or expectation value");
    let assessment = Assessment {
        id: given(fields, "assessment_id")?.unwrap_or_else(assessment_id),
        trace: trace.to_owned(),
        name: fields.required("assessment_name")?,
        judgement: judgement(fields)?.ok_or_else(unknown)?,
        source: source(fields)?,
        span: given(fields, "span_id")?,
        rationale: given(fields, "rationale")?,
        metadata: fields.map("metadata")?,
        overrides: given(fields, "overrides")?,
        is_valid: true,
        create_time: time(fields, "create_time")?.unwrap_or(now),
        update_time: time(fields, "last_update_time")?.unwrap_or(now),
    };
    Ok(assessment.checked()?)
}

/// What changes about an assessment: the fields that the mask names, in either of its spellings.
pub(super) fn assessment_change(fields: &Fields) -> Result<AssessmentChange> {
    let assessment = fields.object("assessment")?.ok_or_else(|| missing("assessment"))?;
    let mut change = AssessmentChange::default();
    for path in fields.required("update_mask")?.split(',') {
        match path.trim() {
            "assessment_name" | "assessmentName" => change.name = given(&assessment, "assessment_name")?,
            "rationale" => change.rationale = assessment.text("rationale")?,
            "metadata" => change.metadata = assessment.map("metadata")?,
            "feedback" | "expectation" => change.judgement = judgement(&assessment)?,
            "valid" => {}
            other => {
                let wanted = "assessment_name, feedback, expectation, rationale or metadata";
                return Err(wrong("update_mask", other, wanted));
            }
        }
    }
    Ok(change.checked()?)
}
