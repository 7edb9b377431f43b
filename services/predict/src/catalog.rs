//! What is being served: one slot per reference, each with a version that can be exchanged while in use. Slots come and
//! go while the process runs.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Result},
    model::Loaded,
    reference::{Reference, Selector},
};

/// The models this process serves.
pub struct Catalog {
    slots: ArcSwap<Vec<Arc<Slot>>>,
    /// One change of the slots at a time.
    changing: Mutex<()>,
    /// Counts the changes of the slots.
    changes: watch::Sender<u64>,
}

/// One reference and what stands behind it now.
pub struct Slot {
    pub reference: Reference,
    /// Whether this process is not ready without it.
    pub is_required: bool,
    current: ArcSwapOption<Loaded>,
    /// Why nothing is served, or why a newer version was not taken; empty when all is well.
    trouble: Mutex<Trouble>,
    /// Counts the attempts to bring the slot up to date.
    attempts: watch::Sender<u64>,
    /// Asks the slot's follower to look again.
    pub wake: Notify,
    /// The slot is no longer served.
    pub gone: CancellationToken,
}

#[derive(Clone, Default)]
struct Trouble {
    message: String,
    failed: bool,
    unreachable: bool,
}

/// A model found for a call. Holding it keeps the version alive.
pub struct Found {
    pub model: Arc<Loaded>,
    /// The alias it was asked for by; empty when by number.
    pub alias: String,
}

/// What a slot has to tell.
pub struct Standing {
    pub reference: Reference,
    pub state: State,
    /// Version and digest that serve.
    pub serving: Option<(i64, String)>,
    pub message: String,
    /// Whether the last attempt failed because the registry did not answer.
    pub is_unreachable: bool,
}

/// Where a slot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Loading,
    Serving,
    Failed,
}

impl Catalog {
    /// Makes a slot for each reference.
    pub fn new<'a>(references: impl IntoIterator<Item = &'a Reference>) -> Self {
        let mut slots: Vec<Arc<Slot>> = Vec::new();
        for reference in references {
            if !slots.iter().any(|slot| slot.reference == *reference) {
                slots.push(Arc::new(Slot::new(reference.clone(), true)));
            }
        }
        Self { slots: ArcSwap::from_pointee(slots), changing: Mutex::new(()), changes: watch::Sender::new(0) }
    }

    /// Returns the slots in the order in which they came.
    pub fn slots(&self) -> Arc<Vec<Arc<Slot>>> {
        self.slots.load_full()
    }

    /// Returns the slot of a reference.
    pub fn slot(&self, reference: &Reference) -> Option<Arc<Slot>> {
        self.slots.load().iter().find(|slot| slot.reference == *reference).cloned()
    }

    /// Counts the changes of the slots, for those who wait for one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Returns the slot of a reference, which is new where that is `true`.
    pub fn add(&self, reference: &Reference) -> (Arc<Slot>, bool) {
        let _changing = self.changing.lock();
        if let Some(slot) = self.slot(reference) {
            return (slot, false);
        }
        let slot = Arc::new(Slot::new(reference.clone(), false));
        let mut slots = Vec::clone(&self.slots.load());
        slots.push(slot.clone());
        self.slots.store(Arc::new(slots));
        self.changes.send_modify(|changes| *changes += 1);
        (slot, true)
    }

    /// Takes a slot away: calls in flight end on the version they found. Tells whether there was one.
    pub fn remove(&self, reference: &Reference) -> bool {
        let _changing = self.changing.lock();
        let Some(slot) = self.slot(reference) else { return false };
        let mut slots = Vec::clone(&self.slots.load());
        slots.retain(|other| !Arc::ptr_eq(other, &slot));
        self.slots.store(Arc::new(slots));
        slot.gone.cancel();
        self.changes.send_modify(|changes| *changes += 1);
        true
    }

    /// Finds the warm model for a call: by a reference that is served, or by the number of a version that is.
    pub fn find(&self, asked: &str) -> Result<Found> {
        let reference: Reference = asked.parse().map_err(|problem: String| Error::model(&problem))?;
        let alias = reference.alias().to_owned();
        let slots = self.slots.load();
        if let Some(slot) = slots.iter().find(|slot| slot.reference == reference) {
            let loading = || Error::Loading { reference: reference.to_string(), state: slot.standing().message };
            return Ok(Found { model: slot.current().ok_or_else(loading)?, alias });
        }
        let numbered = |model: &Arc<Loaded>| {
            model.release.model == reference.model && reference.selector == Selector::Version(model.release.version)
        };
        match slots.iter().filter_map(|slot| slot.current()).find(numbered) {
            Some(model) => Ok(Found { model, alias }),
            None => Err(self.not_served(asked)),
        }
    }

    /// Tells whether a reference is served and warm.
    pub fn has_warm(&self, reference: &Reference) -> bool {
        self.slots.load().iter().any(|slot| slot.reference == *reference && slot.current.load().is_some())
    }

    /// Tells whether every slot that must be has a warm model.
    pub fn is_warm(&self) -> bool {
        self.slots.load().iter().all(|slot| !slot.is_required || slot.current.load().is_some())
    }

    /// Says what is not warm, for people.
    pub fn cold(&self) -> String {
        let slots = self.slots.load();
        let cold = slots.iter().filter(|slot| slot.current.load().is_none());
        let told = cold.map(|slot| format!("{}: {}", slot.reference, slot.standing().message));
        told.collect::<Vec<_>>().join("; ")
    }

    /// Makes the error of asking for what is not served.
    pub fn not_served(&self, asked: &str) -> Error {
        Error::NotServed { asked: asked.to_owned(), served: self.served() }
    }

    fn served(&self) -> String {
        let slots = self.slots.load();
        if slots.is_empty() {
            return "nothing is served: name models with --models or PREDICT_MODELS".to_owned();
        }
        let served: Vec<_> = slots.iter().map(|slot| format!("`{}`", slot.reference)).collect();
        format!("served are {}", served.join(", "))
    }
}

