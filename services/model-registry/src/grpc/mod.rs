//! The gRPC services: convert in, one call, convert out.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use metrics::counter;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use verdict_api::registry as api;
use verdict_api::registry::audit_service_server::AuditServiceServer;
use verdict_api::registry::download_artifact_response::Part as Downloaded;
use verdict_api::registry::evaluation_service_server::EvaluationServiceServer;
use verdict_api::registry::file_service_server::FileServiceServer;
use verdict_api::registry::lineage_service_server::LineageServiceServer;
use verdict_api::registry::model_registry_service_server::{ModelRegistryService, ModelRegistryServiceServer};
use verdict_api::registry::protection_service_server::ProtectionServiceServer;
use verdict_api::registry::trace_service_server::TraceServiceServer;
use verdict_api::registry::tracking_service_server::TrackingServiceServer;
use verdict_api::registry::upload_artifact_request::Part as Uploaded;

use crate::artifacts::spool::Spool;
use crate::artifacts::{ArtifactStore, Body, Direction, MAX_CHUNK, checked, limited};
use crate::convert;
use crate::error::{Error, Result};
use crate::feed::Feed;
use crate::metrics::ARTIFACT_BYTES;
use crate::model::{Artifact, Updated};
use crate::names::{ArtifactPath, ModelName, Reference, VersionId};
use crate::registration;
use crate::store::{Call, Everything};

mod audit;
mod evaluation;
mod files;
mod lineage;
mod protection;
mod traces;
mod tracking;

type Answer<T> = std::result::Result<Response<T>, Status>;

/// What the calls work on.
pub(crate) struct Registry {
    pub(crate) store: Arc<dyn Everything>,
    pub(crate) artifacts: Arc<dyn ArtifactStore>,
    pub(crate) spool: Spool,
    /// Where files of runs and logged models are while they come in.
    pub(crate) incoming: PathBuf,
    pub(crate) feed: Arc<Feed>,
}

/// The routes of the services; callers may send messages of at most `max_message_bytes`.
/// Experiments keep their files below `artifact_root` unless they say otherwise.
pub(crate) fn routes(registry: Registry, artifact_root: &str, max_message_bytes: usize) -> Routes {
    let (store, feed) = (registry.store.clone(), registry.feed.clone());
    let log = audit::Log { store: store.clone() };
    let trail = lineage::Trail { store: store.clone() };
    let evaluation = evaluation::Evaluation { store: store.clone() };
    let (artifacts, spool) = (registry.artifacts.clone(), registry.incoming.clone());
    let files = files::Files { store: store.clone(), artifacts, spool };
    let traces = traces::Traces { store: store.clone() };
    let guard = protection::Guard { store: store.clone(), feed: feed.clone() };
    let tracking = tracking::Tracking { store, feed, artifact_root: artifact_root.to_owned() };
    Routes::new(ModelRegistryServiceServer::new(registry).max_decoding_message_size(max_message_bytes))
        .add_service(AuditServiceServer::new(log).max_decoding_message_size(max_message_bytes))
        .add_service(EvaluationServiceServer::new(evaluation).max_decoding_message_size(max_message_bytes))
        .add_service(FileServiceServer::new(files).max_decoding_message_size(max_message_bytes))
        .add_service(LineageServiceServer::new(trail).max_decoding_message_size(max_message_bytes))
        .add_service(ProtectionServiceServer::new(guard).max_decoding_message_size(max_message_bytes))
        .add_service(TraceServiceServer::new(traces).max_decoding_message_size(max_message_bytes))
        .add_service(TrackingServiceServer::new(tracking).max_decoding_message_size(max_message_bytes))
}

impl Registry {
    /// Answers a call that has changed something: watches look at once.
    fn changed<T>(&self, answer: T) -> Answer<T> {
        self.feed.wake();
        Ok(Response::new(answer))
    }
}

#[async_trait]
impl ModelRegistryService for Registry {
    async fn create_model(&self, request: Request<api::CreateModelRequest>) -> Answer<api::CreateModelResponse> {
        let (call, draft) = convert::model_draft(request.into_inner())?;
        let model = self.store.create_model(&call, &draft).await?;
        self.changed(api::CreateModelResponse { model: Some(model.into()) })
    }

    async fn get_model(&self, request: Request<api::GetModelRequest>) -> Answer<api::GetModelResponse> {
        let api::GetModelRequest { name } = request.into_inner();
        let model = self.store.model(&ModelName::parse("name", &name)?).await?;
        Ok(Response::new(api::GetModelResponse { model: Some(model.into()) }))
    }

