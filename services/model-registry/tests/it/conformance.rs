//! What the registry must do, on either database and either artifact store, as its callers see it.
//!
//! The cases are plain functions and the list of them is written once. Each goes through the wire, so conversions and
//! errors are part of what is tested.

use std::collections::{BTreeSet, HashMap};

use futures::StreamExt;
use tonic::Code;
use verdict_api::events::ModelEventType;
use verdict_api::registry::download_artifact_response::Part as Downloaded;
use verdict_api::registry::{
    CreateModelRequest, CreateVersionRequest, DeleteAliasRequest, DeleteModelRequest, DeleteTagRequest,
    DeleteVersionRequest, DownloadArtifactRequest, Feature, FeatureType, FinalizeVersionRequest, GetModelRequest,
    GetUploadRequest, GetUploadResponse, ListModelsRequest, ListVersionsRequest, ResolveModelRequest, SetTagRequest,
    Signature, Task, VersionStatus,
};

use crate::world::{World, artifact, parts, parts_from, reason, sha256, version_of};

macro_rules! conformance {
    ($world:expr; $($case:ident),+ $(,)?) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $case() {
            let world = $world.await;
            super::$case(&world).await;
            world.stop().await;
        }
    )+ };
    ($world:expr) => { conformance! { $world;
        what_was_said_of_a_version_is_kept,
        a_file_comes_back_byte_for_byte_from_any_offset,
        a_file_is_there_whole_or_not_at_all,
        an_upload_that_was_cut_goes_on_where_it_was,
        a_second_upload_replaces_the_file_of_a_pending_version,
        a_ready_version_is_immutable_but_for_its_tags,
        the_digest_is_that_of_the_files,
        numbers_are_never_used_again,
        lists_page_without_gaps,
        an_alias_moves_only_from_where_it_is_expected,
        of_many_movers_with_one_expectation_one_wins,
        what_an_alias_points_at_is_not_deleted,
        references_resolve_in_every_form,
        tags_are_set_and_removed,
        a_repeated_request_changes_nothing,
        every_change_has_its_event_in_order,
        a_damaged_file_is_found_out,
    } };
}

mod embedded {
    use super::World;
    conformance!(World::embedded());
}

mod live {
    use super::World;
    conformance!(World::production());
}

async fn what_was_said_of_a_version_is_kept(world: &World) {
    world.model("fraud").await;
    let input = |name: &str, kind: FeatureType, optional: bool, categories: &[&str]| Feature {
        name: name.to_owned(),
        r#type: kind.into(),
        optional,
        categories: categories.iter().map(ToString::to_string).collect(),
        description: format!("what {name} means, in words: ü, 漢, 🦀"),
    };
    let said = CreateVersionRequest {
        model: "fraud".to_owned(),
        description: "first\nsecond line".to_owned(),
        task: Task::TabularClassification.into(),
        signature: Some(Signature {
            inputs: vec![
                input("amount", FeatureType::Double, false, &[]),
                input("country", FeatureType::String, true, &["DE", "FR", "it's \"quoted\""]),
                input("night", FeatureType::Boolean, false, &[]),
                input("count", FeatureType::Long, true, &[]),
            ],
        }),
        parameters: HashMap::from([("max_length".to_owned(), "256".to_owned())]),
        tags: HashMap::from([("team".to_owned(), "risk".to_owned()), ("%_'".to_owned(), "; DROP".to_owned())]),
        ..Default::default()
    };
    let made = world.client.clone().create_version(said.clone()).await.unwrap().into_inner().version.unwrap();
    assert_eq!((made.version, made.status()), (1, VersionStatus::Pending));
    assert_eq!((&made.description, made.task, &made.signature), (&said.description, said.task, &said.signature));
    assert_eq!((&made.parameters, &made.tags), (&said.parameters, &said.tags));
    assert!(made.artifacts.is_empty() && made.digest.is_empty() && made.aliases.is_empty());
    assert!(made.create_time.unwrap().seconds > 1_700_000_000);
    assert_eq!(world.get("fraud", 1).await.unwrap(), made);
}

