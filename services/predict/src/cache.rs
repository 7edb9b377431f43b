//! Model files on local disk, addressed by content and verified before every load.
//!
//! `sha256/<digest>/<path>` holds a version's files, complete or not there at all; `resolved/<hash of a
//! reference>.json` holds what it last pointed at, so that the service starts without the registry; `tmp` holds what is
//! arriving.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use anyhow::{Context, bail, ensure};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    reference::Reference,
    release::{Artifact, Release},
};

/// The model cache of one process.
pub struct Cache {
    root: PathBuf,
    pins: Mutex<HashMap<String, Weak<Pinned>>>,
    /// Held while the process lives: two processes must not share a cache.
    _lock: File,
}

/// Keeps a digest's files from being swept while it is held.
#[derive(Debug)]
pub struct Pinned {
    /// One at a time brings a digest's files into place.
    filling: tokio::sync::Mutex<()>,
}

/// Verified files of a version, safe from sweeping while this lives.
#[derive(Debug)]
pub struct Files {
    pub dir: PathBuf,
    pub pin: Arc<Pinned>,
}

/// Brings one file of a version to a path, durably; checked by the caller.
#[async_trait::async_trait]
pub trait Fetch: Sync {
    async fn fetch(&self, release: &Release, artifact: &Artifact, into: &Path) -> anyhow::Result<()>;
}

