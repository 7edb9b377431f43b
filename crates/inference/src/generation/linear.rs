//! Matrices of 8-bit weights and their product with vectors: where nearly all time of a generation goes.
//!
//! Sixteen rows are interleaved so that one vector register holds four columns of each; a block of 32 columns has one
//! scale per row. The input is rounded to 8 bits too, block by block, and products are summed in integers.

use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::{
    gguf::Gguf,
    pack::pack,
    vector::{Level, vectorised},
};
use crate::LoadError;

/// Rows computed together.
pub(super) const LANES: usize = 16;
/// Columns that share a scale.
pub(super) const BLOCK: usize = 32;
/// Four columns fill one lane of a line.
const LINES: usize = BLOCK / 4;
/// Input rows a kernel takes at once.
const MOST_TOGETHER: usize = 8;
/// A product is divided into so many parts per thread, for threads that begin late or are disturbed.
const PARTS_PER_THREAD: usize = 4;
/// Groups times inputs below which a part is not worth another thread.
const LEAST_GROUPS: usize = 8;

/// Four columns of sixteen rows, each weight stored plus 128.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 4 * LANES]);

/// 32 columns of sixteen rows.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Tile {
    pub(super) lines: [Line; LINES],
}

/// Scales of the sixteen rows of a tile.
pub(super) type Scales = [f16; LANES];

/// 32 numbers of an input row in 8 bits: `scale * value`.
#[derive(Clone, Copy, Default)]
pub(super) struct Block {
    /// Four values each, the first in the lowest byte.
    words: [i32; LINES],
    /// -128 times the sum of the values: what storing the weights plus 128 adds to a product.
    offset: i32,
    scale: f32,
}

/// The number of blocks an input row of `columns` numbers takes.
pub(super) fn blocks(columns: usize) -> usize {
    columns / BLOCK
}

vectorised! {
    /// Rounds an input row to 8 bits; `row` holds 32 numbers per block.
    fn quantize(row: &[f32], output: &mut [Block]) {
        for (values, block) in row.as_chunks::<BLOCK>().0.iter().zip(output) {
            let mut largest = 0.0;
            for value in values {
                largest = if value.abs() > largest { value.abs() } else { largest };
            }
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let mut sum = 0i32;
            let mut bytes = [0; BLOCK];
            for (value, byte) in values.iter().zip(&mut bytes) {
                // Adding 1.5 · 2^23 rounds to the nearest integer and leaves it in the low bits.
                let rounded = (value * inverse + 12_582_912.0).to_bits().wrapping_sub(0x4b40_0000) as i32;
                // What is not finite comes out as anything, but comes out.
                sum = sum.wrapping_add(rounded);
                *byte = rounded as u8;
            }
            for (word, bytes) in block.words.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *word = i32::from_le_bytes(*bytes);
            }
            block.offset = sum.wrapping_mul(-128);
            block.scale = largest / 127.0;
        }
    }
}

/// A matrix of 8-bit weights.
pub(super) struct Matrix {
    rows: usize,
    columns: usize,
    tiles: Vec<Tile>,
    scales: Vec<Scales>,
}

