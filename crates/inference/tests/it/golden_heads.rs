//! Sparse embeddings and logits of labels against PyTorch's, and every precision against single precision.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Deserialize;
use verdict_inference::bert::{
    Classifier, Embedder, EmbedderOptions, Precision, ProblemType, Reranker, Run, SparseEmbedder, normalize,
};
use verdict_inference::text::Encoded;
use verdict_testkit::golden::{cosine, max_abs};
use verdict_testkit::models;

use crate::support::{FP32, golden_json};

const TEXTS: [&str; 5] = [
    "A bank lends money to its customers.",
    "loan",
    "Statins lower the cholesterol of patients at risk, though not without side effects in some of them.",
    "naïve café, 東京!",
    "The wing in the slipstream of a propeller gains lift; how much depends on the angle of attack and the speed.",
];

fn run(precision: Precision, threads: usize) -> Run {
    Run { precision, threads: NonZeroUsize::new(threads).unwrap(), max_length: None }
}

#[derive(Deserialize)]
struct Sparse {
    text: String,
    input_ids: Vec<u32>,
    ids: Vec<u32>,
    weights: Vec<f32>,
}

#[test]
fn splade_weighs_words_as_pytorch_does() {
    let splade = SparseEmbedder::load(&models::dir("splade-tiny"), FP32).unwrap();
    assert_eq!((splade.dimensions(), splade.max_length()), (30_522, 512));
    let cases: Vec<Sparse> = golden_json("splade_tiny.json");
    let encoded: Vec<Encoded> =
        cases.iter().map(|case| splade.tokenizer().encode(&case.text, false).unwrap()).collect();
    let batch: Vec<&Encoded> = encoded.iter().collect();
    for ((case, encoded), pairs) in cases.iter().zip(&encoded).zip(splade.embed(&batch, None)) {
        assert_eq!(encoded.ids, case.input_ids, "{:?}", case.text);
        // A weight at the edge of zero may be there on one side only.
        let clear = |(_, weight): &&(u32, f32)| *weight > 1e-4;
        let expected: Vec<_> = case.ids.iter().copied().zip(case.weights.iter().copied()).collect();
        let (ours, theirs): (Vec<_>, Vec<_>) =
            (pairs.iter().filter(clear).collect(), expected.iter().filter(clear).collect());
        assert_eq!(ours.len(), theirs.len(), "{:?}", case.text);
        for (ours, theirs) in ours.into_iter().zip(theirs) {
            assert_eq!(ours.0, theirs.0, "{:?}", case.text);
            assert!((ours.1 - theirs.1).abs() <= 1e-4, "{:?}: {ours:?}, expected {theirs:?}", case.text);
        }
    }
}

#[test]
fn of_a_sparse_embedding_the_heaviest_are_kept_in_order_of_their_ids() {
    let splade = SparseEmbedder::load(&models::dir("splade-tiny"), FP32).unwrap();
    let encoded = splade.tokenizer().encode(TEXTS[0], false).unwrap();
    let all = splade.embed(&[&encoded], None).remove(0);
    assert!(all.len() > 8 && all.is_sorted_by(|a, b| a.0 < b.0) && all.iter().all(|pair| pair.1 > 0.0));
    let few = splade.embed(&[&encoded], Some(8)).remove(0);
    assert!(few.len() == 8 && few.is_sorted_by(|a, b| a.0 < b.0));
    let lightest = few.iter().map(|pair| pair.1).fold(f32::INFINITY, f32::min);
    assert!(all.iter().filter(|pair| !few.contains(pair)).all(|pair| pair.1 <= lightest));
    assert_eq!(splade.embed(&[&encoded], Some(all.len() + 1)).remove(0), all);
    assert_eq!(splade.embed(&[&encoded], Some(0)).remove(0), []);
}

#[derive(Deserialize)]
struct Labelled {
    text: String,
    pair: Option<String>,
    ids: Vec<u32>,
    logits: Vec<f32>,
    softmax: Vec<f32>,
    sigmoid: Vec<f32>,
}

fn tiny() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_classifier")
}

/// A copy of the tiny classifier with one field of its configuration changed.
fn changed(field: &str, value: serde_json::Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(tiny().join(file), dir.path().join(file)).unwrap();
    }
    let file = dir.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config[field] = value;
    std::fs::write(&file, config.to_string()).unwrap();
    dir
}

