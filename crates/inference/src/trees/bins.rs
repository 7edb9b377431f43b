//! Many rows at once: values as bytes, all splits of a tree in a row, no jumps and no gathers.
//!
//! A tree only asks how a value compares with the few thresholds the forest has for its feature. So each value of a
//! block of rows is replaced once by its bin, the number of thresholds below it, and a split compares bytes, 64 rows to
//! an instruction. Leaves are numbered from left to right, and each row holds the number of the leftmost leaf of the
//! node it is at. From the root down, every split moves the rows that are at its node and belong to the right to the
//! first leaf on that side; after the last one each row holds its leaf.

use std::collections::HashMap;

use pulp::{Arch, Simd, WithSimd};

use super::forest::{Compare, Forest, Sum};
use super::sets::{Members, code};

#[cfg(target_arch = "x86_64")]
mod x86;

/// Rows of a block.
pub(super) const BLOCK: usize = 256;
/// Rows in one vector.
const GROUP: usize = 64;
/// Leaves that a byte numbers.
const MOST_LEAVES: u32 = 256;
/// Thresholds in one column, so that a bin is a byte; a feature with more gets several columns.
const MOST_EDGES: usize = 255;
/// More columns than this would not stay in a cache.
const MOST_COLUMNS: usize = 1 << 14;
/// Tables of sets, of 256 bytes.
const MOST_TABLES: usize = 1 << 18;
/// Codes of a column of categories: other values, and missing ones.
const OTHER: u8 = 254;
const MISSING: u8 = 255;
const NO_TABLE: u32 = u32::MAX;

/// The bytes of one column of a block.
pub(super) type Bytes = [u8; BLOCK];

/// What becomes of a value of a feature.
#[derive(Debug)]
enum Column {
    /// The number of edges it exceeds, mirrored or not; NaN exceeds none.
    Above { feature: u32, mirrored: bool, edges: Vec<f32> },
    /// Its category.
    Codes { feature: u32, cut_negative: bool },
    /// Its place among exact values.
    Values { feature: u32, values: Vec<f32> },
}

/// A step of a tree: rows at `from` move to `to` if their byte exceeds `above`, or its entry in the table is not zero.
#[derive(Debug, Clone, Copy)]
struct Split {
    column: u32,
    table: u32,
    above: u8,
    from: u8,
    to: u8,
}

/// A forest in this form; trees with too many leaves are left out.
#[derive(Debug)]
pub(super) struct Bins {
    columns: Vec<Column>,
    splits: Vec<Split>,
    tables: Vec<Bytes>,
    /// For each tree where its splits end; `None` for one that is left out.
    ends: Vec<Option<usize>>,
    level: Level,
}

/// What the processor can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// Byte permutations of AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512Vbmi,
    /// What the compiler makes of loops over bytes.
    Portable,
}

impl Level {
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512dq")
            && std::is_x86_feature_detected!("avx512vl")
            && std::is_x86_feature_detected!("avx512vbmi")
        {
            return Self::Avx512Vbmi;
        }
        Self::Portable
    }
}

/// Finds or makes the columns of a forest.
#[derive(Default)]
struct Columns {
    /// Thresholds by feature and mirror, sorted; the number of the first column.
    above: HashMap<(u32, bool), (Vec<f32>, u32)>,
    codes: HashMap<(u32, bool), u32>,
    values: HashMap<u32, (Vec<f32>, u32)>,
}

impl Bins {
    /// Lays the forest out; `None` if it has no tree that fits, or too many columns.
    pub(super) fn new<S: Sum>(forest: &Forest<S>, level: Level) -> Option<Self> {
        let fits = |tree: &&super::forest::Tree| tree.leaves <= MOST_LEAVES;
        let mut found = Columns::default();
        for tree in forest.trees.iter().filter(fits) {
            for at in tree.root..tree.root + tree.nodes {
                found.note(forest, at as usize);
            }
        }
        let columns = found.number();
        let mut bins = Self { columns, splits: Vec::new(), tables: Vec::new(), ends: Vec::new(), level };
        if bins.columns.len() > MOST_COLUMNS {
            return None;
        }
        for tree in &forest.trees {
            let start = (bins.splits.len(), bins.tables.len());
            let laid_out = tree.leaves <= MOST_LEAVES && bins.lay_out(forest, tree, &found);
            if !laid_out {
                bins.splits.truncate(start.0);
                bins.tables.truncate(start.1);
            }
            bins.ends.push(laid_out.then_some(bins.splits.len()));
        }
        bins.ends.iter().any(Option::is_some).then_some(bins)
    }