impl Matrix {
    /// Loads tensors of `columns` columns and stacks their rows: `(name, rows)` in order.
    ///
    /// Q8_0, Q5_0 and Q4_0 weights keep their exact values; other formats are rounded to 8 bits in blocks of 32.
    pub(super) fn load(gguf: &Gguf, tensors: &[(&str, usize)], columns: usize) -> Result<Self, LoadError> {
        let groups = |rows: usize| rows.div_ceil(LANES);
        let per_group = columns / BLOCK;
        let rows = tensors.iter().map(|(_, rows)| rows).sum();
        let mut parts = Vec::new();
        for (name, rows) in tensors {
            let tensor = gguf.tensor(name)?;
            if tensor.dimensions != [*rows, columns] {
                let expected = [*rows, columns];
                return Err(gguf.malformed(format!("tensor `{name}` is {:?}, not {expected:?}", tensor.dimensions)));
            }
            let is_whole = tensors.len() == 1 || rows.is_multiple_of(LANES);
            if !is_whole || !columns.is_multiple_of(BLOCK) {
                let problem = format!("tensor `{name}` is {rows} × {columns}; multiples of {LANES} × {BLOCK} are");
                return Err(gguf.unsupported(problem));
            }
            let row_bytes = tensor.bytes_of(columns);
            let row_bytes = row_bytes.ok_or_else(|| gguf.malformed(format!("rows of `{name}` break a block")))?;
            parts.push((*name, tensor, *rows, row_bytes));
        }
        // The file holds all tensors, so what is allocated here is at most four times what is there.
        let empty = Tile { lines: [Line([128; 4 * LANES]); LINES] };
        let mut tiles = vec![empty; groups(rows) * per_group];
        let mut scales = vec![[f16::ZERO; LANES]; groups(rows) * per_group];
        let (mut tiles_left, mut scales_left) = (&mut tiles[..], &mut scales[..]);
        for (name, tensor, rows, row_bytes) in parts {
            let (tiles, scales);
            (tiles, tiles_left) = tiles_left.split_at_mut(groups(rows) * per_group);
            (scales, scales_left) = scales_left.split_at_mut(groups(rows) * per_group);
            let work = tiles.par_chunks_mut(per_group).zip(scales.par_chunks_mut(per_group)).enumerate();
            work.try_for_each_init(
                || vec![0u32; (row_bytes * LANES).div_ceil(4)],
                |buffer, (group, (tiles, scales))| {
                    let count = LANES.min(rows - group * LANES);
                    let bytes = &mut bytemuck::cast_slice_mut(buffer)[..row_bytes * count];
                    gguf.read(bytes, tensor.start + (group * LANES * row_bytes) as u64)?;
                    pack(tensor, bytes, tiles, scales)
                        .map_err(|problem| gguf.malformed(format!("tensor `{name}`: {problem}")))
                },
            )?;
        }
        Ok(Self { rows, columns, tiles, scales })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Writes one row as numbers.
    pub(super) fn row(&self, row: usize, output: &mut [f32]) {
        let (group, lane) = (row / LANES, row % LANES);
        let per_group = self.columns / BLOCK;
        for (index, values) in output.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let (tile, scale) =
                (&self.tiles[group * per_group + index], self.scales[group * per_group + index][lane].to_f32());
            for (line, values) in tile.lines.iter().zip(values.as_chunks_mut::<4>().0) {
                for (value, weight) in values.iter_mut().zip(&line.0[lane * 4..lane * 4 + 4]) {
                    *value = (f32::from(*weight) - 128.0) * scale;
                }
            }
        }
    }

    /// Multiplies each input row with the matrix: `output[i][r] = Σ row r · input i`.
    ///
    /// The threads of the rayon pool the caller is in share the rows of the matrix, so that together they read it once
    /// however many inputs there are. A result does not depend on the other inputs, nor on the number of threads.
    pub(super) fn multiply(&self, input: &[Block], output: &mut [f32]) {
        let per_row = self.columns / BLOCK;
        let inputs = input.len() / per_row;
        assert_eq!((input.len(), output.len()), (inputs * per_row, inputs * self.rows));
        let output = Output { start: output.as_mut_ptr(), rows: self.rows, inputs };
        let groups = self.rows.div_ceil(LANES);
        let threads = rayon::current_num_threads();
        if threads == 1 {
            return self.multiply_groups(0..groups, input, &output);
        }
        let part = groups.div_ceil(threads * PARTS_PER_THREAD).max(LEAST_GROUPS.div_ceil(inputs));
        (0..groups.div_ceil(part)).into_par_iter().for_each(|index| {
            self.multiply_groups(index * part..groups.min((index + 1) * part), input, &output);
        });
    }

