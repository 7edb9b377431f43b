//! Between the wire and the domain. Requests are checked here as far as that needs no model; what is wrong is named.

pub mod decision;
pub mod registry;

use std::collections::HashMap;

use prost_types::Timestamp;
use time::OffsetDateTime;
use verdict_api::predict as api;
use verdict_chassis::status::Field;
use verdict_inference::{
    generation::{Reason, Sampling, Step},
    text::Token,
};

use crate::{
    catalog::{Found, Standing, State},
    decision::Value,
    error::{Error, Result},
    generate::Finish,
    schema::{Problems, Schema},
    text::{Item, ItemFailure, MAX_TEXT, Score, Vector},
    timing::Timing,
};

/// Most texts of one request.
pub const MAX_INPUTS: usize = 1024;
/// Most rows by name in one request: each costs far more than a row of a matrix.
pub const MAX_ROWS: usize = 10_000;
/// Most bytes of a rerank query: it is tokenized with every document.
const MAX_QUERY: usize = 16 << 10;
/// Tokens to generate when the caller does not say how many.
const USUAL_TOKENS: usize = 128;
const MAX_STOPS: usize = 16;
const MAX_STOP: usize = 256;

/// Texts to embed.
pub struct Embed {
    pub model: String,
    pub inputs: Vec<String>,
    pub truncate: bool,
    pub normalize: Option<bool>,
}

/// Documents to rank.
pub struct Rerank {
    pub model: String,
    pub query: String,
    pub documents: Vec<String>,
    pub top_n: usize,
}

/// A prompt to continue.
pub struct Generate {
    pub model: String,
    pub prompt: String,
    pub sampling: Sampling,
}

/// Checks a request to embed.
pub fn embed(request: api::EmbedRequest) -> Result<Embed> {
    let api::EmbedRequest { model, inputs, truncate, normalize } = request;
    several("inputs", inputs.len())?;
    Ok(Embed { model, inputs, truncate, normalize })
}

/// Checks a request to rerank.
pub fn rerank(request: api::RerankRequest) -> Result<Rerank> {
    let api::RerankRequest { model, query, documents, top_n } = request;
    several("documents", documents.len())?;
    if query.trim().is_empty() || query.len() > MAX_QUERY {
        let problem = format!("has {} bytes: a text of at most {MAX_QUERY} is expected", query.len());
        return Err(Error::field("query", problem));
    }
    let top_n = match top_n as usize {
        0 => documents.len(),
        most if most > MAX_INPUTS => {
            return Err(Error::field("top_n", format!("is {most}: at most {MAX_INPUTS}, or 0 for all")));
        }
        most => most,
    };
    Ok(Rerank { model, query, documents, top_n })
}

