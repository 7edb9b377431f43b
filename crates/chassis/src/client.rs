//! Channels to other services.
//!
//! Each call gets a client span, and carries its trace context, the request id and the time that is left of the call
//! being served (see [`crate::context`]), so that a caller's deadline reaches the last service behind. A call that met a
//! connection just being closed, and of which nothing was sent, is made again on the next one.

use std::error::Error as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::Frame;
use parking_lot::Mutex;
use tonic::body::Body;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tower::Service;
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

use crate::context::{self, RequestContext};
use crate::{status, telemetry, timeout};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// A call is handed to at most this many connections.
const ATTEMPTS: usize = 3;

/// A connection to one service, made at the first call and made again when it breaks; clones share it.
///
/// Use it with generated clients: `FooClient::new(channel.clone())`. Errors are `Status`es; an unreachable service is
/// UNAVAILABLE with reason `UNREACHABLE` and a message that names the address.
#[derive(Clone, Debug)]
pub struct Channel {
    inner: tonic::transport::Channel,
    url: Arc<str>,
}

/// Makes a channel to `url`, which is of the form `http://host:port`; must be called inside a tokio runtime.
pub fn connect(url: &str) -> anyhow::Result<Channel> {
    match url::Url::parse(url) {
        Ok(parsed) if parsed.scheme() == "http" && parsed.has_host() => {}
        Ok(parsed) if parsed.scheme() == "https" => bail!("`{url}`: TLS is not supported, use http://host:port"),
        Ok(_) | Err(_) => bail!("`{url}` is not of the form http://host:port"),
    }
    let endpoint = Endpoint::from_shared(url.to_owned())
        .with_context(|| format!("`{url}` is not of the form http://host:port"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    Ok(Channel { inner: endpoint.connect_lazy(), url: url.into() })
}

impl Channel {
    /// Returns the address it was made with.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx).map_err(|error| failed(&self.url, error))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path().trim_start_matches('/');
        let span = info_span!(
            "grpc",
            otel.name = path,
            otel.kind = "client",
            rpc.system = "grpc",
            server.address = &*self.url,
            rpc.grpc.status_code = Empty,
            otel.status_code = Empty
        );
        let context = context::current().unwrap_or_else(RequestContext::fresh);
        let headers = request.headers_mut();
        telemetry::inject(&span, headers);
        context::write(&context, headers);
        let own = timeout::parse(headers).ok().flatten();
        let left = [own, context.remaining()].into_iter().flatten().min();
        if let Some(left) = left {
            headers.insert(timeout::HEADER, timeout::format(left));
        }

        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let url = Arc::clone(&self.url);
        let end = SpanEnd { span: span.clone(), code: None };
        let call = async move {
            if left == Some(Duration::ZERO) {
                return Err(too_late(&url));
            }
            let Some(left) = left else {
                return send(&mut inner, request).await.map_err(|error| failed(&url, error));
            };
            // tonic runs the same timer; whichever fires first, the caller sees one status.
            let started = Instant::now();
            match tokio::time::timeout(left, send(&mut inner, request)).await {
                Ok(Ok(response)) => Ok(response),
                Ok(Err(error)) if started.elapsed() < left => Err(failed(&url, error)),
                Ok(Err(_)) | Err(_) => Err(too_late(&url)),
            }
        };
        Box::pin(
            async move {
                match call.await {
                    Ok(response) => Ok(watched(response, end)),
                    Err(status) => {
                        end.at(status.code());
                        Err(status)
                    }
                }
            }
            .instrument(span),
        )
    }
}

/// Makes the call; again where the connection closed before anything of it was sent.
async fn send(
    channel: &mut tonic::transport::Channel,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, tonic::transport::Error> {
    let (head, body) = request.into_parts();
    let body = Arc::new(Mutex::new(Some(body)));
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        let unread = Unread { kept: Arc::clone(&body), read: None };
        match channel.call(http::Request::from_parts(head.clone(), Body::new(unread))).await {
            Err(error) if left > 0 && is_unsent(&error) && body.lock().is_some() => {
                poll_fn(|cx| channel.poll_ready(cx)).await?;
            }
            answer => return answer,
        }
    }
}

/// Tells whether a call failed because its connection was gone before it could be sent.
fn is_unsent(error: &tonic::transport::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        source = error.source();
    }
    false
}

/// The body of a request, left in `kept` until the first of it is asked for.
struct Unread {
    kept: Arc<Mutex<Option<Body>>>,
    read: Option<Body>,
}

impl http_body::Body for Unread {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.read.is_none() {
            this.read = this.kept.lock().take();
        }
        match &mut this.read {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.read {
            Some(body) => body.is_end_stream(),
            None => self.kept.lock().as_ref().is_none_or(http_body::Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match &self.read {
            Some(body) => body.size_hint(),
            None => self.kept.lock().as_ref().map(http_body::Body::size_hint).unwrap_or_default(),
        }
    }
}

fn too_late(url: &str) -> Status {
    status::deadline_exceeded("DEADLINE_EXCEEDED", format!("{url} did not answer before the deadline"))
}

fn failed(url: &str, error: tonic::transport::Error) -> Status {
    let status = Status::from_error(Box::new(error));
    match status.code() {
        Code::Unavailable => {
            let message = format!("{url} can't be reached: {}", status.message());
            status::unavailable("UNREACHABLE", message, Duration::from_secs(1))
        }
        _ => status,
    }
}

/// Lets the span end with the body: a streamed answer is traced until its last message.
fn watched(response: http::Response<Body>, end: SpanEnd) -> http::Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) => {
            end.at(status.code());
            response
        }
        None => response.map(|inner| Body::new(Watched { inner, end: Some(end) })),
    }
}

/// Records the code when the call ends; a call that is dropped before was cancelled.
struct SpanEnd {
    span: Span,
    code: Option<Code>,
}

impl SpanEnd {
    fn at(mut self, code: Code) {
        self.code = Some(code);
    }
}

impl Drop for SpanEnd {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        self.span.record("rpc.grpc.status_code", code as i32);
        if code != Code::Ok {
            self.span.record("otel.status_code", "ERROR");
        }
    }
}

struct Watched {
    inner: Body,
    end: Option<SpanEnd>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let code = match &frame {
            Some(Ok(frame)) => frame
                .trailers_ref()
                .map(|trailers| Status::from_header_map(trailers).map_or(Code::Unknown, |status| status.code())),
            Some(Err(status)) => Some(status.code()),
            None => Some(Code::Unknown),
        };
        if let Some(code) = code
            && let Some(end) = self.end.take()
        {
            end.at(code);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}
