//! Text generation: a few workers, a bounded queue, one message per token.

use std::{sync::Arc, time::Instant};

use tokio::sync::mpsc;
use verdict_inference::{
    ItemError,
    generation::{self, Generator, Reason, Sampling, Step},
    text::Token,
};

use crate::{
    batch::{Batcher, Failure, Limits, Ticket},
    cut::Budget,
    error::{Error, Result},
    metrics::ModelMeters,
    text::{MAX_TEXT, before, off_thread},
    timing::Timing,
};

/// A generating model with its queue.
pub struct Generation {
    name: String,
    engine: Arc<Generator>,
    batcher: Batcher<Job, Outcome>,
}

/// How a generation ended.
#[derive(Debug)]
pub struct Finish {
    pub reason: Reason,
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub timing: Timing,
}

/// A generation that is waiting or running. Dropping it ends the work within one token.
pub struct Running {
    accepted: Instant,
    steps: mpsc::Receiver<Step>,
    ticket: Option<Ticket<Outcome>>,
}

/// What comes next of a generation.
pub enum Event {
    Step(Step),
    Finish(Finish),
}

struct Job {
    prompt: Vec<u32>,
    sampling: Sampling,
    steps: mpsc::Sender<Step>,
    deadline: Option<Instant>,
}

enum Outcome {
    Finished(generation::Finish),
    Refused(ItemError),
    Expired,
    /// The caller went away.
    Abandoned,
}

impl Generation {
    /// Warms the engine up and starts its workers; `limits.budget` is not used: a worker runs one generation at a time.
    pub fn start(name: String, engine: Generator, limits: Limits, meters: ModelMeters) -> anyhow::Result<Self> {
        let engine = Arc::new(engine);
        let (steps, mut received) = mpsc::channel(2);
        let prompt = engine.encode("warm");
        let warm = run(&engine, &Job { prompt, sampling: Sampling::greedy(1), steps, deadline: None });
        anyhow::ensure!(
            matches!(warm, Outcome::Finished(_)) && received.try_recv().is_ok_and(|step| step.logprob.is_finite()),
            "warm-up: the model does not generate"
        );
        let worker = engine.clone();
        let limits = Limits { budget: Budget { items: 1, cost: 1 }, ..limits };
        let batcher = Batcher::start(limits, meters, move |jobs: &[&Job]| {
            jobs.iter().map(|job| run(&worker, job)).collect::<Vec<_>>()
        })?;
        Ok(Self { name, engine, batcher })
    }

    /// Queues a generation. Prompt and `max_tokens` together must fit the model's context.
    pub async fn generate(&self, prompt: String, sampling: Sampling, deadline: Option<Instant>) -> Result<Running> {
        if prompt.len() > MAX_TEXT {
            return Err(Error::field("prompt", format!("has {} bytes: at most {MAX_TEXT} are taken", prompt.len())));
        }
        let engine = self.engine.clone();
        let prompt = off_thread(prompt.len(), move || before(deadline, || engine.encode(&prompt))).await??;
        let context = self.engine.context_length();
        if prompt.len() >= context {
            let problem = format!("has {} tokens: the model's context is {context}, the answer included", prompt.len());
            return Err(Error::field("prompt", problem));
        }
        let room = context - prompt.len();
        if sampling.max_tokens > room {
            let problem = format!(
                "is {}: beside the prompt's {} tokens the context of {context} leaves room for {room}",
                sampling.max_tokens,
                prompt.len()
            );
            return Err(Error::field("max_tokens", problem));
        }
        // Room for every token there can be: a slow reader never holds a worker.
        let (steps, received) = mpsc::channel(sampling.max_tokens + 1);
        let accepted = Instant::now();
        let job = Job { prompt, sampling, steps, deadline };
        let tickets = self
            .batcher
            .submit(vec![(job, 1)], deadline)
            .map_err(|full| Error::QueueFull { model: self.name.clone(), retry_after: full.retry_after })?;
        Ok(Running { accepted, steps: received, ticket: tickets.into_iter().next() })
    }

    /// Splits a text into tokens, without the begin token unless `special`.
    pub fn tokens(&self, text: &str, special: bool) -> Vec<Token> {
        self.engine.tokens(text, special)
    }
}

impl Running {
    /// Waits for the next token or the end; `None` after the end.
    pub async fn next(&mut self) -> Option<Result<Event>> {
        if let Some(step) = self.steps.recv().await {
            return Some(Ok(Event::Step(step)));
        }
        let ticket = self.ticket.take()?;
        Some(match ticket.await.unwrap_or(Err(Failure::Panicked)) {
            Ok(done) => match done.output {
                Outcome::Finished(generation::Finish { reason, prompt_tokens, completion_tokens }) => {
                    let timing = Timing {
                        queue: done.started.saturating_duration_since(self.accepted),
                        compute: done.ended - done.started,
                        batch: done.batch,
                        tokens: prompt_tokens,
                        cached: 0,
                    };
                    Ok(Event::Finish(Finish { reason, prompt_tokens, completion_tokens, timing }))
                }
                Outcome::Refused(error) => Err(Error::field("prompt", error.to_string())),
                Outcome::Expired | Outcome::Abandoned => Err(Error::Expired),
            },
            Err(failure) => Err(Error::failed(failure)),
        })
    }
}

fn run(engine: &Generator, job: &Job) -> Outcome {
    let mut session = match engine.start(&job.prompt, job.sampling.clone()) {
        Ok(session) => session,
        Err(error) => return Outcome::Refused(error),
    };
    loop {
        if job.steps.is_closed() {
            return Outcome::Abandoned;
        }
        if job.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Outcome::Expired;
        }
        // A long prompt is read in parts, so that it can be abandoned in between as well.
        if session.read_prompt() {
            continue;
        }
        let Some(step) = session.next() else { break };
        if job.steps.try_send(step).is_err() {
            return Outcome::Abandoned;
        }
    }
    Outcome::Finished(session.finish())
}
