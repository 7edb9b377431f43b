//! One board of what is ready: gRPC health, `/readyz` and the drain read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt};
use serde::Serialize;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::{metrics, status};

/// What is ready to serve, by full gRPC service name; clones share one board.
///
/// The empty name stands for the whole process: SERVING when every service is.
#[derive(Clone, Debug)]
pub struct Health {
    board: Arc<watch::Sender<Board>>,
}

#[derive(Clone, Debug)]
struct Board {
    stopping: bool,
    services: BTreeMap<&'static str, State>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct State {
    serving: bool,
    why: String,
}

/// What `/readyz` says.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    ready: bool,
    stopping: bool,
    services: BTreeMap<&'static str, State>,
}

impl Board {
    fn ready(&self) -> bool {
        !self.stopping && self.services.values().all(|state| state.serving)
    }

    fn status(&self, service: &str) -> Option<ServingStatus> {
        let serving = match service {
            "" => self.ready(),
            name => self.services.get(name)?.serving && !self.stopping,
        };
        Some(if serving { ServingStatus::Serving } else { ServingStatus::NotServing })
    }
}

impl Health {
    /// Makes a board on which none of `services` (full gRPC names) serves yet.
    pub fn new(services: &[&'static str]) -> Self {
        let starting = || State { serving: false, why: "starting".to_owned() };
        for service in services.iter().copied() {
            metrics::serving(service, false);
        }
        let services = services.iter().map(|name| (*name, starting())).collect();
        Self { board: Arc::new(watch::Sender::new(Board { stopping: false, services })) }
    }

    /// Says whether `service` serves, and why; watchers hear of a change at once.
    pub fn set(&self, service: &'static str, serving: bool, why: impl Into<String>) {
        let state = State { serving, why: why.into() };
        self.board.send_if_modified(|board| {
            let before = board.services.insert(service, state.clone());
            let turned = before.as_ref().is_none_or(|before| before.serving != serving);
            if turned {
                metrics::serving(service, serving && !board.stopping);
                tracing::info!(rpc.service = service, serving, why = state.why, "health of `{service}` changed");
            }
            before != Some(state)
        });
    }

    /// Tells whether every service serves and the process isn't stopping.
    pub fn is_ready(&self) -> bool {
        self.board.borrow().ready()
    }

    /// Waits until every service serves.
    pub async fn ready(&self) {
        // The sender lives as long as `self`, so waiting can't fail.
        let _ = self.board.subscribe().wait_for(Board::ready).await;
    }

    /// Turns everything to NOT_SERVING for good and ends the watches.
    pub(crate) fn stop(&self) {
        self.board.send_modify(|board| {
            board.stopping = true;
            for service in board.services.keys().copied() {
                metrics::serving(service, false);
            }
        });
    }

    /// Returns the names of the services it reports on.
    pub fn services(&self) -> Vec<&'static str> {
        self.board.borrow().services.keys().copied().collect()
    }

    pub(crate) fn report(&self) -> Report {
        let board = self.board.borrow();
        Report { ready: board.ready(), stopping: board.stopping, services: board.services.clone() }
    }
}

#[tonic::async_trait]
impl tonic_health::pb::health_server::Health for Health {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        let found = self.board.borrow().status(&service);
        match found {
            Some(status) => Ok(Response::new(HealthCheckResponse { status: status.into() })),
            None => {
                let message = format!("service `{service}` is not served here; reflection lists what is");
                Err(status::not_found("SERVICE_UNKNOWN", "service", &service, message))
            }
        }
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let board = self.board.subscribe();
        let changes = stream::unfold((board, service, None), |(mut board, service, last)| async move {
            loop {
                let (now, stopping) = {
                    let board = board.borrow_and_update();
                    (board.status(&service).unwrap_or(ServingStatus::ServiceUnknown), board.stopping)
                };
                if last != Some(now) {
                    return Some((Ok(HealthCheckResponse { status: now.into() }), (board, service, Some(now))));
                }
                if stopping || board.changed().await.is_err() {
                    return None;
                }
            }
        });
        Ok(Response::new(changes.boxed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_ready_when_every_service_is() {
        let health = Health::new(&["a.A", "b.B"]);
        assert!(!health.is_ready());
        health.set("a.A", true, "warm");
        assert!(!health.is_ready());
        health.set("b.B", true, "warm");
        assert!(health.is_ready());
        health.set("a.A", false, "the model went away");
        assert!(!health.is_ready());
        health.set("a.A", true, "warm");
        health.stop();
        assert!(!health.is_ready(), "stopping is final");
    }
}
