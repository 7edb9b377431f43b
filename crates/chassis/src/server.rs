//! The gRPC server every service runs: its settings, its two listeners, its life from the first call to the drain.

mod body;
mod connections;
mod methods;
mod stack;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tracing::info;

use crate::health::Health;
use crate::server::methods::Methods;
use crate::server::stack::Stack;
use crate::{admin, metrics, settings};

const SYSTEM_SERVICES: [&str; 3] =
    ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Limits and times of the server.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Server")]
pub struct ServerConfig {
    /// Largest message a caller may send, in bytes
    #[arg(long, env = "SERVER_MAX_MESSAGE_BYTES", default_value = "67108864", value_parser = settings::positive)]
    pub max_message_bytes: usize,
    /// Calls served at the same time; more are refused with RESOURCE_EXHAUSTED. A stream counts until it ends
    #[arg(long, env = "SERVER_MAX_IN_FLIGHT", default_value = "256", value_parser = settings::positive)]
    pub max_in_flight: usize,
    /// TCP connections held at the same time; more wait in the system's queue
    #[arg(long, env = "SERVER_MAX_CONNECTIONS", default_value = "1024", value_parser = settings::positive)]
    pub max_connections: usize,
    /// Most time until an answer begins, also for callers that set a longer deadline or none. An upload stream may
    /// take longer in all, but not this long between two of its messages
    #[arg(long, env = "SERVER_REQUEST_TIMEOUT", default_value = "60s", value_parser = settings::positive_duration)]
    pub request_timeout: Duration,
    /// Time between NOT_SERVING and the end of accepting, for load balancers to notice
    #[arg(long, env = "SERVER_DRAIN_DELAY", default_value = "0s", value_parser = settings::duration)]
    pub drain_delay: Duration,
    /// Time that calls in flight get to end when stopping; then they are cut
    #[arg(long, env = "SERVER_DRAIN_GRACE", default_value = "10s", value_parser = settings::duration)]
    pub drain_grace: Duration,
    /// Age at which a connection is asked to reconnect, so that new replicas get traffic; its open calls go on
    #[arg(long, env = "SERVER_MAX_CONNECTION_AGE", default_value = "30m", value_parser = settings::positive_duration)]
    pub max_connection_age: Duration,
    /// Time in which a new connection must begin to speak HTTP/2
    #[arg(long, env = "SERVER_HANDSHAKE_TIMEOUT", default_value = "10s", value_parser = settings::positive_duration)]
    pub handshake_timeout: Duration,
    /// Time between two HTTP/2 pings on a connection; a peer that misses one for as long again is gone
    #[arg(long, env = "SERVER_KEEP_ALIVE", default_value = "20s", value_parser = settings::positive_duration)]
    pub keep_alive: Duration,
    /// Time between two readings of a setting that is kept in AWS Secrets Manager
    #[arg(long, env = "SECRETS_REFRESH", default_value = "60s", value_parser = settings::positive_duration)]
    pub secrets_refresh: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_message_bytes: 64 << 20,
            max_in_flight: 256,
            max_connections: 1024,
            request_timeout: Duration::from_secs(60),
            drain_delay: Duration::ZERO,
            drain_grace: Duration::from_secs(10),
            max_connection_age: Duration::from_secs(30 * 60),
            handshake_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(20),
            secrets_refresh: Duration::from_secs(60),
        }
    }
}

/// The two sockets of a service, bound before anything slow begins: a taken port fails in a millisecond.
#[derive(Debug)]
pub struct Listeners {
    /// Where gRPC is served.
    pub grpc: TcpListener,
    /// Where `/metrics`, `/livez` and `/readyz` are served.
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds both; the error names the address and the setting to change.
    pub async fn bind(grpc: SocketAddr, admin: SocketAddr) -> anyhow::Result<Self> {
        let bind = async |address: SocketAddr, setting: &str| {
            TcpListener::bind(address).await.with_context(|| {
                format!("can't listen on {address}: choose another address with {setting}, or stop what listens there")
            })
        };
        Ok(Self { grpc: bind(grpc, "--listen").await?, admin: bind(admin, "--admin-listen").await? })
    }

    /// Binds both to free ports of 127.0.0.1.
    pub async fn loopback() -> anyhow::Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::bind(any, any).await
    }

    /// Returns the address gRPC is served on.
    pub fn grpc_addr(&self) -> SocketAddr {
        bound(&self.grpc)
    }

    /// Returns the address of the admin side.
    pub fn admin_addr(&self) -> SocketAddr {
        bound(&self.admin)
    }
}

fn bound(listener: &TcpListener) -> SocketAddr {
    // A bound socket has an address; the system reports one for as long as the socket is open.
    listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)))
}

/// Serves `routes` inside the one stack until `stop`, then drains: NOT_SERVING → `drain_delay` → no new connections →
/// calls in flight end, or are cut after `drain_grace` → return.
///
/// Adds gRPC health, and reflection (v1 and v1alpha) of the services that `health` lists, as described by `descriptors`
/// (an encoded `FileDescriptorSet`). The admin side answers from the start until the drain is over.
pub async fn serve(
    config: &ServerConfig,
    listeners: Listeners,
    routes: Routes,
    health: Health,
    descriptors: &'static [u8],
    stop: CancellationToken,
) -> anyhow::Result<()> {
    // Before the first call looks its meters up.
    metrics::recorder();
    let Listeners { grpc, admin } = listeners;
    let (grpc_addr, admin_addr) = (bound(&grpc), bound(&admin));
    let methods = Methods::of(&[
        descriptors,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ])?;
    let reflection = || {
        // The error details are described too, so that grpcurl can print them.
        let all = [
            descriptors,
            tonic_types::pb::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ]
        .into_iter()
        .fold(tonic_reflection::server::Builder::configure(), |all, set| all.register_encoded_file_descriptor_set(set));
        health.services().into_iter().chain(SYSTEM_SERVICES).fold(all, |all, service| all.with_service_name(service))
    };
    let (reflection_v1, reflection_v1alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    let routes = routes
        .add_service(HealthServer::new(health.clone()))
        .add_service(reflection_v1)
        .add_service(reflection_v1alpha)
        .prepare();
    let stack = Arc::new(Stack::new(config, routes, methods));

    let admin_stop = CancellationToken::new();
    let admin =
        axum::serve(admin, admin::router(health.clone())).with_graceful_shutdown(admin_stop.clone().cancelled_owned());
    let admin = AbortOnDropHandle::new(tokio::spawn(admin.into_future()));
    let upkeep = AbortOnDropHandle::new(tokio::spawn(async {
        let Some(recorder) = metrics::recorder() else { return };
        let mut tick = tokio::time::interval(METRICS_UPKEEP);
        loop {
            tick.tick().await;
            recorder.run_upkeep();
        }
    }));
    info!(listen = %grpc_addr, admin_listen = %admin_addr, "serving gRPC on {grpc_addr}, admin on {admin_addr}");

    let closing = CancellationToken::new();
    let drain = async {
        stop.cancelled().await;
        health.stop();
        tokio::time::sleep(config.drain_delay).await;
        closing.cancel();
    };
    tokio::join!(drain, connections::serve(config, grpc, stack, closing.clone()));
    admin_stop.cancel();
    // A client that keeps the admin side open doesn't hold the stop either.
    let _ = tokio::time::timeout(Duration::from_secs(1), admin).await;
    drop(upkeep);
    info!("stopped serving");
    Ok(())
}
