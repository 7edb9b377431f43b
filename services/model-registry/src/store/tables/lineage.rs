//! Deployments, and the versions around a version.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde_json::json;
use sqlx::{QueryBuilder, query};

use super::reading::{find_model, select_versions, version, versions};
use super::{Connection, Db, IDS_AT_ONCE, Tables};
use crate::audit::{Change, deployment_resource};
use crate::error::Result;
use crate::lineage::{Deployment, Filter, Lineage, Report, Serving};
use crate::model::{Micros, Version};
use crate::names::{ModelName, VersionId};
use crate::store::Call;

const DEPLOYMENT: &str =
    "SELECT deployment, reference, start_time, model, version, digest, seen_time, expire_time, end_time FROM ";

#[derive(sqlx::FromRow)]
struct DeploymentRow {
    deployment: String,
    reference: String,
    start_time: i64,
    model: String,
    version: i64,
    digest: String,
    seen_time: i64,
    expire_time: i64,
    end_time: Option<i64>,
}

impl From<DeploymentRow> for Deployment {
    fn from(row: DeploymentRow) -> Self {
        let DeploymentRow {
            deployment,
            reference,
            start_time,
            model,
            version,
            digest,
            seen_time,
            expire_time,
            end_time,
        } = row;
        let version = VersionId { model: ModelName::stored(model), number: version };
        Self {
            deployment,
            serving: Serving { reference, version, digest },
            start: Micros(start_time),
            seen: Micros(seen_time),
            expires: Micros(expire_time),
            end: end_time.map(Micros),
        }
    }
}

/// What a deployment serves, under the name the model has now: it says the one under which it has loaded the files, until it
/// loads others.
async fn under_its_name(tx: &mut Connection, said: &Serving, open: &[Deployment]) -> Result<Serving> {
    let Serving { reference, version, digest } = said;
    let is_same = |before: &&Deployment| {
        let Serving { reference: other, version: VersionId { model, number }, digest: same } = &before.serving;
        (other, number, same) == (reference, &version.number, digest) && *model != version.model
    };
    match open.iter().find(is_same) {
        Some(renamed) if find_model(tx, &version.model).await?.is_none() => Ok(renamed.serving.clone()),
        _ => Ok(said.clone()),
    }
}

