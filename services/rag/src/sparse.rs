//! BM25 as a sparse vector: the term-frequency part here, the inverse document frequency in the engine.
//!
//! A term is the first four bytes of the SHA-256 of its stem: of a vocabulary of n stems, about n²/2³³ pairs meet by
//! of 50,000, a fourth of a collision is expected.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::words::Words;

/// Saturation of repeated words.
const K1: f32 = 1.2;
/// How much long passages are held back.
const B: f32 = 0.75;
/// Stems of a passage of ordinary length. A constant, so that a passage's vector depends on nothing but its text:
/// with chunks of about 200 tokens the true mean lies near it, and BM25 is not sensitive to it.
const AVERAGE_LENGTH: f32 = 90.0;

/// Weights by term, terms ascending and each once.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sparse {
    pub(crate) indices: Vec<u32>,
    pub(crate) values: Vec<f32>,
}

impl Sparse {
    /// Returns the weights of a passage: tf·(k1+1) / (tf + k1·(1 − b + b·length/average)).
    pub(crate) fn of_passage(words: &Words, text: &str) -> Self {
        let stems = words.stems(text);
        let norm = K1 * (1.0 - B + B * stems.len() as f32 / AVERAGE_LENGTH);
        let mut counts = BTreeMap::<u32, f32>::new();
        for stem in &stems {
            *counts.entry(term(stem)).or_default() += 1.0;
        }
        let (indices, values) = counts.into_iter().map(|(term, tf)| (term, tf * (K1 + 1.0) / (tf + norm))).unzip();
        Self { indices, values }
    }

    /// Returns the weights of a query: 1 for each of its terms.
    pub(crate) fn of_query(words: &Words, text: &str) -> Self {
        let mut indices: Vec<u32> = words.stems(text).iter().map(|stem| term(stem)).collect();
        indices.sort_unstable();
        indices.dedup();
        let values = vec![1.0; indices.len()];
        Self { indices, values }
    }

    /// Whether there is no word to search for.
    pub(crate) fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }
}

fn term(stem: &str) -> u32 {
    let hash = Sha256::digest(stem.as_bytes());
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_word_weighs_more_but_less_than_twice() {
        let words = Words::default();
        let once = Sparse::of_passage(&words, "shock wave");
        let twice = Sparse::of_passage(&words, "shock shock wave");
        let of = |sparse: &Sparse| sparse.values[sparse.indices.iter().position(|i| *i == term("shock")).unwrap()];
        assert!(of(&twice) > of(&once) && of(&twice) < 2.0 * of(&once));
    }

    #[test]
    fn weights_follow_the_formula() {
        let sparse = Sparse::of_passage(&Words::default(), "boundary");
        let expected = 2.2 / (1.0 + 1.2 * (0.25 + 0.75 / 90.0));
        assert!((sparse.values[0] - expected).abs() < 1e-6);
    }

    #[test]
    fn a_query_meets_a_passage_in_their_common_terms() {
        let words = Words::default();
        let passage = Sparse::of_passage(&words, "The boundary layers of a flat plate");
        let query = Sparse::of_query(&words, "boundary layer, boundary layer?");
        assert_eq!(query.indices.len(), 2);
        assert!(query.indices.is_sorted() && query.indices.iter().all(|term| passage.indices.contains(term)));
        assert!(Sparse::of_query(&words, "what is the").is_empty());
    }
}
