//! Pages of what a search found. A token is how many to pass over, as MLflow's are.

use crate::error::{Error, Result};

/// A page of what a search found.
#[derive(Clone, Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Where the next page begins, if there is one.
    pub next: Option<u64>,
}

impl<T> Page<T> {
    /// Cuts what was found after `offset` to `limit`; `found` holds one more where there is a next page.
    pub fn cut(mut found: Vec<T>, offset: u64, limit: u32) -> Self {
        let limit = limit as usize;
        let next = (found.len() > limit).then(|| offset + limit as u64);
        found.truncate(limit);
        Self { items: found, next }
    }
}

/// The token of the page that begins at `offset`.
pub fn token(offset: u64) -> String {
    hex::encode(format!("offset={offset}"))
}

/// How many to pass over; none where there is no token.
pub fn offset(token: &str) -> Result<u64> {
    if token.is_empty() {
        return Ok(0);
    }
    let read = hex::decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let offset = read.as_deref().and_then(|text| text.strip_prefix("offset=")).and_then(|text| text.parse().ok());
    let told = "Invalid page token, could not base64-decode: take one from an answer.";
    offset.ok_or_else(|| Error::Rejected(told.to_owned()))
}