#[async_trait]
impl Lineage for Tables {
    async fn report_deployment(&self, now: Micros, report: &Report) -> Result<()> {
        let Report { deployment, serving, expires } = report;
        let mut tx = self.begin_write().await?;
        let mut open = QueryBuilder::<Db>::new(DEPLOYMENT);
        open.push("deployments WHERE end_time IS NULL AND deployment = ").push_bind(deployment);
        let open: Vec<DeploymentRow> = open.build_query_as().fetch_all(&mut *tx).await?;
        let open: Vec<_> = open.into_iter().map(Deployment::from).collect();
        let mut new = BTreeSet::new();
        for said in serving {
            new.insert(under_its_name(&mut tx, said, &open).await?);
        }
        for before in open {
            let goes_on = new.remove(&before.serving);
            // What was lost in between has ended when it was given up.
            let end = (!goes_on).then(|| now.min(before.expires).0);
            query(
                "UPDATE deployments SET seen_time = CASE WHEN $1 IS NULL THEN $2 ELSE seen_time END,
                        expire_time = CASE WHEN $1 IS NULL THEN $3 ELSE expire_time END, end_time = $1
                 WHERE deployment = $4 AND reference = $5 AND start_time = $6",
            )
            .bind(end)
            .bind(now.0)
            .bind(expires.0)
            .bind(deployment)
            .bind(&before.serving.reference)
            .bind(before.start.0)
            .execute(&mut *tx)
            .await?;
        }
        for Serving { reference, version, digest } in &new {
            query(
                "INSERT INTO deployments
                     (deployment, reference, start_time, model, version, digest, seen_time, expire_time)
                 VALUES ($1, $2, $3, $4, $5, $6, $3, $7) ON CONFLICT DO NOTHING",
            )
            .bind(deployment)
            .bind(reference)
            .bind(now.0)
            .bind(version.model.as_str())
            .bind(version.number)
            .bind(digest)
            .bind(expires.0)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    async fn end_lost_deployments(&self, call: &Call, before: Micros) -> Result<u64> {
        let mut write = self.write(call).await?;
        let mut lost = QueryBuilder::<Db>::new(DEPLOYMENT);
        lost.push("deployments WHERE end_time IS NULL AND expire_time < ").push_bind(before.0);
        lost.push(" ORDER BY deployment, reference");
        let lost: Vec<DeploymentRow> = lost.build_query_as().fetch_all(&mut *write.tx).await?;
        let ended = lost.len() as u64;
        for Deployment { deployment, serving, start, seen, expires, end: _ } in lost.into_iter().map(Deployment::from) {
            query(
                "UPDATE deployments SET end_time = expire_time
                 WHERE deployment = $1 AND reference = $2 AND start_time = $3",
            )
            .bind(&deployment)
            .bind(&serving.reference)
            .bind(start.0)
            .execute(&mut *write.tx)
            .await?;
            let was = json!({"serving": serving, "seen_time": seen});
            let ended = Change::changed("deployment.end", was, json!({"end_time": expires}));
            write.audit(deployment_resource(&deployment), ended).await?;
        }
        write.commit(ended).await
    }

    async fn deployments(&self, filter: &Filter, limit: u32) -> Result<Vec<Deployment>> {
        let Filter { model, include_ended, offset } = filter;
        let mut query = QueryBuilder::<Db>::new(DEPLOYMENT);
        query.push("deployments WHERE 1 = 1");
        if let Some(model) = model {
            query.push(" AND model = ").push_bind(model.as_str());
        }
        if !include_ended {
            query.push(" AND end_time IS NULL");
        }
        query.push(" ORDER BY start_time DESC, deployment, reference LIMIT ").push_bind(i64::from(limit));
        query.push(" OFFSET ").push_bind(*offset);
        let rows: Vec<DeploymentRow> = query.build_query_as().fetch_all(self.reader()).await?;
        Ok(rows.into_iter().map(Deployment::from).collect())
    }

    async fn deployments_of(&self, versions: &[VersionId], limit: u32) -> Result<Vec<Deployment>> {
        let mut found = Vec::new();
        for some in versions.chunks(IDS_AT_ONCE) {
            let mut query = QueryBuilder::<Db>::new(DEPLOYMENT);
            query.push(
                "(SELECT *, ROW_NUMBER() OVER (PARTITION BY model, version ORDER BY start_time DESC) AS place
                  FROM deployments WHERE (model, version) IN (VALUES ",
            );
            let mut list = query.separated(", ");
            for VersionId { model, number } in some {
                list.push("(").push_bind_unseparated(model.as_str());
                list.push_unseparated(", ").push_bind_unseparated(*number).push_unseparated(")");
            }
            query.push(")) AS newest WHERE place <= ").push_bind(i64::from(limit));
            query.push(" ORDER BY start_time DESC, deployment, reference");
            let rows: Vec<DeploymentRow> = query.build_query_as().fetch_all(self.reader()).await?;
            found.extend(rows.into_iter().map(Deployment::from));
        }
        Ok(found)
    }

    async fn versions_of_run(&self, run: &str) -> Result<Vec<Version>> {
        let mut query = select_versions();
        query.push("versions AS v WHERE v.run = ").push_bind(run);
        query.push(" ORDER BY v.model, v.version LIMIT 1000");
        versions(&mut *self.reader().acquire().await?, query).await
    }

    async fn copies(&self, of: &VersionId) -> Result<Vec<Version>> {
        let mut tx = self.read().await?;
        let itself = version(&mut tx, of).await?;
        let mut query = select_versions();
        query.push("versions AS v WHERE v.source = ").push_bind(format!("models:/{of}"));
        query.push(" ORDER BY v.model, v.version LIMIT 999");
        let mut all = vec![itself];
        all.extend(versions(&mut tx, query).await?);
        Ok(all)
    }
}
