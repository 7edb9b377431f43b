//! ONNX files of the kind skl2onnx and onnxmltools write: steps over columns, then trees or weights, then labels.
//!
//! Each operator is known by name or refused by name. The label is left out: it follows from the scores.

use std::collections::HashMap;

use super::forest::MAX_FEATURES;
use super::linear::Linear;
use super::link::Link;
use super::problem::{Result, malformed, unsupported};
use super::steps::{Norm, Operation, Steps};
use super::{Core, Kind, Parsed};

use self::messages::{
    Attributes, DOUBLE, FLOAT, GraphProto, INT32, INT64, ModelProto, NodeProto, STRING, TensorProto, ValueInfoProto,
    decode, decode_all,
};

mod messages;
mod trees;

const SUPPORTED: &str = "TreeEnsembleClassifier, TreeEnsembleRegressor, LinearClassifier, LinearRegressor, Scaler, \
     Imputer, Normalizer, Binarizer, OneHotEncoder, FeatureVectorizer, ArrayFeatureExtractor, Gather, Concat, Add, Sub, Mul, \
     Div, Cast, Identity, Constant, Flatten, Reshape, ZipMap";

/// What a name stands for.
#[derive(Clone)]
enum Symbol {
    /// A matrix of the steps.
    Matrix(usize),
    Constant(Vec<f64>),
    /// The scores of the model, or what they are packed into.
    Scores,
    Label,
}

/// The model itself.
struct Scores {
    core: Core,
    link: Link,
    kind: Kind,
    objective: String,
    classes: Vec<String>,
}

struct Reader {
    steps: Steps,
    symbols: HashMap<String, Symbol>,
    scores: Option<Scores>,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Parsed> {
    let model: ModelProto = decode(bytes, "the model")?;
    if model.graph.is_empty() {
        return malformed("the model has no graph");
    }
    let graph: GraphProto = decode(&model.graph, "the graph")?;
    let tensors: Vec<TensorProto> = decode_all(&graph.initializer, "an initializer")?;
    let inputs: Vec<ValueInfoProto> = decode_all(&graph.input, "an input")?;
    let outputs: Vec<ValueInfoProto> = decode_all(&graph.output, "an output")?;
    let mut symbols = HashMap::new();
    for tensor in &tensors {
        // Texts are labels, which are left out.
        let symbol = if tensor.data_type == STRING { Symbol::Label } else { Symbol::Constant(tensor.numbers()?) };
        symbols.insert(tensor.name.clone(), symbol);
    }
    let mut widths = Vec::new();
    for input in inputs.iter().filter(|input| !symbols.contains_key(&input.name)) {
        widths.push((input.name.clone(), width(input)?));
    }
    let mut reader = Reader { steps: Steps::new(widths.iter().map(|(_, width)| width).sum())?, symbols, scores: None };
    let names = reader.take_inputs(widths)?;
    for node in decode_all::<NodeProto>(&graph.node, "a node")? {
        let at =
            |problem: super::problem::Problem| problem.at(format_args!("operator {} `{}`", node.op_type, node.name));
        reader.read(&node).map_err(at)?;
    }
    let Reader { steps, symbols, scores } = reader;
    let Some(Scores { core, link, kind, objective, classes }) = scores else {
        return unsupported(format!("no tree ensemble or linear model among its operators; supported: {SUPPORTED}"));
    };
    if !outputs.iter().any(|output| matches!(symbols.get(&output.name), Some(Symbol::Scores))) {
        return unsupported("the scores of the model are none of the outputs");
    }
    Ok(Parsed { names, steps, core, link, kind, objective, classes })
}

/// Columns of an input.
fn width(input: &ValueInfoProto) -> Result<usize> {
    let name = &input.name;
    let Some(tensor) = input.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref()) else {
        return unsupported(format!("input `{name}` is no tensor"));
    };
    if ![FLOAT, DOUBLE, INT32, INT64].contains(&tensor.elem_type) {
        return unsupported(format!("input `{name}` of type {}; supported: numbers", tensor.elem_type));
    }
    let width = tensor.shape.as_ref().and_then(|shape| match shape.dim.as_slice() {
        [_, columns] => usize::try_from(columns.dim_value).ok(),
        _ => None,
    });
    match width {
        Some(width @ 1..=MAX_FEATURES) => Ok(width),
        _ => unsupported(format!("input `{name}` has no known number of columns; supported: [rows, columns]")),
    }
}

