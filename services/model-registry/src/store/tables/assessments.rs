//! Assessments in the tables of `migrations/`, compiled once for each database.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::Value;
use sqlx::{QueryBuilder, query};

use super::traces::{exists, with_ids};
use super::{Connection, Db, ROWS_AT_ONCE, Tables};
use crate::error::{Entity, Error, Result};
use crate::store::rows::{from_json, from_word, to_json, to_word};
use crate::tracking::Millis;
use crate::tracking::traces::{Assessment, AssessmentChange, Assessments, Judgement, Source};

const COLUMNS: &str = "SELECT trace, id, name, kind, value, error, source_type, source_id, span, rationale, metadata,
    overrides, valid, create_time, update_time FROM assessments";

#[derive(sqlx::FromRow)]
struct Row {
    trace: String,
    id: String,
    name: String,
    kind: String,
    value: String,
    error: Option<String>,
    source_type: String,
    source_id: Option<String>,
    span: Option<String>,
    rationale: Option<String>,
    metadata: String,
    overrides: Option<String>,
    valid: i64,
    create_time: i64,
    update_time: i64,
}

#[async_trait]
impl Assessments for Tables {
    async fn add_assessment(&self, assessment: &Assessment) -> Result<Assessment> {
        let mut tx = self.begin_write().await?;
        exists(&mut tx, &assessment.trace).await?;
        if let Some(overridden) = &assessment.overrides {
            set_valid(&mut tx, &assessment.trace, overridden, false).await?;
        }
        put(&mut tx, std::slice::from_ref(assessment)).await?;
        let assessment = find(&mut tx, &assessment.trace, &assessment.id).await?;
        tx.commit().await?;
        Ok(assessment)
    }

    async fn assessment(&self, trace: &str, id: &str) -> Result<Assessment> {
        find(&mut *self.read().await?, trace, id).await
    }

    async fn change_assessment(
        &self,
        now: Millis,
        trace: &str,
        id: &str,
        change: &AssessmentChange,
    ) -> Result<Assessment> {
        let AssessmentChange { name, judgement, rationale, metadata } = change;
        let mut tx = self.begin_write().await?;
        // Locks the row where rows can be locked: metadata are read and written.
        query("UPDATE assessments SET valid = valid WHERE trace = $1 AND id = $2")
            .bind(trace)
            .bind(id)
            .execute(&mut *tx)
            .await?;
        let mut assessment = find(&mut tx, trace, id).await?;
        match (&assessment.judgement, judgement) {
            (Judgement::Feedback { .. }, Some(Judgement::Expectation { .. })) => {
                return Err(Error::Rejected("Cannot update expectation value on a Feedback assessment.".to_owned()));
            }
            (Judgement::Expectation { .. }, Some(Judgement::Feedback { .. })) => {
                return Err(Error::Rejected("Cannot update feedback value on an Expectation assessment.".to_owned()));
            }
            (_, Some(judgement)) => assessment.judgement = judgement.clone(),
            (_, None) => {}
        }
        assessment.name = name.clone().unwrap_or(assessment.name);
        assessment.rationale = rationale.clone().or(assessment.rationale);
        assessment.metadata.extend(metadata.clone());
        assessment.update_time = now;
        put(&mut tx, std::slice::from_ref(&assessment)).await?;
        tx.commit().await?;
        Ok(assessment)
    }

