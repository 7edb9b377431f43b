//! Webhooks from the outside: what a receiver gets, when, and what is remembered of it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::Code;
use verdict_api::registry as api;
use verdict_api::registry::webhook_service_client::WebhookServiceClient;
use verdict_chassis::client::Channel;

use crate::world::{PATIENCE, World, reason};

mod faults;

macro_rules! on_both {
    ($($case:ident),+ $(,)?) => {
        mod embedded {
            use super::World;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let world = World::embedded().await;
                super::$case(&world).await;
                world.stop().await;
            })+
        }
        mod live {
            use super::World;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let world = World::production().await;
                super::$case(&world).await;
                world.stop().await;
            })+
        }
    };
}

on_both!(
    what_happens_is_told_once_signed_and_in_order,
    what_fails_for_now_is_tried_again_before_what_comes_after_it,
    what_fails_for_good_is_given_up,
    a_receiver_that_hangs_slows_no_write,
    webhooks_are_managed_by_either_api,
    what_is_refused_names_the_field,
    what_waits_for_a_disabled_webhook_goes_out_when_it_is_active_again,
);

/// One request that a receiver got.
#[derive(Clone, Debug)]
struct Got {
    headers: HeaderMap,
    body: String,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    fn id(&self) -> &str {
        self.header("X-MLflow-Delivery-Id")
    }

    fn said(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// `entity.action` and the payload.
    fn news(&self) -> (String, Value) {
        let said = self.said();
        (format!("{}.{}", said["entity"].as_str().unwrap(), said["action"].as_str().unwrap()), said["data"].clone())
    }
}

#[derive(Default)]
struct Script {
    got: Mutex<Vec<Got>>,
    /// What is answered, then 200.
    answers: Mutex<VecDeque<u16>>,
    /// How long each answer takes.
    delay: Mutex<Duration>,
}

/// Somebody who is told.
struct Receiver {
    address: SocketAddr,
    script: Arc<Script>,
}

impl Receiver {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, script) = (listener.local_addr().unwrap(), Arc::new(Script::default()));
        let hear = async |State(script): State<Arc<Script>>, headers: HeaderMap, body: String| {
            script.got.lock().unwrap().push(Got { headers, body });
            let delay = *script.delay.lock().unwrap();
            tokio::time::sleep(delay).await;
            let code = script.answers.lock().unwrap().pop_front().unwrap_or(200);
            let location = [("location", "/elsewhere")];
            (StatusCode::from_u16(code).unwrap(), location, "thank you").into_response()
        };
        let router = Router::new().fallback(hear).with_state(script.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        Self { address, script }
    }

    fn url(&self) -> String {
        format!("http://{}/hook?a=b", self.address)
    }

    fn answers(&self, codes: &[u16]) {
        self.script.answers.lock().unwrap().extend(codes);
    }

    fn delay(&self, delay: Duration) {
        *self.script.delay.lock().unwrap() = delay;
    }

    fn got(&self) -> Vec<Got> {
        self.script.got.lock().unwrap().clone()
    }

