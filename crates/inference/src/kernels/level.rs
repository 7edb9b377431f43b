//! Which kernels this processor can run.

use super::packed::{LANES, Line, WIDE};
use super::rows::{self, Step};

/// The kernels of the narrow formats, from the plainest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Portable,
    /// AVX-512 with VNNI: products of 8-bit numbers.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// The same, and products of `bf16`.
    #[cfg(target_arch = "x86_64")]
    VnniBf16,
}

impl Level {
    /// Asks the processor.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let vnni = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            if vnni && is_x86_feature_detected!("avx512bf16") {
                return Self::VnniBf16;
            }
            if vnni {
                return Self::Vnni;
            }
        }
        Self::Portable
    }

    /// Says whether products of 8-bit numbers run at several times the rate of `f32` here.
    pub(crate) fn has_fast_int8(self) -> bool {
        self != Self::Portable
    }

    /// Says whether products of `bf16` run at twice the rate of `f32` here.
    pub(crate) fn has_fast_bf16(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::VnniBf16 => true,
            _ => false,
        }
    }

    /// Asks for lines that will be needed soon.
    pub(super) fn prefetch(self, lines: &[Line]) {
        #[cfg(target_arch = "x86_64")]
        if self != Self::Portable {
            #[expect(unsafe_code, reason = "the kernel needs vector instructions the processor was asked for")]
            // SAFETY: `Level::detect` found the features the kernel is compiled for.
            unsafe {
                super::x86::prefetch(lines);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = lines;
    }

    /// Rounds a row to 8-bit numbers between its least and its greatest, four in a word.
    pub(crate) fn quantize(self, values: &[f32], words: &mut [i32]) -> Step {
        match self {
            Self::Portable => rows::quantize(values, words),
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "the kernel needs vector instructions the processor was asked for")]
            // SAFETY: `Level::detect` found the features the kernel is compiled for.
            Self::Vnni | Self::VnniBf16 => unsafe { super::x86::quantize(values, words) },
        }
    }

    /// Rounds a row to `bf16`, two in a word.
    pub(crate) fn narrow(self, values: &[f32], words: &mut [i32]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "the kernel needs vector instructions the processor was asked for")]
            // SAFETY: `Level::detect` found the features the kernel is compiled for.
            Self::VnniBf16 => unsafe { super::x86::narrow(values, words) },
            _ => rows::narrow(values, words),
        }
    }

    /// Packs `length` rows as columns of a `bf16` product: the lines of [`Packed`](super::Packed) whose outputs the rows
    /// are. Lanes beyond the last row are whatever they were.
    pub(super) fn pack_columns<'a>(self, length: usize, row: impl Fn(usize) -> &'a [f32], lines: &mut [Line]) {
        let vectors = length.div_ceil(LANES);
        let depth = lines.len() / vectors;
        let mut words = [0; 64];
        for at in 0..length {
            let (vector, lane) = (at / LANES, at % LANES);
            let (panel, within) = (vector / WIDE * WIDE, vector % WIDE);
            let together = WIDE.min(vectors - panel);
            let lines = lines[panel * depth + within..].iter_mut().step_by(together);
            let values = row(at);
            if depth <= words.len() {
                self.narrow(values, &mut words[..depth]);
                lines.zip(&words[..depth]).for_each(|(line, word)| line.0[lane] = *word);
            } else {
                for (line, values) in lines.zip(values.chunks(2)) {
                    rows::narrow(values, std::slice::from_mut(&mut line.0[lane]));
                }
            }
        }
    }

    /// Packs `length` rows as the depth of a `bf16` product, two in a word; an odd last one and what the lines hold
    /// beyond are followed by zeros.
    pub(super) fn pack_rows<'a>(self, length: usize, row: impl Fn(usize) -> &'a [f32], lines: &mut [Line]) {
        const NONE: [f32; LANES] = [0.0; LANES];
        let width = row(0).len();
        let vectors = width.div_ceil(LANES);
        let depth = lines.len() / vectors;
        for word in 0..depth {
            for vector in 0..vectors {
                let (panel, within) = (vector / WIDE * WIDE, vector % WIDE);
                let together = WIDE.min(vectors - panel);
                let line = &mut lines[panel * depth + word * together + within];
                let columns = vector * LANES..width.min(vector * LANES + LANES);
                let part = |at: usize| if at < length { &row(at)[columns.clone()] } else { &NONE[..columns.len()] };
                self.interleave(part(2 * word), part(2 * word + 1), line);
            }
        }
    }

    /// One line of pairs: each word holds a number of `even` and the one beside it in `odd`.
    fn interleave(self, even: &[f32], odd: &[f32], line: &mut Line) {
        match self {
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "the kernel needs vector instructions the processor was asked for")]
            // SAFETY: `Level::detect` found the features the kernel is compiled for.
            Self::VnniBf16 => unsafe { super::x86::interleave(even, odd, line) },
            _ => {
                for (word, pair) in line.0.iter_mut().zip(even.iter().zip(odd)) {
                    rows::narrow(&[*pair.0, *pair.1], std::slice::from_mut(word));
                }
                line.0[even.len()..].fill(0);
            }
        }
    }

    /// Writes `e^(score - max)` in `bf16` and returns one over their sum. The scores are whole vectors.
    pub(super) fn softmax(self, scores: &[f32], weights: &mut [i32]) -> f32 {
        match self {
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "the kernel needs vector instructions the processor was asked for")]
            // SAFETY: `Level::detect` found the features the kernel is compiled for.
            Self::VnniBf16 => unsafe { super::x86::softmax(scores, weights) },
            _ => {
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut sum = 0.0;
                for (word, scores) in weights.iter_mut().zip(scores.as_chunks::<2>().0) {
                    let pair = scores.map(|score| (score - max).exp());
                    sum += pair[0] + pair[1];
                    rows::narrow(&pair, std::slice::from_mut(word));
                }
                1.0 / sum
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{levels, numbers};

    #[test]
    fn every_level_rounds_a_row_to_the_same_words() {
        for width in [1, 3, 16, 18, 37, 64, 384] {
            let mut values = numbers(width, 9);
            for shift in [0.0, 1.5, -1.5] {
                values.iter_mut().for_each(|value| *value += shift);
                let (mut eights, mut halves) = (vec![-1; width.div_ceil(4)], vec![-1; width.div_ceil(2)]);
                let step = Level::Portable.quantize(&values, &mut eights);
                Level::Portable.narrow(&values, &mut halves);
                let bytes: &[u8] = bytemuck::cast_slice(&eights);
                for (value, byte) in values.iter().zip(bytes) {
                    let back = step.scale * (f32::from(*byte) - step.zero);
                    assert!((back - value).abs() <= step.scale * 0.501, "{value} becomes {back}");
                }
                for level in levels() {
                    let (mut other_eights, mut other_halves) = (vec![-1; eights.len()], vec![-1; halves.len()]);
                    assert_eq!(level.quantize(&values, &mut other_eights), step, "{level:?} {width}");
                    level.narrow(&values, &mut other_halves);
                    assert_eq!((&other_eights, &other_halves), (&eights, &halves), "{level:?} {width}");
                }
            }
        }
    }

    #[test]
    fn rows_of_zeros_and_of_numbers_that_are_none_are_rounded_to_something() {
        for level in levels() {
            for value in [0.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE / 4.0, f32::MAX] {
                let mut words = [0; 5];
                level.quantize(&[value; 18], &mut words);
                level.narrow(&[value; 10], &mut words);
            }
            assert_eq!(level.quantize(&[0.0; 3], &mut [0]), Step::default());
        }
    }
}
