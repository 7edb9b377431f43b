//! What the registry remembers: one trait, in SQLite and in PostgreSQL.
//!
//! The queries are the same in both and written once, in `tables`, which `sqlite.rs` and `postgres.rs` each compile for their
//! own database. Every write of the registry first locks the one row of `log`: they happen one after the other, so the sequence of
//! the events is the order in which they were committed, on one replica or on many.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use verdict_chassis::context;
use verdict_chassis::secrets::Secrets;

use crate::archive::Transfers;
use crate::audit::Audit;
use crate::config::DatabaseUrl;
use crate::error::{Dependency, Error, Result};
use crate::evaluation::{Datasets, Scorers};
use crate::lineage::Lineage;
use crate::maintenance::Keeping;
use crate::model::{
    AliasMove, Artifact, Event, Micros, Model, ModelDraft, TagChange, Update, Updated, Version, VersionDraft,
};
use crate::names::{ModelName, Reference, VersionId};
use crate::protection::Protection;
use crate::tracking::import::Imports;
use crate::tracking::traces::{Assessments, Traces};
use crate::tracking::{Experiments, Files, LoggedModels, Registered, Runs};
use crate::webhooks::Webhooks;

pub mod postgres;
pub(crate) mod rows;
pub mod sqlite;
mod within;

/// How long answers are remembered by their request id. Retries come within minutes.
const REMEMBER_REQUESTS_MICROS: i64 = 30 * 24 * 3600 * 1_000_000;

/// What comes with every mutation.
#[derive(Clone, Debug)]
pub struct Call {
    /// The caller's name for this call: said a second time, the first answer is given again and nothing changes.
    pub request_id: Option<String>,
    pub now: Micros,
    /// Who calls, by the name they gave; empty where they gave none.
    pub caller: String,
    /// Only tells whether the call would be refused.
    pub validate_only: bool,
    /// The etag that what is changed must have; none for any.
    pub etag: Option<String>,
}

impl Call {
    /// A call made now by the caller whose request is being served.
    pub fn now() -> Self {
        let caller = context::current().and_then(|context| context.caller).unwrap_or_default();
        Self { request_id: None, now: Micros::now(), caller, validate_only: false, etag: None }
    }

    /// Refuses a call that expects another state of what it changes than its newest, which has the etag `revision`.
    pub fn must_expect(&self, what: &impl fmt::Display, revision: i64) -> Result<()> {
        let revision = revision.to_string();
        match &self.etag {
            Some(etag) if *etag != revision => {
                let message = format!("`{what}` has changed: its etag is `{revision}`, not `{etag}`; read it again");
                Err(Error::Conflict { reason: "ETAG_MISMATCH", message })
            }
            _ => Ok(()),
        }
    }
}

/// What the registry remembers. Each method is one transaction: it happened, or it did not.
#[async_trait]
pub trait Store: Send + Sync {
    /// Registers a model, or `Error::ModelExists`.
    async fn create_model(&self, call: &Call, draft: &ModelDraft) -> Result<Model>;
    /// Finds a model.
    async fn model(&self, name: &ModelName) -> Result<Model>;
    /// Lists models by name, those after `after`.
    async fn models(&self, after: Option<&ModelName>, limit: u32) -> Result<Vec<Model>>;
    /// Removes a model and everything under it; while an alias points at a version only with `force`.
    async fn delete_model(&self, call: &Call, name: &ModelName, force: bool) -> Result<()>;

    /// Adds the next version. Numbers start at 1 and are never reused, even after the model itself was deleted.
    async fn add_version(&self, call: &Call, draft: &VersionDraft) -> Result<Version>;
    /// Adds a file whose bytes are durable to a pending version, in place of the one with the same path.
    async fn add_artifact(&self, call: &Call, of: &VersionId, artifact: &Artifact) -> Result<()>;
    /// Gives a pending version its digest: from here on it never changes but for its tags.
    async fn finalize(&self, call: &Call, of: &VersionId) -> Result<Version>;
    /// Finds a version by number or alias.
    async fn version(&self, reference: &Reference) -> Result<Version>;
    /// Lists versions, newest first, those below `below`.
    async fn versions(&self, model: &ModelName, below: Option<i64>, limit: u32) -> Result<Vec<Version>>;
    /// Removes a version; while an alias points at it only `with_aliases`, which then go too.
    async fn delete_version(&self, call: &Call, of: &VersionId, with_aliases: bool) -> Result<()>;
    /// Gives a model, or one of its versions, another description or other tags.
    async fn update(&self, call: &Call, update: &Update) -> Result<Updated>;

