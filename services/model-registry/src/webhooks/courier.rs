//! Delivers what waits in the outbox, at least once and in order for each webhook.
//!
//! A replica takes a webhook on for itself (a lease on its row), tries the oldest delivery that waits for it, writes down
//! what came of it, and gives the webhook back. So two replicas never deliver to one webhook at the same time, and a
//! delivery that has to be tried again holds up those behind it until it arrives or is given up. A replica that died keeps
//! its webhooks until their leases end; then another one tries the same deliveries again, under the same ids.

use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::check::Rules;
use super::seal::Seal;
use super::send::Sender;
use super::{
    Attempt, DeliveryState, Endpoint, Outcome, Parcel, Problem, SecretChange, Topic, Webhook, WebhookChange,
    WebhookConfig, WebhookDraft, topic,
};
use crate::error::Result;
use crate::feed::Feed;
use crate::metrics::{WEBHOOK_ATTEMPTS, WEBHOOK_OUTBOX_AGE};
use crate::model::Micros;
use crate::store::{Call, Everything};

/// How often the outbox is looked into when nothing was written here.
const POLL: Duration = Duration::from_millis(500);
/// How often what is old is forgotten.
const CLEAN: Duration = Duration::from_secs(60);
/// How often the age of what waits is measured.
const MEASURE: Duration = Duration::from_secs(10);
/// How much longer than an attempt a lease is: time to write down what came of it.
const LEASE_MARGIN: Duration = Duration::from_secs(15);
/// How long attempts under way may go on after a stop.
const DRAIN: Duration = Duration::from_secs(5);
/// Longest wait between two attempts, whatever the receiver asks for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Keeps webhooks and delivers to them.
pub(crate) struct Courier {
    pub(crate) store: Arc<dyn Everything>,
    rules: Rules,
    seal: Seal,
    sender: Sender,
    config: WebhookConfig,
}

impl Courier {
    pub(crate) fn new(store: Arc<dyn Everything>, config: &WebhookConfig) -> anyhow::Result<Self> {
        Ok(Self {
            store,
            rules: Rules::new(config),
            seal: Seal::new(config.webhook_key.as_ref())?,
            sender: Sender::new(config),
            config: config.clone(),
        })
    }

    /// Checks a webhook that is to be added.
    pub(crate) fn check(&self, draft: &WebhookDraft) -> std::result::Result<(), Problem> {
        self.rules.draft(draft)
    }

    /// Checks what is to change about a webhook.
    pub(crate) fn check_change(&self, change: &WebhookChange) -> std::result::Result<(), Problem> {
        self.rules.change(change)
    }

    /// Adds a webhook that was checked.
    pub(crate) async fn add(&self, call: &Call, draft: &WebhookDraft) -> Result<Webhook> {
        let id = Uuid::new_v4().to_string();
        let secret = draft.secret.as_ref().map(|secret| self.seal.close(&id, secret)).transpose()?;
        self.store.add_webhook(call, &id, draft, secret).await
    }

    /// Changes a webhook in a way that was checked.
    pub(crate) async fn change(&self, call: &Call, id: &str, change: &WebhookChange) -> Result<Webhook> {
        let secret = match &change.secret {
            Some(SecretChange::Set(secret)) => Some(self.seal.close(id, secret)?),
            Some(SecretChange::Remove) | None => None,
        };
        self.store.change_webhook(call, id, change, secret).await
    }

    /// Sends an example of `topic`, or of the first the webhook has, and says what came of it. It is tried once, whether
    /// the webhook is active or not, and leaves no record.
    pub(crate) async fn test(&self, id: &str, topic: Option<Topic>) -> Result<Attempt> {
        let webhook = self.store.webhook(id).await?;
        let endpoint = self.store.endpoint(id).await?;
        let Some(topic) = topic.or(webhook.topics.first().copied()) else {
            return Err(anyhow::anyhow!("webhook {id} has no topics").into());
        };
        let body = topic::body(topic, Micros::now(), &topic.example())?;
        Ok(self.attempt(&endpoint, &Uuid::new_v4().to_string(), &body).await)
    }

