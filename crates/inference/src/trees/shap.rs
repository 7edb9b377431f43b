//! Path-dependent TreeSHAP, exact, as an integral.
//!
//! What feature i of a leaf's path adds (Lundberg, Erion and Lee, "Consistent Individualized Feature Attribution for
//! Tree Ensembles") is a sum over the subsets of the path's other features with the weights of Shapley. Those weights
//! are integrals, `k! (n - k - 1)! / n! = ∫ t^k (1 - t)^(n - k - 1) dt`, so the sum over subsets is a product:
//!
//! `φ_i = v · (o_i - z_i) · ∫ ∏_{j ≠ i} (o_j t + z_j (1 - t)) dt`
//!
//! with `v` the leaf, `o_j` whether the row's own value stays on the path, and `z_j` the share of training weight that
//! does. The product is a polynomial of degree below the number of features, so a few points of Gauss and Legendre give
//! the integral exactly: three for a path of six features. At one point `t` the products are shared along the tree: one
//! pass down multiplies, one pass up sums, and a feature that comes up again is exchanged for the merged one by a
//! factor. All terms are positive, nothing is divided that can be zero, and lanes are rows, or points of one row.

use pulp::{Arch, Simd, WithSimd};

use super::forest::{Compare, Forest, Sum, Tree};
use super::quadrature::gauss_legendre;

/// Lanes of a pass: rows at one point, or points of one row.
const LANES: usize = 8;
/// No edge above splits on the same feature.
const NONE: u32 = u32::MAX;

type Lanes = [f64; LANES];

/// What is known of each tree before any row is: shares of the training weight along its edges.
#[derive(Debug)]
pub(super) struct Explainer {
    /// One edge for each node of the forest: the one that leads to it.
    edges: Vec<Edge>,
    /// For each tree, the most features on a path.
    features: Vec<u32>,
    /// By number of points, from 1 on.
    points: Vec<Vec<(f64, f64)>>,
    /// The mean of each output over the training rows.
    expected: Vec<f64>,
}

#[derive(Debug, Clone, Copy)]
struct Edge {
    feature: u32,
    /// The node above within the tree whose edge splits on the same feature, or [`NONE`].
    before: u32,
    parent: u32,
    /// Share of the parent's training weight that goes this way.
    share: f64,
    /// The product of the shares of all edges above with the same feature, without and with this one.
    above: f64,
    merged: f64,
}

/// Numbers of a pass, one a node of the largest tree.
struct Scratch {
    /// Whether a row's own values lead this way, here and at the edges above with the same feature: 1 or 0.
    own: Vec<Lanes>,
    /// Products down to a node.
    product: Vec<Lanes>,
    /// What the edge multiplies, and what of the sums below is its feature's.
    factor: Vec<Lanes>,
    part: Vec<Lanes>,
    /// Sums over the leaves below.
    sum: Vec<Lanes>,
}

