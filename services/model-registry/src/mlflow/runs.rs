//! Runs and what they log.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use serde_json::{Value, json};
use uuid::Uuid;

use super::experiments::{experiment_id, view};
use super::request::{Fields, missing};
use super::{Answer, Mlflow, Refusal, answer};
use crate::search::Subject;
use crate::tracking::{
    Batch, DatasetInput, DatasetSummary, Metric, Millis, ModelOutput, RunChange, RunDraft, RunStatus, Search, Uses,
    limits,
};

/// Most experiments whose datasets are asked for at once.
const MAX_DATASET_EXPERIMENTS: usize = 20;

const RUN_NAME: &str = "mlflow.runName";

pub(super) fn routes() -> Router<Mlflow> {
    Router::new()
        .route("/mlflow/runs/create", post(create))
        .route("/mlflow/runs/get", get(by_id))
        .route("/mlflow/runs/search", post(search))
        .route("/mlflow/runs/update", post(update))
        .route("/mlflow/runs/delete", post(delete))
        .route("/mlflow/runs/restore", post(restore))
        .route("/mlflow/runs/log-metric", post(log_metric))
        .route("/mlflow/runs/log-parameter", post(log_param))
        .route("/mlflow/runs/set-tag", post(set_tag))
        .route("/mlflow/runs/delete-tag", post(delete_tag))
        .route("/mlflow/runs/log-batch", post(log_batch))
        .route("/mlflow/runs/log-inputs", post(log_inputs))
        .route("/mlflow/runs/outputs", post(log_outputs))
        .route("/mlflow/experiments/search-datasets", post(search_datasets))
}

async fn create(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let experiment = experiment_id(&fields.text_or_empty("experiment_id")?)?;
    let tags = fields.pairs("tags")?;
    for (index, (key, value)) in tags.iter().enumerate() {
        limits::tag(&format!("tags[{index}]"), key, value)?;
    }
    let (given, tagged) = (fields.text_or_empty("run_name")?, tags.get(RUN_NAME).cloned().unwrap_or_default());
    if !given.is_empty() && !tagged.is_empty() && given != tagged {
        return Err(Refusal::invalid(format!(
            "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with different values \
             (run_name='{given}', mlflow.runName='{tagged}')."
        )));
    }
    let id = Uuid::new_v4().simple().to_string();
    let name = [given, tagged].into_iter().find(|name| !name.is_empty()).unwrap_or_else(|| format!("run-{}", &id[..8]));
    let draft = RunDraft {
        id,
        experiment,
        name,
        user_id: fields.text_or_empty("user_id")?,
        start_time: fields.millis("start_time")?.unwrap_or_else(Millis::now),
        tags,
    };
    Ok(answer::one("run", answer::run(mlflow.store.create_run(&draft).await?)))
}

async fn by_id(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let run = mlflow.store.run(&fields.run_id()?).await?;
    Ok(answer::one("run", answer::run(run)))
}

async fn search(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let experiments = fields.texts("experiment_ids")?;
    let search = Search {
        conditions: fields.conditions(Subject::Runs)?,
        orders: fields.orders(Subject::Runs)?,
        view: view(&fields, "run_view_type")?,
        experiments: experiments.iter().map(|id| experiment_id(id)).collect::<Result<_, _>>()?,
        datasets: Vec::new(),
        offset: fields.offset()?,
        limit: fields.limit(1000, 50_000)?,
    };
    let page = mlflow.store.runs(&search).await?;
    Ok(answer::page("runs", page.items.into_iter().map(answer::run).collect(), page.next))
}

fn status(fields: &Fields) -> Result<Option<RunStatus>, Refusal> {
    if let Ok(Some(number)) = fields.integer("status") {
        return match number {
            1 => Ok(Some(RunStatus::Running)),
            2 => Ok(Some(RunStatus::Scheduled)),
            3 => Ok(Some(RunStatus::Finished)),
            4 => Ok(Some(RunStatus::Failed)),
            5 => Ok(Some(RunStatus::Killed)),
            _ => Err(Refusal::invalid(format!("Invalid value {number} for parameter 'status' supplied."))),
        };
    }
    let Some(text) = fields.text("status")? else { return Ok(None) };
    let read = serde_json::from_value(Value::String(text.clone()));
    read.map(Some).map_err(|_| {
        Refusal::invalid(format!("Invalid value {} for parameter 'status' supplied.", Value::String(text)))
    })
}

async fn update(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let change = RunChange::Update {
        status: status(&fields)?,
        end_time: fields.millis("end_time")?,
        name: fields.text("run_name")?,
    };
    let run = mlflow.store.change_run(&fields.run_id()?, &change).await?;
    Ok(answer::one("run_info", answer::run_info(&run)))
}

async fn change(mlflow: &Mlflow, fields: &Fields, change: RunChange) -> Answer {
    mlflow.store.change_run(&fields.run_id()?, &change).await?;
    Ok(answer::nothing())
}

async fn delete(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    change(&mlflow, &fields, RunChange::Delete).await
}

async fn restore(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    change(&mlflow, &fields, RunChange::Restore).await
}

async fn delete_tag(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let key = fields.required("key")?;
    change(&mlflow, &fields, RunChange::DeleteTag(key)).await
}

