//! One bounded queue with worker threads behind it.
//!
//! Work-conserving unless a delay is set: an idle worker starts at once with what is there; batches form while the
//! workers are busy. What is urgent goes first and tenants share ([`crate::queue`]). A queue that is full refuses, or
//! pushes out what is less urgent or more than its owner's share. What cannot end before its deadline, by the rate that
//! was measured last, is refused at once. Jobs whose caller left or whose deadline passed are dropped without being
//! computed. A panic costs the item that caused it, not its neighbours and not the worker.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::{
    admission::{Admission, Priority},
    answers::{Answers, Key},
    cut::{self, Budget, Waiting},
    metrics::ModelMeters,
    queue::Queue,
    rate::Rate,
    spare,
};

/// How a model's queue and workers are sized.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub budget: Budget,
    /// Most items that wait; of those that nobody waits for as many again.
    pub queue: usize,
    /// Threads that compute.
    pub workers: usize,
    /// How long a worker waits for a batch to fill up.
    pub delay: Duration,
}

/// The answer to one item.
#[derive(Debug)]
pub struct Done<O> {
    pub output: O,
    /// When its batch started.
    pub started: Instant,
    /// When its batch ended.
    pub ended: Instant,
    /// Items in its batch; 0 when it was not computed.
    pub batch: usize,
    /// Whether it was answered from the response cache.
    pub is_cached: bool,
}

/// Why an item has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its deadline passed before it was computed.
    Expired,
    /// Computing it panicked.
    Panicked,
    /// It made room in a full queue for what is more urgent, or for a tenant with less; come back after this.
    PushedOut(Duration),
}

/// Why items were not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The queue is full.
    Full {
        /// How long doing what waits takes.
        retry_after: Duration,
    },
    /// They would not be done before the deadline.
    TooLate {
        /// How long they would take, waiting included.
        needed: Duration,
    },
    /// The deadline has passed.
    Expired,
}

/// Where the answer to an item arrives. Dropping it withdraws the item.
pub type Ticket<O> = oneshot::Receiver<Result<Done<O>, Failure>>;

type Compute<I, O> = dyn Fn(&[&I]) -> Vec<O> + Send + Sync;

/// The queue of one model. Dropping it lets the workers finish what waits and end.
pub struct Batcher<I, O> {
    shared: Arc<Shared<I, O>>,
}

struct Shared<I, O> {
    limits: Limits,
    meters: ModelMeters,
    answers: Option<Answers<I, O>>,
    compute: Box<Compute<I, O>>,
    state: Mutex<State<I, O>>,
    arrived: Condvar,
    /// Wakes the worker for what nobody waits for.
    spared: Condvar,
}

struct State<I, O> {
    waiting: Queue<Job<I, O>>,
    /// Cost that is being computed.
    running: usize,
    rate: Rate,
    idle: usize,
    has_spare_worker: bool,
    closed: bool,
}

struct Job<I, O> {
    item: I,
    key: Option<Key>,
    cost: usize,
    accepted: Instant,
    deadline: Option<Instant>,
    reply: oneshot::Sender<Result<Done<O>, Failure>>,
}

impl<I, O> Job<I, O> {
    /// Returns the job if somebody waits for it; answers it if its deadline has passed.
    fn wanted(self, now: Instant, meters: &ModelMeters) -> Option<Self> {
        if self.reply.is_closed() {
            meters.withdrawn();
            return None;
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            meters.expired();
            let _gone = self.reply.send(Err(Failure::Expired));
            return None;
        }
        Some(self)
    }
}

impl<I: Send + Sync + 'static, O: Send + 'static> Batcher<I, O> {
    /// Starts the workers. `compute` answers a batch in order, one output per item.
    pub fn start(
        limits: Limits,
        meters: ModelMeters,
        compute: impl Fn(&[&I]) -> Vec<O> + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        Self::start_cached(limits, meters, None, compute)
    }

    /// Starts the workers. What `answers` holds is answered without them, and what they compute is kept there.
    pub fn start_cached(
        limits: Limits,
        meters: ModelMeters,
        answers: Option<Answers<I, O>>,
        compute: impl Fn(&[&I]) -> Vec<O> + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let limits = Limits { workers: limits.workers.max(1), ..limits };
        let state = State {
            waiting: Queue::default(),
            running: 0,
            rate: Rate::new(limits.workers),
            idle: 0,
            has_spare_worker: false,
            closed: false,
        };
        let shared = Arc::new(Shared {
            limits,
            meters,
            answers,
            compute: Box::new(compute),
            state: Mutex::new(state),
            arrived: Condvar::new(),
            spared: Condvar::new(),
        });
        let batcher = Self { shared };
        for number in 0..limits.workers {
            let shared = batcher.shared.clone();
            thread::Builder::new().name(format!("infer-{number}")).spawn(move || shared.work())?;
        }
        Ok(batcher)
    }

