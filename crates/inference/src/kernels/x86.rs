//! The kernels of the narrow formats in AVX-512.

use std::arch::x86_64::*;

use super::matmul::Then;
use super::packed::{Columns, GELU_FALLING, GELU_REACH, LANES, Line, Tile, WIDE};
use super::rows::{Step, step};

/// A mask of the first `count` lanes, all of them where there are more.
#[inline]
fn first(count: usize) -> u16 {
    if count >= LANES { u16::MAX } else { (1 << count) - 1 }
}

/// Reads sixteen numbers, or what there is, and zeros.
#[target_feature(enable = "avx512f")]
#[inline]
#[expect(unsafe_code, reason = "vector loads take pointers")]
fn load(values: &[f32]) -> __m512 {
    // SAFETY: the mask leaves out what lies beyond the slice.
    unsafe { _mm512_maskz_loadu_ps(first(values.len()), values.as_ptr()) }
}

/// Writes sixteen numbers, or as many as the slice holds.
#[target_feature(enable = "avx512f")]
#[inline]
#[expect(unsafe_code, reason = "vector stores take pointers")]
fn store(to: &mut [f32], values: __m512) {
    // SAFETY: the mask leaves out what lies beyond the slice.
    unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), first(to.len()), values) }
}

#[target_feature(enable = "avx512f")]
#[inline]
#[expect(unsafe_code, reason = "vector loads take pointers")]
fn line(line: &Line) -> __m512i {
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

/// Asks for lines that will be needed soon.
#[target_feature(enable = "avx512f")]
pub(super) fn prefetch(lines: &[Line]) {
    for line in lines {
        _mm_prefetch::<_MM_HINT_T0>(line.0.as_ptr().cast());
    }
}

/// See [`Level::quantize`](super::level::Level::quantize).
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn quantize(values: &[f32], words: &mut [i32]) -> Step {
    let (mut least, mut most) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    for values in values.chunks(LANES) {
        let values = load(values);
        // The second operand is what a comparison with NaN returns.
        least = _mm512_min_ps(values, least);
        most = _mm512_max_ps(values, most);
    }
    let (step, inverse) = step(_mm512_reduce_min_ps(least), _mm512_reduce_max_ps(most));
    let (inverse, zero) = (_mm512_set1_ps(inverse), _mm512_set1_ps(step.zero));
    for (words, values) in words.chunks_mut(LANES / 4).zip(values.chunks(LANES)) {
        let rounded = _mm512_cvtps_epi32(_mm512_fmadd_ps(load(values), inverse, zero));
        let rounded = _mm512_max_epi32(rounded, _mm512_setzero_si512());
        let bytes = _mm512_cvtusepi32_epi8(rounded);
        let bytes = _mm_maskz_mov_epi8(first(values.len()), bytes);
        #[expect(unsafe_code, reason = "vector stores take pointers")]
        // SAFETY: the mask leaves out what lies beyond the slice.
        unsafe {
            _mm_mask_storeu_epi32(words.as_mut_ptr(), first(words.len()) as u8, bytes);
        }
    }
    step
}

/// See [`Level::narrow`](super::level::Level::narrow).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn narrow(values: &[f32], words: &mut [i32]) {
    for (words, values) in words.chunks_mut(LANES / 2).zip(values.chunks(LANES)) {
        let halves = bits(_mm512_cvtneps_pbh(load(values)));
        #[expect(unsafe_code, reason = "vector stores take pointers")]
        // SAFETY: the mask leaves out what lies beyond the slice.
        unsafe {
            _mm256_mask_storeu_epi32(words.as_mut_ptr(), first(words.len()) as u8, halves);
        }
    }
}

/// See [`Level::interleave`](super::level::Level).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[expect(unsafe_code, reason = "vector stores take pointers")]
pub(super) fn interleave(even: &[f32], odd: &[f32], to: &mut Line) {
    let low = _mm512_cvtepu16_epi32(bits(_mm512_cvtneps_pbh(load(even))));
    let high = _mm512_cvtepu16_epi32(bits(_mm512_cvtneps_pbh(load(odd))));
    let pairs = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
    // SAFETY: a line is 64 bytes, aligned to 64.
    unsafe { _mm512_store_si512(to.0.as_mut_ptr().cast(), pairs) };
}

/// See [`Level::softmax`](super::level::Level).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn softmax(scores: &[f32], weights: &mut [i32]) -> f32 {
    let scores = scores.as_chunks::<LANES>().0;
    let mut max = _mm512_set1_ps(f32::NEG_INFINITY);
    for scores in scores {
        max = _mm512_max_ps(max, load(scores));
    }
    let max = _mm512_set1_ps(_mm512_reduce_max_ps(max) * std::f32::consts::LOG2_E);
    let mut sum = _mm512_setzero_ps();
    for (weights, scores) in weights.as_chunks_mut::<{ LANES / 2 }>().0.iter_mut().zip(scores) {
        let power = exp2(_mm512_fmsub_ps(load(scores), _mm512_set1_ps(std::f32::consts::LOG2_E), max));
        sum = _mm512_add_ps(sum, power);
        let halves = bits(_mm512_cvtneps_pbh(power));
        #[expect(unsafe_code, reason = "vector stores take pointers")]
        // SAFETY: eight words are the 32 bytes that are written.
        unsafe {
            _mm256_storeu_si256(weights.as_mut_ptr().cast(), halves);
        }
    }
    1.0 / _mm512_reduce_add_ps(sum)
}

