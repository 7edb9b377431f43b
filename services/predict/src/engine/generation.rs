//! Generating models as tensors: whole answers; token by token is what `Generate` is for.

use async_trait::async_trait;
use futures::future::try_join_all;
use verdict_api::predict as api;
use verdict_inference::{generation::Reason, text::Token};

use super::{
    Answered, Engine, Inputs, Signature, Wanted,
    items::several,
    tensor::{Data, Datatype, Spec, Tensor},
    texts,
};
use crate::{
    admission::Admission,
    convert::{self, generate::Generate},
    error::Result,
    generate::{Event, Finish, Generation},
    release::Task,
    timing::Timing,
};

impl Generation {
    /// Generates to the end.
    async fn whole(&self, call: Generate, admission: Admission) -> Result<(String, Finish)> {
        let mut running = self.generate(call.start, call.sampling, call.schema, admission).await?;
        let mut text = String::new();
        loop {
            match running.next().await {
                Some(Ok(Event::Step(step))) => text.push_str(&step.text),
                Some(Ok(Event::Finish(finish))) => return Ok((text, finish)),
                Some(Err(error)) => return Err(error),
                None => return Err(anyhow::anyhow!("a generation ended without its end").into()),
            }
        }
    }
}

#[async_trait]
impl Engine for Generation {
    fn task(&self) -> Task {
        Task::TextGeneration
    }

    fn platform(&self) -> &'static str {
        "verdict_gguf"
    }

    fn signature(&self) -> Signature {
        Signature {
            inputs: vec![
                texts("text_input"),
                Spec::setting("max_tokens", Datatype::Uint32),
                Spec::setting("temperature", Datatype::Fp32),
                Spec::setting("top_p", Datatype::Fp32),
                Spec::setting("top_k", Datatype::Uint32),
                Spec::setting("seed", Datatype::Uint64),
                Spec { optional: true, ..texts("stop") },
            ],
            outputs: vec![
                texts("text_output"),
                texts("finish_reason"),
                Spec::new("prompt_tokens", Datatype::Uint32, [-1]),
                Spec::new("completion_tokens", Datatype::Uint32, [-1]),
            ],
        }
    }

    fn sample(&self) -> Vec<Tensor> {
        let most = Tensor::new("max_tokens", [1], Data::Uint32(vec![1]));
        vec![Tensor::texts("text_input", ["warm"]), most]
    }

    /// Each prompt is a generation of its own, with the same settings, which are checked as `Generate` does.
    async fn compute(&self, mut inputs: Inputs, _wanted: &Wanted, admission: Admission) -> Result<Answered> {
        let prompts = inputs.require("text_input")?;
        several(&prompts)?;
        let prompts = prompts.into_texts()?;
        let stop = inputs.take("stop").map_or(Ok(Vec::new()), Tensor::into_texts)?;
        let max_tokens = whole_number(&mut inputs, "max_tokens").unwrap_or(0);
        let seed = match inputs.take("seed").map(|tensor| tensor.data) {
            Some(Data::Uint64(values)) => values.first().copied(),
            _ => None,
        };
        let settings = api::GenerateRequest {
            max_tokens,
            temperature: number(&mut inputs, "temperature")?,
            top_p: number(&mut inputs, "top_p")?,
            top_k: whole_number(&mut inputs, "top_k"),
            seed,
            stop,
            ..api::GenerateRequest::default()
        };
        let calls = prompts.into_iter().map(|prompt| {
            let request = api::GenerateRequest { prompt, ..settings.clone() };
            convert::generate::generate(request, rand::random())
        });
        let calls = calls.collect::<Result<Vec<_>>>()?;
        let finished = calls.into_iter().map(|call| self.whole(call, admission.clone()));
        let (generated, finishes): (Vec<_>, Vec<_>) = try_join_all(finished).await?.into_iter().unzip();

        let mut timing = Timing::default();
        for finish in &finishes {
            timing.queue = timing.queue.max(finish.timing.queue);
            timing.compute += finish.timing.compute;
            timing.tokens += finish.timing.tokens;
            timing.batch = timing.batch.max(finish.timing.batch);
        }
        let reason = |finish: &Finish| match finish.reason {
            Reason::Stop => "stop",
            Reason::Length => "length",
        };
        let outputs = vec![
            Tensor::texts("text_output", generated),
            Tensor::texts("finish_reason", finishes.iter().map(reason)),
            Tensor::counts("prompt_tokens", finishes.iter().map(|finish| finish.prompt_tokens)),
            Tensor::counts("completion_tokens", finishes.iter().map(|finish| finish.completion_tokens)),
        ];
        Ok(Answered { outputs, timing })
    }

    fn tokens(&self, text: &str, special: bool) -> Option<Vec<Token>> {
        Some(Generation::tokens(self, text, special))
    }
}

fn number(inputs: &mut Inputs, name: &str) -> Result<Option<f32>> {
    let Some(tensor) = inputs.take(name) else { return Ok(None) };
    Ok(tensor.into_floats()?.first().copied())
}

fn whole_number(inputs: &mut Inputs, name: &str) -> Option<u32> {
    match inputs.take(name)?.data {
        Data::Uint32(values) => values.first().copied(),
        _ => None,
    }
}
