//! Deleting bytes that nothing refers to, while others upload.
//!
//! The danger is bytes that are kept already and referred to in a moment: uploads keep them first and write the row
//! afterwards. Why none of them is lost:
//!
//! 1. Whoever keeps bytes takes a lease on their SHA-256 first, in a transaction of its own ([`Leased`] does it for every
//!    caller). The lease outlasts the row that follows: uploads write it at once (and bytes that took long to come get a
//!    new lease when they are durable), and an archive that took longer than half of [`LEASE`] to
//!    arrive is refused. `import-mlflow` keeps the files of one run or version before its row: collect no garbage
//!    beside it where that may take a day.
//! 2. [`Keeping::sweep`](super::Keeping::sweep) locks the lease of each candidate, a new one where there is none, and the log, which every write
//!    that copies references locks. It deletes bytes only while it holds these locks, and only if there is no lease that
//!    still runs, no reference, and no recent deletion.
//! 3. So a lease is taken either before the sweep locks it, and then the sweep sees it and leaves the bytes alone; or after
//!    the sweep has committed, and then all the bytes are written anew, because keeping never trusts what is there.
//!    References that are copied from rows (registering a version from files) are written under the lock of the log:
//!    the row they are copied from is seen by the sweep, or its deletion is (by then the copy is there).
//! 4. What dies half-way hurts nobody: a sweep that is killed has deleted garbage, an uploader's lease runs out.
//!
//! The age of the bytes (`older_than`) is a second net: keeping writes them anew, so bytes in use by an upload are young.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use crate::artifacts::direct::{Begun, Direct, Part, Staged};
use crate::artifacts::{ArtifactStore, Body, Kept};
use crate::error::Result;
use crate::model::{Artifact, Micros};
use crate::names::Sha256Hex;
use crate::store::Everything;

/// How long bytes are safe after they were kept without anything that refers to them.
pub const LEASE: Duration = Duration::from_secs(24 * 3600);
/// Bytes that took longer than this to come have their lease renewed when they are there.
const LONG: Duration = Duration::from_secs(3600);
/// Contents judged and deleted in one transaction, during which no other write happens.
const AT_ONCE: usize = 20;

/// What is garbage.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Bytes must have been written at least this long ago.
    pub older_than: Duration,
    /// How long what was deleted counts as referred to.
    pub retention: Duration,
    /// Deletes nothing.
    pub dry_run: bool,
}

/// What a collection found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub files: u64,
    pub deleted_files: u64,
    pub deleted_bytes: u64,
}

/// Microseconds of a duration.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Deletes the bytes in `artifacts` that are garbage at `now`, a few at a time: what it found so far comes after each time,
/// at least once. Dropped in between, or after an error, the rest is left for the next collection.
pub fn collect(
    store: Arc<dyn Everything>,
    artifacts: Arc<dyn ArtifactStore>,
    now: Micros,
    rules: Rules,
) -> BoxStream<'static, Result<Collected>> {
    let collection = Collection { store, artifacts: artifacts.clone(), now, rules, found: Collected::default() };
    // The last batch is empty: it ends the collection.
    let batches = artifacts.list().try_chunks(AT_ONCE).map_err(|error| error.1);
    let batches = batches.chain(stream::iter([Ok(Vec::new())]));
    stream::try_unfold((collection, batches), |(mut collection, mut batches)| async move {
        let Some(batch) = batches.try_next().await? else { return Ok(None) };
        collection.judge(batch).await?;
        Ok(Some((collection.found, (collection, batches))))
    })
    .boxed()
}

/// A collection under way.
struct Collection {
    store: Arc<dyn Everything>,
    artifacts: Arc<dyn ArtifactStore>,
    now: Micros,
    rules: Rules,
    found: Collected,
}

