//! The encoder itself. Sequences are packed end to end, never padded: linear layers run over all their tokens at once,
//! attention over each sequence alone.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use crate::LoadError;
use crate::kernels::{Arithmetic, AttentionBuffers, LayerNorm, Operand, Then};
use crate::text::{Encoded, TextTokenizer};
use crate::weights::Weights;

use super::config::BertConfig;
use super::crew::{Crew, Member};
use super::layer::Layer;

/// Tokens computed together. Enough to use each weight many times while it is in the cache, few enough for all
/// activations to stay in the second-level cache; longer sequences run alone.
const BLOCK: usize = 128;

/// Which rows of a sequence the caller reads; the last layer computes only those.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    All,
    First,
}

/// An encoder, and the threads that help it with a single short input.
pub(super) struct Encoder {
    stack: Arc<Stack>,
    crew: Option<Crew<Job>>,
}

/// What a helper computes its shards of.
struct Job {
    block: Vec<Encoded>,
    rows: Rows,
}

/// Embeddings and layers.
struct Stack {
    arithmetic: Arithmetic,
    hidden: usize,
    words: Vec<f32>,
    positions: Vec<f32>,
    types: Vec<f32>,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

/// Buffers of one thread; they grow to the largest block seen.
#[derive(Default)]
struct Scratch {
    states: Operand,
    sums: Vec<f32>,
    qkv: Vec<f32>,
    /// One for each shard.
    contexts: Vec<Operand>,
    wide: Operand,
    attention: AttentionBuffers,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Encoder {
    /// Reads the weights. A single short input is computed by up to `threads` threads where the model's heads can be
    /// shared out evenly.
    pub(super) fn load(
        config: &BertConfig,
        weights: &Weights<'_>,
        arithmetic: Arithmetic,
        threads: usize,
    ) -> Result<Self, LoadError> {
        let hidden = config.hidden_size;
        let heads = config.num_attention_heads;
        let shards = (1..=threads.min(heads)).rev().find(|shards| heads.is_multiple_of(*shards)).unwrap_or(1);
        let table = |name: &str, rows: usize| weights.take(&format!("embeddings.{name}.weight"), &[rows, hidden]);
        let stack = Arc::new(Stack {
            arithmetic,
            hidden,
            words: table("word_embeddings", config.vocab_size)?,
            positions: table("position_embeddings", config.max_position_embeddings)?,
            types: table("token_type_embeddings", config.type_vocab_size)?,
            norm: weights.norm("embeddings.LayerNorm", hidden, config.layer_norm_eps, arithmetic.arch)?,
            layers: (0..config.num_hidden_layers)
                .map(|at| Layer::load(at, config, weights, arithmetic, shards))
                .collect::<Result<_, LoadError>>()?,
        });
        let helper = stack.clone();
        let work = move |job: Job, member: Member<'_>| {
            let block: Vec<&Encoded> = job.block.iter().collect();
            SCRATCH.with_borrow_mut(|scratch| helper.block(&block, job.rows, scratch, Some(member)));
        };
        Ok(Self { stack, crew: (shards > 1).then(|| Crew::start(shards, work)) })
    }

    /// Refuses a tokenizer that makes ids or segments this model has no row for.
    pub(super) fn check(&self, tokenizer: &TextTokenizer, file: &Path) -> Result<(), LoadError> {
        let Stack { words, types, hidden, .. } = &*self.stack;
        let (largest, rows) = (tokenizer.largest_id() as usize, words.len() / hidden);
        if largest >= rows {
            return Err(LoadError::malformed(file, format!("token id {largest} exceeds the model's {rows} tokens")));
        }
        let (segment, segments) = (tokenizer.largest_segment() as usize, types.len() / hidden);
        if segment >= segments {
            return Err(LoadError::malformed(file, format!("segment {segment} exceeds the model's {segments}")));
        }
        Ok(())
    }

    pub(super) fn hidden(&self) -> usize {
        self.stack.hidden
    }

    pub(super) fn arithmetic(&self) -> Arithmetic {
        self.stack.arithmetic
    }

    /// The embedding of each word, row by row.
    pub(super) fn words(&self) -> &[f32] {
        &self.stack.words
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
                match &self.crew {
                    Some(crew) if block.len() == batch.len() => {
                        let job = || Job { block: block.iter().map(|one| (*one).clone()).collect(), rows };
                        crew.run(job, |member| self.stack.block(block, rows, scratch, member));
                    }
                    Some(crew) => {
                        let _busy = crew.busy();
                        self.stack.block(block, rows, scratch, None);
                    }
                    None => self.stack.block(block, rows, scratch, None),
                }
                let mut states = &scratch.states.values[..];
                for sequence in block {
                    let queries = if rows == Rows::First { 1 } else { sequence.ids.len() };
                    let (own, after) = states.split_at(queries * self.stack.hidden);
                    read(own);
                    states = after;
                }
                rest = after;
            }
        });
    }
}

impl Stack {
    /// Computes a block; the wanted rows of each sequence are then the states of `scratch`. A member computes its own
    /// shard of each layer and has the rest from the others.
    fn block(&self, block: &[&Encoded], rows: Rows, scratch: &mut Scratch, mut member: Option<Member<'_>>) {
        let Self { hidden, arithmetic, .. } = *self;
        let tokens: usize = block.iter().map(|sequence| sequence.ids.len()).sum();
        let Scratch { states, sums, qkv, contexts, wide, attention } = scratch;
        self.embed(block, states.sized(tokens, hidden));
        states.each(arithmetic, |row| self.norm.apply(row));
        for (at, layer) in self.layers.iter().enumerate() {
            let only_first = rows == Rows::First && at + 1 == self.layers.len();
            let shards = match &member {
                Some(member) => &layer.shards[member.number()..][..1],
                None => &layer.shards[..],
            };
            contexts.resize_with(contexts.len().max(shards.len()), Operand::default);
            for (shard, context) in shards.iter().zip(&mut *contexts) {
                shard.attend(states, (block, only_first), qkv, context, attention, arithmetic);
            }
            if only_first {
                keep_first(block, &mut states.values, hidden);
            }
            let mix = |output: &mut [f32]| {
                shards
                    .iter()
                    .zip(&*contexts)
                    .for_each(|(shard, context)| shard.mixed.apply(context, output, Then::Add));
            };
            match &mut member {
                Some(member) => member.exchange(&mut states.values, mix),
                None => mix(&mut states.values),
            }
            states.each(arithmetic, |row| layer.mixed_norm.apply(row));
            sums.clone_from(&states.values);
            let mut feed_forward = |output: &mut [f32]| {
                shards.iter().for_each(|shard| shard.feed_forward(states, wide, output, arithmetic));
            };
            match &mut member {
                Some(member) => member.exchange(sums, feed_forward),
                None => feed_forward(sums),
            }
            std::mem::swap(sums, &mut states.values);
            states.each(arithmetic, |row| layer.down_norm.apply(row));
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
    }
}

/// Moves the first row of each sequence to the front and drops the others.
fn keep_first(block: &[&Encoded], states: &mut Vec<f32>, hidden: usize) {
    let mut start = 0;
    for (kept, sequence) in block.iter().enumerate() {
        states.copy_within(start * hidden..(start + 1) * hidden, kept * hidden);
        start += sequence.ids.len();
    }
    states.truncate(block.len() * hidden);
}
