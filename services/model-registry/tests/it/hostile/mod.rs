//! Hostile requests on every route of MLflow's API: refused with MLflow's code, and nothing was written.
//!
//! Each route stands in the table with a request that is answered, sent after all the hostile ones: they were refused for
//! what is hostile in them and for nothing else. The rows tell a story, from making things to deleting them.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use url::form_urlencoded;
use verdict_testkit::net::send;

use self::table::{OF_FILES, Row, table};
use crate::world::World;

/// The files whose routes the table has.
const FILES: [&str; 6] =
    ["artifacts.rs", "experiments.rs", "logged_models.rs", "metrics.rs", "registered.rs", "runs.rs"];

#[test]
fn the_table_has_every_route() {
    let mut there = BTreeSet::new();
    for file in FILES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/mlflow").join(file);
        let text = std::fs::read_to_string(path).unwrap();
        there.extend(text.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
    }
    let rows = table();
    let known: BTreeSet<String> = rows.iter().map(|row| row.path).chain(OF_FILES).map(str::to_owned).collect();
    assert_eq!(there, known, "add the route to the table");
}

/// How many rows each table has, and how many files are kept on disk.
async fn written(world: &World) -> BTreeMap<String, i64> {
    let mut counts = BTreeMap::new();
    match world.sqlite() {
        Some(path) => {
            let mut database =
                SqliteConnection::connect(&format!("sqlite://{}?mode=ro", path.display())).await.unwrap();
            let tables: Vec<String> = sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'table'")
                .fetch_all(&mut database)
                .await
                .unwrap();
            for table in tables {
                let sql = AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
                counts.insert(table, sqlx::query_scalar(sql).fetch_one(&mut database).await.unwrap());
            }
            counts.insert("files on disk".to_owned(), files(&path.with_file_name("artifacts")));
        }
        None => {
            let mut database = PgConnection::connect(world.database()).await.unwrap();
            let tables: Vec<String> =
                sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
                    .fetch_all(&mut database)
                    .await
                    .unwrap();
            for table in tables {
                let sql = AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
                counts.insert(table, sqlx::query_scalar(sql).fetch_one(&mut database).await.unwrap());
            }
        }
    }
    counts
}

fn files(dir: &Path) -> i64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries.map(|entry| entry.unwrap().path()).map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

const CODES: [&str; 5] = [
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "ENDPOINT_NOT_FOUND",
];

/// Sends bytes and expects a refusal in MLflow's form.
async fn refused(world: &World, method: &str, path: &str, body: &[u8], what: &str) {
    let (status, answer) =
        send(world.mlflow, method, path, body).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let told: Value = serde_json::from_slice(&answer).unwrap_or_default();
    let code = told["error_code"].as_str().unwrap_or_default();
    let start = String::from_utf8_lossy(&answer[..answer.len().min(300)]).into_owned();
    assert!((400..500).contains(&status) && CODES.contains(&code), "{what}: {status} {start}");
    assert!(answer.len() < 20_000, "{what}: a refusal does not send back what it refuses: {} bytes", answer.len());
}

/// The query that says the same as a body.
fn query(body: &Value) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in body.as_object().unwrap() {
        query.append_pair(name, value.as_str().map_or_else(|| value.to_string(), str::to_owned).as_str());
    }
    query.finish()
}

/// Puts `value` where `pointer` points, also where nothing is yet.
fn with(body: &Value, pointer: &str, value: Value) -> Value {
    let mut body = body.clone();
    match body.pointer_mut(pointer) {
        Some(place) => *place = value,
        None => body[pointer.trim_start_matches('/')] = value,
    }
    body
}

