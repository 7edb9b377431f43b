//! Rows times a weight matrix in a narrow format, packed once, at load, into the order in which the product reads it.

use half::bf16;

use super::level::Level;
use super::matmul::Then;
use super::rows::{Format, Rows, Step};

/// Outputs computed together in one vector.
pub(super) const LANES: usize = 16;
/// Vectors side by side in one panel: with 8 rows they fill 24 of 32 registers with sums.
pub(super) const WIDE: usize = 3;
/// Most rows of one tile.
pub(super) const TALL: usize = 8;

/// One vector of words, as wide as a cache line and aligned to it.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [i32; LANES]);

/// A linear layer with weights in a narrow format.
pub(crate) struct Packed {
    format: Format,
    level: Level,
    outputs: usize,
    /// Words of one row.
    depth: usize,
    /// For each panel of up to `WIDE` vectors of outputs, for each word of a row: the panel's vectors.
    lines: Vec<Line>,
    /// Whole vectors of outputs; what lies beyond `outputs` is zero.
    columns: Vec<Columns>,
}

/// What sixteen outputs need after the product.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Columns {
    pub(super) bias: [f32; LANES],
    /// 8-bit: the scale of each output's weights.
    pub(super) scales: [f32; LANES],
    /// 8-bit: `scale · Σ weight`, by which the zero point of a row shifts the sum.
    pub(super) shifts: [f32; LANES],
}

