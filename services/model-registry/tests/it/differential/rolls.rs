//! Rolls operations and searches: mostly on what there is, mostly with what is allowed.

use std::collections::HashMap;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use verdict_api::registry as api;

use super::operations::{Known, Op, RunSearch};

impl Op {
    /// Rolls an operation: mostly on what there is, mostly with what is allowed.
    pub(super) fn any(dice: &mut StdRng, known: &Known) -> Self {
        let run_id = one_of(dice, &known.runs, "0123456789abcdef0123456789abcdef");
        let model_id = one_of(dice, &known.models, "m-0123456789abcdef0123456789abcdef");
        let experiment: i64 = one_of(dice, &known.experiments, "4711").parse().unwrap();
        let experiment = if dice.random_bool(0.3) { 0 } else { experiment };
        let experiment_id = Some(experiment).filter(|_| dice.random_bool(0.97));
        let model = text(dice, &["fraud", "credit risk", "größe", "fraud 2", "none-such", "a/b", ""]);
        let version = dice.random_range(1..5);
        match dice.random_range(0..33) {
            0 => Self::CreateExperiment(api::CreateExperimentRequest {
                name: experiment_name(dice),
                artifact_location: text(dice, &["", "", "s3://bucket/e", "s3://bucket/e#f"]),
                tags: pairs(dice),
            }),
            1 => Self::RenameExperiment(api::UpdateExperimentRequest {
                experiment_id: Some(experiment),
                new_name: text(dice, &["e-1", "e-2", "neu", "größe"]),
            }),
            2 if experiment != 0 => Self::DeleteExperiment(api::DeleteExperimentRequest { experiment_id }),
            2 | 3 => Self::RestoreExperiment(api::RestoreExperimentRequest { experiment_id }),
            4 => {
                Self::TagExperiment(api::SetExperimentTagRequest { experiment_id, key: key(dice), value: value(dice) })
            }
            5 => Self::UntagExperiment(api::DeleteExperimentTagRequest { experiment_id, key: key(dice) }),
            6..=8 => Self::CreateRun(api::CreateRunRequest {
                experiment_id: experiment,
                name: text(dice, &["", "first", "größe 漢"]),
                user_id: text(dice, &["", "ada", &"u".repeat(257)]),
                start_time_ms: Some(dice.random_range(-5..100)),
                tags: pairs(dice),
            }),
            9 => Self::UpdateRun(api::UpdateRunRequest {
                run_id,
                status: *[0, 1, 2, 3, 4, 5, 99].choose(dice).unwrap(),
                end_time_ms: Some(dice.random_range(0..9)).filter(|_| dice.random_bool(0.5)),
                name: value(dice),
            }),
            10 => Self::DeleteRun(api::DeleteRunRequest { run_id }),
            11 => Self::RestoreRun(api::RestoreRunRequest { run_id }),
            12 => Self::UntagRun(api::DeleteRunTagRequest { run_id, key: key(dice) }),
            13..=17 => Self::LogBatch(batch(dice, run_id, &known.models)),
            18 => Self::LogInputs(api::LogInputsRequest {
                run_id,
                datasets: vec![api::DatasetInput {
                    name: text(dice, &["train", "it's", "größe", ""]),
                    digest: text(dice, &["d1", "d2", &"d".repeat(37)]),
                    source_type: "s3".to_owned(),
                    source: text(dice, &["s3://bucket/data", "{}"]),
                    schema: Some(value(dice)).filter(|_| dice.random_bool(0.5)),
                    profile: None,
                    tags: HashMap::from([("mlflow.data.context".to_owned(), text(dice, &["train", "eval"]))]),
                }],
                model_ids: vec![model_id],
            }),
            19 => Self::LogOutputs(api::LogOutputsRequest {
                run_id,
                models: vec![api::ModelOutput { model_id, step: dice.random_range(0..3) }],
            }),
            20 => Self::CreateLoggedModel(api::CreateLoggedModelRequest {
                experiment_id: experiment,
                name: text(dice, &["", "forest", "größe", "a.b", "a/b"]),
                model_type: text(dice, &["", "tree"]),
                source_run_id: run_id,
                params: pairs(dice),
                tags: pairs(dice),
            }),
            21 => {
                Self::FinalizeLoggedModel(api::FinalizeLoggedModelRequest { model_id, status: dice.random_range(1..4) })
            }
            22 => Self::AddParams(api::AddLoggedModelParamsRequest { model_id, params: pairs(dice) }),
            23 => Self::TagLoggedModel(api::SetLoggedModelTagsRequest { model_id, tags: pairs(dice) }),
            24 => Self::UntagLoggedModel(api::DeleteLoggedModelTagRequest { model_id, key: "k".to_owned() }),
            25 if dice.random_bool(0.3) => Self::DeleteLoggedModel(api::DeleteLoggedModelRequest { model_id }),
            25 | 26 => Self::CreateModel(api::CreateModelRequest {
                name: model,
                description: text(dice, &["", "what it does"]),
                tags: HashMap::from([("k".to_owned(), text(dice, &["", "v", "it's"]))]),
                ..Default::default()
            }),
            27 if dice.random_bool(0.2) => {
                Self::DeleteModel(api::DeleteModelRequest { name: model, force: true, ..Default::default() })
            }
            27 | 28 => Self::CreateVersion(api::CreateVersionRequest {
                model,
                task: api::Task::Custom.into(),
                description: text(dice, &["", "new"]),
                ..Default::default()
            }),
            29 if dice.random_bool(0.3) => {
                Self::DeleteVersion(api::DeleteVersionRequest { model, version, ..Default::default() })
            }
            29 => Self::SetAlias(api::SetAliasRequest {
                model,
                alias: text(dice, &["champion", "challenger", "", "a/b"]),
                version,
                ..Default::default()
            }),
            30 if dice.random_bool(0.3) => Self::DeleteAlias(api::DeleteAliasRequest {
                model,
                alias: text(dice, &["champion", "challenger"]),
                ..Default::default()
            }),
            30 => Self::TagModel(api::SetTagRequest {
                model,
                version: Some(version).filter(|_| dice.random_bool(0.5)),
                key: text(dice, &["k", "a b", ""]),
                value: text(dice, &["", "v", "it's \"q\"", "%_;--", "a\0b"]),
                ..Default::default()
            }),
            31 => Self::UntagModel(api::DeleteTagRequest {
                model,
                version: Some(version).filter(|_| dice.random_bool(0.5)),
                key: text(dice, &["k", "a b"]),
                ..Default::default()
            }),
            _ => Self::MoveToStage(api::TransitionStageRequest {
                model,
                version,
                stage: dice.random_range(1..5),
                archive_existing_versions: dice.random_bool(0.5),
            }),
        }
    }
}

