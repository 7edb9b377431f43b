//! Contract ↔ domain. What comes in is checked here, each bad field by its name.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use verdict_api::rag::answer_response::Event;
use verdict_api::rag::{
    AnswerFinish, AnswerOutcome, AnswerRequest, AnswerResponse, AnswerToken, Citation as WireCitation,
    DeleteDocumentRequest, DeleteDocumentResponse, Document as WireDocument, GetCollectionResponse, Hit as WireHit,
    IngestDocumentsRequest, IngestDocumentsResponse, IngestState, Passage as WirePassage, Retrieved, SearchMode,
    SearchRequest, SearchResponse, SearchTiming,
};
use verdict_chassis::status::Field;

use crate::answer::{Citation, Finish, Part, Question};
use crate::document::{Collection, Document, MAX_TITLE_BYTES, Passage};
use crate::error::{Error, Result};
use crate::index::{Counts, Found, Schema};
use crate::ingest::{Fate, Report, Submission};
use crate::search::{Hit, Mode, Outcome, Search, Timing};

const MAX_QUERY_BYTES: usize = 4096;
const MAX_DOCUMENT_ID_BYTES: usize = 512;
const MAX_URI_BYTES: usize = 4096;
/// Of all keys and values together.
const MAX_METADATA_BYTES: usize = 8192;
const MAX_LIMIT: u32 = 100;
const MAX_PASSAGES: u32 = 20;
const MAX_ANSWER_TOKENS: u32 = 1024;

/// Collects what is wrong with a request, so that a caller learns all of it at once.
#[derive(Default)]
struct Check(Vec<Field>);

impl Check {
    fn refuse(&mut self, field: &str, problem: impl Into<String>) {
        self.0.push(Field::new(field, problem));
    }

    fn collection(&mut self, name: &str) -> Option<Collection> {
        Collection::new(name).map_err(|problem| self.refuse("collection", problem)).ok()
    }

    fn text(&mut self, field: &str, text: &str) {
        if text.trim().is_empty() {
            self.refuse(field, "must not be empty");
        } else if text.len() > MAX_QUERY_BYTES {
            self.refuse(field, format!("has {} bytes; at most {MAX_QUERY_BYTES} are taken", text.len()));
        }
    }

    fn document_id(&mut self, field: &str, id: &str) {
        if !(1..=MAX_DOCUMENT_ID_BYTES).contains(&id.len()) {
            self.refuse(field, format!("must have 1 to {MAX_DOCUMENT_ID_BYTES} bytes"));
        }
    }

    /// A count whose 0 stands for `default`.
    fn count(&mut self, field: &str, count: u32, default: u32, most: u32) -> u32 {
        if count > most {
            self.refuse(field, format!("must be 1 to {most}, or 0 for {default}"));
        }
        if count == 0 { default } else { count }
    }

    fn labels(&mut self, field: &str, labels: HashMap<String, String>) -> BTreeMap<String, String> {
        let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > MAX_METADATA_BYTES {
            self.refuse(field, format!("has {bytes} bytes; at most {MAX_METADATA_BYTES} are taken"));
        }
        if labels.contains_key("") {
            self.refuse(field, "has an empty key");
        }
        labels.into_iter().collect()
    }

    fn done<T>(self, checked: Option<T>) -> Result<T> {
        match checked {
            Some(checked) if self.0.is_empty() => Ok(checked),
            _ => Err(Error::Invalid(self.0)),
        }
    }
}

pub(crate) fn search(request: SearchRequest) -> Result<Search> {
    let wanted_mode = request.mode();
    let SearchRequest { collection, query, limit, mode, rerank, filter } = request;
    let mut check = Check::default();
    if SearchMode::try_from(mode).is_err() {
        check.refuse("mode", format!("{mode} is not a mode; take DENSE, SPARSE or HYBRID"));
    }
    let mode = match wanted_mode {
        SearchMode::Dense => Mode::Dense,
        SearchMode::Sparse => Mode::Sparse,
        SearchMode::Hybrid | SearchMode::Unspecified => Mode::Hybrid,
    };
    check.text("query", &query);
    let limit = check.count("limit", limit, 10, MAX_LIMIT) as usize;
    let filter = check.labels("filter", filter);
    let collection = check.collection(&collection);
    check.done(collection.map(|collection| Search { collection, query, limit, mode, rerank, filter }))
}

