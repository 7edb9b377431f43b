//! What must stay: leases, references, deletions not long ago and legal holds, compiled once for each database.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::json;
use sqlx::{QueryBuilder, query, query_as, query_scalar};

use super::reading::{model as model_named, version as version_numbered};
use super::{Begun, Connection, Db, Tables, event};
use crate::artifacts::ArtifactStore;
use crate::audit::Change;
use crate::error::{Entity, Error, Result};
use crate::maintenance::{Hold, HoldDraft, Keeping, Signed};
use crate::model::{Event, EventKind, Micros};
use crate::names::{ModelName, Sha256Hex, VersionId};
use crate::store::{Call, legal_hold};

/// Every column that refers to bytes in the artifact store: a table that is added with one belongs here.
const REFERENCES: [&str; 2] = ["artifacts", "files"];

/// No deletion begins later than this after the locks were taken: PostgreSQL ends a transaction that is idle for 10 s.
const MAX_DELETING: Duration = Duration::from_secs(5);

#[derive(sqlx::FromRow)]
struct HoldRow {
    id: i64,
    model: String,
    version: i64,
    placed_by: String,
    reason: String,
    place_time: i64,
    released_by: String,
    release_reason: String,
    release_time: Option<i64>,
}

impl HoldRow {
    fn into_hold(self) -> Hold {
        let Self { id, model, version, placed_by, reason, place_time, released_by, release_reason, release_time } =
            self;
        let released = |time| Signed { who: released_by, why: release_reason, time: Micros(time) };
        Hold {
            id,
            model: ModelName::stored(model),
            version: Some(version).filter(|version| *version > 0),
            placed: Signed { who: placed_by, why: reason, time: Micros(place_time) },
            released: release_time.map(released),
        }
    }
}

const HOLDS: &str =
    "SELECT id, model, version, placed_by, reason, place_time, released_by, release_reason, release_time
                     FROM holds WHERE ";

async fn hold(tx: &mut Connection, id: i64) -> Result<Option<Hold>> {
    let mut query = QueryBuilder::<Db>::new(HOLDS);
    query.push("id = ").push_bind(id);
    Ok(query.build_query_as::<HoldRow>().fetch_optional(&mut *tx).await?.map(HoldRow::into_hold))
}

/// Adds ` (column IN (…))` with these values.
fn push_among(query: &mut QueryBuilder<Db>, candidates: &[Sha256Hex]) {
    let mut list = query.push("sha256 IN (").separated(", ");
    for candidate in candidates {
        list.push_bind(candidate.as_str().to_owned());
    }
    query.push(")");
}

