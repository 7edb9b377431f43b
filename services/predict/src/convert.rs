//! Between the wire and the domain. Requests are checked here as far as that needs no model; what is wrong is named.

pub mod decision;
pub mod generate;
pub mod inference;
pub mod registry;
pub mod serving;
pub mod tabular;
pub mod text;

use prost_types::Timestamp;
use time::OffsetDateTime;
use verdict_api::predict as api;

use crate::{
    catalog::{Found, Standing, State},
    error::{Error, Result},
    text::ItemFailure,
    timing::Timing,
};

/// Most texts of one request.
pub const MAX_INPUTS: usize = 1024;

/// Says which model answered, and what it took.
pub fn served_by(found: &Found, timing: Timing) -> api::ServedBy {
    let Timing { queue, compute, batch, tokens, cached } = timing;
    api::ServedBy {
        model: found.model.release.model.clone(),
        version: found.model.release.version,
        alias: found.alias.clone(),
        digest: found.model.release.digest.clone(),
        queue_ms: queue.as_secs_f64() * 1e3,
        compute_ms: compute.as_secs_f64() * 1e3,
        batch_size: number(batch),
        input_tokens: number(tokens),
        cached_inputs: number(cached),
    }
}

/// Tells where a configured model stands.
pub fn standing(standing: Standing) -> api::ServedModel {
    let Standing { reference, state, serving, message, is_unreachable: _ } = standing;
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
