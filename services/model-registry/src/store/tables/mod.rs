//! The queries. SQLite and PostgreSQL both take them as they stand; this file is compiled once for each.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::json;
use sqlx::{Pool, Transaction, query, query_as, query_scalar};

use self::adding::insert_artifacts;
use self::reading::{find_model, model, models, referenced, select_models, select_versions, version, versions};
use self::write::{Begun, Write, event};
use super::{
    BEGIN_READ, BEGIN_WRITE, Db, GROUPS, IF_NEW, LOCK_EXPERIMENTS, LOCK_RUNS, Lists, MATCHES, SPAN_ATTRIBUTES,
    VALUES_COME_ALONG, WAIT_LITTLE, insert_metrics, run_reader,
};
use crate::audit::Change;
use crate::error::{Entity, Error, Result};
use crate::model::{
    AliasMove, Artifact, Event, EventKind, Model, ModelDraft, TagChange, Update, Updated, Version, VersionDraft,
};
use crate::names::{ModelName, Reference, VersionId};
use crate::store::rows::EventRow;
use crate::store::{Call, IDS_AT_ONCE, ROWS_AT_ONCE, Store};
use crate::webhooks::News;

#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod adding;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod assessments;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod audit;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod evaluation;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod experiments;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod files;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod import;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod keeping;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod lineage;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod logged_models;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod logging;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod protection;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod reading;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod registered;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod runs;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod scorers;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod searching;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod spans;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod traces;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod webhooks;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod whole_runs;
#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
mod write;

pub(super) type Connection = <Db as sqlx::Database>::Connection;

