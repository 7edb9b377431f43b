//! Files on their way in: spooled to disk until all of them has arrived, so that an upload that was cut can go on.
//!
//! What has arrived stays for a day, under a name made of what the upload is for. It is not synced: whatever a crash leaves
//! is found out by the SHA-256 of the whole. An upload that begins again takes over from the one before it, which may still be
//! waiting for a connection that is long gone.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::{Body, Direction, SYNC_BYTES, data_loss, unavailable, wrong_size};
use crate::error::{Error, Result};
use crate::model::Artifact;
use crate::names::{Sha256Hex, VersionId};

/// How long the part of an upload that was cut is kept.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// Bytes read at once from what has arrived before.
const READ_BYTES: usize = 256 << 10;

/// A directory of uploads under way.
pub struct Spool {
    dir: PathBuf,
    under_way: Mutex<HashMap<String, UnderWay>>,
}

struct UnderWay {
    /// Tells the newest upload that another goes on in its place.
    taken_over: CancellationToken,
    /// Held by who writes; whoever comes next waits for it.
    gate: Arc<tokio::sync::Mutex<()>>,
}

impl Spool {
    /// Uses `dir`, making it where missing.
    pub async fn open(dir: PathBuf) -> io::Result<Self> {
        tokio::fs::create_dir_all(&dir).await?;
        Ok(Self { dir, under_way: Mutex::default() })
    }

    /// How many bytes of a file have arrived in uploads that were cut.
    pub async fn received(&self, of: &VersionId, artifact: &Artifact) -> Result<u64> {
        match tokio::fs::metadata(self.dir.join(name(of, artifact))).await {
            Ok(metadata) => Ok(metadata.len().min(artifact.size)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// Takes the bytes of `artifact` from `offset` on; the whole file is there, synced and checked, when it returns.
    ///
    /// When `body` ends with an error, what has arrived is kept, and the next upload may go on from there. What turns out not
    /// to be the file is thrown away.
    pub async fn take(&self, of: &VersionId, artifact: &Artifact, offset: u64, body: Body<'_>) -> Result<Spooled<'_>> {
        let name = name(of, artifact);
        let (taken_over, gate, seat) = self.seat(&name);
        let open = gate.lock_owned().await;
        let spooled = Spooled { path: self.dir.join(&name), _open: open, _seat: seat };
        if taken_over.is_cancelled() {
            return Err(replaced());
        }
        let taken = spooled.write(artifact, offset, body, &taken_over).await;
        if let Err(Error::DataLoss { reason: "SIZE_MISMATCH" | "CHECKSUM_MISMATCH", .. }) = taken {
            spooled.remove().await;
        }
        taken.map(|()| spooled)
    }

    /// Registers an upload in place of the one that is under way.
    fn seat(&self, name: &str) -> (CancellationToken, Arc<tokio::sync::Mutex<()>>, Seat<'_>) {
        let mut all = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let taken_over = CancellationToken::new();
        let gate = match all.remove(name) {
            Some(before) => {
                before.taken_over.cancel();
                before.gate
            }
            None => Arc::default(),
        };
        all.insert(name.to_owned(), UnderWay { taken_over: taken_over.clone(), gate: Arc::clone(&gate) });
        (taken_over, gate, Seat { spool: self, name: name.to_owned() })
    }
}

fn replaced() -> Error {
    let message = "another upload of the same file goes on in place of this one".to_owned();
    Error::Conflict { reason: "UPLOAD_TAKEN_OVER", message }
}

/// Removes files from `dir` that nobody has written to for a day.
pub async fn sweep(dir: &Path) -> io::Result<()> {
    let mut entries = tokio::fs::read_dir(dir).await?;
    while let Some(entry) = entries.next_entry().await? {
        let Ok(metadata) = entry.metadata().await else { continue };
        let is_old = |age: Duration| age > KEEP;
        let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok());
        // It may have been finished, or swept by another process, since it was listed.
        if metadata.is_file() && age.is_some_and(is_old) {
            tokio::fs::remove_file(entry.path()).await.or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
        }
    }
    Ok(())
}

/// What an upload is for: another version, path, size or content is another upload.
fn name(of: &VersionId, artifact: &Artifact) -> String {
    let Artifact { path, size, sha256 } = artifact;
    hex::encode(Sha256::digest(format!("{of}\n{path}\n{size}\n{sha256}")))
}

/// Forgets an upload when it ends, unless somebody writes or waits: who comes next must find the same gate.
struct Seat<'a> {
    spool: &'a Spool,
    name: String,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut all = self.spool.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(&self.name).is_some_and(|last| Arc::strong_count(&last.gate) == 1) {
            all.remove(&self.name);
        }
    }
}

/// A file that has arrived whole. The next upload of the same waits until this is dropped.
pub struct Spooled<'a> {
    path: PathBuf,
    // Dropped first: the seat is given up when nobody holds the gate.
    _open: tokio::sync::OwnedMutexGuard<()>,
    _seat: Seat<'a>,
}

