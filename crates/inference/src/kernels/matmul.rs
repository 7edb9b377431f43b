//! Rows times a weight matrix that was packed once, at load, into the order in which the product reads it.

use pulp::{Arch, Simd, WithSimd};

use super::elementwise::gelu;

/// Vectors side by side in one panel: with 8 rows they fill 24 of 32 registers with sums, with 4 rows 12 of 16.
const WIDE: usize = 3;
/// Inner dimension of one panel; a panel of 384 × 48 (72 KiB) and the rows of a block stay in the second-level cache.
const DEEP: usize = 384;

/// Up to so many rows, looking ahead makes up for reading the weights once for little work; with more it only costs.
const FEW: usize = 64;
/// How much of the depth is computed between two looks ahead.
const STEP: usize = 32;

/// What follows the product and the bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The output is replaced.
    Store,
    /// The output is replaced by the GELU of the result.
    Gelu,
    /// The result is added to what the output holds: a residual connection.
    Add,
}

/// A linear layer: `output = rows · weightᵀ + bias`.
pub(crate) struct Linear {
    inputs: usize,
    outputs: usize,
    /// Outputs rounded up to whole vectors; the columns beyond are zero.
    padded: usize,
    bias: Vec<f32>,
    /// For each `DEEP` slice of the inputs, for each panel of `WIDE` vectors of outputs: the slice's rows of the panel.
    packed: Vec<f32>,
    arch: Arch,
}

impl Linear {
    /// Packs a weight of shape `[outputs, inputs]`, row-major, as checkpoints store it.
    pub(crate) fn new(arch: Arch, weight: &[f32], mut bias: Vec<f32>, inputs: usize, outputs: usize) -> Self {
        assert_eq!((weight.len(), bias.len()), (inputs * outputs, outputs), "the shapes were checked at load");
        let lanes = arch.dispatch(Lanes);
        let padded = outputs.next_multiple_of(lanes);
        bias.resize(padded, 0.0);
        let mut packed = Vec::with_capacity(inputs * padded);
        for slice in (0..inputs).step_by(DEEP) {
            for panel in (0..padded).step_by(WIDE * lanes) {
                for input in slice..inputs.min(slice + DEEP) {
                    let columns = panel..padded.min(panel + WIDE * lanes);
                    packed.extend(columns.map(|output| weight.get(output * inputs + input).copied().unwrap_or(0.0)));
                }
            }
        }
        Self { inputs, outputs, padded, bias, packed, arch }
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Applies the layer to `rows.len() / inputs` rows; both sides are row-major without gaps.
    pub(crate) fn apply(&self, rows: &[f32], output: &mut [f32], then: Then) {
        let count = rows.len() / self.inputs;
        assert_eq!((rows.len(), output.len()), (count * self.inputs, count * self.outputs), "whole rows");
        self.arch.dispatch(Apply { linear: self, rows, output, then });
    }
}

struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

struct Apply<'a> {
    linear: &'a Linear,
    rows: &'a [f32],
    output: &'a mut [f32],
    then: Then,
}

impl WithSimd for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { linear, rows, output, then } = self;
        let Linear { inputs, outputs, padded, ref bias, ref packed, .. } = *linear;
        let width = WIDE * S::F32_LANES;
        for slice in (0..inputs).step_by(DEEP) {
            let depth = DEEP.min(inputs - slice);
            for panel in (0..padded).step_by(width) {
                let columns = width.min(padded - panel);
                let (weights, after) = packed[slice * padded + panel * depth..].split_at(columns * depth);
                let strip = Strip {
                    rows,
                    row_stride: inputs,
                    row_offset: slice,
                    depth,
                    output: &mut *output,
                    output_stride: outputs,
                    output_columns: panel..outputs.min(panel + columns),
                    bias: (slice == 0).then(|| &bias[panel..panel + columns]),
                    accumulate: slice > 0 || then == Then::Add,
                    gelu: then == Then::Gelu && slice + depth == inputs,
                    ahead: if rows.len() <= FEW * inputs { &after[..after.len().min(weights.len())] } else { &[] },
                };
                match columns / S::F32_LANES {
                    1 => strip.run::<S, 1>(simd, weights),
                    2 => strip.run::<S, 2>(simd, weights),
                    _ => strip.run::<S, WIDE>(simd, weights),
                }
            }
        }
    }
}

/// One panel of weights against all rows.
struct Strip<'a> {
    rows: &'a [f32],
    row_stride: usize,
    row_offset: usize,
    depth: usize,
    output: &'a mut [f32],
    output_stride: usize,
    output_columns: std::ops::Range<usize>,
    bias: Option<&'a [f32]>,
    accumulate: bool,
    gelu: bool,
    /// The panel that comes next, where rows are few: each tile asks for its share of it.
    ahead: &'a [f32],
}

