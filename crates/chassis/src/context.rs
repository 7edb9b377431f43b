//! The call being served: its request id and its deadline.
//!
//! The server stack sets it around the handler and around every poll of a streamed answer, and [`crate::client`] reads
//! it. A task that a handler spawns loses it, so spawn with [`spawn`], which carries the tracing span as well.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, header};
use tokio::task::JoinHandle;
use tracing::Instrument;
use uuid::Uuid;

pub(crate) const REQUEST_ID: &str = "x-request-id";
const CALLER: &str = "x-caller";
/// Longest name of a caller, in bytes.
const MAX_CALLER: usize = 128;

tokio::task_local! {
    static CURRENT: RequestContext;
}

/// What a call brings along besides its message.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The caller's `x-request-id`, or one made here; handed back in the answer's headers.
    pub request_id: String,
    /// Who calls, by the name they gave: `x-caller`, else the user of HTTP basic authentication. Nobody has checked it.
    pub caller: Option<String>,
    /// When the caller stops waiting; `None` for a stream that has no `grpc-timeout`.
    pub deadline: Option<Instant>,
}

impl RequestContext {
    /// Makes a context with a new request id and no deadline, for work that no call started.
    pub fn fresh() -> Self {
        Self { request_id: Uuid::now_v7().to_string(), caller: None, deadline: None }
    }

    /// Reads what the headers of a call say; `deadline` is when its caller stops waiting.
    pub fn from_headers(headers: &HeaderMap, deadline: Option<Instant>) -> Self {
        Self { request_id: request_id(headers), caller: caller(headers), deadline }
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

fn caller(headers: &HeaderMap) -> Option<String> {
    let is_name = |name: &String| {
        (1..=MAX_CALLER).contains(&name.len()) && name.trim() == name && !name.chars().any(char::is_control)
    };
    let named = headers.get(CALLER).and_then(|value| std::str::from_utf8(value.as_bytes()).ok()).map(str::to_owned);
    let user = || {
        let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, credentials) = value.split_once(' ')?;
        let credentials = scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(credentials.trim()))?.ok()?;
        let user = credentials.split(|byte| *byte == b':').next()?;
        Some(std::str::from_utf8(user).ok()?.to_owned())
    };
    named.or_else(user).filter(is_name)
}

/// Hands on who called, and under which id.
pub(crate) fn write(context: &RequestContext, headers: &mut HeaderMap) {
    if !headers.contains_key(REQUEST_ID) {
        write_request_id(&context.request_id, headers);
    }
    if let Some(value) = context.caller.as_ref().and_then(|name| HeaderValue::from_bytes(name.as_bytes()).ok())
        && !headers.contains_key(CALLER)
    {
        headers.insert(CALLER, value);
    }
}

/// Names the call in the headers of its answer.
pub fn write_request_id(id: &str, headers: &mut HeaderMap) {
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_who_they_say_in_the_header_or_as_the_user_of_basic_authentication() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs.iter().map(|(name, value)| {
                (header::HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
            });
            RequestContext::from_headers(&headers.collect(), None).caller
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("x-caller", "ada@bank.example")]).as_deref(), Some("ada@bank.example"));
        assert_eq!(of(&[("x-caller", "Zoë")]).as_deref(), Some("Zoë"));
        let basic = ("authorization", "Basic YWRhOnNlY3JldA==");
        assert_eq!(of(&[basic]).as_deref(), Some("ada"));
        assert_eq!(of(&[("x-caller", "eve"), basic]).as_deref(), Some("eve"));
        for nonsense in ["Bearer YWRhOnNlY3JldA==", "Basic ???", "Basic", "basic OnNlY3JldA=="] {
            assert_eq!(of(&[("authorization", nonsense)]), None, "{nonsense}");
        }
        assert_eq!(of(&[("x-caller", " ada")]), None);
    }
}
