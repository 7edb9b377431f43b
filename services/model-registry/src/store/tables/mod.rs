//! The queries. SQLite and PostgreSQL both take them as they stand; this file is compiled once for each.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::{Pool, Transaction, query, query_as, query_scalar};

use self::reading::{find_model, model, models, referenced, select_models, select_versions, version, versions};
use super::{BEGIN_READ, BEGIN_WRITE, Db, GROUPS, LOCK_EXPERIMENTS, LOCK_RUNS};
use crate::error::{Entity, Error, Result};
use crate::model::{
    self, AliasMove, Artifact, Event, EventKind, Micros, Model, ModelDraft, TagChange, Version, VersionDraft,
};
use crate::names::{ModelName, Reference, VersionId};
use crate::store::rows::{EventRow, from_json, to_json, to_word};
use crate::store::{Call, IDS_AT_ONCE, REMEMBER_REQUESTS_MICROS, ROWS_AT_ONCE, Store, fingerprint};

#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod experiments;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod files;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod logged_models;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod logging;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod reading;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod registered;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod runs;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod searching;

pub(super) type Connection = <Db as sqlx::Database>::Connection;

/// The registry in the tables of `migrations/`.
pub struct Tables {
    writer: Pool<Db>,
    reader: Pool<Db>,
    logging: logging::Logging,
}

/// A write under way, alone: nothing has happened until `commit` returns.
pub(super) struct Write {
    pub(super) tx: Transaction<'static, Db>,
    now: Micros,
    /// Under which id the answer is remembered, and the fingerprint of the call.
    request: Option<(String, String)>,
}

enum Begun<T> {
    /// The same call was answered before.
    Before(T),
    Now(Write),
}

impl Tables {
    pub(super) fn new(writer: Pool<Db>, reader: Pool<Db>) -> Self {
        let logging = logging::Logging::start(&writer);
        Self { writer, reader, logging }
    }

    pub(super) async fn read(&self) -> Result<Transaction<'static, Db>> {
        Ok(self.reader.begin_with(BEGIN_READ).await?)
    }

    pub(super) fn reader(&self) -> &Pool<Db> {
        &self.reader
    }

    /// Begins a write of what the log does not tell of: others may be under way.
    pub(super) async fn begin_write(&self) -> Result<Transaction<'static, Db>> {
        Ok(self.writer.begin_with(BEGIN_WRITE).await?)
    }

    /// Begins a write and waits until no other is under way.
    pub(super) async fn write(&self, now: Micros) -> Result<Write> {
        let mut tx = self.begin_write().await?;
        query("UPDATE log SET sequence = sequence WHERE id = 1").execute(&mut *tx).await?;
        Ok(Write { tx, now, request: None })
    }

    /// Begins a write unless the call's request id has been answered before.
    async fn begin<T: DeserializeOwned>(
        &self,
        method: &str,
        call: &Call,
        content: &impl Serialize,
    ) -> Result<Begun<T>> {
        let mut write = self.write(call.now).await?;
        let Some(id) = &call.request_id else { return Ok(Begun::Now(write)) };
        let fingerprint = fingerprint(method, content)?;
        let before: Option<(String, String)> = query_as("SELECT fingerprint, answer FROM requests WHERE id = $1")
            .bind(id)
            .fetch_optional(&mut *write.tx)
            .await?;
        match before {
            Some((same, answer)) if same == fingerprint => Ok(Begun::Before(from_json(&answer)?)),
            Some(_) => Err(Error::RequestIdReused(id.clone())),
            None => {
                write.request = Some((id.clone(), fingerprint));
                Ok(Begun::Now(write))
            }
        }
    }
}

