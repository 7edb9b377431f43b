//! Logged models, MLflow 3's.

use axum::Router;
use axum::extract::State;
use axum::routing::{delete, get, patch, post};
use serde_json::Value;

use super::experiments::experiment_id;
use super::request::{Fields, Path};
use super::{Answer, Mlflow, Refusal, answer};
use crate::search::{Order, Subject, order};
use crate::tracking::{LoggedModelChange, LoggedModelDraft, LoggedModelStatus, Millis, Search, View, limits};

pub(super) fn routes() -> Router<Mlflow> {
    Router::new()
        .route("/mlflow/logged-models", post(create))
        .route("/mlflow/logged-models/search", post(search))
        .route("/mlflow/logged-models/{model_id}", get(by_id).patch(finalize).delete(remove))
        .route("/mlflow/logged-models/{model_id}/params", post(add_params))
        .route("/mlflow/logged-models/{model_id}/tags", patch(set_tags))
        .route("/mlflow/logged-models/{model_id}/tags/{key}", delete(delete_tag))
}

async fn create(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let experiment = experiment_id(&fields.required("experiment_id")?)?;
    let (name, kind, run) =
        (fields.text("name")?, fields.text_or_empty("model_type")?, fields.text_or_empty("source_run_id")?);
    let draft = LoggedModelDraft::new(experiment, name, kind, run, fields.pairs("params")?, fields.pairs("tags")?)?;
    let model = mlflow.store.create_logged_model(Millis::now(), &draft).await?;
    Ok(answer::one("model", answer::logged_model(model)))
}

async fn by_id(State(mlflow): State<Mlflow>, Path(id): Path<String>) -> Answer {
    Ok(answer::one("model", answer::logged_model(mlflow.store.logged_model(&id).await?)))
}

async fn search(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let mut orders = Vec::new();
    for clause in fields.objects("order_by")? {
        let name = clause.required("field_name")?;
        let read = order(Subject::LoggedModels, &[name]).map_err(|problem| Refusal::invalid(problem.0))?;
        let ascending = clause.truth("ascending")?.unwrap_or(true);
        orders.extend(read.into_iter().map(|order| Order { ascending, ..order }));
    }
    let dataset = |dataset: Fields| {
        Ok((dataset.required("dataset_name")?, dataset.text("dataset_digest")?.filter(|digest| !digest.is_empty())))
    };
    let experiments = fields.texts("experiment_ids")?;
    let search = Search {
        conditions: fields.conditions(Subject::LoggedModels)?,
        orders,
        view: View::Active,
        experiments: experiments.iter().map(|id| experiment_id(id)).collect::<Result<_, _>>()?,
        datasets: fields.objects("datasets")?.into_iter().map(dataset).collect::<Result<_, Refusal>>()?,
        offset: fields.offset()?,
        limit: fields.limit(100, 50_000)?,
    };
    limits::search(&search)?;
    let page = mlflow.store.logged_models(&search).await?;
    Ok(answer::page("models", page.items.into_iter().map(answer::logged_model).collect(), page.next))
}

async fn change(mlflow: &Mlflow, id: &str, change: LoggedModelChange) -> Answer {
    let model = mlflow.store.change_logged_model(Millis::now(), id, &change).await?;
    Ok(answer::one("model", answer::logged_model(model)))
}

async fn finalize(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    let status = match (fields.integer("status"), fields.text("status")) {
        (Ok(Some(1)), _) => LoggedModelStatus::Pending,
        (Ok(Some(2)), _) => LoggedModelStatus::Ready,
        (Ok(Some(3)), _) => LoggedModelStatus::UploadFailed,
        (_, Ok(Some(text))) => match text.trim_start_matches("LOGGED_MODEL_") {
            "PENDING" => LoggedModelStatus::Pending,
            "READY" => LoggedModelStatus::Ready,
            "UPLOAD_FAILED" => LoggedModelStatus::UploadFailed,
            _ => {
                let told = Value::String(text);
                return Err(Refusal::invalid(format!("Invalid value {told} for parameter 'status' supplied.")));
            }
        },
        _ => return Err(super::request::missing("status")),
    };
    change(&mlflow, &id, LoggedModelChange::Finalize(status)).await
}

async fn remove(State(mlflow): State<Mlflow>, Path(id): Path<String>) -> Answer {
    change(&mlflow, &id, LoggedModelChange::Delete).await?;
    Ok(answer::nothing())
}

async fn add_params(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    change(&mlflow, &id, LoggedModelChange::add_params(fields.pairs("params")?)?).await?;
    Ok(answer::nothing())
}

async fn set_tags(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    change(&mlflow, &id, LoggedModelChange::set_tags(fields.pairs("tags")?)?).await
}

async fn delete_tag(State(mlflow): State<Mlflow>, Path((id, key)): Path<(String, String)>) -> Answer {
    change(&mlflow, &id, LoggedModelChange::DeleteTag(key)).await?;
    Ok(answer::nothing())
}
