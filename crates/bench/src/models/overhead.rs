//! What a call costs besides the model: a model of one tree behind predict, and a bare tonic server that answers the
//! same message, each a process of its own.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use verdict_api::predict::{
    Matrix, PredictRequest, predict_request::Input, predict_service_client::PredictServiceClient,
};
use verdict_chassis::client;

use super::ours::{COLUMNS, ONE_TREE, Stack};
use crate::{Cli, median};

/// Callers at the same time, each with a connection of its own.
const CALLERS: [usize; 2] = [1, 16];

/// Measures latency and throughput of both, in turn, round by round.
pub(crate) async fn run(cli: &Cli) -> Result<()> {
    if !"overhead".contains(&cli.rows) {
        return Ok(());
    }
    let stack = Stack::start(&cli.bin_dir()?, &cli.demo_data, 2).await?;
    let echo = Echo::start()?;
    println!("\noverhead: a model of one tree, one row a call; peer: tonic alone");
    println!("{:<34} {:>12} {:>12} {:>7}", "row", "ours", "echo", "ratio");
    for callers in CALLERS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let time = Duration::from_secs_f64(cli.seconds);
        for round in 0..cli.rounds {
            // Who goes first changes: what the machine does besides falls on both.
            if round % 2 == 0 {
                ours.push(measure(stack.url(), callers, time).await?);
                theirs.push(measure(&echo.url, callers, time).await?);
            } else {
                theirs.push(measure(&echo.url, callers, time).await?);
                ours.push(measure(stack.url(), callers, time).await?);
            }
        }
        let line = |name: &str, of: fn(&Round) -> f64| {
            let (ours, theirs): (Vec<_>, Vec<_>) = (ours.iter().map(of).collect(), theirs.iter().map(of).collect());
            let ratio = median(ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect());
            let row = format!("overhead {name}, {callers} callers");
            println!("{row:<34} {:>12.1} {:>12.1} {ratio:>7.2}", median(ours), median(theirs));
        };
        line("p50 µs", |round| round.p50_us);
        line("calls/s", |round| round.per_s);
    }
    Ok(())
}

/// What a round of calls took.
struct Round {
    p50_us: f64,
    per_s: f64,
}

async fn measure(url: &str, callers: usize, time: Duration) -> Result<Round> {
    let begun = Instant::now();
    let (warm, until) = (begun + time / 10, begun + time);
    let calls: Vec<_> =
        (0..callers).map(|_| Ok(tokio::spawn(call(client::connect(url)?, warm, until)))).collect::<Result<_>>()?;
    let mut took = Vec::new();
    for call in calls {
        took.extend(call.await??);
    }
    let per_s = took.len() as f64 / (until - warm).as_secs_f64();
    Ok(Round { p50_us: median(took), per_s })
}

/// Asks again and again; returns the microseconds of each call begun between `warm` and `until`.
async fn call(channel: client::Channel, warm: Instant, until: Instant) -> Result<Vec<f64>> {
    let mut predict = PredictServiceClient::new(channel);
    let mut took = Vec::new();
    loop {
        let matrix = Matrix { columns: COLUMNS as u32, values: vec![1.0; COLUMNS] };
        let request = PredictRequest { model: ONE_TREE.to_owned(), input: Some(Input::Matrix(matrix)) };
        let asked = Instant::now();
        let answer = predict.predict(request).await?.into_inner();
        let answered = Instant::now();
        anyhow::ensure!(answer.margins.len() == 1, "{} margins for a row", answer.margins.len());
        if answered >= until {
            return Ok(took);
        }
        if asked >= warm {
            took.push((answered - asked).as_secs_f64() * 1e6);
        }
    }
}

/// The peer; dropped, it is killed.
struct Echo {
    child: Child,
    url: String,
}

impl Echo {
    fn start() -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut child = Command::new(program).arg("echo").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let said = child.stdout.take().context("the echo has no output")?;
        let mut address = String::new();
        BufReader::new(said).read_line(&mut address)?;
        Ok(Self { child, url: format!("http://{}", address.trim()) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // It has nothing to lose; a failure means that it is gone.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
