//! Spans in the tables of `migrations/`, compiled once for each database.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};
use sqlx::{QueryBuilder, query, query_scalar};

use super::traces::{set, with_ids};
use super::{Connection, Db, IDS_AT_ONCE, ROWS_AT_ONCE};
use crate::error::{Error, Result};
use crate::store::rows::{from_json, from_word, to_json, to_word};
use crate::tracking::spans::{Content, INPUTS, OUTPUTS, Span, SpanStatus, TOKEN_USAGE};
use crate::tracking::traces::{
    ARTIFACT_LOCATION, MAX_SPAN_BYTES, MAX_SPAN_VALUES, SPANS_LOCATION, TOKENS, TRACE_NAME, TraceState, preview,
};

/// What tokens are counted apart.
const TOKEN_KINDS: [&str; 3] = ["input_tokens", "output_tokens", "total_tokens"];

#[derive(sqlx::FromRow)]
struct Row {
    trace: String,
    id: String,
    parent: Option<String>,
    name: String,
    kind: String,
    status: String,
    start_ns: i64,
    end_ns: Option<i64>,
    content: String,
}

impl Row {
    fn into_span(self) -> Result<Span> {
        let Self { trace, id, parent, name, kind, status, start_ns, end_ns, content } = self;
        let (status, content) = (from_word(status)?, from_json(&content)?);
        Ok(Span { trace, id, parent, name, kind, status, start: start_ns, end: end_ns, content })
    }
}

/// Keeps spans of one trace, which is there afterwards and says what they tell of it.
pub(super) async fn put(
    tx: &mut Connection,
    experiment: i64,
    trace: &str,
    location: &str,
    spans: &[&Span],
) -> Result<()> {
    // Of several with one id the last counts; one statement may not set a row twice.
    let spans: BTreeMap<&str, &Span> = spans.iter().map(|span| (span.id.as_str(), *span)).collect();
    let mut contents = Vec::with_capacity(spans.len());
    for span in spans.values() {
        contents.push((*span, to_json(&span.content)?));
    }
    let bytes: u64 = contents.iter().map(|(span, content)| (span.name.len() + content.len()) as u64).sum();
    let replaced = put_trace(tx, experiment, trace, &contents, bytes).await?;
    let root = contents.iter().map(|(span, _)| span).find(|span| span.parent.is_none());
    let mut tags = vec![(SPANS_LOCATION.0, SPANS_LOCATION.1), (ARTIFACT_LOCATION, location)];
    tags.extend(root.map(|root| (TRACE_NAME, root.name.as_str())));
    for (key, value) in tags {
        query("INSERT INTO trace_tags (trace, key, value) VALUES ($1, $2, $3) ON CONFLICT (trace, key) DO NOTHING")
            .bind(trace)
            .bind(key)
            .bind(value)
            .execute(&mut *tx)
            .await?;
    }
    for some in contents.chunks(ROWS_AT_ONCE) {
        let rows = some.iter().map(|(span, content)| Ok((*span, to_word(&span.status)?, content)));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let mut insert = QueryBuilder::<Db>::new(
            "INSERT INTO spans (trace, id, parent, name, kind, status, start_ns, end_ns, content) ",
        );
        insert.push_values(rows, |mut row, (span, status, content)| {
            row.push_bind(trace.to_owned()).push_bind(span.id.clone()).push_bind(span.parent.clone());
            row.push_bind(span.name.clone()).push_bind(span.kind.clone()).push_bind(status);
            row.push_bind(span.start).push_bind(span.end).push_bind(content.clone());
        });
        insert.push(
            " ON CONFLICT (trace, id) DO UPDATE SET parent = excluded.parent, name = excluded.name,
                kind = excluded.kind, status = excluded.status, start_ns = excluded.start_ns, end_ns = excluded.end_ns,
                content = excluded.content",
        );
        insert.build().execute(&mut *tx).await?;
    }
    count_tokens(tx, trace, &contents, &replaced).await
}

