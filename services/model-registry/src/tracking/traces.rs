//! Traces: what a program did for one request, in spans, and what people and judges think of it.
//!
//! MLflow's tracing store under MLflow's names, in two traits: [`Traces`] with their spans, and [`Assessments`] of them.
//! Texts that are only shown are cut to fit, names and ids that do not fit are refused.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Millis;
use super::spans::Span;
use crate::error::{Error, Result};
use crate::search::traces::{Condition, Order};

mod checks;

pub use checks::{assessment_id, preview, searched, tag, trace_id, trace_ids};

/// The tag that says what a trace is called.
pub const TRACE_NAME: &str = "mlflow.traceName";
/// The tag that says below which place a trace keeps files.
pub const ARTIFACT_LOCATION: &str = "mlflow.artifactLocation";
/// The tag, and its value, that say that spans are kept here and not in a file.
pub const SPANS_LOCATION: (&str, &str) = ("mlflow.trace.spansLocation", "TRACKING_STORE");
/// The metadata that name the run which made a trace.
pub const SOURCE_RUN: &str = "mlflow.sourceRun";
/// The metadata that sum up the tokens of all spans, as JSON.
pub const TOKENS: &str = "mlflow.trace.tokenUsage";
/// The metadata that tell how many spans a trace has, as JSON.
pub const SIZE_STATS: &str = "mlflow.trace.sizeStats";

/// Longest id of a trace, a request or an assessment, in characters.
const MAX_ID: usize = 50;
/// Most bytes of spans that one trace takes in, and that one answer holds.
pub const MAX_SPAN_BYTES: u64 = 64 << 20;
/// Most values in the spans of one answer: each takes hundreds of bytes once it is read.
pub const MAX_SPAN_VALUES: usize = 500_000;
/// Most traces on a page.
pub const MAX_PAGE: u32 = 500;

/// A trace without its spans.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    pub id: String,
    pub experiment: i64,
    pub request_time: Millis,
    /// Milliseconds; None while it goes on.
    pub duration: Option<i64>,
    pub state: TraceState,
    /// What the caller of the program names the request.
    pub client_request_id: Option<String>,
    pub request_preview: Option<String>,
    pub response_preview: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    pub assessments: Vec<Assessment>,
}

/// How a trace is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TraceState {
    StateUnspecified,
    Ok,
    Error,
    InProgress,
}

/// How a trace that was begun before it ended has ended; tags and metadata join those it has.
#[derive(Clone, Debug)]
pub struct TraceEnd {
    pub time: Millis,
    pub state: TraceState,
    pub metadata: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
}

/// What somebody thinks of a trace, or of one of its spans.
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    pub id: String,
    pub trace: String,
    pub name: String,
    pub judgement: Judgement,
    pub source: Source,
    /// The span that is meant; None for the whole trace.
    pub span: Option<String>,
    pub rationale: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// The assessment that no longer counts because of this one.
    pub overrides: Option<String>,
    /// Whether no other assessment overrides it.
    pub is_valid: bool,
    pub create_time: Millis,
    pub update_time: Millis,
}

/// What is said: how good it was, or what it should have been.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    /// A value, or why there is none.
    Feedback {
        value: Value,
        error: Option<JudgementError>,
    },
    Expectation {
        value: Value,
    },
}

/// Why a judge came to no judgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JudgementError {
    pub code: String,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub stack_trace: String,
}

/// Who assesses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub kind: SourceKind,
    pub id: Option<String>,
}

/// What kind of judge it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SourceKind {
    SourceTypeUnspecified,
    Human,
    LlmJudge,
    Code,
}

/// What changes about an assessment; what is None stays. Metadata join those it has.
#[derive(Clone, Debug, Default)]
pub struct AssessmentChange {
    pub name: Option<String>,
    pub judgement: Option<Judgement>,
    pub rationale: Option<String>,
    pub metadata: BTreeMap<String, String>,
}

/// What a search is for, and which page of it.
#[derive(Clone, Debug)]
pub struct TraceSearch {
    pub experiments: Vec<i64>,
    pub conditions: Vec<Condition>,
    /// Then the newest first, then by id.
    pub orders: Vec<Order>,
    pub from: Cursor,
    pub limit: u32,
}

/// Where a page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cursor {
    Offset(u64),
    /// After this trace, in an order by time: as quick on the last page as on the first.
    After {
        time: Millis,
        id: String,
    },
}

impl Cursor {
    /// Reads what [`Self::token`] wrote; empty for the first page.
    pub fn parse(token: &str) -> Option<Self> {
        if token.is_empty() {
            return Some(Self::Offset(0));
        }
        let text = String::from_utf8(hex::decode(token).ok()?).ok()?;
        if let Some(offset) = text.strip_prefix("offset=") {
            return offset.parse().ok().map(Self::Offset);
        }
        let (time, id) = text.strip_prefix("after=")?.split_once(',')?;
        let is_id = !id.contains('\0') && id.chars().count() <= MAX_ID;
        is_id.then_some(Self::After { time: Millis(time.parse().ok()?), id: id.to_owned() })
    }

