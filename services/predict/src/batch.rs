//! One bounded queue with worker threads behind it.
//!
//! Work-conserving: an idle worker starts at once with what is there; batches form while the workers are busy. A queue
//! that is full refuses. Jobs whose caller left or whose deadline passed are dropped without being computed. A panic
//! costs the item that caused it, not its neighbours and not the worker.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::{
    cut::{Budget, cut},
    metrics::ModelMeters,
};

/// How a model's queue and workers are sized.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub budget: Budget,
    /// Most items that wait.
    pub queue: usize,
    /// Threads that compute.
    pub workers: usize,
}

/// The answer to one item.
#[derive(Debug)]
pub struct Done<O> {
    pub output: O,
    /// When its batch started.
    pub started: Instant,
    /// When its batch ended.
    pub ended: Instant,
    /// Items in its batch.
    pub batch: usize,
}

/// Why an item has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its deadline passed before it was computed.
    Expired,
    /// Computing it panicked.
    Panicked,
}

/// The queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// How long jobs have been waiting lately.
    pub retry_after: Duration,
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
    compute: Box<Compute<I, O>>,
    state: Mutex<State<I, O>>,
    arrived: Condvar,
    /// Microseconds the last batch's first job had waited.
    last_wait: AtomicU64,
}

struct State<I, O> {
    waiting: VecDeque<Job<I, O>>,
    cost: usize,
    idle: usize,
    closed: bool,
}

struct Job<I, O> {
    item: I,
    cost: usize,
    accepted: Instant,
    deadline: Option<Instant>,
    reply: oneshot::Sender<Result<Done<O>, Failure>>,
}

impl<I, O> State<I, O> {
    /// Drops jobs nobody waits for any more.
    fn let_go(&mut self, now: Instant) {
        self.waiting = std::mem::take(&mut self.waiting).into_iter().filter_map(|job| job.wanted(now)).collect();
        self.cost = self.waiting.iter().map(|job| job.cost).sum();
    }
}

impl<I, O> Job<I, O> {
    /// Returns the job if somebody waits for it; answers it if its deadline has passed.
    fn wanted(self, now: Instant) -> Option<Self> {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            let _gone = self.reply.send(Err(Failure::Expired));
            return None;
        }
        (!self.reply.is_closed()).then_some(self)
    }
}

impl<I: Send + Sync + 'static, O: Send + 'static> Batcher<I, O> {
    /// Starts the workers. `compute` answers a batch in order, one output per item.
    pub fn start(
        limits: Limits,
        meters: ModelMeters,
        compute: impl Fn(&[&I]) -> Vec<O> + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            limits,
            meters,
            compute: Box::new(compute),
            state: Mutex::new(State { waiting: VecDeque::new(), cost: 0, idle: 0, closed: false }),
            arrived: Condvar::new(),
            last_wait: AtomicU64::new(0),
        });
        let batcher = Self { shared };
        for number in 0..limits.workers.max(1) {
            let shared = batcher.shared.clone();
            thread::Builder::new().name(format!("infer-{number}")).spawn(move || shared.work())?;
        }
        Ok(batcher)
    }

    /// Queues all of `items` (each with its cost) or none.
    pub fn submit(&self, items: Vec<(I, usize)>, deadline: Option<Instant>) -> Result<Vec<Ticket<O>>, Full> {
        let shared = &*self.shared;
        let accepted = Instant::now();
        let mut state = shared.state.lock();
        let is_full = |state: &State<I, O>| state.waiting.len() + items.len() > shared.limits.queue;
        if is_full(&state) {
            state.let_go(accepted);
        }
        if is_full(&state) {
            drop(state);
            shared.meters.refused();
            let wait = Duration::from_micros(shared.last_wait.load(Ordering::Relaxed));
            return Err(Full { retry_after: wait.clamp(Duration::from_millis(50), Duration::from_secs(5)) });
        }
        let count = items.len();
        let mut tickets = Vec::with_capacity(count);
        for (item, cost) in items {
            let (reply, ticket) = oneshot::channel();
            state.cost += cost;
            state.waiting.push_back(Job { item, cost, accepted, deadline, reply });
            tickets.push(ticket);
        }
        drop(state);
        if count == 1 {
            shared.arrived.notify_one();
        } else {
            shared.arrived.notify_all();
        }
        Ok(tickets)
    }
}

impl<I, O> Drop for Batcher<I, O> {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.arrived.notify_all();
    }
}

impl<I, O> Shared<I, O> {
    fn work(&self) {
        while let Some(batch) = self.take() {
            self.run(batch);
        }
    }

    /// Waits for work; `None` when the queue is closed and empty.
    fn take(&self) -> Option<Vec<Job<I, O>>> {
        let mut state = self.state.lock();
        while state.waiting.is_empty() {
            if state.closed {
                return None;
            }
            state.idle += 1;
            self.arrived.wait(&mut state);
            state.idle -= 1;
        }
        let costs = state.waiting.iter().map(|job| job.cost);
        let count = cut(costs, state.cost, state.idle + 1, self.limits.budget);
        let batch: Vec<_> = state.waiting.drain(..count).collect();
        state.cost -= batch.iter().map(|job| job.cost).sum::<usize>();
        Some(batch)
    }