impl Write {
    /// Writes down what happened, and marks the model and the versions it happened to as changed.
    pub(super) async fn record(&mut self, event: Event) -> Result<()> {
        let Event { sequence: _, time: _, kind, model, version, alias, previous_version, digest } = event;
        let sequence: i64 = query_scalar("UPDATE log SET sequence = sequence + 1 WHERE id = 1 RETURNING sequence")
            .fetch_one(&mut *self.tx)
            .await?;
        query(
            "INSERT INTO events (sequence, time, kind, model, version, alias, previous_version, digest)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(sequence)
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
        .bind(sequence)
        .bind(self.now.0)
        .bind(model.as_str())
        .bind(touches)
        .execute(&mut *self.tx)
        .await?;
        query("UPDATE versions SET revision = $1, update_time = $2 WHERE model = $3 AND version IN ($4, $5)")
            .bind(sequence)
            .bind(self.now.0)
            .bind(model.as_str())
            .bind(version)
            .bind(previous_version)
            .execute(&mut *self.tx)
            .await?;
        Ok(())
    }

    /// Gives a version its digest.
    async fn finalize(&mut self, of: &VersionId) -> Result<()> {
        let digest = model::digest(&version(&mut self.tx, of).await?.artifacts);
        query("UPDATE versions SET digest = $1 WHERE model = $2 AND version = $3")
            .bind(&digest)
            .bind(of.model.as_str())
            .bind(of.number)
            .execute(&mut *self.tx)
            .await?;
        self.record(Event { version: of.number, digest, ..event(EventKind::VersionFinalized, &of.model) }).await
    }

    /// Makes it all happen, and remembers the answer where the call has an id.
    pub(super) async fn commit<T: Serialize>(mut self, answer: T) -> Result<T> {
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
        self.tx.commit().await?;
        Ok(answer)
    }
}

/// An event about a model, to be filled in further.
pub(super) fn event(kind: EventKind, model: &ModelName) -> Event {
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

#[async_trait]
impl Store for Tables {
    async fn create_model(&self, call: &Call, draft: &ModelDraft) -> Result<Model> {
        let mut write = match self.begin("create_model", call, draft).await? {
            Begun::Before(answer) => return Ok(answer),
            Begun::Now(write) => write,
        };
        if find_model(&mut write.tx, &draft.name).await?.is_some() {
            return Err(Error::ModelExists(draft.name.clone()));
        }
        query("INSERT INTO models (name, description, create_time, update_time, revision) VALUES ($1, $2, $3, $3, 0)")
            .bind(draft.name.as_str())
            .bind(&draft.description)
            .bind(call.now.0)
            .execute(&mut *write.tx)
            .await?;
        insert_tags(&mut write.tx, &draft.name, 0, &draft.tags).await?;
        write.record(event(EventKind::ModelCreated, &draft.name)).await?;
        let model = model(&mut write.tx, &draft.name).await?;
        write.commit(model).await
    }

    async fn model(&self, name: &ModelName) -> Result<Model> {
        model(&mut *self.reader.acquire().await?, name).await
    }

    async fn models(&self, after: Option<&ModelName>, limit: u32) -> Result<Vec<Model>> {
        let mut query = select_models();
        query.push("models AS m WHERE m.name > ").push_bind(after.map_or("", ModelName::as_str).to_owned());
        query.push(" ORDER BY m.name LIMIT ").push_bind(i64::from(limit));
        models(&mut *self.reader.acquire().await?, query).await
    }

    async fn delete_model(&self, call: &Call, name: &ModelName, force: bool) -> Result<()> {
        let mut write = match self.begin("delete_model", call, &(name, force)).await? {
            Begun::Before(()) => return Ok(()),
            Begun::Now(write) => write,
        };
        let model = model(&mut write.tx, name).await?;
        if let (Some((alias, version)), false) = (model.aliases.first_key_value(), force) {
            let message =
                format!("alias `{name}@{alias}` points at version {version}; delete it first, or set `force`");
            return Err(Error::Precondition { reason: "MODEL_IN_USE", message });
        }
        query("DELETE FROM aliases WHERE model = $1").bind(name.as_str()).execute(&mut *write.tx).await?;
        query("DELETE FROM models WHERE name = $1").bind(name.as_str()).execute(&mut *write.tx).await?;
        write.record(event(EventKind::ModelDeleted, name)).await?;
        write.commit(()).await
    }

    async fn add_version(&self, call: &Call, draft: &VersionDraft) -> Result<Version> {
        let mut write = match self.begin("add_version", call, draft).await? {
            Begun::Before(answer) => return Ok(answer),
            Begun::Now(write) => write,
        };
        model(&mut write.tx, &draft.model).await?;
        let number: i64 = query_scalar(
            "INSERT INTO numbers (model, next_version) VALUES ($1, 2)
             ON CONFLICT (model) DO UPDATE SET next_version = numbers.next_version + 1 RETURNING next_version - 1",
        )
        .bind(draft.model.as_str())
        .fetch_one(&mut *write.tx)
        .await?;
        let id = VersionId { model: draft.model.clone(), number };
        let origin = draft.origin.clone().unwrap_or_default();
        query(
            "INSERT INTO versions (model, version, description, task, signature, parameters, create_time, update_time, revision,
                                   source, run, run_link, logged_model)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7, 0, $8, $9, $10, $11)",
        )
        .bind(id.model.as_str())
        .bind(number)
        .bind(&draft.description)
        .bind(to_word(&draft.task)?)
        .bind(draft.signature.as_ref().map(to_json).transpose()?)
        .bind(to_json(&draft.parameters)?)
        .bind(call.now.0)
        .bind(&origin.source)
        .bind(&origin.run)
        .bind(&origin.run_link)
        .bind(&origin.logged_model)
        .execute(&mut *write.tx)
        .await?;
        insert_tags(&mut write.tx, &id.model, number, &draft.tags).await?;
        write.record(Event { version: number, ..event(EventKind::VersionCreated, &id.model) }).await?;
        if draft.origin.is_some() {
            files::take(&mut write.tx, &id, &origin.source).await?;
            write.finalize(&id).await?;
        }
        let version = version(&mut write.tx, &id).await?;
        write.commit(version).await
    }

