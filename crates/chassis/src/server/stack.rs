//! The one stack around every call.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use http::{Request, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service;
use tracing::field::Empty;
use tracing::{Instrument, Span, debug, error_span, info};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::context::{self, RequestContext};
use crate::metrics::CallMeters;
use crate::server::ServerConfig;
use crate::server::body::{Answer, Incoming};
use crate::server::methods::{Method, Methods};
use crate::status::{self, Field};
use crate::{telemetry, timeout};

const RETRY_AFTER: Duration = Duration::from_millis(200);

pub(crate) struct Stack {
    routes: Routes,
    methods: Methods,
    seats: Arc<Semaphore>,
    max_in_flight: usize,
    max_message_bytes: usize,
    request_timeout: Duration,
}

impl Stack {
    pub(crate) fn new(config: &ServerConfig, routes: Routes, methods: Methods) -> Self {
        let max_in_flight = config.max_in_flight.min(Semaphore::MAX_PERMITS);
        Self {
            routes,
            methods,
            seats: Arc::new(Semaphore::new(max_in_flight)),
            max_in_flight,
            max_message_bytes: config.max_message_bytes,
            request_timeout: config.request_timeout,
        }
    }

    /// Request id and trace context → span and metrics → panic → deadline → limit → handler.
    pub(crate) async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let request_id = context::request_id(request.headers());
        let method = self.methods.find(request.uri().path());
        let span = span(method, &request_id, &request);
        let mut call = Call::begin(method, span.clone());
        let outcome = self.admitted(request, &request_id, method, &mut call).instrument(span).await;
        let mut response = match outcome {
            Ok((response, context)) => match Status::from_header_map(response.headers()) {
                Some(status) => {
                    call.end(status.code());
                    response
                }
                None => response.map(|body| Body::new(Answer::new(body, call, context))),
            },
            Err(status) => {
                call.end(status.code());
                status.into_http()
            }
        };
        context::write_request_id(&request_id, response.headers_mut());
        response
    }

    async fn admitted(
        &self,
        mut request: Request<Body>,
        request_id: &str,
        method: &Method,
        call: &mut Call,
    ) -> Result<(Response<Body>, RequestContext), Status> {
        let asked = timeout::parse(request.headers())
            .map_err(|problem| status::invalid("DEADLINE_INVALID", vec![Field::new(timeout::HEADER, problem)]))?;
        if !method.unlimited {
            call.seat = Some(self.seat()?);
        }

        let started = Instant::now();
        // One timer a call: the deadline of one that doesn't stream is within the server's patience.
        let (capped, patience) = match asked {
            _ if method.streams_in || method.streams_out => (asked, Some(self.request_timeout)),
            Some(asked) => (Some(asked.min(self.request_timeout)), None),
            None => (Some(self.request_timeout), None),
        };
        let deadline = capped.and_then(|left| started.checked_add(left));
        let context = RequestContext {
            request_id: request_id.to_owned(),
            ..RequestContext::from_headers(request.headers(), deadline)
        };
        request.extensions_mut().insert(context.clone());
        let progress = Progress::new(started);
        let request = request.map(|body| Body::new(Incoming::new(body, self.max_message_bytes, progress.clone())));

        let mut routes = self.routes.clone();
        let handler = AssertUnwindSafe(async move { routes.call(request).await }).catch_unwind();
        let handler = context::scope(context.clone(), handler);
        tokio::select! {
            biased;
            outcome = handler => match outcome {
                Ok(Ok(response)) => Ok((response, context)),
                Ok(Err(never)) => match never {},
                // The panic hook has logged it, inside the span of this call.
                Err(_) => Err(status::internal_unlogged()),
            },
            problem = overdue(deadline, patience, method.streams_in.then_some(progress), started) => {
                Err(status::deadline_exceeded("DEADLINE_EXCEEDED", problem))
            }
        }
    }

    fn seat(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.seats).try_acquire_owned().map_err(|_| {
            let message =
                format!("{} calls are in flight, as many as are allowed; try again later", self.max_in_flight);
            status::exhausted("TOO_MANY_IN_FLIGHT", message, RETRY_AFTER)
        })
    }
}

/// Ends when the head of the answer is late, and says why.
///
/// A call that uploads a stream is late when it makes no progress for `patience`; others when they take that long.
async fn overdue(
    deadline: Option<Instant>,
    patience: Option<Duration>,
    upload: Option<Progress>,
    started: Instant,
) -> String {
    let by_deadline = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => std::future::pending().await,
        }
    };
    let by_patience = async {
        loop {
            let since = upload.as_ref().map_or(started, Progress::last);
            let until = patience.and_then(|patience| since.checked_add(patience));
            let Some(until) = until else { std::future::pending().await };
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until.into()).await;
        }
    };
    tokio::select! {
        () = by_deadline => format!("no answer before the deadline of {:?}", started.elapsed()),
        () = by_patience => match upload {
            None => format!("no answer within {:?}", patience.unwrap_or_default()),
            Some(_) => format!("the upload made no progress for {:?}", patience.unwrap_or_default()),
        },
    }
}

/// When the request body last moved; shared with the wrapper around it.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    started: Instant,
    micros: Arc<AtomicU64>,
}

impl Progress {
    fn new(started: Instant) -> Self {
        Self { started, micros: Arc::default() }
    }

    pub(crate) fn mark(&self) {
        let micros = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.micros.store(micros, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.started + Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }
}

/// Makes the span of a call as a child of the caller's.
///
/// Its level is ERROR so that no log filter takes request id and trace id away from the lines inside it.
fn span(method: &Method, request_id: &str, request: &Request<Body>) -> Span {
    let span = error_span!(parent: None, "grpc", otel.name = &*method.name, otel.kind = "server", rpc.system = "grpc",
        rpc.service = &*method.service, rpc.method = &*method.method, request_id, trace_id = Empty,
        otel.status_code = Empty);
    telemetry::continue_trace(&span, request.headers());
    span
}

/// A call from its head to the end of its answer: holds its seat and its span, and measures it when dropped.
///
/// Dropped without [`Call::end`] it was cancelled: the caller left, or the server cut it.
pub(crate) struct Call {
    meters: Arc<CallMeters>,
    started: Instant,
    pub(crate) span: Span,
    seat: Option<OwnedSemaphorePermit>,
    code: Code,
}

impl Call {
    fn begin(method: &Method, span: Span) -> Self {
        let meters = Arc::clone(&method.meters);
        meters.in_flight().increment(1.0);
        Self { meters, started: Instant::now(), span, seat: None, code: Code::Cancelled }
    }

    pub(crate) fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.seat = None;
        let took = self.started.elapsed();
        let code = name(self.code);
        self.meters.in_flight().decrement(1.0);
        self.meters.ended(self.code as usize, code, took, &self.span);
        // On the trace alone: the line below has the code, and another field costs the span's line to be made anew.
        self.span.set_attribute("rpc.grpc.status_code", i64::from(self.code as i32));
        if matches!(
            self.code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        ) {
            self.span.record("otel.status_code", "ERROR");
        }
        let duration_ms = took.as_secs_f64() * 1000.0;
        self.span.in_scope(|| match self.code {
            Code::Ok => debug!(code, duration_ms, "answered"),
            _ => info!(code, duration_ms, "answered with {code}"),
        });
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
