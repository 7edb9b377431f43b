//! Questions, and answers that say what they rest on.

use std::io::Write;

use anyhow::{Result, bail};
use serde_json::json;
use verdict_api::rag::{
    AnswerOutcome, AnswerRequest, SearchRequest, answer_response::Event, rag_service_client::RagServiceClient,
};
use verdict_chassis::client;

use super::failed;
use crate::{
    Settings,
    story::ingest::{CRANFIELD, DOCS},
    tell::{self, Step},
};

const QUESTIONS: [(&str, &str); 4] = [
    (CRANFIELD, "What is the effect of wing camber on the lift?"),
    (CRANFIELD, "What causes the slipstream to increase lift on a wing?"),
    (DOCS, "Which three models does rag need?"),
    (CRANFIELD, "Who won the football world cup in 1998?"),
];

/// Searches once, then asks each question and prints its answer with citations, or that there is none.
pub(super) async fn questions(settings: &Settings) -> Result<()> {
    let mut rag = RagServiceClient::new(client::connect(&format!("http://{}", settings.rag))?);

    let query = "boundary layer on a flat plate with heat transfer";
    let step = Step::begin(format!("Search Cranfield: “{query}”"));
    let request = SearchRequest {
        collection: CRANFIELD.into(),
        query: query.into(),
        limit: 3,
        rerank: true,
        ..Default::default()
    };
    tell::grpcurl(
        settings.rag,
        "verdict.rag.v1.RagService/Search",
        &json!({"collection": CRANFIELD, "query": query, "limit": 3, "rerank": true}),
    );
    let found = rag.search(request).await.map_err(|status| failed("Search", status))?.into_inner();
    for hit in &found.hits {
        let passage = hit.passage.clone().unwrap_or_default();
        tell::detail(format!(
            "{:.4}  {} · {}",
            hit.score,
            passage.document_id,
            tell::one_line(&format!("{}: {}", passage.title, passage.text), 110)
        ));
    }
    let timing = found.timing.unwrap_or_default();
    step.end(format!(
        "embed {:.0} ms, dense + BM25 {:.0} ms, rerank {:.0} ms",
        timing.embed_ms, timing.search_ms, timing.rerank_ms
    ));

    for (collection, question) in QUESTIONS {
        let step = Step::begin(format!("Ask {collection}: “{question}”"));
        tell::grpcurl(
            settings.rag,
            "verdict.rag.v1.RagService/Answer",
            &json!({"collection": collection, "question": question}),
        );
        let request = AnswerRequest { collection: collection.into(), question: question.into(), ..Default::default() };
        let mut answer = rag.answer(request).await.map_err(|status| failed("Answer", status))?.into_inner();
        let mut started = false;
        let mut finish = None;
        while let Some(message) = answer.message().await.map_err(|status| failed("Answer", status))? {
            match message.event {
                Some(Event::Retrieved(retrieved)) => {
                    for (number, hit) in retrieved.hits.iter().enumerate() {
                        let passage = hit.passage.clone().unwrap_or_default();
                        tell::detail(format!(
                            "passage [{}] {} · {}",
                            number + 1,
                            passage.document_id,
                            tell::one_line(&passage.text, 100)
                        ));
                    }
                }
                Some(Event::Token(token)) => {
                    if !std::mem::replace(&mut started, true) {
                        print!("   answer: ");
                    }
                    print!("{}", token.text);
                    std::io::stdout().flush()?;
                }
                Some(Event::Citation(citation)) => {
                    if std::mem::take(&mut started) {
                        println!();
                    }
                    tell::detail(format!(
                        "citation [{}] {} bytes {}–{} support {:.2}: “{}”",
                        citation.number,
                        citation.document_id,
                        citation.start,
                        citation.end,
                        citation.support,
                        tell::one_line(&citation.quote, 160)
                    ));
                }
                Some(Event::Finish(end)) => {
                    if std::mem::take(&mut started) {
                        println!();
                    }
                    finish = Some(end);
                }
                None => {}
            }
        }
        let Some(finish) = finish else { bail!("the answer ended without saying how") };
        match finish.outcome() {
            AnswerOutcome::Answered => step.end(format!(
                "answered by {}, {} + {} tokens",
                finish.generator, finish.prompt_tokens, finish.completion_tokens
            )),
            AnswerOutcome::Abstained | AnswerOutcome::Unspecified => {
                step.end(format!("abstained: {}", finish.reason));
            }
        }
    }
    Ok(())
}
