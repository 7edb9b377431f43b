//! Files by path: gRPC and MLflow's REST API are two doors to the same ones.

use futures::stream;
use serde_json::{Value, json};
use verdict_api::registry as api;
use verdict_api::registry::download_file_response::Part as Downloaded;
use verdict_api::registry::file_place::Of;
use verdict_api::registry::file_service_client::FileServiceClient;
use verdict_api::registry::upload_file_request::Part;
use verdict_api::registry::{
    DeleteFilesRequest, DownloadFileRequest, FilePlace, ListFilesRequest, StoredFile, UploadFileHeader,
    UploadFileRequest,
};
use verdict_chassis::client::Channel;
use verdict_testkit::net::send;

use crate::world::{Answer, World, reason, sha256};

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
    what_one_door_writes_the_other_reads,
    what_is_not_what_was_announced_is_not_kept,
    bad_places_and_paths_are_refused
);

fn files(world: &World) -> FileServiceClient<Channel> {
    FileServiceClient::new(world.channel.clone())
}

fn place(of: Of) -> Option<FilePlace> {
    Some(FilePlace { of: Some(of) })
}

fn header(of: Of, path: &str) -> UploadFileHeader {
    UploadFileHeader { place: place(of), path: path.to_owned(), size: None, sha256: String::new() }
}

async fn put(world: &World, header: UploadFileHeader, bytes: &[u8]) -> Answer<StoredFile> {
    let first = UploadFileRequest { part: Some(Part::Header(header)), crc32c: None };
    let chunk = |chunk: &[u8]| {
        let crc32c = Some(crc32c::crc32c(chunk));
        UploadFileRequest { part: Some(Part::Chunk(chunk.to_vec())), crc32c }
    };
    let parts: Vec<_> = std::iter::once(first).chain(bytes.chunks(1 << 20).map(chunk)).collect();
    Ok(files(world).upload_file(stream::iter(parts)).await?.into_inner().file.unwrap())
}

async fn get(world: &World, of: Of, path: &str, offset: i64, length: i64) -> Answer<(StoredFile, Vec<u8>)> {
    let request = DownloadFileRequest { place: place(of), path: path.to_owned(), offset, length };
    let mut parts = files(world).download_file(request).await?.into_inner();
    let Some(Downloaded::Header(header)) = parts.message().await?.unwrap().part else { panic!("no header") };
    let mut bytes = Vec::new();
    while let Some(message) = parts.message().await? {
        let Some(Downloaded::Chunk(chunk)) = message.part else { panic!("a second header") };
        assert_eq!(message.crc32c, Some(crc32c::crc32c(&chunk)));
        bytes.extend(chunk);
    }
    Ok((header, bytes))
}

async fn list(world: &World, of: Of, path: &str, page_size: i32) -> Answer<Vec<StoredFile>> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListFilesRequest { place: place(of.clone()), path: path.to_owned(), page_size, page_token };
        let page = files(world).list_files(request).await?.into_inner();
        assert!(page_size == 0 || page.files.len() <= page_size as usize);
        all.extend(page.files);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

async fn delete(world: &World, of: Of, path: &str) -> Answer<i64> {
    let request = DeleteFilesRequest { place: place(of), path: path.to_owned() };
    Ok(files(world).delete_files(request).await?.into_inner().deleted_count)
}

