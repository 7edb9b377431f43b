//! Gemma 3: local and global attention in turns, normalised before and after each part, GELU in its tanh form.

use rayon::prelude::*;

use super::{
    gguf::{Gguf, Value},
    linear::{Block, Matrix, blocks, load_vector, quantize},
    vector::{add_rms_norm, attend, gelu_times, rms_norm, rms_norm_in_place, rotate},
};
use crate::LoadError;

/// Prompt tokens read at once.
pub(super) const CHUNK: usize = 128;
/// Every sixth layer sees the whole text; the others see a window.
const PATTERN: usize = 6;
/// Rotation base of the local layers.
const LOCAL_BASE: f64 = 10_000.0;
/// The one size that scales attention by the width of the model per head instead of the width of a head.
const LAYERS_OF_27B: usize = 62;

pub(super) struct Model {
    context: usize,
    width: usize,
    heads: usize,
    kv_heads: usize,
    head: usize,
    feed_forward: usize,
    window: usize,
    epsilon: f32,
    attention_scale: f32,
    /// Angle per position of each pair of a head, in local and global layers.
    local_frequencies: Vec<f64>,
    global_frequencies: Vec<f64>,
    embeddings: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// `None`: the embeddings are the output weights too.
    output: Option<Matrix>,
}

struct Layer {
    is_local: bool,
    attention_norm: Vec<f32>,
    /// Rows of all query heads, then key heads, then value heads.
    query_key_value: Matrix,
    query_norm: Vec<f32>,
    key_norm: Vec<f32>,
    attention_output: Matrix,
    post_attention_norm: Vec<f32>,
    feed_forward_norm: Vec<f32>,
    /// Rows of the gate, then of the values it gates.
    gate_up: Matrix,
    down: Matrix,
    post_feed_forward_norm: Vec<f32>,
}

impl Model {
    pub(super) fn load(gguf: &Gguf, vocabulary: usize) -> Result<Self, LoadError> {
        let size = |key: &str| gguf.size(&format!("gemma3.{key}"));
        let (width, feed_forward) = (size("embedding_length")?, size("feed_forward_length")?);
        let (heads, kv_heads) = (size("attention.head_count")?, size("attention.head_count_kv")?);
        let (head, count) = (size("attention.key_length")?, size("block_count")?);
        if size("attention.value_length")? != head || !head.is_multiple_of(2) {
            return Err(gguf.unsupported("heads whose keys and values differ in length, or are of odd length"));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(gguf.malformed(format!("{heads} query heads do not share {kv_heads} key heads evenly")));
        }
        if gguf.size_or("gemma3.attention.sliding_window_pattern", PATTERN)? != PATTERN {
            return Err(gguf.unsupported(format!("a sliding window pattern other than {PATTERN}")));
        }
        if gguf.get("gemma3.final_logit_softcapping").is_some() {
            return Err(gguf.unsupported("capped logits"));
        }
        let stretch = match gguf.get("gemma3.rope.scaling.type") {
            None => 1.0,
            Some(Value::Text(kind)) if kind == "none" => 1.0,
            Some(Value::Text(kind)) if kind == "linear" => gguf.number_or("gemma3.rope.scaling.factor", 1.0)?,
            Some(kind) => return Err(gguf.unsupported(format!("rope scaling {kind:?}; `linear` is"))),
        };
        let frequencies = |base: f64, stretch: f64| -> Vec<f64> {
            (0..head / 2).map(|pair| base.powf(-2.0 * pair as f64 / head as f64) / stretch).collect()
        };
        let scaled_by = if count == LAYERS_OF_27B { width / heads } else { head };
        let model = Self {
            context: size("context_length")?,
            width,
            heads,
            kv_heads,
            head,
            feed_forward,
            window: size("attention.sliding_window")?,
            epsilon: gguf.number_or("gemma3.attention.layer_norm_rms_epsilon", 1e-6)? as f32,
            attention_scale: 1.0 / (scaled_by as f32).sqrt(),
            local_frequencies: frequencies(gguf.number_or("gemma3.rope.freq_base_swa", LOCAL_BASE)?, 1.0),
            global_frequencies: frequencies(gguf.number_or("gemma3.rope.freq_base", 1_000_000.0)?, stretch),
            embeddings: Matrix::load(gguf, &[("token_embd.weight", vocabulary)], width)?,
            layers: (0..count).map(|index| Layer::load(gguf, index)).collect::<Result<_, _>>()?,
            norm: load_vector(gguf, "output_norm.weight", width)?,
            output: match gguf.has_tensor("output.weight") {
                true => Some(Matrix::load(gguf, &[("output.weight", vocabulary)], width)?),
                false => None,
            },
        };
        Ok(model)
    }

    pub(super) fn context(&self) -> usize {
        self.context
    }

