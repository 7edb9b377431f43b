//! Many texts continued together: each step reads the weights once for all of them.

use std::sync::Arc;

use rayon::prelude::*;

use super::{
    Finish, Generator, Reason, Step,
    cache::{Pool, Table},
    constraint::Constraint,
    output::Output,
    sampling::{Choice, Sampler, Sampling},
    transformer::{Room, Run},
};
use crate::ItemError;

/// The bounds of an engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Most texts continued together, at least 1.
    pub max_sequences: usize,
    /// Positions whose keys and values are kept, of running texts and of those that may be continued; rounded up to a
    /// multiple of 32. Memory is taken as it is used: `Generator::bytes_per_position` each.
    pub cache_tokens: usize,
    /// Prompt tokens read in a step, beside one token of each text that is being continued; at least 1. Less lets running
    /// texts wait less for long prompts.
    pub prompt_chunk: usize,
    /// Whether texts that begin alike share what was computed for their beginnings. What comes out is the same.
    pub reuses_prefixes: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { max_sequences: 16, cache_tokens: 16_384, prompt_chunk: 128, reuses_prefixes: true }
    }
}

/// A text to continue.
pub struct Request {
    /// Ids of `Generator::encode` or `encode_template`.
    pub prompt: Vec<u32>,
    pub sampling: Sampling,
    /// What the text must conform to.
    pub constraint: Option<Constraint>,
}

/// Why a text was not admitted.
pub enum Refused {
    /// There is no room until another text ends; the request comes back.
    Full(Box<Request>),
    /// It can never be continued.
    Invalid(ItemError),
}

/// A text in an engine; never given twice by the same engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

/// What a step did to a text.
#[derive(Debug)]
pub enum Event {
    /// The next token; with the end of the text, if this was the last.
    Step(SequenceId, Step, Option<Finish>),
    /// The text cannot go on. Only a schema does this: one that grew beyond its bounds.
    Failed(SequenceId, ItemError),
}

/// Continues texts together. Knows no threads and no network: somebody calls `step` for as long as it is not idle.
///
/// What comes out for a text does not depend on the texts beside it.
pub struct Engine {
    generator: Generator,
    options: EngineOptions,
    pool: Pool,
    room: Room,
    sequences: Vec<Sequence>,
    next: u64,
}

struct Sequence {
    id: SequenceId,
    /// Prompt and text so far.
    tokens: Vec<u32>,
    /// How many of them were read.
    read: usize,
    table: Table,
    finish: Finish,
    max_tokens: usize,
    output: Output,
    sampler: Sampler,
    constraint: Option<Constraint>,
}

impl Engine {
    pub fn new(generator: Generator, options: EngineOptions) -> Self {
        let pool = Pool::new(generator.model.shape(), options.cache_tokens.max(1));
        Self { generator, options, pool, room: Room::default(), sequences: Vec::new(), next: 0 }
    }

    /// Whether there is nothing to continue.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// The number of texts being continued.
    pub fn running(&self) -> usize {
        self.sequences.len()
    }

    /// The most tokens of a prompt and its continuation together: the model's context, or the cache if that is smaller.
    pub fn max_positions(&self) -> usize {
        self.generator.context_length().min(self.pool.positions())
    }

    /// Takes a text in, if there is room for all of it. Computes nothing yet.
    pub fn admit(&mut self, request: Request) -> Result<SequenceId, Refused> {
        let positions = self.check(&request.prompt, &request.sampling).map_err(Refused::Invalid)?;
        if request.constraint.is_some() && !request.sampling.stop.is_empty() {
            let problem = "stop strings could cut what a schema asks for; leave them out".to_owned();
            return Err(Refused::Invalid(ItemError::Invalid(problem)));
        }
        if self.sequences.len() >= self.options.max_sequences.max(1) {
            return Err(Refused::Full(Box::new(request)));
        }
        let opened = self.pool.open(&request.prompt, positions, self.options.reuses_prefixes);
        let Some((table, cached)) = opened else { return Err(Refused::Full(Box::new(request))) };
        let Request { prompt, sampling, constraint } = request;
        let id = SequenceId(self.next);
        self.next += 1;
        self.sequences.push(Sequence {
            id,
            read: cached,
            table,
            finish: Finish {
                reason: Reason::Length,
                prompt_tokens: prompt.len(),
                cached_tokens: cached,
                completion_tokens: 0,
            },
            max_tokens: sampling.max_tokens,
            output: Output::new(sampling.stop.clone()),
            sampler: Sampler::new(sampling, &prompt),
            tokens: prompt,
            constraint,
        });
        Ok(id)
    }

    /// The positions a text needs, if it can be continued at all.
    fn check(&self, prompt: &[u32], sampling: &Sampling) -> Result<usize, ItemError> {
        sampling.check()?;
        if prompt.is_empty() {
            return Err(ItemError::Empty);
        }
        let vocabulary = self.generator.model.vocabulary();
        if let Some(id) = prompt.iter().find(|id| **id as usize >= vocabulary) {
            return Err(ItemError::Invalid(format!("token {id} is not in the vocabulary")));
        }
        let (positions, max) = (prompt.len().saturating_add(sampling.max_tokens), self.max_positions());
        if positions > max { Err(ItemError::TooLong { tokens: positions, max }) } else { Ok(positions) }
    }

