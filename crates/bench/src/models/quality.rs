//! What a precision costs a search: nDCG@10 and recall@100 on SciFact, in process.
//!
//! The corpus is a folder in BEIR's layout (`corpus.jsonl`, `queries.jsonl`, `qrels/test.tsv`); it is not shipped, its
//! licence (CC BY-NC 2.0) allows no commercial use. Metrics are those of trec_eval: gain by judgement, discount
//! `1 / log2(rank + 1)`.

use std::{
    cmp::Ordering,
    collections::HashMap,
    fs,
    num::NonZeroUsize,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use verdict_inference::{
    bert::{Embedder, EmbedderOptions, Precision, Reranker, Run, normalize},
    text::Encoded,
};
use verdict_testkit::models;

/// Documents that are reranked of each query.
const RERANKED: usize = 30;

/// Texts, questions, and which text answers which question how well.
pub(crate) struct Corpus {
    ids: Vec<String>,
    pub(crate) texts: Vec<String>,
    queries: Vec<(String, String)>,
    judged: HashMap<String, HashMap<String, f64>>,
}

impl Corpus {
    /// Reads a folder in BEIR's layout; a text is its title and its body.
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Line {
            _id: String,
            #[serde(default)]
            title: String,
            text: String,
        }
        let lines = |name: &str| -> Result<Vec<Line>> {
            let path = dir.join(name);
            let content = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            content.lines().map(|line| serde_json::from_str(line).with_context(|| path.display().to_string())).collect()
        };
        let path = dir.join("qrels/test.tsv");
        let mut judged: HashMap<String, HashMap<String, f64>> = HashMap::new();
        for line in fs::read_to_string(&path).with_context(|| path.display().to_string())?.lines().skip(1) {
            let [query, document, gain] = line.split('\t').collect::<Vec<_>>()[..] else {
                anyhow::bail!("{}: `{line}` has no three columns", path.display());
            };
            judged.entry(query.to_owned()).or_default().insert(document.to_owned(), gain.parse()?);
        }
        let (ids, texts) = lines("corpus.jsonl")?
            .into_iter()
            .map(|line| (line._id, format!("{} {}", line.title, line.text).trim().to_owned()))
            .unzip();
        let mut queries: Vec<_> = lines("queries.jsonl")?.into_iter().map(|line| (line._id, line.text)).collect();
        queries.retain(|(id, _)| judged.contains_key(id));
        ensure!(!queries.is_empty(), "{}: no judged query", dir.display());
        Ok(Self { ids, texts, queries, judged })
    }

    /// Scores a ranking of documents for the query of this number.
    fn ndcg(&self, query: usize, ranking: &[usize]) -> f64 {
        let judged = &self.judged[&self.queries[query].0];
        let gain = |gains: &mut dyn Iterator<Item = f64>| {
            gains.take(10).zip(2_u32..).map(|(gain, rank)| gain / f64::from(rank).log2()).sum::<f64>()
        };
        let mut best: Vec<f64> = judged.values().copied().filter(|gain| *gain > 0.0).collect();
        best.sort_by(|a, b| b.total_cmp(a));
        let found = gain(&mut ranking.iter().map(|at| judged.get(&self.ids[*at]).copied().unwrap_or(0.0)));
        let ideal = gain(&mut best.into_iter());
        if ideal > 0.0 { found / ideal } else { 0.0 }
    }

    fn recall(&self, query: usize, ranking: &[usize]) -> f64 {
        let judged = &self.judged[&self.queries[query].0];
        let relevant = judged.values().filter(|gain| **gain > 0.0).count();
        let found = ranking.iter().take(100).filter(|at| judged.get(&self.ids[**at]).is_some_and(|gain| *gain > 0.0));
        found.count() as f64 / relevant.max(1) as f64
    }
}

/// Prints nDCG@10 of each precision, dense and reranked, and how far it is from single precision. `rerank` is how many
/// queries are reranked.
pub(crate) fn run(dir: &Path, threads: usize, rerank: usize) -> Result<()> {
    let corpus = Corpus::load(dir)?;
    let (documents, queries) = (corpus.texts.len(), corpus.queries.len());
    println!(
        "{documents} documents, {queries} queries; {RERANKED} documents reranked of {} queries",
        rerank.min(queries)
    );
    println!(
        "{:<10} {:>8} {:>9} {:>10} {:>9} {:>8}",
        "precision", "nDCG@10", "of fp32", "recall@100", "rerank", "of fp32"
    );
    let mut exact: Option<(f64, f64, Vec<Vec<usize>>)> = None;
    for precision in [Precision::Fp32, Precision::Bf16, Precision::Int8] {
        let (rankings, took) = dense(&corpus, precision, threads)?;
        let mean =
            |score: &dyn Fn(usize) -> f64, count: usize| (0..count).map(score).sum::<f64>() / count.max(1) as f64;
        let ndcg = mean(&|query| corpus.ndcg(query, &rankings[query]), queries);
        let recall = mean(&|query| corpus.recall(query, &rankings[query]), queries);
        let candidates = exact.as_ref().map_or(&rankings, |(_, _, rankings)| rankings);
        let reranked = reranked(&corpus, precision, &candidates[..rerank.min(queries)])?;
        let second = mean(&|query| corpus.ndcg(query, &reranked[query]), reranked.len());
        let (first, first_second) = exact.as_ref().map_or((ndcg, second), |(first, second, _)| (*first, *second));
        println!(
            "{precision:<10} {ndcg:>8.4} {:>8.2}% {recall:>10.4} {second:>9.4} {:>7.2}%   {:.0} texts/s",
            100.0 * ndcg / first,
            100.0 * second / first_second,
            documents as f64 / took.as_secs_f64()
        );
        exact.get_or_insert((ndcg, second, rankings));
    }
    Ok(())
}

