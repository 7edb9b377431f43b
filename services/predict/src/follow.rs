//! Keeps each slot on the version its reference points at: resolve, fetch, verify, load, warm up, swap.
//!
//! Whatever goes wrong, what serves goes on serving, and it is tried again: when the registry says something changed,
//! and at the latest after a minute. A version that is here and cannot be loaded is tried again less often: versions do
//! not change, so only something on this machine can make it load.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rand::Rng;
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Status};
use tracing::{error, info, warn};
use verdict_api::{events::ModelEvent, registry::WatchModelsResponse};
use verdict_chassis::health::Health;

use crate::{
    SERVICES,
    cache::{Cache, Pinned},
    catalog::{Catalog, Slot},
    metrics,
    model::{Loaded, Sizing},
    registry::{Registry, Unresolved},
    release::Release,
};

/// A slot looks again after this even when nobody says that something changed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// A version that could not be loaded is loaded again after this.
const LOAD_AGAIN: Duration = Duration::from_secs(600);
/// The registry sends a heartbeat at least every 30 seconds; a watch that is silent for longer is dead.
const SILENCE: Duration = Duration::from_secs(75);

/// What following needs.
pub struct Follower {
    pub catalog: Arc<Catalog>,
    pub cache: Arc<Cache>,
    pub registry: Registry,
    pub sizing: Sizing,
    pub health: Health,
}

/// A version whose files are here and sound, and that could not be loaded.
struct Broken {
    release: Release,
    problem: String,
    tried: Instant,
    /// Keeps the files: to see what is wrong with them, and so that they are not fetched again.
    _pin: Arc<Pinned>,
}

impl Follower {
    /// Starts following every slot, until `stop`.
    pub fn start(self, tasks: &TaskTracker, stop: &CancellationToken) {
        let follower = Arc::new(self);
        follower.report();
        for slot in follower.catalog.slots() {
            let (follower, slot) = (follower.clone(), slot.clone());
            tasks.spawn(stop.clone().run_until_cancelled_owned(async move { follower.follow(&slot).await }));
        }
        if !follower.catalog.slots().is_empty() {
            tasks.spawn(stop.clone().run_until_cancelled_owned(async move { follower.watch().await }));
        }
    }

