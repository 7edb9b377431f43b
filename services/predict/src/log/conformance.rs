//! What every decision log must do, run on each back-end.

use std::sync::Arc;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{DecisionLog, open, writer::Writer};
use crate::decision::{Decision, Features, Reason, Value, canonical, features_hash};

pub(super) fn decision(request_id: &str, model: &str) -> Decision {
    let features = Features::from([
        ("age".to_owned(), Value::Number(35.0)),
        ("purpose".to_owned(), Value::Text("car (new) \"ü\"".to_owned())),
        ("owner".to_owned(), Value::Boolean(false)),
    ]);
    Decision {
        id: Uuid::now_v7(),
        request_id: request_id.to_owned(),
        time: OffsetDateTime::from_unix_timestamp_nanos(1_764_000_000_123_456_000).unwrap(),
        model: model.to_owned(),
        version: 3,
        alias: "champion".to_owned(),
        digest: "sha256:00".to_owned(),
        features_hash: features_hash(&canonical(&features).unwrap()),
        features,
        score: 0.1,
        margin: -2.197_224_6,
        outcome: "approve".to_owned(),
        reasons: vec![Reason {
            code: "R01".to_owned(),
            text: "why".to_owned(),
            feature: "age".to_owned(),
            contribution: 0.3,
        }],
        policy: "credit-risk/1".to_owned(),
        trace_id: String::new(),
        route: "risk".to_owned(),
    }
}

async fn a_decision_reads_back_bit_for_bit(log: Arc<dyn DecisionLog>) {
    let made = decision("r1", "m");
    assert_eq!(log.append(std::slice::from_ref(&made)).await.unwrap(), std::slice::from_ref(&made));
    assert_eq!(log.find(made.id).await.unwrap(), Some(made.clone()));
    assert_eq!(log.find_request("r1").await.unwrap(), Some(made));
    assert_eq!(log.find(Uuid::now_v7()).await.unwrap(), None);
    assert_eq!(log.find_request("r2").await.unwrap(), None);
}

async fn the_first_decision_under_a_request_id_stands(log: Arc<dyn DecisionLog>) {
    let (first, second, other) = (decision("r", "m"), decision("r", "m"), decision("s", "m"));
    log.append(std::slice::from_ref(&first)).await.unwrap();
    assert_eq!(log.append(&[second.clone(), other.clone()]).await.unwrap(), [first, other]);
    assert_eq!(log.find(second.id).await.unwrap(), None);
}

async fn one_batch_may_hold_a_request_id_twice(log: Arc<dyn DecisionLog>) {
    let (first, second) = (decision("r", "m"), decision("r", "m"));
    assert_eq!(log.append(&[first.clone(), second]).await.unwrap(), [first.clone(), first]);
}

async fn lists_page_newest_first_by_model(log: Arc<dyn DecisionLog>) {
    let made: Vec<_> = (0..5).map(|n| decision(&format!("r{n}"), if n % 2 == 0 { "even" } else { "odd" })).collect();
    log.append(&made).await.unwrap();
    let page = log.list(None, None, 3).await.unwrap();
    assert_eq!(page, [made[4].clone(), made[3].clone(), made[2].clone()]);
    let rest = log.list(None, Some(page[2].id), 3).await.unwrap();
    assert_eq!(rest, [made[1].clone(), made[0].clone()]);
    assert_eq!(log.list(Some("odd"), None, 10).await.unwrap(), [made[3].clone(), made[1].clone()]);
    assert_eq!(log.list(Some("odd"), Some(made[3].id), 10).await.unwrap(), [made[1].clone()]);
    assert!(log.list(Some("none"), None, 10).await.unwrap().is_empty());
}

async fn concurrent_writers_agree_on_who_was_first(log: Arc<dyn DecisionLog>) {
    let (writer, write) = Writer::new(log.clone());
    let writing = tokio::spawn(write);
    let made: Vec<_> = (0..60).map(|n| decision(&format!("r{}", n % 20), "m")).collect();
    let standing = futures::future::join_all(made.into_iter().map(|made| {
        let writer = writer.clone();
        async move { (made.request_id.clone(), writer.record(made).await.unwrap()) }
    }))
    .await;
    for (request_id, decision) in standing {
        assert_eq!(log.find_request(&request_id).await.unwrap().unwrap(), decision);
    }
    drop(writer);
    writing.await.unwrap();
    assert_eq!(log.list(None, None, 100).await.unwrap().len(), 20);
}

macro_rules! conformance {
    ($log:expr; $($case:ident),+ $(,)?) => { $(
        #[tokio::test]
        async fn $case() {
            let (log, _keep) = $log.await;
            super::$case(log).await;
        }
    )+ };
    ($log:expr) => { conformance! { $log;
        a_decision_reads_back_bit_for_bit,
        the_first_decision_under_a_request_id_stands,
        one_batch_may_hold_a_request_id_twice,
        lists_page_newest_first_by_model,
        concurrent_writers_agree_on_who_was_first,
    } };
}

async fn sqlite_log() -> (Arc<dyn DecisionLog>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (open(None, &dir.path().join("predict/decisions.db")).await.unwrap(), dir)
}

async fn postgres_log() -> (Arc<dyn DecisionLog>, ()) {
    let url = verdict_testkit::postgres::database().await;
    (open(Some(&url), std::path::Path::new("unused")).await.unwrap(), ())
}

mod sqlite {
    conformance!(super::sqlite_log());
}

mod live {
    use std::{path::Path, time::Duration};

    use sqlx::{Connection, PgConnection};
    use tokio::time::timeout;
    use uuid::Uuid;

    use super::{decision, open};

    conformance!(super::postgres_log());

    #[tokio::test]
    async fn appends_that_are_given_up_do_not_use_up_the_connections() {
        let url = verdict_testkit::postgres::database().await;
        let log = open(Some(&url), Path::new("unused")).await.unwrap();
        let mut other = PgConnection::connect(&url).await.unwrap();
        let mut lock = other.begin().await.unwrap();
        sqlx::query("LOCK TABLE decisions IN EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
        for _ in 0..10 {
            let made = [decision("r", "m")];
            assert!(timeout(Duration::from_millis(200), log.append(&made)).await.is_err());
        }
        assert_eq!(log.find(Uuid::now_v7()).await.unwrap(), None);
        lock.rollback().await.unwrap();
        log.append(&[decision("s", "m")]).await.unwrap();
    }
}

#[tokio::test]
async fn a_database_of_another_kind_is_refused_without_its_password() {
    let refused = open(Some("mysql://user:hidden@host/db"), std::path::Path::new("x")).await.err().unwrap();
    assert_eq!(refused.to_string(), "DATABASE_URL must start with sqlite: or postgres://");
    let refused = open(Some("postgres://user:hidden@host:port/db"), std::path::Path::new("x")).await.err().unwrap();
    assert!(!format!("{refused:#}").contains("hidden"), "{refused:#}");
}