pub(crate) fn question(request: AnswerRequest) -> Result<Question> {
    let AnswerRequest { collection, question, passages, max_tokens, filter } = request;
    let mut check = Check::default();
    check.text("question", &question);
    let passages = check.count("passages", passages, 4, MAX_PASSAGES) as usize;
    let max_tokens = check.count("max_tokens", max_tokens, 96, MAX_ANSWER_TOKENS);
    let filter = check.labels("filter", filter);
    let collection = check.collection(&collection);
    check.done(collection.map(|collection| Question::new(collection, question, passages, max_tokens, filter)))
}

pub(crate) fn collection(name: &str) -> Result<Collection> {
    Collection::new(name).map_err(|problem| Error::invalid("collection", problem))
}

pub(crate) fn deletion(request: DeleteDocumentRequest) -> Result<(Collection, String)> {
    let DeleteDocumentRequest { collection, document_id } = request;
    let mut check = Check::default();
    check.document_id("document_id", &document_id);
    let collection = check.collection(&collection);
    check.done(collection.map(|collection| (collection, document_id)))
}

/// Takes a document; one that is not well-formed is reported like one that can't be read, and the others go on.
pub(crate) fn submission(request: IngestDocumentsRequest) -> Submission {
    let IngestDocumentsRequest { collection, document } = request;
    let mut check = Check::default();
    let collection = check.collection(&collection);
    if document.is_none() {
        check.refuse("document", "is missing");
    }
    let WireDocument { id, content_type, content, title, uri, metadata } = document.unwrap_or_default();
    if check.0.iter().all(|field| field.field != "document") {
        check.document_id("document.id", &id);
    }
    for (field, text, most) in [("document.title", &title, MAX_TITLE_BYTES), ("document.uri", &uri, MAX_URI_BYTES)] {
        if text.len() > most {
            check.refuse(field, format!("has {} bytes; at most {most} are taken", text.len()));
        }
    }
    let metadata = check.labels("document.metadata", metadata);
    let document = Document { id: id.clone(), content_type, content, title, uri, metadata };
    check.done(collection.map(|collection| (collection, document))).map_err(|error| Report {
        document_id: id,
        version: String::new(),
        fate: Fate::Failed { reason: error.reason(), message: error.to_string() },
    })
}

pub(crate) fn report(report: Report) -> IngestDocumentsResponse {
    let Report { document_id, version, fate } = report;
    let (state, chunks, reason, message) = match fate {
        Fate::Indexed { chunks } => (IngestState::Indexed, chunks, "", String::new()),
        Fate::Unchanged { chunks } => (IngestState::Unchanged, chunks, "", String::new()),
        Fate::Replaced { chunks } => (IngestState::Replaced, chunks, "", String::new()),
        Fate::Failed { reason, message } => (IngestState::Failed, 0, reason, message),
    };
    IngestDocumentsResponse { document_id, state: state.into(), version, chunks, reason: reason.to_owned(), message }
}

pub(crate) fn outcome(outcome: Outcome) -> SearchResponse {
    let Outcome { hits, timing: took, reranked } = outcome;
    SearchResponse { hits: hits.into_iter().map(hit).collect(), timing: Some(timing(took)), reranked }
}

