//! Copies what a running MLflow server keeps into this registry: ids, numbers, names and times stay.
//!
//! - `source` asks the server, `wire` reads its answers, `compare` tells whether what is here is what is there.
//! - `experiments`, `runs`, `logged_models`, `models`, `files`: one module for each thing that is copied.
//! - `report` counts what was copied and lists what was not, and why.
//!
//! Nothing is written but through [`crate::tracking::import::Imports`], whose every call is one transaction, and by files
//! that are durable before they are noted. So an import that was killed is started again: what is here is compared and
//! passed over. A run's files come before the run itself, and all of a run in one transaction.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use url::Url;

use crate::Config;
use crate::artifacts::{self, ArtifactStore};
use crate::config::{ArtifactConfig, DatabaseConfig};
use crate::error::Error;
use crate::maintenance::garbage::Leased;
use crate::names::VersionId;
use crate::store::{self, Everything};
use crate::tracking::{Location, Millis};

mod compare;
mod experiments;
mod files;
mod logged_models;
mod models;
mod pages;
mod report;
mod runs;
mod source;
mod wire;

pub use report::{Counts, LeftOut, Report};
use source::Source;

/// Settings of `model-registry import-mlflow`.
#[derive(clap::Args, Clone)]
#[command(after_long_help = HELP)]
pub struct ImportConfig {
    /// The MLflow server to copy from, as `http://mlflow.internal:5000`.
    #[arg(long, env = "MLFLOW_TRACKING_URI")]
    pub from: Url,
    /// User of the MLflow server, where it asks for one.
    #[arg(long, env = "MLFLOW_TRACKING_USERNAME", requires = "password")]
    pub username: Option<String>,
    /// The user's password; better given by the environment, where other users of this machine do not see it.
    #[arg(long, env = "MLFLOW_TRACKING_PASSWORD", hide_env_values = true, requires = "username")]
    pub password: Option<String>,
    /// Bearer token, where the server asks for one; taken before user and password.
    #[arg(long, env = "MLFLOW_TRACKING_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Copy this experiment with its runs and logged models; may be repeated [default: all, unless `--model` is given].
    #[arg(long = "experiment", value_name = "NAME")]
    pub experiments: Vec<String>,
    /// Copy this registered model with its versions; may be repeated [default: all, unless `--experiment` is given].
    #[arg(long = "model", value_name = "NAME")]
    pub models: Vec<String>,
    /// Copy deleted experiments and runs too; they stay deleted.
    #[arg(long)]
    pub include_deleted: bool,
    /// Say what would be copied and what would not; read everything but the files, write nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Write the report to this file as JSON, besides printing it.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Runs, and files, that are copied at the same time.
    #[arg(long, default_value = "4", value_parser = clap::value_parser!(u8).range(1..=32))]
    pub concurrency: u8,
    #[command(flatten)]
    pub database: DatabaseConfig,
    #[command(flatten)]
    pub artifacts: ArtifactConfig,
}

const HELP: &str = "\
Where things go is set as for `serve`: DATABASE_URL, ARTIFACT_STORE, MODEL_REGISTRY_DATA_DIR, and the tables are brought up to
date as `migrate` does. With PostgreSQL the registry may go on serving; with SQLite stop it first.

Examples:
  See what there is, and what could not be copied:
    model-registry import-mlflow --from http://mlflow.internal:5000 --dry-run
  Copy all of it. Killed or cut off, start it again: it goes on, and nothing comes twice:
    model-registry import-mlflow --from http://mlflow.internal:5000 --include-deleted --report import.json
  One model and the experiment it came from:
    model-registry import-mlflow --from http://mlflow.internal:5000 --model fraud --experiment fraud-training

Kept: run ids, model ids, version numbers (a deleted number stays a gap), names, aliases, stages, tags, all values of all metrics,
all times, the paths of files below their run. An experiment keeps its number where that is free here; the report tells the others.
Files come through the server (its artifact proxy, or its own access to where they are) and are kept here by SHA-256; places then
name this registry. Files the server cannot reach are left out and listed; what they belong to keeps naming the place they are at.

Not copied: traces, assessments, evaluation datasets, webhooks, users and permissions; deleted versions and logged models, which a
server does not tell of.

What is here already is compared: the same is passed over, anything else is left as it is here and listed. So running it a
second time copies only what has come since. A run that was still going stays as it was then: import when runs have ended.

Certificates: those this machine trusts; SSL_CERT_FILE names a file of others.";

