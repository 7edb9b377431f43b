//! Tabular models: tree ensembles and linear models from the files of XGBoost, LightGBM and ONNX.
//!
//! All formats become one layout ([`forest`]), checked once. A few rows walk the trees from root to leaf; many rows are
//! turned into bytes and take all splits at once ([`bins`]); explanations are exact SHAP values ([`shap`]). Leaves are
//! summed in the order and precision of the library that trained the model: `f32` for XGBoost and ONNX, `f64` for
//! LightGBM.

use std::path::Path;

use crate::LoadError;

use self::{ensemble::Ensemble, linear::Linear, link::Link, problem::Problem, steps::Steps};

mod bins;
mod ensemble;
mod forest;
mod lightgbm;
mod linear;
mod link;
mod onnx;
mod problem;
mod quadrature;
mod sets;
mod shap;
mod steps;
mod ubjson;
mod xgboost;

/// Rows that are prepared together.
const PREPARED: usize = 1024;

/// Numbers that explain one row.
const MOST_SHARES: usize = 1 << 22;

/// The file format of a tabular model, found by content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// XGBoost's `save_model("….json")`.
    XgboostJson,
    /// XGBoost's `save_model("….ubj")`.
    XgboostUbjson,
    /// LightGBM's `save_model`.
    LightgbmText,
    /// ONNX with the operators of `ai.onnx.ml`.
    Onnx,
}

impl Format {
    /// Looks at the first bytes of a file.
    pub fn detect(bytes: &[u8]) -> Option<Self> {
        let text = bytes.trim_ascii_start();
        match text {
            [b'{', rest @ ..] if matches!(rest.trim_ascii_start().first(), Some(b'"' | b'}')) => {
                Some(Self::XgboostJson)
            }
            // A container with its size, or a key: the letter of a type of whole numbers.
            [b'{', b'$' | b'#' | b'i' | b'U' | b'I' | b'l' | b'L', ..] => Some(Self::XgboostUbjson),
            _ if text.starts_with(b"tree") && text.get(4).is_some_and(u8::is_ascii_whitespace) => {
                Some(Self::LightgbmText)
            }
            // ONNX begins with field 1 of its message, the version of the format, or with a later field.
            [0x08 | 0x12 | 0x1a | 0x22 | 0x28 | 0x32 | 0x3a | 0x42 | 0x72, ..] => Some(Self::Onnx),
            _ => None,
        }
    }

    /// The name people know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::XgboostJson => "XGBoost JSON",
            Self::XgboostUbjson => "XGBoost UBJSON",
            Self::LightgbmText => "LightGBM text",
            Self::Onnx => "ONNX",
        }
    }
}

/// What a model's answers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One number an output.
    Regression,
    /// The probability of the second class.
    BinaryClassification,
    /// A probability a class.
    MulticlassClassification,
    /// A score to sort by.
    Ranking,
}

/// Why a model cannot explain its margins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotExplainable {
    /// Path-dependent SHAP values are made of the training weights of the nodes.
    #[error(
        "the file holds no training weights of the trees' nodes, as ONNX files seldom do: publish the model in its library's own format"
    )]
    NoWeights,
    /// A row would be explained by more numbers than can be held for many rows.
    #[error("more than {MOST_SHARES} numbers would explain a row: outputs times features")]
    TooLarge,
    /// A column that the trees or weights see is made of several inputs.
    #[error("a step before the model mixes columns")]
    MixedColumns,
}

/// A tabular model: rows of `f32` in, one margin an output out. NaN is a missing value.
#[derive(Debug)]
pub struct TabularModel {
    format: Format,
    names: Vec<String>,
    width: usize,
    steps: Steps,
    core: Core,
    link: Link,
    kind: Kind,
    objective: String,
    classes: Vec<String>,
}

#[derive(Debug)]
enum Core {
    Single(Ensemble<f32>),
    Double(Ensemble<f64>),
    Linear(Linear),
}

/// What a format's reader found.
struct Parsed {
    names: Vec<String>,
    steps: Steps,
    core: Core,
    link: Link,
    kind: Kind,
    objective: String,
    classes: Vec<String>,
}

impl TabularModel {
    /// Reads a model; its format is found by content. The error names what is wrong or not supported.
    pub fn load(bytes: &[u8]) -> Result<Self, LoadError> {
        let Some(format) = Format::detect(bytes) else {
            let problem = "neither XGBoost JSON or UBJSON, nor LightGBM text, nor ONNX";
            return Err(LoadError::malformed(Path::new("model"), problem));
        };
        let parsed = match format {
            Format::XgboostJson => xgboost::json(bytes),
            Format::XgboostUbjson => xgboost::ubjson(bytes),
            Format::LightgbmText => lightgbm::parse(bytes),
            Format::Onnx => onnx::parse(bytes),
        };
        let parsed = parsed.and_then(|parsed| {
            let expected = match &parsed.core {
                Core::Single(ensemble) => ensemble.forest.width,
                Core::Double(ensemble) => ensemble.forest.width,
                Core::Linear(linear) => linear.width(),
            };
            if parsed.steps.output_width() == expected {
                return Ok(parsed);
            }
            problem::malformed(format!("{} columns go into a model of {expected}", parsed.steps.output_width()))
        });
        let file = Path::new(format.name());
        let Parsed { names, steps, core, link, kind, objective, classes } =
            parsed.map_err(|problem| match problem {
                Problem::Malformed(problem) => LoadError::malformed(file, problem),
                Problem::Unsupported(problem) => LoadError::unsupported(file, problem),
            })?;
        Ok(Self { format, width: steps.width(0), names, steps, core, link, kind, objective, classes })
    }

