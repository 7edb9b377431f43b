//! What an operator does: reclaiming space, and keeping what must not go.
//!
//! `garbage` says why deleting bytes is safe beside uploads; `grpc` serves it.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::artifacts::ArtifactStore;
use crate::error::Result;
use crate::model::{self, Micros};
use crate::names::{ModelName, Sha256Hex, VersionId};
use crate::store::Call;

pub mod garbage;
pub(crate) mod grpc;

/// Longest name of who places or releases a hold, in bytes.
const MAX_WHO: usize = 250;
/// Longest reason, in bytes.
const MAX_WHY: usize = 10_000;

/// A legal hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub id: i64,
    pub model: ModelName,
    /// None: the model with all its versions.
    pub version: Option<i64>,
    pub placed: Signed,
    /// None while it stands.
    pub released: Option<Signed>,
}

/// Who did something, why and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    pub who: String,
    pub why: String,
    pub time: Micros,
}

/// What a hold is to be placed on.
#[derive(Clone, Debug, Serialize)]
pub struct HoldDraft {
    pub model: ModelName,
    pub version: Option<i64>,
    pub who: String,
    pub why: String,
}

/// Checks who and why; `who_field` names the first of them.
pub(crate) fn check_signed(who_field: &str, who: &str, why: &str) -> Result<()> {
    for (field, said, most) in [(who_field, who, MAX_WHO), ("reason", why, MAX_WHY)] {
        if said.trim().is_empty() {
            return Err(crate::error::Error::invalid("INVALID_TEXT", field, "must be given"));
        }
        model::check_text(field, said, most)?;
    }
    Ok(())
}

/// What a store knows of what must stay. Each method is one transaction.
#[async_trait]
pub trait Keeping: Send + Sync {
    /// Says that bytes are being kept, or about to be referred to, and are not garbage before `until`.
    async fn lease(&self, sha256: &Sha256Hex, until: Micros) -> Result<()>;
    /// Finds which of `candidates` are garbage at `now`; deleted less than `retention` microseconds ago is not.
    ///
    /// With a `store` they are deleted from it before anything can begin to refer to them.
    async fn sweep(
        &self,
        candidates: &[Sha256Hex],
        now: Micros,
        retention: i64,
        store: Option<&dyn ArtifactStore>,
    ) -> Result<Vec<Sha256Hex>>;
    /// Forgets leases and deletions that no longer matter.
    async fn forget(&self, now: Micros, retention: i64) -> Result<()>;

    /// Places a hold on a model or a version that is there.
    async fn place_hold(&self, call: &Call, draft: &HoldDraft) -> Result<Hold>;
    /// Ends a hold.
    async fn release_hold(&self, call: &Call, id: i64, who: &str, why: &str) -> Result<Hold>;
    /// Lists the holds on a model and its versions, newest first.
    async fn holds(&self, model: &ModelName, limit: u32) -> Result<Vec<Hold>>;
    /// Refuses what a hold forbids, for those who do something else before they delete.
    async fn must_be_free(&self, version: &VersionId) -> Result<()>;
}