    async fn add_artifact(&self, now: Micros, of: &VersionId, artifact: &Artifact) -> Result<()> {
        let mut write = self.write(now).await?;
        version(&mut write.tx, of).await?.must_accept(artifact)?;
        query(
            "INSERT INTO artifacts (model, version, path, size, sha256) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (model, version, path) DO UPDATE SET size = excluded.size, sha256 = excluded.sha256",
        )
        .bind(of.model.as_str())
        .bind(of.number)
        .bind(artifact.path.as_str())
        .bind(i64::try_from(artifact.size).map_err(anyhow::Error::from)?)
        .bind(artifact.sha256.as_str())
        .execute(&mut *write.tx)
        .await?;
        write.record(Event { version: of.number, ..event(EventKind::VersionUpdated, &of.model) }).await?;
        write.commit(()).await
    }

    async fn finalize(&self, call: &Call, of: &VersionId) -> Result<Version> {
        let mut write = match self.begin("finalize", call, of).await? {
            Begun::Before(answer) => return Ok(answer),
            Begun::Now(write) => write,
        };
        let pending = version(&mut write.tx, of).await?;
        pending.must_be_pending()?;
        if pending.artifacts.is_empty() {
            let message = format!("version `{of}` has no files; upload some before finalizing it");
            return Err(Error::Precondition { reason: "VERSION_EMPTY", message });
        }
        write.finalize(of).await?;
        let version = version(&mut write.tx, of).await?;
        write.commit(version).await
    }

    async fn version(&self, reference: &Reference) -> Result<Version> {
        referenced(&mut *self.reader.acquire().await?, reference).await
    }

    async fn versions(&self, of: &ModelName, below: Option<i64>, limit: u32) -> Result<Vec<Version>> {
        let mut tx = self.read().await?;
        let mut query = select_versions();
        query.push("versions AS v WHERE v.model = ").push_bind(of.as_str().to_owned());
        query.push(" AND v.version < ").push_bind(below.unwrap_or(i64::MAX));
        query.push(" ORDER BY v.version DESC LIMIT ").push_bind(i64::from(limit));
        let found = versions(&mut tx, query).await?;
        if found.is_empty() {
            model(&mut tx, of).await?;
        }
        Ok(found)
    }

    async fn delete_version(&self, call: &Call, of: &VersionId) -> Result<()> {
        let mut write = match self.begin("delete_version", call, of).await? {
            Begun::Before(()) => return Ok(()),
            Begun::Now(write) => write,
        };
        let version = version(&mut write.tx, of).await?;
        if let Some(alias) = version.aliases.first() {
            let message =
                format!("alias `{}@{alias}` points at version {}; move or delete it first", of.model, of.number);
            return Err(Error::Precondition { reason: "VERSION_IN_USE", message });
        }
        for sql in [
            "DELETE FROM tags WHERE model = $1 AND version = $2",
            "DELETE FROM versions WHERE model = $1 AND version = $2",
        ] {
            query(sql).bind(of.model.as_str()).bind(of.number).execute(&mut *write.tx).await?;
        }
        write.record(Event { version: of.number, ..event(EventKind::VersionDeleted, &of.model) }).await?;
        write.commit(()).await
    }

