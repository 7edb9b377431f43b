//! How well it finds: the Cranfield collection, whole, against the reference runs of its kind.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use futures::{StreamExt, stream};
use serde::Deserialize;
use verdict_api::rag::{Document, IngestState, SearchMode, SearchRequest};

use crate::world::{EMBEDDER, Models, RERANKER, Rag, asking, states};

#[derive(Deserialize)]
struct Entry {
    id: String,
    #[serde(default)]
    title: String,
    text: String,
}

fn entries(name: &str) -> Vec<Entry> {
    let file = fs::File::open(data().join(name)).unwrap();
    let mut json = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut json).unwrap();
    json.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn data() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/demo/data")
}

/// Query id → document id → relevance.
fn judgements() -> HashMap<String, HashMap<String, f64>> {
    let mut all = HashMap::<String, HashMap<String, f64>>::new();
    for line in fs::read_to_string(data().join("cranfield-qrels.tsv")).unwrap().lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        all.entry(fields[0].to_owned()).or_default().insert(fields[1].to_owned(), fields[2].parse().unwrap());
    }
    all
}

/// nDCG@10 with linear gain, as trec_eval counts it.
fn ndcg(ranked: &[String], relevant: &HashMap<String, f64>) -> f64 {
    let gain = |gains: &mut dyn Iterator<Item = f64>| -> f64 {
        gains.take(10).enumerate().map(|(rank, gain)| gain / (rank as f64 + 2.0).log2()).sum()
    };
    let mut ideal: Vec<f64> = relevant.values().copied().collect();
    ideal.sort_by(|a, b| b.total_cmp(a));
    let found = gain(&mut ranked.iter().map(|id| relevant.get(id).copied().unwrap_or(0.0)));
    found / gain(&mut ideal.into_iter())
}

/// Documents in the order of their best passage.
async fn documents(rag: &Rag, request: SearchRequest) -> Vec<String> {
    let found = rag.client.clone().search(request).await.unwrap().into_inner();
    let mut ids = Vec::new();
    for hit in found.hits {
        let id = hit.passage.unwrap().document_id;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

/// A rag that has ingested the collection.
async fn cranfield(models: &Models) -> Rag {
    let rag = Rag::start(models).await;
    let corpus: Vec<Document> = entries("cranfield.jsonl.gz")
        .into_iter()
        .map(|Entry { id, title, text }| Document {
            id,
            title,
            content_type: "text/plain".to_owned(),
            content: text.into_bytes(),
            ..Document::default()
        })
        .collect();
    assert_eq!(corpus.len(), 1400);
    let begun = Instant::now();
    let reports = rag.ingest(corpus).await;
    let took = begun.elapsed();
    let chunks: u32 = reports.iter().map(|report| report.chunks).sum();
    println!(
        "ingested 1400 abstracts, {chunks} passages, in {took:.1?}: {:.1} passages/s",
        f64::from(chunks) / took.as_secs_f64()
    );
    let failed = states(&reports).iter().filter(|state| **state == IngestState::Failed).count();
    assert_eq!((reports.len(), failed), (1400, 2), "two abstracts of the collection have no text");
    rag
}

/// Asks every judged query and requires a mean nDCG@10 of `least`.
async fn must_score(rag: &Rag, mode: SearchMode, rerank: bool, least: f64) {
    let (judgements, queries) = (judgements(), entries("cranfield-queries.jsonl.gz"));
    let judged = queries.iter().filter_map(|query| Some((query, judgements.get(&query.id)?)));
    let scores: Vec<f64> = stream::iter(judged)
        .map(async |(query, relevant)| {
            let request = SearchRequest { limit: 50, mode: mode.into(), rerank, ..asking(&query.text) };
            ndcg(&documents(rag, request).await, relevant)
        })
        .buffered(4)
        .collect()
        .await;
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    let name = if rerank { format!("{mode:?} with reranking") } else { format!("{mode:?}") };
    println!("{name}: nDCG@10 {mean:.4} over {} queries", scores.len());
    assert!(mean >= least, "{name}: nDCG@10 {mean:.4} is below {least}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cranfield_is_found_as_well_as_by_the_reference_runs() {
    let models = Models::serve(&[EMBEDDER]).await;
    let rag = cranfield(&models).await;
    // The references: BM25 of bm25s 0.3765, exact cosine over whole abstracts 0.3953, both fused 0.4236.
    for (mode, least) in [(SearchMode::Sparse, 0.37), (SearchMode::Dense, 0.39), (SearchMode::Hybrid, 0.4186)] {
        must_score(&rag, mode, false, least).await;
    }
    rag.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "many minutes: the reranker reads 30 passages for each of 225 queries; docs/rag.md says how to run it"]
async fn reranking_finds_cranfield_better_than_fusion_alone() {
    let models = Models::serve(&[EMBEDDER, RERANKER]).await;
    let rag = cranfield(&models).await;
    must_score(&rag, SearchMode::Hybrid, true, 0.4255).await;
    rag.stop().await;
}
