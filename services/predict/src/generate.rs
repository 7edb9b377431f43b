//! Text generation: one thread per model that continues many texts together, a bounded queue before it, one message per
//! token.

use std::time::Instant;

use tokio::sync::mpsc;
use verdict_inference::{
    ItemError,
    generation::{Constraint, Generator, Message, Reason, Request, Sampling, Step},
    text::Token,
};

use crate::{
    admission::Admission,
    error::{Error, Result},
    generation_loop::{GenerationLoop, Job, Progress},
    metrics::ModelMeters,
    text::{MAX_TEXT, before, off_thread},
    timing::Timing,
};

/// How a generating model's queue and engine are sized.
#[derive(Clone, Copy, Debug)]
pub struct GenerationLimits {
    /// Most generations that run together.
    pub running: usize,
    /// Most generations that wait.
    pub queue: usize,
    /// Threads that compute.
    pub threads: usize,
    /// Tokens whose keys and values are kept, of all running generations together and of beginnings that may come again.
    pub cache_tokens: usize,
}

/// A generating model with its queue.
pub struct Generation {
    name: String,
    engine: Generator,
    max_tokens: usize,
    queue: GenerationLoop,
}

/// What a generation starts from.
#[derive(Debug, Clone, PartialEq)]
pub enum Start {
    /// Taken as it is.
    Prompt(String),
    /// Put into the model's chat template.
    Messages(Vec<Message>),
}

/// How a generation ended.
#[derive(Debug)]
pub struct Finish {
    pub reason: Reason,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub completion_tokens: usize,
    pub timing: Timing,
}

/// A generation that is waiting or running. Dropping it ends the work within one token.
pub struct Running {
    progress: mpsc::Receiver<Progress>,
    has_ended: bool,
}

/// What comes next of a generation.
pub enum Event {
    Step(Step),
    Finish(Finish),
}

impl Generation {
    /// Warms the engine up and starts its thread.
    pub fn start(
        name: String,
        engine: Generator,
        limits: GenerationLimits,
        meters: ModelMeters,
    ) -> anyhow::Result<Self> {
        let mut warm = engine.start(&engine.encode("warm"), Sampling::greedy(1))?;
        anyhow::ensure!(
            warm.next().is_some_and(|step| step.logprob.is_finite()),
            "warm-up: the model does not generate"
        );
        let queue = GenerationLoop::start(engine.clone(), limits, meters)?;
        let max_tokens = engine.context_length().min(limits.cache_tokens);
        Ok(Self { name, engine, max_tokens, queue })
    }

    /// Queues a generation. Prompt and `max_tokens` together must fit the model's context and the cache.
    ///
    /// `schema` is a JSON schema that the text must conform to. A call that could not start before its deadline is refused.
    pub async fn generate(
        &self,
        start: Start,
        sampling: Sampling,
        schema: Option<String>,
        admission: Admission,
    ) -> Result<Running> {
        let deadline = admission.deadline;
        let bytes = start.check()?;
        if matches!(start, Start::Messages(_)) && !self.engine.has_chat_template() {
            return Err(Error::NoChatTemplate(self.name.clone()));
        }
        let engine = self.engine.clone();
        // Compiling a schema takes milliseconds, and the first of a model tenths of a second.
        let bytes = if schema.is_some() { usize::MAX } else { bytes };
        let prepared = off_thread(bytes, move || before(deadline, || prepare(&engine, &start, schema.as_deref())));
        let (prompt, constraint) = prepared.await???;
        self.fits(prompt.len(), sampling.max_tokens)?;
        let accepted = Instant::now();
        // Room for every token there can be: a slow reader never holds the others up.
        let (progress, received) = mpsc::channel(sampling.max_tokens + 1);
        let request = Request { prompt, sampling, constraint };
        self.queue
            .submit(Job { request, progress, deadline, accepted }, &admission)
            .map_err(|refused| Error::refused(&self.name, refused))?;
        Ok(Running { progress: received, has_ended: false })
    }

    fn fits(&self, prompt: usize, max_tokens: usize) -> Result<()> {
        let most = self.max_tokens;
        if prompt >= most {
            let problem = format!("has {prompt} tokens: the model's context here is {most}, the answer included");
            return Err(Error::field("prompt", problem));
        }
        let room = most - prompt;
        if max_tokens > room {
            let problem = format!(
                "is {max_tokens}: beside the prompt's {prompt} tokens the context of {most} leaves room for {room}"
            );
            return Err(Error::field("max_tokens", problem));
        }
        Ok(())
    }

    /// Splits a text into tokens, without the begin token unless `special`.
    pub fn tokens(&self, text: &str, special: bool) -> Vec<Token> {
        self.engine.tokens(text, special)
    }

    /// The text of a token by itself; U+FFFD where it is a part of a character.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.engine.token_bytes(id)).into_owned()
    }
}

impl Start {
    /// Returns its bytes, which are bounded.
    fn check(&self) -> Result<usize> {
        let (field, bytes) = match self {
            Self::Prompt(prompt) => ("prompt", prompt.len()),
            Self::Messages(messages) => {
                ("messages", messages.iter().map(|message| message.role.len() + message.content.len()).sum())
            }
        };
        if bytes > MAX_TEXT {
            return Err(Error::field(field, format!("has {bytes} bytes: at most {MAX_TEXT} are taken")));
        }
        Ok(bytes)
    }
}

/// Makes tokens of the start, and what is allowed next of the schema.
fn prepare(engine: &Generator, start: &Start, schema: Option<&str>) -> Result<(Vec<u32>, Option<Constraint>)> {
    let wrong = |field: &str| {
        let field = field.to_owned();
        move |problem: ItemError| Error::field(field, problem.to_string())
    };
    let prompt = match start {
        Start::Prompt(prompt) => engine.encode(prompt),
        Start::Messages(messages) => engine.chat(messages).map_err(wrong("messages"))?,
    };
    let constraint = schema.map(|schema| engine.constrain(schema)).transpose().map_err(wrong("json_schema"))?;
    Ok((prompt, constraint))
}

impl Running {
    /// Waits for the next token or the end; `None` after the end.
    pub async fn next(&mut self) -> Option<Result<Event>> {
        if self.has_ended {
            return None;
        }
        let progress = self.progress.recv().await;
        self.has_ended = !matches!(progress, Some(Progress::Step(_)));
        Some(match progress {
            Some(Progress::Step(step)) => Ok(Event::Step(step)),
            Some(Progress::Finish(finish)) => Ok(Event::Finish(finish)),
            Some(Progress::Failed(problem)) => Err(Error::field("json_schema", problem.to_string())),
            Some(Progress::Expired) => Err(Error::Expired),
            Some(Progress::PushedOut(retry_after)) => Err(Error::PushedOut(retry_after)),
            Some(Progress::Panicked) | None => Err(Error::Internal(anyhow::anyhow!("the engine panicked"))),
        })
    }
}
