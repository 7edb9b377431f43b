//! Logged models in the tables of `migrations/`, compiled once for each database.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use sqlx::{QueryBuilder, query};

use super::experiments::{self, push_view};
use super::searching::{Place, push_conditions, push_orders, push_page};
use super::{Connection, Db, IDS_AT_ONCE, ROWS_AT_ONCE, Tables};
use crate::error::{Entity, Error, Result};
use crate::search::Attribute;
use crate::store::rows::{from_word, kept, to_word};
use crate::tracking::{LoggedModel, LoggedModelChange, LoggedModelDraft, LoggedModels, Metric, Millis, Page, Search};

const COLUMNS: &str = "SELECT id, experiment, name, artifact_location, status, model_type, source_run, create_time,
    update_time FROM logged_models";

const PLACE: Place = Place {
    column: |attribute| match attribute {
        Attribute::ModelId => Some("logged_models.id"),
        Attribute::Name => Some("logged_models.name"),
        Attribute::ModelType => Some("logged_models.model_type"),
        Attribute::Status => Some("logged_models.status"),
        Attribute::SourceRunId => Some("logged_models.source_run"),
        Attribute::ExperimentId => Some("CAST(logged_models.experiment AS TEXT)"),
        Attribute::ArtifactLocation => Some("logged_models.artifact_location"),
        Attribute::LifecycleStage => Some("CASE logged_models.deleted WHEN 0 THEN 'active' ELSE 'deleted' END"),
        Attribute::CreationTimestamp => Some("logged_models.create_time"),
        Attribute::LastUpdatedTimestamp => Some("logged_models.update_time"),
        _ => None,
    },
    tags: "logged_model_tags p WHERE p.model = logged_models.id",
    params: "logged_model_params p WHERE p.model = logged_models.id",
    metrics: "logged_model_metrics p WHERE p.model = logged_models.id",
    datasets: "",
    per_millisecond: 1,
};

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    experiment: i64,
    name: String,
    artifact_location: String,
    status: String,
    model_type: String,
    source_run: String,
    create_time: i64,
    update_time: i64,
}

#[derive(sqlx::FromRow)]
struct MetricRow {
    model: String,
    run: String,
    key: String,
    timestamp: i64,
    step: i64,
    value: f64,
    nan: i64,
    dataset_name: String,
    dataset_digest: String,
}

#[async_trait]
impl LoggedModels for Tables {
    async fn create_logged_model(&self, now: Millis, draft: &LoggedModelDraft) -> Result<LoggedModel> {
        let LoggedModelDraft { id, experiment, name, model_type, source_run, params, tags } = draft;
        let mut tx = self.begin_write().await?;
        let parent = experiments::find(&mut tx, *experiment).await?;
        experiments::must_be_active(&parent)?;
        let location = parent.artifact_location.trim_end_matches('/');
        query(
            "INSERT INTO logged_models (id, experiment, name, artifact_location, status, model_type, source_run, create_time,
                                        update_time)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
        )
        .bind(id)
        .bind(experiment)
        .bind(name)
        .bind(format!("{location}/models/{id}/artifacts"))
        .bind("PENDING")
        .bind(model_type)
        .bind(source_run)
        .bind(now.0)
        .execute(&mut *tx)
        .await?;
        set(&mut tx, "logged_model_params", id, params).await?;
        set(&mut tx, "logged_model_tags", id, tags).await?;
        let model = find(&mut tx, id).await?;
        tx.commit().await?;
        Ok(model)
    }

    async fn logged_model(&self, id: &str) -> Result<LoggedModel> {
        find(&mut *self.read().await?, id).await
    }

    async fn logged_models(&self, search: &Search) -> Result<Page<LoggedModel>> {
        let Search { conditions, orders, view, experiments, datasets, offset, limit } = search;
        if experiments.is_empty() {
            return Ok(Page { items: Vec::new(), next: None });
        }
        let mut tx = self.read().await?;
        let mut query = QueryBuilder::<Db>::new(COLUMNS);
        let mut ids = query.push(" WHERE experiment IN (").separated(", ");
        for id in experiments {
            ids.push_bind(*id);
        }
        query.push(")");
        push_view(&mut query, *view);
        push_datasets(&mut query, datasets);
        push_conditions(&mut query, &PLACE, conditions);
        push_orders(&mut query, &PLACE, orders, "create_time DESC, id");
        push_page(&mut query, *offset, *limit);
        let rows: Vec<Row> = query.build_query_as().fetch_all(&mut *tx).await?;
        let page = Page::cut(rows, *offset, *limit);
        Ok(Page { items: with_parts(&mut tx, page.items).await?, next: page.next })
    }

    async fn change_logged_model(&self, now: Millis, id: &str, change: &LoggedModelChange) -> Result<LoggedModel> {
        let mut tx = self.begin_write().await?;
        let before = find(&mut tx, id).await?;
        match change {
            LoggedModelChange::Finalize(status) => {
                let sql = "UPDATE logged_models SET status = $1 WHERE id = $2";
                query(sql).bind(to_word(status)?).bind(id).execute(&mut *tx).await?;
            }
            LoggedModelChange::Delete => {
                query("UPDATE logged_models SET deleted = 1 WHERE id = $1").bind(id).execute(&mut *tx).await?;
            }
            LoggedModelChange::AddParams(params) => {
                for (key, value) in params {
                    if before.params.get(key).is_some_and(|old| old != value) {
                        return Err(Error::Rejected(format!(
                            "Changing param values is not allowed. Param with key='{key}' was already logged for model '{id}'."
                        )));
                    }
                }
                set(&mut tx, "logged_model_params", id, params).await?;
            }
            LoggedModelChange::SetTags(tags) => set(&mut tx, "logged_model_tags", id, tags).await?,
            LoggedModelChange::DeleteTag(key) => {
                let sql = "DELETE FROM logged_model_tags WHERE model = $1 AND key = $2";
                let removed = query(sql).bind(id).bind(key).execute(&mut *tx).await?;
                if removed.rows_affected() == 0 {
                    let tag = Entity::LoggedModelTag { model: id.to_owned(), key: key.clone() };
                    return Err(Error::NotFound(tag));
                }
            }
        }
        let sql = "UPDATE logged_models SET update_time = $1 WHERE id = $2";
        query(sql).bind(now.0).bind(id).execute(&mut *tx).await?;
        let after = match change {
            LoggedModelChange::Delete => before,
            _ => find(&mut tx, id).await?,
        };
        tx.commit().await?;
        Ok(after)
    }
}

