//! The log of changes, followed: what `WatchModels` streams.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::metrics;
use crate::model::Event;
use crate::names::ModelName;
use crate::store::Store;

/// How often the log is asked for what other replicas have written.
const POLL: Duration = Duration::from_millis(500);
/// Events read at once by one watch.
const BATCH: u32 = 256;

/// Follows the end of the log, for all the watches of this process.
pub(crate) struct Feed {
    store: Arc<dyn Store>,
    /// Sequence of the newest event known here.
    end: watch::Sender<i64>,
    written: Notify,
    heartbeat: Duration,
    stop: CancellationToken,
}

/// One message of a watch: an event, or a heartbeat.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) event: Option<Event>,
    /// Everything up to here has been sent.
    pub(crate) sequence: i64,
}

impl Feed {
    /// Begins to follow the log until `stop`.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        heartbeat: Duration,
        stop: CancellationToken,
    ) -> Result<Arc<Self>> {
        let (end, _) = watch::channel(store.last_sequence().await?);
        let feed = Arc::new(Self { store, end, written: Notify::new(), heartbeat, stop });
        tokio::spawn(feed.clone().follow());
        Ok(feed)
    }

    /// The sequence of the newest event known here, as it grows.
    pub(crate) fn end(&self) -> watch::Receiver<i64> {
        self.end.subscribe()
    }

    /// Says that something was written here, so that watches need not wait for the next poll.
    pub(crate) fn wake(&self) {
        self.written.notify_one();
    }

    async fn follow(self: Arc<Self>) {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.written.notified() => {}
                _ = poll.tick() => {}
            }
            // The health probe reports a database that doesn't answer; here it is simply asked again.
            if let Ok(sequence) = self.store.last_sequence().await {
                ::metrics::gauge!(metrics::LOG_SEQUENCE).set(sequence as f64);
                self.end.send_if_modified(|end| std::mem::replace(end, sequence) < sequence);
            }
        }
    }

    /// Streams what happens to `models` (to all when empty) after `after`, or from now on; a heartbeat first.
    pub(crate) async fn watch(
        &self,
        models: BTreeSet<ModelName>,
        after: Option<i64>,
    ) -> Result<BoxStream<'static, Result<Watched>>> {
        let end = self.store.last_sequence().await?;
        let sequence = after.unwrap_or(end);
        if sequence > end {
            let message = format!(
                "`after_sequence` is {sequence}, but the newest event is {end}: this is another log; start anew"
            );
            return Err(Error::OutOfRange { reason: "SEQUENCE_UNKNOWN", message });
        }
        let watch = Watch {
            store: self.store.clone(),
            end: self.end.subscribe(),
            stop: self.stop.clone(),
            models,
            sequence,
            waiting: VecDeque::new(),
            heartbeat: self.heartbeat,
            next_heartbeat: Instant::now(),
            _open: Open::new(),
        };
        let stream = stream::try_unfold(watch, |mut watch| async move { Ok(Some((watch.next().await?, watch))) });
        Ok(stream.boxed())
    }
}

struct Watch {
    store: Arc<dyn Store>,
    end: watch::Receiver<i64>,
    stop: CancellationToken,
    models: BTreeSet<ModelName>,
    /// Everything up to here has been sent or is not of interest.
    sequence: i64,
    waiting: VecDeque<Event>,
    heartbeat: Duration,
    next_heartbeat: Instant,
    _open: Open,
}

impl Watch {
    async fn next(&mut self) -> Result<Watched> {
        loop {
            if self.stop.is_cancelled() {
                return Err(Error::Stopping);
            }
            if Instant::now() >= self.next_heartbeat {
                return Ok(self.send(None));
            }
            if let Some(event) = self.waiting.pop_front() {
                self.sequence = event.sequence;
                if self.models.is_empty() || self.models.contains(&event.model) {
                    return Ok(self.send(Some(event)));
                }
                continue;
            }
            if *self.end.borrow_and_update() > self.sequence {
                self.waiting = self.store.events(self.sequence, BATCH).await?.into();
                if !self.waiting.is_empty() {
                    continue;
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return Err(Error::Stopping),
                _ = self.end.changed() => {}
                () = tokio::time::sleep_until(self.next_heartbeat) => {}
            }
        }
    }

    fn send(&mut self, event: Option<Event>) -> Watched {
        self.next_heartbeat = Instant::now() + self.heartbeat;
        Watched { event, sequence: self.sequence }
    }
}

/// Counts open watches.
struct Open;

impl Open {
    fn new() -> Self {
        ::metrics::gauge!(metrics::WATCHES).increment(1);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        ::metrics::gauge!(metrics::WATCHES).decrement(1);
    }
}
