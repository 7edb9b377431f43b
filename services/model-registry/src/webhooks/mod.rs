//! Webhooks: who is told of changes to the registry, over HTTP, and what became of each delivery.
//!
//! What is to be delivered is written in the transaction of the change, one row for each webhook (an outbox). The other
//! way, a cursor over the log of events for each webhook, would need the log to hold what a payload says (the value of a
//! tag, the template of a prompt) at the time of the event, for every event and for ever; and it would have no place for
//! the attempts of one delivery. The row becomes the delivery's record.
//!
//! - `topic` is what a webhook can be told of and the payloads, as MLflow's; `check` what a webhook may be.
//! - `courier` takes what waits from the outbox and delivers it; `send` is one attempt; `address` where it may go.
//! - `seal` encrypts secrets before they are stored; `grpc` serves the calls (MLflow's are in `mlflow::webhooks`).

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Serialize, Serializer};

use crate::error::Result;
use crate::model::Micros;
use crate::store::Call;
use crate::tracking::Page;

mod address;
mod check;
mod config;
mod courier;
pub(crate) mod grpc;
mod seal;
mod send;
mod topic;

pub(crate) use check::Problem;
pub use config::{Scheme, WebhookConfig};
pub(crate) use courier::Courier;
pub(crate) use send::Attempt;
pub(crate) use topic::{IS_PROMPT, body, is_prompt};
pub use topic::{News, Topic};

/// Most webhooks: each costs every write it is told of a row.
pub const MAX_WEBHOOKS: i64 = 100;
/// Most records of finished deliveries that are kept for one webhook.
pub const KEEP_RECORDS: i64 = 1000;

/// What a receiver proves a delivery with. Neither logged nor answered.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// For the fingerprint of a call that is repeated: it must not help to guess the secret.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str("[REDACTED]")
    }
}

/// A secret as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed(pub String);

/// Somebody who is told of changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Webhook {
    /// A UUID.
    pub id: String,
    pub name: String,
    pub description: String,
    pub url: String,
    pub status: Status,
    /// What it is told of, sorted.
    pub topics: Vec<Topic>,
    pub has_secret: bool,
    pub create_time: Micros,
    pub update_time: Micros,
}

/// Whether a webhook is told of changes. What waits while it is disabled goes out when it is active again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    #[default]
    Active,
    Disabled,
}

/// A webhook before it is one.
#[derive(Clone, Debug, Serialize)]
pub struct WebhookDraft {
    pub name: String,
    pub description: String,
    pub url: String,
    pub topics: Vec<Topic>,
    pub status: Status,
    pub secret: Option<Secret>,
}

/// What changes about a webhook; what is not given stays.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WebhookChange {
    pub name: Option<String>,
    pub description: Option<String>,
    pub url: Option<String>,
    pub topics: Option<Vec<Topic>>,
    pub status: Option<Status>,
    pub secret: Option<SecretChange>,
}

/// What becomes of a webhook's secret.
#[derive(Clone, Debug, Serialize)]
pub enum SecretChange {
    Set(Secret),
    Remove,
}

/// Where a webhook's deliveries go, and the secret that signs them.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub webhook: String,
    pub url: String,
    pub secret: Option<Sealed>,
}

/// A delivery that one replica has taken on until `lease_until`.
#[derive(Clone, Debug)]
pub struct Parcel {
    pub endpoint: Endpoint,
    pub sequence: i64,
    /// The same at every attempt, so that a receiver knows what it has seen.
    pub id: String,
    pub body: String,
    /// Attempts made before.
    pub attempts: u32,
    pub lease_until: Micros,
}

/// What came of an attempt.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub state: DeliveryState,
    /// When the next attempt is due, of one that is still pending.
    pub due: Micros,
    /// Of the receiver's answer; 0 without one.
    pub response_status: u16,
    /// Why it did not arrive; empty where it did.
    pub error: String,
}

/// The record of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub id: String,
    /// Of the event in the log.
    pub sequence: i64,
    pub topic: Topic,
    pub state: DeliveryState,
    pub attempts: u32,
    /// Of the last answer; 0 without one.
    pub response_status: u16,
    /// Of the last attempt.
    pub error: String,
    pub create_time: Micros,
    pub update_time: Micros,
}

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    Pending,
    Delivered,
    /// Given up.
    Failed,
}

/// What the registry remembers of webhooks. Each method is one transaction.
#[async_trait]
pub trait Webhooks: Send + Sync {
    /// Registers a webhook under `id`, at most [`MAX_WEBHOOKS`].
    async fn add_webhook(&self, call: &Call, id: &str, draft: &WebhookDraft, secret: Option<Sealed>)
    -> Result<Webhook>;
    /// Finds a webhook.
    async fn webhook(&self, id: &str) -> Result<Webhook>;
    /// Lists webhooks, newest first.
    async fn webhooks(&self, offset: u64, limit: u32) -> Result<Page<Webhook>>;
    /// Changes a webhook; `secret` is the one of the change, sealed.
    async fn change_webhook(
        &self,
        call: &Call,
        id: &str,
        change: &WebhookChange,
        secret: Option<Sealed>,
    ) -> Result<Webhook>;
    /// Removes a webhook, what waits for it and the records of its deliveries.
    async fn delete_webhook(&self, call: &Call, id: &str) -> Result<()>;
    /// Where a webhook's deliveries go.
    async fn endpoint(&self, id: &str) -> Result<Endpoint>;
    /// Lists deliveries of a webhook, newest first, those of events before `below`.
    async fn deliveries(&self, webhook: &str, below: Option<i64>, limit: u32) -> Result<Vec<Delivery>>;
    /// Takes on, of each of at most `most` webhooks, the oldest delivery that waits, if it is due and nobody else has it.
    async fn claim_deliveries(&self, now: Micros, lease: Duration, most: u32) -> Result<Vec<Parcel>>;
    /// Writes down what came of an attempt, and gives the webhook back; nothing where the lease was lost.
    async fn settle_delivery(&self, now: Micros, parcel: &Parcel, outcome: &Outcome) -> Result<()>;
    /// Finds when the oldest delivery that waits for an active webhook was written.
    async fn oldest_delivery(&self) -> Result<Option<Micros>>;
    /// Forgets deliveries of events before `before`, and all but the newest [`KEEP_RECORDS`] finished ones of each webhook.
    async fn forget_deliveries(&self, before: Micros) -> Result<()>;
}