/// Reads a metric; `at` is where it stands in the request, for messages.
fn metric(fields: &Fields, at: &str) -> Result<Metric, Refusal> {
    let name = |field: &str| format!("{at}{field}");
    let text = |field: &str| Ok::<_, Refusal>(fields.text(field)?.filter(|text| !text.is_empty()));
    let dataset = match (text("dataset_name")?, text("dataset_digest")?) {
        (Some(dataset), Some(digest)) => Some((dataset, digest)),
        _ => None,
    };
    Ok(Metric {
        key: fields.text("key")?.filter(|key| !key.is_empty()).ok_or_else(|| missing(&name("key")))?,
        value: fields.number("value")?.ok_or_else(|| missing(&name("value")))?,
        timestamp: Millis(fields.integer("timestamp")?.ok_or_else(|| missing(&name("timestamp")))?),
        step: fields.integer("step")?.unwrap_or(0),
        model: text("model_id")?,
        dataset,
    })
}

async fn log(mlflow: &Mlflow, run: &str, batch: Batch) -> Answer {
    mlflow.store.log(run, &batch).await?;
    Ok(answer::nothing())
}

async fn log_metric(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let (run, metric) = (fields.run_id()?, metric(&fields, "")?);
    limits::metric("", &metric)?;
    log(&mlflow, &run, Batch { metrics: vec![metric], ..Batch::default() }).await
}

async fn log_param(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let (run, key, value) = (fields.run_id()?, fields.required("key")?, fields.text_or_empty("value")?);
    limits::param("", &key, &value)?;
    log(&mlflow, &run, Batch { params: vec![(key, value)], ..Batch::default() }).await
}

async fn set_tag(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let (run, key, value) = (fields.run_id()?, fields.required("key")?, fields.text_or_empty("value")?);
    limits::tag("", &key, &value)?;
    log(&mlflow, &run, Batch { tags: vec![(key, value)], ..Batch::default() }).await
}

async fn log_batch(State(mlflow): State<Mlflow>, mut fields: Fields) -> Answer {
    let run = fields.run_id()?;
    let metrics = fields.take_objects("metrics")?;
    let read = |(index, fields): (usize, &Fields)| metric(fields, &format!("metrics[{index}]."));
    let batch = Batch {
        metrics: metrics.iter().enumerate().map(read).collect::<Result<_, _>>()?,
        params: fields.pair_list("params")?,
        tags: fields.pair_list("tags")?,
    };
    limits::batch(&batch)?;
    log(&mlflow, &run, batch).await
}

async fn log_inputs(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let run = fields.run_id()?;
    let mut uses = Uses::default();
    for (index, input) in fields.objects("datasets")?.into_iter().enumerate() {
        let dataset = input.object("dataset")?.ok_or_else(|| missing(&format!("datasets[{index}].dataset")))?;
        let required = |field: &str| {
            let value = dataset.text(field)?.filter(|text| !text.is_empty());
            value.ok_or_else(|| missing(&format!("datasets[{index}].dataset.{field}")))
        };
        let read = DatasetInput {
            name: required("name")?,
            digest: required("digest")?,
            source_type: required("source_type")?,
            source: required("source")?,
            schema: dataset.text("schema")?,
            profile: dataset.text("profile")?,
            tags: input.pairs("tags")?,
        };
        limits::dataset(&read)?;
        uses.datasets.push(read);
    }
    for model in fields.objects("models")? {
        uses.model_inputs.push(model.required("model_id")?);
    }
    mlflow.store.log_uses(&run, &uses).await?;
    Ok(answer::nothing())
}

async fn log_outputs(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let run = fields.run_id()?;
    let output = |model: Fields| {
        Ok(ModelOutput { model: model.required("model_id")?, step: model.integer("step")?.unwrap_or(0) })
    };
    let model_outputs = fields.objects("models")?.into_iter().map(output).collect::<Result<_, Refusal>>()?;
    mlflow.store.log_uses(&run, &Uses { model_outputs, ..Uses::default() }).await?;
    Ok(answer::nothing())
}

async fn search_datasets(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let experiments = fields.texts("experiment_ids")?;
    if experiments.is_empty() {
        return Err(Refusal::invalid("SearchDatasets request must specify at least one experiment_id."));
    }
    if experiments.len() > MAX_DATASET_EXPERIMENTS {
        return Err(Refusal::invalid(format!(
            "SearchDatasets request cannot specify more than {MAX_DATASET_EXPERIMENTS} experiment_ids. Received {} \
             experiment_ids.",
            experiments.len()
        )));
    }
    let experiments = experiments.iter().map(|id| experiment_id(id)).collect::<Result<Vec<_>, _>>()?;
    let summary = |summary: DatasetSummary| {
        let DatasetSummary { experiment, name, digest, context } = summary;
        let mut fields = json!({"experiment_id": experiment.to_string(), "name": name, "digest": digest});
        if let Some(context) = context {
            fields["context"] = context.into();
        }
        fields
    };
    let found = mlflow.store.dataset_summaries(&experiments).await?;
    Ok(answer::one("dataset_summaries", found.into_iter().map(summary).collect()))
}
