//! The call being served: its request id and its deadline.
//!
//! The server stack sets it around the handler and around every poll of a streamed answer, and [`crate::client`] reads
//! it. A task that a handler spawns loses it, so spawn with [`spawn`], which carries the tracing span as well.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};
use tokio::task::JoinHandle;
use tracing::Instrument;
use uuid::Uuid;

pub(crate) const REQUEST_ID: &str = "x-request-id";

tokio::task_local! {
    static CURRENT: RequestContext;
}

/// What a call brings along besides its message.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The caller's `x-request-id`, or one made here; handed back in the answer's headers.
    pub request_id: String,
    /// When the caller stops waiting; `None` for a stream that has no `grpc-timeout`.
    pub deadline: Option<Instant>,
}

impl RequestContext {
    /// Makes a context with a new request id and no deadline, for work that no call started.
    pub fn fresh() -> Self {
        Self { request_id: Uuid::now_v7().to_string(), deadline: None }
    }

    /// Returns the time that is left: `None` without a deadline, zero when it has passed.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

/// Returns the context the server stack put into the request, or a fresh one for a request that didn't come through it.
pub fn of<T>(request: &tonic::Request<T>) -> RequestContext {
    request.extensions().get().cloned().unwrap_or_else(RequestContext::fresh)
}

/// Returns the context of the call this task works for.
pub fn current() -> Option<RequestContext> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Runs `future` as part of the call that `context` belongs to.
pub fn scope<F: Future>(context: RequestContext, future: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(context, future)
}

/// Spawns a task that keeps the current call's context and span: its client calls stay in the trace and in the deadline.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match current() {
        Some(context) => tokio::spawn(scope(context, future).in_current_span()),
        None => tokio::spawn(future.in_current_span()),
    }
}

pub(crate) fn enter<R>(context: &RequestContext, work: impl FnOnce() -> R) -> R {
    CURRENT.sync_scope(context.clone(), work)
}

/// Takes the caller's request id if it is 1 to 128 visible ASCII characters, else makes one.
pub fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()))
        .map_or_else(|| Uuid::now_v7().to_string(), str::to_owned)
}

/// Names the call in the headers of its answer.
pub fn write_request_id(id: &str, headers: &mut HeaderMap) {
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, value);
    }
}
