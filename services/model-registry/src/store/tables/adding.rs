//! Adding models and versions, new ones and those that come from another registry.

use async_trait::async_trait;
use serde_json::json;
use sqlx::{QueryBuilder, query, query_scalar};

use super::reading::{find_model, select_versions, version, versions};
use super::{Begun, Connection, Db, ROWS_AT_ONCE, Tables, Write, event, insert_tags};
use crate::archive::{Arrival, Provenance, Transfers};
use crate::audit::Change;
use crate::error::Result;
use crate::model::{Artifact, Event, EventKind, ModelDraft, Version, VersionDraft, digest};
use crate::names::{ModelName, VersionId};
use crate::store::Call;
use crate::store::rows::{from_json, to_json, to_word};
use crate::webhooks::News;

impl Write {
    /// Adds a model; its name must be free.
    pub(super) async fn add_model(&mut self, draft: &ModelDraft) -> Result<()> {
        query("INSERT INTO models (name, description, create_time, update_time, revision) VALUES ($1, $2, $3, $3, 0)")
            .bind(draft.name.as_str())
            .bind(&draft.description)
            .bind(self.now.0)
            .execute(&mut *self.tx)
            .await?;
        insert_tags(&mut self.tx, &draft.name, 0, &draft.tags).await?;
        let created = Change::made("model.create", json!({"description": draft.description, "tags": draft.tags}));
        self.record(event(EventKind::ModelCreated, &draft.name), created).await?;
        self.announce(News::Model(draft)).await
    }

    /// Adds the next version of a model that is there, without files.
    pub(super) async fn add_version(&mut self, draft: &VersionDraft) -> Result<VersionId> {
        let number: i64 = query_scalar(
            "INSERT INTO numbers (model, next_version) VALUES ($1, 2)
             ON CONFLICT (model) DO UPDATE SET next_version = numbers.next_version + 1 RETURNING next_version - 1",
        )
        .bind(draft.model.as_str())
        .fetch_one(&mut *self.tx)
        .await?;
        let id = VersionId { model: draft.model.clone(), number };
        let origin = draft.origin.clone().unwrap_or_default();
        query(
            "INSERT INTO versions (model, version, description, task, signature, parameters, create_time, update_time, revision,
                                   source, run, run_link, logged_model, author)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7, 0, $8, $9, $10, $11, $12)",
        )
        .bind(id.model.as_str())
        .bind(number)
        .bind(&draft.description)
        .bind(to_word(&draft.task)?)
        .bind(draft.signature.as_ref().map(to_json).transpose()?)
        .bind(to_json(&draft.parameters)?)
        .bind(self.now.0)
        .bind(&origin.source)
        .bind(&origin.run)
        .bind(&origin.run_link)
        .bind(&origin.logged_model)
        .bind(&self.caller)
        .execute(&mut *self.tx)
        .await?;
        insert_tags(&mut self.tx, &id.model, number, &draft.tags).await?;
        let created = Change::made("version.create", version(&mut self.tx, &id).await?.outline());
        self.record(Event { version: number, ..event(EventKind::VersionCreated, &id.model) }, created).await?;
        self.announce(News::Version(number, draft)).await?;
        Ok(id)
    }
}

/// Adds files to a version, in place of those with the same paths.
pub(super) async fn insert_artifacts(tx: &mut Connection, of: &VersionId, artifacts: &[Artifact]) -> Result<()> {
    for some in artifacts.chunks(ROWS_AT_ONCE) {
        let mut query = QueryBuilder::<Db>::new("INSERT INTO artifacts (model, version, path, size, sha256) ");
        query.push_values(some, |mut row, artifact| {
            row.push_bind(of.model.as_str().to_owned()).push_bind(of.number);
            row.push_bind(artifact.path.as_str().to_owned());
            // At most 64 GiB: it always fits.
            row.push_bind(i64::try_from(artifact.size).unwrap_or(i64::MAX));
            row.push_bind(artifact.sha256.as_str().to_owned());
        });
        query.push(" ON CONFLICT (model, version, path) DO UPDATE SET size = excluded.size, sha256 = excluded.sha256");
        query.build().execute(&mut *tx).await?;
    }
    Ok(())
}

/// Finds the newest READY version with the same content as the one that arrives.
async fn same(tx: &mut Connection, model: &ModelName, arrival: &Arrival) -> Result<Option<Version>> {
    let VersionDraft { task, signature, parameters, .. } = &arrival.draft;
    let mut query = select_versions();
    query.push("versions AS v WHERE v.model = ").push_bind(model.as_str());
    query.push(" AND v.digest = ").push_bind(digest(&arrival.artifacts)).push(" ORDER BY v.version DESC");
    let is_same = |version: &Version| {
        version.task == *task && version.signature == *signature && version.parameters == *parameters
    };
    Ok(versions(tx, query).await?.into_iter().find(is_same))
}

#[async_trait]
impl Transfers for Tables {
    async fn provenance(&self, of: &VersionId) -> Result<Option<Provenance>> {
        let kept: Option<String> = query_scalar("SELECT provenance FROM imports WHERE model = $1 AND version = $2")
            .bind(of.model.as_str())
            .bind(of.number)
            .fetch_optional(self.reader())
            .await?;
        kept.as_deref().map(from_json).transpose()
    }

    async fn import(&self, call: &Call, arrival: &Arrival) -> Result<(Version, bool)> {
        let mut write = match self.begin("import", call, arrival).await? {
            Begun::Before(answer) => return Ok(answer),
            Begun::Now(write) => write,
        };
        let Arrival { draft, artifacts, provenance } = arrival;
        match find_model(&mut write.tx, &draft.model).await? {
            Some(_) => {
                if let Some(version) = same(&mut write.tx, &draft.model, arrival).await? {
                    return write.commit((version, false)).await;
                }
            }
            None => {
                let (name, description) = (draft.model.clone(), draft.description.clone());
                write.add_model(&ModelDraft { name, description, tags: Default::default() }).await?;
            }
        }
        let id = write.add_version(draft).await?;
        insert_artifacts(&mut write.tx, &id, artifacts).await?;
        query("INSERT INTO imports (model, version, provenance) VALUES ($1, $2, $3)")
            .bind(id.model.as_str())
            .bind(id.number)
            .bind(to_json(provenance)?)
            .execute(&mut *write.tx)
            .await?;
        write.finalize(&id).await?;
        let version = version(&mut write.tx, &id).await?;
        write.commit((version, true)).await
    }
}
