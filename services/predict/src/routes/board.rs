//! The routes as they stand, who they choose, and what is counted of their targets.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use time::OffsetDateTime;
use tracing::{error, warn};

use super::{
    Guard, Route, Stopped, choose,
    guard::{Outcome, Window},
    saved::{Kept, Saved, Store},
    shadow::ShadowTarget,
};
use crate::{
    catalog::Catalog,
    error::{Error, Result},
    metrics::{self, TargetMeters},
    reference::Reference,
};

/// A guard that looks at latencies and scores does so every so many calls, and at every one that failed.
const JUDGED_EVERY: u64 = 16;

/// All routes of this process.
pub struct Board {
    live: ArcSwap<BTreeMap<String, Arc<Live>>>,
    /// One change at a time, with what was saved of it.
    changing: Mutex<()>,
    store: Store,
    catalog: Arc<Catalog>,
    /// What the configuration names: it need not be saved.
    configured: Vec<Reference>,
}

/// A route with what is counted of its targets.
pub struct Live {
    pub kept: Kept,
    pub champion: Arc<Target>,
    /// In the order of the route.
    pub challengers: Vec<Arc<Target>>,
    /// In the order of the route.
    pub shadows: Vec<Arc<ShadowTarget>>,
}

/// A model that answers a route's calls.
pub struct Target {
    pub reference: Reference,
    /// The reference as text.
    pub name: String,
    meters: TargetMeters,
    window: Mutex<Window>,
    passed_over: AtomicU64,
}

/// Who takes a call.
pub struct Choice {
    pub live: Arc<Live>,
    pub target: Arc<Target>,
}

impl Board {
    /// Puts up what was saved; `configured` is what the configuration names.
    pub fn new(store: Store, saved: Saved, catalog: Arc<Catalog>, configured: Vec<Reference>) -> Self {
        let live = saved.routes.into_iter().map(|kept| (kept.route.name.clone(), Arc::new(Live::new(kept, None))));
        let live = ArcSwap::from_pointee(live.collect());
        Self { live, changing: Mutex::new(()), store, catalog, configured }
    }

    /// Returns a route.
    pub fn get(&self, name: &str) -> Result<Arc<Live>> {
        self.live.load().get(name).cloned().ok_or_else(|| Error::RouteNotFound(name.to_owned()))
    }

    /// Lists at most `limit` routes by name, those after `after`.
    pub fn list(&self, after: &str, limit: usize) -> Vec<Arc<Live>> {
        let live = self.live.load();
        live.values().filter(|live| live.kept.route.name.as_str() > after).take(limit).cloned().collect()
    }

    /// Chooses who takes a call that asks for `asked`; `None` where that is no route.
    pub fn choose(&self, asked: &str, key: Option<&str>) -> Option<Choice> {
        let live = self.live.load().get(asked)?.clone();
        let route = &live.kept.route;
        let champion = std::iter::once((live.champion.name.as_str(), route.champion_weight()));
        let challengers = live.challengers.iter().zip(&route.challengers);
        let targets = champion.chain(challengers.map(|(target, challenger)| (target.name.as_str(), challenger.weight)));
        let challenger = match choose::pick(asked, targets, key, rand::random) {
            None | Some(0) => None,
            Some(index) => live.challengers.get(index - 1),
        };
        let target = match challenger {
            None => live.champion.clone(),
            Some(challenger) if self.catalog.has_warm(&challenger.reference) => challenger.clone(),
            Some(cold) => {
                cold.passed_over.fetch_add(1, Ordering::Relaxed);
                cold.meters.passed_over();
                live.champion.clone()
            }
        };
        Some(Choice { live, target })
    }

    /// Takes note of what came of a call, and stops a challenger that broke its guard.
    pub fn note(self: &Arc<Self>, choice: &Choice, outcome: Outcome) {
        let Choice { live, target } = choice;
        target.meters.called(outcome.took, outcome.failed);
        let total = {
            let mut window = target.window.lock();
            window.add(outcome);
            window.total
        };
        let Some(guard) = live.kept.route.guard else { return };
        if Arc::ptr_eq(target, &live.champion) || !(outcome.failed || total.is_multiple_of(JUDGED_EVERY)) {
            return;
        }
        let verdict = {
            // Always in this order, so that two calls cannot wait for each other.
            let champion = live.champion.window.lock();
            guard.judge(&target.window.lock(), &champion)
        };
        if let Some(verdict) = verdict {
            self.stop(&live.kept.route.name, target, verdict.guard, &verdict.reason);
        }
    }

    /// Makes or replaces a route. Blocks until it is saved.
    pub fn set(&self, route: Route, etag: &str, validate_only: bool) -> Result<Kept> {
        let mut route = route.checked()?;
        let _changing = self.changing.lock();
        let live = self.live.load_full();
        let old = live.get(&route.name);
        match old {
            Some(old) if !etag.is_empty() && old.kept.etag != etag => return Err(Error::EtagMismatch(route.name)),
            None if !etag.is_empty() => return Err(Error::RouteNotFound(route.name)),
            Some(_) | None => {}
        }
        for reference in route.references() {
            if !self.catalog.slot(reference).is_some_and(|slot| slot.is_settled()) {
                return Err(self.catalog.not_served(&reference.to_string()));
            }
        }
        // Why one was stopped is told for as long as it is.
        for challenger in &mut route.challengers {
            let before = old.and_then(|old| {
                old.kept.route.challengers.iter().find(|before| before.reference == challenger.reference)
            });
            challenger.stopped = before.and_then(|before| before.stopped.clone()).filter(|_| challenger.weight <= 0.0);
        }
        let kept = Kept::new(route, old.map(|old| &old.kept), OffsetDateTime::now_utc());
        if !validate_only {
            let mut routes = BTreeMap::clone(&live);
            routes.insert(kept.route.name.clone(), Arc::new(Live::new(kept.clone(), old.map(|old| &**old))));
            self.save(&routes)?;
            self.live.store(Arc::new(routes));
        }
        Ok(kept)
    }

