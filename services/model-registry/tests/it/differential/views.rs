//! All that the store shows through either side, in the shape of MLflow's answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use prost_types::Timestamp;
use serde_json::{Value, json};
use verdict_api::registry as api;

use super::operations::{number, tracking};
use crate::world::World;

/// Small, so that there are several pages.
const PAGE: i32 = 7;

/// Everything, as REST shows it.
pub(super) async fn by_rest(world: &World) -> Value {
    let experiments = rest_pages(world, "POST", "experiments/search", "experiments", json!({"view_type": "ALL"})).await;
    let ids: Vec<&Value> = experiments.iter().map(|experiment| &experiment["experiment_id"]).collect();
    let all = json!({"experiment_ids": ids, "run_view_type": "ALL"});
    let runs = rest_pages(world, "POST", "runs/search", "runs", all).await;
    let mut histories = BTreeMap::new();
    for run in &runs {
        for metric in run["data"]["metrics"].as_array().unwrap() {
            let (run, key) = (run["info"]["run_id"].as_str().unwrap(), metric["key"].as_str().unwrap());
            let of = json!({"run_id": run, "metric_key": key});
            histories
                .insert(format!("{run} {key}"), rest_pages(world, "GET", "metrics/get-history", "metrics", of).await);
        }
    }
    let of = json!({"experiment_ids": ids});
    let logged = rest_pages(world, "POST", "logged-models/search", "models", of).await;
    let models = rest_pages(world, "GET", "registered-models/search", "registered_models", json!({})).await;
    let versions = rest_pages(world, "GET", "model-versions/search", "model_versions", json!({})).await;
    json!({"experiments": experiments, "runs": runs, "histories": histories, "logged": logged, "models": models,
        "versions": versions})
}

/// All pages of a search; a GET takes its parameters from its body too.
async fn rest_pages(world: &World, method: &str, path: &str, items: &str, mut body: Value) -> Vec<Value> {
    let mut found = Vec::new();
    body["max_results"] = PAGE.into();
    loop {
        let (status, answer) = world.rest(method, &format!("/api/2.0/mlflow/{path}"), body.clone()).await;
        assert_eq!(status, 200, "{path}: {answer}");
        found.extend(answer[items].as_array().unwrap().iter().cloned());
        match answer.get("next_page_token") {
            Some(token) => body["page_token"] = token.clone(),
            None => return found,
        }
    }
}

macro_rules! grpc_pages {
    ($client:expr, $call:ident, $items:ident, $request:expr) => {{
        let mut request = $request;
        let mut found = Vec::new();
        loop {
            let answer = $client.$call(request.clone()).await.unwrap().into_inner();
            found.extend(answer.$items);
            if answer.next_page_token.is_empty() {
                break found;
            }
            request.page_token = answer.next_page_token;
        }
    }};
}

/// Everything, as gRPC shows it.
pub(super) async fn by_grpc(world: &World) -> Value {
    let mut client = tracking(world);
    let view = api::LifecycleView::All.into();
    let all = api::SearchExperimentsRequest { view, page_size: PAGE, ..Default::default() };
    let experiments = grpc_pages!(client, search_experiments, experiments, all);
    let experiment_ids: Vec<i64> = experiments.iter().map(|experiment| experiment.experiment_id).collect();
    let all =
        api::SearchRunsRequest { view, experiment_ids: experiment_ids.clone(), page_size: PAGE, ..Default::default() };
    let runs = grpc_pages!(client, search_runs, runs, all);
    let mut histories = BTreeMap::new();
    for run in &runs {
        let one = client.get_run(api::GetRunRequest { run_id: run.run_id.clone() }).await.unwrap().into_inner();
        assert_eq!(format!("{:?}", shown_run(one.run.unwrap())), format!("{:?}", shown_run(run.clone())));
        for metric in &run.metrics {
            let (run_id, key) = (run.run_id.clone(), metric.key.clone());
            let of = api::ListMetricHistoryRequest { run_id, key, page_size: PAGE, ..Default::default() };
            let history = grpc_pages!(client, list_metric_history, metrics, of);
            let history: Vec<Value> = history.into_iter().map(shown_metric).collect();
            histories.insert(format!("{} {}", run.run_id, metric.key), history);
        }
    }
    let all = api::SearchLoggedModelsRequest { experiment_ids, page_size: PAGE, ..Default::default() };
    let logged = grpc_pages!(client, search_logged_models, models, all);
    let models =
        grpc_pages!(client, search_models, models, api::SearchModelsRequest { page_size: PAGE, ..Default::default() });
    let mut shown_models = Vec::new();
    for model in models {
        let of = api::ListLatestVersionsRequest { model: model.name.clone(), stages: Vec::new() };
        let latest = client.list_latest_versions(of).await.unwrap().into_inner().versions;
        shown_models.push(shown_model(model, latest));
    }
    let versions = grpc_pages!(
        client,
        search_versions,
        versions,
        api::SearchVersionsRequest { page_size: PAGE, ..Default::default() }
    );
    json!({
        "experiments": experiments.into_iter().map(shown_experiment).collect::<Value>(),
        "runs": runs.into_iter().map(shown_run).collect::<Value>(),
        "histories": histories,
        "logged": logged.into_iter().map(shown_logged_model).collect::<Value>(),
        "models": shown_models,
        "versions": versions.into_iter().map(shown_version).collect::<Value>(),
    })
}

fn list(pairs: HashMap<String, String>) -> Value {
    let sorted: BTreeMap<_, _> = pairs.into_iter().collect();
    sorted.into_iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
}

