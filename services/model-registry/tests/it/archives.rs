//! Versions that leave one registry as a file and arrive in another.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::json;
use tonic::Code;
use verdict_api::registry::archive_service_client::ArchiveServiceClient;
use verdict_api::registry::export_version_response::Part as Exported;
use verdict_api::registry::import_version_request::Part as Imported;
use verdict_api::registry::{
    CreateVersionRequest, ExportVersionHeader, ExportVersionRequest, GetModelRequest, ImportVersionHeader,
    ImportVersionRequest, ImportVersionResponse, ListModelsRequest, SetTagRequest, Version, VersionStatus,
};
use verdict_chassis::client::Channel;

use crate::crash::{files_below, start};
use crate::world::{Answer, PATIENCE, World, artifact, local, reason, version_of};

fn archives(channel: &Channel) -> ArchiveServiceClient<Channel> {
    ArchiveServiceClient::new(channel.clone())
}

async fn export(world: &World, model: &str, version: i64) -> Answer<(ExportVersionHeader, Vec<u8>)> {
    let request = ExportVersionRequest { model: model.to_owned(), version };
    let mut parts = archives(&world.channel).export_version(request).await?.into_inner();
    let Some(Exported::Header(header)) = parts.message().await?.unwrap().part else { panic!("no header") };
    let mut bytes = Vec::new();
    while let Some(message) = parts.message().await? {
        let Some(Exported::Chunk(chunk)) = message.part else { panic!("a second header") };
        assert!(chunk.len() <= 1 << 20);
        bytes.extend(chunk);
    }
    assert_eq!(header.size, bytes.len() as i64);
    Ok((header, bytes))
}

fn parts(header: ImportVersionHeader, bytes: &[u8]) -> Vec<ImportVersionRequest> {
    let chunks = bytes.chunks(100_000).map(|chunk| Imported::Chunk(chunk.to_vec()));
    let parts = std::iter::once(Imported::Header(header)).chain(chunks);
    parts.map(|part| ImportVersionRequest { part: Some(part) }).collect()
}

async fn import_with(world: &World, header: ImportVersionHeader, bytes: &[u8]) -> Answer<ImportVersionResponse> {
    let sent = archives(&world.channel).import_version(futures::stream::iter(parts(header, bytes))).await?;
    Ok(sent.into_inner())
}

async fn import(world: &World, bytes: &[u8]) -> Answer<ImportVersionResponse> {
    import_with(world, ImportVersionHeader::default(), bytes).await
}