async fn post(world: &World, path: &str, body: Value) -> Value {
    let (status, answer) = world.rest("POST", &format!("/api/2.0/mlflow/{path}"), body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

async fn run(world: &World) -> String {
    let run = post(world, "runs/create", json!({"experiment_id": "0", "start_time": 1})).await;
    run["run"]["info"]["run_id"].as_str().unwrap().to_owned()
}

async fn logged_model(world: &World) -> String {
    let model = post(world, "logged-models", json!({"experiment_id": "0", "name": "m"})).await;
    model["model"]["info"]["model_id"].as_str().unwrap().to_owned()
}

fn proxy(path: &str) -> String {
    format!("/api/2.0/mlflow-artifacts/artifacts/{path}")
}

async fn what_one_door_writes_the_other_reads(world: World) {
    let run_id = run(&world).await;
    let run = || Of::RunId(run_id.clone());
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let announced = UploadFileHeader {
        size: Some(bytes.len() as i64),
        sha256: sha256(&bytes),
        ..header(run(), "model/weights.bin")
    };
    let kept = put(&world, announced, &bytes).await.unwrap();
    assert_eq!((&*kept.path, kept.size, &*kept.sha256), ("model/weights.bin", 3_000_000, &*sha256(&bytes)));
    let by_rest = proxy(&format!("0/{run_id}/artifacts/model/weights.bin"));
    let (status, read) = send(world.mlflow, "GET", &by_rest, b"").await.unwrap();
    assert!(status == 200 && read == bytes);

    let by_rest = proxy(&format!("0/{run_id}/artifacts/model/MLmodel"));
    assert_eq!(send(world.mlflow, "PUT", &by_rest, b"flavors: {}").await.unwrap().0, 200);
    put(&world, header(run(), "notes.txt"), b"").await.unwrap();
    let (told, read) = get(&world, run(), "model/MLmodel", 0, 0).await.unwrap();
    assert_eq!((told.size, &*told.sha256, &*read), (11, &*sha256(b"flavors: {}"), &b"flavors: {}"[..]));
    for (offset, length, from, to) in [(0, 0, 0, 3_000_000), (5, 10, 5, 15), (2_999_999, 0, 2_999_999, 3_000_000)] {
        let (told, read) = get(&world, run(), "model/weights.bin", offset, length).await.unwrap();
        assert!(told == kept && read == bytes[from..to], "{offset}, {length}");
    }
    let beyond = get(&world, run(), "model/weights.bin", 2_999_999, 2).await;
    assert_eq!(reason(beyond), "OFFSET_PAST_END");

    let rest = async |path: &str| {
        let path = format!("/api/2.0/mlflow/artifacts/list?run_id={run_id}&path={path}");
        let (_, answer) = world.rest("GET", &path, Value::Null).await;
        let entry = |file: &Value| {
            let is_directory = file["is_dir"].as_bool().unwrap();
            (file["path"].as_str().unwrap().to_owned(), is_directory, file["file_size"].as_i64().unwrap_or(0))
        };
        answer["files"].as_array().unwrap().iter().map(entry).collect::<Vec<_>>()
    };
    for directory in ["", "model"] {
        for page_size in [0, 1] {
            let found = list(&world, run(), directory, page_size).await.unwrap();
            let found: Vec<_> = found.into_iter().map(|file| (file.path, file.is_directory, file.size)).collect();
            assert!(found.len() == 2 && found == rest(directory).await, "{found:?}");
        }
    }

    // A version is registered from them, and can be read below `versions/`.
    world.model("m").await;
    let source = format!("mlflow-artifacts:/0/{run_id}/artifacts/model");
    let register = api::RegisterVersionRequest { model: "m".into(), source, ..Default::default() };
    world.client.clone().register_version(register).await.unwrap();
    assert_eq!(delete(&world, run(), "model").await.unwrap(), 2);
    assert_eq!(delete(&world, run(), "model").await.unwrap(), 0);
    assert_eq!(rest("").await, [("notes.txt".to_owned(), false, 0)]);
    let everywhere = || Of::Uri("mlflow-artifacts:/".into());
    assert!(get(&world, everywhere(), "versions/m/1/weights.bin", 0, 0).await.unwrap().1 == bytes);
    assert_eq!(list(&world, Of::Uri("mlflow-artifacts:/versions/m/1".into()), "", 0).await.unwrap().len(), 2);
    assert_eq!(list(&world, everywhere(), "", 0).await.unwrap()[0].path, "0");

    let logged_id = logged_model(&world).await;
    let logged = || Of::LoggedModelId(logged_id.clone());
    put(&world, header(logged(), "MLmodel"), b"of a logged model").await.unwrap();
    let (_, listed) = world
        .rest("GET", &format!("/api/2.0/mlflow/logged-models/{logged_id}/artifacts/directories"), Value::Null)
        .await;
    assert_eq!(listed["files"], json!([{"path": "MLmodel", "is_dir": false, "file_size": 17}]));
    assert_eq!(get(&world, logged(), "MLmodel", 3, 1).await.unwrap().1, b"a");
    world.stop().await;
}

async fn what_is_not_what_was_announced_is_not_kept(world: World) {
    let run_id = run(&world).await;
    let to = |size: Option<i64>, sha256: String| UploadFileHeader {
        size,
        sha256,
        ..header(Of::RunId(run_id.clone()), "model/weights.bin")
    };
    for (size, digest, wanted) in [
        (Some(2), String::new(), "SIZE_MISMATCH"),
        (Some(4), String::new(), "SIZE_MISMATCH"),
        (Some(3), sha256(b"others"), "CHECKSUM_MISMATCH"),
        (None, sha256(b"others"), "CHECKSUM_MISMATCH"),
        (Some(-1), String::new(), "INVALID_SIZE"),
        (Some(i64::MAX), String::new(), "INVALID_SIZE"),
        (None, "A".repeat(64), "INVALID_SHA256"),
    ] {
        assert_eq!(reason(put(&world, to(size, digest.clone()), b"abc").await), wanted, "{size:?} {digest}");
    }
    let first = UploadFileRequest { part: Some(Part::Header(to(None, String::new()))), crc32c: None };
    let chunk = |bytes: Vec<u8>, crc32c| UploadFileRequest { part: Some(Part::Chunk(bytes)), crc32c };
    for (parts, wanted) in [
        (vec![], "INVALID_UPLOAD"),
        (vec![chunk(b"abc".to_vec(), None)], "INVALID_UPLOAD"),
        (vec![first.clone(), first.clone()], "INVALID_UPLOAD"),
        (vec![first.clone(), chunk(vec![0; (1 << 20) + 1], None)], "INVALID_UPLOAD"),
        (vec![first.clone(), chunk(b"abc".to_vec(), Some(1))], "CHUNK_MISMATCH"),
    ] {
        assert_eq!(reason(files(&world).upload_file(stream::iter(parts)).await), wanted);
    }
    assert_eq!(list(&world, Of::RunId(run_id.clone()), "", 0).await.unwrap(), []);
    assert_eq!(reason(get(&world, Of::RunId(run_id), "model/weights.bin", 0, 0).await), "FILE_NOT_FOUND");
    world.stop().await;
}

async fn bad_places_and_paths_are_refused(world: World) {
    let run_id = run(&world).await;
    world.model("m").await;
    world.ready("m", &[("a", b"1")]).await;
    let elsewhere = json!({"name": "elsewhere", "artifact_location": "s3://bucket/there"});
    let experiment = post(&world, "experiments/create", elsewhere).await;
    let there = post(&world, "runs/create", json!({"experiment_id": experiment["experiment_id"]})).await;
    let there = there["run"]["info"]["run_id"].as_str().unwrap().to_owned();
    let all = || Of::Uri("mlflow-artifacts:/".into());
    for (of, path, wanted) in [
        (Of::RunId("f".repeat(32)), "a", "RUN_NOT_FOUND"),
        (Of::LoggedModelId("m-1".into()), "a", "LOGGED_MODEL_NOT_FOUND"),
        (Of::Uri("s3://bucket".into()), "a", "INVALID_PLACE"),
        (Of::Uri(String::new()), "a", "INVALID_PLACE"),
        (Of::RunId(there), "a", "FILES_ELSEWHERE"),
        (Of::RunId(run_id.clone()), "../x", "INVALID_PATH"),
        (Of::RunId(run_id.clone()), "/a", "INVALID_PATH"),
        (Of::RunId(run_id.clone()), &"x".repeat(513), "INVALID_PATH"),
        (Of::Uri("mlflow-artifacts:/0/..".into()), "a", "INVALID_PATH"),
        (Of::Uri(format!("mlflow-artifacts:/{}", "x".repeat(512))), "a", "INVALID_PATH"),
    ] {
        assert_eq!(reason(put(&world, header(of.clone(), path), b"1").await), wanted, "{of:?} {path}");
        assert_eq!(reason(get(&world, of.clone(), path, 0, 0).await), wanted, "{of:?} {path}");
        assert_eq!(reason(list(&world, of.clone(), path, 0).await), wanted, "{of:?} {path}");
        assert_eq!(reason(delete(&world, of.clone(), path).await), wanted, "{of:?} {path}");
    }
    // All of a place at once is not deleted, nor is anything put there.
    assert_eq!(reason(put(&world, header(all(), ""), b"1").await), "INVALID_PATH");
    assert_eq!(reason(delete(&world, all(), "").await), "INVALID_PATH");
    for path in ["versions", "versions/m/1/a", "versions/m/1/b"] {
        assert_eq!(reason(put(&world, header(all(), path), b"2").await), "INVALID_PARAMETER_VALUE", "{path}");
        assert_eq!(reason(delete(&world, all(), path).await), "INVALID_PARAMETER_VALUE", "{path}");
    }
    assert_eq!(get(&world, all(), "versions/m/1/a", 0, 0).await.unwrap().1, b"1");
    assert_eq!(reason(get(&world, all(), "versions/m/1/b", 0, 0).await), "ARTIFACT_NOT_FOUND");
    assert_eq!(reason(get(&world, all(), "versions/m/2/a", 0, 0).await), "VERSION_NOT_FOUND");
    assert_eq!(reason(get(&world, all(), "versions/m/1/a", -1, 0).await), "INVALID_OFFSET");
    assert_eq!(reason(list(&world, all(), "", 1001).await), "INVALID_PAGE_SIZE");
    let token = ListFilesRequest { place: place(all()), page_token: "zz".into(), ..Default::default() };
    assert_eq!(reason(files(&world).list_files(token).await), "INVALID_PAGE_TOKEN");
    assert_eq!(reason(files(&world).list_files(ListFilesRequest::default()).await), "INVALID_PLACE");
    world.stop().await;
}
