//! The registry of models: names, versions, aliases, tags and files, and the log of what happened to them.
//!
//! - `grpc` and `convert` face the wire; `names` and `model` hold the rules; `error` says what can go wrong.
//! - `store` remembers (SQLite, PostgreSQL), `artifacts` keeps the bytes (a directory, S3), `feed` follows the log.
//! - `import` copies what another MLflow server keeps.
//! - `mlflow` faces MLflow's clients over HTTP; `tracking` is what they keep besides models, `evaluation` what
//!   these are judged by, `search` their filters.
//! - `webhooks` tells others of changes, over HTTP.
//! - `archive` writes versions into files and reads them back; `maintenance` collects garbage and keeps what is held.
//! - `publish` is the client that puts a directory into a registry; predict's tests and the demo use it too.

use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use verdict_api::registry::{
    archive_service_server, audit_service_server, evaluation_service_server, file_service_server,
    lineage_service_server, maintenance_service_server, model_registry_service_server, protection_service_server,
    trace_service_server, tracking_service_server, webhook_service_server,
};
use verdict_chassis::health::Health;
use verdict_chassis::server::{self, Listeners};

use crate::archive::grpc::Archives;
use crate::artifacts::ArtifactStore;
use crate::artifacts::spool::Spool;
use crate::maintenance::garbage::Leased;
use crate::maintenance::grpc::Maintenance;
use crate::sweeping::Sweeper;
use crate::tracking::{Location, Millis};
use crate::webhooks::Courier;

pub mod archive;
pub mod artifacts;
pub mod audit;
pub mod config;
mod convert;
pub mod error;
pub mod evaluation;
mod feed;
mod files;
mod grpc;
pub mod import;
pub mod lineage;
pub mod maintenance;
pub mod metrics;
mod mlflow;
pub mod model;
pub mod names;
mod probe;
pub mod protection;
pub mod publish;
mod registration;
pub mod search;
pub mod store;
mod sweeping;
pub mod tracking;
pub mod webhooks;

pub use config::Config;

/// The full names of the gRPC services, as health and reflection know them.
pub const SERVICES: [&str; 11] = [
    model_registry_service_server::SERVICE_NAME,
    archive_service_server::SERVICE_NAME,
    audit_service_server::SERVICE_NAME,
    evaluation_service_server::SERVICE_NAME,
    file_service_server::SERVICE_NAME,
    lineage_service_server::SERVICE_NAME,
    maintenance_service_server::SERVICE_NAME,
    protection_service_server::SERVICE_NAME,
    trace_service_server::SERVICE_NAME,
    tracking_service_server::SERVICE_NAME,
    webhook_service_server::SERVICE_NAME,
];

/// Serves the registry on `listeners` until `stop`, then drains.
///
/// Fails at once, naming the setting, when the database or the artifact store can't be used.
pub async fn run(config: Config, listeners: Listeners, stop: CancellationToken) -> anyhow::Result<()> {
    metrics::describe();
    let database = config.database.url();
    let connections = config.database.database_connections;
    let (migrate, refresh) = (!config.no_migrate, config.server.secrets_refresh);
    let store = store::open_following(&database, connections, migrate, &config.secrets, refresh, &stop).await?;
    let artifacts: Arc<dyn ArtifactStore> =
        Arc::new(Leased { store: store.clone(), artifacts: artifacts::open(&config).await? });
    let feed = feed::Feed::start(store.clone(), config.watch_heartbeat, stop.clone()).await?;
    let (artifact_root, direct_transfers) = (config.mlflow_artifact_root.clone(), config.mlflow_direct_transfers);
    store.add_default_experiment(Millis::now(), &Location::Below(artifact_root.clone())).await?;
    let mlflow = match config.mlflow_listen {
        None => None,
        Some(address) => Some(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("MODEL_REGISTRY_MLFLOW_LISTEN: cannot listen on {address}"))?,
        ),
    };
    let gateway = config.mlflow_deployments_target.clone().map(mlflow::Gateway::new).transpose()?.map(Arc::new);
    tracing::info!(%database, artifacts = %config.artifact_location(), "opened the database and the artifact store");

    let health = Health::new(&SERVICES);
    for service in SERVICES {
        health.set(service, true, "the database answers");
    }
    let courier = Arc::new(Courier::new(store.clone(), &config.webhooks)?);
    let deliveries = tokio::spawn(courier.clone().run(feed.clone(), stop.clone()));
    let probe = tokio::spawn(probe::run(store.clone(), health.clone(), stop.clone()));
    let rest = async {
        let Some(listener) = mlflow else { return Ok(()) };
        let spool = config.database.data_dir.join("spool");
        let (artifacts, feed, courier) = (artifacts.clone(), feed.clone(), courier.clone());
        let mlflow = mlflow::Mlflow {
            store: store.clone(),
            artifacts,
            feed,
            courier,
            spool,
            artifact_root,
            direct_transfers,
            gateway,
        };
        let stack = mlflow::Stack::new(config.mlflow_max_in_flight, config.server.request_timeout);
        mlflow::serve(listener, mlflow, stack, stop.clone()).await
    };
    let spool = Spool::open(config.database.data_dir.join("spool/uploads")).await.with_context(|| {
        let dir = config.database.data_dir.display();
        format!("DATA_DIR: cannot keep uploads under way in {dir}/spool/uploads")
    })?;
    let incoming = config.database.data_dir.join("spool");
    let (store_of, artifacts_of) = (store.clone(), artifacts.clone());
    let registry = grpc::Registry { store: store_of, artifacts: artifacts_of, spool, incoming, feed: feed.clone() };
    let spool = config.database.data_dir.join("spool");
    let sweeper = Sweeper {
        store: store.clone(),
        artifacts: artifacts.clone(),
        spool: spool.clone(),
        deployment_retention: config.deployment_retention,
    };
    let sweeping = tokio::spawn(sweeper.run());
    let archives = Archives { store: store.clone(), artifacts: artifacts.clone(), feed: feed.clone(), spool };
    let maintenance = Maintenance { store: store.clone(), artifacts: artifacts.clone(), feed: feed.clone() };
    let max_message_bytes = config.server.max_message_bytes;
    let routes = grpc::routes(registry, &config.mlflow_artifact_root, max_message_bytes)
        .add_service(webhooks::grpc::server(courier.clone(), max_message_bytes))
        .add_service(archive::grpc::server(archives, max_message_bytes))
        .add_service(maintenance::grpc::server(maintenance));
    let grpc = server::serve(&config.server, listeners, routes, health, verdict_api::FILE_DESCRIPTOR_SET, stop.clone());
    let served = tokio::try_join!(grpc, rest);
    probe.abort();
    sweeping.abort();
    served?;
    deliveries.await?;
    Ok(())
}