    /// Computes some groups of rows for all inputs. A group stays in the nearest cache while the inputs pass by.
    fn multiply_groups(&self, groups: Range<usize>, input: &[Block], output: &Output) {
        let (level, per_row) = (Level::detect(), self.columns / BLOCK);
        for group in groups {
            let tiles = group * per_row..(group + 1) * per_row;
            let (tiles, scales) = (&self.tiles[tiles.clone()], &self.scales[tiles]);
            let mut done = 0;
            while done < output.inputs {
                let together = together_now(output.inputs - done);
                let input = &input[done * per_row..(done + together) * per_row];
                let mut sums = [[0.0; LANES]; MOST_TOGETHER];
                match together {
                    1 => group_product::<1>(level, tiles, scales, input, &mut sums),
                    2 => group_product::<2>(level, tiles, scales, input, &mut sums),
                    4 => group_product::<4>(level, tiles, scales, input, &mut sums),
                    _ => group_product::<MOST_TOGETHER>(level, tiles, scales, input, &mut sums),
                }
                for (index, sums) in sums.iter().take(together).enumerate() {
                    output.put(done + index, group, sums);
                }
                done += together;
            }
        }
    }
}

/// Rows of results that several threads fill, each its own groups of columns.
struct Output {
    start: *mut f32,
    rows: usize,
    inputs: usize,
}

#[expect(unsafe_code, reason = "threads write columns of one row-major output, which slices cannot divide")]
// SAFETY: `multiply` gives every group to one part, so no two threads write the same number, and nobody reads before all
// are done.
unsafe impl Sync for Output {}

impl Output {
    fn put(&self, input: usize, group: usize, sums: &[f32; LANES]) {
        assert!(input < self.inputs && group * LANES < self.rows);
        let count = LANES.min(self.rows - group * LANES);
        #[expect(unsafe_code, reason = "threads write columns of one row-major output, which slices cannot divide")]
        // SAFETY: `multiply` checked that `inputs` rows of `rows` numbers begin at `start`; the numbers from column
        // `group * LANES` on, `count` of them, lie within row `input`, and this call alone writes this group of it.
        unsafe {
            let start = self.start.add(input * self.rows + group * LANES);
            std::ptr::copy_nonoverlapping(sums.as_ptr(), start, count);
        }
    }
}

/// The largest number of input rows a kernel takes at once that `left` fills.
fn together_now(left: usize) -> usize {
    if left >= MOST_TOGETHER { MOST_TOGETHER } else { 1 << left.ilog2() }
}

/// Sixteen rows times `M` input rows, which follow each other in `input`.
fn group_product<const M: usize>(
    level: Level,
    tiles: &[Tile],
    scales: &[Scales],
    input: &[Block],
    sums: &mut [[f32; LANES]; MOST_TOGETHER],
) {
    assert!(tiles.len() == scales.len() && input.len() == M * tiles.len() && M <= MOST_TOGETHER);
    match level {
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "the kernel needs vector instructions the processor was asked for")]
        // SAFETY: `Level::detect` found the features the kernel is compiled for.
        Level::Avx512Vnni => unsafe { x86::avx512_vnni::<M>(tiles, scales, input, sums) },
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "the kernel needs vector instructions the processor was asked for")]
        // SAFETY: `Level::detect` found the features the kernel is compiled for.
        Level::Avx2 => unsafe { x86::avx2::<M>(tiles, scales, input, sums) },
        _ => portable::<M>(tiles, scales, input, sums),
    }
}

