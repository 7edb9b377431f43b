//! The admin HTTP side: `/metrics`, `/livez`, `/readyz`.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::health::Health;
use crate::metrics;

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

async fn render() -> impl IntoResponse {
    match metrics::recorder() {
        Some(recorder) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], recorder.render()).into_response()
        }
        None => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics recorder is not installed\n").into_response(),
    }
}
