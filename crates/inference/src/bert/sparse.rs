//! From a text to one weight per word of the vocabulary, most of them zero.

use std::path::Path;

use crate::LoadError;
use crate::kernels::{Arithmetic, Dense, LayerNorm, Operand, Then};
use crate::text::{Encoded, TextTokenizer};
use crate::weights::Weights;

use super::config::BertConfig;
use super::encoder::{Encoder, Rows};
use super::model::Model;
use super::options::{Precision, Run};

/// Words of the vocabulary whose logits are held at a time.
const CHUNK: usize = 1536;

/// A SPLADE model: the masked-language-model head of each token says how strongly each word of the vocabulary is meant,
/// and the text's weight of a word is `max over tokens of ln(1 + max(0, logit))` (Formal et al., SPLADE v2, 2021).
/// Special tokens count as tokens, as in training.
pub struct SparseEmbedder {
    model: Model,
    head: MaskedLm,
    vocabulary: usize,
}

/// Dense, GELU, layer normalisation, and the product with the word embeddings.
struct MaskedLm {
    arithmetic: Arithmetic,
    transform: Dense,
    norm: LayerNorm,
    decoder: Vec<Dense>,
}

impl SparseEmbedder {
    /// Loads a directory of a `BertForMaskedLM` checkpoint, whose decoder may be tied to the word embeddings.
    pub fn load(dir: &Path, run: Run) -> Result<Self, LoadError> {
        let (model, (head, vocabulary)) = Model::load(dir, run, None, |config, weights, encoder| {
            Ok((MaskedLm::load(config, weights, encoder)?, config.vocab_size))
        })?;
        Ok(Self { model, head, vocabulary })
    }

    /// The tokenizer whose encodings `embed` takes, and whose ids the weights belong to.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.model.tokenizer
    }

    /// The largest number of tokens of one text, special ones included.
    pub fn max_length(&self) -> usize {
        self.model.tokenizer.max_length()
    }

    /// Words in the vocabulary: every id of an embedding is below.
    pub fn dimensions(&self) -> usize {
        self.vocabulary
    }

    /// What the products are computed in; never `Auto`.
    pub fn precision(&self) -> Precision {
        self.model.precision
    }

    /// Computes, for each input in order, the pairs of token id and weight above zero, by rising id. With `top`, only
    /// the `top` heaviest are kept; of equal weights the lower ids.
    pub fn embed(&self, batch: &[&Encoded], top: Option<usize>) -> Vec<Vec<(u32, f32)>> {
        let mut all = Vec::with_capacity(batch.len());
        let mut buffers = Buffers::default();
        self.model.encoder.run(batch, Rows::All, |states| {
            let largest = self.head.largest(states, self.model.encoder.hidden(), &mut buffers);
            let meant = largest.iter().zip(0_u32..).filter(|(logit, _)| **logit > 0.0);
            let pairs: Vec<_> = meant.map(|(logit, id)| (id, logit.ln_1p())).collect();
            all.push(match top {
                Some(top) => heaviest(pairs, top),
                None => pairs,
            });
        });
        all
    }
}

/// Keeps the `top` heaviest of pairs of id and weight, by rising id; of equal weights the lower ids.
pub fn heaviest(mut pairs: Vec<(u32, f32)>, top: usize) -> Vec<(u32, f32)> {
    if top < pairs.len() {
        pairs.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        pairs.truncate(top);
        pairs.sort_unstable_by_key(|(id, _)| *id);
    }
    pairs
}

/// What is needed between the encoder and the weights.
#[derive(Default)]
struct Buffers {
    states: Operand,
    transformed: Operand,
    logits: Vec<f32>,
    largest: Vec<f32>,
}

impl MaskedLm {
    fn load(config: &BertConfig, weights: &Weights<'_>, encoder: &Encoder) -> Result<Self, LoadError> {
        let (hidden, words, arithmetic) = (config.hidden_size, config.vocab_size, encoder.arithmetic());
        let name = |part: &str| format!("cls.predictions.{part}");
        let transform = weights.take(&name("transform.dense.weight"), &[hidden, hidden])?;
        let transform_bias = weights.take(&name("transform.dense.bias"), &[hidden])?;
        let bias = if weights.has(&name("bias")) { name("bias") } else { name("decoder.bias") };
        let bias = weights.take(&bias, &[words])?;
        let own = match weights.has(&name("decoder.weight")) {
            true => Some(weights.take(&name("decoder.weight"), &[words, hidden])?),
            false => None,
        };
        let decoder = own.as_deref().unwrap_or(encoder.words());
        let chunk = |start: usize| {
            let bias = &bias[start..words.min(start + CHUNK)];
            arithmetic.dense(|output, input| decoder[(start + output) * hidden + input], bias, hidden)
        };
        Ok(Self {
            arithmetic,
            transform: arithmetic.dense(|o, i| transform[o * hidden + i], &transform_bias, hidden),
            norm: weights.norm(&name("transform.LayerNorm"), hidden, config.layer_norm_eps, arithmetic.arch)?,
            decoder: (0..words).step_by(CHUNK).map(chunk).collect(),
        })
    }

    /// The largest logit of each word over all rows; those that are not numbers count as none.
    fn largest<'b>(&self, states: &[f32], hidden: usize, buffers: &'b mut Buffers) -> &'b [f32] {
        let Buffers { states: rows, transformed, logits, largest } = buffers;
        let count = states.len() / hidden;
        rows.sized(count, hidden).copy_from_slice(states);
        rows.ready(self.arithmetic);
        self.transform.apply(rows, transformed.sized(count, hidden), Then::Gelu);
        transformed.each(self.arithmetic, |row| self.norm.apply(row));
        largest.clear();
        for chunk in &self.decoder {
            let width = chunk.outputs();
            logits.resize(count * width, 0.0);
            chunk.apply(transformed, logits, Then::Store);
            let start = largest.len();
            largest.resize(start + width, f32::NEG_INFINITY);
            for row in logits.chunks_exact(width) {
                largest[start..].iter_mut().zip(row).for_each(|(most, logit)| *most = most.max(*logit));
            }
        }
        largest
    }
}
