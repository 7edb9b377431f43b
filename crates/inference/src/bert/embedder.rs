//! From a text to one vector.

use std::path::{Path, PathBuf};

use crate::LoadError;
use crate::text::{Encoded, TextTokenizer};

use super::config::SentenceConfig;
use super::encoder::Rows;
use super::model::Model;
use super::options::{Precision, Run};

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens, special ones included.
    Mean,
    /// The vector of the first token.
    Cls,
}

/// How to use an embedding model, where its own files don't say it or say it wrong.
#[derive(Debug, Clone, Copy, Default)]
pub struct EmbedderOptions {
    /// `None`: as `1_Pooling/config.json` says, else the mean.
    pub pooling: Option<Pooling>,
    /// `None`: as `modules.json` says, else normalised.
    pub normalize: Option<bool>,
    pub run: Run,
}

/// A sentence embedding model.
pub struct Embedder {
    model: Model,
    tokenizer_json: PathBuf,
    pooling: Pooling,
    normalizes: bool,
}

impl Embedder {
    /// Loads a directory; besides what every model has, it may hold the files sentence-transformers writes.
    pub fn load(dir: &Path, options: EmbedderOptions) -> Result<Self, LoadError> {
        let sentence = SentenceConfig::load(dir)?;
        let (model, ()) = Model::load(dir, options.run, sentence.max_length, |_, _, _| Ok(()))?;
        Ok(Self {
            model,
            tokenizer_json: dir.join("tokenizer.json"),
            pooling: options.pooling.or(sentence.pooling).unwrap_or(Pooling::Mean),
            normalizes: options.normalize.or(sentence.normalize).unwrap_or(true),
        })
    }

    /// The tokenizer whose encodings `embed` takes.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.model.tokenizer
    }

    /// The file the tokenizer came from, for those who must cut texts as this model counts.
    pub fn tokenizer_json(&self) -> &Path {
        &self.tokenizer_json
    }

    /// What the products are computed in; never `Auto`.
    pub fn precision(&self) -> Precision {
        self.model.precision
    }

    /// Length of an embedding.
    pub fn dimensions(&self) -> usize {
        self.model.encoder.hidden()
    }

    /// The largest number of tokens of one text, special ones included.
    pub fn max_length(&self) -> usize {
        self.model.tokenizer.max_length()
    }

    /// Says whether embeddings are meant to be normalised; `embed` leaves that to its caller.
    pub fn normalizes(&self) -> bool {
        self.normalizes
    }

    /// Computes one vector per input, in order, not normalised.
    pub fn embed(&self, batch: &[&Encoded]) -> Vec<Vec<f32>> {
        let rows = if self.pooling == Pooling::Cls { Rows::First } else { Rows::All };
        let mut vectors = Vec::with_capacity(batch.len());
        self.model.encoder.run(batch, rows, |states| vectors.push(mean(states, self.dimensions())));
        vectors
    }
}

fn mean(rows: &[f32], width: usize) -> Vec<f32> {
    let mut mean = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        for (sum, value) in mean.iter_mut().zip(row) {
            *sum += value;
        }
    }
    let scale = width as f32 / rows.len().max(1) as f32;
    mean.iter_mut().for_each(|value| *value *= scale);
    mean
}

/// Scales a vector to length one; the zero vector stays.
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
}
