//! The encoder itself. Sequences are packed end to end, never padded: linear layers run over all their tokens at once,
//! attention over each sequence alone.

use std::cell::RefCell;
use std::path::Path;

use pulp::Arch;

use crate::LoadError;
use crate::kernels::{Attention, AttentionScratch, LayerNorm, Linear, Then};
use crate::text::{Encoded, TextTokenizer};
use crate::weights::Weights;

use super::config::BertConfig;

/// Tokens computed together. Enough to use each weight many times while it is in the cache, few enough for all
/// activations to stay in the second-level cache; longer sequences run alone.
const BLOCK: usize = 128;

/// Which rows of a sequence the caller reads; the last layer computes only those.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    All,
    First,
}

pub(super) struct Encoder {
    arch: Arch,
    hidden: usize,
    heads: usize,
    wide: usize,
    words: Vec<f32>,
    positions: Vec<f32>,
    types: Vec<f32>,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

struct Layer {
    /// Query (scaled by `1 / sqrt(head)`), key and value in one product.
    qkv: Linear,
    mixed: Linear,
    mixed_norm: LayerNorm,
    up: Linear,
    down: Linear,
    down_norm: LayerNorm,
}

/// Buffers of one thread; they grow to the largest block seen.
#[derive(Default)]
struct Scratch {
    states: Vec<f32>,
    qkv: Vec<f32>,
    context: Vec<f32>,
    wide: Vec<f32>,
    attention: AttentionScratch,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Encoder {
    pub(super) fn load(config: &BertConfig, weights: &Weights<'_>) -> Result<Self, LoadError> {
        let arch = Arch::new();
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let linear = |name: String, inputs: usize, outputs: usize| {
            let weight = weights.take(&format!("{name}.weight"), &[outputs, inputs])?;
            let bias = weights.take(&format!("{name}.bias"), &[outputs])?;
            Ok(Linear::new(arch, &weight, bias, inputs, outputs))
        };
        let norm = |name: String| {
            let scale = weights.take(&format!("{name}.weight"), &[hidden])?;
            let shift = weights.take(&format!("{name}.bias"), &[hidden])?;
            Ok(LayerNorm::new(arch, scale, shift, config.layer_norm_eps))
        };
        let qkv = |layer: usize| {
            let (mut weight, mut bias) = (Vec::new(), Vec::new());
            for part in ["query", "key", "value"] {
                let name = format!("encoder.layer.{layer}.attention.self.{part}");
                weight.extend(weights.take(&format!("{name}.weight"), &[hidden, hidden])?);
                bias.extend(weights.take(&format!("{name}.bias"), &[hidden])?);
            }
            let scale = ((hidden / config.num_attention_heads) as f32).sqrt().recip();
            weight[..hidden * hidden].iter_mut().chain(&mut bias[..hidden]).for_each(|value| *value *= scale);
            Ok(Linear::new(arch, &weight, bias, hidden, 3 * hidden))
        };
        let layer = |at: usize| {
            let name = |part: &str| format!("encoder.layer.{at}.{part}");
            Ok(Layer {
                qkv: qkv(at)?,
                mixed: linear(name("attention.output.dense"), hidden, hidden)?,
                mixed_norm: norm(name("attention.output.LayerNorm"))?,
                up: linear(name("intermediate.dense"), hidden, wide)?,
                down: linear(name("output.dense"), wide, hidden)?,
                down_norm: norm(name("output.LayerNorm"))?,
            })
        };
        let table = |name: &str, rows: usize| weights.take(&format!("embeddings.{name}.weight"), &[rows, hidden]);
        Ok(Self {
            arch,
            hidden,
            heads: config.num_attention_heads,
            wide,
            words: table("word_embeddings", config.vocab_size)?,
            positions: table("position_embeddings", config.max_position_embeddings)?,
            types: table("token_type_embeddings", config.type_vocab_size)?,
            norm: norm("embeddings.LayerNorm".into())?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_, LoadError>>()?,
        })
    }

    /// Refuses a tokenizer that makes ids or segments this model has no row for.
    pub(super) fn check(&self, tokenizer: &TextTokenizer, file: &Path) -> Result<(), LoadError> {
        let (largest, rows) = (tokenizer.largest_id() as usize, self.words.len() / self.hidden);
        if largest >= rows {
            return Err(LoadError::malformed(file, format!("token id {largest} exceeds the model's {rows} tokens")));
        }
        let (segment, segments) = (tokenizer.largest_segment() as usize, self.types.len() / self.hidden);
        if segment >= segments {
            return Err(LoadError::malformed(file, format!("segment {segment} exceeds the model's {segments}")));
        }
        Ok(())
    }

    pub(super) fn hidden(&self) -> usize {
        self.hidden
    }

    /// Runs the encoder and hands each sequence's rows to `read`, in order. The inputs come from the model's own
    /// tokenizer, which keeps ids, segments and lengths within the model's tables; others panic.
    pub(super) fn run(&self, batch: &[&Encoded], rows: Rows, mut read: impl FnMut(&[f32])) {
        let whole = |sequence: &&Encoded| !sequence.ids.is_empty() && sequence.ids.len() == sequence.type_ids.len();
        assert!(batch.iter().all(whole), "an encoded text has at least one token, and one segment per token");
        SCRATCH.with_borrow_mut(|scratch| {
            let mut rest = batch;
            while !rest.is_empty() {
                let mut tokens = 0;
                let fitting = rest.iter().take_while(|sequence| {
                    tokens += sequence.ids.len();
                    tokens <= BLOCK
                });
                let (block, after) = rest.split_at(fitting.count().max(1));
                self.block(block, rows, scratch, &mut read);
                rest = after;
            }
        });
    }

    fn block(&self, block: &[&Encoded], rows: Rows, scratch: &mut Scratch, read: &mut impl FnMut(&[f32])) {
        let Self { hidden, wide, .. } = *self;
        let tokens: usize = block.iter().map(|sequence| sequence.ids.len()).sum();
        let Scratch { states, qkv, context, wide: up, attention } = scratch;
        let states = sized(states, tokens * hidden);
        let qkv = sized(qkv, tokens * 3 * hidden);
        let context = sized(context, tokens * hidden);
        let up = sized(up, tokens * wide);
        self.embed(block, states);
        let mut kept = tokens;
        for (at, layer) in self.layers.iter().enumerate() {
            let only_first = rows == Rows::First && at + 1 == self.layers.len();
            layer.qkv.apply(states, qkv, Then::Store);
            let mut start = 0;
            kept = 0;
            for sequence in block {
                let length = sequence.ids.len();
                let queries = if only_first { 1 } else { length };
                let output = &mut context[kept * hidden..][..queries * hidden];
                let qkv = &qkv[start * 3 * hidden..][..length * 3 * hidden];
                let (heads, head) = (self.heads, hidden / self.heads);
                Attention { qkv, heads, head, output, scratch: attention }.run(self.arch);
                if kept != start {
                    states.copy_within(start * hidden..(start + queries) * hidden, kept * hidden);
                }
                start += length;
                kept += queries;
            }
            let states = &mut states[..kept * hidden];
            let up = &mut up[..kept * wide];
            layer.mixed.apply(&context[..kept * hidden], states, Then::Add);
            layer.mixed_norm.apply(states);
            layer.up.apply(states, up, Then::Gelu);
            layer.down.apply(up, states, Then::Add);
            layer.down_norm.apply(states);
        }
        let mut states = &states[..kept * hidden];
        for sequence in block {
            let queries = if rows == Rows::First { 1 } else { sequence.ids.len() };
            let (own, after) = states.split_at(queries * hidden);
            read(own);
            states = after;
        }
    }

    fn embed(&self, block: &[&Encoded], states: &mut [f32]) {
        let hidden = self.hidden;
        let tokens = block.iter().flat_map(|sequence| sequence.ids.iter().zip(&sequence.type_ids).enumerate());
        for (state, (position, (id, segment))) in states.chunks_exact_mut(hidden).zip(tokens) {
            let word = &self.words[*id as usize * hidden..][..hidden];
            let place = &self.positions[position * hidden..][..hidden];
            let segment = &self.types[*segment as usize * hidden..][..hidden];
            for (state, ((word, place), segment)) in state.iter_mut().zip(word.iter().zip(place).zip(segment)) {
                *state = word + segment + place;
            }
        }
        self.norm.apply(states);
    }
}

fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}
