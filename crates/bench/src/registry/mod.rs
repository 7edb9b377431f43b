//! model-registry beside `mlflow server` on the same machine, the same kind of database and the same data, at 16 clients.
//!
//! - [`data`] fills our database; `scripts/bench_fill_mlflow.py` fills MLflow's with the same.
//! - [`servers`] starts both, [`load`] asks them, [`file`] sends a large file up and down.
//!
//! The bar of each row: at least 20 times MLflow's requests per second, and our 99th percentile below MLflow's median.

mod data;
mod file;
mod load;
mod servers;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use self::{
    load::{Round, Target, Work, measure},
    servers::{Database, Mlflow, Ours},
};
use crate::{Cli, median};

/// Connections that ask at the same time.
const CLIENTS: usize = 16;
/// How many times MLflow's requests per second ours must be.
const RATIO: f64 = 20.0;
const COLD_START: Duration = Duration::from_millis(500);
const IDLE_BYTES: u64 = 60_000_000;

/// Settings of the registry's part.
#[derive(Clone, clap::Args)]
pub(crate) struct Options {
    /// Versions of each of the hundred models.
    #[arg(long, default_value_t = 1000)]
    versions: usize,
    /// Runs that are searched.
    #[arg(long, default_value_t = 10_000)]
    runs: usize,
    /// Bytes of the large file, in MiB.
    #[arg(long, default_value_t = 2048)]
    file_mib: u64,
    /// Folder where the filled SQLite files stay for the next run.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Leave MLflow out: ours alone, while working on it.
    #[arg(long)]
    ours_only: bool,
    /// Packages of `mlflow server`, as in PYTHONPATH.
    #[arg(long, env = "BENCH_MLFLOW_PACKAGES", default_value = "")]
    mlflow_packages: String,
    /// The program that fills MLflow's database.
    #[arg(long, default_value = "scripts/bench_fill_mlflow.py")]
    fill_mlflow: PathBuf,
}

/// Measures everything on SQLite, and on PostgreSQL where `TEST_POSTGRES_URL` names a server.
pub(crate) async fn run(cli: &Cli) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let dir = cli.registry.keep.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&dir)?;
    println!("model-registry and `mlflow server`, {CLIENTS} keep-alive connections, plain HTTP on loopback;");
    println!(
        "{} versions, {} runs; rates: medians of {}",
        cli.registry.versions * data::MODELS,
        cli.registry.runs,
        cli.rounds
    );
    compare(cli, &Database::sqlite(&dir)).await?;
    if std::env::var("TEST_POSTGRES_URL").is_ok_and(|url| !url.is_empty()) {
        compare(cli, &Database::postgres().await?).await?;
    } else {
        println!("PostgreSQL: left out, TEST_POSTGRES_URL names no server");
    }
    if "file".contains(&cli.rows) {
        file::run(cli).await?;
    }
    Ok(())
}

async fn compare(cli: &Cli, database: &Database) -> Result<()> {
    let works: Vec<Work> = Work::ALL.into_iter().filter(|work| work.name().contains(&cli.rows)).collect();
    if works.is_empty() {
        return Ok(());
    }
    let (mut ours, mut theirs) = (Ours::start(cli, database).await?, None);
    if !cli.registry.ours_only {
        theirs = Some(Mlflow::start(cli, database).await?);
    }
    start_and_memory(database, &ours, theirs.as_ref());
    println!(
        "{:<24} {:<10} {:>10} {:>10} {:>7} {:>9} {:>9} {:>11}  verdict",
        "row", "database", "ours /s", "MLflow /s", "ratio", "ours p50", "ours p99", "MLflow p50"
    );
    for work in works {
        let (mut mine, mut its) = (Vec::new(), Vec::new());
        let (target, peer) = (
            Target::new(ours.address, work, CLIENTS).await?,
            match &theirs {
                Some(peer) => Some(Target::new(peer.address, work, CLIENTS).await?),
                None => None,
            },
        );
        for _ in 0..cli.rounds {
            let time = Duration::from_secs_f64(cli.seconds);
            mine.push(measure(&target, time, false).await.with_context(|| format!("ours: {}", work.name()))?);
            if let Some(peer) = &peer {
                its.push(measure(peer, time, true).await.with_context(|| format!("MLflow: {}", work.name()))?);
            }
        }
        let mine = Figures::of(mine);
        let start = format!("{:<24} {:<10} {:>10.0}", work.name(), database.name(), mine.per_second);
        let (p50, p99) = (millis(mine.p50), millis(mine.p99));
        if its.is_empty() {
            println!("{start} {:>10} {:>7} {p50:>9} {p99:>9} {:>11}  -", "-", "-", "-");
            continue;
        }
        let failed: usize = its.iter().map(|round| round.failed).sum();
        let its = Figures::of(its);
        let ratio = mine.per_second / its.per_second;
        let holds = ratio >= RATIO && mine.p99 < its.p50;
        let verdict = if holds { "holds" } else { "MISSED" };
        println!("{start} {:>10.1} {ratio:>7.1} {p50:>9} {p99:>9} {:>11}  {verdict}", its.per_second, millis(its.p50));
        if failed > 0 {
            println!("  MLflow answered {failed} calls with an error; they are in neither its rate nor its median");
        }
    }
    ours.stop().await;
    Ok(())
}

fn start_and_memory(database: &Database, ours: &Ours, theirs: Option<&Mlflow>) {
    let holds = |holds: bool| if holds { "holds" } else { "MISSED" };
    let theirs = |of: fn(&Mlflow) -> String| theirs.map_or("-".to_owned(), of);
    println!(
        "{}: cold start to first answer {} (MLflow {}): {}; idle memory {} MB (MLflow {}): {}",
        database.name(),
        millis(ours.cold_start),
        theirs(|peer| millis(peer.cold_start)),
        holds(ours.cold_start < COLD_START),
        ours.idle_bytes / 1_000_000,
        theirs(|peer| format!("{} MB", peer.idle_bytes / 1_000_000)),
        holds(ours.idle_bytes < IDLE_BYTES),
    );
}

/// What several rounds came to.
struct Figures {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

impl Figures {
    fn of(rounds: Vec<Round>) -> Self {
        let per_second = median(rounds.iter().map(|round| round.per_second).collect());
        let mut latencies: Vec<Duration> = rounds.into_iter().flat_map(|round| round.latencies).collect();
        latencies.sort();
        let at = |percent: usize| latencies[(latencies.len() * percent / 100).min(latencies.len() - 1)];
        Self { per_second, p50: at(50), p99: at(99) }
    }
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
