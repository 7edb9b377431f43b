//! Versions as files: written as OCI image layouts, read back with everything checked.
//!
//! - `document` is what an archive says of a version, `oci` the documents around it, `tar` the format of the file.
//! - `export` writes, `import` reads, both as streams; `grpc` serves them; `client` is the command line's side.

pub mod client;
mod document;
mod export;
pub(crate) mod grpc;
mod import;
mod oci;
mod tar;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
pub use document::{Arrival, Provenance};

use crate::error::Result;
use crate::model::Version;
use crate::names::VersionId;
use crate::store::Call;

/// What a store does for versions that come from elsewhere. Each method is one transaction.
#[async_trait]
pub trait Transfers: Send + Sync {
    /// Where a version was first registered; none if here.
    async fn provenance(&self, of: &VersionId) -> Result<Option<Provenance>>;
    /// Adds a READY version, and its model where missing; answers the one that is there, and false, if the model has a READY
    /// version with the same files, task, signature and parameters. The files must be durable.
    async fn import(&self, call: &Call, arrival: &Arrival) -> Result<(Version, bool)>;
}
