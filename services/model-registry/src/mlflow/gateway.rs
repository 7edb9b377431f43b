//! The gateway proxy: MLflow's web page asks the models of a deployments server through the registry.

use std::time::Duration;

use anyhow::Context;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, Request, StatusCode, header};
use axum::routing::get;
use axum::{Json, Router};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::{Value, json};
use url::Url;

use super::request::Fields;
use super::{Mlflow, Refusal};

/// Models think long.
const TIMEOUT: Duration = Duration::from_secs(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection nobody uses is kept.
const IDLE: Duration = Duration::from_secs(30);
/// Largest answer of a deployments server, in bytes.
const MAX_ANSWER: usize = 16 << 20;
/// Most that is repeated of an answer which refuses, in bytes.
const MAX_TOLD: usize = 500;

/// A deployments server.
pub(crate) struct Gateway {
    target: Url,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Gateway {
    /// Prepares to ask the server at `target`; it need not be there yet.
    pub(crate) fn new(target: Url) -> anyhow::Result<Self> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let https = HttpsConnectorBuilder::new()
            .with_native_roots()
            .context("MODEL_REGISTRY_MLFLOW_DEPLOYMENTS_TARGET: the certificates of this system cannot be read")?;
        let connector = https.https_or_http().enable_http1().wrap_connector(http);
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE);
        Ok(Self { target, client: client.build(connector) })
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Refusal> {
        let mut url = self.target.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/'));
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(url.as_str())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| unavailable(&error))?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| unavailable(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            Ok((status, body.map_err(|error| unavailable(&*error))?.to_bytes()))
        };
        let answered = tokio::time::timeout(TIMEOUT, exchange).await;
        let (status, body) = answered.unwrap_or_else(|late| Err(unavailable(&late)))?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).map_err(|error| unavailable(&error));
        }
        let told = String::from_utf8_lossy(&body[..body.len().min(MAX_TOLD)]);
        let code = status.as_u16();
        let message = format!("Deployments proxy request failed with error code {code}. Error message: {told}");
        let (status, word) = match status {
            StatusCode::NOT_FOUND => (status, "RESOURCE_DOES_NOT_EXIST"),
            StatusCode::TOO_MANY_REQUESTS => (status, "REQUEST_LIMIT_EXCEEDED"),
            status if status.is_client_error() => (StatusCode::BAD_REQUEST, "BAD_REQUEST"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "TEMPORARILY_UNAVAILABLE"),
        };
        Err(Refusal::new(status, word, message))
    }
}

/// The log has the reason; the caller learns where the fault is.
fn unavailable(error: &dyn std::fmt::Display) -> Refusal {
    tracing::warn!(error = %error, "the deployments server does not answer as it should");
    let message = "The deployments server cannot be reached, or does not answer as it should: try again later";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "TEMPORARILY_UNAVAILABLE", message)
}

pub(super) fn routes() -> Router<Mlflow> {
    Router::new().route("/mlflow/gateway-proxy", get(proxy).post(proxy))
}

async fn proxy(State(mlflow): State<Mlflow>, method: Method, fields: Fields) -> Result<Json<Value>, Refusal> {
    let path = fields.text_or_empty("gateway_path")?;
    let path = path.trim_matches('/');
    if path.is_empty() {
        return Err(Refusal::invalid("Deployments proxy request must specify a gateway_path."));
    }
    let is_known = match (&method, path.split('/').collect::<Vec<_>>().as_slice()) {
        (&Method::GET | &Method::HEAD, ["api", "2.0", "endpoints"]) => true,
        (&Method::POST, ["gateway", name, "invocations"]) => !matches!(*name, "" | "." | ".."),
        _ => false,
    };
    if !is_known {
        return Err(Refusal::invalid(format!("Invalid gateway_path: {path} for method: {method}")));
    }
    match &mlflow.gateway {
        Some(gateway) => Ok(Json(gateway.ask(method, path, fields.value("json_data")).await?)),
        // As a gateway that has no models.
        None if method != Method::POST => Ok(Json(json!({"endpoints": []}))),
        None => Err(Refusal::invalid(
            "There is no deployments server to ask: start the registry with MODEL_REGISTRY_MLFLOW_DEPLOYMENTS_TARGET",
        )),
    }
}
