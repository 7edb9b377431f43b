//! Runs in the tables of `migrations/`, compiled once for each database.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use sqlx::{QueryBuilder, query, query_scalar};

use super::experiments::{self, push_view};
use super::searching::{Place, push_conditions, push_orders, push_page};
use super::whole_runs::{find, select, whole};
use super::{Connection, Db, IF_NEW, ROWS_AT_ONCE, Tables, insert_metrics, run_reader};
use crate::error::{Entity, Error, Result};
use crate::search::Attribute;
use crate::store::rows::{from_word, kept, to_json, to_word};
use crate::store::within::row_within;
use crate::tracking::{
    Batch, DatasetInput, DatasetSummary, Metric, Millis, ModelOutput, Page, RUN_NAME, Run, RunChange, RunDraft, Runs,
    Search, Uses,
};

/// The tag that lists the models a run logged, by clients that know no logged models.
const MODELS: &str = "mlflow.log-model.history";
/// Longest such list, in bytes.
const MAX_MODELS: usize = 1 << 20;

const COLUMNS: &str =
    "SELECT id, experiment, name, user_id, status, start_time, end_time, artifact_uri, deleted FROM runs";

const PLACE: Place = Place {
    column: |attribute| match attribute {
        Attribute::RunId => Some("runs.id"),
        Attribute::RunName => Some("runs.name"),
        Attribute::UserId => Some("runs.user_id"),
        Attribute::Status => Some("runs.status"),
        Attribute::StartTime => Some("runs.start_time"),
        Attribute::EndTime => Some("runs.end_time"),
        Attribute::ArtifactUri => Some("runs.artifact_uri"),
        _ => None,
    },
    tags: "run_tags p WHERE p.run = runs.id",
    params: "params p WHERE p.run = runs.id",
    metrics: "latest_metrics p WHERE p.run = runs.id",
    datasets: "run_datasets p WHERE p.run = runs.id",
    per_millisecond: 1,
};

row_within! {
    #[derive(sqlx::FromRow)]
    pub(super) struct Row {
        id: String,
        experiment: i64,
        name: String,
        user_id: String,
        status: String,
        start_time: i64,
        end_time: Option<i64>,
        artifact_uri: String,
        deleted: i64,
    }
}

#[derive(sqlx::FromRow)]
pub(super) struct MetricRow {
    pub(super) key: String,
    pub(super) timestamp: i64,
    pub(super) step: i64,
    pub(super) value: f64,
    pub(super) nan: i64,
}

impl MetricRow {
    pub(super) fn into_metric(self) -> Metric {
        let Self { key, timestamp, step, value, nan } = self;
        let value = if nan != 0 { f64::NAN } else { value };
        Metric { key, value, timestamp: Millis(timestamp), step, model: None, dataset: None }
    }
}

#[async_trait]
impl Runs for Tables {
    async fn create_run(&self, draft: &RunDraft) -> Result<Run> {
        let RunDraft { id, experiment, name, user_id, start_time, tags } = draft;
        let mut tx = self.begin_write().await?;
        let parent = experiments::find(&mut tx, *experiment).await?;
        experiments::must_be_active(&parent)?;
        query(
            "INSERT INTO runs (id, experiment, name, user_id, status, start_time, artifact_uri)
             VALUES ($1, $2, $3, $4, 'RUNNING', $5, $6)",
        )
        .bind(id)
        .bind(experiment)
        .bind(name)
        .bind(user_id)
        .bind(start_time.0)
        .bind(format!("{}/{id}/artifacts", parent.artifact_location.trim_end_matches('/')))
        .execute(&mut *tx)
        .await?;
        let mut tags: Vec<_> = tags.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        tags.retain(|(key, _)| key != RUN_NAME);
        tags.push((RUN_NAME.to_owned(), name.clone()));
        set_tags(&mut tx, id, &tags).await?;
        let run = find(&mut tx, id).await?;
        tx.commit().await?;
        Ok(run)
    }

    async fn run(&self, id: &str) -> Result<Run> {
        find(&mut *run_reader(self.reader()).await?, id).await
    }

    async fn runs(&self, search: &Search) -> Result<Page<Run>> {
        let Search { conditions, orders, view, experiments, datasets: _, offset, limit } = search;
        if experiments.is_empty() {
            return Ok(Page { items: Vec::new(), next: None });
        }
        let mut query = select();
        let mut ids = query.push("(SELECT * FROM runs WHERE experiment IN (").separated(", ");
        for id in experiments {
            ids.push_bind(*id);
        }
        query.push(")");
        push_view(&mut query, *view);
        push_conditions(&mut query, &PLACE, conditions);
        push_orders(&mut query, &PLACE, orders, "start_time DESC, id");
        push_page(&mut query, *offset, *limit);
        query.push(") AS r");
        Ok(Page::cut(whole(&mut *run_reader(self.reader()).await?, query).await?, *offset, *limit))
    }