/// Checks a request to generate. `seed` is taken where the caller gave none.
pub fn generate(request: api::GenerateRequest, seed: u64) -> Result<Generate> {
    let api::GenerateRequest { model, prompt, max_tokens, temperature, top_p, top_k, seed: given, stop } = request;
    let mut problems = Vec::new();
    let mut wrong = |field: &str, problem: String| problems.push(Field { field: field.to_owned(), problem });
    if prompt.is_empty() {
        wrong("prompt", "is empty".to_owned());
    }
    let temperature = temperature.unwrap_or(0.0);
    if !(temperature.is_finite() && temperature >= 0.0) {
        wrong("temperature", format!("is {temperature}: a number from 0 up is expected"));
    }
    let top_p = top_p.unwrap_or(1.0);
    if !(top_p > 0.0 && top_p <= 1.0) {
        wrong("top_p", format!("is {top_p}: above 0 and at most 1 is expected"));
    }
    if stop.len() > MAX_STOPS {
        wrong("stop", format!("has {} texts: at most {MAX_STOPS}", stop.len()));
    }
    if let Some((index, text)) = stop.iter().enumerate().find(|(_, text)| text.is_empty() || text.len() > MAX_STOP) {
        wrong(&format!("stop[{index}]"), format!("has {} bytes: 1 to {MAX_STOP} are expected", text.len()));
    }
    if !problems.is_empty() {
        return Err(Error::Invalid(problems));
    }
    let max_tokens = if max_tokens == 0 { USUAL_TOKENS } else { max_tokens as usize };
    let top_k = top_k.unwrap_or(0) as usize;
    let sampling = Sampling { max_tokens, temperature, top_p, top_k, seed: given.unwrap_or(seed), stop };
    Ok(Generate { model, prompt, sampling })
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

/// Returns how many bytes of cells a request asks for, which says whether it is laid out in place.
pub fn cell_bytes(input: Option<&api::predict_request::Input>) -> usize {
    use api::predict_request::Input;
    let cells = match input {
        None => 0,
        Some(Input::Matrix(matrix)) => matrix.values.len(),
        Some(Input::Rows(rows)) => rows.rows.iter().map(|row| row.features.len()).sum(),
    };
    cells * size_of::<f32>()
}

/// Lays the rows of a request out as the model's columns, row-major.
pub fn cells(input: Option<api::predict_request::Input>, schema: &Schema) -> Result<Vec<f32>> {
    use api::predict_request::Input;
    match input {
        None => Err(Error::field("input", "is missing: `rows` or `matrix` is expected")),
        Some(Input::Matrix(api::Matrix { columns, values })) => {
            schema.check_matrix(columns as usize, &values).into_result().map_err(Error::Invalid)?;
            Ok(values)
        }
        Some(Input::Rows(api::Rows { rows })) => {
            if rows.is_empty() {
                return Err(Error::field("rows", "is empty: at least one row is expected"));
            }
            if rows.len() > MAX_ROWS {
                let problem = format!("has {} rows: at most {MAX_ROWS} by name, more as `matrix`", rows.len());
                return Err(Error::field("rows", problem));
            }
            let mut cells = Vec::with_capacity(rows.len() * schema.inputs().len());
            let mut problems = Problems::default();
            for (index, api::Row { features }) in rows.into_iter().enumerate() {
                let row = values(features);
                let named = row.iter().map(|(name, value)| (name.as_str(), value.as_ref()));
                schema.lay_out(named, &|| format!("rows[{index}].features"), &mut cells, &mut problems);
                if problems.is_full() {
                    break;
                }
            }
            problems.into_result().map_err(Error::Invalid)?;
            Ok(cells)
        }
    }
}

/// Takes features as they are: `None` for a missing value.
pub(crate) fn values(features: HashMap<String, api::Value>) -> Vec<(String, Option<Value>)> {
    use api::value::Kind;
    let value = |api::Value { kind }| {
        kind.map(|kind| match kind {
            Kind::Number(number) => Value::Number(number),
            Kind::Text(text) => Value::Text(text),
            Kind::Boolean(truth) => Value::Boolean(truth),
        })
    };
    features.into_iter().map(|(name, wire)| (name, value(wire))).collect()
}

/// Says which model answered, and what it took.
pub fn served_by(found: &Found, timing: Timing) -> api::ServedBy {
    let Timing { queue, compute, batch } = timing;
    api::ServedBy {
        model: found.model.release.model.clone(),
        version: found.model.release.version,
        alias: found.alias.clone(),
        digest: found.model.release.digest.clone(),
        queue_ms: queue.as_secs_f64() * 1e3,
        compute_ms: compute.as_secs_f64() * 1e3,
        batch_size: number(batch),
    }
}

/// Answers one text of several.
pub fn embedding(item: Item<Vector>) -> api::Embedding {
    match item {
        Ok(Vector { values, tokens }) => api::Embedding { values, tokens: number(tokens), error: None },
        Err(failure) => api::Embedding { error: Some(item_error(failure)), ..api::Embedding::default() },
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
                score: 1.0 / (1.0 + (-logit).exp()),
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

/// Streams one token.
pub fn generated(step: Step) -> api::GenerateResponse {
    let Step { id, text, logprob } = step;
    let token = api::GeneratedToken { id, text, logprob };
    api::GenerateResponse { event: Some(api::generate_response::Event::Token(token)) }
}

/// Streams the end of a generation.
pub fn finished(finish: Finish, found: &Found) -> api::GenerateResponse {
    let Finish { reason, prompt_tokens, completion_tokens, timing } = finish;
    let reason = match reason {
        Reason::Stop => api::FinishReason::Stop,
        Reason::Length => api::FinishReason::Length,
    };
    let finish = api::GenerateFinish {
        reason: reason.into(),
        prompt_tokens: number(prompt_tokens),
        completion_tokens: number(completion_tokens),
        served_by: Some(served_by(found, timing)),
    };
    api::GenerateResponse { event: Some(api::generate_response::Event::Finish(finish)) }
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

/// Tells where a configured model stands.
pub fn standing(standing: Standing) -> api::ServedModel {
    let Standing { reference, state, serving, message } = standing;
    let state = match state {
        State::Loading => api::ServedModelState::Loading,
        State::Serving => api::ServedModelState::Serving,
        State::Failed => api::ServedModelState::Failed,
    };
    let (version, digest) = serving.unwrap_or_default();
    api::ServedModel { reference: reference.to_string(), state: state.into(), version, digest, message }
}

/// Writes a time.
pub(crate) fn timestamp(time: OffsetDateTime) -> Timestamp {
    // Nanoseconds of a second are below a thousand million, which an i32 holds.
    Timestamp { seconds: time.unix_timestamp(), nanos: i32::try_from(time.nanosecond()).unwrap_or(0) }
}

/// Writes a count; one that no message can hold is written as the largest.
pub(crate) fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn item_error(failure: ItemFailure) -> api::ItemError {
    let ItemFailure { code, reason, message } = failure;
    api::ItemError { code: code.into(), reason: reason.to_owned(), message }
}

fn several(field: &str, count: usize) -> Result<()> {
    if (1..=MAX_INPUTS).contains(&count) {
        return Ok(());
    }
    Err(Error::field(field, format!("has {count} texts: 1 to {MAX_INPUTS} are expected")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_names_each_setting_that_is_wrong() {
        let request = api::GenerateRequest {
            temperature: Some(-1.0),
            top_p: Some(0.0),
            stop: vec!["a".to_owned(), String::new()],
            ..api::GenerateRequest::default()
        };
        let Err(Error::Invalid(fields)) = generate(request, 0) else { panic!("refused") };
        let named: Vec<_> = fields.iter().map(|field| field.field.as_str()).collect();
        assert_eq!(named, ["prompt", "temperature", "top_p", "stop[1]"]);
    }

    #[test]
    fn too_many_rows_and_too_many_problems_end_the_work_early() {
        let schema = Schema::new(Vec::new(), 2, &[]).unwrap();
        let refused = |rows: usize| {
            let wrong = HashMap::from([("x".to_owned(), api::Value::default())]);
            let rows = vec![api::Row { features: wrong }; rows];
            match cells(Some(api::predict_request::Input::Rows(api::Rows { rows })), &schema) {
                Err(Error::Invalid(fields)) => fields,
                other => panic!("not refused: {other:?}"),
            }
        };
        let many = refused(MAX_ROWS + 1);
        assert_eq!((many.len(), many[0].field.as_str()), (1, "rows"));
        assert!(many[0].problem.contains("at most 10000 by name, more as `matrix`"), "{}", many[0].problem);
        let wrong = refused(MAX_ROWS);
        assert_eq!(wrong[9].field, "rows[9].features.x");
        assert!(wrong[9].problem.ends_with("(and at least 1 more)"), "{}", wrong[9].problem);
    }

    #[test]
    fn ranking_is_best_first_and_stable() {
        let score = |logit| Ok(Score { logit, tokens: 3 });
        let broken = ItemFailure { code: tonic::Code::Internal, reason: "X", message: String::new() };
        let (results, failed) = ranked(vec![score(1.0), Err(broken), score(2.0), score(1.0)], 2);
        assert_eq!(results.iter().map(|document| document.index).collect::<Vec<_>>(), [2, 0]);
        assert_eq!(failed[0].index, 1);
    }
}
