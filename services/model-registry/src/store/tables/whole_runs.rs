//! Runs with all they logged, a page of them in two queries.

use std::borrow::Cow;
use std::collections::HashMap;

use anyhow::anyhow;
use sqlx::QueryBuilder;

use super::runs::{MetricRow, Row};
use super::{Connection, Db, IDS_AT_ONCE};
use crate::error::{Entity, Error, Result};
use crate::store::rows::{from_json, list};
use crate::tracking::{DatasetInput, ModelOutput, Run};

/// To be followed by a table of runs that is called `r`, and by [`WHOLE_END`].
const WHOLE: &str = "WITH page AS MATERIALIZED (SELECT r.* FROM ";

/// A page of runs with what they logged as one row, each column the JSON of one table.
const WHOLE_END: &str = concat!(
    ") SELECT ",
    rows_of!(
        "r.id, r.experiment, r.name, r.user_id, r.status, r.start_time, r.end_time, r.artifact_uri, r.deleted",
        "page r"
    ),
    ", ",
    rows_of!("p.run, p.key, p.value", "page r CROSS JOIN params p WHERE p.run = r.id"),
    ", ",
    rows_of!("p.run, p.key, p.value", "page r CROSS JOIN run_tags p WHERE p.run = r.id"),
    ", ",
    rows_of!("p.run, p.key, p.timestamp, p.step, p.nan", "page r CROSS JOIN latest_metrics p WHERE p.run = r.id"),
    ", ",
    rows_of!(
        "p.run, p.name, p.digest, d.source_type, d.source, d.schema, d.profile, p.tags",
        "page r CROSS JOIN run_datasets p JOIN datasets d
         ON d.experiment = p.experiment AND d.name = p.name AND d.digest = p.digest WHERE p.run = r.id"
    ),
    ", ",
    rows_of!("p.run, p.direction, p.model, p.step", "page r CROSS JOIN run_models p WHERE p.run = r.id")
);

/// A page of runs: JSON of their own rows, in order, then of params, tags, metrics but for their values, datasets and models.
#[derive(sqlx::FromRow)]
struct WholePage(String, String, String, String, String, String);

impl WholePage {
    fn into_runs(self) -> Result<Vec<Run>> {
        let Self(rows, params, tags, metrics, datasets, models) = self;
        let rows = list::<Row>(&rows)?;
        let mut runs = rows.into_iter().map(Row::into_run).collect::<Result<Vec<Run>>>()?;
        let ids: Vec<String> = runs.iter().map(|run| run.id.clone()).collect();
        let places: HashMap<&str, usize> = ids.iter().map(String::as_str).zip(0..).collect();
        let place = |run: &str| places.get(run).copied();
        for (run, key, value) in list::<(Cow<'_, str>, String, String)>(&params)? {
            if let Some(at) = place(&run) {
                runs[at].params.insert(key, value);
            }
        }
        for (run, key, value) in list::<(Cow<'_, str>, String, String)>(&tags)? {
            if let Some(at) = place(&run) {
                runs[at].tags.insert(key, value);
            }
        }
        for (run, key, timestamp, step, nan) in list::<(Cow<'_, str>, String, i64, i64, i64)>(&metrics)? {
            if let Some(at) = place(&run) {
                runs[at].metrics.push(MetricRow { key, timestamp, step, value: 0.0, nan }.into_metric());
            }
        }
        type Dataset<'a> = (Cow<'a, str>, String, String, String, String, Option<String>, Option<String>, Cow<'a, str>);
        for (run, name, digest, source_type, source, schema, profile, tags) in list::<Dataset<'_>>(&datasets)? {
            if let Some(at) = place(&run) {
                let tags = from_json(&tags)?;
                runs[at].datasets.push(DatasetInput { name, digest, source_type, source, schema, profile, tags });
            }
        }
        for (run, direction, model, step) in list::<(Cow<'_, str>, Cow<'_, str>, String, i64)>(&models)? {
            match (place(&run), &*direction) {
                (None, _) => {}
                (Some(at), "input") => runs[at].model_inputs.push(model),
                (Some(at), _) => runs[at].model_outputs.push(ModelOutput { model, step }),
            }
        }
        for run in &mut runs {
            // In the order of their keys in the tables: an aggregate has none.
            run.metrics.sort_by(|a, b| a.key.cmp(&b.key));
            run.datasets.sort_by(|a, b| (&a.name, &a.digest).cmp(&(&b.name, &b.digest)));
            run.model_inputs.sort();
            run.model_outputs.sort_by(|a, b| a.model.cmp(&b.model));
        }
        Ok(runs)
    }
}

/// Begins a query for runs, which [`whole`] ends: what follows names the table `r`.
pub(super) fn select() -> QueryBuilder<Db> {
    QueryBuilder::new(WHOLE)
}

pub(super) async fn find(tx: &mut Connection, id: &str) -> Result<Run> {
    let mut query = select();
    query.push("runs AS r WHERE r.id = ").push_bind(id.to_owned());
    whole(tx, query).await?.pop().ok_or_else(|| Error::NotFound(Entity::Run(id.to_owned())))
}

/// The runs a query finds that [`select`] began, in its order, with what they logged. The snapshot must be one: values of
/// metrics come by a second query, as numbers, which SQLite's JSON would round.
pub(super) async fn whole(tx: &mut Connection, mut query: QueryBuilder<Db>) -> Result<Vec<Run>> {
    query.push(WHOLE_END);
    let page: WholePage = query.build_query_as().fetch_one(&mut *tx).await?;
    let mut runs = page.into_runs()?;
    let mut measured: Vec<&mut Run> = runs.iter_mut().filter(|run| !run.metrics.is_empty()).collect();
    measured.sort_by(|a, b| a.id.cmp(&b.id));
    for some in measured.chunks_mut(IDS_AT_ONCE) {
        let mut query = QueryBuilder::<Db>::new("SELECT value FROM latest_metrics WHERE run IN (");
        let mut ids = query.separated(", ");
        for run in &*some {
            ids.push_bind(run.id.clone());
        }
        query.push(") ORDER BY run, key");
        let values: Vec<f64> = query.build_query_scalar().fetch_all(&mut *tx).await?;
        let metrics = || some.iter().map(|run| run.metrics.len()).sum::<usize>();
        if values.len() != metrics() {
            return Err(anyhow!("{} values of {} metrics were read", values.len(), metrics()).into());
        }
        let metrics = some.iter_mut().flat_map(|run| &mut run.metrics);
        for (metric, value) in metrics.zip(values).filter(|(metric, _)| !metric.value.is_nan()) {
            metric.value = value;
        }
    }
    Ok(runs)
}
