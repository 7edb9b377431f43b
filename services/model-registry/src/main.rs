//! The life of the model-registry process.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use model_registry::archive;
use model_registry::audit::{self, Anchor, Verified};
use model_registry::config::{DatabaseConfig, DatabaseUrl};
use model_registry::import::{Counts, ImportConfig, Progress, import};
use model_registry::model::Task;
use model_registry::publish::{Publication, publish, signature_from_json};
use model_registry::{Config, store};
use verdict_api::registry::maintenance_service_client::MaintenanceServiceClient;
use verdict_api::registry::{
    CollectGarbageRequest, CollectGarbageResponse, ExportVersionHeader, ImportVersionHeader, ImportVersionResponse,
    Signature,
};
use verdict_chassis::server::Listeners;
use verdict_chassis::telemetry::{self, TelemetryConfig};
use verdict_chassis::{client, probe, runtime, settings, stop};

/// Models, versions, aliases, artifacts.
#[derive(Parser)]
#[command(name = "model-registry", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the registry until SIGTERM or SIGINT.
    Serve(Box<Config>),
    /// Bring the tables of the database up to date.
    Migrate(DatabaseConfig),
    /// Follow the audit log's chain of hashes and say whether it is what was written.
    VerifyAudit(VerifyAuditArgs),
    /// Print every setting, its value and where it comes from.
    Config(Box<Config>),
    /// Ask the registry that runs here whether it serves: ends with 0 if it does, with 1 and the reason if not.
    Probe {
        /// What it was told to listen on.
        #[arg(long, env = "MODEL_REGISTRY_LISTEN", default_value = "127.0.0.1:50051")]
        listen: SocketAddr,
    },
    /// Put a directory into a registry as a new version of a model.
    Publish(PublishArgs),
    /// Copy what a running MLflow server keeps into this registry: experiments, runs, models, files.
    ImportMlflow(Box<ImportConfig>),
    /// Write a version into a file that another registry can import.
    ///
    /// The file is an OCI image layout (in a tar) that holds a CNCF ModelPack: `skopeo` and other tools of containers read it, and
    /// can put it into a container registry. What is printed is the version and the digest of its manifest. The digest stays the same
    /// wherever the version goes: export it here, import it elsewhere and export it there, and both files are equal.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(ExportArgs),
    /// Add the version in a file that `export` has written.
    ///
    /// Everything in the file is checked against its digests; the version is READY with all its files, or nothing was added.
    /// If the model has a READY version with the same files, task, signature and parameters, that one is used again.
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(ImportArgs),
    /// Delete the bytes of files that nothing refers to any more.
    ///
    /// Deleting a version or a file removes what refers to its bytes; the bytes themselves go here. Safe while others upload:
    /// what is being uploaded is left alone. Versions under a legal hold keep their bytes.
    #[command(after_help = GC_EXAMPLES)]
    Gc(GcArgs),
}

const EXPORT_EXAMPLES: &str = "\
Examples:
  model-registry export --model fraud@champion --to fraud.tar
  model-registry export --model fraud/3 --to - | ssh inside model-registry import -
  skopeo copy oci-archive:fraud.tar docker://harbor.example/models/fraud:3";

const IMPORT_EXAMPLES: &str = "\
Examples:
  model-registry import fraud.tar --alias challenger
  model-registry import fraud.tar --model fraud-from-lab --registry http://inside:50051
  skopeo copy docker://harbor.example/models/fraud:3 oci-archive:fraud.tar";

const GC_EXAMPLES: &str = "\
Examples:
  model-registry gc --dry-run
  model-registry gc --older-than 24h --retention 720h";

#[derive(clap::Args)]
struct VerifyAuditArgs {
    #[command(flatten)]
    database: DatabaseConfig,
    /// Begin after this entry, which must have this hash: SEQUENCE:HASH, as an earlier run has printed it. What was changed
    /// before it is not looked at.
    #[arg(long, value_parser = anchor)]
    anchor: Option<Anchor>,
}