impl Spooled<'_> {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, where nobody has moved it away.
    pub async fn remove(&self) {
        if let Err(error) = tokio::fs::remove_file(&self.path).await
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "cannot remove a spooled upload");
        }
    }

    async fn write(
        &self,
        artifact: &Artifact,
        offset: u64,
        mut body: Body<'_>,
        taken_over: &CancellationToken,
    ) -> Result<()> {
        // Begun anew, it is another file: the one before may be on its way to where it is kept.
        if offset == 0 {
            self.remove().await;
        }
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&self.path).await.map_err(unavailable)?;
        let arrived = file.metadata().await.map_err(unavailable)?.len();
        if offset != 0 && offset != arrived {
            let message = format!("`header.offset` is {offset}, but {arrived} bytes have arrived; ask GetUpload");
            return Err(Error::Conflict { reason: "UPLOAD_OFFSET", message });
        }
        let mut hash = Sha256::new();
        let mut piece = vec![0; READ_BYTES];
        let mut bytes = 0;
        while bytes < offset {
            let read = file.read(&mut piece).await.map_err(unavailable)?;
            if read == 0 {
                return Err(unavailable(io::ErrorKind::UnexpectedEof.into()));
            }
            hash.update(&piece[..read]);
            bytes += read as u64;
        }
        file.seek(io::SeekFrom::Start(bytes)).await.map_err(unavailable)?;
        let (mut unsynced, mut outcome) = (0, Ok(()));
        while outcome.is_ok() {
            let chunk = tokio::select! {
                chunk = body.next() => chunk,
                () = taken_over.cancelled() => Some(Err(replaced())),
            };
            match chunk {
                None => break,
                Some(Err(error)) => outcome = Err(error),
                Some(Ok(chunk)) if bytes + chunk.len() as u64 > artifact.size => {
                    outcome = Err(wrong_size(Direction::In, artifact, "more"));
                }
                Some(Ok(chunk)) => {
                    file.write_all(&chunk).await.map_err(unavailable)?;
                    hash.update(&chunk);
                    bytes += chunk.len() as u64;
                    unsynced += chunk.len();
                    if unsynced >= SYNC_BYTES {
                        file.sync_data().await.map_err(unavailable)?;
                        unsynced = 0;
                    }
                }
            }
        }
        file.flush().await.map_err(unavailable)?;
        outcome?;
        if bytes < artifact.size {
            return Err(wrong_size(Direction::In, artifact, &format!("only {bytes}")));
        }
        let is = Sha256Hex::of(hash);
        if is != artifact.sha256 {
            let message = format!("`{}` has SHA-256 {is}, not {}", artifact.path, artifact.sha256);
            return Err(data_loss(Direction::In, "CHECKSUM_MISMATCH", message));
        }
        file.sync_all().await.map_err(unavailable)
    }
}
