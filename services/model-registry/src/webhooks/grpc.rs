//! `WebhookService`: convert in, one call, convert out.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Request, Response, Status};
use verdict_api::registry as api;
use verdict_api::registry::webhook_service_server::{WebhookService, WebhookServiceServer};

use super::{
    Attempt, Courier, Delivery, DeliveryState, Secret, SecretChange, Status as WebhookStatus, Topic, Webhook,
    WebhookChange, WebhookDraft,
};
use crate::convert::{self, timestamp};
use crate::error::{Error, Result};
use crate::grpc::page_of;

type Answer<T> = std::result::Result<Response<T>, Status>;

struct Calls(Arc<Courier>);

/// The service itself; callers may send messages of at most `max_message_bytes`.
pub(crate) fn server(courier: Arc<Courier>, max_message_bytes: usize) -> WebhookServiceServer<impl WebhookService> {
    WebhookServiceServer::new(Calls(courier)).max_decoding_message_size(max_message_bytes)
}

#[async_trait]
impl WebhookService for Calls {
    async fn create_webhook(&self, request: Request<api::CreateWebhookRequest>) -> Answer<api::CreateWebhookResponse> {
        let status = request.get_ref().status();
        let api::CreateWebhookRequest { name, description, url, events, secret, status: _, request_id } =
            request.into_inner();
        let secret = Some(secret).filter(|secret| !secret.is_empty()).map(Secret);
        let status = read_status(status).unwrap_or_default();
        let draft = WebhookDraft { name, description, url, topics: topics(&events)?, status, secret };
        self.0.check(&draft).map_err(Error::from)?;
        let webhook = self.0.add(&convert::call(request_id, String::new(), false)?, &draft).await?;
        Ok(Response::new(api::CreateWebhookResponse { webhook: Some(webhook.into()) }))
    }

    async fn get_webhook(&self, request: Request<api::GetWebhookRequest>) -> Answer<api::GetWebhookResponse> {
        let api::GetWebhookRequest { webhook_id } = request.into_inner();
        let webhook = self.0.store.webhook(&id(webhook_id)?).await?;
        Ok(Response::new(api::GetWebhookResponse { webhook: Some(webhook.into()) }))
    }

    async fn list_webhooks(&self, request: Request<api::ListWebhooksRequest>) -> Answer<api::ListWebhooksResponse> {
        let api::ListWebhooksRequest { page_size, page_token } = request.into_inner();
        let size = convert::page_size(page_size)?;
        let offset = convert::after(&page_token, |offset| offset.parse().ok())?.unwrap_or(0);
        let page = self.0.store.webhooks(offset, size).await?;
        let next_page_token = page.next.map(|next| convert::page_token(&next.to_string())).unwrap_or_default();
        let webhooks = page.items.into_iter().map(Into::into).collect();
        Ok(Response::new(api::ListWebhooksResponse { webhooks, next_page_token }))
    }

    async fn update_webhook(&self, request: Request<api::UpdateWebhookRequest>) -> Answer<api::UpdateWebhookResponse> {
        let status = read_status(request.get_ref().status());
        let api::UpdateWebhookRequest { webhook_id, name, description, url, events, secret, status: _, request_id } =
            request.into_inner();
        let topics = if events.is_empty() { None } else { Some(topics(&events)?) };
        let secret = secret.map(|secret| match secret.as_str() {
            "" => SecretChange::Remove,
            _ => SecretChange::Set(Secret(secret)),
        });
        let change = WebhookChange { name, description, url, topics, status, secret };
        self.0.check_change(&change).map_err(Error::from)?;
        let webhook =
            self.0.change(&convert::call(request_id, String::new(), false)?, &id(webhook_id)?, &change).await?;
        Ok(Response::new(api::UpdateWebhookResponse { webhook: Some(webhook.into()) }))
    }

    async fn delete_webhook(&self, request: Request<api::DeleteWebhookRequest>) -> Answer<api::DeleteWebhookResponse> {
        let api::DeleteWebhookRequest { webhook_id, request_id } = request.into_inner();
        self.0.store.delete_webhook(&convert::call(request_id, String::new(), false)?, &id(webhook_id)?).await?;
        Ok(Response::new(api::DeleteWebhookResponse {}))
    }

