//! Models that get another name, and versions that are registered from files that are there: over gRPC as over REST.

use serde_json::{Value, json};
use tonic::Code;
use verdict_api::registry::lineage_service_client::LineageServiceClient;
use verdict_api::registry::{
    Deployment, ListDeploymentsRequest, Model, RegisterVersionRequest, RenameModelRequest, ReportDeploymentRequest,
    Serving, Task, Version, VersionStatus,
};
use verdict_testkit::net::send;

use crate::world::{Answer, World, reason};

macro_rules! on_both {
    ($($case:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::World::embedded().await).await;
            })+
        }
        mod live {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(super::World::production().await).await;
            })+
        }
    };
}

on_both!(
    both_doors_register_the_same,
    a_registration_is_checked_and_repeated,
    a_model_is_renamed_once_and_as_expected,
    copies_and_deployments_follow_a_rename,
);

async fn post(world: &World, path: &str, body: Value) -> Value {
    let (status, answer) = world.rest("POST", &format!("/api/2.0/mlflow/{path}"), body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

async fn register(world: &World, request: RegisterVersionRequest) -> Answer<Version> {
    Ok(world.client.clone().register_version(request).await?.into_inner().version.unwrap())
}

fn from(model: &str, source: &str) -> RegisterVersionRequest {
    RegisterVersionRequest { model: model.into(), source: source.into(), ..Default::default() }
}

async fn rename(world: &World, request: RenameModelRequest) -> Answer<Model> {
    Ok(world.client.clone().rename_model(request).await?.into_inner().model.unwrap())
}

fn to(name: &str, new_name: &str) -> RenameModelRequest {
    RenameModelRequest { name: name.into(), new_name: new_name.into(), ..Default::default() }
}

/// A run and a logged model of it, with a file each.
async fn trained(world: &World) -> (String, String) {
    let run = post(world, "runs/create", json!({"experiment_id": "0", "start_time": 1})).await;
    let run = run["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    let logged = json!({"experiment_id": "0", "name": "m", "source_run_id": run});
    let logged = post(world, "logged-models", logged).await;
    let logged = logged["model"]["info"]["model_id"].as_str().unwrap().to_owned();
    for path in [format!("0/{run}/artifacts/model/MLmodel"), format!("0/models/{logged}/artifacts/MLmodel")] {
        let path = format!("/api/2.0/mlflow-artifacts/artifacts/{path}");
        assert_eq!(send(world.mlflow, "PUT", &path, b"flavors: {}").await.unwrap().0, 200);
    }
    (run, logged)
}

async fn both_doors_register_the_same(world: World) {
    let (run, logged) = trained(&world).await;
    for name in ["by-grpc", "by-rest"] {
        world.model(name).await;
    }
    let run_files = format!("mlflow-artifacts:/0/{run}/artifacts/model");
    let of_logged = format!("models:/{logged}");
    for (number, (source, run_id, logged_model_id)) in [
        (&*run_files, &*run, ""),
        (&*of_logged, "", &*logged),
        ("models:/by-grpc/1", "", ""),
        ("s3://bucket/m", &*run, ""),
    ]
    .into_iter()
    .enumerate()
    {
        let number = number as i64 + 1;
        let request = RegisterVersionRequest {
            run_id: run_id.into(),
            run_link: "https://example.org/run".into(),
            logged_model_id: logged_model_id.into(),
            description: "d".into(),
            tags: [("k".to_owned(), "v".to_owned())].into(),
            ..from("by-grpc", source)
        };
        let made = register(&world, request).await.unwrap();
        assert_eq!((made.version, made.status(), made.task()), (number, VersionStatus::Ready, Task::Custom));
        assert_eq!(made.artifacts.len(), usize::from(number != 4), "{source}");
        let body = json!({"name": "by-rest", "source": source, "run_id": run_id, "model_id": logged_model_id,
            "run_link": "https://example.org/run", "description": "d", "tags": [{"key": "k", "value": "v"}]});
        post(&world, "model-versions/create", body).await;
        let other = world.get("by-rest", number).await.unwrap();
        let alike = |version: Version| Version {
            model: String::new(),
            create_time: None,
            update_time: None,
            etag: String::new(),
            ..version
        };
        assert_eq!(alike(made), alike(other), "{source}");
        let read = async |name: &str| {
            let path = format!("/api/2.0/mlflow/model-versions/get?name={name}&version={number}");
            let (_, mut read) = world.rest("GET", &path, Value::Null).await;
            let version = read["model_version"].as_object_mut().unwrap();
            version.retain(|key, _| !key.contains("timestamp") && key != "name");
            read
        };
        assert_eq!(read("by-grpc").await, read("by-rest").await, "{source}");
    }
    let (_, read) = world.rest("GET", &format!("/api/2.0/mlflow/logged-models/{logged}"), Value::Null).await;
    let listed = r#"[{"name": "by-grpc", "version": 2}, {"name": "by-rest", "version": 2}]"#;
    assert_eq!(read["model"]["info"]["tags"], json!([{"key": "mlflow.modelVersions", "value": listed}]));
    world.stop().await;
}

async fn a_registration_is_checked_and_repeated(world: World) {
    let (_, logged) = trained(&world).await;
    world.model("m").await;
    let long = "x".repeat(10_001);
    for (request, wanted) in [
        (from("missing", "s3://bucket/m"), "MODEL_NOT_FOUND"),
        (from("a/b", "s3://bucket/m"), "INVALID_NAME"),
        (from("m", ""), "INVALID_SOURCE"),
        (from("m", "s3://bucket/../m"), "INVALID_PARAMETER_VALUE"),
        (from("m", "/etc/passwd"), "INVALID_PARAMETER_VALUE"),
        (from("m", &format!("s3://{long}")), "INVALID_PARAMETER_VALUE"),
        (from("m", "models:/m-00000000000000000000000000000000"), "INVALID_PARAMETER_VALUE"),
        (RegisterVersionRequest { description: long, ..from("m", "s3://b/m") }, "INVALID_TEXT"),
        (
            RegisterVersionRequest { tags: [(String::new(), String::new())].into(), ..from("m", "s3://b/m") },
            "INVALID_TAG",
        ),
        (RegisterVersionRequest { request_id: "x".repeat(129), ..from("m", "s3://b/m") }, "INVALID_REQUEST_ID"),
    ] {
        let refused = register(&world, request.clone()).await.unwrap_err();
        let told = verdict_chassis::status::reason(&refused);
        // Which of the domain's words for texts and tags it is does not matter here; that it names the field does.
        match wanted {
            "INVALID_TEXT" | "INVALID_TAG" | "INVALID_NAME" => assert_eq!(refused.code(), Code::InvalidArgument),
            wanted => assert_eq!(told.as_deref(), Some(wanted), "{request:?}"),
        }
    }
    let request = RegisterVersionRequest {
        logged_model_id: logged.clone(),
        request_id: "once".into(),
        ..from("m", &format!("models:/{logged}"))
    };
    let tried = RegisterVersionRequest { validate_only: true, request_id: String::new(), ..request.clone() };
    assert_eq!(register(&world, tried).await.unwrap().version, 1);
    assert_eq!(reason(world.get("m", 1).await), "VERSION_NOT_FOUND");
    let tags = async || {
        let (_, read) = world.rest("GET", &format!("/api/2.0/mlflow/logged-models/{logged}"), Value::Null).await;
        read["model"]["info"]["tags"].clone()
    };
    assert_eq!(tags().await.as_array().map_or(0, Vec::len), 0);
    let first = register(&world, request.clone()).await.unwrap();
    assert_eq!(register(&world, request.clone()).await.unwrap(), first);
    assert_eq!(reason(world.get("m", 2).await), "VERSION_NOT_FOUND");
    assert_eq!(tags().await, json!([{"key": "mlflow.modelVersions", "value": r#"[{"name": "m", "version": 1}]"#}]));
    let other = RegisterVersionRequest { description: "another".into(), ..request };
    assert_eq!(reason(register(&world, other).await), "REQUEST_ID_REUSED");
    world.stop().await;
}

async fn a_model_is_renamed_once_and_as_expected(world: World) {
    let model = world.model("old").await;
    world.model("taken").await;
    world.ready("old", &[("a", b"1")]).await;
    world.point("old", "champion", 1, None).await.unwrap();
    assert_eq!(reason(rename(&world, to("missing", "new")).await), "MODEL_NOT_FOUND");
    assert_eq!(reason(rename(&world, to("old", "taken")).await), "MODEL_EXISTS");
    assert_eq!(rename(&world, to("old", "a/b")).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(rename(&world, to("", "new")).await.unwrap_err().code(), Code::InvalidArgument);
    let stale = RenameModelRequest { etag: model.etag, ..to("old", "new") };
    assert_eq!(reason(rename(&world, stale).await), "ETAG_MISMATCH");
    let tried = RenameModelRequest { validate_only: true, ..to("old", "new") };
    assert_eq!(rename(&world, tried).await.unwrap().name, "new");
    assert_eq!(world.get("old", 1).await.unwrap().aliases, ["champion"]);

    let (_, read) = world.rest("GET", "/api/2.0/mlflow/registered-models/get?name=old", Value::Null).await;
    assert_eq!(read["registered_model"]["name"], "old");
    let etag = {
        let get = verdict_api::registry::GetModelRequest { name: "old".into() };
        world.client.clone().get_model(get).await.unwrap().into_inner().model.unwrap().etag
    };
    let request = RenameModelRequest { etag, request_id: "rename".into(), ..to("old", "new") };
    let renamed = rename(&world, request.clone()).await.unwrap();
    assert_eq!((&*renamed.name, renamed.aliases["champion"]), ("new", 1));
    assert_eq!(rename(&world, request.clone()).await.unwrap(), renamed, "said again, it is answered again");
    assert_eq!(
        reason(rename(&world, RenameModelRequest { new_name: "other".into(), ..request }).await),
        "REQUEST_ID_REUSED"
    );
    assert_eq!(world.rest("GET", "/api/2.0/mlflow/registered-models/get?name=old", Value::Null).await.0, 404);
    let (_, read) = world.rest("GET", "/api/2.0/mlflow/registered-models/get?name=new", Value::Null).await;
    assert_eq!(read["registered_model"]["aliases"], json!([{"alias": "champion", "version": "1"}]));
    post(&world, "registered-models/rename", json!({"name": "new", "new_name": "newer"})).await;
    let version = world.get("newer", 1).await.unwrap();
    assert_eq!(world.download(&version, "a", 0).await.unwrap().1, b"1");
    world.stop().await;
}

async fn deployments(world: &World, model: &str) -> Vec<Deployment> {
    let list = ListDeploymentsRequest { model: model.into(), include_ended: true, ..Default::default() };
    LineageServiceClient::new(world.channel.clone()).list_deployments(list).await.unwrap().into_inner().deployments
}

async fn copies_and_deployments_follow_a_rename(world: World) {
    for name in ["old", "old2", "copy"] {
        world.model(name).await;
    }
    let original = world.ready("old", &[("a", b"1")]).await;
    world.ready("old2", &[("a", b"2")]).await;
    for (at, source) in ["models:/old/1", "models:/old2/1", "models:/old@champion"].iter().enumerate() {
        assert_eq!(register(&world, from("copy", source)).await.unwrap().version, at as i64 + 1);
    }
    let before = world.get("copy", 1).await.unwrap();
    let report = async || {
        let serving = Serving {
            reference: "old@champion".into(),
            model: "old".into(),
            version: 1,
            digest: original.digest.clone(),
        };
        let request = ReportDeploymentRequest { deployment: "d".into(), serving: vec![serving], lease_seconds: 0 };
        LineageServiceClient::new(world.channel.clone()).report_deployment(request).await.unwrap();
    };
    report().await;
    rename(&world, to("old", "new")).await.unwrap();
    let sources = [world.get("copy", 1).await, world.get("copy", 2).await, world.get("copy", 3).await];
    let sources = sources.map(|version| version.unwrap().source);
    assert_eq!(sources, ["models:/new/1", "models:/old2/1", "models:/new@champion"]);
    assert_ne!(world.get("copy", 1).await.unwrap().etag, before.etag);
    assert_eq!(deployments(&world, "old").await, []);
    // What was loaded under the old name goes on, however often it is told of.
    report().await;
    report().await;
    let found = deployments(&world, "new").await;
    assert_eq!(found.len(), 1);
    assert!(found[0].end_time.is_none() && found[0].version == 1 && found[0].reference == "old@champion");
    assert_eq!(deployments(&world, "old").await, []);
    // Another model of that name is another one.
    world.model("old").await;
    report().await;
    assert!(deployments(&world, "new").await[0].end_time.is_some());
    assert_eq!(deployments(&world, "old").await.len(), 1);
    world.stop().await;
}
