//! Histories of metrics.

use std::collections::BTreeSet;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde_json::{Value, json};

use super::request::{Fields, missing};
use super::{Answer, Mlflow, Refusal, answer};
use crate::tracking::{Metric, limits};

/// Most values of a metric in one answer.
const MAX_HISTORY: u32 = 25_000;
/// Most values where no limit was asked for.
const MAX_WHOLE_HISTORY: u32 = 1_000_000;
/// Most runs of a bulk history.
const MAX_BULK_RUNS: usize = 100;
/// Most steps of a sampled history.
const MAX_SAMPLED: i64 = 2_500;

pub(super) fn routes() -> Router<Mlflow> {
    Router::new()
        .route("/mlflow/metrics/get-history", get(history))
        .route("/mlflow/metrics/get-history-bulk", get(bulk))
        .route("/mlflow/metrics/get-history-bulk-interval", get(bulk_interval))
}

async fn history(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let (run, key) = (fields.run_id()?, fields.required("metric_key")?);
    limits::metric_key(&key)?;
    let limit = if fields.has("max_results") { fields.limit(MAX_HISTORY, MAX_HISTORY)? } else { MAX_WHOLE_HISTORY };
    let page = mlflow.store.history(&run, &key, fields.offset()?, limit).await?;
    Ok(answer::page("metrics", page.items.into_iter().map(answer::metric).collect(), page.next))
}

fn of_run(run: &str, metric: Metric) -> Value {
    let mut fields = answer::metric(metric);
    fields["run_id"] = run.into();
    fields
}

async fn bulk(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let mut runs = fields.texts("run_id")?;
    if runs.is_empty() {
        return Err(Refusal::invalid("GetMetricHistoryBulk request must specify at least one run_id."));
    }
    if runs.len() > MAX_BULK_RUNS {
        return Err(Refusal::invalid(format!(
            "GetMetricHistoryBulk request cannot specify more than {MAX_BULK_RUNS} run_ids. Received {} run_ids.",
            runs.len()
        )));
    }
    let Some(key) = fields.text("metric_key")? else {
        return Err(Refusal::invalid("GetMetricHistoryBulk request must specify a metric_key."));
    };
    limits::metric_key(&key)?;
    let limit = fields.integer("max_results")?.unwrap_or(i64::from(MAX_HISTORY)).clamp(0, i64::from(MAX_HISTORY));
    let limit = u32::try_from(limit).unwrap_or(MAX_HISTORY);
    runs.sort();
    let mut metrics = Vec::new();
    for run in runs {
        let left = limit - metrics.len() as u32;
        if left == 0 {
            break;
        }
        let found = mlflow.store.history(&run, &key, 0, left).await?.items;
        metrics.extend(found.into_iter().map(|metric| of_run(&run, metric)));
    }
    Ok(answer::one("metrics", Value::Array(metrics)))
}

async fn bulk_interval(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    Ok(answer::whole(interval(&mlflow, &fields).await?))
}

/// The values at some of the steps that were logged, evenly chosen among those asked for; the first and last step of each
/// run are always there.
pub(super) async fn interval(mlflow: &Mlflow, fields: &Fields) -> Result<Value, Refusal> {
    let runs = fields.texts("run_ids")?;
    if runs.is_empty() {
        return Err(missing("run_ids"));
    }
    if runs.len() > MAX_BULK_RUNS {
        return Err(Refusal::invalid(format!(
            "GetMetricHistoryBulkInterval request must specify at most {MAX_BULK_RUNS} run_ids. Received {} run_ids.",
            runs.len()
        )));
    }
    let key = fields.required("metric_key")?;
    limits::metric_key(&key)?;
    let wanted = fields.integer("max_results")?.unwrap_or(MAX_SAMPLED);
    if !(1..=MAX_SAMPLED).contains(&wanted) {
        return Err(Refusal::invalid(format!("max_results must be between 1 and {MAX_SAMPLED}.")));
    }
    let range = match (fields.integer("start_step")?, fields.integer("end_step")?) {
        (Some(start), Some(end)) if start > end => {
            return Err(Refusal::invalid(format!(
                "end_step must be greater than start_step. Found start_step={start} and end_step={end}."
            )));
        }
        (Some(start), Some(end)) => start..=end,
        (None, None) => 0..=i64::MAX,
        _ => {
            let told = "If either start step or end step are specified, both must be specified.";
            return Err(Refusal::invalid(told));
        }
    };
    let mut histories = Vec::with_capacity(runs.len());
    let (mut steps, mut chosen) = (BTreeSet::new(), BTreeSet::new());
    for run in &runs {
        let history = mlflow.store.history(run, &key, 0, MAX_HISTORY).await?.items;
        let logged: BTreeSet<i64> = history.iter().map(|metric| metric.step).collect();
        chosen.extend([logged.first(), logged.last()].into_iter().flatten().filter(|step| range.contains(step)));
        steps.extend(logged.into_iter().filter(|step| range.contains(step)));
        histories.push(history);
    }
    chosen.extend(sampled(&Vec::from_iter(steps), wanted as usize));
    let mut metrics = Vec::new();
    for (run, mut history) in runs.iter().zip(histories) {
        history.retain(|metric| chosen.contains(&metric.step));
        history.sort_by(|a, b| (a.step, a.timestamp).cmp(&(b.step, b.timestamp)).then(a.value.total_cmp(&b.value)));
        metrics.extend(history.into_iter().map(|metric| of_run(run, metric)));
    }
    Ok(json!({"metrics": metrics}))
}

/// `count` of the steps at even distances, and the last.
fn sampled(steps: &[i64], count: usize) -> Vec<i64> {
    if steps.len() <= count {
        return steps.to_vec();
    }
    let at = |index: usize| steps[index * steps.len() / count];
    (0..count).map(at).chain(steps.last().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::sampled;

    #[test]
    fn steps_are_chosen_evenly_and_the_last_is_among_them() {
        let steps: Vec<i64> = (0..10).collect();
        assert_eq!(sampled(&steps, 5), [0, 2, 4, 6, 8, 9]);
        assert_eq!(sampled(&steps, 10), steps);
        assert_eq!(sampled(&[], 3), [] as [i64; 0]);
    }
}