    async fn test_webhook(&self, request: Request<api::TestWebhookRequest>) -> Answer<api::TestWebhookResponse> {
        let api::TestWebhookRequest { webhook_id, event } = request.into_inner();
        let topic = if event.is_empty() { None } else { Some(topic("event", &event)?) };
        let answer = match self.0.test(&id(webhook_id)?, topic).await? {
            Attempt::Answered(answered) => api::TestWebhookResponse {
                success: answered.status.is_success(),
                response_status: answered.status.as_u16().into(),
                response_body: answered.body,
                error_message: String::new(),
            },
            Attempt::Failed(error_message) | Attempt::Forbidden(error_message) => {
                api::TestWebhookResponse { error_message, ..Default::default() }
            }
        };
        Ok(Response::new(answer))
    }

    async fn list_webhook_deliveries(
        &self,
        request: Request<api::ListWebhookDeliveriesRequest>,
    ) -> Answer<api::ListWebhookDeliveriesResponse> {
        let api::ListWebhookDeliveriesRequest { webhook_id, page_size, page_token } = request.into_inner();
        let size = convert::page_size(page_size)?;
        let below = convert::after(&page_token, |sequence| sequence.parse().ok())?;
        let found = self.0.store.deliveries(&id(webhook_id)?, below, size + 1).await?;
        let (deliveries, next_page_token) = page_of(found, size, |delivery: &Delivery| delivery.sequence.to_string());
        Ok(Response::new(api::ListWebhookDeliveriesResponse { deliveries, next_page_token }))
    }
}

/// Checks what a store is asked for: PostgreSQL can't keep NUL.
fn id(text: String) -> Result<String> {
    if text.is_empty() || text.len() > 64 || text.contains('\0') {
        return Err(Error::invalid("INVALID_WEBHOOK", "webhook_id", "must be the UUID of a webhook"));
    }
    Ok(text)
}

fn topic(field: &str, text: &str) -> Result<Topic> {
    let found = text.split_once('.').and_then(|(entity, action)| Topic::find(entity, action));
    found.ok_or_else(|| {
        let all: Vec<_> = Topic::ALL.iter().map(ToString::to_string).collect();
        Error::invalid("INVALID_WEBHOOK", field, format!("must be one of {}", all.join(", ")))
    })
}

fn topics(events: &[String]) -> Result<Vec<Topic>> {
    events.iter().enumerate().map(|(index, event)| topic(&format!("events[{index}]"), event)).collect()
}

fn read_status(status: api::WebhookStatus) -> Option<WebhookStatus> {
    match status {
        api::WebhookStatus::Unspecified => None,
        api::WebhookStatus::Active => Some(WebhookStatus::Active),
        api::WebhookStatus::Disabled => Some(WebhookStatus::Disabled),
    }
}

impl From<Webhook> for api::Webhook {
    fn from(webhook: Webhook) -> Self {
        let Webhook { id, name, description, url, status, topics, has_secret, create_time, update_time } = webhook;
        let status = match status {
            WebhookStatus::Active => api::WebhookStatus::Active,
            WebhookStatus::Disabled => api::WebhookStatus::Disabled,
        };
        Self {
            webhook_id: id,
            name,
            description,
            url,
            status: status.into(),
            events: topics.iter().map(ToString::to_string).collect(),
            has_secret,
            create_time: Some(timestamp(create_time)),
            update_time: Some(timestamp(update_time)),
        }
    }
}

impl From<Delivery> for api::WebhookDelivery {
    fn from(delivery: Delivery) -> Self {
        let Delivery { id, sequence, topic, state, attempts, response_status, error, create_time, update_time } =
            delivery;
        let state = match state {
            DeliveryState::Pending => api::WebhookDeliveryState::Pending,
            DeliveryState::Delivered => api::WebhookDeliveryState::Delivered,
            DeliveryState::Failed => api::WebhookDeliveryState::Failed,
        };
        Self {
            delivery_id: id,
            sequence,
            event: topic.to_string(),
            state: state.into(),
            attempts: i32::try_from(attempts).unwrap_or(i32::MAX),
            response_status: response_status.into(),
            error,
            create_time: Some(timestamp(create_time)),
            update_time: Some(timestamp(update_time)),
        }
    }
}
