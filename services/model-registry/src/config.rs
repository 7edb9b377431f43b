//! Every setting of the service: a flag and an environment variable each.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use url::Url;
use verdict_chassis::secrets::Secrets;
use verdict_chassis::server::ServerConfig;
use verdict_chassis::settings;
use verdict_chassis::telemetry::TelemetryConfig;

use crate::webhooks::WebhookConfig;

/// Settings of `model-registry serve`.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    /// Address of the gRPC server.
    #[arg(long, env = "MODEL_REGISTRY_LISTEN", default_value = "127.0.0.1:50051")]
    pub listen: SocketAddr,
    /// Address of the admin server: /metrics, /livez, /readyz.
    #[arg(long, env = "MODEL_REGISTRY_ADMIN_LISTEN", default_value = "127.0.0.1:9101")]
    pub admin_listen: SocketAddr,
    /// Address of MLflow's REST API, for the `mlflow` client; none serves none.
    #[arg(long, env = "MODEL_REGISTRY_MLFLOW_LISTEN", default_value = "127.0.0.1:5000", value_parser = listen_or_none)]
    pub mlflow_listen: MlflowListen,
    /// Below which MLflow's experiments keep their files unless they say otherwise: files of this registry, or a place its
    /// clients reach themselves, as `s3://bucket/prefix`.
    #[arg(long, env = "MODEL_REGISTRY_MLFLOW_ARTIFACT_ROOT", default_value = "mlflow-artifacts:")]
    pub mlflow_artifact_root: String,
    /// Let MLflow's clients send and fetch files straight to and from the bucket, by URLs signed for an hour. They must reach
    /// it at the address this registry does.
    #[arg(long, env = "MODEL_REGISTRY_MLFLOW_DIRECT_TRANSFERS")]
    pub mlflow_direct_transfers: bool,
    /// The deployments server that MLflow's web page asks through the registry, as `http://gateway:7000`.
    #[arg(long, env = "MODEL_REGISTRY_MLFLOW_DEPLOYMENTS_TARGET", value_parser = http_url)]
    pub mlflow_deployments_target: Option<Url>,
    /// Calls of MLflow's API served at the same time; more are refused with 429. They have SERVER_REQUEST_TIMEOUT to be
    /// answered; a file may take longer, but not this long between two of its pieces.
    #[arg(long, env = "MODEL_REGISTRY_MLFLOW_MAX_IN_FLIGHT", default_value = "256", value_parser = settings::positive)]
    pub mlflow_max_in_flight: usize,
    #[command(flatten)]
    pub database: DatabaseConfig,
    /// Leave the tables of PostgreSQL as they are; `model-registry migrate` has brought them up to date.
    #[arg(long, env = "MODEL_REGISTRY_NO_MIGRATE")]
    pub no_migrate: bool,
    #[command(flatten)]
    pub artifacts: ArtifactConfig,
    /// Time between heartbeats of a silent watch; at most 30 s.
    #[arg(long, env = "MODEL_REGISTRY_WATCH_HEARTBEAT", default_value = "15s", value_parser = heartbeat)]
    pub watch_heartbeat: Duration,
    /// How long a deployment that is not heard of any more is listed as lost; then it has ended, and the audit log says so.
    #[arg(long, env = "MODEL_REGISTRY_DEPLOYMENT_RETENTION", default_value = "168h", value_parser = settings::duration)]
    pub deployment_retention: Duration,
    #[command(flatten)]
    pub webhooks: WebhookConfig,
    #[command(flatten)]
    pub server: ServerConfig,
    #[command(flatten)]
    pub telemetry: TelemetryConfig,
    /// Which settings are references that may change while the process runs.
    #[arg(skip)]
    pub secrets: Secrets,
}

/// Where the registry keeps its metadata.
#[derive(clap::Args, Clone, Debug)]
pub struct DatabaseConfig {
    /// Directory of what is kept on this machine's disk.
    #[arg(long, env = "MODEL_REGISTRY_DATA_DIR", default_value = ".verdict/model-registry")]
    pub data_dir: PathBuf,
    /// `sqlite:///path/to/file` or `postgres://user:password@host/database` [default: a SQLite file in the data directory].
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<DatabaseUrl>,
    /// PostgreSQL connections of this replica; replicas times this must stay below the server's limit.
    #[arg(long, env = "MODEL_REGISTRY_DATABASE_CONNECTIONS", default_value = "10", value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub database_connections: u32,
}

impl DatabaseConfig {
    /// Where the metadata is, given or by default.
    pub fn url(&self) -> DatabaseUrl {
        let default = || DatabaseUrl::Sqlite(self.data_dir.join("registry.db"));
        self.database_url.clone().unwrap_or_else(default)
    }
}

/// Where the registry keeps files.
#[derive(clap::Args, Clone, Debug)]
pub struct ArtifactConfig {
    /// `file:///path/to/directory` or `s3://bucket/prefix` [default: `artifacts` in the data directory].
    #[arg(long, env = "ARTIFACT_STORE")]
    pub artifact_store: Option<ArtifactLocation>,
    /// S3 endpoint other than AWS's own; buckets are then addressed by path. Credentials and region: the usual AWS_ variables.
    #[arg(long, env = "AWS_ENDPOINT_URL_S3")]
    pub s3_endpoint: Option<Url>,
}

