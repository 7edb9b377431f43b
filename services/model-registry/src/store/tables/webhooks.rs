//! Webhooks and their outbox in the tables of `migrations/`, compiled once for each database.
//!
//! Webhooks change as models do, behind the lock of the log, so none disappears while an event is written down for it. The
//! courier locks one webhook's row at a time and never the log: it waits for no write, and writes wait for no receiver.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{QueryBuilder, query, query_as, query_scalar};
use uuid::Uuid;

use super::{Begun, Connection, Db, Tables, WAIT_LITTLE, Write};
use crate::audit::{Change, webhook_resource};
use crate::error::{Entity, Error, Result};
use crate::model::Micros;
use crate::store::Call;
use crate::store::rows::{from_word, to_word};
use crate::tracking::Page;
use crate::webhooks::{
    Delivery, Endpoint, IS_PROMPT, KEEP_RECORDS, MAX_WEBHOOKS, News, Outcome, Parcel, Sealed, SecretChange, Topic,
    Webhook, WebhookChange, WebhookDraft, Webhooks, body, is_prompt,
};

const COLUMNS: &str =
    "SELECT id, name, description, url, status, secret IS NOT NULL AS has_secret, create_time, update_time
                       FROM webhooks";

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    name: String,
    description: String,
    url: String,
    status: String,
    has_secret: bool,
    create_time: i64,
    update_time: i64,
}

impl Row {
    fn into_webhook(self, topics: Vec<Topic>) -> Result<Webhook> {
        let Self { id, name, description, url, status, has_secret, create_time, update_time } = self;
        let (status, create_time, update_time) = (from_word(status)?, Micros(create_time), Micros(update_time));
        Ok(Webhook { id, name, description, url, status, topics, has_secret, create_time, update_time })
    }
}

#[derive(sqlx::FromRow)]
struct DeliveryRow {
    id: String,
    sequence: i64,
    topic: String,
    state: String,
    attempts: i64,
    response_status: i64,
    error: String,
    create_time: i64,
    update_time: i64,
}

impl DeliveryRow {
    fn into_delivery(self) -> Result<Delivery> {
        let Self { id, sequence, topic, state, attempts, response_status, error, create_time, update_time } = self;
        Ok(Delivery {
            id,
            sequence,
            topic: from_word(topic)?,
            state: from_word(state)?,
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
            response_status: u16::try_from(response_status).unwrap_or(0),
            error,
            create_time: Micros(create_time),
            update_time: Micros(update_time),
        })
    }
}

#[derive(sqlx::FromRow)]
struct ParcelRow {
    url: String,
    secret: Option<String>,
    sequence: i64,
    id: String,
    body: String,
    attempts: i64,
    due: i64,
}

impl Write {
    /// Puts what has just been recorded into the outbox of every active webhook that is told of it.
    pub(super) async fn announce(&mut self, news: News<'_>) -> Result<()> {
        let of_prompt = match news.is_prompt() {
            Some(of_prompt) => of_prompt,
            None => {
                let tag: Option<String> =
                    query_scalar("SELECT value FROM tags WHERE model = $1 AND version = 0 AND key = $2")
                        .bind(news.model().as_str())
                        .bind(IS_PROMPT)
                        .fetch_optional(&mut *self.tx)
                        .await?;
                tag.is_some_and(|mark| is_prompt(&mark))
            }
        };
        let Some((topic, payload)) = news.told(of_prompt) else { return Ok(()) };
        let topic_word = to_word(&topic)?;
        let told: Vec<String> = query_scalar(
            "SELECT w.id FROM webhook_topics t JOIN webhooks w ON w.id = t.webhook
             WHERE t.topic = $1 AND w.status = 'active' ORDER BY w.id",
        )
        .bind(&topic_word)
        .fetch_all(&mut *self.tx)
        .await?;
        if told.is_empty() {
            return Ok(());
        }
        let (now, sequence, body) = (self.now.0, self.sequence, body(topic, self.now, &payload)?);
        let mut rows = QueryBuilder::<Db>::new(
            "INSERT INTO webhook_deliveries (webhook, sequence, id, topic, body, state, due, create_time, update_time) ",
        );
        rows.push_values(&told, |mut row, webhook| {
            row.push_bind(webhook)
                .push_bind(sequence)
                .push_bind(Uuid::new_v4().to_string())
                .push_bind(&topic_word)
                .push_bind(&body)
                .push_bind("pending")
                .push_bind(now)
                .push_bind(now)
                .push_bind(now);
        });
        rows.build().execute(&mut *self.tx).await?;
        let mut due = QueryBuilder::<Db>::new("UPDATE webhooks SET due = COALESCE(due, ");
        due.push_bind(now).push(") WHERE id IN (");
        let mut ids = due.separated(", ");
        for webhook in &told {
            ids.push_bind(webhook);
        }
        due.push(")").build().execute(&mut *self.tx).await?;
        Ok(())
    }
}

