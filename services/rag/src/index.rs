//! Where passages are kept and found: one trait, two back-ends, one suite that both must pass.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod conformance;
pub(crate) mod edge;
pub(crate) mod qdrant;

use crate::document::{Collection, Passage};
use crate::error::Result;
use crate::sparse::Sparse;

/// Name of the dense vector of a point.
const DENSE: &str = "dense";
/// Name of the sparse vector of a point.
const SPARSE: &str = "bm25";
/// How deep the lists are that are fused.
const FUSED_DEPTH: usize = 100;
/// The constant of reciprocal rank fusion: a passage scores Σ 1/(RRF_K + rank), ranks from 1.
pub(crate) const RRF_K: usize = 60;
/// What the engine is told for it: Qdrant counts ranks from 0.
const ENGINE_RRF_K: usize = RRF_K + 1;
/// Most points of one write.
const WRITE_BATCH: usize = 256;

/// Keeps passages by collection and finds them.
///
/// A write is durable when its call returns. Every call but [`Index::create`] and [`Index::schema`] on a collection
/// that does not exist is `Error::CollectionNotFound`.
#[async_trait]
pub(crate) trait Index: Send + Sync {
    /// Returns what the collection was made for, `None` where there is none.
    async fn schema(&self, collection: &Collection) -> Result<Option<Schema>>;

    /// Makes the collection if there is none, and returns what it was made for: its first maker decides.
    async fn create(&self, collection: &Collection, schema: &Schema) -> Result<Schema>;

    /// Tells of each `(document id, revision)` what is stored.
    async fn holdings(&self, collection: &Collection, documents: &[(String, String)]) -> Result<Vec<Holding>>;

    /// Puts documents in place of what is stored under their ids, and returns what was stored before. Each document's
    /// new points are there before its old ones go, so that a search in between finds one or the other. What is held
    /// as [`Holding::Same`] is left alone. Of two replacements of one document at once at least one is whole
    /// afterwards; where the other is left as well, the document reads as [`Holding::Other`] until the next one.
    async fn replace(&self, collection: &Collection, documents: Vec<Points>) -> Result<Vec<Holding>>;

    /// Deletes a document and returns how many points it had.
    async fn delete(&self, collection: &Collection, document_id: &str) -> Result<u32>;

    /// Finds the nearest passages, best first.
    async fn search(&self, collection: &Collection, query: Query) -> Result<Vec<Found>>;

    /// Returns one stored passage.
    async fn passage(&self, collection: &Collection, of: &Passage) -> Result<Option<Passage>>;

    /// Counts what the collection holds.
    async fn counts(&self, collection: &Collection) -> Result<Counts>;

    /// Tidies up after many writes: builds what searches large collections faster, frees what was deleted.
    async fn settle(&self, collection: &Collection) -> Result<()>;

    /// Fails when nothing can be stored or found.
    async fn probe(&self) -> Result<()>;
}

/// What a collection was made for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Schema {
    /// Digest of the model its vectors come from.
    pub(crate) embedding_digest: String,
    pub(crate) dimensions: u32,
}

/// One document's points.
#[derive(Clone, Debug)]
pub(crate) struct Points {
    pub(crate) document_id: String,
    pub(crate) revision: String,
    /// In order of their chunks; all of the document and revision above.
    pub(crate) points: Vec<Point>,
}

/// A passage and what it is found by.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) passage: Passage,
    pub(crate) dense: Vec<f32>,
    pub(crate) sparse: Sparse,
}

/// What is stored of a document.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Holding {
    Nothing,
    /// All chunks of this revision, and nothing else.
    Same {
        chunks: u32,
    },
    /// Another revision, or not all of this one.
    Other,
}

/// What to find.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) by: By,
    pub(crate) limit: usize,
    /// Metadata that a passage must have, all of it.
    pub(crate) filter: BTreeMap<String, String>,
}

/// What passages are ranked by.
#[derive(Clone, Debug)]
pub(crate) enum By {
    /// Cosine.
    Dense(Vec<f32>),
    /// BM25.
    Sparse(Sparse),
    /// Both, fused by reciprocal rank.
    Both(Vec<f32>, Sparse),
}

/// A passage that was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) passage: Passage,
    pub(crate) score: f32,
}

/// What a collection holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Counts {
    pub(crate) documents: u64,
    pub(crate) chunks: u64,
}

/// What is stored beside the vectors: the passage, and its metadata once more in a form that one index can serve.
#[derive(Serialize, Deserialize)]
struct Payload {
    #[serde(flatten)]
    passage: Passage,
    labels: Vec<String>,
}

impl Payload {
    fn new(passage: Passage) -> Self {
        let labels = passage.metadata.iter().map(|(key, value)| label(key, value)).collect();
        Self { passage, labels }
    }
}

/// One metadata entry as one string: JSON, so that no two entries are written alike.
fn label(key: &str, value: &str) -> String {
    serde_json::Value::from(vec![key, value]).to_string()
}

/// Orders what was found by score, then by place, so that equal requests have equal answers.
fn ranked(mut found: Vec<Found>, limit: usize) -> Vec<Found> {
    let place = |found: &Found| (found.passage.document_id.clone(), found.passage.chunk);
    found.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| place(a).cmp(&place(b))));
    found.truncate(limit);
    found
}

/// How many the engine is asked for: some more than wanted, because it cuts a run of equal scores anywhere.
fn engine_limit(limit: usize) -> usize {
    limit + 16
}
