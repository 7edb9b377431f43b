//! Continues a prompt and prints what it took: `generate MODEL.gguf PROMPT [MAX_TOKENS] [TEMPERATURE] [SEED]`.

use std::{
    error::Error,
    io::{Write, stdout},
    path::Path,
    time::Instant,
};

use verdict_inference::generation::{Generator, Sampling};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompt, rest @ ..] = arguments.as_slice() else {
        return Err("usage: generate MODEL.gguf PROMPT [MAX_TOKENS] [TEMPERATURE] [SEED]".into());
    };
    let mut sampling = Sampling::greedy(rest.first().map_or(Ok(64), |text| text.parse())?);
    sampling.temperature = rest.get(1).map_or(Ok(0.0), |text| text.parse())?;
    sampling.seed = rest.get(2).map_or(Ok(0), |text| text.parse())?;

    let start = Instant::now();
    let generator = Generator::load(Path::new(model))?;
    let load = start.elapsed();
    let mut session = generator.start(&generator.encode(prompt), sampling)?;
    let start = Instant::now();
    let mut read = None;
    for step in &mut session {
        read.get_or_insert_with(|| start.elapsed());
        print!("{}", step.text);
        stdout().flush()?;
    }
    let read = read.unwrap_or_default();
    let generated = start.elapsed() - read;
    let finish = session.finish()?;
    println!();
    eprintln!("load {load:.2?}");
    eprintln!(
        "prompt {} tokens, {:.1} tokens/s",
        finish.prompt_tokens,
        finish.prompt_tokens as f64 / read.as_secs_f64()
    );
    let speed = (finish.completion_tokens - 1) as f64 / generated.as_secs_f64();
    eprintln!("generated {} tokens, {speed:.1} tokens/s, ended by {:?}", finish.completion_tokens, finish.reason);
    Ok(())
}
