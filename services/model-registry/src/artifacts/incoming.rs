//! Bytes on their way in whose size and digest nobody has said beforehand.

use std::path::Path;

use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::{ArtifactStore, Body, Direction, checked};
use crate::error::{Dependency, Error, Result};
use crate::metrics::ARTIFACT_BYTES;
use crate::model::{Artifact, MAX_ARTIFACT_BYTES};
use crate::names::{ArtifactPath, Sha256Hex};

/// Bytes read from a spooled file at once.
const READ_BYTES: usize = 256 << 10;

/// Keeps the bytes of `body` and says what they are. Durable when it returns; an error keeps nothing.
///
/// The store is told size and digest beforehand, so the bytes wait in a nameless file of `spool` until both are known.
pub(crate) async fn take(
    store: &dyn ArtifactStore,
    spool: &Path,
    path: ArtifactPath,
    mut body: Body<'_>,
) -> Result<Artifact> {
    let spool = tempfile::tempfile_in(spool).map_err(unavailable)?;
    let mut spool = tokio::fs::File::from_std(spool);
    let (mut size, mut hash) = (0_u64, Sha256::new());
    while let Some(bytes) = body.next().await {
        let bytes = bytes?;
        size += bytes.len() as u64;
        if size > MAX_ARTIFACT_BYTES {
            return Err(Error::Rejected(format!("A file may have at most {MAX_ARTIFACT_BYTES} bytes (64 GiB)")));
        }
        hash.update(&bytes);
        metrics::counter!(ARTIFACT_BYTES, "direction" => "in").increment(bytes.len() as u64);
        spool.write_all(&bytes).await.map_err(unavailable)?;
    }
    spool.flush().await.map_err(unavailable)?;
    spool.rewind().await.map_err(unavailable)?;
    let artifact = Artifact { path, size, sha256: Sha256Hex::of(hash) };
    let spooled = ReaderStream::with_capacity(spool, READ_BYTES).map_err(unavailable);
    store.keep(&artifact, checked(spooled.boxed(), artifact.clone(), Direction::In)).await?;
    Ok(artifact)
}

fn unavailable(error: std::io::Error) -> Error {
    Error::Unavailable { dependency: Dependency::ArtifactStore, source: error.into() }
}
