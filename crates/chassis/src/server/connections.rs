//! Connections: accepting them, ending them with a deadline.
//!
//! tonic's own loop waits for its connections without one, and an idle socket can hold it for hours (hyper #4170). Here
//! every task of a connection, its calls included, is tracked and can be cut.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, join};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::server::ServerConfig;
use crate::server::stack::Stack;

/// What an HTTP/2 client says first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const HEADER_BYTES: u32 = 32 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const CUT_GRACE: Duration = Duration::from_secs(1);

/// Serves until `closing`, then waits for what is open: at most `drain_grace`, then it is cut.
pub(crate) async fn serve(config: &ServerConfig, listener: TcpListener, stack: Arc<Stack>, closing: CancellationToken) {
    let tasks = Tasks { tracker: TaskTracker::new(), cut: CancellationToken::new() };
    accept(config, listener, &stack, &closing, &tasks).await;
    tasks.tracker.close();
    if timeout(config.drain_grace, tasks.tracker.wait()).await.is_err() {
        warn!(tasks = tasks.tracker.len(), "cut what was still open {:?} after the stop", config.drain_grace);
        tasks.cut.cancel();
        if timeout(CUT_GRACE, tasks.tracker.wait()).await.is_err() {
            warn!(tasks = tasks.tracker.len(), "some calls block their thread and outlive the server");
        }
    }
}

/// Accepts until `closing`; then the socket is closed, and new callers are refused at once.
async fn accept(
    config: &ServerConfig,
    listener: TcpListener,
    stack: &Arc<Stack>,
    closing: &CancellationToken,
    tasks: &Tasks,
) {
    let seats = Arc::new(Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS)));
    loop {
        let next = async {
            let seat = Arc::clone(&seats).acquire_owned().await;
            (listener.accept().await, seat)
        };
        let (accepted, seat) = tokio::select! {
            biased;
            () = closing.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(config.clone(), stream, Arc::clone(stack), closing.clone(), tasks.clone());
                tasks.spawn(async move {
                    connection.await;
                    drop(seat);
                });
            }
            // Out of file descriptors, or a peer that left: what is served goes on.
            Err(error) => {
                warn!(error = %error, "can't accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    config: ServerConfig,
    mut stream: TcpStream,
    stack: Arc<Stack>,
    closing: CancellationToken,
    tasks: Tasks,
) {
    let peer = stream.peer_addr().map_or_else(|_| "unknown".to_owned(), |peer| peer.to_string());
    if let Err(error) = stream.set_nodelay(true) {
        debug!(peer, error = %error, "can't set TCP_NODELAY");
    }
    tokio::select! {
        biased;
        () = closing.cancelled() => return,
        begun = timeout(config.handshake_timeout, preface(&mut stream)) => match begun {
            Ok(true) => {}
            Ok(false) => {
                debug!(peer, "closed a connection that doesn't speak HTTP/2");
                return;
            }
            Err(_) => {
                debug!(peer, "closed a connection that didn't begin within {:?}", config.handshake_timeout);
                return;
            }
        },
    }

    let info = stream.connect_info();
    let (reader, writer) = stream.into_split();
    let stream = join(PREFACE.chain(reader), writer);
    // Spread over a tenth, so that connections made together don't end together.
    let spread = info.remote_addr.map_or(0, |peer| peer.port() % 100);
    let mut age = pin!(sleep(config.max_connection_age.mul_f64(1.0 + f64::from(spread) / 1000.0)));
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(info.clone());
        let stack = Arc::clone(&stack);
        async move { Ok::<_, Infallible>(stack.answer(request.map(Body::new)).await) }
    });
    let mut connection = pin!(
        http2::Builder::new(tasks)
            .timer(TokioTimer::new())
            .keep_alive_interval(config.keep_alive)
            .keep_alive_timeout(config.keep_alive)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADER_BYTES)
            .max_concurrent_streams(u32::try_from(config.max_in_flight.saturating_mul(2)).unwrap_or(u32::MAX))
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut leaving = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    debug!(peer, error = %error, "a connection broke");
                }
                return;
            }
            () = closing.cancelled(), if !leaving => {}
            () = &mut age, if !leaving => {}
        }
        leaving = true;
        connection.as_mut().graceful_shutdown();
    }
}

/// Reads what HTTP/2 begins with; false as soon as something else comes, or nothing more.
async fn preface(stream: &mut TcpStream) -> bool {
    let mut read = [0; PREFACE.len()];
    let mut length = 0;
    while length < read.len() {
        match stream.read(&mut read[length..]).await {
            Ok(more @ 1..) => length += more,
            Ok(0) | Err(_) => return false,
        }
        if read[..length] != PREFACE[..length] {
            return false;
        }
    }
    true
}

/// Runs the tasks of connections and their calls; all of them end when `cut` is cancelled.
#[derive(Clone)]
struct Tasks {
    tracker: TaskTracker,
    cut: CancellationToken,
}

impl Tasks {
    fn spawn(&self, task: impl Future<Output: Send> + Send + 'static) {
        let cut = self.cut.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                biased;
                () = cut.cancelled() => {}
                _ = task => {}
            }
        });
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}
