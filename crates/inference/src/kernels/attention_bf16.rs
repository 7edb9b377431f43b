//! Scaled dot-product attention of one sequence with both products in `bf16`: keys and values are packed like weights,
//! and the same kernels run over them. Scores and sums stay in `f32`.

use super::Level;
use super::packed::{Columns, LANES, Line, TALL, Tile, WIDE};
use super::rows::{Format, Step};

/// Buffers of one thread; they grow to the longest sequence seen.
#[derive(Default)]
pub(crate) struct NarrowScratch {
    queries: Vec<i32>,
    keys: Vec<Line>,
    values: Vec<Line>,
    scores: Vec<f32>,
    weights: Vec<i32>,
}

/// Attention within one sequence, as [`Attention`](super::Attention) computes it.
pub(crate) struct NarrowAttention<'a> {
    /// Rows of query (scaled), key and value side by side, each `heads * head` wide.
    pub(crate) qkv: &'a [f32],
    pub(crate) heads: usize,
    /// Width of one head.
    pub(crate) head: usize,
    /// `queries` rows of `heads * head`: the answers for the first `queries` rows.
    pub(crate) output: &'a mut [f32],
    pub(crate) scratch: &'a mut NarrowScratch,
}

/// The products end without bias, scale or shift.
const PLAIN: [Columns; WIDE] = [Columns { bias: [0.0; LANES], scales: [0.0; LANES], shifts: [0.0; LANES] }; WIDE];
const NO_STEPS: [Step; TALL] = [Step { scale: 0.0, zero: 0.0 }; TALL];

impl NarrowAttention<'_> {
    pub(crate) fn run(self, level: Level) {
        let Self { qkv, heads, head, output, scratch } = self;
        let hidden = heads * head;
        let length = qkv.len() / (3 * hidden);
        let queries = output.len() / hidden;
        let wide = length.next_multiple_of(LANES);
        let (deep, half) = (head.div_ceil(2), wide / 2);
        let (positions, columns) = (wide / LANES, head.div_ceil(LANES));
        let words = sized(&mut scratch.queries, queries * deep, 0);
        let keys = sized(&mut scratch.keys, positions * deep, Line([0; LANES]));
        let values = sized(&mut scratch.values, columns * half, Line([0; LANES]));
        let scores = sized(&mut scratch.scores, TALL * wide, 0.0);
        let weights = sized(&mut scratch.weights, TALL * half, 0);
        for at in (0..hidden).step_by(head) {
            let part = |row: usize, part: usize| &qkv[row * 3 * hidden + part * hidden + at..][..head];
            for (row, words) in words.chunks_exact_mut(deep).enumerate() {
                level.narrow(part(row, 0), words);
            }
            level.pack_columns(length, |row| part(row, 1), keys);
            level.pack_rows(length, |row| part(row, 2), values);
            for first in (0..queries).step_by(TALL) {
                let tall = TALL.min(queries - first);
                product(level, &words[first * deep..][..tall * deep], tall, keys, scores, wide, wide);
                let mut factors = [0.0; TALL];
                for (row, factor) in factors.iter_mut().enumerate().take(tall) {
                    let scores = &mut scores[row * wide..][..wide];
                    scores[length..].fill(f32::NEG_INFINITY);
                    *factor = level.softmax(scores, &mut weights[row * half..][..half]);
                }
                let output = &mut output[first * hidden + at..];
                product(level, &weights[..tall * half], tall, values, output, hidden, head);
                for (row, factor) in factors.into_iter().enumerate().take(tall) {
                    output[row * hidden..][..head].iter_mut().for_each(|value| *value *= factor);
                }
            }
        }
    }
}

/// `tall` rows of words times packed lines, into `width` numbers of rows `stride` apart.
#[inline(always)]
fn product(level: Level, words: &[i32], tall: usize, lines: &[Line], output: &mut [f32], stride: usize, width: usize) {
    let depth = words.len() / tall;
    let vectors = lines.len() / depth;
    for panel in (0..vectors).step_by(WIDE) {
        let together = WIDE.min(vectors - panel);
        let tile = Tile {
            words,
            steps: &NO_STEPS[..tall],
            lines: &lines[panel * depth..][..together * depth],
            columns: &PLAIN[..together],
            output: &mut output[panel * LANES..],
            stride,
            width: (together * LANES).min(width - panel * LANES),
            then: super::Then::Store,
        };
        tile.run(level, Format::Bf16);
    }
}

fn sized<T: Copy>(buffer: &mut Vec<T>, length: usize, fill: T) -> &mut [T] {
    if buffer.len() < length {
        buffer.resize(length, fill);
    }
    &mut buffer[..length]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{close, levels, numbers};

    #[test]
    fn attention_in_bf16_equals_the_plain_one_within_its_rounding_on_every_level_and_length() {
        let mut scratch = NarrowScratch::default();
        for (length, queries, heads, head) in
            [(67, 67, 2, 32), (1, 1, 2, 32), (7, 7, 3, 20), (32, 1, 1, 64), (16, 16, 1, 7), (130, 5, 2, 33)]
        {
            let hidden = heads * head;
            let qkv = numbers(length * 3 * hidden, 7);
            let at = |row: usize, part: usize, column: usize| f64::from(qkv[row * 3 * hidden + part * hidden + column]);
            let mut expected = Vec::new();
            for (row, column) in (0..queries).flat_map(|row| (0..hidden).map(move |column| (row, column))) {
                let first = column / head * head;
                let dot = |key| (first..first + head).map(|c| at(row, 0, c) * at(key, 1, c)).sum::<f64>();
                let weights: Vec<f64> = (0..length).map(|key| dot(key).exp()).collect();
                let mixed: f64 = weights.iter().enumerate().map(|(key, weight)| weight * at(key, 2, column)).sum();
                expected.push(mixed / weights.iter().sum::<f64>());
            }
            for level in levels() {
                let mut output = vec![f32::NAN; queries * hidden];
                NarrowAttention { qkv: &qkv, heads, head, output: &mut output, scratch: &mut scratch }.run(level);
                close(&output, &expected, 1e-2, &format!("{level:?} {queries} of {length}, {heads} heads of {head}"));
            }
        }
    }
}
