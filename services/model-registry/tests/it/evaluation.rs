//! Evaluation datasets and scorers: by MLflow's REST API and by gRPC, which are one store.

use std::collections::HashMap;

use prost_types::value::Kind;
use prost_types::{Struct, Value as Wire};
use serde_json::{Value, json};
use verdict_api::registry as api;
use verdict_api::registry::evaluation_service_client::EvaluationServiceClient;

use crate::world::{World, reason};

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

on_both!(
    a_record_is_known_by_its_inputs,
    records_come_in_the_order_in_which_they_were_sent_in_pages,
    records_are_added_all_or_none,
    a_page_of_records_has_a_limit_in_bytes,
    datasets_are_found_by_what_they_are_and_where_they_belong,
    a_deleted_dataset_is_gone_with_all_of_it,
    what_is_refused_names_the_field,
    scorers_have_versions,
    both_apis_are_one_store,
    grpc_refuses_with_a_reason,
);

const API: &str = "/api/3.0/mlflow";

pub(crate) async fn call(world: &World, method: &str, path: &str, body: Value) -> Value {
    let (status, answer) = world.rest(method, &format!("{API}/{path}"), body).await;
    assert_eq!(status, 200, "{method} {path}: {answer}");
    answer
}

/// Status, error code and message of a refusal.
pub(crate) async fn refusal(world: &World, method: &str, path: &str, body: Value) -> (u16, String, String) {
    let (status, answer) = world.rest(method, &format!("{API}/{path}"), body).await;
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    (status, text("error_code"), text("message"))
}

pub(crate) async fn experiment(world: &World, name: &str) -> String {
    let made = call(world, "POST", "experiments/create", json!({"name": name})).await;
    made["experiment_id"].as_str().unwrap().to_owned()
}

/// Makes a dataset and answers its id.
async fn dataset(world: &World, name: &str, tags: Value, experiments: &[&str]) -> String {
    let body = json!({"name": name, "tags": tags.to_string(), "experiment_ids": experiments});
    let made = call(world, "POST", "datasets/create", body).await;
    made["dataset"]["dataset_id"].as_str().unwrap().to_owned()
}

