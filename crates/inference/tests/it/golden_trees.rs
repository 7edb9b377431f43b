//! Margins, probabilities and SHAP values of models of real size against the libraries' own.

use serde::Deserialize;
use verdict_inference::trees::TabularModel;

use crate::support::{golden, golden_json};

#[derive(Deserialize)]
struct Reference {
    rows: Vec<Vec<Option<f32>>>,
    margin: Vec<f32>,
    probability: Vec<f32>,
    shap: Vec<Vec<f32>>,
}

struct Case {
    model: TabularModel,
    rows: Vec<f32>,
    reference: Reference,
}

fn cases() -> Vec<Case> {
    let files = [
        ("german_xgb100.json.gz", "german_rows.json"),
        ("adult_xgb300.json.gz", "adult_rows.json"),
        ("adult_lgb300.txt.gz", "adult_lgb300_rows.json.gz"),
    ];
    let case = |(model, rows): (&str, &str)| {
        let reference: Reference = golden_json(rows);
        let rows = reference.rows.iter().flatten().map(|value| value.unwrap_or(f32::NAN)).collect();
        Case { model: TabularModel::load(&golden(model)).unwrap(), rows, reference }
    };
    files.map(case).into()
}

#[test]
fn margins_and_probabilities_are_those_of_the_library_with_missing_values() {
    let cases = cases();
    assert!(cases[1].rows.iter().any(|value| value.is_nan()), "the reference has missing values");
    for (case, Case { model, rows, reference }) in cases.into_iter().enumerate() {
        let mut margins = Vec::new();
        model.margins(&rows, &mut margins);
        assert_eq!(margins.len(), reference.margin.len());
        let mut probabilities = margins.clone();
        model.transform(&mut probabilities);
        for (at, (margin, expected)) in margins.iter().zip(&reference.margin).enumerate() {
            assert!((margin - expected).abs() <= 1e-6, "case {case}, row {at}: margin {margin}, expected {expected}");
            let (probability, expected) = (probabilities[at], reference.probability[at]);
            assert!((probability - expected).abs() <= 1e-6, "row {at}: {probability}, expected {expected}");
        }
    }
}

#[test]
fn a_batch_of_any_size_equals_its_rows_one_by_one() {
    for Case { model, rows, .. } in cases() {
        let width = model.num_features();
        let (mut all, mut one) = (Vec::new(), Vec::new());
        let rows: Vec<f32> = rows.iter().copied().cycle().take(700 * width).collect();
        model.margins(&rows, &mut all);
        for count in [0, 1, 7, 23, 24, 63, 64, 65, 129, 200, 255, 256, 257, 300, 513] {
            let mut some = vec![9.0; 3];
            model.margins(&rows[..count * width], &mut some);
            assert_eq!(some, all[..count]);
        }
        for (row, expected) in rows.chunks(width).zip(all) {
            model.margins(row, &mut one);
            assert_eq!(one, [expected]);
        }
    }
}

#[test]
fn shap_values_are_those_of_the_library_and_sum_to_the_margin() {
    for Case { model, rows, reference } in cases() {
        let width = model.num_features();
        let mut values = Vec::new();
        model.shap(&rows, &mut values).unwrap();
        for (at, (values, expected)) in values.chunks(width + 1).zip(&reference.shap).enumerate() {
            for (feature, (value, expected)) in values.iter().zip(expected).enumerate() {
                assert!((value - expected).abs() <= 1e-4, "row {at}, feature {feature}: {value}, expected {expected}");
            }
            let (sum, margin) = (values.iter().sum::<f32>(), reference.margin[at]);
            assert!((sum - margin).abs() <= 1e-5, "row {at}: SHAP values sum to {sum}, the margin is {margin}");
        }
    }
}

#[test]
fn features_keep_the_names_of_the_training_data() {
    let cases = cases();
    assert_eq!(cases[0].model.num_features(), 20);
    assert_eq!(cases[0].model.feature_names()[1], "duration_in_month");
    assert_eq!(cases[1].model.feature_names()[0], "age");
    assert_eq!(cases[2].model.feature_names()[13], "native_country");
}

#[test]
fn a_model_trained_on_bare_numbers_has_a_width_and_no_names() {
    let mut model: serde_json::Value = golden_json("german_xgb100.json.gz");
    model["learner"]["feature_names"] = serde_json::json!([]);
    let model = TabularModel::load(model.to_string().as_bytes()).unwrap();
    assert_eq!((model.num_features(), model.feature_names()), (20, &[][..]));
}
