//! `TreeEnsembleClassifier` and `TreeEnsembleRegressor` of `ai.onnx.ml`.

use std::collections::HashMap;

use super::super::ensemble::Ensemble;
use super::super::forest::{Forest, MAX_OUTPUTS, RawNode, RawTree, Test};
use super::super::lightgbm::at_most;
use super::super::link::Link;
use super::super::problem::{Result, malformed, unsupported};
use super::super::sets::Members;
use super::super::{Core, Kind};
use super::messages::Attributes;
use super::{Scores, link};

/// Numbers of all leaves together.
const MOST_VALUES: usize = 1 << 26;

/// The nodes of one tree.
struct Grown {
    raw: RawTree<f32>,
    hit_rates: Vec<f64>,
    /// What each leaf adds, by output.
    adds: Vec<(u32, usize, f32)>,
}

pub(super) fn classifier(attributes: &Attributes, width: usize) -> Result<Scores> {
    let classes = super::classes(attributes, "classlabels_int64s", "classlabels_strings")?;
    let entries = Entries::read(attributes, "class")?;
    let post = attributes.text("post_transform", "NONE")?;
    let mut ids: Vec<i64> = entries.ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    // Two classes and one score: that of the second class.
    let single = classes.len() == 2 && ids.len() <= 1;
    let outputs = if single { 1 } else { classes.len() };
    let positive = entries.weights.iter().all(|weight| *weight >= 0.0);
    let forest = forest(attributes, &entries, width, outputs, single, 1.0)?;
    let link = match (post, single) {
        ("NONE", true) if !positive => {
            return unsupported("one score with weights of both signs and no post_transform; supported: LOGISTIC");
        }
        ("SOFTMAX" | "SOFTMAX_ZERO", true) => return unsupported(format!("post_transform {post} of one score")),
        _ => link(post)?,
    };
    let kind = if classes.len() == 2 { Kind::BinaryClassification } else { Kind::MulticlassClassification };
    let objective = format!("TreeEnsembleClassifier, {post}");
    Ok(Scores { core: Core::Single(Ensemble::new(forest)), link, kind, objective, classes })
}

pub(super) fn regressor(attributes: &Attributes, width: usize) -> Result<Scores> {
    let outputs = match usize::try_from(attributes.int("n_targets", 1)) {
        Ok(outputs @ 1..=MAX_OUTPUTS) => outputs,
        _ => return malformed(format!("n_targets is {}", attributes.int("n_targets", 1))),
    };
    let entries = Entries::read(attributes, "target")?;
    let mean = match attributes.text("aggregate_function", "SUM")? {
        "SUM" => false,
        "AVERAGE" => true,
        other => return unsupported(format!("aggregate_function {other}; supported: SUM and AVERAGE")),
    };
    let trees = attributes.ints("nodes_treeids");
    let count = trees.iter().collect::<std::collections::HashSet<_>>().len().max(1);
    let forest = forest(attributes, &entries, width, outputs, false, if mean { count as f64 } else { 1.0 })?;
    let post = attributes.text("post_transform", "NONE")?;
    let link = if outputs == 1 && post == "SOFTMAX" { Link::Identity } else { link(post)? };
    let objective = format!("TreeEnsembleRegressor, {post}");
    Ok(Scores {
        core: Core::Single(Ensemble::new(forest)),
        link,
        kind: Kind::Regression,
        objective,
        classes: Vec::new(),
    })
}

/// What leaves add: parallel columns.
struct Entries<'a> {
    trees: &'a [i64],
    nodes: &'a [i64],
    ids: &'a [i64],
    weights: Vec<f64>,
}

impl<'a> Entries<'a> {
    fn read(attributes: &'a Attributes, of: &str) -> Result<Self> {
        let column = |name: &str| attributes.ints(&format!("{of}_{name}"));
        let weights = attributes.numbers(&format!("{of}_weights"))?;
        let entries = Self { trees: column("treeids"), nodes: column("nodeids"), ids: column("ids"), weights };
        let lengths = [entries.trees.len(), entries.nodes.len(), entries.ids.len()];
        if lengths.iter().any(|length| *length != entries.weights.len()) {
            return malformed(format!("{} {of}_weights, but other columns have {lengths:?}", entries.weights.len()));
        }
        Ok(entries)
    }
}