    async fn list_models(&self, request: Request<api::ListModelsRequest>) -> Answer<api::ListModelsResponse> {
        let api::ListModelsRequest { page_size, page_token } = request.into_inner();
        let size = convert::page_size(page_size)?;
        let after = convert::after(&page_token, |name| ModelName::parse("page_token", name).ok())?;
        let found = self.store.models(after.as_ref(), size + 1).await?;
        let (models, next_page_token) = page_of(found, size, |model| model.name.to_string());
        Ok(Response::new(api::ListModelsResponse { models, next_page_token }))
    }

    async fn update_model(&self, request: Request<api::UpdateModelRequest>) -> Answer<api::UpdateModelResponse> {
        let (call, update) = convert::model_update(request.into_inner())?;
        let model = match self.store.update(&call, &update).await? {
            Updated::Model(model) => Some(model.into()),
            Updated::Version(_) => None,
        };
        self.changed(api::UpdateModelResponse { model })
    }

    async fn delete_model(&self, request: Request<api::DeleteModelRequest>) -> Answer<api::DeleteModelResponse> {
        let api::DeleteModelRequest { name, force, request_id, etag, validate_only } = request.into_inner();
        let (name, call) = (ModelName::parse("name", &name)?, convert::call(request_id, etag, validate_only)?);
        self.store.delete_model(&call, &name, force).await?;
        self.changed(api::DeleteModelResponse {})
    }

    async fn create_version(&self, request: Request<api::CreateVersionRequest>) -> Answer<api::CreateVersionResponse> {
        let (call, draft) = convert::version_draft(request.into_inner())?;
        let version = self.store.add_version(&call, &draft).await?;
        self.changed(api::CreateVersionResponse { version: Some(version.into()) })
    }

    async fn upload_artifact(
        &self,
        request: Request<Streaming<api::UploadArtifactRequest>>,
    ) -> Answer<api::UploadArtifactResponse> {
        let mut parts = request.into_inner();
        let Some(Uploaded::Header(header)) = parts.message().await?.and_then(|message| message.part) else {
            return Err(Error::invalid("INVALID_UPLOAD", "header", "must be the first message").into());
        };
        let (id, artifact, offset) = convert::upload_header(header)?;
        // Asked before the bytes come, so that nobody sends 64 GiB in vain; asked again when they are there.
        self.store.version(&Reference::Number(id.clone())).await?.must_accept(&artifact)?;
        let spooled = self.spool.take(&id, &artifact, offset, uploaded(parts)).await?;
        self.artifacts.keep_file(&artifact, spooled.path()).await?;
        self.store.add_artifact(&Call::now(), &id, &artifact).await?;
        spooled.remove().await;
        self.changed(api::UploadArtifactResponse { artifact: Some(artifact.into()) })
    }

    async fn get_upload(&self, request: Request<api::GetUploadRequest>) -> Answer<api::GetUploadResponse> {
        let api::GetUploadRequest { model, version, artifact } = request.into_inner();
        let id = VersionId::parse(&model, version)?;
        let artifact = convert::artifact("artifact", artifact)?;
        let version = self.store.version(&Reference::Number(id.clone())).await?;
        let complete = version.artifacts.contains(&artifact);
        let received = if complete { 0 } else { self.spool.received(&id, &artifact).await? };
        let received = i64::try_from(received).map_err(anyhow::Error::from).map_err(Error::from)?;
        Ok(Response::new(api::GetUploadResponse { received, complete }))
    }

    async fn finalize_version(
        &self,
        request: Request<api::FinalizeVersionRequest>,
    ) -> Answer<api::FinalizeVersionResponse> {
        let api::FinalizeVersionRequest { model, version, request_id, etag, validate_only } = request.into_inner();
        let (id, call) = (VersionId::parse(&model, version)?, convert::call(request_id, etag, validate_only)?);
        let version = self.store.finalize(&call, &id).await?;
        self.changed(api::FinalizeVersionResponse { version: Some(version.into()) })
    }

    async fn get_version(&self, request: Request<api::GetVersionRequest>) -> Answer<api::GetVersionResponse> {
        let api::GetVersionRequest { model, version } = request.into_inner();
        let version = self.store.version(&Reference::Number(VersionId::parse(&model, version)?)).await?;
        Ok(Response::new(api::GetVersionResponse { version: Some(version.into()) }))
    }

