//! Bytes on their way in whose size and digest may not have been said beforehand.

use std::path::Path;

use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::{ArtifactStore, Body, Direction, SYNC_BYTES, data_loss, unavailable};
use crate::error::{Error, Result};
use crate::metrics::ARTIFACT_BYTES;
use crate::model::{Artifact, MAX_ARTIFACT_BYTES};
use crate::names::{ArtifactPath, Sha256Hex};

/// What the sender says the bytes are, where it says so.
#[derive(Clone, Debug, Default)]
pub(crate) struct Announced {
    pub(crate) size: Option<u64>,
    pub(crate) sha256: Option<Sha256Hex>,
}

impl Announced {
    /// Refuses more bytes than were announced while they come, and other than that many in the end.
    fn must_fit(&self, path: &ArtifactPath, size: u64, is_all: bool) -> Result<()> {
        let Some(announced) = self.size else { return Ok(()) };
        let is = match (size > announced, is_all && size < announced) {
            (true, _) => "more".to_owned(),
            (_, true) => format!("only {size}"),
            _ => return Ok(()),
        };
        let message = format!("`{path}` has {is} bytes where {announced} were announced");
        Err(data_loss(Direction::In, "SIZE_MISMATCH", message))
    }

    fn must_be(&self, Artifact { path, size, sha256 }: &Artifact) -> Result<()> {
        self.must_fit(path, *size, true)?;
        match &self.sha256 {
            Some(announced) if announced != sha256 => {
                let message = format!("`{path}` has SHA-256 {sha256}, not {announced}");
                Err(data_loss(Direction::In, "CHECKSUM_MISMATCH", message))
            }
            _ => Ok(()),
        }
    }
}

/// Keeps the bytes of `body`, which are as `announced`, and says what they are. Durable when it returns; an error keeps
/// nothing.
///
/// The store is told size and digest beforehand, so the bytes wait in a file of `spool` until both are known.
pub(crate) async fn take(
    store: &dyn ArtifactStore,
    spool: &Path,
    path: ArtifactPath,
    announced: &Announced,
    mut body: Body<'_>,
) -> Result<Artifact> {
    let (file, place) = tempfile::NamedTempFile::new_in(spool).map_err(unavailable)?.into_parts();
    let mut spool = tokio::fs::File::from_std(file);
    let (mut size, mut hash, mut unsynced) = (0_u64, Sha256::new(), 0);
    while let Some(bytes) = body.next().await {
        let bytes = bytes?;
        size += bytes.len() as u64;
        if size > MAX_ARTIFACT_BYTES {
            return Err(Error::Rejected(format!("A file may have at most {MAX_ARTIFACT_BYTES} bytes (64 GiB)")));
        }
        announced.must_fit(&path, size, false)?;
        hash.update(&bytes);
        metrics::counter!(ARTIFACT_BYTES, "direction" => "in").increment(bytes.len() as u64);
        spool.write_all(&bytes).await.map_err(unavailable)?;
        unsynced += bytes.len();
        if unsynced >= SYNC_BYTES {
            spool.sync_data().await.map_err(unavailable)?;
            unsynced = 0;
        }
    }
    spool.flush().await.map_err(unavailable)?;
    spool.sync_all().await.map_err(unavailable)?;
    let artifact = Artifact { path, size, sha256: Sha256Hex::of(hash) };
    announced.must_be(&artifact)?;
    store.keep_file(&artifact, &place).await?;
    Ok(artifact)
}
