//! Text generation from GGUF files on a CPU: Gemma 3, Llama, Qwen 2 and Qwen 3, weights in 8 bits.
//!
//! A `Generator` is a loaded model. An `Engine` continues many texts with it together: one pass over the weights per step,
//! keys and values in pages that texts which begin alike share. A `Session` is an engine for one text. A step runs on the
//! threads of the rayon pool it is called in; outside of any, that is the global pool, which has one thread per core
//! unless `RAYON_NUM_THREADS` says otherwise.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

mod attention;
mod cache;
mod constraint;
mod engine;
mod family;
mod gguf;
mod linear;
mod output;
mod pack;
mod sampling;
mod template;
mod transformer;
mod vector;
mod vocabulary;

use self::{
    constraint::Schemas,
    gguf::{Gguf, Value},
    template::Template,
    transformer::Model,
    vocabulary::Vocabulary,
};
pub use self::{
    constraint::{Constraint, MAX_SCHEMA_BYTES},
    engine::{Engine, EngineOptions, Event, Refused, Request, SequenceId},
    sampling::{Alternative, MAX_STOP_BYTES, MAX_STOPS, MAX_TOP_LOGPROBS, Sampling},
    template::Message,
};
use crate::{ItemError, LoadError, text::Token};

/// A model that continues texts. Cloning shares the weights.
#[derive(Clone)]
pub struct Generator {
    model: Arc<Model>,
    vocabulary: Arc<Vocabulary>,
    /// The error, where the file has a template that is none.
    template: Option<Arc<Result<Template, String>>>,
    schemas: Arc<OnceLock<Schemas>>,
}

impl Generator {
    /// Loads a GGUF file of architecture `gemma3`, `llama`, `qwen2` or `qwen3` with a `llama` (SentencePiece) or `gpt2`
    /// (byte-level BPE) tokenizer.
    ///
    /// Memory is a byte and a sixteenth per weight, whatever the format in the file.
    pub fn load(gguf: &Path) -> Result<Self, LoadError> {
        let mut gguf = Gguf::open(gguf)?;
        let vocabulary = Vocabulary::load(&mut gguf)?;
        let model = Model::load(&gguf, vocabulary.len())?;
        let template = match gguf.get("tokenizer.chat_template") {
            Some(Value::Text(source)) => Some(Arc::new(Template::new(source.clone()))),
            _ => None,
        };
        Ok(Self { model: Arc::new(model), vocabulary: Arc::new(vocabulary), template, schemas: Arc::default() })
    }

    /// The most tokens of a prompt and its continuation together.
    pub fn context_length(&self) -> usize {
        self.model.context()
    }

    /// Bytes that keys and values of one token take in an engine's cache.
    pub fn bytes_per_position(&self) -> usize {
        let shape = self.model.shape();
        shape.layers * shape.kv_heads * shape.head * 4
    }

