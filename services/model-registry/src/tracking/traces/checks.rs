//! What callers may say of traces and assessments: what fits, what is cut to fit, what is refused.

use std::collections::BTreeMap;

use serde_json::Value;
use uuid::Uuid;

use super::{Assessment, AssessmentChange, Judgement, JudgementError, MAX_ID, SIZE_STATS, Trace, TraceEnd};
use crate::error::{Error, Result};
use crate::tracking::Millis;
use crate::tracking::limits::{self, missing, name};

const MAX_KEY: usize = 250;
const MAX_VALUE: usize = 8_000;
const MAX_PREVIEW: usize = 1_000;
/// Most tags, metadata or assessments that come with one call.
const MAX_PARTS: usize = 1_000;
const MAX_NAME: usize = 250;
/// Largest value, rationale or error of an assessment, in bytes of JSON or characters.
const MAX_JUDGEMENT: usize = 65_535;
/// Most traces that are linked to a run at once, or asked for with their spans.
const MAX_TRACES_AT_ONCE: usize = 100;
/// The last millisecond of the year 9999.
const MAX_TIME: i64 = 253_402_300_799_999;

/// PostgreSQL keeps no NUL, so neither database is given one.
fn no_nul(what: &str, text: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(Error::Rejected(format!("'{what}' must not hold NUL characters")));
    }
    Ok(())
}

/// Checks what must fit as it is.
fn length(what: &str, text: &str, max: usize) -> Result<()> {
    no_nul(what, text)?;
    limits::length(what, text, max)
}

fn cut(text: &mut String, max: usize) {
    if let Some((end, _)) = text.char_indices().nth(max) {
        text.truncate(end);
    }
}

/// Cuts a preview, and marks where.
pub fn preview(mut text: String) -> String {
    if text.chars().nth(MAX_PREVIEW).is_some() {
        cut(&mut text, MAX_PREVIEW - 3);
        text.push_str("...");
    }
    text
}

/// Checks a tag that is set by itself and cuts its value: stricter, as MLflow is, than tags that come with a trace.
pub fn tag(key: &str, mut value: String) -> Result<String> {
    if key.is_empty() {
        return Err(missing("key"));
    }
    name("key", key)?;
    length("key", key, MAX_KEY)?;
    no_nul("value", &value)?;
    cut(&mut value, MAX_VALUE);
    Ok(value)
}

fn few(what: &str, count: usize, max: usize) -> Result<()> {
    if count <= max {
        return Ok(());
    }
    Err(Error::Rejected(format!("'{what}' may hold at most {max} items, got {count}; send fewer at once")))
}

fn fit(tags: &mut BTreeMap<String, String>, metadata: &mut BTreeMap<String, String>) -> Result<()> {
    few("tags", tags.len(), MAX_PARTS)?;
    few("trace_metadata", metadata.len(), MAX_PARTS)?;
    for (what, pairs) in [("tags", tags), ("trace_metadata", metadata)] {
        for (key, value) in pairs {
            length(&format!("{what} key"), key, MAX_KEY)?;
            no_nul(&format!("{what} value"), value)?;
            cut(value, MAX_VALUE);
        }
    }
    Ok(())
}

/// Checks the id of a trace.
pub fn trace_id(id: &str) -> Result<()> {
    if id.is_empty() {
        return Err(missing("trace_id"));
    }
    length("trace_id", id, MAX_ID)
}

/// Checks the ids of traces that are named at once.
pub fn trace_ids(ids: &[String]) -> Result<()> {
    if ids.is_empty() {
        return Err(missing("trace_ids"));
    }
    few("trace_ids", ids.len(), MAX_TRACES_AT_ONCE)?;
    ids.iter().try_for_each(|id| trace_id(id))
}

/// Checks how many experiments are searched at once.
pub fn searched(experiments: &[i64]) -> Result<()> {
    few("experiment_ids", experiments.len(), MAX_PARTS)
}

/// Makes an id for an assessment.
pub fn assessment_id() -> String {
    format!("a-{}", Uuid::new_v4().simple())
}

fn check_time(what: &str, Millis(time): Millis) -> Result<()> {
    if (0..=MAX_TIME).contains(&time) {
        return Ok(());
    }
    Err(Error::Rejected(format!("'{what}' must be 0 to {MAX_TIME} milliseconds since 1970, got {time}")))
}

