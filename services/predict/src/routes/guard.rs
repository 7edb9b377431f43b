//! The newest calls of a target, and what a guard makes of them. Pure.

use std::{collections::VecDeque, time::Duration};

use super::Guard;

/// What came of one call.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub took: Duration,
    pub failed: bool,
    /// Sum and number of the scores in the answer.
    pub scores: (f64, u32),
}

/// The newest calls of a target.
#[derive(Debug)]
pub struct Window {
    size: usize,
    calls: VecDeque<Outcome>,
    failed: usize,
    scores: (f64, u64),
    /// All calls that were counted.
    pub total: u64,
    pub total_failed: u64,
}

/// Which limit was broken, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// `error_rate`, `latency_p99`, `score_shift`.
    pub guard: &'static str,
    pub reason: String,
}

impl Window {
    /// Keeps the newest `size` calls.
    pub fn new(size: usize) -> Self {
        Self { size: size.max(1), calls: VecDeque::new(), failed: 0, scores: (0.0, 0), total: 0, total_failed: 0 }
    }

    /// Keeps another number of calls from here on.
    pub fn resize(&mut self, size: usize) {
        self.size = size.max(1);
        while self.calls.len() > self.size {
            self.forget();
        }
    }

    /// Counts a call.
    pub fn add(&mut self, outcome: Outcome) {
        if self.calls.len() >= self.size {
            self.forget();
        }
        self.calls.push_back(outcome);
        self.failed += usize::from(outcome.failed);
        self.scores = (self.scores.0 + outcome.scores.0, self.scores.1 + u64::from(outcome.scores.1));
        self.total += 1;
        self.total_failed += u64::from(outcome.failed);
    }

    /// Returns how many calls there are.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Returns the share of the calls that failed; 0 where there are none.
    pub fn error_rate(&self) -> f64 {
        self.failed as f64 / self.calls.len().max(1) as f64
    }

