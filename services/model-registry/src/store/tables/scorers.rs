//! Scorers and their versions, compiled once for each database.

use async_trait::async_trait;
use sqlx::{query, query_as};
use uuid::Uuid;

use super::experiments::{find as find_experiment, must_be_active};
use super::{Connection, Tables};
use crate::error::{Entity, Error, Result};
use crate::evaluation::{MAX_SCORERS, Scorer, Scorers};
use crate::tracking::Millis;

#[async_trait]
impl Scorers for Tables {
    async fn add_scorer(&self, now: Millis, experiment: i64, name: &str, serialized: &str) -> Result<Scorer> {
        let mut tx = self.begin_write().await?;
        // Locks the experiment's row, where rows can be locked: two that register at once take numbers one after the other.
        query("UPDATE experiments SET update_time = update_time WHERE id = $1")
            .bind(experiment)
            .execute(&mut *tx)
            .await?;
        must_be_active(&find_experiment(&mut tx, experiment).await?)?;
        let (id, version): (String, i64) = query_as(
            "INSERT INTO scorers (id, experiment, name, last_version) VALUES ($1, $2, $3, 1)
             ON CONFLICT (experiment, name) DO UPDATE SET last_version = scorers.last_version + 1
             RETURNING id, last_version",
        )
        .bind(Uuid::new_v4().to_string())
        .bind(experiment)
        .bind(name)
        .fetch_one(&mut *tx)
        .await?;
        let (names, versions): (i64, i64) = query_as(
            "SELECT (SELECT COUNT(*) FROM scorers WHERE experiment = $1),
                    (SELECT COUNT(*) + 1 FROM scorer_versions WHERE scorer = $2)",
        )
        .bind(experiment)
        .bind(&id)
        .fetch_one(&mut *tx)
        .await?;
        for (count, what) in [(names, "scorers in an experiment"), (versions, "versions of a scorer")] {
            if count > MAX_SCORERS {
                return Err(Error::Rejected(format!("There may be at most {MAX_SCORERS} {what}: delete some first")));
            }
        }
        query("INSERT INTO scorer_versions (scorer, version, serialized, create_time) VALUES ($1, $2, $3, $4)")
            .bind(&id)
            .bind(version)
            .bind(serialized)
            .bind(now.0)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        let (name, serialized) = (name.to_owned(), serialized.to_owned());
        Ok(Scorer { id, experiment, name, version, serialized, create_time: now.0 })
    }

    async fn scorers(&self, experiment: i64) -> Result<Vec<Scorer>> {
        let mut tx = self.read().await?;
        must_be_active(&find_experiment(&mut tx, experiment).await?)?;
        Ok(query_as(
            "SELECT s.id, s.experiment, s.name, v.version, v.serialized, v.create_time
             FROM scorers s JOIN scorer_versions v ON v.scorer = s.id
             WHERE s.experiment = $1 AND v.version = (SELECT MAX(version) FROM scorer_versions WHERE scorer = s.id)
             ORDER BY s.name",
        )
        .bind(experiment)
        .fetch_all(&mut *tx)
        .await?)
    }

    async fn scorer_versions(&self, experiment: i64, name: &str) -> Result<Vec<Scorer>> {
        let mut tx = self.read().await?;
        versions(&mut tx, experiment, name, None).await
    }

    async fn scorer(&self, experiment: i64, name: &str, version: Option<i64>) -> Result<Scorer> {
        let mut tx = self.read().await?;
        let found = versions(&mut tx, experiment, name, version).await?.pop();
        found.ok_or_else(|| missing(experiment, name, version))
    }

    async fn delete_scorer(&self, experiment: i64, name: &str, version: Option<i64>) -> Result<()> {
        let mut tx = self.begin_write().await?;
        query("UPDATE experiments SET update_time = update_time WHERE id = $1")
            .bind(experiment)
            .execute(&mut *tx)
            .await?;
        let found = versions(&mut tx, experiment, name, version).await?;
        let Some(Scorer { id, .. }) = found.first() else { return Err(missing(experiment, name, version)) };
        query("DELETE FROM scorer_versions WHERE scorer = $1 AND ($2 IS NULL OR version = $2)")
            .bind(id)
            .bind(version)
            .execute(&mut *tx)
            .await?;
        query("DELETE FROM scorers WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM scorer_versions WHERE scorer = $1)")
            .bind(id)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}

fn missing(experiment: i64, name: &str, version: Option<i64>) -> Error {
    Error::NotFound(Entity::Scorer { experiment, name: name.to_owned(), version })
}

/// The versions of a scorer of an active experiment, oldest first, or the one that is named.
async fn versions(tx: &mut Connection, experiment: i64, name: &str, version: Option<i64>) -> Result<Vec<Scorer>> {
    must_be_active(&find_experiment(&mut *tx, experiment).await?)?;
    let found: Vec<Scorer> = query_as(
        "SELECT s.id, s.experiment, s.name, v.version, v.serialized, v.create_time
         FROM scorers s JOIN scorer_versions v ON v.scorer = s.id
         WHERE s.experiment = $1 AND s.name = $2 AND ($3 IS NULL OR v.version = $3) ORDER BY v.version",
    )
    .bind(experiment)
    .bind(name)
    .bind(version)
    .fetch_all(&mut *tx)
    .await?;
    if found.is_empty() { Err(missing(experiment, name, version)) } else { Ok(found) }
}
