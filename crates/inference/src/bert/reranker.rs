//! From a query and a document to one relevance score.

use std::path::Path;

use pulp::Arch;

use crate::LoadError;
use crate::kernels::{Linear, Then};
use crate::text::{Encoded, TextTokenizer};
use crate::weights::{self, Weights};

use super::config::BertConfig;
use super::encoder::{Encoder, Rows};

/// A cross-encoder with one output.
pub struct Reranker {
    encoder: Encoder,
    tokenizer: TextTokenizer,
    pooler: Linear,
    classifier: Vec<f32>,
    bias: f32,
}

impl Reranker {
    /// Loads `config.json`, `tokenizer.json` and `model.safetensors` of a directory. The model must have a pooler and
    /// exactly one label.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let config = BertConfig::load(dir)?;
        let tokenizer_json = dir.join("tokenizer.json");
        let tokenizer = TextTokenizer::from_file(&tokenizer_json, config.max_position_embeddings)?;
        let file = dir.join("model.safetensors");
        let bytes = weights::map(&file)?;
        let weights = Weights::parse(&file, &bytes, "embeddings.word_embeddings.weight", "bert.")?;
        let encoder = Encoder::load(&config, &weights)?;
        encoder.check(&tokenizer, &tokenizer_json)?;
        let hidden = config.hidden_size;
        let pooler = weights.take("pooler.dense.weight", &[hidden, hidden])?;
        let pooler_bias = weights.take("pooler.dense.bias", &[hidden])?;
        Ok(Self {
            encoder,
            tokenizer,
            pooler: Linear::new(Arch::new(), &pooler, pooler_bias, hidden, hidden),
            classifier: weights.take("classifier.weight", &[1, hidden])?,
            bias: weights.take("classifier.bias", &[1])?[0],
        })
    }

    /// The tokenizer whose pair encodings `score` takes.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The largest number of tokens of a query and a document together, special ones included.
    pub fn max_length(&self) -> usize {
        self.tokenizer.max_length()
    }

    /// Computes one logit per input, in order: higher is more relevant, unbounded on both sides. Inputs come from
    /// `tokenizer`; ids the model doesn't have and inputs beyond its positions panic.
    pub fn score(&self, batch: &[&Encoded]) -> Vec<f32> {
        let mut pooled = vec![0.0; self.encoder.hidden()];
        let mut scores = Vec::with_capacity(batch.len());
        self.encoder.run(batch, Rows::First, |first| {
            self.pooler.apply(first, &mut pooled, Then::Store);
            let terms = pooled.iter().zip(&self.classifier).map(|(value, weight)| value.tanh() * weight);
            scores.push(terms.sum::<f32>() + self.bias);
        });
        scores
    }
}
