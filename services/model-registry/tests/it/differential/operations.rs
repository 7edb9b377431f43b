//! Operations, each as a gRPC request and as a call of MLflow's REST API.

use std::collections::HashMap;

use serde_json::{Value, json};
use tonic::{Code, Status};
use verdict_api::registry as api;
use verdict_api::registry::tracking_service_client::TrackingServiceClient;
use verdict_chassis::client::Channel;

use crate::world::World;

/// What kind of refusal, in the words of either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Invalid,
    Missing,
    Exists,
    State,
}

/// What there is to operate on.
#[derive(Default)]
pub(super) struct Known {
    pub(super) experiments: Vec<String>,
    pub(super) runs: Vec<String>,
    pub(super) models: Vec<String>,
}

impl Known {
    /// Remembers what an operation made.
    pub(super) fn learn(&mut self, op: &Op, made: String) {
        match op {
            Op::CreateExperiment(_) => self.experiments.push(made),
            Op::CreateRun(_) => self.runs.push(made),
            Op::CreateLoggedModel(_) => self.models.push(made),
            _ => {}
        }
    }
}

pub(super) fn tracking(world: &World) -> TrackingServiceClient<Channel> {
    TrackingServiceClient::new(world.channel.clone()).max_decoding_message_size(usize::MAX)
}

macro_rules! operations {
    ($($name:ident($request:ident) $client:ident.$call:ident $(=> $made:expr)?;)+) => {
        /// One operation.
        #[derive(Clone, Debug)]
        pub(super) enum Op { $($name(api::$request)),+ }

        impl Op {
            /// Does it through gRPC; answers the id of what it made.
            pub(super) async fn by_grpc(&self, world: &World) -> Result<String, Class> {
                let (mut tracking, mut registry) = (tracking(world), world.client.clone());
                let _ = (&mut tracking, &mut registry);
                match self { $(
                    Self::$name(request) => {
                        let answer = operations!(@client $client tracking registry).$call(request.clone()).await.map_err(class)?;
                        let answer = answer.into_inner();
                        Ok(operations!(@made answer $($made)?))
                    }
                )+ }
            }
        }
    };
    (@client tracking $tracking:ident $registry:ident) => { $tracking };
    (@client registry $tracking:ident $registry:ident) => { $registry };
    (@made $answer:ident) => {{ let _ = $answer; String::new() }};
    (@made $answer:ident $made:expr) => { { let made: fn(_) -> String = $made; made($answer) } };
}

operations! {
    CreateExperiment(CreateExperimentRequest) tracking.create_experiment
        => |answer: api::CreateExperimentResponse| answer.experiment_id.to_string();
    RenameExperiment(UpdateExperimentRequest) tracking.update_experiment;
    DeleteExperiment(DeleteExperimentRequest) tracking.delete_experiment;
    RestoreExperiment(RestoreExperimentRequest) tracking.restore_experiment;
    TagExperiment(SetExperimentTagRequest) tracking.set_experiment_tag;
    UntagExperiment(DeleteExperimentTagRequest) tracking.delete_experiment_tag;
    CreateRun(CreateRunRequest) tracking.create_run => |answer: api::CreateRunResponse| answer.run.unwrap().run_id;
    UpdateRun(UpdateRunRequest) tracking.update_run;
    DeleteRun(DeleteRunRequest) tracking.delete_run;
    RestoreRun(RestoreRunRequest) tracking.restore_run;
    UntagRun(DeleteRunTagRequest) tracking.delete_run_tag;
    LogBatch(LogBatchRequest) tracking.log_batch;
    LogInputs(LogInputsRequest) tracking.log_inputs;
    LogOutputs(LogOutputsRequest) tracking.log_outputs;
    CreateLoggedModel(CreateLoggedModelRequest) tracking.create_logged_model
        => |answer: api::CreateLoggedModelResponse| answer.model.unwrap().model_id;
    FinalizeLoggedModel(FinalizeLoggedModelRequest) tracking.finalize_logged_model;
    AddParams(AddLoggedModelParamsRequest) tracking.add_logged_model_params;
    TagLoggedModel(SetLoggedModelTagsRequest) tracking.set_logged_model_tags;
    UntagLoggedModel(DeleteLoggedModelTagRequest) tracking.delete_logged_model_tag;
    DeleteLoggedModel(DeleteLoggedModelRequest) tracking.delete_logged_model;
    CreateModel(CreateModelRequest) registry.create_model;
    DeleteModel(DeleteModelRequest) registry.delete_model;
    CreateVersion(CreateVersionRequest) registry.create_version;
    DeleteVersion(DeleteVersionRequest) registry.delete_version;
    SetAlias(SetAliasRequest) registry.set_alias;
    DeleteAlias(DeleteAliasRequest) registry.delete_alias;
    TagModel(SetTagRequest) registry.set_tag;
    UntagModel(DeleteTagRequest) registry.delete_tag;
    MoveToStage(TransitionStageRequest) tracking.transition_stage;
}