    async fn attempt(&self, endpoint: &Endpoint, id: &str, body: &str) -> Attempt {
        let Endpoint { webhook, url, secret } = endpoint;
        let secret = match secret.as_ref().map(|sealed| self.seal.open(webhook, sealed)).transpose() {
            Ok(secret) => secret,
            // What is not signed is not sent. It may be signed again when the setting is mended.
            Err(error) => return Attempt::Failed(error.to_string()),
        };
        self.sender.send(url, secret.as_ref(), Micros::now(), id, body).await
    }

    /// Delivers until `stop`. Attempts under way then may end for a while; what is left is tried again, as after a crash,
    /// when its lease ends.
    pub(crate) async fn run(self: Arc<Self>, feed: Arc<Feed>, stop: CancellationToken) {
        let mut written = feed.end();
        let mut clean = tokio::time::interval(CLEAN);
        clean.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut measure = tokio::time::interval(MEASURE);
        measure.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut under_way = JoinSet::new();
        loop {
            while under_way.try_join_next().is_some() {}
            let free = (self.config.webhook_workers as usize).saturating_sub(under_way.len());
            let lease = self.config.webhook_timeout + LEASE_MARGIN;
            let mut claimed = 0;
            if free > 0 {
                match self.store.claim_deliveries(Micros::now(), lease, free as u32).await {
                    Ok(parcels) => {
                        claimed = parcels.len();
                        for parcel in parcels {
                            under_way.spawn(self.clone().deliver(parcel));
                        }
                    }
                    // The health probe reports a database that doesn't answer; here it is simply asked again.
                    Err(error) => tracing::debug!(error = %error, "cannot look into the outbox of webhooks"),
                }
            }
            if claimed > 0 {
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                // The feed ends only with the process.
                _ = written.changed() => {}
                Some(_) = under_way.join_next() => {}
                () = tokio::time::sleep(POLL) => {}
                _ = measure.tick() => self.measure().await,
                _ = clean.tick() => {
                    let before = Micros::now().0 - micros(self.config.webhook_retention);
                    if let Err(error) = self.store.forget_deliveries(Micros(before)).await {
                        tracing::warn!(error = %error, "cannot forget old deliveries to webhooks");
                    }
                }
            }
        }
        let ended = async { while under_way.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, ended).await.is_err() {
            tracing::warn!("stopped in the middle of deliveries to webhooks; they will be tried again");
        }
    }

    /// Tells how long the oldest delivery has waited.
    async fn measure(&self) {
        // The health probe reports a database that doesn't answer.
        let Ok(oldest) = self.store.oldest_delivery().await else { return };
        let age = oldest.map_or(0, |Micros(since)| Micros::now().0.saturating_sub(since).max(0));
        gauge!(WEBHOOK_OUTBOX_AGE).set(age as f64 / 1e6);
    }

    async fn deliver(self: Arc<Self>, parcel: Parcel) {
        let attempt = self.attempt(&parcel.endpoint, &parcel.id, &parcel.body).await;
        let outcome = outcome(&attempt, &parcel, self.config.webhook_retries, Micros::now(), rand::random());
        let (webhook, delivery, error) = (&parcel.endpoint.webhook, &parcel.id, &outcome.error);
        let label = match outcome.state {
            DeliveryState::Delivered => "delivered",
            DeliveryState::Pending => "retried",
            DeliveryState::Failed => {
                // The URL may be a secret in itself: it is not logged.
                tracing::warn!(webhook, delivery, error, "gave up a delivery to a webhook");
                "failed"
            }
        };
        counter!(WEBHOOK_ATTEMPTS, "outcome" => label).increment(1);
        // Not written down, it is tried again when the lease ends: at least once.
        if let Err(error) = self.store.settle_delivery(Micros::now(), &parcel, &outcome).await {
            tracing::warn!(webhook, delivery, error = %error, "cannot write down what came of a delivery to a webhook");
        }
    }
}

