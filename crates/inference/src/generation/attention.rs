//! Attention over pages of keys and values, for several queries of the same key head at once.
//!
//! A page is decoded to single precision once for all queries. Keys lie with their positions side by side, so scores need
//! no sum across a register. Sums run over whole pages in a fixed order: a query's result does not depend on the queries
//! beside it.

use std::{cell::RefCell, ops::Range};

use half::slice::HalfFloatSliceExt;

use super::{
    cache::{PAGE, Pool},
    vector::{Level, fill_softmax},
};

/// Numbers of a value that are summed together.
const WIDTH: usize = 16;

/// Where the keys and values of a text's layer and key head are.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) pool: &'a Pool,
    pub(super) pages: &'a [usize],
    pub(super) layer: usize,
    pub(super) kv_head: usize,
}

#[derive(Default)]
struct Room {
    numbers: Vec<f32>,
    scores: Vec<f32>,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// Attends with queries of `head` numbers each: softmax over `scale · query · keyᵢ`, then the weighted sum of the values.
///
/// Query i sees the positions `seen(i)`, which are not empty; results follow each other in `output`.
pub(super) fn attend(
    queries: &[f32],
    head: usize,
    source: Source,
    seen: impl Fn(usize) -> Range<usize>,
    scale: f32,
    output: &mut [f32],
) {
    let count = queries.len() / head;
    assert!(queries.len() == count * head && output.len() == queries.len() && head.is_multiple_of(WIDTH));
    let first = (0..count).map(|query| seen(query).start).min().unwrap_or(0) / PAGE;
    let end = (0..count).map(|query| seen(query).end).max().unwrap_or(0).div_ceil(PAGE);
    let stride = (end - first) * PAGE;
    let level = Level::detect();
    ROOM.with_borrow_mut(|Room { numbers, scores }| {
        numbers.resize(PAGE * head, 0.0);
        scores.clear();
        scores.resize(count * stride, 0.0);
        for page in first..end {
            let (keys, _) = source.pool.get(source.pages[page], source.layer, source.kv_head);
            keys.convert_to_f32_slice(numbers);
            page_scores(level, queries, head, numbers, scores, stride, (page - first) * PAGE);
        }
        for (query, scores) in scores.chunks_exact_mut(stride).enumerate() {
            let seen = seen(query);
            fill_softmax(scores, seen.start - first * PAGE, seen.end - first * PAGE, scale);
        }
        output.fill(0.0);
        for page in first..end {
            let (_, values) = source.pool.get(source.pages[page], source.layer, source.kv_head);
            values.convert_to_f32_slice(numbers);
            page_values(level, head, numbers, scores, stride, (page - first) * PAGE, output);
        }
    });
}

/// Calls the body compiled for the processor: fused multiply-add where there is one.
macro_rules! at_level {
    ($level:expr, $body:ident($($argument:ident: $type:ty),*)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
        fn avx512($($argument: $type),*) { $body::<true>($($argument),*) }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2($($argument: $type),*) { $body::<true>($($argument),*) }
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "a function compiled for wider vectors is called after asking the processor")]
        match $level {
            // SAFETY: the processor has the features the function is compiled for.
            Level::Avx512Vnni => return unsafe { avx512($($argument),*) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { avx2($($argument),*) },
            Level::Portable => {}
        }
        $body::<false>($($argument),*)
    }};
}

/// The products of every query with every key of a page, into column `at` on of the rows of `scores`.
fn page_scores(level: Level, queries: &[f32], head: usize, keys: &[f32], scores: &mut [f32], stride: usize, at: usize) {
    at_level!(level, scores_body(queries: &[f32], head: usize, keys: &[f32], scores: &mut [f32], stride: usize, at: usize))
}

/// Adds the values of a page, weighted by column `at` on of the rows of `weights`.
fn page_values(
    level: Level,
    head: usize,
    values: &[f32],
    weights: &[f32],
    stride: usize,
    at: usize,
    output: &mut [f32],
) {
    at_level!(level, values_body(head: usize, values: &[f32], weights: &[f32], stride: usize, at: usize, output: &mut [f32]))
}

#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, sum: f32) -> f32 {
    if FUSED { a.mul_add(b, sum) } else { a * b + sum }
}

#[inline(always)]
fn scores_body<const FUSED: bool>(
    queries: &[f32],
    head: usize,
    keys: &[f32],
    scores: &mut [f32],
    stride: usize,
    at: usize,
) {
    let (count, mut done) = (queries.len() / head, 0);
    while done < count {
        let now = if count - done >= 4 { 4 } else { 1 };
        let (queries, scores) = (&queries[done * head..(done + now) * head], &mut scores[done * stride..]);
        if now == 4 {
            scores_of::<4, FUSED>(queries, head, keys, scores, stride, at);
        } else {
            scores_of::<1, FUSED>(queries, head, keys, scores, stride, at);
        }
        done += now;
    }
}

#[inline(always)]
fn scores_of<const N: usize, const FUSED: bool>(
    queries: &[f32],
    head: usize,
    keys: &[f32],
    scores: &mut [f32],
    stride: usize,
    at: usize,
) {
    let rows: [&[f32]; N] = std::array::from_fn(|query| &queries[query * head..(query + 1) * head]);
    let mut sums = [[0.0; PAGE]; N];
    for (index, keys) in keys.as_chunks::<PAGE>().0[..head].iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(rows) {
            let value = row[index];
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum = multiply_add::<FUSED>(value, *key, *sum);
            }
        }
    }
    for (query, sums) in sums.iter().enumerate() {
        scores[query * stride + at..query * stride + at + PAGE].copy_from_slice(sums);
    }
}

