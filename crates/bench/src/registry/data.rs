//! What is searched: the same in our database as `scripts/bench_fill_mlflow.py` puts into MLflow's.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Result;
use model_registry::{
    model::{AliasMove, Micros, ModelDraft, Origin, Task, VersionDraft},
    names::{AliasName, ModelName},
    store::{Call, Everything},
    tracking::{Batch, ExperimentDraft, ExperimentRef, Location, Metric, Millis, RunDraft},
};

/// Models, each with the same number of versions.
pub(super) const MODELS: usize = 100;
/// What models and runs are shared among.
pub(super) const TEAMS: usize = 20;
/// The experiment whose runs are searched.
pub(super) const EXPERIMENT: &str = "bench";
const BEGAN: i64 = 1_700_000_000_000;

/// The name of a model.
pub(super) fn model(at: usize) -> String {
    format!("model-{at:04}")
}

/// Fills a database, unless it is filled already.
pub(super) async fn fill(store: &Arc<dyn Everything>, versions: usize, runs: usize) -> Result<()> {
    if store.experiment(&ExperimentRef::Name(EXPERIMENT.to_owned())).await.is_ok() {
        return Ok(());
    }
    fill_models(store, versions).await?;
    let draft = ExperimentDraft {
        name: EXPERIMENT.to_owned(),
        location: Location::Below("mlflow-artifacts:".to_owned()),
        tags: BTreeMap::new(),
    };
    let experiment = store.create_experiment(Millis(BEGAN), &draft).await?;
    for run in 0..runs {
        let draft = RunDraft {
            id: format!("{run:032x}"),
            experiment,
            name: format!("run-{run}"),
            user_id: "bench".to_owned(),
            start_time: Millis(BEGAN + run as i64),
            tags: BTreeMap::from([("team".to_owned(), format!("team-{}", run % TEAMS))]),
        };
        store.create_run(&draft).await?;
        let metric = |key: usize| Metric {
            key: format!("metric-{key}"),
            value: ((run * 7919 + key) % 10_000) as f64 / 10_000.0,
            timestamp: Millis(BEGAN),
            step: 0,
            model: None,
            dataset: None,
        };
        let param = |key: usize| (format!("param-{key}"), (run % (key + 2)).to_string());
        let metrics = (0..10).map(metric).collect();
        let batch = Batch { metrics, params: (0..5).map(param).collect(), tags: Vec::new() };
        store.log(&draft.id, &batch).await?;
    }
    Ok(())
}

async fn fill_models(store: &Arc<dyn Everything>, versions: usize) -> Result<()> {
    let names = (0..MODELS).map(|at| ModelName::parse("name", &model(at))).collect::<Result<Vec<_>, _>>()?;
    let call = |millis: usize| Call { now: Micros((BEGAN + millis as i64) * 1000), ..Call::now() };
    for name in &names {
        let draft = ModelDraft { name: name.clone(), description: String::new(), tags: BTreeMap::new() };
        store.create_model(&call(0), &draft).await?;
    }
    for version in 1..=versions {
        for (at, name) in names.iter().enumerate() {
            let origin = Origin {
                source: format!("s3://bench/{name}/{version}"),
                run: format!("{version:032x}"),
                run_link: String::new(),
                logged_model: String::new(),
            };
            let team = format!("team-{}", (at + version) % TEAMS);
            let draft = VersionDraft {
                model: name.clone(),
                description: String::new(),
                task: Task::Custom,
                signature: None,
                parameters: BTreeMap::new(),
                tags: BTreeMap::from([("team".to_owned(), team), ("build".to_owned(), format!("{at}-{version}"))]),
                origin: Some(origin),
            };
            store.add_version(&call(version * MODELS + at), &draft).await?;
        }
    }
    for name in names {
        let alias = AliasName::parse("alias", "champion")?;
        let to = Some(versions as i64 / 2);
        store.move_alias(&call(versions), &AliasMove { model: name, alias, to, expected: None }).await?;
    }
    Ok(())
}
