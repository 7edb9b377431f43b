//! Scorers: what judges answers, by experiment, name and version.

use axum::Router;
use axum::extract::State;
use axum::routing::{delete, get, post};
use serde_json::{Value, json};

use super::experiments::experiment_id;
use super::request::Fields;
use super::{Answer, Mlflow, Refusal, answer};
use crate::evaluation::{Scorer, reading};
use crate::tracking::Millis;

pub(super) fn routes() -> Router<Mlflow> {
    Router::new()
        .route("/mlflow/scorers/register", post(register))
        .route("/mlflow/scorers/list", get(list))
        .route("/mlflow/scorers/versions", get(versions))
        .route("/mlflow/scorers/get", get(by_name))
        .route("/mlflow/scorers/delete", delete(remove))
}

fn scorer(scorer: Scorer) -> Value {
    let Scorer { id, experiment, name, version, serialized, create_time } = scorer;
    json!({
        "experiment_id": experiment,
        "scorer_name": name,
        "scorer_version": version,
        "serialized_scorer": serialized,
        "creation_time": create_time,
        "scorer_id": id,
    })
}

/// The experiment and the name that a call is about.
fn named(fields: &Fields) -> Result<(i64, String), Refusal> {
    Ok((experiment_id(&fields.required("experiment_id")?)?, fields.required("name")?))
}

async fn register(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let ((experiment, name), serialized) = (named(&fields)?, fields.required("serialized_scorer")?);
    reading::name(&name)?;
    reading::scorer(&serialized)?;
    let added = mlflow.store.add_scorer(Millis::now(), experiment, &name, &serialized).await?;
    let Scorer { id, experiment, name, version, serialized, create_time } = added;
    let fields = json!({
        "version": version,
        "scorer_id": id,
        "experiment_id": experiment.to_string(),
        "name": name,
        "serialized_scorer": serialized,
        "creation_time": create_time,
    });
    Ok(answer::whole(fields))
}

async fn list(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let experiment = experiment_id(&fields.required("experiment_id")?)?;
    let found = mlflow.store.scorers(experiment).await?;
    Ok(answer::one("scorers", found.into_iter().map(scorer).collect()))
}

async fn versions(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let (experiment, name) = named(&fields)?;
    let found = mlflow.store.scorer_versions(experiment, &name).await?;
    Ok(answer::one("scorers", found.into_iter().map(scorer).collect()))
}

async fn by_name(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let (experiment, name) = named(&fields)?;
    let found = mlflow.store.scorer(experiment, &name, fields.integer("version")?).await?;
    Ok(answer::one("scorer", scorer(found)))
}

async fn remove(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let (experiment, name) = named(&fields)?;
    mlflow.store.delete_scorer(experiment, &name, fields.integer("version")?).await?;
    Ok(answer::nothing())
}
