//! What is computed together must equal what is computed alone.

use std::sync::LazyLock;

use proptest::prelude::*;
use verdict_inference::ItemError;
use verdict_inference::bert::{Embedder, EmbedderOptions, Pooling, Reranker};
use verdict_testkit::models;

use crate::support::FP32;

static EMBEDDERS: LazyLock<[Embedder; 2]> = LazyLock::new(|| {
    [Pooling::Mean, Pooling::Cls].map(|pooling| {
        let options = EmbedderOptions { pooling: Some(pooling), run: FP32, ..EmbedderOptions::default() };
        Embedder::load(&models::dir("all-MiniLM-L6-v2"), options).unwrap()
    })
});

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_batch_equals_its_texts_one_by_one(texts in prop::collection::vec("[a-z ]{0,200}[a-zé💧]{1,9}", 1..9)) {
        for embedder in &*EMBEDDERS {
            let encoded: Vec<_> = texts.iter().map(|text| embedder.tokenizer().encode(text, true).unwrap()).collect();
            let together = embedder.embed(&encoded.iter().collect::<Vec<_>>());
            prop_assert_eq!(together.len(), texts.len());
            for (encoded, vector) in encoded.iter().zip(&together) {
                prop_assert!(close(&embedder.embed(&[encoded])[0], vector));
            }
        }
    }
}

#[test]
fn a_pair_scores_the_same_alone_and_in_a_batch() {
    let reranker = Reranker::load(&models::dir("ms-marco-MiniLM-L-12-v2"), FP32).unwrap();
    let long = "the wing in the slipstream of a propeller ".repeat(80);
    let encoded: Vec<_> = ["a wing", &long, "bread and butter"]
        .map(|document| reranker.tokenizer().encode_pair("what is a wing", document).unwrap())
        .into();
    assert_eq!(encoded[1].ids.len(), reranker.max_length());
    let together = reranker.score(&encoded.iter().collect::<Vec<_>>());
    let alone: Vec<f32> = encoded.iter().map(|encoded| reranker.score(&[encoded])[0]).collect();
    assert!(close(&together, &alone), "{together:?} {alone:?}");
    assert!(together[0] > together[2]);
}

#[test]
fn a_long_text_is_cut_or_refused_as_asked_and_an_empty_one_is_refused() {
    let embedder = &EMBEDDERS[0];
    let text = "word ".repeat(300);
    assert_eq!(embedder.tokenizer().encode(&text, false), Err(ItemError::TooLong { tokens: 302, max: 256 }));
    let cut = embedder.tokenizer().encode(&text, true).unwrap();
    assert_eq!((cut.ids.len(), cut.ids[0], cut.ids[255]), (256, 101, 102));
    assert_eq!(cut, embedder.tokenizer().encode(&"word ".repeat(254), false).unwrap());
    for empty in ["", "  \n\t"] {
        assert_eq!(embedder.tokenizer().encode(empty, true), Err(ItemError::Empty));
    }
}

#[test]
fn the_longer_side_of_a_pair_is_cut_first() {
    let tokenizer = EMBEDDERS[0].tokenizer();
    let segments = |query: usize, document: usize| {
        let pair = tokenizer.encode_pair(&"a ".repeat(query), &"b ".repeat(document)).unwrap();
        [0, 1].map(|segment| pair.type_ids.iter().filter(|id| **id == segment).count())
    };
    assert_eq!(segments(10, 400), [12, 244]);
    assert_eq!(segments(400, 10), [245, 11]);
    assert_eq!(segments(400, 400), [128, 128]);
    assert_eq!(tokenizer.encode_pair("a", ""), Err(ItemError::Empty));
}

#[test]
fn tokens_say_which_bytes_they_stand_for() {
    let text = "Über 9,000 wings";
    let tokens = EMBEDDERS[0].tokenizer().tokens(text, false);
    let spans: Vec<&str> = tokens.iter().map(|token| &text[token.start..token.end]).collect();
    assert_eq!(spans, ["Über", "9", ",", "000", "wings"]);
    assert_eq!(EMBEDDERS[0].tokenizer().tokens(text, true).len(), tokens.len() + 2);
    assert_eq!(EMBEDDERS[0].tokenizer().tokens(&"wing ".repeat(3000), false).len(), 3000);
}

#[test]
fn one_embedder_serves_many_threads() {
    let embedder = &EMBEDDERS[0];
    let encoded = embedder.tokenizer().encode("one model, many threads", true).unwrap();
    let expected = embedder.embed(&[&encoded]);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| embedder.embed(&[&encoded, &encoded]))).collect();
        for thread in threads {
            assert!(thread.join().unwrap().iter().all(|vector| close(vector, &expected[0])));
        }
    });
}