impl Packed {
    /// Packs the weight `weight(output, input)`. 8-bit weights are scaled so that the largest of each output is 127.
    pub(crate) fn new(
        level: Level,
        format: Format,
        weight: impl Fn(usize, usize) -> f32,
        bias: &[f32],
        inputs: usize,
    ) -> Self {
        let outputs = bias.len();
        let (depth, per_word) = (inputs.div_ceil(format.per_word()), format.per_word());
        let vectors = outputs.div_ceil(LANES);
        let mut columns = vec![Columns::default(); vectors];
        let mut lines = vec![Line([0; LANES]); vectors * depth];
        for output in 0..outputs {
            let (vector, lane) = (output / LANES, output % LANES);
            let (panel, within) = (vector / WIDE * WIDE, vector % WIDE);
            let together = WIDE.min(vectors - panel);
            let columns = &mut columns[vector];
            let largest = (0..inputs).fold(0.0, |largest: f32, input| largest.max(weight(output, input).abs()));
            let scale = largest / 127.0;
            let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
            let mut sum = 0;
            for word in 0..depth {
                let mut bytes = [0; 4];
                for at in 0..per_word.min(inputs - word * per_word) {
                    let value = weight(output, word * per_word + at);
                    match format {
                        Format::Bf16 => bytes[2 * at..][..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                        Format::Int8 => {
                            let rounded = (value * inverse).round_ties_even() as i8;
                            sum += i32::from(rounded);
                            bytes[at] = rounded.cast_unsigned();
                        }
                    }
                }
                lines[panel * depth + word * together + within].0[lane] = i32::from_le_bytes(bytes);
            }
            columns.bias[lane] = bias[output];
            columns.scales[lane] = scale;
            columns.shifts[lane] = scale * sum as f32;
        }
        Self { format, level, outputs, depth, lines, columns }
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Applies the layer to `rows`; `output` holds as many rows of `outputs` numbers.
    pub(crate) fn apply(&self, rows: &Rows, output: &mut [f32], then: Then) {
        let count = output.len() / self.outputs;
        assert_eq!(output.len(), count * self.outputs, "whole rows");
        assert!(rows.stride == self.depth && rows.words.len() >= count * self.depth, "rows of this layer's width");
        let vectors = self.columns.len();
        for panel in (0..vectors).step_by(WIDE) {
            let together = WIDE.min(vectors - panel);
            let lines = &self.lines[panel * self.depth..][..together * self.depth];
            let columns = &self.columns[panel..][..together];
            let first = panel * LANES;
            let mut next = &self.lines[(panel + together) * self.depth..];
            next = &next[..next.len().min(WIDE * self.depth)];
            let tiles = count.div_ceil(TALL);
            let mut row = 0;
            while row < count {
                let tall = TALL.min(count - row);
                // Each tile asks for its part of the next panel.
                let (soon, later) = next.split_at(next.len().div_ceil(tiles - row / TALL));
                self.level.prefetch(soon);
                next = later;
                let tile = Tile {
                    words: &rows.words[row * self.depth..][..tall * self.depth],
                    steps: &rows.steps[row..][..tall],
                    lines,
                    columns,
                    output: &mut output[row * self.outputs + first..],
                    stride: self.outputs,
                    width: (together * LANES).min(self.outputs - first),
                    then,
                };
                tile.run(self.level, self.format);
                row += tall;
            }
        }
    }
}

/// Up to `TALL` rows against one panel.
pub(super) struct Tile<'a> {
    pub(super) words: &'a [i32],
    pub(super) steps: &'a [Step],
    pub(super) lines: &'a [Line],
    pub(super) columns: &'a [Columns],
    /// From the tile's first number on.
    pub(super) output: &'a mut [f32],
    pub(super) stride: usize,
    /// Numbers of one row that belong to the panel.
    pub(super) width: usize,
    pub(super) then: Then,
}

impl Tile<'_> {
    #[inline(always)]
    pub(super) fn run(self, level: Level, format: Format) {
        match (level, format) {
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "the kernel needs vector instructions the processor was asked for")]
            // SAFETY: `Level::detect` found the features the kernel is compiled for.
            (Level::Vnni | Level::VnniBf16, Format::Int8) => unsafe { super::x86::int8(self) },
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "the kernel needs vector instructions the processor was asked for")]
            // SAFETY: `Level::detect` found the features the kernel is compiled for.
            (Level::VnniBf16, Format::Bf16) => unsafe { super::x86::bf16(self) },
            _ => self.portable(format),
        }
    }

    fn portable(self, format: Format) {
        let depth = self.words.len() / self.steps.len();
        for (row, (words, step)) in self.words.chunks_exact(depth).zip(self.steps).enumerate() {
            for (vector, columns) in self.columns.iter().enumerate() {
                let lines = self.lines.iter().skip(vector).step_by(self.columns.len());
                let sums: [f32; LANES] = match format {
                    Format::Int8 => {
                        let sums = int8(words, lines);
                        std::array::from_fn(|lane| {
                            let shifted = sums[lane] as f32 * columns.scales[lane] * step.scale;
                            shifted - step.scale * step.zero * columns.shifts[lane] + columns.bias[lane]
                        })
                    }
                    Format::Bf16 => {
                        let sums = halves(words, lines);
                        std::array::from_fn(|lane| sums[lane] + columns.bias[lane])
                    }
                };
                let output = &mut self.output[row * self.stride..][..self.width];
                for (output, sum) in output.iter_mut().skip(vector * LANES).zip(sums) {
                    *output = match self.then {
                        Then::Store => sum,
                        Then::Add => *output + sum,
                        Then::Gelu => gelu(sum),
                    };
                }
            }
        }
    }
}

fn int8<'a>(words: &[i32], lines: impl Iterator<Item = &'a Line>) -> [i32; LANES] {
    let mut sums = [0; LANES];
    for (word, line) in words.iter().zip(lines) {
        let values = word.to_le_bytes().map(i32::from);
        for (sum, weights) in sums.iter_mut().zip(line.0) {
            let weights = weights.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
            *sum += (0..4).map(|at| weights[at] * values[at]).sum::<i32>();
        }
    }
    sums
}

fn halves<'a>(words: &[i32], lines: impl Iterator<Item = &'a Line>) -> [f32; LANES] {
    let both = |word: i32| [(word << 16).cast_unsigned(), word.cast_unsigned() & 0xffff_0000].map(f32::from_bits);
    let mut sums = [0.0; LANES];
    for (word, line) in words.iter().zip(lines) {
        let values = both(*word);
        for (sum, weights) in sums.iter_mut().zip(line.0) {
            let weights = both(weights);
            *sum += weights[0] * values[0] + weights[1] * values[1];
        }
    }
    sums
}

