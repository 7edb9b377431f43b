//! What is around every call of MLflow's API: limits, deadlines, traces; and calls of its older clients.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use verdict_testkit::net::{get, send};
use verdict_testkit::process::Child;

use crate::world::{PATIENCE, World, local};

async fn start(data: &Path, settings: &[(&'static str, &str)]) -> (Child, SocketAddr, SocketAddr) {
    let (admin, mlflow) = (local(), local());
    let mut env = vec![
        ("MODEL_REGISTRY_LISTEN", local().to_string()),
        ("MODEL_REGISTRY_ADMIN_LISTEN", admin.to_string()),
        ("MODEL_REGISTRY_MLFLOW_LISTEN", mlflow.to_string()),
        ("MODEL_REGISTRY_DATA_DIR", data.display().to_string()),
        ("LOG_FORMAT", "json".to_owned()),
    ];
    env.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let mut child = Child::spawn(Path::new(env!("CARGO_BIN_EXE_model-registry")), &["serve"], env);
    child.wait_ready(admin, PATIENCE).await;
    (child, mlflow, admin)
}

/// Sends a request as it stands and reads the answer, head and all, until the connection ends.
async fn exchange(mlflow: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(mlflow).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

const SEARCH: &str = "GET /api/2.0/mlflow/registered-models/search HTTP/1.0\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn more_calls_than_allowed_are_refused_and_may_come_again() {
    let data = tempfile::tempdir().unwrap();
    let (mut child, mlflow, admin) = start(data.path(), &[("MODEL_REGISTRY_MLFLOW_MAX_IN_FLIGHT", "2")]).await;
    let mut slow = Vec::new();
    for name in ["a", "b"] {
        let mut stream = TcpStream::connect(mlflow).await.unwrap();
        let head =
            format!("PUT /api/2.0/mlflow-artifacts/artifacts/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n1");
        stream.write_all(head.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let until = Instant::now() + PATIENCE;
    while !get(admin, "/metrics").await.unwrap().1.contains("requests_in_flight{service=\"mlflow\"} 2") {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let refused = exchange(mlflow, SEARCH).await.to_ascii_lowercase();
    assert!(refused.starts_with("http/1.0 429"), "{refused}");
    assert!(refused.contains("retry-after: 1\r\n") && refused.contains("\"request_limit_exceeded\""), "{refused}");
    assert_eq!(get(mlflow, "/health").await.unwrap().0, 200, "whether it lives can be asked all the same");
    let (status, _) = send(mlflow, "POST", "/api/2.0/mlflow/runs/log-batch", &vec![b' '; 900 << 10]).await.unwrap();
    assert_eq!(status, 429, "also to who has much to send");
    for mut stream in slow {
        stream.write_all(b"2").await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    let until = Instant::now() + PATIENCE;
    while !exchange(mlflow, SEARCH).await.starts_with("HTTP/1.0 200") {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(child.terminate(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_has_its_time_and_a_file_may_take_longer_while_it_moves() {
    let data = tempfile::tempdir().unwrap();
    let (mut child, mlflow, _) = start(data.path(), &[("SERVER_REQUEST_TIMEOUT", "1s")]).await;
    // A body that never comes.
    let late = exchange(mlflow, "POST /api/2.0/mlflow/runs/create HTTP/1.0\r\nContent-Length: 10\r\n\r\n{").await;
    assert!(late.starts_with("HTTP/1.0 504") && late.contains("\"DEADLINE_EXCEEDED\""), "{late}");
    let stuck = "PUT /api/2.0/mlflow-artifacts/artifacts/stuck HTTP/1.0\r\nContent-Length: 10\r\n\r\n1";
    let stuck = exchange(mlflow, stuck).await;
    assert!(stuck.starts_with("HTTP/1.0 400"), "{stuck}");

    let mut stream = TcpStream::connect(mlflow).await.unwrap();
    let head = "PUT /api/2.0/mlflow-artifacts/artifacts/slow HTTP/1.0\r\nContent-Length: 8\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        stream.write_all(b"x").await.unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    assert!(child.terminate(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_on_in_its_caller_s_trace() {
    let data = tempfile::tempdir().unwrap();
    let (mut child, mlflow, _) = start(data.path(), &[]).await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let request = format!(
        "GET /api/2.0/mlflow/runs/get?run_id=none HTTP/1.0\r\ntraceparent: 00-{trace}-b7ad6b7169203331-01\r\n\
         x-request-id: my-call\r\n\r\n"
    );
    let answer = exchange(mlflow, &request).await;
    assert!(answer.starts_with("HTTP/1.0 404") && answer.contains("x-request-id: my-call\r\n"), "{answer}");
    assert!(child.terminate(PATIENCE).await.success());
    let log = child.log();
    let line = log.lines().find(|line| line.contains("my-call")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["code"], 404);
    let span = &line["spans"][0];
    assert_eq!(
        (span["trace_id"].as_str(), span["http.route"].as_str()),
        (Some(trace), Some("/api/2.0/mlflow/runs/get"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_older_clients_say_of_models_is_noted_on_their_run() {
    let world = World::embedded().await;
    let post = async |path: &str, body: Value| world.rest("POST", &format!("/api/2.0/mlflow/runs/{path}"), body).await;
    let (_, made) = post("create", json!({"experiment_id": "0"})).await;
    let run = made["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    let model = |path: &str| {
        let flavors = json!({"sklearn": {"version": "1", "config": {"secret": 1}}});
        json!({"artifact_path": path, "run_id": run, "utc_time_created": "2024", "flavors": flavors, "size": 7})
            .to_string()
    };
    for path in ["first", "second"] {
        let (status, answer) = post("log-model", json!({"run_id": run, "model_json": model(path)})).await;
        assert_eq!((status, answer), (200, json!({})));
    }
    let (_, got) = world.rest("GET", &format!("/api/2.0/mlflow/runs/get?run_id={run}"), Value::Null).await;
    let tags = got["run"]["data"]["tags"].as_array().unwrap();
    let history = tags.iter().find(|tag| tag["key"] == "mlflow.log-model.history").unwrap();
    let history: Value = serde_json::from_str(history["value"].as_str().unwrap()).unwrap();
    let noted = |path: &str| {
        let flavors = json!({"sklearn": {"version": "1"}});
        json!({"artifact_path": path, "run_id": run, "utc_time_created": "2024", "flavors": flavors})
    };
    assert_eq!(history, json!([noted("first"), noted("second")]));

    for (model, said) in [
        (json!("{"), "Malformed model info."),
        (json!("[]"), "Malformed model info."),
        (json!("{\"flavors\": {}}"), "Model json is missing mandatory fields: {'artifact_path'"),
    ] {
        let (status, answer) = post("log-model", json!({"run_id": run, "model_json": model})).await;
        assert_eq!(status, 400);
        assert!(answer["message"].as_str().unwrap().contains(said), "{answer}");
    }
    let (status, _) = post("log-model", json!({"run_id": "none", "model_json": model("x")})).await;
    assert_eq!(status, 404);
    world.stop().await;
}
