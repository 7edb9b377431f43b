//! Puts a directory into a registry: the client side of upload, finalize and alias.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};
use verdict_api::registry::model_registry_service_client::ModelRegistryServiceClient;
use verdict_api::registry::upload_artifact_request::Part;
use verdict_api::registry::{
    Artifact, CreateModelRequest, CreateVersionRequest, FinalizeVersionRequest, GetUploadRequest, ListVersionsRequest,
    SetAliasRequest, Signature, Task, UploadArtifactHeader, UploadArtifactRequest, Version, VersionStatus,
};
use verdict_chassis::client::Channel;
use verdict_chassis::status;

use crate::error::Error;
use crate::model;
use crate::names::{ArtifactPath, Sha256Hex};

/// Bytes read and sent at once.
const CHUNK: usize = 256 << 10;
/// Largest answer taken: a page of versions with all their files.
const MAX_ANSWER: usize = 64 << 20;
/// How often one upload may be cut before it is given up, and how much longer to wait after each.
const MAX_CUTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

type Client = ModelRegistryServiceClient<Channel>;

/// What to publish.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Registered where missing.
    pub model: String,
    /// Of the version; and of the model, where it is registered now.
    pub description: String,
    pub task: Task,
    pub signature: Option<Signature>,
    pub parameters: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    /// Every file below it becomes part of the version, named by its relative path.
    pub dir: PathBuf,
    /// Pointed at the version in the end.
    pub alias: Option<String>,
    /// Makes each step idempotent; at most 100 bytes.
    pub request_id: Option<String>,
}

/// Publishes `publication`, calling `progress(path, bytes sent, bytes of the file)` on the way.
///
/// A READY version with the same files, task, signature and parameters is used again (the newest of them), so publishing
/// twice changes nothing. Files are hashed before they are sent, and the registry checks them.
pub async fn publish(
    channel: Channel,
    publication: Publication,
    progress: impl Fn(&str, u64, u64),
) -> Result<Version, Status> {
    let mut client = ModelRegistryServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let dir = publication.dir.clone();
    let files = spawn_blocking(move || files(&dir)).await.map_err(|error| status::internal(&error.into()))??;
    let artifacts: Vec<_> = files.iter().map(|(_, artifact)| artifact.clone()).collect();
    let digest = model::digest(&artifacts);

    let Publication { model, description, task, signature, parameters, tags, dir: _, alias, request_id } = publication;
    let request_id = |step: &str| request_id.as_ref().map(|id| format!("{id}/{step}")).unwrap_or_default();
    let create = CreateModelRequest {
        name: model.clone(),
        description: description.clone(),
        request_id: request_id("model"),
        ..Default::default()
    };
    match client.create_model(create).await {
        Ok(_) => {}
        Err(status) if status::reason(&status).as_deref() == Some("MODEL_EXISTS") => {}
        Err(status) => return Err(status),
    }

    let wanted = CreateVersionRequest {
        model: model.clone(),
        description,
        task: task.into(),
        signature,
        parameters: parameters.into_iter().collect(),
        tags: tags.into_iter().collect(),
        request_id: request_id("version"),
        ..Default::default()
    };
    let version = match published_before(&mut client, &wanted, &digest).await? {
        Some(version) => version,
        None => {
            let created = client.create_version(wanted).await?.into_inner().version;
            let number = created.ok_or_else(|| Status::internal("the registry answered without a version"))?.version;
            for (path, artifact) in files {
                upload(&mut client, &model, number, &path, artifact.into(), &progress).await?;
            }
            let finalize = FinalizeVersionRequest {
                model: model.clone(),
                version: number,
                request_id: request_id("finalize"),
                ..Default::default()
            };
            let finalized = client.finalize_version(finalize).await?.into_inner().version;
            finalized.ok_or_else(|| Status::internal("the registry answered without a version"))?
        }
    };
    let Some(alias) = alias else { return Ok(version) };
    let set = SetAliasRequest {
        model: model.clone(),
        alias,
        version: version.version,
        request_id: request_id("alias"),
        ..Default::default()
    };
    client.set_alias(set).await?;
    let get = verdict_api::registry::GetVersionRequest { model, version: version.version };
    let version = client.get_version(get).await?.into_inner().version;
    version.ok_or_else(|| Status::internal("the registry answered without a version"))
}

/// Finds the newest READY version with the same content as the wanted one.
async fn published_before(
    client: &mut Client,
    wanted: &CreateVersionRequest,
    digest: &str,
) -> Result<Option<Version>, Status> {
    let mut page_token = String::new();
    loop {
        let list = ListVersionsRequest { model: wanted.model.clone(), page_size: 0, page_token };
        let page = client.list_versions(list).await?.into_inner();
        let same = page.versions.into_iter().find(|version| {
            version.status() == VersionStatus::Ready
                && version.digest == digest
                && version.task == wanted.task
                && version.signature == wanted.signature
                && version.parameters == wanted.parameters
        });
        if same.is_some() || page.next_page_token.is_empty() {
            return Ok(same);
        }
        page_token = page.next_page_token;
    }
}

