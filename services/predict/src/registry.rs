//! The registry as predict asks it: what a name points at, the files of a version, what changes.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use async_trait::async_trait;
use tokio::{fs::File, io::AsyncWriteExt, time::timeout};
use tonic::{Code, Status, Streaming};
use verdict_api::registry::{
    DownloadArtifactRequest, ResolveModelRequest, WatchModelsRequest, WatchModelsResponse,
    download_artifact_response::Part, model_registry_service_client::ModelRegistryServiceClient,
};
use verdict_chassis::client::Channel;

use crate::{
    cache::Fetch,
    convert,
    reference::Reference,
    release::{Artifact, Release},
};

/// A question without a stream is answered within this.
const ANSWER: Duration = Duration::from_secs(10);
/// The next part of a download arrives within this.
const NEXT_PART: Duration = Duration::from_secs(30);

/// Largest answer taken: a version with all its files and categories.
const MAX_ANSWER: usize = 64 << 20;

/// A client of the registry.
#[derive(Clone)]
pub struct Registry {
    client: ModelRegistryServiceClient<Channel>,
}

/// Why a name could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum Unresolved {
    /// The registry does not answer: what was known before still holds.
    #[error("the registry is not reachable: {0}")]
    Unreachable(String),
    /// The registry answered, and there is nothing to serve.
    #[error("{0}")]
    Refused(String),
}

impl Registry {
    /// Asks over `channel`.
    pub fn new(channel: Channel) -> Self {
        Self { client: ModelRegistryServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER) }
    }

    /// Resolves a reference to a READY version.
    pub async fn resolve(&self, reference: &Reference) -> Result<Release, Unresolved> {
        let request = ResolveModelRequest { uri: reference.to_string() };
        let answer = timeout(ANSWER, self.client.clone().resolve_model(request))
            .await
            .map_err(|_elapsed| Unresolved::Unreachable(format!("no answer within {ANSWER:?}")))?;
        let version = answer.map_err(unresolved)?.into_inner().version;
        let version =
            version.ok_or_else(|| Unresolved::Refused("the registry answered without a version".to_owned()))?;
        convert::registry::release(version).map_err(Unresolved::Refused)
    }

    /// Streams changes of `models` after `token`, or from now on.
    pub async fn watch(
        &self,
        models: BTreeSet<String>,
        token: Option<i64>,
    ) -> Result<Streaming<WatchModelsResponse>, Status> {
        let request = WatchModelsRequest { models: models.into_iter().collect(), after_sequence: token };
        match timeout(ANSWER, self.client.clone().watch_models(request)).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_elapsed) => Err(Status::unavailable("the registry does not answer")),
        }
    }
}

#[async_trait]
impl Fetch for Registry {
    async fn fetch(&self, release: &Release, artifact: &Artifact, into: &Path) -> anyhow::Result<()> {
        let what = || format!("cannot download `{}` of `{}` {}", artifact.path, release.model, release.version);
        self.download(release, artifact, into).await.with_context(what)
    }
}

impl Registry {
    async fn download(&self, release: &Release, artifact: &Artifact, into: &Path) -> anyhow::Result<()> {
        let request = DownloadArtifactRequest {
            model: release.model.clone(),
            version: release.version,
            path: artifact.path.clone(),
            offset: 0,
            length: 0,
        };
        let mut parts = timeout(ANSWER, self.client.clone().download_artifact(request))
            .await
            .context("the registry does not answer")?
            .map_err(told)?
            .into_inner();
        let mut file = File::create(into).await.with_context(|| format!("cannot write {}", into.display()))?;
        let mut written = 0;
        while let Some(message) =
            timeout(NEXT_PART, parts.message()).await.context("the download stands still")?.map_err(told)?
        {
            match message.part {
                Some(Part::Header(_)) | None => {}
                Some(Part::Chunk(chunk)) => {
                    written += chunk.len() as u64;
                    ensure!(written <= artifact.size, "more bytes arrive than the {} there should be", artifact.size);
                    file.write_all(&chunk).await?;
                }
            }
        }
        if written != artifact.size {
            bail!("{written} bytes arrived instead of {}", artifact.size);
        }
        file.sync_all().await?;
        Ok(())
    }
}

fn told(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{:?}: {}", status.code(), status.message())
}

fn unresolved(status: Status) -> Unresolved {
    match status.code() {
        Code::NotFound
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::PermissionDenied
        | Code::Unimplemented => Unresolved::Refused(status.message().to_owned()),
        _ => Unresolved::Unreachable(status.message().to_owned()),
    }
}
