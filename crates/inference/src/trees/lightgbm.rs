//! LightGBM's models: the text of `save_model`.

use std::collections::HashMap;

use super::ensemble::Ensemble;
use super::forest::{Forest, MAX_FEATURES, MAX_OUTPUTS, RawNode, RawTree, Test};
use super::link::Link;
use super::problem::{Problem, Result, malformed, unsupported};
use super::sets::Members;
use super::steps::{Operation, Steps};
use super::{Core, Kind, Parsed, counted_classes};

/// Words of all sets of a model together.
const MAX_SET_WORDS: usize = 1 << 25;
/// Bits of `decision_type`.
const CATEGORICAL: i64 = 1;
const DEFAULT_LEFT: i64 = 2;

/// What trees have in common.
struct Seen {
    /// For each feature that numbers are compared of, whether zero is missing.
    zero_is_missing: Vec<Option<bool>>,
    set_words: usize,
}

/// Lines `key=value` up to an empty line; lines without `=` have an empty value.
type Section<'a> = HashMap<&'a str, &'a str>;

pub(super) fn parse(bytes: &[u8]) -> Result<Parsed> {
    let Ok(text) = std::str::from_utf8(bytes) else { return malformed("not UTF-8") };
    let mut lines = text.lines().enumerate();
    let head = section(&mut lines);
    let number = |key: &str, most: usize| match required(&head, key)?.parse::<usize>() {
        Ok(number) if number <= most => Ok(number),
        _ => malformed(format!("{key} is `{}`, expected a number up to {most}", head[key])),
    };
    let outputs = number("num_tree_per_iteration", MAX_OUTPUTS)?;
    let width = number("max_feature_idx", MAX_FEATURES - 1)? + 1;
    let names: Vec<String> = match head.get("feature_names") {
        Some(names) => names.split(' ').map(str::to_owned).collect(),
        None => Vec::new(),
    };
    if !names.is_empty() && names.len() != width {
        return malformed(format!("{} feature_names for {width} features", names.len()));
    }
    // `Column_0`, `Column_1`, …: training was given bare numbers.
    let bare = names.iter().enumerate().all(|(at, name)| *name == format!("Column_{at}"));
    let names = if bare { Vec::new() } else { names };
    let objective = head.get("objective").copied().unwrap_or("none");
    let (link, kind) = meaning(objective, outputs)?;
    let mut trees = Vec::new();
    let mut seen = Seen { zero_is_missing: vec![None; width], set_words: 0 };
    let ended = loop {
        // Trees begin after an empty line; the last is followed by `end of trees`.
        let section = section(&mut lines);
        if section.contains_key("end of trees") {
            break true;
        }
        if section.is_empty() {
            match lines.clone().find(|(_, line)| !line.is_empty()) {
                Some(_) => continue,
                None => break false,
            }
        }
        if !section.contains_key("Tree") {
            return malformed(format!("tree {}: begins without `Tree=`", trees.len()));
        }
        let raw = tree(&section, width, trees.len() % outputs.max(1), &mut seen);
        trees.push(raw.map_err(|problem| problem.at(format_args!("tree {}", trees.len())))?);
    };
    if !ended {
        return malformed("cut off: `end of trees` is missing");
    }
    if outputs == 0 || trees.len() % outputs != 0 {
        return malformed(format!("{} trees for {outputs} outputs", trees.len()));
    }
    // Random forests answer with the mean of their trees.
    let rounds = if head.contains_key("average_output") { (trees.len() / outputs).max(1) as f64 } else { 1.0 };
    let mut forest = Forest::new(width, vec![0.0; outputs])?;
    for (number, mut tree) in trees.into_iter().enumerate() {
        tree.values.iter_mut().for_each(|value| *value /= rounds);
        forest.push(tree).map_err(|problem| problem.at(format_args!("tree {number}")))?;
    }
    let mut steps = Steps::new(width)?;
    if seen.zero_is_missing.contains(&Some(true)) {
        let columns = seen.zero_is_missing.iter().map(|column| *column == Some(true)).collect();
        let output = steps.push(Operation::ZeroIsMissing(columns), vec![0])?;
        steps.finish(output);
    }
    let classes = match kind {
        Kind::BinaryClassification => counted_classes(2),
        Kind::MulticlassClassification => counted_classes(outputs),
        Kind::Regression | Kind::Ranking => Vec::new(),
    };
    let core = Core::Double(Ensemble::new(forest));
    Ok(Parsed { names, steps, core, link, kind, objective: objective.to_owned(), classes })
}

