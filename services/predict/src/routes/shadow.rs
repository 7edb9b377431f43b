//! Copies of calls: a bounded queue, one thread that takes only the processor time others leave, and what the answers
//! told.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::sync::{
    Semaphore,
    mpsc::{self, OwnedPermit},
};

use super::scores::{Difference, Scores};
use crate::{metrics::ShadowMeters, reference::Reference, spare};

/// Bytes of requests that are copied and not answered yet.
const MOST_BYTES: usize = 64 << 20;
/// Copies that are worked on at the same time, so that they can share batches.
const AT_ONCE: usize = 16;
/// A copy that is not answered within this is given up: there is no time to spare.
const PATIENCE: Duration = Duration::from_secs(60);
/// Newest differences whose quantiles are told.
const QUANTILES: usize = 4096;
/// Newest pairs that are told.
pub const RECENT: usize = 256;

/// Work on one copy.
type Work = BoxFuture<'static, ()>;

/// Takes copies in, as many as there is room for.
pub struct Copier {
    queue: mpsc::Sender<Box<dyn FnOnce() -> Work + Send>>,
    bytes: Arc<AtomicUsize>,
}

/// Room for one copy.
pub struct Room {
    permit: OwnedPermit<Box<dyn FnOnce() -> Work + Send>>,
    held: Held,
}

/// Bytes that are taken from the bound until this is dropped.
struct Held {
    bytes: Arc<AtomicUsize>,
    taken: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

impl Copier {
    /// Starts the thread; it ends when this is dropped.
    pub fn start(queue: usize) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(queue);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("shadow".to_owned()).spawn(move || {
            spare::lower_this_thread();
            runtime.block_on(work(receiver));
            // What still runs is of no use to anybody.
            runtime.shutdown_background();
        })?;
        Ok(Self { queue: sender, bytes: Arc::default() })
    }

    /// Takes room for a copy of so many bytes, if there is any.
    pub fn room(&self, bytes: usize) -> Option<Room> {
        let permit = self.queue.clone().try_reserve_owned().ok()?;
        let held = Held { bytes: self.bytes.clone(), taken: bytes };
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        (before + bytes <= MOST_BYTES).then_some(Room { permit, held })
    }
}

impl Room {
    /// Has the work done when there is time for it.
    pub fn fill(self, work: impl FnOnce() -> Work + Send + 'static) {
        let Self { permit, held } = self;
        permit.send(Box::new(move || {
            let work = work();
            Box::pin(async move {
                work.await;
                drop(held);
            })
        }));
    }
}

async fn work(mut queue: mpsc::Receiver<Box<dyn FnOnce() -> Work + Send>>) {
    let seats = Arc::new(Semaphore::new(AT_ONCE));
    while let Ok(seat) = seats.clone().acquire_owned().await {
        let Some(work) = queue.recv().await else { return };
        tokio::spawn(async move {
            work().await;
            drop(seat);
        });
    }
}

/// A shadow of a route, and what its answers told.
pub struct ShadowTarget {
    pub reference: Reference,
    meters: ShadowMeters,
    seen: Mutex<Seen>,
    /// Not behind the lock: calls that are answered must not wait for a thread that runs only when a core is idle.
    dropped: AtomicU64,
}

/// What a shadow's answers told.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub copied: u64,
    pub dropped: u64,
    pub failed: u64,
    pub compared: u64,
    pub differences: u64,
    sum_absolute: f64,
    sum: f64,
    pub max_absolute: f64,
    newest: VecDeque<f64>,
    /// Newest last.
    pub recent: VecDeque<Pair>,
    pub last_failure: String,
}

/// What was answered, and what the shadow would have answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    pub time: OffsetDateTime,
    /// Who answered the caller.
    pub primary: String,
    /// Of all numbers of the answer the one that differs most.
    pub difference: Difference,
}

impl Seen {
    /// Returns the mean of the absolute differences; 0 where there are none.
    pub fn mean_absolute(&self) -> f64 {
        self.sum_absolute / self.differences.max(1) as f64
    }

    /// Returns the mean of the differences, shadow less primary; 0 where there are none.
    pub fn mean(&self) -> f64 {
        self.sum / self.differences.max(1) as f64
    }

