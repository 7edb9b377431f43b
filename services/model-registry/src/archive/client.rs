//! The command line's side: an archive goes into a file, or comes out of one.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use verdict_api::registry::archive_service_client::ArchiveServiceClient;
use verdict_api::registry::export_version_response::Part as Exported;
use verdict_api::registry::import_version_request::Part as Imported;
use verdict_api::registry::model_registry_service_client::ModelRegistryServiceClient;
use verdict_api::registry::{
    ExportVersionHeader, ExportVersionRequest, ImportVersionHeader, ImportVersionRequest, ImportVersionResponse,
    ListVersionsRequest, ResolveModelRequest, Version, VersionStatus,
};
use verdict_chassis::client::Channel;

use crate::names::ModelName;

/// Bytes read and sent at once.
const CHUNK: usize = 256 << 10;
/// Largest answer taken: a version with all its files, or a page of them.
const MAX_ANSWER: usize = 64 << 20;

/// Writes the version that `reference` names (`name@alias`, `name/2`, or `name` for its newest READY version) to `to`, a
/// file or "-" for standard output. A file is there with all its bytes, or is left as it was.
///
/// `progress(bytes so far, bytes of the archive)` is called on the way.
pub async fn export(
    channel: Channel,
    reference: &str,
    to: &Path,
    progress: impl Fn(u64, u64),
) -> anyhow::Result<ExportVersionHeader> {
    let version = find(channel.clone(), reference).await?;
    let mut client = ArchiveServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let request = ExportVersionRequest { model: version.model, version: version.version };
    let mut parts = client.export_version(request).await.map_err(said)?.into_inner();
    let Some(Exported::Header(header)) = parts.message().await.map_err(said)?.and_then(|message| message.part) else {
        bail!("the registry answered without a header");
    };
    let mut write = async |out: &mut (dyn AsyncWrite + Send + Unpin)| {
        let (mut written, whole) = (0, header.size.unsigned_abs());
        while let Some(message) = parts.message().await.map_err(said)? {
            let Some(Exported::Chunk(chunk)) = message.part else { bail!("the registry sent a second header") };
            out.write_all(&chunk).await.with_context(|| format!("cannot write {}", to.display()))?;
            written += chunk.len() as u64;
            progress(written, whole);
        }
        out.flush().await.with_context(|| format!("cannot write {}", to.display()))?;
        if written != whole {
            bail!("the registry sent {written} bytes of {whole}");
        }
        Ok(())
    };
    if to == Path::new("-") {
        write(&mut tokio::io::stdout()).await?;
        return Ok(header);
    }
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot = || format!("cannot write {}", to.display());
    // As any new file: what the user's mask allows.
    let new = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(dir);
    let (file, place) = new.with_context(cannot)?.into_parts();
    let mut file = tokio::fs::File::from_std(file);
    write(&mut file).await?;
    file.sync_all().await.with_context(cannot)?;
    place.persist(to).with_context(cannot)?;
    Ok(header)
}

async fn find(channel: Channel, reference: &str) -> anyhow::Result<Version> {
    let mut client = ModelRegistryServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    if ModelName::parse("model", reference).is_err() {
        let request = ResolveModelRequest { uri: reference.to_owned() };
        let found = client.resolve_model(request).await.map_err(said)?.into_inner().version;
        return found.context("the registry answered without a version");
    }
    let mut page_token = String::new();
    loop {
        let request = ListVersionsRequest { model: reference.to_owned(), page_size: 0, page_token };
        let page = client.list_versions(request).await.map_err(said)?.into_inner();
        if let Some(ready) = page.versions.into_iter().find(|version| version.status() == VersionStatus::Ready) {
            return Ok(ready);
        }
        if page.next_page_token.is_empty() {
            bail!("model `{reference}` has no version that is READY");
        }
        page_token = page.next_page_token;
    }
}

/// Sends the archive in `from`, a file or "-" for standard input; `progress(bytes so far, bytes of the file if known)`.
pub async fn import(
    channel: Channel,
    from: &Path,
    header: ImportVersionHeader,
    progress: impl Fn(u64, Option<u64>),
) -> anyhow::Result<ImportVersionResponse> {
    let cannot = || format!("cannot read {}", from.display());
    let (mut bytes, whole): (Box<dyn AsyncRead + Send + Unpin>, _) = if from == Path::new("-") {
        (Box::new(tokio::io::stdin()), None)
    } else {
        let file = tokio::fs::File::open(from).await.with_context(cannot)?;
        let size = file.metadata().await.with_context(cannot)?.len();
        (Box::new(file), Some(size))
    };
    let mut client = ArchiveServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let (parts, receiver) = mpsc::channel(4);
    let call = client.import_version(ReceiverStream::new(receiver));
    // The registry may refuse before it has all: it then stops receiving, and its answer says why.
    let send = async move {
        let mut part = Some(Imported::Header(header));
        let mut sent = 0;
        while let Some(next) = part.take() {
            if parts.send(ImportVersionRequest { part: Some(next) }).await.is_err() {
                break;
            }
            progress(sent, whole);
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = (&mut bytes).take(CHUNK as u64).read_to_end(&mut chunk).await?;
            sent += read as u64;
            part = (read > 0).then_some(Imported::Chunk(chunk));
        }
        Ok::<_, io::Error>(())
    };
    let (sent, answer) = tokio::join!(send, call);
    sent.with_context(cannot)?;
    Ok(answer.map_err(said)?.into_inner())
}

/// What a registry's refusal says.
fn said(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{}: {}", status.code(), status.message())
}
