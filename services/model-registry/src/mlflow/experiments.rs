//! Experiments.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::request::Fields;
use super::{Answer, Mlflow, Refusal, answer};
use crate::search::Subject;
use crate::tracking::{ExperimentChange, ExperimentDraft, ExperimentRef, Millis, Search, View};

pub(super) fn routes() -> Router<Mlflow> {
    Router::new()
        .route("/mlflow/experiments/create", post(create))
        .route("/mlflow/experiments/get", get(by_id))
        .route("/mlflow/experiments/get-by-name", get(by_name))
        .route("/mlflow/experiments/search", get(search).post(search))
        .route("/mlflow/experiments/delete", post(delete))
        .route("/mlflow/experiments/restore", post(restore))
        .route("/mlflow/experiments/update", post(rename))
        .route("/mlflow/experiments/set-experiment-tag", post(set_tag))
        .route("/mlflow/experiments/delete-experiment-tag", post(delete_tag))
}

/// Reads an experiment's number; empty is that of the default experiment.
pub(super) fn experiment_id(text: &str) -> Result<i64, Refusal> {
    if text.is_empty() {
        return Ok(crate::tracking::DEFAULT_EXPERIMENT);
    }
    text.parse().map_err(|_| Refusal::invalid(format!("Invalid experiment ID: '{text}'")))
}

/// Reads which of the living and the deleted are meant, by name or by number.
pub(super) fn view(fields: &Fields, name: &str) -> Result<View, Refusal> {
    if !fields.has(name) {
        return Ok(View::Active);
    }
    if let Ok(Some(number)) = fields.integer(name) {
        return match number {
            1 => Ok(View::Active),
            2 => Ok(View::Deleted),
            3 => Ok(View::All),
            _ => Err(Refusal::invalid(format!("Invalid value {number} for parameter '{name}' supplied."))),
        };
    }
    match fields.text(name)?.as_deref() {
        Some("ACTIVE_ONLY") => Ok(View::Active),
        Some("DELETED_ONLY") => Ok(View::Deleted),
        Some("ALL") => Ok(View::All),
        other => Err(Refusal::invalid(format!(
            "Invalid value {} for parameter '{name}' supplied.",
            Value::from(other.unwrap_or_default())
        ))),
    }
}

async fn create(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let (name, place, tags) = (fields.required("name")?, fields.text("artifact_location")?, fields.pairs("tags")?);
    let draft = ExperimentDraft::new(name, place, &mlflow.artifact_root, tags)?;
    let id = mlflow.store.create_experiment(Millis::now(), &draft).await?;
    Ok(answer::one("experiment_id", id.to_string().into()))
}

async fn by_id(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    Ok(answer::whole(get_by_id(&mlflow, &fields).await?))
}

/// What [`by_id`] answers.
pub(super) async fn get_by_id(mlflow: &Mlflow, fields: &Fields) -> Result<Value, Refusal> {
    let id = experiment_id(&fields.required("experiment_id")?)?;
    let experiment = mlflow.store.experiment(&ExperimentRef::Id(id)).await?;
    Ok(json!({"experiment": answer::experiment(experiment)}))
}

async fn by_name(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let name = fields.required("experiment_name")?;
    let experiment = mlflow.store.experiment(&ExperimentRef::Name(name)).await?;
    Ok(answer::one("experiment", answer::experiment(experiment)))
}

async fn search(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let search = Search {
        conditions: fields.conditions(Subject::Experiments)?,
        orders: fields.orders(Subject::Experiments)?,
        view: view(&fields, "view_type")?,
        experiments: Vec::new(),
        datasets: Vec::new(),
        offset: fields.offset()?,
        limit: fields.limit(1000, 50_000)?,
    };
    let page = mlflow.store.experiments(&search).await?;
    Ok(answer::page("experiments", page.items.into_iter().map(answer::experiment).collect(), page.next))
}

async fn change(mlflow: &Mlflow, fields: &Fields, change: ExperimentChange) -> Answer {
    let id = experiment_id(&fields.required("experiment_id")?)?;
    mlflow.store.change_experiment(Millis::now(), id, &change).await?;
    Ok(answer::nothing())
}

async fn delete(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    change(&mlflow, &fields, ExperimentChange::Delete).await
}

async fn restore(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    change(&mlflow, &fields, ExperimentChange::Restore).await
}

async fn rename(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let Some(name) = fields.text("new_name")?.filter(|name| !name.is_empty()) else { return Ok(answer::nothing()) };
    change(&mlflow, &fields, ExperimentChange::rename(name)?).await
}

async fn set_tag(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let (key, value) = (fields.required("key")?, fields.text_or_empty("value")?);
    change(&mlflow, &fields, ExperimentChange::set_tag(key, value)?).await
}

async fn delete_tag(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let key = fields.required("key")?;
    change(&mlflow, &fields, ExperimentChange::DeleteTag(key)).await
}