fn large() -> Vec<u8> {
    (0..9_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A READY version with everything that travels.
async fn version(world: &World) -> Version {
    world.model("fraud").await;
    let pairs = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
    let request = CreateVersionRequest {
        description: "card fraud".into(),
        parameters: pairs("pooling", "cls"),
        tags: pairs("team", "cards"),
        ..version_of("fraud")
    };
    world.version("fraud").await;
    let number = world.client.clone().create_version(request).await.unwrap().into_inner().version.unwrap().version;
    for (path, bytes) in [("dir/config.json", &b"{}"[..]), ("model.bin", &large()), ("same.json", b"{}"), ("zero", b"")]
    {
        world.upload("fraud", number, path, bytes).await.unwrap();
    }
    world.finalize("fraud", number).await.unwrap()
}

async fn there_and_back(here: &World, there: &World) {
    let first = version(here).await;
    let (header, bytes) = export(here, "fraud", 2).await.unwrap();
    assert_eq!((header.model.as_str(), header.version, &header.digest), ("fraud", 2, &first.digest));
    assert!(export(here, "fraud", 2).await.unwrap().1 == bytes, "exported twice, the bytes are the same");

    there.model("fraud").await;
    let to = ImportVersionHeader { alias: "champion".into(), ..Default::default() };
    let arrived = import_with(there, to, &bytes).await.unwrap();
    assert_eq!((arrived.manifest_digest, arrived.added), (header.manifest_digest.clone(), true));
    let second = arrived.version.unwrap();
    assert_eq!((second.model.as_str(), second.version, second.status()), ("fraud", 1, VersionStatus::Ready));
    assert_eq!((&second.digest, &second.artifacts, &second.tags), (&first.digest, &first.artifacts, &first.tags));
    assert_eq!((&second.description, &second.parameters), (&first.description, &first.parameters));
    assert_eq!((second.task, &second.aliases[..]), (first.task, &["champion".to_owned()][..]));
    for artifact in &second.artifacts {
        let file = there.download(&second, &artifact.path, 0).await.unwrap();
        assert!(file == here.download(&first, &artifact.path, 0).await.unwrap());
    }

    // Under another name, and back where it came from: it stays the version it was when it was first registered.
    let renamed = ImportVersionHeader { model: "from the lab".into(), ..Default::default() };
    let renamed = import_with(there, renamed, &bytes).await.unwrap().version.unwrap();
    assert_eq!((renamed.model.as_str(), renamed.version), ("from the lab", 1));
    let rename = json!({"name": "from the lab", "new_name": "lab"});
    assert_eq!(there.rest("POST", "/api/2.0/mlflow/registered-models/rename", rename).await.0, 200);
    let (again, same) = export(there, "lab", 1).await.unwrap();
    assert_eq!(again.manifest_digest, header.manifest_digest);
    assert!(same == bytes, "every byte is as it was");
    let back = import(here, &same).await.unwrap();
    assert_eq!((back.version.unwrap().version, back.added), (2, false));
    assert_eq!(
        here.client
            .clone()
            .get_model(GetModelRequest { name: "fraud".into() })
            .await
            .unwrap()
            .into_inner()
            .model
            .unwrap()
            .latest_version,
        2
    );

    // What may change is in the manifest, so a changed tag is another manifest, of the same files.
    let set = SetTagRequest {
        model: "fraud".into(),
        version: Some(1),
        key: "team".into(),
        value: "risk".into(),
        ..Default::default()
    };
    there.client.clone().set_tag(set).await.unwrap();
    let (tagged, _) = export(there, "fraud", 1).await.unwrap();
    assert_ne!(tagged.manifest_digest, header.manifest_digest);
    assert_eq!(tagged.digest, first.digest);
}

async fn imports_are_idempotent(world: &World) {
    version(world).await;
    let (_, bytes) = export(world, "fraud", 2).await.unwrap();
    let header = |model: &str, request_id: &str| ImportVersionHeader {
        model: model.into(),
        request_id: request_id.into(),
        alias: "a".into(),
    };
    let first = import_with(world, header("m", "one"), &bytes).await.unwrap();
    assert_eq!((first.version.as_ref().unwrap().version, first.added), (1, true));
    let again = import_with(world, header("m", "one"), &bytes).await.unwrap();
    assert_eq!((again.version.as_ref().unwrap().version, again.added), (1, true), "the first answer");
    let other_id = import_with(world, header("m", "two"), &bytes).await.unwrap();
    assert_eq!((other_id.version.unwrap().version, other_id.added), (1, false));
    let other_call = import_with(world, header("other", "one"), &bytes).await;
    assert_eq!(reason(other_call), "REQUEST_ID_REUSED");
    let events = world.events().await;
    let of_m: Vec<_> =
        events.iter().filter(|event| event.model == "m").map(|event| event.r#type().as_str_name()).collect();
    let added = [
        "MODEL_EVENT_TYPE_MODEL_CREATED",
        "MODEL_EVENT_TYPE_VERSION_CREATED",
        "MODEL_EVENT_TYPE_VERSION_FINALIZED",
        "MODEL_EVENT_TYPE_ALIAS_SET",
    ];
    assert_eq!(of_m, added);
}

async fn only_ready_versions_with_files_leave(world: &World) {
    world.model("m").await;
    world.version("m").await;
    let refused = export(world, "m", 1).await;
    assert_eq!(refused.as_ref().unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(reason(refused), "VERSION_PENDING");
    assert_eq!(reason(export(world, "m", 2).await), "VERSION_NOT_FOUND");
    let create = json!({"name": "m", "source": "s3://elsewhere/model"});
    assert_eq!(world.rest("POST", "/api/2.0/mlflow/model-versions/create", create).await.0, 200);
    assert_eq!(reason(export(world, "m", 2).await), "VERSION_EMPTY");
}

async fn a_bad_archive_leaves_nothing(world: &World) {
    version(world).await;
    let (_, good) = export(world, "fraud", 2).await.unwrap();
    let to = |model: &str| ImportVersionHeader { model: model.into(), ..Default::default() };
    let damaged = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    // The last megabyte is of model.bin, the first kilobyte holds the layout.
    for (bytes, code, said) in [
        (damaged(good.len() - 1_000_000), Code::DataLoss, "CHECKSUM_MISMATCH"),
        (damaged(530), Code::InvalidArgument, "INVALID_ARCHIVE"),
        (damaged(100), Code::InvalidArgument, "INVALID_ARCHIVE"),
        (good[..good.len() / 2].to_vec(), Code::DataLoss, "ARCHIVE_CUT"),
        (good[..good.len() - 1024].to_vec(), Code::DataLoss, "ARCHIVE_CUT"),
        (Vec::new(), Code::DataLoss, "ARCHIVE_CUT"),
        (vec![b'x'; 2_000_000], Code::InvalidArgument, "INVALID_ARCHIVE"),
        ([good.clone(), good.clone()].concat(), Code::InvalidArgument, "INVALID_ARCHIVE"),
    ] {
        let refused = import_with(world, to("new"), &bytes).await;
        assert_eq!(refused.as_ref().unwrap_err().code(), code, "{refused:?}");
        assert_eq!(reason(refused), said);
    }
    let bad_names = [
        (ImportVersionHeader { model: "a/b".into(), ..Default::default() }, "INVALID_NAME"),
        (ImportVersionHeader { alias: "7".into(), ..Default::default() }, "INVALID_ALIAS"),
        (ImportVersionHeader { request_id: "x".repeat(129), ..Default::default() }, "INVALID_REQUEST_ID"),
    ];
    for (header, said) in bad_names {
        assert_eq!(reason(import_with(world, header, &good).await), said);
    }
    let chunk = ImportVersionRequest { part: Some(Imported::Chunk(vec![0])) };
    let headless = archives(&world.channel).import_version(futures::stream::iter([chunk])).await;
    assert_eq!(reason(headless), "INVALID_UPLOAD");
    let large = vec![0; (1 << 20) + 1];
    let mut sent = parts(ImportVersionHeader::default(), &[]);
    sent.push(ImportVersionRequest { part: Some(Imported::Chunk(large)) });
    assert_eq!(reason(archives(&world.channel).import_version(futures::stream::iter(sent)).await), "INVALID_UPLOAD");

    let models = world.client.clone().list_models(ListModelsRequest::default()).await.unwrap().into_inner().models;
    let names: Vec<_> = models.into_iter().map(|model| model.name).collect();
    assert_eq!(names, ["fraud"]);
    // Of the model, its two versions, four files, and one of them READY.
    assert_eq!(world.events().await.len(), 8, "nothing else has happened");
}

macro_rules! on {
    ($world:expr; $($case:ident),+ $(,)?) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $case() {
            let world = $world.await;
            super::$case(&world).await;
            world.stop().await;
        }
    )+ };
    ($world:expr) => { on! { $world;
        imports_are_idempotent,
        only_ready_versions_with_files_leave,
        a_bad_archive_leaves_nothing,
    } };
}

mod embedded {
    use super::World;
    on!(World::embedded());

    #[tokio::test(flavor = "multi_thread")]
    async fn a_version_goes_there_and_back() {
        let (here, there) = (World::embedded().await, World::embedded().await);
        super::there_and_back(&here, &there).await;
        here.stop().await;
        there.stop().await;
    }
}

mod live {
    use super::World;
    on!(World::production());

    #[tokio::test(flavor = "multi_thread")]
    async fn a_version_goes_from_a_laptop_into_production_and_back() {
        let (here, there) = (World::embedded().await, World::production().await);
        super::there_and_back(&here, &there).await;
        here.stop().await;
        there.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_version_goes_from_production_to_a_laptop_and_back() {
        let (here, there) = (World::production().await, World::embedded().await);
        super::there_and_back(&here, &there).await;
        here.stop().await;
        there.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_an_import_nothing_of_it_is_there() {
    let source = World::embedded().await;
    version(&source).await;
    let (_, bytes) = export(&source, "fraud", 2).await.unwrap();
    source.stop().await;

    let (data, listen) = (tempfile::tempdir().unwrap(), local());
    let (mut child, registry) = start(data.path(), listen).await;
    let channel = verdict_chassis::client::connect(&format!("http://{listen}")).unwrap();
    let mut first = parts(ImportVersionHeader::default(), &bytes);
    first.truncate(first.len() - 5);
    let call = tokio::spawn({
        let body = futures::stream::iter(first).chain(futures::stream::pending());
        let mut archives = archives(&channel);
        async move { archives.import_version(body).await }
    });
    let unfinished = data.path().join("artifacts/tmp");
    let until = Instant::now() + PATIENCE;
    let arrived =
        || std::fs::read_dir(&unfinished).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum::<u64>();
    while arrived() < 7 << 20 {
        assert!(Instant::now() < until, "only {} bytes arrived", arrived());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    child.kill();
    call.await.unwrap().unwrap_err();
    drop(registry);

    let (mut child, mut registry) = start(data.path(), listen).await;
    let models = registry.list_models(ListModelsRequest::default()).await.unwrap().into_inner().models;
    assert_eq!(models, []);
    assert_eq!(files_below(&unfinished), 0, "the half of a file is cleared away");
    let sent = futures::stream::iter(parts(ImportVersionHeader::default(), &bytes));
    let again = archives(&channel).import_version(sent).await.unwrap().into_inner();
    assert_eq!((again.version.unwrap().version, again.added), (1, true));
    assert!(child.terminate(PATIENCE).await.success());
}

fn run(arguments: &[&str], registry: &str, input: &[u8]) -> Output {
    use std::io::Write;
    let mut child = Command::new(env!("CARGO_BIN_EXE_model-registry"))
        .args(arguments)
        .env("REGISTRY_URL", registry)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Who refuses at once does not read it.
    drop(child.stdin.take().unwrap().write_all(input));
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> (bool, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_writes_and_reads_files_and_pipes() {
    let (here, there) = (World::embedded().await, World::embedded().await);
    version(&here).await;
    here.point("fraud", "champion", 2, None).await.unwrap();
    let digest = export(&here, "fraud", 2).await.unwrap().0.manifest_digest;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fraud.tar");
    let path = file.to_str().unwrap();
    for reference in ["fraud@champion", "fraud/2", "fraud"] {
        let exported = run(&["export", "--model", reference, "--to", path], here.channel.url(), b"");
        assert_eq!(said(&exported), (true, format!("fraud/2 {digest}\n"), String::new()), "{reference}");
    }
    let piped = run(&["export", "--model", "fraud", "--to", "-"], here.channel.url(), b"");
    assert_eq!(said(&piped).2, format!("fraud/2 {digest}\n"));
    assert!(piped.stdout == std::fs::read(&file).unwrap());

    let imported = run(&["import", path, "--alias", "challenger"], there.channel.url(), b"");
    assert_eq!(said(&imported), (true, format!("fraud/1 {digest}\n"), String::new()));
    assert_eq!(there.get("fraud", 1).await.unwrap().aliases, ["challenger"]);
    let again = run(&["import", "-", "--model", "fraud"], there.channel.url(), &piped.stdout);
    assert_eq!(said(&again), (true, format!("fraud/1 {digest} (was there already)\n"), String::new()));
    assert_eq!(there.get("fraud", 1).await.unwrap().artifacts[3], artifact("zero", b""));

    let absent = run(&["import", "absent.tar"], there.channel.url(), b"");
    assert!(!said(&absent).0 && said(&absent).2.contains("cannot read absent.tar"), "{absent:?}");
    let wrong = run(&["import", "-"], there.channel.url(), b"PK\x03\x04");
    assert!(!said(&wrong).0 && said(&wrong).2.contains("the archive ends in the middle"), "{wrong:?}");
    let gone = dir.path().join("gone.tar");
    let none = run(&["export", "--model", "fraud@nobody", "--to", gone.to_str().unwrap()], here.channel.url(), b"");
    assert!(!said(&none).0 && said(&none).2.contains("fraud@nobody"), "{none:?}");
    assert!(!Path::exists(&gone), "no file where there is no version");
    here.stop().await;
    there.stop().await;
}
