//! OTLP over HTTP: spans as OpenTelemetry's exporters, and MLflow's own clients, send them.

use std::collections::BTreeSet;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::IntoResponse;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use tower_http::decompression::RequestDecompressionLayer;

use super::experiments::experiment_id;
use super::request::missing;
use super::{Answer, Mlflow, Refusal};
use crate::tracking::otlp;

/// Largest request once it is decompressed, in bytes.
const MAX_BYTES: usize = 32 << 20;
const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";
/// The header that names the experiment spans belong to.
const EXPERIMENT: &str = "x-mlflow-experiment-id";
/// The header that names the run they belong to, if they do.
const RUN: &str = "x-mlflow-run-id";

pub(super) fn routes() -> Router<Mlflow> {
    let decompressed = RequestDecompressionLayer::new().gzip(true).deflate(true);
    Router::new().route("/v1/traces", post(export)).layer(DefaultBodyLimit::max(MAX_BYTES)).layer(decompressed)
}

async fn export(State(mlflow): State<Mlflow>, headers: HeaderMap, body: Bytes) -> Answer {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    let experiment = match text(EXPERIMENT) {
        "" => return Err(missing(EXPERIMENT)),
        id => experiment_id(id)?,
    };
    let content = text(header::CONTENT_TYPE.as_str()).split(';').next().unwrap_or_default().trim();
    let unreadable = |why: String| Refusal::invalid(format!("Invalid OpenTelemetry format: {why}"));
    let (request, kind, answer): (ExportTraceServiceRequest, _, &[u8]) = match content {
        PROTOBUF => {
            otlp::budget::protobuf(&body).map_err(unreadable)?;
            (Message::decode(body).map_err(|error| unreadable(error.to_string()))?, PROTOBUF, b"")
        }
        JSON => {
            otlp::budget::json(&body).map_err(unreadable)?;
            (serde_json::from_slice(&body).map_err(|error| unreadable(error.to_string()))?, JSON, b"{}")
        }
        other => {
            let message = format!("Invalid Content-Type: {other}. Expected: {PROTOBUF} or {JSON}");
            return Err(Refusal::invalid(message));
        }
    };
    let spans = otlp::spans(request)?;
    let run = text(RUN);
    if !run.is_empty() {
        mlflow.store.run(run).await?;
    }
    mlflow.store.log_spans(experiment, &spans).await?;
    if !run.is_empty() {
        let roots = spans.into_iter().filter(|span| span.parent.is_none()).map(|span| span.trace);
        let traces: BTreeSet<String> = roots.collect();
        mlflow.store.link_traces(run, &Vec::from_iter(traces)).await?;
    }
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], answer.to_vec()).into_response())
}
