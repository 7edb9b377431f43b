//! Files that are damaged, or that ask for what the engine doesn't compute, are refused by name and never panic.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use verdict_inference::LoadError;
use verdict_inference::bert::{Embedder, EmbedderOptions, Reranker, Run};
use verdict_inference::trees::TreeEnsemble;
use verdict_testkit::models;

use crate::support::golden;

/// A copy of MiniLM in which a test may spoil something; the weights are linked, not copied.
fn minilm() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = models::dir("all-MiniLM-L6-v2");
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(source.join(file), dir.path().join(file)).unwrap();
    }
    std::os::unix::fs::symlink(source.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    dir
}

fn problem(dir: &Path, options: EmbedderOptions) -> String {
    Embedder::load(dir, options).err().expect("loading fails").to_string()
}

fn config(dir: &Path, field: &str, value: Value) {
    let file = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config[field] = value;
    fs::write(&file, config.to_string()).unwrap();
}

#[test]
fn a_config_the_engine_cannot_compute_is_refused_by_field() {
    for (field, value, expected) in [
        ("model_type", json!("roberta"), "config.json: not supported: model_type `roberta`; supported: `bert`"),
        ("hidden_act", json!("gelu_new"), "hidden_act `gelu_new`; supported: `gelu`"),
        ("position_embedding_type", json!("relative_key"), "position_embedding_type `relative_key`"),
        ("num_attention_heads", json!(7), "hidden_size 384 is no multiple of 7 heads"),
        ("num_hidden_layers", json!(0), "num_hidden_layers is 0"),
        ("num_hidden_layers", json!(7), "tensor `encoder.layer.6.attention.self.query.weight` is missing"),
        ("intermediate_size", json!(99), "has shape [1536, 384], expected [99, 384]"),
        ("hidden_size", json!("wide"), "config.json: invalid type"),
    ] {
        let dir = minilm();
        config(dir.path(), field, value);
        let problem = problem(dir.path(), EmbedderOptions::default());
        assert!(problem.contains(expected), "{problem}");
    }
}

#[test]
fn sentence_settings_are_read_and_checked() {
    let dir = minilm();
    fs::write(dir.path().join("sentence_bert_config.json"), r#"{"max_seq_length": 99}"#).unwrap();
    fs::write(dir.path().join("modules.json"), "[]").unwrap();
    let embedder = Embedder::load(dir.path(), EmbedderOptions::default()).unwrap();
    assert_eq!((embedder.max_length(), embedder.normalizes()), (99, false));
    let options = EmbedderOptions {
        normalize: Some(true),
        run: Run { max_length: Some(77), ..Run::default() },
        ..EmbedderOptions::default()
    };
    let embedder = Embedder::load(dir.path(), options).unwrap();
    assert_eq!((embedder.max_length(), embedder.normalizes()), (77, true));
    let too_long =
        EmbedderOptions { run: Run { max_length: Some(513), ..Run::default() }, ..EmbedderOptions::default() };
    assert!(problem(dir.path(), too_long).contains("513 tokens; the model has 512 positions"));
    fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    fs::write(dir.path().join("1_Pooling/config.json"), r#"{"pooling_mode_max_tokens": true}"#).unwrap();
    let pooling = problem(dir.path(), EmbedderOptions::default());
    assert!(pooling.contains(r#"pooling by ["pooling_mode_max_tokens"]"#), "{pooling}");
}

#[test]
fn damaged_weights_and_tokenizers_are_refused_by_file() {
    let weights = fs::read(models::dir("all-MiniLM-L6-v2").join("model.safetensors")).unwrap();
    let mut huge_header = weights.clone();
    huge_header[..8].fill(0xff);
    let mut not_a_number = weights.clone();
    let within = not_a_number.len() / 2;
    not_a_number[within..within + 8].fill(0xff);
    for (what, bytes) in [
        ("empty", &weights[..0]),
        ("short", &weights[..100]),
        ("cut off", &weights[..weights.len() - 1]),
        ("header", &huge_header),
        ("NaN", &not_a_number),
    ] {
        let dir = minilm();
        let file = dir.path().join("model.safetensors");
        fs::remove_file(&file).unwrap();
        fs::write(&file, bytes).unwrap();
        let problem = problem(dir.path(), EmbedderOptions::default());
        assert!(problem.contains("model.safetensors: "), "{what}: {problem}");
        assert_eq!(problem.contains("` holds NaN at index "), what == "NaN", "{what}: {problem}");
    }
    let dir = minilm();
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(problem(dir.path(), EmbedderOptions::default()).contains("tokenizer.json: "));
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let missing = Embedder::load(dir.path(), EmbedderOptions::default()).err().unwrap();
    assert!(matches!(missing, LoadError::Io { file, .. } if file.ends_with("tokenizer.json")));
}

#[test]
fn an_embedding_model_is_no_reranker() {
    let problem = Reranker::load(&models::dir("all-MiniLM-L6-v2"), Run::default()).err().unwrap().to_string();
    assert!(problem.contains("tensor `classifier.weight` is missing"), "{problem}");
}

static GERMAN: LazyLock<Vec<u8>> = LazyLock::new(|| golden("german_xgb100.json.gz"));

fn spoiled(spoil: impl FnOnce(&mut Value)) -> String {
    let mut model: Value = serde_json::from_slice(&GERMAN).unwrap();
    spoil(&mut model["learner"]);
    TreeEnsemble::from_xgboost_json(model.to_string().as_bytes()).expect_err("parsing fails").to_string()
}

#[test]
fn models_of_other_kinds_are_refused_by_what_they_are() {
    assert!(spoiled(|it| it["objective"]["name"] = json!("reg:squarederror")).contains("objective `reg:squarederror`"));
    assert!(spoiled(|it| it["gradient_booster"]["name"] = json!("dart")).contains("booster `dart`"));
    assert!(spoiled(|it| it["learner_model_param"]["num_class"] = json!("3")).contains("3 classes"));
    let categorical = spoiled(|it| it["gradient_booster"]["model"]["trees"][4]["split_type"][0] = json!(1));
    assert!(categorical.contains("tree 4: a categorical split"), "{categorical}");
}

#[test]
fn a_model_whose_predictions_leave_rounds_out_is_refused() {
    let stopped = |best: &str, parallel: &str| {
        let mut model: Value = serde_json::from_slice(&GERMAN).unwrap();
        model["learner"]["attributes"] = json!({"best_iteration": best, "best_score": "0.5"});
        model["learner"]["gradient_booster"]["model"]["gbtree_model_param"]["num_parallel_tree"] = json!(parallel);
        TreeEnsemble::from_xgboost_json(model.to_string().as_bytes()).map(|_| ()).map_err(|refused| refused.to_string())
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
    let ragged = spoiled(|it| it["gradient_booster"]["model"]["trees"][3]["sum_hessian"] = json!([]));
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
        ("base_score", "[5E-1,5E-1]", "base_score"),
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn mutated_tree_models_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"0123456789-,.[]{}\"e ".to_vec())), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = GERMAN.clone();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(ensemble) = TreeEnsemble::from_xgboost_json(&bytes) {
            let row = vec![1.0; ensemble.num_features()];
            ensemble.margins(&row, &mut Vec::new());
            ensemble.shap(&row);
        }
    }
}