fn section<'a>(lines: &mut impl Iterator<Item = (usize, &'a str)>) -> Section<'a> {
    let lines = lines.map(|(_, line)| line).take_while(|line| !line.is_empty());
    lines.map(|line| line.split_once('=').unwrap_or((line, ""))).collect()
}

fn required<'a>(section: &Section<'a>, key: &str) -> Result<&'a str> {
    section.get(key).copied().ok_or_else(|| Problem::Malformed(format!("`{key}=` is missing")))
}

/// What an objective, such as `binary sigmoid:1`, makes of margins.
fn meaning(objective: &str, outputs: usize) -> Result<(Link, Kind)> {
    let mut words = objective.split_whitespace();
    let name = words.next().unwrap_or("none");
    let mut slope = 1.0;
    let mut squared = false;
    for word in words {
        match word.split_once(':') {
            Some(("sigmoid", text)) => match text.parse::<f32>() {
                Ok(number) if number > 0.0 && number.is_finite() => slope = number,
                _ => return malformed(format!("objective `{objective}` has no number for its sigmoid")),
            },
            _ => squared |= word == "sqrt",
        }
    }
    let (link, kind) = match name {
        "binary" => (Link::Sigmoid { slope }, Kind::BinaryClassification),
        "multiclass" | "softmax" => (Link::Softmax, Kind::MulticlassClassification),
        "multiclassova" | "multiclass_ova" | "ova" | "ovr" => (Link::Sigmoid { slope }, Kind::MulticlassClassification),
        "regression" if squared => (Link::SignedSquare, Kind::Regression),
        "regression" | "regression_l1" | "huber" | "fair" | "quantile" | "mape" | "none" | "custom" => {
            (Link::Identity, Kind::Regression)
        }
        "poisson" | "gamma" | "tweedie" => (Link::Exp, Kind::Regression),
        "cross_entropy" | "xentropy" => (Link::Sigmoid { slope: 1.0 }, Kind::Regression),
        "cross_entropy_lambda" | "xentlambda" => (Link::Log1pExp, Kind::Regression),
        "lambdarank" | "rank_xendcg" => (Link::Identity, Kind::Ranking),
        _ => return unsupported(format!("objective `{objective}`; supported: those of LightGBM 4, and none")),
    };
    if kind == Kind::MulticlassClassification && outputs < 2 || kind == Kind::BinaryClassification && outputs != 1 {
        return malformed(format!("objective `{objective}` with {outputs} outputs"));
    }
    Ok((link, kind))
}

