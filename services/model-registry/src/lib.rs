//! The registry of models: names, versions, aliases, tags and files, and the log of what happened to them.
//!
//! - `grpc` and `convert` face the wire; `names` and `model` hold the rules; `error` says what can go wrong.
//! - `store` remembers (SQLite, PostgreSQL), `artifacts` keeps the bytes (a directory, S3), `feed` follows the log.
//! - `mlflow` faces MLflow's clients over HTTP; `tracking` is what they keep besides models, `search` their filters.
//! - `archive` writes versions into files and reads them back; `maintenance` collects garbage and keeps what is held.
//! - `publish` is the client that puts a directory into a registry; predict's tests and the demo use it too.

use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use verdict_chassis::health::Health;
use verdict_chassis::server::{self, Listeners};

use crate::archive::grpc::Archives;
use crate::artifacts::ArtifactStore;
use crate::maintenance::garbage::Leased;
use crate::maintenance::grpc::Maintenance;
use crate::tracking::{Location, Millis};

pub mod archive;
pub mod artifacts;
pub mod config;
mod convert;
pub mod error;
mod feed;
mod grpc;
pub mod maintenance;
pub mod metrics;
mod mlflow;
pub mod model;
pub mod names;
mod probe;
pub mod publish;
pub mod search;
pub mod store;
pub mod tracking;

pub use config::Config;

/// The full name of the gRPC service, as health and reflection know it.
pub const SERVICE: &str = "verdict.registry.v1.ModelRegistryService";

/// All gRPC services: each can serve while the database answers.
pub const SERVICES: [&str; 3] =
    [SERVICE, "verdict.registry.v1.ArchiveService", "verdict.registry.v1.MaintenanceService"];

/// Serves the registry on `listeners` until `stop`, then drains.
///
/// Fails at once, naming the setting, when the database or the artifact store can't be used.
pub async fn run(config: Config, listeners: Listeners, stop: CancellationToken) -> anyhow::Result<()> {
    metrics::describe();
    let database = config.database.url();
    let store = store::open(&database, config.database.database_connections, !config.no_migrate).await?;
    let artifacts: Arc<dyn ArtifactStore> =
        Arc::new(Leased { store: store.clone(), artifacts: artifacts::open(&config).await? });
    let feed = feed::Feed::start(store.clone(), config.watch_heartbeat, stop.clone()).await?;
    let artifact_root = config.mlflow_artifact_root.clone();
    store.add_default_experiment(Millis::now(), &Location::Below(artifact_root.clone())).await?;
    let mlflow = match config.mlflow_listen {
        None => None,
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("MODEL_REGISTRY_MLFLOW_LISTEN: cannot listen on {address}"))?,
        ),
    };
    tracing::info!(%database, artifacts = %config.artifact_location(), "opened the database and the artifact store");

    let health = Health::new(&SERVICES);
    for service in SERVICES {
        health.set(service, true, "the database answers");
    }
    let spool = config.database.data_dir.join("spool");
    tokio::fs::create_dir_all(&spool).await.with_context(|| format!("cannot make {}", spool.display()))?;
    let probe = tokio::spawn(probe::run(store.clone(), health.clone(), stop.clone()));
    let rest = async {
        let Some(listener) = mlflow else { return Ok(()) };
        let spool = spool.clone();
        let (artifacts, feed) = (artifacts.clone(), feed.clone());
        let mlflow = mlflow::Mlflow { store: store.clone(), artifacts, feed, spool, artifact_root };
        mlflow::serve(listener, mlflow, stop.clone()).await
    };
    let registry = grpc::Registry { store: store.clone(), artifacts: artifacts.clone(), feed: feed.clone() };
    let max = config.server.max_message_bytes;
    let archives =
        Archives { store: store.clone(), artifacts: artifacts.clone(), feed: feed.clone(), spool: spool.clone() };
    let maintenance = Maintenance { store: store.clone(), artifacts: artifacts.clone(), feed: feed.clone() };
    let routes = grpc::routes(registry, max)
        .add_service(archive::grpc::server(archives, max))
        .add_service(maintenance::grpc::server(maintenance));
    let grpc = server::serve(&config.server, listeners, routes, health, verdict_api::FILE_DESCRIPTOR_SET, stop.clone());
    let served = tokio::try_join!(grpc, rest);
    probe.abort();
    served?;
    Ok(())
}
