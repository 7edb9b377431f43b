//! What MLflow's clients do to registered models beyond [`Store`](crate::store::Store), compiled once for each database.

use async_trait::async_trait;
use serde_json::json;
use sqlx::{query, query_as, query_scalar};

use super::reading::{
    find_model, model as model_named, models, select_models, select_versions, version as version_numbered, versions,
};
use super::searching::{Place, push_conditions, push_orders, push_page};
use super::write::{Begun, Write, event};
use super::{IDS_AT_ONCE, Tables};
use crate::audit::{Change, alias_resource};
use crate::error::{Error, Result};
use crate::model::{Event, EventKind, Model, Stage, Version};
use crate::names::{ModelName, VersionId};
use crate::search::Attribute;
use crate::store::Call;
use crate::store::rows::to_word;
use crate::tracking::{Page, Registered, Search};

const MODELS: Place = Place {
    column: |attribute| match attribute {
        Attribute::Name => Some("models.name"),
        Attribute::CreationTimestamp => Some("models.create_time"),
        Attribute::LastUpdatedTimestamp => Some("models.update_time"),
        _ => None,
    },
    tags: "tags p WHERE p.model = models.name AND p.version = 0",
    params: "",
    metrics: "",
    datasets: "",
    per_millisecond: 1000,
};

const VERSIONS: Place = Place {
    column: |attribute| match attribute {
        Attribute::Name => Some("versions.model"),
        Attribute::VersionNumber => Some("versions.version"),
        Attribute::RunId => Some("versions.run"),
        Attribute::SourcePath => Some("versions.source"),
        Attribute::CreationTimestamp => Some("versions.create_time"),
        Attribute::LastUpdatedTimestamp => Some("versions.update_time"),
        _ => None,
    },
    tags: "tags p WHERE p.model = versions.model AND p.version = versions.version",
    params: "",
    metrics: "",
    datasets: "",
    per_millisecond: 1000,
};

#[async_trait]
impl Registered for Tables {
    async fn search_models(&self, search: &Search) -> Result<Page<Model>> {
        let Search { conditions, orders, offset, limit, .. } = search;
        let mut query = select_models();
        query.push("(SELECT * FROM models WHERE 1 = 1");
        push_conditions(&mut query, &MODELS, conditions);
        push_orders(&mut query, &MODELS, orders, "name ASC");
        push_page(&mut query, *offset, *limit);
        query.push(") AS m");
        let found = models(&mut *self.reader().acquire().await?, query).await?;
        Ok(Page::cut(found, *offset, *limit))
    }

    async fn search_versions(&self, search: &Search) -> Result<Page<Version>> {
        let Search { conditions, orders, offset, limit, .. } = search;
        let mut query = select_versions();
        query.push("(SELECT * FROM versions WHERE 1 = 1");
        push_conditions(&mut query, &VERSIONS, conditions);
        let last =
            if orders.is_empty() { "update_time DESC, model ASC, version DESC" } else { "model ASC, version DESC" };
        push_orders(&mut query, &VERSIONS, orders, last);
        push_page(&mut query, *offset, *limit);
        query.push(") AS v");
        let found = versions(&mut *self.reader().acquire().await?, query).await?;
        Ok(Page::cut(found, *offset, *limit))
    }

    async fn latest_versions(&self, of: &[ModelName]) -> Result<Vec<Version>> {
        let mut found = Vec::new();
        let mut connection = self.reader().acquire().await?;
        for some in of.chunks(IDS_AT_ONCE) {
            let mut query = select_versions();
            // The newest of each stage is found in an index; the versions between them are not looked at.
            query.push(
                "models AS m CROSS JOIN (SELECT 'None' AS stage UNION ALL SELECT 'Staging' UNION ALL SELECT 'Production'
                                         UNION ALL SELECT 'Archived') AS s
                 JOIN versions AS v ON v.model = m.name AND v.version =
                     (SELECT MAX(p.version) FROM versions p WHERE p.model = m.name AND p.stage = s.stage)
                 WHERE m.name IN (",
            );
            let mut names = query.separated(", ");
            for name in some {
                names.push_bind(name.as_str().to_owned());
            }
            query.push(") ORDER BY v.model, v.stage");
            found.extend(versions(&mut connection, query).await?);
        }
        Ok(found)
    }