/// The registry in the tables of `migrations/`.
pub struct Tables {
    writer: Pool<Db>,
    reader: Pool<Db>,
    logging: logging::Logging,
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
        write.add_model(draft).await?;
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
        call.must_expect(name, model.revision)?;
        if let (Some((alias, version)), false) = (model.aliases.first_key_value(), force) {
            let message =
                format!("alias `{name}@{alias}` points at version {version}; delete it first, or set `force`");
            return Err(Error::Precondition { reason: "MODEL_IN_USE", message });
        }
        write.must_not_be_protected(name, None).await?;
        for alias in model.aliases.keys() {
            write.remove_alias(name, alias).await?;
        }
        query("DELETE FROM models WHERE name = $1").bind(name.as_str()).execute(&mut *write.tx).await?;
        let was = json!({"description": model.description, "tags": model.tags, "latest_version": model.latest_version});
        write.record(event(EventKind::ModelDeleted, name), Change::removed("model.delete", was)).await?;
        write.commit(()).await
    }

    async fn add_version(&self, call: &Call, draft: &VersionDraft) -> Result<Version> {
        let mut write = match self.begin("add_version", call, draft).await? {
            Begun::Before(answer) => return Ok(answer),
            Begun::Now(write) => write,
        };
        model(&mut write.tx, &draft.model).await?;
        let id = write.add_version(draft).await?;
        if let Some(origin) = &draft.origin {
            files::take(&mut write.tx, &id, &origin.source).await?;
            write.finalize(&id).await?;
        }
        let version = version(&mut write.tx, &id).await?;
        write.commit(version).await
    }

    async fn add_artifact(&self, call: &Call, of: &VersionId, artifact: &Artifact) -> Result<()> {
        let mut write = self.write(call).await?;
        let pending = version(&mut write.tx, of).await?;
        pending.must_accept(artifact)?;
        let before = pending.artifacts.into_iter().find(|other| other.path == artifact.path);
        insert_artifacts(&mut write.tx, of, std::slice::from_ref(artifact)).await?;
        let put = Change::changed("version.put_artifact", before, artifact);
        write.record(Event { version: of.number, ..event(EventKind::VersionUpdated, &of.model) }, put).await?;
        write.commit(()).await
    }

    async fn finalize(&self, call: &Call, of: &VersionId) -> Result<Version> {
        let mut write = match self.begin("finalize", call, of).await? {
            Begun::Before(answer) => return Ok(answer),
            Begun::Now(write) => write,
        };
        let pending = version(&mut write.tx, of).await?;
        call.must_expect(of, pending.revision)?;
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

    async fn delete_version(&self, call: &Call, of: &VersionId, with_aliases: bool) -> Result<()> {
        let mut write = match self.begin("delete_version", call, &(of, with_aliases)).await? {
            Begun::Before(()) => return Ok(()),
            Begun::Now(write) => write,
        };
        let version = version(&mut write.tx, of).await?;
        call.must_expect(of, version.revision)?;
        if with_aliases {
            for alias in &version.aliases {
                write.remove_alias(&of.model, alias).await?;
            }
        } else if let Some(alias) = version.aliases.first() {
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
        let deleted = Change::removed("version.delete", version.outline());
        write.record(Event { version: of.number, ..event(EventKind::VersionDeleted, &of.model) }, deleted).await?;
        write.commit(()).await
    }

    async fn update(&self, call: &Call, update: &Update) -> Result<Updated> {
        let mut write = match self.begin("update", call, update).await? {
            Begun::Before(answer) => return Ok(answer),
            Begun::Now(write) => write,
        };
        let Update { model: name, version: number, description, tags } = update;
        let (was, old_tags, revision) = match number {
            Some(number) => {
                let version = version(&mut write.tx, &VersionId { model: name.clone(), number: *number }).await?;
                (version.description, version.tags, version.revision)
            }
            None => {
                let model = model(&mut write.tx, name).await?;
                (model.description, model.tags, model.revision)
            }
        };
        let (kind, action) = match number {
            Some(_) => (EventKind::VersionUpdated, "version.update"),
            None => (EventKind::ModelUpdated, "model.update"),
        };
        call.must_expect(name, revision)?;
        let number = number.unwrap_or(0);
        let (mut before, mut after) = (serde_json::Map::new(), serde_json::Map::new());
        if let Some(description) = description {
            let sql = match number {
                0 => "UPDATE models SET description = $1 WHERE name = $2 AND 0 = $3",
                _ => "UPDATE versions SET description = $1 WHERE model = $2 AND version = $3",
            };
            query(sql).bind(description).bind(name.as_str()).bind(number).execute(&mut *write.tx).await?;
            before.insert("description".to_owned(), was.into());
            after.insert("description".to_owned(), description.as_str().into());
        }
        if let Some(tags) = tags {
            query("DELETE FROM tags WHERE model = $1 AND version = $2")
                .bind(name.as_str())
                .bind(number)
                .execute(&mut *write.tx)
                .await?;
            insert_tags(&mut write.tx, name, number, tags).await?;
            before.insert("tags".to_owned(), json!(old_tags));
            after.insert("tags".to_owned(), json!(tags));
        }
        write.record(Event { version: number, ..event(kind, name) }, Change::changed(action, before, after)).await?;
        let updated = match number {
            0 => Updated::Model(model(&mut write.tx, name).await?),
            number => {
                let of = VersionId { model: name.clone(), number };
                Updated::Version(Box::new(version(&mut write.tx, &of).await?))
            }
        };
        write.commit(updated).await
    }

    async fn move_alias(&self, call: &Call, to: &AliasMove) -> Result<Model> {
        let mut write = match self.begin("move_alias", call, to).await? {
            Begun::Before(answer) => return Ok(answer),
            Begun::Now(write) => write,
        };
        let before = model(&mut write.tx, &to.model).await?;
        call.must_expect(&to.model, before.revision)?;
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
        write.must_be_allowed(call, to).await?;
        match to.to {
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
                let after = json!({"version": number, "digest": digest});
                let moved = Event {
                    version: number,
                    alias: to.alias.to_string(),
                    previous_version: current.unwrap_or(0),
                    digest,
                    ..event(EventKind::AliasSet, &to.model)
                };
                let was = current.map(|number| json!({"version": number}));
                write.record(moved, Change::changed("alias.set", was, after)).await?;
            }
            None => write.remove_alias(&to.model, to.alias.as_str()).await?,
        }
        write.announce(News::Alias(to)).await?;
        let after = model(&mut write.tx, &to.model).await?;
        write.commit(after).await
    }

    async fn change_tag(&self, call: &Call, change: &TagChange) -> Result<()> {
        let mut write = match self.begin("change_tag", call, change).await? {
            Begun::Before(()) => return Ok(()),
            Begun::Now(write) => write,
        };
        let TagChange { model: name, version: number, key, value } = change;
        let (of, tags, revision) = match number {
            Some(number) => {
                let version = version(&mut write.tx, &VersionId { model: name.clone(), number: *number }).await?;
                (version.id.to_string(), version.tags, version.revision)
            }
            None => {
                let model = model(&mut write.tx, name).await?;
                (name.to_string(), model.tags, model.revision)
            }
        };
        call.must_expect(&of, revision)?;
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
        let one = |value: Option<&String>| value.map(|value| json!({"tags": {key.as_str(): value}}));
        let changed = match value {
            Some(value) => Change::changed("tag.set", one(tags.get(key)), one(Some(value))),
            None => Change::removed("tag.delete", one(tags.get(key))),
        };
        write.record(Event { version: number, ..event(kind, name) }, changed).await?;
        write.announce(News::Tag(change)).await?;
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

impl Write {
    /// Removes an alias that is there, unless it is protected.
    async fn remove_alias(&mut self, model: &ModelName, alias: &str) -> Result<()> {
        self.must_not_be_protected(model, Some(alias)).await?;
        let was: Option<i64> = query_scalar("DELETE FROM aliases WHERE model = $1 AND alias = $2 RETURNING version")
            .bind(model.as_str())
            .bind(alias)
            .fetch_optional(&mut *self.tx)
            .await?;
        let removed = Event {
            alias: alias.to_owned(),
            previous_version: was.unwrap_or(0),
            ..event(EventKind::AliasDeleted, model)
        };
        self.record(removed, Change::removed("alias.delete", json!({"version": was}))).await
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