    fn run(&self, batch: Vec<Job<I, O>>) {
        let started = Instant::now();
        let mut jobs: Vec<_> = batch.into_iter().filter_map(|job| job.wanted(started)).collect();
        let Some(first) = jobs.first() else { return };
        let waited = started.duration_since(first.accepted);
        self.last_wait.store(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);

        let items: Vec<_> = jobs.iter().map(|job| &job.item).collect();
        match self.guarded(&items) {
            Some(outputs) => {
                let ended = Instant::now();
                self.meters.computed(waited, ended - started, jobs.len());
                let batch = jobs.len();
                for (job, output) in jobs.into_iter().zip(outputs) {
                    let _gone = job.reply.send(Ok(Done { output, started, ended, batch }));
                }
            }
            None if jobs.len() == 1 => self.fail(jobs.remove(0)),
            None => {
                // Somebody in this batch is to blame: alone, everybody else gets an answer.
                for job in jobs {
                    self.run(vec![job]);
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
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn limits(queue: usize, workers: usize) -> Limits {
        Limits { budget: Budget { items: 8, cost: 100 }, queue, workers }
    }

    /// Doubles numbers; panics at 13; each batch waits for one message of the gate.
    fn gated(queue: usize, workers: usize) -> (Batcher<u32, u32>, mpsc::Sender<()>) {
        let (open, gate) = mpsc::channel();
        let gate = Mutex::new(gate);
        let batcher = Batcher::start(limits(queue, workers), ModelMeters::new("gate", 1), move |items: &[&u32]| {
            let _closed = gate.lock().recv();
            assert!(!items.contains(&&13), "thirteen");
            items.iter().map(|item| **item * 2).collect()
        });
        (batcher.unwrap(), open)
    }

    /// Gives the only worker something to do, and waits until it has begun.
    async fn busy(batcher: &Batcher<u32, u32>) -> Ticket<u32> {
        let ticket = batcher.submit(vec![(1, 1)], None).unwrap().remove(0);
        while !batcher.shared.state.lock().waiting.is_empty() {
            tokio::task::yield_now().await;
        }
        ticket
    }

    fn free(workers: usize) -> Batcher<u32, u32> {
        gated(1024, workers).0
    }

    #[tokio::test]
    async fn every_item_gets_its_own_answer_in_order() {
        let batcher = free(2);
        let tickets = batcher.submit((0..100).map(|n| (n, 1)).collect(), None).unwrap();
        for (n, ticket) in tickets.into_iter().enumerate() {
            let answer = ticket.await.unwrap();
            if n == 13 {
                assert_eq!(answer.unwrap_err(), Failure::Panicked);
            } else {
                assert_eq!(answer.unwrap().output as usize, n * 2);
            }
        }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_all_or_nothing() {
        let (batcher, open) = gated(4, 1);
        let running = vec![busy(&batcher).await];
        let waiting = batcher.submit(vec![(2, 1), (3, 1), (4, 1)], None).unwrap();
        let full = batcher.submit(vec![(5, 1), (6, 1)], None).unwrap_err();
        assert!(full.retry_after >= Duration::from_millis(50));
        let last = batcher.submit(vec![(7, 1)], None).unwrap();
        drop(open);
        for ticket in running.into_iter().chain(waiting).chain(last) {
            assert!(ticket.await.unwrap().is_ok());
        }
    }

    #[tokio::test]
    async fn jobs_nobody_waits_for_do_not_keep_the_queue_full() {
        let (batcher, open) = gated(4, 1);
        let running = busy(&batcher).await;
        let expired = batcher.submit(vec![(2, 10)], Some(Instant::now())).unwrap().remove(0);
        drop(batcher.submit(vec![(3, 10)], None).unwrap());
        let waiting = batcher.submit(vec![(4, 1), (5, 1)], None).unwrap();
        let last = batcher.submit(vec![(6, 1), (7, 1)], None).unwrap();
        assert_eq!(batcher.shared.state.lock().cost, 4);
        assert_eq!(expired.await.unwrap().unwrap_err(), Failure::Expired);
        batcher.submit(vec![(8, 1)], None).unwrap_err();
        drop(open);
        for ticket in [running].into_iter().chain(waiting).chain(last) {
            assert!(ticket.await.unwrap().is_ok());
        }
    }

    #[tokio::test]
    async fn what_arrives_while_the_worker_is_busy_makes_one_batch() {
        let (batcher, open) = gated(64, 1);
        let first = busy(&batcher).await;
        let later: Vec<_> = (0..5).map(|n| batcher.submit(vec![(n, 1)], None).unwrap().remove(0)).collect();
        drop(open);
        assert_eq!(first.await.unwrap().unwrap().batch, 1);
        for ticket in later {
            assert_eq!(ticket.await.unwrap().unwrap().batch, 5);
        }
    }

    #[tokio::test]
    async fn expired_and_withdrawn_jobs_are_not_computed() {
        let (batcher, open) = gated(64, 1);
        let running = busy(&batcher).await;
        let expired = batcher.submit(vec![(13, 1)], Some(Instant::now())).unwrap().remove(0);
        // Would share a batch with the last one, where 13 would break it.
        drop(batcher.submit(vec![(5, 1)], None).unwrap());
        let last = batcher.submit(vec![(2, 1)], None).unwrap().remove(0);
        drop(open);
        assert!(running.await.unwrap().is_ok());
        assert_eq!(expired.await.unwrap().unwrap_err(), Failure::Expired);
        assert_eq!(last.await.unwrap().unwrap().batch, 1);
    }

    #[tokio::test]
    async fn dropping_the_queue_lets_what_waits_finish() {
        let (batcher, open) = gated(64, 2);
        let tickets = batcher.submit((0..20).map(|n| (n + 20, 1)).collect(), None).unwrap();
        drop(batcher);
        drop(open);
        for ticket in tickets {
            assert!(ticket.await.unwrap().is_ok());
        }
    }
}