/// What an attempt means for its delivery; `jitter` is 0 to 1.
fn outcome(attempt: &Attempt, parcel: &Parcel, retries: u32, now: Micros, jitter: f64) -> Outcome {
    let (is_final, asked, response_status, error) = match attempt {
        Attempt::Answered(answer) if answer.status.is_success() => {
            let response_status = answer.status.as_u16();
            return Outcome { state: DeliveryState::Delivered, due: now, response_status, error: String::new() };
        }
        Attempt::Answered(answer) => {
            let code = answer.status.as_u16();
            let note = if answer.status.is_redirection() { "; redirects are not followed" } else { "" };
            let is_passing = code == 429 || answer.status.is_server_error();
            (!is_passing, answer.retry_after, code, format!("the receiver answered {code}{note}"))
        }
        Attempt::Failed(error) => (false, None, 0, error.clone()),
        Attempt::Forbidden(error) => (true, None, 0, error.clone()),
    };
    let state = if is_final || parcel.attempts >= retries { DeliveryState::Failed } else { DeliveryState::Pending };
    let backoff = Duration::from_secs(1 << parcel.attempts.min(6)) + Duration::from_secs_f64(jitter);
    let wait = asked.map_or(backoff, |asked| asked.max(backoff)).min(MAX_WAIT);
    Outcome { state, due: Micros(now.0 + micros(wait)), response_status, error }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;
    use crate::webhooks::send::Answered;

    fn parcel(attempts: u32) -> Parcel {
        let endpoint = Endpoint { webhook: String::new(), url: String::new(), secret: None };
        let (id, body) = (String::new(), String::new());
        Parcel { endpoint, sequence: 1, id, body, attempts, lease_until: Micros(0) }
    }

    fn answered(status: u16, retry_after: Option<u64>) -> Attempt {
        let retry_after = retry_after.map(Duration::from_secs);
        Attempt::Answered(Answered { status: StatusCode::from_u16(status).unwrap(), body: String::new(), retry_after })
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_cannot_is_not() {
        use DeliveryState::{Delivered, Failed, Pending};
        for (attempt, state) in [
            (answered(200, None), Delivered),
            (answered(204, None), Delivered),
            (answered(302, None), Failed),
            (answered(404, None), Failed),
            (answered(429, None), Pending),
            (answered(500, None), Pending),
            (answered(503, None), Pending),
            (Attempt::Failed("refused".into()), Pending),
            (Attempt::Forbidden("private".into()), Failed),
        ] {
            assert_eq!(outcome(&attempt, &parcel(0), 3, Micros(0), 0.0).state, state, "{attempt:?}");
        }
        assert_eq!(outcome(&answered(500, None), &parcel(2), 3, Micros(0), 0.0).state, Pending);
        assert_eq!(outcome(&answered(500, None), &parcel(3), 3, Micros(0), 0.0).state, Failed);
    }

    #[test]
    fn waits_double_with_jitter_heed_the_receiver_and_end_at_a_minute() {
        let wait = |attempt: &Attempt, attempts, jitter| {
            outcome(attempt, &parcel(attempts), 100, Micros(0), jitter).due.0 as f64 / 1e6
        };
        let waits: Vec<_> = (0..8).map(|attempts| wait(&answered(500, None), attempts, 0.25)).collect();
        assert_eq!(waits, [1.25, 2.25, 4.25, 8.25, 16.25, 32.25, 60.0, 60.0]);
        assert_eq!(wait(&answered(429, Some(20)), 0, 0.5), 20.0);
        assert_eq!(wait(&answered(429, Some(1)), 3, 0.5), 8.5);
        assert_eq!(wait(&answered(503, Some(u64::MAX)), 0, 0.5), 60.0);
    }
}
