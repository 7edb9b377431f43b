//! Many callers log at the same time: each is answered for its own call, and all that was accepted is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model_registry::store::{self, Everything};
use model_registry::tracking::{Batch, DEFAULT_EXPERIMENT, Location, Metric, Millis, RunChange, RunDraft};
use verdict_testkit::postgres;

const CALLERS: usize = 300;

type Store = Arc<dyn Everything>;

macro_rules! on_both {
    ($($case:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let dir = tempfile::tempdir().unwrap();
                let url = format!("sqlite://{}", dir.path().join("registry.db").display());
                super::$case(super::open(&url).await).await;
            })+
        }
        mod live {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::open(&super::postgres::database().await).await).await;
            })+
        }
    };
}

on_both!(
    a_refused_call_spoils_no_other,
    callers_who_leave_take_nobody_with_them,
    the_latest_of_many_callers_is_the_latest,
    what_is_logged_again_is_there_once,
    values_come_back_as_they_were,
);

async fn open(url: &str) -> Store {
    let store = store::open(&url.parse().unwrap(), 4, true).await.unwrap();
    store.add_default_experiment(Millis::now(), &Location::Below("mlflow-artifacts:".to_owned())).await.unwrap();
    store
}

async fn run(store: &Store, id: &str) -> String {
    let draft = RunDraft {
        id: id.to_owned(),
        experiment: DEFAULT_EXPERIMENT,
        name: id.to_owned(),
        user_id: String::new(),
        start_time: Millis(1),
        tags: BTreeMap::new(),
    };
    store.create_run(&draft).await.unwrap().id
}

fn metric(key: &str, step: usize, value: f64) -> Metric {
    Metric { key: key.to_owned(), value, timestamp: Millis(step as i64), step: step as i64, model: None, dataset: None }
}

fn metrics(metrics: Vec<Metric>) -> Batch {
    Batch { metrics, ..Batch::default() }
}

fn param(value: String) -> Batch {
    Batch { params: vec![("depth".to_owned(), value)], ..Batch::default() }
}

async fn a_refused_call_spoils_no_other(store: Store) {
    let (good, deleted) = (run(&store, "good").await, run(&store, "deleted").await);
    store.change_run(&deleted, &RunChange::Delete).await.unwrap();
    store.log(&good, &param("1".to_owned())).await.unwrap();
    let call = async |at: usize| {
        let (run, batch) = match at % 6 {
            0 => ("missing", metrics(vec![metric("loss", at, 0.5)])),
            1 => (deleted.as_str(), metrics(vec![metric("loss", at, 0.5)])),
            // It has another value, so the metric beside it is not logged either.
            2 => ("good", Batch { metrics: vec![metric("spoilt", at, 0.5)], ..param("2".to_owned()) }),
            3 => ("good", Batch { tags: vec![(format!("tag-{at}"), "v".to_owned())], ..param("1".to_owned()) }),
            _ => ("good", metrics(vec![metric("loss", at, 0.5)])),
        };
        (at, store.log(run, &batch).await.map_err(|error| error.to_string()))
    };
    for (at, outcome) in futures::future::join_all((0..CALLERS).map(call)).await {
        match at % 6 {
            0 => assert!(outcome.unwrap_err().contains("missing")),
            1 => assert!(outcome.unwrap_err().contains("Current state is deleted")),
            2 => assert!(outcome.unwrap_err().contains("Changing param values is not allowed")),
            _ => outcome.unwrap(),
        }
    }
    assert_eq!(store.history(&good, "loss", 0, 1000).await.unwrap().items.len(), CALLERS / 3);
    assert_eq!(store.history(&good, "spoilt", 0, 1000).await.unwrap().items, []);
    assert_eq!(store.history(&deleted, "loss", 0, 1000).await.unwrap().items, []);
    let after = store.run(&good).await.unwrap();
    assert_eq!(after.tags.keys().filter(|key| key.starts_with("tag-")).count(), CALLERS / 6);
    assert_eq!(after.params["depth"], "1");
}

