//! Files that are damaged, or that ask for what the engine doesn't compute, are refused by name and never panic.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use verdict_inference::LoadError;
use verdict_inference::bert::{Embedder, EmbedderOptions, Reranker, Run};
use verdict_testkit::models;

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