fn class(refused: Status) -> Class {
    match refused.code() {
        Code::InvalidArgument => Class::Invalid,
        Code::NotFound => Class::Missing,
        Code::AlreadyExists => Class::Exists,
        Code::FailedPrecondition => Class::State,
        _ => panic!("{refused:?}"),
    }
}

fn class_of(answer: &Value) -> Class {
    match answer["error_code"].as_str() {
        Some("INVALID_PARAMETER_VALUE") => Class::Invalid,
        Some("RESOURCE_DOES_NOT_EXIST") => Class::Missing,
        Some("RESOURCE_ALREADY_EXISTS") => Class::Exists,
        Some("INVALID_STATE" | "BAD_REQUEST") => Class::State,
        _ => panic!("{answer}"),
    }
}

fn list(pairs: &HashMap<String, String>) -> Value {
    pairs.iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
}

/// A number as JSON has it.
pub(super) fn number(value: f64) -> Value {
    match value {
        value if value.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        value => value.into(),
    }
}

impl Op {
    /// Whether MLflow's clients expect to succeed where gRPC refuses: they remove what is not there, and what is pointed at.
    pub(super) fn mlflow_is_lenient(&self) -> bool {
        matches!(self, Self::UntagModel(_) | Self::DeleteAlias(_) | Self::DeleteVersion(_))
    }

    /// Does it through REST; answers the id of what it made.
    pub(super) async fn by_rest(&self, world: &World) -> Result<String, Class> {
        let (method, path, body) = self.call();
        let (status, answer) = world.rest(method, &format!("/api/2.0/mlflow/{path}"), body).await;
        if status != 200 {
            return Err(class_of(&answer));
        }
        let made = [&answer["experiment_id"], &answer["run"]["info"]["run_id"], &answer["model"]["info"]["model_id"]];
        Ok(made.into_iter().find_map(Value::as_str).unwrap_or_default().to_owned())
    }