#[test]
fn the_classifier_gives_pytorchs_logits_and_probabilities_by_problem_type() {
    let single = Classifier::load(&tiny(), FP32).unwrap();
    assert_eq!(single.labels(), ["repaid", "late", "lost"]);
    assert_eq!((single.problem_type(), single.max_length()), (ProblemType::SingleLabel, 80));
    let dir = changed("problem_type", "multi_label_classification".into());
    let multi = Classifier::load(dir.path(), FP32).unwrap();
    assert_eq!(multi.problem_type(), ProblemType::MultiLabel);
    for case in golden_json::<Vec<Labelled>>("tiny_classifier.json") {
        let encoded = match &case.pair {
            Some(pair) => single.tokenizer().encode_pair(&case.text, pair).unwrap(),
            None => single.tokenizer().encode(&case.text, false).unwrap(),
        };
        assert_eq!(encoded.ids, case.ids, "{:?}", case.text);
        let logits = single.logits(&[&encoded]).remove(0);
        assert!(max_abs(&logits, &case.logits) <= 1e-4, "{:?}: {logits:?}, expected {:?}", case.text, case.logits);
        assert!(max_abs(&single.probabilities(&logits), &case.softmax) <= 1e-5, "{:?}", case.text);
        assert!(max_abs(&multi.probabilities(&logits), &case.sigmoid) <= 1e-5, "{:?}", case.text);
    }
}

#[test]
fn labels_that_contradict_each_other_are_refused_by_field() {
    for (field, value, expected) in [
        ("id2label", serde_json::json!({"0": "a", "2": "b"}), "id2label has 2 labels but none of id 1"),
        ("id2label", serde_json::json!({"0": "late", "1": "late"}), "id2label names `late` twice"),
        ("label2id", serde_json::json!({"repaid": 0, "late": 1}), "label2id lacks `lost`"),
        ("label2id", serde_json::json!({"repaid": 1, "late": 0, "lost": 2}), "label2id says 1 of `repaid`"),
        ("problem_type", serde_json::json!("regression"), "problem_type `regression` with 3 label(s); supported"),
    ] {
        let problem = Classifier::load(changed(field, value).path(), FP32).err().unwrap().to_string();
        assert!(problem.contains("config.json: ") && problem.contains(expected), "{problem}");
    }
    let fewer = changed("id2label", serde_json::json!({}));
    let problem = Classifier::load(fewer.path(), FP32).err().unwrap().to_string();
    assert!(problem.contains("label2id lacks `LABEL_0`"), "{problem}");
}

#[derive(Deserialize)]
struct Embedding {
    text: String,
    embedding: Vec<f32>,
}

/// How near the narrow precisions stay to PyTorch in single precision, text by text. What they cost a search is measured
/// on whole corpora by the bench; here a kernel that is wrong would show.
#[test]
fn narrow_precisions_embed_nearly_as_pytorch_does() {
    let dir = models::dir("all-MiniLM-L6-v2");
    let cases: Vec<Embedding> = golden_json("minilm_l6_v2.json");
    for (precision, tolerance) in [(Precision::Bf16, 0.999), (Precision::Int8, 0.985)] {
        let embedder = Embedder::load(&dir, EmbedderOptions { run: run(precision, 1), ..Default::default() }).unwrap();
        assert_eq!(embedder.precision(), precision);
        for case in cases.iter().filter(|case| !case.text.is_empty()) {
            let encoded = embedder.tokenizer().encode(&case.text, true).unwrap();
            let mut vector = embedder.embed(&[&encoded]).remove(0);
            normalize(&mut vector);
            let cosine = cosine(&vector, &case.embedding);
            assert!(cosine >= tolerance, "{precision} {:?}: cosine {cosine}", case.text);
        }
    }
}