#[async_trait]
impl Keeping for Tables {
    async fn lease(&self, sha256: &Sha256Hex, until: Micros) -> Result<()> {
        let mut tx = self.begin_write().await?;
        query(
            "INSERT INTO leases (sha256, until) VALUES ($1, $2)
             ON CONFLICT (sha256) DO UPDATE SET until =
                 CASE WHEN excluded.until > leases.until THEN excluded.until ELSE leases.until END",
        )
        .bind(sha256.as_str())
        .bind(until.0)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn sweep(
        &self,
        candidates: &[Sha256Hex],
        now: Micros,
        retention: i64,
        store: Option<&dyn ArtifactStore>,
    ) -> Result<Vec<Sha256Hex>> {
        let mut write = self.write(&Call { now, ..Call::now() }).await?;
        // Locks the leases, those that are not there too: who wants one of them now waits until this is committed.
        let mut query = QueryBuilder::<Db>::new("INSERT INTO leases (sha256, until) ");
        query.push_values(candidates, |mut row, candidate| {
            row.push_bind(candidate.as_str().to_owned()).push_bind(0_i64);
        });
        query.push(" ON CONFLICT (sha256) DO UPDATE SET until = leases.until RETURNING sha256, until");
        let leases: Vec<(String, i64)> = query.build_query_as().fetch_all(&mut *write.tx).await?;
        let mut kept: BTreeSet<String> =
            leases.into_iter().filter(|(_, until)| *until > now.0).map(|(sha256, _)| sha256).collect();

        let mut query = QueryBuilder::<Db>::new("SELECT sha256 FROM tombstones WHERE time > ");
        query.push_bind(now.0.saturating_sub(retention)).push(" AND ");
        push_among(&mut query, candidates);
        for table in REFERENCES {
            query.push(" UNION SELECT sha256 FROM ").push(table).push(" WHERE ");
            push_among(&mut query, candidates);
        }
        kept.extend(query.build_query_scalar::<String>().fetch_all(&mut *write.tx).await?);

        let garbage: Vec<_> =
            candidates.iter().filter(|candidate| !kept.contains(candidate.as_str())).cloned().collect();
        let Some(store) = store.filter(|_| !garbage.is_empty()) else { return Ok(garbage) };
        store.remove(&garbage, Instant::now() + MAX_DELETING).await?;
        let mut query = QueryBuilder::<Db>::new("DELETE FROM leases WHERE until = 0 AND ");
        push_among(&mut query, candidates);
        query.build().execute(&mut *write.tx).await?;
        let hashes: Vec<&str> = garbage.iter().map(Sha256Hex::as_str).collect();
        write.audit("artifacts".to_owned(), Change::removed("artifacts.collect", json!({"sha256": hashes}))).await?;
        write.commit(garbage).await
    }

    async fn forget(&self, now: Micros, retention: i64) -> Result<()> {
        let mut write = self.write(&Call { now, ..Call::now() }).await?;
        query("DELETE FROM leases WHERE until <= $1").bind(now.0).execute(&mut *write.tx).await?;
        query("DELETE FROM tombstones WHERE time <= $1")
            .bind(now.0.saturating_sub(retention))
            .execute(&mut *write.tx)
            .await?;
        write.commit(()).await
    }

    async fn place_hold(&self, call: &Call, draft: &HoldDraft) -> Result<Hold> {
        let mut write = match self.begin("place_hold", call, draft).await? {
            Begun::Before(answer) => return Ok(answer),
            Begun::Now(write) => write,
        };
        let HoldDraft { model, version, who, why } = draft;
        let kind = match version {
            None => {
                model_named(&mut write.tx, model).await?;
                EventKind::ModelUpdated
            }
            Some(number) => {
                version_numbered(&mut write.tx, &VersionId { model: model.clone(), number: *number }).await?;
                EventKind::VersionUpdated
            }
        };
        let id: i64 = query_scalar(
            "INSERT INTO holds (id, model, version, placed_by, reason, place_time)
             VALUES ((SELECT COALESCE(MAX(id), 0) + 1 FROM holds), $1, $2, $3, $4, $5) RETURNING id",
        )
        .bind(model.as_str())
        .bind(version.unwrap_or(0))
        .bind(who)
        .bind(why)
        .bind(call.now.0)
        .fetch_one(&mut *write.tx)
        .await?;
        let placed = Change::made("hold.place", json!({"who": who, "why": why, "hold": id}));
        write.record(Event { version: version.unwrap_or(0), ..event(kind, model) }, placed).await?;
        let placed = hold(&mut write.tx, id).await?.ok_or_else(|| Error::NotFound(Entity::Hold(id)))?;
        write.commit(placed).await
    }

    async fn release_hold(&self, call: &Call, id: i64, who: &str, why: &str) -> Result<Hold> {
        let mut write = match self.begin("release_hold", call, &(id, who, why)).await? {
            Begun::Before(answer) => return Ok(answer),
            Begun::Now(write) => write,
        };
        let before = hold(&mut write.tx, id).await?.ok_or_else(|| Error::NotFound(Entity::Hold(id)))?;
        if let Some(Signed { who, .. }) = before.released {
            let message = format!("hold {id} was released before, by {who}");
            return Err(Error::Precondition { reason: "HOLD_RELEASED", message });
        }
        query("UPDATE holds SET released_by = $1, release_reason = $2, release_time = $3 WHERE id = $4")
            .bind(who)
            .bind(why)
            .bind(call.now.0)
            .bind(id)
            .execute(&mut *write.tx)
            .await?;
        let kind = if before.version.is_none() { EventKind::ModelUpdated } else { EventKind::VersionUpdated };
        let placed = json!({"who": before.placed.who, "why": before.placed.why, "hold": id});
        let released = Change::changed("hold.release", placed, json!({"who": who, "why": why, "hold": id}));
        write.record(Event { version: before.version.unwrap_or(0), ..event(kind, &before.model) }, released).await?;
        let released = hold(&mut write.tx, id).await?.ok_or_else(|| Error::NotFound(Entity::Hold(id)))?;
        write.commit(released).await
    }

    async fn holds(&self, model: &ModelName, limit: u32) -> Result<Vec<Hold>> {
        let mut query = QueryBuilder::<Db>::new(HOLDS);
        query.push("model = ").push_bind(model.as_str()).push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(limit));
        let rows: Vec<HoldRow> = query.build_query_as().fetch_all(self.reader()).await?;
        Ok(rows.into_iter().map(HoldRow::into_hold).collect())
    }

    async fn must_be_free(&self, version: &VersionId) -> Result<()> {
        let held: Option<i64> =
            query_as("SELECT id FROM holds WHERE model = $1 AND version IN (0, $2) AND release_time IS NULL LIMIT 1")
                .bind(version.model.as_str())
                .bind(version.number)
                .fetch_optional(self.reader())
                .await?
                .map(|(id,): (i64,)| id);
        held.map_or(Ok(()), |_| Err(legal_hold()))
    }
}
