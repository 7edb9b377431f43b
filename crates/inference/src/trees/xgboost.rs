//! XGBoost's models, from JSON and UBJSON: the same content in two notations.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

use super::ensemble::Ensemble;
use super::forest::{Forest, MAX_FEATURES, MAX_OUTPUTS, RawNode, RawTree, Test};
use super::link::Link;
use super::problem::{Problem, Result, malformed, unsupported};
use super::sets::Members;
use super::steps::Steps;
use super::{Core, Kind, Parsed, counted_classes, ubjson};

/// Categories above this are no categories: an `f32` cannot count them.
const MAX_CATEGORY: i64 = 1 << 24;
/// Words of all sets of a model together.
const MAX_SET_WORDS: usize = 1 << 24;

// What other boosters and objectives leave out has a default, so that their names can be read and refused.
#[derive(Deserialize)]
struct Model {
    learner: Learner,
}

#[derive(Deserialize)]
struct Learner {
    #[serde(default)]
    attributes: Attributes,
    #[serde(default)]
    feature_names: Vec<String>,
    gradient_booster: Booster,
    learner_model_param: Parameters,
    objective: Objective,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Attributes {
    /// Where early stopping found the best score: the last round its predictions use.
    best_iteration: Option<String>,
}

#[derive(Deserialize)]
struct Objective {
    name: String,
}

/// XGBoost writes these numbers as strings.
#[derive(Deserialize)]
struct Parameters {
    base_score: String,
    #[serde(default = "zero")]
    num_class: String,
    num_feature: String,
    #[serde(default = "one")]
    num_target: String,
}

fn zero() -> String {
    "0".into()
}

fn one() -> String {
    "1".into()
}

#[derive(Deserialize)]
struct Booster {
    name: String,
    #[serde(default)]
    model: Trees,
    /// The trees of `dart`.
    gbtree: Option<Inner>,
    /// What each tree of `dart` counts.
    #[serde(default)]
    weight_drop: Vec<f32>,
}

#[derive(Deserialize)]
struct Inner {
    model: Trees,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Trees {
    gbtree_model_param: TreesParameters,
    trees: Vec<JsonTree>,
    /// The output of each tree.
    tree_info: Vec<i64>,
}

#[derive(Deserialize)]
struct TreesParameters {
    #[serde(default = "one")]
    num_parallel_tree: String,
}

impl Default for TreesParameters {
    fn default() -> Self {
        Self { num_parallel_tree: one() }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct JsonTree {
    tree_param: TreeParameters,
    left_children: Vec<i64>,
    right_children: Vec<i64>,
    split_indices: Vec<i64>,
    split_conditions: Vec<f32>,
    split_type: Vec<u8>,
    default_left: Vec<Flag>,
    sum_hessian: Vec<f32>,
    /// The categories that go right, one node after the other.
    categories: Vec<i64>,
    categories_nodes: Vec<i64>,
    categories_segments: Vec<i64>,
    categories_sizes: Vec<i64>,
}

#[derive(Deserialize)]
struct TreeParameters {
    #[serde(default = "one")]
    size_leaf_vector: String,
}

impl Default for TreeParameters {
    fn default() -> Self {
        Self { size_leaf_vector: one() }
    }
}

/// A truth value: a number since XGBoost 1.6, a boolean before.
#[derive(Clone, Copy)]
struct Flag(bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Flag;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a boolean, 0 or 1")
            }

            fn visit_bool<E: Error>(self, value: bool) -> std::result::Result<Flag, E> {
                Ok(Flag(value))
            }

            fn visit_u64<E: Error>(self, value: u64) -> std::result::Result<Flag, E> {
                Ok(Flag(value != 0))
            }

            fn visit_i64<E: Error>(self, value: i64) -> std::result::Result<Flag, E> {
                Ok(Flag(value != 0))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

pub(super) fn json(bytes: &[u8]) -> Result<Parsed> {
    build(serde_json::from_slice(bytes).map_err(|error| Problem::Malformed(error.to_string()))?)
}

pub(super) fn ubjson(bytes: &[u8]) -> Result<Parsed> {
    build(ubjson::from_slice(bytes).map_err(|error| Problem::Malformed(error.to_string()))?)
}

fn build(Model { learner }: Model) -> Result<Parsed> {
    let Learner { attributes, feature_names, gradient_booster, learner_model_param, objective } = learner;
    let Booster { name: booster, model, gbtree, weight_drop } = gradient_booster;
    let (mut model, weights) = match (booster.as_str(), gbtree) {
        ("gbtree", _) => (model, Vec::new()),
        ("dart", Some(Inner { model })) => (model, weight_drop),
        ("dart", None) => return malformed("booster `dart` without `gbtree`"),
        _ => return unsupported(format!("booster `{booster}`; supported: `gbtree` and `dart`")),
    };
    let Parameters { base_score, num_class, num_feature, num_target } = learner_model_param;
    let count = |name: &str, text: &str| match text.parse::<usize>() {
        Ok(count) if count <= MAX_OUTPUTS => Ok(count),
        _ => malformed(format!("{name} is `{text}`, expected a number up to {MAX_OUTPUTS}")),
    };
    let (classes, targets) = (count("num_class", &num_class)?, count("num_target", &num_target)?);
    if classes > 1 && targets > 1 {
        return unsupported(format!("{classes} classes and {targets} targets together"));
    }
    let outputs = classes.max(targets).max(1);
    let meaning = Meaning::of(&objective.name, outputs)?;
    if let Some(best) = &attributes.best_iteration
        && booster == "gbtree"
    {
        uses_every_round(best, &model, outputs)?;
    }
    let (width, names) = features(&num_feature, feature_names)?;
    let base = base(&base_score, outputs, meaning.base)?;
    if !weights.is_empty() && weights.len() != model.trees.len() {
        return malformed(format!("{} entries in weight_drop for {} trees", weights.len(), model.trees.len()));
    }
    if !model.tree_info.is_empty() && model.tree_info.len() != model.trees.len() {
        return malformed(format!("{} entries in tree_info for {} trees", model.tree_info.len(), model.trees.len()));
    }
    let mut forest = Forest::new(width, base)?;
    let mut words = 0;
    for (number, tree) in std::mem::take(&mut model.trees).into_iter().enumerate() {
        let output = match model.tree_info.get(number) {
            Some(output) => usize::try_from(*output).ok().filter(|output| *output < outputs),
            None => Some(number % outputs),
        };
        let weight = weights.get(number).copied().unwrap_or(1.0);
        let pushed = match output {
            Some(output) => raw(&tree, output, weight, &mut words).and_then(|tree| forest.push(tree)),
            None => malformed(format!("tree_info is {:?}, expected an output of {outputs}", model.tree_info[number])),
        };
        pushed.map_err(|problem| problem.at(format_args!("tree {number}")))?;
    }
    let Meaning { link, kind, .. } = meaning;
    let classes = match kind {
        Kind::BinaryClassification => counted_classes(2),
        Kind::MulticlassClassification => counted_classes(outputs),
        Kind::Regression | Kind::Ranking => Vec::new(),
    };
    let core = Core::Single(Ensemble::new(forest));
    Ok(Parsed { names, steps: Steps::new(width)?, core, link, kind, objective: objective.name, classes })
}

/// What an objective makes of margins.
struct Meaning {
    link: Link,
    kind: Kind,
    base: Base,
}

/// How the base score becomes a margin.
#[derive(Clone, Copy, PartialEq)]
enum Base {
    Identity,
    Logit,
    Log,
}

impl Meaning {
    fn of(objective: &str, outputs: usize) -> Result<Self> {
        let sigmoid = Link::Sigmoid { slope: 1.0 };
        let (link, kind, base) = match objective {
            "binary:logistic" => (sigmoid, Kind::BinaryClassification, Base::Logit),
            "binary:logitraw" => (Link::Identity, Kind::BinaryClassification, Base::Identity),
            "binary:hinge" => (Link::Hinge, Kind::BinaryClassification, Base::Identity),
            "reg:logistic" => (sigmoid, Kind::Regression, Base::Logit),
            // `multi:softmax` names the most probable class; the probabilities say more.
            "multi:softprob" | "multi:softmax" => (Link::Softmax, Kind::MulticlassClassification, Base::Identity),
            "reg:squarederror"
            | "reg:linear"
            | "reg:squaredlogerror"
            | "reg:pseudohubererror"
            | "reg:absoluteerror"
            | "reg:quantileerror"
            | "reg:expectileerror" => (Link::Identity, Kind::Regression, Base::Identity),
            "count:poisson" | "reg:gamma" | "reg:tweedie" | "survival:cox" | "survival:aft" => {
                (Link::Exp, Kind::Regression, Base::Log)
            }
            "rank:pairwise" | "rank:ndcg" | "rank:map" => (Link::Identity, Kind::Ranking, Base::Identity),
            _ => {
                return unsupported(format!(
                    "objective `{objective}`; supported: binary:*, multi:*, reg:*, count:poisson, survival:* and rank:* \
                     as XGBoost 3 names them"
                ));
            }
        };
        if kind == Kind::BinaryClassification && outputs > 1 {
            return unsupported(format!("objective `{objective}` with {outputs} targets; supported: one"));
        }
        if kind == Kind::MulticlassClassification && outputs < 2 {
            return malformed(format!("objective `{objective}` with {outputs} classes"));
        }
        Ok(Self { link, kind, base })
    }
}

/// Refuses a forest that has more rounds than its own predictions use: scikit-learn's, where training stopped early.
fn uses_every_round(best: &str, model: &Trees, outputs: usize) -> Result<()> {
    let Ok(best) = best.parse::<u32>() else {
        return malformed(format!("best_iteration is `{best}`, expected the number of a round"));
    };
    let trees = match model.gbtree_model_param.num_parallel_tree.parse::<usize>() {
        Ok(trees @ 1..=0xffff_ffff) => trees * outputs,
        _ => return malformed(format!("num_parallel_tree is `{}`", model.gbtree_model_param.num_parallel_tree)),
    };
    let (rounds, used) = (model.trees.len() / trees, best as usize + 1);
    if used < rounds {
        return unsupported(format!("the model has {rounds} rounds but stopped at {best}; publish booster[:{used}]"));
    }
    Ok(())
}

/// The number of features, and their names where the file has them: it has none when training was given bare numbers.
fn features(count: &str, names: Vec<String>) -> Result<(usize, Vec<String>)> {
    let count = match count.parse::<usize>() {
        Ok(count @ 1..=MAX_FEATURES) => count,
        _ => return malformed(format!("num_feature is `{count}`, expected 1 to {MAX_FEATURES}")),
    };
    if !names.is_empty() && names.len() != count {
        return malformed(format!("{} feature_names for {count} features", names.len()));
    }
    let mut seen = HashSet::new();
    match names.iter().find(|name| !seen.insert(name.as_str())) {
        Some(twice) => malformed(format!("feature name `{twice}` occurs twice")),
        None => Ok((count, names)),
    }
}

/// The base margins of a base score: a number (`5E-1`), or since XGBoost 3.1 a list with one number, or one an output.
fn base(score: &str, outputs: usize, base: Base) -> Result<Vec<f32>> {
    let list = score.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(score);
    let expected = match base {
        Base::Identity => "finite numbers",
        Base::Logit => "numbers between 0 and 1",
        Base::Log => "numbers above 0",
    };
    let margin = |text: &str| match (text.trim().parse::<f32>(), base) {
        (Ok(score), Base::Identity) if score.is_finite() => Ok(score),
        (Ok(score), Base::Logit) if score > 0.0 && score < 1.0 => Ok(-(1.0 / score - 1.0).ln()),
        (Ok(score), Base::Log) if score > 0.0 && score.is_finite() => Ok(score.ln()),
        _ => malformed(format!("base_score is `{score}`, expected {expected}")),
    };
    let margins: Vec<f32> = list.split(',').take(MAX_OUTPUTS + 1).map(margin).collect::<Result<_>>()?;
    match margins.len() {
        1 => Ok(vec![margins[0]; outputs]),
        count if count == outputs => Ok(margins),
        count => malformed(format!("base_score has {count} numbers for {outputs} outputs")),
    }
}

/// A tree with its columns turned into nodes.
fn raw(tree: &JsonTree, output: usize, weight: f32, words: &mut usize) -> Result<RawTree<f32>> {
    let JsonTree { tree_param, left_children, right_children, split_indices, split_conditions, .. } = tree;
    let JsonTree { split_type, default_left, sum_hessian, .. } = tree;
    if !matches!(tree_param.size_leaf_vector.as_str(), "0" | "1") {
        return unsupported(format!(
            "leaves of {} numbers (multi_strategy `multi_output_tree`); supported: one tree an output",
            tree_param.size_leaf_vector
        ));
    }
    let count = left_children.len();
    let lengths = [right_children.len(), split_indices.len(), split_conditions.len(), default_left.len()];
    if count == 0 || lengths.iter().any(|length| *length != count) {
        return malformed(format!("{count} left_children, but other columns have {lengths:?}"));
    }
    if !split_type.is_empty() && split_type.len() != count {
        return malformed(format!("{count} left_children, but {} split_type", split_type.len()));
    }
    if !sum_hessian.is_empty() && sum_hessian.len() != count {
        return malformed(format!("{count} left_children, but {} sum_hessian", sum_hessian.len()));
    }
    let mut sets = sets(tree, words)?;
    let mut nodes = Vec::with_capacity(count);
    let mut values = Vec::new();
    for node in 0..count {
        let (left, right) = (left_children[node], right_children[node]);
        if (left, right) == (-1, -1) {
            nodes.push(RawNode::Leaf(values.len() as u32));
            values.push(split_conditions[node] * weight);
            continue;
        }
        let child = |child: i64| match u32::try_from(child) {
            Ok(child) => Ok(child),
            _ => malformed(format!("node {node} has child {child}, which is no other node below it")),
        };
        let (no, yes) = (child(left)?, child(right)?);
        let Ok(feature) = u32::try_from(split_indices[node]) else {
            return malformed(format!("node {node} splits on feature {}", split_indices[node]));
        };
        let test = match split_type.get(node) {
            // Right is `x >= t`.
            None | Some(0) => Test::Above(split_conditions[node].next_down()),
            Some(1) => match sets.get_mut(node).and_then(Option::take) {
                Some(members) => Test::In(members),
                None => return malformed(format!("node {node} is categorical and has no categories")),
            },
            Some(kind) => return unsupported(format!("node {node} has split_type {kind}; supported: 0 and 1")),
        };
        nodes.push(RawNode::Split { feature, test, yes, no, missing: !default_left[node].0 });
    }
    let covers = sum_hessian.iter().map(|cover| f64::from(*cover)).collect();
    Ok(RawTree { nodes, covers, values, output, wide: 1 })
}

/// The categories that go right, by node.
fn sets(tree: &JsonTree, words: &mut usize) -> Result<Vec<Option<Members>>> {
    let JsonTree { categories, categories_nodes, categories_segments, categories_sizes, left_children, .. } = tree;
    let count = categories_nodes.len();
    if categories_segments.len() != count || categories_sizes.len() != count {
        return malformed(format!(
            "{count} categories_nodes, but {} categories_segments and {} categories_sizes",
            categories_segments.len(),
            categories_sizes.len()
        ));
    }
    let mut sets = vec![None; if count == 0 { 0 } else { left_children.len() }];
    for ((node, segment), size) in categories_nodes.iter().zip(categories_segments).zip(categories_sizes) {
        let place = usize::try_from(*node).ok().and_then(|node| sets.get_mut(node));
        let range = usize::try_from(*segment).ok().zip(usize::try_from(*size).ok());
        let members = range.and_then(|(start, size)| categories.get(start..start.checked_add(size)?));
        let (Some(place), Some(members)) = (place, members) else {
            return malformed(format!("the categories of node {node} are {size} from {segment} on"));
        };
        let mut bits = Vec::new();
        for &category in members {
            if !(0..MAX_CATEGORY).contains(&category) {
                return malformed(format!("node {node} has category {category}"));
            }
            let word = (category / 64) as usize;
            if word >= bits.len() {
                *words += word + 1 - bits.len();
                if *words > MAX_SET_WORDS {
                    return unsupported("sets of categories too large to hold");
                }
                bits.resize(word + 1, 0_u64);
            }
            bits[word] |= 1 << (category % 64);
        }
        *place = Some(Members::Codes { bits, cut_negative: false });
    }
    Ok(sets)
}
