//! What an MLflow server answers, and what it becomes here.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::model::Stage;
use crate::tracking::{
    DatasetInput, Experiment, LoggedModel, LoggedModelStatus, Metric, Millis, ModelOutput, Run, RunStatus,
};

#[derive(Deserialize)]
pub(super) struct Pair {
    key: String,
    #[serde(default)]
    value: String,
}

pub(super) fn pairs(pairs: Vec<Pair>) -> BTreeMap<String, String> {
    pairs.into_iter().map(|Pair { key, value }| (key, value)).collect()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(f64),
    Text(String),
}

/// A metric's value: what JSON has no number for is a text.
fn value<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    match Number::deserialize(from)? {
        Number::Number(number) => Ok(number),
        Number::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

#[derive(Deserialize)]
pub(super) struct WireMetric {
    key: String,
    #[serde(deserialize_with = "value")]
    value: f64,
    #[serde(default)]
    timestamp: i64,
    #[serde(default)]
    step: i64,
    #[serde(default)]
    run_id: String,
    #[serde(default)]
    dataset_name: String,
    #[serde(default)]
    dataset_digest: String,
}

impl WireMetric {
    pub(super) fn into_metric(self) -> Metric {
        let Self { key, value, timestamp, step, run_id: _, dataset_name, dataset_digest } = self;
        let dataset = (!dataset_name.is_empty()).then_some((dataset_name, dataset_digest));
        Metric { key, value, timestamp: Millis(timestamp), step, model: None, dataset }
    }
}

#[derive(Deserialize)]
pub(super) struct Histories {
    #[serde(default)]
    pub(super) metrics: Vec<WireMetric>,
    #[serde(default)]
    pub(super) next_page_token: String,
}

#[derive(Deserialize)]
pub(super) struct ExperimentAnswer {
    pub(super) experiment: WireExperiment,
}

#[derive(Deserialize)]
pub(super) struct ExperimentPage {
    #[serde(default)]
    pub(super) experiments: Vec<WireExperiment>,
    #[serde(default)]
    pub(super) next_page_token: String,
}

#[derive(Deserialize)]
pub(super) struct WireExperiment {
    pub(super) experiment_id: String,
    pub(super) name: String,
    #[serde(default)]
    artifact_location: String,
    #[serde(default)]
    lifecycle_stage: String,
    #[serde(default)]
    last_update_time: i64,
    #[serde(default)]
    creation_time: i64,
    #[serde(default)]
    tags: Vec<Pair>,
}

impl WireExperiment {
    /// Its number is the one it has there, and -1 where that is no number.
    pub(super) fn into_experiment(self) -> Experiment {
        Experiment {
            id: self.experiment_id.parse().ok().filter(|id| *id >= 0).unwrap_or(-1),
            name: self.name,
            artifact_location: self.artifact_location,
            is_deleted: self.lifecycle_stage == "deleted",
            tags: pairs(self.tags),
            create_time: Millis(self.creation_time),
            update_time: Millis(self.last_update_time),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct RunPage {
    #[serde(default)]
    pub(super) runs: Vec<RunId>,
    #[serde(default)]
    pub(super) next_page_token: String,
}

/// Of a run that was found, only its id: a search does not tell of the models it read and made.
#[derive(Deserialize)]
pub(super) struct RunId {
    pub(super) info: RunIdInfo,
}

#[derive(Deserialize)]
pub(super) struct RunIdInfo {
    pub(super) run_id: String,
}

#[derive(Deserialize)]
pub(super) struct RunAnswer {
    pub(super) run: WireRun,
}

#[derive(Deserialize)]
pub(super) struct WireRun {
    info: RunInfo,
    #[serde(default)]
    data: RunData,
    #[serde(default)]
    inputs: RunInputs,
    #[serde(default)]
    outputs: RunOutputs,
}

#[derive(Deserialize)]
struct RunInfo {
    run_id: String,
    #[serde(default)]
    run_name: String,
    #[serde(default)]
    user_id: String,
    status: RunStatus,
    #[serde(default)]
    start_time: i64,
    end_time: Option<i64>,
    #[serde(default)]
    artifact_uri: String,
    #[serde(default)]
    lifecycle_stage: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RunData {
    metrics: Vec<WireMetric>,
    params: Vec<Pair>,
    tags: Vec<Pair>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RunInputs {
    dataset_inputs: Vec<WireDatasetInput>,
    model_inputs: Vec<WireModel>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RunOutputs {
    model_outputs: Vec<WireModel>,
}

#[derive(Deserialize)]
struct WireModel {
    model_id: String,
    #[serde(default)]
    step: i64,
}

#[derive(Deserialize)]
struct WireDatasetInput {
    #[serde(default)]
    tags: Vec<Pair>,
    dataset: WireDataset,
}

#[derive(Deserialize)]
struct WireDataset {
    name: String,
    digest: String,
    #[serde(default)]
    source_type: String,
    #[serde(default)]
    source: String,
    schema: Option<String>,
    profile: Option<String>,
}

impl WireRun {
    /// A run of the experiment numbered `experiment` here; its files are still where they are there.
    pub(super) fn into_run(self, experiment: i64) -> Run {
        let Self { info, data, inputs, outputs } = self;
        let dataset = |WireDatasetInput { tags, dataset }: WireDatasetInput| {
            let WireDataset { name, digest, source_type, source, schema, profile } = dataset;
            DatasetInput { name, digest, source_type, source, schema, profile, tags: pairs(tags) }
        };
        Run {
            id: info.run_id,
            experiment,
            name: info.run_name,
            user_id: info.user_id,
            status: info.status,
            start_time: Millis(info.start_time),
            end_time: info.end_time.map(Millis),
            artifact_uri: info.artifact_uri,
            is_deleted: info.lifecycle_stage == "deleted",
            params: pairs(data.params),
            tags: pairs(data.tags),
            metrics: data.metrics.into_iter().map(WireMetric::into_metric).collect(),
            datasets: inputs.dataset_inputs.into_iter().map(dataset).collect(),
            model_inputs: inputs.model_inputs.into_iter().map(|model| model.model_id).collect(),
            model_outputs: outputs
                .model_outputs
                .into_iter()
                .map(|WireModel { model_id, step }| ModelOutput { model: model_id, step })
                .collect(),
        }
    }
}

#[derive(Deserialize)]
pub(super) struct LoggedModelPage {
    #[serde(default)]
    pub(super) models: Vec<WireLoggedModel>,
    #[serde(default)]
    pub(super) next_page_token: String,
}

#[derive(Deserialize)]
pub(super) struct LoggedModelAnswer {
    pub(super) model: WireLoggedModel,
}

#[derive(Deserialize)]
pub(super) struct WireLoggedModel {
    info: LoggedModelInfo,
    #[serde(default)]
    data: LoggedModelData,
}

#[derive(Deserialize)]
struct LoggedModelInfo {
    model_id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    creation_timestamp_ms: i64,
    #[serde(default)]
    last_updated_timestamp_ms: i64,
    #[serde(default)]
    artifact_uri: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    model_type: String,
    #[serde(default)]
    source_run_id: String,
    #[serde(default)]
    tags: Vec<Pair>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LoggedModelData {
    params: Vec<Pair>,
    metrics: Vec<WireMetric>,
}

impl WireLoggedModel {
    /// A logged model of the experiment numbered `experiment` here; its files are still where they are there.
    pub(super) fn into_logged_model(self, experiment: i64) -> LoggedModel {
        let Self { info, data } = self;
        let status = match info.status.as_str() {
            "LOGGED_MODEL_READY" => LoggedModelStatus::Ready,
            "LOGGED_MODEL_UPLOAD_FAILED" => LoggedModelStatus::UploadFailed,
            _ => LoggedModelStatus::Pending,
        };
        let measured = |mut metric: WireMetric| {
            let run = std::mem::take(&mut metric.run_id);
            (run, Metric { model: Some(info.model_id.clone()), ..metric.into_metric() })
        };
        let metrics = data.metrics.into_iter().map(measured).collect();
        LoggedModel {
            experiment,
            name: info.name,
            artifact_location: info.artifact_uri,
            status,
            model_type: info.model_type,
            source_run: info.source_run_id,
            params: pairs(data.params),
            tags: pairs(info.tags),
            metrics,
            create_time: Millis(info.creation_timestamp_ms),
            update_time: Millis(info.last_updated_timestamp_ms),
            id: info.model_id,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct ModelAnswer {
    pub(super) registered_model: WireRegisteredModel,
}

#[derive(Deserialize)]
pub(super) struct ModelPage {
    #[serde(default)]
    pub(super) registered_models: Vec<WireRegisteredModel>,
    #[serde(default)]
    pub(super) next_page_token: String,
}

#[derive(Deserialize)]
pub(super) struct WireRegisteredModel {
    pub(super) name: String,
    #[serde(default)]
    pub(super) creation_timestamp: i64,
    #[serde(default)]
    pub(super) last_updated_timestamp: i64,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) tags: Vec<Pair>,
    #[serde(default)]
    pub(super) aliases: Vec<WireAlias>,
}

#[derive(Deserialize)]
pub(super) struct WireAlias {
    pub(super) alias: String,
    pub(super) version: String,
}

#[derive(Deserialize)]
pub(super) struct VersionPage {
    #[serde(default)]
    pub(super) model_versions: Vec<WireVersion>,
    #[serde(default)]
    pub(super) next_page_token: String,
}

#[derive(Deserialize)]
pub(super) struct WireVersion {
    pub(super) version: String,
    #[serde(default)]
    pub(super) creation_timestamp: i64,
    #[serde(default)]
    pub(super) last_updated_timestamp: i64,
    #[serde(default)]
    pub(super) current_stage: Stage,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) source: String,
    #[serde(default)]
    pub(super) run_id: String,
    #[serde(default)]
    pub(super) run_link: String,
    #[serde(default)]
    pub(super) status: String,
    #[serde(default)]
    pub(super) model_id: String,
    #[serde(default)]
    pub(super) tags: Vec<Pair>,
}

#[derive(Deserialize)]
pub(super) struct DownloadUri {
    #[serde(default)]
    pub(super) artifact_uri: String,
}

#[derive(Deserialize)]
pub(super) struct FileList {
    #[serde(default)]
    pub(super) files: Vec<WireFile>,
}

#[derive(Deserialize)]
pub(super) struct WireFile {
    pub(super) path: String,
    #[serde(default)]
    pub(super) is_dir: bool,
    pub(super) file_size: Option<u64>,
}
