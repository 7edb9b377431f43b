//! Path-dependent TreeSHAP, exact: Lundberg, Erion and Lee, "Consistent Individualized Feature Attribution for Tree
//! Ensembles", algorithm 2.

use super::{Node, TreeEnsemble};

/// One feature on the way from the root, and how many of all orders of the features pass here with and without it.
#[derive(Debug, Clone, Copy, Default)]
struct Step {
    feature: usize,
    /// Share of the training weight that passes when the feature is unknown.
    zero: f64,
    /// 1 where the row's own value passes, 0 where it doesn't.
    one: f64,
    weight: f64,
}

pub(super) fn values(ensemble: &TreeEnsemble, row: &[f32]) -> Vec<f32> {
    let deepest = ensemble.trees.iter().map(|tree| tree.depth as usize).max().unwrap_or(0);
    let mut walk = Walk { nodes: &ensemble.nodes, covers: &ensemble.covers, row, values: vec![0.0; row.len() + 1] };
    let mut path = vec![Step::default(); (deepest + 2) * (deepest + 3) / 2];
    for tree in &ensemble.trees {
        let root = Step { feature: row.len(), zero: 1.0, one: 1.0, weight: 0.0 };
        walk.descend(tree.root as usize, &mut path, 0, root);
    }
    let mut values: Vec<f32> = walk.values.into_iter().map(|value| value as f32).collect();
    values[row.len()] = ensemble.expected;
    values
}

/// The mean of the leaves of the tree at `root`, the last one laid out, weighted by what reached them in training.
pub(super) fn mean(nodes: &[Node], covers: &[f32], root: usize) -> f64 {
    let mut means: Vec<f64> = nodes[root..].iter().map(|node| f64::from(node.value)).collect();
    // Children come after their parents.
    for at in (root..nodes.len()).rev() {
        let first = nodes[at].first as usize;
        if first != at {
            let sides = [first, first + 1].map(|child| share(covers, child, at) * means[child - root]);
            means[at - root] = sides[0] + sides[1];
        }
    }
    means[0]
}

/// The part of a parent's training weight that went to a child; an even split where nothing is known.
fn share(covers: &[f32], child: usize, parent: usize) -> f64 {
    if covers[parent] > 0.0 { f64::from(covers[child]) / f64::from(covers[parent]) } else { 0.5 }
}

struct Walk<'a> {
    nodes: &'a [Node],
    covers: &'a [f32],
    row: &'a [f32],
    values: Vec<f64>,
}

impl Walk<'_> {
    /// Visits `at`, to which `step` leads from the `length` steps that `path` begins with.
    fn descend(&mut self, at: usize, path: &mut [Step], length: usize, step: Step) {
        let (before, path) = path.split_at_mut(length);
        path[..length].copy_from_slice(before);
        extend(path, length, step);
        let node = self.nodes[at];
        let first = node.first as usize;
        if first == at {
            for i in 1..=length {
                let Step { feature, zero, one, .. } = path[i];
                self.values[feature] += unwound_sum(path, length, i) * (one - zero) * f64::from(node.value);
            }
            return;
        }
        let taken = node.next(self.row) as usize;
        let other = if taken == first { first + 1 } else { first };
        let feature = node.feature();
        let (mut zero, mut one, mut length) = (1.0, 1.0, length + 1);
        if let Some(seen) = path[1..length].iter().position(|step| step.feature == feature) {
            (zero, one) = (path[seen + 1].zero, path[seen + 1].one);
            unwind(path, length - 1, seen + 1);
            length -= 1;
        }
        let step = |child, one| Step { feature, zero: zero * share(self.covers, child, at), one, weight: 0.0 };
        let (own, others) = (step(taken, one), step(other, 0.0));
        self.descend(taken, path, length, own);
        self.descend(other, path, length, others);
    }
}

/// Appends a step as element `last`.
fn extend(path: &mut [Step], last: usize, step: Step) {
    path[last] = Step { weight: if last == 0 { 1.0 } else { 0.0 }, ..step };
    let count = (last + 1) as f64;
    for i in (0..last).rev() {
        path[i + 1].weight += step.one * path[i].weight * (i + 1) as f64 / count;
        path[i].weight = step.zero * path[i].weight * (last - i) as f64 / count;
    }
}

/// Takes element `at` out of the elements `0..=last`.
fn unwind(path: &mut [Step], last: usize, at: usize) {
    let Step { zero, one, .. } = path[at];
    let count = (last + 1) as f64;
    let mut next = path[last].weight;
    for i in (0..last).rev() {
        if one != 0.0 {
            let kept = path[i].weight;
            path[i].weight = next * count / ((i + 1) as f64 * one);
            next = kept - path[i].weight * zero * (last - i) as f64 / count;
        } else if zero != 0.0 {
            path[i].weight = path[i].weight * count / (zero * (last - i) as f64);
        }
    }
    for i in at..last {
        let Step { feature, zero, one, .. } = path[i + 1];
        path[i] = Step { feature, zero, one, weight: path[i].weight };
    }
}

/// The sum of the weights that `unwind` would leave, without unwinding.
fn unwound_sum(path: &[Step], last: usize, at: usize) -> f64 {
    let Step { zero, one, .. } = path[at];
    let count = (last + 1) as f64;
    let mut next = path[last].weight;
    let mut sum = 0.0;
    for i in (0..last).rev() {
        let share = (last - i) as f64 / count;
        if one != 0.0 {
            let weight = next * count / ((i + 1) as f64 * one);
            sum += weight;
            next = path[i].weight - weight * zero * share;
        } else if zero != 0.0 {
            sum += path[i].weight / (zero * share);
        }
    }
    sum
}
