//! Runs with all they logged, a page of them in one query, or in two where JSON would round the values of metrics.

use std::borrow::Cow;
use std::collections::HashMap;

use anyhow::anyhow;
use sqlx::QueryBuilder;

use super::runs::{MetricRow, Row};
use super::{Connection, Db, IDS_AT_ONCE, Lists, VALUES_COME_ALONG};
use crate::error::{Entity, Error, Result};
use crate::store::rows::from_json;
use crate::tracking::{DatasetInput, ModelOutput, Run};

/// To be followed by a table of runs that is called `r`, and by [`WHOLE_END`].
const WHOLE: &str = "WITH page AS MATERIALIZED (SELECT r.* FROM ";

/// A page of runs with what they logged as one row.
const WHOLE_END: &str = concat!(
    ") ",
    select_lists!(
        runs: [
            "r.id", "r.experiment", "r.name", "r.user_id", "r.status", "r.start_time", "r.end_time", "r.artifact_uri",
            "r.deleted"
        ] of "page r",
        params: ["p.run", "p.key", "p.value"] of "page r CROSS JOIN params p WHERE p.run = r.id",
        tags: ["p.run", "p.key", "p.value"] of "page r CROSS JOIN run_tags p WHERE p.run = r.id",
        metrics: ["p.run", "p.key", "p.timestamp", "p.step", "p.nan", metric_value!()]
            of "page r CROSS JOIN latest_metrics p WHERE p.run = r.id",
        datasets: ["p.run", "p.name", "p.digest", "d.source_type", "d.source", "d.schema", "d.profile", "p.tags"]
            of "page r CROSS JOIN run_datasets p JOIN datasets d
                ON d.experiment = p.experiment AND d.name = p.name AND d.digest = p.digest WHERE p.run = r.id",
        models: ["p.run", "p.direction", "p.model", "p.step"] of "page r CROSS JOIN run_models p WHERE p.run = r.id"
    )
);

/// Run, key, timestamp, step, whether it is NaN, and the value where the database gives it with the others.
type Measured<'r> = (Cow<'r, str>, String, i64, i64, i64, Option<f64>);

/// A page of runs: their own rows, in order, and the rows of other tables that belong to them.
struct WholePage<'r> {
    runs: Vec<Row>,
    params: Vec<(Cow<'r, str>, String, String)>,
    tags: Vec<(Cow<'r, str>, String, String)>,
    /// The values have not come along where JSON would round them.
    metrics: Vec<Measured<'r>>,
    datasets: Vec<Dataset<'r>>,
    models: Vec<(Cow<'r, str>, Cow<'r, str>, String, i64)>,
}

type Dataset<'r> = (Cow<'r, str>, String, String, String, String, Option<String>, Option<String>, Cow<'r, str>);

impl WholePage<'_> {
    fn into_runs(self) -> Result<Vec<Run>> {
        let Self { runs: rows, params, tags, metrics, datasets, models } = self;
        let mut runs = rows.into_iter().map(Row::into_run).collect::<Result<Vec<Run>>>()?;
        let ids: Vec<String> = runs.iter().map(|run| run.id.clone()).collect();
        let places: HashMap<&str, usize> = ids.iter().map(String::as_str).zip(0..).collect();
        let place = |run: &str| places.get(run).copied();
        for (run, key, value) in params {
            if let Some(at) = place(&run) {
                runs[at].params.insert(key, value);
            }
        }
        for (run, key, value) in tags {
            if let Some(at) = place(&run) {
                runs[at].tags.insert(key, value);
            }
        }
        for (run, key, timestamp, step, nan, value) in metrics {
            if let Some(at) = place(&run) {
                let value = value.unwrap_or_default();
                runs[at].metrics.push(MetricRow { key, timestamp, step, value, nan }.into_metric());
            }
        }
        for (run, name, digest, source_type, source, schema, profile, tags) in datasets {
            if let Some(at) = place(&run) {
                let tags = from_json(&tags)?;
                runs[at].datasets.push(DatasetInput { name, digest, source_type, source, schema, profile, tags });
            }
        }
        for (run, direction, model, step) in models {
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

/// The runs a query finds that [`select`] began, in its order, with what they logged. Unless [`VALUES_COME_ALONG`] it needs one
/// snapshot for two queries.
pub(super) async fn whole(tx: &mut Connection, mut query: QueryBuilder<Db>) -> Result<Vec<Run>> {
    query.push(WHOLE_END);
    let row = query.build().fetch_one(&mut *tx).await?;
    let mut lists = Lists::new(&row);
    let page = WholePage {
        runs: lists.next()?,
        params: lists.next()?,
        tags: lists.next()?,
        metrics: lists.next()?,
        datasets: lists.next()?,
        models: lists.next()?,
    };
    let mut runs = page.into_runs()?;
    if !VALUES_COME_ALONG {
        add_values(tx, &mut runs).await?;
    }
    Ok(runs)
}

/// Gives the metrics of runs their values.
async fn add_values(tx: &mut Connection, runs: &mut [Run]) -> Result<()> {
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
    Ok(())
}
