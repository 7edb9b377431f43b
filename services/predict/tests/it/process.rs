use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use verdict_api::predict::{
    DecideRequest, Decision, GetDecisionRequest, decision_service_client::DecisionServiceClient,
};
use verdict_chassis::client::{self, Channel};
use verdict_testkit::{
    net::{free_port, get},
    process::Child,
};

use crate::world::{PATIENCE, Registry, applications};

struct Ports {
    grpc: SocketAddr,
    admin: SocketAddr,
}

impl Ports {
    fn free() -> Self {
        let local = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        Self { grpc: local(), admin: local() }
    }
}

async fn start(data: &Path, registry: &str, ports: &Ports) -> Child {
    let env = [
        ("PREDICT_LISTEN", ports.grpc.to_string()),
        ("PREDICT_ADMIN_LISTEN", ports.admin.to_string()),
        ("PREDICT_DATA_DIR", data.display().to_string()),
        ("PREDICT_MODELS", "credit-risk@champion".to_owned()),
        ("REGISTRY_URL", registry.to_owned()),
    ];
    let mut child = Child::spawn(Path::new(env!("CARGO_BIN_EXE_predict")), &["serve"], env);
    child.wait_ready(ports.admin, PATIENCE).await;
    child
}

async fn decide(client: &mut DecisionServiceClient<Channel>, caller: usize, count: usize) -> Option<Decision> {
    let mut applications = applications();
    let request = DecideRequest {
        model: "credit-risk@champion".to_owned(),
        features: applications.swap_remove((caller + count) % 10),
        request_id: format!("caller-{caller}-{count}"),
        max_reasons: 0,
    };
    client.decide(request).await.ok()?.into_inner().decision
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_every_acknowledged_decision_is_there_and_stands() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let data = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let mut child = start(data.path(), &registry.url(), &ports).await;
    let url = format!("http://{}", ports.grpc);

    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let channel = client::connect(&url).unwrap();
            tokio::spawn(async move {
                let mut client = DecisionServiceClient::new(channel);
                let mut acknowledged = Vec::new();
                while let Some(decision) = decide(&mut client, caller, acknowledged.len()).await {
                    acknowledged.push(decision);
                }
                acknowledged
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(700)).await;
    child.kill();
    let acknowledged: Vec<Vec<_>> = futures::future::join_all(callers).await.into_iter().map(Result::unwrap).collect();
    assert!(acknowledged.iter().all(|decisions| !decisions.is_empty()), "each caller was served before the kill");

    let mut child = start(data.path(), &registry.url(), &ports).await;
    let mut client = DecisionServiceClient::new(client::connect(&url).unwrap());
    for (caller, decisions) in acknowledged.iter().enumerate() {
        for (count, decision) in decisions.iter().enumerate() {
            let request = GetDecisionRequest { decision_id: decision.decision_id.clone() };
            let found = client.get_decision(request).await.unwrap().into_inner().decision;
            assert_eq!(found.as_ref(), Some(decision));
            assert_eq!(decide(&mut client, caller, count).await.as_ref(), Some(decision));
        }
        // What was not acknowledged is decided now, if it was not recorded then; either way it has one answer.
        let cut_off = decide(&mut client, caller, decisions.len()).await.unwrap();
        assert_eq!(decide(&mut client, caller, decisions.len()).await, Some(cut_off));
    }
    assert!(child.terminate(Duration::from_secs(20)).await.success(), "{}", child.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_measures_traces_and_refuses_to_share_its_folder() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let data = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let mut child = start(data.path(), &registry.url(), &ports).await;
    let mut client = DecisionServiceClient::new(client::connect(&format!("http://{}", ports.grpc)).unwrap());
    let decision = decide(&mut client, 0, 0).await.unwrap();
    assert_eq!(decision.trace_id.len(), 32);

    let (status, metrics) = get(ports.admin, "/metrics").await.unwrap();
    assert_eq!(status, 200);
    for line in [
        r#"model_inference_time_ms_bucket{model="credit-risk",version="1""#,
        r#"http_request_duration_seconds_bucket{service="verdict.predict.v1.DecisionService",method="Decide",code="OK""#,
        &format!(r#"predict_decisions_total{{model="credit-risk",outcome="{}"}} 1"#, decision.outcome),
        r#"predict_queue_wait_seconds_bucket{model="credit-risk""#,
        r#"predict_queue_items{model="credit-risk",version="1",priority="interactive"} 0"#,
        r#"predict_response_cache_lookups_total{model="credit-risk",result="miss"} 1"#,
        r#"predict_model_swaps_total{reference="credit-risk@champion",result="swapped"} 1"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }

    let second = Child::spawn(
        Path::new(env!("CARGO_BIN_EXE_predict")),
        &["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
        [("PREDICT_DATA_DIR", data.path())],
    );
    let (mut second, patience) = (second, Duration::from_secs(20));
    assert!(!second.wait(patience).await.success());
    assert!(second.log().contains("--data-dir"), "{}", second.log());
    assert!(child.terminate(patience).await.success(), "{}", child.log());
}

#[test]
fn the_settings_are_printed_without_their_secrets() {
    let output = Command::new(env!("CARGO_BIN_EXE_predict"))
        .args(["config", "--batch-items", "7"])
        .env("DATABASE_URL", "postgres://u:hidden@h/d")
        .output()
        .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(table.contains("PREDICT_BATCH_ITEMS=7") && table.contains("DATABASE_URL=[set]"), "{table}");
    assert!(!table.contains("hidden"), "{table}");
}
