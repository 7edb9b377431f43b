//! How fast a model reads and writes: `generation_speed MODEL.gguf [TEXTS] [PROMPT] [TOKENS] [ROUNDS]`, on the threads that
//! `RAYON_NUM_THREADS` says. Prints a JSON line per round: tokens a second of reading one prompt, of continuing one text
//! and of continuing several together, and the most memory the process ever had.

use std::{error::Error, path::Path, time::Instant};

use verdict_inference::generation::{Engine, EngineOptions, Event, Generator, Request, Sampling};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let model = arguments.first().ok_or("usage: generation_speed MODEL.gguf [TEXTS] [PROMPT] [TOKENS] [ROUNDS]")?;
    let number = |index: usize, default: usize| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let (texts, prompt, tokens, rounds) = (number(1, 8)?, number(2, 512)?, number(3, 128)?, number(4, 3)?);
    let generator = Generator::load(Path::new(model))?;
    for _ in 0..rounds {
        let (reading, _) = run(&generator, 1, prompt, 1);
        let (_, one) = run(&generator, 1, 8, tokens);
        let (_, several) = run(&generator, texts, 8, tokens);
        println!(
            r#"{{"prefill": {reading:.1}, "decode": {one:.1}, "texts": {texts}, "together": {several:.1}, "peak_mb": {}}}"#,
            peak_megabytes()
        );
    }
    Ok(())
}

/// Tokens a second of reading prompts, to the first token of each, and of what came after.
fn run(generator: &Generator, texts: usize, prompt: usize, tokens: usize) -> (f64, f64) {
    let options =
        EngineOptions { max_sequences: texts, cache_tokens: texts * (prompt + tokens + 32), ..Default::default() };
    let mut engine = Engine::new(generator.clone(), EngineOptions { reuses_prefixes: false, ..options });
    for text in 0..texts {
        // Ordinary words of any vocabulary, each text its own.
        let prompt = (0..prompt).map(|index| (300 + (text * 7919 + index * 104_729) % 30_000) as u32).collect();
        // No token ends a text that may not end: this measures speed.
        let sampling = Sampling::greedy(tokens);
        assert!(engine.admit(Request { prompt, sampling, constraint: None }).is_ok(), "the engine has room");
    }
    let start = Instant::now();
    let (mut reading, mut first, mut written) = (0.0, 0, 0);
    while !engine.is_idle() {
        for event in engine.step() {
            let Event::Step(..) = event else { continue };
            written += 1;
        }
        if written >= texts && first == 0 {
            (reading, first) = (start.elapsed().as_secs_f64(), written);
        }
    }
    let writing = start.elapsed().as_secs_f64() - reading;
    ((texts * prompt) as f64 / reading, (written - first) as f64 / writing)
}

fn peak_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes =
        peak.and_then(|text| text.trim().strip_suffix("kB")).and_then(|text| text.trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0) / 1024
}
