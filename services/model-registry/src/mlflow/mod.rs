//! MLflow's REST API over the same store: what the ordinary `mlflow` client speaks.
//!
//! - `request` reads parameters, `answer` writes entities, `refusal` writes errors: JSON as MLflow's clients know it;
//!   `stack` is around every call: limit, deadline, panics, span, metrics.
//! - One module per area: `experiments`, `runs`, `metrics`, `logged_models`, `registered`, `artifacts`, `datasets`,
//!   `scorers`, `promptlab`, `gateway`, `traces`, `webhooks`; spans come through `otlp`; `graphql` asks some of them under other names.
//!
//! Every path is served below `/api` and `/ajax-api`, in the versions its clients ask for. What of MLflow's API is not
//! served answers 501, so that nobody takes it for an empty store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, ServiceExt};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::Layer;

use crate::artifacts::ArtifactStore;
use crate::feed::Feed;
use crate::store::Everything;
use crate::webhooks::Courier;

mod answer;
mod artifacts;
mod batches;
mod bodies;
mod datasets;
mod experiments;
mod gateway;
mod graphql;
mod logged_models;
mod metrics;
mod otlp;
mod promptlab;
mod refusal;
mod registered;
mod request;
mod runs;
mod scorers;
mod stack;
mod traces;
mod transfers;
mod webhooks;

pub(crate) use gateway::Gateway;
use refusal::Refusal;
pub(crate) use stack::Stack;

type Answer = Result<Response, Refusal>;

/// Largest JSON body, in bytes: a batch of 1000 metrics takes a tenth of it.
const MAX_JSON_BYTES: usize = 16 << 20;
/// How long calls in flight may go on after a stop.
const DRAIN: Duration = Duration::from_secs(10);
/// The version of MLflow whose behaviour this is.
const VERSION: &str = "3.6.0";

/// What the calls work on.
#[derive(Clone)]
pub(crate) struct Mlflow {
    pub(crate) store: Arc<dyn Everything>,
    pub(crate) artifacts: Arc<dyn ArtifactStore>,
    pub(crate) feed: Arc<Feed>,
    pub(crate) courier: Arc<Courier>,
    /// Where files are while they come in.
    pub(crate) spool: PathBuf,
    /// Below which experiments keep their files unless they say otherwise.
    pub(crate) artifact_root: String,
    /// Whether clients may reach the bucket themselves, by URLs signed for it.
    pub(crate) direct_transfers: bool,
    /// Where models are asked, if anywhere.
    pub(crate) gateway: Option<Arc<Gateway>>,
}

/// Serves the API on `listener` until `stop`, then lets calls in flight end for a while.
pub(crate) async fn serve(
    listener: TcpListener,
    mlflow: Mlflow,
    stack: Arc<Stack>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    tokio::fs::create_dir_all(&mlflow.spool)
        .await
        .with_context(|| format!("cannot make {}", mlflow.spool.display()))?;
    let address = listener.local_addr()?;
    tracing::info!(listen = %address, "serving MLflow's API on {address}");
    // MLflow's clients join URLs carelessly: `//` at the beginning of a path is `/`.
    let router = tower::util::MapRequestLayer::new(one_leading_slash).layer(router(mlflow, stack)?);
    let router = ServiceExt::<Request>::into_make_service(router);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = served.into_future() => Ok(served?),
        () = overdue => Ok(()),
    }
}

fn one_leading_slash(mut request: Request) -> Request {
    let path = request.uri().path_and_query().map_or("", PathAndQuery::as_str);
    if path.starts_with("//") {
        let plain = format!("/{}", path.trim_start_matches('/'));
        if let Ok(uri) = plain.parse() {
            *request.uri_mut() = uri;
        }
    }
    request
}

fn router(mlflow: Mlflow, stack: Arc<Stack>) -> anyhow::Result<Router> {
    let areas = || {
        Router::new()
            .merge(experiments::routes())
            .merge(runs::routes())
            .merge(metrics::routes())
            .merge(logged_models::routes())
            .merge(registered::routes())
            .merge(artifacts::routes())
            .merge(transfers::routes())
            .merge(datasets::routes())
            .merge(scorers::routes())
            .merge(promptlab::routes())
            .merge(gateway::routes())
            .merge(traces::routes())
            .merge(webhooks::routes())
            .route("/mlflow/server-info", get(server_info))
            .layer(DefaultBodyLimit::max(MAX_JSON_BYTES))
    };
    let mut router = Router::new()
        .route("/health", get(async || "OK"))
        .route("/version", get(async || VERSION))
        .merge(artifacts::plain_routes())
        .merge(graphql::routes()?.layer(DefaultBodyLimit::max(MAX_JSON_BYTES)))
        .merge(otlp::routes());
    for root in ["/api", "/ajax-api"] {
        for version in ["2.0", "2.11", "3.0"] {
            router = router.nest(&format!("{root}/{version}"), areas());
        }
    }
    Ok(router.fallback(not_served).layer(from_fn_with_state(stack, stack::around)).with_state(mlflow))
}

async fn server_info(State(mlflow): State<Mlflow>) -> Json<serde_json::Value> {
    let direct = mlflow.direct_transfers && mlflow.artifacts.direct().is_some();
    Json(json!({
        "store_type": "SqlStore",
        "workspaces_enabled": false,
        "trace_archival_enabled": false,
        "multipart_uploads_enabled": direct,
        "multipart_downloads_enabled": direct,
        "presigned_upload_run_id_supported": false,
        "presigned_upload_model_id_supported": false,
        "features_enabled": {"gateway": false},
    }))
}

/// A path of MLflow's API that this registry has no part of, or none of MLflow's at all.
///
/// The body is read all the same: the connection of a client that is not listened to is closed, and its next call on it,
/// which has nothing to do with this one, would fail.
async fn not_served(method: Method, uri: Uri, body: Body) -> Response {
    if axum::body::to_bytes(body, MAX_JSON_BYTES).await.is_err() {
        tracing::debug!(path = uri.path(), "a call that is not served has a body too large to read");
    }
    let path = uri.path();
    let is_mlflow_s = ["/api/", "/ajax-api/", "/graphql", "/v1/traces", "/gateway"].iter().any(|p| path.starts_with(p));
    if is_mlflow_s {
        let message = format!(
            "{method} {path} is not served here: this registry keeps experiments, runs, traces, models and files"
        );
        return Refusal::new(StatusCode::NOT_IMPLEMENTED, "NOT_IMPLEMENTED", message).into_response();
    }
    Refusal::new(StatusCode::NOT_FOUND, "ENDPOINT_NOT_FOUND", format!("{method} {path} is not a path of MLflow's API"))
        .into_response()
}
