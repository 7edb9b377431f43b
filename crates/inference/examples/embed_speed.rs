//! Measures embedding at fixed lengths, one call at a time, by the clock and by the processor time the calling thread had
//! (which a busy machine disturbs less; what helping threads had is not in it):
//! `cargo run --release --example embed_speed -- MODEL_DIR [auto|fp32|bf16|int8] [THREADS]`.

use std::path::PathBuf;
use std::time::Instant;

use verdict_inference::bert::{Embedder, EmbedderOptions, Precision, Run};
use verdict_inference::text::Encoded;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let Some(dir) = arguments.next().map(PathBuf::from) else {
        anyhow::bail!("usage: embed_speed MODEL_DIR [PRECISION] [THREADS]");
    };
    let mut text = || arguments.next().map(|argument| argument.to_string_lossy().into_owned());
    let precision: Precision = text().unwrap_or("auto".into()).parse().map_err(anyhow::Error::msg)?;
    let threads = text().map_or(Ok(std::num::NonZeroUsize::MIN), |threads| threads.parse())?;
    let options = EmbedderOptions { run: Run { precision, threads, max_length: None }, ..EmbedderOptions::default() };
    let embedder = Embedder::load(&dir, options)?;
    println!("{} on {threads} thread(s), best of 3 rounds", embedder.precision());
    println!("tokens  batch  sentences/s  per processor second");
    for (tokens, batch) in [(32, 1), (32, 32), (128, 1), (128, 32), (256, 8)] {
        let ids = (0..tokens as u32).map(|at| 1000 + at * 37 % 20_000).collect();
        let sentence = Encoded { ids, type_ids: vec![0; tokens] };
        let sentences = vec![&sentence; batch];
        let rounds: Vec<_> = (0..3).map(|_| round(&embedder, &sentences)).collect();
        let best = |rate: fn(&(f64, f64)) -> f64| rounds.iter().map(rate).max_by(f64::total_cmp).unwrap_or_default();
        println!("{tokens:6}  {batch:5}  {:11.1}  {:.1}", best(|round| round.0), best(|round| round.1));
    }
    Ok(())
}

/// Computes for a second of the thread's time, which the system counts in steps of some milliseconds.
fn round(embedder: &Embedder, sentences: &[&Encoded]) -> (f64, f64) {
    let (start, mut done) = (Instant::now(), 0);
    // Where the system doesn't say, the clock must do.
    let time = || processor_time().unwrap_or_else(|| start.elapsed().as_secs_f64());
    let began = time();
    while time() - began < 1.0 {
        std::hint::black_box(embedder.embed(sentences));
        done += sentences.len();
    }
    (done as f64 / start.elapsed().as_secs_f64(), done as f64 / (time() - began))
}

/// Seconds this thread has had a processor.
fn processor_time() -> Option<f64> {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(told.split(' ').next()?.parse::<f64>().ok()? / 1e9)
}
