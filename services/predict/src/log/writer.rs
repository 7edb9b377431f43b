//! Group commit: whatever is waiting when the last transaction ended shares the next one.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::error;

use super::DecisionLog;
use crate::{decision::Decision, metrics};

/// Most decisions that wait for a transaction.
const QUEUE: usize = 1024;
/// Most decisions in one transaction.
const BATCH: usize = 256;
/// One transaction is over within this; a database that stands still must not hold those who wait for the next.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Hands decisions to the task that writes them. The task ends when the last clone is dropped.
#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Waiting>,
}

/// Why a decision was not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRecorded {
    /// Too many are waiting.
    Full,
    /// The database refused, did not answer in time or is not reachable; the reason is in the log. In the last moment
    /// it may have been recorded all the same.
    Failed,
}

struct Waiting {
    decision: Decision,
    reply: oneshot::Sender<Result<Decision, NotRecorded>>,
}

impl Writer {
    /// Makes a writer and the task to be run for it.
    pub fn new(log: Arc<dyn DecisionLog>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        Self::patient(log, PATIENCE)
    }

    fn patient(log: Arc<dyn DecisionLog>, patience: Duration) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        (Self { queue }, write(log, waiting, patience))
    }

    /// Records a decision; returns once what stands under its request id, this or an earlier decision, is durable.
    pub async fn record(&self, decision: Decision) -> Result<Decision, NotRecorded> {
        let (reply, standing) = oneshot::channel();
        self.queue.try_send(Waiting { decision, reply }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => NotRecorded::Full,
            mpsc::error::TrySendError::Closed(_) => NotRecorded::Failed,
        })?;
        standing.await.unwrap_or(Err(NotRecorded::Failed))
    }
}

async fn write(log: Arc<dyn DecisionLog>, mut waiting: mpsc::Receiver<Waiting>, patience: Duration) {
    let mut batch = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        // Nobody was told of a decision whose caller is gone: it was not made.
        batch.retain(|waiting: &Waiting| !waiting.reply.is_closed());
        if batch.is_empty() {
            continue;
        }
        // One order for all writers, so that two processes on one database cannot wait for each other in a circle.
        batch.sort_by(|a, b| a.decision.request_id.cmp(&b.decision.request_id));
        let (decisions, replies): (Vec<_>, Vec<_>) =
            batch.drain(..).map(|Waiting { decision, reply }| (decision, reply)).unzip();
        let appended = timeout(patience, log.append(&decisions)).await;
        match appended
            .unwrap_or_else(|_elapsed| Err(anyhow::anyhow!("the database did not answer within {patience:?}")))
        {
            Ok(standing) => {
                metrics::committed(decisions.len());
                for (reply, standing) in replies.into_iter().zip(standing) {
                    let _gone = reply.send(Ok(standing));
                }
            }
            Err(failure) => {
                error!(decisions = decisions.len(), "decisions could not be recorded: {failure:#}");
                for reply in replies {
                    let _gone = reply.send(Err(NotRecorded::Failed));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use parking_lot::Mutex;
    use tokio::sync::Semaphore;
    use uuid::Uuid;

    use super::{super::conformance::decision, *};

    /// A log whose appends wait for a permit each.
    struct Slow {
        permits: Semaphore,
        recorded: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl DecisionLog for Slow {
        async fn append(&self, decisions: &[Decision]) -> anyhow::Result<Vec<Decision>> {
            self.permits.acquire().await?.forget();
            self.recorded.lock().extend(decisions.iter().map(|decision| decision.request_id.clone()));
            Ok(decisions.to_vec())
        }

        async fn find(&self, _: Uuid) -> anyhow::Result<Option<Decision>> {
            Ok(None)
        }

        async fn find_request(&self, _: &str) -> anyhow::Result<Option<Decision>> {
            Ok(None)
        }

        async fn list(&self, _: Option<&str>, _: Option<Uuid>, _: u32) -> anyhow::Result<Vec<Decision>> {
            Ok(Vec::new())
        }
    }

    fn slow(patience: Duration) -> (Arc<Slow>, Writer) {
        let log = Arc::new(Slow { permits: Semaphore::new(0), recorded: Mutex::default() });
        let (writer, write) = Writer::patient(log.clone(), patience);
        tokio::spawn(write);
        (log, writer)
    }

    /// Begins to record a decision, and lets the writer take it where it is free.
    async fn begin(writer: &Writer, request_id: &str) -> tokio::task::JoinHandle<Result<Decision, NotRecorded>> {
        let (writer, decision) = (writer.clone(), decision(request_id, "m"));
        let recording = tokio::spawn(async move { writer.record(decision).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        recording
    }

    #[tokio::test]
    async fn decisions_whose_caller_left_are_not_recorded() {
        let (log, writer) = slow(PATIENCE);
        let running = begin(&writer, "running").await;
        for request_id in ["left", "left too"] {
            let recording = begin(&writer, request_id).await;
            recording.abort();
            assert!(recording.await.unwrap_err().is_cancelled());
        }
        log.permits.add_permits(1);
        running.await.unwrap().unwrap();
        let last = begin(&writer, "last").await;
        log.permits.add_permits(1);
        last.await.unwrap().unwrap();
        assert_eq!(*log.recorded.lock(), ["running", "last"]);
    }

    #[tokio::test]
    async fn a_database_that_stands_still_fails_those_who_wait_and_not_those_who_come_later() {
        let (log, writer) = slow(Duration::from_millis(100));
        let stuck = begin(&writer, "stuck").await;
        assert_eq!(stuck.await.unwrap().unwrap_err(), NotRecorded::Failed);
        log.permits.add_permits(1);
        assert_eq!(begin(&writer, "later").await.await.unwrap().unwrap().request_id, "later");
    }
}
