//! rag: ingests documents, searches them, answers with citations.
//!
//! | module | what it holds |
//! |---|---|
//! | [`document`], [`parse`], [`chunk`] | a document, the text taken from it, the passages it is cut into |
//! | [`words`], [`sparse`] | stems, and BM25 over them as a sparse vector |
//! | [`index`] | where passages are kept: Qdrant's engine in process, or a Qdrant server |
//! | [`models`] | embedder, reranker and generator, which predict runs |
//! | [`ingest`], [`mod@search`], [`answer`] | the three things it does |
//! | [`prompt`], [`evidence`] | what the generator is asked, and which sentences carry what it wrote |
//! | [`grpc`], [`convert`] | the service: convert in, one call, convert out |

mod answer;
mod chunk;
pub mod config;
mod convert;
mod document;
mod error;
mod evidence;
mod grpc;
mod index;
mod ingest;
mod metrics;
mod models;
mod parse;
mod probe;
mod prompt;
mod search;
mod sparse;
mod words;

use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use verdict_chassis::health::Health;
use verdict_chassis::server::Listeners;
use verdict_chassis::{client, server};

use crate::answer::Answers;
use crate::chunk::Length;
pub use crate::config::Config;
use crate::index::Index;
use crate::index::edge::EdgeIndex;
use crate::index::qdrant::QdrantIndex;
use crate::ingest::Ingest;
use crate::models::Models;
use crate::words::Words;

/// The service by its full name; ready when predict serves its models and the index answers.
pub const SERVICE: &str = "verdict.rag.v1.RagService";

/// Serves until `stop`. Returns when calls in flight have ended, or were cut after the drain's grace.
pub async fn run(config: Config, listeners: Listeners, stop: CancellationToken) -> anyhow::Result<()> {
    metrics::describe();
    config.check()?;
    let qdrant_url = config.qdrant.qdrant_url.as_deref().filter(|url| !url.is_empty());
    let index: Arc<dyn Index> = match qdrant_url {
        Some(url) => Arc::new(QdrantIndex::connect(url, config.qdrant.qdrant_api_key.as_deref())?),
        None => Arc::new(EdgeIndex::open(&config.data_dir.join("index"))?),
    };
    let channel = client::connect(&config.models.predict_url).context("--predict-url, PREDICT_URL")?;
    let models = Models::new(channel, config.models.clone());
    let words = Arc::new(Words::default());
    let health = Health::new(&[SERVICE]);

    let probing = stop.child_token();
    let probe = tokio::spawn(probe::run(index.clone(), models.clone(), health.clone(), probing.clone()));
    let length = Length { tokens: config.chunk_tokens, overlap: config.chunk_overlap };
    let ingest = Ingest { index: index.clone(), models: models.clone(), words: words.clone(), length };
    let answers = Answers { index, models, words, config: config.answer };
    let routes = grpc::routes(ingest, answers, config.server.max_message_bytes);
    let served = server::serve(&config.server, listeners, routes, health, verdict_api::FILE_DESCRIPTOR_SET, stop).await;
    probing.cancel();
    probe.await.context("the probe failed")?;
    served
}