pub(crate) fn part(part: Part) -> AnswerResponse {
    let event = match part {
        Part::Retrieved(Outcome { hits, timing: took, reranked: _ }) => {
            Event::Retrieved(Retrieved { hits: hits.into_iter().map(hit).collect(), timing: Some(timing(took)) })
        }
        Part::Token(text) => Event::Token(AnswerToken { text }),
        Part::Citation(citation) => Event::Citation(wire_citation(citation)),
        Part::Finish(Finish { abstained, prompt_tokens, completion_tokens, generator }) => {
            let outcome = if abstained.is_some() { AnswerOutcome::Abstained } else { AnswerOutcome::Answered };
            let reason = abstained.map_or("", |why| why.reason()).to_owned();
            Event::Finish(AnswerFinish { outcome: outcome.into(), reason, prompt_tokens, completion_tokens, generator })
        }
    };
    AnswerResponse { event: Some(event) }
}

pub(crate) fn contents(collection: &Collection, schema: Schema, counts: Counts) -> GetCollectionResponse {
    let Schema { embedding_digest, dimensions } = schema;
    let Counts { documents, chunks } = counts;
    GetCollectionResponse { collection: collection.to_string(), documents, chunks, embedding_digest, dimensions }
}

pub(crate) fn deleted(chunks: u32, at: SystemTime) -> DeleteDocumentResponse {
    DeleteDocumentResponse { chunks, time: Some(at.into()) }
}

fn hit(hit: Hit) -> WireHit {
    let Hit { found: Found { passage: found, score }, rerank_logit } = hit;
    WireHit { passage: Some(passage(found)), score, rerank_logit }
}

fn passage(passage: Passage) -> WirePassage {
    let Passage {
        document_id,
        revision: _,
        version,
        title,
        uri,
        chunk,
        chunks: _,
        headings,
        text,
        start,
        end,
        metadata,
    } = passage;
    let metadata = metadata.into_iter().collect();
    WirePassage { document_id, version, title, uri, chunk, headings, text, start, end, metadata }
}

fn wire_citation(citation: Citation) -> WireCitation {
    let Citation { passage, document_id, version, uri, span, quote, quote_hash, support } = citation;
    let number = passage as u32 + 1;
    WireCitation { number, document_id, version, uri, start: span.start, end: span.end, quote, quote_hash, support }
}

fn timing(timing: Timing) -> SearchTiming {
    let Timing { embed, search, rerank } = timing;
    let ms = |took: Duration| took.as_secs_f64() * 1000.0;
    SearchTiming { embed_ms: ms(embed), search_ms: ms(search), rerank_ms: ms(rerank) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(error: Error) -> Vec<String> {
        let Error::Invalid(fields) = error else { panic!("{error}") };
        fields.into_iter().map(|field| field.field).collect()
    }

    #[test]
    fn every_bad_field_of_a_search_is_named_at_once() {
        let request = SearchRequest {
            collection: "a b".into(),
            query: " ".into(),
            limit: 101,
            mode: 9,
            rerank: false,
            filter: [(String::new(), "x".into())].into(),
        };
        assert_eq!(fields(search(request).unwrap_err()), ["mode", "query", "limit", "filter", "collection"]);
    }

    #[test]
    fn zero_stands_for_the_default() {
        let search = search(SearchRequest { collection: "c".into(), query: "q".into(), ..Default::default() }).unwrap();
        assert_eq!((search.limit, search.mode), (10, Mode::Hybrid));
        let request = AnswerRequest { collection: "c".into(), question: "q".into(), ..Default::default() };
        let question = question(request).unwrap();
        assert_eq!((question.search.limit, question.max_tokens, question.search.rerank), (4, 96, true));
    }

    #[test]
    fn a_document_that_is_not_well_formed_is_reported_by_field() {
        let report = submission(IngestDocumentsRequest { collection: "c".into(), document: None }).unwrap_err();
        let Fate::Failed { reason, message } = report.fate else { panic!() };
        assert_eq!((reason, message.as_str()), ("INVALID_REQUEST", "`document` is missing"));
        let document = WireDocument { title: "x".repeat(2000), ..Default::default() };
        let request = IngestDocumentsRequest { collection: "c".into(), document: Some(document) };
        let Fate::Failed { message, .. } = submission(request).unwrap_err().fate else { panic!() };
        assert!(message.contains("`document.id`") && message.contains("`document.title`"), "{message}");
    }
}
