//! Choosing the next token.

use std::collections::HashMap;

use super::vector::{largest, log_sum_exp};
use crate::ItemError;

/// The most alternatives a step can name.
pub const MAX_TOP_LOGPROBS: usize = 20;
/// The most strings that can end a text, and the most bytes of each.
pub const MAX_STOPS: usize = 16;
pub const MAX_STOP_BYTES: usize = 256;

/// How tokens are chosen and when a generation ends.
///
/// Applied in this order: the schema, if any; repetition, then frequency and presence penalty; temperature; `min_p`;
/// `top_k`; `top_p` among what `top_k` kept.
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
    /// Keeps tokens at least this fraction as probable as the most probable; 0 to 1, 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the text so far; above 0, 1 is none.
    pub repetition_penalty: f32,
    /// Taken off a token's logit for each time it is in the text so far; -2 to 2.
    pub frequency_penalty: f32,
    /// Taken off a token's logit if it is in the text so far; -2 to 2.
    pub presence_penalty: f32,
    /// Same seed, same model, same prompt: same text.
    pub seed: u64,
    /// The text ends before any of these would appear.
    pub stop: Vec<String>,
    /// How many of the most probable tokens each step names, at most `MAX_TOP_LOGPROBS`.
    pub top_logprobs: usize,
}

impl Sampling {
    /// The most probable token each time, at most `max_tokens` of them.
    pub fn greedy(max_tokens: usize) -> Self {
        Self {
            max_tokens,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
            stop: Vec::new(),
            top_logprobs: 0,
        }
    }

    /// What is wrong with it, if anything: the field by name and its range.
    pub fn check(&self) -> Result<(), ItemError> {
        let is_penalty = |penalty: f32| (-2.0..=2.0).contains(&penalty);
        let problem = if self.max_tokens == 0 {
            "max_tokens is 0; at least 1"
        } else if !self.temperature.is_finite() || self.temperature < 0.0 {
            "temperature is a finite number, 0 or more"
        } else if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            "top_p is above 0 and at most 1"
        } else if !(0.0..=1.0).contains(&self.min_p) {
            "min_p is 0 to 1"
        } else if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            "repetition_penalty is a finite number above 0"
        } else if !is_penalty(self.frequency_penalty) {
            "frequency_penalty is -2 to 2"
        } else if !is_penalty(self.presence_penalty) {
            "presence_penalty is -2 to 2"
        } else if self.top_logprobs > MAX_TOP_LOGPROBS {
            "top_logprobs is 0 to 20"
        } else if self.stop.len() > MAX_STOPS || self.stop.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
            "stop is at most 16 strings of at most 256 bytes"
        } else if self.stop.iter().any(String::is_empty) {
            "a stop string is empty"
        } else {
            return Ok(());
        };
        Err(ItemError::Invalid(problem.to_owned()))
    }
}

/// A token that could have come, and the natural logarithm of its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alternative {
    pub id: u32,
    pub logprob: f32,
}

/// What a sampler chose.
pub(super) struct Choice {
    pub(super) id: u32,
    pub(super) logprob: f32,
    pub(super) top: Vec<Alternative>,
}

/// Chooses tokens by `Sampling`, in a sequence fixed by its seed.
pub(super) struct Sampler {
    sampling: Sampling,
    state: u64,
    /// How often each token of the prompt, with 0, and of the text is there.
    counts: HashMap<u32, u32>,
    /// The logits as changed by penalties and schema.
    changed: Vec<f32>,
}