    /// Waits for so many requests.
    async fn wait(&self, count: usize) -> Vec<Got> {
        let until = Instant::now() + PATIENCE;
        while self.got().len() < count {
            assert!(Instant::now() < until, "{} of {count} came: {:?}", self.got().len(), self.got());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.got()
    }
}

const ALL: [&str; 14] = [
    "model_version.created",
    "model_version_alias.created",
    "model_version_alias.deleted",
    "model_version_tag.deleted",
    "model_version_tag.set",
    "prompt.created",
    "prompt_alias.created",
    "prompt_alias.deleted",
    "prompt_tag.deleted",
    "prompt_tag.set",
    "prompt_version.created",
    "prompt_version_tag.deleted",
    "prompt_version_tag.set",
    "registered_model.created",
];

fn grpc(world: &World) -> WebhookServiceClient<Channel> {
    WebhookServiceClient::new(world.channel.clone())
}

async fn add(world: &World, url: &str, events: &[&str]) -> api::Webhook {
    let request = api::CreateWebhookRequest {
        name: "hook".into(),
        url: url.to_owned(),
        events: events.iter().map(ToString::to_string).collect(),
        secret: "my secret".into(),
        ..Default::default()
    };
    grpc(world).create_webhook(request).await.unwrap().into_inner().webhook.unwrap()
}

async fn deliveries(world: &World, webhook: &api::Webhook) -> Vec<api::WebhookDelivery> {
    let request = api::ListWebhookDeliveriesRequest {
        webhook_id: webhook.webhook_id.clone(),
        page_size: 100,
        ..Default::default()
    };
    grpc(world).list_webhook_deliveries(request).await.unwrap().into_inner().deliveries
}

/// Waits until nothing waits to be delivered.
async fn settled(world: &World, webhook: &api::Webhook) -> Vec<api::WebhookDelivery> {
    let until = Instant::now() + PATIENCE;
    loop {
        let all = deliveries(world, webhook).await;
        if all.iter().all(|delivery| delivery.state() != api::WebhookDeliveryState::Pending) {
            return all;
        }
        assert!(Instant::now() < until, "{all:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn rest(world: &World, method: &str, path: &str, body: Value) -> Value {
    let (status, answer) = world.rest(method, &format!("/api/2.0/mlflow/{path}"), body).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

async fn what_happens_is_told_once_signed_and_in_order(world: &World) {
    let receiver = Receiver::start().await;
    let webhook = add(world, &receiver.url(), &ALL).await;
    let other = Receiver::start().await;
    let picky = add(world, &other.url(), &["model_version_alias.created"]).await;

    let versions = "model-versions";
    let models = "registered-models";
    rest(
        world,
        "POST",
        &format!("{models}/create"),
        json!({"name": "m", "tags": [{"key": "a", "value": "b"}], "description": "d"}),
    )
    .await;
    let version = json!({"name": "m", "source": "s3://bucket/m", "tags": [{"key": "t", "value": "v"}]});
    rest(world, "POST", &format!("{versions}/create"), version).await;
    let (tag, alias) =
        (json!({"name": "m", "version": "1", "key": "k", "value": "v"}), json!({"name": "m", "alias": "x"}));
    rest(world, "POST", &format!("{versions}/set-tag"), tag.clone()).await;
    rest(world, "DELETE", &format!("{versions}/delete-tag"), json!({"name": "m", "version": "1", "key": "k"})).await;
    // Of the tags of a model MLflow does not speak.
    rest(world, "POST", &format!("{models}/set-tag"), json!({"name": "m", "key": "k", "value": "v"})).await;
    rest(world, "POST", &format!("{models}/alias"), json!({"name": "m", "alias": "x", "version": "1"})).await;
    rest(world, "DELETE", &format!("{models}/alias"), alias.clone()).await;

    let mark = json!({"key": "mlflow.prompt.is_prompt", "value": "true"});
    rest(world, "POST", &format!("{models}/create"), json!({"name": "p", "tags": [mark]})).await;
    let text = json!({"key": "mlflow.prompt.text", "value": "Hello {{name}}!"});
    let prompt = json!({"name": "p", "source": "prompt-template", "tags": [mark, text, {"key": "a", "value": "b"}]});
    rest(world, "POST", &format!("{versions}/create"), prompt).await;
    rest(world, "POST", &format!("{models}/set-tag"), json!({"name": "p", "key": "k", "value": "v"})).await;
    rest(world, "DELETE", &format!("{models}/delete-tag"), json!({"name": "p", "key": "k"})).await;
    let tag_of_prompt = json!({"name": "p", "version": "1", "key": "k", "value": "v"});
    rest(world, "POST", &format!("{versions}/set-tag"), tag_of_prompt.clone()).await;
    rest(world, "DELETE", &format!("{versions}/delete-tag"), json!({"name": "p", "version": "1", "key": "k"})).await;
    rest(world, "POST", &format!("{models}/alias"), json!({"name": "p", "alias": "x", "version": "1"})).await;
    rest(world, "DELETE", &format!("{models}/alias"), json!({"name": "p", "alias": "x"})).await;

    let told = receiver.wait(14).await;
    let wanted = [
        ("registered_model.created", json!({"name": "m", "tags": {"a": "b"}, "description": "d"})),
        (
            "model_version.created",
            json!({"name": "m", "version": "1", "source": "s3://bucket/m", "run_id": null, "tags": {"t": "v"},
                   "description": null}),
        ),
        ("model_version_tag.set", tag),
        ("model_version_tag.deleted", json!({"name": "m", "version": "1", "key": "k"})),
        ("model_version_alias.created", json!({"name": "m", "alias": "x", "version": "1"})),
        ("model_version_alias.deleted", alias),
        ("prompt.created", json!({"name": "p", "tags": {}, "description": ""})),
        (
            "prompt_version.created",
            json!({"name": "p", "version": "1", "template": "Hello {{name}}!", "tags": {"a": "b"}, "description": null}),
        ),
        ("prompt_tag.set", json!({"name": "p", "key": "k", "value": "v"})),
        ("prompt_tag.deleted", json!({"name": "p", "key": "k"})),
        ("prompt_version_tag.set", tag_of_prompt),
        ("prompt_version_tag.deleted", json!({"name": "p", "version": "1", "key": "k"})),
        ("prompt_alias.created", json!({"name": "p", "alias": "x", "version": "1"})),
        ("prompt_alias.deleted", json!({"name": "p", "alias": "x"})),
    ];
    let news: Vec<_> = told.iter().map(Got::news).collect();
    assert_eq!(news, wanted.map(|(topic, data)| (topic.to_owned(), data)));
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"my secret");
    for got in &told {
        let signed = format!("{}.{}.{}", got.id(), got.header("X-MLflow-Timestamp"), got.body);
        let signature = got.header("X-MLflow-Signature").strip_prefix("v1,").unwrap();
        hmac::verify(&key, signed.as_bytes(), &STANDARD.decode(signature).unwrap()).unwrap();
        assert_eq!(got.header("Content-Type"), "application/json");
    }

    let records = settled(world, &webhook).await;
    assert_eq!(records.len(), 14);
    assert_eq!(records[0].event, "prompt_alias.deleted");
    for (record, got) in records.iter().zip(told.iter().rev()) {
        assert_eq!(record.state(), api::WebhookDeliveryState::Delivered);
        assert_eq!((record.attempts, record.response_status, record.error.as_str()), (1, 200, ""));
        assert_eq!(record.delivery_id, got.id());
    }
    settled(world, &picky).await;
    let aliases: Vec<_> = other.got().iter().map(Got::news).collect();
    let alias = ("model_version_alias.created".to_owned(), json!({"name": "m", "alias": "x", "version": "1"}));
    assert_eq!(aliases, [alias]);
    assert_eq!(receiver.got().len(), 14, "nothing is told twice");
}

async fn what_fails_for_now_is_tried_again_before_what_comes_after_it(world: &World) {
    let receiver = Receiver::start().await;
    let webhook = add(world, &receiver.url(), &["registered_model.created"]).await;
    receiver.answers(&[503]);
    for name in ["a", "b"] {
        world.model(name).await;
    }
    let told = receiver.wait(3).await;
    let names: Vec<_> = told.iter().map(|got| got.news().1["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["a", "a", "b"]);
    assert_eq!(told[0].id(), told[1].id());
    assert_eq!(told[0].body, told[1].body);
    assert_ne!(told[1].id(), told[2].id());
    let records = settled(world, &webhook).await;
    assert_eq!([records[0].attempts, records[1].attempts], [1, 2]);
    assert_eq!(records[1].state(), api::WebhookDeliveryState::Delivered);
}

async fn what_fails_for_good_is_given_up(world: &World) {
    let receiver = Receiver::start().await;
    let webhook = add(world, &receiver.url(), &["registered_model.created"]).await;
    receiver.answers(&[404, 302, 200]);
    for name in ["a", "b", "c"] {
        world.model(name).await;
    }
    receiver.wait(3).await;
    let records = settled(world, &webhook).await;
    let failed = api::WebhookDeliveryState::Failed;
    assert_eq!([records[2].state(), records[1].state()], [failed, failed]);
    assert_eq!([records[2].response_status, records[1].response_status], [404, 302]);
    assert!(records[1].error.contains("redirects are not followed"), "{records:?}");
    assert_eq!(records[0].state(), api::WebhookDeliveryState::Delivered);
    assert_eq!(receiver.got().len(), 3);
}

async fn a_receiver_that_hangs_slows_no_write(world: &World) {
    let receiver = Receiver::start().await;
    receiver.delay(Duration::from_secs(3600));
    let webhook = add(world, &receiver.url(), &["registered_model.created"]).await;
    world.model("first").await;
    receiver.wait(1).await;
    let began = Instant::now();
    for index in 0..20 {
        world.model(&format!("m{index}")).await;
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(receiver.got().len(), 1, "the others wait for their turn");
    let waiting = deliveries(world, &webhook).await;
    assert_eq!(waiting.iter().filter(|delivery| delivery.state() == api::WebhookDeliveryState::Pending).count(), 21);
    let (webhook_id, request_id) = (webhook.webhook_id.clone(), String::new());
    grpc(world).delete_webhook(api::DeleteWebhookRequest { webhook_id, request_id }).await.unwrap();
}

async fn webhooks_are_managed_by_either_api(world: &World) {
    let receiver = Receiver::start().await;
    let events = json!([{"entity": "PROMPT_TAG", "action": "SET"}, {"entity": "MODEL_VERSION", "action": "CREATED"}]);
    let draft = json!({"name": "by-rest", "url": receiver.url(), "events": events, "secret": "s", "description": "d"});
    let made = rest(world, "POST", "webhooks", draft).await["webhook"].clone();
    assert_eq!(made["events"], json!([events[1], events[0]]));
    assert_eq!(made["status"], "ACTIVE");
    assert!(made.get("secret").is_none());
    let id = made["webhook_id"].as_str().unwrap().to_owned();

    let seen = grpc(world).get_webhook(api::GetWebhookRequest { webhook_id: id.clone() }).await.unwrap().into_inner();
    let seen = seen.webhook.unwrap();
    assert_eq!(seen.events, ["model_version.created", "prompt_tag.set"]);
    assert!(seen.has_secret);
    assert_eq!((seen.name.as_str(), seen.description.as_str()), ("by-rest", "d"));

    let tested = rest(world, "POST", &format!("webhooks/{id}/test"), Value::Null).await;
    assert_eq!(tested, json!({"result": {"success": true, "response_status": 200, "response_body": "thank you"}}));
    receiver.answers(&[500]);
    let request = api::TestWebhookRequest { webhook_id: id.clone(), event: "prompt_tag.set".into() };
    let tested = grpc(world).test_webhook(request).await.unwrap().into_inner();
    assert_eq!((tested.success, tested.response_status), (false, 500));
    let told: Vec<_> = receiver.wait(2).await.iter().map(|got| got.news().0).collect();
    assert_eq!(told, ["model_version.created", "prompt_tag.set"]);
    assert!(deliveries(world, &seen).await.is_empty(), "a test leaves no record");

    let update = api::UpdateWebhookRequest {
        webhook_id: id.clone(),
        name: Some("renamed".into()),
        secret: Some(String::new()),
        status: api::WebhookStatus::Disabled.into(),
        ..Default::default()
    };
    let changed = grpc(world).update_webhook(update).await.unwrap().into_inner().webhook.unwrap();
    assert!(!changed.has_secret);
    assert_eq!(changed.events, seen.events);
    let changed = rest(world, "GET", &format!("webhooks/{id}"), Value::Null).await["webhook"].clone();
    assert_eq!((changed["name"].as_str(), changed["status"].as_str()), (Some("renamed"), Some("DISABLED")));
    assert_eq!(changed["description"], "d");

    let request = api::CreateWebhookRequest {
        name: "twice".into(),
        url: receiver.url(),
        events: vec!["prompt.created".into()],
        request_id: "once".into(),
        ..Default::default()
    };
    let first = grpc(world).create_webhook(request.clone()).await.unwrap().into_inner();
    assert_eq!(grpc(world).create_webhook(request).await.unwrap().into_inner(), first);

    let page = rest(world, "GET", "webhooks?max_results=1", Value::Null).await;
    assert_eq!(page["webhooks"][0]["name"], "twice", "the newest first");
    let next = format!("webhooks?max_results=1&page_token={}", page["next_page_token"].as_str().unwrap());
    let page = rest(world, "GET", &next, Value::Null).await;
    assert_eq!(page["webhooks"][0]["webhook_id"], id.as_str());
    assert!(page.get("next_page_token").is_none());

    rest(world, "DELETE", &format!("webhooks/{id}"), Value::Null).await;
    let gone = grpc(world).get_webhook(api::GetWebhookRequest { webhook_id: id.clone() }).await;
    assert_eq!(gone.as_ref().unwrap_err().code(), Code::NotFound);
    assert_eq!(reason(gone), "WEBHOOK_NOT_FOUND");
    let (status, answer) = world.rest("DELETE", &format!("/api/2.0/mlflow/webhooks/{id}"), Value::Null).await;
    assert_eq!((status, answer["error_code"].as_str()), (404, Some("RESOURCE_DOES_NOT_EXIST")));
}

async fn what_is_refused_names_the_field(world: &World) {
    let good =
        json!({"name": "hook", "url": "https://example.com/a", "events": [{"entity": "PROMPT", "action": "CREATED"}]});
    let mut refusals = Vec::new();
    for (field, value) in [
        ("name", json!("-hook")),
        ("url", json!("   ")),
        ("url", json!("ftp://example.com")),
        ("url", json!("https://[invalid")),
        ("url", json!("https://user:word@example.com")),
        ("events", json!([])),
        ("events", json!([{"entity": "PROMPT", "action": "SET"}])),
        ("events", json!([{"entity": "RUN", "action": "CREATED"}])),
        ("status", json!("PAUSED")),
        ("description", json!("x".repeat(2000))),
        ("secret", json!("x".repeat(2000))),
    ] {
        let mut draft = good.clone();
        draft[field] = value;
        let (status, answer) = world.rest("POST", "/api/2.0/mlflow/webhooks", draft).await;
        assert_eq!(
            (status, answer["error_code"].as_str()),
            (400, Some("INVALID_PARAMETER_VALUE")),
            "{field}: {answer}"
        );
        let message = answer["message"].as_str().unwrap().to_owned();
        assert!(!message.contains("user:word"), "{message}");
        refusals.push(message);
    }
    assert!(refusals[1].contains("Webhook URL cannot be empty or just whitespace"), "{refusals:?}");
    assert!(
        refusals[6].contains("Invalid action 'set' for entity 'prompt'. Valid actions are: ['created']"),
        "{refusals:?}"
    );
    let request = api::CreateWebhookRequest { name: "hook".into(), url: "ftp://a".into(), ..Default::default() };
    let refused = grpc(world).create_webhook(request).await;
    assert_eq!(refused.as_ref().unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(reason(refused), "INVALID_WEBHOOK");
    assert_eq!(rest(world, "GET", "webhooks", Value::Null).await, json!({"webhooks": []}));
}

async fn what_waits_for_a_disabled_webhook_goes_out_when_it_is_active_again(world: &World) {
    let receiver = Receiver::start().await;
    let webhook = add(world, &receiver.url(), &["registered_model.created"]).await;
    let set = async |status: api::WebhookStatus| {
        let (webhook_id, status) = (webhook.webhook_id.clone(), status.into());
        let update = api::UpdateWebhookRequest { webhook_id, status, ..Default::default() };
        grpc(world).update_webhook(update).await.unwrap();
    };
    receiver.answers(&[503]);
    world.model("before").await;
    receiver.wait(1).await;
    set(api::WebhookStatus::Disabled).await;
    world.model("meanwhile").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(receiver.got().len(), 1);
    set(api::WebhookStatus::Active).await;
    let told = receiver.wait(2).await;
    assert_eq!(told[1].news().1["name"], "before");
    let records = settled(world, &webhook).await;
    assert_eq!(records.len(), 1, "what happened meanwhile is not told");
}
