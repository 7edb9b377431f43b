//! Answers a question from the documents, or abstains.
//!
//! Search → the sentences nearest to the question, as the reranker sees it → generate from them alone → find the
//! sentences that carry what was generated → check those against the store → answer and citations.
//!
//! What is generated is held back until it is known to be carried: a token that was streamed can't be taken back. An
//! answer is short, so a caller waits for little.

use std::ops::Range;
use std::sync::Arc;

use anyhow::anyhow;
use verdict_api::predict::generate_response::Event;

use crate::config::AnswerConfig;
use crate::document::{Collection, Passage, digest};
use crate::error::{Error, Result};
use crate::evidence::{Evidence, Unfounded, find, sentences};
use crate::index::Index;
use crate::metrics;
use crate::models::{Models, timed};
use crate::prompt::{STOP, one_line, prompt};
use crate::search::{Hit, Mode, Outcome, Search, search};
use crate::words::Words;

/// Most sentences that the reranker is asked about.
const MAX_SENTENCES: usize = 128;
/// Bytes of text for one token, when a context is measured. Of English, so on the careful side for a generator.
const BYTES_PER_TOKEN: usize = 4;

/// What questions go through.
#[derive(Clone)]
pub(crate) struct Answers {
    pub(crate) index: Arc<dyn Index>,
    pub(crate) models: Models,
    pub(crate) words: Arc<Words>,
    pub(crate) config: AnswerConfig,
}

/// A checked question.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) search: Search,
    pub(crate) max_tokens: u32,
}

impl Question {
    /// The search a question begins with.
    pub(crate) fn new(
        collection: Collection,
        question: String,
        passages: usize,
        max_tokens: u32,
        filter: std::collections::BTreeMap<String, String>,
    ) -> Self {
        let search = Search { collection, query: question, limit: passages, mode: Mode::Hybrid, rerank: true, filter };
        Self { search, max_tokens }
    }
}

/// What an answer consists of, in this order.
#[derive(Debug)]
pub(crate) enum Part {
    Retrieved(Outcome),
    Token(String),
    Citation(Citation),
    Finish(Finish),
}

/// A sentence of a stored document that carries the answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Citation {
    /// Position of its passage among those retrieved, from 0.
    pub(crate) passage: usize,
    pub(crate) document_id: String,
    pub(crate) version: String,
    pub(crate) uri: String,
    /// Bytes in the document.
    pub(crate) span: Range<u64>,
    pub(crate) quote: String,
    pub(crate) quote_hash: String,
    pub(crate) support: f32,
}

/// How an answer ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Finish {
    /// `None`: answered.
    pub(crate) abstained: Option<Abstained>,
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    /// "name/version"; empty when no model was asked to write.
    pub(crate) generator: String,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Abstained {
    /// Nothing was found.
    NoPassages,
    /// No sentence is near enough to the question.
    LowRelevance,
    /// The model wrote nothing that says anything.
    EmptyAnswer,
    /// The model wrote the question again.
    RestatesQuestion,
    /// The model wrote what no passage carries.
    Unsupported,
    /// What carried it was replaced or deleted meanwhile.
    SourceChanged,
}

impl Abstained {
    /// The reason for programs.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::NoPassages => "NO_PASSAGES",
            Self::LowRelevance => "LOW_RELEVANCE",
            Self::EmptyAnswer => "EMPTY_ANSWER",
            Self::RestatesQuestion => "RESTATES_QUESTION",
            Self::Unsupported => "UNSUPPORTED",
            Self::SourceChanged => "SOURCE_CHANGED",
        }
    }
}

/// What a model wrote.
#[derive(Default)]
struct Written {
    tokens: Vec<String>,
    finish: Finish,
}

