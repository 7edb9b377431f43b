//! Bytes on their way in whose size and digest nobody has said beforehand.

use std::path::Path;

use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::{ArtifactStore, Body, SYNC_BYTES, unavailable};
use crate::error::{Error, Result};
use crate::metrics::ARTIFACT_BYTES;
use crate::model::{Artifact, MAX_ARTIFACT_BYTES};
use crate::names::{ArtifactPath, Sha256Hex};

/// Keeps the bytes of `body` and says what they are. Durable when it returns; an error keeps nothing.
///
/// The store is told size and digest beforehand, so the bytes wait in a file of `spool` until both are known.
pub(crate) async fn take(
    store: &dyn ArtifactStore,
    spool: &Path,
    path: ArtifactPath,
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
    store.keep_file(&artifact, &place).await?;
    Ok(artifact)
}
