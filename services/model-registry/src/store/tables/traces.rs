//! Traces in the tables of `migrations/`, compiled once for each database.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use sqlx::{QueryBuilder, query};

use super::searching::{APART, JOINED, LIST_APART, push_comparison};
use super::{Connection, Db, IDS_AT_ONCE, ROWS_AT_ONCE, SPAN_ATTRIBUTES, Tables, assessments, experiments, spans};
use crate::error::{Entity, Error, Result};
use crate::search::traces::{Attribute, Condition, Field, Order, SpanField};
use crate::store::rows::{from_word, to_word};
use crate::tracking::Millis;
use crate::tracking::spans::Span;
use crate::tracking::traces::{
    ARTIFACT_LOCATION, Counts, Cursor, Doomed, SOURCE_RUN, Trace, TraceEnd, TracePage, TraceSearch, Traces,
};

const COLUMNS: &str = "SELECT id, experiment, request_time, duration, state, client_request_id, request_preview,
    response_preview FROM traces";

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    experiment: i64,
    request_time: i64,
    duration: Option<i64>,
    state: String,
    client_request_id: Option<String>,
    request_preview: Option<String>,
    response_preview: Option<String>,
}

#[async_trait]
impl Traces for Tables {
    async fn start_trace(&self, trace: &Trace) -> Result<Trace> {
        let mut tx = self.begin_write().await?;
        let parent = experiments::find(&mut tx, trace.experiment).await?;
        experiments::must_be_active(&parent)?;
        query(
            "INSERT INTO traces (id, experiment, request_time, duration, state, client_request_id, request_preview,
                                 response_preview)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (id) DO UPDATE SET experiment = excluded.experiment, request_time = excluded.request_time,
                 duration = excluded.duration, state = excluded.state,
                 client_request_id = COALESCE(excluded.client_request_id, traces.client_request_id),
                 request_preview = COALESCE(excluded.request_preview, traces.request_preview),
                 response_preview = COALESCE(excluded.response_preview, traces.response_preview)",
        )
        .bind(&trace.id)
        .bind(trace.experiment)
        .bind(trace.request_time.0)
        .bind(trace.duration)
        .bind(to_word(&trace.state)?)
        .bind(&trace.client_request_id)
        .bind(&trace.request_preview)
        .bind(&trace.response_preview)
        .execute(&mut *tx)
        .await?;
        let mut tags = trace.tags.clone();
        tags.insert(ARTIFACT_LOCATION.to_owned(), location(&parent.artifact_location, &trace.id));
        set(&mut tx, "trace_tags", &trace.id, &tags).await?;
        set(&mut tx, "trace_metadata", &trace.id, &trace.metadata).await?;
        link_to_source(&mut tx, &trace.id, &trace.metadata).await?;
        assessments::put(&mut tx, &trace.assessments).await?;
        let trace = find(&mut tx, &trace.id).await?;
        tx.commit().await?;
        Ok(trace)
    }

    async fn end_trace(&self, id: &str, end: &TraceEnd) -> Result<Trace> {
        let TraceEnd { time, state, metadata, tags } = end;
        let mut tx = self.begin_write().await?;
        let changed = query("UPDATE traces SET duration = $1 - request_time, state = $2 WHERE id = $3")
            .bind(time.0)
            .bind(to_word(state)?)
            .bind(id)
            .execute(&mut *tx)
            .await?;
        if changed.rows_affected() == 0 {
            return Err(Error::NotFound(Entity::Trace(id.to_owned())));
        }
        set(&mut tx, "trace_tags", id, tags).await?;
        set(&mut tx, "trace_metadata", id, metadata).await?;
        link_to_source(&mut tx, id, metadata).await?;
        let trace = find(&mut tx, id).await?;
        tx.commit().await?;
        Ok(trace)
    }

    async fn log_spans(&self, experiment: i64, spans: &[Span]) -> Result<()> {
        let mut tx = self.begin_write().await?;
        let parent = experiments::find(&mut tx, experiment).await?;
        experiments::must_be_active(&parent)?;
        // In one order everywhere, so that no two writers wait for each other.
        let mut by_trace: BTreeMap<&str, Vec<&Span>> = BTreeMap::new();
        for span in spans {
            by_trace.entry(&span.trace).or_default().push(span);
        }
        for (trace, spans) in by_trace {
            spans::put(&mut tx, experiment, trace, &location(&parent.artifact_location, trace), &spans).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn trace(&self, id: &str) -> Result<Trace> {
        find(&mut *self.read().await?, id).await
    }

    async fn traces(&self, ids: &[String]) -> Result<Vec<Trace>> {
        let mut tx = self.read().await?;
        let rows = with_ids(COLUMNS, "id", ids).build_query_as().fetch_all(&mut *tx).await?;
        with_parts(&mut tx, rows).await
    }

    async fn traces_with_spans(&self, ids: &[String]) -> Result<Vec<(Trace, Vec<Span>)>> {
        let mut tx = self.read().await?;
        spans::must_fit_one_answer(&mut tx, ids).await?;
        let mut spans = spans::of_traces(&mut tx, ids).await?;
        let rows = with_ids(COLUMNS, "id", ids).build_query_as().fetch_all(&mut *tx).await?;
        let traces = with_parts(&mut tx, rows).await?;
        let mut by_id: HashMap<String, Trace> = traces.into_iter().map(|trace| (trace.id.clone(), trace)).collect();
        let in_order = ids.iter().filter_map(|id| {
            let trace = by_id.remove(id)?;
            Some((trace, spans.remove(id).unwrap_or_default()))
        });
        Ok(in_order.collect())
    }

    async fn search_traces(&self, search: &TraceSearch) -> Result<TracePage> {
        let TraceSearch { experiments, conditions, orders, from, limit } = search;
        if experiments.is_empty() {
            return Ok(TracePage { traces: Vec::new(), next: None });
        }
        let mut tx = self.read().await?;
        let mut query = QueryBuilder::<Db>::new(COLUMNS);
        push_experiments(&mut query, experiments);
        push_conditions(&mut query, conditions);
        let by_time = time_alone(orders);
        let mut offset = 0;
        match (from, by_time) {
            (Cursor::Offset(some), _) => offset = *some,
            (Cursor::After { time, id }, Some(ascending)) => {
                let beyond = if ascending { ">" } else { "<" };
                query.push(format!(" AND request_time {beyond}= ")).push_bind(time.0);
                query.push(format!(" AND (request_time {beyond} ")).push_bind(time.0);
                query.push(" OR id > ").push_bind(id.clone()).push(")");
            }
            (Cursor::After { .. }, None) => {
                return Err(Error::Rejected("Invalid page token: it belongs to a search in another order.".to_owned()));
            }
        }
        push_orders(&mut query, orders);
        query.push(" LIMIT ").push_bind(i64::from(*limit) + 1);
        query.push(" OFFSET ").push_bind(i64::try_from(offset).unwrap_or(i64::MAX));
        let mut rows: Vec<Row> = query.build_query_as().fetch_all(&mut *tx).await?;
        let has_more = rows.len() > *limit as usize;
        rows.truncate(*limit as usize);
        let next = rows.last().filter(|_| has_more).map(|last| match by_time {
            Some(_) => Cursor::After { time: Millis(last.request_time), id: last.id.clone() },
            None => Cursor::Offset(offset + u64::from(*limit)),
        });
        Ok(TracePage { traces: with_parts(&mut tx, rows).await?, next })
    }

    async fn count_traces(
        &self,
        experiments: &[i64],
        base: &[Condition],
        first: &[Condition],
        second: &[Condition],
    ) -> Result<Counts> {
        if experiments.is_empty() {
            return Ok(Counts { first: 0, second: 0, both: 0, total: 0 });
        }
        let mut query = QueryBuilder::<Db>::new("SELECT COUNT(*) AS total");
        for (name, conditions) in [("first", &[first][..]), ("second", &[second]), ("both", &[first, second])] {
            query.push(", COUNT(CASE WHEN 1 = 1");
            for conditions in conditions {
                push_conditions(&mut query, conditions);
            }
            query.push(format!(" THEN 1 END) AS {name}"));
        }
        query.push(" FROM traces");
        push_experiments(&mut query, experiments);
        push_conditions(&mut query, base);
        Ok(query.build_query_as().fetch_one(self.reader()).await?)
    }

    async fn delete_traces(&self, experiment: i64, doomed: &Doomed) -> Result<u64> {
        let mut tx = self.begin_write().await?;
        let ids = match doomed {
            Doomed::Named(ids) => {
                // In one order, so that no two transactions wait for each other.
                let mut ids = ids.clone();
                ids.sort();
                ids
            }
            Doomed::Until { time, at_most } => {
                let mut oldest = QueryBuilder::<Db>::new("SELECT id FROM traces WHERE experiment = ");
                oldest.push_bind(experiment).push(" AND request_time <= ").push_bind(time.0);
                oldest.push(" ORDER BY request_time, id");
                if let Some(count) = at_most {
                    oldest.push(" LIMIT ").push_bind(i64::from(*count));
                }
                oldest.build_query_scalar().fetch_all(&mut *tx).await?
            }
        };
        let mut gone = 0;
        for some in ids.chunks(IDS_AT_ONCE) {
            let mut links = with_ids("DELETE FROM trace_runs", "trace", some);
            links.push(" AND trace IN (SELECT id FROM traces WHERE experiment = ").push_bind(experiment).push(")");
            links.build().execute(&mut *tx).await?;
            let mut traces = with_ids("DELETE FROM traces", "id", some);
            traces.push(" AND experiment = ").push_bind(experiment);
            gone += traces.build().execute(&mut *tx).await?.rows_affected();
            // A million traces are not one transaction: who asks again goes on from what is left.
            if matches!(doomed, Doomed::Until { .. }) {
                tx.commit().await?;
                tx = self.begin_write().await?;
            }
        }
        tx.commit().await?;
        Ok(gone)
    }

    async fn change_trace_tag(&self, id: &str, key: &str, value: Option<&str>) -> Result<()> {
        let mut tx = self.begin_write().await?;
        match value {
            Some(value) => {
                exists(&mut tx, id).await?;
                set(&mut tx, "trace_tags", id, &BTreeMap::from([(key.to_owned(), value.to_owned())])).await?;
            }
            None => {
                let sql = "DELETE FROM trace_tags WHERE trace = $1 AND key = $2";
                let removed = query(sql).bind(id).bind(key).execute(&mut *tx).await?;
                if removed.rows_affected() == 0 {
                    let tag = Entity::TraceTag { trace: id.to_owned(), key: key.to_owned() };
                    return Err(Error::NotFound(tag));
                }
            }
        }
        Ok(tx.commit().await?)
    }

    async fn link_traces(&self, run: &str, traces: &[String]) -> Result<()> {
        let mut tx = self.begin_write().await?;
        let there: Option<(String,)> =
            sqlx::query_as("SELECT id FROM runs WHERE id = $1").bind(run).fetch_optional(&mut *tx).await?;
        if there.is_none() {
            return Err(Error::NotFound(Entity::Run(run.to_owned())));
        }
        // In one order everywhere, so that no two writers wait for each other.
        let traces = Vec::from_iter(BTreeSet::from_iter(traces));
        for some in traces.chunks(ROWS_AT_ONCE) {
            let mut insert = QueryBuilder::<Db>::new("INSERT INTO trace_runs (run, trace) ");
            insert.push_values(some, |mut row, trace| {
                row.push_bind(run.to_owned()).push_bind((*trace).clone());
            });
            insert.push(" ON CONFLICT (run, trace) DO NOTHING");
            insert.build().execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }
}

/// Where a trace keeps its files.
fn location(experiment: &str, trace: &str) -> String {
    format!("{}/traces/{trace}/artifacts", experiment.trim_end_matches('/'))
}

pub(super) async fn exists(tx: &mut Connection, id: &str) -> Result<()> {
    let there: Option<(i64,)> =
        sqlx::query_as("SELECT request_time FROM traces WHERE id = $1").bind(id).fetch_optional(&mut *tx).await?;
    there.map(|_| ()).ok_or_else(|| Error::NotFound(Entity::Trace(id.to_owned())))
}

async fn find(tx: &mut Connection, id: &str) -> Result<Trace> {
    let mut query = QueryBuilder::<Db>::new(COLUMNS);
    query.push(" WHERE id = ").push_bind(id.to_owned());
    let rows = query.build_query_as().fetch_all(&mut *tx).await?;
    with_parts(tx, rows).await?.pop().ok_or_else(|| Error::NotFound(Entity::Trace(id.to_owned())))
}

/// Sets tags or metadata.
pub(super) async fn set(
    tx: &mut Connection,
    table: &'static str,
    trace: &str,
    pairs: &BTreeMap<String, String>,
) -> Result<()> {
    if pairs.is_empty() {
        return Ok(());
    }
    let mut insert = QueryBuilder::<Db>::new(format!("INSERT INTO {table} (trace, key, value) "));
    insert.push_values(pairs, |mut row, (key, value)| {
        row.push_bind(trace.to_owned()).push_bind(key.clone()).push_bind(value.clone());
    });
    insert.push(" ON CONFLICT (trace, key) DO UPDATE SET value = excluded.value");
    insert.build().execute(&mut *tx).await?;
    Ok(())
}

/// Links a trace to the run its metadata name, where that is one of this registry.
async fn link_to_source(tx: &mut Connection, trace: &str, metadata: &BTreeMap<String, String>) -> Result<()> {
    let Some(run) = metadata.get(SOURCE_RUN) else { return Ok(()) };
    query(
        "INSERT INTO trace_runs (run, trace) SELECT id, $1 FROM runs WHERE id = $2
         ON CONFLICT (run, trace) DO NOTHING",
    )
    .bind(trace)
    .bind(run)
    .execute(&mut *tx)
    .await?;
    Ok(())
}

/// `… WHERE column IN (…)`.
pub(super) fn with_ids(start: &str, column: &str, ids: &[String]) -> QueryBuilder<Db> {
    let mut query = QueryBuilder::<Db>::new(start);
    let mut list = query.push(format!(" WHERE {column} IN (")).separated(", ");
    for id in ids {
        list.push_bind(id.clone());
    }
    query.push(")");
    query
}

/// Adds tags, metadata and assessments, in a handful of queries however many traces there are.
async fn with_parts(tx: &mut Connection, rows: Vec<Row>) -> Result<Vec<Trace>> {
    let mut traces = rows.into_iter().map(Row::into_trace).collect::<Result<Vec<_>>>()?;
    for some in traces.chunks_mut(IDS_AT_ONCE) {
        let ids: Vec<String> = some.iter().map(|trace| trace.id.clone()).collect();
        let mut by_id: HashMap<String, &mut Trace> = some.iter_mut().map(|trace| (trace.id.clone(), trace)).collect();
        let mut tags = with_ids("SELECT trace, key, value FROM trace_tags", "trace", &ids);
        for (trace, key, value) in tags.build_query_as::<(String, String, String)>().fetch_all(&mut *tx).await? {
            by_id.get_mut(&trace).map(|trace| trace.tags.insert(key, value));
        }
        let mut metadata = with_ids("SELECT trace, key, value FROM trace_metadata", "trace", &ids);
        for (trace, key, value) in metadata.build_query_as::<(String, String, String)>().fetch_all(&mut *tx).await? {
            by_id.get_mut(&trace).map(|trace| trace.metadata.insert(key, value));
        }
        for assessment in assessments::of_traces(tx, &ids).await? {
            if let Some(trace) = by_id.get_mut(&assessment.trace) {
                trace.assessments.push(assessment);
            }
        }
    }
    Ok(traces)
}

impl Row {
    fn into_trace(self) -> Result<Trace> {
        let Self {
            id,
            experiment,
            request_time,
            duration,
            state,
            client_request_id,
            request_preview,
            response_preview,
        } = self;
        Ok(Trace {
            id,
            experiment,
            request_time: Millis(request_time),
            duration,
            state: from_word(state)?,
            client_request_id,
            request_preview,
            response_preview,
            metadata: BTreeMap::new(),
            tags: BTreeMap::new(),
            assessments: Vec::new(),
        })
    }
}

fn push_experiments(query: &mut QueryBuilder<Db>, experiments: &[i64]) {
    let mut ids = query.push(" WHERE experiment IN (").separated(", ");
    for id in experiments {
        ids.push_bind(*id);
    }
    query.push(")");
}

/// Adds ` AND …` for each condition.
fn push_conditions(query: &mut QueryBuilder<Db>, conditions: &[Condition]) {
    for (index, Condition { field, op, value }) in conditions.iter().enumerate() {
        query.push(" AND ");
        let end = if index >= JOINED { APART } else { "" };
        match field {
            Field::Attribute(attribute) => push_comparison(query, column(*attribute), *op, value),
            Field::Tag(key) => {
                query.push("EXISTS (SELECT 1 FROM trace_tags p WHERE p.trace = traces.id AND p.key = ");
                query.push_bind(key.clone()).push(" AND ");
                push_comparison(query, "p.value", *op, value);
                query.push(format!("{end})"));
            }
            Field::Metadata(key) => {
                query.push("EXISTS (SELECT 1 FROM trace_metadata p WHERE p.trace = traces.id AND p.key = ");
                query.push_bind(key.clone()).push(" AND ");
                push_comparison(query, "p.value", *op, value);
                query.push(format!("{end})"));
            }
            Field::Run => {
                query.push("traces.id IN (SELECT p.trace FROM trace_runs p WHERE ");
                push_comparison(query, "p.run", *op, value);
                query.push(if index >= JOINED { LIST_APART } else { ")" });
            }
            Field::Span(SpanField::Attribute(key)) => {
                query.push(format!("EXISTS (SELECT 1 FROM {SPAN_ATTRIBUTES} p WHERE p.trace = traces.id AND p.key = "));
                query.push_bind(key.clone()).push(" AND ");
                push_comparison(query, "p.value", *op, value);
                query.push(format!("{end})"));
            }
            Field::Span(SpanField::Content) => {
                query.push("EXISTS (SELECT 1 FROM spans p WHERE p.trace = traces.id AND (");
                push_comparison(query, "p.name", *op, value);
                query.push(" OR ");
                push_comparison(query, "p.content", *op, value);
                query.push(format!("){end})"));
            }
            Field::Span(field) => {
                let column = match field {
                    SpanField::Name => "p.name",
                    SpanField::Kind => "p.kind",
                    SpanField::Status | SpanField::Content | SpanField::Attribute(_) => "p.status",
                };
                query.push("EXISTS (SELECT 1 FROM spans p WHERE p.trace = traces.id AND ");
                push_comparison(query, column, *op, value);
                query.push(format!("{end})"));
            }
            Field::Feedback(name) | Field::Expectation(name) => {
                let kind = if matches!(field, Field::Feedback(_)) { "feedback" } else { "expectation" };
                query.push("EXISTS (SELECT 1 FROM assessments p WHERE p.trace = traces.id AND p.kind = ");
                query.push_bind(kind).push(" AND p.name = ").push_bind(name.clone()).push(" AND ");
                push_comparison(query, "p.plain", *op, value);
                query.push(format!("{end})"));
            }
        }
    }
}

fn column(attribute: Attribute) -> &'static str {
    match attribute {
        Attribute::Id => "traces.id",
        Attribute::Experiment => "CAST(traces.experiment AS TEXT)",
        Attribute::RequestTime => "traces.request_time",
        Attribute::Duration => "traces.duration",
        Attribute::EndTime => "(traces.request_time + COALESCE(traces.duration, 0))",
        Attribute::State => "traces.state",
        Attribute::ClientRequestId => "traces.client_request_id",
    }
}

/// Whether an order by nothing but time is ascending; None for any other order.
fn time_alone(orders: &[Order]) -> Option<bool> {
    match orders {
        [] => Some(false),
        [Order { field: Field::Attribute(Attribute::RequestTime), ascending }] => Some(*ascending),
        _ => None,
    }
}

/// Adds ` ORDER BY …`, what has no value last, and the newest first among equals.
fn push_orders(query: &mut QueryBuilder<Db>, orders: &[Order]) {
    query.push(" ORDER BY ");
    for Order { field, ascending } in orders {
        let direction = if *ascending { "ASC" } else { "DESC" };
        match field {
            Field::Attribute(Attribute::RequestTime) => {
                query.push(format!("request_time {direction}, "));
            }
            Field::Attribute(attribute) => {
                let column = column(*attribute);
                query.push(format!("CASE WHEN {column} IS NULL THEN 1 ELSE 0 END, {column} {direction}, "));
            }
            Field::Tag(key) => push_pair_order(query, "trace_tags", key, direction),
            Field::Metadata(key) => push_pair_order(query, "trace_metadata", key, direction),
            Field::Run | Field::Span(_) | Field::Feedback(_) | Field::Expectation(_) => {}
        }
    }
    let time = Field::Attribute(Attribute::RequestTime);
    query.push(if orders.iter().any(|order| order.field == time) { "id" } else { "request_time DESC, id" });
}

fn push_pair_order(query: &mut QueryBuilder<Db>, table: &'static str, key: &str, direction: &str) {
    for (start, end) in [("CASE WHEN ", " IS NULL THEN 1 ELSE 0 END, "), ("", " ")] {
        query.push(format!("{start}(SELECT p.value FROM {table} p WHERE p.trace = traces.id AND p.key = "));
        query.push_bind(key.to_owned()).push(format!("){end}"));
    }
    query.push(format!("{direction}, "));
}
