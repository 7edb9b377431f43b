//! What MLflow's web page does: GraphQL, runs of prompts, models asked through the registry.

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use verdict_chassis::server::Listeners;
use verdict_testkit::net::send;

use crate::evaluation::{call, experiment, refusal};
use crate::world::{World, local};

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

on_both!(the_web_page_asks_by_graphql, a_query_costs_no_more_than_it_may, a_prompt_is_kept_as_a_run_with_a_model);

/// Asks; answers the data and the errors.
async fn ask(world: &World, query: &str, variables: Value) -> (Value, Value) {
    let (status, answer) = world.rest("POST", "/graphql", json!({"query": query, "variables": variables})).await;
    assert_eq!(status, 200, "{answer}");
    (answer["data"].clone(), answer["errors"].clone())
}

async fn the_web_page_asks_by_graphql(world: &World) {
    let id = experiment(world, "shown").await;
    let run = call(world, "POST", "runs/create", json!({"experiment_id": id, "run_name": "r", "start_time": 5})).await;
    let run = run["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    for (value, step) in [(json!(0.5), 1), (json!("NaN"), 2)] {
        let key = format!("m{step}");
        let one =
            json!({"run_id": run, "key": key, "value": value, "timestamp": 9_007_199_254_740_993_i64, "step": step});
        call(world, "POST", "runs/log-metric", one).await;
    }
    call(world, "POST", "registered-models/create", json!({"name": "model"})).await;
    let version = json!({"name": "model", "source": "s3://bucket/x", "run_id": run});
    call(world, "POST", "model-versions/create", version).await;
    let query = "query Shown($run: String) @component(name: \"Page\") { mlflowGetRun(input: {runId: $run}) { apiError { code }
        run { ...Parts experiment { name } modelVersions { name status version } } } }
        fragment Parts on MlflowRunExtension { info { status startTime endTime lifecycleStage } data { metrics { key value timestamp }
        params { key } } }";
    let (data, errors) = ask(world, query, json!({"run": run})).await;
    let metric = |key: &str, value: Value| json!({"key": key, "value": value, "timestamp": "9007199254740993"});
    let wanted = json!({"mlflowGetRun": {"apiError": null, "run": {
        "info": {"status": "RUNNING", "startTime": "5", "endTime": "0", "lifecycleStage": "active"},
        "data": {"metrics": [metric("m1", json!(0.5)), metric("m2", Value::Null)], "params": []},
        "experiment": {"name": "shown"},
        "modelVersions": [{"name": "model", "status": "READY", "version": "1"}],
    }}});
    assert_eq!((data, errors), (wanted, Value::Null));

    let query = "mutation { mlflowSearchRuns(input: {experimentIds: [\"ID\"], runViewType: ALL, maxResults: 5}) {
        runs { info { runName } experiment { experimentId } modelVersions { runId } } nextPageToken } }";
    let (data, errors) = ask(world, &query.replace("ID", &id), Value::Null).await;
    let shown =
        json!({"info": {"runName": "r"}, "experiment": {"experimentId": id}, "modelVersions": [{"runId": run}]});
    assert_eq!((&data["mlflowSearchRuns"], errors), (&json!({"runs": [shown], "nextPageToken": ""}), Value::Null));

    let query = format!(
        "{{ mlflowGetExperiment(input: {{experimentId: \"{id}\"}}) {{ experiment {{ name tags {{ key }} }} }}
           mlflowGetMetricHistoryBulkInterval(input: {{runIds: [\"{run}\"], metricKey: \"m1\"}}) {{ metrics {{ value step runId }} }}
           mlflowListArtifacts(input: {{runId: \"{run}\"}}) {{ rootUri files {{ path isDir fileSize }} }}
           mlflowSearchModelVersions(input: {{filter: \"name = 'model'\", maxResults: 10}}) {{ modelVersions {{ source aliases }} }} }}"
    );
    let put = format!("/api/2.0/mlflow-artifacts/artifacts/{id}/{run}/artifacts/dir/file.txt");
    assert_eq!(send(world.mlflow, "PUT", &put, b"hello").await.unwrap().0, 200);
    let (data, errors) = ask(world, &query, Value::Null).await;
    assert_eq!(errors, Value::Null);
    assert_eq!(data["mlflowGetExperiment"], json!({"experiment": {"name": "shown", "tags": []}}));
    let one = json!({"value": 0.5, "step": "1", "runId": run});
    assert_eq!(data["mlflowGetMetricHistoryBulkInterval"], json!({"metrics": [one]}));
    assert_eq!(data["mlflowListArtifacts"]["files"], json!([{"path": "dir", "isDir": true, "fileSize": "0"}]));
    let version = json!({"modelVersions": [{"source": "s3://bucket/x", "aliases": []}]});
    assert_eq!(data["mlflowSearchModelVersions"], version);

    let query = "mutation { mlflowSearchDatasets(input: {experimentIds: []}) { datasetSummaries { name } } }";
    let (data, errors) = ask(world, query, Value::Null).await;
    assert_eq!(data, json!({"mlflowSearchDatasets": null}));
    assert_eq!(errors, json!(["SearchDatasets request must specify at least one experiment_id."]));
    let query =
        "{ mlflowGetRun(input: {runId: \"none\"}) { run { info { runId } } } test(inputString: \"hi\") { output } }";
    let (data, errors) = ask(world, query, Value::Null).await;
    assert_eq!(errors, json!(["Run with id=none not found"]));
    assert_eq!(data, json!({"mlflowGetRun": null, "test": {"output": "hi"}}));
}

async fn a_query_costs_no_more_than_it_may(world: &World) {
    let aliased = (0..12).map(|n| format!("a{n}: experiment {{ name }} ")).collect::<String>();
    let spread = (0..40).map(|n| format!("fragment F{n} on Query {{ ...F{0} ...F{0} }} ", n + 1)).collect::<String>();
    for (query, wanted) in [
        (format!("{{ {} }}", "test { output } ".repeat(12)), "at most 10 root fields, got 12"),
        (format!("{{ mlflowGetExperiment {{ {aliased} }} }}"), "at most 10 aliases, got 12"),
        (format!("{{ {} name {} }}", "a { ".repeat(12), "}".repeat(12)), "maximum depth of 10"),
        (format!("{{ a {{ {} }} }}", "b ".repeat(1_001)), "maximum total selections of 1000"),
        (format!("{{ ...F0 }} {spread} fragment F40 on Query {{ test {{ output }} }}"), "selections"),
        ("{a".repeat(40_000), "Syntax Error"),
        (format!("{{ a(b: {}", "[".repeat(90_000)), "Syntax Error"),
        (format!("query($a: {}", "[".repeat(90_000)), "Syntax Error"),
        ("{ nonsense }".to_owned(), "nonsense"),
        ("{ mlflowGetRun(input: {runId: 5}) { run { info { runId } } } }".to_owned(), "runId"),
    ] {
        let (data, errors) = ask(world, &query, Value::Null).await;
        let told = errors[0].as_str().unwrap();
        assert!(data.is_null() && told.contains(wanted) && told.len() < 2_000, "{query:.60}: {errors}");
    }
    for (body, wanted) in [
        (json!({}), "'query'"),
        (json!({"query": 5}), "'query'"),
        (json!({"query": "{".repeat(100_001)}), "100000 bytes"),
        (json!({"query": "{ test { output } }", "variables": []}), "'variables'"),
    ] {
        let (status, answer) = world.rest("POST", "/graphql", body).await;
        assert!(status == 400 && answer["message"].as_str().unwrap().contains(wanted), "{answer}");
    }
}

async fn a_prompt_is_kept_as_a_run_with_a_model(world: &World) {
    let trial = json!({
        "experiment_id": "0", "run_name": "tried", "prompt_template": "say {{ what }}", "model_route": "chat",
        "prompt_parameters": [{"key": "what", "value": "hi: \"x\""}], "model_parameters": [{"key": "temperature", "value": 0.5}],
        "model_input": "say hi", "model_output": "hi", "model_output_parameters": [{"key": "latency", "value": "9"}],
        "mlflow_version": "3.6.0", "user_id": "ada", "start_time": 456,
    });
    for missing in
        ["experiment_id", "prompt_template", "prompt_parameters", "model_route", "model_input", "mlflow_version"]
    {
        let mut without = trial.clone();
        without[missing] = Value::Null;
        let told = refusal(world, "POST", "runs/create-promptlab-run", without).await;
        assert_eq!((told.0, told.2), (400, format!("CreatePromptlabRun request must specify {missing}.")));
    }
    let mut hostile = trial.clone();
    hostile["mlflow_version"] = json!("3.6.0\n--index-url http://evil");
    assert_eq!(refusal(world, "POST", "runs/create-promptlab-run", hostile).await.0, 400);
    let found = call(world, "POST", "runs/search", json!({"experiment_ids": ["0"]})).await;
    assert_eq!(found["runs"].as_array().unwrap().len(), 0, "nothing of it was written");

    let made = call(world, "POST", "runs/create-promptlab-run", trial).await["run"].take();
    assert_eq!((&made["info"]["status"], &made["info"]["user_id"]), (&json!("FINISHED"), &json!("ada")));
    assert!(made["data"]["params"].as_array().unwrap().contains(&json!({"key": "temperature", "value": "0.5"})));
    let run = made["info"]["run_id"].as_str().unwrap();
    let file = async |path: &str| {
        let (status, bytes) =
            send(world.mlflow, "GET", &format!("/get-artifact?run_id={run}&path={path}"), b"").await.unwrap();
        assert_eq!(status, 200, "{path}");
        String::from_utf8(bytes).unwrap()
    };
    let table: Value = serde_json::from_str(&file("eval_results_table.json").await).unwrap();
    let row = json!(["hi: \"x\"", "say hi", "hi", "9"]);
    assert_eq!(table, json!({"columns": ["what", "prompt", "output", "latency"], "data": [row]}));
    let parameters: Value = serde_json::from_str(&file("model/parameters.yaml").await).unwrap();
    assert_eq!(parameters["prompt_parameters"], json!({"what": "hi: \"x\""}));
    assert_eq!(file("model/requirements.txt").await, "mlflow[gateway]==3.6.0\n");
    let listed = call(world, "GET", "gateway-proxy?gateway_path=api/2.0/endpoints", Value::Null).await;
    assert_eq!(listed, json!({"endpoints": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_web_page_asks_models_through_the_registry() {
    let models = axum::Router::new()
        .route(
            "/base/api/2.0/endpoints",
            axum::routing::get(async || axum::Json(json!({"endpoints": [{"name": "chat"}]}))),
        )
        .route(
            "/base/gateway/{name}/invocations",
            axum::routing::post(async |axum::Json(body): axum::Json<Value>| axum::Json(body)),
        )
        .route(
            "/base/gateway/none/invocations",
            axum::routing::post(async || (axum::http::StatusCode::INTERNAL_SERVER_ERROR, "no model")),
        );
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let target = format!("http://{}/base", listener.local_addr().unwrap());
    let models = tokio::spawn(async move { axum::serve(listener, models).await });
    let (dir, mlflow, stop) = (tempfile::tempdir().unwrap(), local(), CancellationToken::new());
    let config = model_registry::Config {
        mlflow_listen: Some(mlflow),
        mlflow_deployments_target: Some(target.parse().unwrap()),
        ..model_registry::Config::in_dir(dir.path())
    };
    let running = tokio::spawn(model_registry::run(config, Listeners::loopback().await.unwrap(), stop.clone()));
    while tokio::net::TcpStream::connect(mlflow).await.is_err() {
        assert!(!running.is_finished(), "the registry has ended");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let proxy = async |method: &str, query: &str, body: Value| {
        let path = format!("/ajax-api/2.0/mlflow/gateway-proxy{query}");
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let (status, answer) = send(mlflow, method, &path, &body).await.unwrap();
        (status, serde_json::from_slice::<Value>(&answer).unwrap_or_default())
    };
    let listed = proxy("GET", "?gateway_path=api/2.0/endpoints", Value::Null).await;
    assert_eq!(listed, (200, json!({"endpoints": [{"name": "chat"}]})));
    let asked = json!({"gateway_path": "gateway/chat/invocations", "json_data": {"prompt": "hi"}});
    assert_eq!(proxy("POST", "", asked).await, (200, json!({"prompt": "hi"})));
    for path in [
        "",
        "foo/bar",
        "gateway/../invocations",
        "gateway/a/b/invocations",
        "gateway/chat/invocations?x=1",
        "http://evil/",
    ] {
        let told = proxy("POST", "", json!({"gateway_path": path})).await;
        assert_eq!((told.0, &told.1["error_code"]), (400, &json!("INVALID_PARAMETER_VALUE")), "{path}");
    }
    assert_eq!(proxy("DELETE", "", Value::Null).await.0, 405);
    let told = proxy("POST", "", json!({"gateway_path": "gateway/none/invocations", "json_data": 5})).await;
    assert_eq!((told.0, &told.1["error_code"]), (503, &json!("TEMPORARILY_UNAVAILABLE")));
    assert!(
        told.1["message"].as_str().unwrap().contains("failed with error code 500. Error message: no model"),
        "{told:?}"
    );
    stop.cancel();
    running.await.unwrap().unwrap();
    models.abort();
}