#[async_trait]
impl Webhooks for Tables {
    async fn add_webhook(
        &self,
        call: &Call,
        id: &str,
        draft: &WebhookDraft,
        secret: Option<Sealed>,
    ) -> Result<Webhook> {
        let mut write = match self.begin("add_webhook", call, draft).await? {
            Begun::Before(answer) => return Ok(answer),
            Begun::Now(write) => write,
        };
        let there: i64 = query_scalar("SELECT COUNT(*) FROM webhooks").fetch_one(&mut *write.tx).await?;
        if there >= MAX_WEBHOOKS {
            let message = format!("there are already {MAX_WEBHOOKS} webhooks, the most there may be; delete one first");
            return Err(Error::Precondition { reason: "TOO_MANY_WEBHOOKS", message });
        }
        query(
            "INSERT INTO webhooks (id, name, description, url, secret, status, create_time, update_time)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7)",
        )
        .bind(id)
        .bind(&draft.name)
        .bind(&draft.description)
        .bind(&draft.url)
        .bind(secret.map(|Sealed(text)| text))
        .bind(to_word(&draft.status)?)
        .bind(call.now.0)
        .execute(&mut *write.tx)
        .await?;
        set_topics(&mut write.tx, id, &draft.topics).await?;
        let webhook = find(&mut write.tx, id).await?;
        write.audit(webhook_resource(id), Change::made("webhook.create", &webhook)).await?;
        write.commit(webhook).await
    }

    async fn webhook(&self, id: &str) -> Result<Webhook> {
        find(&mut *self.read().await?, id).await
    }

    async fn webhooks(&self, offset: u64, limit: u32) -> Result<Page<Webhook>> {
        let mut tx = self.read().await?;
        let rows: Vec<Row> = QueryBuilder::<Db>::new(COLUMNS)
            .push(" ORDER BY create_time DESC, id LIMIT ")
            .push_bind(i64::from(limit) + 1)
            .push(" OFFSET ")
            .push_bind(i64::try_from(offset).unwrap_or(i64::MAX))
            .build_query_as()
            .fetch_all(&mut *tx)
            .await?;
        let page = Page::cut(rows, offset, limit);
        Ok(Page { items: with_topics(&mut tx, page.items).await?, next: page.next })
    }

    async fn change_webhook(
        &self,
        call: &Call,
        id: &str,
        change: &WebhookChange,
        secret: Option<Sealed>,
    ) -> Result<Webhook> {
        let mut write = match self.begin("change_webhook", call, &(id, change)).await? {
            Begun::Before(answer) => return Ok(answer),
            Begun::Now(write) => write,
        };
        let before = find(&mut write.tx, id).await?;
        let WebhookChange { name, description, url, topics, status, secret: secret_change } = change;
        query(
            "UPDATE webhooks SET name = COALESCE($2, name), description = COALESCE($3, description),
                    url = COALESCE($4, url), status = COALESCE($5, status),
                    secret = CASE WHEN $6 THEN NULL ELSE COALESCE($7, secret) END,
                    update_time = CASE WHEN $8 > update_time + 1000 THEN $8 ELSE update_time + 1000 END
             WHERE id = $1",
        )
        .bind(id)
        .bind(name)
        .bind(description)
        .bind(url)
        .bind(status.as_ref().map(to_word).transpose()?)
        .bind(matches!(secret_change, Some(SecretChange::Remove)))
        .bind(secret.map(|Sealed(text)| text))
        .bind(call.now.0)
        .execute(&mut *write.tx)
        .await?;
        if let Some(topics) = topics {
            query("DELETE FROM webhook_topics WHERE webhook = $1").bind(id).execute(&mut *write.tx).await?;
            set_topics(&mut write.tx, id, topics).await?;
        }
        let webhook = find(&mut write.tx, id).await?;
        write.audit(webhook_resource(id), Change::changed("webhook.update", before, &webhook)).await?;
        write.commit(webhook).await
    }

    async fn delete_webhook(&self, call: &Call, id: &str) -> Result<()> {
        let mut write = match self.begin("delete_webhook", call, &id).await? {
            Begun::Before(()) => return Ok(()),
            Begun::Now(write) => write,
        };
        let webhook = find(&mut write.tx, id).await?;
        query("DELETE FROM webhooks WHERE id = $1").bind(id).execute(&mut *write.tx).await?;
        write.audit(webhook_resource(id), Change::removed("webhook.delete", webhook)).await?;
        write.commit(()).await
    }