/// Labels of a classifier.
fn classes(attributes: &Attributes, ints: &str, texts: &str) -> Result<Vec<String>> {
    let mut classes: Vec<String> = attributes.ints(ints).iter().map(i64::to_string).collect();
    if classes.is_empty() {
        classes = attributes.texts(texts)?.into_iter().map(str::to_owned).collect();
    }
    if classes.len() < 2 { malformed(format!("{} class labels", classes.len())) } else { Ok(classes) }
}

fn link(post_transform: &str) -> Result<Link> {
    Ok(match post_transform {
        "NONE" => Link::Identity,
        "LOGISTIC" => Link::Sigmoid { slope: 1.0 },
        "SOFTMAX" => Link::Softmax,
        "SOFTMAX_ZERO" => Link::SoftmaxZero,
        "PROBIT" => Link::Probit,
        other => return unsupported(format!("post_transform {other}")),
    })
}

fn floats(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().map(|number| *number as f32).collect()
}

impl Reader {
    /// Makes the inputs matrices; returns the names of the columns, where each input is one.
    fn take_inputs(&mut self, inputs: Vec<(String, usize)>) -> Result<Vec<String>> {
        if let [(name, _)] = inputs.as_slice() {
            self.symbols.insert(name.clone(), Symbol::Matrix(0));
            return Ok(Vec::new());
        }
        let single = inputs.iter().all(|(_, width)| *width == 1);
        let mut start = 0;
        for (name, width) in &inputs {
            let matrix = self.steps.push(Operation::Select((start..start + width).collect()), vec![0])?;
            self.symbols.insert(name.clone(), Symbol::Matrix(matrix));
            start += width;
        }
        Ok(if single { inputs.into_iter().map(|(name, _)| name).collect() } else { Vec::new() })
    }

    fn symbol(&self, node: &NodeProto, input: usize) -> Result<Symbol> {
        match node.input.get(input).map(|name| (name, self.symbols.get(name))) {
            Some((_, Some(symbol))) => Ok(symbol.clone()),
            Some((name, None)) => malformed(format!("input `{name}` comes from nowhere")),
            None => malformed(format!("input {input} is missing")),
        }
    }

    fn matrix(&self, node: &NodeProto, input: usize) -> Result<usize> {
        match self.symbol(node, input)? {
            Symbol::Matrix(matrix) => Ok(matrix),
            _ => unsupported(format!("input {input} is not made of the columns of the rows")),
        }
    }

    fn constant(&self, node: &NodeProto, input: usize) -> Result<Vec<f64>> {
        match self.symbol(node, input)? {
            Symbol::Constant(numbers) => Ok(numbers),
            _ => unsupported(format!("input {input} is no constant")),
        }
    }

    fn define(&mut self, node: &NodeProto, output: usize, symbol: Symbol) {
        if let Some(name) = node.output.get(output).filter(|name| !name.is_empty()) {
            self.symbols.insert(name.clone(), symbol);
        }
    }

    fn read(&mut self, node: &NodeProto) -> Result<()> {
        let attributes = Attributes::read(node)?;
        if node.op_type == "Constant" {
            let Some(tensor) = attributes.tensor("value") else { return unsupported("a constant that is no tensor") };
            let symbol = if tensor.data_type == STRING { Symbol::Label } else { Symbol::Constant(tensor.numbers()?) };
            self.define(node, 0, symbol);
            return Ok(());
        }
        // What is done to labels changes no score.
        let symbols = node.input.iter().map(|name| self.symbols.get(name));
        if symbols.clone().any(|symbol| matches!(symbol, Some(Symbol::Label))) {
            (0..node.output.len()).for_each(|output| self.define(node, output, Symbol::Label));
            return Ok(());
        }
        if matches!(self.symbol(node, 0)?, Symbol::Scores) {
            return self.after(node, &attributes);
        }
        match node.op_type.as_str() {
            "TreeEnsembleClassifier" | "TreeEnsembleRegressor" | "LinearClassifier" | "LinearRegressor" => {
                self.model(node, &attributes)
            }
            _ => self.step(node, &attributes),
        }
    }

    /// The model: what its steps hand on goes in, scores come out.
    fn model(&mut self, node: &NodeProto, attributes: &Attributes) -> Result<()> {
        if self.scores.is_some() {
            return unsupported("a second model in one file; supported: one");
        }
        let matrix = self.matrix(node, 0)?;
        self.steps.finish(matrix);
        let width = self.steps.width(matrix);
        let (scores, place) = match node.op_type.as_str() {
            "TreeEnsembleClassifier" => (trees::classifier(attributes, width)?, 1),
            "TreeEnsembleRegressor" => (trees::regressor(attributes, width)?, 0),
            "LinearClassifier" => (linear_classifier(attributes, width)?, 1),
            _ => (linear_regressor(attributes, width)?, 0),
        };
        self.scores = Some(scores);
        if place == 1 {
            self.define(node, 0, Symbol::Label);
        }
        self.define(node, place, Symbol::Scores);
        Ok(())
    }

