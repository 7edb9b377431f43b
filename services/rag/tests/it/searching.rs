//! Searching: filters, reranking, and what is refused.

use std::collections::HashMap;

use tonic::Code;
use verdict_api::rag::{SearchMode, SearchRequest};
use verdict_chassis::status;

use crate::world::{EMBEDDER, Models, RERANKER, Rag, asking, library};

#[tokio::test(flavor = "multi_thread")]
async fn searches_filter_rerank_and_tell_their_times() {
    let models = Models::serve(&[EMBEDDER, RERANKER]).await;
    let rag = Rag::start(&models).await;
    rag.ingest(library()).await;

    let only_html = SearchRequest {
        filter: HashMap::from([("kind".to_owned(), "text/html".to_owned())]),
        ..asking("Who discovered penicillin?")
    };
    let found = rag.client.clone().search(only_html).await.unwrap().into_inner();
    assert!(!found.hits.is_empty());
    assert!(found.hits.iter().all(|hit| hit.passage.as_ref().unwrap().document_id == "bridge"));

    for mode in [SearchMode::Dense, SearchMode::Sparse, SearchMode::Hybrid] {
        let request = SearchRequest { rerank: true, mode: mode.into(), ..asking("Who discovered penicillin?") };
        let found = rag.client.clone().search(request).await.unwrap().into_inner();
        assert!(found.reranked);
        assert_eq!(found.hits[0].passage.as_ref().unwrap().document_id, "penicillin");
        let logits: Vec<f32> = found.hits.iter().map(|hit| hit.rerank_logit.unwrap()).collect();
        assert!(logits[1..].iter().all(|logit| *logit < logits[0]), "{logits:?}");
        // First of every list: 1/61 for each.
        let lists = if mode == SearchMode::Hybrid { 3.0 } else { 2.0 };
        assert!((found.hits[0].score - lists / 61.0).abs() < 1e-6, "{mode:?}: {}", found.hits[0].score);
        let timing = found.timing.unwrap();
        assert!(timing.search_ms > 0.0 && timing.rerank_ms > 0.0);
        assert_eq!(timing.embed_ms > 0.0, mode != SearchMode::Sparse);
    }
    assert_eq!(rag.search("the of and", SearchMode::Sparse).await.hits.len(), 0);
    assert!(!rag.search("the of and", SearchMode::Hybrid).await.hits.is_empty());
    let one = SearchRequest { limit: 1, ..asking("bridge") };
    assert_eq!(rag.client.clone().search(one).await.unwrap().into_inner().hits.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_searches_are_refused_by_field_and_unknown_collections_by_name() {
    let models = Models::serve(&[EMBEDDER]).await;
    let rag = Rag::start(&models).await;
    let refusal = async |request: SearchRequest| rag.client.clone().search(request).await.unwrap_err();
    let fields = |status: &tonic::Status| -> Vec<String> {
        status::fields(status).into_iter().map(|field| field.field).collect()
    };

    let empty = refusal(asking("  ")).await;
    assert_eq!((empty.code(), fields(&empty)), (Code::InvalidArgument, vec!["query".to_owned()]));
    let several = refusal(SearchRequest { collection: "no/name".to_owned(), limit: 101, ..asking("x") }).await;
    assert_eq!(fields(&several), ["limit", "collection"]);
    let unknown = refusal(asking("x")).await;
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(status::reason(&unknown).as_deref(), Some("COLLECTION_NOT_FOUND"));
    assert!(unknown.message().contains("`docs`"), "{}", unknown.message());
}
