//! kill -9 at any moment: what was acknowledged is there, what was not is absent and can be done again.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use verdict_api::registry::audit_service_client::AuditServiceClient;
use verdict_api::registry::{
    CreateVersionRequest, FinalizeVersionRequest, GetAliasAtRequest, GetModelRequest, GetUploadRequest,
    ListVersionsRequest, SetAliasRequest, VerifyAuditRequest, VersionStatus,
};
use verdict_chassis::client;
use verdict_testkit::net::send;
use verdict_testkit::process::Child;

use crate::world::{Client, PATIENCE, artifact, local, parts, parts_from, sha256, version_of};

pub(crate) async fn start(data: &Path, listen: SocketAddr) -> (Child, Client) {
    start_with(data, listen, "none".to_owned()).await
}

async fn start_with(data: &Path, listen: SocketAddr, mlflow: String) -> (Child, Client) {
    let admin = local();
    let env = [
        ("MODEL_REGISTRY_LISTEN", listen.to_string()),
        ("MODEL_REGISTRY_ADMIN_LISTEN", admin.to_string()),
        ("MODEL_REGISTRY_MLFLOW_LISTEN", mlflow),
        ("MODEL_REGISTRY_DATA_DIR", data.display().to_string()),
    ];
    let mut child = Child::spawn(Path::new(env!("CARGO_BIN_EXE_model-registry")), &["serve"], env);
    child.wait_ready(admin, PATIENCE).await;
    (child, Client::new(client::connect(&format!("http://{listen}")).unwrap()))
}