impl ImportConfig {
    fn authorization(&self) -> anyhow::Result<Option<HeaderValue>> {
        let text = match (&self.token, &self.username, &self.password) {
            (Some(token), _, _) => format!("Bearer {token}"),
            (None, Some(user), Some(password)) => {
                format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
            }
            _ => return Ok(None),
        };
        let mut value = HeaderValue::from_str(&text).context("MLFLOW_TRACKING_TOKEN holds what no header may hold")?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// Why something was not copied.
enum Failure {
    /// This one could not; others may.
    Item { status: Option<u16>, why: String },
    /// No other will: the server is gone, or this registry's own database or store.
    Fatal(anyhow::Error),
}

impl Failure {
    fn item(why: impl Into<String>) -> Self {
        Self::Item { status: None, why: why.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Unavailable { dependency, source } => {
                Self::Fatal(source.context(format!("{dependency} is unavailable")))
            }
            Error::Internal(source) => Self::item(format!("{source:#}")),
            error => Self::item(error.to_string()),
        }
    }
}

type Found<T> = Result<T, Failure>;

/// Tells how it goes: a line for each experiment and model, and the counts so far.
pub trait Progress: Send + Sync {
    /// Something was counted.
    fn counted(&self, copied: &Counts, here_already: &Counts);
    /// An experiment or a registered model is done.
    fn done(&self, line: &str);
}

/// An import under way.
struct Import<'a> {
    config: &'a ImportConfig,
    source: Source,
    store: Arc<dyn Everything>,
    artifacts: Arc<dyn ArtifactStore>,
    spool: PathBuf,
    downloads: Semaphore,
    /// The versions that are here as they are there.
    settled: Mutex<BTreeSet<VersionId>>,
    report: Mutex<Report>,
    progress: &'a dyn Progress,
}

/// Copies what the settings say. The report tells what came of it, also where it had to stop on the way.
///
/// Fails where it could not begin: a server that is none or lets nobody in, a database or a store that cannot be opened.
pub async fn import(config: &ImportConfig, progress: &dyn Progress) -> anyhow::Result<Report> {
    let source = Source::new(&config.from, config.authorization()?)?;
    let version = source.version().await?;
    let store = store::open(&config.database.url(), config.database.database_connections, true).await?;
    let database = config.database.clone();
    let settings =
        Config { database, artifacts: config.artifacts.clone(), ..Config::in_dir(&config.database.data_dir) };
    let kept = artifacts::open(&settings).await?;
    let artifacts: Arc<dyn ArtifactStore> = Arc::new(Leased { store: store.clone(), artifacts: kept });
    let spool = config.database.data_dir.join("spool");
    tokio::fs::create_dir_all(&spool).await.with_context(|| format!("cannot make {}", spool.display()))?;
    let import = Import {
        config,
        source,
        store,
        artifacts,
        spool,
        downloads: Semaphore::new(config.concurrency.into()),
        settled: Mutex::default(),
        report: Mutex::new(Report::new(&config.from, version, config.dry_run)),
        progress,
    };
    let outcome = import.all().await;
    let mut report = import.report.into_inner();
    report.stopped_by = outcome.err().map(|error| format!("{error:#}"));
    Ok(report)
}

impl Import<'_> {
    async fn all(&self) -> anyhow::Result<()> {
        if !self.config.dry_run {
            let location = Location::Below(crate::tracking::PROXY.to_owned());
            self.store.add_default_experiment(Millis::now(), &location).await?;
        }
        self.settle("experiments", "", Box::pin(self.experiments())).await?;
        self.settle("registered models", "", Box::pin(self.models())).await
    }

    /// Waits for something to be copied; what could not be goes into the report.
    async fn settle(
        &self,
        what: &'static str,
        name: &str,
        copying: impl Future<Output = Found<()>>,
    ) -> anyhow::Result<()> {
        match copying.await {
            Ok(()) => {}
            Err(Failure::Item { why, .. }) => self.leave_out(what, name, why),
            Err(Failure::Fatal(error)) => return Err(error),
        }
        Ok(())
    }

    fn leave_out(&self, what: &'static str, name: impl Into<String>, why: impl Into<String>) {
        self.report.lock().left_out.push(LeftOut { what, name: name.into(), why: why.into() });
    }

    fn copied(&self, count: impl FnOnce(&mut Counts)) {
        let mut report = self.report.lock();
        count(&mut report.copied);
        self.progress.counted(&report.copied, &report.here_already);
    }

    fn here_already(&self, count: impl FnOnce(&mut Counts)) {
        let mut report = self.report.lock();
        count(&mut report.here_already);
        self.progress.counted(&report.copied, &report.here_already);
    }

    /// How many are copied at the same time.
    fn at_once(&self) -> usize {
        self.config.concurrency.into()
    }
}

/// Checks an id that becomes part of paths.
fn checked_id(id: &str) -> Found<&str> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !id.is_empty() && id.len() <= 256 && id.bytes().all(is_fine) {
        return Ok(id);
    }
    Err(Failure::item("its id is not 1 to 256 letters, digits, '_' or '-'"))
}
