//! Keeps each slot on the version its reference points at: resolve, fetch, verify, load, warm up, swap.
//!
//! Slots come and go with [`Follower::load`] and [`Follower::unload`].
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
    catalog::{Catalog, Slot, Standing, State},
    error::{Error, Result},
    metrics,
    model::{Loaded, Sizing},
    reference::Reference,
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
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
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
    pub fn start(self) -> Arc<Self> {
        let follower = Arc::new(self);
        follower.report();
        for slot in follower.catalog.slots().iter() {
            follower.spawn(slot.clone());
        }
        let (watching, stop) = (follower.clone(), follower.stop.clone());
        follower.tasks.spawn(stop.run_until_cancelled_owned(async move { watching.watch().await }));
        follower
    }

    /// Begins to serve `reference`, and waits for what comes of the first attempt. A slot that is new and fails it is
    /// taken away again; the error says why. What is served already is left as it is. To be run to its end: a slot
    /// that nobody waits for any more would stay.
    pub async fn load(self: &Arc<Self>, reference: &Reference) -> Result<Standing> {
        let (slot, is_new) = self.catalog.add(reference);
        if is_new {
            self.spawn(slot.clone());
        }
        slot.first_attempt().await;
        let outcome = served(&slot);
        if is_new {
            metrics::loaded("load", if outcome.is_ok() { "ok" } else { "failed" });
            if outcome.is_err() {
                self.remove(reference);
            }
        }
        outcome
    }

    /// Stops serving `reference`; tells whether it was served. Calls in flight end on it.
    pub fn unload(&self, reference: &Reference) -> bool {
        let was_served = self.remove(reference);
        metrics::loaded("unload", if was_served { "ok" } else { "failed" });
        if was_served {
            info!(model.reference = %reference, "no longer serving `{reference}`");
        }
        was_served
    }

    fn remove(&self, reference: &Reference) -> bool {
        let was_there = self.catalog.remove(reference);
        if was_there && let Err(failure) = self.cache.forget(reference) {
            warn!("{failure:#}");
        }
        self.sweep();
        self.report();
        was_there
    }

    fn spawn(self: &Arc<Self>, slot: Arc<Slot>) {
        let (follower, stop, gone) = (self.clone(), self.stop.clone(), slot.gone.clone());
        self.tasks.spawn(async move {
            let following = gone.run_until_cancelled(follower.follow(&slot));
            stop.run_until_cancelled(following).await;
        });
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
                    let unreachable =
                        failure.chain().any(|cause| matches!(cause.downcast_ref(), Some(Unresolved::Unreachable(_))));
                    let message = format!("{failure:#}");
                    if slot.standing().message != message {
                        error!(model.reference = %slot.reference, "cannot serve what `{}` points at: {message}", slot.reference);
                    }
                    metrics::swap(&slot.reference.to_string(), "failed");
                    slot.fail(message, unreachable);
                    pause.next()
                }
            };
            slot.attempted();
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
                let Some(release) = remembered else {
                    let missing = format!("`{reference}` is not in the cache");
                    return Err(anyhow::Error::from(unreachable).context(missing));
                };
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
        if slot.gone.is_cancelled() {
            bail!("`{reference}` is no longer to be served");
        }
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
        metrics::models(count(self.catalog.slots().iter().map(|slot| slot.standing())));
    }

    /// Wakes slots whose model changed in the registry.
    async fn watch(&self) {
        let mut token = None;
        let mut pause = Backoff::default();
        let mut changed = self.catalog.changes();
        loop {
            changed.borrow_and_update();
            let slots = self.catalog.slots();
            let models: BTreeSet<_> = slots.iter().map(|slot| slot.reference.model.clone()).collect();
            if models.is_empty() {
                // Of no models in particular would be of all.
                let _kept_by_the_catalog = changed.changed().await;
                continue;
            }
            let watched = tokio::select! {
                watched = self.changes(&models, &mut token, &mut pause) => watched,
                // Other slots, other models: watch those, from where this watch ended.
                _ = changed.changed() => continue,
            };
            match watched {
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
    ) -> std::result::Result<(), Status> {
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

/// Counts the slots by what [`metrics::MODELS`] calls their states.
fn count(slots: impl Iterator<Item = Standing>) -> [(&'static str, usize); 4] {
    let mut counts = [("serving", 0), ("stale", 0), ("loading", 0), ("failed", 0)];
    for standing in slots {
        let state = match standing.state {
            State::Serving if standing.message.is_empty() => 0,
            State::Serving => 1,
            State::Loading => 2,
            State::Failed => 3,
        };
        counts[state].1 += 1;
    }
    counts
}

/// Returns what a slot that serves has to tell, or the error of one that does not.
fn served(slot: &Slot) -> Result<Standing> {
    let standing = slot.standing();
    let (reference, message) = (slot.reference.to_string(), standing.message.clone());
    match standing.state {
        State::Serving => Ok(standing),
        State::Failed if standing.is_unreachable => Err(Error::RegistryUnavailable { reference, message }),
        State::Failed => Err(Error::NotLoaded { reference, message }),
        State::Loading => Err(Error::Loading { reference, state: message }),
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