/// Ranks the hundred nearest documents of each query by cosine.
fn dense(corpus: &Corpus, precision: Precision, threads: usize) -> Result<(Vec<Vec<usize>>, Duration)> {
    let run = Run { precision, threads: NonZeroUsize::MIN, max_length: None };
    let embedder = Embedder::load(&models::dir("all-MiniLM-L6-v2"), EmbedderOptions { run, ..Default::default() })?;
    let embed = |texts: &[&str]| -> Result<Vec<Vec<f32>>> {
        let encode = |text: &&str| embedder.tokenizer().encode(text, true);
        let encoded = texts.iter().map(encode).collect::<Result<Vec<Encoded>, _>>()?;
        let mut vectors = embedder.embed(&encoded.iter().collect::<Vec<_>>());
        vectors.iter_mut().for_each(|vector| normalize(vector));
        Ok(vectors)
    };
    let texts: Vec<&str> = corpus.texts.iter().map(String::as_str).collect();
    let began = Instant::now();
    let parts: Vec<Result<Vec<Vec<f32>>>> = thread::scope(|scope| {
        let share = texts.chunks(texts.len().div_ceil(threads));
        let workers: Vec<_> = share.map(|texts| scope.spawn(|| embed(texts))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("a worker panicked"))).collect()
    });
    let took = began.elapsed();
    let documents: Vec<Vec<f32>> = parts.into_iter().collect::<Result<Vec<_>>>()?.concat();
    let questions: Vec<&str> = corpus.queries.iter().map(|(_, text)| text.as_str()).collect();
    let nearest = |question: &Vec<f32>| {
        let cosine = |document: &Vec<f32>| document.iter().zip(question).map(|(a, b)| a * b).sum::<f32>();
        let scores: Vec<f32> = documents.iter().map(cosine).collect();
        best(&scores, 100)
    };
    Ok((embed(&questions)?.iter().map(nearest).collect(), took))
}

/// Orders the first candidates of each query by the cross-encoder.
fn reranked(corpus: &Corpus, precision: Precision, candidates: &[Vec<usize>]) -> Result<Vec<Vec<usize>>> {
    let run = Run { precision, threads: NonZeroUsize::MIN, max_length: None };
    let reranker = Reranker::load(&models::dir("ms-marco-MiniLM-L-12-v2"), run)?;
    let order = |(query, candidates): (usize, &Vec<usize>)| -> Result<Vec<usize>> {
        let candidates = &candidates[..RERANKED.min(candidates.len())];
        let pair = |at: &usize| reranker.tokenizer().encode_pair(&corpus.queries[query].1, &corpus.texts[*at]);
        let encoded = candidates.iter().map(pair).collect::<Result<Vec<Encoded>, _>>()?;
        let scores = reranker.score(&encoded.iter().collect::<Vec<_>>());
        Ok(best(&scores, RERANKED).into_iter().map(|at| candidates[at]).collect())
    };
    // Two halves at a time: as many as most machines that measure have processors.
    let half = candidates.len().div_ceil(2).max(1);
    thread::scope(|scope| {
        let numbered: Vec<_> = candidates.iter().enumerate().collect();
        let workers: Vec<_> = numbered
            .chunks(half)
            .map(|part| part.to_vec())
            .map(|part| scope.spawn(|| part.into_iter().map(order).collect::<Result<Vec<_>>>()))
            .collect();
        let parts =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("a worker panicked")));
        Ok(parts.collect::<Result<Vec<_>>>()?.concat())
    })
}

/// The places of the `most` greatest scores, best first; equal ones in their order.
fn best(scores: &[f32], most: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..scores.len()).collect();
    let order = |a: &usize, b: &usize| scores[*b].partial_cmp(&scores[*a]).unwrap_or(Ordering::Equal).then(a.cmp(b));
    places.sort_unstable_by(order);
    places.truncate(most);
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ndcg_discounts_by_rank_and_divides_by_the_best_possible() {
        let corpus = Corpus {
            ids: ["a", "b", "c"].map(str::to_owned).to_vec(),
            texts: vec![String::new(); 3],
            queries: vec![("q".to_owned(), String::new())],
            judged: HashMap::from([("q".to_owned(), HashMap::from([("a".to_owned(), 1.0), ("c".to_owned(), 1.0)]))]),
        };
        assert!((corpus.ndcg(0, &[0, 2, 1]) - 1.0).abs() < 1e-12);
        let (first, second, third) = (1.0, 1.0 / 3_f64.log2(), 0.5);
        assert!((corpus.ndcg(0, &[0, 1, 2]) - (first + third) / (first + second)).abs() < 1e-12);
        assert!((corpus.recall(0, &[1, 2]) - 0.5).abs() < 1e-12);
        assert_eq!(best(&[0.5, 2.0, 0.5, 3.0], 3), [3, 1, 0]);
    }
}
