//! What is around every call of the REST API, as chassis has it around those of gRPC.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::StreamExt;
use tracing::field::Empty;
use tracing::{Instrument, Span, debug, error_span, info};
use verdict_chassis::context::{self, RequestContext};
use verdict_chassis::metrics::{CALL_DURATION, IN_FLIGHT};
use verdict_chassis::telemetry;

use super::refusal::Refusal;

/// When a caller that found no seat may try again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");
/// Most of the body of a call without a seat that is read, in bytes, and for how long: its connection can then be used
/// again, and its client reads the answer.
const SPILL_BYTES: usize = 1 << 20;
const SPILL_TIME: Duration = Duration::from_secs(1);

/// How many calls are served at once, and for how long.
pub(crate) struct Stack {
    seats: Arc<Semaphore>,
    most: usize,
    /// Most time until an answer begins; of a file that comes in, between two of its pieces.
    patience: Duration,
}

impl Stack {
    pub(crate) fn new(most: usize, patience: Duration) -> Arc<Self> {
        let most = most.min(Semaphore::MAX_PERMITS);
        Arc::new(Self { seats: Arc::new(Semaphore::new(most)), most, patience })
    }

    /// A place among the calls that are served. Whether the server lives can be asked without one.
    fn seat(&self, route: &str) -> Result<Option<OwnedSemaphorePermit>, Refusal> {
        if matches!(route, "/health" | "/version") {
            return Ok(None);
        }
        self.seats.clone().try_acquire_owned().map(Some).map_err(|_| {
            let message = format!("{} calls are in flight, as many as are allowed; try again later", self.most);
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, "REQUEST_LIMIT_EXCEEDED", message)
        })
    }

    async fn admitted(&self, route: &str, request: Request, next: Next) -> Response {
        let seat = match self.seat(route) {
            Ok(seat) => seat,
            Err(refusal) => {
                let _ = tokio::time::timeout(SPILL_TIME, axum::body::to_bytes(request.into_body(), SPILL_BYTES)).await;
                return ([(header::RETRY_AFTER, RETRY_AFTER)], refusal).into_response();
            }
        };
        // A file takes as long as it takes, while it moves.
        let is_file = route.ends_with("/{*path}") || route.ends_with("/upload-artifact");
        let request = if is_file { request.map(|body| moving(body, self.patience)) } else { request };
        let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
        let answered = match is_file {
            true => Ok(answer.await),
            false => tokio::time::timeout(self.patience, answer).await,
        };
        let response = match answered {
            Ok(Ok(response)) => response,
            // The panic hook has logged it, inside the span of this call.
            Ok(Err(_)) => {
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", "internal error").into_response()
            }
            Err(_) => {
                let message = format!("no answer within {:?}", self.patience);
                Refusal::new(StatusCode::GATEWAY_TIMEOUT, "DEADLINE_EXCEEDED", message).into_response()
            }
        };
        response.map(|body| Body::new(Seated { body, _seat: seat }))
    }
}

/// A body that fails when nothing of it comes for `patience`.
fn moving(body: Body, patience: Duration) -> Body {
    let pieces = body.into_data_stream().timeout(patience);
    Body::from_stream(pieces.map(move |piece| match piece {
        Ok(piece) => piece,
        Err(_) => Err(axum::Error::new(format!("the upload made no progress for {patience:?}"))),
    }))
}

/// The body of an answer, whose call has its seat until it has been sent.
struct Seated {
    body: Body,
    _seat: Option<OwnedSemaphorePermit>,
}

impl HttpBody for Seated {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Request id and trace context → span and metrics → limit → panic → deadline → handler.
pub(super) async fn around(State(stack): State<Arc<Stack>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    // Whatever else a stranger sends is one method, so that nobody can make series without end.
    let known = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let verb = known.iter().find(|known| *known == request.method()).map_or("OTHER", Method::as_str);
    let context = RequestContext::from_headers(request.headers(), None);
    let request_id = context.request_id.clone();
    let call = Call::begin(verb, &route, &request_id, &request);
    let span = call.span.clone();
    let mut response = context::scope(context, stack.admitted(&route, request, next)).instrument(span).await;
    context::write_request_id(&request_id, response.headers_mut());
    let headers = response.headers_mut();
    // Browsers are not to guess what an answer is.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(HeaderName::from_static("x-frame-options"), HeaderValue::from_static("SAMEORIGIN"));
    call.end(response.status());
    response
}

/// A call until its answer begins: measured when dropped. Dropped without an answer its caller has left: 499.
struct Call {
    method: String,
    began: Instant,
    span: Span,
    status: u16,
}

impl Call {
    /// The span's level is ERROR so that no log filter takes request id and trace id away from the lines inside it.
    fn begin(verb: &str, route: &str, request_id: &str, request: &Request) -> Self {
        let method = format!("{verb} {route}");
        let span = error_span!(parent: None, "http", otel.name = method, otel.kind = "server", http.request.method = verb,
            http.route = route, request_id, trace_id = Empty, http.response.status_code = Empty, otel.status_code = Empty);
        telemetry::continue_trace(&span, request.headers());
        metrics::gauge!(IN_FLIGHT, "service" => "mlflow").increment(1.0);
        Self { method, began: Instant::now(), span, status: 499 }
    }

    fn end(mut self, status: StatusCode) {
        self.status = status.as_u16();
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let (took, code) = (self.began.elapsed(), self.status);
        metrics::gauge!(IN_FLIGHT, "service" => "mlflow").decrement(1.0);
        let labels = [("service", "mlflow".to_owned()), ("method", self.method.clone()), ("code", code.to_string())];
        metrics::histogram!(CALL_DURATION, &labels).record(took.as_secs_f64());
        self.span.record("http.response.status_code", code);
        if code >= 500 {
            self.span.record("otel.status_code", "ERROR");
        }
        let duration_ms = took.as_secs_f64() * 1000.0;
        self.span.in_scope(|| match code {
            200..300 => debug!(code, duration_ms, "answered"),
            _ => info!(code, duration_ms, "answered with {code}"),
        });
    }
}
