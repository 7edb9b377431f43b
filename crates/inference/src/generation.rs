//! Text generation from GGUF files on a CPU: Gemma 3, weights in 8 bits, one token after another.
//!
//! A step runs on the threads of the rayon pool it is called in; outside of any, that is the global pool, which has
//! one thread per core unless `RAYON_NUM_THREADS` says otherwise. A `Generator` is shared by any number of sessions.

use std::{path::Path, sync::Arc};

mod gemma3;
mod gguf;
mod linear;
mod output;
mod sampling;
mod vector;
mod vocabulary;

pub use self::sampling::Sampling;
use self::{
    gemma3::{CHUNK, Model, State},
    gguf::Gguf,
    output::Output,
    sampling::Sampler,
    vocabulary::Vocabulary,
};
use crate::{ItemError, LoadError, text::Token};

/// A model that continues texts. Cloning shares the weights.
#[derive(Clone)]
pub struct Generator {
    model: Arc<Model>,
    vocabulary: Arc<Vocabulary>,
}

impl Generator {
    /// Loads a GGUF file of architecture `gemma3` with a `llama` (SentencePiece) tokenizer.
    ///
    /// Memory is a byte and a sixteenth per weight, whatever the format in the file.
    pub fn load(gguf: &Path) -> Result<Self, LoadError> {
        let mut gguf = Gguf::open(gguf)?;
        let architecture = gguf.text("general.architecture")?;
        if architecture != "gemma3" {
            return Err(gguf.unsupported(format!("architecture `{architecture}`; `gemma3` is")));
        }
        let vocabulary = Vocabulary::load(&mut gguf)?;
        let model = Model::load(&gguf, vocabulary.len())?;
        Ok(Self { model: Arc::new(model), vocabulary: Arc::new(vocabulary) })
    }

    /// The most tokens of a prompt and its continuation together.
    pub fn context_length(&self) -> usize {
        self.model.context()
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

    /// Begins to continue `prompt`, ids of `encode`. Computes nothing yet.
    ///
    /// The prompt and `max_tokens` together are at most the model's context, else `TooLong`.
    pub fn start(&self, prompt: &[u32], sampling: Sampling) -> Result<Session, ItemError> {
        sampling.check()?;
        if prompt.is_empty() {
            return Err(ItemError::Empty);
        }
        if let Some(id) = prompt.iter().find(|id| **id as usize >= self.vocabulary.len()) {
            return Err(ItemError::Invalid(format!("token {id} is not in the vocabulary")));
        }
        let positions = prompt.len().saturating_add(sampling.max_tokens);
        if positions > self.context_length() {
            return Err(ItemError::TooLong { tokens: positions, max: self.context_length() });
        }
        Ok(Session {
            state: self.model.state(positions),
            model: self.model.clone(),
            vocabulary: self.vocabulary.clone(),
            unread: prompt.to_vec(),
            finish: Finish { reason: Reason::Length, prompt_tokens: prompt.len(), completion_tokens: 0 },
            max_tokens: sampling.max_tokens,
            output: Output::new(sampling.stop.clone()),
            sampler: Sampler::new(sampling),
            has_ended: false,
        })
    }
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub id: u32,
    /// The text that is certain since the last step: empty while a character is incomplete or a stop string may be
    /// beginning.
    pub text: String,
    /// Natural logarithm of the token's probability before temperature.
    pub logprob: f32,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A stop string, or the model's end token.
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
    /// Steps made; an end token is one of them.
    pub completion_tokens: usize,
}

/// A text being continued: an iterator of steps. Dropping it between steps cancels the rest.
pub struct Session {
    model: Arc<Model>,
    vocabulary: Arc<Vocabulary>,
    state: State,
    unread: Vec<u32>,
    finish: Finish,
    max_tokens: usize,
    output: Output,
    sampler: Sampler,
    has_ended: bool,
}

impl Session {
    /// Reads the next part of the prompt, at most 128 tokens, and returns whether some is left. Optional: `next` reads
    /// what is left; long prompts can be cancelled in between.
    pub fn read_prompt(&mut self) -> bool {
        let now: Vec<u32> = self.unread.drain(..self.unread.len().min(CHUNK)).collect();
        if !now.is_empty() {
            // Once inside the pool, each part of the step shares its work without waiting at the pool's door.
            rayon::scope(|_| self.model.read(&now, &mut self.state));
        }
        !self.unread.is_empty()
    }

    /// What the generation took and why it ended.
    pub fn finish(self) -> Finish {
        self.finish
    }
}

impl Iterator for Session {
    type Item = Step;

    /// Generates a token; `None` after the last one. The prompt is read first if it was not.
    fn next(&mut self) -> Option<Step> {
        if self.has_ended {
            return None;
        }
        while self.read_prompt() {}
        let logits = rayon::scope(|_| self.model.logits(&mut self.state));
        let (id, logprob) = self.sampler.choose(logits);
        self.finish.completion_tokens += 1;
        let mut text = String::new();
        if self.vocabulary.is_end(id) {
            (self.has_ended, self.finish.reason) = (true, Reason::Stop);
            text = self.output.finish();
        } else {
            let mut bytes = Vec::new();
            self.vocabulary.decode(id, &mut bytes);
            let (certain, has_stopped) = self.output.push(&bytes);
            text.push_str(&certain);
            if has_stopped {
                (self.has_ended, self.finish.reason) = (true, Reason::Stop);
            } else if self.finish.completion_tokens == self.max_tokens {
                self.has_ended = true;
                text.push_str(&self.output.finish());
            } else {
                self.unread.push(id);
            }
        }
        Some(Step { id, text, logprob })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs the demo's generator.
    mod live {
        use verdict_testkit::models;

        use super::*;

        #[test]
        fn reading_a_prompt_in_parts_is_reading_it_token_by_token() {
            let file = models::dir("gemma-3-270m").join("gemma-3-270m-q4_k_m.gguf");
            let generator = Generator::load(&file).unwrap();
            // Longer than the window of the local layers and a part.
            let text = "The bank asked for the year, the amount and the purpose of each loan. ".repeat(50);
            let prompt = generator.encode(&text);
            assert!(prompt.len() > 512 + CHUNK, "{}", prompt.len());
            let read = |part: usize| {
                let mut state = generator.model.state(prompt.len());
                for tokens in prompt.chunks(part) {
                    generator.model.read(tokens, &mut state);
                }
                generator.model.logits(&mut state).to_vec()
            };
            let one_by_one = read(1);
            for part in [37, CHUNK] {
                let apart = read(part).iter().zip(&one_by_one).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(apart < 1e-3, "parts of {part}: logits are {apart} apart");
            }
        }
    }
}
