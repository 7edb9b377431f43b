//! What large pages are made of, written field by field from what was read.

use std::collections::BTreeMap;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

use super::answer::{dataset_input, millis, run_status, stage, stage_of_life};
use crate::model::Version;
use crate::tracking::{Metric, ModelOutput, Run};

/// A page: `{name: […], "next_page_token": …}`.
pub(super) struct Written<T> {
    pub(super) name: &'static str,
    pub(super) items: Vec<T>,
    pub(super) next: Option<String>,
}

impl<T: Serialize> Serialize for Written<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        map.serialize_entry(self.name, &self.items)?;
        if let Some(next) = &self.next {
            map.serialize_entry("next_page_token", next)?;
        }
        map.end()
    }
}

/// Pairs of `key` and `value`.
struct Pairs<'a>(&'a BTreeMap<String, String>);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.iter().map(|(key, value)| Pair { key, value }))
    }
}

#[derive(serde::Serialize)]
struct Pair<'a> {
    key: &'a str,
    value: &'a str,
}

/// A number that is written as a text, as 64-bit numbers are in Protocol Buffers' JSON.
struct Text(i64);

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

/// A version of a registered model.
#[derive(serde::Serialize)]
pub(super) struct VersionBody<'a> {
    name: &'a str,
    version: Text,
    creation_timestamp: i64,
    last_updated_timestamp: i64,
    current_stage: &'static str,
    description: &'a str,
    source: &'a str,
    run_id: &'a str,
    run_link: &'a str,
    status: &'static str,
    tags: Pairs<'a>,
    aliases: &'a [String],
    model_id: &'a str,
}

impl<'a> VersionBody<'a> {
    pub(super) fn of(version: &'a Version) -> Self {
        Self {
            name: version.id.model.as_str(),
            version: Text(version.id.number),
            creation_timestamp: millis(version.create_time),
            last_updated_timestamp: millis(version.update_time),
            current_stage: stage(version.stage),
            description: &version.description,
            source: &version.origin.source,
            run_id: &version.origin.run,
            run_link: &version.origin.run_link,
            status: if version.digest.is_some() { "READY" } else { "PENDING_REGISTRATION" },
            tags: Pairs(&version.tags),
            aliases: &version.aliases,
            model_id: &version.origin.logged_model,
        }
    }
}

/// A run as a whole.
#[derive(serde::Serialize)]
pub(super) struct RunBody<'a> {
    pub(super) info: RunInfo<'a>,
    data: RunData<'a>,
    inputs: RunInputs<'a>,
    outputs: RunOutputs<'a>,
}

#[derive(serde::Serialize)]
pub(super) struct RunInfo<'a> {
    run_uuid: &'a str,
    run_id: &'a str,
    run_name: &'a str,
    experiment_id: Text,
    user_id: &'a str,
    status: &'static str,
    start_time: i64,
    artifact_uri: &'a str,
    lifecycle_stage: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<i64>,
}

#[derive(serde::Serialize)]
struct RunData<'a> {
    metrics: Vec<MetricBody<'a>>,
    params: Pairs<'a>,
    tags: Pairs<'a>,
}

#[derive(serde::Serialize)]
struct RunInputs<'a> {
    dataset_inputs: Vec<Value>,
    model_inputs: Vec<ModelInput<'a>>,
}

#[derive(serde::Serialize)]
struct ModelInput<'a> {
    model_id: &'a str,
}

#[derive(serde::Serialize)]
struct RunOutputs<'a> {
    model_outputs: Vec<OutputBody<'a>>,
}

#[derive(serde::Serialize)]
struct OutputBody<'a> {
    model_id: &'a str,
    step: i64,
}

impl<'a> RunBody<'a> {
    pub(super) fn of(run: &'a Run) -> Self {
        let output = |ModelOutput { model, step }: &'a ModelOutput| OutputBody { model_id: model, step: *step };
        Self {
            info: RunInfo {
                run_uuid: &run.id,
                run_id: &run.id,
                run_name: &run.name,
                experiment_id: Text(run.experiment),
                user_id: &run.user_id,
                status: run_status(run.status),
                start_time: run.start_time.0,
                artifact_uri: &run.artifact_uri,
                lifecycle_stage: stage_of_life(run.is_deleted),
                end_time: run.end_time.map(|time| time.0),
            },
            data: RunData {
                metrics: run.metrics.iter().map(MetricBody::of).collect(),
                params: Pairs(&run.params),
                tags: Pairs(&run.tags),
            },
            inputs: RunInputs {
                dataset_inputs: run.datasets.iter().cloned().map(dataset_input).collect(),
                model_inputs: run.model_inputs.iter().map(|model| ModelInput { model_id: model }).collect(),
            },
            outputs: RunOutputs { model_outputs: run.model_outputs.iter().map(output).collect() },
        }
    }
}

/// A metric. Numbers JSON has no words for are texts, as in Protocol Buffers' JSON.
#[derive(serde::Serialize)]
pub(super) struct MetricBody<'a> {
    key: &'a str,
    value: Value,
    timestamp: i64,
    step: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dataset_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dataset_digest: Option<&'a str>,
}

impl<'a> MetricBody<'a> {
    pub(super) fn of(metric: &'a Metric) -> Self {
        let value = match metric.value {
            value if value.is_nan() => "NaN".into(),
            value => value.clamp(f64::MIN, f64::MAX).into(),
        };
        let (name, digest) = metric.dataset.as_ref().map(|(name, digest)| (name.as_str(), digest.as_str())).unzip();
        Self {
            key: &metric.key,
            value,
            timestamp: metric.timestamp.0,
            step: metric.step,
            model_id: metric.model.as_deref(),
            dataset_name: name,
            dataset_digest: digest,
        }
    }
}
