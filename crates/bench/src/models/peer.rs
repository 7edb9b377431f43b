//! The peers, each in its own process: `scripts/bench_peers.py` prints one JSON line a round.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Work;

/// What a peer did in one round.
#[derive(Deserialize)]
pub(crate) struct Round {
    pub(crate) peer: String,
    pub(crate) version: String,
    pub(crate) median_per_s: f64,
}

/// Runs the peer of `work` for one round of `seconds`.
pub(crate) fn measure(program: &Path, work: Work, threads: usize, seconds: f64) -> Result<Round> {
    match work {
        Work::Embed { batch, tokens } => {
            let (batch, tokens) = (batch.to_string(), tokens.to_string());
            ask(program, &["embed", "--batch", &batch, "--tokens", &tokens], threads, seconds)
        }
        Work::Predict { rows } => ask(program, &["predict", "--rows", &rows.to_string()], threads, seconds),
    }
}

/// Runs the peer with these arguments for one round of `seconds`.
pub(super) fn ask(program: &Path, arguments: &[&str], threads: usize, seconds: f64) -> Result<Round> {
    let mut command = Command::new(program);
    command.args(arguments);
    command.args(["--threads", &threads.to_string(), "--seconds", &seconds.to_string(), "--runs", "1"]);
    read(command)
}

/// Runs a peer's program and reads the line it prints.
pub(crate) fn read(mut command: Command) -> Result<Round> {
    let program = PathBuf::from(command.get_program());
    let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(output.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("{} printed {line:?}", program.display()))
}