/// GELU within 5e-5, finer than the rounding of its result to a narrow format: `x · (1/2 + x · p(x²))`, where beyond
/// 4 the bracket is 0 or 1.
fn gelu(x: f32) -> f32 {
    let near = x.clamp(-GELU_REACH, GELU_REACH);
    let series = GELU_FALLING.iter().fold(0.0, |sum: f32, term| sum.mul_add(near * near, *term));
    x * near.mul_add(series, 0.5)
}

pub(super) const GELU_REACH: f32 = 4.0;
/// Coefficients of `p`, the highest power first: fitted to the least largest error of the product.
pub(super) const GELU_FALLING: [f32; 8] = [
    -1.301_287e-9,
    1.041_955_8e-7,
    -3.657_121_4e-6,
    7.485_49e-5,
    -1.006_489_4e-3,
    9.505_394e-3,
    -6.588_784e-2,
    3.986_733_9e-1,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{close, gelu_exact, levels, numbers};

    #[test]
    fn the_short_gelu_is_that_of_the_long_one_within_5e_5() {
        for i in 0..200_000 {
            let x = i as f32 * 1e-4 - 10.0;
            let apart = (f64::from(gelu(x)) - gelu_exact(f64::from(x))).abs();
            assert!(apart <= 5e-5 * f64::from(x.abs()).max(1.0), "gelu({x}) is off by {apart:e}");
        }
    }

    #[test]
    fn a_narrow_layer_is_the_sum_of_its_rounded_numbers_on_every_level_and_shape() {
        for (rows, inputs, outputs) in [(1, 1, 1), (3, 5, 2), (8, 384, 48), (13, 400, 50), (21, 768, 97), (9, 33, 16)] {
            let (input, weight, bias) = (numbers(rows * inputs, 1), numbers(inputs * outputs, 2), numbers(outputs, 3));
            for format in [Format::Int8, Format::Bf16] {
                // What the formats keep of each number; the sums of those are exact in f64.
                let kept_rows: Vec<f64> = input.chunks(inputs).flat_map(|row| kept(format, row)).collect();
                let kept_weights: Vec<f64> = weight
                    .chunks(inputs)
                    .flat_map(|row| {
                        let scale = row.iter().fold(0.0f32, |largest, value| largest.max(value.abs())) / 127.0;
                        row.iter()
                            .map(|value| match format {
                                Format::Int8 => f64::from(scale) * f64::from((value / scale).round_ties_even()),
                                Format::Bf16 => f64::from(bf16::from_f32(*value).to_f32()),
                            })
                            .collect::<Vec<_>>()
                    })
                    .collect();
                for then in [Then::Store, Then::Gelu, Then::Add] {
                    let before = numbers(rows * outputs, 4);
                    let expected: Vec<f64> = (0..rows * outputs)
                        .map(|at| {
                            let (row, column) =
                                (&kept_rows[at / outputs * inputs..], &kept_weights[at % outputs * inputs..]);
                            let product: f64 = row[..inputs].iter().zip(column).map(|(a, b)| a * b).sum();
                            let sum = product + f64::from(bias[at % outputs]);
                            match then {
                                Then::Store => sum,
                                Then::Gelu => gelu_exact(sum),
                                Then::Add => sum + f64::from(before[at]),
                            }
                        })
                        .collect();
                    for level in levels() {
                        let packed = Packed::new(level, format, |o, i| weight[o * inputs + i], &bias, inputs);
                        let (mut narrow, mut output) = (Rows::default(), before.clone());
                        narrow.fill(level, format, &input, inputs);
                        packed.apply(&narrow, &mut output, then);
                        let what = format!("{level:?} {format:?} {rows}×{inputs}×{outputs} {then:?}");
                        close(&output, &expected, 2e-3, &what);
                    }
                }
            }
        }
    }

    fn kept(format: Format, row: &[f32]) -> Vec<f64> {
        let mut words = vec![0; row.len().div_ceil(format.per_word())];
        match format {
            Format::Bf16 => row.iter().map(|value| f64::from(bf16::from_f32(*value).to_f32())).collect(),
            Format::Int8 => {
                let Step { scale, zero } = Level::Portable.quantize(row, &mut words);
                let bytes: &[u8] = bytemuck::cast_slice(&words);
                bytes[..row.len()].iter().map(|q| f64::from(scale) * (f64::from(*q) - f64::from(zero))).collect()
            }
        }
    }
}
