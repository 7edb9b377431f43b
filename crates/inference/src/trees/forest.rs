//! Trees in one layout for all formats, checked once, and the walk from root to leaf.

use super::problem::{Result, malformed, unsupported};
use super::sets::{Members, Set};

/// Trees deeper than this are refused: explaining a row takes time with the depth, and recursion a stack.
const MAX_DEPTH: u32 = 256;
/// Most features of a model.
pub(super) const MAX_FEATURES: usize = 1 << 20;
/// Most outputs of a model.
pub(super) const MAX_OUTPUTS: usize = 1 << 16;
const MAX_NODES: usize = 1 << 28;
const MAX_VALUES: usize = 1 << 28;
/// The bit of [`Node::feature`] that mirrors values before they are compared.
const MIRROR: u32 = 1 << 31;
/// The bit of [`Node::feature`] that makes the threshold the number of a set.
const SET: u32 = 1 << 30;
/// Rows that walk one tree, or trees that one row walks, side by side: the processor has something to do while one
/// waits for memory.
const ABREAST: usize = 16;

/// The arithmetic in which a library sums leaves.
pub(super) trait Sum: Copy + Default + std::ops::AddAssign + 'static {
    fn to_f64(self) -> f64;
}

impl Sum for f32 {
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Sum for f64 {
    fn to_f64(self) -> f64 {
        self
    }
}

/// A tree as a format gives it: nodes by number, the root first.
#[derive(Debug)]
pub(super) struct RawTree<S> {
    pub(super) nodes: Vec<RawNode>,
    /// The training weight that reached each node; empty where the format does not say.
    pub(super) covers: Vec<f64>,
    /// What leaves add to the outputs: `wide` numbers a leaf.
    pub(super) values: Vec<S>,
    /// The output that the first number of a leaf belongs to.
    pub(super) output: usize,
    pub(super) wide: usize,
}

#[derive(Debug)]
pub(super) enum RawNode {
    Split {
        feature: u32,
        test: Test,
        /// Where a row goes that passes the test.
        yes: u32,
        no: u32,
        /// Whether a missing value passes.
        missing: bool,
    },
    /// A number of a leaf of [`RawTree::values`].
    Leaf(u32),
    /// Part of no tree; an error when reached.
    Unused,
}

#[derive(Debug)]
pub(super) enum Test {
    /// The value exceeds this.
    Above(f32),
    In(Members),
}

/// One node, four to a cache line. A row moves to `first`, or to `first + 1` if its value exceeds the threshold.
///
/// A missing value (NaN) exceeds nothing, so `first` is where missing values go. Where they pass the test, the
/// comparison is mirrored: `x <= t` is `-x > next below -t`. A leaf leads to itself, so walking too far does no harm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    threshold: f32,
    feature: u32,
    pub(super) first: u32,
    /// The leaf's number within its tree, from left to right.
    pub(super) leaf: u32,
}

/// What a node compares, for those who lay it out in another way.
pub(super) enum Compare {
    /// Second where the value, mirrored or not, exceeds the threshold.
    Above { threshold: f32, mirrored: bool },
    /// Second where the value is in the set of this number.
    In(usize),
}

impl Node {
    pub(super) fn feature(self) -> usize {
        (self.feature & !(MIRROR | SET)) as usize
    }

    pub(super) fn compare(self) -> Compare {
        if self.feature & SET != 0 {
            Compare::In(self.threshold.to_bits() as usize)
        } else {
            Compare::Above { threshold: self.threshold, mirrored: self.feature & MIRROR != 0 }
        }
    }

