//! Experiments in the tables of `migrations/`, compiled once for each database.

use std::collections::BTreeMap;

use async_trait::async_trait;
use sqlx::{QueryBuilder, query, query_scalar};

use super::searching::{Place, push_conditions, push_orders, push_page};
use super::{Connection, Db, IDS_AT_ONCE, LOCK_EXPERIMENTS, Tables};
use crate::error::{Entity, Error, Result};
use crate::search::Attribute;
use crate::tracking::{
    DEFAULT_EXPERIMENT, Experiment, ExperimentChange, ExperimentDraft, ExperimentRef, Experiments, Location, Millis,
    Page, Search, View,
};

const COLUMNS: &str = "SELECT id, name, artifact_location, deleted, create_time, update_time FROM experiments";

const PLACE: Place = Place {
    column: |attribute| match attribute {
        Attribute::Name => Some("experiments.name"),
        Attribute::ExperimentId => Some("experiments.id"),
        Attribute::CreationTime => Some("experiments.create_time"),
        Attribute::LastUpdateTime => Some("experiments.update_time"),
        _ => None,
    },
    tags: "experiment_tags p WHERE p.experiment = experiments.id",
    params: "",
    metrics: "",
    datasets: "",
    per_millisecond: 1,
};

#[derive(sqlx::FromRow)]
struct Row {
    id: i64,
    name: String,
    artifact_location: String,
    deleted: i64,
    create_time: i64,
    update_time: i64,
}

