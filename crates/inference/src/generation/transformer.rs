//! A decoder: one pass over the next tokens of any number of texts, so that the weights are read once for all of them.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    attention::{Source, attend},
    cache::{Pool, Shape, Table},
    family::{Activation, Config, Pairs},
    gguf::Gguf,
    linear::{Block, Matrix, blocks, quantize},
    pack::load_vector,
    vector::{add, add_rms_norm, gelu_times, rms_norm, rms_norm_in_place, rotate, rotate_pairs, silu_times},
};
use crate::LoadError;

/// Neighbouring tokens of a text that attend together.
const TOGETHER: usize = 4;
/// Rows below which what is done row by row is not worth another thread.
const FEW_ROWS: usize = 8;

pub(super) struct Model {
    config: Config,
    embeddings: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// `None`: the embeddings are the output weights too.
    output: Option<Matrix>,
}

struct Layer {
    attention_norm: Vec<f32>,
    /// Rows of all query heads, then key heads, then value heads.
    query_key_value: Matrix,
    query_key_value_bias: Option<Vec<f32>>,
    /// Of queries and of keys.
    head_norms: Option<[Vec<f32>; 2]>,
    attention_output: Matrix,
    post_attention_norm: Option<Vec<f32>>,
    feed_forward_norm: Vec<f32>,
    /// Rows of the gate, then of the values it gates.
    gate_up: Matrix,
    down: Matrix,
    post_feed_forward_norm: Option<Vec<f32>>,
}

/// The next tokens of one text.
pub(super) struct Run<'a> {
    pub(super) tokens: &'a [u32],
    /// The position of the first.
    pub(super) position: usize,
    /// Has room for all of them.
    pub(super) table: &'a Table,
    /// Whether the logits of what follows the last are wanted.
    pub(super) wants_logits: bool,
}

/// Room to compute in; grows to the most rows there ever were.
#[derive(Default)]
pub(super) struct Room {
    stream: Vec<f32>,
    input: Vec<Block>,
    projected: Vec<f32>,
    /// Queries, and later what they attended to, in the order of the tiles.
    queries: Vec<f32>,
    attended: Vec<f32>,
    gated: Vec<f32>,
    part: Vec<f32>,
    logits: Vec<f32>,
}

/// Up to `TOGETHER` neighbouring tokens of a run.
struct Tile {
    run: usize,
    /// First of its rows among all.
    row: usize,
    count: usize,
    position: usize,
}

type Angles = (Vec<f32>, Vec<f32>);

impl Model {
    pub(super) fn load(gguf: &Gguf, vocabulary: usize) -> Result<Self, LoadError> {
        let config = Config::read(gguf)?;
        let width = config.width;
        Ok(Self {
            embeddings: Matrix::load(gguf, &[("token_embd.weight", vocabulary)], width)?,
            layers: (0..config.layers).map(|index| Layer::load(gguf, &config, index)).collect::<Result<_, _>>()?,
            norm: load_vector(gguf, "output_norm.weight", width)?,
            output: match gguf.has_tensor("output.weight") {
                true => Some(Matrix::load(gguf, &[("output.weight", vocabulary)], width)?),
                false => None,
            },
            config,
        })
    }

    pub(super) fn context(&self) -> usize {
        self.config.context
    }

    pub(super) fn vocabulary(&self) -> usize {
        self.embeddings.rows()
    }

    /// What a position leaves behind.
    pub(super) fn shape(&self) -> Shape {
        Shape { layers: self.config.layers, kv_heads: self.config.kv_heads, head: self.config.head }
    }

