//! A forest with what makes it fast: bins for many rows, shares of training weight for explanations.

use std::sync::OnceLock;

use super::bins::{BLOCK, Bins, Level, Values};
use super::forest::Forest;
use super::shap::Explainer;

/// Below this many rows each row walks the trees by itself: a group of rows costs as much as this many.
const FEW_ROWS: usize = 8;

/// With more outputs than this, the sums of a block of rows would not stay in a cache.
const MOST_OUTPUTS: usize = 1024;

#[derive(Debug)]
pub(super) struct Ensemble<S> {
    pub(super) forest: Forest<S>,
    bins: Option<Bins>,
    explainer: OnceLock<Explainer>,
}

impl<S: Values> Ensemble<S> {
    pub(super) fn new(forest: Forest<S>) -> Self {
        let bins = if forest.base.len() > MOST_OUTPUTS { None } else { Bins::new(&forest, Level::detect()) };
        Self { forest, bins, explainer: OnceLock::new() }
    }

    /// Replaces `out`, row-major, by the margins of the rows.
    pub(super) fn margins(&self, rows: &[f32], out: &mut [f32]) {
        let (width, outputs) = (self.forest.width, self.forest.base.len());
        let mut scratch = None;
        for (rows, out) in rows.chunks(BLOCK * width).zip(out.chunks_mut(BLOCK * outputs)) {
            match &self.bins {
                Some(bins) if rows.len() >= FEW_ROWS * width => {
                    let (bytes, sums) =
                        scratch.get_or_insert_with(|| (bins.scratch(), vec![[S::default(); BLOCK]; outputs]));
                    for (sums, base) in sums.iter_mut().zip(&self.forest.base) {
                        sums.fill(*base);
                    }
                    bins.add(&self.forest, rows, bytes, sums);
                    for (row, out) in out.chunks_exact_mut(outputs).enumerate() {
                        for (out, sums) in out.iter_mut().zip(sums.iter()) {
                            *out = sums[row].to_f64() as f32;
                        }
                    }
                }
                _ => self.row_by_row(rows, out),
            }
        }
    }

    fn row_by_row(&self, rows: &[f32], out: &mut [f32]) {
        let base = &self.forest.base;
        let mut sums = base.clone();
        for (row, out) in rows.chunks_exact(self.forest.width).zip(out.chunks_exact_mut(base.len())) {
            sums.copy_from_slice(base);
            self.forest.add_row(row, &mut sums);
            for (out, sum) in out.iter_mut().zip(&sums) {
                *out = sum.to_f64() as f32;
            }
        }
    }

    /// Appends the SHAP values of each row and output.
    pub(super) fn shap(&self, rows: &[f32], out: &mut Vec<f32>) {
        self.explainer.get_or_init(|| Explainer::new(&self.forest)).values(&self.forest, rows, out);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::forest::{RawNode, RawTree, Test};
    use super::super::sets::Members;
    use super::*;

    /// Grows a tree of random splits.
    fn tree(seed: &mut u64, most: usize, output: usize) -> RawTree<f32> {
        let mut random = |below: u64| {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*seed >> 33) % below
        };
        let mut nodes = vec![RawNode::Leaf(0)];
        let mut open = vec![0_usize];
        while let Some(at) = open.pop() {
            if nodes.len() >= most || random(5) == 0 && at > 0 {
                continue;
            }
            let test = match random(6) {
                0 => Test::In(Members::Codes { bits: vec![random(1 << 31), random(1 << 31)], cut_negative: false }),
                1 => Test::In(Members::values([random(8) as f32 - 2.0])),
                _ => Test::Above(random(40) as f32 / 4.0 - 4.0),
            };
            let (yes, no) = (nodes.len() as u32, nodes.len() as u32 + 1);
            nodes[at] = RawNode::Split { feature: random(5) as u32, test, yes, no, missing: random(2) == 0 };
            nodes.extend([RawNode::Leaf(0), RawNode::Leaf(0)]);
            open.insert(random(open.len() as u64 + 1) as usize, yes as usize);
            open.insert(random(open.len() as u64 + 1) as usize, no as usize);
        }
        let mut values = Vec::new();
        for node in &mut nodes {
            if let RawNode::Leaf(leaf) = node {
                *leaf = values.len() as u32;
                values.push(random(1000) as f32 / 1000.0 - 0.5);
            }
        }
        RawTree { nodes, covers: Vec::new(), values, output, wide: 1 }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn every_way_through_the_trees_gives_the_same_bits(
            mut seed in any::<u64>(),
            sizes in prop::collection::vec(1_usize..700, 1..24),
            rows in 1_usize..300,
        ) {
            let mut forest = Forest::new(5, vec![0.25_f32, -1.0]).unwrap();
            for (number, most) in sizes.iter().enumerate() {
                forest.push(tree(&mut seed, *most, number % 2)).unwrap();
            }
            let values = [f32::NAN, -0.0, 0.0, -0.5, 1.0, 2.0, 2.5, 3.0, 63.0, 64.0, 200.0, 260.0, f32::INFINITY, -7.25];
            let cells: Vec<f32> = (0..rows * 5).map(|at| {
                let mixed = (seed ^ at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
                if mixed.is_multiple_of(2) { values[mixed as usize / 2 % values.len()] } else { (mixed % 97) as f32 / 8.0 - 4.0 }
            }).collect();
            let mut expected = vec![0.0; rows * 2];
            let walking = Ensemble { forest, bins: None, explainer: OnceLock::new() };
            walking.margins(&cells, &mut expected);
            let forest = walking.forest;
            let mut levels = vec![Level::Portable, Level::detect()];
            levels.dedup();
            for level in levels {
                let bins = Bins::new(&forest, level);
                let mut sums = vec![[0.0; BLOCK]; 2];
                if let Some(bins) = bins {
                    for (cells, expected) in cells.chunks(BLOCK * 5).zip(expected.chunks(BLOCK * 2)) {
                        sums[0].fill(0.25);
                        sums[1].fill(-1.0);
                        bins.add(&forest, cells, &mut bins.scratch(), &mut sums);
                        for (row, expected) in expected.chunks(2).enumerate() {
                            prop_assert_eq!([sums[0][row], sums[1][row]], [expected[0], expected[1]]);
                        }
                    }
                }
            }
        }
    }
}