    /// What may follow the scores.
    fn after(&mut self, node: &NodeProto, attributes: &Attributes) -> Result<()> {
        let ones = |factors: Vec<f64>| factors.iter().all(|factor| *factor == 1.0);
        let named = matches!(node.op_type.as_str(), "Mul" | "Div") && self.constant(node, 1).is_ok_and(ones);
        match (node.op_type.as_str(), &mut self.scores) {
            ("Identity" | "Cast" | "ZipMap" | "Flatten", _) => {}
            // onnxmltools multiplies by 1 to give the scores their name.
            _ if named => {}
            ("Normalizer", Some(scores)) if attributes.text("norm", "MAX")? == "L1" => {
                scores.link = match scores.link {
                    Link::Sigmoid { slope: 1.0 } if scores.core_outputs() > 1 => Link::SigmoidShares,
                    Link::Softmax => Link::Softmax,
                    other => return unsupported(format!("norms of scores after {other:?}")),
                };
            }
            ("ArgMax", _) => {
                self.define(node, 0, Symbol::Label);
                return Ok(());
            }
            _ => return unsupported("an operator after the scores; supported: Identity, Cast, ZipMap, Normalizer"),
        }
        self.define(node, 0, Symbol::Scores);
        Ok(())
    }

    /// What happens to columns.
    fn step(&mut self, node: &NodeProto, attributes: &Attributes) -> Result<()> {
        let all = |reader: &Self| (0..node.input.len()).map(|input| reader.matrix(node, input)).collect::<Result<_>>();
        let (operation, inputs): (Operation, Vec<usize>) = match node.op_type.as_str() {
            "Scaler" => {
                let vector = |name: &str, default: f32| match attributes.floats(name) {
                    [] => vec![default],
                    numbers => numbers.to_vec(),
                };
                let (offset, scale) = (vector("offset", 0.0), vector("scale", 1.0));
                (Operation::Scale { offset, scale }, vec![self.matrix(node, 0)?])
            }
            "Imputer" => {
                let ints = attributes.ints("imputed_value_int64s");
                let by = match attributes.floats("imputed_value_floats") {
                    [] => ints.iter().map(|number| *number as f32).collect(),
                    numbers => numbers.to_vec(),
                };
                let replaced = if ints.is_empty() {
                    attributes.float("replaced_value_float", 0.0)
                } else {
                    attributes.int("replaced_value_int64", 0) as f32
                };
                (Operation::Impute { replaced, by }, vec![self.matrix(node, 0)?])
            }
            "Normalizer" => {
                let norm = match attributes.text("norm", "MAX")? {
                    "MAX" => Norm::Max,
                    "L1" => Norm::L1,
                    "L2" => Norm::L2,
                    other => return unsupported(format!("norm {other}")),
                };
                (Operation::Normalize(norm), vec![self.matrix(node, 0)?])
            }
            "Binarizer" => (Operation::Binarize(attributes.float("threshold", 0.0)), vec![self.matrix(node, 0)?]),
            "OneHotEncoder" => {
                if attributes.has("cats_strings") {
                    return unsupported("categories that are texts; supported: numbers");
                }
                if attributes.int("zeros", 1) == 0 {
                    return unsupported("unknown categories are an error; supported: zeros=1");
                }
                let values = attributes.ints("cats_int64s").iter().map(|value| *value as f32).collect();
                (Operation::OneHot(values), vec![self.matrix(node, 0)?])
            }
            "Concat" | "FeatureVectorizer" => {
                if node.op_type == "Concat" && !matches!(attributes.int("axis", 1), 1 | -1) {
                    return unsupported(format!("axis {}; supported: columns", attributes.int("axis", 1)));
                }
                (Operation::Concatenate, all(self)?)
            }
            "ArrayFeatureExtractor" | "Gather" => {
                if node.op_type == "Gather" && !matches!(attributes.int("axis", 0), 1 | -1) {
                    return unsupported(format!("axis {}; supported: columns", attributes.int("axis", 0)));
                }
                let width = self.steps.width(self.matrix(node, 0)?);
                let column = |column: &f64| if *column >= 0.0 { *column as usize } else { usize::MAX };
                let columns: Vec<usize> = self.constant(node, 1)?.iter().map(column).collect();
                if columns.len() > width.max(MAX_FEATURES) {
                    return unsupported(format!("{} columns", columns.len()));
                }
                (Operation::Select(columns), vec![self.matrix(node, 0)?])
            }
            "Add" | "Sub" | "Mul" | "Div" => {
                // What commutes may have its constant first.
                let first = matches!(self.symbol(node, 0)?, Symbol::Constant(_))
                    && matches!(node.op_type.as_str(), "Add" | "Mul");
                let by = floats(&self.constant(node, usize::from(!first))?);
                let matrix = self.matrix(node, usize::from(first))?;
                let operation = match node.op_type.as_str() {
                    "Add" => Operation::Add(by),
                    "Sub" => Operation::Subtract(by),
                    "Mul" => Operation::Multiply(by),
                    _ => Operation::Divide(by),
                };
                (operation, vec![matrix])
            }
            "Cast" => match attributes.int("to", 0) as i32 {
                FLOAT | DOUBLE => return self.same(node),
                INT32 | INT64 => (Operation::Truncate, vec![self.matrix(node, 0)?]),
                other => return unsupported(format!("type {other}; supported: numbers")),
            },
            "Identity" | "Flatten" => return self.same(node),
            "Reshape" => {
                let width = self.steps.width(self.matrix(node, 0)?);
                let shape = self.constant(node, 1)?;
                return match shape.as_slice() {
                    [rows, columns]
                        if *rows <= 0.0 && (*columns == width as f64 || *columns == -1.0 && *rows == 0.0) =>
                    {
                        self.same(node)
                    }
                    _ => unsupported(format!("shape {shape:?} of {width} columns; supported: the same columns")),
                };
            }
            _ => return unsupported(format!("supported: {SUPPORTED}")),
        };
        let matrix = self.steps.push(operation, inputs)?;
        self.define(node, 0, Symbol::Matrix(matrix));
        Ok(())
    }

