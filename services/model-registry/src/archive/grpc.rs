//! The gRPC service of archives.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use metrics::counter;
use tonic::{Request, Response, Status, Streaming};
use verdict_api::registry as api;
use verdict_api::registry::archive_service_server::{ArchiveService, ArchiveServiceServer};
use verdict_api::registry::export_version_response::Part as Exported;
use verdict_api::registry::import_version_request::Part as Imported;

use super::export::Export;
use super::import;
use crate::artifacts::{ArtifactStore, Body, MAX_CHUNK};
use crate::convert;
use crate::error::Error;
use crate::feed::Feed;
use crate::maintenance::garbage::{self, LEASE};
use crate::metrics::ARTIFACT_BYTES;
use crate::model::{AliasMove, Micros};
use crate::names::{AliasName, ModelName, Reference, VersionId};
use crate::store::{Call, Everything};

type Answer<T> = std::result::Result<Response<T>, Status>;

/// What the calls work on.
pub(crate) struct Archives {
    pub(crate) store: Arc<dyn Everything>,
    pub(crate) artifacts: Arc<dyn ArtifactStore>,
    pub(crate) feed: Arc<Feed>,
    /// Directory, on this machine's disk, of what comes before it is known what it is.
    pub(crate) spool: PathBuf,
}

/// The service; callers may send messages of at most `max_message_bytes`.
pub(crate) fn server(archives: Archives, max_message_bytes: usize) -> ArchiveServiceServer<Archives> {
    ArchiveServiceServer::new(archives).max_decoding_message_size(max_message_bytes)
}

#[async_trait]
impl ArchiveService for Archives {
    type ExportVersionStream = BoxStream<'static, std::result::Result<api::ExportVersionResponse, Status>>;

    async fn export_version(&self, request: Request<api::ExportVersionRequest>) -> Answer<Self::ExportVersionStream> {
        let api::ExportVersionRequest { model, version } = request.into_inner();
        let id = VersionId::parse(&model, version)?;
        let version = self.store.version(&Reference::Number(id.clone())).await?;
        let export = Export::new(&version, self.store.provenance(&id).await?)?;
        let header = api::ExportVersionHeader {
            model: id.model.to_string(),
            version: id.number,
            digest: version.digest.unwrap_or_default(),
            manifest_digest: export.digest.clone(),
            size: i64::try_from(export.size).map_err(|error| Error::Internal(error.into()))?,
        };
        let chunks = export.bytes(self.artifacts.clone()).map_ok(|bytes| {
            counter!(ARTIFACT_BYTES, "direction" => "out").increment(bytes.len() as u64);
            Exported::Chunk(bytes.into())
        });
        let parts = stream::once(async { Ok(Exported::Header(header)) }).chain(chunks);
        let parts = parts.map_ok(|part| api::ExportVersionResponse { part: Some(part) });
        Ok(Response::new(parts.map_err(Status::from).boxed()))
    }

    async fn import_version(
        &self,
        request: Request<Streaming<api::ImportVersionRequest>>,
    ) -> Answer<api::ImportVersionResponse> {
        let mut parts = request.into_inner();
        let Some(Imported::Header(header)) = parts.message().await?.and_then(|message| message.part) else {
            return Err(Error::invalid("INVALID_UPLOAD", "header", "must be the first message").into());
        };
        let api::ImportVersionHeader { model, alias, request_id } = header;
        let model = if model.is_empty() { None } else { Some(ModelName::parse("header.model", &model)?) };
        let alias = if alias.is_empty() { None } else { Some(AliasName::parse("header.alias", &alias)?) };
        let mut call = convert::call(request_id, String::new(), false)?;
        let (arrival, manifest_digest) = import::receive(received(parts), &self.spool, &*self.artifacts, model).await?;
        // The first bytes may have been kept hours ago, and are safe from the collection of garbage for so long.
        let began = std::mem::replace(&mut call.now, Micros::now());
        if call.now.0 - began.0 > garbage::micros(LEASE) / 2 {
            let message = format!("the archive took more than {} h to arrive; import it again", LEASE.as_secs() / 7200);
            return Err(Error::Precondition { reason: "IMPORT_TOO_SLOW", message }.into());
        }
        let (mut version, added) = self.store.import(&call, &arrival).await?;
        self.feed.wake();
        if let Some(alias) = alias {
            let request_id = call.request_id.map(|id| format!("{id}/alias"));
            let to = AliasMove { model: version.id.model.clone(), alias, to: Some(version.id.number), expected: None };
            self.store.move_alias(&Call { request_id, ..Call::now() }, &to).await?;
            self.feed.wake();
            version = self.store.version(&Reference::Number(version.id)).await?;
        }
        Ok(Response::new(api::ImportVersionResponse { version: Some(version.into()), manifest_digest, added }))
    }
}

/// The bytes of an archive, after its header.
fn received(parts: Streaming<api::ImportVersionRequest>) -> Body<'static> {
    let chunks = stream::try_unfold(parts, |mut parts| async move {
        let message = parts.message().await.map_err(|status| Error::BrokenOff(Box::new(status)))?;
        match message.map(|message| message.part) {
            None => Ok(None),
            Some(Some(Imported::Chunk(bytes))) if bytes.len() <= MAX_CHUNK => {
                counter!(ARTIFACT_BYTES, "direction" => "in").increment(bytes.len() as u64);
                Ok(Some((bytes.into(), parts)))
            }
            Some(Some(Imported::Chunk(bytes))) => {
                let problem = format!("has {} bytes, at most {MAX_CHUNK} are allowed", bytes.len());
                Err(Error::invalid("INVALID_UPLOAD", "chunk", problem))
            }
            Some(_) => Err(Error::invalid("INVALID_UPLOAD", "chunk", "must be in every message after the first")),
        }
    });
    chunks.boxed()
}
