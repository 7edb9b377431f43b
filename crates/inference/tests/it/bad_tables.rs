//! Files of tabular models that are damaged, or that ask for what is not computed.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use verdict_inference::trees::TabularModel;

use crate::support::golden;
use crate::tabular_formats::{Cases, file};

static GERMAN: LazyLock<Vec<u8>> = LazyLock::new(|| golden("german_xgb100.json.gz"));

fn spoiled(spoil: impl FnOnce(&mut Value)) -> String {
    let mut model: Value = serde_json::from_slice(&GERMAN).unwrap();
    spoil(&mut model["learner"]);
    TabularModel::load(model.to_string().as_bytes()).expect_err("parsing fails").to_string()
}

#[test]
fn models_of_other_kinds_are_refused_by_what_they_are() {
    assert!(spoiled(|it| it["objective"]["name"] = json!("reg:mine")).contains("objective `reg:mine`"));
    assert!(spoiled(|it| it["gradient_booster"]["name"] = json!("gblinear")).contains("booster `gblinear`"));
    assert!(spoiled(|it| it["learner_model_param"]["num_class"] = json!("3")).contains("with 3 targets"));
    let tree = |spoil: fn(&mut Value)| spoiled(|it| spoil(&mut it["gradient_booster"]["model"]["trees"][4]));
    let categorical = tree(|it| it["split_type"][0] = json!(1));
    assert!(categorical.contains("tree 4: node 0 is categorical and has no categories"), "{categorical}");
    assert!(tree(|it| it["split_type"][0] = json!(2)).contains("split_type 2"));
    let vector = tree(|it| it["tree_param"]["size_leaf_vector"] = json!("3"));
    assert!(vector.contains("leaves of 3 numbers (multi_strategy `multi_output_tree`)"), "{vector}");
}

#[test]
fn a_model_whose_predictions_leave_rounds_out_is_refused() {
    let stopped = |best: &str, parallel: &str| {
        let mut model: Value = serde_json::from_slice(&GERMAN).unwrap();
        model["learner"]["attributes"] = json!({"best_iteration": best, "best_score": "0.5"});
        model["learner"]["gradient_booster"]["model"]["gbtree_model_param"]["num_parallel_tree"] = json!(parallel);
        TabularModel::load(model.to_string().as_bytes()).map(|_| ()).map_err(|refused| refused.to_string())
    };
    let refused = stopped("41", "1").unwrap_err();
    assert!(refused.contains("the model has 100 rounds but stopped at 41; publish booster[:42]"), "{refused}");
    assert_eq!(stopped("99", "1"), Ok(()));
    // Four trees a round.
    assert_eq!(stopped("24", "4"), Ok(()));
    assert!(stopped("23", "4").unwrap_err().contains("25 rounds"));
    assert!(stopped("-1", "1").unwrap_err().contains("best_iteration is `-1`"));
    assert!(stopped("1", "0").unwrap_err().contains("num_parallel_tree is `0`"));
}

#[test]
fn trees_that_are_no_trees_are_refused_by_number() {
    for (column, index, value, expected) in [
        ("left_children", 0, json!(0), "tree 3: node 0 has child 0"),
        ("right_children", 1, json!(1), "node 1 has child 1"),
        ("right_children", 0, json!(1), "node 0 has child 1"),
        ("left_children", 0, json!(-2), "node 0 has child -2"),
        ("right_children", 0, json!(99_999), "node 0 has child 99999"),
        ("split_indices", 0, json!(20), "node 0 splits on feature 20"),
        ("split_indices", 0, json!(-1), "node 0 splits on feature -1"),
        ("split_conditions", 0, json!(1e39), "number out of range"),
        ("sum_hessian", 0, json!(-1.0), "weight -1"),
    ] {
        let problem = spoiled(|it| it["gradient_booster"]["model"]["trees"][3][column][index] = value);
        assert!(problem.contains(expected), "{problem}");
    }
    let ragged = spoiled(|it| it["gradient_booster"]["model"]["trees"][3]["split_indices"] = json!([]));
    assert!(ragged.contains("tree 3: ") && ragged.contains("left_children"), "{ragged}");
}

#[test]
fn a_chain_deeper_than_the_limit_is_refused() {
    let inner = 300_i32;
    let count = (2 * inner + 1) as usize;
    let side = |offset: i32| (0..2 * inner + 1).map(move |i| if i % 2 == 0 && i < 2 * inner { i + offset } else { -1 });
    let problem = spoiled(|it| {
        it["gradient_booster"]["model"]["trees"][0] = json!({
            "left_children": side(1).collect::<Vec<_>>(), "right_children": side(2).collect::<Vec<_>>(),
            "split_indices": vec![0; count], "split_conditions": vec![0.5; count],
            "default_left": vec![1; count], "sum_hessian": vec![1.0; count],
        });
    });
    assert!(problem.contains("tree 0: depth above 256"), "{problem}");
}