    /// The format it was read from.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Length of a row.
    pub fn num_features(&self) -> usize {
        self.width
    }

    /// The names of a row's values, in order; empty where the file has none.
    pub fn feature_names(&self) -> &[String] {
        &self.names
    }

    /// Margins, and answers, of one row.
    pub fn num_outputs(&self) -> usize {
        match &self.core {
            Core::Single(ensemble) => ensemble.forest.base.len(),
            Core::Double(ensemble) => ensemble.forest.base.len(),
            Core::Linear(linear) => linear.outputs(),
        }
    }

    /// What the answers are.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the model was trained for, in the words of its format.
    pub fn objective(&self) -> &str {
        &self.objective
    }

    /// The classes of a classifier, in the order of its outputs; two where there is one output, whose answer is the
    /// probability of the second. Empty for other models.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Computes the margins of each row and replaces `out` by them, [`Self::num_outputs`] a row.
    ///
    /// Panics unless `cells` holds a whole number of rows.
    pub fn margins(&self, cells: &[f32], out: &mut Vec<f32>) {
        let width = self.width;
        assert!(cells.len().is_multiple_of(width), "{} values are no rows of {width}", cells.len());
        let outputs = self.num_outputs();
        out.clear();
        out.resize(cells.len() / width * outputs, 0.0);
        if self.steps.is_empty() {
            return self.core.margins(cells, out);
        }
        for (cells, out) in cells.chunks(PREPARED * width).zip(out.chunks_mut(PREPARED * outputs)) {
            self.core.margins(&self.steps.run(cells), out);
        }
    }

    /// Turns margins into answers, in place: probabilities of a classifier, values of a regression.
    ///
    /// Panics unless `margins` holds a whole number of rows.
    pub fn transform(&self, margins: &mut [f32]) {
        let outputs = self.num_outputs();
        assert!(margins.len().is_multiple_of(outputs), "{} margins are no rows of {outputs}", margins.len());
        for row in margins.chunks_exact_mut(outputs) {
            self.link.apply(row);
        }
    }

    /// Tells whether [`Self::shap`] can be asked.
    pub fn explainable(&self) -> Result<(), NotExplainable> {
        let weights = match &self.core {
            Core::Single(ensemble) => ensemble.forest.has_covers(),
            Core::Double(ensemble) => ensemble.forest.has_covers(),
            Core::Linear(_) => true,
        };
        if !weights {
            return Err(NotExplainable::NoWeights);
        }
        if self.num_outputs().saturating_mul(self.width.max(self.steps.output_width()) + 1) > MOST_SHARES {
            return Err(NotExplainable::TooLarge);
        }
        if self.steps.sources().contains(&None) { Err(NotExplainable::MixedColumns) } else { Ok(()) }
    }

    /// Computes what each feature added to each margin of each row, and replaces `out` by it: for every row and output
    /// [`Self::num_features`] numbers, then the base value; together they are the margin.
    ///
    /// Trees give path-dependent SHAP values, with the mean over the training rows as base. A linear model gives
    /// `weight · x` as its columns enter it (standardised, where the file says so), with the intercept as base.
    ///
    /// Panics unless `cells` holds a whole number of rows.
    pub fn shap(&self, cells: &[f32], out: &mut Vec<f32>) -> Result<(), NotExplainable> {
        self.explainable()?;
        let width = self.width;
        assert!(cells.len().is_multiple_of(width), "{} values are no rows of {width}", cells.len());
        out.clear();
        if self.steps.is_empty() {
            self.core.shap(cells, out);
            return Ok(());
        }
        let inner = self.steps.output_width();
        for cells in cells.chunks(PREPARED * width) {
            let mut values = Vec::new();
            self.core.shap(&self.steps.run(cells), &mut values);
            for values in values.chunks_exact(inner + 1) {
                let start = out.len();
                out.resize(start + width + 1, 0.0);
                for (value, source) in values.iter().zip(self.steps.sources()) {
                    out[start + source.unwrap_or(0) as usize] += value;
                }
                out[start + width] = values[inner];
            }
        }
        Ok(())
    }
}

impl Core {
    fn margins(&self, rows: &[f32], out: &mut [f32]) {
        match self {
            Self::Single(ensemble) => ensemble.margins(rows, out),
            Self::Double(ensemble) => ensemble.margins(rows, out),
            Self::Linear(linear) => linear.margins(rows, out),
        }
    }

    fn shap(&self, rows: &[f32], out: &mut Vec<f32>) {
        match self {
            Self::Single(ensemble) => ensemble.shap(rows, out),
            Self::Double(ensemble) => ensemble.shap(rows, out),
            Self::Linear(linear) => linear.shares(rows, out),
        }
    }
}

/// The names of classes that are only counted.
fn counted_classes(count: usize) -> Vec<String> {
    (0..count).map(|class| class.to_string()).collect()
}
