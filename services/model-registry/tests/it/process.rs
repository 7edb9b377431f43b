//! The process: its settings, its subcommands, its metrics, its end.

use std::path::Path;
use std::process::Command;

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use verdict_chassis::client;
use verdict_testkit::net::get;
use verdict_testkit::process::Child;

use crate::world::{Client, PATIENCE, local};

const BINARY: &str = env!("CARGO_BIN_EXE_model-registry");

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_reports_itself_and_stops_on_sigterm() {
    let (data, listen, admin) = (tempfile::tempdir().unwrap(), local(), local());
    let env = [
        ("MODEL_REGISTRY_LISTEN", listen.to_string()),
        ("MODEL_REGISTRY_ADMIN_LISTEN", admin.to_string()),
        ("MODEL_REGISTRY_MLFLOW_LISTEN", "none".to_owned()),
        ("MODEL_REGISTRY_DATA_DIR", data.path().display().to_string()),
    ];
    let mut child = Child::spawn(Path::new(BINARY), &["serve"], env);
    child.wait_ready(admin, PATIENCE).await;
    let channel = client::connect(&format!("http://{listen}")).unwrap();
    for service in model_registry::SERVICES {
        let request = HealthCheckRequest { service: service.to_owned() };
        let health = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
        assert_eq!(health.status(), ServingStatus::Serving, "{service}");
    }
    let create = verdict_api::registry::CreateModelRequest { name: "m".into(), ..Default::default() };
    Client::new(channel).create_model(create).await.unwrap();

    let (status, metrics) = get(admin, "/metrics").await.unwrap();
    assert_eq!(status, 200);
    for line in [
        r#"http_request_duration_seconds_bucket{service="verdict.registry.v1.ModelRegistryService",method="CreateModel",code="OK""#,
        "# TYPE model_registry_log_sequence gauge",
        "model_registry_database_up 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(child.terminate(PATIENCE).await.success(), "{}", child.log());
}

#[test]
fn a_wrong_setting_stops_the_start_and_is_named() {
    let start = |name: &str, value: &str| {
        let dir = tempfile::tempdir().unwrap();
        let output = Command::new(BINARY)
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--admin-listen",
                "127.0.0.1:0",
                "--mlflow-listen",
                "none",
                "--data-dir",
            ])
            .arg(dir.path())
            .env_remove("DATABASE_URL")
            .env(name, value)
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let problem = start("DATABASE_URL", "mysql://user:secret@host/db");
    assert!(problem.contains("must begin with sqlite: or postgres://"), "{problem}");
    assert!(!problem.contains("secret"), "{problem}");
    let problem = start("DATABASE_URL", "postgres://user:secret@127.0.0.1:1/db");
    assert!(problem.contains("DATABASE_URL: cannot connect to PostgreSQL at 127.0.0.1"), "{problem}");
    assert!(!problem.contains("secret"), "{problem}");
    let problem = start("ARTIFACT_STORE", "ftp://x");
    assert!(problem.contains("must begin with file:// or s3://"), "{problem}");
    let problem = start("ARTIFACT_STORE", "file:///proc/none");
    assert!(problem.contains("ARTIFACT_STORE: cannot use the directory /proc/none"), "{problem}");
    let problem = start("MODEL_REGISTRY_WATCH_HEARTBEAT", "31s");
    assert!(problem.contains("at most 30s"), "{problem}");
}

#[test]
fn config_prints_every_setting_and_no_password() {
    let output = Command::new(BINARY)
        .args(["config", "--watch-heartbeat", "5s"])
        .env("DATABASE_URL", "postgres://registry:hunter2@db.internal/models")
        .output()
        .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for part in ["MODEL_REGISTRY_LISTEN", "127.0.0.1:50051", "MODEL_REGISTRY_WATCH_HEARTBEAT", "ARTIFACT_STORE"] {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
    assert!(!table.contains("hunter2"), "{table}");
}

mod live {
    use super::*;
    use verdict_testkit::postgres;

    #[tokio::test(flavor = "multi_thread")]
    async fn tables_are_made_by_migrate_where_serve_may_not() {
        let database = postgres::database().await;
        let (data, listen, admin) = (tempfile::tempdir().unwrap(), local(), local());
        let run = |arguments: &[&str]| {
            let mut command = Command::new(BINARY);
            command.args(arguments).env("DATABASE_URL", &database).output().unwrap()
        };
        let listening = listen.to_string();
        let refused = run(&[
            "serve",
            "--no-migrate",
            "--mlflow-listen",
            "none",
            "--listen",
            &listening,
            "--admin-listen",
            "127.0.0.1:0",
        ]);
        let problem = String::from_utf8(refused.stderr).unwrap();
        assert!(problem.contains("run `model-registry migrate` first"), "{problem}");
        for _ in 0..2 {
            let migrated = run(&["migrate"]);
            assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        }
        let env = [
            ("MODEL_REGISTRY_LISTEN", listening),
            ("MODEL_REGISTRY_ADMIN_LISTEN", admin.to_string()),
            ("MODEL_REGISTRY_MLFLOW_LISTEN", "none".to_owned()),
            ("MODEL_REGISTRY_DATA_DIR", data.path().display().to_string()),
            ("MODEL_REGISTRY_NO_MIGRATE", "true".to_owned()),
            ("DATABASE_URL", database.clone()),
        ];
        let mut child = Child::spawn(Path::new(BINARY), &["serve"], env);
        child.wait_ready(admin, PATIENCE).await;
        assert!(child.terminate(PATIENCE).await.success());
    }
}