    /// Returns quantiles of the newest absolute differences, by nearest rank; 0 where there are none.
    pub fn quantiles<const N: usize>(&self, quantiles: [f64; N]) -> [f64; N] {
        let mut sorted: Vec<_> = self.newest.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        quantiles.map(|quantile| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank within the list")]
            let rank = (sorted.len() as f64 * quantile).ceil().max(1.0) as usize;
            sorted.get(rank - 1).copied().unwrap_or(0.0)
        })
    }

    fn compare(&mut self, time: OffsetDateTime, primary: &str, differences: &[Difference]) {
        self.compared += 1;
        let mut most: Option<Difference> = None;
        for difference in differences {
            let absolute = difference.signed.abs();
            self.differences += 1;
            self.sum += difference.signed;
            self.sum_absolute += absolute;
            self.max_absolute = self.max_absolute.max(absolute);
            if self.newest.len() == QUANTILES {
                self.newest.pop_front();
            }
            self.newest.push_back(absolute);
            if most.is_none_or(|most| absolute > most.signed.abs()) {
                most = Some(*difference);
            }
        }
        if let Some(difference) = most {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(Pair { time, primary: primary.to_owned(), difference });
        }
    }
}

impl ShadowTarget {
    /// Has seen nothing yet.
    pub fn new(route: &str, reference: Reference) -> Self {
        let meters = ShadowMeters::new(route, &reference.to_string());
        Self { reference, meters, seen: Mutex::default(), dropped: AtomicU64::new(0) }
    }

    /// Returns what it told.
    pub fn seen(&self) -> Seen {
        Seen { dropped: self.dropped.load(Ordering::Relaxed), ..self.seen.lock().clone() }
    }

    /// Counts a copy that was not made, or given up.
    pub fn dropped(&self) {
        self.meters.dropped();
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Has a call answered by the shadow, compares the answer with `given`, which `primary` gave, and takes note.
    pub async fn compare(
        self: Arc<Self>,
        primary: String,
        given: Scores,
        answer: BoxFuture<'static, Result<Scores, String>>,
    ) {
        let Ok(answer) = tokio::time::timeout(PATIENCE, answer).await else {
            self.dropped();
            return;
        };
        let compared = answer.and_then(|scores| {
            given.differences(&scores).ok_or_else(|| "its answer has nothing in common with the one given".to_owned())
        });
        let mut seen = self.seen.lock();
        seen.copied += 1;
        match compared {
            Ok(differences) => {
                seen.compare(OffsetDateTime::now_utc(), &primary, &differences);
                self.meters.compared(seen.mean_absolute());
            }
            Err(failure) => {
                seen.failed += 1;
                seen.last_failure = failure;
                self.meters.failed();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_summed_and_the_newest_are_kept() {
        let mut seen = Seen::default();
        let now = OffsetDateTime::UNIX_EPOCH;
        for call in 0..5000_u32 {
            let signed = f64::from(call % 100 + 1) / 100.0 * if call % 2 == 0 { 1.0 } else { -1.0 };
            let small = Difference { index: 0, scores: None, signed: signed / 2.0 };
            seen.compare(now, "m/1", &[small, Difference { index: 1, ..small }, Difference { signed, ..small }]);
        }
        assert_eq!((seen.compared, seen.differences), (5000, 15_000));
        assert_eq!((seen.recent.len(), seen.newest.len(), seen.max_absolute), (RECENT, QUANTILES, 1.0));
        assert!((seen.mean_absolute() - 0.505 * 2.0 / 3.0).abs() < 1e-9, "{}", seen.mean_absolute());
        let [half, most] = seen.quantiles([0.5, 1.0]);
        assert!((half - 0.31).abs() < 0.02 && (most - 1.0).abs() < 1e-9, "{half} {most}");
        assert!(seen.recent.iter().all(|pair| pair.difference.index == 0));
        assert_eq!(Seen::default().quantiles([0.5]), [0.0]);
    }

    #[tokio::test]
    async fn copies_that_do_not_fit_are_not_made() {
        let copier = Copier::start(2).unwrap();
        let first = copier.room(10).unwrap();
        assert!(copier.room(MOST_BYTES).is_none(), "too many bytes");
        let second = copier.room(10).unwrap();
        assert!(copier.room(10).is_none(), "too many calls");
        drop(second);
        let (done, told) = tokio::sync::oneshot::channel();
        first.fill(move || {
            Box::pin(async move {
                done.send(()).unwrap();
            })
        });
        told.await.unwrap();
        while copier.bytes.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        assert!(copier.room(MOST_BYTES).is_some());
    }
}