/// Reads a `signature.json`: `{"inputs": [{"name": …, "type": "double", …}, …]}`.
pub fn signature_from_json(json: impl io::Read) -> anyhow::Result<Signature> {
    let signature: model::Signature = serde_json::from_reader(io::BufReader::new(json)).context("not a signature")?;
    signature.check()?;
    Ok(signature.into())
}

/// Uploads a file, or what is missing of it. An upload that is cut goes on from where it was.
async fn upload(
    client: &mut Client,
    model: &str,
    version: i64,
    file: &Path,
    artifact: Artifact,
    progress: &impl Fn(&str, u64, u64),
) -> Result<(), Status> {
    let mut cuts = 0;
    loop {
        let get = GetUploadRequest { model: model.to_owned(), version, artifact: Some(artifact.clone()) };
        let uploaded = client.get_upload(get).await?.into_inner();
        if uploaded.complete {
            return Ok(());
        }
        match upload_from(uploaded.received, client, model, version, file, artifact.clone(), progress).await {
            Err(status) if cuts < MAX_CUTS && matches!(status.code(), Code::Unavailable | Code::Unknown) => {
                cuts += 1;
                tokio::time::sleep(PAUSE * cuts).await;
            }
            outcome => return outcome,
        }
    }
}

async fn upload_from(
    offset: i64,
    client: &mut Client,
    model: &str,
    version: i64,
    file: &Path,
    artifact: Artifact,
    progress: &impl Fn(&str, u64, u64),
) -> Result<(), Status> {
    let failed = |error: io::Error| unreadable(file, &error);
    let mut bytes = tokio::fs::File::open(file).await.map_err(failed)?;
    let mut sent = offset.unsigned_abs();
    bytes.seek(io::SeekFrom::Start(sent)).await.map_err(failed)?;
    let Artifact { path, size, .. } = artifact.clone();
    let size = size.unsigned_abs();
    let (parts, receiver) = mpsc::channel(4);
    let header = UploadArtifactHeader { model: model.to_owned(), version, artifact: Some(artifact), offset };
    let call = client.upload_artifact(Request::new(ReceiverStream::new(receiver)));
    // The registry may refuse before it has all: it then stops receiving, and its answer says why.
    let send = async move {
        if parts.send(UploadArtifactRequest { part: Some(Part::Header(header)), crc32c: None }).await.is_err() {
            return Ok(());
        }
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = (&mut bytes).take(CHUNK as u64).read_to_end(&mut chunk).await.map_err(failed)?;
            progress(&path, sent, size);
            let crc32c = Some(crc32c::crc32c(&chunk));
            if read == 0 || parts.send(UploadArtifactRequest { part: Some(Part::Chunk(chunk)), crc32c }).await.is_err()
            {
                return Ok::<_, Status>(());
            }
            sent += read as u64;
        }
    };
    let (sent, answer) = tokio::join!(send, call);
    sent?;
    answer?;
    Ok(())
}

/// Lists the files below `dir` by their relative paths, with size and SHA-256.
fn files(dir: &Path) -> Result<Vec<(PathBuf, model::Artifact)>, Status> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        let entries = std::fs::read_dir(&next).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        for entry in entries.map_err(|error| unreadable(&next, &error))? {
            let path = entry.path();
            // Follows links: what counts is what can be read there.
            let kind = std::fs::metadata(&path).map_err(|error| unreadable(&path, &error))?;
            if kind.is_dir() {
                dirs.push(path);
                continue;
            }
            let relative = path.strip_prefix(dir).unwrap_or(&path).components();
            let parts: Vec<_> = relative.map(|part| part.as_os_str().to_string_lossy()).collect();
            let name = ArtifactPath::parse(&format!("file {}", path.display()), &parts.join("/"))?;
            let (size, sha256) = hash(&path).map_err(|error| unreadable(&path, &error))?;
            files.push((path, model::Artifact { path: name, size, sha256 }));
        }
    }
    if files.is_empty() {
        return Err(Error::invalid("INVALID_PATH", "dir", format!("{} holds no files", dir.display())).into());
    }
    files.sort_by(|(_, a), (_, b)| a.path.cmp(&b.path));
    Ok(files)
}

fn hash(path: &Path) -> io::Result<(u64, Sha256Hex)> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok((size, Sha256Hex::of(hash))),
            read => {
                hash.update(&buffer[..read]);
                size += read as u64;
            }
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Status {
    Status::new(Code::InvalidArgument, format!("cannot read {}: {error}", path.display()))
}
