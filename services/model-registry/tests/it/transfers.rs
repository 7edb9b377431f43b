//! Files over MLflow's API: parts of them, and straight to and from the bucket.

use serde_json::{Value, json};
use url::Url;
use verdict_testkit::net::{Answer, exchange, send};

use crate::world::{World, sha256};

/// Reads a file, or the part of it that `range` asks for: status, `Content-Range`, bytes.
async fn read(world: &World, path: &str, range: &str) -> (u16, Option<String>, Vec<u8>) {
    let headers: &[(&str, &str)] = if range.is_empty() { &[] } else { &[("range", range)] };
    let path = format!("/api/2.0/mlflow-artifacts/artifacts/{path}");
    let Answer { status, mut headers, body } = exchange(world.mlflow, "GET", &path, headers, b"").await.unwrap();
    (status, headers.remove("content-range"), body)
}

async fn parts_of_a_file_are_served(world: World) {
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let path = "/api/2.0/mlflow-artifacts/artifacts/0/run/artifacts/weights.bin";
    assert_eq!(send(world.mlflow, "PUT", path, &bytes).await.unwrap().0, 200);
    let file = "0/run/artifacts/weights.bin";
    let (status, range, whole) = read(&world, file, "").await;
    assert_eq!((status, range), (200, None));
    assert!(whole == bytes);
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=1000000-1999999", 1_000_000, 2_000_000),
        ("bytes=-7", 2_999_993, 3_000_000),
        ("bytes=2999999-", 2_999_999, 3_000_000),
    ] {
        let (status, told, part) = read(&world, file, range).await;
        assert_eq!((status, told.as_deref()), (206, Some(&*format!("bytes {from}-{}/3000000", to - 1))), "{range}");
        assert!(part == bytes[from..to], "{range}");
    }
    let (status, told, _) = read(&world, file, "bytes=3000000-").await;
    assert_eq!((status, told.as_deref()), (416, Some("bytes */3000000")));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_serves_parts_and_sends_nobody_elsewhere() {
    let world = World::embedded().await;
    let begin = json!({"path": "/tmp/weights.bin", "num_parts": 2});
    let (status, answer) = world.rest("POST", "/api/2.0/mlflow-artifacts/mpu/create/0", begin).await;
    assert_eq!((status, &answer["error_code"]), (501, &json!("NOT_IMPLEMENTED")));
    // The clients compare the beginning of this sentence.
    let told = answer["message"].as_str().unwrap();
    assert!(told.starts_with("Multipart upload is not supported for the current artifact repository"), "{told}");
    assert_eq!(world.rest("GET", "/api/2.0/mlflow-artifacts/presigned/0/x", Value::Null).await.0, 501);
    parts_of_a_file_are_served(world).await;
}

mod live {
    use std::time::Duration;

    use model_registry::artifacts::ArtifactStore;
    use model_registry::artifacts::direct::Direct;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_bucket_serves_parts() {
        parts_of_a_file_are_served(World::production().await).await;
    }