    async fn list_versions(&self, request: Request<api::ListVersionsRequest>) -> Answer<api::ListVersionsResponse> {
        let api::ListVersionsRequest { model, page_size, page_token } = request.into_inner();
        let model = ModelName::parse("model", &model)?;
        let size = convert::page_size(page_size)?;
        let number = |text: &str| text.parse().ok().filter(|number| *number >= 1);
        let below = convert::after(&page_token, number)?;
        let found = self.store.versions(&model, below, size + 1).await?;
        let (versions, next_page_token) = page_of(found, size, |version| version.id.number.to_string());
        Ok(Response::new(api::ListVersionsResponse { versions, next_page_token }))
    }

    async fn update_version(&self, request: Request<api::UpdateVersionRequest>) -> Answer<api::UpdateVersionResponse> {
        let (call, update) = convert::version_update(request.into_inner())?;
        let version = match self.store.update(&call, &update).await? {
            Updated::Version(version) => Some((*version).into()),
            Updated::Model(_) => None,
        };
        self.changed(api::UpdateVersionResponse { version })
    }

    async fn delete_version(&self, request: Request<api::DeleteVersionRequest>) -> Answer<api::DeleteVersionResponse> {
        let api::DeleteVersionRequest { model, version, request_id, etag, validate_only } = request.into_inner();
        let (id, call) = (VersionId::parse(&model, version)?, convert::call(request_id, etag, validate_only)?);
        self.store.delete_version(&call, &id, false).await?;
        self.changed(api::DeleteVersionResponse {})
    }

    type DownloadArtifactStream = BoxStream<'static, std::result::Result<api::DownloadArtifactResponse, Status>>;

    async fn download_artifact(
        &self,
        request: Request<api::DownloadArtifactRequest>,
    ) -> Answer<Self::DownloadArtifactStream> {
        let api::DownloadArtifactRequest { model, version, path, offset, length } = request.into_inner();
        let id = VersionId::parse(&model, version)?;
        let path = ArtifactPath::parse("path", &path)?;
        let version = self.store.version(&Reference::Number(id)).await?;
        let artifact = version.artifact(&path)?.clone();
        let body = part_of(&*self.artifacts, &artifact, offset, length).await?;
        let header = api::DownloadArtifactResponse { part: Some(Downloaded::Header(artifact.into())), crc32c: None };
        let chunks = body.map_ok(|bytes| {
            counter!(ARTIFACT_BYTES, "direction" => "out").increment(bytes.len() as u64);
            let crc32c = Some(crc32c::crc32c(&bytes));
            api::DownloadArtifactResponse { part: Some(Downloaded::Chunk(bytes.into())), crc32c }
        });
        let parts = stream::once(async { Ok(header) }).chain(chunks);
        Ok(Response::new(parts.map_err(Status::from).boxed()))
    }

    async fn set_alias(&self, request: Request<api::SetAliasRequest>) -> Answer<api::SetAliasResponse> {
        let (call, to) = convert::alias_set(request.into_inner())?;
        let model = self.store.move_alias(&call, &to).await?;
        self.changed(api::SetAliasResponse { model: Some(model.into()) })
    }

    async fn delete_alias(&self, request: Request<api::DeleteAliasRequest>) -> Answer<api::DeleteAliasResponse> {
        let (call, to) = convert::alias_delete(request.into_inner())?;
        let model = self.store.move_alias(&call, &to).await?;
        self.changed(api::DeleteAliasResponse { model: Some(model.into()) })
    }

    async fn set_tag(&self, request: Request<api::SetTagRequest>) -> Answer<api::SetTagResponse> {
        let (call, change) = convert::tag_set(request.into_inner())?;
        self.store.change_tag(&call, &change).await?;
        self.changed(api::SetTagResponse {})
    }

    async fn delete_tag(&self, request: Request<api::DeleteTagRequest>) -> Answer<api::DeleteTagResponse> {
        let (call, change) = convert::tag_delete(request.into_inner())?;
        self.store.change_tag(&call, &change).await?;
        self.changed(api::DeleteTagResponse {})
    }

    async fn resolve_model(&self, request: Request<api::ResolveModelRequest>) -> Answer<api::ResolveModelResponse> {
        let api::ResolveModelRequest { uri } = request.into_inner();
        let version = self.store.version(&Reference::parse("uri", &uri)?).await?;
        Ok(Response::new(api::ResolveModelResponse { version: Some(version.into()) }))
    }

    type WatchModelsStream = BoxStream<'static, std::result::Result<api::WatchModelsResponse, Status>>;

    async fn watch_models(&self, request: Request<api::WatchModelsRequest>) -> Answer<Self::WatchModelsStream> {
        let api::WatchModelsRequest { models, after_sequence } = request.into_inner();
        let models = models.iter().enumerate().map(|(index, name)| ModelName::parse(&format!("models[{index}]"), name));
        let models = models.collect::<Result<BTreeSet<_>>>()?;
        if after_sequence.is_some_and(|after| after < 0) {
            return Err(Error::invalid("INVALID_SEQUENCE", "after_sequence", "must be 0 or more").into());
        }
        let watch = self.feed.watch(models, after_sequence).await?;
        Ok(Response::new(watch.map_ok(api::WatchModelsResponse::from).map_err(Status::from).boxed()))
    }

