//! The thread of a generating model: takes texts in between steps, lets go of those nobody waits for, and computes.
//!
//! A text joins those that run as soon as there is room; what is urgent is next, and tenants share ([`crate::queue`]). A step that
//! panics costs the texts that ran, not the thread.

use std::{
    collections::HashMap,
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
    generation::{self, Engine, EngineOptions, Event, Generator, Request, SequenceId, Step},
};

use crate::{
    admission::{Admission, Priority},
    batch::Refused,
    cut::Budget,
    generate::{Finish, GenerationLimits},
    metrics::ModelMeters,
    queue::Queue,
    rate::Rate,
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

impl Job {
    /// Tokens to make; reading one of the prompt costs a small part of making one.
    fn cost(&self) -> usize {
        self.request.sampling.max_tokens.saturating_add(self.request.prompt.len() / 16)
    }

    /// Returns the job if somebody waits for it; answers it if its deadline has passed.
    fn wanted(self, now: Instant, meters: &ModelMeters) -> Option<Self> {
        if self.progress.is_closed() {
            meters.withdrawn();
            return None;
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            meters.expired();
            let _gone = self.progress.try_send(Progress::Expired);
            return None;
        }
        Some(self)
    }
}

/// What a text's caller is told; everything but a step is the last.
pub(crate) enum Progress {
    Step(Step),
    Finish(Finish),
    /// The schema could not be followed any further.
    Failed(ItemError),
    Expired,
    /// It made room in a full queue; come back after this.
    PushedOut(Duration),
    Panicked,
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

struct State {
    waiting: Queue<Job>,
    /// Texts that run, and the one that is next and found no room.
    busy: usize,
    /// Whether there is one that is next and found no room: it waits like those in the queue.
    holds: bool,
    rate: Rate,
    closed: bool,
}

impl GenerationLoop {
    pub(crate) fn start(generator: Generator, limits: GenerationLimits, meters: ModelMeters) -> anyhow::Result<Self> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(limits.threads.max(1))
            .thread_name(|number| format!("generate-{number}"))
            .build()
            .context("threads to generate with")?;
        let state = State { waiting: Queue::default(), busy: 0, holds: false, rate: Rate::new(1), closed: false };
        let shared = Arc::new(Shared { limits, meters, state: Mutex::new(state), changed: Condvar::new() });
        let worker = Worker {
            shared: shared.clone(),
            engine: engine(&generator, limits),
            generator,
            pool,
            running: HashMap::new(),
            next: None,
        };
        thread::Builder::new().name("generate".to_owned()).spawn(move || worker.work())?;
        Ok(Self { shared })
    }

    /// Queues a text, unless the queue is full of what is as urgent, or its turn would come after its deadline.
    pub(crate) fn submit(&self, job: Job, admission: &Admission) -> Result<(), Refused> {
        let Admission { deadline, tenant, priority } = admission;
        let (shared, now, cost) = (&*self.shared, Instant::now(), job.cost());
        let mut state = shared.state.lock();
        let is_full = |state: &State| match priority {
            Priority::Shadow => state.waiting.items(Priority::Shadow) >= shared.limits.queue,
            Priority::Interactive | Priority::Batch => state.waiting.waiting().0 >= shared.limits.queue - state.held(),
        };
        let is_too_late = |state: &State| {
            let left = (*deadline)?.saturating_duration_since(now);
            let ahead = state.waiting.ahead(*priority, tenant, cost);
            let wait = state.rate.estimate(ahead, 0, 0, state.busy == 0, now).unwrap_or_default();
            (wait >= left).then_some(wait)
        };
        if is_full(&state) || is_too_late(&state).is_some() {
            // Those who left no longer stand in anybody's way.
            state.waiting.retain(|job| job.wanted(now, &shared.meters));
        }
        if let Some(needed) = is_too_late(&state) {
            shared.meters.too_late();
            return Err(Refused::TooLate { needed });
        }
        if is_full(&state) {
            let retry_after = state.rate.drain(state.waiting.waiting().1);
            let out = match priority {
                Priority::Shadow => None,
                Priority::Interactive | Priority::Batch => {
                    let most = shared.limits.queue - state.held();
                    state.waiting.make_room(*priority, tenant, 1, most)
                }
            };
            let Some(out) = out else {
                shared.meters.refused();
                return Err(Refused::Full { retry_after });
            };
            for job in out {
                shared.meters.pushed_out();
                let _gone = job.progress.try_send(Progress::PushedOut(retry_after));
            }
        }
        state.waiting.push(*priority, tenant, [(job, cost)]);
        shared.meters.depth(state.waiting.depth());
        drop(state);
        shared.changed.notify_one();
        Ok(())
    }
}

impl State {
    /// How many wait outside the queue.
    fn held(&self) -> usize {
        usize::from(self.holds)
    }

    /// What is next: what nobody waits for only when there is nothing else.
    fn take(&mut self) -> Option<Job> {
        let one = Budget { items: 1, cost: 1 };
        self.waiting.take(1, one).pop().or_else(|| self.waiting.take_shadow(one).pop())
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
    /// What is next but found no room yet.
    next: Option<Job>,
}

/// A text that runs.
struct Active {
    progress: mpsc::Sender<Progress>,
    deadline: Option<Instant>,
    accepted: Instant,
    started: Instant,
    cost: usize,
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
            let now = Instant::now();
            let next = self.next.take().and_then(|job| job.wanted(now, &shared.meters));
            let job = {
                let mut state = shared.state.lock();
                let job = loop {
                    if next.is_some() {
                        break next;
                    }
                    // What cannot run yet stays in the queue, where what is more urgent may still pass it.
                    if self.running.len() >= shared.limits.running.max(1) {
                        break None;
                    }
                    let taken = state.take().map(|job| job.wanted(Instant::now(), &shared.meters));
                    shared.meters.depth(state.waiting.depth());
                    match taken {
                        Some(None) => continue,
                        Some(Some(job)) => break Some(job),
                        None if !self.engine.is_idle() => break None,
                        None if state.closed => return false,
                        None => {
                            state.busy = 0;
                            shared.changed.wait(&mut state);
                        }
                    }
                };
                state.busy = self.running.len() + usize::from(job.is_some());
                // Until it runs it waits.
                state.holds = job.is_some();
                job
            };
            let Some(job) = job else { return true };
            let cost = job.cost();
            let Job { request, progress, deadline, accepted } = job;
            match self.engine.admit(request) {
                Ok(id) => {
                    let started = Instant::now();
                    shared.meters.waited(started - accepted);
                    self.running.insert(id, Active { progress, deadline, accepted, started, cost, together: 1 });
                    shared.state.lock().holds = false;
                }
                Err(generation::Refused::Full(request)) => {
                    self.next = Some(Job { request: *request, progress, deadline, accepted });
                    return true;
                }
                Err(generation::Refused::Invalid(problem)) => {
                    let _gone = progress.try_send(Progress::Failed(problem));
                    shared.state.lock().holds = false;
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

    fn finished(&self, active: &Active, finish: generation::Finish) -> Finish {
        let generation::Finish { reason, prompt_tokens, cached_tokens, completion_tokens } = finish;
        let compute = active.started.elapsed();
        self.shared.meters.generated(prompt_tokens - cached_tokens, cached_tokens, completion_tokens);
        // What it was alone responsible for of the time that all of them took.
        let share = compute / u32::try_from(active.together).unwrap_or(u32::MAX);
        self.shared.state.lock().rate.measured(active.cost, share, Instant::now());
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