impl Cache {
    /// Opens the cache below `root`, making it where it is missing and dropping what a crash left half-made.
    pub fn open(root: PathBuf) -> anyhow::Result<Self> {
        let make = |dir: &Path| fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()));
        make(&root)?;
        let lock = File::create(root.join("lock")).with_context(|| format!("cannot write in {}", root.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("{} is in use by another predict process: give each its own --data-dir", root.display())
            }
            Err(TryLockError::Error(error)) => return Err(error).context(format!("cannot lock {}", root.display())),
        }
        let tmp = root.join("tmp");
        if tmp.exists() {
            fs::remove_dir_all(&tmp).with_context(|| format!("cannot clear {}", tmp.display()))?;
        }
        for dir in ["tmp", "sha256", "resolved"] {
            make(&root.join(dir))?;
        }
        Ok(Self { root, pins: Mutex::default(), _lock: lock })
    }

    /// Returns the files of `release`, each verified; fetches those that are missing or not what they should be.
    pub async fn ensure(self: &Arc<Self>, release: &Release, fetch: &dyn Fetch) -> anyhow::Result<Files> {
        if let Err(problem) = release.check() {
            bail!("version {} of `{}` is refused: {problem}", release.version, release.model);
        }
        let pin = self.pin(release.digest_hex());
        let dir = self.root.join("sha256").join(release.digest_hex());
        {
            let _filling = pin.filling.lock().await;
            let bad = self.unverified(&dir, release).await?;
            if !bad.is_empty() {
                self.fill(&dir, release, &bad, fetch).await?;
            }
        }
        Ok(Files { dir, pin })
    }

    /// Remembers, durably, what `reference` points at.
    pub fn remember(&self, reference: &Reference, release: &Release) -> anyhow::Result<()> {
        let arriving = self.arriving();
        let put = || -> io::Result<()> {
            let mut file = File::create(&arriving)?;
            file.write_all(&serde_json::to_vec_pretty(release)?)?;
            file.sync_all()?;
            fs::rename(&arriving, self.resolved(reference))?;
            sync_dir(&self.root.join("resolved"))
        };
        put().with_context(|| format!("cannot remember what `{reference}` points at"))
    }

    /// Returns what `reference` pointed at when it was last resolved and loaded; `None` when it never was.
    pub fn remembered(&self, reference: &Reference) -> anyhow::Result<Option<Release>> {
        let path = self.resolved(reference);
        match fs::read(&path) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Forgets what `reference` pointed at.
    pub fn forget(&self, reference: &Reference) -> anyhow::Result<()> {
        match fs::remove_file(self.resolved(reference)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot forget what `{reference}` points at")),
        }
    }

    /// Removes versions that are neither held nor what one of `references` points at.
    pub fn sweep<'a>(&self, references: impl IntoIterator<Item = &'a Reference>) -> anyhow::Result<()> {
        let mut keep = HashSet::new();
        for reference in references {
            // A damaged memory keeps nothing: its files are fetched again when it is resolved again.
            if let Ok(Some(release)) = self.remembered(reference) {
                keep.insert(release.digest_hex().to_owned());
            }
        }
        let mut pins = self.pins.lock();
        pins.retain(|_, pin| pin.strong_count() > 0);
        for entry in fs::read_dir(self.root.join("sha256"))? {
            let entry = entry?;
            let digest = entry.file_name().to_string_lossy().into_owned();
            if !keep.contains(&digest) && !pins.contains_key(&digest) {
                fs::remove_dir_all(entry.path())?;
                info!(model.digest = %digest, "removed a model version that is no longer served from the cache");
            }
        }
        Ok(())
    }

    fn pin(&self, digest: &str) -> Arc<Pinned> {
        let mut pins = self.pins.lock();
        if let Some(pin) = pins.get(digest).and_then(Weak::upgrade) {
            return pin;
        }
        let pin = Arc::new(Pinned { filling: tokio::sync::Mutex::new(()) });
        pins.insert(digest.to_owned(), Arc::downgrade(&pin));
        pin
    }

    fn resolved(&self, reference: &Reference) -> PathBuf {
        self.root.join("resolved").join(format!("{}.json", reference.file_stem()))
    }

    fn arriving(&self) -> PathBuf {
        self.root.join("tmp").join(Uuid::new_v4().to_string())
    }

    /// Returns the files that are missing below `dir` or have other bytes than they should.
    async fn unverified(&self, dir: &Path, release: &Release) -> anyhow::Result<Vec<Artifact>> {
        let (dir, artifacts) = (dir.to_owned(), release.artifacts.clone());
        let bad = blocking(move || {
            let mut bad = Vec::new();
            for artifact in artifacts {
                match verify(&dir.join(&artifact.path), &artifact) {
                    Ok(()) => {}
                    Err(problem) => {
                        if dir.exists() {
                            warn!(artifact.path = %artifact.path, "cached file is not usable and is fetched again: {problem:#}");
                        }
                        bad.push(artifact);
                    }
                }
            }
            Ok(bad)
        });
        bad.await
    }

    /// Brings the files of `release` into place: fetches `bad`, takes the others from what is there.
    async fn fill(&self, dir: &Path, release: &Release, bad: &[Artifact], fetch: &dyn Fetch) -> anyhow::Result<()> {
        let arriving = Arriving(self.arriving());
        for artifact in &release.artifacts {
            let path = arriving.0.join(&artifact.path);
            if let Some(parent) = path.parent() {
                tokio::fs::create_dir_all(parent).await.with_context(|| format!("cannot make {}", parent.display()))?;
            }
            if bad.contains(artifact) {
                fetch.fetch(release, artifact, &path).await?;
            } else {
                tokio::fs::hard_link(dir.join(&artifact.path), &path).await.context("cannot link a cached file")?;
            }
        }
        let (from, dir, artifacts) = (arriving.0.clone(), dir.to_owned(), bad.to_vec());
        blocking(move || {
            for artifact in &artifacts {
                verify(&from.join(&artifact.path), artifact)
                    .with_context(|| format!("`{}` did not arrive as the registry describes it", artifact.path))?;
            }
            for folder in folders(&artifacts) {
                sync_dir(&from.join(folder))?;
            }
            if dir.exists() {
                fs::remove_dir_all(&dir)?;
            }
            fs::rename(&from, &dir)?;
            sync_dir(dir.parent().unwrap_or(&dir))?;
            Ok(())
        })
        .await
        .context("cannot put the model's files into the cache")
    }
}

/// A directory that is removed again unless it was moved into place.
struct Arriving(PathBuf);

