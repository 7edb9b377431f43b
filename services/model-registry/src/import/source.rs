//! The MLflow server that is imported from: its REST API over HTTP, tried again where that may help.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;
use tonic::Status;
use url::Url;

use super::{Failure, Found};
use crate::artifacts::Body;
use crate::error::Error;

/// Largest JSON answer taken, in bytes. A server of MLflow 2 gives all values of a metric at once: two million fit.
const MAX_ANSWER: usize = 256 << 20;
/// How long the server may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the server may take to begin an answer, and between two pieces of it: MLflow fetches a whole file from its
/// store before it sends the first byte.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long to wait before a call is tried again that found nobody or a server too busy.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(10)];

type Sending = BoxFuture<'static, Result<Response<Incoming>, ClientError>>;

/// A running MLflow server.
pub(super) struct Source {
    send: Arc<dyn Fn(Request<Full<Bytes>>) -> Sending + Send + Sync>,
    base: Url,
    authorization: Option<HeaderValue>,
}

/// How a server says what is wrong.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    error_code: String,
    message: String,
}

impl Source {
    /// Makes ready to call the server at `base`, as `http://host:port` or below a path of it.
    pub(super) fn new(base: &Url, authorization: Option<HeaderValue>) -> anyhow::Result<Self> {
        ensure!(
            base.username().is_empty() && base.password().is_none(),
            "--from: give user and password in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, not in the URL"
        );
        let mut http = HttpConnector::new();
        http.set_connect_timeout(Some(CONNECT_PATIENCE));
        http.set_nodelay(true);
        http.enforce_http(false);
        let builder = || {
            let mut builder = Client::builder(TokioExecutor::new());
            builder.pool_timer(TokioTimer::new()).pool_idle_timeout(Duration::from_secs(20));
            builder
        };
        let send: Arc<dyn Fn(Request<Full<Bytes>>) -> Sending + Send + Sync> = match base.scheme() {
            "http" => {
                let client = builder().build::<_, Full<Bytes>>(http);
                Arc::new(move |request| Box::pin(client.request(request)))
            }
            "https" => {
                let tls = HttpsConnectorBuilder::new().with_native_roots();
                let tls =
                    tls.context("--from: no trusted certificates on this machine; name a file in SSL_CERT_FILE")?;
                let client = builder().build::<_, Full<Bytes>>(tls.https_only().enable_http1().wrap_connector(http));
                Arc::new(move |request| Box::pin(client.request(request)))
            }
            other => bail!("--from: must begin with http:// or https://, not {other}:"),
        };
        Ok(Self { send, base: base.clone(), authorization })
    }

    /// The version of the server's MLflow. Says what to do when the server lets nobody in.
    pub(super) async fn version(&self) -> anyhow::Result<String> {
        let refused = |failure: Failure| match failure {
            Failure::Item { status: Some(401 | 403), why } => anyhow::anyhow!(
                "--from: {} lets nobody in ({why}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or \
                 MLFLOW_TRACKING_TOKEN",
                self.base
            ),
            Failure::Item { why, .. } => anyhow::anyhow!("--from: {} is no MLflow server: {why}", self.base),
            Failure::Fatal(error) => error,
        };
        // Asked with credentials, for something that only those see who are let in.
        let probe = self.post::<Value>(&["experiments", "search"], &serde_json::json!({"max_results": 1})).await;
        probe.map_err(refused)?;
        let text = self.whole(&["version"], &[], None).await.map_err(refused)?;
        Ok(String::from_utf8_lossy(&text).trim().chars().take(40).collect())
    }

    /// Asks below `/api/2.0/mlflow`.
    pub(super) async fn get<T: DeserializeOwned>(&self, route: &[&str], query: &[(&str, &str)]) -> Found<T> {
        self.ask(&[&["api", "2.0", "mlflow"], route].concat(), query, None).await
    }

    /// Asks below `/api/2.0/mlflow`, with what is searched for in the body.
    pub(super) async fn post<T: DeserializeOwned>(&self, route: &[&str], body: &Value) -> Found<T> {
        self.ask(&[&["api", "2.0", "mlflow"], route].concat(), &[], Some(body)).await
    }