fn stage_of_life(deleted: bool) -> &'static str {
    if deleted { "deleted" } else { "active" }
}

fn shown_experiment(experiment: api::Experiment) -> Value {
    json!({
        "experiment_id": experiment.experiment_id.to_string(),
        "name": experiment.name,
        "artifact_location": experiment.artifact_location,
        "lifecycle_stage": stage_of_life(experiment.deleted),
        "last_update_time": experiment.update_time_ms,
        "creation_time": experiment.create_time_ms,
        "tags": list(experiment.tags),
    })
}

fn shown_metric(metric: api::Metric) -> Value {
    let mut shown = json!({"key": metric.key, "value": number(metric.value), "timestamp": metric.timestamp_ms,
        "step": metric.step});
    let more = [
        ("model_id", metric.model_id),
        ("dataset_name", metric.dataset_name),
        ("dataset_digest", metric.dataset_digest),
    ];
    for (name, value) in more.into_iter().filter(|(_, value)| !value.is_empty()) {
        shown[name] = value.into();
    }
    shown
}

fn shown_run(run: api::Run) -> Value {
    let status = run.status().as_str_name().trim_start_matches("RUN_STATUS_");
    let mut info = json!({
        "run_uuid": run.run_id,
        "run_id": run.run_id,
        "run_name": run.name,
        "experiment_id": run.experiment_id.to_string(),
        "user_id": run.user_id,
        "status": status,
        "start_time": run.start_time_ms,
        "artifact_uri": run.artifact_uri,
        "lifecycle_stage": stage_of_life(run.deleted),
    });
    if let Some(end_time) = run.end_time_ms {
        info["end_time"] = end_time.into();
    }
    let dataset = |input: api::DatasetInput| {
        let mut dataset = json!({"name": input.name, "digest": input.digest, "source_type": input.source_type,
            "source": input.source});
        let more = [("schema", input.schema), ("profile", input.profile)];
        for (name, value) in more.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            dataset[name] = value.into();
        }
        json!({"tags": list(input.tags), "dataset": dataset})
    };
    let output = |model: api::ModelOutput| json!({"model_id": model.model_id, "step": model.step});
    json!({
        "info": info,
        "data": {
            "metrics": run.metrics.into_iter().map(shown_metric).collect::<Value>(),
            "params": list(run.params),
            "tags": list(run.tags),
        },
        "inputs": {
            "dataset_inputs": run.datasets.into_iter().map(dataset).collect::<Value>(),
            "model_inputs": run.model_inputs.into_iter().map(|id| json!({"model_id": id})).collect::<Value>(),
        },
        "outputs": {"model_outputs": run.model_outputs.into_iter().map(output).collect::<Value>()},
    })
}

fn shown_logged_model(model: api::LoggedModel) -> Value {
    let status = model.status().as_str_name().trim_start_matches("LOGGED_MODEL_STATUS_");
    let measured = |measured: api::LoggedModelMetric| {
        let mut shown = shown_metric(measured.metric.unwrap());
        shown["run_id"] = measured.run_id.into();
        shown
    };
    json!({
        "info": {
            "model_id": model.model_id,
            "experiment_id": model.experiment_id.to_string(),
            "name": model.name,
            "creation_timestamp_ms": model.create_time_ms,
            "last_updated_timestamp_ms": model.update_time_ms,
            "artifact_uri": model.artifact_location,
            "status": format!("LOGGED_MODEL_{status}"),
            "model_type": model.model_type,
            "source_run_id": model.source_run_id,
            "tags": list(model.tags),
        },
        "data": {
            "params": list(model.params),
            "metrics": model.metrics.into_iter().map(measured).collect::<Value>(),
        },
    })
}

fn millis(time: Option<Timestamp>) -> i64 {
    let time = time.unwrap();
    time.seconds * 1000 + i64::from(time.nanos) / 1_000_000
}

fn shown_model(model: api::Model, latest: Vec<api::StagedVersion>) -> Value {
    let mut shown = json!({
        "name": model.name,
        "creation_timestamp": millis(model.create_time),
        "last_updated_timestamp": millis(model.update_time),
    });
    if !model.description.is_empty() {
        shown["description"] = model.description.into();
    }
    if !model.tags.is_empty() {
        shown["tags"] = list(model.tags);
    }
    if !model.aliases.is_empty() {
        let sorted: BTreeMap<_, _> = model.aliases.into_iter().collect();
        let alias = |(alias, version): (String, i64)| json!({"alias": alias, "version": version.to_string()});
        shown["aliases"] = sorted.into_iter().map(alias).collect();
    }
    if !latest.is_empty() {
        shown["latest_versions"] = latest.into_iter().map(shown_version).collect();
    }
    shown
}

fn shown_version(staged: api::StagedVersion) -> Value {
    let word = staged.stage().as_str_name().trim_start_matches("STAGE_").to_owned();
    let stage = format!("{}{}", &word[..1], word[1..].to_lowercase());
    let version = staged.version.unwrap();
    let is_ready = version.status() == api::VersionStatus::Ready;
    let aliases: BTreeSet<String> = version.aliases.into_iter().collect();
    json!({
        "name": version.model,
        "version": version.version.to_string(),
        "creation_timestamp": millis(version.create_time),
        "last_updated_timestamp": millis(version.update_time),
        "current_stage": stage,
        "description": version.description,
        "source": version.source,
        "run_id": version.run_id,
        "run_link": staged.run_link,
        "status": if is_ready { "READY" } else { "PENDING_REGISTRATION" },
        "tags": list(version.tags),
        "aliases": aliases,
        "model_id": staged.model_id,
    })
}
