//! `<service> probe`: asks a running service's gRPC health, where a health check has to be a command.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::client;

/// Below the usual limit of a container's health check.
const PATIENCE: Duration = Duration::from_secs(3);

/// Succeeds when the process at `listen` says that `service` (a full gRPC name) serves; the error says what it says instead.
///
/// `listen` is what the process was told to listen on: where that is every address, loopback is asked.
pub async fn ask(listen: SocketAddr, service: &str) -> anyhow::Result<()> {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let address = SocketAddr::new(ip, listen.port());
    let mut health = HealthClient::new(client::connect(&format!("http://{address}"))?);
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = tokio::time::timeout(PATIENCE, health.check(request))
        .await
        .with_context(|| format!("no answer from {address} within {PATIENCE:?}"))?
        .map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    let status = answer.into_inner().status();
    ensure!(status == ServingStatus::Serving, "{service} at {address} is {}", status.as_str_name());
    Ok(())
}
