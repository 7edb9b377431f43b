//! Gradient-boosted decision trees: margins of single rows and of batches, and exact SHAP values.

use std::path::Path;

use crate::LoadError;

mod shap;
mod xgboost;

/// The bit of `Node::feature` that mirrors values before they are compared.
const MIRROR: u32 = 1 << 31;
/// Rows that walk a tree side by side, so that the processor has something to do while one waits for memory.
const ABREAST: usize = 8;
/// Rows that meet one tree while it is in the first-level cache.
const BLOCK: usize = 64;

/// One node, four to a cache line. A row moves to `first`, or to `first + 1` if its value exceeds the threshold.
///
/// A missing value (NaN) exceeds nothing, so `first` is where missing values go. Where that is the right child, the
/// comparison is mirrored: `x < t` is `-x > -t`. A leaf leads to itself, so walking too far does no harm.
#[derive(Debug, Clone, Copy)]
struct Node {
    threshold: f32,
    feature: u32,
    first: u32,
    /// What a leaf adds to the margin; zero in other nodes.
    value: f32,
}

impl Node {
    fn feature(self) -> usize {
        (self.feature & !MIRROR) as usize
    }

    #[inline(always)]
    fn next(self, row: &[f32]) -> u32 {
        let value = f32::from_bits(row[self.feature()].to_bits() ^ (self.feature & MIRROR));
        self.first + u32::from(value > self.threshold)
    }
}

#[derive(Debug, Clone, Copy)]
struct Tree {
    root: u32,
    /// Steps from the root to the deepest leaf.
    depth: u32,
}

/// A tree ensemble with one output, in the order and precision (`f32`) of the library that trained it.
#[derive(Debug)]
pub struct TreeEnsemble {
    width: usize,
    /// Empty where the file has none.
    names: Vec<String>,
    base: f32,
    trees: Vec<Tree>,
    nodes: Vec<Node>,
    /// The training weight that reached each node, for SHAP.
    covers: Vec<f32>,
    /// The mean margin over the training rows.
    expected: f32,
}

impl TreeEnsemble {
    /// Reads a model XGBoost saved as JSON: booster `gbtree`, objective `binary:logistic`, numeric splits. Others are
    /// `Unsupported`.
    pub fn from_xgboost_json(bytes: &[u8]) -> Result<Self, LoadError> {
        xgboost::parse(bytes).map_err(|problem| problem.in_file(Path::new("XGBoost JSON")))
    }

    /// Length of a row.
    pub fn num_features(&self) -> usize {
        self.width
    }

    /// The names of a row's values, in order; empty where the model carries none.
    pub fn feature_names(&self) -> &[String] {
        &self.names
    }

    /// Computes the margin (log-odds) of each row and replaces `out` by them. Rows are row-major, NaN is missing.
    ///
    /// Panics unless `rows` holds a whole number of rows.
    pub fn margins(&self, rows: &[f32], out: &mut Vec<f32>) {
        let width = self.width;
        assert!(rows.len().is_multiple_of(width), "{} values are no rows of {width}", rows.len());
        out.clear();
        out.resize(rows.len() / width, self.base);
        for (rows, out) in rows.chunks(BLOCK * width).zip(out.chunks_mut(BLOCK)) {
            for tree in &self.trees {
                let mut packs = rows.chunks_exact(ABREAST * width);
                let mut outs = out.chunks_exact_mut(ABREAST);
                for (rows, out) in (&mut packs).zip(&mut outs) {
                    self.add::<ABREAST>(*tree, std::array::from_fn(|i| &rows[i * width..][..width]), out);
                }
                for (row, out) in packs.remainder().chunks_exact(width).zip(outs.into_remainder().chunks_exact_mut(1)) {
                    self.add::<1>(*tree, [row], out);
                }
            }
        }
    }

    #[inline(always)]
    fn add<const N: usize>(&self, tree: Tree, rows: [&[f32]; N], out: &mut [f32]) {
        let mut at = [tree.root; N];
        for _ in 0..tree.depth {
            for (at, row) in at.iter_mut().zip(rows) {
                *at = self.nodes[*at as usize].next(row);
            }
        }
        for (out, at) in out.iter_mut().zip(at) {
            *out += self.nodes[at as usize].value;
        }
    }

    /// Turns a margin into a probability.
    pub fn probability(margin: f32) -> f32 {
        // Beyond this the exponential of an f32 is infinite; XGBoost stops at the same place.
        1.0 / (1.0 + (-margin).min(88.7).exp())
    }

    /// Computes what each feature added to the margin of one row (path-dependent TreeSHAP), then the expected margin:
    /// `num_features() + 1` numbers whose sum is the margin.
    ///
    /// Panics unless `row` holds `num_features()` values.
    pub fn shap(&self, row: &[f32]) -> Vec<f32> {
        assert_eq!(row.len(), self.width, "one row");
        shap::values(self, row)
    }
}