    /// Asks the server as a whole.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        route: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Found<T> {
        let bytes = self.whole(route, query, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::item(format!("/{} answered what MLflow's API does not: {error}", route.join("/")))
        })
    }

    /// Reads a file.
    pub(super) async fn open(&self, route: &[&str], query: &[(&str, &str)]) -> Found<Body<'static>> {
        let answer = again_where_it_helps(async || self.exchange(route, query, None).await).await?;
        let body = BodyStream::new(answer.into_body());
        let broken = |why: String| Error::BrokenOff(Box::new(Status::unavailable(why)));
        let pieces = stream::unfold(Some(body), move |body| async move {
            let mut body = body?;
            match timeout(PATIENCE, body.next()).await {
                Ok(None) => None,
                Ok(Some(Ok(frame))) => Some((Ok(frame.into_data().unwrap_or_default()), Some(body))),
                Ok(Some(Err(error))) => Some((Err(broken(error.to_string())), None)),
                Err(_) => Some((Err(broken(format!("nothing came for {PATIENCE:?}"))), None)),
            }
        });
        Ok(pieces.boxed())
    }

    /// Reads an answer to its end.
    async fn whole(&self, route: &[&str], query: &[(&str, &str)], body: Option<&Value>) -> Found<Bytes> {
        again_where_it_helps(async || self.read(self.exchange(route, query, body).await?).await).await
    }

    async fn read(&self, answer: Response<Incoming>) -> Found<Bytes> {
        let (mut body, mut bytes) = (answer.into_body(), BytesMut::new());
        loop {
            match timeout(PATIENCE, body.frame()).await {
                Ok(None) => return Ok(bytes.freeze()),
                Ok(Some(Ok(frame))) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Ok(Some(Err(error))) => return Err(self.lost(&error.to_string())),
                Err(_) => return Err(self.lost("it stopped in the middle of an answer")),
            }
            if bytes.len() > MAX_ANSWER {
                return Err(Failure::item(format!("the answer is larger than {MAX_ANSWER} bytes")));
            }
        }
    }

    fn lost(&self, why: &str) -> Failure {
        Failure::Fatal(anyhow::anyhow!("the MLflow server at {} cannot be reached: {why}", self.base))
    }

    async fn exchange(
        &self,
        route: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Found<Response<Incoming>> {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(route);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = Request::builder().uri(url.as_str()).method(if body.is_some() { "POST" } else { "GET" });
        request = request.header(header::USER_AGENT, concat!("model-registry/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::from(body.map(Value::to_string).unwrap_or_default());
        let request = request.body(body).map_err(|error| Failure::item(error.to_string()))?;
        let answer = match timeout(PATIENCE, (self.send)(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.lost(&format!("{:#}", anyhow::Error::from(error)))),
            Err(_) => return Err(self.lost(&format!("it did not answer within {PATIENCE:?}"))),
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = self.read(answer).await?;
        Err(Failure::Item { status: Some(status.as_u16()), why: told(status, &text) })
    }
}

/// Calls, and again after a pause where nobody answered, an answer broke off, or the server was too busy.
async fn again_where_it_helps<T>(call: impl AsyncFn() -> Found<T>) -> Found<T> {
    let mut pauses = PAUSES.iter();
    loop {
        let failure = match call().await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        let may_pass = match &failure {
            Failure::Fatal(_) | Failure::Item { status: Some(429 | 502..=504), .. } => true,
            Failure::Item { .. } => false,
        };
        match pauses.next() {
            Some(pause) if may_pass => tokio::time::sleep(*pause).await,
            _ => return Err(failure),
        }
    }
}

/// What a refusal says, short.
fn told(status: StatusCode, body: &[u8]) -> String {
    let Refusal { error_code, message } = serde_json::from_slice(body).unwrap_or_default();
    let message: String = message.chars().take(500).collect();
    if error_code.is_empty() && message.is_empty() { status.to_string() } else { format!("{error_code}: {message}") }
}