/// Mostly one of those there are.
fn one_of(dice: &mut StdRng, known: &[String], other: &str) -> String {
    match known.choose(dice) {
        Some(id) if dice.random_bool(0.95) => id.clone(),
        _ => other.to_owned(),
    }
}

/// One of these, the first ones more often.
fn text(dice: &mut StdRng, texts: &[&str]) -> String {
    let at = (0..4).map(|_| dice.random_range(0..texts.len())).min().unwrap();
    texts[at].to_owned()
}

fn experiment_name(dice: &mut StdRng) -> String {
    let n = dice.random_range(0..40);
    text(dice, &[&format!("e-{n}"), &format!("größe {n}"), "Default", "a\0b", &"x".repeat(501)])
}

fn key(dice: &mut StdRng) -> String {
    text(dice, &["k", "k", "a b", "a/b", "größe", "mlflow.note", "../x", "a;b", "", "a\0", &"x".repeat(251)])
}

fn value(dice: &mut StdRng) -> String {
    text(
        dice,
        &["v", "", "it's \"q\"", "%_;--", "ü漢🦀", "a\nb", "last", "a\0b", &"y".repeat(5_001), &"y".repeat(8_001)],
    )
}

fn pairs(dice: &mut StdRng) -> HashMap<String, String> {
    let count = [0, 0, 1, 2][dice.random_range(0..4)];
    (0..count).map(|_| (key(dice), value(dice))).collect()
}

fn batch(dice: &mut StdRng, run_id: String, models: &[String]) -> api::LogBatchRequest {
    let values =
        [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -0.0, 0.1, -1e308, f64::MAX, f64::MIN_POSITIVE, 1e17];
    let count = if dice.random_bool(0.03) { 1001 } else { dice.random_range(0..5) };
    let metrics = (0..count).map(|_| {
        let is_of_model = dice.random_bool(0.2);
        api::Metric {
            key: key(dice),
            value: *values.choose(dice).unwrap(),
            timestamp_ms: dice.random_range(0..4) * dice.random_range(0..1000),
            step: dice.random_range(-2..3),
            model_id: if is_of_model { one_of(dice, models, "m-none") } else { String::new() },
            dataset_name: if is_of_model { "train".to_owned() } else { String::new() },
            dataset_digest: if is_of_model { "d1".to_owned() } else { String::new() },
        }
    });
    let metrics = metrics.collect();
    let count = if dice.random_bool(0.03) { 101 } else { dice.random_range(0..3) };
    let params =
        (0..count).map(|_| api::Param { key: key(dice), value: text(dice, &["v", "v", "w", "ü漢🦀"]) }).collect();
    let tags = (0..dice.random_range(0..3)).map(|_| api::Tag { key: key(dice), value: value(dice) }).collect();
    api::LogBatchRequest { run_id, metrics, params, tags }
}

pub(super) fn any_search(dice: &mut StdRng) -> RunSearch {
    let filters = [
        "",
        "metrics.k > 0",
        "metrics.`a b` <= 0.1 AND params.k = 'v'",
        "tags.k LIKE '%t''s%'",
        "tags.`größe` ILIKE \"%Ü漢%\"",
        "params.k IS NULL",
        "dataset.name IN ('train', 'größe')",
        "attributes.status != 'RUNNING'",
        "metrics.k = 'x'",
        "params.k > 'v'",
        "nonsense",
        "params.k = 'a\0b'",
    ];
    let orders = ["metrics.k DESC", "params.k ASC", "tags.`a b`", "start_time", "end_time DESC", "dataset.name", "1"];
    let count = dice.random_range(0..3);
    RunSearch {
        filter: (*filters.choose(dice).unwrap()).to_owned(),
        order_by: orders.choose_multiple(dice, count).map(|order| (*order).to_owned()).collect(),
    }
}