async fn callers_who_leave_take_nobody_with_them(store: Store) {
    let run = run(&store, "run").await;
    let call = async |at: usize| {
        let batch = metrics(vec![metric(if at.is_multiple_of(2) { "stays" } else { "leaves" }, at, 0.5)]);
        let logged = store.log(&run, &batch);
        if at.is_multiple_of(2) {
            logged.await.unwrap();
        } else {
            let _ = tokio::time::timeout(Duration::from_micros(at as u64), logged).await;
        }
    };
    futures::future::join_all((0..CALLERS).map(call)).await;
    assert_eq!(store.history(&run, "stays", 0, 1000).await.unwrap().items.len(), CALLERS / 2);
}

async fn the_latest_of_many_callers_is_the_latest(store: Store) {
    let runs = [run(&store, "one").await, run(&store, "two").await];
    let calls = (0..CALLERS).rev().map(|at| {
        let (store, run) = (store.clone(), runs[at % 2].clone());
        tokio::spawn(async move { store.log(&run, &metrics(vec![metric("loss", at, at as f64)])).await })
    });
    for call in futures::future::join_all(calls).await {
        call.unwrap().unwrap();
    }
    for (at, run) in runs.iter().enumerate() {
        let latest = store.run(run).await.unwrap().metrics;
        assert_eq!(latest, [metric("loss", CALLERS - 2 + at, (CALLERS - 2 + at) as f64)]);
        assert_eq!(store.history(run, "loss", 0, 1000).await.unwrap().items.len(), CALLERS / 2);
    }
}

/// As a client does who has not heard the answer.
async fn what_is_logged_again_is_there_once(store: Store) {
    let run = run(&store, "run").await;
    let call = async |at: usize| {
        // A third of the callers say what another says, a third say something twice.
        let steps = [at - usize::from(at % 3 == 1), if at % 3 == 2 { at } else { CALLERS + at }];
        store.log(&run, &metrics(steps.map(|step| metric("loss", step, step as f64)).to_vec())).await
    };
    for round in 0..2 {
        for outcome in futures::future::join_all((0..CALLERS).map(call)).await {
            outcome.unwrap();
        }
        let there = store.history(&run, "loss", 0, 1000).await.unwrap().items;
        let expected =
            (0..CALLERS).filter(|at| at % 3 != 1).chain((0..CALLERS).filter(|at| at % 3 != 2).map(|at| CALLERS + at));
        assert_eq!(there, Vec::from_iter(expected.map(|step| metric("loss", step, step as f64))), "in round {round}");
    }
}

/// Bit by bit, however large or small.
async fn values_come_back_as_they_were(store: Store) {
    let run = run(&store, "run").await;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut values = vec![0.1, -0.1, 1.0 / 3.0, f64::MAX, f64::MIN, f64::MIN_POSITIVE, 1e22, 1e23, 5e-324, 123_456.789];
    while values.len() < 900 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        values.extend(Some(f64::from_bits(state)).filter(|value| value.is_finite()));
    }
    let logged: Vec<Metric> =
        values.iter().enumerate().map(|(at, value)| metric(&format!("{at:04}"), 1, *value)).collect();
    store.log(&run, &metrics(logged.clone())).await.unwrap();
    let mut read = store.run(&run).await.unwrap().metrics;
    read.sort_by(|a, b| a.key.cmp(&b.key));
    for (read, logged) in read.iter().zip(&logged) {
        assert_eq!(read.value.to_bits(), logged.value.to_bits(), "{read:?} instead of {logged:?}");
    }
    assert_eq!(read.len(), logged.len());
}

mod locked {
    mod live {
        use sqlx::{Connection, Executor, PgConnection};

        use super::super::*;

        /// Somebody holds the row of one run: only who logs to that run is refused, and what others log is there.
        #[tokio::test(flavor = "multi_thread")]
        async fn a_run_that_another_holds_fails_alone() {
            let url = postgres::database().await;
            let store = open(&url).await;
            for id in ["held", "free"] {
                run(&store, id).await;
            }
            let mut other = PgConnection::connect(&url).await.unwrap();
            other.execute("BEGIN; SELECT 1 FROM runs WHERE id = 'held' FOR UPDATE").await.unwrap();
            let call = async |at: usize| {
                let run = if at.is_multiple_of(10) { "held" } else { "free" };
                (run, store.log(run, &metrics(vec![metric("loss", at, 0.5)])).await)
            };
            for (run, outcome) in futures::future::join_all((0..CALLERS).map(call)).await {
                assert_eq!(outcome.is_ok(), run == "free", "{run}: {outcome:?}");
            }
            assert_eq!(store.history("free", "loss", 0, 1000).await.unwrap().items.len(), CALLERS - CALLERS / 10);
            other.execute("ROLLBACK").await.unwrap();
            store.log("held", &metrics(vec![metric("loss", 1, 0.5)])).await.unwrap();
            assert_eq!(store.history("held", "loss", 0, 1000).await.unwrap().items.len(), 1);
        }

