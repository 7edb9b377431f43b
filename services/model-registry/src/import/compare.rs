//! Whether what is here is what is there. Places of files differ by design and are not compared.

use crate::model::{Model, Version};
use crate::tracking::{Experiment, LoggedModel, Metric, Run};

/// Names the parts that differ; nothing when none do.
#[derive(Default)]
pub(super) struct Differences(Vec<&'static str>);

impl Differences {
    fn note(mut self, part: &'static str, is_same: bool) -> Self {
        if !is_same {
            self.0.push(part);
        }
        self
    }

    /// What to report, if anything.
    pub(super) fn told(self) -> Option<String> {
        let Self(parts) = self;
        (!parts.is_empty())
            .then(|| format!("it is here already with other {}; it stays as it is here", parts.join(", ")))
    }
}

pub(super) fn experiments(here: &Experiment, there: &Experiment) -> Differences {
    Differences::default()
        .note("tags", here.tags == there.tags)
        .note("state (active or deleted)", here.is_deleted == there.is_deleted)
}

pub(super) fn runs(here: &Run, there: &Run) -> Differences {
    let datasets = |run: &Run| {
        let mut datasets = run.datasets.clone();
        datasets.sort_by(|a, b| (&a.name, &a.digest).cmp(&(&b.name, &b.digest)));
        datasets
    };
    let models = |run: &Run| {
        let mut inputs = run.model_inputs.clone();
        inputs.sort();
        let mut outputs: Vec<_> = run.model_outputs.iter().map(|output| (output.model.clone(), output.step)).collect();
        outputs.sort();
        (inputs, outputs)
    };
    let metrics = |run: &Run| {
        let mut metrics: Vec<_> = run.metrics.iter().map(comparable).collect();
        metrics.sort();
        metrics
    };
    Differences::default()
        .note("experiment", here.experiment == there.experiment)
        .note("name", here.name == there.name)
        .note("status", here.status == there.status)
        .note("times", (here.start_time, here.end_time) == (there.start_time, there.end_time))
        .note("state (active or deleted)", here.is_deleted == there.is_deleted)
        .note("parameters", here.params == there.params)
        .note("tags", here.tags == there.tags)
        .note("metrics", metrics(here) == metrics(there))
        .note("datasets", datasets(here) == datasets(there))
        .note("models", models(here) == models(there))
}

pub(super) fn logged_models(here: &LoggedModel, there: &LoggedModel) -> Differences {
    let metrics = |model: &LoggedModel| {
        let mut metrics: Vec<_> = model
            .metrics
            .iter()
            .map(|(run, metric)| (run.clone(), comparable(metric), metric.dataset.clone()))
            .collect();
        metrics.sort();
        metrics
    };
    Differences::default()
        .note("experiment", here.experiment == there.experiment)
        .note("name", here.name == there.name)
        .note("status", here.status == there.status)
        .note("type", here.model_type == there.model_type)
        .note("source run", here.source_run == there.source_run)
        .note("parameters", here.params == there.params)
        .note("tags", here.tags == there.tags)
        .note("metrics", metrics(here) == metrics(there))
}

pub(super) fn models(here: &Model, there: &Model) -> Differences {
    Differences::default()
        .note("description", here.description == there.description)
        .note("tags", here.tags == there.tags)
}

pub(super) fn versions(here: &Version, there: &Version) -> Differences {
    Differences::default()
        .note("time of creation", here.create_time == there.create_time)
        .note("description", here.description == there.description)
        .note("run", here.origin.run == there.origin.run)
        .note("stage", here.stage == there.stage)
        .note("tags", here.tags == there.tags)
}

/// A value as the databases keep it, so that NaN is NaN and infinities are the largest numbers.
fn comparable(metric: &Metric) -> (String, i64, i64, u64) {
    let value = if metric.value.is_nan() { f64::NAN } else { metric.value.clamp(f64::MIN, f64::MAX) };
    (metric.key.clone(), metric.timestamp.0, metric.step, if value == 0.0 { 0 } else { value.to_bits() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tracking::{Millis, RunStatus};

    fn run(value: f64, tag: &str) -> Run {
        let metric = Metric { key: "loss".into(), value, timestamp: Millis(1), step: 2, model: None, dataset: None };
        Run {
            id: "a".into(),
            experiment: 1,
            name: "first".into(),
            user_id: String::new(),
            status: RunStatus::Finished,
            start_time: Millis(1),
            end_time: Some(Millis(2)),
            artifact_uri: format!("place/of/{tag}"),
            is_deleted: false,
            params: BTreeMap::new(),
            tags: BTreeMap::from([("team".to_owned(), tag.to_owned())]),
            metrics: vec![metric],
            datasets: Vec::new(),
            model_inputs: Vec::new(),
            model_outputs: Vec::new(),
        }
    }

    #[test]
    fn runs_differ_by_what_was_logged_and_not_by_where_their_files_are() {
        let mut moved = run(0.5, "risk");
        moved.artifact_uri = "elsewhere".to_owned();
        assert_eq!(runs(&run(0.5, "risk"), &moved).told(), None);
        assert_eq!(runs(&run(f64::NAN, "risk"), &run(-f64::NAN, "risk")).told(), None);
        assert_eq!(runs(&run(f64::INFINITY, "risk"), &run(f64::MAX, "risk")).told(), None);
        let told = runs(&run(0.5, "risk"), &run(0.25, "cards")).told().unwrap();
        assert_eq!(told, "it is here already with other tags, metrics; it stays as it is here");
    }
}
