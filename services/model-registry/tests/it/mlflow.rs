//! MLflow's REST API: the same store as gRPC's, with MLflow's own answers and refusals.

use serde_json::{Value, json};
use verdict_api::registry::VersionStatus;
use verdict_testkit::net::send;

use crate::world::{World, artifact, sha256};

const CREATED: u16 = 200;

macro_rules! on_both {
    ($($case:ident),+ $(,)?) => {
        mod embedded {
            use super::World;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let world = World::embedded().await;
                super::$case(&world).await;
                world.stop().await;
            })+
        }
        mod live {
            use super::World;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let world = World::production().await;
                super::$case(&world).await;
                world.stop().await;
            })+
        }
    };
}

pub(crate) use on_both;

on_both!(
    what_one_side_writes_the_other_reads,
    a_registered_version_keeps_its_files_whatever_becomes_of_their_source,
    runs_are_found_by_what_they_logged,
    a_metric_has_its_latest_value_by_step_and_its_history_by_time,
    a_batch_is_logged_whole_or_not_at_all,
    experiments_live_die_and_come_back_with_their_runs,
    a_renamed_model_keeps_everything,
    logged_models_are_found_by_what_they_are,
    what_is_refused_says_why_in_mlflow_s_words,
    hostile_texts_stay_texts,
);

async fn post(world: &World, path: &str, body: Value) -> Value {
    let (status, answer) = world.rest("POST", &format!("/api/2.0/mlflow/{path}"), body).await;
    assert_eq!(status, CREATED, "{path}: {answer}");
    answer
}

