//! predict: runs the models that the registry keeps.
//!
//! | module | what it holds |
//! |---|---|
//! | [`follow`], [`catalog`], [`registry`], [`cache`] | which version serves, and how it comes here, verified |
//! | [`deployment`] | tells the registry what serves here |
//! | [`model`] | a loaded version: [`text`] (embedding, reranking), [`generate`], [`tabular`] |
//! | [`engine`] | what all families have in common: named tensors in and out, warm-up, statistics |
//! | [`admission`], [`batch`], [`queue`], [`cut`], [`rate`], [`answers`] | the bounded queue in front of every engine: who goes first, where a batch ends, what is too late, what was answered before |
//! | [`routes`], [`traffic`], [`spare`], [`repeats`] | who answers under a name: champions, challengers, shadows, guards |
//! | [`schema`], [`policy`], [`decide`], [`decision`], [`log`] | from named features to a recorded decision |
//! | [`grpc`], [`convert`] | the services: convert in, one call, convert out |

pub mod admission;
pub mod answers;
pub mod batch;
pub mod cache;
pub mod catalog;
pub mod config;
pub mod convert;
pub mod cut;
pub mod decide;
pub mod decision;
pub mod deployment;
pub mod engine;
pub mod error;
pub mod follow;
pub mod generate;
mod generation_loop;
pub mod grpc;
pub mod log;
pub mod metrics;
pub mod model;
pub mod policy;
pub mod queue;
pub mod rate;
pub mod reference;
pub mod registry;
pub mod release;
pub mod repeats;
pub mod routes;
pub mod schema;
pub mod spare;
pub mod tabular;
pub mod text;
pub mod timing;
pub mod traffic;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use time::OffsetDateTime;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;
use verdict_chassis::{client, health::Health, server, server::Listeners};

pub use crate::config::Config;
use crate::{
    cache::Cache,
    catalog::Catalog,
    decide::Decider,
    deployment::Reporter,
    follow::Follower,
    log::writer::Writer,
    registry::Registry,
    routes::{board::Board, saved::Store, shadow::Copier},
    traffic::Traffic,
};

/// The services of this process, by their full names; all are ready when every configured model is warm.
pub const SERVICES: [&str; 4] = [
    "verdict.predict.v1.PredictService",
    "verdict.predict.v1.DecisionService",
    "verdict.predict.v1.ServingService",
    "inference.GRPCInferenceService",
];

/// How long stopping waits for work of its own, after the last call ended.
const LAST_WORK: Duration = Duration::from_secs(5);

/// Names this process apart from all others that are known by the same registry.
fn deployment_name(port: u16) -> String {
    let host = std::env::var("HOSTNAME").ok().filter(|host| !host.is_empty());
    format!("{}:{port}", host.unwrap_or_else(|| "localhost".to_owned()))
}

/// Serves until `stop`. Returns when calls in flight have ended, or were cut after the drain's grace.
pub async fn run(config: Config, listeners: Listeners, stop: CancellationToken) -> anyhow::Result<()> {
    metrics::describe();
    let cache = Arc::new(Cache::open(config.data_dir.join("cache"))?);
    let (database, file) = (config.database_url.as_deref(), config.data_dir.join("decisions.db"));
    let log = log::open_following(database, &file, &config.secrets, config.server.secrets_refresh, &stop).await?;
    let channel = client::connect(&config.registry_url).context("--registry-url, REGISTRY_URL")?;
    let registry = Registry::new(channel.clone());
    let health = Health::new(&SERVICES);
    let store = Store::new(&config.data_dir);
    let mut saved = store.load()?;
    if let Some(path) = &config.routes {
        saved.configure(path, OffsetDateTime::now_utc()).context("--routes, PREDICT_ROUTES")?;
    }
    let named = saved.routes.iter().flat_map(|kept| kept.route.references());
    let catalog = Arc::new(Catalog::new(config.models.iter().chain(&saved.models).chain(named)));
    let board = Arc::new(Board::new(store, saved, catalog.clone(), config.models.clone()));
    board.save_models().map_err(anyhow::Error::from)?;
    if catalog.slots().is_empty() {
        warn!("no models are configured: name some with --models or PREDICT_MODELS");
    }

    let tasks = TaskTracker::new();
    let (writer, write) = Writer::new(log.clone());
    tasks.spawn(write);
    let sizing = config.sizing();
    let following = stop.child_token();
    let follower = Follower {
        catalog: catalog.clone(),
        cache,
        registry,
        sizing,
        health: health.clone(),
        tasks: tasks.clone(),
        stop: following.clone(),
    };
    let follower = follower.start();

    let name = config.deployment.clone().unwrap_or_else(|| deployment_name(listeners.grpc_addr().port()));
    tasks.spawn(Reporter { catalog: catalog.clone(), channel, name }.run(following.clone()));

    let decider = Arc::new(Decider::new(log, writer));
    let copier = Copier::start(config.shadow_queue).context("the thread for shadows cannot be started")?;
    let traffic = Traffic::new(catalog, board, copier);
    let routes = grpc::routes(traffic, follower, decider, &config.server);
    let served = server::serve(&config.server, listeners, routes, health, verdict_api::FILE_DESCRIPTOR_SET, stop).await;

    // The routes are gone, and with them the last sender of the decision writer: it writes what it has and ends.
    following.cancel();
    tasks.close();
    if tokio::time::timeout(LAST_WORK, tasks.wait()).await.is_err() {
        warn!("work in the background did not end within {LAST_WORK:?}");
    }
    served
}