async fn a_page_of_records_has_a_limit_in_bytes(world: &World) {
    let id = dataset(world, "large", json!({}), &[]).await;
    // Of 0.9 MB each but for the third, which is larger than a page by itself.
    let sizes = [900_000, 900_000, 3_000_000, 900_000, 900_000, 900_000, 10];
    for (at, size) in sizes.into_iter().enumerate() {
        upsert(world, &id, json!([{"inputs": {"at": at, "text": "x".repeat(size)}}])).await;
    }
    let (mut pages, mut token) = (Vec::new(), String::new());
    loop {
        let path = format!("datasets/{id}/records?max_results=1000&page_token={token}");
        let page = call(world, "GET", &path, Value::Null).await;
        let records: Value = serde_json::from_str(page["records"].as_str().unwrap()).unwrap();
        let at = |record: &Value| record["inputs"]["at"].as_u64().unwrap();
        pages.push(records.as_array().unwrap().iter().map(at).collect::<Vec<_>>());
        match page["next_page_token"].as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(pages, [vec![0, 1], vec![2], vec![3, 4], vec![5, 6]]);
    // gRPC's clients take messages of 4 MiB unless they say otherwise.
    let list = api::ListEvaluationRecordsRequest { dataset_id: id, page_size: 1000, page_token: String::new() };
    let mut client = EvaluationServiceClient::new(world.channel.clone());
    assert_eq!(client.list_evaluation_records(list).await.unwrap().into_inner().records.len(), 2);
}

async fn upsert(world: &World, id: &str, records: Value) -> (u64, u64) {
    let sent = json!({"records": records.to_string()});
    let answer = call(world, "POST", &format!("datasets/{id}/records"), sent).await;
    (answer["inserted_count"].as_u64().unwrap(), answer["updated_count"].as_u64().unwrap())
}

async fn records(world: &World, id: &str, query: &str) -> (Vec<Value>, Option<String>) {
    let answer = call(world, "GET", &format!("datasets/{id}/records{query}"), Value::Null).await;
    let records: Value = serde_json::from_str(answer["records"].as_str().unwrap()).unwrap();
    (records.as_array().unwrap().clone(), answer["next_page_token"].as_str().map(str::to_owned))
}

async fn metadata(world: &World, id: &str) -> Value {
    call(world, "GET", &format!("datasets/{id}"), Value::Null).await["dataset"].take()
}

fn inner(fields: &Value, name: &str) -> Value {
    serde_json::from_str(fields[name].as_str().unwrap()).unwrap()
}

async fn a_record_is_known_by_its_inputs(world: &World) {
    let id = dataset(world, "qa", json!({"mlflow.user": "ada"}), &["0"]).await;
    let before = metadata(world, &id).await;
    assert_eq!((before.get("schema"), before.get("profile"), &before["created_by"]), (None, None, &json!("ada")));
    let first = json!([
        {"inputs": {"q": "x", "n": {"a": 1, "b": 2}}, "expectations": {"a": "1"}, "tags": {"level": "easy"},
         "source": {"source_type": "trace", "source_data": {"trace_id": "tr-1"}}},
        {"inputs": {"q": "y"}, "outputs": {"text": "yes"}},
    ]);
    assert_eq!(upsert(world, &id, first).await, (2, 0));
    let again = json!([
        {"inputs": {"n": {"b": 2, "a": 1}, "q": "x"}, "expectations": {"b": "2"}, "tags": {"mlflow.user": "bob"}},
        {"inputs": {"q": "z"}},
        {"inputs": {"q": "z"}, "outputs": 7},
    ]);
    assert_eq!(upsert(world, &id, again).await, (1, 2));
    let (found, next) = records(world, &id, "").await;
    assert_eq!((found.len(), next), (3, None));
    let one = &found[0];
    assert_eq!(one["inputs"], json!({"q": "x", "n": {"a": 1, "b": 2}}));
    assert_eq!(one["expectations"], json!({"a": "1", "b": "2"}));
    assert_eq!(one["tags"], json!({"level": "easy", "mlflow.user": "bob"}));
    assert_eq!(one["source"], json!({"source_type": "TRACE", "source_data": {"trace_id": "tr-1"}}));
    assert_eq!((&one["source_id"], &one["source_type"]), (&json!("tr-1"), &json!("TRACE")));
    assert_eq!((one.get("created_by"), &one["last_updated_by"]), (None, &json!("bob")));
    assert_eq!(
        (&one["outputs"], &found[1]["outputs"], &found[2]["outputs"]),
        (&json!({}), &json!({"text": "yes"}), &json!(7))
    );
    let after = metadata(world, &id).await;
    let schema = json!({
        "inputs": {"q": "string", "n": "object"}, "outputs": {"text": "string"},
        "expectations": {"a": "string", "b": "string"}, "version": "1.0",
    });
    assert_eq!((inner(&after, "schema"), inner(&after, "profile")), (schema, json!({"num_records": 3})));
    assert_ne!(after["digest"], before["digest"]);
    assert_eq!(after["last_updated_by"], "bob");
}

async fn records_come_in_the_order_in_which_they_were_sent_in_pages(world: &World) {
    let id = dataset(world, "many", json!({}), &[]).await;
    let sent: Value = (0..2_500).map(|n| json!({"inputs": {"n": n, "text": "ü'\"\\ 🦀"}})).collect();
    assert_eq!(upsert(world, &id, sent).await, (2_500, 0));
    let (mut seen, mut query, mut pages) = (Vec::new(), "?max_results=999".to_owned(), 0);
    loop {
        let (found, next) = records(world, &id, &query).await;
        seen.extend(found.iter().map(|record| record["inputs"]["n"].as_u64().unwrap()));
        pages += 1;
        let Some(token) = next else { break };
        query = format!("?max_results=999&page_token={token}");
    }
    assert_eq!((pages, seen), (3, (0..2_500).collect::<Vec<u64>>()));
    assert_eq!(inner(&metadata(world, &id).await, "profile"), json!({"num_records": 2_500}));
}

async fn records_are_added_all_or_none(world: &World) {
    let id = dataset(world, "whole", json!({}), &[]).await;
    let path = format!("datasets/{id}/records");
    for (records, wanted) in [
        (json!([{"inputs": {"a": 1}}, {"inputs": 5}]).to_string(), "records[1].inputs"),
        (json!([{"inputs": {"a": 1}}, {}]).to_string(), "'inputs' field"),
        (json!({"inputs": {}}).to_string(), "JSON list"),
        ("[{\"inputs\": {\"a\": NaN}}]".to_owned(), "not JSON"),
        (format!("[{{\"inputs\": {}1{}}}]", "{\"a\":".repeat(5_000), "}".repeat(5_000)), "not JSON"),
        (
            json!([{"inputs": {}, "source": {"source_type": "ORACLE"}}]).to_string(),
            "Invalid dataset record source type",
        ),
        (
            json!([{"inputs": (0..10_001).map(|n| (n.to_string(), json!(n))).collect::<Value>()}]).to_string(),
            "10000 fields",
        ),
    ] {
        let (status, code, message) = refusal(world, "POST", &path, json!({"records": records})).await;
        assert_eq!((status, code.as_str()), (400, "INVALID_PARAMETER_VALUE"), "{message}");
        assert!(message.contains(wanted), "{message}");
    }
    assert_eq!(records(world, &id, "").await.0, Vec::<Value>::new());
    assert_eq!(metadata(world, &id).await.get("profile"), None);
    // Two that send the same at once send it one after the other.
    let same = json!([{"inputs": {"a": 1}}]);
    let (one, two) = tokio::join!(upsert(world, &id, same.clone()), upsert(world, &id, same));
    assert_eq!((one.0 + two.0, one.1 + two.1), (1, 1));
}

async fn datasets_are_found_by_what_they_are_and_where_they_belong(world: &World) {
    let (one, two) = (experiment(world, "one").await, experiment(world, "two").await);
    let nasty = "x'; DROP TABLE evaluation_datasets; --%_\"ü漢🦀";
    let a = dataset(world, "a", json!({"team": "ml", "mlflow.user": "ada"}), &[&one]).await;
    dataset(world, "b", json!({"team": "data"}), &[&one, &two]).await;
    dataset(world, nasty, json!({"team": "ml", nasty: nasty}), &[&two]).await;
    let names = async |search: Value| {
        let answer = call(world, "POST", "datasets/search", search).await;
        let found = answer["datasets"].as_array().cloned().unwrap_or_default();
        let names: Vec<String> = found.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect();
        (names, answer["next_page_token"].clone())
    };
    for (filter, order, experiments, wanted) in [
        ("", "name ASC", json!([]), vec!["a", "b", nasty]),
        ("", "name DESC", json!([one]), vec!["b", "a"]),
        ("", "created_time ASC", json!([one, two]), vec!["a", "b", nasty]),
        ("tags.team = 'ml'", "name ASC", json!([]), vec!["a", nasty]),
        ("tags.team != 'ml'", "name ASC", json!([]), vec!["b"]),
        ("tags.team ILIKE 'M%' AND name LIKE 'x%'", "name ASC", json!([two]), vec![nasty]),
        ("created_by = 'ada'", "name ASC", json!([]), vec!["a"]),
        ("created_time > 0 AND last_update_time < 99999999999999", "name ASC", json!([one]), vec!["a", "b"]),
        ("name = \"' OR 1=1 --\"", "name ASC", json!([]), vec![]),
        ("tags.`team' OR 1=1 --` = 'ml'", "name ASC", json!([]), vec![]),
        ("name = \"x'; DROP TABLE evaluation_datasets; --%_\"", "name ASC", json!([]), vec![]),
        ("name LIKE \"%DROP TABLE evaluation_datasets%\"", "name ASC", json!([]), vec![nasty]),
    ] {
        let search = json!({"filter_string": filter, "order_by": [order], "experiment_ids": experiments});
        assert_eq!(names(search).await.0, wanted, "{filter} / {order} / {experiments}");
    }
    let (newest, token) = names(json!({"max_results": 2})).await;
    assert_eq!(newest.len(), 2);
    let (rest, end) = names(json!({"max_results": 2, "page_token": token})).await;
    assert_eq!((rest.len(), end), (1, Value::Null));
    let found = call(world, "GET", "datasets/search?order_by=name%20ASC&max_results=1", Value::Null).await;
    assert_eq!(
        (&found["datasets"][0]["name"], inner(&found["datasets"][0], "tags")["team"].clone()),
        (&json!("a"), json!("ml"))
    );

    let path = format!("datasets/{a}");
    let moved = call(world, "POST", &format!("{path}/add-experiments"), json!({"experiment_ids": [two, one]})).await;
    assert_eq!(moved["dataset"]["experiment_ids"], json!([one, two]));
    call(world, "POST", &format!("{path}/remove-experiments"), json!({"experiment_ids": [one, "0"]})).await;
    let ids = call(world, "GET", &format!("{path}/experiment-ids"), Value::Null).await;
    assert_eq!(ids["experiment_ids"], json!([two]));
    let absent =
        refusal(world, "POST", &format!("{path}/add-experiments"), json!({"experiment_ids": [one, "99"]})).await;
    assert_eq!((absent.0, absent.1.as_str()), (404, "RESOURCE_DOES_NOT_EXIST"));
    let ids = call(world, "GET", &format!("{path}/experiment-ids"), Value::Null).await;
    assert_eq!(ids["experiment_ids"], json!([two]), "all of them or none");

    let tags = json!({"tags": json!({"team": "new", "n": 5, "none": null}).to_string()});
    call(world, "PATCH", &format!("{path}/tags"), tags).await;
    for _ in 0..2 {
        call(world, "DELETE", &format!("{path}/tags/mlflow.user"), Value::Null).await;
    }
    assert_eq!(inner(&metadata(world, &a).await, "tags"), json!({"team": "new", "n": "5"}));
}

async fn a_deleted_dataset_is_gone_with_all_of_it(world: &World) {
    let id = dataset(world, "short", json!({"a": "b"}), &["0"]).await;
    upsert(world, &id, json!([{"inputs": {"a": 1}}])).await;
    for _ in 0..2 {
        call(world, "DELETE", &format!("datasets/{id}"), Value::Null).await;
    }
    for (method, path, body) in [
        ("GET", String::new(), Value::Null),
        ("GET", "/records".to_owned(), Value::Null),
        ("GET", "/experiment-ids".to_owned(), Value::Null),
        ("POST", "/records".to_owned(), json!({"records": "[]"})),
        ("PATCH", "/tags".to_owned(), json!({"tags": "{}"})),
        ("POST", "/add-experiments".to_owned(), json!({"experiment_ids": ["0"]})),
    ] {
        let told = refusal(world, method, &format!("datasets/{id}{path}"), body).await;
        assert_eq!((told.0, told.1.as_str()), (404, "RESOURCE_DOES_NOT_EXIST"), "{path}");
        assert_eq!(told.2, format!("Evaluation dataset with id '{id}' not found"));
    }
}

async fn what_is_refused_names_the_field(world: &World) {
    let id = dataset(world, "d", json!({}), &[]).await;
    let long = |length: usize| "x".repeat(length);
    for (method, path, body, status, wanted) in [
        ("POST", "datasets/create", json!({}), 400, "required parameter 'name'"),
        ("POST", "datasets/create", json!({"name": " "}), 400, "'name'"),
        ("POST", "datasets/create", json!({"name": long(256)}), 400, "255"),
        ("POST", "datasets/create", json!({"name": "a\0b"}), 400, "NUL"),
        ("POST", "datasets/create", json!({"name": "n", "tags": "{"}), 400, "'tags': not JSON"),
        ("POST", "datasets/create", json!({"name": "n", "tags": "[]"}), 400, "'tags'"),
        ("POST", "datasets/create", json!({"name": "n", "tags": {"a": "b"}}), 400, "'tags'"),
        ("POST", "datasets/create", json!({"name": "n", "tags": "{\"a\": \"\\u0000\"}"}), 400, "NUL"),
        ("POST", "datasets/create", json!({"name": "n", "experiment_ids": ["x"]}), 400, "Invalid experiment ID: 'x'"),
        ("POST", "datasets/create", json!({"name": "n", "experiment_ids": ["99"]}), 404, "id=99"),
        ("POST", "datasets/search", json!({"filter_string": "colour = 'red'"}), 400, "Invalid attribute key 'colour'"),
        ("POST", "datasets/search", json!({"filter_string": "name > 'a'"}), 400, "Invalid comparator"),
        (
            "POST",
            "datasets/search",
            json!({"filter_string": "params.a = 'a'"}),
            400,
            "Invalid identifier token 'params'",
        ),
        ("POST", "datasets/search", json!({"filter_string": "created_time = 'now'"}), 400, "numeric"),
        ("POST", "datasets/search", json!({"filter_string": format!("name = '{}'", long(100_001))}), 400, "100000"),
        ("POST", "datasets/search", json!({"filter_string": "name = 'a' ".repeat(201)}), 400, "200 clauses"),
        ("POST", "datasets/search", json!({"order_by": ["created_by ASC"]}), 400, "created_by"),
        ("POST", "datasets/search", json!({"max_results": 50_001}), 400, "50000"),
        ("POST", "datasets/search", json!({"page_token": "?"}), 400, "page token"),
        ("GET", &format!("datasets/{id}/records?page_token=2f2f"), Value::Null, 400, "page token"),
        ("GET", &format!("datasets/{id}/records?max_results=10001"), Value::Null, 400, "10000"),
        ("POST", &format!("datasets/{id}/records"), json!({}), 400, "required parameter 'records'"),
        ("GET", "datasets/a%00b", Value::Null, 404, "not found"),
        ("POST", "scorers/register", json!({"experiment_id": "0", "name": "s"}), 400, "'serialized_scorer'"),
        (
            "POST",
            "scorers/register",
            json!({"experiment_id": "0", "name": long(256), "serialized_scorer": "{}"}),
            400,
            "255",
        ),
        (
            "POST",
            "scorers/register",
            json!({"experiment_id": "9", "name": "s", "serialized_scorer": "{}"}),
            404,
            "id=9",
        ),
        (
            "POST",
            "scorers/register",
            json!({"experiment_id": "0", "name": "s", "serialized_scorer": long(65_536)}),
            400,
            "65535",
        ),
        ("GET", "scorers/get?experiment_id=0&name=s&version=one", Value::Null, 400, "'version'"),
    ] {
        let told = refusal(world, method, path, body).await;
        // PostgreSQL is the one that finds NUL in an id.
        let is_nul = path.contains("%00") && told.0 == 400;
        assert!(told.0 == status && told.2.contains(wanted) || is_nul, "{path}: {told:?}, not {status} {wanted}");
    }
    let found = call(world, "POST", "datasets/search", json!({})).await;
    assert_eq!(found["datasets"].as_array().unwrap().len(), 1, "nothing of it was written");
}

async fn scorers_have_versions(world: &World) {
    let id = experiment(world, "judged").await;
    let register = async |name: &str, code: &str| {
        let body = json!({"experiment_id": id, "name": name, "serialized_scorer": code});
        call(world, "POST", "scorers/register", body).await
    };
    let first = register("b", "{\"v\": 1}").await;
    assert_eq!((&first["version"], &first["experiment_id"], &first["name"]), (&json!(1), &json!(id), &json!("b")));
    assert_eq!(register("b", "{\"v\": 2}").await["version"], 2);
    register("a'; DROP TABLE scorers; --", "{}").await;
    let listed = call(world, "GET", &format!("scorers/list?experiment_id={id}"), Value::Null).await;
    let shown: Vec<_> = listed["scorers"].as_array().unwrap().iter().map(|one| one["scorer_version"].clone()).collect();
    assert_eq!((shown, &listed["scorers"][1]["scorer_name"]), (vec![json!(1), json!(2)], &json!("b")));
    let of_b = format!("experiment_id={id}&name=b");
    let get =
        async |more: &str| call(world, "GET", &format!("scorers/get?{of_b}{more}"), Value::Null).await["scorer"].take();
    assert_eq!(get("").await["serialized_scorer"], "{\"v\": 2}");
    let old = get("&version=1").await;
    assert_eq!((&old["serialized_scorer"], &old["scorer_id"]), (&json!("{\"v\": 1}"), &first["scorer_id"]));
    let newest = json!({"experiment_id": id, "name": "b", "version": 2});
    call(world, "DELETE", "scorers/delete", newest.clone()).await;
    assert_eq!(refusal(world, "DELETE", "scorers/delete", newest).await.0, 404);
    assert_eq!(register("b", "{}").await["version"], 3, "a number is not used again");
    let versions = call(world, "GET", &format!("scorers/versions?{of_b}"), Value::Null).await;
    assert_eq!(versions["scorers"].as_array().unwrap().len(), 2);
    call(world, "DELETE", "scorers/delete", json!({"experiment_id": id, "name": "b"})).await;
    let gone = refusal(world, "GET", &format!("scorers/versions?{of_b}"), Value::Null).await;
    assert_eq!((gone.0, gone.2), (404, format!("Scorer with name 'b' not found for experiment {id}.")));
    call(world, "POST", "experiments/delete", json!({"experiment_id": id})).await;
    let closed = refusal(world, "GET", &format!("scorers/list?experiment_id={id}"), Value::Null).await;
    assert!(closed.0 == 400 && closed.2.contains("must be in the 'active' state"), "{closed:?}");
}

fn object<const N: usize>(fields: [(&str, Kind); N]) -> Struct {
    Struct { fields: fields.map(|(name, kind)| (name.to_owned(), Wire { kind: Some(kind) })).into_iter().collect() }
}

async fn both_apis_are_one_store(world: &World) {
    let mut client = EvaluationServiceClient::new(world.channel.clone());
    let tags = HashMap::from([("team".to_owned(), "ml".to_owned())]);
    let request = api::CreateEvaluationDatasetRequest { name: "g".into(), tags, experiment_ids: vec![0] };
    let made = client.create_evaluation_dataset(request).await.unwrap().into_inner().dataset.unwrap();
    assert_eq!(inner(&metadata(world, &made.dataset_id).await, "tags"), json!({"team": "ml"}));
    upsert(world, &made.dataset_id, json!([{"inputs": {"n": 1, "t": "x"}, "expectations": {"a": 1}}])).await;
    let record = api::EvaluationRecord {
        inputs: Some(object([("n", Kind::NumberValue(1.0)), ("t", Kind::StringValue("x".into()))])),
        outputs: Some(Wire { kind: Some(Kind::BoolValue(true)) }),
        source: Some(api::EvaluationSource { r#type: api::EvaluationSourceType::Human.into(), data: None }),
        ..Default::default()
    };
    let other = api::EvaluationRecord { inputs: Some(object([("n", Kind::NumberValue(0.5))])), ..record.clone() };
    let dataset_id = made.dataset_id.clone();
    let request = api::UpsertEvaluationRecordsRequest { dataset_id, records: vec![record, other] };
    let counts = client.upsert_evaluation_records(request).await.unwrap().into_inner();
    assert_eq!((counts.inserted_count, counts.updated_count), (1, 1), "an integer of REST is the number of gRPC");
    let (found, _) = records(world, &made.dataset_id, "").await;
    assert_eq!((&found[0]["outputs"], &found[0]["inputs"]["n"]), (&json!(true), &json!(1)));
    assert_eq!(found[1]["source"], json!({"source_type": "HUMAN", "source_data": {}}));

    let mut page_token = String::new();
    let mut seen = Vec::new();
    loop {
        let dataset_id = made.dataset_id.clone();
        let request = api::ListEvaluationRecordsRequest { dataset_id, page_size: 1, page_token };
        let page = client.list_evaluation_records(request).await.unwrap().into_inner();
        seen.extend(page.records.into_iter().map(|record| record.record_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, found.iter().map(|record| record["dataset_record_id"].as_str().unwrap()).collect::<Vec<_>>());
    let request = api::SearchEvaluationDatasetsRequest {
        filter: "tags.team = 'ml'".into(),
        order_by: vec!["name ASC".into()],
        ..Default::default()
    };
    let found = client.search_evaluation_datasets(request).await.unwrap().into_inner().datasets;
    assert_eq!((found.len(), found[0].record_count, &found[0].experiment_ids), (1, 2, &vec![0]));
    assert!(found[0].schema.contains("\"n\":\"integer\""), "{}", found[0].schema);

    let serialized = "{}".to_owned();
    let request = api::RegisterScorerRequest { experiment_id: 0, name: "s".into(), serialized };
    assert_eq!(client.register_scorer(request).await.unwrap().into_inner().scorer.unwrap().version, 1);
    let found = call(world, "GET", "scorers/get?experiment_id=0&name=s", Value::Null).await;
    assert_eq!(found["scorer"]["scorer_version"], 1);
    let request = api::DeleteEvaluationDatasetRequest { dataset_id: made.dataset_id.clone() };
    client.delete_evaluation_dataset(request).await.unwrap();
    assert_eq!(refusal(world, "GET", &format!("datasets/{}", made.dataset_id), Value::Null).await.0, 404);
}

async fn grpc_refuses_with_a_reason(world: &World) {
    let mut client = EvaluationServiceClient::new(world.channel.clone());
    let absent = || "d-none".to_owned();
    let request = api::GetEvaluationDatasetRequest { dataset_id: absent() };
    assert_eq!(reason(client.get_evaluation_dataset(request).await), "EVALUATION_DATASET_NOT_FOUND");
    let request = api::UpsertEvaluationRecordsRequest { dataset_id: absent(), records: Vec::new() };
    assert_eq!(reason(client.upsert_evaluation_records(request).await), "EVALUATION_DATASET_NOT_FOUND");
    let request =
        api::UpsertEvaluationRecordsRequest { dataset_id: absent(), records: vec![api::EvaluationRecord::default()] };
    let told = client.upsert_evaluation_records(request).await.unwrap_err();
    assert!(told.message().contains("'inputs' field: records[0] has none"), "{told:?}");
    let request =
        api::CreateEvaluationDatasetRequest { name: "x".into(), experiment_ids: vec![-1], ..Default::default() };
    assert_eq!(reason(client.create_evaluation_dataset(request).await), "EXPERIMENT_NOT_FOUND");
    let request = api::SearchEvaluationDatasetsRequest { filter: "name >".into(), ..Default::default() };
    assert_eq!(reason(client.search_evaluation_datasets(request).await), "INVALID_PARAMETER_VALUE");
    let request = api::SearchEvaluationDatasetsRequest { page_token: "x".into(), ..Default::default() };
    assert_eq!(reason(client.search_evaluation_datasets(request).await), "INVALID_PAGE_TOKEN");
    let request = api::ListEvaluationRecordsRequest { dataset_id: absent(), page_size: 1001, ..Default::default() };
    assert_eq!(reason(client.list_evaluation_records(request).await), "INVALID_PAGE_SIZE");
    let request = api::GetScorerRequest { experiment_id: 0, name: "none".into(), version: None };
    assert_eq!(reason(client.get_scorer(request).await), "SCORER_NOT_FOUND");
}