    /// Ends a text before its time, and frees its room at once. `None` if it has ended already.
    pub fn cancel(&mut self, id: SequenceId) -> Option<Finish> {
        let index = self.sequences.iter().position(|sequence| sequence.id == id)?;
        let sequence = self.sequences.remove(index);
        self.pool.close(sequence.table);
        Some(sequence.finish)
    }

    /// Reads the next token of every running text and the next part of prompts, in one pass over the weights, on the
    /// threads of the rayon pool it is called in. Texts whose prompts are read completely get their next token.
    pub fn step(&mut self) -> Vec<Event> {
        let plan = self.plan();
        if plan.is_empty() {
            return Vec::new();
        }
        for (index, end) in &plan {
            let sequence = &mut self.sequences[*index];
            self.pool.extend(&mut sequence.table, *end);
        }
        // Once inside the pool, each part of the step shares its work without waiting at the pool's door.
        let choices = rayon::scope(|_| self.compute(&plan));
        for (index, end) in &plan {
            let sequence = &mut self.sequences[*index];
            sequence.read = *end;
            self.pool.enter(&mut sequence.table, &sequence.tokens[..*end]);
        }
        let mut events = Vec::with_capacity(choices.len());
        let mut ended = Vec::new();
        for (index, choice) in choices {
            let sequence = &mut self.sequences[index];
            let event = match choice.and_then(|choice| sequence.advance(choice, &self.generator)) {
                Ok((step, finish)) => Event::Step(sequence.id, step, finish),
                Err(problem) => Event::Failed(sequence.id, problem),
            };
            if !matches!(event, Event::Step(_, _, None)) {
                ended.push(sequence.id);
            }
            events.push(event);
        }
        for id in ended {
            self.cancel(id);
        }
        events
    }

    /// Which texts take part in a step, and up to where each is read: those being continued all, prompts in the order they
    /// came until the chunk is full.
    fn plan(&self) -> Vec<(usize, usize)> {
        let mut left = self.options.prompt_chunk.max(1);
        let mut plan = Vec::with_capacity(self.sequences.len());
        for (index, sequence) in self.sequences.iter().enumerate() {
            let unread = sequence.tokens.len() - sequence.read;
            let is_prompt = sequence.finish.completion_tokens == 0;
            let now = if is_prompt { unread.min(left) } else { unread };
            if is_prompt {
                left -= now;
            }
            if now > 0 {
                plan.push((index, sequence.read + now));
            }
        }
        plan
    }

    /// Runs the model and chooses a token for each text that is read completely. What a schema allows next depends on the
    /// text so far alone, so it is worked out while the model runs.
    fn compute(&mut self, plan: &[(usize, usize)]) -> Vec<(usize, Result<Choice, ItemError>)> {
        let Self { generator, pool, room, sequences, .. } = self;
        let mut constraints = Vec::with_capacity(plan.len());
        let runs: Vec<Run> = {
            let mut rest = &mut sequences[..];
            let mut offset = 0;
            plan.iter()
                .map(|(index, end)| {
                    let (one, later) = std::mem::take(&mut rest)[*index - offset..].split_first_mut().expect("a text");
                    (rest, offset) = (later, *index + 1);
                    let Sequence { tokens, read, table, sampler, constraint, .. } = one;
                    let wants_logits = *end == tokens.len();
                    if wants_logits {
                        constraints.push((*index, sampler, constraint.as_mut()));
                    }
                    Run { tokens: &tokens[*read..*end], position: *read, table, wants_logits }
                })
                .collect()
        };
        let model = Arc::clone(&generator.model);
        let (masks, logits) = rayon::join(
            || -> Vec<_> {
                let masks = constraints.par_iter_mut().with_max_len(1);
                masks.map(|(_, _, constraint)| constraint.as_mut().map(|it| it.mask()).transpose()).collect()
            },
            || model.forward(&runs, pool, room),
        );
        let choices = constraints.into_par_iter().with_max_len(1).zip(masks).enumerate();
        choices
            .map(|(row, ((index, sampler, _), mask))| {
                let logits = &logits[row * model.vocabulary()..(row + 1) * model.vocabulary()];
                (index, mask.map(|mask| sampler.choose(logits, mask.as_deref())))
            })
            .collect()
    }
}

impl Sequence {
    /// Takes the chosen token.
    fn advance(&mut self, choice: Choice, generator: &Generator) -> Result<(Step, Option<Finish>), ItemError> {
        let Choice { id, logprob, top } = choice;
        self.finish.completion_tokens += 1;
        let mut text = String::new();
        let mut has_ended = false;
        if generator.vocabulary.is_end(id) {
            (has_ended, self.finish.reason) = (true, Reason::Stop);
            text = self.output.finish();
        } else {
            let mut bytes = Vec::new();
            generator.vocabulary.decode(id, &mut bytes);
            let (certain, has_stopped) = self.output.push(&bytes);
            text.push_str(&certain);
            let is_complete = match &mut self.constraint {
                Some(constraint) => constraint.take(id)?,
                None => false,
            };
            if has_stopped || is_complete {
                (has_ended, self.finish.reason) = (true, Reason::Stop);
                text.push_str(&self.output.finish());
            } else if self.finish.completion_tokens == self.max_tokens {
                has_ended = true;
                text.push_str(&self.output.finish());
            } else {
                self.tokens.push(id);
            }
        }
        Ok((Step { id, text, logprob, top }, has_ended.then_some(self.finish)))
    }
}
