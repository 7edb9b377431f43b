//! Entities as MLflow's clients read them.

use std::collections::BTreeMap;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::bodies::{MetricBody, RunBody, VersionBody, Written};
use crate::model::{Micros, Model, Stage, Version};
use crate::tracking::page::token;
use crate::tracking::{DatasetInput, Experiment, LoggedModel, LoggedModelStatus, Metric, Run, RunStatus};

/// Answers with `{name: value}`.
pub(super) fn one(name: &str, value: Value) -> Response {
    Json(json!({ name: value })).into_response()
}

/// Answers with these fields.
pub(super) fn whole(fields: Value) -> Response {
    Json(fields).into_response()
}

/// Answers with nothing.
pub(super) fn nothing() -> Response {
    Json(json!({})).into_response()
}

/// Answers with a page: `{name: […], "next_page_token": …}`.
pub(super) fn page(name: &str, items: Vec<Value>, next: Option<u64>) -> Response {
    whole(paged(name, items, next))
}

/// What a page is answered with.
pub(super) fn paged(name: &str, items: Vec<Value>, next: Option<u64>) -> Value {
    let mut fields = Map::from_iter([(name.to_owned(), Value::Array(items))]);
    if let Some(next) = next {
        fields.insert("next_page_token".to_owned(), token(next).into());
    }
    Value::Object(fields)
}

/// Answers with a page that is written as it is: the items of large pages are no [`Value`]s in between.
pub(super) fn written<T: Serialize>(name: &'static str, items: Vec<T>, next: Option<u64>) -> Response {
    Json(Written { name, items, next: next.map(token) }).into_response()
}

/// What is written, as a value.
fn value(body: &impl Serialize) -> Value {
    // Only maps whose keys are no texts have no value, and no body has such.
    serde_json::to_value(body).unwrap_or_default()
}

/// Pairs of `key` and `value`.
pub(super) fn pairs(pairs: BTreeMap<String, String>) -> Value {
    pairs.into_iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
}

pub(super) fn stage_of_life(is_deleted: bool) -> &'static str {
    if is_deleted { "deleted" } else { "active" }
}

pub(super) fn experiment(experiment: Experiment) -> Value {
    let Experiment { id, name, artifact_location, is_deleted, tags, create_time, update_time } = experiment;
    json!({
        "experiment_id": id.to_string(),
        "name": name,
        "artifact_location": artifact_location,
        "lifecycle_stage": stage_of_life(is_deleted),
        "last_update_time": update_time.0,
        "creation_time": create_time.0,
        "tags": pairs(tags),
    })
}

pub(super) fn run_status(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Running => "RUNNING",
        RunStatus::Scheduled => "SCHEDULED",
        RunStatus::Finished => "FINISHED",
        RunStatus::Failed => "FAILED",
        RunStatus::Killed => "KILLED",
    }
}

/// A run as a whole.
pub(super) fn run(run: Run) -> Value {
    value(&RunBody::of(&run))
}

/// A run without what it logged.
pub(super) fn run_info(run: &Run) -> Value {
    value(&RunBody::of(run).info)
}

/// A metric.
pub(super) fn metric(metric: Metric) -> Value {
    value(&MetricBody::of(&metric))
}

pub(super) fn dataset_input(input: DatasetInput) -> Value {
    let DatasetInput { name, digest, source_type, source, schema, profile, tags } = input;
    let mut dataset = json!({"name": name, "digest": digest, "source_type": source_type, "source": source});
    if let Some(schema) = schema {
        dataset["schema"] = schema.into();
    }
    if let Some(profile) = profile {
        dataset["profile"] = profile.into();
    }
    json!({"tags": pairs(tags), "dataset": dataset})
}

pub(super) fn logged_model(model: LoggedModel) -> Value {
    let LoggedModel {
        id,
        experiment,
        name,
        artifact_location,
        status,
        model_type,
        source_run,
        params,
        tags,
        metrics,
        create_time,
        update_time,
    } = model;
    let status = match status {
        LoggedModelStatus::Pending => "LOGGED_MODEL_PENDING",
        LoggedModelStatus::Ready => "LOGGED_MODEL_READY",
        LoggedModelStatus::UploadFailed => "LOGGED_MODEL_UPLOAD_FAILED",
    };
    let measured = |(run, one): (String, Metric)| {
        let mut fields = metric(one);
        fields["run_id"] = run.into();
        fields
    };
    json!({
        "info": {
            "model_id": id,
            "experiment_id": experiment.to_string(),
            "name": name,
            "creation_timestamp_ms": create_time.0,
            "last_updated_timestamp_ms": update_time.0,
            "artifact_uri": artifact_location,
            "status": status,
            "model_type": model_type,
            "source_run_id": source_run,
            "tags": pairs(tags),
        },
        "data": {"params": pairs(params), "metrics": metrics.into_iter().map(measured).collect::<Value>()},
    })
}

pub(super) fn millis(Micros(micros): Micros) -> i64 {
    micros.div_euclid(1000)
}

/// The word for a stage.
pub(super) fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::None => "None",
        Stage::Staging => "Staging",
        Stage::Production => "Production",
        Stage::Archived => "Archived",
    }
}

/// A registered model, with the newest version of each stage.
pub(super) fn model(model: Model, latest: Vec<Version>) -> Value {
    let Model { name, description, tags, aliases, latest_version: _, create_time, update_time, revision: _ } = model;
    let alias = |(alias, version): (String, i64)| json!({"alias": alias, "version": version.to_string()});
    let mut fields = json!({
        "name": name.as_str(),
        "creation_timestamp": millis(create_time),
        "last_updated_timestamp": millis(update_time),
    });
    let mut put = |name: &str, value: Value, is_empty: bool| {
        if !is_empty {
            fields[name] = value;
        }
    };
    put("description", description.as_str().into(), description.is_empty());
    put("tags", pairs(tags.clone()), tags.is_empty());
    put("aliases", aliases.clone().into_iter().map(alias).collect(), aliases.is_empty());
    let none = latest.is_empty();
    put("latest_versions", latest.into_iter().map(version).collect(), none);
    fields
}

/// A version of a registered model.
pub(super) fn version(version: Version) -> Value {
    value(&VersionBody::of(&version))
}