impl Drop for Arriving {
    fn drop(&mut self) {
        if self.0.exists()
            && let Err(error) = fs::remove_dir_all(&self.0)
        {
            warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Says what is wrong with the file at `path`, if it is not the artifact.
fn verify(path: &Path, artifact: &Artifact) -> anyhow::Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let size = file.metadata()?.len();
    ensure!(size == artifact.size, "`{}` has {size} bytes instead of {}", artifact.path, artifact.size);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    let sha256 = hex::encode(hash.finalize());
    ensure!(sha256 == artifact.sha256, "`{}` has SHA-256 {sha256} instead of {}", artifact.path, artifact.sha256);
    Ok(())
}

/// Returns every folder the artifacts lie in, innermost first, the root (an empty path) last.
fn folders(artifacts: &[Artifact]) -> Vec<PathBuf> {
    let mut folders: Vec<_> = artifacts
        .iter()
        .flat_map(|artifact| Path::new(&artifact.path).ancestors().skip(1))
        .map(Path::to_owned)
        .collect();
    folders.sort_by_cached_key(|folder| (std::cmp::Reverse(folder.components().count()), folder.clone()));
    folders.dedup();
    folders
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("a file task panicked")?
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::release::{Task, digest};

    /// Writes what the paths' own names say, or damaged bytes.
    #[derive(Default)]
    struct Source {
        fetched: AtomicUsize,
        damaged: bool,
    }

    #[async_trait::async_trait]
    impl Fetch for Source {
        async fn fetch(&self, _: &Release, artifact: &Artifact, into: &Path) -> anyhow::Result<()> {
            self.fetched.fetch_add(1, Ordering::SeqCst);
            let bytes = if self.damaged { artifact.path.to_uppercase() } else { artifact.path.clone() };
            Ok(tokio::fs::write(into, bytes).await?)
        }
    }

    fn release(paths: &[&str]) -> Release {
        let artifacts: Vec<_> = paths
            .iter()
            .map(|path| Artifact {
                path: (*path).to_owned(),
                size: path.len() as u64,
                sha256: hex::encode(Sha256::digest(path.as_bytes())),
            })
            .collect();
        Release {
            model: "m".to_owned(),
            version: 1,
            task: Task::TextEmbedding,
            digest: digest(&artifacts),
            parameters: BTreeMap::new(),
            inputs: Vec::new(),
            artifacts,
        }
    }

    fn open(dir: &tempfile::TempDir) -> Arc<Cache> {
        Arc::new(Cache::open(dir.path().join("cache")).unwrap())
    }

    #[tokio::test]
    async fn files_are_fetched_once_and_a_damaged_one_again() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, source) = (open(&dir), Source::default());
        let release = release(&["config.json", "1_Pooling/config.json"]);
        let files = cache.ensure(&release, &source).await.unwrap();
        assert_eq!(source.fetched.load(Ordering::SeqCst), 2);
        cache.ensure(&release, &source).await.unwrap();
        assert_eq!(source.fetched.load(Ordering::SeqCst), 2);

        fs::write(files.dir.join("config.json"), "confiX.json").unwrap();
        let again = cache.ensure(&release, &source).await.unwrap();
        assert_eq!(source.fetched.load(Ordering::SeqCst), 3);
        assert_eq!(fs::read(again.dir.join("config.json")).unwrap(), b"config.json");
        assert_eq!(fs::read_dir(dir.path().join("cache/tmp")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn files_that_arrive_damaged_are_refused_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(&dir);
        let source = Source { damaged: true, ..Source::default() };
        let refused = cache.ensure(&release(&["config.json"]), &source).await.unwrap_err();
        assert!(format!("{refused:#}").contains("SHA-256"), "{refused:#}");
        assert_eq!(fs::read_dir(dir.path().join("cache/tmp")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(dir.path().join("cache/sha256")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn sweeping_keeps_what_is_held_or_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, source) = (open(&dir), Source::default());
        let (held, remembered, gone) = (release(&["a"]), release(&["b"]), release(&["c"]));
        let reference: Reference = "m@champion".parse().unwrap();
        let files = cache.ensure(&held, &source).await.unwrap();
        cache.ensure(&remembered, &source).await.unwrap();
        cache.remember(&reference, &remembered).unwrap();
        cache.ensure(&gone, &source).await.unwrap();
        cache.sweep([&reference]).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("cache/sha256")).unwrap().count(), 2);
        drop(files);
        cache.sweep([&reference]).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("cache/sha256")).unwrap().count(), 1);
        assert_eq!(cache.remembered(&reference).unwrap(), Some(remembered));
    }

    #[test]
    fn references_of_any_length_are_remembered_apart() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(&dir);
        let (model, alias) = ("m".repeat(255), "a".repeat(255));
        let references = [format!("{model}@{alias}"), format!("{model}@b"), format!("{model}/1")];
        let references = references.map(|reference| reference.parse::<Reference>().unwrap());
        for (version, reference) in references.iter().enumerate() {
            cache.remember(reference, &Release { version: version as i64, ..release(&["a"]) }).unwrap();
        }
        for (version, reference) in references.iter().enumerate() {
            assert_eq!(cache.remembered(reference).unwrap().unwrap().version, version as i64);
        }
    }

    #[test]
    fn two_processes_do_not_share_a_cache() {
        let dir = tempfile::tempdir().unwrap();
        let _first = open(&dir);
        let second = Cache::open(dir.path().join("cache")).err().unwrap();
        assert!(second.to_string().contains("--data-dir"), "{second}");
    }
}