    /// Returns a percentile of the time answers took, by nearest rank; zero where there are none.
    pub fn latency(&self, percentile: f64) -> Duration {
        let mut times: Vec<_> = self.calls.iter().map(|call| call.took).collect();
        if times.is_empty() {
            return Duration::ZERO;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank within the window")]
        let rank = (times.len() as f64 * percentile / 100.0).ceil().max(1.0) as usize;
        let rank = rank.min(times.len()) - 1;
        *times.select_nth_unstable(rank).1
    }

    /// Returns the mean of all scores.
    pub fn mean_score(&self) -> Option<f64> {
        // Summed anew: taking away what was added would leave rounding behind.
        let sum: f64 = self.calls.iter().map(|call| call.scores.0).sum();
        (self.scores.1 > 0).then(|| sum / self.scores.1 as f64)
    }

    fn forget(&mut self) {
        if let Some(oldest) = self.calls.pop_front() {
            self.failed -= usize::from(oldest.failed);
            self.scores = (self.scores.0 - oldest.scores.0, self.scores.1 - u64::from(oldest.scores.1));
        }
    }
}

impl Guard {
    /// Says which limit the challenger broke, if it did.
    pub fn judge(&self, challenger: &Window, champion: &Window) -> Option<Verdict> {
        if challenger.len() < self.min_calls {
            return None;
        }
        let calls = challenger.len();
        let can_compare = champion.len() >= self.min_calls;
        if let Some(most) = self.max_error_rate_increase {
            let (rate, usual) = (challenger.error_rate(), champion.error_rate());
            if rate - usual > most {
                let reason = format!(
                    "{:.1} % of its newest {calls} calls failed, and {:.1} % of the champion's: at most {:.1} % more are allowed",
                    rate * 100.0,
                    usual * 100.0,
                    most * 100.0
                );
                return Some(Verdict { guard: "error_rate", reason });
            }
        }
        if self.max_latency_p99_ms.is_some() || (self.max_latency_p99_ratio.is_some() && can_compare) {
            let p99 = challenger.latency(99.0).as_secs_f64() * 1e3;
            if let Some(most) = self.max_latency_p99_ms.filter(|most| p99 > *most) {
                let reason = format!(
                    "the 99th percentile of its newest {calls} answers is {p99:.2} ms: at most {most} ms are allowed"
                );
                return Some(Verdict { guard: "latency_p99", reason });
            }
            if let Some(most) = self.max_latency_p99_ratio.filter(|_| can_compare) {
                let usual = champion.latency(99.0).as_secs_f64() * 1e3;
                if p99 > usual * most {
                    let reason = format!(
                        "the 99th percentile of its newest {calls} answers is {p99:.2} ms, the champion's {usual:.2} ms: \
                         at most {most} times that is allowed"
                    );
                    return Some(Verdict { guard: "latency_p99", reason });
                }
            }
        }
        if let Some(most) = self.max_score_shift
            && can_compare
            && let (Some(mean), Some(usual)) = (challenger.mean_score(), champion.mean_score())
            && ((mean - usual).abs() > most || !mean.is_finite())
        {
            let reason = format!(
                "the mean score of its newest {calls} calls is {mean:.4}, the champion's {usual:.4}: at most {most} apart is allowed"
            );
            return Some(Verdict { guard: "score_shift", reason });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(calls: usize, failed_every: usize, millis: u64, score: f64) -> Window {
        let mut window = Window::new(1000);
        for call in 1..=calls {
            let failed = failed_every > 0 && call % failed_every == 0;
            window.add(Outcome { took: Duration::from_millis(millis), failed, scores: (score, 1) });
        }
        window
    }

    #[test]
    fn each_limit_is_judged_and_told() {
        let champion = window(200, 50, 10, 0.30);
        let judge = |guard: Guard, challenger: &Window| guard.judge(challenger, &champion).map(|verdict| verdict.guard);
        let errors = Guard { max_error_rate_increase: Some(0.1), ..Guard::default() };
        assert_eq!(judge(errors, &window(200, 5, 10, 0.3)), Some("error_rate"));
        assert_eq!(judge(errors, &window(200, 10, 10, 0.3)), None);
        assert_eq!(judge(errors, &window(99, 1, 10, 0.3)), None, "too few to tell");
        let slow = Guard { max_latency_p99_ms: Some(15.0), ..Guard::default() };
        assert_eq!(judge(slow, &window(200, 0, 16, 0.3)), Some("latency_p99"));
        assert_eq!(judge(slow, &window(200, 0, 15, 0.3)), None);
        let slower = Guard { max_latency_p99_ratio: Some(2.0), ..Guard::default() };
        assert_eq!(judge(slower, &window(200, 0, 21, 0.3)), Some("latency_p99"));
        assert_eq!(judge(slower, &window(200, 0, 20, 0.3)), None);
        let shifted = Guard { max_score_shift: Some(0.1), ..Guard::default() };
        assert_eq!(judge(shifted, &window(200, 0, 10, 0.41)), Some("score_shift"));
        assert_eq!(judge(shifted, &window(200, 0, 10, 0.21)), None);
        assert_eq!(judge(Guard::default(), &window(200, 1, 1000, 9.0)), None, "no limit, no verdict");
    }

    #[test]
    fn only_the_newest_calls_count() {
        let mut window = window(100, 1, 1000, 5.0);
        window.resize(50);
        for _ in 0..50 {
            window.add(Outcome { took: Duration::from_millis(1), failed: false, scores: (0.5, 1) });
        }
        assert_eq!((window.len(), window.error_rate(), window.total), (50, 0.0, 150));
        assert_eq!(window.latency(99.0), Duration::from_millis(1));
        assert!((window.mean_score().unwrap() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut window = Window::new(100);
        assert_eq!(window.latency(99.0), Duration::ZERO);
        for millis in 1..=100 {
            window.add(Outcome { took: Duration::from_millis(millis), failed: false, scores: (0.0, 0) });
        }
        assert_eq!([50.0, 99.0, 100.0].map(|p| window.latency(p).as_millis()), [50, 99, 100]);
        assert_eq!(window.mean_score(), None);
    }
}