    async fn change_run(&self, id: &str, change: &RunChange) -> Result<Run> {
        let mut tx = self.begin_write().await?;
        let before = lock(&mut tx, id).await?;
        match change {
            RunChange::Update { status, end_time, name } => {
                must_be_active(id, before.is_deleted)?;
                if let Some(status) = status {
                    let sql = "UPDATE runs SET status = $1 WHERE id = $2";
                    query(sql).bind(to_word(status)?).bind(id).execute(&mut *tx).await?;
                }
                if let Some(end_time) = end_time {
                    let sql = "UPDATE runs SET end_time = $1 WHERE id = $2";
                    query(sql).bind(end_time.0).bind(id).execute(&mut *tx).await?;
                }
                if let Some(name) = name.as_ref().filter(|name| !name.is_empty()) {
                    set_tags(&mut tx, id, &[(RUN_NAME.to_owned(), name.clone())]).await?;
                }
            }
            RunChange::Delete | RunChange::Restore => {
                let deletes = matches!(change, RunChange::Delete);
                if before.is_deleted == deletes {
                    return Err(Error::Rejected(must_be(id, if deletes { "active" } else { "deleted" })));
                }
                let sql = "UPDATE runs SET deleted = $1 WHERE id = $2";
                query(sql).bind(i64::from(deletes)).bind(id).execute(&mut *tx).await?;
            }
            RunChange::NoteModel(model) => {
                must_be_active(id, before.is_deleted)?;
                let noted: Option<String> = query_scalar("SELECT value FROM run_tags WHERE run = $1 AND key = $2")
                    .bind(id)
                    .bind(MODELS)
                    .fetch_optional(&mut *tx)
                    .await?;
                let noted = models_noted(noted.as_deref(), model)?;
                set_tags(&mut tx, id, &[(MODELS.to_owned(), noted)]).await?;
            }
            RunChange::DeleteTag(key) => {
                must_be_active(id, before.is_deleted)?;
                let sql = "DELETE FROM run_tags WHERE run = $1 AND key = $2";
                let removed = query(sql).bind(id).bind(key).execute(&mut *tx).await?;
                if removed.rows_affected() == 0 {
                    let of = format!("run with id {id}");
                    return Err(Error::NotFound(Entity::TagOf { of, key: key.clone() }));
                }
            }
        }
        let run = find(&mut tx, id).await?;
        tx.commit().await?;
        Ok(run)
    }

    async fn log(&self, run: &str, batch: &Batch) -> Result<()> {
        self.logging.log(run, batch).await
    }

    async fn log_uses(&self, run: &str, uses: &Uses) -> Result<()> {
        let Uses { datasets, model_inputs, model_outputs } = uses;
        let mut tx = self.begin_write().await?;
        let of = lock(&mut tx, run).await?;
        must_be_active(run, of.is_deleted)?;
        for dataset in datasets {
            add_dataset(&mut tx, &of, dataset).await?;
        }
        add_models(&mut tx, run, model_inputs, model_outputs).await?;
        Ok(tx.commit().await?)
    }

    async fn dataset_summaries(&self, experiments: &[i64]) -> Result<Vec<DatasetSummary>> {
        let mut query = QueryBuilder::<Db>::new(
            "SELECT DISTINCT experiment, name, digest, context FROM run_datasets WHERE experiment IN (",
        );
        let mut ids = query.separated(", ");
        for id in experiments {
            ids.push_bind(*id);
        }
        query.push(") ORDER BY experiment, name, digest LIMIT 1000");
        Ok(query.build_query_as().fetch_all(self.reader()).await?)
    }

    async fn history(&self, run: &str, key: &str, offset: u64, limit: u32) -> Result<Page<Metric>> {
        let mut query = QueryBuilder::<Db>::new("SELECT key, timestamp, step, value, nan FROM metrics WHERE run = ");
        query.push_bind(run.to_owned()).push(" AND key = ").push_bind(key.to_owned());
        query.push(" ORDER BY timestamp, step, value");
        push_page(&mut query, offset, limit);
        let rows: Vec<MetricRow> = query.build_query_as().fetch_all(self.reader()).await?;
        Ok(Page::cut(rows.into_iter().map(MetricRow::into_metric).collect(), offset, limit))
    }
}