    async fn move_alias(&self, call: &Call, to: &AliasMove) -> Result<Model> {
        let mut write = match self.begin("move_alias", call, to).await? {
            Begun::Before(answer) => return Ok(answer),
            Begun::Now(write) => write,
        };
        let before = model(&mut write.tx, &to.model).await?;
        let mut digest = String::new();
        if let Some(number) = to.to {
            let target = version(&mut write.tx, &VersionId { model: to.model.clone(), number }).await?;
            digest = target.digest.ok_or_else(|| {
                let message = format!("version `{}` is PENDING; finalize it before an alias points at it", target.id);
                Error::Precondition { reason: "VERSION_PENDING", message }
            })?;
        }
        let current = before.aliases.get(to.alias.as_str()).copied();
        if let Some(expected) = to.expected
            && expected != current.unwrap_or(0)
        {
            let place = |number: i64| if number == 0 { "nowhere".to_owned() } else { format!("at version {number}") };
            let name = format!("{}@{}", to.model, to.alias);
            let (is, should) = (place(current.unwrap_or(0)), place(expected));
            let message = format!("alias `{name}` points {is}, not {should} as expected");
            return Err(Error::Conflict { reason: "ALIAS_CONFLICT", message });
        }
        if current == to.to {
            if current.is_none() {
                let alias = to.alias.clone();
                return Err(Error::NotFound(Entity::Alias { model: to.model.clone(), alias }));
            }
            return write.commit(before).await;
        }
        let kind = match to.to {
            Some(number) => {
                query(
                    "INSERT INTO aliases (model, alias, version) VALUES ($1, $2, $3)
                     ON CONFLICT (model, alias) DO UPDATE SET version = excluded.version",
                )
                .bind(to.model.as_str())
                .bind(to.alias.as_str())
                .bind(number)
                .execute(&mut *write.tx)
                .await?;
                EventKind::AliasSet
            }
            None => {
                query("DELETE FROM aliases WHERE model = $1 AND alias = $2")
                    .bind(to.model.as_str())
                    .bind(to.alias.as_str())
                    .execute(&mut *write.tx)
                    .await?;
                EventKind::AliasDeleted
            }
        };
        let moved = Event {
            version: to.to.unwrap_or(0),
            alias: to.alias.to_string(),
            previous_version: current.unwrap_or(0),
            digest,
            ..event(kind, &to.model)
        };
        write.record(moved).await?;
        let after = model(&mut write.tx, &to.model).await?;
        write.commit(after).await
    }

    async fn change_tag(&self, call: &Call, change: &TagChange) -> Result<()> {
        let mut write = match self.begin("change_tag", call, change).await? {
            Begun::Before(()) => return Ok(()),
            Begun::Now(write) => write,
        };
        let TagChange { model: name, version: number, key, value } = change;
        let (of, tags) = match number {
            Some(number) => {
                let version = version(&mut write.tx, &VersionId { model: name.clone(), number: *number }).await?;
                (version.id.to_string(), version.tags)
            }
            None => (name.to_string(), model(&mut write.tx, name).await?.tags),
        };
        change.must_fit(&tags)?;
        let number = number.unwrap_or(0);
        match (value, tags.get(key)) {
            (None, None) => return Err(Error::NotFound(Entity::Tag { of, key: key.clone() })),
            (Some(value), Some(same)) if value == same => return write.commit(()).await,
            (None, Some(_)) => {
                query("DELETE FROM tags WHERE model = $1 AND version = $2 AND key = $3")
                    .bind(name.as_str())
                    .bind(number)
                    .bind(key)
                    .execute(&mut *write.tx)
                    .await?;
            }
            (Some(value), _) => {
                let tag = BTreeMap::from([(key.clone(), value.clone())]);
                insert_tags(&mut write.tx, name, number, &tag).await?;
            }
        }
        let kind = if number == 0 { EventKind::ModelUpdated } else { EventKind::VersionUpdated };
        write.record(Event { version: number, ..event(kind, name) }).await?;
        write.commit(()).await
    }

    async fn events(&self, after: i64, limit: u32) -> Result<Vec<Event>> {
        let rows: Vec<EventRow> = query_as(
            "SELECT sequence, time, kind, model, version, alias, previous_version, digest
             FROM events WHERE sequence > $1 ORDER BY sequence LIMIT $2",
        )
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&self.reader)
        .await?;
        rows.into_iter().map(EventRow::into_event).collect()
    }

    async fn last_sequence(&self) -> Result<i64> {
        Ok(query_scalar("SELECT sequence FROM log WHERE id = 1").fetch_one(&self.reader).await?)
    }
}

async fn insert_tags(
    tx: &mut Connection,
    model: &ModelName,
    version: i64,
    tags: &BTreeMap<String, String>,
) -> Result<()> {
    for (key, value) in tags {
        query(
            "INSERT INTO tags (model, version, key, value) VALUES ($1, $2, $3, $4)
             ON CONFLICT (model, version, key) DO UPDATE SET value = excluded.value",
        )
        .bind(model.as_str())
        .bind(version)
        .bind(key)
        .bind(value)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}