#[inline(always)]
fn values_body<const FUSED: bool>(
    head: usize,
    values: &[f32],
    weights: &[f32],
    stride: usize,
    at: usize,
    output: &mut [f32],
) {
    let (count, mut done) = (output.len() / head, 0);
    while done < count {
        let now = if count - done >= 4 { 4 } else { 1 };
        let (weights, output) = (&weights[done * stride..], &mut output[done * head..(done + now) * head]);
        let mut column = 0;
        while column < head {
            let wide = head - column >= 4 * WIDTH;
            match (now, wide) {
                (4, true) => values_of::<4, 4, FUSED>(head, column, values, weights, stride, at, output),
                (4, false) => values_of::<4, 1, FUSED>(head, column, values, weights, stride, at, output),
                (_, true) => values_of::<1, 4, FUSED>(head, column, values, weights, stride, at, output),
                (_, false) => values_of::<1, 1, FUSED>(head, column, values, weights, stride, at, output),
            }
            column += if wide { 4 * WIDTH } else { WIDTH };
        }
        done += now;
    }
}

#[inline(always)]
fn values_of<const N: usize, const W: usize, const FUSED: bool>(
    head: usize,
    column: usize,
    values: &[f32],
    weights: &[f32],
    stride: usize,
    at: usize,
    output: &mut [f32],
) {
    let rows: [&[f32]; N] = std::array::from_fn(|query| &weights[query * stride + at..query * stride + at + PAGE]);
    let mut sums = [[[0.0; WIDTH]; W]; N];
    for (query, sums) in sums.iter_mut().enumerate() {
        let from = query * head + column;
        sums.as_flattened_mut().copy_from_slice(&output[from..from + W * WIDTH]);
    }
    for position in 0..PAGE {
        let from = position * head + column;
        let values = values[from..from + W * WIDTH].as_chunks::<WIDTH>().0;
        for (sums, row) in sums.iter_mut().zip(rows) {
            let weight = row[position];
            for (sums, values) in sums.iter_mut().zip(values) {
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = multiply_add::<FUSED>(weight, *value, *sum);
                }
            }
        }
    }
    for (query, sums) in sums.iter().enumerate() {
        let from = query * head + column;
        output[from..from + W * WIDTH].copy_from_slice(sums.as_flattened());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::cache::Shape;

    fn noise(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|index| ((index * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    /// In double precision, from the keys and values before they were rounded to 16 bits.
    fn exact(query: &[f32], keys: &[f32], values: &[f32], seen: Range<usize>, scale: f32) -> Vec<f64> {
        let head = query.len();
        let row = |rows: &[f32], at: usize| rows[at * head..(at + 1) * head].to_vec();
        let weight = |at: usize| {
            let product: f64 = row(keys, at).iter().zip(query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            (product * f64::from(scale)).exp()
        };
        let total: f64 = seen.clone().map(weight).sum();
        (0..head)
            .map(|i| seen.clone().map(|at| weight(at) * f64::from(row(values, at)[i])).sum::<f64>() / total)
            .collect()
    }

    #[test]
    fn every_level_computes_attention() {
        for head in [16, 48, 64, 80, 256] {
            let (positions, count) = (77, 7);
            let (keys, values) = (noise(positions * head, 1), noise(positions * head, 2));
            let mut pool = Pool::new(Shape { layers: 1, kv_heads: 1, head }, positions);
            let (mut table, _) = pool.open(&[0], positions, false).unwrap();
            pool.extend(&mut table, positions);
            for position in 0..positions {
                let row = position * head..(position + 1) * head;
                pool.put(&table, 0, position, &keys[row.clone()], &values[row]);
            }
            let queries = noise(count * head, 3);
            let seen = |query: usize| (query * 9)..(positions - query);
            let source = Source { pool: &pool, pages: table.pages(), layer: 0, kv_head: 0 };
            let mut together = vec![0.0; count * head];
            attend(&queries, head, source, seen, 0.25, &mut together);
            for query in 0..count {
                let row = query * head..(query + 1) * head;
                let expected = exact(&queries[row.clone()], &keys, &values, seen(query), 0.25);
                for (value, expected) in together[row.clone()].iter().zip(expected) {
                    assert!((f64::from(*value) - expected).abs() < 3e-3, "{head}: {value} instead of {expected}");
                }
                let mut alone = vec![0.0; head];
                attend(&queries[row.clone()], head, source, |_| seen(query), 0.25, &mut alone);
                assert_eq!(alone, together[row], "a query's result does not depend on those beside it");
            }
        }
    }

    #[test]
    fn the_portable_form_computes_what_the_fast_one_does() {
        let (head, count) = (80, 5);
        let (queries, page) = (noise(count * head, 4), noise(PAGE * head, 5));
        let weights = noise(count * PAGE, 6);
        let run = |level: Level| {
            let (mut scores, mut output) = (vec![0.0; count * PAGE], vec![0.5; count * head]);
            page_scores(level, &queries, head, &page, &mut scores, PAGE, 0);
            page_values(level, head, &page, &weights, PAGE, 0, &mut output);
            [scores, output].concat()
        };
        let fast = run(Level::detect());
        for (fast, portable) in fast.iter().zip(run(Level::Portable)) {
            assert!((fast - portable).abs() < 1e-4, "{fast} instead of {portable}");
        }
    }
}
