//! Requests to generate and their tokens.

use verdict_api::predict as api;
use verdict_chassis::status::Field;
use verdict_inference::generation::{Reason, Sampling, Step};

use super::{number, served_by};
use crate::{
    catalog::Found,
    error::{Error, Result},
    generate::Finish,
};

/// Tokens to generate when the caller does not say how many.
const USUAL_TOKENS: usize = 128;
const MAX_STOPS: usize = 16;
const MAX_STOP: usize = 256;

/// A prompt to continue.
pub struct Generate {
    pub model: String,
    pub prompt: String,
    pub sampling: Sampling,
}

/// Checks a request to generate. `seed` is taken where the caller gave none.
pub fn generate(request: api::GenerateRequest, seed: u64) -> Result<Generate> {
    let api::GenerateRequest { model, prompt, max_tokens, temperature, top_p, top_k, seed: given, stop, .. } = request;
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

/// Streams one token.
pub fn generated(step: Step) -> api::GenerateResponse {
    let Step { id, text, logprob } = step;
    let token = api::GeneratedToken { id, text, logprob, top: Vec::new() };
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
        cached_prompt_tokens: 0,
    };
    api::GenerateResponse { event: Some(api::generate_response::Event::Finish(finish)) }
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
}
