//! Deliveries when something goes wrong: a kill, replicas, rows that another holds.

use std::path::Path;

use verdict_testkit::net::send;
use verdict_testkit::process::Child;

use super::*;
use crate::world::local;

/// A registry on this directory, with its MLflow API and its log.
async fn start(data: &Path, mlflow: SocketAddr) -> Child {
    let admin = local();
    let env = [
        ("MODEL_REGISTRY_LISTEN", local().to_string()),
        ("MODEL_REGISTRY_ADMIN_LISTEN", admin.to_string()),
        ("MODEL_REGISTRY_MLFLOW_LISTEN", mlflow.to_string()),
        ("MODEL_REGISTRY_DATA_DIR", data.display().to_string()),
        ("MODEL_REGISTRY_WEBHOOK_SCHEMES", "http".to_owned()),
        ("MODEL_REGISTRY_WEBHOOK_PRIVATE_ADDRESSES", "true".to_owned()),
        ("MODEL_REGISTRY_WEBHOOK_KEY", "d".repeat(42) + "A="),
        ("RUST_LOG", "trace,h2=info,hyper=trace".to_owned()),
    ];
    let mut child = Child::spawn(Path::new(env!("CARGO_BIN_EXE_model-registry")), &["serve"], env);
    child.wait_ready(admin, PATIENCE).await;
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_no_delivery_and_no_secret_is_seen_anywhere() {
    let (data, mlflow, receiver) = (tempfile::tempdir().unwrap(), local(), Receiver::start().await);
    let post = async |path: &str, body: Value| {
        let path = format!("/api/2.0/mlflow/{path}");
        let (status, answer) = send(mlflow, "POST", &path, body.to_string().as_bytes()).await.unwrap();
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    };
    let mut child = start(data.path(), mlflow).await;
    let events = json!([{"entity": "REGISTERED_MODEL", "action": "CREATED"}]);
    post("webhooks", json!({"name": "h", "url": receiver.url(), "events": events, "secret": "hunter2-hunter2"})).await;
    // Nobody answers: the first is under way and the second waits when the process dies.
    receiver.delay(Duration::from_secs(3600));
    post("registered-models/create", json!({"name": "a"})).await;
    post("registered-models/create", json!({"name": "b"})).await;
    let before = receiver.wait(1).await;
    child.kill();
    assert!(!child.log().contains("hunter2"));

    receiver.delay(Duration::ZERO);
    let mut child = start(data.path(), mlflow).await;
    let told = receiver.wait(3).await;
    let names: Vec<_> = told.iter().map(|got| got.news().1["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["a", "a", "b"]);
    assert_eq!(before[0].id(), told[1].id(), "at least once, and known by its id");
    assert!(child.terminate(PATIENCE).await.success());
    assert!(!child.log().contains("hunter2"));
    for file in std::fs::read_dir(data.path()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
    {
        let bytes = std::fs::read(&file).unwrap();
        let is_there = bytes.windows(7).any(|seven| seven == b"hunter2");
        assert!(!is_there, "the secret can be read in {}", file.display());
    }
}

mod replicas {
    mod live {
        use super::super::*;

        #[tokio::test(flavor = "multi_thread")]
        async fn two_replicas_tell_everything_once_and_in_order() {
            let world = World::production().await;
            let replica = world.replica().await;
            let receiver = Receiver::start().await;
            let webhook = add(&world, &receiver.url(), &["registered_model.created"]).await;
            for index in 0..40 {
                let writer = if index % 2 == 0 { &world } else { &replica };
                writer.model(&format!("m{index:02}")).await;
            }
            let told = receiver.wait(40).await;
            let names: Vec<_> = told.iter().map(|got| got.news().1["name"].as_str().unwrap().to_owned()).collect();
            let wanted: Vec<_> = (0..40).map(|index| format!("m{index:02}")).collect();
            assert_eq!(names, wanted);
            let records = settled(&world, &webhook).await;
            assert!(records.iter().all(|record| record.attempts == 1), "{records:?}");
            assert_eq!(receiver.got().len(), 40);
            replica.stop().await;
            world.stop().await;
        }
    }
}

mod claims {
    use std::collections::BTreeMap;

    use model_registry::model::{Micros, ModelDraft};
    use model_registry::names::ModelName;
    use model_registry::store::{self, Call, Everything};
    use model_registry::webhooks::{Status, Topic, WebhookDraft};
    use sqlx::{Connection, Executor, PgConnection};
    use verdict_testkit::postgres;

    use super::*;

    mod live {
        use super::*;

        #[tokio::test(flavor = "multi_thread")]
        async fn a_webhook_that_another_holds_delays_no_other() {
            let url = postgres::database().await;
            let store: Arc<dyn Everything> = store::open(&url.parse().unwrap(), 4, true).await.unwrap();
            for id in ["held", "free", "also-free"] {
                let draft = WebhookDraft {
                    name: id.to_owned(),
                    description: String::new(),
                    url: "https://example.org".to_owned(),
                    topics: vec![Topic::ModelCreated],
                    status: Status::Active,
                    secret: None,
                };
                store.add_webhook(&Call::now(), id, &draft, None).await.unwrap();
            }
            let name = ModelName::parse("name", "m").unwrap();
            let draft = ModelDraft { name, description: String::new(), tags: BTreeMap::new() };
            assert_eq!(store.oldest_delivery().await.unwrap(), None);
            let before = Micros::now();
            store.create_model(&Call::now(), &draft).await.unwrap();
            let oldest = store.oldest_delivery().await.unwrap().unwrap();
            assert!((before.0..=Micros::now().0).contains(&oldest.0), "{oldest:?} since {before:?}");

            let mut other = PgConnection::connect(&url).await.unwrap();
            other.execute("BEGIN; SELECT 1 FROM webhooks WHERE id = 'held' FOR UPDATE").await.unwrap();
            let (began, lease) = (Instant::now(), Duration::from_secs(60));
            let claimed = store.claim_deliveries(Micros::now(), lease, 10).await.unwrap();
            let mut claimed: Vec<_> = claimed.into_iter().map(|parcel| parcel.endpoint.webhook).collect();
            claimed.sort();
            assert_eq!(claimed, ["also-free", "free"]);
            assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
            assert!(store.claim_deliveries(Micros::now(), lease, 10).await.is_err(), "nothing else is to be had");
            other.execute("ROLLBACK").await.unwrap();
            let claimed = store.claim_deliveries(Micros::now(), lease, 10).await.unwrap();
            assert_eq!(claimed.len(), 1);
        }
    }
}