    /// Queues all of `items` (each with its cost) or none.
    pub fn submit(&self, items: Vec<(I, usize)>, admission: impl Into<Admission>) -> Result<Vec<Ticket<O>>, Refused> {
        let admission = admission.into();
        let shared = &*self.shared;
        let accepted = Instant::now();
        if admission.deadline.is_some_and(|deadline| deadline <= accepted) {
            shared.meters.too_late();
            return Err(Refused::Expired);
        }
        let mut tickets = Vec::with_capacity(items.len());
        let mut jobs = Vec::with_capacity(items.len());
        for (item, cost) in items {
            let (reply, ticket) = oneshot::channel();
            tickets.push(ticket);
            let key = shared.answers.as_ref().filter(|_| admission.priority != Priority::Shadow);
            let key = key.map(|answers| (answers, answers.key(&admission.tenant, &item)));
            if let Some(output) = key.as_ref().and_then(|(answers, key)| answers.find(key)) {
                let done = Done { output, started: accepted, ended: accepted, batch: 0, is_cached: true };
                let _held = reply.send(Ok(done));
                continue;
            }
            let (key, deadline) = (key.map(|(_, key)| key), admission.deadline);
            jobs.push((Job { item, key, cost, accepted, deadline, reply }, cost));
        }
        if shared.answers.is_some() {
            shared.meters.looked_up(tickets.len() - jobs.len(), jobs.len());
        }
        if jobs.is_empty() {
            return Ok(tickets);
        }
        let count = jobs.len();
        let mut state = shared.admit(&jobs, &admission, accepted)?;
        state.waiting.push(admission.priority, &admission.tenant, jobs);
        shared.meters.depth(state.waiting.depth());
        if admission.priority == Priority::Shadow {
            self.lend_spare_worker(&mut state);
            shared.spared.notify_one();
        } else if count == 1 {
            drop(state);
            shared.arrived.notify_one();
        } else {
            drop(state);
            shared.arrived.notify_all();
        }
        Ok(tickets)
    }

    /// Starts the worker for what nobody waits for, when there is something for it.
    fn lend_spare_worker(&self, state: &mut State<I, O>) {
        if state.has_spare_worker {
            return;
        }
        let shared = self.shared.clone();
        let started = thread::Builder::new().name("infer-spare".to_owned()).spawn(move || shared.work_spare());
        match started {
            Ok(_) => state.has_spare_worker = true,
            // Tried again with the next one; what waits is bounded.
            Err(error) => tracing::warn!("no thread can be started for shadow work: {error}"),
        }
    }
}

impl<I, O> Drop for Batcher<I, O> {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.arrived.notify_all();
        self.shared.spared.notify_all();
    }
}