    async fn follow(&self, slot: &Slot) {
        let mut pause = Backoff::default();
        let mut broken = None;
        loop {
            let wait = match self.refresh(slot, &mut broken).await {
                Ok(()) => {
                    pause = Backoff::default();
                    self.sweep();
                    LOOK_AGAIN
                }
                Err(failure) => {
                    let message = format!("{failure:#}");
                    if slot.standing().message != message {
                        error!(model.reference = %slot.reference, "cannot serve what `{}` points at: {message}", slot.reference);
                    }
                    metrics::swap(&slot.reference.to_string(), "failed");
                    slot.fail(message);
                    pause.next()
                }
            };
            self.report();
            tokio::select! {
                () = slot.wake.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Brings a slot up to date once; what the last load that failed was about is in `broken`.
    async fn refresh(&self, slot: &Slot, broken: &mut Option<Broken>) -> anyhow::Result<()> {
        let reference = &slot.reference;
        let current = slot.current();
        let (release, offline) = match self.registry.resolve(reference).await {
            Ok(release) => (release, None),
            Err(unreachable @ Unresolved::Unreachable(_)) if current.is_none() => {
                let remembered = self.cache.remembered(reference).unwrap_or_else(|damaged| {
                    warn!("{damaged:#}");
                    None
                });
                let release =
                    remembered.with_context(|| format!("{unreachable}, and `{reference}` is not in the cache"))?;
                (release, Some(unreachable))
            }
            Err(unresolved) => return Err(unresolved.into()),
        };
        drop(broken.take_if(|broken| broken.release != release || broken.tried.elapsed() >= LOAD_AGAIN));
        if current.is_some_and(|current| current.release == release) {
            slot.settle();
            return Ok(());
        }
        if let Some(Broken { problem, .. }) = broken {
            bail!("{problem}");
        }
        info!(model.reference = %reference, model.version = release.version, "loading version {} of `{reference}`", release.version);
        let files = self.cache.ensure(&release, &self.registry).await.map_err(|failure| match &offline {
            Some(unreachable) => failure.context(format!("{unreachable}, and the cached files cannot be used")),
            None => failure,
        })?;
        let (version, sizing, loading, pin) =
            (release.version, self.sizing.clone(), release.clone(), files.pin.clone());
        let loaded = tokio::task::spawn_blocking(move || Loaded::load(loading, files, &sizing))
            .await
            .context("loading panicked")
            .and_then(|loaded| loaded)
            .with_context(|| format!("version {version} cannot be loaded"))
            .inspect_err(|failure| {
                let (release, problem) = (release.clone(), format!("{failure:#}"));
                *broken = Some(Broken { release, problem, tried: Instant::now(), _pin: pin });
            })?;
        // Before it serves: after a restart without the registry, what served last must serve again.
        if offline.is_none() {
            self.cache.remember(reference, &release)?;
        }
        let old = slot.swap(loaded);
        metrics::swap(&reference.to_string(), "swapped");
        match old {
            Some(old) => {
                let from = old.release.version;
                info!(model.reference = %reference, model.version = version, "`{reference}` moved from version {from} to {version}");
            }
            None => {
                info!(model.reference = %reference, model.version = version, "serving version {version} of `{reference}`")
            }
        }
        if let Some(unreachable) = offline {
            slot.note(format!("served from the cache: {unreachable}"));
        }
        Ok(())
    }

    /// Lets go of cached versions that no longer serve.
    fn sweep(&self) {
        if let Err(failure) = self.cache.sweep(self.catalog.slots().iter().map(|slot| &slot.reference)) {
            warn!("the model cache cannot be kept tidy: {failure:#}");
        }
    }

    /// Says on the health board whether everything configured is warm.
    fn report(&self) {
        let warm = self.catalog.is_warm();
        let why = if warm { "all models are warm".to_owned() } else { self.catalog.cold() };
        for service in SERVICES {
            self.health.set(service, warm, why.clone());
        }
    }

    /// Wakes slots whose model changed in the registry.
    async fn watch(&self) {
        let models: BTreeSet<_> = self.catalog.slots().iter().map(|slot| slot.reference.model.clone()).collect();
        let mut token = None;
        let mut pause = Backoff::default();
        loop {
            match self.changes(&models, &mut token, &mut pause).await {
                Ok(()) => info!("the watch on the registry ended and is opened again"),
                Err(status) => {
                    if matches!(status.code(), Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition) {
                        // The registry does not know this position, so it is not the one that gave it.
                        token = None;
                    }
                    warn!("cannot watch the registry: {:?}: {}", status.code(), status.message());
                }
            }
            sleep(pause.next()).await;
        }
    }

    async fn changes(
        &self,
        models: &BTreeSet<String>,
        token: &mut Option<i64>,
        pause: &mut Backoff,
    ) -> Result<(), Status> {
        let mut changes = self.registry.watch(models.clone(), *token).await?;
        // What happened before the watch began is found by looking once.
        self.wake(|_| true);
        loop {
            let change = timeout(SILENCE, changes.message())
                .await
                .map_err(|_elapsed| Status::unavailable(format!("nothing heard for {SILENCE:?}")))?;
            let Some(WatchModelsResponse { event, sequence }) = change? else { return Ok(()) };
            *pause = Backoff::default();
            *token = Some(sequence);
            if let Some(ModelEvent { model, .. }) = event {
                self.wake(|slot| slot.reference.model == model);
            }
        }
    }

    fn wake(&self, about: impl Fn(&Slot) -> bool) {
        for slot in self.catalog.slots().iter().filter(|slot| about(slot)) {
            slot.wake.notify_one();
        }
    }
}

/// Doubling pauses from half a second to half a minute, each cut by chance to between half and all of it.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_millis(500))
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let pause = self.0.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.0 = (self.0 * 2).min(Duration::from_secs(30));
        pause
    }
}