/// What a run is, without what it logged; its row is locked where rows can be.
async fn lock(tx: &mut Connection, id: &str) -> Result<Run> {
    query("UPDATE runs SET deleted = deleted WHERE id = $1").bind(id).execute(&mut *tx).await?;
    let mut query = QueryBuilder::<Db>::new(COLUMNS);
    query.push(" WHERE id = ").push_bind(id.to_owned());
    let row: Option<Row> = query.build_query_as().fetch_optional(&mut *tx).await?;
    row.ok_or_else(|| Error::NotFound(Entity::Run(id.to_owned())))?.into_run()
}

fn must_be(id: &str, state: &str) -> String {
    format!("The run {id} must be in the '{state}' state.")
}

/// The list of a run's models with one more.
fn models_noted(before: Option<&str>, model: &serde_json::Value) -> Result<String> {
    let mut models: Vec<serde_json::Value> = match before {
        None => Vec::new(),
        Some(list) => serde_json::from_str(list).map_err(|_| {
            Error::Rejected(format!("The tag '{MODELS}' of the run is not a JSON list; delete it first"))
        })?,
    };
    models.push(model.clone());
    let noted = to_json(&models)?;
    if noted.len() > MAX_MODELS {
        return Err(Error::Rejected(format!("The tag '{MODELS}' of the run would exceed {MAX_MODELS} bytes")));
    }
    Ok(noted)
}

pub(super) fn must_be_active(run: &str, is_deleted: bool) -> Result<()> {
    if !is_deleted {
        return Ok(());
    }
    Err(Error::Rejected(format!("{} Current state is deleted.", must_be(run, "active"))))
}

pub(super) async fn add_params(tx: &mut Connection, run: &str, params: &[(String, String)]) -> Result<()> {
    if params.is_empty() {
        return Ok(());
    }
    let mut insert = QueryBuilder::<Db>::new("INSERT INTO params (run, key, value) ");
    insert.push_values(params, |mut row, (key, value)| {
        row.push_bind(run.to_owned()).push_bind(key.clone()).push_bind(value.clone());
    });
    insert.push(" ON CONFLICT (run, key) DO NOTHING");
    insert.build().execute(&mut *tx).await?;

    let mut select = QueryBuilder::<Db>::new("SELECT key, value FROM params WHERE run = ");
    let mut keys = select.push_bind(run.to_owned()).push(" AND key IN (").separated(", ");
    for (key, _) in params {
        keys.push_bind(key.clone());
    }
    select.push(")");
    let there: HashMap<String, String> =
        select.build_query_as::<(String, String)>().fetch_all(&mut *tx).await?.into_iter().collect();
    let changed: Vec<_> = params.iter().filter(|(key, value)| there.get(key) != Some(value)).collect();
    let Some((first, wanted)) = changed.first() else { return Ok(()) };
    let old = there.get(first).map_or("", String::as_str);
    if let [_] = params {
        return Err(Error::Rejected(format!(
            "Changing param values is not allowed. Param with key='{first}' was already logged with value='{old}' for run \
             ID='{run}'. Attempted logging new value '{wanted}'."
        )));
    }
    let told: Vec<String> = changed
        .iter()
        .map(|(key, value)| {
            let old = there.get(key).map_or("", String::as_str);
            format!("{{'key': '{key}', 'old_value': '{old}', 'new_value': '{value}'}}")
        })
        .collect();
    Err(Error::Rejected(format!(
        "Changing param values is not allowed. Params were already logged='[{}]' for run ID='{run}'.",
        told.join(", ")
    )))
}

/// What values of metrics are added to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum History {
    /// It has none of them: one that it has may fail.
    New,
    /// What it has stays as it is.
    Any,
}

/// Adds values of metrics, each with its run, which must be held.
pub(super) async fn add_metrics(tx: &mut Connection, metrics: &[(&str, &Metric)], to: History) -> Result<()> {
    match to {
        History::New => {
            for some in metrics.chunks(ROWS_AT_ONCE) {
                insert_metrics(tx, "metrics", some, IF_NEW).await?;
            }
        }
        History::Any => {
            // In one order, so that no two transactions wait for each other.
            let mut metrics = metrics.to_vec();
            metrics.sort_by(|(a, one), (b, other)| {
                let compared =
                    (a, &one.key, one.timestamp, one.step).cmp(&(b, &other.key, other.timestamp, other.step));
                compared.then(one.value.total_cmp(&other.value))
            });
            for some in metrics.chunks(ROWS_AT_ONCE) {
                insert_metrics(tx, "metrics", some, " ON CONFLICT DO NOTHING").await?;
            }
        }
    }
    // In the order of their keys, for the same reason.
    let mut latest: BTreeMap<(&str, &str), &Metric> = BTreeMap::new();
    for (run, metric) in metrics {
        let newest = latest.entry((run, &metric.key)).or_insert(metric);
        if rank(metric) > rank(newest) {
            *newest = metric;
        }
    }
    let latest: Vec<(&str, &Metric)> = latest.into_iter().map(|((run, _), metric)| (run, metric)).collect();
    for some in latest.chunks(ROWS_AT_ONCE) {
        let newer = " ON CONFLICT (run, key) DO UPDATE
                SET timestamp = excluded.timestamp, step = excluded.step, value = excluded.value, nan = excluded.nan
              WHERE (excluded.step, excluded.timestamp, excluded.value)
                  > (latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)";
        insert_metrics(tx, "latest_metrics", some, newer).await?;
    }
    Ok(())
}

