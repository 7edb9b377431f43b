//! Choosing the next token.

use super::vector::{largest, log_sum_exp};
use crate::ItemError;

/// How tokens are chosen and when a generation ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Most tokens to generate, at least 1.
    pub max_tokens: usize,
    /// Divides the logits; 0, and what is too near to 0 to divide by, always takes the most probable token.
    pub temperature: f32,
    /// Keeps the most probable tokens that together reach this probability; above 0, 1 keeps all.
    pub top_p: f32,
    /// Keeps this many of the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Same seed, same model, same prompt: same text.
    pub seed: u64,
    /// The text ends before any of these would appear.
    pub stop: Vec<String>,
}

impl Sampling {
    /// The most probable token each time, at most `max_tokens` of them.
    pub fn greedy(max_tokens: usize) -> Self {
        Self { max_tokens, temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0, stop: Vec::new() }
    }

    pub(super) fn check(&self) -> Result<(), ItemError> {
        let problem = if self.max_tokens == 0 {
            "max_tokens is 0; at least 1"
        } else if !self.temperature.is_finite() || self.temperature < 0.0 {
            "temperature is a finite number, 0 or more"
        } else if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            "top_p is above 0 and at most 1"
        } else if self.stop.iter().any(String::is_empty) {
            "a stop string is empty"
        } else {
            return Ok(());
        };
        Err(ItemError::Invalid(problem.to_owned()))
    }
}

/// Chooses tokens by `Sampling`, in a sequence fixed by its seed.
pub(super) struct Sampler {
    sampling: Sampling,
    state: u64,
}

impl Sampler {
    pub(super) fn new(sampling: Sampling) -> Self {
        Self { state: sampling.seed, sampling }
    }

    /// The chosen token and the natural logarithm of its probability before temperature.
    pub(super) fn choose(&mut self, logits: &[f32]) -> (u32, f32) {
        let best = largest(logits);
        let logprob = |id: usize| logits[id] - best - log_sum_exp(logits, best);
        let inverse = 1.0 / self.sampling.temperature;
        if inverse.is_infinite() {
            let id = logits.iter().position(|logit| *logit == best).unwrap_or(0);
            return (id as u32, logprob(id));
        }
        // With no `top_k` and a `top_p`, most vocabularies need a few of their tokens: sort those first.
        let mut kept = match (self.sampling.top_k, self.sampling.top_p < 1.0) {
            (0, true) => 1024,
            (0, false) => logits.len(),
            (count, _) => count,
        };
        let weight = |id: u32| f64::from((logits[id as usize] - best) * inverse).exp();
        loop {
            let candidates = top(logits, kept);
            let weights: Vec<f64> = candidates.iter().map(|id| weight(*id)).collect();
            let among: f64 = match self.sampling.top_k {
                0 => (0..logits.len() as u32).map(weight).sum(),
                _ => weights.iter().sum(),
            };
            let target = among * f64::from(self.sampling.top_p);
            let mut total = 0.0;
            let nucleus = weights.iter().position(|weight| {
                total += weight;
                total >= target
            });
            let count = match nucleus {
                Some(last) if self.sampling.top_p < 1.0 => last + 1,
                None if self.sampling.top_k == 0 && kept < logits.len() => {
                    kept *= 8;
                    continue;
                }
                _ => weights.len(),
            };
            let mut left = self.uniform() * weights[..count].iter().sum::<f64>();
            let drawn = weights[..count].iter().position(|weight| {
                left -= weight;
                left < 0.0
            });
            let id = candidates[drawn.unwrap_or(count - 1)];
            return (id, logprob(id as usize));
        }
    }

    /// The next number of [0, 1): SplitMix64, whose sequence for a seed never changes.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The ids of the `count` largest logits, largest first, lowest id first among equals.
fn top(logits: &[f32], count: usize) -> Vec<u32> {
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if count < ids.len() {
        ids.select_nth_unstable_by(count, by_logit);
        ids.truncate(count);
    }
    ids.sort_unstable_by(by_logit);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(sampling);
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.choose(logits).0 as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    fn sampling(temperature: f32, top_p: f32, top_k: usize) -> Sampling {
        Sampling { temperature, top_p, top_k, ..Sampling::greedy(1) }
    }

    fn close(found: &[f64], expected: &[f64]) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 0.015, "{found} instead of {expected}");
        }
    }

    #[test]
    fn tokens_come_as_often_as_their_probabilities_say() {
        let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
        close(&frequencies(sampling(1.0, 1.0, 0), &logits), &[0.5, 0.3, 0.15, 0.05]);
        close(&frequencies(sampling(1.0, 1.0, 2), &logits), &[0.625, 0.375, 0.0, 0.0]);
        close(&frequencies(sampling(1.0, 0.75, 0), &logits), &[0.625, 0.375, 0.0, 0.0]);
        // Of the three kept first, the best alone has more than half.
        close(&frequencies(sampling(1.0, 0.51, 3), &logits), &[1.0, 0.0, 0.0, 0.0]);
        close(&frequencies(sampling(1.0, 0.51, 0), &logits), &[0.625, 0.375, 0.0, 0.0]);
        close(&frequencies(sampling(0.5, 1.0, 0), &logits), &[0.685, 0.247, 0.0616, 0.0068]);
    }

    #[test]
    fn a_flat_distribution_keeps_a_wide_nucleus() {
        let logits = vec![0.0; 20_000];
        let mut sampler = Sampler::new(sampling(1.0, 0.9, 0));
        let highest = (0..200).map(|_| sampler.choose(&logits).0).max().unwrap();
        assert!((15_000..18_000).contains(&highest), "{highest}");
    }

    #[test]
    fn greedy_takes_the_best_and_says_how_probable_it_was() {
        let logits = [0.2f32, 0.7, 0.1].map(f32::ln);
        let (id, logprob) = Sampler::new(Sampling::greedy(1)).choose(&logits);
        assert_eq!(id, 1);
        assert!((logprob - 0.7f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn a_temperature_too_small_to_divide_by_is_greedy() {
        let logits = [0.2f32, 0.7, 0.1].map(f32::ln);
        for temperature in [1e-37, 1e-40, f32::from_bits(1)] {
            for (top_p, top_k) in [(1.0, 0), (0.9, 0), (1.0, 2)] {
                assert_eq!(Sampler::new(sampling(temperature, top_p, top_k)).choose(&logits).0, 1, "{temperature}");
            }
        }
    }

    #[test]
    fn the_sequence_of_a_seed_is_fixed() {
        let logits = vec![0.0; 100];
        let draw = |seed| {
            let mut sampler = Sampler::new(Sampling { seed, ..sampling(1.0, 1.0, 0) });
            (0..6).map(|_| sampler.choose(&logits).0).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