#[derive(clap::Args)]
struct ExportArgs {
    /// Where the registry is.
    #[arg(long, env = "REGISTRY_URL", default_value = "http://127.0.0.1:50051")]
    registry: String,
    /// Which version: `NAME@alias`, `NAME/2`, or `NAME` for the newest that is READY.
    #[arg(long)]
    model: String,
    /// File to write; `-` for standard output.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

#[derive(clap::Args)]
struct ImportArgs {
    /// File to read; `-` for standard input.
    #[arg(value_name = "FILE")]
    from: PathBuf,
    /// Where the registry is.
    #[arg(long, env = "REGISTRY_URL", default_value = "http://127.0.0.1:50051")]
    registry: String,
    /// Model to add the version to, registered where missing [default: the model it was exported from].
    #[arg(long, default_value = "", hide_default_value = true)]
    model: String,
    /// Alias to point at the version.
    #[arg(long, default_value = "", hide_default_value = true)]
    alias: String,
    /// Makes a repeated call return the first answer.
    #[arg(long, default_value = "", hide_default_value = true)]
    request_id: String,
}

#[derive(clap::Args)]
struct GcArgs {
    /// Where the registry is.
    #[arg(long, env = "REGISTRY_URL", default_value = "http://127.0.0.1:50051")]
    registry: String,
    /// Say what would be deleted, and delete nothing.
    #[arg(long)]
    dry_run: bool,
    /// Only bytes written at least this long ago.
    #[arg(long, default_value = "168h", value_parser = settings::duration)]
    older_than: Duration,
    /// How long after its deletion a version or file still counts.
    #[arg(long, default_value = "720h", value_parser = settings::duration)]
    retention: Duration,
}

#[derive(clap::Args)]
struct PublishArgs {
    /// Where the registry is.
    #[arg(long, env = "REGISTRY_URL", default_value = "http://127.0.0.1:50051")]
    registry: String,
    /// Name of the model; registered where missing.
    #[arg(long)]
    model: String,
    /// What the model is.
    #[arg(long, default_value = "")]
    description: String,
    /// What the model does.
    #[arg(long, value_enum)]
    task: Task,
    /// Directory whose files are the version.
    #[arg(long)]
    dir: PathBuf,
    /// File that lists the input columns of a tabular model.
    #[arg(long)]
    signature: Option<PathBuf>,
    /// How to run the model, as `key=value`; may be repeated.
    #[arg(long = "parameter", value_parser = pair)]
    parameters: Vec<(String, String)>,
    /// Tag of the version, as `key=value`; may be repeated.
    #[arg(long = "tag", value_parser = pair)]
    tags: Vec<(String, String)>,
    /// Alias to point at the version.
    #[arg(long)]
    alias: Option<String>,
    /// Makes a repeated call return the first answer.
    #[arg(long)]
    request_id: Option<String>,
}

fn main() -> ExitCode {
    let (matches, secrets) = settings::read(Cli::command());
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    runtime::block_on("model-registry", async {
        match cli.command {
            Command::Serve(config) => serve(Config { secrets, ..*config }).await,
            Command::Migrate(database) => migrate(database).await,
            Command::VerifyAudit(args) => verify_audit(args).await,
            Command::Config(_) => print_config(&matches),
            Command::Probe { listen } => probe::ask(listen, model_registry::SERVICES[0]).await,
            Command::Publish(args) => publish_directory(args).await,
            Command::ImportMlflow(config) => import_mlflow(*config).await,
            Command::Export(args) => export(args).await,
            Command::Import(args) => import_archive(args).await,
            Command::Gc(args) => collect_garbage(args).await,
        }
    })
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let telemetry = telemetry::init("model-registry", &config.telemetry)?;
    let stop = stop::on_signal();
    let listeners = Listeners::bind(config.listen, config.admin_listen).await?;
    let served = model_registry::run(config, listeners, stop).await;
    telemetry.flush(Duration::from_secs(3)).await;
    served
}

async fn migrate(database: DatabaseConfig) -> anyhow::Result<()> {
    let telemetry = telemetry::init("model-registry", &TelemetryConfig::default())?;
    let url: DatabaseUrl = database.url();
    store::open(&url, 2, true).await?;
    println!("the tables of {url} are up to date");
    telemetry.flush(Duration::from_secs(3)).await;
    Ok(())
}

async fn verify_audit(args: VerifyAuditArgs) -> anyhow::Result<()> {
    let VerifyAuditArgs { database, anchor } = args;
    let url = database.url();
    if let DatabaseUrl::Sqlite(path) = &url {
        anyhow::ensure!(path.exists(), "there is no database at {url}");
    }
    let store = store::open(&url, 2, false).await?;
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} entries, {eta} left")?);
    let progress = |done: u64, of: u64| {
        bar.set_length(of);
        bar.set_position(done);
    };
    let Verified { to, end, broken } = audit::verify(&*store, anchor.unwrap_or_default(), u64::MAX, progress).await?;
    bar.finish_and_clear();
    if let Some((sequence, problem)) = broken {
        anyhow::bail!("the audit log is broken at entry {sequence}: {problem}; the log has {} entries", end.sequence);
    }
    println!("intact; note this anchor outside of the database: {}:{}", to.sequence, to.hash);
    Ok(())
}