    /// Reads the tokens of all `runs`, whose ids are of the vocabulary, and returns the logits that are wanted, one row
    /// of the vocabulary's size for each such run, in order.
    pub(super) fn forward<'a>(&self, runs: &[Run], pool: &mut Pool, room: &'a mut Room) -> &'a [f32] {
        let config = &self.config;
        let count: usize = runs.iter().map(|run| run.tokens.len()).sum();
        room.resize(config, count);
        let Room { stream, input, projected, queries, attended, gated, part, logits } = room;
        let (stream, part) = (&mut stream[..count * config.width], &mut part[..count * config.width]);
        let tiles = tiles(runs);
        let tokens: Vec<u32> = runs.iter().flat_map(|run| run.tokens).copied().collect();
        let positions: Vec<usize> = runs.iter().flat_map(|run| run.position..run.position + run.tokens.len()).collect();
        for_rows(count, stream, config.width, |index, row| {
            self.embeddings.row(tokens[index] as usize, row);
            row.iter_mut().for_each(|value| *value *= config.embedding_scale);
        });
        let global_angles = angles(&config.frequencies, &positions);
        let local_angles = angles(&config.local_frequencies, &positions);
        for (index, layer) in self.layers.iter().enumerate() {
            let angles = if config.is_local(index) { &local_angles } else { &global_angles };
            let input_now = &mut input[..count * blocks(config.width)];
            normalized(stream, &layer.attention_norm, config.epsilon, input_now);
            let projected = &mut projected[..count * layer.query_key_value.rows()];
            layer.query_key_value.multiply(input_now, projected);
            self.turn(layer, angles, projected);
            self.attention(index, runs, &tiles, projected, pool, queries, attended);
            let input_now = &mut input[..count * blocks(config.query_width())];
            self.gather(&tiles, attended, input_now);
            layer.attention_output.multiply(input_now, part);
            added(part, layer.post_attention_norm.as_deref(), config.epsilon, stream);

            let input_now = &mut input[..count * blocks(config.width)];
            normalized(stream, &layer.feed_forward_norm, config.epsilon, input_now);
            let gated = &mut gated[..count * 2 * config.feed_forward];
            layer.gate_up.multiply(input_now, gated);
            let input_now = &mut input[..count * blocks(config.feed_forward)];
            for_rows_and(gated, 2 * config.feed_forward, input_now, blocks(config.feed_forward), |row, output| {
                let (gate, up) = row.split_at_mut(config.feed_forward);
                match config.activation {
                    Activation::GeluTanh => gelu_times(gate, up),
                    Activation::Silu => silu_times(gate, up),
                }
                quantize(gate, output);
            });
            layer.down.multiply(input_now, part);
            added(part, layer.post_feed_forward_norm.as_deref(), config.epsilon, stream);
        }
        self.logits(runs, stream, input, logits)
    }

    fn logits<'a>(&self, runs: &[Run], stream: &[f32], input: &mut [Block], logits: &'a mut Vec<f32>) -> &'a [f32] {
        let (width, per_row) = (self.config.width, blocks(self.config.width));
        let (mut row, mut wanted) = (0, 0);
        for run in runs {
            row += run.tokens.len();
            if run.wants_logits {
                let last = &stream[(row - 1) * width..row * width];
                normalized(last, &self.norm, self.config.epsilon, &mut input[wanted * per_row..][..per_row]);
                wanted += 1;
            }
        }
        logits.resize(wanted * self.vocabulary(), 0.0);
        if wanted > 0 {
            let weights = self.output.as_ref().unwrap_or(&self.embeddings);
            weights.multiply(&input[..wanted * per_row], logits);
        }
        logits
    }

    /// Adds the bias, normalises queries and keys, and turns them by their positions.
    fn turn(&self, layer: &Layer, angles: &[Angles], projected: &mut [f32]) {
        let config = &self.config;
        let turned = config.query_width() + config.kv_width();
        for_rows(angles.len(), projected, turned + config.kv_width(), |index, row| {
            if let Some(bias) = &layer.query_key_value_bias {
                add(row, bias);
            }
            let (cosines, sines) = &angles[index];
            for (index, row) in row[..turned].chunks_exact_mut(config.head).enumerate() {
                if let Some(norms) = &layer.head_norms {
                    rms_norm_in_place(row, &norms[usize::from(index >= config.heads)], config.epsilon);
                }
                match config.pairs {
                    Pairs::Halves => rotate(row, cosines, sines),
                    Pairs::Neighbours => rotate_pairs(row, cosines, sines),
                }
            }
        });
    }

    /// Remembers keys and values, and attends; results are in the order of the tiles, key heads, tokens and queries.
    #[expect(clippy::too_many_arguments, reason = "parts of the room, borrowed apart")]
    fn attention(
        &self,
        layer: usize,
        runs: &[Run],
        tiles: &[Tile],
        projected: &[f32],
        pool: &mut Pool,
        queries: &mut [f32],
        attended: &mut [f32],
    ) {
        let config = &self.config;
        let (query_width, kv_width, head) = (config.query_width(), config.kv_width(), config.head);
        let (group, per_token) = (config.heads / config.kv_heads * head, query_width + 2 * kv_width);
        let (mut queries_left, mut attended_left) = (queries, attended);
        let mut work = Vec::with_capacity(tiles.len() * config.kv_heads);
        let mut seen_in_all = 0;
        for tile in tiles {
            for index in 0..tile.count {
                let (keys, values) =
                    projected[(tile.row + index) * per_token + query_width..][..2 * kv_width].split_at(kv_width);
                pool.put(runs[tile.run].table, layer, tile.position + index, keys, values);
            }
            for kv_head in 0..config.kv_heads {
                let (queries, attended);
                (queries, queries_left) = std::mem::take(&mut queries_left).split_at_mut(tile.count * group);
                (attended, attended_left) = std::mem::take(&mut attended_left).split_at_mut(tile.count * group);
                for (index, queries) in queries.chunks_exact_mut(group).enumerate() {
                    let from = (tile.row + index) * per_token + kv_head * group;
                    queries.copy_from_slice(&projected[from..from + group]);
                }
                let seen = self.seen(layer, tile.position);
                seen_in_all += seen.len() * tile.count;
                work.push((tile, kv_head, &*queries, attended));
            }
        }
        let pool = &*pool;
        let attend = |(tile, kv_head, queries, attended): (&Tile, usize, &[f32], &mut [f32])| {
            let source = Source { pool, pages: runs[tile.run].table.pages(), layer, kv_head };
            let seen = |query: usize| self.seen(layer, tile.position + query * head / group);
            attend(queries, head, source, seen, config.attention_scale, attended);
        };
        // Attending to few positions is quicker than waking another thread for it.
        if seen_in_all * group < 500_000 || rayon::current_num_threads() == 1 {
            work.into_iter().for_each(attend);
        } else {
            work.into_par_iter().for_each(attend);
        }
    }

    /// What the token at `position` attends to in a layer.
    fn seen(&self, layer: usize, position: usize) -> Range<usize> {
        let end = position + 1;
        match self.config.window {
            Some(window) if self.config.is_local(layer) => end.saturating_sub(window)..end,
            _ => 0..end,
        }
    }

    /// Brings what tiles attended to back into the order of the rows, in 8 bits.
    fn gather(&self, tiles: &[Tile], attended: &[f32], output: &mut [Block]) {
        let (width, per_row) = (self.config.query_width(), blocks(self.config.query_width()));
        let group = width / self.config.kv_heads;
        let mut row = vec![0.0; width];
        for tile in tiles {
            let attended = &attended[tile.row * width..(tile.row + tile.count) * width];
            for index in 0..tile.count {
                for (kv_head, part) in row.chunks_exact_mut(group).enumerate() {
                    part.copy_from_slice(&attended[(kv_head * tile.count + index) * group..][..group]);
                }
                quantize(&row, &mut output[(tile.row + index) * per_row..][..per_row]);
            }
        }
    }
}

