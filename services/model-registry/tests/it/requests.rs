//! Wrong requests: each is refused with its own reason, names the field, and changes nothing.

use std::collections::HashMap;

use tonic::{Code, Status};
use verdict_api::registry::upload_artifact_request::Part;
use verdict_api::registry::{
    Artifact, CreateModelRequest, CreateVersionRequest, Feature, FeatureType, ListModelsRequest, SetAliasRequest,
    SetTagRequest, Signature, UploadArtifactRequest,
};
use verdict_chassis::status;

use crate::world::{Answer, World, artifact, parts, version_of};

/// Code, reason and fields of a refusal.
fn told<T: std::fmt::Debug>(answer: Answer<T>) -> (Code, String, Vec<String>) {
    let refused: Status = answer.unwrap_err();
    let fields = status::fields(&refused).into_iter().map(|field| field.field).collect();
    (refused.code(), status::reason(&refused).unwrap_or_default(), fields)
}

fn invalid(reason: &str, field: &str) -> (Code, String, Vec<String>) {
    (Code::InvalidArgument, reason.to_owned(), vec![field.to_owned()])
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_checked() {
    let world = World::embedded().await;
    for name in ["", "../../etc", "a/b", " a", "..", "a:b", "a\0", &"x".repeat(256), "a@b"] {
        let create = CreateModelRequest { name: name.to_owned(), ..Default::default() };
        assert_eq!(told(world.client.clone().create_model(create).await), invalid("INVALID_NAME", "name"), "{name:?}");
    }
    world.model("m").await;
    world.ready("m", &[("a", b"1")]).await;
    for alias in ["", "7", "latest", "a/b", "a b"] {
        let set = SetAliasRequest { model: "m".into(), alias: alias.into(), version: 1, ..Default::default() };
        assert_eq!(told(world.client.clone().set_alias(set).await), invalid("INVALID_ALIAS", "alias"), "{alias:?}");
    }
    assert_eq!(world.events().await.len(), 4, "nothing of it was written");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_pages_and_ids_have_limits() {
    let world = World::embedded().await;
    world.model("m").await;
    let create = |edit: fn(&mut CreateVersionRequest)| {
        let mut request = version_of("m");
        edit(&mut request);
        let mut client = world.client.clone();
        async move { told(client.create_version(request).await) }
    };
    assert_eq!(create(|r| r.task = 0).await, invalid("INVALID_TASK", "task"));
    assert_eq!(create(|r| r.task = 99).await, invalid("INVALID_TASK", "task"));
    assert_eq!(create(|r| r.description = "x".repeat(10_001)).await, invalid("INVALID_TEXT", "description"));
    assert_eq!(create(|r| r.description = "a\0b".into()).await, invalid("INVALID_TEXT", "description"));
    let tags = |key: &str, value: String| HashMap::from([(key.to_owned(), value)]);
    let mut long = version_of("m");
    long.tags = tags("k", "v".repeat(5_001));
    assert_eq!(told(world.client.clone().create_version(long).await), invalid("INVALID_TEXT", "tags[k]"));
    let mut unnamed = version_of("m");
    unnamed.parameters = tags("", "v".into());
    assert_eq!(told(world.client.clone().create_version(unnamed).await), invalid("INVALID_KEY", "parameters key"));
    assert_eq!(create(|r| r.request_id = "x".repeat(129)).await, invalid("INVALID_REQUEST_ID", "request_id"));
    let twice = |name: &str| Feature { name: name.into(), r#type: FeatureType::Long.into(), ..Default::default() };
    let mut doubled = version_of("m");
    doubled.signature = Some(Signature { inputs: vec![twice("age"), twice("age")] });
    let told_of = told(world.client.clone().create_version(doubled).await);
    assert_eq!(told_of, invalid("INVALID_SIGNATURE", "signature.inputs[1].name"));
    let mut untyped = version_of("m");
    untyped.signature = Some(Signature { inputs: vec![Feature { name: "age".into(), ..Default::default() }] });
    let told_of = told(world.client.clone().create_version(untyped).await);
    assert_eq!(told_of, invalid("INVALID_SIGNATURE", "signature.inputs[0].type"));

    for page_size in [-1, 1001] {
        let list = ListModelsRequest { page_size, page_token: String::new() };
        assert_eq!(told(world.client.clone().list_models(list).await), invalid("INVALID_PAGE_SIZE", "page_size"));
    }
    let list = ListModelsRequest { page_size: 0, page_token: "nonsense".into() };
    assert_eq!(told(world.client.clone().list_models(list).await), invalid("INVALID_PAGE_TOKEN", "page_token"));
    assert_eq!(told(world.get("m", 0).await), invalid("INVALID_VERSION", "version"));
    assert_eq!(world.events().await.len(), 1, "nothing of it was written");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_checked_before_their_bytes_are_kept() {
    let world = World::embedded().await;
    world.model("m").await;
    world.version("m").await;
    for path in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a\\b", "a\0", &"x".repeat(513)] {
        let sent = world.upload("m", 1, path, b"1").await;
        assert_eq!(told(sent), invalid("INVALID_PATH", "header.artifact.path"), "{path:?}");
    }
    for sha256 in ["", "abc", &"A".repeat(64), &"g".repeat(64)] {
        let said = Artifact { sha256: sha256.to_owned(), ..artifact("a", b"1") };
        let sent = world.send(parts("m", 1, said, b"1")).await;
        assert_eq!(told(sent), invalid("INVALID_SHA256", "header.artifact.sha256"), "{sha256:?}");
    }
    for size in [-1, i64::MAX] {
        let said = Artifact { size, ..artifact("a", b"1") };
        let sent = world.send(parts("m", 1, said, b"1")).await;
        assert_eq!(told(sent), invalid("INVALID_SIZE", "header.artifact.size"), "{size}");
    }
    let chunk = |bytes: Vec<u8>| UploadArtifactRequest { part: Some(Part::Chunk(bytes)), crc32c: None };
    assert_eq!(told(world.send(vec![]).await), invalid("INVALID_UPLOAD", "header"));
    assert_eq!(told(world.send(vec![chunk(vec![1])]).await), invalid("INVALID_UPLOAD", "header"));
    let header = parts("m", 1, artifact("a", b"1"), b"");
    let twice = [header.clone(), header.clone()].concat();
    assert_eq!(told(world.send(twice).await), invalid("INVALID_UPLOAD", "chunk"));
    let large = vec![0; (1 << 20) + 1];
    let mut at_once = parts("m", 1, artifact("a", &large), b"");
    at_once.push(chunk(large));
    assert_eq!(told(world.send(at_once).await), invalid("INVALID_UPLOAD", "chunk"));

    world.upload("m", 1, "dir/file", b"1").await.unwrap();
    for path in ["dir", "dir/file/below"] {
        let sent = world.upload("m", 1, path, b"1").await;
        assert_eq!(told(sent), invalid("INVALID_PATH", "header.artifact.path"), "{path:?}");
    }
    assert_eq!(world.get("m", 1).await.unwrap().artifacts, [artifact("dir/file", b"1")]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_has_a_limit() {
    let world = World::embedded().await;
    world.model("m").await;
    let set = SetTagRequest {
        model: "m".into(),
        version: None,
        key: "k".into(),
        value: "x".repeat(65 << 20),
        ..Default::default()
    };
    let refused = world.client.clone().max_encoding_message_size(usize::MAX).set_tag(set).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    world.stop().await;
}
