//! Requests and answers about texts.

use verdict_api::predict as api;
use verdict_inference::text::Token;

use super::{MAX_INPUTS, item_error, number, several};
use crate::{
    error::{Error, Result},
    text::{Item, LabelScore, Labels, MAX_TEXT, Score, SparseVector, Vector},
};

/// Most bytes of a rerank query: it is tokenized with every document.
const MAX_QUERY: usize = 16 << 10;

/// Texts to embed.
pub struct Embed {
    pub model: String,
    pub inputs: Vec<String>,
    pub truncate: bool,
    pub normalize: Option<bool>,
}

/// Texts to embed or to classify, of whose answers only the best are wanted.
pub struct Top {
    pub model: String,
    pub inputs: Vec<String>,
    pub truncate: bool,
    /// `None`: all.
    pub top: Option<usize>,
}

/// Documents to rank.
pub struct Rerank {
    pub model: String,
    pub query: String,
    pub documents: Vec<String>,
    pub top_n: usize,
}

/// Checks a request to embed.
pub fn embed(request: api::EmbedRequest) -> Result<Embed> {
    let api::EmbedRequest { model, inputs, truncate, normalize } = request;
    several("inputs", inputs.len())?;
    Ok(Embed { model, inputs, truncate, normalize })
}

/// Checks a request to embed into sparse vectors.
pub fn embed_sparse(request: api::EmbedSparseRequest) -> Result<Top> {
    let api::EmbedSparseRequest { model, inputs, truncate, top_k } = request;
    several("inputs", inputs.len())?;
    Ok(Top { model, inputs, truncate, top: top(top_k) })
}

/// Checks a request to classify.
pub fn classify(request: api::ClassifyRequest) -> Result<Top> {
    let api::ClassifyRequest { model, inputs, truncate, top_k } = request;
    several("inputs", inputs.len())?;
    Ok(Top { model, inputs, truncate, top: top(top_k) })
}

fn top(top_k: u32) -> Option<usize> {
    (top_k > 0).then_some(top_k as usize)
}

/// Checks a request to rerank.
pub fn rerank(request: api::RerankRequest) -> Result<Rerank> {
    let api::RerankRequest { model, query, documents, top_n } = request;
    several("documents", documents.len())?;
    check_query(&query).map_err(|problem| Error::field("query", problem))?;
    let top_n = match top_n as usize {
        0 => documents.len(),
        most if most > MAX_INPUTS => {
            return Err(Error::field("top_n", format!("is {most}: at most {MAX_INPUTS}, or 0 for all")));
        }
        most => most,
    };
    Ok(Rerank { model, query, documents, top_n })
}

/// Says what is wrong with a rerank query.
pub(crate) fn check_query(query: &str) -> std::result::Result<(), String> {
    if query.trim().is_empty() || query.len() > MAX_QUERY {
        return Err(format!("has {} bytes: a text of at most {MAX_QUERY} is expected", query.len()));
    }
    Ok(())
}

/// Turns a logit into a score from 0 to 1.
pub(crate) fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// Checks a request to tokenize: model, texts, whether special tokens are wanted.
pub fn tokenize(request: api::TokenizeRequest) -> Result<(String, Vec<String>, bool)> {
    let api::TokenizeRequest { model, inputs, add_special_tokens } = request;
    several("inputs", inputs.len())?;
    match inputs.iter().position(|input| input.len() > MAX_TEXT) {
        Some(index) => {
            let problem = format!("has {} bytes: at most {MAX_TEXT} are taken", inputs[index].len());
            Err(Error::field(format!("inputs[{index}]"), problem))
        }
        None => Ok((model, inputs, add_special_tokens)),
    }
}

/// Answers one text of several.
pub fn embedding(item: Item<Vector>) -> api::Embedding {
    match item {
        Ok(Vector { values, tokens }) => api::Embedding { values, tokens: number(tokens), error: None },
        Err(failure) => api::Embedding { error: Some(item_error(failure)), ..api::Embedding::default() },
    }
}

/// Answers one text of several.
pub fn sparse_embedding(item: Item<SparseVector>) -> api::SparseEmbedding {
    match item {
        Ok(SparseVector { pairs, tokens }) => {
            let (indices, values) = pairs.into_iter().unzip();
            api::SparseEmbedding { indices, values, tokens: number(tokens), error: None }
        }
        Err(failure) => api::SparseEmbedding { error: Some(item_error(failure)), ..api::SparseEmbedding::default() },
    }
}

/// Answers one text of several.
pub fn classification(item: Item<Labels>) -> api::Classification {
    match item {
        Ok(Labels { scores, tokens }) => {
            let score = |LabelScore { label, score, logit }| api::LabelScore { label, score, logit };
            let labels = scores.into_iter().map(score).collect();
            api::Classification { labels, tokens: number(tokens), error: None }
        }
        Err(failure) => api::Classification { error: Some(item_error(failure)), ..api::Classification::default() },
    }
}

/// Splits scored documents into the best `top_n`, best first, and those that could not be scored.
pub fn ranked(items: Vec<Item<Score>>, top_n: usize) -> (Vec<api::RankedDocument>, Vec<api::RankedDocument>) {
    let (mut results, mut failed) = (Vec::with_capacity(items.len()), Vec::new());
    for (index, item) in items.into_iter().enumerate() {
        let index = number(index);
        match item {
            Ok(Score { logit, tokens }) => results.push(api::RankedDocument {
                index,
                score: sigmoid(logit),
                logit,
                tokens: number(tokens),
                error: None,
            }),
            Err(failure) => {
                let error = Some(item_error(failure));
                failed.push(api::RankedDocument { index, error, ..api::RankedDocument::default() });
            }
        }
    }
    // Stable: equal scores keep the order of the request.
    results.sort_by(|a, b| b.logit.total_cmp(&a.logit));
    results.truncate(top_n);
    (results, failed)
}

/// Answers the tokens of one text.
pub fn tokens(tokens: Vec<Token>) -> api::Tokens {
    let mut answer = api::Tokens::default();
    for Token { id, start, end } in tokens {
        answer.ids.push(id);
        answer.starts.push(number(start));
        answer.ends.push(number(end));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::ItemFailure;

    #[test]
    fn ranking_is_best_first_and_stable() {
        let score = |logit| Ok(Score { logit, tokens: 3 });
        let broken = ItemFailure { code: tonic::Code::Internal, reason: "X", message: String::new() };
        let (results, failed) = ranked(vec![score(1.0), Err(broken), score(2.0), score(1.0)], 2);
        assert_eq!(results.iter().map(|document| document.index).collect::<Vec<_>>(), [2, 0]);
        assert_eq!(failed[0].index, 1);
    }
}
