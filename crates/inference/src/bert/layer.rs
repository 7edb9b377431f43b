//! One layer of the encoder, cut into shards that can be computed apart: each has some of the heads and some of the
//! width of the feed-forward part, and what the shards give adds up.

use crate::LoadError;
use crate::kernels::{Arithmetic, AttentionBuffers, Dense, LayerNorm, Operand, Then};
use crate::text::Encoded;
use crate::weights::Weights;

use super::config::BertConfig;

/// Width of the feed-forward part computed at a time: what is between its two products stays in the second-level cache.
const CHUNK: usize = 384;

pub(super) struct Layer {
    pub(super) shards: Vec<Shard>,
    pub(super) mixed_norm: LayerNorm,
    pub(super) down_norm: LayerNorm,
}

pub(super) struct Shard {
    heads: usize,
    head: usize,
    /// Query (scaled by `1 / sqrt(head)`), key and value of this shard's heads in one product.
    qkv: Dense,
    /// From this shard's heads to the whole width.
    pub(super) mixed: Dense,
    chunks: Vec<Chunk>,
}

/// Some of the width of the feed-forward part: into it and out of it again.
struct Chunk {
    width: usize,
    up: Dense,
    down: Dense,
}

impl Layer {
    pub(super) fn load(
        at: usize,
        config: &BertConfig,
        weights: &Weights<'_>,
        arithmetic: Arithmetic,
        shards: usize,
    ) -> Result<Self, LoadError> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("encoder.layer.{at}.{part}");
        let linear = |part: &str, inputs: usize, outputs: usize| {
            let weight = weights.take(&name(&format!("{part}.weight")), &[outputs, inputs])?;
            Ok((weight, weights.take(&name(&format!("{part}.bias")), &[outputs])?))
        };
        let norm = |part: &str| weights.norm(&name(part), hidden, config.layer_norm_eps, arithmetic.arch);
        let mut qkv = Vec::with_capacity(3);
        for part in ["query", "key", "value"] {
            qkv.push(linear(&format!("attention.self.{part}"), hidden, hidden)?);
        }
        let head = hidden / config.num_attention_heads;
        let scale = (head as f32).sqrt().recip();
        let (weight, bias) = &mut qkv[0];
        weight.iter_mut().chain(bias).for_each(|value| *value *= scale);
        let mixed = linear("attention.output.dense", hidden, hidden)?;
        let up = linear("intermediate.dense", hidden, wide)?;
        let down = linear("output.dense", wide, hidden)?;

        let shard = |number: usize| {
            let heads = config.num_attention_heads / shards;
            let own = heads * head;
            let first = number * own;
            let part = |output: usize| (&qkv[output / own], first + output % own);
            let qkv_bias: Vec<f32> = (0..3 * own).map(|output| part(output).0.1[part(output).1]).collect();
            let weight = |output: usize, input: usize| {
                let ((weight, _), row) = part(output);
                weight[row * hidden + input]
            };
            // What every shard adds to the same rows may add the bias only once.
            let once = |bias: &[f32], adds: bool| if adds { bias.to_vec() } else { vec![0.0; bias.len()] };
            let (from, until) = (wide * number / shards, wide * (number + 1) / shards);
            let chunk = |start: usize| {
                let width = CHUNK.min(until - start);
                let adds = number == 0 && start == from;
                Chunk {
                    width,
                    up: arithmetic.dense(|o, i| up.0[(start + o) * hidden + i], &up.1[start..start + width], hidden),
                    down: arithmetic.dense(|o, i| down.0[o * wide + start + i], &once(&down.1, adds), width),
                }
            };
            Shard {
                heads,
                head,
                qkv: arithmetic.dense(weight, &qkv_bias, hidden),
                mixed: arithmetic.dense(|o, i| mixed.0[o * hidden + first + i], &once(&mixed.1, number == 0), own),
                chunks: (from..until).step_by(CHUNK).map(chunk).collect(),
            }
        };
        Ok(Self {
            shards: (0..shards).map(shard).collect(),
            mixed_norm: norm("attention.output.LayerNorm")?,
            down_norm: norm("output.LayerNorm")?,
        })
    }
}

impl Shard {
    /// Computes this shard's heads for each sequence of the block, or for the first row of each.
    pub(super) fn attend(
        &self,
        states: &Operand,
        (block, only_first): (&[&Encoded], bool),
        qkv: &mut Vec<f32>,
        context: &mut Operand,
        buffers: &mut AttentionBuffers,
        arithmetic: Arithmetic,
    ) {
        let own = self.heads * self.head;
        let tokens: usize = block.iter().map(|sequence| sequence.ids.len()).sum();
        let queries = |sequence: &Encoded| if only_first { 1 } else { sequence.ids.len() };
        qkv.resize(tokens * 3 * own, 0.0);
        self.qkv.apply(states, qkv, Then::Store);
        let mut answers = context.sized(block.iter().map(|sequence| queries(sequence)).sum(), own);
        let mut rest = &qkv[..];
        for sequence in block {
            let (own_qkv, after) = rest.split_at(sequence.ids.len() * 3 * own);
            let (answer, behind) = answers.split_at_mut(queries(sequence) * own);
            arithmetic.attention(own_qkv, (self.heads, self.head), answer, buffers);
            (rest, answers) = (after, behind);
        }
        context.ready(arithmetic);
    }

    /// Adds this shard's part of the feed-forward part to `output`.
    pub(super) fn feed_forward(
        &self,
        states: &Operand,
        wide: &mut Operand,
        output: &mut [f32],
        arithmetic: Arithmetic,
    ) {
        for chunk in &self.chunks {
            chunk.up.apply(states, wide.sized(states.rows(), chunk.width), Then::Gelu);
            wide.ready(arithmetic);
            chunk.down.apply(wide, output, Then::Add);
        }
    }
}
