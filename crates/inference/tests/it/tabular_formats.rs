//! Small models of every format against the libraries that trained them; `golden/trees/make.py` made both.

use std::collections::BTreeMap;

use serde::Deserialize;
use verdict_inference::trees::{Format, Kind, NotExplainable, TabularModel};

use crate::support::{golden, golden_json};

#[derive(Deserialize)]
pub(crate) struct Cases {
    width: usize,
    rows: BTreeMap<String, Vec<Option<f32>>>,
    pub(crate) cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
pub(crate) struct Case {
    rows: String,
    predictions: Vec<f64>,
    margins: Option<Vec<f64>>,
    shap: Option<Vec<f64>>,
    classes: Option<Vec<String>>,
}

impl Cases {
    /// The cases of make.py, and those of older versions of XGBoost by make_old.py.
    pub(crate) fn all() -> [Self; 4] {
        ["cases", "xgb1.3.3", "xgb1.7.6", "xgb2.1.4"].map(|name| golden_json(&format!("trees/{name}.json.gz")))
    }

    fn cells(&self, case: &Case) -> Vec<f32> {
        self.rows[&case.rows].iter().map(|cell| cell.unwrap_or(f32::NAN)).collect()
    }
}

pub(crate) fn file(name: &str) -> Vec<u8> {
    golden(&format!("trees/{name}.gz"))
}

/// The largest difference, in units of 1 or of what is expected where that is more.
fn difference(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let apart = |(got, expected): (&f32, &f64)| (f64::from(*got) - expected).abs() / expected.abs().max(1.0);
    got.iter().zip(expected).map(apart).fold(0.0, f64::max)
}

#[test]
fn every_format_answers_as_its_own_library() {
    let all = Cases::all();
    let count: usize = all.iter().map(|cases| cases.cases.len()).sum();
    assert!(count >= 55, "{count} cases");
    all.iter().for_each(check_answers);
}

fn check_answers(cases: &Cases) {
    for (name, case) in &cases.cases {
        let model = TabularModel::load(&file(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(model.num_features(), cases.width, "{name}");
        let format = match name.rsplit_once('.').unwrap().1 {
            "json" => Format::XgboostJson,
            "ubj" => Format::XgboostUbjson,
            "txt" => Format::LightgbmText,
            _ => Format::Onnx,
        };
        assert_eq!(model.format(), format, "{name}");
        let cells = cases.cells(case);
        let mut margins = Vec::new();
        model.margins(&cells, &mut margins);
        let rows = cells.len() / cases.width;
        assert_eq!(margins.len(), rows * model.num_outputs(), "{name}");
        if let Some(expected) = &case.margins {
            let apart = difference(&margins, expected);
            assert!(apart <= 1e-6, "{name}: margins {apart:e} apart");
        }
        // One row at a time takes another way through the trees, to the same bits.
        let mut one = Vec::new();
        for (row, expected) in cells.chunks(cases.width).zip(margins.chunks(model.num_outputs())) {
            model.margins(row, &mut one);
            assert_eq!(one, expected, "{name}");
        }
        model.transform(&mut margins);
        let apart = difference(&margins, &case.predictions);
        assert!(apart <= 1e-6, "{name}: predictions {apart:e} apart");
        if let Some(classes) = &case.classes {
            assert_eq!(model.classes(), classes, "{name}");
        }
        let (classes, outputs) = (model.classes().len(), model.num_outputs());
        match model.kind() {
            Kind::BinaryClassification => assert!(classes == 2 && outputs <= 2, "{name}"),
            Kind::MulticlassClassification => assert!(classes == outputs && outputs > 2, "{name}"),
            Kind::Regression | Kind::Ranking => assert_eq!(classes, 0, "{name}"),
        }
    }
}

#[test]
fn shap_values_are_those_of_the_library_and_sum_to_the_margin() {
    let explained: usize = Cases::all().iter().map(check_shap).sum();
    assert!(explained >= 40, "{explained} explained");
}

fn check_shap(cases: &Cases) -> usize {
    let mut explained = 0;
    for (name, case) in &cases.cases {
        let model = TabularModel::load(&file(name)).unwrap();
        let cells = cases.cells(case);
        let mut values = Vec::new();
        let answer = model.shap(&cells, &mut values);
        let Some(expected) = &case.shap else { continue };
        answer.unwrap_or_else(|refused| panic!("{name}: {refused}"));
        explained += 1;
        let apart = difference(&values, expected);
        assert!(apart <= 1e-4, "{name}: SHAP values {apart:e} apart");
        let mut margins = Vec::new();
        model.margins(&cells, &mut margins);
        for (values, margin) in values.chunks(cases.width + 1).zip(&margins) {
            let sum: f64 = values.iter().map(|value| f64::from(*value)).sum();
            let apart = (sum - f64::from(*margin)).abs() / f64::from(margin.abs().max(1.0));
            assert!(apart <= 1e-5, "{name}: SHAP values sum to {sum}, the margin is {margin}");
        }
        let mut one = Vec::new();
        for (row, expected) in cells.chunks(cases.width).zip(values.chunks((cases.width + 1) * model.num_outputs())) {
            model.shap(row, &mut one).unwrap();
            let expected: Vec<f64> = expected.iter().map(|value| f64::from(*value)).collect();
            let apart = difference(&one, &expected);
            assert!(apart <= 1e-6, "{name}: alone {apart:e} apart");
        }
    }
    explained
}

#[test]
fn what_cannot_be_explained_says_why() {
    let refused = |name: &str| TabularModel::load(&file(name)).unwrap().explainable();
    assert_eq!(refused("sk_forest.onnx"), Err(NotExplainable::NoWeights));
    assert_eq!(refused("sk_normalizer.onnx"), Err(NotExplainable::MixedColumns));
    assert_eq!(refused("sk_columns.onnx"), Ok(()));
    assert_eq!(refused("xgb_cat.ubj"), Ok(()));
}
