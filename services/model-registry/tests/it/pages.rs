//! A page costs the same number of queries whatever its size.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use model_registry::model::{ModelDraft, Origin, Task, VersionDraft};
use model_registry::names::ModelName;
use model_registry::search::{Subject, filter};
use model_registry::store::{self, Call, Everything};
use model_registry::tracking::{Batch, DEFAULT_EXPERIMENT, Location, Metric, Millis, RunDraft, Search, View};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use verdict_testkit::postgres;

const ROWS: usize = 1000;

/// Counts the statements that are sent to a database.
#[derive(Clone, Default)]
struct Statements(Arc<AtomicUsize>);

impl<S: Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, _: &Field, value: &dyn Debug) {
                write!(self.0, "{value:?} ").unwrap();
            }
        }
        if event.metadata().target() != "sqlx::query" {
            return;
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        // A new connection begins with statements of its own.
        if text.0.contains("SELECT") {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A thousand models, versions of one of them, and runs.
async fn fill(store: &dyn Everything) {
    let call = Call::now();
    store.add_default_experiment(Millis::now(), &Location::Below("mlflow-artifacts:".to_owned())).await.unwrap();
    for at in 0..ROWS {
        let tags = BTreeMap::from([("team".to_owned(), "risk".to_owned())]);
        let name = ModelName::parse("name", &format!("model-{at:04}")).unwrap();
        let draft = ModelDraft { name, description: String::new(), tags: tags.clone() };
        store.create_model(&call, &draft).await.unwrap();
        let draft = VersionDraft {
            model: ModelName::parse("name", "model-0000").unwrap(),
            description: String::new(),
            task: Task::Custom,
            signature: None,
            parameters: BTreeMap::new(),
            tags: tags.clone(),
            origin: Some(Origin::default()),
        };
        store.add_version(&call, &draft).await.unwrap();
        let id = format!("{at:032x}");
        let draft = RunDraft {
            id: id.clone(),
            experiment: DEFAULT_EXPERIMENT,
            name: "run".to_owned(),
            user_id: String::new(),
            start_time: Millis(at as i64),
            tags,
        };
        store.create_run(&draft).await.unwrap();
        let metric =
            Metric { key: "loss".to_owned(), value: 0.25, timestamp: Millis(1), step: 1, model: None, dataset: None };
        let batch = Batch { metrics: vec![metric], params: vec![("k".to_owned(), "v".to_owned())], tags: Vec::new() };
        store.log(&id, &batch).await.unwrap();
    }
}

fn page(subject: Subject, text: &str, limit: usize) -> Search {
    Search {
        conditions: filter(subject, text).unwrap(),
        orders: Vec::new(),
        view: View::Active,
        experiments: vec![DEFAULT_EXPERIMENT],
        datasets: Vec::new(),
        offset: 0,
        limit: u32::try_from(limit).unwrap(),
    }
}

async fn pages_of_any_size_cost_the_same(url: &str, of_runs: usize) {
    let statements = Statements::default();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(statements.clone())).unwrap();
    let store = store::open(&url.parse().unwrap(), 4, true).await.unwrap();
    fill(&*store).await;
    // A statement is logged a moment after its rows have come.
    let since = async |before: usize| {
        tokio::time::sleep(Duration::from_millis(200)).await;
        statements.0.load(Ordering::SeqCst) - before
    };
    let mut counts = Vec::new();
    for limit in [10, ROWS] {
        let before = since(0).await;
        let runs = store.runs(&page(Subject::Runs, "metrics.loss < 1", limit)).await.unwrap().items;
        let for_runs = since(before).await;
        assert!(runs.len() == limit && runs.iter().all(|run| run.params.len() == 1 && run.metrics.len() == 1));

        let before = since(0).await;
        let search = page(Subject::ModelVersions, "tags.team = 'risk'", limit);
        let versions = store.search_versions(&search).await.unwrap().items;
        let of_versions = since(before).await;
        assert!(versions.len() == limit && versions.iter().all(|version| version.tags.len() == 1));

        let before = since(0).await;
        let models = store.search_models(&page(Subject::RegisteredModels, "", limit)).await.unwrap().items;
        assert!(models.len() == limit && models.iter().all(|model| model.tags.len() == 1));
        let names: Vec<ModelName> = models.into_iter().map(|model| model.name).collect();
        let latest = store.latest_versions(&names).await.unwrap();
        assert_eq!(latest.iter().map(|version| version.id.number).collect::<Vec<_>>(), [ROWS as i64]);
        counts.push((for_runs, of_versions, since(before).await));
    }
    let expected = (of_runs, 1, 2);
    assert_eq!(counts, [expected, expected], "queries for runs, versions, models with their latest versions");
}

mod embedded {
    #[tokio::test(flavor = "multi_thread")]
    async fn pages_of_any_size_cost_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("registry.db").display());
        // The values of metrics come by themselves: JSON would round them.
        super::pages_of_any_size_cost_the_same(&url, 2).await;
    }
}

mod live {
    #[tokio::test(flavor = "multi_thread")]
    async fn pages_of_any_size_cost_the_same() {
        super::pages_of_any_size_cost_the_same(&super::postgres::database().await, 1).await;
    }
}
