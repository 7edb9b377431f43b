//! The thread of a generating model: takes texts in between steps, lets go of those nobody waits for, and computes.
//!
//! A text joins those that run as soon as there is room; it never waits for another to end while there is. A step that
//! panics costs the texts that ran, not the thread.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use parking_lot::{Condvar, Mutex};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::mpsc;
use verdict_inference::{
    ItemError,
    generation::{Engine, EngineOptions, Event, Generator, Refused, Request, SequenceId, Step},
};

use crate::{
    error::Error,
    generate::{Finish, GenerationLimits},
    metrics::ModelMeters,
    timing::Timing,
};

/// Prompt tokens read beside one token of each running text.
const PROMPT_CHUNK: usize = 128;

/// A text that waits.
pub(crate) struct Job {
    pub(crate) request: Request,
    /// Has room for every token and the end.
    pub(crate) progress: mpsc::Sender<Progress>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) accepted: Instant,
}

/// What a text's caller is told; everything but a step is the last.
pub(crate) enum Progress {
    Step(Step),
    Finish(Finish),
    /// The schema could not be followed any further.
    Failed(ItemError),
    Expired,
    Panicked,
}

/// Why a text cannot wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turned {
    /// The queue is full; the others have waited this long.
    Full(Duration),
    /// It would start after its deadline.
    TooLate,
}

impl Turned {
    pub(crate) fn error(&self, model: &str) -> Error {
        match self {
            Self::Full(retry_after) => Error::QueueFull { model: model.to_owned(), retry_after: *retry_after },
            Self::TooLate => Error::Expired,
        }
    }
}

/// The queue of one model. Dropping it lets the thread finish what waits and end.
pub(crate) struct GenerationLoop {
    shared: Arc<Shared>,
}

struct Shared {
    limits: GenerationLimits,
    meters: ModelMeters,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    closed: bool,
    /// How long a generation has taken lately, from its start; zero before the first has ended.
    usual: Duration,
    last_wait: Duration,
}

impl State {
    /// Drops texts nobody waits for any more.
    fn let_go(&mut self, now: Instant) {
        self.waiting.retain(|job| {
            if job.deadline.is_some_and(|deadline| deadline <= now) {
                let _gone = job.progress.try_send(Progress::Expired);
                return false;
            }
            !job.progress.is_closed()
        });
    }
}

impl GenerationLoop {
    pub(crate) fn start(generator: Generator, limits: GenerationLimits, meters: ModelMeters) -> anyhow::Result<Self> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(limits.threads.max(1))
            .thread_name(|number| format!("generate-{number}"))
            .build()
            .context("threads to generate with")?;
        let shared = Arc::new(Shared { limits, meters, state: Mutex::default(), changed: Condvar::new() });
        let worker = Worker {
            shared: shared.clone(),
            engine: engine(&generator, limits),
            generator,
            pool,
            running: HashMap::new(),
        };
        thread::Builder::new().name("generate".to_owned()).spawn(move || worker.work())?;
        Ok(Self { shared })
    }

    /// Queues a text, unless the queue is full or its turn would come after its deadline.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Turned> {
        let shared = &*self.shared;
        let now = Instant::now();
        let mut state = shared.state.lock();
        if state.waiting.len() >= shared.limits.queue {
            state.let_go(now);
        }
        if state.waiting.len() >= shared.limits.queue {
            shared.meters.refused();
            return Err(Turned::Full(state.last_wait.clamp(Duration::from_millis(50), Duration::from_secs(5))));
        }
        // At least so long will those before it take; what runs may end at any moment.
        let rounds = state.waiting.len() / shared.limits.running.max(1);
        let wait = state.usual.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX));
        if job.deadline.is_some_and(|deadline| now.checked_add(wait).is_none_or(|start| start >= deadline)) {
            shared.meters.too_late();
            return Err(Turned::TooLate);
        }
        state.waiting.push_back(job);
        drop(state);
        shared.changed.notify_one();
        Ok(())
    }
}