/// Adds that a model was measured on one of these datasets, where any are named.
fn push_datasets(query: &mut QueryBuilder<Db>, datasets: &[(String, Option<String>)]) {
    if datasets.is_empty() {
        return;
    }
    query.push(" AND EXISTS (SELECT 1 FROM logged_model_metrics p WHERE p.model = logged_models.id AND (1 = 0");
    for (name, digest) in datasets {
        query.push(" OR (p.dataset_name = ").push_bind(name.clone());
        if let Some(digest) = digest {
            query.push(" AND p.dataset_digest = ").push_bind(digest.clone());
        }
        query.push(")");
    }
    query.push("))");
}

async fn find(tx: &mut Connection, id: &str) -> Result<LoggedModel> {
    let mut query = QueryBuilder::<Db>::new(COLUMNS);
    query.push(" WHERE deleted = 0 AND id = ").push_bind(id.to_owned());
    let rows = query.build_query_as().fetch_all(&mut *tx).await?;
    with_parts(tx, rows).await?.pop().ok_or_else(|| Error::NotFound(Entity::LoggedModel(id.to_owned())))
}

pub(super) async fn set(
    tx: &mut Connection,
    table: &'static str,
    id: &str,
    pairs: &BTreeMap<String, String>,
) -> Result<()> {
    if pairs.is_empty() {
        return Ok(());
    }
    let mut insert = QueryBuilder::<Db>::new(format!("INSERT INTO {table} (model, key, value) "));
    insert.push_values(pairs, |mut row, (key, value)| {
        row.push_bind(id.to_owned()).push_bind(key.clone()).push_bind(value.clone());
    });
    insert.push(" ON CONFLICT (model, key) DO UPDATE SET value = excluded.value");
    insert.build().execute(&mut *tx).await?;
    Ok(())
}

