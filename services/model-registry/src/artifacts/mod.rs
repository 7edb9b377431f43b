//! Where the bytes of files are kept: one trait, in a directory and in S3. Both are addressed by content.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};
use tokio_util::io::ReaderStream;

use self::direct::Direct;
use crate::config::{ArtifactLocation, Config};
use crate::error::{Dependency, Error, Result};
use crate::model::{Artifact, Micros};
use crate::names::Sha256Hex;

pub mod direct;
pub mod directory;
pub(crate) mod incoming;
pub mod s3;
pub mod spool;

/// Bytes on their way, in pieces of at most [`MAX_CHUNK`]; the first error ends them.
pub type Body<'a> = BoxStream<'a, Result<Bytes>>;

/// Most bytes of one chunk on the wire.
pub const MAX_CHUNK: usize = 1 << 20;

/// Bytes written between two syncs: the sender waits for the disk on the way, not for all of it after the last byte.
const SYNC_BYTES: usize = 64 << 20;

/// Keeps files by the SHA-256 of their content.
#[async_trait]
pub trait ArtifactStore: Send + Sync {
    /// Keeps the bytes of `body`, durable when it returns; if `body` ends with an error, nothing is kept.
    ///
    /// `body` must be [`checked`] against `artifact`, whose path plays no part here.
    async fn keep(&self, artifact: &Artifact, body: Body<'_>) -> Result<()>;
    /// Keeps the file at `path`, which is `artifact`'s and synced, and may be moved away.
    async fn keep_file(&self, artifact: &Artifact, path: &Path) -> Result<()> {
        self.keep(artifact, read(artifact, path).await?).await
    }
    /// Reads from byte `offset` on. DATA_LOSS when the bytes are gone or their number differs.
    async fn open(&self, artifact: &Artifact, offset: u64) -> Result<Body<'static>>;
    /// How callers reach the bytes themselves, where they can.
    fn direct(&self) -> Option<&dyn Direct> {
        None
    }
    /// Lists all that is kept, in no order; what is kept or removed meanwhile may be among it or not.
    fn list(&self) -> BoxStream<'static, Result<Kept>>;
    /// Removes bytes for good; those that are gone already are no error.
    ///
    /// Begins none after `deadline`, and returns when those it has begun are done: who calls holds locks meanwhile.
    async fn remove(&self, garbage: &[Sha256Hex], deadline: Instant) -> Result<()>;
    /// Clears away what uploads have left here that began, or came to an end, longer than `stale_after` ago.
    async fn sweep(&self, stale_after: Duration) -> Result<()>;
}

/// Bytes that are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub sha256: Sha256Hex,
    pub size: u64,
    /// When they were written, the last time.
    pub modified: Micros,
}

/// Opens the store that the settings name.
pub async fn open(config: &Config) -> anyhow::Result<Arc<dyn ArtifactStore>> {
    Ok(match config.artifact_location() {
        ArtifactLocation::Directory(path) => Arc::new(directory::Directory::open(path).await?),
        ArtifactLocation::S3 { bucket, prefix } => {
            let client = s3::client(config.artifacts.s3_endpoint.as_ref(), None).await;
            Arc::new(s3::Bucket::open(client, bucket, prefix).await?)
        }
    })
}

/// Which way bytes are going, hence what is wrong when they are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a caller: the caller has sent something else than announced.
    In,
    /// From the store: what was kept has changed.
    Out,
}

/// Passes bytes on while counting and hashing them: ends with DATA_LOSS unless they are exactly `artifact`'s.
///
/// The last piece is passed on when all of them are found to be right: who was told the length beforehand, as over HTTP,
/// never takes a damaged file for a whole one.
pub fn checked(body: Body<'_>, artifact: Artifact, direction: Direction) -> Body<'_> {
    struct Seen<'a> {
        body: Body<'a>,
        bytes: u64,
        hash: Sha256,
        held: Option<Bytes>,
        artifact: Artifact,
    }
    let seen = Seen { body, bytes: 0, hash: Sha256::new(), held: None, artifact };
    let checked = stream::try_unfold(seen, move |mut seen| async move {
        while let Some(bytes) = seen.body.try_next().await? {
            seen.bytes += bytes.len() as u64;
            if seen.bytes > seen.artifact.size {
                return Err(wrong_size(direction, &seen.artifact, "more"));
            }
            seen.hash.update(&bytes);
            if let Some(before) = seen.held.replace(bytes) {
                return Ok(Some((before, seen)));
            }
        }
        let Artifact { path, size, sha256: announced } = &seen.artifact;
        if seen.bytes < *size {
            return Err(wrong_size(direction, &seen.artifact, &format!("only {}", seen.bytes)));
        }
        let is = Sha256Hex::of(seen.hash.clone());
        if is != *announced {
            let message = format!("`{path}` has SHA-256 {is}, not {announced}");
            return Err(data_loss(direction, "CHECKSUM_MISMATCH", message));
        }
        Ok(seen.held.take().map(|last| (last, seen)))
    });
    checked.boxed()
}

/// Ends after so many bytes.
pub fn limited(body: Body<'static>, bytes: u64) -> Body<'static> {
    let limited = stream::try_unfold((body, bytes), |(mut body, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Some(mut bytes) = body.try_next().await? else { return Ok(None) };
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - bytes.len() as u64;
        Ok(Some((bytes, (body, left))))
    });
    limited.boxed()
}

fn wrong_size(direction: Direction, artifact: &Artifact, is: &str) -> Error {
    let message = format!("`{}` has {is} bytes where {} were announced", artifact.path, artifact.size);
    data_loss(direction, "SIZE_MISMATCH", message)
}

fn data_loss(direction: Direction, reason_in: &'static str, message: String) -> Error {
    match direction {
        Direction::In => Error::DataLoss { reason: reason_in, message },
        Direction::Out => corrupted(message),
    }
}

/// The bytes of the file at `path`, which must be `artifact`'s.
async fn read(artifact: &Artifact, path: &Path) -> Result<Body<'static>> {
    let file = tokio::fs::File::open(path).await.map_err(unavailable)?;
    let body = ReaderStream::with_capacity(file, MAX_CHUNK).map_err(unavailable).boxed();
    Ok(checked(body, artifact.clone(), Direction::In))
}

fn unavailable(error: io::Error) -> Error {
    Error::Unavailable { dependency: Dependency::ArtifactStore, source: error.into() }
}

/// What was kept is not what was given to keep.
fn corrupted(message: String) -> Error {
    Error::DataLoss { reason: "ARTIFACT_CORRUPTED", message: format!("the stored file is damaged: {message}") }
}