fn forest(
    attributes: &Attributes,
    entries: &Entries<'_>,
    width: usize,
    outputs: usize,
    single: bool,
    divide: f64,
) -> Result<Forest<f32>> {
    let base = attributes.numbers("base_values")?;
    let base = match base.len() {
        0 => vec![0.0; outputs],
        1 if outputs == 1 => vec![base[0] as f32],
        2 if single => vec![base[1] as f32],
        count if count == outputs => base.iter().map(|base| *base as f32).collect(),
        count => return malformed(format!("{count} base_values for {outputs} outputs")),
    };
    let mut grown = nodes(attributes, width)?;
    let mut places = HashMap::new();
    for (number, (tree, nodes)) in grown.iter().enumerate() {
        for (place, node) in nodes.ids.iter().enumerate() {
            if places.insert((*tree, *node), (number, place)).is_some() {
                return malformed(format!("tree {tree}: node {node} comes twice"));
            }
        }
    }
    for (at, weight) in entries.weights.iter().enumerate() {
        let (tree, node, id) = (entries.trees[at], entries.nodes[at], entries.ids[at]);
        let output = if single { Some(0) } else { usize::try_from(id).ok().filter(|id| *id < outputs) };
        let leaf = places.get(&(tree, node)).map(|(number, place)| {
            let grown = &mut grown[*number].1.grown;
            (matches!(grown.raw.nodes[*place], RawNode::Leaf(_)), grown, *place)
        });
        let (Some(output), Some((true, grown, place))) = (output, leaf) else {
            return malformed(format!(
                "tree {tree}: a weight for output {id} of {outputs} at node {node}, which is no leaf"
            ));
        };
        grown.adds.push((place as u32, output, (*weight / divide) as f32));
    }
    let mut forest = Forest::new(width, base)?;
    let mut total = 0;
    let known = grown.iter().all(|(_, nodes)| nodes.grown.has_hit_rates());
    for (tree, Nodes { mut grown, .. }) in grown {
        let at = |problem: super::super::problem::Problem| problem.at(format_args!("tree {tree}"));
        grown.settle(outputs, &mut total).map_err(at)?;
        if known {
            grown.raw.covers = std::mem::take(&mut grown.hit_rates);
        }
        forest.push(grown.raw).map_err(at)?;
    }
    Ok(forest)
}

struct Nodes {
    ids: Vec<i64>,
    grown: Grown,
}

