//! Decisions on the wire.

use uuid::Uuid;
use verdict_api::predict as api;

use super::{number, tabular::values, timestamp};
use crate::{
    decide::{Asked, Case},
    decision::{Decision, Reason, Value},
    error::{Error, Result},
    routes::is_route_name,
};

const USUAL_PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;
const MAX_REQUEST_ID: usize = 128;

/// Which decisions to list.
pub struct Page {
    pub model: Option<String>,
    pub before: Option<Uuid>,
    pub size: u32,
}

/// Checks a request to decide.
pub fn case(request: api::DecideRequest) -> Result<Case> {
    let api::DecideRequest { model, features, request_id, max_reasons } = request;
    let asked = match model.parse() {
        Ok(reference) => Asked::Model(reference),
        Err(_) if is_route_name(&model) => Asked::Route(model),
        Err(problem) => return Err(Error::model(&problem)),
    };
    if request_id.len() > MAX_REQUEST_ID || request_id.chars().any(char::is_control) {
        let problem = format!("has {} bytes: 1 to {MAX_REQUEST_ID}, without control characters", request_id.len());
        return Err(Error::field("request_id", problem));
    }
    let present = values(features).into_iter().filter_map(|(name, value)| Some((name, value?)));
    Ok(Case {
        asked,
        features: present.collect(),
        request_id: (!request_id.is_empty()).then_some(request_id),
        max_reasons: max_reasons as usize,
    })
}

/// Checks the id of a decision.
pub fn id(field: &str, text: &str) -> Result<Uuid> {
    let wrong = |_| Error::field(field, "is not a decision id: the UUID that Decide answered is expected");
    Uuid::parse_str(text).map_err(wrong)
}

/// Checks a request to list.
pub fn page(request: api::ListDecisionsRequest) -> Result<Page> {
    let api::ListDecisionsRequest { model, page_size, page_token } = request;
    let size = match u32::try_from(page_size) {
        Ok(0) => USUAL_PAGE,
        Ok(size @ 1..=MAX_PAGE) => size,
        Ok(_) | Err(_) => {
            return Err(Error::field("page_size", format!("is {page_size}: 1 to {MAX_PAGE}, or 0 for {USUAL_PAGE}")));
        }
    };
    let before = match page_token.as_str() {
        "" => None,
        token => Some(Uuid::parse_str(token).map_err(|_| {
            Error::field(
                "page_token",
                "is not one this call answered: take next_page_token as it is, or leave it empty",
            )
        })?),
    };
    Ok(Page { model: (!model.is_empty()).then_some(model), before, size })
}

/// Answers a page: `decisions` were asked for with one more than `size`, which shows whether there are more.
pub fn listed(mut decisions: Vec<Decision>, size: u32) -> api::ListDecisionsResponse {
    let more = number(decisions.len()) > size;
    decisions.truncate(size as usize);
    let last = decisions.last().filter(|_| more);
    let next_page_token = last.map(|decision| decision.id.to_string()).unwrap_or_default();
    api::ListDecisionsResponse { decisions: decisions.into_iter().map(decision).collect(), next_page_token }
}

/// Writes a decision.
pub fn decision(decision: Decision) -> api::Decision {
    let Decision {
        id,
        request_id,
        time,
        model,
        version,
        alias,
        digest,
        features,
        features_hash,
        score,
        margin,
        outcome,
        reasons,
        policy,
        trace_id,
        route,
    } = decision;
    let reason = |Reason { code, text, feature, contribution }| api::Reason { code, text, feature, contribution };
    api::Decision {
        decision_id: id.to_string(),
        request_id,
        time: Some(timestamp(time)),
        model,
        version,
        alias,
        digest,
        features: features.into_iter().map(|(name, value)| (name, wire(value))).collect(),
        features_hash,
        score,
        margin,
        outcome,
        reasons: reasons.into_iter().map(reason).collect(),
        policy,
        trace_id,
        route,
    }
}

fn wire(value: Value) -> api::Value {
    use api::value::Kind;
    let kind = match value {
        Value::Number(number) => Kind::Number(number),
        Value::Text(text) => Kind::Text(text),
        Value::Boolean(truth) => Kind::Boolean(truth),
    };
    api::Value { kind: Some(kind) }
}
