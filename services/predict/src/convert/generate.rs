//! Requests to generate and their tokens.

use verdict_api::predict as api;
use verdict_chassis::status::Field;
use verdict_inference::generation::{
    MAX_SCHEMA_BYTES, MAX_STOP_BYTES, MAX_STOPS, MAX_TOP_LOGPROBS, Message, Reason, Sampling, Step,
};

use super::{number, served_by};
use crate::{
    catalog::Found,
    error::{Error, Result},
    generate::{Finish, Start},
};

/// Tokens to generate when the caller does not say how many.
const USUAL_TOKENS: usize = 128;
const MAX_MESSAGES: usize = 1024;
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// A prompt or a conversation to continue.
#[derive(Debug)]
pub struct Generate {
    pub model: String,
    pub start: Start,
    pub sampling: Sampling,
    pub schema: Option<String>,
}

/// Checks a request to generate. `seed` is taken where the caller gave none.
pub fn generate(request: api::GenerateRequest, seed: u64) -> Result<Generate> {
    let api::GenerateRequest {
        model,
        prompt,
        max_tokens,
        temperature,
        top_p,
        top_k,
        seed: given,
        stop,
        messages,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        json_schema,
        top_logprobs,
    } = request;
    let mut problems = Vec::new();
    let mut wrong = |field: &str, problem: String| problems.push(Field { field: field.to_owned(), problem });
    match (prompt.is_empty(), messages.len()) {
        (true, 0) => wrong("prompt", "is empty, and there are no messages: one of them is expected".to_owned()),
        (true, 1..=MAX_MESSAGES) => {}
        (true, count) => wrong("messages", format!("has {count} messages: at most {MAX_MESSAGES}")),
        (false, 0) => {}
        (false, _) => wrong("messages", "come beside a prompt: one of them is expected".to_owned()),
    }
    if let Some((index, message)) = messages.iter().enumerate().find(|(_, it)| !ROLES.contains(&it.role.as_str())) {
        let problem = format!("is `{:.32}`: system, user or assistant is expected", message.role);
        wrong(&format!("messages[{index}].role"), problem);
    }
    let temperature = temperature.unwrap_or(0.0);
    if !(temperature.is_finite() && temperature >= 0.0) {
        wrong("temperature", format!("is {temperature}: a number from 0 up is expected"));
    }
    let top_p = top_p.unwrap_or(1.0);
    if !(top_p > 0.0 && top_p <= 1.0) {
        wrong("top_p", format!("is {top_p}: above 0 and at most 1 is expected"));
    }
    let min_p = min_p.unwrap_or(0.0);
    if !(0.0..=1.0).contains(&min_p) {
        wrong("min_p", format!("is {min_p}: 0 to 1 is expected"));
    }
    let repetition_penalty = repetition_penalty.unwrap_or(1.0);
    if !(repetition_penalty > 0.0 && repetition_penalty.is_finite()) {
        wrong("repetition_penalty", format!("is {repetition_penalty}: a number above 0 is expected"));
    }
    let (frequency_penalty, presence_penalty) = (frequency_penalty.unwrap_or(0.0), presence_penalty.unwrap_or(0.0));
    for (field, penalty) in [("frequency_penalty", frequency_penalty), ("presence_penalty", presence_penalty)] {
        if !(-2.0..=2.0).contains(&penalty) {
            wrong(field, format!("is {penalty}: -2 to 2 is expected"));
        }
    }
    if stop.len() > MAX_STOPS {
        wrong("stop", format!("has {} texts: at most {MAX_STOPS}", stop.len()));
    }
    if let Some((index, text)) =
        stop.iter().enumerate().find(|(_, text)| text.is_empty() || text.len() > MAX_STOP_BYTES)
    {
        wrong(&format!("stop[{index}]"), format!("has {} bytes: 1 to {MAX_STOP_BYTES} are expected", text.len()));
    }
    if !json_schema.is_empty() && !stop.is_empty() {
        wrong("stop", "comes with a json_schema, whose text it could cut: leave one of them out".to_owned());
    }
    if json_schema.len() > MAX_SCHEMA_BYTES {
        wrong("json_schema", format!("has {} bytes: at most {MAX_SCHEMA_BYTES}", json_schema.len()));
    }
    if top_logprobs as usize > MAX_TOP_LOGPROBS {
        wrong("top_logprobs", format!("is {top_logprobs}: at most {MAX_TOP_LOGPROBS}"));
    }
    if !problems.is_empty() {
        return Err(Error::Invalid(problems));
    }
    let sampling = Sampling {
        max_tokens: if max_tokens == 0 { USUAL_TOKENS } else { max_tokens as usize },
        temperature,
        top_p,
        top_k: top_k.unwrap_or(0) as usize,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        seed: given.unwrap_or(seed),
        stop,
        top_logprobs: top_logprobs as usize,
    };
    let start = if messages.is_empty() {
        Start::Prompt(prompt)
    } else {
        let message = |api::ChatMessage { role, content }: api::ChatMessage| Message { role, content };
        Start::Messages(messages.into_iter().map(message).collect())
    };
    Ok(Generate { model, start, sampling, schema: (!json_schema.is_empty()).then_some(json_schema) })
}