fn anchor(text: &str) -> Result<Anchor, String> {
    let (sequence, hash) = text.split_once(':').ok_or("must be SEQUENCE:HASH")?;
    let sequence = sequence.parse().ok().filter(|sequence| *sequence > 0).ok_or("SEQUENCE must be 1 or more")?;
    Ok(Anchor { sequence, hash: hash.to_owned() })
}

fn print_config(matches: &clap::ArgMatches) -> anyhow::Result<()> {
    let command = Cli::command();
    let (name, matches) = matches.subcommand().context("no subcommand")?;
    let command = command.find_subcommand(name).context("no such subcommand")?;
    println!("{}", settings::table(command, matches));
    Ok(())
}

async fn publish_directory(args: PublishArgs) -> anyhow::Result<()> {
    let PublishArgs { registry, model, description, task, dir, signature, parameters, tags, alias, request_id } = args;
    let signature = signature.as_deref().map(read_signature).transpose()?;
    let publication = Publication {
        model,
        description,
        task: task.into(),
        signature,
        parameters: BTreeMap::from_iter(parameters),
        tags: BTreeMap::from_iter(tags),
        dir,
        alias,
        request_id,
    };
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{msg:40!} {bar:30} {binary_bytes}/{binary_total_bytes}")?);
    let progress = |path: &str, sent: u64, of: u64| {
        bar.set_message(path.to_owned());
        bar.set_length(of);
        bar.set_position(sent);
    };
    let version = publish(client::connect(&registry)?, publication, progress).await;
    bar.finish_and_clear();
    let version = version.map_err(|status| anyhow::anyhow!("{}: {}", status.code(), status.message()))?;
    println!("{}/{} {}", version.model, version.version, version.digest);
    Ok(())
}

async fn import_mlflow(config: ImportConfig) -> anyhow::Result<()> {
    let telemetry = telemetry::init("model-registry", &TelemetryConfig::default())?;
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {elapsed_precise} {wide_msg}")?);
    bar.enable_steady_tick(Duration::from_millis(200));
    let report = import(&config, &OnTerminal(bar.clone())).await;
    bar.finish_and_clear();
    let report = report?;
    print!("{report}");
    if let Some(path) = &config.report {
        let context = || format!("--report: cannot write {}", path.display());
        std::fs::write(path, serde_json::to_vec_pretty(&report)?).with_context(context)?;
    }
    telemetry.flush(Duration::from_secs(3)).await;
    match report.stopped_by {
        Some(why) => anyhow::bail!("stopped before its end, start it again to go on: {why}"),
        None => Ok(()),
    }
}

