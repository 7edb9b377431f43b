//! What is being served: one slot per configured reference, each with a version that can be exchanged while in use.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    error::{Error, Result},
    model::Loaded,
    reference::{Reference, Selector},
};

/// The models this process was told to serve.
pub struct Catalog {
    slots: Vec<Arc<Slot>>,
}

/// One configured reference and what stands behind it now.
pub struct Slot {
    pub reference: Reference,
    current: ArcSwapOption<Loaded>,
    /// Why nothing is served, or why a newer version was not taken; empty when all is well.
    trouble: Mutex<Trouble>,
    /// Asks the slot's follower to look again.
    pub wake: Notify,
}

#[derive(Clone, Default)]
struct Trouble {
    message: String,
    failed: bool,
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
    pub fn new(references: &[Reference]) -> Self {
        let slot = |reference: &Reference| {
            Arc::new(Slot {
                reference: reference.clone(),
                current: ArcSwapOption::empty(),
                trouble: Mutex::default(),
                wake: Notify::new(),
            })
        };
        Self { slots: references.iter().map(slot).collect() }
    }

    /// Returns the slots in the order of the configuration.
    pub fn slots(&self) -> &[Arc<Slot>] {
        &self.slots
    }

    /// Finds the warm model for a call: by a configured reference, or by the number of a version that is being served.
    pub fn find(&self, asked: &str) -> Result<Found> {
        let reference: Reference =
            asked.parse().map_err(|problem: String| Error::field("model", format!("is wrong: {problem}")))?;
        let alias = reference.alias().to_owned();
        if let Some(slot) = self.slots.iter().find(|slot| slot.reference == reference) {
            let loading = || Error::Loading { reference: reference.to_string(), state: slot.standing().message };
            return Ok(Found { model: slot.current().ok_or_else(loading)?, alias });
        }
        let numbered = |model: &Arc<Loaded>| {
            model.release.model == reference.model && reference.selector == Selector::Version(model.release.version)
        };
        match self.slots.iter().filter_map(|slot| slot.current()).find(numbered) {
            Some(model) => Ok(Found { model, alias }),
            None => Err(self.not_served(asked)),
        }
    }

    /// Tells whether every slot has a warm model.
    pub fn is_warm(&self) -> bool {
        self.slots.iter().all(|slot| slot.current.load().is_some())
    }

    /// Says what is not warm, for people.
    pub fn cold(&self) -> String {
        let cold = self.slots.iter().filter(|slot| slot.current.load().is_none());
        let told = cold.map(|slot| format!("{}: {}", slot.reference, slot.standing().message));
        told.collect::<Vec<_>>().join("; ")
    }

    /// Makes the error of asking for what is not served.
    pub fn not_served(&self, asked: &str) -> Error {
        Error::NotServed { asked: asked.to_owned(), served: self.served() }
    }

    fn served(&self) -> String {
        if self.slots.is_empty() {
            return "nothing is served: name models with --models or PREDICT_MODELS".to_owned();
        }
        let served: Vec<_> = self.slots.iter().map(|slot| format!("`{}`", slot.reference)).collect();
        format!("served are {}", served.join(", "))
    }
}

impl Slot {
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

    /// Notes that what serves is what should.
    pub fn settle(&self) {
        *self.trouble.lock() = Trouble::default();
    }

    /// Notes something people should know though the slot serves as it can.
    pub fn note(&self, message: String) {
        *self.trouble.lock() = Trouble { message, failed: false };
    }

    /// Notes that the last attempt to bring the slot up to date failed.
    pub fn fail(&self, message: String) {
        *self.trouble.lock() = Trouble { message, failed: true };
    }

    /// Returns what there is to tell.
    pub fn standing(&self) -> Standing {
        let serving = self.current.load_full().map(|model| (model.release.version, model.release.digest.clone()));
        let Trouble { message, failed } = self.trouble.lock().clone();
        let state = match (&serving, failed) {
            (Some(_), _) => State::Serving,
            (None, true) => State::Failed,
            (None, false) => State::Loading,
        };
        let message = if message.is_empty() && state == State::Loading { "loading".to_owned() } else { message };
        Standing { reference: self.reference.clone(), state, serving, message }
    }
}
