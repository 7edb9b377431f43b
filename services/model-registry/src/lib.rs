//! The registry of models: names, versions, aliases, tags and files, and the log of what happened to them.
//!
//! - `grpc` and `convert` face the wire; `names` and `model` hold the rules; `error` says what can go wrong.
//! - `store` remembers (SQLite, PostgreSQL), `artifacts` keeps the bytes (a directory, S3), `feed` follows the log.
//! - `publish` is the client that puts a directory into a registry; predict's tests and the demo use it too.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use verdict_chassis::health::Health;
use verdict_chassis::server::{self, Listeners};

pub mod artifacts;
pub mod config;
mod convert;
pub mod error;
mod feed;
mod grpc;
pub mod metrics;
pub mod model;
pub mod names;
mod probe;
pub mod publish;
pub mod store;

pub use config::Config;

/// The full name of the gRPC service, as health and reflection know it.
pub const SERVICE: &str = "verdict.registry.v1.ModelRegistryService";

/// Serves the registry on `listeners` until `stop`, then drains.
///
/// Fails at once, naming the setting, when the database or the artifact store can't be used.
pub async fn run(config: Config, listeners: Listeners, stop: CancellationToken) -> anyhow::Result<()> {
    metrics::describe();
    let database = config.database.url();
    let store = store::open(&database, config.database.database_connections, !config.no_migrate).await?;
    let artifacts = artifacts::open(&config).await?;
    let feed = feed::Feed::start(store.clone(), config.watch_heartbeat, stop.clone()).await?;
    tracing::info!(%database, artifacts = %config.artifact_location(), "opened the database and the artifact store");

    let health = Health::new(&[SERVICE]);
    health.set(SERVICE, true, "the database answers");
    let probe = tokio::spawn(probe::run(Arc::clone(&store), health.clone(), stop.clone()));
    let routes = grpc::routes(grpc::Registry { store, artifacts, feed }, config.server.max_message_bytes);
    let served = server::serve(&config.server, listeners, routes, health, verdict_api::FILE_DESCRIPTOR_SET, stop).await;
    probe.abort();
    served
}