    /// Room for a text of at most `positions` tokens.
    pub(super) fn state(&self, positions: usize) -> State {
        let rows = |rows: usize, columns: usize| vec![0.0; rows * columns];
        let together = positions.min(CHUNK);
        let kv = self.kv_heads * self.head;
        let memory = self.layers.iter().map(|layer| {
            let capacity = if layer.is_local { positions.min(self.window + CHUNK) } else { positions };
            Memory { capacity, keys: rows(capacity, kv), values: rows(capacity, kv) }
        });
        let widest = self.width.max(self.heads * self.head).max(self.feed_forward);
        State {
            position: 0,
            memory: memory.collect(),
            stream: rows(together, self.width),
            input: vec![Block::default(); together * blocks(widest)],
            projected: rows(together, (self.heads + 2 * self.kv_heads) * self.head),
            attended: rows(together, self.heads * self.head),
            gated: rows(together, 2 * self.feed_forward),
            part: rows(together, self.width),
            logits: rows(1, self.embeddings.rows()),
        }
    }

    /// Reads the next `tokens`, at most `CHUNK`, all of them ids of the vocabulary.
    pub(super) fn read(&self, tokens: &[u32], state: &mut State) {
        let (count, epsilon) = (tokens.len(), self.epsilon);
        let State { position, memory, stream, input, projected, attended, gated, part, .. } = state;
        let stream = &mut stream[..count * self.width];
        let part = &mut part[..count * self.width];
        let scale = (self.width as f32).sqrt();
        stream.par_chunks_mut(self.width).zip(tokens).for_each(|(row, token)| {
            self.embeddings.row(*token as usize, row);
            row.iter_mut().for_each(|value| *value *= scale);
        });
        let local_angles = angles(&self.local_frequencies, *position, count);
        let global_angles = angles(&self.global_frequencies, *position, count);
        let by_width = blocks(self.width);
        for (layer, memory) in self.layers.iter().zip(memory) {
            let angles = if layer.is_local { &local_angles } else { &global_angles };
            normalized(stream, &layer.attention_norm, epsilon, &mut input[..count * by_width]);
            let projected = &mut projected[..count * layer.query_key_value.rows()];
            layer.query_key_value.multiply(&input[..count * by_width], projected);
            let attended = &mut attended[..count * self.heads * self.head];
            self.attention(layer, angles, *position, projected, memory, attended);
            let input_now = &mut input[..count * blocks(self.heads * self.head)];
            quantized(attended, self.heads * self.head, self.heads * self.head, input_now);
            layer.attention_output.multiply(input_now, part);
            added(part, &layer.post_attention_norm, epsilon, stream);

            normalized(stream, &layer.feed_forward_norm, epsilon, &mut input[..count * by_width]);
            let gated = &mut gated[..count * 2 * self.feed_forward];
            layer.gate_up.multiply(&input[..count * by_width], gated);
            gated.par_chunks_mut(2 * self.feed_forward).for_each(|row| {
                let (gate, up) = row.split_at_mut(self.feed_forward);
                gelu_times(gate, up);
            });
            let input_now = &mut input[..count * blocks(self.feed_forward)];
            quantized(gated, 2 * self.feed_forward, self.feed_forward, input_now);
            layer.down.multiply(input_now, part);
            added(part, &layer.post_feed_forward_norm, epsilon, stream);
        }
        *position += count;
        // The logits come from the last token read; keeping it first makes it easy to find.
        stream.copy_within((count - 1) * self.width.., 0);
    }

    /// Computes the logits of what follows the last token read.
    pub(super) fn logits<'a>(&self, state: &'a mut State) -> &'a [f32] {
        let input = &mut state.input[..blocks(self.width)];
        normalized(&state.stream[..self.width], &self.norm, self.epsilon, input);
        self.output.as_ref().unwrap_or(&self.embeddings).multiply(input, &mut state.logits);
        &state.logits
    }

    /// Normalises and turns queries and keys, remembers keys and values, and attends.
    fn attention(
        &self,
        layer: &Layer,
        angles: &[(Vec<f32>, Vec<f32>)],
        position: usize,
        projected: &mut [f32],
        memory: &mut Memory,
        attended: &mut [f32],
    ) {
        let (head, kv) = (self.head, self.kv_heads * self.head);
        let per_token = self.heads * head + 2 * kv;
        projected.par_chunks_mut(per_token).zip(angles).for_each(|(row, (cosines, sines))| {
            for (index, row) in row[..self.heads * head + kv].chunks_exact_mut(head).enumerate() {
                let norm = if index < self.heads { &layer.query_norm } else { &layer.key_norm };
                rms_norm_in_place(row, norm, self.epsilon);
                rotate(row, cosines, sines);
            }
        });
        for (index, row) in projected.chunks_exact(per_token).enumerate() {
            let (keys, values) = row[self.heads * head..].split_at(kv);
            memory.keep(position + index, head, keys, values);
        }
        let (memory, projected) = (&*memory, &*projected);
        // Attending to few positions is quicker than waking another thread for it.
        let least = 20_000 / (head * (position + 1).min(memory.capacity)) + 1;
        let work = attended.par_chunks_mut(head).enumerate().with_min_len(least);
        work.for_each_init(Vec::new, |weights, (index, output)| {
            let (token, query) = (index / self.heads, index % self.heads);
            let end = position + token + 1;
            let first = if layer.is_local { end.saturating_sub(self.window) } else { 0 };
            let of_head = memory.head(query / (self.heads / self.kv_heads), head);
            let query = &projected[token * per_token + query * head..][..head];
            let (keys, values) = (&memory.keys[of_head.clone()], &memory.values[of_head]);
            attend(query, keys, values, memory.rows(first, end), self.attention_scale, weights, output);
        });
    }
}