impl Layer {
    fn load(gguf: &Gguf, config: &Config, index: usize) -> Result<Self, LoadError> {
        let (width, head) = (config.width, config.head);
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let vector = |part: &str, length: usize| load_vector(gguf, &name(part), length);
        let post_norm = |part: &str| config.has_post_norms.then(|| vector(part, width)).transpose();
        let matrix = |parts: &[(&str, usize)], columns: usize| {
            let names: Vec<(String, usize)> = parts.iter().map(|(part, rows)| (name(part), *rows)).collect();
            let names: Vec<(&str, usize)> = names.iter().map(|(name, rows)| (name.as_str(), *rows)).collect();
            Matrix::load(gguf, &names, columns)
        };
        let (queries, keys) = (config.query_width(), config.kv_width());
        let projections = [("attn_q", queries), ("attn_k", keys), ("attn_v", keys)];
        let bias = || -> Result<Vec<f32>, LoadError> {
            let mut all = Vec::new();
            for (part, length) in projections {
                all.extend(load_vector(gguf, &format!("blk.{index}.{part}.bias"), length)?);
            }
            Ok(all)
        };
        let head_norms = || Ok([vector("attn_q_norm", head)?, vector("attn_k_norm", head)?]);
        if gguf.has_tensor(&format!("blk.{index}.attn_output.bias")) {
            return Err(gguf.unsupported("a bias of the attention's output"));
        }
        Ok(Self {
            attention_norm: vector("attn_norm", width)?,
            query_key_value: matrix(&projections, width)?,
            query_key_value_bias: config.has_bias.then(bias).transpose()?,
            head_norms: config.has_head_norms.then(head_norms).transpose()?,
            attention_output: matrix(&[("attn_output", width)], queries)?,
            post_attention_norm: post_norm("post_attention_norm")?,
            feed_forward_norm: vector("ffn_norm", width)?,
            gate_up: matrix(&[("ffn_gate", config.feed_forward), ("ffn_up", config.feed_forward)], width)?,
            down: matrix(&[("ffn_down", width)], config.feed_forward)?,
            post_feed_forward_norm: post_norm("post_ffw_norm")?,
        })
    }
}

