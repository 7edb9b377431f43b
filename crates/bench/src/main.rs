//! Measures this project beside its peers, in one run, and prints ratios.
//!
//! Each row alternates: a round of ours through gRPC, a round of the peer in process ([`peer`]), and so on; the figures
//! are medians over the rounds. A shared machine makes single numbers worthless; the ratio of the two columns is the
//! result.

mod ours;
mod peer;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;

use ours::Stack;

/// Runs the benchmarks and prints one row each: ours, the peer's, the ratio.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Rows to run: those whose name contains this text.
    #[arg(default_value = "")]
    filter: String,
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
    /// The peers' program.
    #[arg(long, default_value = "scripts/bench_peers.py")]
    peers: PathBuf,
}

/// What a row measures.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Texts of `tokens` tokens, `batch` in a call; sentences per second.
    Embed { batch: usize, tokens: usize },
    /// Rows of the credit-risk model, `rows` in a call; rows per second.
    Predict { rows: usize },
}

impl Work {
    fn name(self) -> String {
        match self {
            Self::Embed { batch, tokens } => format!("embed {tokens} tokens × {batch}"),
            Self::Predict { rows } => format!("predict {rows} rows"),
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
    let works = [
        Work::Embed { batch: 1, tokens: 32 },
        Work::Embed { batch: 32, tokens: 32 },
        Work::Embed { batch: 1, tokens: 128 },
        Work::Embed { batch: 32, tokens: 128 },
        Work::Predict { rows: 1 },
        Work::Predict { rows: 10_000 },
    ];
    println!(
        "ours: gRPC on loopback, workers = callers = threads; peer: in process, same threads; per second, median of {}",
        cli.rounds
    );
    println!("{:<26} {:>7} {:>12} {:>12} {:>7}  peer", "row", "threads", "ours", "peer", "ratio");
    for threads in [1, 2] {
        let works: Vec<_> = works.iter().filter(|work| work.name().contains(&cli.filter)).collect();
        if works.is_empty() {
            anyhow::bail!("no row's name contains `{}`", cli.filter);
        }
        let stack = Stack::start(cli.bin_dir.clone(), &cli.demo_data, threads).await?;
        for &&work in &works {
            let (mut ours, mut theirs, mut name) = (Vec::new(), Vec::new(), String::new());
            for _ in 0..cli.rounds {
                ours.push(stack.measure(work, threads, Duration::from_secs_f64(cli.seconds)).await?);
                let round = peer::measure(&cli.peers, work, threads, cli.seconds)?;
                theirs.push(round.median_per_s);
                name = format!("{} {}", round.peer, round.version);
            }
            let (ours, theirs) = (median(ours), median(theirs));
            println!("{:<26} {threads:>7} {ours:>12.1} {theirs:>12.1} {:>7.2}  {name}", work.name(), ours / theirs);
        }
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