fn portable<const M: usize>(tiles: &[Tile], scales: &[Scales], input: &[Block], sums: &mut [[f32; LANES]]) {
    for (sums, input) in sums.iter_mut().zip(input.chunks_exact(tiles.len())).take(M) {
        for ((tile, scales), block) in tiles.iter().zip(scales).zip(input) {
            let mut products = [0i32; LANES];
            for (line, word) in tile.lines.iter().zip(block.words) {
                let values = word.to_le_bytes().map(|byte| i32::from(byte as i8));
                for (product, weights) in products.iter_mut().zip(line.0.as_chunks::<4>().0) {
                    for (weight, value) in weights.iter().zip(values) {
                        *product += (i32::from(*weight) - 128) * value;
                    }
                }
            }
            for ((sum, product), scale) in sums.iter_mut().zip(products).zip(scales) {
                *sum += product as f32 * block.scale * scale.to_f32();
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Block, LANES, LINES, MOST_TOGETHER, Scales, Tile};

    /// How far ahead weights are asked for: what arrives from memory while one answer is under way.
    const TILES_AHEAD: usize = 8;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    #[expect(unsafe_code, reason = "vector loads and stores take pointers")]
    pub(super) fn avx512_vnni<const M: usize>(
        tiles: &[Tile],
        scales: &[Scales],
        input: &[Block],
        sums: &mut [[f32; LANES]; MOST_TOGETHER],
    ) {
        let mut totals = [_mm512_setzero_ps(); M];
        for (index, (tile, scales)) in tiles.iter().zip(scales).enumerate() {
            if M == 1 {
                // One input waits for memory: the hardware stops looking ahead at the end of every page.
                let ahead = tiles.as_ptr().wrapping_add(index + TILES_AHEAD).cast::<i8>();
                for line in 0..LINES {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line * 64));
                }
            }
            // SAFETY: a line is 64 bytes, aligned to 64.
            let lines: [__m512i; LINES] =
                std::array::from_fn(|line| unsafe { _mm512_load_si512(tile.lines[line].0.as_ptr().cast()) });
            // SAFETY: sixteen half-precision scales are 32 bytes; the load needs no alignment.
            let scales = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) });
            for (row, total) in totals.iter_mut().enumerate() {
                let block = &input[row * tiles.len() + index];
                let mut products = _mm512_set1_epi32(block.offset);
                for (line, word) in lines.iter().zip(block.words) {
                    products = _mm512_dpbusd_epi32(products, *line, _mm512_set1_epi32(word));
                }
                let products = _mm512_mul_ps(_mm512_cvtepi32_ps(products), _mm512_set1_ps(block.scale));
                *total = _mm512_fmadd_ps(products, scales, *total);
            }
        }
        for (sums, total) in sums.iter_mut().zip(totals) {
            // SAFETY: sixteen numbers are 64 bytes; the store needs no alignment.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) };
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[expect(unsafe_code, reason = "vector loads and stores take pointers")]
    pub(super) fn avx2<const M: usize>(
        tiles: &[Tile],
        scales: &[Scales],
        input: &[Block],
        sums: &mut [[f32; LANES]; MOST_TOGETHER],
    ) {
        let (stored_plus, ones) = (_mm256_set1_epi8(-128), _mm256_set1_epi16(1));
        for half in [0, LANES / 2] {
            let mut totals = [_mm256_setzero_ps(); M];
            for (index, (tile, scales)) in tiles.iter().zip(scales).enumerate() {
                let mut products = [_mm256_setzero_si256(); M];
                for (line, weights) in tile.lines.iter().enumerate() {
                    // SAFETY: half a line is 32 bytes, aligned to 32.
                    let weights = unsafe { _mm256_load_si256(weights.0[half * 4..].as_ptr().cast()) };
                    let weights = _mm256_xor_si256(weights, stored_plus);
                    let sizes = _mm256_abs_epi8(weights);
                    for (row, product) in products.iter_mut().enumerate() {
                        let values = _mm256_set1_epi32(input[row * tiles.len() + index].words[line]);
                        // |w| · (x with the sign of w) stays within 16 bits: at most 2 · 128 · 127.
                        let pairs = _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(values, weights));
                        *product = _mm256_add_epi32(*product, _mm256_madd_epi16(pairs, ones));
                    }
                }
                // SAFETY: eight half-precision scales are 16 bytes; the load needs no alignment.
                let scales = _mm256_cvtph_ps(unsafe { _mm_loadu_si128(scales[half..].as_ptr().cast()) });
                for (row, (total, product)) in totals.iter_mut().zip(products).enumerate() {
                    let scale = _mm256_set1_ps(input[row * tiles.len() + index].scale);
                    *total = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(product), scale), scales, *total);
                }
            }
            for (sums, total) in sums.iter_mut().zip(totals) {
                // SAFETY: eight numbers from `half` on are 32 bytes; the store needs no alignment.
                unsafe { _mm256_storeu_ps(sums[half..].as_mut_ptr(), total) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;

    use super::*;
    use crate::generation::gguf::Tensor;

    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn matrix(rows: usize, columns: usize) -> (Matrix, Vec<f32>) {
        let values = noise(rows * columns, 7);
        let per_group = columns / BLOCK;
        let mut tiles = vec![Tile { lines: [Line([128; 4 * LANES]); LINES] }; rows / LANES * per_group];
        let mut scales = vec![[f16::ZERO; LANES]; tiles.len()];
        let tensor = Tensor { dtype: GgmlDType::F32, dimensions: vec![rows, columns], start: 0 };
        let groups = tiles.chunks_mut(per_group).zip(scales.chunks_mut(per_group));
        for ((tiles, scales), values) in groups.zip(values.chunks(LANES * columns)) {
            pack(&tensor, bytemuck::cast_slice(values), tiles, scales).unwrap();
        }
        (Matrix { rows, columns, tiles, scales }, values)
    }

    #[test]
    fn the_product_is_that_of_the_numbers_within_the_rounding_of_8_bits() {
        let (matrix, weights) = matrix(48, 96);
        // A weight is off by up to half of 1/127, evenly, and so is an input: a sum of 96 products of numbers between -1
        // and 1 is off by 0.0182 in the mean square.
        let (mut squares, mut count) = (0.0, 0.0);
        for inputs in [1, 2, 3, 5, 8, 13] {
            let input = noise(inputs * 96, 11);
            let mut blocks = vec![Block::default(); inputs * blocks(96)];
            quantize(&input, &mut blocks);
            let mut output = vec![f32::NAN; inputs * 48];
            matrix.multiply(&blocks, &mut output);
            for (index, value) in output.iter().enumerate() {
                let (row, input) = (index % 48, &input[index / 48 * 96..][..96]);
                let exact: f32 = weights[row * 96..][..96].iter().zip(input).map(|(w, x)| w * x).sum();
                assert!((value - exact).abs() < 0.1, "{inputs} inputs, {index}: {value} instead of {exact}");
                squares += (value - exact).powi(2);
                count += 1.0;
            }
        }
        let apart = f32::sqrt(squares / count);
        assert!(apart < 0.022, "{apart}");
    }

    #[test]
    fn every_kernel_computes_the_same_as_the_portable_one() {
        let (matrix, _) = matrix(16, 128);
        let mut blocks = vec![Block::default(); 8 * blocks(128)];
        quantize(&noise(8 * 128, 5), &mut blocks);
        let mut expected = [[0.0; LANES]; MOST_TOGETHER];
        portable::<8>(&matrix.tiles, &matrix.scales, &blocks, &mut expected);
        let best = Level::detect();
        for level in [Level::Avx512Vnni, Level::Avx2] {
            if best == Level::Portable || (best == Level::Avx2 && level == Level::Avx512Vnni) {
                continue;
            }
            let mut sums = [[0.0; LANES]; MOST_TOGETHER];
            group_product::<8>(level, &matrix.tiles, &matrix.scales, &blocks, &mut sums);
            for (sum, expected) in sums.as_flattened().iter().zip(expected.as_flattened()) {
                assert!((sum - expected).abs() < 1e-5, "{level:?}: {sum} instead of {expected}");
            }
        }
    }

    #[test]
    fn rows_read_back_are_the_numbers_within_half_a_step() {
        let (matrix, weights) = matrix(32, 64);
        let mut row = vec![0.0; 64];
        for index in 0..32 {
            matrix.row(index, &mut row);
            for (value, exact) in row.iter().zip(&weights[index * 64..]) {
                assert!((value - exact).abs() < 0.5 / 127.0 + 1e-4, "{value} instead of {exact}");
            }
        }
    }
}
