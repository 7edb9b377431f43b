//! Rows of activations in a narrow format, as the products of [`Packed`](super::packed::Packed) read them.

use half::bf16;

use super::level::Level;

/// How weights and activations are held in the products; sums are always wide (`f32`, or `i32` of 8-bit products).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Two `bf16` in a word.
    Bf16,
    /// Four 8-bit numbers in a word, with a scale and a zero point for each row.
    Int8,
}

impl Format {
    /// Numbers in one word of 32 bits.
    pub(crate) const fn per_word(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }
}

/// What turns the 8-bit numbers of a row back: `x = scale * (q - zero)`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Step {
    pub(crate) scale: f32,
    pub(crate) zero: f32,
}

/// Rows of one width. Buffers grow to the largest block seen.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(super) words: Vec<i32>,
    pub(super) steps: Vec<Step>,
    pub(super) stride: usize,
}

impl Rows {
    /// Makes room for `count` rows of `width` numbers; what they held is lost.
    pub(crate) fn reset(&mut self, format: Format, count: usize, width: usize) {
        self.stride = width.div_ceil(format.per_word());
        self.words.resize(count * self.stride, 0);
        self.steps.resize(count, Step::default());
    }

    /// Rounds one row into place.
    pub(crate) fn set(&mut self, level: Level, format: Format, row: usize, values: &[f32]) {
        let words = &mut self.words[row * self.stride..][..self.stride];
        assert_eq!(words.len(), values.len().div_ceil(format.per_word()), "rows of one width");
        match format {
            Format::Bf16 => level.narrow(values, words),
            Format::Int8 => self.steps[row] = level.quantize(values, words),
        }
    }

    /// Rounds whole rows of `width` numbers.
    pub(crate) fn fill(&mut self, level: Level, format: Format, values: &[f32], width: usize) {
        self.reset(format, values.len() / width, width);
        for (row, values) in values.chunks_exact(width).enumerate() {
            self.set(level, format, row, values);
        }
    }
}

/// The 8-bit step of a row whose numbers lie between `least` and `most`: zero is always among what it can hold.
#[inline(always)]
pub(super) fn step(least: f32, most: f32) -> (Step, f32) {
    let (least, most) = (least.min(0.0), most.max(0.0));
    let scale = (most - least) / 255.0;
    let inverse = if scale > f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    (Step { scale, zero: (-least * inverse).round_ties_even() }, inverse)
}

/// The portable form of [`Level::quantize`].
pub(super) fn quantize(values: &[f32], words: &mut [i32]) -> Step {
    let least = values.iter().copied().fold(0.0, f32::min);
    let most = values.iter().copied().fold(0.0, f32::max);
    let (step, inverse) = step(least, most);
    for (word, values) in words.iter_mut().zip(values.chunks(4)) {
        let mut bytes = [0; 4];
        for (byte, value) in bytes.iter_mut().zip(values) {
            *byte = value.mul_add(inverse, step.zero).round_ties_even() as u8;
        }
        *word = i32::from_le_bytes(bytes);
    }
    step
}

/// The portable form of [`Level::narrow`].
pub(super) fn narrow(values: &[f32], words: &mut [i32]) {
    for (word, values) in words.iter_mut().zip(values.chunks(2)) {
        let half = |at: usize| u32::from(bf16::from_f32(values.get(at).copied().unwrap_or(0.0)).to_bits());
        *word = (half(0) | half(1) << 16).cast_signed();
    }
}