/// The trees in the order of their first nodes.
fn nodes(attributes: &Attributes, width: usize) -> Result<Vec<(i64, Nodes)>> {
    let ints = |name: &str| attributes.ints(name);
    let (trees, ids, features) = (ints("nodes_treeids"), ints("nodes_nodeids"), ints("nodes_featureids"));
    let (yes, no) = (ints("nodes_truenodeids"), ints("nodes_falsenodeids"));
    let missing = ints("nodes_missing_value_tracks_true");
    let (modes, values) = (attributes.texts("nodes_modes")?, attributes.numbers("nodes_values")?);
    let rates = attributes.numbers("nodes_hitrates")?;
    let count = trees.len();
    let lengths = [ids.len(), features.len(), yes.len(), no.len(), modes.len(), values.len()];
    if lengths.iter().any(|length| *length != count) {
        return malformed(format!("{count} nodes_treeids, but other columns have {lengths:?}"));
    }
    if !matches!(missing.len(), 0) && missing.len() != count || !rates.is_empty() && rates.len() != count {
        return malformed(format!("{count} nodes_treeids, {} tracks and {} hit rates", missing.len(), rates.len()));
    }
    let mut order: Vec<i64> = Vec::new();
    let mut members: HashMap<i64, Vec<usize>> = HashMap::new();
    for (at, tree) in trees.iter().enumerate() {
        let nodes = members.entry(*tree).or_insert_with(|| {
            order.push(*tree);
            Vec::new()
        });
        nodes.push(at);
    }
    let mut grown = Vec::with_capacity(order.len());
    for tree in order {
        let members = members.remove(&tree).unwrap_or_default();
        let places: HashMap<i64, u32> = members.iter().zip(0..).map(|(at, place)| (ids[*at], place)).collect();
        let child = |at: usize, child: i64| match places.get(&child) {
            Some(place) => Ok(*place),
            None => malformed(format!("tree {tree}: node {} has child {child}, which is not there", ids[at])),
        };
        let mut nodes = Vec::with_capacity(members.len());
        let mut leaves = 0;
        for &at in &members {
            if modes[at] == "LEAF" {
                nodes.push(RawNode::Leaf(leaves));
                leaves += 1;
                continue;
            }
            let feature = match u32::try_from(features[at]) {
                Ok(feature) if (feature as usize) < width => feature,
                _ => return malformed(format!("tree {tree}: node {} splits on feature {}", ids[at], features[at])),
            };
            let tracks = missing.get(at).is_some_and(|tracks| *tracks != 0);
            let (yes, no) = (child(at, yes[at])?, child(at, no[at])?);
            let value = values[at];
            let above = at_most(value);
            // NaN passes no comparison but "not equal".
            let (test, swapped, missing) = match modes[at] {
                "BRANCH_LEQ" => (Test::Above(above), true, !tracks),
                "BRANCH_GT" => (Test::Above(above), false, tracks),
                "BRANCH_LT" => (Test::Above(below(value)), true, !tracks),
                "BRANCH_GTE" => (Test::Above(below(value)), false, tracks),
                "BRANCH_EQ" => (Test::In(equal(value)), false, tracks),
                "BRANCH_NEQ" => (Test::In(equal(value)), true, false),
                mode => return unsupported(format!("tree {tree}: node {} has mode {mode}", ids[at])),
            };
            let (yes, no) = if swapped { (no, yes) } else { (yes, no) };
            nodes.push(RawNode::Split { feature, test, yes, no, missing });
        }
        let hit_rates = if rates.is_empty() { Vec::new() } else { members.iter().map(|at| rates[*at]).collect() };
        let raw = RawTree { nodes, covers: Vec::new(), values: Vec::new(), output: 0, wide: 1 };
        let ids = members.iter().map(|at| ids[*at]).collect();
        grown.push((tree, Nodes { ids, grown: Grown { raw, hit_rates, adds: Vec::new() } }));
    }
    Ok(grown)
}

/// The largest `f32` below a number.
fn below(number: f64) -> f32 {
    let near = at_most(number);
    if f64::from(near) == number { near.next_down() } else { near }
}

/// The `f32` that equals a number, if one does.
fn equal(number: f64) -> Members {
    Members::values((f64::from(number as f32) == number).then_some(number as f32))
}

impl Grown {
    /// Tells whether the hit rates are training weights: those of children add up.
    fn has_hit_rates(&self) -> bool {
        let rate = |node: u32| self.hit_rates.get(node as usize).copied().unwrap_or(f64::NAN);
        self.raw.nodes.iter().zip(0..).all(|(node, at)| match node {
            RawNode::Split { yes, no, .. } => {
                let (whole, parts) = (rate(at), rate(*yes) + rate(*no));
                whole > 0.0 && (whole - parts).abs() <= 1e-3 * whole
            }
            RawNode::Leaf(_) => rate(at) >= 0.0,
            RawNode::Unused => true,
        })
    }

    /// Turns what leaves add into their values: one a leaf where all add to the same output, else one an output.
    fn settle(&mut self, outputs: usize, total: &mut usize) -> Result<()> {
        let leaves = self.raw.nodes.iter().filter(|node| matches!(node, RawNode::Leaf(_))).count();
        let first = self.adds.first().map_or(0, |(_, output, _)| *output);
        let narrow = self.adds.iter().all(|(_, output, _)| *output == first);
        let (output, wide) = if narrow { (first, 1) } else { (0, outputs) };
        *total = total.saturating_add(leaves.saturating_mul(wide));
        if *total > MOST_VALUES {
            return unsupported(format!("more than {MOST_VALUES} numbers in leaves"));
        }
        let mut values = vec![0.0; leaves * wide];
        for (node, to, weight) in &self.adds {
            if let RawNode::Leaf(leaf) = self.raw.nodes[*node as usize] {
                values[leaf as usize * wide + to - output] += weight;
            }
        }
        (self.raw.values, self.raw.output, self.raw.wide) = (values, output, wide);
        Ok(())
    }
}
