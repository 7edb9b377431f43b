//! Files in a directory: `sha256/ab/cdef…`, each written beside and renamed into place.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::task::spawn_blocking;
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use super::{ArtifactStore, Body, Kept, SYNC_BYTES, corrupted, unavailable};
use crate::error::Result;
use crate::model::{Artifact, Micros};
use crate::names::Sha256Hex;

/// Bytes read from a file at once.
const READ_BYTES: usize = 256 << 10;

/// An artifact store in a directory. Several processes may share it.
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Opens `root`, making it where missing, and clears away what uploads left that were cut off.
    pub async fn open(root: PathBuf) -> anyhow::Result<Self> {
        let context = format!("ARTIFACT_STORE: cannot use the directory {}", root.display());
        let directory = Self { root };
        let (blobs, unfinished) = (directory.blobs(), directory.unfinished());
        let swept = spawn_blocking(move || {
            std::fs::create_dir_all(blobs)?;
            std::fs::create_dir_all(&unfinished)?;
            sweep(&unfinished, Duration::ZERO)
        });
        let swept = swept.await?.context(context)?;
        if swept > 0 {
            tracing::info!(files = swept, "cleared away {swept} unfinished uploads");
        }
        Ok(directory)
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("sha256")
    }

    fn unfinished(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn path(&self, sha256: &Sha256Hex) -> PathBuf {
        let (first, rest) = sha256.as_str().split_at(2);
        self.blobs().join(first).join(rest)
    }
}

#[async_trait]
impl ArtifactStore for Directory {
    async fn keep(&self, artifact: &Artifact, mut body: Body<'_>) -> Result<()> {
        let path = self.unfinished().join(Uuid::new_v4().to_string());
        let (unfinished, file) = blocking(move || Unfinished::create(path)).await?;
        let mut file = tokio::fs::File::from_std(file);
        let mut unsynced = 0;
        while let Some(bytes) = body.try_next().await? {
            file.write_all(&bytes).await.map_err(unavailable)?;
            unsynced += bytes.len();
            if unsynced >= SYNC_BYTES {
                file.sync_data().await.map_err(unavailable)?;
                unsynced = 0;
            }
        }
        file.flush().await.map_err(unavailable)?;
        file.sync_all().await.map_err(unavailable)?;
        let (place, blobs) = (self.path(&artifact.sha256), self.blobs());
        blocking(move || unfinished.finish(&place, &blobs)).await
    }

    async fn keep_file(&self, artifact: &Artifact, path: &Path) -> Result<()> {
        let (from, place, blobs) = (path.to_owned(), self.path(&artifact.sha256), self.blobs());
        match spawn_blocking(move || move_to(&from, &place, &blobs)).await.map_err(io::Error::other).flatten() {
            // Another file system: there is no moving, only writing again.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                self.keep(artifact, super::read(artifact, path).await?).await
            }
            moved => moved.map_err(unavailable),
        }
    }

    async fn open(&self, artifact: &Artifact, offset: u64) -> Result<Body<'static>> {
        let mut file = match tokio::fs::File::open(self.path(&artifact.sha256)).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(corrupted(format!("the bytes of `{}` are gone", artifact.path)));
            }
            Err(error) => return Err(unavailable(error)),
        };
        let size = file.metadata().await.map_err(unavailable)?.len();
        if size != artifact.size {
            let message = format!("`{}` has {size} bytes instead of {}", artifact.path, artifact.size);
            return Err(corrupted(message));
        }
        file.seek(io::SeekFrom::Start(offset)).await.map_err(unavailable)?;
        Ok(ReaderStream::with_capacity(file, READ_BYTES).map_err(unavailable).boxed())
    }

    fn list(&self) -> BoxStream<'static, Result<Kept>> {
        // One of the 256 directories at a time.
        let blobs = self.blobs();
        let dirs = stream::iter(0..=u8::MAX).then(move |first| {
            let (first, dir) = (format!("{first:02x}"), blobs.join(format!("{first:02x}")));
            blocking(move || listed(&first, &dir))
        });
        dirs.map_ok(|files| stream::iter(files.into_iter().map(Ok))).try_flatten().boxed()
    }

    async fn remove(&self, garbage: &[Sha256Hex], deadline: Instant) -> Result<()> {
        let paths: Vec<_> = garbage.iter().map(|sha256| self.path(sha256)).collect();
        blocking(move || {
            for path in paths {
                if Instant::now() >= deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        })
        .await
    }

    async fn sweep(&self, stale_after: Duration) -> Result<()> {
        let unfinished = self.unfinished();
        blocking(move || sweep(&unfinished, stale_after)).await.map(drop)
    }
}

/// The files in one directory of those named by the `first` two digits.
fn listed(first: &str, dir: &Path) -> io::Result<Vec<Kept>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(sha256) = Sha256Hex::parse("name", &format!("{first}{}", entry.file_name().display())) else { continue };
        let metadata = match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        let since = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let modified = Micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
        files.push(Kept { sha256, size: metadata.len(), modified });
    }
    Ok(files)
}

/// A file being written. Dropped unfinished it is removed; its lock tells other processes that somebody is at it.
struct Unfinished(PathBuf);

impl Unfinished {
    fn create(path: PathBuf) -> io::Result<(Self, File)> {
        let file = File::options().write(true).create_new(true).open(&path)?;
        let unfinished = Self(path);
        file.lock()?;
        Ok((unfinished, file))
    }

    /// Puts the file into its place.
    fn finish(self, place: &Path, blobs: &Path) -> io::Result<()> {
        move_to(&self.0, place, blobs)
    }
}

/// Moves a file to its place, and puts both names on the disk.
fn move_to(from: &Path, place: &Path, blobs: &Path) -> io::Result<()> {
    let dir = place.parent().unwrap_or(blobs);
    std::fs::create_dir_all(dir)?;
    std::fs::rename(from, place)?;
    File::open(dir)?.sync_all()?;
    File::open(blobs)?.sync_all()
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "cannot remove an unfinished upload");
        }
    }
}

/// Removes the files nobody is writing any more, if they were written longer than `stale_after` ago; returns how many.
fn sweep(unfinished: &Path, stale_after: Duration) -> io::Result<usize> {
    let mut swept = 0;
    for entry in std::fs::read_dir(unfinished)? {
        match sweep_one(&entry?.path(), stale_after) {
            Ok(is_gone) => swept += usize::from(is_gone),
            // It has been finished, or swept by another process, since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(swept)
}

fn sweep_one(path: &Path, stale_after: Duration) -> io::Result<bool> {
    let file = File::open(path)?;
    let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
    match file.try_lock() {
        Ok(()) if age >= stale_after => std::fs::remove_file(path).map(|()| true),
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other).flatten().map_err(unavailable)
}