/// Streams one token; `text_of` says the text of a token by itself.
pub fn generated(step: Step, text_of: impl Fn(u32) -> String) -> api::GenerateResponse {
    let Step { id, text, logprob, top } = step;
    let top = top
        .into_iter()
        .map(|token| api::TokenLogprob { id: token.id, text: text_of(token.id), logprob: token.logprob })
        .collect();
    let token = api::GeneratedToken { id, text, logprob, top };
    api::GenerateResponse { event: Some(api::generate_response::Event::Token(token)) }
}

/// Streams the end of a generation.
pub fn finished(finish: Finish, found: &Found) -> api::GenerateResponse {
    let Finish { reason, prompt_tokens, cached_tokens, completion_tokens, timing } = finish;
    let reason = match reason {
        Reason::Stop => api::FinishReason::Stop,
        Reason::Length => api::FinishReason::Length,
    };
    let finish = api::GenerateFinish {
        reason: reason.into(),
        prompt_tokens: number(prompt_tokens),
        completion_tokens: number(completion_tokens),
        served_by: Some(served_by(found, timing)),
        cached_prompt_tokens: number(cached_tokens),
    };
    api::GenerateResponse { event: Some(api::generate_response::Event::Finish(finish)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(request: api::GenerateRequest) -> Vec<String> {
        let Err(Error::Invalid(fields)) = generate(request, 0) else { panic!("refused") };
        fields.into_iter().map(|field| field.field).collect()
    }

    #[test]
    fn a_generation_names_each_setting_that_is_wrong() {
        let request = api::GenerateRequest {
            temperature: Some(-1.0),
            top_p: Some(0.0),
            stop: vec!["a".to_owned(), String::new()],
            min_p: Some(f32::NAN),
            repetition_penalty: Some(0.0),
            frequency_penalty: Some(2.5),
            presence_penalty: Some(-3.0),
            json_schema: "{}".to_owned(),
            top_logprobs: 21,
            ..api::GenerateRequest::default()
        };
        assert_eq!(
            named(request),
            [
                "prompt",
                "temperature",
                "top_p",
                "min_p",
                "repetition_penalty",
                "frequency_penalty",
                "presence_penalty",
                "stop[1]",
                "stop",
                "top_logprobs"
            ]
        );
    }

    #[test]
    fn a_prompt_or_messages_but_not_both() {
        let message = |role: &str| api::ChatMessage { role: role.to_owned(), content: "hi".to_owned() };
        let messages = vec![message("user"), message("tool")];
        let request = api::GenerateRequest { messages, ..api::GenerateRequest::default() };
        assert_eq!(named(api::GenerateRequest { prompt: "x".to_owned(), ..request.clone() })[0], "messages");
        assert_eq!(named(request), ["messages[1].role"]);
        let request = api::GenerateRequest { messages: vec![message("user")], ..api::GenerateRequest::default() };
        let Start::Messages(messages) = generate(request, 0).unwrap().start else { panic!("messages") };
        assert_eq!(messages.len(), 1);
    }
}