impl Collection {
    async fn judge(&mut self, batch: Vec<Kept>) -> Result<()> {
        let Rules { older_than, retention, dry_run } = self.rules;
        let (before, retention) = (self.now.0.saturating_sub(micros(older_than)), micros(retention));
        if batch.is_empty() {
            return if dry_run { Ok(()) } else { self.store.forget(self.now, retention).await };
        }
        self.found.files += batch.len() as u64;
        let old = batch.iter().filter(|kept| kept.modified.0 <= before);
        let mut candidates: Vec<_> = old.map(|kept| kept.sha256.clone()).collect();
        if candidates.is_empty() {
            return Ok(());
        }
        // In one order, so that two collections never wait for each other.
        candidates.sort();
        // A task of its own: a caller who leaves in the middle does not take the locks away from what is being deleted.
        let (store, artifacts, now) = (self.store.clone(), self.artifacts.clone(), self.now);
        let sweeping = tokio::spawn(async move {
            let from = (!dry_run).then_some(&*artifacts);
            store.sweep(&candidates, now, retention, from).await
        });
        let garbage = sweeping.await.map_err(anyhow::Error::from)??;
        for kept in batch.iter().filter(|kept| garbage.contains(&kept.sha256)) {
            self.found.deleted_files += 1;
            self.found.deleted_bytes += kept.size;
        }
        Ok(())
    }
}

/// An artifact store that takes a lease on whatever it keeps.
pub struct Leased {
    pub store: Arc<dyn Everything>,
    pub artifacts: Arc<dyn ArtifactStore>,
}

impl Leased {
    async fn lease(&self, sha256: &Sha256Hex) -> Result<()> {
        self.store.lease(sha256, Micros(Micros::now().0.saturating_add(micros(LEASE)))).await
    }
}

#[deny(clippy::missing_trait_methods, reason = "a way in that takes no lease loses bytes")]
#[async_trait]
impl ArtifactStore for Leased {
    async fn keep(&self, artifact: &Artifact, body: Body<'_>) -> Result<()> {
        let began = Instant::now();
        self.lease(&artifact.sha256).await?;
        self.artifacts.keep(artifact, body).await?;
        if began.elapsed() > LONG { self.lease(&artifact.sha256).await } else { Ok(()) }
    }

    async fn keep_file(&self, artifact: &Artifact, path: &Path) -> Result<()> {
        let began = Instant::now();
        self.lease(&artifact.sha256).await?;
        self.artifacts.keep_file(artifact, path).await?;
        if began.elapsed() > LONG { self.lease(&artifact.sha256).await } else { Ok(()) }
    }

    async fn open(&self, artifact: &Artifact, offset: u64) -> Result<Body<'static>> {
        self.artifacts.open(artifact, offset).await
    }

    fn direct(&self) -> Option<&dyn Direct> {
        self.artifacts.direct().map(|_| self as &dyn Direct)
    }

    fn list(&self) -> BoxStream<'static, Result<Kept>> {
        self.artifacts.list()
    }

    async fn remove(&self, garbage: &[Sha256Hex], deadline: Instant) -> Result<()> {
        self.artifacts.remove(garbage, deadline).await
    }

    async fn sweep(&self, stale_after: Duration) -> Result<()> {
        self.artifacts.sweep(stale_after).await
    }
}

impl Leased {
    fn bucket(&self) -> Result<&dyn Direct> {
        let missing = || anyhow::anyhow!("this artifact store cannot be reached directly").into();
        self.artifacts.direct().ok_or_else(missing)
    }
}

#[deny(clippy::missing_trait_methods, reason = "a way in that takes no lease loses bytes")]
#[async_trait]
impl Direct for Leased {
    async fn url(&self, artifact: &Artifact, valid: Duration) -> Result<String> {
        self.bucket()?.url(artifact, valid).await
    }

    async fn begin(&self, parts: i32) -> Result<Begun> {
        self.bucket()?.begin(parts).await
    }

    async fn complete(&self, id: &str, parts: Vec<Part>) -> Result<Staged> {
        self.bucket()?.complete(id, parts).await
    }

    async fn adopt(&self, staged: &Staged) -> Result<()> {
        let began = Instant::now();
        self.lease(&staged.sha256).await?;
        self.bucket()?.adopt(staged).await?;
        if began.elapsed() > LONG { self.lease(&staged.sha256).await } else { Ok(()) }
    }

    async fn abort(&self, id: &str) -> Result<()> {
        self.bucket()?.abort(id).await
    }
}