pub(crate) fn files_below(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files_below(&path) } else { 1 }).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_during_an_upload_it_keeps_what_was_whole_and_nothing_of_the_rest() {
    let (data, listen) = (tempfile::tempdir().unwrap(), local());
    let (mut child, mut registry) = start(data.path(), listen).await;
    let create = verdict_api::registry::CreateModelRequest { name: "m".into(), ..Default::default() };
    registry.create_model(create).await.unwrap();
    registry.create_version(version_of("m")).await.unwrap();
    let whole = b"every byte arrived".to_vec();
    let sent = parts("m", 1, artifact("whole", &whole), &whole);
    registry.upload_artifact(futures::stream::iter(sent)).await.unwrap();

    // All but the last megabyte of a file, and then nothing more: the upload is under way when the process dies.
    let large = vec![9; 12 << 20];
    let mut first = parts("m", 1, artifact("large", &large), &large);
    first.truncate(12);
    let unfinished = data.path().join("spool/uploads");
    let call = tokio::spawn({
        let mut registry = registry.clone();
        let body = futures::stream::iter(first).chain(futures::stream::pending());
        async move { registry.upload_artifact(body).await }
    });
    let bytes_there = || {
        let entries = std::fs::read_dir(&unfinished).unwrap();
        entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    let until = std::time::Instant::now() + PATIENCE;
    while bytes_there() < 8 << 20 {
        assert!(std::time::Instant::now() < until, "only {} bytes arrived", bytes_there());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    child.kill();
    call.await.unwrap().unwrap_err();

    let (mut child, mut registry) = start(data.path(), listen).await;
    let request = verdict_api::registry::GetVersionRequest { model: "m".into(), version: 1 };
    let version = registry.get_version(request).await.unwrap().into_inner().version.unwrap();
    assert_eq!(version.artifacts, [artifact("whole", &whole)]);
    assert_eq!(version.status(), VersionStatus::Pending);
    assert_eq!(files_below(&data.path().join("artifacts/sha256")), 1, "nothing of the half of a file can be seen");

    // What had arrived is still there, and the upload goes on from it.
    let get = GetUploadRequest { model: "m".into(), version: 1, artifact: Some(artifact("large", &large)) };
    let uploaded = registry.get_upload(get.clone()).await.unwrap().into_inner();
    assert!(!uploaded.complete && (8 << 20..=12 << 20).contains(&uploaded.received), "{uploaded:?}");
    let rest = parts_from(uploaded.received as usize, "m", 1, artifact("large", &large), &large);
    registry.upload_artifact(futures::stream::iter(rest)).await.unwrap();
    assert!(registry.get_upload(get).await.unwrap().into_inner().complete);
    assert_eq!(files_below(&unfinished), 0);
    let hash = sha256(&large);
    let kept = data.path().join("artifacts/sha256").join(&hash[..2]).join(&hash[2..]);
    assert!(std::fs::read(kept).unwrap() == large);
    assert!(child.terminate(PATIENCE).await.success());
}

mod live {
    use std::time::Instant;

    use sqlx::{Connection, Executor, PgConnection};
    use tonic::Code;

    use crate::world::{World, reason, version_of};

    /// What a replica leaves that died in the middle of a write: the lock that all writes take.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_lock_nobody_gives_back_stops_writes_with_an_answer_and_no_reads() {
        let world = World::production().await;
        world.model("m").await;
        let mut dead = PgConnection::connect(world.database()).await.unwrap();
        dead.execute("BEGIN").await.unwrap();
        dead.execute("UPDATE log SET sequence = sequence WHERE id = 1").await.unwrap();

        let began = Instant::now();
        let writes = (0..20).map(|_| async { world.client.clone().create_version(version_of("m")).await });
        let reads = async {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            world.client.clone().get_model(verdict_api::registry::GetModelRequest { name: "m".into() }).await
        };
        let (writes, read) = tokio::join!(futures::future::join_all(writes), reads);
        assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
        read.unwrap();
        for refused in writes {
            assert_eq!(refused.as_ref().unwrap_err().code(), Code::Unavailable);
            assert_eq!(reason(refused), "DATABASE_UNAVAILABLE");
        }
        dead.execute("ROLLBACK").await.unwrap();
        assert_eq!(world.version("m").await.version, 1);
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_among_many_writes_it_keeps_every_acknowledged_one() {
    let (data, listen) = (tempfile::tempdir().unwrap(), local());
    let (mut child, registry) = start(data.path(), listen).await;
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let mut registry = registry.clone();
            tokio::spawn(async move {
                let model = format!("m{writer}");
                let create = verdict_api::registry::CreateModelRequest { name: model.clone(), ..Default::default() };
                registry.create_model(create).await.unwrap();
                let mut acknowledged = 0;
                loop {
                    let request_id = format!("{writer}-{}", acknowledged + 1);
                    let create = CreateVersionRequest { request_id, ..version_of(&model) };
                    match registry.create_version(create).await {
                        Ok(_) => acknowledged += 1,
                        Err(_) => return (model, acknowledged),
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(600)).await;
    child.kill();
    let acknowledged = futures::future::join_all(writers).await;

    let (mut child, mut registry) = start(data.path(), listen).await;
    for (writer, acknowledged) in acknowledged.into_iter().enumerate() {
        let (model, acknowledged) = acknowledged.unwrap();
        assert!(acknowledged > 0, "`{model}` was written to before the kill");
        let list = ListVersionsRequest { model: model.clone(), page_size: 1, page_token: String::new() };
        let newest = registry.list_versions(list).await.unwrap().into_inner().versions[0].version;
        assert!([acknowledged, acknowledged + 1].contains(&newest), "{newest} versions, {acknowledged} acknowledged");
        // The call that was cut off is made again under its id: it happens once, whether it had happened or not.
        let request_id = format!("{writer}-{}", acknowledged + 1);
        let create = CreateVersionRequest { request_id, ..version_of(&model) };
        let made = registry.create_version(create).await.unwrap().into_inner().version.unwrap();
        assert_eq!(made.version, acknowledged + 1);
        let get = GetModelRequest { name: model };
        let model = registry.get_model(get).await.unwrap().into_inner().model.unwrap();
        assert_eq!(model.latest_version, acknowledged + 1);
    }
    assert!(child.terminate(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_among_finalized_versions_and_moves_of_an_alias_it_keeps_every_acknowledged_one() {
    let (data, listen) = (tempfile::tempdir().unwrap(), local());
    let (mut child, registry) = start(data.path(), listen).await;
    let create = verdict_api::registry::CreateModelRequest { name: "m".into(), ..Default::default() };
    registry.clone().create_model(create).await.unwrap();
    // How far it has come: versions finalized, moves of the alias acknowledged.
    let publishing = async |mut registry: Client| {
        let (mut finalized, mut moved) = (0, 0);
        loop {
            let number = finalized + 1;
            let bytes = number.to_string().into_bytes();
            let sent = parts("m", number, artifact("w", &bytes), &bytes);
            let publish = async {
                registry.create_version(version_of("m")).await?;
                registry.upload_artifact(futures::stream::iter(sent)).await?;
                let finalize = FinalizeVersionRequest { model: "m".into(), version: number, ..Default::default() };
                registry.finalize_version(finalize).await?;
                finalized = number;
                let expected_version = Some(number - 1);
                let set = SetAliasRequest {
                    model: "m".into(),
                    alias: "champion".into(),
                    version: number,
                    expected_version,
                    ..Default::default()
                };
                registry.set_alias(set).await?;
                moved = number;
                Ok::<_, tonic::Status>(())
            };
            if publish.await.is_err() {
                return (finalized, moved);
            }
        }
    };
    let killing = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        child.kill();
    };
    let ((finalized, moved), ()) = tokio::join!(publishing(registry), killing);
    assert!(moved > 0, "the alias was moved before the kill");

    let (mut child, mut registry) = start(data.path(), listen).await;
    let get = GetModelRequest { name: "m".into() };
    let model = registry.get_model(get).await.unwrap().into_inner().model.unwrap();
    let at = model.aliases["champion"];
    assert!([moved, moved + 1].contains(&at), "champion is at {at}, {moved} were acknowledged");
    let list = ListVersionsRequest { model: "m".into(), page_size: 1000, page_token: String::new() };
    for version in registry.list_versions(list).await.unwrap().into_inner().versions {
        let is_ready = version.status() == VersionStatus::Ready;
        assert!(is_ready || version.version > finalized, "version {} was finalized", version.version);
        let bytes = version.version.to_string();
        let digest = sha256(format!("w\n{}\n{}\n", bytes.len(), sha256(bytes.as_bytes())).as_bytes());
        assert!(!is_ready || version.digest == format!("sha256:{digest}"), "{version:?}");
    }
    let mut log = AuditServiceClient::new(client::connect(&format!("http://{listen}")).unwrap());
    let verified = log.verify_audit(VerifyAuditRequest::default()).await.unwrap().into_inner();
    assert!(verified.intact, "{verified:?}");
    let get = GetAliasAtRequest { model: "m".into(), alias: "champion".into(), time: None };
    assert_eq!(log.get_alias_at(get).await.unwrap().into_inner().version, at);
    assert!(child.terminate(PATIENCE).await.success());

    // The log can be verified without a server, and a changed one is found out.
    let verify = |anchor: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_model-registry"));
        command.arg("verify-audit").env("MODEL_REGISTRY_DATA_DIR", data.path());
        if !anchor.is_empty() {
            command.args(["--anchor", anchor]);
        }
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (is_intact, told) = verify("");
    assert!(is_intact, "{told}");
    let anchor = told.trim().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(anchor, format!("{}:{}", verified.end.as_ref().unwrap().sequence, verified.end.as_ref().unwrap().hash));
    assert!(verify(&anchor).0);
    assert!(!verify(&format!("1:{}", "0".repeat(64))).0);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_among_batches_of_metrics_it_keeps_each_whole_or_not_at_all() {
    const BATCH: usize = 1000;
    let (data, listen, mlflow) = (tempfile::tempdir().unwrap(), local(), local());
    let (mut child, _) = start_with(data.path(), listen, mlflow.to_string()).await;
    let call = async |method: &str, path: &str, body: Value| {
        let (status, answer) =
            send(mlflow, method, &format!("/api/2.0/mlflow/{path}"), body.to_string().as_bytes()).await?;
        let answer: Value = serde_json::from_slice(&answer).map_err(std::io::Error::other)?;
        if status == 200 { Ok(answer) } else { Err(std::io::Error::other(answer.to_string())) }
    };
    let begin = json!({"experiment_id": "0", "start_time": 1});
    let run = call("POST", "runs/create", begin).await.unwrap()["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    let mut acknowledged = 0;
    let killing = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        child.kill();
    };
    let logging = async {
        loop {
            let metric = |at: usize| json!({"key": "loss", "value": at, "timestamp": acknowledged, "step": at});
            let metrics: Vec<Value> = (0..BATCH).map(metric).collect();
            if call("POST", "runs/log-batch", json!({"run_id": run, "metrics": metrics})).await.is_err() {
                return;
            }
            acknowledged += 1;
        }
    };
    tokio::join!(killing, logging);
    assert!(acknowledged > 0, "a batch was acknowledged before the kill");

    let (mut child, _) = start_with(data.path(), listen, mlflow.to_string()).await;
    let path = format!("metrics/get-history?run_id={run}&metric_key=loss");
    let kept = call("GET", &path, Value::Null).await.unwrap()["metrics"].as_array().unwrap().len();
    assert!([acknowledged * BATCH, (acknowledged + 1) * BATCH].contains(&kept), "{kept} of {acknowledged} batches");
    assert!(child.terminate(PATIENCE).await.success());
}
