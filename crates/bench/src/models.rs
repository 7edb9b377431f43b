//! Embeddings, decisions and text generation: predict through gRPC beside the libraries in process; trees: both in process.
//!
//! Each row alternates: a round of ours through gRPC ([`ours`]), a round of the peer in process ([`peer`]), and so on; the
//! figures are medians over the rounds. [`overhead`] is what a call costs besides the model.

pub(crate) mod echo;
mod generation;
mod ours;
mod overhead;
mod peer;
pub(crate) mod quality;
mod texts;
mod trees;

use std::time::Duration;

use anyhow::Result;

use self::ours::Stack;
use crate::{Cli, median};

/// What a row measures.
#[derive(Clone, Copy, Debug)]
enum Work {
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

/// Measures every row whose name contains the filter, with one thread and with two.
pub(crate) async fn run(cli: &Cli) -> Result<()> {
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
        let works: Vec<_> = works.iter().filter(|work| work.name().contains(&cli.rows)).collect();
        if works.is_empty() && !texts::wanted(cli) {
            break;
        }
        let stack = Stack::start(&cli.bin_dir()?, &cli.demo_data, threads).await?;
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
        texts::run(cli, &stack, threads).await?;
    }
    generation::run(cli).await?;
    trees::run(cli)?;
    overhead::run(cli).await
}
