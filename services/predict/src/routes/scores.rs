//! What of an answer can be compared with the same of another model's answer.

use std::collections::{BTreeMap, HashMap};

use verdict_api::predict as api;

/// The numbers of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Scores {
    /// Nothing that could be compared.
    #[default]
    None,
    /// Scores by position in the request; several of one position follow each other.
    Numbers(Vec<(u32, f32)>),
    /// Scores by position in the request and label.
    Labels(BTreeMap<(u32, String), f32>),
    /// Vectors in the order of the request.
    Vectors(Vec<Vec<f32>>),
    /// Sparse vectors in the order of the request: indices, ascending, and weights.
    Sparse(Vec<(Vec<u32>, Vec<f32>)>),
}

/// How one number of two answers differs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Position of the input in the request.
    pub index: u32,
    /// Of the primary and the shadow; `None` where vectors were compared.
    pub scores: Option<(f32, f32)>,
    /// Shadow less primary; 1 less the cosine for vectors.
    pub signed: f64,
}

/// An answer with something in it that can be compared.
pub trait Scored {
    /// Returns that.
    fn scores(&self) -> Scores;
}

impl Scores {
    /// Returns sum and number of the scores, for a mean.
    pub fn total(&self) -> (f64, u32) {
        let add = |(sum, count): (f64, u32), score: &f32| match score.is_finite() {
            true => (sum + f64::from(*score), count + 1),
            false => (sum, count),
        };
        match self {
            Self::None | Self::Vectors(_) | Self::Sparse(_) => (0.0, 0),
            Self::Numbers(numbers) => numbers.iter().map(|(_, score)| score).fold((0.0, 0), add),
            Self::Labels(labels) => labels.values().fold((0.0, 0), add),
        }
    }

    /// Compares the answer that was given with a shadow's; `None` where they have nothing in common.
    pub fn differences(&self, shadow: &Self) -> Option<Vec<Difference>> {
        let number = |index: u32, one: f32, other: f32| {
            let signed = f64::from(other) - f64::from(one);
            signed.is_finite().then_some(Difference { index, scores: Some((one, other)), signed })
        };
        let differences: Vec<_> = match (self, shadow) {
            (Self::Numbers(primary), Self::Numbers(shadow)) => {
                let by_position = primary.iter().map(|(index, _)| index).eq(shadow.iter().map(|(index, _)| index));
                if by_position {
                    let pairs = primary.iter().zip(shadow);
                    pairs.filter_map(|((index, one), (_, other))| number(*index, *one, *other)).collect()
                } else {
                    // Each may have returned other documents: those that both did are compared.
                    let shadow: HashMap<_, _> = shadow.iter().copied().collect();
                    let found = primary.iter().filter_map(|(index, one)| Some((*index, *one, *shadow.get(index)?)));
                    found.filter_map(|(index, one, other)| number(index, one, other)).collect()
                }
            }
            (Self::Labels(primary), Self::Labels(shadow)) => {
                let found = primary.iter().filter_map(|(place, one)| Some((place.0, *one, *shadow.get(place)?)));
                found.filter_map(|(index, one, other)| number(index, one, other)).collect()
            }
            (Self::Vectors(primary), Self::Vectors(shadow)) if primary.len() == shadow.len() => {
                let pairs = primary.iter().zip(shadow).enumerate();
                pairs.filter_map(|(index, (one, other))| away(index, cosine(one, other)?)).collect()
            }
            (Self::Sparse(primary), Self::Sparse(shadow)) if primary.len() == shadow.len() => {
                let pairs = primary.iter().zip(shadow).enumerate();
                pairs.filter_map(|(index, (one, other))| away(index, sparse_cosine(one, other)?)).collect()
            }
            _ => Vec::new(),
        };
        (!differences.is_empty()).then_some(differences)
    }
}

fn away(index: usize, cosine: f64) -> Option<Difference> {
    Some(Difference { index: u32::try_from(index).ok()?, scores: None, signed: 1.0 - cosine })
}

