//! Group commit: whatever is waiting when the last transaction ended shares the next one.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tracing::error;

use super::DecisionLog;
use crate::{decision::Decision, metrics};

/// Most decisions that wait for a transaction.
const QUEUE: usize = 1024;
/// Most decisions in one transaction.
const BATCH: usize = 256;

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
    /// The database refused or is not reachable; the reason is in the log.
    Failed,
}

struct Waiting {
    decision: Decision,
    reply: oneshot::Sender<Result<Decision, NotRecorded>>,
}

impl Writer {
    /// Makes a writer and the task to be run for it.
    pub fn new(log: Arc<dyn DecisionLog>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        (Self { queue }, write(log, waiting))
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

async fn write(log: Arc<dyn DecisionLog>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        // One order for all writers, so that two processes on one database cannot wait for each other in a circle.
        batch.sort_by(|a: &Waiting, b| a.decision.request_id.cmp(&b.decision.request_id));
        let (decisions, replies): (Vec<_>, Vec<_>) =
            batch.drain(..).map(|Waiting { decision, reply }| (decision, reply)).unzip();
        match log.append(&decisions).await {
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
