//! The loops of [`super`] in AVX-512.

use std::arch::x86_64::*;

use super::{BLOCK, Bytes, GROUP, NO_TABLE, Split};

const GROUPS: usize = BLOCK / GROUP;

/// Finds the leaf of each row. The caller has found the processor to be able to.
pub(super) fn place(splits: &[Split], bytes: &[Bytes], tables: &[Bytes], places: &mut Bytes, groups: usize) {
    #[expect(unsafe_code, reason = "the kernel needs vector instructions the processor was asked for")]
    // SAFETY: `Level::detect` found the features the kernel is compiled for.
    unsafe {
        match groups {
            1 => place_groups::<1>(splits, bytes, tables, places),
            2 => place_groups::<2>(splits, bytes, tables, places),
            _ => place_groups::<GROUPS>(splits, bytes, tables, places),
        }
    }
}

/// Adds the values of at most 64 leaves.
pub(super) fn add_f32(values: &[f32], places: &Bytes, sums: &mut [f32; BLOCK], groups: usize) {
    assert!(values.len() <= 64 && groups <= GROUPS);
    #[expect(unsafe_code, reason = "the kernel needs vector instructions the processor was asked for")]
    // SAFETY: `Level::detect` found the features the kernel is compiled for.
    unsafe {
        match values.len() {
            ..=32 => add_f32_pairs::<1>(values, places, sums, groups),
            _ => add_f32_pairs::<2>(values, places, sums, groups),
        }
    }
}

/// Adds the values of at most 64 leaves.
pub(super) fn add_f64(values: &[f64], places: &Bytes, sums: &mut [f64; BLOCK], groups: usize) {
    assert!(values.len() <= 64 && groups <= GROUPS);
    #[expect(unsafe_code, reason = "the kernel needs vector instructions the processor was asked for")]
    // SAFETY: `Level::detect` found the features the kernel is compiled for.
    unsafe {
        match values.len() {
            0..=16 => add_f64_pairs::<1>(values, places, sums, groups),
            17..=32 => add_f64_pairs::<2>(values, places, sums, groups),
            _ => add_f64_pairs::<4>(values, places, sums, groups),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
#[expect(unsafe_code, reason = "vector loads and stores take pointers")]
fn place_groups<const G: usize>(splits: &[Split], bytes: &[Bytes], tables: &[Bytes], places: &mut Bytes) {
    // SAFETY, for all of this function: `G` groups of 64 bytes are at most the bytes of an array.
    const { assert!(G <= GROUPS) };
    let load = |bytes: &Bytes, group: usize| unsafe { _mm512_loadu_si512(bytes.as_ptr().add(group * GROUP).cast()) };
    let mut at = [_mm512_setzero_si512(); G];
    for split in splits {
        let (from, to) = (_mm512_set1_epi8(split.from as i8), _mm512_set1_epi8(split.to as i8));
        let column = &bytes[split.column as usize];
        if split.table == NO_TABLE {
            let above = _mm512_set1_epi8(split.above as i8);
            for (group, at) in at.iter_mut().enumerate() {
                let second = _mm512_cmpgt_epu8_mask(load(column, group), above);
                let moves = _mm512_mask_cmpeq_epi8_mask(second, *at, from);
                *at = _mm512_mask_mov_epi8(*at, moves, to);
            }
        } else {
            let table = &tables[split.table as usize];
            let table: [__m512i; 4] = std::array::from_fn(|quarter| load(table, quarter));
            for (group, at) in at.iter_mut().enumerate() {
                let byte = load(column, group);
                let low = _mm512_permutex2var_epi8(table[0], byte, table[1]);
                let high = _mm512_permutex2var_epi8(table[2], byte, table[3]);
                let entry = _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(byte), high);
                let moves = _mm512_mask_cmpeq_epi8_mask(_mm512_test_epi8_mask(entry, entry), *at, from);
                *at = _mm512_mask_mov_epi8(*at, moves, to);
            }
        }
    }
    for (group, at) in at.into_iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(places.as_mut_ptr().add(group * GROUP).cast(), at) };
    }
}

/// `P` pairs of vectors hold 32 values each.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
#[expect(unsafe_code, reason = "vector loads and stores take pointers")]
fn add_f32_pairs<const P: usize>(values: &[f32], places: &Bytes, sums: &mut [f32; BLOCK], groups: usize) {
    let part = |index: usize| {
        let left = values.len().saturating_sub(index * 16).min(16);
        // SAFETY: the mask keeps the load within the values.
        unsafe { _mm512_maskz_loadu_ps(((1_u32 << left) - 1) as u16, values.as_ptr().wrapping_add(index * 16)) }
    };
    let table: [[__m512; 2]; P] = std::array::from_fn(|pair| [part(2 * pair), part(2 * pair + 1)]);
    for row in (0..groups * GROUP).step_by(16) {
        // SAFETY: `groups` is at most the groups of a block, and 16 divides a group.
        let place = unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(places.as_ptr().add(row).cast())) };
        let mut value = _mm512_permutex2var_ps(table[0][0], place, table[0][1]);
        if P == 2 {
            let high = _mm512_permutex2var_ps(table[P - 1][0], place, table[P - 1][1]);
            value = _mm512_mask_mov_ps(value, _mm512_test_epi32_mask(place, _mm512_set1_epi32(32)), high);
        }
        // SAFETY: as above.
        unsafe {
            let sum = sums.as_mut_ptr().add(row);
            _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), value));
        }
    }
}

/// `P` pairs of vectors hold 16 values each.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
#[expect(unsafe_code, reason = "vector loads and stores take pointers")]
fn add_f64_pairs<const P: usize>(values: &[f64], places: &Bytes, sums: &mut [f64; BLOCK], groups: usize) {
    let part = |index: usize| {
        let left = values.len().saturating_sub(index * 8).min(8);
        // SAFETY: the mask keeps the load within the values.
        unsafe { _mm512_maskz_loadu_pd(((1_u32 << left) - 1) as u8, values.as_ptr().wrapping_add(index * 8)) }
    };
    let table: [[__m512d; 2]; P] = std::array::from_fn(|pair| [part(2 * pair), part(2 * pair + 1)]);
    for row in (0..groups * GROUP).step_by(8) {
        // SAFETY: `groups` is at most the groups of a block, and 8 divides a group.
        let place = unsafe { _mm512_cvtepu8_epi64(_mm_loadl_epi64(places.as_ptr().add(row).cast())) };
        let mut value = _mm512_permutex2var_pd(table[0][0], place, table[0][1]);
        for (pair, table) in table.iter().enumerate().skip(1) {
            let other = _mm512_permutex2var_pd(table[0], place, table[1]);
            let here = _mm512_cmpeq_epi64_mask(_mm512_srli_epi64::<4>(place), _mm512_set1_epi64(pair as i64));
            value = _mm512_mask_mov_pd(value, here, other);
        }
        // SAFETY: as above.
        unsafe {
            let sum = sums.as_mut_ptr().add(row);
            _mm512_storeu_pd(sum, _mm512_add_pd(_mm512_loadu_pd(sum), value));
        }
    }
}
