//! Margins, probabilities and SHAP values against XGBoost's own.

use serde::Deserialize;
use verdict_inference::trees::TreeEnsemble;

use crate::support::{golden, golden_json};

#[derive(Deserialize)]
struct Reference {
    rows: Vec<Vec<Option<f32>>>,
    margin: Vec<f32>,
    probability: Vec<f32>,
    shap: Vec<Vec<f32>>,
}

struct Case {
    ensemble: TreeEnsemble,
    rows: Vec<f32>,
    reference: Reference,
}

fn cases() -> [Case; 2] {
    [("german_xgb100.json.gz", "german_rows.json"), ("adult_xgb300.json.gz", "adult_rows.json")].map(|(model, rows)| {
        let reference: Reference = golden_json(rows);
        let rows = reference.rows.iter().flatten().map(|value| value.unwrap_or(f32::NAN)).collect();
        Case { ensemble: TreeEnsemble::from_xgboost_json(&golden(model)).unwrap(), rows, reference }
    })
}

#[test]
fn margins_and_probabilities_equal_xgboost_with_missing_values() {
    let [german, adult] = cases();
    assert!(adult.rows.iter().any(|value| value.is_nan()), "the reference has missing values");
    for Case { ensemble, rows, reference } in [german, adult] {
        let mut margins = Vec::new();
        ensemble.margins(&rows, &mut margins);
        assert_eq!(margins.len(), reference.margin.len());
        for (at, (margin, expected)) in margins.iter().zip(&reference.margin).enumerate() {
            assert!((margin - expected).abs() <= 2e-6, "row {at}: margin {margin}, expected {expected}");
            let (probability, expected) = (TreeEnsemble::probability(*margin), reference.probability[at]);
            assert!((probability - expected).abs() <= 1e-6, "row {at}: {probability}, expected {expected}");
        }
    }
}

#[test]
fn a_batch_of_any_size_equals_its_rows_one_by_one() {
    let [_, Case { ensemble, rows, .. }] = cases();
    let (mut all, mut one) = (Vec::new(), Vec::new());
    ensemble.margins(&rows, &mut all);
    for count in [0, 1, 7, 8, 9, 64, 73, 200] {
        let mut some = vec![9.0; 3];
        ensemble.margins(&rows[..count * ensemble.num_features()], &mut some);
        assert_eq!(some, all[..count]);
    }
    for (row, expected) in rows.chunks(ensemble.num_features()).zip(all) {
        ensemble.margins(row, &mut one);
        assert_eq!(one, [expected]);
    }
}

#[test]
fn shap_values_equal_xgboost_and_sum_to_the_margin() {
    for Case { ensemble, rows, reference } in cases() {
        let width = ensemble.num_features();
        for (at, (row, expected)) in rows.chunks(width).zip(&reference.shap).enumerate() {
            let values = ensemble.shap(row);
            assert_eq!(values.len(), width + 1);
            for (feature, (value, expected)) in values.iter().zip(expected).enumerate() {
                assert!((value - expected).abs() <= 1e-4, "row {at}, feature {feature}: {value}, expected {expected}");
            }
            let (sum, margin) = (values.iter().sum::<f32>(), reference.margin[at]);
            assert!((sum - margin).abs() <= 1e-4, "row {at}: SHAP values sum to {sum}, the margin is {margin}");
        }
    }
}

#[test]
fn features_keep_the_names_of_the_training_data() {
    let [german, adult] = cases();
    assert_eq!(german.ensemble.num_features(), 20);
    assert_eq!(german.ensemble.feature_names()[1], "duration_in_month");
    assert_eq!(adult.ensemble.feature_names()[0], "age");
}

#[test]
fn a_model_trained_on_bare_numbers_has_a_width_and_no_names() {
    let mut model: serde_json::Value = golden_json("german_xgb100.json.gz");
    model["learner"]["feature_names"] = serde_json::json!([]);
    let ensemble = TreeEnsemble::from_xgboost_json(model.to_string().as_bytes()).unwrap();
    assert_eq!((ensemble.num_features(), ensemble.feature_names()), (20, &[][..]));
}