/// The later of two values of a metric has the higher rank.
fn rank(metric: &Metric) -> (i64, i64, OrderedValue) {
    (metric.step, metric.timestamp.0, OrderedValue(kept(metric.value).0))
}

/// A finite number, so that any two compare.
#[derive(PartialEq)]
struct OrderedValue(f64);

impl PartialOrd for OrderedValue {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.0.total_cmp(&other.0))
    }
}

pub(super) async fn set_tags(tx: &mut Connection, run: &str, tags: &[(String, String)]) -> Result<()> {
    // Of several values for a key the last counts; one statement may not set a key twice.
    let tags: BTreeMap<&String, &String> = tags.iter().map(|(key, value)| (key, value)).collect();
    if tags.is_empty() {
        return Ok(());
    }
    let mut insert = QueryBuilder::<Db>::new("INSERT INTO run_tags (run, key, value) ");
    insert.push_values(&tags, |mut row, (key, value)| {
        row.push_bind(run.to_owned()).push_bind((*key).clone()).push_bind((*value).clone());
    });
    insert.push(" ON CONFLICT (run, key) DO UPDATE SET value = excluded.value");
    insert.build().execute(&mut *tx).await?;
    if let Some(name) = tags.get(&RUN_NAME.to_owned()) {
        query("UPDATE runs SET name = $1 WHERE id = $2").bind(*name).bind(run).execute(&mut *tx).await?;
    }
    Ok(())
}

pub(super) async fn add_models(
    tx: &mut Connection,
    run: &str,
    inputs: &[String],
    outputs: &[ModelOutput],
) -> Result<()> {
    let inputs = inputs.iter().map(|model| ("input", model, 0));
    let outputs = outputs.iter().map(|ModelOutput { model, step }| ("output", model, *step));
    for (direction, model, step) in inputs.chain(outputs) {
        query(
            "INSERT INTO run_models (run, direction, model, step) VALUES ($1, $2, $3, $4)
             ON CONFLICT (run, direction, model) DO NOTHING",
        )
        .bind(run)
        .bind(direction)
        .bind(model)
        .bind(step)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

pub(super) async fn add_dataset(tx: &mut Connection, of: &Run, dataset: &DatasetInput) -> Result<()> {
    let DatasetInput { name, digest, source_type, source, schema, profile, tags } = dataset;
    query(
        "INSERT INTO datasets (experiment, name, digest, source_type, source, schema, profile)
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (experiment, name, digest) DO NOTHING",
    )
    .bind(of.experiment)
    .bind(name)
    .bind(digest)
    .bind(source_type)
    .bind(source)
    .bind(schema)
    .bind(profile)
    .execute(&mut *tx)
    .await?;
    query(
        "INSERT INTO run_datasets (run, experiment, name, digest, context, tags) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (run, name, digest) DO UPDATE SET tags = excluded.tags, context = excluded.context",
    )
    .bind(&of.id)
    .bind(of.experiment)
    .bind(name)
    .bind(digest)
    .bind(tags.get("mlflow.data.context"))
    .bind(to_json(tags)?)
    .execute(&mut *tx)
    .await?;
    Ok(())
}

impl Row {
    pub(super) fn into_run(self) -> Result<Run> {
        let Self { id, experiment, name, user_id, status, start_time, end_time, artifact_uri, deleted } = self;
        Ok(Run {
            id,
            experiment,
            name,
            user_id,
            status: from_word(status)?,
            start_time: Millis(start_time),
            end_time: end_time.map(Millis),
            artifact_uri,
            is_deleted: deleted != 0,
            params: BTreeMap::new(),
            tags: BTreeMap::new(),
            metrics: Vec::new(),
            datasets: Vec::new(),
            model_inputs: Vec::new(),
            model_outputs: Vec::new(),
        })
    }
}