/// Adds the trace, or lets the one that is there reach over these spans; its row is locked from here on. Answers the spans
/// that are there already under the same ids: they do not count twice.
async fn put_trace(
    tx: &mut Connection,
    experiment: i64,
    trace: &str,
    spans: &[(&Span, String)],
    bytes: u64,
) -> Result<Vec<Replaced>> {
    const NANOS: i64 = 1_000_000;
    let begin = spans.iter().map(|(span, _)| span.start.div_euclid(NANOS)).min().unwrap_or_default();
    let end = spans.iter().filter_map(|(span, _)| span.end).max().map(|end| end.div_euclid(NANOS));
    let root = spans.iter().map(|(span, _)| span).find(|span| span.parent.is_none());
    let state = match root.map(|root| (root.status, root.end)) {
        None | Some((_, None)) => TraceState::InProgress,
        Some((SpanStatus::Error, _)) => TraceState::Error,
        Some((SpanStatus::Ok | SpanStatus::Unset, _)) => TraceState::Ok,
    };
    let shown = |key: &str| root.and_then(|root| root.content.attributes.get(key)).map(shown);
    let bytes = i64::try_from(bytes).map_err(anyhow::Error::from)?;
    let mut taken: i64 = query_scalar(
        "INSERT INTO traces (id, experiment, request_time, duration, state, request_preview, response_preview,
                             span_bytes)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (id) DO UPDATE SET
             request_time = CASE WHEN excluded.request_time < traces.request_time THEN excluded.request_time
                                 ELSE traces.request_time END,
             duration = CASE WHEN excluded.duration IS NULL AND traces.duration IS NULL THEN NULL
                 ELSE CASE WHEN COALESCE(excluded.request_time + excluded.duration, 0)
                              > COALESCE(traces.request_time + traces.duration, 0)
                           THEN excluded.request_time + excluded.duration
                           ELSE traces.request_time + traces.duration END
                    - CASE WHEN excluded.request_time < traces.request_time THEN excluded.request_time
                           ELSE traces.request_time END END,
             state = CASE WHEN traces.state IN ('IN_PROGRESS', 'STATE_UNSPECIFIED') THEN excluded.state
                          ELSE traces.state END,
             request_preview = COALESCE(traces.request_preview, excluded.request_preview),
             response_preview = COALESCE(traces.response_preview, excluded.response_preview),
             span_bytes = traces.span_bytes + excluded.span_bytes
         RETURNING span_bytes",
    )
    .bind(trace)
    .bind(experiment)
    .bind(begin)
    .bind(end.map(|end| end - begin))
    .bind(to_word(&state)?)
    .bind(shown(INPUTS))
    .bind(shown(OUTPUTS))
    .bind(bytes)
    .fetch_one(&mut *tx)
    .await?;
    let mut replaced = Vec::new();
    // Else it had no spans before.
    if taken > bytes {
        replaced = those_there(tx, trace, spans).await?;
        taken = query_scalar("UPDATE traces SET span_bytes = span_bytes - $1 WHERE id = $2 RETURNING span_bytes")
            .bind(replaced.iter().map(|before| before.bytes).sum::<i64>())
            .bind(trace)
            .fetch_one(&mut *tx)
            .await?;
    }
    if taken.unsigned_abs() > MAX_SPAN_BYTES {
        return Err(Error::Rejected(format!(
            "Trace with ID '{trace}' would have {taken} bytes of spans, at most {MAX_SPAN_BYTES} are kept"
        )));
    }
    Ok(replaced)
}

/// What a span that is sent again has counted for.
struct Replaced {
    bytes: i64,
    tokens: Option<Value>,
}

async fn those_there(tx: &mut Connection, trace: &str, spans: &[(&Span, String)]) -> Result<Vec<Replaced>> {
    let mut found = Vec::new();
    for some in spans.chunks(IDS_AT_ONCE) {
        let mut select = QueryBuilder::<Db>::new("SELECT name, content FROM spans WHERE trace = ");
        select.push_bind(trace).push(" AND id IN (");
        let mut ids = select.separated(", ");
        for (span, _) in some {
            ids.push_bind(span.id.as_str());
        }
        select.push(")");
        for (name, content) in select.build_query_as::<(String, String)>().fetch_all(&mut *tx).await? {
            let bytes = i64::try_from(name.len() + content.len()).map_err(anyhow::Error::from)?;
            let mut content: Content = from_json(&content)?;
            found.push(Replaced { bytes, tokens: content.attributes.remove(TOKEN_USAGE) });
        }
    }
    Ok(found)
}