async fn get(world: &World, path: &str) -> Value {
    let (status, answer) = world.rest("GET", &format!("/api/2.0/mlflow/{path}"), Value::Null).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

/// Status, error code and message of a refusal.
async fn refusal(world: &World, method: &str, path: &str, body: Value) -> (u16, String, String) {
    let (status, answer) = world.rest(method, path, body).await;
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    (status, text("error_code"), text("message"))
}

async fn put(world: &World, path: &str, bytes: &[u8]) {
    let path = format!("/api/2.0/mlflow-artifacts/artifacts/{path}");
    assert_eq!(send(world.mlflow, "PUT", &path, bytes).await.unwrap().0, 200);
}

async fn run_of(world: &World, experiment: &str) -> String {
    let run = post(world, "runs/create", json!({"experiment_id": experiment, "start_time": 1000})).await;
    run["run"]["info"]["run_id"].as_str().unwrap().to_owned()
}

async fn what_one_side_writes_the_other_reads(world: &World) {
    post(world, "registered-models/create", json!({"name": "by rest", "tags": [{"key": "k", "value": "v"}]})).await;
    let source = json!({"name": "by rest", "source": "s3://bucket/model", "description": "first"});
    post(world, "model-versions/create", source).await;
    let version = world.get("by rest", 1).await.unwrap();
    assert_eq!((version.status(), version.description.as_str()), (VersionStatus::Ready, "first"));
    assert_eq!(version.source, "s3://bucket/model");
    world.point("by rest", "champion", 1, None).await.unwrap();
    let found = get(world, "registered-models/alias?name=by%20rest&alias=champion").await;
    assert_eq!(found["model_version"]["version"], "1");

    world.model("by-grpc").await;
    world.ready("by-grpc", &[("model.json", b"{}"), ("dir/more.txt", b"more")]).await;
    let model = get(world, "registered-models/get?name=by-grpc").await;
    assert_eq!(model["registered_model"]["latest_versions"][0]["status"], "READY");
    let uri = get(world, "model-versions/get-download-uri?name=by-grpc&version=1").await;
    assert_eq!(uri["artifact_uri"], "mlflow-artifacts:/versions/by-grpc/1");
    let path = "/api/2.0/mlflow-artifacts/artifacts?path=versions/by-grpc/1";
    let (_, files) = world.rest("GET", path, Value::Null).await;
    let listed = json!([{"path": "dir", "is_dir": true}, {"path": "model.json", "is_dir": false, "file_size": 2}]);
    assert_eq!(files["files"], listed);
    let path = "/api/2.0/mlflow-artifacts/artifacts/versions/by-grpc/1/dir/more.txt";
    assert_eq!(send(world.mlflow, "GET", path, b"").await.unwrap(), (200, b"more".to_vec()));
    let names = get(world, "registered-models/search").await;
    let names: Vec<_> = names["registered_models"].as_array().unwrap().iter().map(|model| &model["name"]).collect();
    assert_eq!(names, ["by rest", "by-grpc"]);
}

async fn a_registered_version_keeps_its_files_whatever_becomes_of_their_source(world: &World) {
    let weights = vec![5; 9 << 20];
    put(world, "0/abc/artifacts/model/weights.bin", &weights).await;
    put(world, "0/abc/artifacts/model/MLmodel", b"flavors: {}").await;
    put(world, "0/abc/artifacts/modelling/other", b"no").await;
    post(world, "registered-models/create", json!({"name": "m"})).await;
    let source = json!({"name": "m", "source": "mlflow-artifacts:/0/abc/artifacts/model"});
    post(world, "model-versions/create", source).await;
    let version = world.get("m", 1).await.unwrap();
    assert_eq!(version.artifacts, [artifact("MLmodel", b"flavors: {}"), artifact("weights.bin", &weights)]);
    assert!(version.digest.starts_with("sha256:"));

    put(world, "0/abc/artifacts/model/MLmodel", b"flavors: {changed: true}").await;
    let path = "/api/2.0/mlflow-artifacts/artifacts/0/abc/artifacts/model";
    assert_eq!(world.rest("DELETE", path, Value::Null).await.0, 200);
    let (_, left) = world.rest("GET", "/api/2.0/mlflow-artifacts/artifacts?path=0/abc/artifacts", Value::Null).await;
    assert_eq!(left["files"], json!([{"path": "modelling", "is_dir": true}]));
    let path = "/api/2.0/mlflow-artifacts/artifacts/versions/m/1/weights.bin";
    assert!(send(world.mlflow, "GET", path, b"").await.unwrap() == (200, weights.clone()));
    let path = "/api/2.0/mlflow-artifacts/artifacts/versions/m/1/MLmodel";
    let (status, code, _) = refusal(world, "PUT", path, json!({})).await;
    assert_eq!((status, code.as_str()), (400, "INVALID_PARAMETER_VALUE"));
    assert_eq!(world.rest("DELETE", path, Value::Null).await.0, 400);
    assert_eq!(send(world.mlflow, "GET", path, b"").await.unwrap().1, b"flavors: {}");

    // A copy is a version of its own with the same files.
    post(world, "registered-models/create", json!({"name": "copy"})).await;
    post(world, "model-versions/create", json!({"name": "copy", "source": "models:/m/1"})).await;
    assert_eq!(world.get("copy", 1).await.unwrap().digest, version.digest);

    // What has changed on disk does not pass for what was registered.
    world.damage(&sha256(b"flavors: {}"), Some(b"flavors: {]")).await;
    let answer = send(world.mlflow, "GET", path, b"").await;
    assert!(answer.is_err() || answer.unwrap().1 != b"flavors: {}", "the damage is not passed off as the file");
}

async fn runs_are_found_by_what_they_logged(world: &World) {
    let mut ids = Vec::new();
    for (name, loss, depth, team) in [("a", 0.1, "3", "risk"), ("b", 0.5, "30", "Risk"), ("c", 0.9, "3", "sales")] {
        let run = run_of(world, "0").await;
        let batch = json!({
            "run_id": run,
            "metrics": [{"key": "loss", "value": loss, "timestamp": 1, "step": 0}],
            "params": [{"key": "depth", "value": depth}],
            "tags": [{"key": "team", "value": team}, {"key": "mlflow.runName", "value": name}],
        });
        post(world, "runs/log-batch", batch).await;
        ids.push(run);
    }
    let found = async |filter: &str, order: &str| {
        let order: Vec<&str> = if order.is_empty() { vec![] } else { vec![order] };
        let search = json!({"experiment_ids": ["0"], "filter": filter, "order_by": order});
        let answer = post(world, "runs/search", search).await;
        let runs = answer["runs"].as_array().unwrap().clone();
        runs.iter().map(|run| run["info"]["run_name"].as_str().unwrap().to_owned()).collect::<String>()
    };
    for (filter, order, wanted) in [
        ("metrics.loss < 0.6", "metrics.loss DESC", "ba"),
        ("params.depth = '3'", "metrics.loss ASC", "ac"),
        ("params.depth LIKE '3%'", "tags.`mlflow.runName` DESC", "cba"),
        ("tags.team LIKE 'R%'", "", "b"),
        ("tags.team ILIKE 'r%' AND metrics.loss >= 0.5", "", "b"),
        ("tags.team != 'risk'", "metrics.loss ASC", "bc"),
        (&format!("attributes.run_id IN ('{}', '{}')", ids[0], ids[2]), "metrics.loss ASC", "ac"),
        ("attributes.status = 'RUNNING' AND params.depth != '30'", "metrics.loss DESC", "ca"),
        ("metrics.absent > 0", "", ""),
        ("params.depth IS NULL", "", ""),
        ("params.depth IS NOT NULL", "metrics.loss ASC", "abc"),
    ] {
        assert_eq!(found(filter, order).await, wanted, "{filter} / {order}");
    }
    let page = json!({"experiment_ids": ["0"], "max_results": 2, "order_by": ["metrics.loss ASC"]});
    let first = post(world, "runs/search", page.clone()).await;
    let mut next = page;
    next["page_token"] = first["next_page_token"].clone();
    let second = post(world, "runs/search", next).await;
    assert_eq!((first["runs"].as_array().unwrap().len(), second["runs"].as_array().unwrap().len()), (2, 1));
    assert!(second.get("next_page_token").is_none());
    assert_eq!(second["runs"][0]["info"]["run_id"], ids[2].as_str());
}

async fn a_metric_has_its_latest_value_by_step_and_its_history_by_time(world: &World) {
    let run = run_of(world, "0").await;
    for (value, timestamp, step) in [(1.0, 30, 1), (3.0, 10, 2), (2.0, 20, 1), (2.0, 20, 1)] {
        let one = json!({"run_id": run, "key": "m", "value": value, "timestamp": timestamp, "step": step});
        post(world, "runs/log-metric", one).await;
    }
    for (key, value) in [("nan", "NaN"), ("up", "Infinity"), ("down", "-Infinity")] {
        post(world, "runs/log-metric", json!({"run_id": run, "key": key, "value": value, "timestamp": 1})).await;
    }
    let found = get(world, &format!("runs/get?run_id={run}")).await;
    let metrics = found["run"]["data"]["metrics"].as_array().unwrap();
    let latest = |key: &str| metrics.iter().find(|metric| metric["key"] == key).unwrap()["value"].clone();
    assert_eq!(latest("m"), json!(3.0));
    assert_eq!((latest("nan"), latest("up")), (json!("NaN"), json!(f64::MAX)));
    assert_eq!(latest("down"), json!(f64::MIN));
    let history = get(world, &format!("metrics/get-history?run_id={run}&metric_key=m")).await;
    let values: Vec<_> = history["metrics"].as_array().unwrap().iter().map(|one| one["value"].clone()).collect();
    assert_eq!(values, [json!(3.0), json!(2.0), json!(1.0)], "the same value twice counts once");
}

async fn a_batch_is_logged_whole_or_not_at_all(world: &World) {
    let run = run_of(world, "0").await;
    post(world, "runs/log-parameter", json!({"run_id": run, "key": "depth", "value": "3"})).await;
    let metric = json!([{"key": "m", "value": 1.0, "timestamp": 1}]);
    for params in
        [json!([{"key": "depth", "value": "4"}]), json!([{"key": "a", "value": "1"}, {"key": "a", "value": "1"}])]
    {
        let batch = json!({"run_id": run, "metrics": metric, "params": params, "tags": [{"key": "t", "value": "v"}]});
        let (status, code, _) = refusal(world, "POST", "/api/2.0/mlflow/runs/log-batch", batch).await;
        assert_eq!((status, code.as_str()), (400, "INVALID_PARAMETER_VALUE"));
    }
    let found = get(world, &format!("runs/get?run_id={run}")).await;
    assert_eq!(found["run"]["data"]["metrics"], json!([]));
    assert_eq!(found["run"]["data"]["params"], json!([{"key": "depth", "value": "3"}]));
    let metrics: Vec<Value> = (0..1000).map(|n| json!({"key": "m", "value": n, "timestamp": n, "step": n})).collect();
    post(world, "runs/log-batch", json!({"run_id": run, "metrics": metrics})).await;
    let history = get(world, &format!("metrics/get-history?run_id={run}&metric_key=m")).await;
    assert_eq!(history["metrics"].as_array().unwrap().len(), 1000);
}

async fn experiments_live_die_and_come_back_with_their_runs(world: &World) {
    let id =
        post(world, "experiments/create", json!({"name": "e"})).await["experiment_id"].as_str().unwrap().to_owned();
    let run = run_of(world, &id).await;
    post(world, "experiments/delete", json!({"experiment_id": id})).await;
    let found = get(world, &format!("runs/get?run_id={run}")).await;
    assert_eq!(found["run"]["info"]["lifecycle_stage"], "deleted");
    let again = json!({"name": "e"});
    let (status, code, _) = refusal(world, "POST", "/api/2.0/mlflow/experiments/create", again).await;
    assert_eq!((status, code.as_str()), (400, "RESOURCE_ALREADY_EXISTS"));
    let start = json!({"experiment_id": id});
    let (_, _, message) = refusal(world, "POST", "/api/2.0/mlflow/runs/create", start).await;
    assert!(message.contains("must be in the 'active' state"), "{message}");
    post(world, "experiments/restore", json!({"experiment_id": id})).await;
    post(world, "experiments/update", json!({"experiment_id": id, "new_name": "f"})).await;
    let found = get(world, "experiments/get-by-name?experiment_name=f").await;
    assert_eq!(found["experiment"]["experiment_id"], id.as_str());
    assert_eq!(get(world, "experiments/get?experiment_id=0").await["experiment"]["name"], "Default");
}

async fn a_renamed_model_keeps_everything(world: &World) {
    world.model("old").await;
    world.ready("old", &[("a", b"1")]).await;
    world.point("old", "champion", 1, None).await.unwrap();
    post(world, "registered-models/set-tag", json!({"name": "old", "key": "k", "value": "v"})).await;
    let renamed = post(world, "registered-models/rename", json!({"name": "old", "new_name": "new"})).await;
    assert_eq!(renamed["registered_model"]["aliases"], json!([{"alias": "champion", "version": "1"}]));
    assert_eq!(renamed["registered_model"]["tags"], json!([{"key": "k", "value": "v"}]));
    let version = world.get("new", 1).await.unwrap();
    assert_eq!(world.download(&version, "a", 0).await.unwrap().1, b"1");
    assert_eq!(world.version("new").await.version, 2);
    let gone = refusal(world, "GET", "/api/2.0/mlflow/registered-models/get?name=old", Value::Null).await;
    assert_eq!((gone.0, gone.1.as_str()), (404, "RESOURCE_DOES_NOT_EXIST"));
}

async fn logged_models_are_found_by_what_they_are(world: &World) {
    for (name, kind) in [("one", "forest"), ("two", "tree")] {
        let params = json!([{"key": "depth", "value": name}]);
        let model = json!({"experiment_id": "0", "name": name, "model_type": kind, "params": params});
        let made = post(world, "logged-models", model).await;
        let id = made["model"]["info"]["model_id"].as_str().unwrap().to_owned();
        let run = run_of(world, "0").await;
        let measured = json!({"run_id": run, "key": "auc", "value": name.len(), "timestamp": 1, "model_id": id,
            "dataset_name": name, "dataset_digest": "d"});
        post(world, "runs/log-metric", measured).await;
    }
    for (filter, datasets, wanted) in [
        ("model_type = 'tree'", json!([]), vec!["two"]),
        ("params.depth = 'one'", json!([]), vec!["one"]),
        ("experiment_id = '0' AND name LIKE 't%'", json!([]), vec!["two"]),
        ("metrics.auc > 2", json!([]), vec!["two", "one"]),
        ("metrics.auc > 2", json!([{"dataset_name": "one"}]), vec!["one"]),
        ("status = 'READY'", json!([]), vec![]),
    ] {
        let order = json!([{"field_name": "name", "ascending": false}]);
        let search = json!({"experiment_ids": ["0"], "filter": filter, "datasets": datasets, "order_by": order});
        let found = post(world, "logged-models/search", search).await;
        let names: Vec<_> = found["models"].as_array().unwrap().iter().map(|model| &model["info"]["name"]).collect();
        assert_eq!(names, wanted, "{filter}");
    }
}

async fn what_is_refused_says_why_in_mlflow_s_words(world: &World) {
    let run = run_of(world, "0").await;
    let metric = |key: &str, value: Value| json!({"run_id": run, "key": key, "value": value, "timestamp": 1});
    for (method, path, body, status, wanted) in [
        ("GET", "registered-models/get", Value::Null, 400, "Missing value for required parameter 'name'."),
        ("GET", "registered-models/get?name=x", Value::Null, 404, "Registered Model with name=x not found"),
        ("POST", "registered-models/create", json!({"name": 123}), 400, "Invalid value 123 for parameter 'name'"),
        ("POST", "registered-models/create", json!({"name": "../x"}), 400, "must be 1 to 255 bytes"),
        ("GET", "model-versions/get?name=x&version=one", Value::Null, 400, "must be an integer"),
        ("GET", "model-versions/get?name=x&version=1", Value::Null, 404, "not found"),
        ("GET", "runs/get?run_id=none", Value::Null, 404, "Run with id=none not found"),
        ("POST", "runs/log-metric", metric("a/../b", json!(1)), 400, "This name would resolve to 'b'"),
        ("POST", "runs/log-metric", metric("m", json!("x")), 400, "Invalid value \"x\" for parameter 'value'"),
        ("POST", "runs/log-metric", json!({"run_id": run}), 400, "Missing value for required parameter 'key'."),
        ("POST", "runs/log-parameter", json!({"run_id": run, "key": "k", "value": "x".repeat(6001)}), 400, "6000"),
        ("POST", "runs/search", json!({"experiment_ids": ["0"], "filter": "metrics.a ="}), 400, "Invalid clause(s)"),
        ("POST", "runs/search", json!({"experiment_ids": ["0"], "max_results": 50_001}), 400, "at most 50000"),
        ("POST", "runs/search", json!({"experiment_ids": ["x"]}), 400, "Invalid experiment ID: 'x'"),
        ("POST", "runs/search", json!({"experiment_ids": ["0"], "page_token": "?"}), 400, "Invalid page token"),
        ("GET", "experiments/get?experiment_id=99", Value::Null, 404, "No Experiment with id=99 exists"),
        ("POST", "registered-models/create", json!({"name": "a\0b"}), 400, "NUL"),
        ("POST", "runs/set-tag", json!({"run_id": run, "key": "k", "value": "a\0b"}), 400, "NUL"),
        ("POST", "registered-models/create", json!({"name": "n", "description": "x".repeat(10_001)}), 400, "10000"),
        ("POST", "gateway/secrets/create", json!({}), 501, "is not served here"),
    ] {
        let told = refusal(world, method, &format!("/api/2.0/mlflow/{path}"), body).await;
        assert_eq!(told.0, status, "{path}: {told:?}");
        assert!(told.2.contains(wanted), "{path}: {told:?}");
    }
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    for (body, wanted) in [("{", 400), ("[1]", 400), ("nonsense", 400), (deep.as_str(), 400)] {
        let path = "/api/2.0/mlflow/runs/create";
        assert_eq!(send(world.mlflow, "POST", path, body.as_bytes()).await.unwrap().0, wanted, "{body:.20}");
    }
    let large = vec![b' '; 17 << 20];
    let refused = send(world.mlflow, "POST", "/api/2.0/mlflow/runs/create", &large).await;
    assert!(refused.is_err() || refused.unwrap().0 >= 400, "a body has a limit");
    for path in ["..%2f..%2fetc/passwd", "a/../../b", "a%00b", "a//b"] {
        let path = format!("/api/2.0/mlflow-artifacts/artifacts/{path}");
        assert_eq!(send(world.mlflow, "PUT", &path, b"x").await.unwrap().0, 400, "{path}");
    }
    assert_eq!(world.rest("GET", "/elsewhere", Value::Null).await.0, 404);
}

async fn hostile_texts_stay_texts(world: &World) {
    let nasty = "x'; DROP TABLE runs; --%_\"\\ü漢🦀";
    let run = run_of(world, "0").await;
    post(world, "runs/log-parameter", json!({"run_id": run, "key": "k", "value": nasty})).await;
    post(world, "runs/set-tag", json!({"run_id": run, "key": "t", "value": nasty})).await;
    let found = get(world, &format!("runs/get?run_id={run}")).await;
    assert_eq!(found["run"]["data"]["params"][0]["value"], nasty);
    for (filter, wanted) in [
        ("params.k = \"x'; DROP TABLE runs; --%_\"", 0),
        ("params.k LIKE \"x'; DROP TABLE runs; --%\"", 1),
        ("params.k = \"' OR 1=1 --\"", 0),
        ("tags.`t` LIKE \"%DROP TABLE runs%\"", 1),
        ("tags.`t' OR 1=1 --` = 'x'", 0),
    ] {
        let search = json!({"experiment_ids": ["0"], "filter": filter});
        let answer = post(world, "runs/search", search).await;
        assert_eq!(answer["runs"].as_array().unwrap().len(), wanted, "{filter}");
    }
}
