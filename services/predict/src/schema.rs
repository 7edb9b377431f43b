//! What a tabular model takes: checks named values against the signature and lays them out as columns.

use std::collections::HashMap;

use verdict_chassis::status::Field;

use crate::{
    decision::Value,
    release::{Feature, FeatureKind},
};

/// Most problems listed in one answer, as many as a status has room for; more are counted.
const MOST_PROBLEMS: usize = 10;
/// Largest whole number a double holds exactly.
const LARGEST_LONG: f64 = 9_007_199_254_740_992.0;

/// The input columns of a model, in order.
#[derive(Debug)]
pub struct Schema {
    inputs: Vec<Feature>,
    columns: HashMap<String, usize>,
}

impl Schema {
    /// Takes the signature of a model with `width` columns named `names` (empty where the model does not say).
    ///
    /// Without a signature every column is an optional number under the model's own name, or `f0`, `f1`, …. The error
    /// says where signature and model disagree.
    pub fn new(signature: Vec<Feature>, width: usize, names: &[String]) -> Result<Self, String> {
        let inputs = if signature.is_empty() { unsigned(width, names) } else { signature };
        if inputs.len() != width {
            return Err(format!("the signature has {} inputs, the model {width} columns", inputs.len()));
        }
        // LightGBM writes `_` where a name has a space.
        let same = |input: &str, name: &str| input == name || input.replace(char::is_whitespace, "_") == name;
        if let Some((input, name)) = inputs.iter().zip(names).find(|(input, name)| !same(&input.name, name)) {
            return Err(format!("the signature has `{}` where the model has `{name}`", input.name));
        }
        let mut columns = HashMap::with_capacity(width);
        for (column, input) in inputs.iter().enumerate() {
            if columns.insert(input.name.clone(), column).is_some() {
                return Err(format!("the signature has input `{}` twice", input.name));
            }
            if input.kind == FeatureKind::Text && input.categories.is_empty() {
                return Err(format!("input `{}` is text without categories, so it has no code", input.name));
            }
        }
        Ok(Self { inputs, columns })
    }

    /// Returns the columns.
    pub fn inputs(&self) -> &[Feature] {
        &self.inputs
    }

    /// Appends one row of named values to `row`-major `cells`, `None` being a missing value. `path` says where the row
    /// stands in the request (`rows[3].features`); what is wrong goes to `problems`.
    pub fn lay_out<'a>(
        &self,
        features: impl IntoIterator<Item = (&'a str, Option<&'a Value>)>,
        path: &dyn Fn() -> String,
        cells: &mut Vec<f32>,
        problems: &mut Problems,
    ) {
        let start = cells.len();
        cells.resize(start + self.inputs.len(), f32::NAN);
        let row = &mut cells[start..];
        for (name, value) in features {
            let Some(&column) = self.columns.get(name) else {
                problems.add(|| (format!("{}.{name}", path()), format!("is no input of this model; {}", self.names())));
                continue;
            };
            let Some(value) = value else { continue };
            match code(&self.inputs[column], value) {
                Ok(code) => row[column] = code,
                Err(problem) => {
                    // Wrong, not missing: keeps it from being reported a second time below.
                    row[column] = 0.0;
                    problems.add(|| (format!("{}.{name}", path()), problem));
                }
            }
        }
        for (cell, input) in row.iter().zip(&self.inputs) {
            if cell.is_nan() && !input.optional {
                problems.add(|| (format!("{}.{}", path(), input.name), format!("is missing: {}", expected(input))));
            }
        }
    }

    /// Says what is wrong with a row-major matrix.
    pub fn check_matrix(&self, columns: usize, cells: &[f32]) -> Problems {
        let mut problems = Problems::default();
        let width = self.inputs.len();
        if columns != width {
            let problem = format!("is {columns}; the model takes {width}: {}", self.names());
            problems.add(|| ("matrix.columns".to_owned(), problem));
        } else if cells.is_empty() || !cells.len().is_multiple_of(width) {
            let problem = format!("has {} numbers: at least one row of {width}, and whole rows", cells.len());
            problems.add(|| ("matrix.values".to_owned(), problem));
        } else {
            for (index, cell) in cells.iter().enumerate().filter(|(_, cell)| cell.is_infinite()) {
                let (row, column) = (index / width, &self.inputs[index % width].name);
                let problem = format!("is {cell} (row {row}, column `{column}`): a finite number, or NaN");
                problems.add(|| (format!("matrix.values[{index}]"), problem));
            }
        }
        problems
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.inputs.iter().map(|input| input.name.as_str()).collect();
        format!("inputs are {}", names.join(", "))
    }
}