    fn call(&self) -> (&'static str, String, Value) {
        let post = |path: &str, body: Value| ("POST", path.to_owned(), body);
        let id = |id: &Option<i64>| id.map(|id| id.to_string());
        match self {
            Self::CreateExperiment(r) => {
                let body = json!({"name": r.name, "artifact_location": r.artifact_location, "tags": list(&r.tags)});
                post("experiments/create", body)
            }
            Self::RenameExperiment(r) => {
                post("experiments/update", json!({"experiment_id": id(&r.experiment_id), "new_name": r.new_name}))
            }
            Self::DeleteExperiment(r) => post("experiments/delete", json!({"experiment_id": id(&r.experiment_id)})),
            Self::RestoreExperiment(r) => post("experiments/restore", json!({"experiment_id": id(&r.experiment_id)})),
            Self::TagExperiment(r) => post(
                "experiments/set-experiment-tag",
                json!({"experiment_id": id(&r.experiment_id), "key": r.key, "value": r.value}),
            ),
            Self::UntagExperiment(r) => {
                post("experiments/delete-experiment-tag", json!({"experiment_id": id(&r.experiment_id), "key": r.key}))
            }
            Self::CreateRun(r) => post(
                "runs/create",
                json!({"experiment_id": r.experiment_id.to_string(), "run_name": r.name, "user_id": r.user_id,
                    "start_time": r.start_time_ms, "tags": list(&r.tags)}),
            ),
            Self::UpdateRun(r) => {
                let mut body = json!({"run_id": r.run_id, "end_time": r.end_time_ms, "run_name": r.name});
                if r.status != 0 {
                    body["status"] = match api::RunStatus::try_from(r.status) {
                        Ok(status) => status.as_str_name().trim_start_matches("RUN_STATUS_").into(),
                        Err(_) => r.status.into(),
                    };
                }
                post("runs/update", body)
            }
            Self::DeleteRun(r) => post("runs/delete", json!({"run_id": r.run_id})),
            Self::RestoreRun(r) => post("runs/restore", json!({"run_id": r.run_id})),
            Self::UntagRun(r) => post("runs/delete-tag", json!({"run_id": r.run_id, "key": r.key})),
            Self::LogBatch(r) => {
                let metric = |m: &api::Metric| {
                    json!({"key": m.key, "value": number(m.value), "timestamp": m.timestamp_ms, "step": m.step,
                        "model_id": m.model_id, "dataset_name": m.dataset_name, "dataset_digest": m.dataset_digest})
                };
                let params: Value = r.params.iter().map(|p| json!({"key": p.key, "value": p.value})).collect();
                let tags: Value = r.tags.iter().map(|t| json!({"key": t.key, "value": t.value})).collect();
                let metrics: Value = r.metrics.iter().map(metric).collect();
                post("runs/log-batch", json!({"run_id": r.run_id, "metrics": metrics, "params": params, "tags": tags}))
            }
            Self::LogInputs(r) => {
                let dataset = |d: &api::DatasetInput| {
                    json!({"tags": list(&d.tags), "dataset": {"name": d.name, "digest": d.digest, "source": d.source,
                        "source_type": d.source_type, "schema": d.schema, "profile": d.profile}})
                };
                let models: Value = r.model_ids.iter().map(|id| json!({"model_id": id})).collect();
                let datasets: Value = r.datasets.iter().map(dataset).collect();
                post("runs/log-inputs", json!({"run_id": r.run_id, "datasets": datasets, "models": models}))
            }
            Self::LogOutputs(r) => {
                let models: Value = r.models.iter().map(|m| json!({"model_id": m.model_id, "step": m.step})).collect();
                post("runs/outputs", json!({"run_id": r.run_id, "models": models}))
            }
            Self::CreateLoggedModel(r) => post(
                "logged-models",
                json!({"experiment_id": r.experiment_id.to_string(), "name": r.name, "model_type": r.model_type,
                    "source_run_id": r.source_run_id, "params": list(&r.params), "tags": list(&r.tags)}),
            ),
            Self::FinalizeLoggedModel(r) => (
                "PATCH",
                format!("logged-models/{}", r.model_id),
                json!({"status": r.status().as_str_name().replace("_STATUS", "")}),
            ),
            Self::AddParams(r) => {
                post(&format!("logged-models/{}/params", r.model_id), json!({"params": list(&r.params)}))
            }
            Self::TagLoggedModel(r) => {
                ("PATCH", format!("logged-models/{}/tags", r.model_id), json!({"tags": list(&r.tags)}))
            }
            Self::UntagLoggedModel(r) => {
                ("DELETE", format!("logged-models/{}/tags/{}", r.model_id, r.key), Value::Null)
            }
            Self::DeleteLoggedModel(r) => ("DELETE", format!("logged-models/{}", r.model_id), Value::Null),
            Self::CreateModel(r) => post(
                "registered-models/create",
                json!({"name": r.name, "description": r.description, "tags": list(&r.tags)}),
            ),
            Self::DeleteModel(r) => ("DELETE", "registered-models/delete".to_owned(), json!({"name": r.name})),
            Self::CreateVersion(r) => post(
                "model-versions/create",
                json!({"name": r.model, "source": "s3://bucket/model", "description": r.description,
                    "run_link": "https://example.org/run", "tags": list(&r.tags)}),
            ),
            Self::DeleteVersion(r) => {
                let body = json!({"name": r.model, "version": r.version.to_string()});
                ("DELETE", "model-versions/delete".to_owned(), body)
            }
            Self::SetAlias(r) => post(
                "registered-models/alias",
                json!({"name": r.model, "alias": r.alias, "version": r.version.to_string()}),
            ),
            Self::DeleteAlias(r) => {
                ("DELETE", "registered-models/alias".to_owned(), json!({"name": r.model, "alias": r.alias}))
            }
            Self::TagModel(r) => {
                let area = if r.version.is_some() { "model-versions" } else { "registered-models" };
                let body = json!({"name": r.model, "version": id(&r.version), "key": r.key, "value": r.value});
                post(&format!("{area}/set-tag"), body)
            }
            Self::UntagModel(r) => {
                let area = if r.version.is_some() { "model-versions" } else { "registered-models" };
                let body = json!({"name": r.model, "version": id(&r.version), "key": r.key});
                ("DELETE", format!("{area}/delete-tag"), body)
            }
            Self::MoveToStage(r) => post(
                "model-versions/transition-stage",
                json!({"name": r.model, "version": r.version.to_string(),
                    "stage": r.stage().as_str_name().trim_start_matches("STAGE_"),
                    "archive_existing_versions": r.archive_existing_versions}),
            ),
        }
    }
}

/// A search of runs, by filter and order.
#[derive(Debug)]
pub(super) struct RunSearch {
    pub(super) filter: String,
    pub(super) order_by: Vec<String>,
}

impl RunSearch {
    pub(super) async fn by_grpc(&self, world: &World) -> Result<Vec<String>, Class> {
        let request = api::SearchRunsRequest {
            experiment_ids: (0..50).collect(),
            filter: self.filter.clone(),
            order_by: self.order_by.clone(),
            view: api::LifecycleView::All.into(),
            page_size: 1000,
            page_token: String::new(),
        };
        let found = tracking(world).search_runs(request).await.map_err(class)?.into_inner();
        Ok(found.runs.into_iter().map(|run| run.run_id).collect())
    }

    pub(super) async fn by_rest(&self, world: &World) -> Result<Vec<String>, Class> {
        let experiments: Vec<String> = (0..50).map(|id: i64| id.to_string()).collect();
        let body = json!({"experiment_ids": experiments, "filter": self.filter, "order_by": self.order_by,
            "run_view_type": "ALL", "max_results": 1000});
        let (status, answer) = world.rest("POST", "/api/2.0/mlflow/runs/search", body).await;
        if status != 200 {
            return Err(class_of(&answer));
        }
        let id = |run: &Value| run["info"]["run_id"].as_str().unwrap().to_owned();
        Ok(answer["runs"].as_array().unwrap().iter().map(id).collect())
    }
}