    fn same(&mut self, node: &NodeProto) -> Result<()> {
        let symbol = self.symbol(node, 0)?;
        self.define(node, 0, symbol);
        Ok(())
    }
}

impl Scores {
    fn core_outputs(&self) -> usize {
        match &self.core {
            Core::Single(ensemble) => ensemble.forest.base.len(),
            Core::Double(ensemble) => ensemble.forest.base.len(),
            Core::Linear(linear) => linear.outputs(),
        }
    }
}

fn linear_classifier(attributes: &Attributes, width: usize) -> Result<Scores> {
    let classes = classes(attributes, "classlabels_ints", "classlabels_strings")?;
    let mut weights = attributes.floats("coefficients").to_vec();
    let mut intercepts = attributes.floats("intercepts").to_vec();
    if intercepts.is_empty() {
        intercepts = vec![0.0; weights.len() / width];
    }
    let post = attributes.text("post_transform", "NONE")?;
    let opposite = |numbers: &[f32]| {
        let (first, second) = numbers.split_at(numbers.len() / 2);
        first.iter().zip(second).all(|(first, second)| *first == -*second)
    };
    // scikit-learn's two rows for two classes say the same twice: the second says it for the second class.
    if intercepts.len() == 2
        && weights.len() == 2 * width
        && post == "LOGISTIC"
        && opposite(&weights)
        && opposite(&intercepts)
    {
        weights.drain(..width);
        intercepts.remove(0);
    }
    match (intercepts.len(), post) {
        (1, "LOGISTIC") if classes.len() == 2 => {}
        (1, _) => return unsupported(format!("one score of {} classes, post_transform {post}", classes.len())),
        (count, _) if count == classes.len() => {}
        (count, _) => return malformed(format!("{count} intercepts for {} classes", classes.len())),
    }
    let kind = if classes.len() == 2 { Kind::BinaryClassification } else { Kind::MulticlassClassification };
    let core = Core::Linear(Linear::new(width, weights, intercepts)?);
    Ok(Scores { core, link: link(post)?, kind, objective: format!("LinearClassifier, {post}"), classes })
}

fn linear_regressor(attributes: &Attributes, width: usize) -> Result<Scores> {
    let weights = attributes.floats("coefficients").to_vec();
    let mut intercepts = attributes.floats("intercepts").to_vec();
    if intercepts.is_empty() {
        intercepts = vec![0.0; weights.len() / width];
    }
    let post = attributes.text("post_transform", "NONE")?;
    let core = Core::Linear(Linear::new(width, weights, intercepts)?);
    let objective = format!("LinearRegressor, {post}");
    Ok(Scores { core, link: link(post)?, kind: Kind::Regression, objective, classes: Vec::new() })
}