/// What is wrong with a request, up to a sensible length.
#[derive(Debug, Default)]
pub struct Problems {
    listed: Vec<Field>,
    more: usize,
}

impl Problems {
    /// Adds a field and its problem; only counts it when enough are listed.
    pub fn add(&mut self, problem: impl FnOnce() -> (String, String)) {
        if self.listed.len() < MOST_PROBLEMS {
            let (field, problem) = problem();
            self.listed.push(Field { field, problem });
        } else {
            self.more += 1;
        }
    }

    /// Tells whether there are more than are listed: looking for others would tell the caller nothing.
    pub fn is_full(&self) -> bool {
        self.more > 0
    }

    /// Returns the problems, if there are any.
    pub fn into_result(mut self) -> Result<(), Vec<Field>> {
        match (self.listed.last_mut(), self.more) {
            (None, _) => Ok(()),
            (Some(_), 0) => Err(self.listed),
            (Some(last), more) => {
                last.problem = format!("{} (and at least {more} more)", last.problem);
                Err(self.listed)
            }
        }
    }
}

fn unsigned(width: usize, names: &[String]) -> Vec<Feature> {
    let name = |column: usize| names.get(column).cloned().unwrap_or_else(|| format!("f{column}"));
    let column = |column| Feature {
        name: name(column),
        kind: FeatureKind::Double,
        optional: true,
        categories: Vec::new(),
        description: String::new(),
    };
    (0..width).map(column).collect()
}

/// Returns the number the model was trained on for a value.
#[expect(clippy::cast_possible_truncation, reason = "the model computes in f32; range is checked")]
#[expect(clippy::cast_precision_loss, reason = "a model has few categories")]
fn code(input: &Feature, value: &Value) -> Result<f32, String> {
    let wrong = |got: String| Err(format!("is {got}: {}", expected(input)));
    match (input.kind, value) {
        (FeatureKind::Double, Value::Number(number)) if (*number as f32).is_finite() => Ok(*number as f32),
        (FeatureKind::Long, Value::Number(number)) if number.fract() == 0.0 && number.abs() <= LARGEST_LONG => {
            Ok(*number as f32)
        }
        (FeatureKind::Boolean, Value::Boolean(truth)) => Ok(f32::from(u8::from(*truth))),
        (FeatureKind::Text, Value::Text(text)) => match input.categories.iter().position(|known| known == text) {
            Some(position) => Ok(position as f32),
            None => wrong(format!("\"{}\"", text.chars().take(80).collect::<String>())),
        },
        (_, Value::Number(number)) => wrong(format!("the number {number}")),
        (_, Value::Boolean(truth)) => wrong(format!("the boolean {truth}")),
        (_, Value::Text(_)) => wrong("a text".to_owned()),
    }
}