    /// Puts or gets at a signed URL, as anybody who has it.
    async fn at(url: &str, method: &str, body: &[u8]) -> Answer {
        let url: Url = url.parse().unwrap();
        let address = url.socket_addrs(|| None).unwrap()[0];
        let path = format!("{}?{}", url.path(), url.query().unwrap());
        exchange(address, method, &path, &[], body).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_uploads_have_left_in_the_bucket_is_swept_when_it_is_old() {
        let world = World::production().await;
        let bucket = world.bucket().await;
        let begin = async || {
            let begin = json!({"path": "/home/ada/weights.bin", "num_parts": 1});
            world.rest("POST", "/api/2.0/mlflow-artifacts/mpu/create/0", begin).await.1
        };
        let (left, done) = (begin().await, begin().await);
        let mut parts = Vec::new();
        for begun in [&left, &done] {
            let put = at(begun["credentials"][0]["url"].as_str().unwrap(), "PUT", b"weights").await;
            parts.push(vec![(1, put.headers["etag"].clone())]);
        }
        let id = |begun: &Value| begun["upload_id"].as_str().unwrap().to_owned();
        // It has arrived, and nobody asks what it is for.
        let staged = bucket.complete(&id(&done), parts.pop().unwrap()).await.unwrap();
        bucket.sweep(Duration::from_secs(3600)).await.unwrap();
        bucket.adopt(&staged).await.unwrap();
        let staged = {
            let begun = begin().await;
            let put = at(begun["credentials"][0]["url"].as_str().unwrap(), "PUT", b"weights").await;
            bucket.complete(&id(&begun), vec![(1, put.headers["etag"].clone())]).await.unwrap()
        };
        // Times in a bucket are whole seconds.
        tokio::time::sleep(Duration::from_millis(2100)).await;
        bucket.sweep(Duration::from_secs(1)).await.unwrap();
        assert!(bucket.adopt(&staged).await.is_err());
        assert!(bucket.complete(&id(&left), parts.pop().unwrap()).await.is_err());
        world.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_goes_to_the_bucket_in_parts_and_is_known_by_its_content() {
        let world = World::production().await;
        let bytes: Vec<u8> = (0..6_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let begin = json!({"path": "/home/ada/weights.bin", "num_parts": 2});
        let path = "/api/2.0/mlflow-artifacts/mpu/create/0/run/artifacts";
        let (status, begun) = world.rest("POST", path, begin).await;
        assert_eq!(status, 200, "{begun}");
        let mut parts = Vec::new();
        for (credential, piece) in begun["credentials"].as_array().unwrap().iter().zip(bytes.chunks(5 << 20)) {
            let put = at(credential["url"].as_str().unwrap(), "PUT", piece).await;
            assert_eq!(put.status, 200, "{}", String::from_utf8_lossy(&put.body));
            let etag = &put.headers["etag"];
            parts.push(json!({"part_number": credential["part_number"], "etag": etag, "url": credential["url"]}));
        }
        assert_eq!(parts.len(), 2);
        let file = "0/run/artifacts/weights.bin";
        assert_eq!(read(&world, file, "").await.0, 404, "it is not there before it is whole");
        let path = "/api/2.0/mlflow-artifacts/mpu/complete/0/run/artifacts";
        let complete = json!({"path": "/home/ada/weights.bin", "upload_id": begun["upload_id"], "parts": parts});
        let (status, answer) = world.rest("POST", path, complete.clone()).await;
        assert_eq!(status, 200, "{answer}");
        assert!(read(&world, file, "").await.2 == bytes);
        assert_eq!(world.rest("POST", path, complete).await.0, 400, "an upload ends once");
        // Kept as any other file: damage is found out by its SHA-256.
        let path = format!("/api/2.0/mlflow-artifacts/presigned/{file}");
        let (status, signed) = world.rest("GET", &path, Value::Null).await;
        assert_eq!((status, &signed["file_size"]), (200, &json!(6_000_000)));
        let there = at(signed["url"].as_str().unwrap(), "GET", b"").await;
        assert_eq!(there.status, 200);
        assert!(there.body == bytes);
        world.damage(&sha256(&bytes), Some(&vec![0; bytes.len()])).await;
        let cut = send(world.mlflow, "GET", &format!("/api/2.0/mlflow-artifacts/artifacts/{file}"), b"").await;
        assert!(cut.is_err(), "a damaged file is not answered to its end");

        let abort = |id: &str| json!({"path": "x", "upload_id": id});
        let (_, begun) = world.rest("POST", "/api/2.0/mlflow-artifacts/mpu/create", json!({"path": "x"})).await;
        let id = begun["upload_id"].as_str().unwrap();
        assert_eq!(world.rest("POST", "/api/2.0/mlflow-artifacts/mpu/abort", abort(id)).await.0, 200);
        for nonsense in ["", "x", "../../secret.x", &id[1..]] {
            let (status, answer) = world.rest("POST", "/api/2.0/mlflow-artifacts/mpu/abort", abort(nonsense)).await;
            assert_eq!(status, 400, "{nonsense}: {answer}");
        }
        for (path, parts) in [("..", 1), ("a\u{0}", 1), ("x", 0), ("x", 10_001)] {
            let begin = json!({"path": path, "num_parts": parts});
            let (status, _) = world.rest("POST", "/api/2.0/mlflow-artifacts/mpu/create", begin).await;
            assert_eq!(status, 400, "{path} in {parts}");
        }
        let begin = json!({"path": "w", "num_parts": 1});
        assert_eq!(world.rest("POST", "/api/2.0/mlflow-artifacts/mpu/create/versions/m/1", begin).await.0, 400);
        world.stop().await;
    }
}
