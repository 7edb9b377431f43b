//! Runs and what they log.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::batches::Logged;
use super::bodies::RunBody;
use super::experiments::{experiment_id, view};
use super::request::{Fields, missing};
use super::{Answer, Mlflow, Refusal, answer};
use crate::search::Subject;
use crate::tracking::{
    Batch, DatasetInput, DatasetSummary, Metric, Millis, ModelOutput, Page, Run, RunChange, RunDraft, RunStatus,
    Search, Uses, limits,
};

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
        .route("/mlflow/runs/log-model", post(log_model))
        .route("/mlflow/runs/log-inputs", post(log_inputs))
        .route("/mlflow/runs/outputs", post(log_outputs))
        .route("/mlflow/experiments/search-datasets", post(search_datasets))
}

async fn create(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let experiment = experiment_id(&fields.text_or_empty("experiment_id")?)?;
    let (name, user) = (fields.text_or_empty("run_name")?, fields.text_or_empty("user_id")?);
    let draft = RunDraft::new(experiment, name, user, fields.millis("start_time")?, fields.pairs("tags")?)?;
    Ok(answer::one("run", answer::run(mlflow.store.create_run(&draft).await?)))
}

async fn by_id(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    Ok(answer::whole(get_by_id(&mlflow, &fields).await?))
}

/// What [`by_id`] answers.
pub(super) async fn get_by_id(mlflow: &Mlflow, fields: &Fields) -> Result<Value, Refusal> {
    let run = mlflow.store.run(&fields.run_id()?).await?;
    Ok(json!({"run": answer::run(run)}))
}

async fn search(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let page = page(&mlflow, &fields).await?;
    Ok(answer::written("runs", page.items.iter().map(RunBody::of).collect(), page.next))
}

/// What [`search`] answers.
pub(super) async fn found(mlflow: &Mlflow, fields: &Fields) -> Result<Value, Refusal> {
    let page = page(mlflow, fields).await?;
    Ok(answer::paged("runs", page.items.into_iter().map(answer::run).collect(), page.next))
}

async fn page(mlflow: &Mlflow, fields: &Fields) -> Result<Page<Run>, Refusal> {
    let experiments = fields.texts("experiment_ids")?;
    let search = Search {
        conditions: fields.conditions(Subject::Runs)?,
        orders: fields.orders(Subject::Runs)?,
        view: view(fields, "run_view_type")?,
        experiments: experiments.iter().map(|id| experiment_id(id)).collect::<Result<_, _>>()?,
        datasets: Vec::new(),
        offset: fields.offset()?,
        limit: fields.limit(1000, 50_000)?,
    };
    limits::search(&search)?;
    Ok(mlflow.store.runs(&search).await?)
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
    let change = RunChange::update(status(&fields)?, fields.millis("end_time")?, fields.text("run_name")?)?;
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
pub(super) fn metric(fields: &Fields, at: &str) -> Result<Metric, Refusal> {
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

async fn log_batch(State(mlflow): State<Mlflow>, Logged { run, batch }: Logged) -> Answer {
    limits::batch(&batch)?;
    log(&mlflow, &run, batch).await
}

/// What clients before 3.0 say of a model they have put beside their run: kept in one of the run's tags, in which they
/// look for it.
async fn log_model(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let text = fields.required("model_json")?;
    let Ok(Value::Object(mut model)) = serde_json::from_str(&text) else {
        let mut shown = text;
        shown.truncate(shown.floor_char_boundary(1000));
        return Err(Refusal::invalid(format!("Malformed model info. \n {shown} \n is not a valid JSON.")));
    };
    let needed = ["artifact_path", "flavors", "utc_time_created", "run_id"];
    let lacking: Vec<_> = needed.into_iter().filter(|name| !model.contains_key(*name)).collect();
    if !lacking.is_empty() {
        let lacking = lacking.join("', '");
        return Err(Refusal::invalid(format!("Model json is missing mandatory fields: {{'{lacking}'}}")));
    }
    model.retain(|name, _| needed.contains(&name.as_str()) || name == "model_uuid");
    let Some(flavors) = model.get_mut("flavors").and_then(Value::as_object_mut) else {
        return Err(Refusal::invalid("Model json has 'flavors' that are not an object"));
    };
    for flavor in flavors.values_mut().filter_map(Value::as_object_mut) {
        flavor.remove("config");
    }
    change(&mlflow, &fields, RunChange::NoteModel(Value::Object(model))).await
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
        uses.datasets.push(read);
    }
    for model in fields.objects("models")? {
        uses.model_inputs.push(model.required("model_id")?);
    }
    limits::uses(&uses)?;
    mlflow.store.log_uses(&run, &uses).await?;
    Ok(answer::nothing())
}

async fn log_outputs(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let run = fields.run_id()?;
    let output = |model: Fields| {
        Ok(ModelOutput { model: model.required("model_id")?, step: model.integer("step")?.unwrap_or(0) })
    };
    let model_outputs = fields.objects("models")?.into_iter().map(output).collect::<Result<_, Refusal>>()?;
    let uses = Uses { model_outputs, ..Uses::default() };
    limits::uses(&uses)?;
    mlflow.store.log_uses(&run, &uses).await?;
    Ok(answer::nothing())
}

async fn search_datasets(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    Ok(answer::whole(datasets(&mlflow, &fields).await?))
}

/// What [`search_datasets`] answers.
pub(super) async fn datasets(mlflow: &Mlflow, fields: &Fields) -> Result<Value, Refusal> {
    let experiments = fields.texts("experiment_ids")?;
    limits::dataset_experiments(experiments.len())?;
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
    Ok(json!({"dataset_summaries": found.into_iter().map(summary).collect::<Value>()}))
}
