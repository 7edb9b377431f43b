//! Where the bytes of files are kept: one trait, in a directory and in S3. Both are addressed by content.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use sha2::{Digest, Sha256};

use crate::config::{ArtifactLocation, Config};
use crate::error::{Error, Result};
use crate::model::{Artifact, Micros};
use crate::names::Sha256Hex;

pub mod directory;
pub mod s3;

/// Bytes on their way, in pieces of at most [`MAX_CHUNK`]; the first error ends them.
pub type Body<'a> = BoxStream<'a, Result<Bytes>>;

/// Most bytes of one chunk on the wire.
pub const MAX_CHUNK: usize = 1 << 20;

/// Keeps files by the SHA-256 of their content.
#[async_trait]
pub trait ArtifactStore: Send + Sync {
    /// Keeps the bytes of `body`, durable when it returns; if `body` ends with an error, nothing is kept.
    ///
    /// `body` must be [`checked`] against `artifact`, whose path plays no part here.
    async fn keep(&self, artifact: &Artifact, body: Body<'_>) -> Result<()>;
    /// Reads from byte `offset` on. DATA_LOSS when the bytes are gone or their number differs.
    async fn open(&self, artifact: &Artifact, offset: u64) -> Result<Body<'static>>;
    /// Lists all that is kept, in no order; what is kept or removed meanwhile may be among it or not.
    fn list(&self) -> BoxStream<'static, Result<Kept>>;
    /// Removes bytes for good; those that are gone already are no error.
    async fn remove(&self, garbage: &[Sha256Hex]) -> Result<()>;
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
pub fn checked(body: Body<'_>, artifact: Artifact, direction: Direction) -> Body<'_> {
    struct Seen<'a> {
        body: Body<'a>,
        bytes: u64,
        hash: Sha256,
        artifact: Artifact,
    }
    let seen = Seen { body, bytes: 0, hash: Sha256::new(), artifact };
    let checked = stream::try_unfold(seen, move |mut seen| async move {
        let size = seen.artifact.size;
        match seen.body.next().await.transpose()? {
            Some(bytes) => {
                seen.bytes += bytes.len() as u64;
                if seen.bytes > size {
                    return Err(wrong_size(direction, &seen.artifact, "more"));
                }
                seen.hash.update(&bytes);
                Ok(Some((bytes, seen)))
            }
            None if seen.bytes < size => Err(wrong_size(direction, &seen.artifact, &format!("only {}", seen.bytes))),
            None => {
                let Artifact { path, sha256: announced, .. } = &seen.artifact;
                match Sha256Hex::of(seen.hash) {
                    is if is == *announced => Ok(None),
                    is => {
                        let message = format!("`{path}` has SHA-256 {is}, not {announced}");
                        Err(data_loss(direction, "CHECKSUM_MISMATCH", message))
                    }
                }
            }
        }
    });
    checked.boxed()
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

/// What was kept is not what was given to keep.
fn corrupted(message: String) -> Error {
    Error::DataLoss { reason: "ARTIFACT_CORRUPTED", message: format!("the stored file is damaged: {message}") }
}