impl Explainer {
    /// Looks at a forest that has training weights.
    pub(super) fn new<S: Sum>(forest: &Forest<S>) -> Self {
        let root = Edge { feature: 0, before: NONE, parent: 0, share: 1.0, above: 1.0, merged: 1.0 };
        let mut edges = vec![root; forest.nodes.len()];
        let mut expected: Vec<f64> = forest.base.iter().map(|base| base.to_f64()).collect();
        let mut features = Vec::with_capacity(forest.trees.len());
        for tree in &forest.trees {
            let start = tree.root as usize;
            let range = start..start + tree.nodes as usize;
            features.push(connect(forest, tree, &mut edges[range.clone()]));
            // The share of all training weight that reaches each node.
            let mut reach = vec![1.0; range.len()];
            for at in range {
                let node = forest.nodes[at];
                if at > start {
                    reach[at - start] = reach[edges[at].parent as usize] * edges[at].share;
                }
                if node.first as usize == at {
                    let values = &forest.values[(tree.values + node.leaf * tree.wide) as usize..];
                    let sums = &mut expected[tree.output as usize..][..tree.wide as usize];
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum += reach[at - start] * value.to_f64();
                    }
                }
            }
        }
        let most = features.iter().map(|count: &u32| points_for(*count)).max().unwrap_or(1);
        let points = (0..=most).map(|count| if count == 0 { Vec::new() } else { gauss_legendre(count) }).collect();
        Self { edges, features, points, expected }
    }

    /// Appends, for each row and each output, one number a feature and the expected value: their sum is the margin.
    pub(super) fn values<S: Sum>(&self, forest: &Forest<S>, rows: &[f32], out: &mut Vec<f32>) {
        let width = forest.width;
        let most = forest.trees.iter().map(|tree| tree.nodes as usize).max().unwrap_or(0);
        let zero = || vec![[0.0; LANES]; most];
        let mut scratch = Scratch { own: zero(), product: zero(), factor: zero(), part: zero(), sum: zero() };
        let mut values = vec![[0.0; LANES]; forest.base.len() * width];
        let mut columns = vec![[0.0; LANES]; width];
        let arch = Arch::new();
        let count = rows.len() / width;
        let mut done = 0;
        while done < count {
            let together = if count - done == 1 { 1 } else { LANES.min(count - done) };
            let rows = &rows[done * width..][..together * width];
            // With one row, all lanes are that row; of several, the last fills what is left of the lanes.
            for (feature, column) in columns.iter_mut().enumerate() {
                *column = std::array::from_fn(|lane| rows[lane.min(together - 1) * width + feature]);
            }
            values.fill([0.0; LANES]);
            let (scratch, values_of_all) = (&mut scratch, &mut values);
            let job = Job { explainer: self, forest, columns: &columns, together, scratch, values: values_of_all };
            arch.dispatch(job);
            for row in 0..together {
                for (values, expected) in values.chunks_exact(width).zip(&self.expected) {
                    let of_row = |lanes: &Lanes| if together == 1 { lanes.iter().sum() } else { lanes[row] };
                    out.extend(values.iter().map(|lanes| of_row(lanes) as f32));
                    out.push(*expected as f32);
                }
            }
            done += together;
        }
    }
}

/// Fills in the edges of one tree; returns the most features on a path.
fn connect<S>(forest: &Forest<S>, tree: &Tree, edges: &mut [Edge]) -> u32 {
    let start = tree.root as usize;
    let mut counts = vec![0_u32; edges.len()];
    for parent in 0..edges.len() {
        let node = forest.nodes[start + parent];
        let first = node.first as usize - start;
        if first == parent {
            continue;
        }
        let feature = node.feature() as u32;
        let mut before = parent;
        while before > 0 && edges[before].feature != feature {
            before = edges[before].parent as usize;
        }
        let covers = |node: usize| forest.covers[start + node];
        let both = covers(first) + covers(first + 1);
        for child in [first, first + 1] {
            // An even split where nothing is known.
            let share = if both > 0.0 { covers(child) / both } else { 0.5 };
            let above = if before > 0 { edges[before].merged } else { 1.0 };
            let before = if before > 0 { before as u32 } else { NONE };
            edges[child] = Edge { feature, before, parent: parent as u32, share, above, merged: above * share };
            counts[child] = counts[parent] + u32::from(before == NONE);
        }
    }
    counts.into_iter().max().unwrap_or(0)
}

/// Points that integrate the paths of a tree exactly.
fn points_for(features: u32) -> usize {
    (features as usize).div_ceil(2).max(1)
}

struct Job<'a, S> {
    explainer: &'a Explainer,
    forest: &'a Forest<S>,
    columns: &'a [[f32; LANES]],
    together: usize,
    scratch: &'a mut Scratch,
    values: &'a mut [Lanes],
}

impl<S: Sum> WithSimd for Job<'_, S> {
    type Output = ();

    #[inline(always)]
    fn with_simd<V: Simd>(mut self, _: V) {
        for (tree, features) in self.forest.trees.iter().zip(&self.explainer.features) {
            let edges = &self.explainer.edges[tree.root as usize..][..tree.nodes as usize];
            self.follow(tree, edges);
            let points = &self.explainer.points[points_for(*features)];
            if self.together == 1 {
                for points in points.chunks(LANES) {
                    let lane = |lane: usize| points.get(lane).copied().unwrap_or((0.5, 0.0));
                    self.pass(tree, edges, std::array::from_fn(|i| lane(i).0), std::array::from_fn(|i| lane(i).1));
                }
            } else {
                for (point, weight) in points {
                    self.pass(tree, edges, [*point; LANES], [*weight; LANES]);
                }
            }
        }
    }
}

