//! What calls say about themselves, and what is answered again.

use std::time::Duration;

use predict::{Config, admission};
use tonic::Code;
use verdict_api::{
    predict::{EmbedRequest, EmbedResponse, Matrix, PredictRequest, RerankRequest, predict_request::Input},
    registry::Task,
};

use crate::world::{Predict, Registry, config, told, with};

const EMBEDDER: &str = "all-MiniLM-L6-v2@champion";
const RERANKER: &str = "ms-marco-MiniLM-L-12-v2@champion";

fn embed(texts: &[&str]) -> EmbedRequest {
    let inputs = texts.iter().map(|text| (*text).to_owned()).collect();
    EmbedRequest { model: EMBEDDER.to_owned(), inputs, ..EmbedRequest::default() }
}

fn cached(answer: &EmbedResponse) -> u32 {
    answer.served_by.as_ref().unwrap().cached_inputs
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_answered_again_to_the_same_tenant() {
    let registry = Registry::start().await;
    registry.publish_text("all-MiniLM-L6-v2", Task::TextEmbedding).await;
    registry.publish_text("ms-marco-MiniLM-L-12-v2", Task::TextReranking).await;
    let (predict, _dir) = Predict::warm(&registry, &[EMBEDDER, RERANKER]).await;
    let ask = async |texts: &[&str], tenant: &str| {
        let request = with(embed(texts), &[(admission::TENANT, tenant)]);
        predict.client().embed(request).await.unwrap().into_inner()
    };
    let first = ask(&["a loan for a used car", "money"], "acme").await;
    let second = ask(&["money", "cheese", "a loan for a used car"], "acme").await;
    assert_eq!((cached(&first), cached(&second)), (0, 2));
    assert_eq!(second.embeddings[0], first.embeddings[1]);
    assert_eq!(second.embeddings[2], first.embeddings[0]);
    assert_eq!(cached(&ask(&["money"], "other").await), 0, "a tenant finds what it asked itself");
    // Scaled or not, it was computed once.
    let raw = EmbedRequest { normalize: Some(false), ..embed(&["money"]) };
    let raw = predict.client().embed(with(raw, &[(admission::TENANT, "acme")])).await.unwrap().into_inner();
    assert_eq!(cached(&raw), 1);
    assert_ne!(raw.embeddings[0].values, first.embeddings[1].values);

    let rerank = |query: &str| RerankRequest {
        model: RERANKER.to_owned(),
        query: query.to_owned(),
        documents: vec!["A bank lends money.".to_owned(), "Cats sleep.".to_owned()],
        top_n: 0,
    };
    let first = predict.client().rerank(rerank("who lends money")).await.unwrap().into_inner();
    let second = predict.client().rerank(rerank("who lends money")).await.unwrap().into_inner();
    let other = predict.client().rerank(rerank("who sleeps")).await.unwrap().into_inner();
    let hits = [&first, &second, &other].map(|answer| answer.served_by.as_ref().unwrap().cached_inputs);
    assert_eq!(hits, [0, 2, 0]);
    assert_eq!(first.results, second.results);
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_response_cache_can_be_off() {
    let registry = Registry::start().await;
    registry.publish_text("all-MiniLM-L6-v2", Task::TextEmbedding).await;
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &registry.url(), &[EMBEDDER]);
    let predict = Predict::start(Config { response_cache_bytes: 0, ..config }).await;
    predict.wait_ready().await;
    for _ in 0..2 {
        assert_eq!(cached(&predict.client().embed(embed(&["money"])).await.unwrap().into_inner()), 0);
    }
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_is_checked_and_calls_that_cannot_end_in_time_are_refused_at_once() {
    let registry = Registry::start().await;
    registry.publish_text("all-MiniLM-L6-v2", Task::TextEmbedding).await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let (predict, _dir) = Predict::warm(&registry, &[EMBEDDER, "credit-risk@champion"]).await;
    let bad = with(embed(&["money"]), &[(admission::PRIORITY, "urgent"), (admission::TENANT, "a b")]);
    let refused = predict.client().embed(bad).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(told(&refused), ("INVALID_REQUEST".to_owned(), vec!["x-tenant-id".to_owned(), "x-priority".to_owned()]));
    let row = PredictRequest {
        model: "credit-risk@champion".to_owned(),
        input: Some(Input::Matrix(Matrix { columns: 20, values: vec![0.0; 20] })),
    };
    let refused = predict.client().predict(with(row, &[(admission::PRIORITY, "shadow")])).await.unwrap_err();
    assert_eq!(told(&refused).1, ["x-priority"]);

    let long = |seed: usize| {
        let texts: Vec<_> = (0..256).map(|text| format!("{text} {seed} {}", "word ".repeat(200))).collect();
        EmbedRequest { inputs: texts, ..embed(&[]) }
    };
    let batch = [(admission::PRIORITY, "batch")];
    predict
        .client()
        .embed(with(EmbedRequest { inputs: long(0).inputs[..8].to_vec(), ..long(0) }, &batch))
        .await
        .unwrap();
    let (mut client, work) = (predict.client(), with(long(1), &batch));
    let running = tokio::spawn(async move { client.embed(work).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    // More of the same needs many times longer than this.
    let mut hasty = with(long(2), &batch);
    hasty.set_timeout(Duration::from_millis(1500));
    let refused = predict.client().embed(hasty).await.unwrap_err();
    assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::DeadlineExceeded, "DEADLINE_TOO_SHORT"));
    // One short text that somebody waits for goes before it all.
    let answer = predict.client().embed(embed(&["money"])).await.unwrap().into_inner();
    assert!(!running.is_finished() && answer.embeddings[0].error.is_none());
    running.abort();
    predict.stop().await;
}