/// Says what an input takes.
fn expected(input: &Feature) -> String {
    match input.kind {
        FeatureKind::Double => "a finite number is expected".to_owned(),
        FeatureKind::Long => "a whole number is expected".to_owned(),
        FeatureKind::Boolean => "a boolean is expected".to_owned(),
        FeatureKind::Text => {
            let known: Vec<_> = input.categories.iter().take(20).map(|known| format!("\"{known}\"")).collect();
            let more = if input.categories.len() > known.len() { ", …" } else { "" };
            format!("one of {}{more} is expected", known.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(name: &str, kind: FeatureKind, optional: bool) -> Feature {
        let categories = if kind == FeatureKind::Text { vec!["car".to_owned(), "boat".to_owned()] } else { Vec::new() };
        Feature { name: name.to_owned(), kind, optional, categories, description: String::new() }
    }

    fn schema() -> Schema {
        let signature = vec![
            feature("amount", FeatureKind::Double, false),
            feature("age", FeatureKind::Long, false),
            feature("owner", FeatureKind::Boolean, true),
            feature("purpose", FeatureKind::Text, false),
        ];
        Schema::new(signature, 4, &[]).unwrap()
    }

    fn lay_out(features: &[(&str, Value)]) -> Result<Vec<f32>, Vec<String>> {
        let (mut cells, mut problems) = (Vec::new(), Problems::default());
        let named = features.iter().map(|(name, value)| (*name, Some(value)));
        schema().lay_out(named, &|| "features".to_owned(), &mut cells, &mut problems);
        let told = |fields: Vec<Field>| fields.into_iter().map(|field| format!("{} {}", field.field, field.problem));
        problems.into_result().map(|()| cells).map_err(|fields| told(fields).collect())
    }

    #[test]
    fn values_become_the_numbers_the_model_was_trained_on() {
        let cells = lay_out(&[
            ("purpose", Value::Text("boat".to_owned())),
            ("age", Value::Number(35.0)),
            ("amount", Value::Number(0.1)),
            ("owner", Value::Boolean(true)),
        ]);
        assert_eq!(cells.unwrap(), [0.1, 35.0, 1.0, 1.0]);
    }

    #[test]
    fn an_optional_feature_left_out_is_a_missing_value() {
        let text = Value::Text("car".to_owned());
        let cells = lay_out(&[("purpose", text), ("age", Value::Number(1.0)), ("amount", Value::Number(2.0))]);
        assert!(cells.unwrap()[2].is_nan());
    }

    #[test]
    fn each_wrong_feature_is_named_with_what_is_expected() {
        let problems = lay_out(&[
            ("purpose", Value::Text("plane".to_owned())),
            ("age", Value::Number(35.5)),
            ("owner", Value::Number(1.0)),
            ("income", Value::Number(1.0)),
        ])
        .unwrap_err();
        assert_eq!(
            problems,
            [
                "features.purpose is \"plane\": one of \"car\", \"boat\" is expected",
                "features.age is the number 35.5: a whole number is expected",
                "features.owner is the number 1: a boolean is expected",
                "features.income is no input of this model; inputs are amount, age, owner, purpose",
                "features.amount is missing: a finite number is expected",
            ]
        );
        assert!(lay_out(&[("amount", Value::Number(1e300))]).unwrap_err()[0].contains("a finite number is expected"));
    }

    #[test]
    fn many_problems_are_counted_not_listed() {
        let (mut cells, mut problems) = (Vec::new(), Problems::default());
        for row in 0..1000 {
            schema().lay_out([], &|| format!("rows[{row}].features"), &mut cells, &mut problems);
        }
        let fields = problems.into_result().unwrap_err();
        assert_eq!(fields.len(), MOST_PROBLEMS);
        assert!(fields.last().unwrap().problem.contains("(and at least 2990 more)"));
    }

    #[test]
    fn a_matrix_must_be_whole_and_finite() {
        let told =
            |columns, cells: &[f32]| schema().check_matrix(columns, cells).into_result().unwrap_err()[0].field.clone();
        assert_eq!(told(3, &[0.0; 3]), "matrix.columns");
        assert_eq!(told(4, &[0.0; 6]), "matrix.values");
        assert_eq!(told(4, &[]), "matrix.values");
        assert_eq!(told(4, &[0.0, f32::INFINITY, 0.0, 0.0]), "matrix.values[1]");
        assert!(schema().check_matrix(4, &[f32::NAN; 8]).into_result().is_ok());
    }

    #[test]
    fn a_signature_that_is_not_the_models_is_refused() {
        let one = || vec![feature("a", FeatureKind::Double, false)];
        assert!(Schema::new(one(), 2, &[]).unwrap_err().contains("1 inputs, the model 2"));
        assert!(Schema::new(one(), 1, &["b".to_owned()]).unwrap_err().contains("`a` where the model has `b`"));
        let twice = [one(), one()].concat();
        assert!(Schema::new(twice, 2, &[]).unwrap_err().contains("twice"));
        assert_eq!(Schema::new(Vec::new(), 2, &["x".to_owned(), "y".to_owned()]).unwrap().inputs()[1].name, "y");
    }
}