impl Config {
    /// The default settings with everything on disk below `dir`, whatever the environment says.
    pub fn in_dir(dir: impl AsRef<Path>) -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 50051).into(),
            admin_listen: (Ipv4Addr::LOCALHOST, 9101).into(),
            mlflow_listen: None,
            mlflow_artifact_root: "mlflow-artifacts:".to_owned(),
            mlflow_direct_transfers: false,
            mlflow_deployments_target: None,
            mlflow_max_in_flight: 256,
            database: DatabaseConfig {
                data_dir: dir.as_ref().to_owned(),
                database_url: None,
                database_connections: 10,
            },
            no_migrate: false,
            artifacts: ArtifactConfig { artifact_store: None, s3_endpoint: None },
            watch_heartbeat: Duration::from_secs(15),
            deployment_retention: Duration::from_secs(7 * 24 * 3600),
            webhooks: WebhookConfig::default(),
            server: ServerConfig::default(),
            telemetry: TelemetryConfig::default(),
            secrets: Secrets::default(),
        }
    }

    /// Where files are, given or by default.
    pub fn artifact_location(&self) -> ArtifactLocation {
        let default = || ArtifactLocation::Directory(self.database.data_dir.join("artifacts"));
        self.artifacts.artifact_store.clone().unwrap_or_else(default)
    }
}

/// Where MLflow's REST API is served, if it is.
pub type MlflowListen = Option<SocketAddr>;

fn http_url(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if !matches!(url.scheme(), "http" | "https") => Err("must begin with http:// or https://".to_owned()),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => Err("must have no password".to_owned()),
        Ok(url) => Ok(url),
        Err(error) => Err(error.to_string()),
    }
}

fn listen_or_none(text: &str) -> Result<MlflowListen, String> {
    if text == "none" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "must be an address like 127.0.0.1:5000, or none".to_owned())
}

fn heartbeat(text: &str) -> Result<Duration, String> {
    match settings::duration(text)? {
        every if every.is_zero() => Err("must be more than 0".to_owned()),
        every if every > Duration::from_secs(30) => Err("must be at most 30s, which the contract promises".to_owned()),
        every => Ok(every),
    }
}

/// Which database. Its `Debug` and `Display` hold no password.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    Sqlite(PathBuf),
    Postgres(Url),
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.contains('?') || path == ":memory:" {
                return Err("a SQLite URL is sqlite:///path/to/file, without parameters".to_owned());
            }
            return Ok(Self::Sqlite(path.into()));
        }
        match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "postgres" | "postgresql") => Ok(Self::Postgres(url)),
            _ => Err("must begin with sqlite: or postgres://".to_owned()),
        }
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(url) => {
                let host = url.host_str().unwrap_or("localhost");
                write!(f, "postgres://{host}:{}{}", url.port().unwrap_or(5432), url.path())
            }
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which artifact store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArtifactLocation {
    Directory(PathBuf),
    /// `prefix` is empty or ends in '/'.
    S3 {
        bucket: String,
        prefix: String,
    },
}

impl FromStr for ArtifactLocation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("file://") {
            if path.is_empty() {
                return Err("a directory is file:///path/to/directory".to_owned());
            }
            return Ok(Self::Directory(path.into()));
        }
        let Some(rest) = text.strip_prefix("s3://") else { return Err("must begin with file:// or s3://".to_owned()) };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        if bucket.is_empty() {
            return Err("an S3 location is s3://bucket or s3://bucket/prefix".to_owned());
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix })
    }
}

impl fmt::Display for ArtifactLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_sqlite_or_postgres_and_never_shows_its_password() {
        let parse = |text: &str| text.parse::<DatabaseUrl>();
        assert_eq!(parse("sqlite:///var/lib/r.db").unwrap(), DatabaseUrl::Sqlite("/var/lib/r.db".into()));
        assert_eq!(parse("sqlite:r.db").unwrap(), DatabaseUrl::Sqlite("r.db".into()));
        let postgres = parse("postgres://registry:hunter2@db.internal/models").unwrap();
        assert_eq!(format!("{postgres:?}"), "postgres://db.internal:5432/models");
        for bad in ["", "mysql://x/y", "sqlite:", "sqlite://r.db?mode=ro", "registry.db"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_artifact_store_is_a_directory_or_a_bucket() {
        let parse = |text: &str| text.parse::<ArtifactLocation>();
        assert_eq!(parse("file:///srv/a").unwrap(), ArtifactLocation::Directory("/srv/a".into()));
        let s3 = |bucket: &str, prefix: &str| ArtifactLocation::S3 { bucket: bucket.into(), prefix: prefix.into() };
        assert_eq!(parse("s3://models").unwrap(), s3("models", ""));
        assert_eq!(parse("s3://models/a/b/").unwrap(), s3("models", "a/b/"));
        for bad in ["", "file://", "s3://", "/srv/a", "gs://x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
