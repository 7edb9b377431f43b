//! Scaled dot-product attention of one sequence, a few query rows at a time: the scores of a whole sequence are never
//! held at once.

use pulp::{Arch, Simd, WithSimd};

use super::elementwise::exp_vector;
use super::matmul::{product, store};

/// Buffers of one thread; they grow to the longest sequence seen.
#[derive(Default)]
pub(crate) struct AttentionScratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
}

/// Attention within one sequence. The queries come scaled: `1 / sqrt(head)` belongs into their weights.
pub(crate) struct Attention<'a> {
    /// Rows of query, key and value side by side, each `heads * head` wide.
    pub(crate) qkv: &'a [f32],
    pub(crate) heads: usize,
    /// Width of one head.
    pub(crate) head: usize,
    /// `queries` rows of `heads * head`: the answers for the first `queries` rows.
    pub(crate) output: &'a mut [f32],
    pub(crate) scratch: &'a mut AttentionScratch,
}

impl Attention<'_> {
    pub(crate) fn run(self, arch: Arch) {
        arch.dispatch(self);
    }
}

impl WithSimd for Attention<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { qkv, heads, head, output, scratch } = self;
        let hidden = heads * head;
        let length = qkv.len() / (3 * hidden);
        let queries = output.len() / hidden;
        let lanes = S::F32_LANES;
        let (wide, deep) = (length.next_multiple_of(lanes), head.next_multiple_of(lanes));
        let keys = sized(&mut scratch.keys, wide * head);
        let values = sized(&mut scratch.values, deep * length);
        let scores = sized(&mut scratch.scores, 8 * wide);
        for at in (0..hidden).step_by(head) {
            pack_keys::<S>(qkv, hidden, at, head, keys);
            pack_values::<S>(qkv, hidden, at, head, values);
            let mut block = Block { qkv, hidden, at, head, length, wide, keys, values, scores, output: &mut *output };
            let mut row = 0;
            if S::REGISTER_COUNT >= 32 {
                while row + 8 <= queries {
                    block.rows::<S, 8>(simd, row);
                    row += 8;
                }
            }
            while row + 4 <= queries {
                block.rows::<S, 4>(simd, row);
                row += 4;
            }
            while row < queries {
                block.rows::<S, 1>(simd, row);
                row += 1;
            }
        }
    }
}

fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

/// Lays the keys of one head out as panels of up to two vectors of positions: `[panel][head][positions]`.
#[inline(always)]
fn pack_keys<S: Simd>(qkv: &[f32], hidden: usize, at: usize, head: usize, packed: &mut [f32]) {
    let width = 2 * S::F32_LANES;
    let wide = packed.len() / head;
    for (position, row) in qkv.chunks_exact(3 * hidden).enumerate() {
        let key = &row[hidden + at..][..head];
        let panel = position / width * width;
        let columns = width.min(wide - panel);
        let panel = &mut packed[panel * head..][..columns * head];
        for (slot, value) in panel[position % width..].iter_mut().step_by(columns).zip(key) {
            *slot = *value;
        }
    }
    let length = qkv.len() / (3 * hidden);
    let panel = length / width * width;
    if length < wide {
        let columns = wide - panel;
        for row in packed[panel * head..].chunks_exact_mut(columns) {
            row[length - panel..].fill(0.0);
        }
    }
}

/// Lays the values of one head out as panels of up to two vectors of the head: `[panel][positions][head]`.
#[inline(always)]
fn pack_values<S: Simd>(qkv: &[f32], hidden: usize, at: usize, head: usize, packed: &mut [f32]) {
    let width = 2 * S::F32_LANES;
    let deep = head.next_multiple_of(S::F32_LANES);
    let length = qkv.len() / (3 * hidden);
    for panel in (0..deep).step_by(width) {
        let columns = width.min(deep - panel);
        let rows = packed[panel * length..].chunks_exact_mut(columns);
        for (packed, row) in rows.zip(qkv.chunks_exact(3 * hidden)) {
            let value = &row[2 * hidden + at..][..head];
            let value = &value[panel..head.min(panel + columns)];
            packed[..value.len()].copy_from_slice(value);
            packed[value.len()..].fill(0.0);
        }
    }
}

/// One head of one sequence.
struct Block<'a> {
    qkv: &'a [f32],
    hidden: usize,
    at: usize,
    head: usize,
    length: usize,
    /// `length` in whole vectors.
    wide: usize,
    keys: &'a [f32],
    values: &'a [f32],
    scores: &'a mut [f32],
    output: &'a mut [f32],
}