    /// Appends the splits of a tree from the root down; `false` if one has no byte form.
    fn lay_out<S: Sum>(&mut self, forest: &Forest<S>, tree: &super::forest::Tree, found: &Columns) -> bool {
        let range = tree.root as usize..(tree.root + tree.nodes) as usize;
        // The leftmost leaf below each node: children come after their parents.
        let mut leftmost = vec![0_u32; range.len()];
        for at in range.clone().rev() {
            let node = forest.nodes[at];
            let first = node.first as usize;
            leftmost[at - range.start] = if first == at { node.leaf } else { leftmost[first - range.start] };
        }
        for at in range.clone() {
            let node = forest.nodes[at];
            let first = node.first as usize;
            if first == at {
                continue;
            }
            let feature = node.feature() as u32;
            let (column, table, above) = match node.compare() {
                Compare::Above { threshold, mirrored } => {
                    let (edges, column) = &found.above[&(feature, mirrored)];
                    let edge = edges.partition_point(|edge| *edge < threshold);
                    (column + (edge / MOST_EDGES) as u32, NO_TABLE, (edge % MOST_EDGES) as u8)
                }
                Compare::In(set) => {
                    let set = &forest.sets[set];
                    let mut table = [0; BLOCK];
                    let column = match &set.members {
                        Members::Codes { bits, cut_negative } => {
                            if bits.iter().skip(4).any(|word| *word != 0)
                                || bits.get(3).is_some_and(|word| word >> 62 != 0)
                            {
                                return false;
                            }
                            for (code, entry) in table.iter_mut().enumerate() {
                                *entry = bits.get(code / 64).map_or(0, |word| (word >> (code % 64) & 1) as u8);
                            }
                            found.codes[&(feature, *cut_negative)]
                        }
                        Members::Values(_) => {
                            let (values, column) = &found.values[&feature];
                            if values.len() > usize::from(OTHER) {
                                return false;
                            }
                            for (value, entry) in values.iter().zip(&mut table) {
                                *entry = u8::from(set.contains(*value));
                            }
                            *column
                        }
                    };
                    table[usize::from(OTHER)] = 0;
                    table[usize::from(MISSING)] = u8::from(set.missing);
                    if self.tables.len() == MOST_TABLES {
                        return false;
                    }
                    self.tables.push(table);
                    (column, self.tables.len() as u32 - 1, 0)
                }
            };
            let (from, to) = (leftmost[at - range.start] as u8, leftmost[first + 1 - range.start] as u8);
            self.splits.push(Split { column, table, above, from, to });
        }
        true
    }

    /// Room for a block of rows.
    pub(super) fn scratch(&self) -> Vec<Bytes> {
        vec![[0; BLOCK]; self.columns.len()]
    }

    /// Adds what all trees say about at most [`BLOCK`] rows. `sums` has [`BLOCK`] numbers for each output.
    pub(super) fn add<S: Sum + Values>(
        &self,
        forest: &Forest<S>,
        rows: &[f32],
        bytes: &mut [Bytes],
        sums: &mut [[S; BLOCK]],
    ) {
        let count = rows.len() / forest.width;
        let groups = count.div_ceil(GROUP);
        let arch = Arch::new();
        for (column, bytes) in self.columns.iter().zip(bytes.iter_mut()) {
            column.fill(arch, rows, forest.width, bytes);
        }
        let mut start = 0;
        let mut places = [0; BLOCK];
        for (tree, end) in forest.trees.iter().zip(&self.ends) {
            let sums = &mut sums[tree.output as usize..][..tree.wide as usize];
            let Some(end) = *end else {
                add_walking(forest, tree, rows, sums);
                continue;
            };
            self.place(arch, &self.splits[start..end], bytes, &mut places, groups);
            start = end;
            let values = &forest.values[tree.values as usize..][..(tree.leaves * tree.wide) as usize];
            if let [sums] = sums {
                S::add(self.level, values, &places, sums, groups);
            } else {
                for (output, sums) in sums.iter_mut().enumerate() {
                    for (sum, place) in sums.iter_mut().zip(places).take(count) {
                        *sum += values[usize::from(place) * tree.wide as usize + output];
                    }
                }
            }
        }
    }

