//! How long an answer took, told to the caller.

use std::time::{Duration, Instant};

use crate::{
    batch::{Failure, Ticket},
    error::{Error, Result},
};

/// What a call waited and worked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// From acceptance to the start of the first batch.
    pub queue: Duration,
    /// From the start of the first batch to the end of the last.
    pub compute: Duration,
    /// Inputs computed together with one of the call's own, in the largest batch.
    pub batch: usize,
    /// Tokens of the call's inputs.
    pub tokens: usize,
    /// Inputs answered from the response cache.
    pub cached: usize,
}

/// Waits for the answers to one call's items. An item that panicked is an error of its own; an expired one ends the call.
pub async fn gather<O>(accepted: Instant, tickets: Vec<Ticket<O>>) -> Result<(Vec<Option<O>>, Timing)> {
    let mut outputs = Vec::with_capacity(tickets.len());
    let mut span: Option<(Instant, Instant)> = None;
    let (mut batch, mut cached) = (0, 0);
    for ticket in tickets {
        match ticket.await.unwrap_or(Err(Failure::Panicked)) {
            Ok(done) if done.is_cached => {
                cached += 1;
                outputs.push(Some(done.output));
            }
            Ok(done) => {
                let (start, end) = span.unwrap_or((done.started, done.ended));
                span = Some((start.min(done.started), end.max(done.ended)));
                batch = batch.max(done.batch);
                outputs.push(Some(done.output));
            }
            Err(Failure::Panicked) => outputs.push(None),
            Err(failure @ (Failure::Expired | Failure::PushedOut(_))) => return Err(Error::failed(failure)),
        }
    }
    let timing = span.map_or_else(Timing::default, |(started, ended)| Timing {
        queue: started.saturating_duration_since(accepted),
        compute: ended - started,
        batch,
        ..Timing::default()
    });
    let timing = Timing { cached, ..timing };
    Ok((outputs, timing))
}