impl<S: Sum> Job<'_, S> {
    /// Finds which edges the rows' own values stay on.
    #[inline(always)]
    fn follow(&mut self, tree: &Tree, edges: &[Edge]) {
        let start = tree.root as usize;
        for at in 0..edges.len() {
            let node = self.forest.nodes[start + at];
            let first = node.first as usize - start;
            if first == at {
                continue;
            }
            let column = &self.columns[node.feature()];
            let second: Lanes = match node.compare() {
                Compare::Above { threshold, mirrored } => {
                    let sign = u32::from(mirrored) << 31;
                    let value = column.map(|value| f32::from_bits(value.to_bits() ^ sign));
                    std::array::from_fn(|i| if value[i] > threshold { 1.0 } else { 0.0 })
                }
                Compare::In(set) => column.map(|value| f64::from(u8::from(self.forest.sets[set].contains(value)))),
            };
            let before = edges[first].before;
            let own = if before == NONE { [1.0; LANES] } else { self.scratch.own[before as usize] };
            self.scratch.own[first] = std::array::from_fn(|i| own[i] * (1.0 - second[i]));
            self.scratch.own[first + 1] = std::array::from_fn(|i| own[i] * second[i]);
        }
    }

    /// Adds what the products are worth at one point a lane.
    #[inline(always)]
    fn pass(&mut self, tree: &Tree, edges: &[Edge], t: Lanes, weight: Lanes) {
        let Scratch { own, product, factor, part, sum } = &mut *self.scratch;
        let count = edges.len();
        let (own, product, factor) = (&own[..count], &mut product[..count], &mut factor[..count]);
        let (part, sum) = (&mut part[..count], &mut sum[..count]);
        product[0] = [1.0; LANES];
        for at in 1..count {
            let Edge { before, parent, share, above, merged, .. } = edges[at];
            let (own_here, upper) = (own[at], product[parent as usize]);
            if before == NONE {
                factor[at] = std::array::from_fn(|i| own_here[i] * t[i] + merged * (1.0 - t[i]));
                part[at] = std::array::from_fn(|i| weight[i] * (own_here[i] - merged) * upper[i]);
            } else {
                // The factor of the edge above is in the product already: it is exchanged for the merged one. Where the
                // row left the path there, both are shares, and nothing new is known of the feature.
                let still = own[before as usize];
                let inverse: Lanes = std::array::from_fn(|i| 1.0 / (t[i] + above * (1.0 - t[i])));
                let ratio: Lanes = std::array::from_fn(|i| (own_here[i] * t[i] + merged * (1.0 - t[i])) * inverse[i]);
                factor[at] = std::array::from_fn(|i| still[i] * ratio[i] + (1.0 - still[i]) * share);
                part[at] = std::array::from_fn(|i| {
                    let change = own_here[i] - merged - (1.0 - above) * ratio[i];
                    still[i] * weight[i] * change * inverse[i] * upper[i]
                });
            }
            product[at] = std::array::from_fn(|i| upper[i] * factor[at][i]);
        }
        let (start, width) = (tree.root as usize, self.forest.width);
        for output in 0..tree.wide as usize {
            sum.fill([0.0; LANES]);
            let values = &mut self.values[(tree.output as usize + output) * width..][..width];
            // Children come after their parents.
            for at in (1..count).rev() {
                let node = self.forest.nodes[start + at];
                if node.first as usize == start + at {
                    let value = (tree.values + node.leaf * tree.wide) as usize + output;
                    sum[at] = [self.forest.values[value].to_f64(); LANES];
                }
                let Edge { feature, parent, .. } = edges[at];
                let (below, part, factor) = (sum[at], part[at], factor[at]);
                let value = &mut values[feature as usize];
                *value = std::array::from_fn(|i| value[i] + part[i] * below[i]);
                let upper = &mut sum[parent as usize];
                *upper = std::array::from_fn(|i| upper[i] + factor[i] * below[i]);
            }
        }
    }
}
