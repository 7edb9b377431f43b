//! The gRPC service: convert in, one call, convert out.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use metrics::counter;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use verdict_api::registry as api;
use verdict_api::registry::download_artifact_response::Part as Downloaded;
use verdict_api::registry::model_registry_service_server::{ModelRegistryService, ModelRegistryServiceServer};
use verdict_api::registry::upload_artifact_request::Part as Uploaded;

use crate::artifacts::{ArtifactStore, Body, Direction, MAX_CHUNK, checked};
use crate::convert;
use crate::error::{Error, Result};
use crate::feed::Feed;
use crate::metrics::ARTIFACT_BYTES;
use crate::model::{Artifact, Micros};
use crate::names::{ArtifactPath, ModelName, Reference, VersionId};
use crate::store::Store;

type Answer<T> = std::result::Result<Response<T>, Status>;

/// What the calls work on.
pub(crate) struct Registry {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) artifacts: Arc<dyn ArtifactStore>,
    pub(crate) feed: Arc<Feed>,
}

/// The routes of the service; callers may send messages of at most `max_message_bytes`.
pub(crate) fn routes(registry: Registry, max_message_bytes: usize) -> Routes {
    let server = ModelRegistryServiceServer::new(registry).max_decoding_message_size(max_message_bytes);
    Routes::new(server)
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
        let (models, next_page_token) = page(found, size, |model| model.name.to_string());
        Ok(Response::new(api::ListModelsResponse { models, next_page_token }))
    }

    async fn delete_model(&self, request: Request<api::DeleteModelRequest>) -> Answer<api::DeleteModelResponse> {
        let api::DeleteModelRequest { name, force, request_id } = request.into_inner();
        let (name, call) = (ModelName::parse("name", &name)?, convert::call(request_id)?);
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
        let (id, artifact) = convert::upload_header(header)?;
        // Asked before the bytes come, so that nobody sends 64 GiB in vain; asked again when they are there.
        self.store.version(&Reference::Number(id.clone())).await?.must_accept(&artifact)?;
        let body = checked(uploaded(parts), artifact.clone(), Direction::In);
        self.artifacts.keep(&artifact, body).await?;
        self.store.add_artifact(Micros::now(), &id, &artifact).await?;
        self.changed(api::UploadArtifactResponse { artifact: Some(artifact.into()) })
    }

    async fn finalize_version(
        &self,
        request: Request<api::FinalizeVersionRequest>,
    ) -> Answer<api::FinalizeVersionResponse> {
        let api::FinalizeVersionRequest { model, version, request_id } = request.into_inner();
        let (id, call) = (VersionId::parse(&model, version)?, convert::call(request_id)?);
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
        let (versions, next_page_token) = page(found, size, |version| version.id.number.to_string());
        Ok(Response::new(api::ListVersionsResponse { versions, next_page_token }))
    }

    async fn delete_version(&self, request: Request<api::DeleteVersionRequest>) -> Answer<api::DeleteVersionResponse> {
        let api::DeleteVersionRequest { model, version, request_id } = request.into_inner();
        let (id, call) = (VersionId::parse(&model, version)?, convert::call(request_id)?);
        self.store.delete_version(&call, &id).await?;
        self.changed(api::DeleteVersionResponse {})
    }

    type DownloadArtifactStream = BoxStream<'static, std::result::Result<api::DownloadArtifactResponse, Status>>;

    async fn download_artifact(
        &self,
        request: Request<api::DownloadArtifactRequest>,
    ) -> Answer<Self::DownloadArtifactStream> {
        let api::DownloadArtifactRequest { model, version, path, offset } = request.into_inner();
        let id = VersionId::parse(&model, version)?;
        let path = ArtifactPath::parse("path", &path)?;
        let version = self.store.version(&Reference::Number(id)).await?;
        let artifact = version.artifact(&path)?.clone();
        let offset = offset_within(&artifact, offset)?;
        let body = self.artifacts.open(&artifact, offset).await?;
        // Only a whole file can be checked here; who resumes has the first part, and the SHA-256 from the header.
        let body = if offset == 0 { checked(body, artifact.clone(), Direction::Out) } else { body };
        let header = stream::once(async { Ok(Downloaded::Header(artifact.into())) });
        let chunks = body.map_ok(|bytes| {
            counter!(ARTIFACT_BYTES, "direction" => "out").increment(bytes.len() as u64);
            Downloaded::Chunk(bytes.into())
        });
        let parts = header.chain(chunks).map_ok(|part| api::DownloadArtifactResponse { part: Some(part) });
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
}

/// Cuts what was found to one page; `found` holds one more where there is a next page.
pub(crate) fn page<T, P: From<T>>(mut found: Vec<T>, size: u32, key: impl Fn(&T) -> String) -> (Vec<P>, String) {
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
        match message.map(|message| message.part) {
            None => Ok(None),
            Some(Some(Uploaded::Chunk(bytes))) if bytes.len() <= MAX_CHUNK => {
                counter!(ARTIFACT_BYTES, "direction" => "in").increment(bytes.len() as u64);
                Ok(Some((bytes.into(), parts)))
            }
            Some(Some(Uploaded::Chunk(bytes))) => {
                let problem = format!("has {} bytes, at most {MAX_CHUNK} are allowed", bytes.len());
                Err(Error::invalid("INVALID_UPLOAD", "chunk", problem))
            }
            Some(_) => Err(Error::invalid("INVALID_UPLOAD", "chunk", "must be in every message after the first")),
        }
    });
    chunks.boxed()
}

fn offset_within(artifact: &Artifact, offset: i64) -> Result<u64> {
    let Ok(offset) = u64::try_from(offset) else {
        return Err(Error::invalid("INVALID_OFFSET", "offset", "must be 0 or more"));
    };
    if offset > artifact.size {
        let message = format!("`offset` is {offset}, but `{}` has {} bytes", artifact.path, artifact.size);
        return Err(Error::OutOfRange { reason: "OFFSET_PAST_END", message });
    }
    Ok(offset)
}