fn cosine(one: &[f32], other: &[f32]) -> Option<f64> {
    if one.len() != other.len() || one.is_empty() {
        return None;
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    over(dot(one, other), dot(one, one), dot(other, other))
}

fn sparse_cosine((indices, one): &(Vec<u32>, Vec<f32>), other: &(Vec<u32>, Vec<f32>)) -> Option<f64> {
    let by_index: HashMap<_, _> = other.0.iter().zip(&other.1).collect();
    let squares = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    let common =
        indices.iter().zip(one).filter_map(|(index, a)| Some(f64::from(*a) * f64::from(**by_index.get(index)?)));
    over(common.sum(), squares(one), squares(&other.1))
}

fn over(dot: f64, one: f64, other: f64) -> Option<f64> {
    let cosine = dot / (one.sqrt() * other.sqrt());
    cosine.is_finite().then(|| cosine.clamp(-1.0, 1.0))
}

fn position(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

impl Scored for api::EmbedResponse {
    fn scores(&self) -> Scores {
        Scores::Vectors(self.embeddings.iter().map(|embedding| embedding.values.clone()).collect())
    }
}

impl Scored for api::EmbedSparseResponse {
    fn scores(&self) -> Scores {
        let vectors = self.embeddings.iter().map(|embedding| (embedding.indices.clone(), embedding.values.clone()));
        Scores::Sparse(vectors.collect())
    }
}

impl Scored for api::RerankResponse {
    fn scores(&self) -> Scores {
        let mut scores: Vec<_> = self.results.iter().map(|document| (document.index, document.score)).collect();
        scores.sort_by_key(|(index, _)| *index);
        Scores::Numbers(scores)
    }
}

impl Scored for api::ClassifyResponse {
    fn scores(&self) -> Scores {
        let items = self.classifications.iter().enumerate();
        let labels = items.flat_map(|(index, item)| {
            item.labels.iter().map(move |label| ((position(index), label.label.clone()), label.score))
        });
        Scores::Labels(labels.collect())
    }
}

impl Scored for api::PredictResponse {
    fn scores(&self) -> Scores {
        let numbers = if self.probabilities.is_empty() { &self.values } else { &self.probabilities };
        let outputs = self.outputs.max(1) as usize;
        let placed = numbers.iter().enumerate().map(|(number, score)| (position(number / outputs), *score));
        Scores::Numbers(placed.collect())
    }
}

impl Scored for api::ExplainResponse {
    fn scores(&self) -> Scores {
        Scores::Numbers(self.explanations.iter().map(|it| (it.row, it.margin)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_by_position_label_or_cosine() {
        let numbers = |scores: &[(u32, f32)]| Scores::Numbers(scores.to_vec());
        let pairs = numbers(&[(0, 0.5), (1, 0.25)]).differences(&numbers(&[(0, 0.75), (1, 0.25)])).unwrap();
        assert_eq!(pairs[0], Difference { index: 0, scores: Some((0.5, 0.75)), signed: 0.25 });
        assert_eq!(pairs[1].signed, 0.0);
        let common = numbers(&[(0, 0.5), (3, 0.25)]).differences(&numbers(&[(1, 0.75), (3, 0.5)])).unwrap();
        assert_eq!(common, [Difference { index: 3, scores: Some((0.25, 0.5)), signed: 0.25 }]);
        let vectors = |vector: &[f32]| Scores::Vectors(vec![vector.to_vec()]);
        let apart = vectors(&[1.0, 0.0]).differences(&vectors(&[0.0, 2.0])).unwrap();
        assert_eq!((apart[0].signed, apart[0].scores), (1.0, None));
        assert!(vectors(&[1.0, 2.0]).differences(&vectors(&[2.0, 4.0])).unwrap()[0].signed.abs() < 1e-12);
        assert_eq!(vectors(&[1.0]).differences(&vectors(&[1.0, 2.0])), None);
        assert_eq!(vectors(&[1.0]).differences(&numbers(&[(0, 1.0)])), None);
        let sparse = |indices: &[u32]| Scores::Sparse(vec![(indices.to_vec(), vec![1.0; indices.len()])]);
        assert!((sparse(&[1, 2]).differences(&sparse(&[2, 3])).unwrap()[0].signed - 0.5).abs() < 1e-12);
        assert_eq!(numbers(&[(0, f32::NAN)]).differences(&numbers(&[(0, 1.0)])), None);
    }

    #[test]
    fn the_mean_is_of_finite_scores() {
        let (sum, count) = Scores::Numbers(vec![(0, 0.5), (1, f32::NAN), (2, 1.0)]).total();
        assert_eq!((sum, count), (1.5, 2));
    }
}