impl Strip<'_> {
    #[inline(always)]
    fn run<S: Simd, const N: usize>(mut self, simd: S, weights: &[f32]) {
        let weights = S::as_simd_f32s(weights).0.as_chunks::<N>().0;
        let count = self.rows.len() / self.row_stride;
        let share = self.ahead.len().div_ceil(count.div_ceil(if S::REGISTER_COUNT >= 32 { 8 } else { 4 }).max(1));
        let mut row = 0;
        if S::REGISTER_COUNT >= 32 {
            while row + 8 <= count {
                self.tile::<S, 8, N>(simd, weights, row, share);
                row += 8;
            }
        }
        while row + 4 <= count {
            self.tile::<S, 4, N>(simd, weights, row, share);
            row += 4;
        }
        while row < count {
            self.tile::<S, 1, N>(simd, weights, row, share);
            row += 1;
        }
    }

    /// `M` rows against the panel. Sums start from the bias, and from the output where that is added to. On the way `share`
    /// numbers of the next panel are asked for.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const N: usize>(
        &mut self,
        simd: S,
        weights: &[[S::f32s; N]],
        row: usize,
        share: usize,
    ) {
        let mut rows = [[].as_slice(); M];
        let mut sums = [[simd.splat_f32s(0.0); N]; M];
        for (i, (row_slice, sums)) in rows.iter_mut().zip(&mut sums).enumerate() {
            *row_slice = &self.rows[(row + i) * self.row_stride + self.row_offset..][..self.depth];
            if let Some(bias) = self.bias {
                *sums = load(simd, bias);
            }
            if self.accumulate {
                let before: [S::f32s; N] = load(simd, self.output_row(row + i));
                for (sum, before) in sums.iter_mut().zip(before) {
                    *sum = simd.add_f32s(*sum, before);
                }
            }
        }
        let (ahead, behind) = self.ahead.split_at(share.min(self.ahead.len()));
        self.ahead = behind;
        if ahead.is_empty() {
            sums = product::<S, M, N>(simd, rows, weights, sums);
        } else {
            let steps = weights.len().div_ceil(STEP);
            let mut ahead = ahead.chunks(ahead.len().div_ceil(steps));
            for (at, weights) in weights.chunks(STEP).enumerate() {
                ask_for(ahead.next().unwrap_or_default());
                let rows = rows.map(|row| &row[at * STEP..][..weights.len()]);
                sums = product::<S, M, N>(simd, rows, weights, sums);
            }
        }
        let gelu_follows = self.gelu;
        for (i, sums) in sums.into_iter().enumerate() {
            let output = self.output_row(row + i);
            store(simd, output, sums);
            if gelu_follows {
                gelu(simd, output);
            }
        }
    }

    #[inline(always)]
    fn output_row(&mut self, row: usize) -> &mut [f32] {
        let start = row * self.output_stride;
        &mut self.output[start + self.output_columns.start..start + self.output_columns.end]
    }
}

/// `sums` plus `M` rows times `N` vectors of columns, kept in registers over the whole depth.
#[inline(always)]
pub(super) fn product<S: Simd, const M: usize, const N: usize>(
    simd: S,
    mut rows: [&[f32]; M],
    weights: &[[S::f32s; N]],
    mut sums: [[S::f32s; N]; M],
) -> [[S::f32s; N]; M] {
    for row in &mut rows {
        *row = &row[..weights.len()];
    }
    for (at, weights) in weights.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(rows) {
            let value = simd.splat_f32s(row[at]);
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = simd.mul_add_e_f32s(value, *weight, *sum);
            }
        }
    }
    sums
}

/// Has numbers that will be needed soon brought into the second-level cache.
#[inline(always)]
fn ask_for(numbers: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "the compiler wants the feature named, which every such processor has")]
    // SAFETY: SSE is part of x86-64, and asking for an address never fails.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        numbers.chunks(16).for_each(|line| _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = numbers;
}

/// Reads up to `N` vectors; what lies beyond the slice is zero.
#[inline(always)]
fn load<S: Simd, const N: usize>(simd: S, from: &[f32]) -> [S::f32s; N] {
    let (whole, rest) = S::as_simd_f32s(from);
    if let Some(vectors) = whole.first_chunk() {
        return *vectors;
    }
    let mut vectors = [simd.splat_f32s(0.0); N];
    vectors[..whole.len()].copy_from_slice(whole);
    vectors[whole.len()] = simd.partial_load_f32s(rest);
    vectors
}

/// Writes as much of `N` vectors as the slice holds.
#[inline(always)]
pub(super) fn store<S: Simd, const N: usize>(simd: S, to: &mut [f32], vectors: [S::f32s; N]) {
    let (whole, rest) = S::as_mut_simd_f32s(to);
    if let Some(to) = whole.first_chunk_mut() {
        *to = vectors;
        return;
    }
    whole.copy_from_slice(&vectors[..whole.len()]);
    simd.partial_store_f32s(rest, vectors[whole.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{architectures, close, gelu_exact, numbers};

    #[test]
    fn a_linear_layer_equals_the_plain_sum_on_every_architecture_and_shape() {
        for (rows, inputs, outputs) in [(1, 1, 1), (3, 5, 2), (8, 384, 48), (13, 400, 50), (21, 768, 97), (9, 33, 16)] {
            let (input, weight, bias) = (numbers(rows * inputs, 1), numbers(inputs * outputs, 2), numbers(outputs, 3));
            for then in [Then::Store, Then::Gelu, Then::Add] {
                let before = numbers(rows * outputs, 4);
                let expected: Vec<f64> = (0..rows * outputs)
                    .map(|at| {
                        let (row, column) = (at / outputs, at % outputs);
                        let product = |k| f64::from(input[row * inputs + k]) * f64::from(weight[column * inputs + k]);
                        let sum = (0..inputs).map(product).sum::<f64>() + f64::from(bias[column]);
                        match then {
                            Then::Store => sum,
                            Then::Gelu => gelu_exact(sum),
                            Then::Add => sum + f64::from(before[at]),
                        }
                    })
                    .collect();
                for arch in architectures() {
                    let mut output = before.clone();
                    Linear::new(arch, &weight, bias.clone(), inputs, outputs).apply(&input, &mut output, then);
                    close(&output, &expected, 5e-5, &format!("{arch:?} {rows}×{inputs}×{outputs} {then:?}"));
                }
            }
        }
    }
}
