//! Webhooks as MLflow's clients manage them.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::request::{Fields, Path, missing};
use super::{Answer, Mlflow, Refusal, answer};
use crate::store::Call;
use crate::webhooks::{Attempt, Problem, Secret, SecretChange, Status, Topic, Webhook, WebhookChange, WebhookDraft};

pub(super) fn routes() -> Router<Mlflow> {
    Router::new()
        .route("/mlflow/webhooks", get(list).post(create))
        .route("/mlflow/webhooks/{webhook_id}", get(by_id).patch(update).delete(delete))
        .route("/mlflow/webhooks/{webhook_id}/test", post(test))
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::invalid(problem.message)
    }
}

fn webhook(webhook: Webhook) -> Value {
    let Webhook { id, name, description, url, status, topics, has_secret: _, create_time, update_time } = webhook;
    let event = |topic: Topic| {
        let (entity, action) = topic.parts();
        json!({"entity": entity.to_ascii_uppercase(), "action": action.to_ascii_uppercase()})
    };
    let mut fields = json!({
        "webhook_id": id,
        "name": name,
        "url": url,
        "events": topics.into_iter().map(event).collect::<Value>(),
        "status": match status {
            Status::Active => "ACTIVE",
            Status::Disabled => "DISABLED",
        },
        "creation_timestamp": create_time.0 / 1000,
        "last_updated_timestamp": update_time.0 / 1000,
    });
    if !description.is_empty() {
        fields["description"] = description.into();
    }
    fields
}

/// A text that counts only where it is not empty, as in MLflow's messages.
fn given(fields: &Fields, name: &str) -> Result<Option<String>, Refusal> {
    Ok(fields.text(name)?.filter(|text| !text.is_empty()))
}

fn status(fields: &Fields) -> Result<Option<Status>, Refusal> {
    match given(fields, "status")?.as_deref() {
        None => Ok(None),
        Some("ACTIVE") => Ok(Some(Status::Active)),
        Some("DISABLED") => Ok(Some(Status::Disabled)),
        Some(other) => {
            Err(Refusal::invalid(format!("Invalid webhook status '{other}': it must be one of ACTIVE, DISABLED.")))
        }
    }
}

fn topic(event: &Fields, at: &str) -> Result<Topic, Refusal> {
    let part = |name: &str| given(event, name)?.ok_or_else(|| missing(&format!("{at}.{name}")));
    let (entity, action) = (part("entity")?.to_ascii_lowercase(), part("action")?.to_ascii_lowercase());
    Topic::find(&entity, &action).ok_or_else(|| {
        let valid = Topic::ALL.iter().filter(|topic| topic.parts().0 == entity).map(|topic| topic.parts().1);
        let valid: Vec<_> = valid.map(|action| format!("'{action}'")).collect();
        Refusal::invalid(match valid.is_empty() {
            true => format!("Invalid webhook entity '{entity}'."),
            false => {
                let list = valid.join(", ");
                format!("Invalid action '{action}' for entity '{entity}'. Valid actions are: [{list}]")
            }
        })
    })
}

fn topics(fields: &Fields) -> Result<Vec<Topic>, Refusal> {
    let events = fields.objects("events")?;
    events.iter().enumerate().map(|(index, event)| topic(event, &format!("events[{index}]"))).collect()
}

async fn create(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let draft = WebhookDraft {
        name: fields.required("name")?,
        description: fields.text_or_empty("description")?,
        url: fields.required("url")?,
        topics: topics(&fields)?,
        status: status(&fields)?.unwrap_or_default(),
        secret: given(&fields, "secret")?.map(Secret),
    };
    mlflow.courier.check(&draft)?;
    Ok(answer::one("webhook", webhook(mlflow.courier.add(&Call::now(), &draft).await?)))
}

async fn list(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let page = mlflow.store.webhooks(fields.offset()?, fields.limit(100, 1000)?).await?;
    Ok(answer::page("webhooks", page.items.into_iter().map(webhook).collect(), page.next))
}

async fn by_id(State(mlflow): State<Mlflow>, Path(id): Path<String>) -> Answer {
    Ok(answer::one("webhook", webhook(mlflow.store.webhook(&id).await?)))
}

async fn update(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    let change = WebhookChange {
        name: given(&fields, "name")?,
        description: given(&fields, "description")?,
        url: given(&fields, "url")?,
        topics: Some(topics(&fields)?).filter(|topics| !topics.is_empty()),
        status: status(&fields)?,
        secret: given(&fields, "secret")?.map(|secret| SecretChange::Set(Secret(secret))),
    };
    mlflow.courier.check_change(&change)?;
    Ok(answer::one("webhook", webhook(mlflow.courier.change(&Call::now(), &id, &change).await?)))
}

async fn delete(State(mlflow): State<Mlflow>, Path(id): Path<String>) -> Answer {
    mlflow.store.delete_webhook(&Call::now(), &id).await?;
    Ok(answer::nothing())
}

async fn test(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    let topic = fields.object("event")?.map(|event| topic(&event, "event")).transpose()?;
    let result = match mlflow.courier.test(&id, topic).await? {
        Attempt::Answered(answered) => json!({
            "success": answered.status.is_success(),
            "response_status": answered.status.as_u16(),
            "response_body": answered.body,
        }),
        Attempt::Failed(error) | Attempt::Forbidden(error) => {
            json!({"success": false, "error_message": format!("Failed to test webhook: {error}")})
        }
    };
    Ok(answer::one("result", result))
}