    /// Finds the leaf of each row.
    fn place(&self, arch: Arch, splits: &[Split], bytes: &[Bytes], places: &mut Bytes, groups: usize) {
        #[cfg(target_arch = "x86_64")]
        if self.level == Level::Avx512Vbmi {
            return x86::place(splits, bytes, &self.tables, places, groups);
        }
        arch.dispatch(Place { splits, bytes, tables: &self.tables, places, groups });
    }
}

/// One tree without a byte form.
fn add_walking<S: Sum>(forest: &Forest<S>, tree: &super::forest::Tree, rows: &[f32], sums: &mut [[S; BLOCK]]) {
    let mut of_rows = Vec::with_capacity(sums.len() * BLOCK);
    let (count, wide) = (rows.len() / forest.width, sums.len());
    for row in 0..count {
        of_rows.extend(sums.iter().map(|sums| sums[row]));
    }
    forest.add_tree(tree, rows, &mut of_rows);
    for (row, of_row) in of_rows.chunks_exact(wide).enumerate() {
        for (sums, sum) in sums.iter_mut().zip(of_row) {
            sums[row] = *sum;
        }
    }
}

/// Finds the leaf of each row, in the widest vectors there are.
struct Place<'a> {
    splits: &'a [Split],
    bytes: &'a [Bytes],
    tables: &'a [Bytes],
    places: &'a mut Bytes,
    groups: usize,
}

impl WithSimd for Place<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { splits, bytes, tables, places, groups } = self;
        *places = [0; BLOCK];
        for split in splits {
            let Split { column, table, above, from, to } = *split;
            let (columns, _) = bytes[column as usize].as_chunks::<GROUP>();
            let (places, _) = places.as_chunks_mut::<GROUP>();
            for (places, column) in places.iter_mut().zip(columns).take(groups) {
                if table == NO_TABLE {
                    for (place, byte) in places.iter_mut().zip(column) {
                        let moves = (*byte > above) & (*place == from);
                        *place = if moves { to } else { *place };
                    }
                } else {
                    let table = &tables[table as usize];
                    for (place, byte) in places.iter_mut().zip(column) {
                        let moves = (table[usize::from(*byte)] != 0) & (*place == from);
                        *place = if moves { to } else { *place };
                    }
                }
            }
        }
    }
}

/// Adds the values of the leaves that rows are at.
pub(super) trait Values: Sum {
    fn add(level: Level, values: &[Self], places: &Bytes, sums: &mut [Self; BLOCK], groups: usize);
}

impl Values for f32 {
    fn add(level: Level, values: &[Self], places: &Bytes, sums: &mut [Self; BLOCK], groups: usize) {
        #[cfg(target_arch = "x86_64")]
        if level == Level::Avx512Vbmi && values.len() <= 64 {
            return x86::add_f32(values, places, sums, groups);
        }
        let _ = level;
        add(values, places, sums, groups);
    }
}

impl Values for f64 {
    fn add(level: Level, values: &[Self], places: &Bytes, sums: &mut [Self; BLOCK], groups: usize) {
        #[cfg(target_arch = "x86_64")]
        if level == Level::Avx512Vbmi && values.len() <= 64 {
            return x86::add_f64(values, places, sums, groups);
        }
        let _ = level;
        add(values, places, sums, groups);
    }
}

fn add<S: Sum>(values: &[S], places: &Bytes, sums: &mut [S; BLOCK], groups: usize) {
    // A row beyond the last may be anywhere, so the table has an entry for every byte.
    let mut table = [S::default(); BLOCK];
    table[..values.len()].copy_from_slice(values);
    for (sum, place) in sums[..groups * GROUP].iter_mut().zip(places) {
        *sum += table[usize::from(*place)];
    }
}

