//! Both servers as processes, each on a database of its own that is filled before it starts.

use std::{
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use http_body_util::Full;
use hyper::Request;
use model_registry::{
    store,
    tracking::{Location, Millis},
};
use verdict_testkit::{net::free_port, postgres, process::Child};

use super::{data, load::Connection};
use crate::Cli;

/// How long `mlflow server` may take to answer.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a server is left alone before its memory is read.
const IDLE: Duration = Duration::from_secs(2);

/// Where each side keeps its metadata.
pub(super) enum Database {
    Sqlite(PathBuf),
    Postgres { ours: String, theirs: String },
}

impl Database {
    pub(super) fn sqlite(dir: &Path) -> Self {
        Self::Sqlite(dir.to_owned())
    }

    /// Two new databases on the server of `TEST_POSTGRES_URL`.
    pub(super) async fn postgres() -> Result<Self> {
        // MLflow knows the scheme by its long name only.
        let theirs = postgres::database().await.replacen("postgres://", "postgresql://", 1);
        Ok(Self::Postgres { ours: postgres::database().await, theirs })
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "SQLite",
            Self::Postgres { .. } => "PostgreSQL",
        }
    }

    fn ours(&self) -> String {
        match self {
            Self::Sqlite(dir) => format!("sqlite://{}", dir.join("ours.db").display()),
            Self::Postgres { ours, .. } => ours.clone(),
        }
    }

    fn theirs(&self) -> String {
        match self {
            Self::Sqlite(dir) => format!("sqlite:///{}", dir.join("mlflow.db").display()),
            Self::Postgres { theirs, .. } => theirs.clone(),
        }
    }
}

/// Our server.
pub(super) struct Ours {
    pub(super) address: SocketAddr,
    pub(super) grpc: SocketAddr,
    pub(super) cold_start: Duration,
    pub(super) idle_bytes: u64,
    child: Child,
    _data: tempfile::TempDir,
}

impl Ours {
    /// Fills the database, then starts the server on it.
    pub(super) async fn start(cli: &Cli, database: &Database) -> Result<Self> {
        let url = database.ours();
        let began = Instant::now();
        let store = store::open(&url.parse().map_err(anyhow::Error::msg)?, 10, true).await?;
        store.add_default_experiment(Millis::now(), &Location::Below("mlflow-artifacts:".to_owned())).await?;
        data::fill(&store, cli.registry.versions, cli.registry.runs).await?;
        drop(store);
        println!("{}: ours is filled after {:.0} s", database.name(), began.elapsed().as_secs_f64());
        Self::start_on(cli, &url).await
    }

    /// Starts the server on a database as it is.
    pub(super) async fn start_on(cli: &Cli, url: &str) -> Result<Self> {
        let local = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (grpc, admin, address) = (local(), local(), local());
        let data = tempfile::tempdir()?;
        let began = Instant::now();
        let child = Child::spawn(
            &cli.bin_dir()?.join("model-registry"),
            &["serve"],
            [
                ("MODEL_REGISTRY_LISTEN", grpc.to_string()),
                ("MODEL_REGISTRY_ADMIN_LISTEN", admin.to_string()),
                ("MODEL_REGISTRY_MLFLOW_LISTEN", address.to_string()),
                ("MODEL_REGISTRY_DATA_DIR", data.path().display().to_string()),
                ("DATABASE_URL", url.to_owned()),
            ],
        );
        first_answer(address).await.with_context(|| child.log())?;
        let cold_start = began.elapsed();
        tokio::time::sleep(IDLE).await;
        let idle_bytes = memory(child.pid())?;
        Ok(Self { address, grpc, cold_start, idle_bytes, child, _data: data })
    }

    /// Bytes it has in memory now.
    pub(super) fn memory(&self) -> Result<u64> {
        memory(self.child.pid())
    }

    pub(super) async fn stop(&mut self) {
        self.child.terminate(PATIENCE).await;
    }
}

/// `mlflow server` with the workers it takes by default, without its jobs; dropped, it is killed.
pub(super) struct Mlflow {
    pub(super) address: SocketAddr,
    pub(super) cold_start: Duration,
    pub(super) idle_bytes: u64,
    child: std::process::Child,
    _artifacts: tempfile::TempDir,
}

impl Mlflow {
    /// Fills the database, then starts the server on it.
    pub(super) async fn start(cli: &Cli, database: &Database) -> Result<Self> {
        let (url, packages) = (database.theirs(), &cli.registry.mlflow_packages);
        ensure!(
            !packages.is_empty(),
            "BENCH_MLFLOW_PACKAGES names no packages: run scripts/bench.sh, which installs them"
        );
        let mut fill = Command::new("python3");
        fill.arg(&cli.registry.fill_mlflow).arg(&url).env("PYTHONPATH", packages);
        let counts = [data::MODELS, cli.registry.versions, cli.registry.runs].map(|count| count.to_string());
        for (name, count) in ["--models", "--versions", "--runs"].iter().zip(&counts) {
            fill.args([name, count.as_str()]);
        }
        let filled = fill.output().context("cannot start python3")?;
        ensure!(filled.status.success(), "{}", String::from_utf8_lossy(&filled.stderr));

        let (port, artifacts) = (free_port(), tempfile::tempdir()?);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let began = Instant::now();
        let log = std::fs::File::create(artifacts.path().join("log"))?;
        // Its workers are in its process group, and end with it.
        let child = Command::new("python3")
            .args(["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--backend-store-uri", &url, "--artifacts-destination"])
            .arg(artifacts.path().join("artifacts"))
            .current_dir(artifacts.path())
            .env("PYTHONPATH", packages)
            .env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("cannot start python3")?;
        let mut server = Self { address, cold_start: Duration::ZERO, idle_bytes: 0, child, _artifacts: artifacts };
        first_answer(address).await.context("mlflow server does not answer")?;
        server.cold_start = began.elapsed();
        // Its workers come one after another.
        tokio::time::sleep(IDLE * 5).await;
        let group = server.child.id();
        for process in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if group_of(pid) == Some(group) {
                server.idle_bytes += memory(pid).unwrap_or(0);
            }
        }
        Ok(server)
    }
}

impl Drop for Mlflow {
    fn drop(&mut self) {
        // It may be gone already: then there is nothing to do.
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Asks for a version by its alias until it is answered.
async fn first_answer(address: SocketAddr) -> Result<()> {
    let path = format!("/api/2.0/mlflow/registered-models/alias?name={}&alias=champion", data::model(0));
    let until = Instant::now() + PATIENCE;
    loop {
        if let Ok(mut connection) = Connection::open(address).await {
            match connection.ask(Request::get(&path).body(Full::default())?).await {
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => {}
                Ok(_) => return Ok(()),
            }
        }
        ensure!(Instant::now() < until, "nothing listens on {address}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The process group of a process.
fn group_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}

/// Bytes of a process in memory, what it shares with others counted in shares.
fn memory(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}
