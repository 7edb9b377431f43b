//! Files by path, over gRPC.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use metrics::counter;
use tonic::{Request, Response, Status, Streaming};
use verdict_api::registry as api;
use verdict_api::registry::download_file_response::Part as Downloaded;
use verdict_api::registry::file_place::Of;
use verdict_api::registry::file_service_server::FileService;
use verdict_api::registry::upload_file_request::Part as Uploaded;

use super::{Answer, check_chunk, part_of};
use crate::artifacts::incoming::{self, Announced};
use crate::artifacts::{ArtifactStore, Body};
use crate::convert;
use crate::error::{Error, Result};
use crate::files;
use crate::metrics::ARTIFACT_BYTES;
use crate::model::Artifact;
use crate::names::{ArtifactPath, Sha256Hex};
use crate::store::Everything;
use crate::tracking::PROXY;

pub(super) struct Files {
    pub(super) store: Arc<dyn Everything>,
    pub(super) artifacts: Arc<dyn ArtifactStore>,
    pub(super) spool: PathBuf,
}

impl Files {
    /// What a place and a path below it name, relative to all files.
    async fn below(&self, field: &str, place: Option<api::FilePlace>, path: &str) -> Result<String> {
        let uri = match place.and_then(|place| place.of) {
            Some(Of::RunId(id)) => self.store.run(&id).await?.artifact_uri,
            Some(Of::LoggedModelId(id)) => self.store.logged_model(&id).await?.artifact_location,
            Some(Of::Uri(uri)) if uri.starts_with(PROXY) => uri,
            Some(Of::Uri(_)) => {
                let problem = "must begin with mlflow-artifacts:/; what is elsewhere is read there";
                return Err(Error::invalid("INVALID_PLACE", format!("{field}.uri"), problem));
            }
            None => {
                return Err(Error::invalid("INVALID_PLACE", field, "must be given: a run, a logged model or a URI"));
            }
        };
        files::below(&uri, path)
    }

    /// The file that a place and a path name.
    async fn file(&self, prefix: &str, place: Option<api::FilePlace>, path: &str) -> Result<ArtifactPath> {
        // The path itself first: together with its place it might be a good one where it is not.
        ArtifactPath::parse(&format!("{prefix}path"), path)?;
        ArtifactPath::parse(&format!("{prefix}path"), &self.below(&format!("{prefix}place"), place, path).await?)
    }
}

#[async_trait]
impl FileService for Files {
    async fn upload_file(
        &self,
        request: Request<Streaming<api::UploadFileRequest>>,
    ) -> Answer<api::UploadFileResponse> {
        let mut parts = request.into_inner();
        let Some(Uploaded::Header(header)) = parts.message().await?.and_then(|message| message.part) else {
            return Err(Error::invalid("INVALID_UPLOAD", "header", "must be the first message").into());
        };
        let api::UploadFileHeader { place, path, size, sha256 } = header;
        let announced = Announced {
            size: size.map(|size| Artifact::size("header.size", size)).transpose()?,
            sha256: Some(sha256)
                .filter(|sha256| !sha256.is_empty())
                .map(|sha256| Sha256Hex::parse("header.sha256", &sha256))
                .transpose()?,
        };
        let whole = self.file("header.", place, &path).await?;
        files::must_be_changeable(&whole)?;
        let file = incoming::take(&*self.artifacts, &self.spool, whole, &announced, uploaded(parts)).await?;
        self.store.put_file(&file).await?;
        Ok(Response::new(api::UploadFileResponse { file: Some(stored(path, &file)) }))
    }

    type DownloadFileStream = BoxStream<'static, std::result::Result<api::DownloadFileResponse, Status>>;

    async fn download_file(&self, request: Request<api::DownloadFileRequest>) -> Answer<Self::DownloadFileStream> {
        let api::DownloadFileRequest { place, path, offset, length } = request.into_inner();
        let file = files::find(&*self.store, &self.file("", place, &path).await?).await?;
        let body = part_of(&*self.artifacts, &file, offset, length).await?;
        let header = api::DownloadFileResponse { part: Some(Downloaded::Header(stored(path, &file))), crc32c: None };
        let chunks = body.map_ok(|bytes| {
            counter!(ARTIFACT_BYTES, "direction" => "out").increment(bytes.len() as u64);
            let crc32c = Some(crc32c::crc32c(&bytes));
            api::DownloadFileResponse { part: Some(Downloaded::Chunk(bytes.into())), crc32c }
        });
        Ok(Response::new(stream::once(async { Ok(header) }).chain(chunks).map_err(Status::from).boxed()))
    }

    async fn list_files(&self, request: Request<api::ListFilesRequest>) -> Answer<api::ListFilesResponse> {
        let api::ListFilesRequest { place, path, page_size, page_token } = request.into_inner();
        let size = convert::page_size(page_size)? as usize;
        let after = convert::after(&page_token, |path| Some(path.to_owned()))?;
        if !path.is_empty() {
            ArtifactPath::parse("path", &path)?;
        }
        let directory = self.below("place", place, &path).await?;
        if !directory.is_empty() {
            ArtifactPath::parse("path", &directory)?;
        }
        let mut right_below = BTreeMap::new();
        for (below, file) in files::list(&*self.store, &directory).await? {
            let (name, file) = match below.split_once('/') {
                Some((directory, _)) => (directory, None),
                None => (below.as_str(), Some(file)),
            };
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            if after.as_ref().is_none_or(|after| path > *after) {
                right_below.insert(path, file);
            }
        }
        let is_last = right_below.len() <= size;
        let files: Vec<_> = right_below.into_iter().take(size).map(|(path, file)| entry(path, file)).collect();
        let last = files.last().filter(|_| !is_last);
        let next_page_token = last.map(|last| convert::page_token(&last.path)).unwrap_or_default();
        Ok(Response::new(api::ListFilesResponse { files, next_page_token }))
    }

    async fn delete_files(&self, request: Request<api::DeleteFilesRequest>) -> Answer<api::DeleteFilesResponse> {
        let api::DeleteFilesRequest { place, path } = request.into_inner();
        let path = self.file("", place, &path).await?;
        files::must_be_changeable(&path)?;
        let deleted = self.store.delete_files(&path).await?;
        let deleted_count = i64::try_from(deleted).map_err(anyhow::Error::from).map_err(Error::from)?;
        Ok(Response::new(api::DeleteFilesResponse { deleted_count }))
    }
}

/// The bytes of an upload, after its header.
fn uploaded(parts: Streaming<api::UploadFileRequest>) -> Body<'static> {
    let chunks = stream::try_unfold(parts, |mut parts| async move {
        let message = parts.message().await.map_err(|status| Error::BrokenOff(Box::new(status)))?;
        let Some(api::UploadFileRequest { part, crc32c }) = message else { return Ok(None) };
        let Some(Uploaded::Chunk(bytes)) = part else {
            return Err(Error::invalid("INVALID_UPLOAD", "chunk", "must be in every message after the first"));
        };
        check_chunk(&bytes, crc32c)?;
        Ok(Some((bytes.into(), parts)))
    });
    chunks.boxed()
}

/// A file, under its path from the place.
fn stored(path: String, file: &Artifact) -> api::StoredFile {
    // At most 64 GiB: it always fits.
    let size = i64::try_from(file.size).unwrap_or(i64::MAX);
    api::StoredFile { path, is_directory: false, size, sha256: file.sha256.to_string() }
}

fn entry(path: String, file: Option<Artifact>) -> api::StoredFile {
    match file {
        Some(file) => stored(path, &file),
        None => api::StoredFile { path, is_directory: true, size: 0, sha256: String::new() },
    }
}