impl Columns {
    fn note<S: Sum>(&mut self, forest: &Forest<S>, at: usize) {
        let node = forest.nodes[at];
        if node.first as usize == at {
            return;
        }
        let feature = node.feature() as u32;
        match node.compare() {
            Compare::Above { threshold, mirrored } => {
                self.above.entry((feature, mirrored)).or_default().0.push(threshold);
            }
            Compare::In(set) => match &forest.sets[set].members {
                Members::Codes { cut_negative, .. } => {
                    self.codes.insert((feature, *cut_negative), 0);
                }
                Members::Values(values) => {
                    let known = &mut self.values.entry(feature).or_default().0;
                    known.extend(values.iter().map(|bits| f32::from_bits(*bits)));
                }
            },
        }
    }

    /// Sorts what was noted and gives each column its number.
    fn number(&mut self) -> Vec<Column> {
        let mut columns = Vec::new();
        for (&(feature, mirrored), (edges, first)) in &mut self.above {
            // -0 and 0 are one threshold: nothing lies between them.
            edges.sort_unstable_by(f32::total_cmp);
            edges.dedup_by(|a, b| a == b);
            *first = columns.len() as u32;
            let chunks = edges.chunks(MOST_EDGES);
            columns.extend(chunks.map(|edges| Column::Above { feature, mirrored, edges: edges.to_vec() }));
        }
        for (&(feature, cut_negative), column) in &mut self.codes {
            *column = columns.len() as u32;
            columns.push(Column::Codes { feature, cut_negative });
        }
        for (&feature, (values, column)) in &mut self.values {
            values.sort_unstable_by(f32::total_cmp);
            values.dedup();
            *column = columns.len() as u32;
            columns.push(Column::Values { feature, values: values.clone() });
        }
        columns
    }
}

impl Column {
    /// Replaces the bytes of a block by those of its rows.
    fn fill(&self, arch: Arch, rows: &[f32], width: usize, bytes: &mut Bytes) {
        match self {
            Self::Above { feature, mirrored, edges } => {
                let sign = u32::from(*mirrored) << 31;
                let mut values = [0.0; BLOCK];
                for (value, row) in values.iter_mut().zip(rows.chunks_exact(width)) {
                    *value = f32::from_bits(row[*feature as usize].to_bits() ^ sign);
                }
                let count = (rows.len() / width).next_multiple_of(GROUP);
                arch.dispatch(Bin { edges, values: &values[..count], bytes });
            }
            Self::Codes { feature, cut_negative } => {
                for (byte, row) in bytes.iter_mut().zip(rows.chunks_exact(width)) {
                    let value = row[*feature as usize];
                    *byte = match code(value, *cut_negative) {
                        Some(code) if code < u32::from(OTHER) => code as u8,
                        _ if value.is_nan() => MISSING,
                        _ => OTHER,
                    };
                }
            }
            Self::Values { feature, values } => {
                for (byte, row) in bytes.iter_mut().zip(rows.chunks_exact(width)) {
                    let value = row[*feature as usize];
                    *byte = match values.binary_search_by(|known| known.total_cmp(&(value + 0.0))) {
                        Ok(place) => place.min(usize::from(OTHER)) as u8,
                        Err(_) if value.is_nan() => MISSING,
                        Err(_) => OTHER,
                    };
                }
            }
        }
    }
}

/// Counts the edges that each value exceeds.
struct Bin<'a> {
    edges: &'a [f32],
    values: &'a [f32],
    bytes: &'a mut Bytes,
}

impl WithSimd for Bin<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        const TOGETHER: usize = 16;
        let Self { edges, values, bytes } = self;
        let (values, _) = values.as_chunks::<TOGETHER>();
        let (bytes, _) = bytes.as_chunks_mut::<TOGETHER>();
        for (values, bytes) in values.iter().zip(bytes) {
            let mut base = [0_u32; TOGETHER];
            let mut size = edges.len();
            while size > 1 {
                let half = size / 2;
                for (base, value) in base.iter_mut().zip(values) {
                    let exceeds = edges[*base as usize + half - 1] < *value;
                    *base += std::hint::select_unpredictable(exceeds, half as u32, 0);
                }
                size -= half;
            }
            for ((byte, base), value) in bytes.iter_mut().zip(base).zip(values) {
                *byte = (base + u32::from(edges[base as usize] < *value)) as u8;
            }
        }
    }
}