impl Sampler {
    pub(super) fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let penalised: &[u32] = if sampling.repetition_penalty == 1.0 { &[] } else { prompt };
        let counts = penalised.iter().map(|id| (*id, 0)).collect();
        Self { state: sampling.seed, sampling, counts, changed: Vec::new() }
    }

    /// The chosen token with the natural logarithm of its probability as the model says it, before penalties,
    /// temperature and schema. `allowed`, one bit for each id, leaves at least one.
    pub(super) fn choose(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> Choice {
        let best = largest(logits);
        let total = best + log_sum_exp(logits, best);
        let top = self.sampling.top_logprobs;
        let top = if top == 0 { Vec::new() } else { ranked(logits, top, f32::NEG_INFINITY) };
        let top = top.into_iter().map(|id| Alternative { id, logprob: logits[id as usize] - total }).collect();
        let id = if allowed.is_none() && !self.has_penalties() {
            self.draw(logits, best)
        } else {
            let mut changed = std::mem::take(&mut self.changed);
            changed.clear();
            changed.extend_from_slice(logits);
            self.penalise(&mut changed);
            if let Some(allowed) = allowed {
                for (logits, word) in changed.chunks_mut(32).zip(allowed.iter().chain(std::iter::repeat(&0))) {
                    if *word != u32::MAX {
                        for (bit, logit) in logits.iter_mut().enumerate() {
                            *logit = if word >> bit & 1 == 0 { f32::NEG_INFINITY } else { *logit };
                        }
                    }
                }
            }
            let id = self.draw(&changed, largest(&changed));
            self.changed = changed;
            id
        };
        if self.has_penalties() {
            *self.counts.entry(id).or_default() += 1;
        }
        Choice { id, logprob: logits[id as usize] - total, top }
    }

    fn has_penalties(&self) -> bool {
        let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } = self.sampling;
        repetition_penalty != 1.0 || frequency_penalty != 0.0 || presence_penalty != 0.0
    }

    fn penalise(&self, logits: &mut [f32]) {
        let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } = self.sampling;
        for (id, count) in &self.counts {
            let logit = &mut logits[*id as usize];
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
            if *count > 0 {
                *logit -= *count as f32 * frequency_penalty + presence_penalty;
            }
        }
    }

    /// Draws from logits whose largest is `best`.
    fn draw(&mut self, logits: &[f32], best: f32) -> u32 {
        let inverse = 1.0 / self.sampling.temperature;
        if inverse.is_infinite() {
            return logits.iter().position(|logit| *logit == best).unwrap_or(0) as u32;
        }
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        // Below e^-40 of the most probable, a whole vocabulary is not drawn once in 10^11 times.
        let least = f64::from(min_p).max((-40.0f64).exp());
        let floor = best + (least.ln() / f64::from(inverse)) as f32;
        // With no `top_k` and a `top_p`, most vocabularies need a few of their tokens: sort those first.
        let mut kept = match (top_k, top_p < 1.0) {
            (0, true) => 1024,
            (0, false) => logits.len(),
            (count, _) => count,
        };
        let weight = |logit: f32| f64::from((logit - best) * inverse).exp();
        let all: f64 = match (top_k, top_p < 1.0) {
            (0, true) => logits.iter().filter(|logit| **logit >= floor).map(|logit| weight(*logit)).sum(),
            _ => 0.0,
        };
        loop {
            let candidates = ranked(logits, kept, floor);
            let weights: Vec<f64> = candidates.iter().map(|id| weight(logits[*id as usize])).collect();
            let among = if all > 0.0 { all } else { weights.iter().sum() };
            let target = among * f64::from(top_p);
            let mut total = 0.0;
            let nucleus = weights.iter().position(|weight| {
                total += weight;
                total >= target
            });
            let count = match nucleus {
                Some(last) if top_p < 1.0 => last + 1,
                None if top_k == 0 && candidates.len() == kept && kept < logits.len() => {
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
            return candidates.get(drawn.unwrap_or(count.saturating_sub(1))).copied().unwrap_or(0);
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

/// The ids of the `count` largest logits that reach `floor`, largest first, lowest id first among equals.
fn ranked(logits: &[f32], count: usize, floor: f32) -> Vec<u32> {
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let floor = floor.max(reached_by(logits, count));
    let reaching = logits.iter().zip(0u32..).filter(|(logit, _)| **logit >= floor);
    let mut ids: Vec<u32> = reaching.map(|(_, id)| id).collect();
    if count < ids.len() {
        ids.select_nth_unstable_by(count, by_logit);
        ids.truncate(count);
    }
    ids.sort_unstable_by(by_logit);
    ids
}

/// A number that at least `count` logits reach, and not many more: counted in steps of an eighth below the largest.
fn reached_by(logits: &[f32], count: usize) -> f32 {
    const STEPS: usize = 256;
    if count >= logits.len() {
        return f32::NEG_INFINITY;
    }
    let best = largest(logits);
    let mut counts = [0u32; STEPS];
    for logit in logits {
        counts[((best - logit) * 8.0).min((STEPS - 1) as f32) as usize] += 1;
    }
    let mut total = 0;
    let step = counts[..STEPS - 1].iter().position(|in_step| {
        total += *in_step as usize;
        total >= count
    });
    // The next step's beginning, so that rounding leaves none of this step out.
    step.map_or(f32::NEG_INFINITY, |step| best - (step + 2) as f32 / 8.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(sampling, &[]);
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.choose(logits, None).id as usize] += 1.0 / 20_000.0;
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
        close(&frequencies(Sampling { min_p: 0.2, ..sampling(1.0, 1.0, 0) }, &logits), &[0.526, 0.316, 0.158, 0.0]);
    }

    #[test]
    fn penalties_follow_their_formulas() {
        let logits = [2.0f32, 1.9, -1.0];
        let second = |penalised: Sampling, prompt: &[u32]| {
            let mut sampler = Sampler::new(penalised, prompt);
            (sampler.choose(&logits, None).id, sampler.choose(&logits, None).id)
        };
        assert_eq!(second(Sampling::greedy(2), &[0]), (0, 0));
        assert_eq!(second(Sampling { frequency_penalty: 0.2, ..Sampling::greedy(2) }, &[0]), (0, 1));
        assert_eq!(second(Sampling { presence_penalty: 0.2, ..Sampling::greedy(2) }, &[0]), (0, 1));
        // Repetition counts the prompt as well.
        assert_eq!(second(Sampling { repetition_penalty: 1.1, ..Sampling::greedy(2) }, &[0]), (1, 0));
        assert_eq!(second(Sampling { frequency_penalty: 0.06, ..Sampling::greedy(2) }, &[]), (0, 0));
    }

    #[test]
    fn only_what_is_allowed_comes_and_probabilities_are_the_model_s() {
        let logits: Vec<f32> = (0..70).map(|id| id as f32 * 0.1).collect();
        let total = logits.iter().map(|logit| logit.exp()).sum::<f32>().ln();
        let allowed = [1 << 7 | 1 << 30, 0, 0];
        let mut sampler = Sampler::new(Sampling { top_logprobs: 2, ..Sampling::greedy(1) }, &[]);
        let choice = sampler.choose(&logits, Some(&allowed));
        assert_eq!(choice.id, 30);
        assert!((choice.logprob - (logits[30] - total)).abs() < 1e-4);
        assert_eq!(choice.top.iter().map(|other| other.id).collect::<Vec<_>>(), [69, 68]);
        let mut sampler = Sampler::new(sampling(100.0, 1.0, 0), &[]);
        let drawn: Vec<u32> = (0..50).map(|_| sampler.choose(&logits, Some(&allowed)).id).collect();
        assert!(drawn.iter().all(|id| [7, 30].contains(id)) && drawn.contains(&7));
    }

    #[test]
    fn a_flat_distribution_keeps_a_wide_nucleus() {
        let logits = vec![0.0; 20_000];
        let mut sampler = Sampler::new(sampling(1.0, 0.9, 0), &[]);
        let highest = (0..200).map(|_| sampler.choose(&logits, None).id).max().unwrap();
        assert!((15_000..18_000).contains(&highest), "{highest}");
    }

    #[test]
    fn greedy_takes_the_best_and_says_how_probable_it_was() {
        let logits = [0.2f32, 0.7, 0.1].map(f32::ln);
        let choice = Sampler::new(Sampling::greedy(1), &[]).choose(&logits, None);
        assert_eq!(choice.id, 1);
        assert!((choice.logprob - 0.7f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn ranks_are_those_of_sorting_everything() {
        let logits: Vec<f32> = (0..5000).map(|id| ((id * 7919) % 4999) as f32 * 0.011).collect();
        let mut sorted: Vec<u32> = (0..5000).collect();
        sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        for count in [1, 2, 64, 1000, 4999, 5000, 6000] {
            assert_eq!(ranked(&logits, count, f32::NEG_INFINITY), sorted[..count.min(5000)]);
        }
        let reaching = sorted.iter().filter(|id| logits[**id as usize] >= 40.0).count();
        assert_eq!(ranked(&logits, 4000, 40.0), sorted[..reaching]);
    }

    #[test]
    fn a_temperature_too_small_to_divide_by_is_greedy() {
        let logits = [0.2f32, 0.7, 0.1].map(f32::ln);
        for temperature in [1e-37, 1e-40, f32::from_bits(1)] {
            for (top_p, top_k) in [(1.0, 0), (0.9, 0), (1.0, 2)] {
                let mut sampler = Sampler::new(sampling(temperature, top_p, top_k), &[]);
                assert_eq!(sampler.choose(&logits, None).id, 1, "{temperature}");
            }
        }
    }

    #[test]
    fn the_sequence_of_a_seed_is_fixed() {
        let logits = vec![0.0; 100];
        let draw = |seed| {
            let mut sampler = Sampler::new(Sampling { seed, ..sampling(1.0, 1.0, 0) }, &[]);
            (0..6).map(|_| sampler.choose(&logits, None).id).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
