//! Tells the registry what serves here, so that a version's lineage ends where it is in use.
//!
//! Whenever it changes, and again every half minute: who is silent for longer than the lease counts as lost. That the
//! registry does not answer changes nothing here.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::{debug, warn};
use verdict_api::registry::{ReportDeploymentRequest, Serving, lineage_service_client::LineageServiceClient};
use verdict_chassis::client::Channel;

use crate::catalog::Catalog;

/// What serves is looked at this often, and told when it has changed.
const LOOK: Duration = Duration::from_secs(1);
/// It is told again after this even when it has not.
const AGAIN: Duration = Duration::from_secs(30);
/// After this without a word the registry counts this deployment as lost, in seconds.
const LEASE_SECONDS: i32 = 90;
/// An answer takes at most this long; also the last word at the end.
const ANSWER: Duration = Duration::from_secs(3);

/// What reporting needs.
pub struct Reporter {
    pub catalog: Arc<Catalog>,
    pub channel: Channel,
    /// Name of this deployment.
    pub name: String,
}

/// What is told of one slot, in an order.
type Told = BTreeSet<(String, String, i64, String)>;

impl Reporter {
    /// Reports until `stop`, then says that nothing serves here any more.
    pub async fn run(self, stop: CancellationToken) {
        let (mut told, mut at) = (Told::new(), Instant::now());
        let mut is_heard = true;
        while stop.run_until_cancelled(sleep(LOOK)).await.is_some() {
            let serving = self.serving();
            let is_new = serving != told;
            if !is_new && (at.elapsed() < AGAIN || serving.is_empty()) {
                continue;
            }
            match self.report(&serving).await {
                Ok(()) => (told, at, is_heard) = (serving, Instant::now(), true),
                Err(problem) => {
                    if is_heard {
                        warn!("cannot report what serves here to the registry: {problem}");
                    }
                    is_heard = false;
                    stop.run_until_cancelled(sleep(AGAIN / 6)).await;
                }
            }
        }
        if !told.is_empty()
            && let Err(problem) = self.report(&Told::new()).await
        {
            debug!("cannot tell the registry that nothing serves here any more: {problem}");
        }
    }

    fn serving(&self) -> Told {
        let slots = self.catalog.slots();
        let served = slots.iter().filter_map(|slot| Some((slot.reference.to_string(), slot.current()?)));
        let told = served.map(|(reference, model)| {
            let release = &model.release;
            (reference, release.model.clone(), release.version, release.digest.clone())
        });
        told.collect()
    }

    async fn report(&self, serving: &Told) -> Result<(), String> {
        let serving = serving.iter().cloned();
        let serving = serving.map(|(reference, model, version, digest)| Serving { reference, model, version, digest });
        let request = ReportDeploymentRequest {
            deployment: self.name.clone(),
            serving: serving.collect(),
            lease_seconds: LEASE_SECONDS,
        };
        let mut client = LineageServiceClient::new(self.channel.clone());
        match timeout(ANSWER, client.report_deployment(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) if status.code() == Code::Unimplemented => Err("it keeps no lineage".to_owned()),
            Ok(Err(status)) => Err(format!("{:?}: {}", status.code(), status.message())),
            Err(_elapsed) => Err(format!("no answer within {ANSWER:?}")),
        }
    }
}