    /// The prompt `text` as ids, after the beginning-of-text token if the model wants one. Names of control tokens in
    /// the text are plain text.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.prompt(text, false)
    }

    /// As `encode`, but names of control tokens become these tokens: for prompts of a fixed template, never for a text
    /// somebody else wrote.
    pub fn encode_template(&self, text: &str) -> Vec<u32> {
        self.prompt(text, true)
    }

    /// Whether the file has a chat template, so that `chat` can write conversations.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// A conversation as the prompt of the assistant's next message, by the template in the file. Names of control tokens
    /// in messages are plain text: no message can pretend to be another.
    pub fn chat(&self, messages: &[Message]) -> Result<Vec<u32>, ItemError> {
        let invalid = |problem: &str| ItemError::Invalid(problem.to_owned());
        let template = match self.template.as_deref() {
            None => return Err(invalid("the model has no chat template; send a prompt")),
            Some(Err(problem)) => {
                return Err(invalid(&format!("the model's chat template does not compile: {problem}")));
            }
            Some(Ok(template)) => template,
        };
        if messages.is_empty() {
            return Err(ItemError::Empty);
        }
        let broken = |message: &Message| Message {
            role: self.vocabulary.broken(&message.role),
            content: self.vocabulary.broken(&message.content),
        };
        let messages: Vec<Message> = messages.iter().map(broken).collect();
        let (bos, eos) = self.vocabulary.names();
        let text = template
            .render(&messages, bos, eos)
            .map_err(|problem| invalid(&format!("the model's chat template refuses the messages: {problem}")))?;
        // Many templates write the beginning-of-text token themselves.
        let mut prompt = self.prompt(&text, true);
        if prompt.len() > 1 && self.vocabulary.bos == Some(prompt[1]) && prompt[0] == prompt[1] {
            prompt.remove(0);
        }
        Ok(prompt)
    }

    /// Compiles a JSON schema that a text must conform to. Takes milliseconds, and the first time for a model some tenths
    /// of a second.
    ///
    /// Objects, arrays, strings with patterns and formats, numbers with bounds, enums, references and combinations are
    /// enforced; what is not is refused. A text that ends with `Reason::Stop` is JSON of the schema; one cut by
    /// `max_tokens` may not be.
    pub fn constrain(&self, schema: &str) -> Result<Constraint, ItemError> {
        self.schemas.get_or_init(|| Schemas::new(&self.vocabulary)).compile(schema)
    }

    fn prompt(&self, text: &str, parse_control: bool) -> Vec<u32> {
        let tokens = self.vocabulary.tokens(text, parse_control);
        self.vocabulary.bos.into_iter().chain(tokens.into_iter().map(|token| token.id)).collect()
    }

    /// The text's tokens and the bytes of the text each stands for; `special` adds the beginning-of-text token, if the
    /// model wants one. A character without a token of its own is several tokens, each of which covers the whole
    /// character.
    pub fn tokens(&self, text: &str, special: bool) -> Vec<Token> {
        let begin = self.vocabulary.bos.filter(|_| special).map(|id| Token { id, start: 0, end: 0 });
        begin.into_iter().chain(self.vocabulary.tokens(text, false)).collect()
    }

    /// The bytes a token of the vocabulary stands for: part of a character, maybe, and none for control tokens.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        if (id as usize) < self.vocabulary.len() {
            self.vocabulary.decode(id, &mut bytes);
        }
        bytes
    }

    /// Begins to continue `prompt`, ids of `encode`. Computes nothing yet.
    ///
    /// The prompt and `max_tokens` together are at most the model's context, else `TooLong`.
    pub fn start(&self, prompt: &[u32], sampling: Sampling) -> Result<Session, ItemError> {
        self.begin(Request { prompt: prompt.to_vec(), sampling, constraint: None })
    }

    /// As `start`, with a schema too.
    pub fn begin(&self, request: Request) -> Result<Session, ItemError> {
        let positions = request.prompt.len().saturating_add(request.sampling.max_tokens);
        let options = EngineOptions {
            max_sequences: 1,
            cache_tokens: positions.min(self.context_length()),
            reuses_prefixes: false,
            ..EngineOptions::default()
        };
        let mut engine = Engine::new(self.clone(), options);
        let finish = Finish {
            reason: Reason::Length,
            prompt_tokens: request.prompt.len(),
            cached_tokens: 0,
            completion_tokens: 0,
        };
        match engine.admit(request) {
            Ok(_) => Ok(Session { engine, finish, failed: None }),
            Err(Refused::Invalid(problem)) => Err(problem),
            Err(Refused::Full(_)) => Err(ItemError::TooLong { tokens: positions, max: self.context_length() }),
        }
    }
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub id: u32,
    /// The text that is certain since the last step: empty while a character is incomplete or a stop string may be
    /// beginning.
    pub text: String,
    /// Natural logarithm of the token's probability as the model says it: before penalties, temperature and schema.
    pub logprob: f32,
    /// The most probable tokens, as many as `Sampling::top_logprobs` asks for; the best first.
    pub top: Vec<Alternative>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A stop string, the model's end token, or a schema that is fulfilled.
    Stop,
    /// The most tokens allowed.
    Length,
}

/// How a generation ended and what it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finish {
    /// `Length` also where the caller finished before the end.
    pub reason: Reason,
    pub prompt_tokens: usize,
    /// How many of these were found in the cache and not computed.
    pub cached_tokens: usize,
    /// Steps made; an end token is one of them.
    pub completion_tokens: usize,
}

/// A text being continued: an iterator of steps. Dropping it between steps cancels the rest.
pub struct Session {
    engine: Engine,
    finish: Finish,
    failed: Option<ItemError>,
}

impl Session {
    /// What the generation took and why it ended; the problem, if a schema grew beyond its bounds.
    pub fn finish(self) -> Result<Finish, ItemError> {
        self.failed.map_or(Ok(self.finish), Err)
    }
}

impl Iterator for Session {
    type Item = Step;

    /// Generates a token; `None` after the last one. The prompt is read first.
    fn next(&mut self) -> Option<Step> {
        while !self.engine.is_idle() {
            match self.engine.step().pop() {
                None => {}
                Some(Event::Step(_, step, finish)) => {
                    self.finish.completion_tokens += 1;
                    self.finish = finish.unwrap_or(self.finish);
                    return Some(step);
                }
                Some(Event::Failed(_, problem)) => self.failed = Some(problem),
            }
        }
        None
    }
}