impl Slot {
    fn new(reference: Reference, is_required: bool) -> Self {
        Self {
            reference,
            is_required,
            current: ArcSwapOption::empty(),
            trouble: Mutex::default(),
            attempts: watch::Sender::new(0),
            wake: Notify::new(),
            gone: CancellationToken::new(),
        }
    }

    /// Returns the version that serves now.
    pub fn current(&self) -> Option<Arc<Loaded>> {
        self.current.load_full()
    }

    /// Puts a warm version in place, atomically: calls that have the old one finish on it. Returns the old one.
    pub fn swap(&self, model: Loaded) -> Option<Arc<Loaded>> {
        let old = self.current.swap(Some(Arc::new(model)));
        self.settle();
        old
    }

    /// Tells whether the slot stays: one that is being loaded by a call goes again when that fails.
    pub fn is_settled(&self) -> bool {
        self.is_required || self.current.load().is_some()
    }

    /// Notes that what serves is what should.
    pub fn settle(&self) {
        *self.trouble.lock() = Trouble::default();
    }

    /// Notes something people should know though the slot serves as it can.
    pub fn note(&self, message: String) {
        *self.trouble.lock() = Trouble { message, ..Trouble::default() };
    }

    /// Notes that the last attempt to bring the slot up to date failed.
    pub fn fail(&self, message: String, unreachable: bool) {
        *self.trouble.lock() = Trouble { message, failed: true, unreachable };
    }

    /// Notes that an attempt to bring the slot up to date is over.
    pub fn attempted(&self) {
        self.attempts.send_modify(|attempts| *attempts += 1);
    }

    /// Waits until the slot serves, an attempt that ends after now has failed, or the slot is gone.
    pub async fn first_attempt(&self) {
        let mut attempts = self.attempts.subscribe();
        loop {
            let before = *attempts.borrow_and_update();
            if before > 0 || self.current.load().is_some() || self.gone.is_cancelled() {
                return;
            }
            tokio::select! {
                _ = attempts.changed() => {}
                () = self.gone.cancelled() => {}
            }
        }
    }

    /// Returns what there is to tell.
    pub fn standing(&self) -> Standing {
        let serving = self.current.load_full().map(|model| (model.release.version, model.release.digest.clone()));
        let Trouble { message, failed, unreachable } = self.trouble.lock().clone();
        let state = match (&serving, failed) {
            (Some(_), _) => State::Serving,
            (None, true) => State::Failed,
            (None, false) => State::Loading,
        };
        let message = if message.is_empty() && state == State::Loading { "loading".to_owned() } else { message };
        Standing { reference: self.reference.clone(), state, serving, message, is_unreachable: unreachable }
    }
}
