//! Measures this project beside its peers, in one run, and prints ratios.
//!
//! - `models`: predict beside the libraries that compute the same.
//! - `quality`: what narrow precisions cost a search; needs a corpus.
//! - `registry`: model-registry beside `mlflow server`.
//!
//! A shared machine makes single numbers worthless; the ratio of the two columns is the result.

mod models;
mod registry;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

/// Runs the benchmarks and prints one row each: ours, the peer's, the ratio.
#[derive(Clone, Parser)]
#[command(version)]
struct Cli {
    /// What to measure.
    #[arg(value_enum, default_value_t = Part::All)]
    part: Part,
    /// Rows to run: those whose name contains this text.
    #[arg(long, default_value = "")]
    rows: String,
    /// Seconds of each round.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Rounds of each side; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Folder with the release binaries of the services; default: the one this program lies in.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Carried data with the credit-risk model.
    #[arg(long, default_value = "crates/demo/data")]
    demo_data: PathBuf,
    /// Golden files of the engine with the tree ensembles.
    #[arg(long, default_value = "crates/inference/tests/golden")]
    golden: PathBuf,
    /// The program of predict's peers.
    #[arg(long, default_value = "scripts/bench_peers.py")]
    peers: PathBuf,
    /// SciFact in BEIR's layout, for the rows that embed real texts and for `quality`; without it they are left out.
    #[arg(long, env = "BENCH_SCIFACT")]
    scifact: Option<PathBuf>,
    /// Queries whose documents `quality` reranks.
    #[arg(long, default_value_t = 100)]
    rerank_queries: usize,
    #[command(flatten)]
    registry: registry::Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    All,
    Models,
    Quality,
    Registry,
    /// Serves the peer of the row `overhead`; started by the bench itself.
    #[value(hide = true)]
    Echo,
}

impl Cli {
    fn bin_dir(&self) -> Result<PathBuf> {
        match &self.bin_dir {
            Some(dir) => Ok(dir.clone()),
            None => Ok(std::env::current_exe()?.parent().context("this program lies in no folder")?.to_owned()),
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli) -> Result<()> {
    match cli.part {
        Part::Models => models::run(cli).await,
        Part::Quality => quality(cli),
        Part::Registry => registry::run(cli).await,
        Part::All => {
            models::run(cli).await?;
            quality(cli)?;
            registry::run(cli).await
        }
        Part::Echo => models::echo::serve().await,
    }
}

fn quality(cli: &Cli) -> Result<()> {
    match &cli.scifact {
        Some(dir) => models::quality::run(dir, 2, cli.rerank_queries),
        None => {
            println!("quality: left out, because neither --scifact nor BENCH_SCIFACT says where SciFact is");
            Ok(())
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