    async fn rename_model(&self, request: Request<api::RenameModelRequest>) -> Answer<api::RenameModelResponse> {
        let api::RenameModelRequest { name, new_name, request_id, etag, validate_only } = request.into_inner();
        let (from, to) = (ModelName::parse("name", &name)?, ModelName::parse("new_name", &new_name)?);
        let model = self.store.rename_model(&convert::call(request_id, etag, validate_only)?, &from, &to).await?;
        self.changed(api::RenameModelResponse { model: Some(model.into()) })
    }

    async fn register_version(
        &self,
        request: Request<api::RegisterVersionRequest>,
    ) -> Answer<api::RegisterVersionResponse> {
        let (call, wanted) = convert::registration(request.into_inner())?;
        let version = registration::register(&*self.store, &call, wanted).await?;
        self.changed(api::RegisterVersionResponse { version: Some(version.into()) })
    }
}

/// Cuts what was found to one page; `found` holds one more where there is a next page.
pub(crate) fn page_of<T, P: From<T>>(mut found: Vec<T>, size: u32, key: impl Fn(&T) -> String) -> (Vec<P>, String) {
    let size = size as usize;
    let mut next = String::new();
    if found.len() > size {
        found.truncate(size);
        next = found.last().map(|last| convert::page_token(&key(last))).unwrap_or_default();
    }
    (found.into_iter().map(P::from).collect(), next)
}

/// The bytes of an upload, after its header.
fn uploaded(parts: Streaming<api::UploadArtifactRequest>) -> Body<'static> {
    let chunks = stream::try_unfold(parts, |mut parts| async move {
        let message = parts.message().await.map_err(|status| Error::BrokenOff(Box::new(status)))?;
        let Some(api::UploadArtifactRequest { part, crc32c }) = message else { return Ok(None) };
        let Some(Uploaded::Chunk(bytes)) = part else {
            return Err(Error::invalid("INVALID_UPLOAD", "chunk", "must be in every message after the first"));
        };
        check_chunk(&bytes, crc32c)?;
        counter!(ARTIFACT_BYTES, "direction" => "in").increment(bytes.len() as u64);
        Ok(Some((bytes.into(), parts)))
    });
    chunks.boxed()
}

/// Refuses a chunk that is too large, or is not what its message says.
fn check_chunk(bytes: &[u8], announced: Option<u32>) -> Result<()> {
    if bytes.len() > MAX_CHUNK {
        let problem = format!("has {} bytes, at most {MAX_CHUNK} are allowed", bytes.len());
        return Err(Error::invalid("INVALID_UPLOAD", "chunk", problem));
    }
    if announced.is_some_and(|announced| announced != crc32c::crc32c(bytes)) {
        let message = "a chunk has another CRC-32C than its message says; send it again".to_owned();
        return Err(Error::DataLoss { reason: "CHUNK_MISMATCH", message });
    }
    Ok(())
}

/// Reads the bytes a caller asks for. Only a whole file can be checked here; who resumes has the first part, and the SHA-256
/// from the header.
async fn part_of(
    artifacts: &dyn ArtifactStore,
    artifact: &Artifact,
    offset: i64,
    length: i64,
) -> Result<Body<'static>> {
    let range = range_within(artifact, offset, length)?;
    let body = artifacts.open(artifact, range.start).await?;
    Ok(match range == (0..artifact.size) {
        true => checked(body, artifact.clone(), Direction::Out),
        false => limited(body, range.end - range.start),
    })
}

/// The bytes a caller asks for; all from `offset` on when `length` is 0.
fn range_within(artifact: &Artifact, offset: i64, length: i64) -> Result<Range<u64>> {
    let natural = |field: &str, value: i64| {
        u64::try_from(value).map_err(|_| Error::invalid("INVALID_OFFSET", field, "must be 0 or more"))
    };
    let (start, length) = (natural("offset", offset)?, natural("length", length)?);
    let end = if length == 0 { artifact.size.max(start) } else { start.saturating_add(length) };
    if end > artifact.size {
        let message =
            format!("`offset` and `length` reach to {end}, but `{}` has {} bytes", artifact.path, artifact.size);
        return Err(Error::OutOfRange { reason: "OFFSET_PAST_END", message });
    }
    Ok(start..end)
}
