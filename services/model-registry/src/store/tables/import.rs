//! What comes from another MLflow server, compiled once for each database.

use async_trait::async_trait;
use serde_json::json;
use sqlx::{QueryBuilder, query, query_scalar};

use super::adding::insert_artifacts;
use super::reading::{find_model, model as model_named, version as version_numbered};
use super::write::event;
use super::{Connection, Db, LOCK_EXPERIMENTS, ROWS_AT_ONCE, Tables, insert_tags, logged_models, runs};
use crate::audit::Change;
use crate::error::{Entity, Error, Result};
use crate::model::{AliasMove, Event, EventKind, Micros, Model, Version};
use crate::names::{AliasName, ModelName, VersionId};
use crate::store::Call;
use crate::store::rows::{kept, to_json, to_word};
use crate::tracking::import::{History, Imports};
use crate::tracking::{DEFAULT_EXPERIMENT, Experiment, Location, LoggedModel, PROXY, Run};

#[async_trait]
impl Imports for Tables {
    async fn import_experiment(&self, wanted: Option<i64>, experiment: &Experiment) -> Result<Option<i64>> {
        let Experiment { id: _, name, artifact_location: _, is_deleted, tags, create_time, update_time } = experiment;
        let mut tx = self.begin_write().await?;
        query(LOCK_EXPERIMENTS).execute(&mut *tx).await?;
        let (next, is_taken): (i64, i64) = sqlx::query_as(
            "SELECT COALESCE(MAX(id), 0) + 1, COALESCE(SUM(CASE WHEN id = $1 THEN 1 ELSE 0 END), 0) FROM experiments",
        )
        .bind(wanted)
        .fetch_one(&mut *tx)
        .await?;
        let makes_way = wanted == Some(DEFAULT_EXPERIMENT) && is_untouched(&mut tx).await?;
        let id = wanted.filter(|_| is_taken == 0 || makes_way).unwrap_or(next);
        let sql = if makes_way {
            "UPDATE experiments SET name = $2, artifact_location = $3, deleted = $4, create_time = $5, update_time = $6
             WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM experiments WHERE id <> $1 AND name = $2)"
        } else {
            "INSERT INTO experiments (id, name, artifact_location, deleted, create_time, update_time)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (name) DO NOTHING"
        };
        let placed = query(sql)
            .bind(id)
            .bind(name)
            .bind(Location::Below(PROXY.to_owned()).of(id))
            .bind(i64::from(*is_deleted))
            .bind(create_time.0)
            .bind(update_time.0)
            .execute(&mut *tx)
            .await?;
        if placed.rows_affected() == 0 {
            return Ok(None);
        }
        for some in tags.iter().collect::<Vec<_>>().chunks(ROWS_AT_ONCE) {
            let mut insert = QueryBuilder::<Db>::new("INSERT INTO experiment_tags (experiment, key, value) ");
            insert.push_values(some, |mut row, (key, value)| {
                row.push_bind(id).push_bind((*key).clone()).push_bind((*value).clone());
            });
            insert.build().execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(Some(id))
    }

