//! The gRPC service of maintenance.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use tonic::{Request, Response, Status};
use verdict_api::registry as api;
use verdict_api::registry::maintenance_service_server::{MaintenanceService, MaintenanceServiceServer};

use super::garbage::{self, Collected, Rules};
use super::{Hold, HoldDraft, Signed, check_signed};
use crate::artifacts::ArtifactStore;
use crate::convert;
use crate::error::{Error, Result};
use crate::feed::Feed;
use crate::model::Micros;
use crate::names::{ModelName, version_number};
use crate::store::Everything;

type Answer<T> = std::result::Result<Response<T>, Status>;

const DAY: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_OLDER_THAN: Duration = DAY.saturating_mul(7);
const DEFAULT_RETENTION: Duration = DAY.saturating_mul(30);
/// Most holds in one list.
const MAX_HOLDS: u32 = 1000;

/// What the calls work on.
pub(crate) struct Maintenance {
    pub(crate) store: Arc<dyn Everything>,
    pub(crate) artifacts: Arc<dyn ArtifactStore>,
    pub(crate) feed: Arc<Feed>,
}

/// The service.
pub(crate) fn server(maintenance: Maintenance) -> MaintenanceServiceServer<Maintenance> {
    MaintenanceServiceServer::new(maintenance)
}

#[async_trait]
impl MaintenanceService for Maintenance {
    type CollectGarbageStream = BoxStream<'static, std::result::Result<api::CollectGarbageResponse, Status>>;

    async fn collect_garbage(
        &self,
        request: Request<api::CollectGarbageRequest>,
    ) -> Answer<Self::CollectGarbageStream> {
        let api::CollectGarbageRequest { dry_run, older_than, retention } = request.into_inner();
        let rules = Rules {
            older_than: duration("older_than", older_than, DEFAULT_OLDER_THAN)?,
            retention: duration("retention", retention, DEFAULT_RETENTION)?,
            dry_run,
        };
        let found = garbage::collect(self.store.clone(), self.artifacts.clone(), Micros::now(), rules);
        tracing::info!(dry_run, "collecting garbage: {rules:?}");
        Ok(Response::new(found.map_ok(api::CollectGarbageResponse::from).map_err(Status::from).boxed()))
    }

    async fn place_hold(&self, request: Request<api::PlaceHoldRequest>) -> Answer<api::PlaceHoldResponse> {
        let api::PlaceHoldRequest { model, version, placed_by, reason, request_id } = request.into_inner();
        let version = version.map(|number| version_number("version", number)).transpose()?;
        check_signed("placed_by", &placed_by, &reason)?;
        let draft = HoldDraft { model: ModelName::parse("model", &model)?, version, who: placed_by, why: reason };
        let hold = self.store.place_hold(&convert::call(request_id, String::new(), false)?, &draft).await?;
        self.feed.wake();
        Ok(Response::new(api::PlaceHoldResponse { hold: Some(hold.into()) }))
    }

    async fn release_hold(&self, request: Request<api::ReleaseHoldRequest>) -> Answer<api::ReleaseHoldResponse> {
        let api::ReleaseHoldRequest { id, released_by, reason, request_id } = request.into_inner();
        check_signed("released_by", &released_by, &reason)?;
        let hold = self
            .store
            .release_hold(&convert::call(request_id, String::new(), false)?, id, &released_by, &reason)
            .await?;
        self.feed.wake();
        Ok(Response::new(api::ReleaseHoldResponse { hold: Some(hold.into()) }))
    }

    async fn list_holds(&self, request: Request<api::ListHoldsRequest>) -> Answer<api::ListHoldsResponse> {
        let api::ListHoldsRequest { model } = request.into_inner();
        let holds = self.store.holds(&ModelName::parse("model", &model)?, MAX_HOLDS).await?;
        Ok(Response::new(api::ListHoldsResponse { holds: holds.into_iter().map(api::Hold::from).collect() }))
    }
}

fn duration(field: &str, given: Option<prost_types::Duration>, default: Duration) -> Result<Duration> {
    let Some(given) = given else { return Ok(default) };
    Duration::try_from(given).map_err(|_| Error::invalid("INVALID_DURATION", field, "must be 0 or more"))
}

impl From<Collected> for api::CollectGarbageResponse {
    fn from(found: Collected) -> Self {
        let Collected { files, deleted_files, deleted_bytes } = found;
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        Self { files: count(files), deleted_files: count(deleted_files), deleted_bytes: count(deleted_bytes) }
    }
}

impl From<Hold> for api::Hold {
    fn from(hold: Hold) -> Self {
        let Hold { id, model, version, placed: Signed { who, why, time }, released } = hold;
        let release_time = released.as_ref().map(|released| convert::timestamp(released.time));
        let (released_by, release_reason) = released.map(|released| (released.who, released.why)).unwrap_or_default();
        Self {
            id,
            model: model.to_string(),
            version,
            placed_by: who,
            reason: why,
            place_time: Some(convert::timestamp(time)),
            released_by,
            release_reason,
            release_time,
        }
    }
}