impl Drop for GenerationLoop {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

fn engine(generator: &Generator, limits: GenerationLimits) -> Engine {
    let options = EngineOptions {
        max_sequences: limits.running.max(1),
        cache_tokens: limits.cache_tokens,
        prompt_chunk: PROMPT_CHUNK,
        reuses_prefixes: true,
    };
    Engine::new(generator.clone(), options)
}

struct Worker {
    shared: Arc<Shared>,
    generator: Generator,
    engine: Engine,
    pool: ThreadPool,
    running: HashMap<SequenceId, Active>,
}

/// A text that runs.
struct Active {
    progress: mpsc::Sender<Progress>,
    deadline: Option<Instant>,
    accepted: Instant,
    started: Instant,
    /// Most texts that ran with it.
    together: usize,
}

impl Worker {
    fn work(mut self) {
        while self.take_in() {
            self.let_go();
            if self.engine.is_idle() {
                continue;
            }
            let began = Instant::now();
            let Self { pool, engine, .. } = &mut self;
            let step = catch_unwind(AssertUnwindSafe(|| pool.install(|| engine.step())));
            match step {
                Ok(events) => {
                    self.shared.meters.stepped(began.elapsed(), self.running.len());
                    self.tell(events);
                }
                Err(_) => self.start_afresh(),
            }
        }
    }

    /// Admits what waits, in order, while there is room; sleeps while there is nothing to do. `false`: all is done and
    /// nothing can come any more.
    fn take_in(&mut self) -> bool {
        let shared = self.shared.clone();
        loop {
            let job = {
                let mut state = shared.state.lock();
                state.let_go(Instant::now());
                while state.waiting.is_empty() && self.engine.is_idle() {
                    if state.closed {
                        return false;
                    }
                    shared.changed.wait(&mut state);
                    state.let_go(Instant::now());
                }
                let Some(job) = state.waiting.pop_front() else { return true };
                job
            };
            let Job { request, progress, deadline, accepted } = job;
            match self.engine.admit(request) {
                Ok(id) => {
                    let started = Instant::now();
                    shared.meters.waited(started - accepted);
                    shared.state.lock().last_wait = started - accepted;
                    self.running.insert(id, Active { progress, deadline, accepted, started, together: 1 });
                }
                Err(Refused::Full(request)) => {
                    let job = Job { request: *request, progress, deadline, accepted };
                    shared.state.lock().waiting.push_front(job);
                    return true;
                }
                Err(Refused::Invalid(problem)) => {
                    let _gone = progress.try_send(Progress::Failed(problem));
                }
            }
        }
    }

    /// Cancels texts whose caller left or whose deadline passed.
    fn let_go(&mut self) {
        let now = Instant::now();
        let count = self.running.len();
        let Self { running, engine, .. } = self;
        running.retain(|id, active| {
            active.together = active.together.max(count);
            let is_late = active.deadline.is_some_and(|deadline| deadline <= now);
            if is_late {
                let _gone = active.progress.try_send(Progress::Expired);
            }
            if is_late || active.progress.is_closed() {
                engine.cancel(*id);
                return false;
            }
            true
        });
    }

    fn tell(&mut self, events: Vec<Event>) {
        for event in events {
            let (id, progress) = match event {
                Event::Failed(id, problem) => (id, Some(Progress::Failed(problem))),
                Event::Step(id, step, finish) => {
                    let Some(active) = self.running.get(&id) else { continue };
                    let _gone = active.progress.try_send(Progress::Step(step));
                    (id, finish.map(|finish| Progress::Finish(self.finished(active, finish))))
                }
            };
            if let Some(progress) = progress
                && let Some(active) = self.running.remove(&id)
            {
                let _gone = active.progress.try_send(progress);
            }
        }
    }

    fn finished(&self, active: &Active, finish: verdict_inference::generation::Finish) -> Finish {
        let verdict_inference::generation::Finish { reason, prompt_tokens, cached_tokens, completion_tokens } = finish;
        let compute = active.started.elapsed();
        self.shared.meters.generated(prompt_tokens - cached_tokens, cached_tokens, completion_tokens);
        let mut state = self.shared.state.lock();
        // The last eight or so count.
        state.usual = if state.usual.is_zero() { compute } else { state.usual * 7 / 8 + compute / 8 };
        let timing = Timing {
            queue: active.started - active.accepted,
            compute,
            batch: active.together,
            tokens: prompt_tokens,
            ..Timing::default()
        };
        Finish { reason, prompt_tokens, cached_tokens, completion_tokens, timing }
    }

    /// After a panic nothing of the engine is trusted but the weights.
    fn start_afresh(&mut self) {
        self.shared.meters.panicked();
        for active in std::mem::take(&mut self.running).into_values() {
            let _gone = active.progress.try_send(Progress::Panicked);
        }
        self.engine = engine(&self.generator, self.shared.limits);
    }
}