/// `2^x` within 5e-6 relative for `x` of at most 127: finer than `bf16` by far.
#[target_feature(enable = "avx512f")]
#[inline]
fn exp2(x: __m512) -> __m512 {
    // The least power above zero, so that minus infinity stays a number.
    let x = _mm512_max_ps(x, _mm512_set1_ps(-126.0));
    let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    let rest = _mm512_sub_ps(x, whole);
    let mut series = _mm512_set1_ps(9.618_129e-3);
    for term in [5.550_41e-2, 2.402_265e-1, 6.931_472e-1, 1.0] {
        series = _mm512_fmadd_ps(series, rest, _mm512_set1_ps(term));
    }
    _mm512_scalef_ps(series, whole)
}

/// The bits of sixteen `bf16`.
#[inline]
#[expect(unsafe_code, reason = "there is no cast between these vectors but this")]
fn bits(halves: __m256bh) -> __m256i {
    // SAFETY: both are plain 256 bits.
    unsafe { std::mem::transmute(halves) }
}

#[inline]
#[expect(unsafe_code, reason = "there is no cast between these vectors but this")]
fn halves(words: __m512i) -> __m512bh {
    // SAFETY: both are plain 512 bits.
    unsafe { std::mem::transmute(words) }
}

/// See [`gelu`](super::packed).
#[target_feature(enable = "avx512f")]
#[inline]
fn gelu(x: __m512) -> __m512 {
    let near = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(GELU_REACH)), _mm512_set1_ps(-GELU_REACH));
    let square = _mm512_mul_ps(near, near);
    let mut series = _mm512_set1_ps(GELU_FALLING[0]);
    for term in &GELU_FALLING[1..] {
        series = _mm512_fmadd_ps(series, square, _mm512_set1_ps(*term));
    }
    _mm512_mul_ps(x, _mm512_fmadd_ps(near, series, _mm512_set1_ps(0.5)))
}

/// Writes one row of a tile from its sums, bias included.
#[target_feature(enable = "avx512f")]
#[inline]
fn finish<const N: usize>(output: &mut [f32], sums: [__m512; N], then: Then) {
    for (vector, sum) in sums.into_iter().enumerate() {
        let from = vector * LANES;
        let until = output.len().min(from + LANES);
        let output = &mut output[from..until];
        let value = match then {
            Then::Store => sum,
            Then::Gelu => gelu(sum),
            Then::Add => _mm512_add_ps(load(output), sum),
        };
        store(output, value);
    }
}

/// Defines a kernel: the tile of any height and width, `dot` accumulating one word of each row, `sum` turning a sum of
/// one vector into numbers, bias included.
macro_rules! kernel {
    ($name:ident, $features:literal, $dot:ident, $sum:ident) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name(tile: Tile<'_>) {
            #[target_feature(enable = $features)]
            #[inline]
            fn tall<const N: usize>(tile: Tile<'_>) {
                match tile.steps.len() {
                    8 => one::<8, N>(tile),
                    7 => one::<7, N>(tile),
                    6 => one::<6, N>(tile),
                    5 => one::<5, N>(tile),
                    4 => one::<4, N>(tile),
                    3 => one::<3, N>(tile),
                    2 => one::<2, N>(tile),
                    _ => one::<1, N>(tile),
                }
            }

            #[target_feature(enable = $features)]
            #[expect(unsafe_code, reason = "bounds are checked once for the whole product, not for each word")]
            fn one<const M: usize, const N: usize>(tile: Tile<'_>) {
                let lines = tile.lines.as_chunks::<N>().0;
                let depth = lines.len();
                assert!(tile.words.len() == M * depth && tile.columns.len() == N, "a tile of M rows and N vectors");
                let words = tile.words.as_ptr();
                let mut sums = [[_mm512_setzero_si512(); N]; M];
                for (at, lines) in lines.iter().enumerate() {
                    let mut weights = [_mm512_setzero_si512(); N];
                    for (weights, from) in weights.iter_mut().zip(lines) {
                        *weights = line(from);
                    }
                    for (row, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: `at` is below `depth` and `row` below `M`; there are `M * depth` words.
                        let word = _mm512_set1_epi32(unsafe { *words.add(row * depth + at) });
                        for (sum, weights) in sums.iter_mut().zip(weights) {
                            *sum = $dot(*sum, word, weights);
                        }
                    }
                }
                for (row, sums) in sums.into_iter().enumerate() {
                    let mut finished = [_mm512_setzero_ps(); N];
                    for ((finished, sum), columns) in finished.iter_mut().zip(sums).zip(tile.columns) {
                        *finished = $sum(sum, tile.steps[row], columns);
                    }
                    finish(&mut tile.output[row * tile.stride..][..tile.width], finished, tile.then);
                }
            }

            match tile.columns.len() {
                1 => tall::<1>(tile),
                2 => tall::<2>(tile),
                _ => tall::<WIDE>(tile),
            }
        }
    };
}

kernel!(int8, "avx512f,avx512bw,avx512vl,avx512vnni", dot_int8, sum_int8);
kernel!(bf16, "avx512f,avx512bw,avx512vl,avx512bf16", dot_bf16, sum_bf16);

#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn dot_int8(sum: __m512i, word: __m512i, weights: __m512i) -> __m512i {
    _mm512_dpbusd_epi32(sum, word, weights)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn sum_int8(sum: __m512i, step: Step, columns: &Columns) -> __m512 {
    let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), load(&columns.scales));
    let zero = _mm512_set1_ps(step.scale * step.zero);
    let shifted = _mm512_fnmadd_ps(zero, load(&columns.shifts), load(&columns.bias));
    _mm512_fmadd_ps(_mm512_set1_ps(step.scale), scaled, shifted)
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn dot_bf16(sum: __m512i, word: __m512i, weights: __m512i) -> __m512i {
    _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), halves(word), halves(weights)))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn sum_bf16(sum: __m512i, _: Step, columns: &Columns) -> __m512 {
    _mm512_add_ps(_mm512_castsi512_ps(sum), load(&columns.bias))
}
