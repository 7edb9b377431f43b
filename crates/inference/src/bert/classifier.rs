//! From a text, or a pair of texts, to one logit per label.

use std::path::Path;

use crate::LoadError;
use crate::text::{Encoded, TextTokenizer};

use super::head::Head;
use super::model::Model;
use super::options::{Precision, Run};

/// What the labels of a classifier mean to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemType {
    /// Exactly one label is right: probabilities are the softmax of the logits.
    SingleLabel,
    /// Any number of labels is right: each probability is the sigmoid of its own logit.
    MultiLabel,
}

/// A `BertForSequenceClassification` model.
pub struct Classifier {
    model: Model,
    head: Head,
    labels: Vec<String>,
    problem: ProblemType,
}

impl Classifier {
    /// Loads a directory. Labels and their order are `id2label` of `config.json`, which `label2id` must not contradict;
    /// `problem_type` says whether one label is right or any number, by default one. A model of one label without a
    /// `problem_type`, which would be a regression, is refused.
    pub fn load(dir: &Path, run: Run) -> Result<Self, LoadError> {
        let (model, (head, labels, problem)) = Model::load(dir, run, None, |config, weights, encoder| {
            let (labels, problem) = config.labels(dir)?;
            Ok((Head::load(config, weights, encoder, labels.len())?, labels, problem))
        })?;
        Ok(Self { model, head, labels, problem })
    }

    /// The tokenizer whose encodings, of single texts or of pairs, `logits` takes.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.model.tokenizer
    }

    /// The largest number of tokens of an input, special ones included.
    pub fn max_length(&self) -> usize {
        self.model.tokenizer.max_length()
    }

    /// What the products are computed in; never `Auto`.
    pub fn precision(&self) -> Precision {
        self.model.precision
    }

    /// The labels in the order of the logits.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    pub fn problem_type(&self) -> ProblemType {
        self.problem
    }

    /// Computes the logits of each input, in order, one for each label.
    pub fn logits(&self, batch: &[&Encoded]) -> Vec<Vec<f32>> {
        self.head.logits(&self.model.encoder, batch)
    }

    /// Turns the logits of one input into probabilities, as the problem type says.
    pub fn probabilities(&self, logits: &[f32]) -> Vec<f32> {
        match self.problem {
            ProblemType::SingleLabel => {
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let powers: Vec<f64> = logits.iter().map(|logit| f64::from(logit - max).exp()).collect();
                let sum: f64 = powers.iter().sum();
                powers.into_iter().map(|power| (power / sum) as f32).collect()
            }
            ProblemType::MultiLabel => {
                logits.iter().map(|logit| (1.0 / (1.0 + f64::from(-logit).exp())) as f32).collect()
            }
        }
    }
}
