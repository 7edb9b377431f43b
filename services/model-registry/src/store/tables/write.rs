//! Writes of what the log tells of: one after the other, each with its event, its entry in the audit log and its answer.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::{Transaction, query, query_as};

use super::reading::version;
use super::{Db, Tables};
use crate::audit::{Anchor, Change, Entry, alias_resource, model_resource, version_resource};
use crate::error::{Error, Result};
use crate::model::{self, Event, EventKind, Micros};
use crate::names::{ModelName, VersionId};
use crate::store::rows::{from_json, to_json, to_word};
use crate::store::{Call, REMEMBER_REQUESTS_MICROS, fingerprint};

/// A write under way, alone: nothing has happened until `commit` returns.
pub(in crate::store) struct Write {
    pub(in crate::store) tx: Transaction<'static, Db>,
    pub(super) now: Micros,
    pub(super) caller: String,
    validate_only: bool,
    /// The sequence of the newest event.
    pub(super) sequence: i64,
    /// The end of the audit log, and its time.
    end: (Anchor, Micros),
    /// Under which id the answer is remembered, and the fingerprint of the call.
    request: Option<(String, String)>,
}

pub(super) enum Begun<T> {
    /// The same call was answered before.
    Before(T),
    Now(Box<Write>),
}

impl Tables {
    /// Begins a write and waits until no other is under way.
    pub(in crate::store) async fn write(&self, call: &Call) -> Result<Write> {
        let mut tx = self.begin_write().await?;
        let (sequence, last, time, hash): (i64, i64, i64, String) = query_as(
            "UPDATE log SET sequence = sequence WHERE id = 1 RETURNING sequence, audit_sequence, audit_time, audit_hash",
        )
        .fetch_one(&mut *tx)
        .await?;
        let Call { request_id: _, now, caller, validate_only, etag: _ } = call;
        Ok(Write {
            tx,
            now: *now,
            caller: caller.clone(),
            validate_only: *validate_only,
            sequence,
            end: (Anchor { sequence: last, hash }, Micros(time)),
            request: None,
        })
    }

    /// Begins a write unless the call's request id has been answered before.
    pub(super) async fn begin<T: DeserializeOwned>(
        &self,
        method: &str,
        call: &Call,
        content: &impl Serialize,
    ) -> Result<Begun<T>> {
        let mut write = self.write(call).await?;
        let Some(id) = &call.request_id else { return Ok(Begun::Now(Box::new(write))) };
        let fingerprint = fingerprint(&call.caller, method, content)?;
        let before: Option<(String, String)> = query_as("SELECT fingerprint, answer FROM requests WHERE id = $1")
            .bind(id)
            .fetch_optional(&mut *write.tx)
            .await?;
        match before {
            Some((same, answer)) if same == fingerprint => Ok(Begun::Before(from_json(&answer)?)),
            Some(_) => Err(Error::RequestIdReused(id.clone())),
            None => {
                write.request = Some((id.clone(), fingerprint));
                Ok(Begun::Now(Box::new(write)))
            }
        }
    }
}

impl Write {
    /// Writes down what happened, for those who watch and for those who audit.
    pub(in crate::store) async fn record(&mut self, event: Event, change: Change) -> Result<()> {
        let resource = match (event.alias.is_empty(), event.version) {
            (false, _) => alias_resource(&event.model, &event.alias),
            (true, 0) => model_resource(&event.model),
            (true, number) => version_resource(&event.model, number),
        };
        self.audit(resource, change).await?;
        self.tell(event).await
    }