impl Layer {
    fn load(gguf: &Gguf, index: usize) -> Result<Self, LoadError> {
        let size = |key: &str| gguf.size(&format!("gemma3.{key}"));
        let (width, feed_forward) = (size("embedding_length")?, size("feed_forward_length")?);
        let (head, heads) = (size("attention.key_length")?, size("attention.head_count")?);
        let kv_heads = size("attention.head_count_kv")?;
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let vector = |part: &str, length: usize| load_vector(gguf, &name(part), length);
        let matrix = |parts: &[(&str, usize)], columns: usize| {
            let names: Vec<(String, usize)> = parts.iter().map(|(part, rows)| (name(part), *rows)).collect();
            let names: Vec<(&str, usize)> = names.iter().map(|(name, rows)| (name.as_str(), *rows)).collect();
            Matrix::load(gguf, &names, columns)
        };
        let projections = [("attn_q", heads * head), ("attn_k", kv_heads * head), ("attn_v", kv_heads * head)];
        Ok(Self {
            is_local: !(index + 1).is_multiple_of(PATTERN),
            attention_norm: vector("attn_norm", width)?,
            query_key_value: matrix(&projections, width)?,
            query_norm: vector("attn_q_norm", head)?,
            key_norm: vector("attn_k_norm", head)?,
            attention_output: matrix(&[("attn_output", width)], heads * head)?,
            post_attention_norm: vector("post_attention_norm", width)?,
            feed_forward_norm: vector("ffn_norm", width)?,
            gate_up: matrix(&[("ffn_gate", feed_forward), ("ffn_up", feed_forward)], width)?,
            down: matrix(&[("ffn_down", width)], feed_forward)?,
            post_feed_forward_norm: vector("post_ffw_norm", width)?,
        })
    }
}

/// What one text has left behind: keys and values of each layer, and room to compute in.
pub(super) struct State {
    position: usize,
    memory: Vec<Memory>,
    stream: Vec<f32>,
    input: Vec<Block>,
    projected: Vec<f32>,
    attended: Vec<f32>,
    gated: Vec<f32>,
    part: Vec<f32>,
    logits: Vec<f32>,
}

/// Keys and values of the last `capacity` positions, per head; position p is in row p modulo capacity.
struct Memory {
    capacity: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Memory {
    fn keep(&mut self, position: usize, head: usize, keys: &[f32], values: &[f32]) {
        for (index, (key, value)) in keys.chunks_exact(head).zip(values.chunks_exact(head)).enumerate() {
            let at = (index * self.capacity + position % self.capacity) * head;
            self.keys[at..at + head].copy_from_slice(key);
            self.values[at..at + head].copy_from_slice(value);
        }
    }

    /// The part of `keys` and `values` that belongs to key head `index`.
    fn head(&self, index: usize, head: usize) -> std::ops::Range<usize> {
        index * self.capacity * head..(index + 1) * self.capacity * head
    }

    /// The rows of positions `first..end`, oldest first.
    fn rows(&self, first: usize, end: usize) -> [std::ops::Range<usize>; 2] {
        let (start, count) = (first % self.capacity, end - first);
        let straight = count.min(self.capacity - start);
        [start..start + straight, 0..count - straight]
    }
}

/// Cosines and sines of every pair of a head, for `count` positions from `first` on.
fn angles(frequencies: &[f64], first: usize, count: usize) -> Vec<(Vec<f32>, Vec<f32>)> {
    let at = |position: usize| {
        let turned = frequencies.iter().map(move |frequency| (position as f64 * frequency).sin_cos());
        turned.map(|(sine, cosine)| (cosine as f32, sine as f32)).unzip()
    };
    (first..first + count).map(at).collect()
}

/// Normalises every row of `stream` and rounds it to 8 bits.
fn normalized(stream: &[f32], weight: &[f32], epsilon: f32, output: &mut [Block]) {
    let width = weight.len();
    let work = stream.par_chunks(width).zip(output.par_chunks_mut(blocks(width)));
    work.for_each_init(
        || vec![0.0; width],
        |row, (stream, output)| {
            rms_norm(stream, weight, epsilon, row);
            quantize(row, output);
        },
    );
}

/// Rounds the first `columns` numbers of every row to 8 bits.
fn quantized(rows: &[f32], stride: usize, columns: usize, output: &mut [Block]) {
    let work = rows.par_chunks(stride).zip(output.par_chunks_mut(blocks(columns)));
    work.for_each(|(row, output)| quantize(&row[..columns], output));
}

/// Adds every normalised row of `part` to `stream`.
fn added(part: &[f32], weight: &[f32], epsilon: f32, stream: &mut [f32]) {
    let work = part.par_chunks(weight.len()).zip(stream.par_chunks_mut(weight.len()));
    work.for_each(|(part, stream)| add_rms_norm(part, weight, epsilon, stream));
}