/// What a preview shows of inputs or outputs: of a chat its last message, else all of it as JSON.
fn shown(value: &Value) -> String {
    let messages = ["messages", "input"].iter().find_map(|key| value.get(key)?.as_array());
    let said = |message: &Value| Some(message.get("content")?.as_str()?.to_owned());
    let last = messages.and_then(|messages| messages.last()).and_then(said);
    let answer = || said(value.get("choices")?.get(0)?.get("message")?);
    preview(last.or_else(answer).unwrap_or_else(|| value.to_string()))
}

/// Counts the tokens of these spans among those of their trace, in place of those they have replaced.
async fn count_tokens(
    tx: &mut Connection,
    trace: &str,
    spans: &[(&Span, String)],
    replaced: &[Replaced],
) -> Result<()> {
    let usages = spans.iter().filter_map(|(span, _)| span.content.attributes.get(TOKEN_USAGE));
    let usages: Vec<&Value> = usages.filter(|usage| usage.is_object()).collect();
    let replaced: Vec<&Value> =
        replaced.iter().filter_map(|before| before.tokens.as_ref()).filter(|usage| usage.is_object()).collect();
    if usages.is_empty() && replaced.is_empty() {
        return Ok(());
    }
    let before: Option<String> = query_scalar("SELECT value FROM trace_metadata WHERE trace = $1 AND key = $2")
        .bind(trace)
        .bind(TOKENS)
        .fetch_optional(&mut *tx)
        .await?;
    let before: Value = before.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let count = |usage: &Value, kind: &str| usage.get(kind).and_then(Value::as_i64).unwrap_or(0);
    let sums = TOKEN_KINDS.map(|kind| {
        let less = replaced.iter().fold(count(&before, kind), |sum, usage| sum.saturating_sub(count(usage, kind)));
        usages.iter().fold(less.max(0), |sum, usage| sum.saturating_add(count(usage, kind)))
    });
    let [input, output, total] = sums;
    let usage = json!({"input_tokens": input, "output_tokens": output, "total_tokens": total});
    set(tx, "trace_metadata", trace, &BTreeMap::from([(TOKENS.to_owned(), usage.to_string())])).await
}

/// Refuses to read more spans than one answer may hold.
pub(super) async fn must_fit_one_answer(tx: &mut Connection, ids: &[String]) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut sum = with_ids("SELECT CAST(COALESCE(SUM(span_bytes), 0) AS BIGINT) FROM traces", "id", ids);
    let bytes: i64 = sum.build_query_scalar().fetch_one(&mut *tx).await?;
    if bytes.unsigned_abs() <= MAX_SPAN_BYTES {
        return Ok(());
    }
    Err(Error::Rejected(format!(
        "the traces named by 'trace_ids' have {bytes} bytes of spans, at most {MAX_SPAN_BYTES} are answered at once; \
         ask for fewer"
    )))
}

/// Reads the spans of traces, each trace's root first and then by time.
pub(super) async fn of_traces(tx: &mut Connection, ids: &[String]) -> Result<HashMap<String, Vec<Span>>> {
    let mut by_trace: HashMap<String, Vec<Span>> = HashMap::new();
    let mut values = 0;
    for some in ids.chunks(IDS_AT_ONCE) {
        let select = "SELECT trace, id, parent, name, kind, status, start_ns, end_ns, content FROM spans";
        let mut query = with_ids(select, "trace", some);
        query.push(" ORDER BY CASE WHEN parent IS NULL THEN 0 ELSE 1 END, start_ns, id");
        for row in query.build_query_as::<Row>().fetch_all(&mut *tx).await? {
            values += row.content.bytes().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
            if values > MAX_SPAN_VALUES {
                return Err(Error::Rejected(format!(
                    "the spans of these traces hold more than {MAX_SPAN_VALUES} values, the most that are answered at once"
                )));
            }
            by_trace.entry(row.trace.clone()).or_default().push(row.into_span()?);
        }
    }
    Ok(by_trace)
}