    #[inline(always)]
    fn next<const SETS: bool>(self, row: &[f32], sets: &[Set]) -> u32 {
        if SETS && self.feature & SET != 0 {
            let inside = sets[self.threshold.to_bits() as usize].contains(row[self.feature()]);
            return self.first + u32::from(inside);
        }
        let value = f32::from_bits(row[(self.feature & !MIRROR) as usize].to_bits() ^ (self.feature & MIRROR));
        self.first + u32::from(value > self.threshold)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Tree {
    pub(super) root: u32,
    pub(super) nodes: u32,
    /// Steps from the root to the deepest leaf.
    pub(super) depth: u32,
    pub(super) leaves: u32,
    pub(super) output: u32,
    pub(super) wide: u32,
    /// Where its leaves' numbers begin, `wide` a leaf.
    pub(super) values: u32,
}

/// Checked trees, and what their leaves add to the outputs.
#[derive(Debug)]
pub(super) struct Forest<S> {
    pub(super) width: usize,
    /// What the outputs start from.
    pub(super) base: Vec<S>,
    pub(super) trees: Vec<Tree>,
    pub(super) nodes: Vec<Node>,
    pub(super) sets: Vec<Set>,
    pub(super) values: Vec<S>,
    /// Per node; empty where unknown.
    pub(super) covers: Vec<f64>,
}

impl<S: Sum> Forest<S> {
    pub(super) fn new(width: usize, base: Vec<S>) -> Result<Self> {
        if !(1..=MAX_FEATURES).contains(&width) {
            return malformed(format!("{width} features, expected 1 to {MAX_FEATURES}"));
        }
        if !(1..=MAX_OUTPUTS).contains(&base.len()) {
            return malformed(format!("{} outputs, expected 1 to {MAX_OUTPUTS}", base.len()));
        }
        Ok(Self {
            width,
            base,
            trees: Vec::new(),
            nodes: Vec::new(),
            sets: Vec::new(),
            values: Vec::new(),
            covers: Vec::new(),
        })
    }

    /// Appends a tree, breadth first with siblings side by side. Says what is wrong if it is none: a node that is
    /// reached twice, a child or feature that is not there, a number that is not finite.
    pub(super) fn push(&mut self, tree: RawTree<S>) -> Result<()> {
        let RawTree { mut nodes, covers, values, output, wide } = tree;
        let count = nodes.len();
        if count == 0 {
            return malformed("has no nodes");
        }
        if !covers.is_empty() && covers.len() != count {
            return malformed(format!("{} weights for {count} nodes", covers.len()));
        }
        if wide == 0 || output + wide > self.base.len() {
            return malformed(format!("adds to outputs {output}..{} of {}", output + wide, self.base.len()));
        }
        let start = self.nodes.len();
        if start + count > MAX_NODES || self.values.len() + values.len() > MAX_VALUES {
            return unsupported(format!("more than {MAX_NODES} nodes or {MAX_VALUES} numbers in leaves"));
        }
        // Nodes in the order of the layout. A node that two parents share, or that leads back, would come up twice.
        let mut order = vec![0_usize];
        let mut seen = vec![false; count];
        seen[0] = true;
        let (mut depth, mut level_end, mut at) = (0, 1, 0);
        while at < order.len() {
            if at == level_end {
                (depth, level_end) = (depth + 1, order.len());
                if depth > MAX_DEPTH {
                    return unsupported(format!("depth above {MAX_DEPTH}"));
                }
            }
            let node = order[at];
            let laid_out = match std::mem::replace(&mut nodes[node], RawNode::Unused) {
                RawNode::Unused => return malformed(format!("node {node} is used and not there")),
                RawNode::Leaf(leaf) => {
                    // The number of the leaf in the file; replaced below by its place from left to right.
                    Node { threshold: f32::INFINITY, feature: 0, first: (start + at) as u32, leaf }
                }
                RawNode::Split { feature, test, yes, no, missing } => {
                    if feature as usize >= self.width {
                        return malformed(format!("node {node} splits on feature {feature} of {}", self.width));
                    }
                    let first = (start + order.len()) as u32;
                    let (threshold, mark, children) = match test {
                        Test::Above(threshold) if threshold.is_nan() => {
                            return malformed(format!("node {node} has threshold NaN"));
                        }
                        Test::Above(threshold) if missing => ((-threshold).next_down(), MIRROR, [yes, no]),
                        Test::Above(threshold) => (threshold, 0, [no, yes]),
                        Test::In(members) => {
                            let set = self.sets.len() as u32;
                            self.sets.push(Set { members, missing });
                            (f32::from_bits(set), SET, [no, yes])
                        }
                    };
                    for child in children {
                        match seen.get_mut(child as usize) {
                            Some(seen) if !*seen => *seen = true,
                            _ => {
                                return malformed(format!(
                                    "node {node} has child {child}, which is no other node below it"
                                ));
                            }
                        }
                        order.push(child as usize);
                    }
                    Node { threshold, feature: feature | mark, first, leaf: 0 }
                }
            };
            self.nodes.push(laid_out);
            if let Some(cover) = covers.get(node) {
                if !(cover.is_finite() && *cover >= 0.0) {
                    return malformed(format!("node {node} has weight {cover}"));
                }
                self.covers.push(*cover);
            }
            at += 1;
        }
        if !self.covers.is_empty() && self.covers.len() != self.nodes.len() {
            return malformed("has training weights where other trees have none, or the other way round");
        }
        let first_value = self.values.len() as u32;
        let leaves = self.number_leaves(start, &values, wide)?;
        self.trees.push(Tree {
            root: start as u32,
            nodes: order.len() as u32,
            depth,
            leaves,
            output: output as u32,
            wide: wide as u32,
            values: first_value,
        });
        Ok(())
    }

    /// Numbers the leaves below `root` from left to right and appends their values in that order.
    fn number_leaves(&mut self, root: usize, values: &[S], wide: usize) -> Result<u32> {
        let mut stack = vec![root];
        let mut leaves = 0;
        while let Some(at) = stack.pop() {
            let first = self.nodes[at].first as usize;
            if first != at {
                stack.extend([first + 1, first]);
                continue;
            }
            let start = self.nodes[at].leaf as usize * wide;
            let Some(values) = values.get(start..start + wide) else {
                return malformed(format!("leaf {} has no value", self.nodes[at].leaf));
            };
            if self.values.len() + wide > MAX_VALUES {
                return unsupported(format!("more than {MAX_VALUES} numbers in leaves"));
            }
            if values.iter().any(|value| !value.to_f64().is_finite()) {
                return malformed(format!("leaf {} has a value that is not finite", self.nodes[at].leaf));
            }
            self.nodes[at].leaf = leaves;
            self.values.extend_from_slice(values);
            leaves += 1;
        }
        Ok(leaves)
    }

    /// Adds what every tree says about one row to `sums`, tree by tree.
    pub(super) fn add_row(&self, row: &[f32], sums: &mut [S]) {
        let mut packs = self.trees.chunks_exact(ABREAST);
        for trees in &mut packs {
            let depth = trees.iter().map(|tree| tree.depth).max().unwrap_or(0);
            let mut at: [u32; ABREAST] = std::array::from_fn(|i| trees[i].root);
            self.descend(depth, |_| row, &mut at);
            for (tree, at) in trees.iter().zip(at) {
                self.add_leaf(tree, at, &mut sums[tree.output as usize..]);
            }
        }
        for tree in packs.remainder() {
            let mut at = [tree.root];
            self.descend(tree.depth, |_| row, &mut at);
            self.add_leaf(tree, at[0], &mut sums[tree.output as usize..]);
        }
    }

    /// Adds what one tree says to the sums of each row, as many sums a row as a leaf has numbers.
    pub(super) fn add_tree(&self, tree: &Tree, rows: &[f32], sums: &mut [S]) {
        let width = self.width;
        let mut packs = rows.chunks_exact(ABREAST * width);
        let mut sums = sums.chunks_exact_mut(tree.wide as usize);
        for rows in &mut packs {
            let mut at = [tree.root; ABREAST];
            self.descend(tree.depth, |i| &rows[i * width..][..width], &mut at);
            for (at, sums) in at.iter().zip(&mut sums) {
                self.add_leaf(tree, *at, sums);
            }
        }
        for (row, sums) in packs.remainder().chunks_exact(width).zip(sums) {
            let mut at = [tree.root];
            self.descend(tree.depth, |_| row, &mut at);
            self.add_leaf(tree, at[0], sums);
        }
    }

    #[inline(always)]
    fn add_leaf(&self, tree: &Tree, at: u32, sums: &mut [S]) {
        let start = (tree.values + self.nodes[at as usize].leaf * tree.wide) as usize;
        for (sum, value) in sums.iter_mut().zip(&self.values[start..][..tree.wide as usize]) {
            *sum += *value;
        }
    }

    #[inline(always)]
    fn descend<'r, const N: usize>(&self, depth: u32, row: impl Fn(usize) -> &'r [f32], at: &mut [u32; N]) {
        if self.sets.is_empty() {
            self.steps::<N, false>(depth, row, at);
        } else {
            self.steps::<N, true>(depth, row, at);
        }
    }

    #[inline(always)]
    fn steps<'r, const N: usize, const SETS: bool>(
        &self,
        depth: u32,
        row: impl Fn(usize) -> &'r [f32],
        at: &mut [u32; N],
    ) {
        for _ in 0..depth {
            for (i, at) in at.iter_mut().enumerate() {
                *at = self.nodes[*at as usize].next::<SETS>(row(i), &self.sets);
            }
        }
    }

    /// Tells whether any split separates training weight, which explanations are made of.
    pub(super) fn has_covers(&self) -> bool {
        !self.covers.is_empty() || self.trees.is_empty()
    }
}
