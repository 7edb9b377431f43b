//! What is searched: a few of each, with texts that SQL, LIKE and the grammar have a meaning for.

use serde_json::{Value, json};

use crate::world::World;

pub(super) const KEYS: [&str; 6] = ["k", "a b", "a/b", "größe", "a.b", "x-1"];

pub(super) const TEXTS: [&str; 24] = [
    "a",
    "A",
    "",
    "ab",
    "aXb",
    "a%b",
    "a_b",
    "%",
    "_",
    "it's",
    "it''s",
    "say \"hi\"",
    "'both' \"quotes\"",
    "x'; DROP TABLE runs; --",
    "-- AND 1=1",
    "/* x */",
    "ü漢🦀",
    "\u{1}",
    "a\u{1}%",
    "C:\\dir\\file",
    "line\nbreak",
    "1",
    "a\0b",
    LONG,
];

/// 5000 characters.
const LONG: &str = {
    const BYTES: [u8; 5000] = [b'l'; 5000];
    match std::str::from_utf8(&BYTES) {
        Ok(text) => text,
        Err(_) => "",
    }
};

async fn post(world: &World, path: &str, body: Value) -> Value {
    let (status, answer) = world.rest("POST", &format!("/api/2.0/mlflow/{path}"), body).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

/// Texts that can be kept, all of them in turn.
fn kept(at: usize) -> &'static str {
    let kept: Vec<&str> = TEXTS.into_iter().filter(|text| !text.contains('\0')).collect();
    kept[at % kept.len()]
}

/// Keys and values, others for each `at`.
fn pairs(at: usize) -> Value {
    KEYS.iter()
        .enumerate()
        .filter(|(n, _)| (at + n) % 4 != 3)
        .map(|(n, key)| json!({"key": key, "value": kept(at * 5 + n)}))
        .collect()
}

/// Puts something of everything into an empty store.
pub(super) async fn fill(world: &World) {
    for at in 0..3 {
        post(world, "experiments/create", json!({"name": format!("e {at} it's 100%_"), "tags": pairs(at)})).await;
    }
    post(world, "experiments/create", json!({"name": "größe \"漢\"", "tags": pairs(7)})).await;
    let numbers =
        [json!("NaN"), json!(0.5), json!("Infinity"), json!(-1.0), json!(0.0), json!("-Infinity"), json!(50), json!(2)];
    let mut runs = Vec::new();
    for at in 0..14 {
        let experiment = (at % 4).to_string();
        let user = kept(at * 3);
        let user = if user.len() > 256 { "" } else { user };
        let start = json!({"experiment_id": experiment, "user_id": user, "start_time": at as i64 - 2,
            "run_name": kept(at * 7), "tags": pairs(at)});
        let run = post(world, "runs/create", start).await["run"]["info"]["run_id"].as_str().unwrap().to_owned();
        let metric = |(n, key): (usize, &&str)| json!({"key": key, "value": numbers[(at + n * 3) % numbers.len()], "timestamp": at, "step": 0});
        let metrics: Value = KEYS.iter().enumerate().filter(|(n, _)| (at + n) % 3 != 1).map(metric).collect();
        post(world, "runs/log-batch", json!({"run_id": run, "metrics": metrics, "params": pairs(at + 1)})).await;
        for n in 0..at % 3 {
            let name = [kept(at), "train"][n];
            let name = if name.is_empty() || name.len() > 500 { "d" } else { name };
            let context = json!([{"key": "mlflow.data.context", "value": if at % 4 == 1 { "50%" } else { "train" }}]);
            let tags = if n == 1 { json!([]) } else { context };
            let dataset = json!({"name": name, "digest": format!("d{at}"), "source_type": "s3", "source": "s3://b"});
            let input = json!([{"dataset": dataset, "tags": tags}]);
            post(world, "runs/log-inputs", json!({"run_id": run, "datasets": input})).await;
        }
        if at % 2 == 0 {
            post(world, "runs/update", json!({"run_id": run, "status": "FINISHED", "end_time": at})).await;
        }
        runs.push(run);
    }
    for at in 0..9 {
        let model = json!({"experiment_id": (at % 4).to_string(), "name": format!("m_{at} it-s"), "params": pairs(at),
            "tags": pairs(at + 2), "model_type": kept(at).get(..20).unwrap_or(kept(at)), "source_run_id": runs[at]});
        let id = post(world, "logged-models", model).await["model"]["info"]["model_id"].as_str().unwrap().to_owned();
        for (n, key) in KEYS.iter().enumerate().take(at % 3 + 1) {
            let value = &numbers[(at + n) % numbers.len()];
            let metric = json!({"run_id": runs[at], "key": key, "value": value, "timestamp": 1, "model_id": id,
                "dataset_name": "train", "dataset_digest": "d"});
            post(world, "runs/log-metric", metric).await;
        }
        if at % 3 == 0 {
            let path = format!("/api/2.0/mlflow/logged-models/{id}");
            assert_eq!(world.rest("PATCH", &path, json!({"status": "LOGGED_MODEL_READY"})).await.0, 200);
        }
    }
    let names = ["a", "A", "a_b", "aXb", "50%", "it's", "say \"hi\"", "-- x", "; DROP TABLE models", "ü漢🦀"];
    for (at, name) in names.into_iter().enumerate() {
        post(world, "registered-models/create", json!({"name": name, "tags": pairs(at)})).await;
        for n in 0..at % 4 {
            let version = json!({"name": name, "source": format!("s3://bucket/{at}%_{n}"), "run_id": runs[at],
                "tags": pairs(at + n)});
            post(world, "model-versions/create", version).await;
        }
    }
}