    async fn endpoint(&self, id: &str) -> Result<Endpoint> {
        let found: Option<(String, Option<String>)> =
            query_as("SELECT url, secret FROM webhooks WHERE id = $1").bind(id).fetch_optional(self.reader()).await?;
        let (url, secret) = found.ok_or_else(|| missing(id))?;
        Ok(Endpoint { webhook: id.to_owned(), url, secret: secret.map(Sealed) })
    }

    async fn deliveries(&self, webhook: &str, below: Option<i64>, limit: u32) -> Result<Vec<Delivery>> {
        let mut tx = self.read().await?;
        find(&mut tx, webhook).await?;
        let rows: Vec<DeliveryRow> = query_as(
            "SELECT id, sequence, topic, state, attempts, response_status, error, create_time, update_time
             FROM webhook_deliveries WHERE webhook = $1 AND sequence < $2 ORDER BY sequence DESC LIMIT $3",
        )
        .bind(webhook)
        .bind(below.unwrap_or(i64::MAX))
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await?;
        rows.into_iter().map(DeliveryRow::into_delivery).collect()
    }

    async fn claim_deliveries(&self, now: Micros, lease: Duration, most: u32) -> Result<Vec<Parcel>> {
        let waiting: Vec<String> = query_scalar(
            "SELECT id FROM webhooks WHERE due <= $1 AND lease_until <= $1 AND status = 'active' ORDER BY due LIMIT $2",
        )
        .bind(now.0)
        .bind(i64::from(most))
        .fetch_all(self.reader())
        .await?;
        let lease_until = Micros(now.0 + i64::try_from(lease.as_micros()).map_err(anyhow::Error::from)?);
        let (mut parcels, mut failed) = (Vec::new(), None);
        // One transaction each: who locks two webhooks' rows can meet another who locks them the other way round.
        for webhook in waiting {
            match self.claim(&webhook, now, lease_until).await {
                Ok(parcel) => parcels.extend(parcel),
                // What was taken on is delivered all the same, and the others get their turn.
                Err(error) => {
                    tracing::warn!(webhook, error = format!("{error:#}"), "cannot take on a delivery to a webhook");
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if parcels.is_empty() => Err(error),
            _ => Ok(parcels),
        }
    }

    async fn settle_delivery(&self, now: Micros, parcel: &Parcel, outcome: &Outcome) -> Result<()> {
        let Parcel { endpoint: Endpoint { webhook, .. }, sequence, lease_until, .. } = parcel;
        let Outcome { state, due, response_status, error } = outcome;
        let mut tx = self.begin_write().await?;
        let given_back = query("UPDATE webhooks SET lease_until = 0 WHERE id = $1 AND lease_until = $2")
            .bind(webhook)
            .bind(lease_until.0)
            .execute(&mut *tx)
            .await?;
        if given_back.rows_affected() == 0 {
            return Ok(());
        }
        query(
            "UPDATE webhook_deliveries SET state = $3, body = CASE WHEN $3 = 'pending' THEN body ELSE '' END,
                    attempts = attempts + 1, due = $4, response_status = $5, error = $6, update_time = $7
             WHERE webhook = $1 AND sequence = $2",
        )
        .bind(webhook)
        .bind(sequence)
        .bind(to_word(state)?)
        .bind(due.0)
        .bind(i64::from(*response_status))
        .bind(error)
        .bind(now.0)
        .execute(&mut *tx)
        .await?;
        schedule(&mut tx, webhook).await?;
        Ok(tx.commit().await?)
    }

    async fn oldest_delivery(&self) -> Result<Option<Micros>> {
        let oldest: Option<i64> = query_scalar(
            "SELECT MIN((SELECT d.create_time FROM webhook_deliveries d
                         WHERE d.webhook = w.id AND d.state = 'pending' ORDER BY d.sequence LIMIT 1))
             FROM webhooks w WHERE w.status = 'active' AND w.due IS NOT NULL",
        )
        .fetch_one(self.reader())
        .await?;
        Ok(oldest.map(Micros))
    }