impl Answers {
    /// Answers, handing over each part as it becomes certain. Ends early when nobody takes them any more.
    pub(crate) async fn answer(&self, question: Question, parts: &tokio::sync::mpsc::Sender<Part>) -> Result<()> {
        let Question { search: by, max_tokens } = question;
        let (collection, text) = (by.collection.clone(), by.query.clone());
        let outcome = search(&*self.index, &self.models, &self.words, by).await?;
        let hits = outcome.hits.clone();
        if parts.send(Part::Retrieved(outcome)).await.is_err() {
            return Ok(());
        }
        let (written, citations) = match self.write(&collection, &text, &hits, max_tokens).await? {
            Ok((written, citations)) => (written, citations),
            Err((finish, why)) => {
                (Written { tokens: Vec::new(), finish: Finish { abstained: Some(why), ..finish } }, Vec::new())
            }
        };
        let outcome = if written.finish.abstained.is_some() { "ABSTAINED" } else { "ANSWERED" };
        let reason = written.finish.abstained.map_or("", Abstained::reason);
        ::metrics::counter!(metrics::ANSWERS, "outcome" => outcome, "reason" => reason).increment(1);
        let tokens = written.tokens.into_iter().map(Part::Token);
        let all = tokens.chain(citations.into_iter().map(Part::Citation)).chain([Part::Finish(written.finish)]);
        for part in all {
            if parts.send(part).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Writes an answer and its citations; or says why there is none.
    async fn write(
        &self,
        collection: &Collection,
        question: &str,
        hits: &[Hit],
        max_tokens: u32,
    ) -> Result<Result<(Written, Vec<Citation>), (Finish, Abstained)>> {
        if hits.is_empty() {
            return Ok(Err((Finish::default(), Abstained::NoPassages)));
        }
        let texts: Vec<&str> = hits.iter().map(|hit| hit.found.passage.text.as_str()).collect();
        let Some(context) = self.context(question, hits, &texts).await? else {
            return Ok(Err((Finish::default(), Abstained::LowRelevance)));
        };
        let (written, _) = timed("generate", self.generate(prompt(&context, question), max_tokens)).await;
        let written = written?;
        let answer = written.tokens.concat();
        let evidence = match find(&self.words, question, &answer, &texts, self.config.min_support) {
            Ok(evidence) => evidence,
            Err(why) => {
                let why = match why {
                    Unfounded::Empty => Abstained::EmptyAnswer,
                    Unfounded::RestatesQuestion => Abstained::RestatesQuestion,
                    Unfounded::Unsupported => Abstained::Unsupported,
                };
                return Ok(Err((written.finish, why)));
            }
        };
        let mut citations = Vec::with_capacity(evidence.len());
        for one in evidence {
            match self.cite(collection, &hits[one.passage].found.passage, one).await? {
                Some(citation) => citations.push(citation),
                None => return Ok(Err((written.finish, Abstained::SourceChanged))),
            }
        }
        Ok(Ok((written, citations)))
    }

    /// Returns the sentences to answer from: the nearest to the question within the token budget, in the order they
    /// stand in. `None` when even the nearest is too far.
    async fn context(&self, question: &str, hits: &[Hit], texts: &[&str]) -> Result<Option<String>> {
        let spans: Vec<(usize, Range<usize>)> = texts
            .iter()
            .enumerate()
            .flat_map(|(passage, text)| sentences(text).into_iter().map(move |span| (passage, span)))
            .take(MAX_SENTENCES)
            .collect();
        // A passage may be all marks, as a rule or an empty table; predict takes no call without documents.
        if spans.is_empty() {
            return Ok(None);
        }
        let title = |passage: usize| hits[passage].found.passage.title.as_str();
        let documents = spans
            .iter()
            .map(|(passage, span)| format!("{}: {}", title(*passage), one_line(&texts[*passage][span.clone()])))
            .collect();
        let (logits, _) = timed("focus", self.models.rerank(question, documents)).await;
        let mut ranked: Vec<(usize, f32)> =
            logits?.into_iter().enumerate().filter_map(|(place, logit)| Some((place, logit?))).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        if ranked.first().is_none_or(|(_, best)| *best < self.config.min_relevance) {
            return Ok(None);
        }
        let mut left = self.config.context_tokens * BYTES_PER_TOKEN;
        let mut chosen = Vec::new();
        for (place, _) in ranked.into_iter().take(self.config.context_sentences) {
            let (passage, span) = &spans[place];
            let line = one_line(&texts[*passage][span.clone()]);
            let cost = line.len();
            if cost > left && !chosen.is_empty() {
                break;
            }
            left = left.saturating_sub(cost);
            chosen.push((place, line));
        }
        chosen.sort();
        Ok(Some(chosen.into_iter().map(|(_, line)| line).collect::<Vec<_>>().join(" ")))
    }

    async fn generate(&self, prompt: String, max_tokens: u32) -> Result<Written> {
        let mut stream = self.models.generate(prompt, max_tokens, vec![STOP.to_owned()]).await?;
        let mut written = Written::default();
        while let Some(response) = stream.message().await.map_err(Error::from_predict)? {
            match response.event {
                Some(Event::Token(token)) => {
                    let text = if written.tokens.is_empty() { token.text.trim_start() } else { token.text.as_str() };
                    if !text.is_empty() {
                        written.tokens.push(text.to_owned());
                    }
                }
                Some(Event::Finish(finish)) => {
                    let by = finish.served_by.unwrap_or_default();
                    written.finish = Finish {
                        abstained: None,
                        prompt_tokens: finish.prompt_tokens,
                        completion_tokens: finish.completion_tokens,
                        generator: format!("{}/{}", by.model, by.version),
                    };
                    return Ok(written);
                }
                None => {}
            }
        }
        Err(Error::Internal(anyhow!("predict ended a generation without its last message")))
    }

    /// Reads the sentence from the store again. `None` when the document is not the one the answer was made from.
    async fn cite(&self, collection: &Collection, seen: &Passage, evidence: Evidence) -> Result<Option<Citation>> {
        let Some(stored) = self.index.passage(collection, seen).await? else { return Ok(None) };
        let quote = seen.text[evidence.span.clone()].to_owned();
        if stored.version != seen.version || stored.text.get(evidence.span.clone()) != Some(quote.as_str()) {
            return Ok(None);
        }
        let Passage { document_id, version, uri, start, .. } = stored;
        Ok(Some(Citation {
            passage: evidence.passage,
            document_id,
            version,
            uri,
            span: start + evidence.span.start as u64..start + evidence.span.end as u64,
            quote_hash: digest(quote.as_bytes()),
            quote,
            support: evidence.support,
        }))
    }
}