#[test]
fn narrow_precisions_score_and_weigh_nearly_as_single_precision() {
    let (reranker, splade) = (models::dir("ms-marco-MiniLM-L-12-v2"), models::dir("splade-tiny"));
    let exact = (Reranker::load(&reranker, FP32).unwrap(), SparseEmbedder::load(&splade, FP32).unwrap());
    for (precision, logit, weight) in [(Precision::Bf16, 0.15, 0.03), (Precision::Int8, 0.6, 0.15)] {
        let narrow = Reranker::load(&reranker, run(precision, 1)).unwrap();
        for document in TEXTS {
            let encoded = exact.0.tokenizer().encode_pair("who lends money?", document).unwrap();
            let apart = (narrow.score(&[&encoded])[0] - exact.0.score(&[&encoded])[0]).abs();
            assert!(apart <= logit, "{precision} {document:?}: {apart} apart");
        }
        let narrow = SparseEmbedder::load(&splade, run(precision, 1)).unwrap();
        for text in TEXTS {
            let encoded = exact.1.tokenizer().encode(text, true).unwrap();
            let mut spread = [vec![0.0; 30_522], vec![0.0; 30_522]];
            for (spread, pairs) in
                spread.iter_mut().zip([narrow.embed(&[&encoded], None), exact.1.embed(&[&encoded], None)])
            {
                pairs[0].iter().for_each(|(id, weight)| spread[*id as usize] = *weight);
            }
            let apart = max_abs(&spread[0], &spread[1]);
            assert!(apart <= weight, "{precision} {text:?}: {apart} apart");
        }
    }
}

#[test]
fn auto_is_a_precision_this_processor_computes_fast() {
    let resolved = Precision::Auto.resolved();
    assert!(matches!(resolved, Precision::Fp32 | Precision::Int8));
    let classifier = Classifier::load(&tiny(), Run::default()).unwrap();
    assert_eq!(classifier.precision(), resolved);
    for name in ["auto", "fp32", "bf16", "int8"] {
        assert_eq!(name.parse::<Precision>().unwrap().to_string(), name);
    }
    assert_eq!("fp16".parse::<Precision>().unwrap_err(), "`fp16`: auto, fp32, bf16 or int8 is expected");
}

#[test]
fn threads_that_share_an_input_compute_what_one_thread_computes() {
    let dir = models::dir("all-MiniLM-L6-v2");
    // Rounding to narrow numbers falls here and there when sums are added up in another order, and by shard.
    for (precision, tolerance, least) in
        [(Precision::Fp32, 1e-5, 1.0 - 1e-6), (Precision::Bf16, 0.02, 0.9999), (Precision::Int8, 0.05, 0.99)]
    {
        let load = |threads| {
            Embedder::load(&dir, EmbedderOptions { run: run(precision, threads), ..Default::default() }).unwrap()
        };
        let (one, several) = (load(1), load(4));
        let encoded: Vec<_> = TEXTS.iter().map(|text| one.tokenizer().encode(text, true).unwrap()).collect();
        let batch: Vec<_> = encoded.iter().collect();
        let expected = several.embed(&batch);
        for (sharded, whole) in expected.iter().zip(one.embed(&batch)) {
            let cosine = cosine(sharded, &whole);
            assert!(cosine >= least, "{precision}: cosine {cosine} between four shards and one");
        }
        let near = |actual: &[Vec<f32>], what: &str| {
            for (actual, expected) in actual.iter().zip(&expected) {
                let apart = max_abs(actual, expected);
                assert!(apart <= tolerance, "{precision} {what}: {apart} apart");
            }
        };
        near(&batch.iter().map(|one| several.embed(&[one]).remove(0)).collect::<Vec<_>>(), "one by one");
        // Callers at the same time: whoever comes second finds the helpers taken and computes alone.
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        near(&several.embed(&batch[..1]), "at once");
                    }
                });
            }
        });
    }
}

#[test]
fn an_input_that_breaks_the_model_breaks_only_its_own_call() {
    let run = run(Precision::Fp32, 4);
    let classifier = Classifier::load(&tiny(), run).unwrap();
    let good = classifier.tokenizer().encode("bad risk", false).unwrap();
    let expected = classifier.logits(&[&good]);
    let bad = Encoded { ids: vec![2, 1_000_000, 3], type_ids: vec![0; 3] };
    let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| classifier.logits(&[&bad])));
    assert!(broken.is_err());
    for _ in 0..3 {
        assert!(max_abs(&classifier.logits(&[&good])[0], &expected[0]) <= 1e-5);
    }
}