impl<I, O> Shared<I, O> {
    /// Lets jobs in, making room for them where that is fair; or says why not.
    fn admit(
        &self,
        jobs: &[(Job<I, O>, usize)],
        admission: &Admission,
        now: Instant,
    ) -> Result<MutexGuard<'_, State<I, O>>, Refused> {
        let Admission { deadline, tenant, priority } = admission;
        let mut state = self.state.lock();
        let most = self.limits.queue;
        if *priority == Priority::Shadow {
            if state.waiting.items(Priority::Shadow) + jobs.len() > most {
                return Err(Refused::Full { retry_after: Duration::from_secs(1) });
            }
            return Ok(state);
        }
        let is_full = |state: &State<I, O>| state.waiting.waiting().0 + jobs.len() > most;
        let costs = || jobs.iter().map(|(_, cost)| *cost);
        let needed = |state: &State<I, O>| {
            let own = costs().fold(0, usize::saturating_add);
            let ahead = state.waiting.ahead(*priority, tenant, own).saturating_add(state.running / 2);
            let is_idle = state.running == 0 && state.waiting.waiting().0 == 0;
            state.rate.estimate(ahead, own, costs().max().unwrap_or(0), is_idle, now)
        };
        let is_too_late = |state: &State<I, O>| {
            let left = (*deadline)?.saturating_duration_since(now);
            needed(state).filter(|needed| *needed > left)
        };
        if is_full(&state) || is_too_late(&state).is_some() {
            // Those who left no longer stand in anybody's way.
            state.waiting.retain(|job| job.wanted(now, &self.meters));
        }
        if let Some(needed) = is_too_late(&state) {
            self.meters.too_late();
            return Err(Refused::TooLate { needed });
        }
        if is_full(&state) {
            let retry_after = state.rate.drain(state.waiting.waiting().1);
            let Some(out) = state.waiting.make_room(*priority, tenant, jobs.len(), most) else {
                self.meters.refused();
                return Err(Refused::Full { retry_after });
            };
            for job in out {
                self.meters.pushed_out();
                let _gone = job.reply.send(Err(Failure::PushedOut(retry_after)));
            }
        }
        Ok(state)
    }

    fn work(&self) {
        while let Some(batch) = self.take() {
            let cost = batch.iter().map(|job| job.cost).sum::<usize>();
            self.run(batch, true);
            self.state.lock().running -= cost;
        }
    }

    /// Does what nobody waits for, with the time that is spare.
    fn work_spare(&self) {
        spare::lower_this_thread();
        loop {
            let mut state = self.state.lock();
            while state.waiting.items(Priority::Shadow) == 0 && !state.closed {
                self.spared.wait(&mut state);
            }
            if state.closed {
                return;
            }
            let batch = state.waiting.take_shadow(self.limits.budget);
            drop(state);
            self.run(batch, false);
        }
    }

    /// Waits for work; `None` when the queue is closed and empty.
    fn take(&self) -> Option<Vec<Job<I, O>>> {
        let mut state = self.state.lock();
        loop {
            if state.waiting.waiting().0 == 0 {
                if state.closed {
                    return None;
                }
                state.idle += 1;
                self.arrived.wait(&mut state);
                state.idle -= 1;
            } else if let Some(left) = self.linger(&state) {
                state.idle += 1;
                self.arrived.wait_for(&mut state, left);
                state.idle -= 1;
            } else {
                let idle = state.idle + 1;
                let batch = state.waiting.take(idle, self.limits.budget);
                state.running += batch.iter().map(|job| job.cost).sum::<usize>();
                self.meters.depth(state.waiting.depth());
                return Some(batch);
            }
        }
    }

    fn linger(&self, state: &State<I, O>) -> Option<Duration> {
        if self.limits.delay.is_zero() || state.closed {
            return None;
        }
        let now = Instant::now();
        let (items, cost) = state.waiting.waiting();
        let oldest = state.waiting.iter().map(|job| now.saturating_duration_since(job.accepted)).max()?;
        let work = state.rate.drain(cost);
        let urgent = state.waiting.iter().filter_map(|job| job.deadline).min();
        let slack = urgent.map(|deadline| deadline.saturating_duration_since(now).saturating_sub(work));
        cut::linger(Waiting { items, cost, oldest, slack }, self.limits.budget, self.limits.delay)
    }

    /// Computes what is still wanted of a batch. `is_timed` where the time it takes says something.
    fn run(&self, batch: Vec<Job<I, O>>, is_timed: bool) {
        let started = Instant::now();
        let mut jobs: Vec<_> = batch.into_iter().filter_map(|job| job.wanted(started, &self.meters)).collect();
        let Some(first) = jobs.first() else { return };
        let waited = started.saturating_duration_since(first.accepted);
        let cost = jobs.iter().map(|job| job.cost).sum();

        let items: Vec<_> = jobs.iter().map(|job| &job.item).collect();
        match self.guarded(&items) {
            Some(outputs) => {
                let ended = Instant::now();
                let batch = jobs.len();
                if is_timed {
                    self.meters.computed(waited, ended - started, batch);
                    // Before anybody hears of it: who comes next is judged by it.
                    self.state.lock().rate.measured(cost, ended - started, ended);
                }
                for (job, output) in jobs.into_iter().zip(outputs) {
                    if let (Some(answers), Some(key)) = (&self.answers, job.key) {
                        answers.keep(key, &output);
                    }
                    let _gone = job.reply.send(Ok(Done { output, started, ended, batch, is_cached: false }));
                }
            }
            None if jobs.len() == 1 => self.fail(jobs.remove(0)),
            None => {
                // Somebody in this batch is to blame: alone, everybody else gets an answer.
                for job in jobs {
                    self.run(vec![job], is_timed);
                }
            }
        }
    }

    fn fail(&self, job: Job<I, O>) {
        self.meters.panicked();
        let _gone = job.reply.send(Err(Failure::Panicked));
    }

    /// Computes a batch; `None` when that panicked or did not answer every item.
    fn guarded(&self, items: &[&I]) -> Option<Vec<O>> {
        // Engines keep no state between calls, so nothing half-changed is left behind by a panic.
        let outputs = catch_unwind(AssertUnwindSafe(|| (self.compute)(items))).ok()?;
        (outputs.len() == items.len()).then_some(outputs)
    }
}

#[cfg(test)]
mod tests;
