//! Entities out of the domain. Every conversion names every field, so that none is forgotten.

use verdict_api::registry as api;

use crate::model::{Stage, Version};
use crate::tracking::page::token;
use crate::tracking::{
    DatasetInput, DatasetSummary, Experiment, LoggedModel, LoggedModelStatus, Metric, ModelOutput, Page, Run, RunStatus,
};

/// A page's items and the token of the next; empty on the last.
pub(super) fn page<T: Into<P>, P>(page: Page<T>) -> (Vec<P>, String) {
    let Page { items, next } = page;
    (items.into_iter().map(Into::into).collect(), next.map(token).unwrap_or_default())
}

impl From<Experiment> for api::Experiment {
    fn from(experiment: Experiment) -> Self {
        let Experiment { id, name, artifact_location, is_deleted, tags, create_time, update_time } = experiment;
        Self {
            experiment_id: id,
            name,
            artifact_location,
            deleted: is_deleted,
            tags: tags.into_iter().collect(),
            create_time_ms: create_time.0,
            update_time_ms: update_time.0,
        }
    }
}

impl From<RunStatus> for api::RunStatus {
    fn from(status: RunStatus) -> Self {
        match status {
            RunStatus::Running => Self::Running,
            RunStatus::Scheduled => Self::Scheduled,
            RunStatus::Finished => Self::Finished,
            RunStatus::Failed => Self::Failed,
            RunStatus::Killed => Self::Killed,
        }
    }
}

impl From<Run> for api::Run {
    fn from(run: Run) -> Self {
        let Run {
            id,
            experiment,
            name,
            user_id,
            status,
            start_time,
            end_time,
            artifact_uri,
            is_deleted,
            params,
            tags,
            metrics,
            datasets,
            model_inputs,
            model_outputs,
        } = run;
        let output = |ModelOutput { model, step }| api::ModelOutput { model_id: model, step };
        Self {
            run_id: id,
            experiment_id: experiment,
            name,
            user_id,
            status: api::RunStatus::from(status).into(),
            start_time_ms: start_time.0,
            end_time_ms: end_time.map(|time| time.0),
            artifact_uri,
            deleted: is_deleted,
            params: params.into_iter().collect(),
            tags: tags.into_iter().collect(),
            metrics: metrics.into_iter().map(api::Metric::from).collect(),
            datasets: datasets.into_iter().map(api::DatasetInput::from).collect(),
            model_inputs,
            model_outputs: model_outputs.into_iter().map(output).collect(),
        }
    }
}

impl From<Metric> for api::Metric {
    fn from(metric: Metric) -> Self {
        let Metric { key, value, timestamp, step, model, dataset } = metric;
        let (dataset_name, dataset_digest) = dataset.unwrap_or_default();
        let model_id = model.unwrap_or_default();
        Self { key, value, timestamp_ms: timestamp.0, step, model_id, dataset_name, dataset_digest }
    }
}

impl From<DatasetInput> for api::DatasetInput {
    fn from(input: DatasetInput) -> Self {
        let DatasetInput { name, digest, source_type, source, schema, profile, tags } = input;
        Self { name, digest, source_type, source, schema, profile, tags: tags.into_iter().collect() }
    }
}

impl From<DatasetSummary> for api::DatasetSummary {
    fn from(summary: DatasetSummary) -> Self {
        let DatasetSummary { experiment, name, digest, context } = summary;
        Self { experiment_id: experiment, name, digest, context }
    }
}

impl From<LoggedModelStatus> for api::LoggedModelStatus {
    fn from(status: LoggedModelStatus) -> Self {
        match status {
            LoggedModelStatus::Pending => Self::Pending,
            LoggedModelStatus::Ready => Self::Ready,
            LoggedModelStatus::UploadFailed => Self::UploadFailed,
        }
    }
}

impl From<LoggedModel> for api::LoggedModel {
    fn from(model: LoggedModel) -> Self {
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
        let measured = |(run, metric): (String, Metric)| {
            let metric = Some(metric.into());
            api::LoggedModelMetric { run_id: run, metric }
        };
        Self {
            model_id: id,
            experiment_id: experiment,
            name,
            artifact_location,
            status: api::LoggedModelStatus::from(status).into(),
            model_type,
            source_run_id: source_run,
            params: params.into_iter().collect(),
            tags: tags.into_iter().collect(),
            metrics: metrics.into_iter().map(measured).collect(),
            create_time_ms: create_time.0,
            update_time_ms: update_time.0,
        }
    }
}

impl From<Stage> for api::Stage {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::None => Self::None,
            Stage::Staging => Self::Staging,
            Stage::Production => Self::Production,
            Stage::Archived => Self::Archived,
        }
    }
}

impl From<Version> for api::StagedVersion {
    fn from(version: Version) -> Self {
        let stage = api::Stage::from(version.stage).into();
        let (run_link, model_id) = (version.origin.run_link.clone(), version.origin.logged_model.clone());
        Self { version: Some(version.into()), stage, run_link, model_id }
    }
}