    /// Writes it for the caller to give back.
    pub fn token(&self) -> String {
        hex::encode(match self {
            Self::Offset(offset) => format!("offset={offset}"),
            Self::After { time, id } => format!("after={},{id}", time.0),
        })
    }
}

/// A page of what a search found, and where the next begins.
#[derive(Clone, Debug)]
pub struct TracePage {
    pub traces: Vec<Trace>,
    pub next: Option<Cursor>,
}

/// Which traces of an experiment are to go.
#[derive(Clone, Debug)]
pub enum Doomed {
    Named(Vec<String>),
    /// Those begun at this time or before, the oldest first.
    Until {
        time: Millis,
        at_most: Option<u32>,
    },
}

impl Doomed {
    /// Reads the one of two ways in which a caller says it: by ids, or by time and perhaps a number.
    pub fn of(named: Vec<String>, time: Option<Millis>, at_most: Option<i64>) -> Result<Self> {
        let refuse = |why: String| Err(Error::Rejected(why));
        let count = match at_most.map(|count| (count, u32::try_from(count))) {
            None => None,
            Some((_, Ok(count @ 1..))) => Some(count),
            Some((count, _)) => {
                return refuse(format!("`max_traces` must be a positive integer, received {count}."));
            }
        };
        match (time, named.is_empty()) {
            (None, true) => refuse("Either `max_timestamp_millis` or `trace_ids` must be specified.".to_owned()),
            (Some(_), false) => {
                refuse("Only one of `max_timestamp_millis` and `trace_ids` can be specified.".to_owned())
            }
            (None, false) if count.is_some() => {
                refuse("`max_traces` can't be specified if `trace_ids` is specified.".to_owned())
            }
            (None, false) => Ok(Self::Named(named)),
            (Some(time), true) => Ok(Self::Until { time, at_most: count }),
        }
    }
}

/// How many traces meet one condition, another, both, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Counts {
    pub first: i64,
    pub second: i64,
    pub both: i64,
    pub total: i64,
}

/// Traces and their spans, each method one transaction.
#[async_trait]
pub trait Traces: Send + Sync {
    /// Adds a trace to an active experiment, or says of one whose spans came first what it is; answers it as it is then.
    async fn start_trace(&self, trace: &Trace) -> Result<Trace>;
    /// Ends a trace that was begun before.
    async fn end_trace(&self, id: &str, end: &TraceEnd) -> Result<Trace>;
    /// Keeps spans, in place of those with their ids, and the traces of an active experiment they are the first of.
    async fn log_spans(&self, experiment: i64, spans: &[Span]) -> Result<()>;
    /// Finds a trace.
    async fn trace(&self, id: &str) -> Result<Trace>;
    /// Finds traces, in no order; those that do not exist are left out.
    async fn traces(&self, ids: &[String]) -> Result<Vec<Trace>>;
    /// Finds traces with their spans, the root first and then by time; those that do not exist are left out.
    async fn traces_with_spans(&self, ids: &[String]) -> Result<Vec<(Trace, Vec<Span>)>>;
    /// Finds those that meet all conditions.
    async fn search_traces(&self, search: &TraceSearch) -> Result<TracePage>;
    /// Counts, among the traces that meet `base`, those that meet `first`, `second` and both.
    async fn count_traces(
        &self,
        experiments: &[i64],
        base: &[Condition],
        first: &[Condition],
        second: &[Condition],
    ) -> Result<Counts>;
    /// Deletes traces with all that belongs to them; answers how many.
    async fn delete_traces(&self, experiment: i64, doomed: &Doomed) -> Result<u64>;
    /// Sets a tag, or removes it where there is no value.
    async fn change_trace_tag(&self, id: &str, key: &str, value: Option<&str>) -> Result<()>;
    /// Notes that traces belong to a run.
    async fn link_traces(&self, run: &str, traces: &[String]) -> Result<()>;
}

/// Assessments of traces, each method one transaction.
#[async_trait]
pub trait Assessments: Send + Sync {
    /// Adds an assessment of a trace; one it overrides counts no more.
    async fn add_assessment(&self, assessment: &Assessment) -> Result<Assessment>;
    /// Finds one.
    async fn assessment(&self, trace: &str, id: &str) -> Result<Assessment>;
    /// Changes one.
    async fn change_assessment(
        &self,
        now: Millis,
        trace: &str,
        id: &str,
        change: &AssessmentChange,
    ) -> Result<Assessment>;
    /// Deletes one, and lets count again what it overrode. One that does not exist is deleted already.
    async fn delete_assessment(&self, trace: &str, id: &str) -> Result<()>;
}
