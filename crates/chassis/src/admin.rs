//! The admin HTTP side: `/metrics`, `/livez`, `/readyz`.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::health::Health;
use crate::{exemplars, metrics};

pub(crate) fn router(health: Health) -> Router {
    Router::new()
        .route("/livez", get(async || "live\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(health)
}

/// 200 when every service is ready, else 503; the body says which is not, and why.
async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let code = if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, axum::Json(health.report()))
}

/// Prometheus's text, or OpenMetrics with exemplars for whoever asks for it.
async fn render(headers: HeaderMap) -> impl IntoResponse {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let wants_open_metrics = accepted.into_iter().any(|accepted| accepted.contains("application/openmetrics-text"));
    match metrics::recorder() {
        Some(recorder) if wants_open_metrics => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], exemplars::open_metrics(&recorder.render())).into_response()
        }
        Some(recorder) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], recorder.render()).into_response()
        }
        None => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics recorder is not installed\n").into_response(),
    }
}