        const DELETE: &str = "BEGIN;
            DELETE FROM latest_metrics WHERE run = 'run'; DELETE FROM metrics WHERE run = 'run';
            DELETE FROM run_tags WHERE run = 'run'; DELETE FROM runs WHERE id = 'run'";

        /// Deletes the run, or tells why not.
        async fn delete(by: &mut PgConnection) -> sqlx::Result<()> {
            let deleted = by.execute(DELETE).await;
            by.execute(if deleted.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
            deleted.map(|_| ())
        }

        /// How many metrics belong to no run.
        async fn orphans(of: &mut PgConnection) -> i64 {
            sqlx::query_scalar(
                "SELECT COUNT(*) FROM (SELECT run FROM metrics UNION ALL SELECT run FROM latest_metrics) m
                 WHERE NOT EXISTS (SELECT 1 FROM runs WHERE id = m.run)",
            )
            .fetch_one(of)
            .await
            .unwrap()
        }

        /// No constraint ties metrics to their run: the locks of both sides do, whoever comes first.
        #[tokio::test(flavor = "multi_thread")]
        async fn a_run_is_deleted_before_or_after_its_metrics_are_logged() {
            let url = postgres::database().await;
            let store = open(&url).await;
            let mut other = PgConnection::connect(&url).await.unwrap();
            let code = |error: &sqlx::Error| error.as_database_error().unwrap().code().unwrap().into_owned();
            let refused = |error: sqlx::Error| assert_eq!(code(&error), "23503", "{error}");
            run(&store, "run").await;
            store.log("run", &metrics(vec![metric("loss", 1, 0.5)])).await.unwrap();
            other.execute("DELETE FROM run_tags WHERE run = 'run'").await.unwrap();
            for sql in ["DELETE FROM runs WHERE id = 'run'", "UPDATE runs SET id = 'other' WHERE id = 'run'"] {
                refused(other.execute(sql).await.unwrap_err());
            }
            other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
            other.execute("DELETE FROM runs WHERE id = 'run'").await.unwrap_err();
            other.execute("ROLLBACK").await.unwrap();

            // Deleted first: who logs waits, and is told that there is no such run.
            other.execute(DELETE).await.unwrap();
            let late = tokio::spawn({
                let store = store.clone();
                async move { store.log("run", &metrics(vec![metric("loss", 2, 0.5)])).await }
            });
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(!late.is_finished());
            other.execute("COMMIT").await.unwrap();
            assert!(late.await.unwrap().unwrap_err().to_string().contains("run"));
            assert_eq!(orphans(&mut other).await, 0);

            // At the same time.
            let mut deleted = 0;
            for round in 0..40 {
                run(&store, "run").await;
                let logging = (0..4).map(|at| {
                    let store = store.clone();
                    let values = (0..50).map(|step| metric("loss", 50 * at + step, 0.5)).collect();
                    tokio::spawn(async move { store.log("run", &metrics(values)).await.is_ok() })
                });
                let logging: Vec<_> = logging.collect();
                tokio::time::sleep(Duration::from_micros(100 * round)).await;
                let outcome = delete(&mut other).await;
                let is_deleted = outcome.is_ok();
                let mut logged = 0;
                for call in logging {
                    logged += usize::from(call.await.unwrap());
                }
                assert_eq!(orphans(&mut other).await, 0);
                let kept = store.history("run", "loss", 0, 1000).await.unwrap().items.len();
                assert_eq!(kept, if is_deleted { 0 } else { 50 * logged }, "in round {round}");
                deleted += usize::from(is_deleted);
                if let Err(error) = outcome {
                    // It has metrics; or each waits for what the other holds, and PostgreSQL ends one of the two.
                    assert!(["23503", "40P01"].contains(&&*code(&error)), "{error}");
                    delete(&mut other).await.unwrap();
                }
            }
            assert!(deleted > 0);
        }
    }
}