    async fn rename_model(&self, call: &Call, from: &ModelName, to: &ModelName) -> Result<Model> {
        let mut write = match self.begin("rename_model", call, &(from, to)).await? {
            Begun::Before(answer) => return Ok(answer),
            Begun::Now(write) => write,
        };
        let model = model_named(&mut write.tx, from).await?;
        call.must_expect(from, model.revision)?;
        write.must_not_be_protected(from, None).await?;
        if find_model(&mut write.tx, to).await?.is_some() {
            return Err(Error::ModelExists(to.clone()));
        }
        // Rows are named by their model, so they are written anew under the other name; what refers to them follows.
        for sql in [
            "INSERT INTO models (name, description, create_time, update_time, revision)
             SELECT $2, description, create_time, update_time, revision FROM models WHERE name = $1",
            "INSERT INTO versions (model, version, description, task, signature, parameters, digest, create_time, update_time,
                                   revision, source, run, run_link, logged_model, author, stage)
             SELECT $2, version, description, task, signature, parameters, digest, create_time, update_time, revision, source,
                    run, run_link, logged_model, author, stage
             FROM versions WHERE model = $1",
            "UPDATE artifacts SET model = $2 WHERE model = $1",
            "UPDATE aliases SET model = $2 WHERE model = $1",
            "UPDATE imports SET model = $2 WHERE model = $1",
            "UPDATE holds SET model = $2 WHERE model = $1",
            "UPDATE tags SET model = $2 WHERE model = $1",
            "UPDATE checks SET model = $2 WHERE model = $1",
            "UPDATE approvals SET model = $2 WHERE model = $1",
            "UPDATE deployments SET model = $2 WHERE model = $1",
            "DELETE FROM models WHERE name = $1 AND name <> $2",
            "INSERT INTO numbers (model, next_version) SELECT $2, next_version FROM numbers WHERE model = $1
             ON CONFLICT (model) DO UPDATE SET next_version =
                 CASE WHEN excluded.next_version > numbers.next_version THEN excluded.next_version
                      ELSE numbers.next_version END",
        ] {
            query(sql).bind(from.as_str()).bind(to.as_str()).execute(&mut *write.tx).await?;
        }
        let gone = Change::changed("model.rename", json!({"name": from}), json!({"name": to}));
        write.record(event(EventKind::ModelDeleted, from), gone.clone()).await?;
        write.record(event(EventKind::ModelCreated, to), gone).await?;
        for (alias, version) in &model.aliases {
            let at = json!({"version": version});
            write.audit(alias_resource(from, alias), Change::removed("alias.delete", &at)).await?;
            write.audit(alias_resource(to, alias), Change::made("alias.set", at)).await?;
        }
        write.follow(from, to).await?;
        let renamed = model_named(&mut write.tx, to).await?;
        write.commit(renamed).await
    }

    async fn move_to_stage(&self, call: &Call, of: &VersionId, stage: Stage, archive_others: bool) -> Result<Version> {
        let mut write = self.write(call).await?;
        let before = version_numbered(&mut write.tx, of).await?.stage;
        if archive_others {
            let others: Vec<i64> =
                query_scalar("SELECT version FROM versions WHERE model = $1 AND version <> $2 AND stage = $3")
                    .bind(of.model.as_str())
                    .bind(of.number)
                    .bind(to_word(&stage)?)
                    .fetch_all(&mut *write.tx)
                    .await?;
            for other in others {
                write.set_stage(&VersionId { model: of.model.clone(), number: other }, stage, Stage::Archived).await?;
            }
        }
        write.set_stage(of, before, stage).await?;
        let sql = "UPDATE models SET update_time = $1 WHERE name = $2";
        query(sql).bind(call.now.0).bind(of.model.as_str()).execute(&mut *write.tx).await?;
        let version = version_numbered(&mut write.tx, of).await?;
        write.commit(version).await
    }
}

impl Write {
    /// Lets the sources of copies name a model as it is called now.
    async fn follow(&mut self, from: &ModelName, to: &ModelName) -> Result<()> {
        let (was, is) = (format!("models:/{from}"), format!("models:/{to}"));
        // What follows the name tells it from a longer one.
        let named: Vec<(String, i64, String)> = query_as(
            "SELECT model, version, source FROM versions WHERE substr(source, 1, $1) IN ($2, $3) ORDER BY model, version",
        )
        .bind(i32::try_from(was.chars().count() + 1).map_err(anyhow::Error::from)?)
        .bind(format!("{was}/"))
        .bind(format!("{was}@"))
        .fetch_all(&mut *self.tx)
        .await?;
        for (model, version, source) in named {
            let model = ModelName::stored(model);
            let now = format!("{is}{}", source.strip_prefix(&was).unwrap_or_default());
            query("UPDATE versions SET source = $1 WHERE model = $2 AND version = $3")
                .bind(&now)
                .bind(model.as_str())
                .bind(version)
                .execute(&mut *self.tx)
                .await?;
            let followed = Change::changed("version.follow", json!({"source": source}), json!({"source": now}));
            self.record(Event { version, ..event(EventKind::VersionUpdated, &model) }, followed).await?;
        }
        Ok(())
    }

    async fn set_stage(&mut self, of: &VersionId, from: Stage, to: Stage) -> Result<()> {
        query("UPDATE versions SET stage = $1 WHERE model = $2 AND version = $3")
            .bind(to_word(&to)?)
            .bind(of.model.as_str())
            .bind(of.number)
            .execute(&mut *self.tx)
            .await?;
        let moved = Change::changed("version.move_to_stage", json!({"stage": from}), json!({"stage": to}));
        self.record(Event { version: of.number, ..event(EventKind::VersionUpdated, &of.model) }, moved).await
    }
}
