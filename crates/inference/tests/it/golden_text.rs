//! Embeddings and relevance scores against PyTorch's.

use serde::Deserialize;
use verdict_inference::ItemError;
use verdict_inference::bert::{Embedder, EmbedderOptions, Pooling, Reranker, normalize};
use verdict_inference::text::Encoded;
use verdict_testkit::golden::{cosine, max_abs};
use verdict_testkit::models;

use crate::support::{FP32, golden_json};

#[derive(Deserialize)]
struct Embedding {
    text: String,
    input_ids: Vec<u32>,
    embedding: Vec<f32>,
}

fn embeddings_equal(embedder: &Embedder, golden: &str) {
    assert!(embedder.normalizes());
    let cases: Vec<Embedding> = golden_json(golden);
    for case in &cases {
        let encoded = Encoded { ids: case.input_ids.clone(), type_ids: vec![0; case.input_ids.len()] };
        // PyTorch embeds even no text; the tokenizer refuses it, the model below computes it all the same.
        let expected = if case.text.is_empty() { Err(ItemError::Empty) } else { Ok(encoded.clone()) };
        assert_eq!(embedder.tokenizer().encode(&case.text, true), expected, "{:?}", case.text);
        let mut vector = embedder.embed(&[&encoded]).remove(0);
        normalize(&mut vector);
        assert_eq!(vector.len(), embedder.dimensions());
        let (cosine, apart) = (cosine(&vector, &case.embedding), max_abs(&vector, &case.embedding));
        assert!(cosine >= 0.9999, "{:?}: cosine {cosine}", case.text);
        assert!(apart <= 1e-4, "{:?}: {apart} apart", case.text);
    }
}

#[test]
fn minilm_embeds_as_pytorch_does() {
    let embedder =
        Embedder::load(&models::dir("all-MiniLM-L6-v2"), EmbedderOptions { run: FP32, ..EmbedderOptions::default() })
            .unwrap();
    assert_eq!(embedder.max_length(), 256);
    embeddings_equal(&embedder, "minilm_l6_v2.json");
}

#[test]
fn bge_embeds_as_pytorch_does() {
    let options = EmbedderOptions { pooling: Some(Pooling::Cls), run: FP32, ..EmbedderOptions::default() };
    let embedder = Embedder::load(&models::dir("bge-small-en-v1.5"), options).unwrap();
    embeddings_equal(&embedder, "bge_small_en.json");
}

#[derive(Deserialize)]
struct Pair {
    query: String,
    passage: String,
    input_ids: Vec<u32>,
    token_type_ids: Vec<u32>,
    logit: f32,
}

#[test]
fn the_cross_encoder_scores_as_pytorch_does() {
    let reranker = Reranker::load(&models::dir("ms-marco-MiniLM-L-12-v2"), FP32).unwrap();
    let cases: Vec<Pair> = golden_json("reranker_l12.json");
    let encoded: Vec<_> = cases
        .iter()
        .map(|case| Encoded { ids: case.input_ids.clone(), type_ids: case.token_type_ids.clone() })
        .collect();
    for (case, encoded) in cases.iter().zip(&encoded) {
        let expected = if case.query.is_empty() { Err(ItemError::Empty) } else { Ok(encoded.clone()) };
        assert_eq!(reranker.tokenizer().encode_pair(&case.query, &case.passage), expected, "{:?}", case.query);
    }
    let scores = reranker.score(&encoded.iter().collect::<Vec<_>>());
    for (case, score) in cases.iter().zip(scores) {
        assert!((score - case.logit).abs() <= 1e-3, "{:?}: {score}, expected {}", case.query, case.logit);
    }
}