    async fn delete_assessment(&self, trace: &str, id: &str) -> Result<()> {
        let mut tx = self.begin_write().await?;
        let overridden: Option<(Option<String>,)> =
            sqlx::query_as("DELETE FROM assessments WHERE trace = $1 AND id = $2 RETURNING overrides")
                .bind(trace)
                .bind(id)
                .fetch_optional(&mut *tx)
                .await?;
        if let Some((Some(overridden),)) = overridden {
            query("UPDATE assessments SET valid = 1 WHERE trace = $1 AND id = $2")
                .bind(trace)
                .bind(overridden)
                .execute(&mut *tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }
}

async fn set_valid(tx: &mut Connection, trace: &str, id: &str, valid: bool) -> Result<()> {
    let changed = query("UPDATE assessments SET valid = $1 WHERE trace = $2 AND id = $3")
        .bind(i64::from(valid))
        .bind(trace)
        .bind(id)
        .execute(&mut *tx)
        .await?;
    if changed.rows_affected() > 0 {
        return Ok(());
    }
    Err(Error::NotFound(Entity::Assessment { trace: trace.to_owned(), id: id.to_owned() }))
}

async fn find(tx: &mut Connection, trace: &str, id: &str) -> Result<Assessment> {
    let mut query = QueryBuilder::<Db>::new(COLUMNS);
    query.push(" WHERE trace = ").push_bind(trace.to_owned()).push(" AND id = ").push_bind(id.to_owned());
    let row: Option<Row> = query.build_query_as().fetch_optional(&mut *tx).await?;
    if let Some(row) = row {
        return row.into_assessment();
    }
    exists(tx, trace).await?;
    Err(Error::NotFound(Entity::Assessment { trace: trace.to_owned(), id: id.to_owned() }))
}

/// Reads the assessments of traces, the oldest first.
pub(super) async fn of_traces(tx: &mut Connection, traces: &[String]) -> Result<Vec<Assessment>> {
    let mut query = with_ids(COLUMNS, "trace", traces);
    query.push(" ORDER BY create_time, id");
    let rows: Vec<Row> = query.build_query_as().fetch_all(&mut *tx).await?;
    rows.into_iter().map(Row::into_assessment).collect()
}

/// Keeps assessments, in place of those with their ids; of several with one id the last counts.
pub(super) async fn put(tx: &mut Connection, assessments: &[Assessment]) -> Result<()> {
    let last: BTreeMap<(&str, &str), &Assessment> =
        assessments.iter().map(|one| ((one.trace.as_str(), one.id.as_str()), one)).collect();
    let rows = last.into_values().map(Row::from_assessment).collect::<Result<Vec<_>>>()?;
    for some in rows.chunks(ROWS_AT_ONCE) {
        let mut insert = QueryBuilder::<Db>::new(
            "INSERT INTO assessments (trace, id, name, kind, value, plain, error, source_type, source_id, span, rationale,
                                      metadata, overrides, valid, create_time, update_time) ",
        );
        insert.push_values(some, |mut to, (row, plain)| {
            to.push_bind(row.trace.clone()).push_bind(row.id.clone()).push_bind(row.name.clone());
            to.push_bind(row.kind.clone()).push_bind(row.value.clone()).push_bind(plain.clone());
            to.push_bind(row.error.clone()).push_bind(row.source_type.clone()).push_bind(row.source_id.clone());
            to.push_bind(row.span.clone()).push_bind(row.rationale.clone()).push_bind(row.metadata.clone());
            to.push_bind(row.overrides.clone()).push_bind(row.valid);
            to.push_bind(row.create_time).push_bind(row.update_time);
        });
        insert.push(
            " ON CONFLICT (trace, id) DO UPDATE SET name = excluded.name, kind = excluded.kind, value = excluded.value,
                plain = excluded.plain, error = excluded.error, source_type = excluded.source_type,
                source_id = excluded.source_id, span = excluded.span, rationale = excluded.rationale,
                metadata = excluded.metadata, overrides = excluded.overrides, update_time = excluded.update_time",
        );
        insert.build().execute(&mut *tx).await?;
    }
    Ok(())
}

/// A value as searches compare it. PostgreSQL keeps no NUL.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), |text| text.replace('\0', "\u{fffd}"))
}

impl Row {
    /// The row, and its value as searches compare it.
    fn from_assessment(assessment: &Assessment) -> Result<(Self, String)> {
        let Assessment {
            id,
            trace,
            name,
            judgement,
            source,
            span,
            rationale,
            metadata,
            overrides,
            is_valid,
            create_time,
            update_time,
        } = assessment.clone();
        let (kind, error) = match &judgement {
            Judgement::Feedback { error, .. } => ("feedback", error.as_ref().map(to_json).transpose()?),
            Judgement::Expectation { .. } => ("expectation", None),
        };
        let row = Self {
            trace,
            id,
            name,
            kind: kind.to_owned(),
            value: judgement.value().to_string(),
            error,
            source_type: to_word(&source.kind)?,
            source_id: source.id,
            span,
            rationale,
            metadata: to_json(&metadata)?,
            overrides,
            valid: i64::from(is_valid),
            create_time: create_time.0,
            update_time: update_time.0,
        };
        Ok((row, plain(judgement.value())))
    }

    fn into_assessment(self) -> Result<Assessment> {
        let Self {
            trace,
            id,
            name,
            kind,
            value,
            error,
            source_type,
            source_id,
            span,
            rationale,
            metadata,
            overrides,
            valid,
            create_time,
            update_time,
        } = self;
        let value = from_json(&value)?;
        let judgement = match kind.as_str() {
            "feedback" => Judgement::Feedback { value, error: error.as_deref().map(from_json).transpose()? },
            _ => Judgement::Expectation { value },
        };
        Ok(Assessment {
            id,
            trace,
            name,
            judgement,
            source: Source { kind: from_word(source_type)?, id: source_id },
            span,
            rationale,
            metadata: from_json(&metadata)?,
            overrides,
            is_valid: valid != 0,
            create_time: Millis(create_time),
            update_time: Millis(update_time),
        })
    }
}