    /// Points an alias somewhere else, or removes it, if it points where it is expected to.
    async fn move_alias(&self, call: &Call, to: &AliasMove) -> Result<Model>;
    /// Sets or removes a tag.
    async fn change_tag(&self, call: &Call, change: &TagChange) -> Result<()>;

    /// Reads the log after `after`, in order.
    async fn events(&self, after: i64, limit: u32) -> Result<Vec<Event>>;
    /// The sequence of the newest event; 0 before the first. Doubles as the probe of the store's health.
    async fn last_sequence(&self) -> Result<i64>;
}

/// All that a database keeps.
pub trait Everything:
    Store
    + Audit
    + Lineage
    + Protection
    + Experiments
    + Runs
    + LoggedModels
    + Registered
    + Files
    + Imports
    + Datasets
    + Scorers
    + Traces
    + Assessments
    + Webhooks
    + Transfers
    + Keeping
{
}

impl<T> Everything for T where
    T: Store
        + Audit
        + Lineage
        + Protection
        + Experiments
        + Runs
        + LoggedModels
        + Registered
        + Files
        + Imports
        + Datasets
        + Scorers
        + Traces
        + Assessments
        + Webhooks
        + Transfers
        + Keeping
{
}

/// Connects to the database named by `url`, bringing its tables up to date if `migrate`; else they must be.
pub async fn open(url: &DatabaseUrl, connections: u32, migrate: bool) -> anyhow::Result<Arc<dyn Everything>> {
    Ok(match url {
        DatabaseUrl::Sqlite(path) => Arc::new(sqlite::open(path).await?),
        DatabaseUrl::Postgres(url) => Arc::new(postgres::open(url, connections, migrate).await?),
    })
}

/// Opens the store as [`open`] does; new connections are made with what `DATABASE_URL` becomes while the process runs, where it
/// is a reference, which is read again every `every`.
pub async fn open_following(
    url: &DatabaseUrl,
    connections: u32,
    migrate: bool,
    secrets: &Secrets,
    every: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<Arc<dyn Everything>> {
    match url {
        DatabaseUrl::Sqlite(_) => open(url, connections, migrate).await,
        DatabaseUrl::Postgres(url) => {
            Ok(Arc::new(postgres::open_following(url, connections, migrate, secrets, every, stop).await?))
        }
    }
}

/// Most ids in one list of a query, and most rows in one insert of six columns: both stay below what SQLite binds.
const IDS_AT_ONCE: usize = 1000;
const ROWS_AT_ONCE: usize = 1000;

/// Tells one call from another: a hash over the caller, the method and its arguments, maps sorted. Two callers who take the same
/// id do not get each other's answer.
fn fingerprint(caller: &str, method: &str, arguments: &impl Serialize) -> Result<String> {
    let arguments = serde_json::to_vec(arguments).map_err(anyhow::Error::from)?;
    let mut hash = Sha256::new();
    hash.update(caller);
    hash.update([0]);
    hash.update(method);
    hash.update([0]);
    hash.update(arguments);
    Ok(hex::encode(hash.finalize()))
}

/// What a trigger of the tables says when something is held.
fn legal_hold() -> Error {
    let message =
        "a legal hold forbids to delete this: it must be released first; ListHolds says who placed it and why";
    Error::Precondition { reason: "LEGAL_HOLD", message: message.to_owned() }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        // PostgreSQL reads some regular expressions otherwise than they were checked.
        if error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "2201B") {
            return Self::Rejected("a regular expression is not one the database reads".to_owned());
        }
        // PostgreSQL was given a text with NUL, in a place that is not checked before, as an id in a path.
        if error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "22021") {
            return Self::Rejected("a text holds a NUL character".to_owned());
        }
        if error.as_database_error().is_some_and(|error| error.message() == "legal hold") {
            return legal_hold();
        }
        let is_transient = match &error {
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => true,
            sqlx::Error::WorkerCrashed => true,
            // PostgreSQL: connection lost, out of resources, shutting down, waited too long for a lock, idle too long in a
            // transaction, a deadlock, a query that took too long. SQLite: busy beyond the timeout, a query that took too long.
            sqlx::Error::Database(database) => database.code().is_some_and(|code| {
                code.starts_with("08")
                    || code.starts_with("53")
                    || code.starts_with("57P")
                    || ["55P03", "25P03", "40P01", "57014", "5", "9"].contains(&&*code)
            }),
            _ => false,
        };
        if is_transient {
            return Self::Unavailable { dependency: Dependency::Database, source: error.into() };
        }
        Self::Internal(error.into())
    }
}
