//! How fast a model's workers have been lately, and how long something would take them.

use std::time::{Duration, Instant};

/// What is kept of earlier batches with every new one.
const KEPT: f64 = 0.8;
/// Without work for longer than this, what was measured is not held against a call.
const FRESH: Duration = Duration::from_secs(1);
/// Least and most time a refused caller is asked to stay away.
const AWAY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Longest time that is told.
const LONGEST: f64 = 86_400.0;

/// The measured rate of one model's workers: time and cost of the newest batches, each worth less with every one that
/// follows, so that a small batch with a large overhead says little.
#[derive(Debug)]
pub struct Rate {
    workers: f64,
    seconds: f64,
    cost: f64,
    at: Instant,
}

impl Rate {
    /// Knows nothing yet of so many workers.
    pub fn new(workers: usize) -> Self {
        Self { workers: workers.max(1) as f64, seconds: 0.0, cost: 0.0, at: Instant::now() }
    }

    /// Takes note that one worker did `cost` in `took`.
    pub fn measured(&mut self, cost: usize, took: Duration, now: Instant) {
        self.seconds = self.seconds * KEPT + took.as_secs_f64();
        self.cost = self.cost * KEPT + cost.max(1) as f64;
        self.at = now;
    }

    /// Returns how many seconds one unit of cost takes one worker.
    fn seconds(&self) -> Option<f64> {
        (self.cost > 0.0).then(|| self.seconds / self.cost)
    }

    /// Returns how long a call of `own` cost, the largest piece of it `largest`, takes behind `ahead`; `None` when that
    /// is not known, or was measured too long ago to turn away a call that would find everything idle.
    pub fn estimate(&self, ahead: usize, own: usize, largest: usize, is_idle: bool, now: Instant) -> Option<Duration> {
        let seconds = self.seconds()?;
        if is_idle && now.saturating_duration_since(self.at) > FRESH {
            return None;
        }
        let wait = ahead as f64 * seconds / self.workers;
        let work = (own as f64 * seconds / self.workers).max(largest as f64 * seconds);
        Some(Duration::from_secs_f64((wait + work).min(LONGEST)))
    }

    /// Returns about how long `cost` takes all workers, as a time to stay away.
    pub fn drain(&self, cost: usize) -> Duration {
        let seconds = self.seconds().map_or(0.0, |seconds| cost as f64 * seconds / self.workers);
        Duration::from_secs_f64(seconds.min(LONGEST)).clamp(AWAY.0, AWAY.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_is_the_wait_and_the_work() {
        let (mut rate, now) = (Rate::new(2), Instant::now());
        assert_eq!(rate.estimate(100, 10, 10, false, now), None);
        rate.measured(100, Duration::from_secs(1), now);
        // 100 before it and two workers: half a second; then its own 10, which one worker does.
        let estimate = rate.estimate(100, 10, 10, false, now).unwrap();
        assert!((estimate.as_secs_f64() - 0.6).abs() < 1e-9, "{estimate:?}");
        // Many pieces are shared by the workers.
        let estimate = rate.estimate(0, 200, 10, false, now).unwrap();
        assert!((estimate.as_secs_f64() - 1.0).abs() < 1e-9, "{estimate:?}");
        assert!((rate.drain(50).as_secs_f64() - 0.25).abs() < 1e-9);
    }

    #[test]
    fn a_small_batch_says_little_and_a_change_is_noticed() {
        let (mut rate, now) = (Rate::new(1), Instant::now());
        let seconds = |rate: &Rate| rate.estimate(0, 1, 1, false, now).unwrap().as_secs_f64();
        rate.measured(1000, Duration::from_secs(1), now);
        rate.measured(1, Duration::from_millis(10), now);
        assert!(seconds(&rate) < 0.00102, "{}", seconds(&rate));
        for _ in 0..20 {
            rate.measured(1000, Duration::from_secs(3), now);
        }
        assert!((seconds(&rate) - 0.003).abs() < 0.0001, "{}", seconds(&rate));
    }

    #[test]
    fn what_was_measured_long_ago_turns_nobody_away() {
        let (mut rate, now) = (Rate::new(1), Instant::now());
        rate.measured(1, Duration::from_secs(5), now);
        let later = now + FRESH + Duration::from_millis(1);
        assert_eq!(rate.estimate(0, 1, 1, true, later), None);
        assert!(rate.estimate(0, 1, 1, true, now).is_some());
        assert!(rate.estimate(0, 1, 1, false, later).is_some());
    }
}
