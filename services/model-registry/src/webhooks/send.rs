//! One attempt to deliver: the request, its signature, what came back.

use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, Request, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use ring::hmac;
use url::Url;

use super::address::{PRIVATE, Resolver};
use super::{Secret, WebhookConfig};
use crate::model::Micros;

/// Most of an answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 10;
/// How long a connection nobody uses is kept.
const IDLE: Duration = Duration::from_secs(30);
/// Longest message about what went wrong, in bytes.
const MAX_ERROR: usize = 500;

type Connector = HttpsConnector<HttpConnector<Resolver>>;

/// Sends deliveries; follows no redirects.
pub(super) struct Sender {
    /// Or why there is none: a system without certificates can still do everything else.
    client: Result<Client<Connector, Full<Bytes>>, String>,
    addresses: Resolver,
    timeout: Duration,
}

/// What came of an attempt.
#[derive(Debug)]
pub(crate) enum Attempt {
    Answered(Answered),
    /// Nothing came back in time, or at all.
    Failed(String),
    /// It is not allowed to go there: trying again would not help.
    Forbidden(String),
}

/// What a receiver answered.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    /// The beginning of it.
    pub(crate) body: String,
    /// When the receiver asks to be tried again.
    pub(super) retry_after: Option<Duration>,
}

impl Sender {
    pub(super) fn new(config: &WebhookConfig) -> Self {
        let addresses = Resolver { private: config.webhook_private_addresses };
        let mut http = HttpConnector::new_with_resolver(addresses);
        http.enforce_http(false);
        http.set_connect_timeout(Some(config.webhook_timeout));
        let https = HttpsConnectorBuilder::new().with_native_roots();
        let client =
            https.map_err(|error| format!("the certificates of this system cannot be read: {error}")).map(|https| {
                Client::builder(TokioExecutor::new())
                    .pool_timer(TokioTimer::new())
                    .pool_idle_timeout(IDLE)
                    .pool_max_idle_per_host(1)
                    .build(https.https_or_http().enable_http1().wrap_connector(http))
            });
        Self { client, addresses, timeout: config.webhook_timeout }
    }

    /// Sends `body` once. The time it is signed with is that of the attempt: a receiver may refuse what is old.
    pub(super) async fn send(&self, url: &str, secret: Option<&Secret>, now: Micros, id: &str, body: &str) -> Attempt {
        let client = match &self.client {
            Ok(client) => client,
            Err(problem) => return Attempt::Failed(problem.clone()),
        };
        let request = match self.request(url, secret, now, id, body) {
            Ok(request) => request,
            Err(problem) => return Attempt::Forbidden(problem),
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(now.0.unsigned_abs());
        let exchange = async {
            let response = client.request(request).await.map_err(|error| failure(&error))?;
            let (status, retry_after) = (response.status(), retry_after(response.headers(), at));
            let mut body = response.into_body();
            let mut read = Vec::new();
            while read.len() < MAX_ANSWER
                && let Some(frame) = body.frame().await
            {
                let Ok(frame) = frame else { break };
                read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| &data[..]));
            }
            read.truncate(MAX_ANSWER);
            Ok(Answered { status, body: String::from_utf8_lossy(&read).into_owned(), retry_after })
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(Ok(answered)) => Attempt::Answered(answered),
            Ok(Err(failed)) => failed,
            Err(_) => Attempt::Failed(format!("no answer within {:?}", self.timeout)),
        }
    }

    fn request(
        &self,
        url: &str,
        secret: Option<&Secret>,
        now: Micros,
        id: &str,
        body: &str,
    ) -> Result<Request<Full<Bytes>>, String> {
        let url = Url::parse(url).map_err(|error| format!("its URL is not one: {error}"))?;
        // An address in place of a name is not resolved: the resolver does not see it.
        if !url.host().is_some_and(|host| self.addresses.allows(&host)) {
            return Err(PRIVATE.to_owned());
        }
        let time = (now.0 / 1_000_000).to_string();
        let mut request = Request::post(url.as_str())
            .header(header::CONTENT_TYPE, "application/json")
            .header("x-mlflow-delivery-id", id)
            .header("x-mlflow-timestamp", &time);
        if let Some(secret) = secret {
            request = request.header("x-mlflow-signature", signature(secret, id, &time, body));
        }
        request.body(Full::from(body.to_owned())).map_err(|error| format!("its URL cannot be called: {error}"))
    }
}

/// `v1,` and the base64 of HMAC-SHA256 over `id.time.body`.
fn signature(secret: &Secret, id: &str, time: &str, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.0.as_bytes());
    format!("v1,{}", STANDARD.encode(hmac::sign(&key, format!("{id}.{time}.{body}").as_bytes())))
}

/// Says why a request got no answer, from the outermost cause to the innermost.
fn failure(error: &hyper_util::client::legacy::Error) -> Attempt {
    let mut message = error.to_string();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    let mut forbidden = false;
    while let Some(error) = cause {
        let text = error.to_string();
        forbidden |= text == PRIVATE;
        if !message.ends_with(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
    }
    message.truncate(message.floor_char_boundary(MAX_ERROR));
    if forbidden { Attempt::Forbidden(PRIVATE.to_owned()) } else { Attempt::Failed(message) }
}

/// Reads `Retry-After`: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_one_mlflow_s_receivers_verify() {
        // Computed with Python's hmac as MLflow's documentation does it.
        let secret = Secret("my_secret".to_owned());
        let body = r#"{"entity":"model_version","action":"created"}"#;
        let signed = signature(&secret, "11111111-2222-3333-4444-555555555555", "1700000000", body);
        assert_eq!(signed, "v1,2xfvemeY81pkVQKMxemrq7wv7GcuUhl5dmPLCu9bjxM=");
    }

    #[tokio::test]
    async fn nothing_is_sent_to_what_is_private_under_any_name() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let sender = Sender::new(&WebhookConfig::default());
        for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f000001"] {
            let attempt = sender.send(&format!("http://{host}:{port}/"), None, Micros(0), "id", "{}").await;
            assert!(matches!(&attempt, Attempt::Forbidden(problem) if problem == PRIVATE), "{host}: {attempt:?}");
        }
        assert!(listener.accept().is_err(), "nobody has called");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 90);
        for (text, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(90)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().unwrap())]);
            assert_eq!(retry_after(&headers, at), seconds.map(Duration::from_secs), "{text}");
        }
        let past = HeaderMap::from_iter([(header::RETRY_AFTER, "Sun, 06 Nov 1994 08:00:00 GMT".parse().unwrap())]);
        assert_eq!(retry_after(&past, at), Some(Duration::ZERO));
    }
}