async fn hostile_bodies_are_refused_on_every_route(world: &World) {
    let deep = format!("{{\"name\": {}{}}}", "[".repeat(5_000), "]".repeat(5_000));
    let deep_objects = format!("{}1{}", "{\"a\":".repeat(5_000), "}".repeat(5_000));
    let (long, huge) = ("x".repeat(200_000), "x".repeat(10 << 20));
    let many = format!("[{}]", vec!["{}"; 1 << 15].join(","));
    let too_large = vec![b' '; 17 << 20];
    let mut ids = BTreeMap::from([("<EXP>", String::new()), ("<RUN>", String::new()), ("<LOGGED>", String::new())]);
    for Row { method, path, body, names, texts } in table() {
        let mut text = body.to_string();
        let mut path = format!("/api/2.0{}", path.replace("{model_id}", "<LOGGED>").replace("{key}", "k"));
        for (word, id) in &ids {
            (text, path) = (text.replace(word, id), path.replace(word, id));
        }
        let body: Value = serde_json::from_str(&text).unwrap();
        let before = written(world).await;
        if !names.is_empty() || !texts.is_empty() {
            for (what, bytes) in [
                ("deep lists", deep.as_str()),
                ("deep objects", &deep_objects),
                ("a list of many", &many),
                ("no JSON", "{\"name\": "),
                ("no UTF-8", "{\"name\": \"\u{0}\"}"),
                ("a lone surrogate", "{\"name\": \"\\ud800\"}"),
                ("a list", "[1]"),
                ("a number", "1"),
            ] {
                refused(world, method, &path, bytes.as_bytes(), &format!("{method} {path}: {what}")).await;
            }
        }
        for field in names.iter().chain(texts).take(1) {
            let hostile = with(&body, field, json!("<HUGE>")).to_string().replace("<HUGE>", &huge);
            refused(world, method, &path, hostile.as_bytes(), &format!("{method} {path} with {field} of 10 MiB")).await;
            // Nobody listens to the end of what is too large, so the answer may be lost.
            if let Ok((status, _)) = send(world.mlflow, method, &path, &too_large).await {
                assert!((400..500).contains(&status), "{method} {path} with 17 MiB: {status}");
            }
        }
        for field in names.iter().chain(texts) {
            let what = |what: &str| format!("{method} {path} with {field} {what}");
            for (kind, value) in [
                ("long", json!(if field.ends_with("/schema") { "x".repeat(1 << 20) } else { long.clone() })),
                ("with NUL", json!("a\0b")),
                ("an object", json!({"a": {}})),
                ("a list of lists", json!([[[]]])),
            ] {
                let hostile = with(&body, field, value);
                refused(world, method, &path, hostile.to_string().as_bytes(), &what(kind)).await;
            }
            if method == "GET" {
                let path = format!("{path}?{}", query(&with(&body, field, json!("a\0b"))));
                refused(world, method, &path, b"", &what("with NUL in the query")).await;
            }
        }
        for field in names {
            for climbing in ["../../etc/passwd", "a/../../b", "..", "/etc/passwd"] {
                let hostile = with(&body, field, climbing.into());
                let what = format!("{method} {path} with {field} {climbing}");
                refused(world, method, &path, hostile.to_string().as_bytes(), &what).await;
                if method == "GET" {
                    refused(world, method, &format!("{path}?{}", query(&hostile)), b"", &what).await;
                }
            }
        }
        assert_eq!(written(world).await, before, "{method} {path} wrote nothing");
        let (status, answer) = world.rest(method, &path, body).await;
        // There is no file to send.
        assert!(status == 200 || path.ends_with("/artifacts/files"), "{method} {path}: {status} {answer}");
        let made = [
            ("<EXP>", &answer["experiment_id"]),
            ("<RUN>", &answer["run"]["info"]["run_id"]),
            ("<LOGGED>", &answer["model"]["info"]["model_id"]),
        ];
        for (word, id) in made.into_iter().filter_map(|(word, id)| Some((word, id.as_str()?))) {
            ids.insert(word, id.to_owned());
        }
    }
}