async fn a_file_comes_back_byte_for_byte_from_any_offset(world: &World) {
    world.model("m").await;
    // Larger than one part of an S3 upload, and no multiple of anything.
    let large: Vec<u8> = (0..19_000_003_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let version = world.ready("m", &[("large.bin", &large), ("a/b/empty", b""), ("größe.txt", b"x")]).await;
    let names: Vec<_> = version.artifacts.iter().map(|artifact| artifact.path.as_str()).collect();
    assert_eq!(names, ["a/b/empty", "größe.txt", "large.bin"]);

    let (header, bytes) = world.download(&version, "large.bin", 0).await.unwrap();
    assert_eq!(header, artifact("large.bin", &large));
    assert!(bytes == large);
    assert_eq!(world.download(&version, "a/b/empty", 0).await.unwrap().1, b"");
    let end = large.len() as i64;
    for offset in [1, 8 << 20, (8 << 20) + 1, end - 1, end] {
        let (header, bytes) = world.download(&version, "large.bin", offset).await.unwrap();
        assert_eq!(header.size, end);
        assert!(bytes == large[offset as usize..], "from {offset}");
    }
    for (offset, length) in [(0, 1), (5, 8 << 20), (end - 3, 3), (0, end), (7, 0)] {
        let request = DownloadArtifactRequest {
            model: "m".into(),
            version: version.version,
            path: "large.bin".into(),
            offset,
            length,
        };
        let mut parts = world.client.clone().download_artifact(request).await.unwrap().into_inner();
        let mut bytes = Vec::new();
        while let Some(message) = parts.message().await.unwrap() {
            if let Some(Downloaded::Chunk(chunk)) = message.part {
                assert_eq!(message.crc32c, Some(crc32c::crc32c(&chunk)));
                bytes.extend(chunk);
            }
        }
        let until = if length == 0 { end } else { offset + length };
        assert!(bytes == large[offset as usize..until as usize], "{length} from {offset}");
    }
    let too_long = DownloadArtifactRequest {
        model: "m".into(),
        version: version.version,
        path: "large.bin".into(),
        offset: 1,
        length: end,
    };
    assert_eq!(reason(world.client.clone().download_artifact(too_long).await), "OFFSET_PAST_END");
    let past = world.download(&version, "large.bin", end + 1).await.unwrap_err();
    assert_eq!(past.code(), Code::OutOfRange);
    assert_eq!(reason(world.download(&version, "large.bin", -1).await), "INVALID_OFFSET");
    assert_eq!(reason(world.download(&version, "absent", 0).await), "ARTIFACT_NOT_FOUND");
}

async fn a_file_is_there_whole_or_not_at_all(world: &World) {
    world.model("m").await;
    world.version("m").await;
    for size in [1000, 17 << 20] {
        let bytes = vec![7; size];
        let announced = artifact("weights", &bytes);
        let other = crate::world::sha256(b"something else");
        for (said, sent, wanted) in [
            (announced.clone(), &bytes[1..], "SIZE_MISMATCH"),
            (announced.clone(), &[&bytes[..], b"!"].concat()[..], "SIZE_MISMATCH"),
            (verdict_api::registry::Artifact { sha256: other, ..announced.clone() }, &bytes[..], "CHECKSUM_MISMATCH"),
        ] {
            let refused = world.send(parts("m", 1, said, sent)).await;
            assert_eq!(refused.as_ref().unwrap_err().code(), Code::DataLoss, "{refused:?}");
            assert_eq!(reason(refused), wanted);
            assert!(world.get("m", 1).await.unwrap().artifacts.is_empty());
        }
    }
    let pending = world.get("m", 1).await.unwrap();
    assert_eq!(reason(world.download(&pending, "weights", 0).await), "ARTIFACT_NOT_FOUND");
    assert_eq!(reason(world.finalize("m", 1).await), "VERSION_EMPTY");
}

async fn an_upload_that_was_cut_goes_on_where_it_was(world: &World) {
    world.model("m").await;
    world.version("m").await;
    let bytes: Vec<u8> = (0..9_000_001_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let file = artifact("weights", &bytes);
    let received = async || {
        let get = GetUploadRequest { model: "m".into(), version: 1, artifact: Some(file.clone()) };
        world.client.clone().get_upload(get).await.unwrap().into_inner()
    };
    assert_eq!(received().await, GetUploadResponse { received: 0, complete: false });

    // A chunk that arrives otherwise than it was sent is refused; those before it stay.
    let mut damaged = parts("m", 1, file.clone(), &bytes);
    damaged[4].crc32c = Some(0);
    let refused = world.send(damaged).await;
    assert_eq!(refused.as_ref().unwrap_err().code(), Code::DataLoss);
    assert_eq!(reason(refused), "CHUNK_MISMATCH");
    assert_eq!(received().await.received, 3 << 20);
    assert!(world.get("m", 1).await.unwrap().artifacts.is_empty());

    // A caller that hangs: whoever comes next takes over, from what has arrived by then.
    let mut first = parts_from(3 << 20, "m", 1, file.clone(), &bytes);
    first.truncate(3);
    let hanging = tokio::spawn({
        let mut client = world.client.clone();
        let body = futures::stream::iter(first).chain(futures::stream::pending());
        async move { client.upload_artifact(body).await }
    });
    while received().await.received < 5 << 20 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let elsewhere = parts_from(4 << 20, "m", 1, file.clone(), &bytes);
    assert_eq!(reason(world.send(elsewhere).await), "UPLOAD_OFFSET");
    assert_eq!(reason(hanging.await.unwrap()), "UPLOAD_TAKEN_OVER");
    world.send(parts_from(5 << 20, "m", 1, file.clone(), &bytes)).await.unwrap();
    assert_eq!(received().await, GetUploadResponse { received: 0, complete: true });
    let version = world.finalize("m", 1).await.unwrap();
    assert!(world.download(&version, "weights", 0).await.unwrap().1 == bytes);

    // What turns out not to be the file is thrown away: the next upload begins anew.
    world.version("m").await;
    let mut other = bytes.clone();
    other[7] ^= 1;
    assert_eq!(reason(world.send(parts("m", 2, file.clone(), &other)).await), "CHECKSUM_MISMATCH");
    let get = GetUploadRequest { model: "m".into(), version: 2, artifact: Some(file.clone()) };
    assert_eq!(world.client.clone().get_upload(get).await.unwrap().into_inner().received, 0);
    assert_eq!(reason(world.send(parts_from(1, "m", 2, file.clone(), &bytes)).await), "UPLOAD_OFFSET");
}

async fn a_second_upload_replaces_the_file_of_a_pending_version(world: &World) {
    world.model("m").await;
    let version = world.ready("m", &[("a", b"first"), ("a", b"second"), ("b", b"first")]).await;
    assert_eq!(version.artifacts, [artifact("a", b"second"), artifact("b", b"first")]);
    assert_eq!(world.download(&version, "a", 0).await.unwrap().1, b"second");
    assert_eq!(world.download(&version, "b", 0).await.unwrap().1, b"first");
}

async fn a_ready_version_is_immutable_but_for_its_tags(world: &World) {
    world.model("m").await;
    let ready = world.ready("m", &[("a", b"1")]).await;
    assert_eq!(ready.status(), VersionStatus::Ready);
    assert_eq!(reason(world.upload("m", 1, "a", b"2").await), "VERSION_IMMUTABLE");
    assert_eq!(reason(world.upload("m", 1, "b", b"2").await), "VERSION_IMMUTABLE");
    assert_eq!(reason(world.finalize("m", 1).await), "VERSION_IMMUTABLE");
    assert_eq!(world.get("m", 1).await.unwrap(), ready);
    let tag =
        SetTagRequest { model: "m".into(), version: Some(1), key: "k".into(), value: "v".into(), ..Default::default() };
    world.client.clone().set_tag(tag).await.unwrap();
    let tagged = world.get("m", 1).await.unwrap();
    assert_eq!(tagged.tags, HashMap::from([("k".to_owned(), "v".to_owned())]));
    assert_eq!(tagged.digest, ready.digest);
    assert_ne!(tagged.etag, ready.etag);
}

async fn the_digest_is_that_of_the_files(world: &World) {
    world.model("m").await;
    let one = world.ready("m", &[("b", b"bb"), ("a", b"a")]).await;
    let listed = format!("a\n1\n{}\nb\n2\n{}\n", sha256(b"a"), sha256(b"bb"));
    assert_eq!(one.digest, format!("sha256:{}", sha256(listed.as_bytes())));
    let same = world.ready("m", &[("a", b"a"), ("b", b"bb")]).await;
    assert_eq!(same.digest, one.digest);
    let other = world.ready("m", &[("a", b"a"), ("c", b"bb")]).await;
    assert_ne!(other.digest, one.digest);
}

async fn numbers_are_never_used_again(world: &World) {
    world.model("m").await;
    for number in 1..=3 {
        assert_eq!(world.version("m").await.version, number);
    }
    let delete = DeleteVersionRequest { model: "m".into(), version: 3, ..Default::default() };
    world.client.clone().delete_version(delete.clone()).await.unwrap();
    assert_eq!(reason(world.client.clone().delete_version(delete).await), "VERSION_NOT_FOUND");
    assert_eq!(world.version("m").await.version, 4);
    let request = GetModelRequest { name: "m".into() };
    let model = world.client.clone().get_model(request).await.unwrap().into_inner().model.unwrap();
    assert_eq!(model.latest_version, 4);
    let twice = CreateModelRequest { name: "m".into(), ..Default::default() };
    assert_eq!(reason(world.client.clone().create_model(twice).await), "MODEL_EXISTS");
    assert_eq!(reason(world.client.clone().create_version(version_of("absent")).await), "MODEL_NOT_FOUND");
}

async fn lists_page_without_gaps(world: &World) {
    let mut names: Vec<String> = (0..7).map(|n| format!("m{n}")).collect();
    for name in names.iter().rev() {
        world.model(name).await;
    }
    // Sorted by their bytes, whatever the language of the database.
    for name in ["A", "a.b", "a-b", "a_b"] {
        world.model(name).await;
        names.push(name.to_owned());
    }
    names.sort();
    for page_size in [1, 3, 11, 1000] {
        let (mut listed, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListModelsRequest { page_size, page_token };
            let page = world.client.clone().list_models(request).await.unwrap().into_inner();
            assert!(page.models.len() <= page_size as usize && !page.models.is_empty());
            listed.extend(page.models.into_iter().map(|model| model.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(listed, names, "in pages of {page_size}");
    }
    for _ in 0..5 {
        world.version("m3").await;
    }
    let request = ListVersionsRequest { model: "m3".into(), page_size: 3, page_token: String::new() };
    let first = world.client.clone().list_versions(request.clone()).await.unwrap().into_inner();
    let request = ListVersionsRequest { page_token: first.next_page_token, ..request };
    let second = world.client.clone().list_versions(request).await.unwrap().into_inner();
    let numbers = |versions: &[verdict_api::registry::Version]| Vec::from_iter(versions.iter().map(|v| v.version));
    assert_eq!((numbers(&first.versions), numbers(&second.versions)), (vec![5, 4, 3], vec![2, 1]));
    assert_eq!(second.next_page_token, "");
}

async fn an_alias_moves_only_from_where_it_is_expected(world: &World) {
    world.model("m").await;
    for _ in 0..2 {
        world.ready("m", &[("a", b"1")]).await;
    }
    assert_eq!(reason(world.point("m", "champion", 1, Some(2)).await), "ALIAS_CONFLICT");
    let model = world.point("m", "champion", 1, Some(0)).await.unwrap();
    assert_eq!(model.aliases, HashMap::from([("champion".to_owned(), 1)]));
    assert_eq!(reason(world.point("m", "champion", 2, Some(0)).await), "ALIAS_CONFLICT");
    assert_eq!(world.point("m", "champion", 2, Some(1)).await.unwrap().aliases["champion"], 2);
    assert_eq!(world.point("m", "champion", 1, None).await.unwrap().aliases["champion"], 1);
    assert_eq!(world.get("m", 1).await.unwrap().aliases, ["champion"]);
    assert!(world.get("m", 2).await.unwrap().aliases.is_empty());

    assert_eq!(reason(world.point("m", "champion", 9, None).await), "VERSION_NOT_FOUND");
    let pending = world.version("m").await.version;
    assert_eq!(reason(world.point("m", "champion", pending, None).await), "VERSION_PENDING");
    let remove = DeleteAliasRequest { model: "m".into(), alias: "champion".into(), ..Default::default() };
    let model = world.client.clone().delete_alias(remove.clone()).await.unwrap().into_inner().model.unwrap();
    assert!(model.aliases.is_empty());
    assert_eq!(reason(world.client.clone().delete_alias(remove).await), "ALIAS_NOT_FOUND");
}

async fn of_many_movers_with_one_expectation_one_wins(world: &World) {
    world.model("m").await;
    for _ in 0..8 {
        world.ready("m", &[("a", b"1")]).await;
    }
    world.point("m", "champion", 1, Some(0)).await.unwrap();
    let mut at = 1;
    for _ in 0..5 {
        let movers = (1..=8).filter(|to| *to != at).map(|to| world.point("m", "champion", to, Some(at)));
        let won: Vec<_> = futures::future::join_all(movers).await.into_iter().filter_map(Result::ok).collect();
        assert_eq!(won.len(), 1, "exactly one has moved it from {at}");
        at = won[0].aliases["champion"];
    }
}

async fn what_an_alias_points_at_is_not_deleted(world: &World) {
    world.model("m").await;
    world.ready("m", &[("a", b"1")]).await;
    world.point("m", "champion", 1, None).await.unwrap();
    let version = DeleteVersionRequest { model: "m".into(), version: 1, ..Default::default() };
    assert_eq!(reason(world.client.clone().delete_version(version).await), "VERSION_IN_USE");
    let model = DeleteModelRequest { name: "m".into(), force: false, ..Default::default() };
    assert_eq!(reason(world.client.clone().delete_model(model.clone()).await), "MODEL_IN_USE");
    let force = DeleteModelRequest { force: true, ..model };
    world.client.clone().delete_model(force.clone()).await.unwrap();
    assert_eq!(reason(world.get("m", 1).await), "MODEL_NOT_FOUND");
    assert_eq!(reason(world.client.clone().delete_model(force).await), "MODEL_NOT_FOUND");
    // Taken again, the name does not give an old number another meaning.
    world.model("m").await;
    assert_eq!(world.version("m").await.version, 2);
}

async fn references_resolve_in_every_form(world: &World) {
    world.model("m").await;
    let ready = world.ready("m", &[("a", b"1")]).await;
    world.point("m", "champion", 1, None).await.unwrap();
    for uri in ["models:/m@champion", "models:/m/1", "m@champion", "m/1"] {
        let request = ResolveModelRequest { uri: uri.to_owned() };
        let found = world.client.clone().resolve_model(request).await.unwrap().into_inner().version.unwrap();
        assert_eq!((found.version, &found.digest), (1, &ready.digest), "{uri}");
    }
    for (uri, wanted) in [
        ("models:/m@challenger", "ALIAS_NOT_FOUND"),
        ("models:/n@champion", "MODEL_NOT_FOUND"),
        ("models:/m/2", "VERSION_NOT_FOUND"),
        ("models:/m", "INVALID_URI"),
    ] {
        let request = ResolveModelRequest { uri: uri.to_owned() };
        assert_eq!(reason(world.client.clone().resolve_model(request).await), wanted, "{uri}");
    }
}

async fn tags_are_set_and_removed(world: &World) {
    world.model("m").await;
    world.version("m").await;
    for version in [None, Some(1)] {
        let set = |value: &str| SetTagRequest {
            model: "m".into(),
            version,
            key: "stage".into(),
            value: value.into(),
            ..Default::default()
        };
        world.client.clone().set_tag(set("a")).await.unwrap();
        world.client.clone().set_tag(set("b")).await.unwrap();
        let model = world.client.clone().get_model(GetModelRequest { name: "m".into() }).await.unwrap().into_inner();
        let tags = match version {
            Some(version) => world.get("m", version).await.unwrap().tags,
            None => model.model.unwrap().tags,
        };
        assert_eq!(tags, HashMap::from([("stage".to_owned(), "b".to_owned())]));
        let remove = DeleteTagRequest { model: "m".into(), version, key: "stage".into(), ..Default::default() };
        world.client.clone().delete_tag(remove.clone()).await.unwrap();
        assert_eq!(reason(world.client.clone().delete_tag(remove).await), "TAG_NOT_FOUND");
    }
    assert!(world.get("m", 1).await.unwrap().tags.is_empty());
}

async fn a_repeated_request_changes_nothing(world: &World) {
    let create = CreateModelRequest { name: "m".into(), request_id: "r1".into(), ..Default::default() };
    let first = world.client.clone().create_model(create.clone()).await.unwrap().into_inner();
    assert_eq!(world.client.clone().create_model(create).await.unwrap().into_inner(), first);

    let version = CreateVersionRequest { request_id: "r2".into(), ..version_of("m") };
    let together = (0..4).map(|_| async { world.client.clone().create_version(version.clone()).await });
    let together = futures::future::join_all(together).await;
    let made =
        BTreeSet::from_iter(together.into_iter().map(|made| made.unwrap().into_inner().version.unwrap().version));
    assert_eq!(made, BTreeSet::from([1]), "four calls at once under one id have one answer");
    let other = CreateVersionRequest { description: "other".into(), ..version };
    let refused = world.client.clone().create_version(other).await;
    assert_eq!(refused.as_ref().unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(reason(refused), "REQUEST_ID_REUSED");

    world.upload("m", 1, "a", b"1").await.unwrap();
    let finalize =
        FinalizeVersionRequest { model: "m".into(), version: 1, request_id: "r3".into(), ..Default::default() };
    let first = world.client.clone().finalize_version(finalize.clone()).await.unwrap().into_inner();
    assert_eq!(world.client.clone().finalize_version(finalize).await.unwrap().into_inner(), first);
}

async fn every_change_has_its_event_in_order(world: &World) {
    use ModelEventType as Type;
    world.model("m").await;
    let one = world.ready("m", &[("a", b"1")]).await;
    let two = world.ready("m", &[("a", b"2")]).await;
    world.point("m", "champion", 1, None).await.unwrap();
    world.point("m", "champion", 2, None).await.unwrap();
    world.point("m", "champion", 2, None).await.unwrap();
    let remove = DeleteAliasRequest { model: "m".into(), alias: "champion".into(), ..Default::default() };
    world.client.clone().delete_alias(remove).await.unwrap();
    let events = world.events().await;
    let told: Vec<_> = events
        .iter()
        .map(|e| (e.r#type(), e.version, e.alias.as_str(), e.previous_version, e.digest.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (Type::ModelCreated, 0, "", 0, ""),
            (Type::VersionCreated, 1, "", 0, ""),
            (Type::VersionUpdated, 1, "", 0, ""),
            (Type::VersionFinalized, 1, "", 0, &one.digest),
            (Type::VersionCreated, 2, "", 0, ""),
            (Type::VersionUpdated, 2, "", 0, ""),
            (Type::VersionFinalized, 2, "", 0, &two.digest),
            (Type::AliasSet, 1, "champion", 0, &one.digest),
            (Type::AliasSet, 2, "champion", 1, &two.digest),
            (Type::AliasDeleted, 0, "champion", 2, ""),
        ]
    );
    let sequences: Vec<_> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, Vec::from_iter(1..=10));
}

async fn a_damaged_file_is_found_out(world: &World) {
    world.model("m").await;
    let bytes = vec![42; 3 << 20];
    let version = world.ready("m", &[("weights", &bytes)]).await;
    let hash = sha256(&bytes);
    let mut flipped = bytes.clone();
    flipped[1 << 20] ^= 1;
    for damage in [Some(&flipped[..]), Some(&bytes[1..]), None] {
        world.damage(&hash, damage).await;
        let found = world.download(&version, "weights", 0).await;
        assert_eq!(found.as_ref().unwrap_err().code(), Code::DataLoss);
        assert_eq!(reason(found), "ARTIFACT_CORRUPTED");
    }
    // Sent again, by a new version, it is whole again.
    world.ready("m", &[("weights", &bytes)]).await;
    assert!(world.download(&version, "weights", 0).await.unwrap().1 == bytes);
}
