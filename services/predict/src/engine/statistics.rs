//! What a loaded version has done since it was loaded.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use time::OffsetDateTime;

use crate::timing::Timing;

/// Most sizes of batches that are told apart; larger ones that come later count as the largest.
const MOST_SIZES: usize = 1024;

/// Counts calls of the Open Inference Protocol, and the batches of all calls.
#[derive(Debug, Default)]
pub struct Statistics {
    counts: Mutex<Counts>,
}

/// What has been counted.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Calls answered, with all the time they took.
    pub success: Span,
    /// Calls refused or failed.
    pub fail: Span,
    /// Time that answered calls waited.
    pub queue: Span,
    /// Time in the engine of answered calls.
    pub infer: Span,
    /// Items of answered calls that the response cache had.
    pub cached: u64,
    /// Batches computed, and the items in them, for all callers.
    pub executions: u64,
    pub items: u64,
    /// Batches by their number of items, with the time in the engine.
    pub batches: BTreeMap<usize, Span>,
    /// When the last batch ended.
    pub last: Option<OffsetDateTime>,
}

/// How often something happened, and how long that took in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub count: u64,
    pub time: Duration,
}

impl Span {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.time = self.time.saturating_add(time);
    }
}

impl Statistics {
    /// Counts a call that was answered.
    pub fn answered(&self, took: Duration, timing: &Timing) {
        let mut counts = self.counts.lock();
        counts.success.add(took);
        counts.queue.add(timing.queue);
        counts.infer.add(timing.compute);
        counts.cached += timing.cached as u64;
    }

    /// Counts a call that was not.
    pub fn failed(&self, took: Duration) {
        self.counts.lock().fail.add(took);
    }

    /// Counts a batch.
    pub fn computed(&self, took: Duration, items: usize) {
        let now = OffsetDateTime::now_utc();
        let mut counts = self.counts.lock();
        counts.executions += 1;
        counts.items += items as u64;
        counts.last = Some(now);
        let largest = counts.batches.last_key_value().map(|(size, _)| *size);
        let size = match largest {
            Some(largest) if counts.batches.len() >= MOST_SIZES && !counts.batches.contains_key(&items) => largest,
            Some(_) | None => items,
        };
        counts.batches.entry(size).or_default().add(took);
    }

    /// Returns what has been counted.
    pub fn counts(&self) -> Counts {
        self.counts.lock().clone()
    }

    /// Begins again: what warmed the model up was no call.
    pub fn clear(&self) {
        *self.counts.lock() = Counts::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_sizes_there_are_only_so_many_are_told_apart() {
        let statistics = Statistics::default();
        for size in 1..=3 * MOST_SIZES {
            statistics.computed(Duration::from_nanos(1), size);
        }
        let counts = statistics.counts();
        assert_eq!((counts.batches.len(), counts.executions), (MOST_SIZES, 3 * MOST_SIZES as u64));
        assert_eq!(counts.batches.values().map(|span| span.count).sum::<u64>(), counts.executions);
    }
}
