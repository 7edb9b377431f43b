//! Text models whose files are damaged in any way are refused, or compute: they never panic and never take more memory
//! than their files are large.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;
use verdict_inference::bert::{Classifier, Embedder, EmbedderOptions, Precision, Run, SparseEmbedder};

use crate::support::FP32;

const FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

fn tiny() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_classifier")
}

/// Loads every family from a directory and, where that works, runs it.
fn try_all(dir: &Path) {
    for precision in [Precision::Fp32, Precision::Int8, Precision::Bf16] {
        let run = Run { precision, ..FP32 };
        if let Ok(classifier) = Classifier::load(dir, run) {
            for text in ["the customer never pays", "?", "zebra"] {
                if let Ok(encoded) = classifier.tokenizer().encode(text, true) {
                    classifier.probabilities(&classifier.logits(&[&encoded, &encoded])[1]);
                }
                if let Ok(encoded) = classifier.tokenizer().encode_pair(text, "bad risk") {
                    classifier.logits(&[&encoded]);
                }
            }
        }
        if let Ok(embedder) = Embedder::load(dir, EmbedderOptions { run, ..EmbedderOptions::default() })
            && let Ok(encoded) = embedder.tokenizer().encode("the customer never pays", true)
        {
            embedder.embed(&[&encoded]);
        }
        assert!(SparseEmbedder::load(dir, run).is_err(), "there is no masked-language-model head");
    }
}

fn spoiled(file: &str, bytes: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in FILES {
        if name == file {
            fs::write(dir.path().join(name), bytes).unwrap();
        } else {
            fs::copy(tiny().join(name), dir.path().join(name)).unwrap();
        }
    }
    dir
}

/// Overwrites bytes anywhere, or in the header of the weights, then cuts the end off.
fn mutate(file: &str, edits: &[(Index, u8, bool)], cut: Option<Index>) -> Vec<u8> {
    let mut bytes = fs::read(tiny().join(file)).unwrap();
    let header = if file == "model.safetensors" {
        8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
    } else {
        bytes.len()
    };
    for (at, byte, front) in edits {
        let at = at.index(if *front { header } else { bytes.len() });
        // In text, mostly what text is made of: other bytes end the parsing at once.
        bytes[at] = if at < header && at >= 8 { b"0123456789-,.:[]{}\"e "[usize::from(*byte) % 21] } else { *byte };
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn mutated_text_models_never_panic(
        file in prop::sample::select(FILES.to_vec()),
        edits in prop::collection::vec(any::<(Index, u8, bool)>(), 1..8),
        cut in prop::option::weighted(0.1, any::<Index>()),
    ) {
        try_all(spoiled(file, &mutate(file, &edits, cut)).path());
    }
}

#[test]
fn sizes_no_file_could_hold_are_refused_before_memory_is_taken() {
    let config = fs::read_to_string(tiny().join("config.json")).unwrap();
    for (from, to) in [
        ("\"hidden_size\": 36", "\"hidden_size\": 16777216"),
        ("\"vocab_size\": 48", "\"vocab_size\": 16777216"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 16777216"),
        ("\"intermediate_size\": 72", "\"intermediate_size\": 16777216"),
        ("\"max_position_embeddings\": 80", "\"max_position_embeddings\": 16777216"),
        ("\"type_vocab_size\": 2", "\"type_vocab_size\": 16777216"),
    ] {
        assert!(config.contains(from));
        let dir = spoiled("config.json", config.replace(from, to).as_bytes());
        assert!(Classifier::load(dir.path(), FP32).is_err(), "{to}");
    }
    let mut header = vec![0xff; 7];
    header.push(0x7f);
    header.extend(b"{}");
    assert!(Classifier::load(spoiled("model.safetensors", &header).path(), FP32).is_err());
    let lies = br#"{"embeddings.word_embeddings.weight":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,0]}}"#;
    let mut file = (lies.len() as u64).to_le_bytes().to_vec();
    file.extend(lies);
    assert!(Classifier::load(spoiled("model.safetensors", &file).path(), FP32).is_err());
}