    /// Adds an event to the log, and marks the model and the versions it is about as changed.
    pub(super) async fn tell(&mut self, event: Event) -> Result<()> {
        let Event { sequence: _, time: _, kind, model, version, alias, previous_version, digest } = event;
        self.sequence += 1;
        query(
            "INSERT INTO events (sequence, time, kind, model, version, alias, previous_version, digest)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(self.sequence)
        .bind(self.now.0)
        .bind(to_word(&kind)?)
        .bind(model.as_str())
        .bind(version)
        .bind(alias)
        .bind(previous_version)
        .bind(digest)
        .execute(&mut *self.tx)
        .await?;
        // What is said of one version does not make its model newer, to MLflow's clients.
        let touches = kind != EventKind::VersionUpdated;
        query(
            "UPDATE models SET revision = $1, update_time = CASE WHEN $4 THEN $2 ELSE update_time END WHERE name = $3",
        )
        .bind(self.sequence)
        .bind(self.now.0)
        .bind(model.as_str())
        .bind(touches)
        .execute(&mut *self.tx)
        .await?;
        query("UPDATE versions SET revision = $1, update_time = $2 WHERE model = $3 AND version IN ($4, $5)")
            .bind(self.sequence)
            .bind(self.now.0)
            .bind(model.as_str())
            .bind(version)
            .bind(previous_version)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Adds an entry to the audit log.
    pub(in crate::store) async fn audit(&mut self, resource: String, change: Change) -> Result<()> {
        let Change { action, before, after } = change;
        let text = |state: Option<serde_json::Value>| state.map(|state| state.to_string());
        let (last, time) = &self.end;
        let mut entry = Entry {
            sequence: last.sequence + 1,
            // A clock that was set back does not make the log run backwards.
            time: self.now.max(*time),
            caller: self.caller.clone(),
            action: action.to_owned(),
            resource,
            before: text(before),
            after: text(after),
            hash: String::new(),
        };
        entry.hash = entry.expected_hash(&last.hash);
        query(
            "INSERT INTO audit (sequence, time, caller, action, resource, before, after, hash)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(entry.sequence)
        .bind(entry.time.0)
        .bind(&entry.caller)
        .bind(&entry.action)
        .bind(&entry.resource)
        .bind(&entry.before)
        .bind(&entry.after)
        .bind(&entry.hash)
        .execute(&mut *self.tx)
        .await?;
        self.end = (Anchor { sequence: entry.sequence, hash: entry.hash }, entry.time);
        Ok(())
    }

    /// Gives a version its digest.
    pub(super) async fn finalize(&mut self, of: &VersionId) -> Result<()> {
        let artifacts = version(&mut self.tx, of).await?.artifacts;
        let digest = model::digest(&artifacts);
        query("UPDATE versions SET digest = $1 WHERE model = $2 AND version = $3")
            .bind(&digest)
            .bind(of.model.as_str())
            .bind(of.number)
            .execute(&mut *self.tx)
            .await?;
        let after = serde_json::json!({"digest": digest, "files": artifacts.len()});
        let finalized = Event { version: of.number, digest, ..event(EventKind::VersionFinalized, &of.model) };
        self.record(finalized, Change::made("version.finalize", after)).await
    }

    /// Makes it all happen, and remembers the answer where the call has an id. A call that only asks whether it would be
    /// refused changes nothing.
    pub(in crate::store) async fn commit<T: Serialize>(mut self, answer: T) -> Result<T> {
        if self.validate_only {
            self.tx.rollback().await?;
            return Ok(answer);
        }
        if let Some((id, fingerprint)) = self.request.take() {
            query("DELETE FROM requests WHERE time < $1")
                .bind(self.now.0 - REMEMBER_REQUESTS_MICROS)
                .execute(&mut *self.tx)
                .await?;
            query("INSERT INTO requests (id, fingerprint, answer, time) VALUES ($1, $2, $3, $4)")
                .bind(id)
                .bind(fingerprint)
                .bind(to_json(&answer)?)
                .bind(self.now.0)
                .execute(&mut *self.tx)
                .await?;
        }
        let (end, time) = self.end;
        query("UPDATE log SET sequence = $1, audit_sequence = $2, audit_time = $3, audit_hash = $4 WHERE id = 1")
            .bind(self.sequence)
            .bind(end.sequence)
            .bind(time.0)
            .bind(end.hash)
            .execute(&mut *self.tx)
            .await?;
        self.tx.commit().await?;
        Ok(answer)
    }
}

/// An event about a model, to be filled in further.
pub(in crate::store) fn event(kind: EventKind, model: &ModelName) -> Event {
    Event {
        sequence: 0,
        time: Micros(0),
        kind,
        model: model.clone(),
        version: 0,
        alias: String::new(),
        previous_version: 0,
        digest: String::new(),
    }
}