impl Room {
    fn resize(&mut self, config: &Config, rows: usize) {
        let grow = |numbers: &mut Vec<f32>, columns: usize| {
            if numbers.len() < rows * columns {
                numbers.resize(rows * columns, 0.0);
            }
        };
        grow(&mut self.stream, config.width);
        grow(&mut self.part, config.width);
        grow(&mut self.projected, config.query_width() + 2 * config.kv_width());
        grow(&mut self.queries, config.query_width());
        grow(&mut self.attended, config.query_width());
        grow(&mut self.gated, 2 * config.feed_forward);
        let widest = config.width.max(config.query_width()).max(config.feed_forward);
        if self.input.len() < rows * blocks(widest) {
            self.input.resize(rows * blocks(widest), Block::default());
        }
    }
}

fn tiles(runs: &[Run]) -> Vec<Tile> {
    let (mut tiles, mut row) = (Vec::new(), 0);
    for (run, Run { tokens, position, .. }) in runs.iter().enumerate() {
        for first in (0..tokens.len()).step_by(TOGETHER) {
            let count = TOGETHER.min(tokens.len() - first);
            tiles.push(Tile { run, row, count, position: position + first });
            row += count;
        }
    }
    tiles
}

/// Cosines and sines of every pair of a head at some positions.
fn angles(frequencies: &[f64], positions: &[usize]) -> Vec<Angles> {
    let at = |position: &usize| {
        let turned = frequencies.iter().map(|frequency| (*position as f64 * frequency).sin_cos());
        turned.map(|(sine, cosine)| (cosine as f32, sine as f32)).unzip()
    };
    positions.iter().map(at).collect()
}

/// Does something with every row of `columns` numbers.
fn for_rows(count: usize, rows: &mut [f32], columns: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if count < FEW_ROWS || rayon::current_num_threads() == 1 {
        rows.chunks_mut(columns).take(count).enumerate().for_each(|(index, row)| work(index, row));
    } else {
        rows.par_chunks_mut(columns).take(count).enumerate().for_each(|(index, row)| work(index, row));
    }
}

/// Does something with every row and the blocks that belong to it.
fn for_rows_and(
    rows: &mut [f32],
    columns: usize,
    output: &mut [Block],
    per_row: usize,
    work: impl Fn(&mut [f32], &mut [Block]) + Sync,
) {
    if rows.len() / columns < FEW_ROWS || rayon::current_num_threads() == 1 {
        rows.chunks_mut(columns).zip(output.chunks_mut(per_row)).for_each(|(row, output)| work(row, output));
    } else {
        rows.par_chunks_mut(columns).zip(output.par_chunks_mut(per_row)).for_each(|(row, output)| work(row, output));
    }
}

/// Normalises every row of `stream` and rounds it to 8 bits.
fn normalized(stream: &[f32], weight: &[f32], epsilon: f32, output: &mut [Block]) {
    let width = weight.len();
    let work = |row: &mut Vec<f32>, (stream, output): (&[f32], &mut [Block])| {
        row.resize(width, 0.0);
        rms_norm(stream, weight, epsilon, row);
        quantize(row, output);
    };
    if stream.len() / width < FEW_ROWS || rayon::current_num_threads() == 1 {
        let mut row = Vec::new();
        stream.chunks(width).zip(output.chunks_mut(blocks(width))).for_each(|rows| work(&mut row, rows));
    } else {
        stream.par_chunks(width).zip(output.par_chunks_mut(blocks(width))).for_each_init(Vec::new, work);
    }
}

/// Adds every row of `part` to `stream`, normalised where there is a norm.
fn added(part: &[f32], norm: Option<&[f32]>, epsilon: f32, stream: &mut [f32]) {
    match norm {
        None => add(stream, part),
        Some(weight) => {
            let width = weight.len();
            for_rows(part.len() / width, stream, width, |index, stream| {
                add_rms_norm(&part[index * width..(index + 1) * width], weight, epsilon, stream);
            });
        }
    }
}