/// Notes the metrics that were measured of logged models; of several with one key, time and step the last counts.
pub(super) async fn add_metrics(tx: &mut Connection, run: &str, metrics: &[Metric]) -> Result<()> {
    let mut newest: BTreeMap<(&str, &str, i64, i64), &Metric> = BTreeMap::new();
    for metric in metrics {
        if let Some(model) = &metric.model {
            newest.insert((model, &metric.key, metric.timestamp.0, metric.step), metric);
        }
    }
    let models: BTreeSet<&str> = newest.keys().map(|(model, ..)| *model).collect();
    must_all_be_there(tx, &models).await?;
    for some in Vec::from_iter(newest).chunks(ROWS_AT_ONCE) {
        let mut insert = QueryBuilder::<Db>::new(
            "INSERT INTO logged_model_metrics (model, run, key, timestamp, step, value, nan, dataset_name,
                                               dataset_digest) ",
        );
        insert.push_values(some, |mut row, ((model, key, timestamp, step), metric)| {
            let (value, nan) = kept(metric.value);
            let (name, digest) = metric.dataset.clone().unwrap_or_default();
            row.push_bind((*model).to_owned()).push_bind(run.to_owned()).push_bind((*key).to_owned());
            row.push_bind(*timestamp)
                .push_bind(*step)
                .push_bind(value)
                .push_bind(nan)
                .push_bind(name)
                .push_bind(digest);
        });
        insert.push(
            " ON CONFLICT (model, run, key, timestamp, step) DO UPDATE SET value = excluded.value, nan = excluded.nan",
        );
        insert.build().execute(&mut *tx).await?;
    }
    Ok(())
}

async fn must_all_be_there(tx: &mut Connection, ids: &BTreeSet<&str>) -> Result<()> {
    for some in Vec::from_iter(ids).chunks(IDS_AT_ONCE) {
        let mut query = QueryBuilder::<Db>::new("SELECT id FROM logged_models WHERE deleted = 0 AND id IN (");
        let mut list = query.separated(", ");
        for id in some {
            list.push_bind((**id).to_owned());
        }
        query.push(")");
        let there: Vec<String> = query.build_query_scalar().fetch_all(&mut *tx).await?;
        if let Some(id) = some.iter().find(|id| !there.iter().any(|there| there == **id)) {
            return Err(Error::NotFound(Entity::LoggedModel((**id).to_owned())));
        }
    }
    Ok(())
}

async fn with_parts(tx: &mut Connection, rows: Vec<Row>) -> Result<Vec<LoggedModel>> {
    let model = |row: Row| {
        let Row { id, experiment, name, artifact_location, status, model_type, source_run, create_time, update_time } =
            row;
        Ok(LoggedModel {
            id,
            experiment,
            name,
            artifact_location,
            status: from_word(status)?,
            model_type,
            source_run,
            params: BTreeMap::new(),
            tags: BTreeMap::new(),
            metrics: Vec::new(),
            create_time: Millis(create_time),
            update_time: Millis(update_time),
        })
    };
    let mut models = rows.into_iter().map(model).collect::<Result<Vec<_>>>()?;
    for some in models.chunks_mut(IDS_AT_ONCE) {
        let ids: Vec<String> = some.iter().map(|model| model.id.clone()).collect();
        let mut by_id: HashMap<String, &mut LoggedModel> =
            some.iter_mut().map(|model| (model.id.clone(), model)).collect();
        for (model, key, value) in pairs(tx, "logged_model_params", &ids).await? {
            by_id.get_mut(&model).map(|model| model.params.insert(key, value));
        }
        for (model, key, value) in pairs(tx, "logged_model_tags", &ids).await? {
            by_id.get_mut(&model).map(|model| model.tags.insert(key, value));
        }
        let mut metrics = of_models(
            "SELECT model, run, key, timestamp, step, value, nan, dataset_name, dataset_digest
             FROM logged_model_metrics",
            &ids,
        );
        metrics.push(" ORDER BY key, timestamp, step, run");
        for row in metrics.build_query_as::<MetricRow>().fetch_all(&mut *tx).await? {
            let MetricRow { model, run, key, timestamp, step, value, nan, dataset_name, dataset_digest } = row;
            let value = if nan != 0 { f64::NAN } else { value };
            let dataset = (!dataset_name.is_empty()).then_some((dataset_name, dataset_digest));
            let metric = Metric { key, value, timestamp: Millis(timestamp), step, model: Some(model.clone()), dataset };
            if let Some(model) = by_id.get_mut(&model) {
                model.metrics.push((run, metric));
            }
        }
    }
    Ok(models)
}

async fn pairs(tx: &mut Connection, table: &'static str, ids: &[String]) -> Result<Vec<(String, String, String)>> {
    let mut query = of_models(&format!("SELECT model, key, value FROM {table}"), ids);
    Ok(query.build_query_as().fetch_all(&mut *tx).await?)
}

fn of_models(select: &str, ids: &[String]) -> QueryBuilder<Db> {
    let mut query = QueryBuilder::<Db>::new(select);
    let mut list = query.push(" WHERE model IN (").separated(", ");
    for id in ids {
        list.push_bind(id.clone());
    }
    query.push(")");
    query
}