#[test]
fn parameters_out_of_range_are_refused_by_name() {
    for (field, value, expected) in [
        ("base_score", "[0]", "base_score is `[0]`"),
        ("base_score", "NaN", "base_score is `NaN`"),
        ("base_score", "[5E-1,5E-1]", "base_score has 2 numbers for 1 outputs"),
        ("num_feature", "0", "num_feature is `0`"),
        ("num_feature", "99999999999", "num_feature is `99999999999`"),
        ("num_feature", "21", "20 feature_names for 21 features"),
    ] {
        let problem = spoiled(|it| it["learner_model_param"][field] = json!(value));
        assert!(problem.contains(expected), "{problem}");
    }
    let twice = spoiled(|it| it["feature_names"][1] = it["feature_names"][0].clone());
    assert!(twice.contains("occurs twice"), "{twice}");
}

fn refused(bytes: &[u8]) -> String {
    TabularModel::load(bytes).expect_err("loading fails").to_string()
}

/// A LightGBM model with the first line that begins with `key=` replaced.
fn spoiled_lightgbm(file_name: &str, key: &str, value: &str) -> String {
    let text = String::from_utf8(file(file_name)).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{key}="))).unwrap().to_owned();
    refused(text.replacen(&line, &format!("{key}={value}"), 1).as_bytes())
}

#[test]
fn lightgbm_models_are_refused_by_what_is_wrong() {
    let one = |key: &str, value: &str| spoiled_lightgbm("lgb_cat.txt", key, value);
    for (key, value, expected) in [
        ("objective", "mine", "not supported: objective `mine`"),
        ("objective", "multiclass num_class:1", "with 1 outputs"),
        ("objective", "binary sigmoid:-1", "no number for its sigmoid"),
        ("num_tree_per_iteration", "-1", "num_tree_per_iteration is `-1`"),
        ("num_tree_per_iteration", "99999999", "num_tree_per_iteration is `99999999`"),
        ("max_feature_idx", "99999999999", "max_feature_idx is `99999999999`"),
        ("max_feature_idx", "6", "8 feature_names for 7 features"),
        ("num_leaves", "3", "tree 0: num_leaves is `3`"),
        ("split_feature", "1 2 99", "tree 0: split_feature has 3 numbers"),
        ("threshold", "0 one", "tree 0: threshold has `one`"),
        ("is_linear", "1", "not supported: tree 0: linear trees"),
        ("cat_boundaries", "0 9999 2", "tree 0: node"),
    ] {
        let problem = one(key, value);
        assert!(problem.contains(expected), "{key}={value}: {problem}");
    }
    let text = String::from_utf8(file("lgb_binary.txt")).unwrap();
    assert!(refused(text.split("end of trees").next().unwrap().as_bytes()).contains("cut off"));
    let left = text.lines().find(|line| line.starts_with("left_child=")).unwrap();
    let children = left.split_once('=').unwrap().1.split(' ').count();
    let circle = text.replacen(left, &format!("left_child={}", vec!["0"; children].join(" ")), 1);
    assert!(refused(circle.as_bytes()).contains("which is no other node below it"));
}

#[test]
fn files_of_no_format_are_refused() {
    for bytes in [&b""[..], b"\x80\x04\x95", b"PK\x03\x04", b"treetop", b"[1]", b"GGUF"] {
        assert!(refused(bytes).contains("neither XGBoost JSON or UBJSON, nor LightGBM text, nor ONNX"));
    }
    assert!(refused(b"{}").contains("XGBoost JSON: missing field `learner`"), "{}", refused(b"{}"));
    assert!(refused(b"\x08\x07").contains("ONNX: the model has no graph"));
}

/// Every file of the goldens, with some bytes changed.
fn mutated(bytes: &[u8], edits: &[(prop::sample::Index, u8)], cut: Option<prop::sample::Index>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let text = bytes.is_ascii();
    for (at, byte) in edits {
        let at = at.index(bytes.len());
        // In text, what keeps it readable goes deeper.
        bytes[at] = if text { b"0123456789-,.[]{}\"e =\n"[usize::from(*byte) % 22] } else { *byte };
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

static FILES: LazyLock<Vec<Vec<u8>>> =
    LazyLock::new(|| Cases::all().iter().flat_map(|cases| cases.cases.keys()).map(|name| file(name)).collect());

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn mutated_models_never_panic(
        which in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let bytes = mutated(&FILES[which.index(FILES.len())], &edits, cut);
        if let Ok(model) = TabularModel::load(&bytes) {
            let rows = vec![1.0; model.num_features() * 9];
            let mut out = Vec::new();
            model.margins(&rows, &mut out);
            model.transform(&mut out);
            model.margins(&rows[..model.num_features()], &mut out);
            let _ = model.shap(&rows[..model.num_features()], &mut out);
        }
    }
}