impl Trace {
    /// Checks what a caller says of a trace, and cuts texts to fit.
    pub fn checked(mut self) -> Result<Self> {
        trace_id(&self.id)?;
        check_time("request_time", self.request_time)?;
        if let Some(duration) = self.duration {
            check_time("execution_duration", Millis(duration))?;
        }
        for preview in [&self.request_preview, &self.response_preview].into_iter().flatten() {
            no_nul("preview", preview)?;
        }
        length("client_request_id", self.client_request_id.as_deref().unwrap_or_default(), MAX_ID)?;
        self.request_preview = self.request_preview.map(preview);
        self.response_preview = self.response_preview.map(preview);
        fit(&mut self.tags, &mut self.metadata)?;
        few("assessments", self.assessments.len(), MAX_PARTS)?;
        self.assessments = self.assessments.into_iter().map(Assessment::checked).collect::<Result<_>>()?;
        Ok(self)
    }

    /// How many spans its client has sent, where it says so.
    pub fn announced_spans(&self) -> Option<u64> {
        let stats: Value = serde_json::from_str(self.metadata.get(SIZE_STATS)?).ok()?;
        stats.get("num_spans")?.as_u64()
    }
}

impl TraceEnd {
    /// Checks what a caller says, and cuts texts to fit.
    pub fn checked(mut self) -> Result<Self> {
        check_time("timestamp_ms", self.time)?;
        fit(&mut self.tags, &mut self.metadata)?;
        Ok(self)
    }
}

impl Judgement {
    /// The value that is given or expected.
    pub fn value(&self) -> &Value {
        match self {
            Self::Feedback { value, .. } | Self::Expectation { value } => value,
        }
    }

    fn check(&self) -> Result<()> {
        let (field, value) = match self {
            Self::Feedback { value: Value::Null, error: None } => {
                return Err(Error::Rejected("Either `value` or `error` must be provided.".to_owned()));
            }
            Self::Expectation { value: Value::Null } => {
                return Err(Error::Rejected("The `value` field must be specified.".to_owned()));
            }
            Self::Feedback { value, .. } => ("feedback", value),
            Self::Expectation { value } => ("expectation", value),
        };
        if let Self::Feedback { error: Some(JudgementError { code, message, stack_trace }), .. } = self {
            for text in [code, message, stack_trace] {
                length("feedback.error", text, MAX_JUDGEMENT)?;
            }
        }
        let size = value.to_string().len();
        if size > MAX_JUDGEMENT {
            return Err(Error::Rejected(format!(
                "'{field}' may have at most {MAX_JUDGEMENT} bytes of JSON, got {size}"
            )));
        }
        Ok(())
    }
}

fn check_words(assessment: &str, rationale: Option<&str>, metadata: &BTreeMap<String, String>) -> Result<()> {
    length("assessment_name", assessment, MAX_NAME)?;
    length("rationale", rationale.unwrap_or_default(), MAX_JUDGEMENT)?;
    few("metadata", metadata.len(), MAX_PARTS)?;
    for (key, value) in metadata {
        length("metadata key", key, MAX_KEY)?;
        length("metadata value", value, MAX_VALUE)?;
    }
    Ok(())
}

impl Assessment {
    /// Checks what a caller says.
    pub fn checked(self) -> Result<Self> {
        if self.name.is_empty() {
            return Err(missing("assessment_name"));
        }
        check_words(&self.name, self.rationale.as_deref(), &self.metadata)?;
        length("assessment_id", &self.id, MAX_ID)?;
        check_time("create_time", self.create_time)?;
        check_time("last_update_time", self.update_time)?;
        length("span_id", self.span.as_deref().unwrap_or_default(), MAX_ID)?;
        length("overrides", self.overrides.as_deref().unwrap_or_default(), MAX_ID)?;
        length("source.source_id", self.source.id.as_deref().unwrap_or_default(), MAX_NAME)?;
        self.judgement.check()?;
        Ok(self)
    }
}

impl AssessmentChange {
    /// Checks what a caller says.
    pub fn checked(self) -> Result<Self> {
        check_words(self.name.as_deref().unwrap_or_default(), self.rationale.as_deref(), &self.metadata)?;
        self.judgement.as_ref().map_or(Ok(()), Judgement::check)?;
        Ok(self)
    }
}
