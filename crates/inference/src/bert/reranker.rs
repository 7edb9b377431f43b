//! From a query and a document to one relevance score.

use std::path::Path;

use crate::LoadError;
use crate::text::{Encoded, TextTokenizer};

use super::head::Head;
use super::model::Model;
use super::options::{Precision, Run};

/// A cross-encoder with one output.
pub struct Reranker {
    model: Model,
    head: Head,
}

impl Reranker {
    /// Loads a directory. The model must have a pooler and exactly one label.
    pub fn load(dir: &Path, run: Run) -> Result<Self, LoadError> {
        let (model, head) =
            Model::load(dir, run, None, |config, weights, encoder| Head::load(config, weights, encoder, 1))?;
        Ok(Self { model, head })
    }

    /// The tokenizer whose pair encodings `score` takes.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.model.tokenizer
    }

    /// The largest number of tokens of a query and a document together, special ones included.
    pub fn max_length(&self) -> usize {
        self.model.tokenizer.max_length()
    }

    /// What the products are computed in; never `Auto`.
    pub fn precision(&self) -> Precision {
        self.model.precision
    }

    /// Computes one logit per input, in order: higher is more relevant, unbounded on both sides.
    pub fn score(&self, batch: &[&Encoded]) -> Vec<f32> {
        self.head.logits(&self.model.encoder, batch).into_iter().map(|logits| logits[0]).collect()
    }
}