    async fn import_run(&self, run: &Run, history: History<'_>) -> Result<bool> {
        let mut tx = self.begin_write().await?;
        let added = query(
            "INSERT INTO runs (id, experiment, name, user_id, status, start_time, end_time, artifact_uri, deleted)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO NOTHING",
        )
        .bind(&run.id)
        .bind(run.experiment)
        .bind(&run.name)
        .bind(&run.user_id)
        .bind(to_word(&run.status)?)
        .bind(run.start_time.0)
        .bind(run.end_time.map(|time| time.0))
        .bind(&run.artifact_uri)
        .bind(i64::from(run.is_deleted))
        .execute(&mut *tx)
        .await?;
        if added.rows_affected() == 0 {
            return Ok(false);
        }
        let pairs = |pairs: &std::collections::BTreeMap<String, String>| -> Vec<(String, String)> {
            pairs.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        for some in pairs(&run.params).chunks(ROWS_AT_ONCE) {
            runs::add_params(&mut tx, &run.id, some).await?;
        }
        for some in pairs(&run.tags).chunks(ROWS_AT_ONCE) {
            runs::set_tags(&mut tx, &run.id, some).await?;
        }
        for metrics in history {
            let metrics = metrics?;
            let of_run: Vec<_> = metrics.iter().map(|metric| (run.id.as_str(), metric)).collect();
            runs::add_metrics(&mut tx, &of_run, runs::History::Any).await?;
        }
        for dataset in &run.datasets {
            runs::add_dataset(&mut tx, run, dataset).await?;
        }
        runs::add_models(&mut tx, &run.id, &run.model_inputs, &run.model_outputs).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn import_logged_model(&self, model: &LoggedModel) -> Result<bool> {
        let mut tx = self.begin_write().await?;
        let added = query(
            "INSERT INTO logged_models (id, experiment, name, artifact_location, status, model_type, source_run, create_time,
                                        update_time)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO NOTHING",
        )
        .bind(&model.id)
        .bind(model.experiment)
        .bind(&model.name)
        .bind(&model.artifact_location)
        .bind(to_word(&model.status)?)
        .bind(&model.model_type)
        .bind(&model.source_run)
        .bind(model.create_time.0)
        .bind(model.update_time.0)
        .execute(&mut *tx)
        .await?;
        if added.rows_affected() == 0 {
            return Ok(false);
        }
        logged_models::set(&mut tx, "logged_model_params", &model.id, &model.params).await?;
        logged_models::set(&mut tx, "logged_model_tags", &model.id, &model.tags).await?;
        for some in model.metrics.chunks(ROWS_AT_ONCE) {
            let mut insert = QueryBuilder::<Db>::new(
                "INSERT INTO logged_model_metrics (model, run, key, timestamp, step, value, nan, dataset_name,
                                                   dataset_digest) ",
            );
            insert.push_values(some, |mut row, (run, metric)| {
                let (value, nan) = kept(metric.value);
                let (name, digest) = metric.dataset.clone().unwrap_or_default();
                row.push_bind(model.id.clone()).push_bind(run.clone()).push_bind(metric.key.clone());
                row.push_bind(metric.timestamp.0).push_bind(metric.step).push_bind(value).push_bind(nan);
                row.push_bind(name).push_bind(digest);
            });
            insert.push(" ON CONFLICT DO NOTHING");
            insert.build().execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    async fn import_model(&self, call: &Call, model: &Model) -> Result<bool> {
        let mut write = self.write(call).await?;
        if find_model(&mut write.tx, &model.name).await?.is_some() {
            return Ok(false);
        }
        if has_happened(&mut write.tx, EventKind::ModelDeleted, &model.name, 0).await? {
            let message = format!("model `{}` was here and was deleted or renamed; it is not brought back", model.name);
            return Err(Error::Precondition { reason: "MODEL_DELETED", message });
        }
        query("INSERT INTO models (name, description, create_time, update_time, revision) VALUES ($1, $2, $3, $3, 0)")
            .bind(model.name.as_str())
            .bind(&model.description)
            .bind(model.create_time.0)
            .execute(&mut *write.tx)
            .await?;
        insert_tags(&mut write.tx, &model.name, 0, &model.tags).await?;
        let imported = Change::made("model.import", json!({"description": model.description, "tags": model.tags}));
        write.record(event(EventKind::ModelCreated, &model.name), imported).await?;
        set_model_time(&mut write.tx, &model.name, model.update_time).await?;
        write.commit(true).await
    }

    async fn import_version(&self, call: &Call, version: &Version) -> Result<bool> {
        let mut write = self.write(call).await?;
        let (id, origin) = (&version.id, &version.origin);
        let model = model_named(&mut write.tx, &id.model).await?;
        match version_numbered(&mut write.tx, id).await {
            Ok(_) => return Ok(false),
            Err(Error::NotFound(Entity::Version(_))) => {}
            Err(error) => return Err(error),
        }
        if has_happened(&mut write.tx, EventKind::VersionCreated, &id.model, id.number).await? {
            let message = format!("version `{id}` was here and was deleted; its number is never used again");
            return Err(Error::Precondition { reason: "VERSION_DELETED", message });
        }
        query(
            "INSERT INTO versions (model, version, description, task, parameters, create_time, update_time, revision, source,
                                   run, run_link, logged_model, stage)
             VALUES ($1, $2, $3, $4, $5, $6, $6, 0, $7, $8, $9, $10, $11)",
        )
        .bind(id.model.as_str())
        .bind(id.number)
        .bind(&version.description)
        .bind(to_word(&version.task)?)
        .bind(to_json(&version.parameters)?)
        .bind(version.create_time.0)
        .bind(&origin.source)
        .bind(&origin.run)
        .bind(&origin.run_link)
        .bind(&origin.logged_model)
        .bind(to_word(&version.stage)?)
        .execute(&mut *write.tx)
        .await?;
        query(
            "INSERT INTO numbers (model, next_version) VALUES ($1, $2) ON CONFLICT (model) DO UPDATE SET next_version =
                 CASE WHEN excluded.next_version > numbers.next_version THEN excluded.next_version
                      ELSE numbers.next_version END",
        )
        .bind(id.model.as_str())
        .bind(id.number + 1)
        .execute(&mut *write.tx)
        .await?;
        insert_tags(&mut write.tx, &id.model, id.number, &version.tags).await?;
        insert_artifacts(&mut write.tx, id, &version.artifacts).await?;
        let imported = Change::made("version.import", version.outline());
        write.record(Event { version: id.number, ..event(EventKind::VersionCreated, &id.model) }, imported).await?;
        write.finalize(id).await?;
        set_version_time(&mut write.tx, id, version.update_time).await?;
        set_model_time(&mut write.tx, &id.model, model.update_time.max(version.create_time)).await?;
        write.commit(true).await
    }

    async fn import_alias(&self, call: &Call, alias: &AliasName, to: &VersionId) -> Result<bool> {
        let mut write = self.write(call).await?;
        let model = model_named(&mut write.tx, &to.model).await?;
        let target = version_numbered(&mut write.tx, to).await?;
        if target.digest.is_none() {
            let message = format!("version `{to}` is PENDING here; an alias cannot point at it");
            return Err(Error::Precondition { reason: "VERSION_PENDING", message });
        }
        let added = query("INSERT INTO aliases (model, alias, version) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(to.model.as_str())
            .bind(alias.as_str())
            .bind(to.number)
            .execute(&mut *write.tx)
            .await?;
        if added.rows_affected() == 0 {
            return Ok(false);
        }
        let moved = Event {
            version: to.number,
            alias: alias.to_string(),
            digest: target.digest.unwrap_or_default(),
            ..event(EventKind::AliasSet, &to.model)
        };
        let (model_name, alias) = (to.model.clone(), alias.clone());
        let wanted = AliasMove { model: model_name, alias, to: Some(to.number), expected: None };
        write.must_be_allowed(call, &wanted).await?;
        write.record(moved, Change::made("alias.set", json!({"version": to.number}))).await?;
        set_version_time(&mut write.tx, to, target.update_time).await?;
        set_model_time(&mut write.tx, &to.model, model.update_time).await?;
        write.commit(true).await
    }
}

/// Whether the experiment every store begins with is as it began; it is then locked where rows can be.
async fn is_untouched(tx: &mut Connection) -> Result<bool> {
    let found = query(
        "UPDATE experiments SET name = name WHERE id = $1 AND name = 'Default' AND deleted = 0
         AND NOT EXISTS (SELECT 1 FROM experiment_tags WHERE experiment = $1)
         AND NOT EXISTS (SELECT 1 FROM runs WHERE experiment = $1)
         AND NOT EXISTS (SELECT 1 FROM logged_models WHERE experiment = $1)",
    )
    .bind(DEFAULT_EXPERIMENT)
    .execute(&mut *tx)
    .await?;
    Ok(found.rows_affected() > 0)
}

/// Whether the log tells of this; `version` is 0 for the model itself.
async fn has_happened(tx: &mut Connection, kind: EventKind, model: &ModelName, version: i64) -> Result<bool> {
    let found: Option<i64> =
        query_scalar("SELECT sequence FROM events WHERE model = $1 AND version = $2 AND kind IN ($3, $4) LIMIT 1")
            .bind(model.as_str())
            .bind(version)
            .bind(to_word(&kind)?)
            .bind(to_word(&if version == 0 { kind } else { EventKind::VersionDeleted })?)
            .fetch_optional(&mut *tx)
            .await?;
    Ok(found.is_some())
}

/// Says when a model was last changed: there, not here.
async fn set_model_time(tx: &mut Connection, model: &ModelName, time: Micros) -> Result<()> {
    query("UPDATE models SET update_time = $1 WHERE name = $2").bind(time.0).bind(model.as_str()).execute(tx).await?;
    Ok(())
}

async fn set_version_time(tx: &mut Connection, of: &VersionId, time: Micros) -> Result<()> {
    query("UPDATE versions SET update_time = $1 WHERE model = $2 AND version = $3")
        .bind(time.0)
        .bind(of.model.as_str())
        .bind(of.number)
        .execute(tx)
        .await?;
    Ok(())
}