async fn paths_that_escape_are_refused_wherever_files_are(world: &World) {
    let post = async |path: &str, body: Value| world.rest("POST", &format!("/api/2.0/mlflow/{path}"), body).await.1;
    let run = post("runs/create", json!({"experiment_id": "0"})).await["run"]["info"]["run_id"].clone();
    let run = run.as_str().unwrap().to_owned();
    let model = post("logged-models", json!({"experiment_id": "0"})).await["model"]["info"]["model_id"].clone();
    let model = model.as_str().unwrap().to_owned();
    world.model("m").await;
    world.ready("m", &[("file", b"1")]).await;
    let path = format!("/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/kept");
    assert_eq!(send(world.mlflow, "PUT", &path, b"kept").await.unwrap().0, 200);
    let before = written(world).await;
    let long = "x".repeat(513);
    for escape in [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "a/%2e%2e/%2e%2e/b",
        "a%00b",
        "a%2f%2fb",
        "%2fetc%2fpasswd",
        "a%5c..%5cb",
        "a/%2e",
        "a%0ab",
        "%ff",
        long.as_str(),
    ] {
        for (method, path) in [
            ("PUT", format!("/api/2.0/mlflow-artifacts/artifacts/{escape}")),
            ("GET", format!("/api/2.0/mlflow-artifacts/artifacts/{escape}")),
            ("DELETE", format!("/api/2.0/mlflow-artifacts/artifacts/{escape}")),
            ("GET", format!("/api/2.0/mlflow-artifacts/artifacts?path={escape}")),
            ("POST", format!("/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path={escape}")),
            ("POST", format!("/ajax-api/2.0/mlflow/upload-artifact?run_uuid={escape}&path=a")),
            ("GET", format!("/get-artifact?run_uuid={run}&path={escape}")),
            ("GET", format!("/get-artifact?run_uuid={escape}&path=kept")),
            ("GET", format!("/model-versions/get-artifact?name=m&version=1&path={escape}")),
            ("GET", format!("/model-versions/get-artifact?name={escape}&version=1&path=file")),
            ("GET", format!("/model-versions/get-artifact?name=m&version={escape}&path=file")),
            ("GET", format!("/api/2.0/mlflow/artifacts/list?run_id={run}&path={escape}")),
            ("GET", format!("/api/2.0/mlflow/artifacts/list?run_id={escape}")),
            ("GET", format!("/api/2.0/mlflow/logged-models/{escape}")),
            ("DELETE", format!("/api/2.0/mlflow/logged-models/{escape}")),
            ("DELETE", format!("/api/2.0/mlflow/logged-models/{model}/tags/{escape}")),
            (
                "GET",
                format!(
                    "/ajax-api/2.0/mlflow/logged-models/{model}/artifacts/directories?artifact_directory_path={escape}"
                ),
            ),
            ("GET", format!("/ajax-api/2.0/mlflow/logged-models/{model}/artifacts/files?artifact_file_path={escape}")),
        ] {
            // An escape that is several parts of a path is another path; what is no UTF-8 in a query is read as U+FFFD.
            let is_in_query = path.contains('?');
            let means_something_else =
                if is_in_query { escape == "%ff" } else { escape.contains('/') && path.contains("/logged-models/") };
            if !means_something_else {
                refused(world, method, &path, b"x", &format!("{method} {path}")).await;
            }
        }
    }
    for path in ["versions/m/1/file", "versions/m/1/new", "versions/m", "versions/x/y/z"] {
        let path = format!("/api/2.0/mlflow-artifacts/artifacts/{path}");
        refused(world, "PUT", &path, b"x", &path).await;
        refused(world, "DELETE", &path, b"", &path).await;
    }
    for source in [
        "mlflow-artifacts:/../../etc",
        "mlflow-artifacts:/a/%2e%2e/b",
        "mlflow-artifacts:/a/%252e%252e/b",
        "file:///etc/passwd",
        "/etc/passwd",
        "s3://b/a/../../x",
        "http://host/a/..",
        "models:/m/../../x",
        "models:/m-none",
    ] {
        let body = json!({"name": "m", "source": source, "run_id": run});
        refused(world, "POST", "/api/2.0/mlflow/model-versions/create", body.to_string().as_bytes(), source).await;
    }
    assert_eq!(written(world).await, before);
}

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

on_both!(hostile_bodies_are_refused_on_every_route, paths_that_escape_are_refused_wherever_files_are);