    async fn forget_deliveries(&self, before: Micros) -> Result<()> {
        let mut tx = self.begin_write().await?;
        query("DELETE FROM webhook_deliveries WHERE create_time < $1").bind(before.0).execute(&mut *tx).await?;
        let too_many: Vec<(String, i64)> = query_as(
            "SELECT id, sequence FROM (
                 SELECT w.id, (SELECT d.sequence FROM webhook_deliveries d WHERE d.webhook = w.id AND d.state <> 'pending'
                               ORDER BY d.sequence DESC LIMIT 1 OFFSET $1) AS sequence FROM webhooks w
             ) cuts WHERE sequence IS NOT NULL",
        )
        .bind(KEEP_RECORDS)
        .fetch_all(&mut *tx)
        .await?;
        for (webhook, last) in too_many {
            query("DELETE FROM webhook_deliveries WHERE webhook = $1 AND sequence <= $2 AND state <> 'pending'")
                .bind(webhook)
                .bind(last)
                .execute(&mut *tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }
}

impl Tables {
    /// Takes a webhook on and finds the delivery that is its turn; None where another replica was faster, or none waits.
    async fn claim(&self, webhook: &str, now: Micros, lease_until: Micros) -> Result<Option<Parcel>> {
        let mut tx = self.begin_write().await?;
        query(WAIT_LITTLE).execute(&mut *tx).await?;
        let taken = query(
            "UPDATE webhooks SET lease_until = $1
             WHERE id = $2 AND due <= $3 AND lease_until <= $3 AND status = 'active'",
        )
        .bind(lease_until.0)
        .bind(webhook)
        .bind(now.0)
        .execute(&mut *tx)
        .await?;
        if taken.rows_affected() == 0 {
            return Ok(None);
        }
        let oldest: Option<ParcelRow> = query_as(
            "SELECT w.url, w.secret, d.sequence, d.id, d.body, d.attempts, d.due
             FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook
             WHERE d.webhook = $1 AND d.state = 'pending' ORDER BY d.sequence LIMIT 1",
        )
        .bind(webhook)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(ParcelRow { url, secret, sequence, id, body, attempts, due: _ }) =
            oldest.filter(|row| row.due <= now.0)
        else {
            // What was to be tried has been forgotten.
            query("UPDATE webhooks SET lease_until = 0 WHERE id = $1").bind(webhook).execute(&mut *tx).await?;
            schedule(&mut tx, webhook).await?;
            tx.commit().await?;
            return Ok(None);
        };
        tx.commit().await?;
        let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
        let endpoint = Endpoint { webhook: webhook.to_owned(), url, secret: secret.map(Sealed) };
        Ok(Some(Parcel { endpoint, sequence, id, body, attempts, lease_until }))
    }
}

/// Says when the oldest delivery that waits is due. The caller has locked the webhook's row in an earlier statement, so
/// that this one sees every delivery that was put there before.
async fn schedule(tx: &mut Connection, webhook: &str) -> Result<()> {
    query(
        "UPDATE webhooks SET due = (SELECT d.due FROM webhook_deliveries d
                                    WHERE d.webhook = $1 AND d.state = 'pending' ORDER BY d.sequence LIMIT 1)
         WHERE id = $1",
    )
    .bind(webhook)
    .execute(&mut *tx)
    .await?;
    Ok(())
}

fn missing(id: &str) -> Error {
    Error::NotFound(Entity::Webhook(id.to_owned()))
}

async fn find(tx: &mut Connection, id: &str) -> Result<Webhook> {
    let mut select = QueryBuilder::<Db>::new(COLUMNS);
    let rows: Vec<Row> = select.push(" WHERE id = ").push_bind(id).build_query_as().fetch_all(&mut *tx).await?;
    with_topics(tx, rows).await?.pop().ok_or_else(|| missing(id))
}

async fn with_topics(tx: &mut Connection, rows: Vec<Row>) -> Result<Vec<Webhook>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut select = QueryBuilder::<Db>::new("SELECT webhook, topic FROM webhook_topics WHERE webhook IN (");
    let mut ids = select.separated(", ");
    for row in &rows {
        ids.push_bind(&row.id);
    }
    select.push(") ORDER BY topic");
    let topics: Vec<(String, String)> = select.build_query_as().fetch_all(&mut *tx).await?;
    let own = |row: Row| {
        let own = topics.iter().filter(|(webhook, _)| *webhook == row.id);
        let topics = own.map(|(_, topic)| from_word(topic.clone())).collect::<Result<_>>()?;
        row.into_webhook(topics)
    };
    rows.into_iter().map(own).collect()
}

async fn set_topics(tx: &mut Connection, webhook: &str, topics: &[Topic]) -> Result<()> {
    let mut distinct = topics.to_vec();
    distinct.sort();
    distinct.dedup();
    let words = distinct.iter().map(to_word).collect::<Result<Vec<_>>>()?;
    let mut insert = QueryBuilder::<Db>::new("INSERT INTO webhook_topics (webhook, topic) ");
    insert.push_values(words, |mut row, topic| {
        row.push_bind(webhook).push_bind(topic);
    });
    insert.build().execute(&mut *tx).await?;
    Ok(())
}
