//! XGBoost's JSON: checked, and laid out for walking.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;

use crate::LoadError;

use super::{MIRROR, Node, Tree, TreeEnsemble, shap};

/// Trees deeper than this are refused: explaining a row takes time and memory with the square of the depth.
const MAX_DEPTH: u32 = 256;
const MAX_FEATURES: usize = 1 << 20;
const MAX_NODES: usize = 1 << 28;

pub(super) enum Problem {
    Malformed(String),
    Unsupported(String),
}

impl Problem {
    pub(super) fn in_file(self, file: &Path) -> LoadError {
        match self {
            Self::Malformed(problem) => LoadError::malformed(file, problem),
            Self::Unsupported(problem) => LoadError::unsupported(file, problem),
        }
    }
}

fn malformed<T>(problem: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Malformed(problem.into()))
}

fn unsupported<T>(problem: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Unsupported(problem.into()))
}

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
    num_class: String,
    num_feature: String,
    #[serde(default = "one")]
    num_target: String,
}

fn one() -> String {
    "1".into()
}

#[derive(Deserialize)]
struct Booster {
    name: String,
    #[serde(default)]
    model: Forest,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Forest {
    gbtree_model_param: ForestParameters,
    trees: Vec<JsonTree>,
}

#[derive(Deserialize)]
struct ForestParameters {
    #[serde(default = "one")]
    num_parallel_tree: String,
}

impl Default for ForestParameters {
    fn default() -> Self {
        Self { num_parallel_tree: one() }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct JsonTree {
    left_children: Vec<i32>,
    right_children: Vec<i32>,
    split_indices: Vec<i64>,
    split_conditions: Vec<f32>,
    split_type: Vec<u8>,
    default_left: Vec<Flag>,
    sum_hessian: Vec<f32>,
}

/// A truth value: a number since XGBoost 1.6, a boolean before.
#[derive(Deserialize, Clone, Copy)]
#[serde(untagged)]
enum Flag {
    Boolean(bool),
    Number(u8),
}

impl Flag {
    fn is_set(self) -> bool {
        matches!(self, Self::Boolean(true) | Self::Number(1..))
    }
}

pub(super) fn parse(bytes: &[u8]) -> Result<TreeEnsemble, Problem> {
    let Model { learner } = serde_json::from_slice(bytes).map_err(|error| Problem::Malformed(error.to_string()))?;
    let Learner {
        attributes: Attributes { best_iteration },
        feature_names,
        gradient_booster: Booster { name: booster, model },
        learner_model_param,
        objective,
    } = learner;
    let Parameters { base_score, num_class, num_feature, num_target } = learner_model_param;
    if booster != "gbtree" {
        return unsupported(format!("booster `{booster}`; supported: `gbtree`"));
    }
    if objective.name != "binary:logistic" {
        return unsupported(format!("objective `{}`; supported: `binary:logistic`", objective.name));
    }
    if !matches!(num_class.as_str(), "0" | "1") || num_target != "1" {
        return unsupported(format!("{num_class} classes and {num_target} targets; supported: one output"));
    }
    if let Some(best) = best_iteration {
        uses_every_round(&best, &model)?;
    }
    let (width, names) = features(&num_feature, feature_names)?;
    let base = base(&base_score)?;
    let mut ensemble = TreeEnsemble {
        width,
        names,
        base,
        trees: Vec::with_capacity(model.trees.len()),
        nodes: Vec::new(),
        covers: Vec::new(),
        expected: 0.0,
    };
    let mut expected = f64::from(base);
    for (number, tree) in model.trees.iter().enumerate() {
        let mean = lay_out(tree, &mut ensemble).map_err(|problem| match problem {
            Problem::Malformed(problem) => Problem::Malformed(format!("tree {number}: {problem}")),
            Problem::Unsupported(problem) => Problem::Unsupported(format!("tree {number}: {problem}")),
        })?;
        expected += mean;
    }
    ensemble.expected = expected as f32;
    Ok(ensemble)
}

/// Refuses a forest that has more rounds than its own predictions use: scikit-learn's, where training stopped early.
fn uses_every_round(best: &str, forest: &Forest) -> Result<(), Problem> {
    let Ok(best) = best.parse::<u32>() else {
        return malformed(format!("best_iteration is `{best}`, expected the number of a round"));
    };
    let trees = match forest.gbtree_model_param.num_parallel_tree.parse::<usize>() {
        Ok(trees @ 1..) => trees,
        _ => return malformed(format!("num_parallel_tree is `{}`", forest.gbtree_model_param.num_parallel_tree)),
    };
    let (rounds, used) = (forest.trees.len() / trees, best as usize + 1);
    if used < rounds {
        return unsupported(format!("the model has {rounds} rounds but stopped at {best}; publish booster[:{used}]"));
    }
    Ok(())
}

/// The number of features, and their names where the file has them: it has none when training was given bare numbers.
fn features(count: &str, names: Vec<String>) -> Result<(usize, Vec<String>), Problem> {
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

/// The base margin of a base score, which is a probability, alone (`5E-1`) or since XGBoost 3.1 in a list (`[5E-1]`).
fn base(score: &str) -> Result<f32, Problem> {
    let number = score.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(score);
    match number.parse::<f32>() {
        Ok(score) if score > 0.0 && score < 1.0 => Ok(-(1.0 / score - 1.0).ln()),
        _ => malformed(format!("base_score is `{score}`, expected a number between 0 and 1")),
    }
}

/// Appends a tree to the ensemble, breadth first with siblings side by side, and returns its mean.
fn lay_out(tree: &JsonTree, ensemble: &mut TreeEnsemble) -> Result<f64, Problem> {
    let JsonTree {
        left_children,
        right_children,
        split_indices,
        split_conditions,
        split_type,
        default_left,
        sum_hessian,
    } = tree;
    let count = left_children.len();
    let lengths =
        [right_children.len(), split_indices.len(), split_conditions.len(), default_left.len(), sum_hessian.len()];
    if count == 0 || lengths.iter().any(|length| *length != count) {
        return malformed(format!("{count} left_children, but other columns have {lengths:?}"));
    }
    let start = ensemble.nodes.len();
    if start + count > MAX_NODES {
        return unsupported(format!("more than {MAX_NODES} nodes"));
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
        let (value, cover) = (split_conditions[node], sum_hessian[node]);
        if cover < 0.0 {
            return malformed(format!("node {node} has weight {cover}"));
        }
        let first = (start + order.len()) as u32;
        let laid_out = match (left_children[node], right_children[node]) {
            (-1, -1) => Node { threshold: f32::INFINITY, feature: 0, first: (start + at) as u32, value },
            (left, right) => {
                if split_type.get(node).is_some_and(|kind| *kind != 0) {
                    return unsupported("a categorical split; supported: numeric splits");
                }
                let feature = match u32::try_from(split_indices[node]) {
                    Ok(feature) if (feature as usize) < ensemble.width => feature,
                    _ => return malformed(format!("node {node} splits on feature {}", split_indices[node])),
                };
                let missing_left = default_left[node].is_set();
                for child in if missing_left { [left, right] } else { [right, left] } {
                    match usize::try_from(child) {
                        Ok(child) if child < count && !seen[child] => {
                            seen[child] = true;
                            order.push(child);
                        }
                        _ => {
                            return malformed(format!(
                                "node {node} has child {child}, which is no other node below it"
                            ));
                        }
                    }
                }
                // Right is `x >= t`, that is `x > next below t`; mirrored, left is `x < t`, that is `-x > -t`.
                let (threshold, mirror) = if missing_left { (value.next_down(), 0) } else { (-value, MIRROR) };
                Node { threshold, feature: feature | mirror, first, value: 0.0 }
            }
        };
        ensemble.nodes.push(laid_out);
        ensemble.covers.push(cover);
        at += 1;
    }
    ensemble.trees.push(Tree { root: start as u32, depth });
    Ok(shap::mean(&ensemble.nodes, &ensemble.covers, start))
}