/// Counts on one line of a terminal, or a line for each part where there is none.
struct OnTerminal(ProgressBar);

impl Progress for OnTerminal {
    fn counted(&self, copied: &Counts, here_already: &Counts) {
        let Counts { runs, metric_values, versions, files, bytes, .. } = copied;
        let before = here_already.runs + here_already.versions;
        self.0.set_message(format!(
            "{runs} runs, {metric_values} values, {versions} versions, {files} files ({}); {before} runs and versions were \
             here",
            indicatif::BinaryBytes(*bytes)
        ));
    }

    fn done(&self, line: &str) {
        if self.0.is_hidden() {
            eprintln!("{line}");
        } else {
            self.0.println(line);
        }
    }
}

async fn export(args: ExportArgs) -> anyhow::Result<()> {
    let ExportArgs { registry, model, to } = args;
    let bar = bytes_bar()?;
    let progress = |written: u64, of: u64| {
        bar.set_length(of);
        bar.set_position(written);
    };
    let exported = archive::client::export(client::connect(&registry)?, &model, &to, progress).await;
    bar.finish_and_clear();
    let ExportVersionHeader { model, version, manifest_digest, .. } = exported?;
    let line = format!("{model}/{version} {manifest_digest}");
    // Standard output may be the archive.
    if to.as_os_str() == "-" {
        eprintln!("{line}")
    } else {
        println!("{line}")
    }
    Ok(())
}

async fn import_archive(args: ImportArgs) -> anyhow::Result<()> {
    let ImportArgs { from, registry, model, alias, request_id } = args;
    let bar = bytes_bar()?;
    let progress = |sent: u64, of: Option<u64>| {
        if let Some(of) = of {
            bar.set_length(of);
        }
        bar.set_position(sent);
    };
    let header = ImportVersionHeader { model, alias, request_id };
    let imported = archive::client::import(client::connect(&registry)?, &from, header, progress).await;
    bar.finish_and_clear();
    let ImportVersionResponse { version, manifest_digest, added } = imported?;
    let version = version.unwrap_or_default();
    let note = if added { "" } else { " (was there already)" };
    println!("{}/{} {manifest_digest}{note}", version.model, version.version);
    Ok(())
}

async fn collect_garbage(args: GcArgs) -> anyhow::Result<()> {
    let GcArgs { registry, dry_run, older_than, retention } = args;
    let duration = |duration: Duration| prost_types::Duration::try_from(duration).context("the duration is too long");
    let request = CollectGarbageRequest {
        dry_run,
        older_than: Some(duration(older_than)?),
        retention: Some(duration(retention)?),
    };
    let refused = |status: tonic::Status| anyhow::anyhow!("{}: {}", status.code(), status.message());
    let mut client = MaintenanceServiceClient::new(client::connect(&registry)?);
    let mut answers = client.collect_garbage(request).await.map_err(refused)?.into_inner();
    let bar = ProgressBar::new_spinner();
    let mut found = CollectGarbageResponse::default();
    while let Some(so_far) = answers.message().await.map_err(refused)? {
        found = so_far;
        bar.set_message(format!("{} files", found.files));
        bar.tick();
    }
    bar.finish_and_clear();
    let CollectGarbageResponse { files, deleted_files, deleted_bytes } = found;
    let deleted = if dry_run { "would be deleted" } else { "deleted" };
    println!("{files} files, {deleted_files} {deleted} ({})", HumanBytes(deleted_bytes.unsigned_abs()));
    Ok(())
}

/// A bar on standard error, where there is a terminal.
fn bytes_bar() -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}")?);
    Ok(bar)
}

fn read_signature(path: &Path) -> anyhow::Result<Signature> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    signature_from_json(file).with_context(|| format!("in {}", path.display()))
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not of the form key=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}
