//! Finds passages: embeds the query, asks the index, and lets the reranker have its say.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::document::Collection;
use crate::error::{Error, Result};
use crate::index::{By, Found, Index, Query, RRF_K};
use crate::models::{Models, timed};
use crate::sparse::Sparse;
use crate::words::Words;

/// How many of the best passages the reranker scores.
const RERANK_DEPTH: usize = 30;

/// A checked search.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    pub(crate) collection: Collection,
    pub(crate) query: String,
    pub(crate) limit: usize,
    pub(crate) mode: Mode,
    pub(crate) rerank: bool,
    pub(crate) filter: BTreeMap<String, String>,
}

/// Which lists are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    Dense,
    Sparse,
    Hybrid,
}

/// A passage, its score, and what the reranker said where it was asked.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) found: Found,
    pub(crate) rerank_logit: Option<f32>,
}

/// What a search found and how long its steps took.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) hits: Vec<Hit>,
    pub(crate) timing: Timing,
    pub(crate) reranked: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timing {
    pub(crate) embed: Duration,
    pub(crate) search: Duration,
    pub(crate) rerank: Duration,
}

/// Searches a collection.
pub(crate) async fn search(index: &dyn Index, models: &Models, words: &Words, search: Search) -> Result<Outcome> {
    let Search { collection, query, limit, mode, rerank, filter } = search;
    let schema = index.schema(&collection).await?.ok_or_else(|| Error::CollectionNotFound(collection.clone()))?;
    let mut timing = Timing::default();

    let dense = if mode == Mode::Sparse {
        None
    } else {
        let (embedded, took) = timed("embed", models.embed(vec![query.clone()])).await;
        timing.embed = took;
        let embedded = embedded?;
        if embedded.digest != schema.embedding_digest {
            return Err(Error::EmbeddingMismatch {
                collection,
                stored: schema.embedding_digest,
                model: models.embedder_name().to_owned(),
                served: embedded.digest,
            });
        }
        let vector = embedded.vectors.into_iter().next().unwrap_or_else(|| Err("has no vector".to_owned()));
        Some(vector.map_err(|problem| Error::invalid("query", format!("can't be embedded: {problem}")))?)
    };
    let sparse = Some(Sparse::of_query(words, &query)).filter(|sparse| mode != Mode::Dense && !sparse.is_empty());
    // A query of stop words alone has nothing for BM25 to look for: hybrid is then fused from one list.
    let by = match (dense, sparse) {
        (Some(dense), Some(sparse)) => Some(By::Both(dense, sparse)),
        (Some(dense), None) => Some(By::Dense(dense)),
        (None, Some(sparse)) => Some(By::Sparse(sparse)),
        (None, None) => None,
    };
    let fused = matches!(by, Some(By::Both(..)));
    let depth = if rerank { limit.max(RERANK_DEPTH) } else { limit };
    let found = match by {
        Some(by) => {
            let (found, took) = timed("search", index.search(&collection, Query { by, limit: depth, filter })).await;
            timing.search = took;
            found?
        }
        None => Vec::new(),
    };
    let found = if !fused && (rerank || mode == Mode::Hybrid) { by_rank(found) } else { found };

    let mut hits: Vec<Hit> = found.into_iter().map(|found| Hit { found, rerank_logit: None }).collect();
    if rerank && !hits.is_empty() {
        let documents = hits.iter().take(RERANK_DEPTH).map(|hit| as_document(&hit.found)).collect();
        let (logits, took) = timed("rerank", models.rerank(&query, documents)).await;
        timing.rerank = took;
        for (hit, logit) in hits.iter_mut().zip(logits?) {
            hit.rerank_logit = logit;
        }
        fuse_rerank(&mut hits);
    }
    hits.truncate(limit);
    Ok(Outcome { hits, timing, reranked: rerank })
}

/// The share of rank `rank`, from 0, in a fusion by reciprocal rank.
fn reciprocal(rank: usize) -> f32 {
    1.0 / (RRF_K + 1 + rank) as f32
}

/// Scores one list as a fusion of it alone would.
fn by_rank(mut found: Vec<Found>) -> Vec<Found> {
    for (rank, found) in found.iter_mut().enumerate() {
        found.score = reciprocal(rank);
    }
    found
}

/// Adds the reranker's order as one more list to the fusion. It does not replace the order: on its own it is the weaker
/// judge of passages from outside the web pages it was trained on.
fn fuse_rerank(hits: &mut [Hit]) {
    let mut judged: Vec<(usize, f32)> =
        hits.iter().enumerate().filter_map(|(place, hit)| Some((place, hit.rerank_logit?))).collect();
    judged.sort_by(|a, b| b.1.total_cmp(&a.1));
    for (rank, (place, _)) in judged.into_iter().enumerate() {
        hits[place].found.score += reciprocal(rank);
    }
    hits.sort_by(|a, b| b.found.score.total_cmp(&a.found.score));
}

/// What the reranker reads of a passage.
fn as_document(found: &Found) -> String {
    match found.passage.headings.last() {
        Some(heading) if heading != &found.passage.title && !found.passage.text.contains(heading.as_str()) => {
            format!("{}\n{heading}\n{}", found.passage.title, found.passage.text)
        }
        _ => format!("{}\n{}", found.passage.title, found.passage.text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Passage;

    fn hit(id: &str, score: f32, rerank_logit: Option<f32>) -> Hit {
        let passage = Passage {
            document_id: id.into(),
            revision: String::new(),
            version: String::new(),
            title: String::new(),
            uri: String::new(),
            chunk: 0,
            chunks: 1,
            headings: Vec::new(),
            text: String::new(),
            start: 0,
            end: 0,
            metadata: BTreeMap::new(),
        };
        Hit { found: Found { passage, score }, rerank_logit }
    }

    #[test]
    fn the_reranker_is_one_list_of_the_fusion_and_ties_keep_the_order() {
        let mut hits =
            [hit("a", reciprocal(0), Some(-1.0)), hit("b", reciprocal(1), Some(5.0)), hit("c", reciprocal(2), None)];
        fuse_rerank(&mut hits);
        let order: Vec<_> = hits.iter().map(|hit| hit.found.passage.document_id.as_str()).collect();
        assert_eq!(order, ["a", "b", "c"], "first and second swapped places: their sums are equal");
        assert_eq!(hits[2].found.score, reciprocal(2), "what was not judged keeps its score");
    }
}
