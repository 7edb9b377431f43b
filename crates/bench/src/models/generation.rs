//! Text generation: predict over gRPC beside llama.cpp in process, on the same GGUF file with the same threads.
//!
//! Tokens a second of reading a prompt of 512, of continuing one text by 128, and of continuing eight together; and the most
//! memory either process ever had. Rounds alternate; the figures are medians.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use verdict_api::predict::{GenerateRequest, generate_response::Event, predict_service_client::PredictServiceClient};

use super::ours::{GENERATOR, Stack};
use crate::{Cli, median};

const PROMPT: usize = 512;
const TOKENS: usize = 128;
const TOGETHER: usize = 8;

/// One round of one side.
#[derive(Deserialize)]
struct Round {
    prefill_per_s: f64,
    decode_per_s: f64,
    together_per_s: f64,
    peak_mb: f64,
}

#[derive(Deserialize)]
struct Peer {
    peer: String,
    version: String,
    #[serde(flatten)]
    round: Round,
}

/// Measures the rows whose name contains the filter, with one thread and with two.
pub(crate) async fn run(cli: &Cli) -> Result<()> {
    type Figure = fn(&Round) -> f64;
    let rows: [(String, Figure); 4] = [
        (format!("generate prefill {PROMPT}"), |round| round.prefill_per_s),
        (format!("generate decode {TOKENS}"), |round| round.decode_per_s),
        (format!("generate {TOGETHER} together"), |round| round.together_per_s),
        ("generate memory, MB".to_owned(), |round| round.peak_mb),
    ];
    let rows: Vec<_> = rows.iter().filter(|(name, _)| name.contains(&cli.rows)).collect();
    if rows.is_empty() {
        return Ok(());
    }
    for threads in [1, 2] {
        let stack = Stack::generator(&cli.bin_dir()?, threads).await?;
        let (mut ours, mut theirs, mut name) = (Vec::new(), Vec::new(), String::new());
        for round in 0..cli.rounds {
            ours.push(measure(&stack, round).await?);
            let Peer { peer, version, round } = peer(cli, threads)?;
            theirs.push(round);
            name = format!("{peer} {version}");
        }
        let of = |rounds: &[Round], figure: Figure| median(rounds.iter().map(figure).collect());
        for (row, figure) in &rows {
            let (ours, theirs) = (of(&ours, *figure), of(&theirs, *figure));
            println!("{row:<26} {threads:>7} {ours:>12.1} {theirs:>12.1} {:>7.2}  {name}", ours / theirs);
        }
        let gain = of(&ours, |round| round.together_per_s) / of(&ours, |round| round.decode_per_s);
        println!("{:<26} {threads:>7} {gain:>12.2}", format!("ours, {TOGETHER} together to one"));
    }
    Ok(())
}

async fn measure(stack: &Stack, round: usize) -> Result<Round> {
    // A prompt no round had before: what is measured is reading it, not finding it.
    let words = ["loan", "bank", "year", "house", "car", "rate", "term", "sum"];
    let prompt = |seed: usize, count: usize| -> String {
        (0..count).map(|at| format!(" {}", words[(seed * 31 + at * (seed % 7 + 1)) % words.len()])).collect()
    };
    let (read, first, _) = continued(stack, prompt(round + 1, PROMPT - 1), 1).await?;
    let prefill_per_s = read as f64 / first.as_secs_f64();
    let (_, first, all) = continued(stack, "The bank asked for".to_owned(), TOKENS).await?;
    let decode_per_s = (TOKENS - 1) as f64 / (all - first).as_secs_f64();
    let began = Instant::now();
    let calls = (0..TOGETHER).map(|text| continued(stack, format!("Text {text} of {round}: the bank"), TOKENS));
    futures::future::try_join_all(calls).await?;
    let together_per_s = (TOGETHER * TOKENS) as f64 / began.elapsed().as_secs_f64();
    Ok(Round { prefill_per_s, decode_per_s, together_per_s, peak_mb: stack.peak_megabytes()? })
}

/// Tokens of the prompt, the time to the first token and to the end.
async fn continued(stack: &Stack, prompt: String, max_tokens: usize) -> Result<(u32, Duration, Duration)> {
    let mut predict = PredictServiceClient::new(stack.channel()?);
    let request = GenerateRequest {
        model: GENERATOR.to_owned(),
        prompt,
        max_tokens: max_tokens as u32,
        ..GenerateRequest::default()
    };
    let began = Instant::now();
    let mut answers = predict.generate(request).await?.into_inner();
    let mut first = None;
    while let Some(answer) = answers.message().await? {
        match answer.event {
            Some(Event::Token(_)) => {
                first.get_or_insert_with(|| began.elapsed());
            }
            Some(Event::Finish(finish)) => {
                let first = first.context("no token")?;
                ensure!(finish.cached_prompt_tokens == 0, "the prompt was cached");
                ensure!(finish.completion_tokens as usize == max_tokens, "the text ended early: {finish:?}");
                return Ok((finish.prompt_tokens, first, began.elapsed()));
            }
            None => {}
        }
    }
    bail!("the stream ended without a finish")
}

fn peer(cli: &Cli, threads: usize) -> Result<Peer> {
    let output = Command::new(&cli.peers)
        .args(["generate", "--threads", &threads.to_string()])
        .args(["--prompt", &PROMPT.to_string(), "--tokens", &TOKENS.to_string(), "--together", &TOGETHER.to_string()])
        .output()
        .with_context(|| format!("cannot start {}", cli.peers.display()))?;
    ensure!(output.status.success(), "{}: {}", cli.peers.display(), String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("{} printed {line:?}", cli.peers.display()))
}