    /// Deletes a route. Blocks until that is saved.
    pub fn delete(&self, name: &str, etag: &str) -> Result<()> {
        let _changing = self.changing.lock();
        let mut routes = BTreeMap::clone(&self.live.load());
        let live = routes.remove(name).ok_or_else(|| Error::RouteNotFound(name.to_owned()))?;
        if !etag.is_empty() && live.kept.etag != etag {
            return Err(Error::EtagMismatch(name.to_owned()));
        }
        self.save(&routes)?;
        self.live.store(Arc::new(routes));
        Ok(())
    }

    /// Does `change` to what is served while no route changes, unless a route names `reference`; then saves what is
    /// served. Blocks.
    pub fn unless_named(&self, reference: &Reference, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let _changing = self.changing.lock();
        let live = self.live.load();
        let names = |live: &&Arc<Live>| live.kept.route.references().any(|named| named == reference);
        let naming: Vec<_> =
            live.values().filter(names).map(|live| format!("route `{}`", live.kept.route.name)).collect();
        if !naming.is_empty() {
            return Err(Error::InRoute { reference: reference.to_string(), routes: naming.join(", ") });
        }
        change()?;
        self.save(&live)
    }

    /// Saves what is served. Blocks.
    pub fn save_models(&self) -> Result<()> {
        let _changing = self.changing.lock();
        self.save(&self.live.load())
    }

    fn save(&self, routes: &BTreeMap<String, Arc<Live>>) -> Result<()> {
        let slots = self.catalog.slots();
        let models = slots.iter().map(|slot| &slot.reference).filter(|served| !self.configured.contains(served));
        let models = models.cloned().collect();
        let saved = Saved { models, routes: routes.values().map(|live| live.kept.clone()).collect() };
        Ok(self.store.save(&saved).context("what is served was not changed")?)
    }

    /// Stops a challenger: at once for callers, then on disk.
    fn stop(self: &Arc<Self>, route: &str, target: &Arc<Target>, guard: &'static str, reason: &str) {
        {
            let _changing = self.changing.lock();
            let mut routes = BTreeMap::clone(&self.live.load());
            let Some(live) = routes.get(route) else { return };
            let Some(index) = live.challengers.iter().position(|other| Arc::ptr_eq(other, target)) else { return };
            let mut changed = live.kept.route.clone();
            let challenger = &mut changed.challengers[index];
            if challenger.weight <= 0.0 {
                return;
            }
            let now = OffsetDateTime::now_utc();
            challenger.weight = 0.0;
            challenger.stopped = Some(Stopped { reason: reason.to_owned(), time: now });
            let live = Live::new(Kept::new(changed, Some(&live.kept), now), Some(live));
            routes.insert(route.to_owned(), Arc::new(live));
            self.live.store(Arc::new(routes));
        }
        metrics::stopped(route, &target.name, guard);
        warn!(route, target = %target.name, "stopped challenger `{}` of route `{route}`: {reason}", target.name);
        let board = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(failure) = board.save_models() {
                error!("a challenger that was stopped will be back after a restart: {failure}");
            }
        });
    }
}

impl Live {
    /// Makes the targets of a route; those that `old` had already go on with what was counted of them, but for
    /// challengers that were stopped and get calls again.
    fn new(kept: Kept, old: Option<&Self>) -> Self {
        let route = &kept.route;
        let window = route.guard.unwrap_or_default().window;
        let target = |reference: &Reference, is_fresh: bool| {
            let known = old.filter(|_| !is_fresh).and_then(|old| {
                let mut targets = std::iter::once(&old.champion).chain(&old.challengers);
                targets.find(|target| target.reference == *reference)
            });
            match known {
                Some(target) => {
                    target.window.lock().resize(window);
                    target.clone()
                }
                None => Arc::new(Target::new(&route.name, reference.clone(), window)),
            }
        };
        let was_stopped = |reference: &Reference| {
            old.is_some_and(|old| {
                let mut challengers = old.kept.route.challengers.iter();
                challengers.any(|before| before.reference == *reference && before.stopped.is_some())
            })
        };
        let champion = target(&route.champion, false);
        let challengers = route.challengers.iter().map(|challenger| {
            target(&challenger.reference, challenger.weight > 0.0 && was_stopped(&challenger.reference))
        });
        let challengers = challengers.collect();
        let shadow = |shadow: &super::Shadow| {
            let known = old.and_then(|old| old.shadows.iter().find(|known| known.reference == shadow.reference));
            known.cloned().unwrap_or_else(|| Arc::new(ShadowTarget::new(&route.name, shadow.reference.clone())))
        };
        let shadows = route.shadows.iter().map(shadow).collect();
        Self { champion, challengers, shadows, kept }
    }

    /// Returns the guard whose window is kept.
    pub fn guard(&self) -> Guard {
        self.kept.route.guard.unwrap_or_default()
    }
}

impl Target {
    fn new(route: &str, reference: Reference, window: usize) -> Self {
        let name = reference.to_string();
        let meters = TargetMeters::new(route, &name);
        Self { reference, name, meters, window: Mutex::new(Window::new(window)), passed_over: AtomicU64::new(0) }
    }

    /// Looks at its newest calls.
    pub fn look<T>(&self, look: impl FnOnce(&Window) -> T) -> T {
        look(&self.window.lock())
    }

    /// Returns how many of its calls the champion answered.
    pub fn passed_over(&self) -> u64 {
        self.passed_over.load(Ordering::Relaxed)
    }
}