fn tree(section: &Section<'_>, width: usize, output: usize, seen: &mut Seen) -> Result<RawTree<f64>> {
    if section.get("is_linear").is_some_and(|linear| *linear != "0") {
        return unsupported("linear trees (linear_tree=true); supported: constant leaves");
    }
    let leaves = required(section, "num_leaves")?;
    let values: Vec<f64> = numbers(section, "leaf_value", None)?;
    let leaves = match leaves.parse::<usize>() {
        Ok(leaves) if leaves >= 1 && leaves == values.len() => leaves,
        _ => return malformed(format!("num_leaves is `{leaves}`, but leaf_value has {} numbers", values.len())),
    };
    if leaves == 1 {
        return Ok(RawTree { nodes: vec![RawNode::Leaf(0)], covers: vec![1.0], values, output, wide: 1 });
    }
    let inner = leaves - 1;
    let features: Vec<i64> = numbers(section, "split_feature", Some(inner))?;
    let thresholds: Vec<f64> = numbers(section, "threshold", Some(inner))?;
    let decisions: Vec<i64> = numbers(section, "decision_type", Some(inner))?;
    let left: Vec<i64> = numbers(section, "left_child", Some(inner))?;
    let right: Vec<i64> = numbers(section, "right_child", Some(inner))?;
    let sets = Sets::read(section)?;
    // Inner nodes first, then the leaves: a negative child −1 is leaf 0.
    let child = |node: usize, child: i64| {
        let place = if child >= 0 { usize::try_from(child).ok() } else { usize::try_from(-1 - child).ok() };
        match (place, child >= 0) {
            (Some(place), true) if place < inner => Ok(place as u32),
            (Some(place), false) if place < leaves => Ok((inner + place) as u32),
            _ => malformed(format!("node {node} has child {child}")),
        }
    };
    let mut nodes = Vec::with_capacity(inner + leaves);
    for node in 0..inner {
        let Some(feature) = usize::try_from(features[node]).ok().filter(|feature| *feature < width) else {
            return malformed(format!("node {node} splits on feature {} of {width}", features[node]));
        };
        let (left, right, decision) = (child(node, left[node])?, child(node, right[node])?, decisions[node]);
        let split = if decision & CATEGORICAL != 0 {
            let members = sets
                .get(thresholds[node], &mut seen.set_words)
                .map_err(|problem| problem.at(format_args!("node {node}")))?;
            // Categories in the set go left; a missing value is in none.
            RawNode::Split { feature: feature as u32, test: Test::In(members), yes: left, no: right, missing: false }
        } else {
            let kind = decision >> 2 & 3;
            // Where zero is missing, columns are changed before the trees see them: it must be so for all nodes.
            let zero = kind == 1;
            if *seen.zero_is_missing[feature].get_or_insert(zero) != zero {
                return unsupported(format!("node {node}: zero is missing for some splits on feature {feature} only"));
            }
            let threshold = at_most(thresholds[node]);
            if threshold.is_nan() {
                return malformed(format!("node {node} has threshold {}", thresholds[node]));
            }
            let missing_right = match kind {
                // Nothing is missing: NaN counts as zero.
                0 => 0.0 > threshold,
                1 | 2 => decision & DEFAULT_LEFT == 0,
                _ => return malformed(format!("node {node} has decision_type {decision}")),
            };
            let test = Test::Above(threshold);
            RawNode::Split { feature: feature as u32, test, yes: right, no: left, missing: missing_right }
        };
        nodes.push(split);
    }
    nodes.extend((0..leaves as u32).map(RawNode::Leaf));
    let mut covers = Vec::new();
    if section.contains_key("internal_count") && section.contains_key("leaf_count") {
        covers = numbers(section, "internal_count", Some(inner))?;
        covers.extend(numbers::<f64>(section, "leaf_count", Some(leaves))?);
    }
    Ok(RawTree { nodes, covers, values, output, wide: 1 })
}

/// The largest `f32` that is at most a number: an `f32` exceeds one if and only if it exceeds the other.
pub(super) fn at_most(number: f64) -> f32 {
    let near = number as f32;
    if f64::from(near) > number { near.next_down() } else { near }
}

fn numbers<T: std::str::FromStr>(section: &Section<'_>, key: &str, count: Option<usize>) -> Result<Vec<T>> {
    let number = |text: &str| match text.parse::<T>() {
        Ok(number) => Ok(number),
        Err(_) => malformed(format!("{key} has `{}`", text.chars().take(40).collect::<String>())),
    };
    let numbers: Vec<T> = required(section, key)?.split_ascii_whitespace().map(number).collect::<Result<_>>()?;
    match count {
        Some(count) if numbers.len() != count => {
            malformed(format!("{key} has {} numbers, expected {count}", numbers.len()))
        }
        _ => Ok(numbers),
    }
}

/// The sets of a tree: `cat_boundaries` cuts `cat_threshold` into bit sets of 32-bit words.
struct Sets {
    boundaries: Vec<usize>,
    words: Vec<u32>,
}

impl Sets {
    fn read(section: &Section<'_>) -> Result<Self> {
        if section.get("num_cat").is_none_or(|count| *count == "0") {
            return Ok(Self { boundaries: Vec::new(), words: Vec::new() });
        }
        Ok(Self {
            boundaries: numbers(section, "cat_boundaries", None)?,
            words: numbers(section, "cat_threshold", None)?,
        })
    }

    fn get(&self, number: f64, total: &mut usize) -> Result<Members> {
        let at = number as usize;
        let (start, end) = (self.boundaries.get(at).copied(), self.boundaries.get(at.saturating_add(1)).copied());
        let words = start.zip(end).and_then(|(start, end)| self.words.get(start..end));
        let Some(words) = words else { return malformed(format!("categories {number} are not there")) };
        *total += words.len();
        if *total > MAX_SET_WORDS {
            return unsupported("sets of categories too large to hold");
        }
        let pair = |pair: &[u32]| u64::from(pair[0]) | pair.get(1).map_or(0, |high| u64::from(*high) << 32);
        Ok(Members::Codes { bits: words.chunks(2).map(pair).collect(), cut_negative: true })
    }
}