#[async_trait]
impl Experiments for Tables {
    async fn add_default_experiment(&self, now: Millis, location: &Location) -> Result<()> {
        let mut tx = self.begin_write().await?;
        query(
            "INSERT INTO experiments (id, name, artifact_location, create_time, update_time)
             VALUES ($1, 'Default', $2, $3, $3) ON CONFLICT DO NOTHING",
        )
        .bind(DEFAULT_EXPERIMENT)
        .bind(location.of(DEFAULT_EXPERIMENT))
        .bind(now.0)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn create_experiment(&self, now: Millis, draft: &ExperimentDraft) -> Result<i64> {
        let mut tx = self.begin_write().await?;
        query(LOCK_EXPERIMENTS).execute(&mut *tx).await?;
        let ExperimentDraft { name, location, tags } = draft;
        let id: i64 = query_scalar("SELECT COALESCE(MAX(id), 0) + 1 FROM experiments").fetch_one(&mut *tx).await?;
        let added = query(
            "INSERT INTO experiments (id, name, artifact_location, create_time, update_time)
             VALUES ($1, $2, $3, $4, $4) ON CONFLICT (name) DO NOTHING",
        )
        .bind(id)
        .bind(name)
        .bind(location.of(id))
        .bind(now.0)
        .execute(&mut *tx)
        .await?;
        if added.rows_affected() == 0 {
            return Err(Error::ExperimentExists(name.clone()));
        }
        for (key, value) in tags {
            set_tag(&mut tx, id, key, value).await?;
        }
        tx.commit().await?;
        Ok(id)
    }

    async fn experiment(&self, which: &ExperimentRef) -> Result<Experiment> {
        let mut tx = self.read().await?;
        match which {
            ExperimentRef::Id(id) => find(&mut tx, *id).await,
            ExperimentRef::Name(name) => {
                let mut query = QueryBuilder::<Db>::new(COLUMNS);
                query.push(" WHERE name = ").push_bind(name.clone());
                let rows = query.build_query_as().fetch_all(&mut *tx).await?;
                let missing = || Error::NotFound(Entity::ExperimentNamed(name.clone()));
                with_tags(&mut tx, rows).await?.pop().ok_or_else(missing)
            }
        }
    }

    async fn experiments(&self, search: &Search) -> Result<Page<Experiment>> {
        let Search { conditions, orders, view, experiments, datasets: _, offset, limit } = search;
        let mut tx = self.read().await?;
        let mut query = QueryBuilder::<Db>::new(COLUMNS);
        query.push(" WHERE 1 = 1");
        push_view(&mut query, *view);
        if !experiments.is_empty() {
            let mut ids = query.push(" AND id IN (").separated(", ");
            for id in experiments {
                ids.push_bind(*id);
            }
            query.push(")");
        }
        push_conditions(&mut query, &PLACE, conditions);
        let last = if orders.is_empty() { "create_time DESC, id DESC" } else { "id ASC" };
        push_orders(&mut query, &PLACE, orders, last);
        push_page(&mut query, *offset, *limit);
        let rows = query.build_query_as().fetch_all(&mut *tx).await?;
        Ok(Page::cut(with_tags(&mut tx, rows).await?, *offset, *limit))
    }

    async fn change_experiment(&self, now: Millis, id: i64, change: &ExperimentChange) -> Result<()> {
        let mut tx = self.begin_write().await?;
        // Locks the row, where rows can be locked.
        query("UPDATE experiments SET update_time = update_time WHERE id = $1").bind(id).execute(&mut *tx).await?;
        let before = find(&mut tx, id).await?;
        match change {
            ExperimentChange::Rename(name) => {
                if before.is_deleted {
                    return Err(Error::InvalidState("Cannot rename a non-active experiment.".to_owned()));
                }
                let taken: Option<i64> = query_scalar("SELECT id FROM experiments WHERE name = $1 AND id <> $2")
                    .bind(name)
                    .bind(id)
                    .fetch_optional(&mut *tx)
                    .await?;
                if taken.is_some() {
                    return Err(Error::ExperimentExists(name.clone()));
                }
                query("UPDATE experiments SET name = $1 WHERE id = $2").bind(name).bind(id).execute(&mut *tx).await?;
            }
            ExperimentChange::Delete | ExperimentChange::Restore => {
                let deletes = matches!(change, ExperimentChange::Delete);
                if before.is_deleted == deletes {
                    return Err(Error::NotFound(Entity::Experiment(id.to_string())));
                }
                for sql in [
                    "UPDATE experiments SET deleted = $1 WHERE id = $2",
                    "UPDATE runs SET deleted = $1 WHERE experiment = $2",
                ] {
                    query(sql).bind(i64::from(deletes)).bind(id).execute(&mut *tx).await?;
                }
            }
            ExperimentChange::SetTag(key, value) => {
                must_be_active(&before)?;
                set_tag(&mut tx, id, key, value).await?;
            }
            ExperimentChange::DeleteTag(key) => {
                must_be_active(&before)?;
                let removed = query("DELETE FROM experiment_tags WHERE experiment = $1 AND key = $2")
                    .bind(id)
                    .bind(key)
                    .execute(&mut *tx)
                    .await?;
                if removed.rows_affected() == 0 {
                    let of = format!("experiment with id {id}");
                    return Err(Error::NotFound(Entity::TagOf { of, key: key.clone() }));
                }
            }
        }
        query("UPDATE experiments SET update_time = $1 WHERE id = $2").bind(now.0).bind(id).execute(&mut *tx).await?;
        Ok(tx.commit().await?)
    }
}

pub(super) fn push_view(query: &mut QueryBuilder<Db>, view: View) {
    match view {
        View::Active => query.push(" AND deleted = 0"),
        View::Deleted => query.push(" AND deleted = 1"),
        View::All => query,
    };
}

/// Finds an experiment, deleted or not.
pub(super) async fn find(tx: &mut Connection, id: i64) -> Result<Experiment> {
    let mut query = QueryBuilder::<Db>::new(COLUMNS);
    query.push(" WHERE id = ").push_bind(id);
    let rows = query.build_query_as().fetch_all(&mut *tx).await?;
    with_tags(tx, rows).await?.pop().ok_or_else(|| Error::NotFound(Entity::Experiment(id.to_string())))
}

/// Refuses to change what is deleted.
pub(super) fn must_be_active(experiment: &Experiment) -> Result<()> {
    if !experiment.is_deleted {
        return Ok(());
    }
    let id = experiment.id;
    Err(Error::Rejected(format!("The experiment {id} must be in the 'active' state. Current state is deleted.")))
}

async fn set_tag(tx: &mut Connection, id: i64, key: &str, value: &str) -> Result<()> {
    query(
        "INSERT INTO experiment_tags (experiment, key, value) VALUES ($1, $2, $3)
         ON CONFLICT (experiment, key) DO UPDATE SET value = excluded.value",
    )
    .bind(id)
    .bind(key)
    .bind(value)
    .execute(&mut *tx)
    .await?;
    Ok(())
}

async fn with_tags(tx: &mut Connection, rows: Vec<Row>) -> Result<Vec<Experiment>> {
    let mut tags: BTreeMap<i64, BTreeMap<String, String>> = BTreeMap::new();
    for some in rows.chunks(IDS_AT_ONCE) {
        let mut query =
            QueryBuilder::<Db>::new("SELECT experiment, key, value FROM experiment_tags WHERE experiment IN (");
        let mut ids = query.separated(", ");
        for row in some {
            ids.push_bind(row.id);
        }
        query.push(")");
        let found: Vec<(i64, String, String)> = query.build_query_as().fetch_all(&mut *tx).await?;
        for (experiment, key, value) in found {
            tags.entry(experiment).or_default().insert(key, value);
        }
    }
    let experiment = |row: Row| {
        let Row { id, name, artifact_location, deleted, create_time, update_time } = row;
        Experiment {
            id,
            name,
            artifact_location,
            is_deleted: deleted != 0,
            tags: tags.remove(&id).unwrap_or_default(),
            create_time: Millis(create_time),
            update_time: Millis(update_time),
        }
    };
    Ok(rows.into_iter().map(experiment).collect())
}