impl Block<'_> {
    /// Scores, softmax and the weighted sum of values for `M` query rows.
    #[inline(always)]
    fn rows<S: Simd, const M: usize>(&mut self, simd: S, row: usize) {
        let width = 2 * S::F32_LANES;
        for panel in (0..self.wide).step_by(width) {
            let columns = width.min(self.wide - panel);
            let keys = &self.keys[panel * self.head..][..columns * self.head];
            if columns == width {
                self.score::<S, M, 2>(simd, row, panel, keys)
            } else {
                self.score::<S, M, 1>(simd, row, panel, keys)
            }
        }
        let mut factors = [0.0; M];
        for (scores, factor) in self.scores.chunks_exact_mut(self.wide).zip(&mut factors) {
            scores[self.length..].fill(f32::NEG_INFINITY);
            *factor = softmax(simd, scores);
        }
        let deep = self.head.next_multiple_of(S::F32_LANES);
        for panel in (0..deep).step_by(width) {
            let columns = width.min(deep - panel);
            let values = &self.values[panel * self.length..][..columns * self.length];
            if columns == width {
                self.mix::<S, M, 2>(simd, row, panel, values, factors)
            } else {
                self.mix::<S, M, 1>(simd, row, panel, values, factors)
            }
        }
    }

    #[inline(always)]
    fn score<S: Simd, const M: usize, const N: usize>(&mut self, simd: S, row: usize, panel: usize, keys: &[f32]) {
        let mut queries = [[].as_slice(); M];
        for (i, query) in queries.iter_mut().enumerate() {
            *query = &self.qkv[(row + i) * 3 * self.hidden + self.at..][..self.head];
        }
        let zero = [[simd.splat_f32s(0.0); N]; M];
        let sums = product::<S, M, N>(simd, queries, S::as_simd_f32s(keys).0.as_chunks::<N>().0, zero);
        for (i, sums) in sums.into_iter().enumerate() {
            store(simd, &mut self.scores[i * self.wide + panel..][..N * S::F32_LANES], sums);
        }
    }

    #[inline(always)]
    fn mix<S: Simd, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        row: usize,
        panel: usize,
        values: &[f32],
        factors: [f32; M],
    ) {
        let mut weights = [[].as_slice(); M];
        for (i, weights) in weights.iter_mut().enumerate() {
            *weights = &self.scores[i * self.wide..][..self.length];
        }
        let zero = [[simd.splat_f32s(0.0); N]; M];
        let mut sums = product::<S, M, N>(simd, weights, S::as_simd_f32s(values).0.as_chunks::<N>().0, zero);
        for (i, (sums, factor)) in sums.iter_mut().zip(factors).enumerate() {
            for sum in sums.iter_mut() {
                *sum = simd.mul_f32s(*sum, simd.splat_f32s(factor));
            }
            let head = &mut self.output[(row + i) * self.hidden + self.at..][..self.head];
            let until = self.head.min(panel + N * S::F32_LANES);
            store(simd, &mut head[panel..until], *sums);
        }
    }
}

/// Replaces scores (whole vectors of them) by `e^(score - max)` and returns one over their sum.
#[inline(always)]
fn softmax<S: Simd>(simd: S, scores: &mut [f32]) -> f32 {
    let scores = S::as_mut_simd_f32s(scores).0;
    let mut max = simd.splat_f32s(f32::NEG_INFINITY);
    for score in &*scores {
        max = simd.max_f32s(max, *score);
    }
    let max = simd.splat_f32s(simd.reduce_max_f32s(max));
    let mut sum = simd.splat_f32s(0.0);
    for score in scores {
        *score = exp_vector(simd, simd.sub_f32s(*score, max));
        sum = simd.add_f32s(sum, *score);
    }
    1.0 / simd.reduce_sum_f32s(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{architectures, close, numbers};

    #[test]
    fn attention_equals_the_plain_one_on_every_architecture_and_length() {
        let mut scratch = AttentionScratch::default();
        for (length, queries, heads, head) in
            [(1, 1, 2, 32), (67, 67, 2, 32), (7, 7, 3, 20), (32, 1, 1, 64), (16, 16, 1, 7), (130, 5, 2, 33)]
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
            for arch in architectures() {
                let mut output = vec![f32::NAN; queries * hidden];
                Attention { qkv: &qkv, heads, head, output: &mut output, scratch: &mut scratch }.run(arch);
                close(&output, &expected, 1e-5, &format!("{arch:?} {queries} of {length}, {heads} heads of {head}"));
            }
        }
    }
}
