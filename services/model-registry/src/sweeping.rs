//! What is cleared away every hour: what uploads have left behind, here and in the bucket, and deployments lost long ago.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::artifacts::{self, ArtifactStore};
use crate::maintenance::garbage::micros;
use crate::model::Micros;
use crate::store::{Call, Everything};

/// How often.
const EVERY: Duration = Duration::from_secs(3600);
/// Uploads that nobody has gone on with for longer were cut off for good.
const STALE_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Who the audit log names: nobody has called.
const CALLER: &str = "model-registry";

/// What is swept, and how long what is there stays.
pub(crate) struct Sweeper {
    pub(crate) store: Arc<dyn Everything>,
    pub(crate) artifacts: Arc<dyn ArtifactStore>,
    pub(crate) spool: PathBuf,
    /// How long a deployment may be lost.
    pub(crate) deployment_retention: Duration,
}

impl Sweeper {
    /// Sweeps at once and then every hour, until it is dropped.
    pub(crate) async fn run(self) {
        let mut hourly = tokio::time::interval(EVERY);
        hourly.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            hourly.tick().await;
            self.sweep(Micros::now()).await;
        }
    }

    async fn sweep(&self, now: Micros) {
        for dir in [&self.spool, &self.spool.join("uploads")] {
            if let Err(error) = artifacts::spool::sweep(dir).await {
                tracing::warn!(%error, dir = %dir.display(), "cannot clear away what uploads have left");
            }
        }
        if let Err(error) = self.artifacts.sweep(STALE_AFTER).await {
            tracing::warn!(error = format!("{error:#}"), "cannot clear away what uploads have left in the bucket");
        }
        let call = Call { now, caller: CALLER.to_owned(), ..Call::now() };
        let before = Micros(now.0.saturating_sub(micros(self.deployment_retention)));
        match self.store.end_lost_deployments(&call, before).await {
            Ok(0) => {}
            Ok(ended) => tracing::info!(ended, "deployments lost long ago have ended"),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot end deployments lost long ago"),
        }
    }
}
