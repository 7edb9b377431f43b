//! `WatchModels`: everything, once, in order, from wherever one left off.

use std::time::Duration;

use tokio::time::timeout;
use tonic::{Code, Streaming};
use verdict_api::events::{ModelEvent, ModelEventType};
use verdict_api::registry::{WatchModelsRequest, WatchModelsResponse};

use crate::world::{PATIENCE, World, reason};

async fn watch(world: &World, models: &[&str], after: Option<i64>) -> Streaming<WatchModelsResponse> {
    let models = models.iter().map(ToString::to_string).collect();
    let request = WatchModelsRequest { models, after_sequence: after };
    world.client.clone().watch_models(request).await.unwrap().into_inner()
}

async fn next(watch: &mut Streaming<WatchModelsResponse>) -> ModelEvent {
    loop {
        let message = timeout(PATIENCE, watch.message()).await.expect("an event in time").unwrap().unwrap();
        if let Some(event) = message.event {
            assert_eq!(message.sequence, event.sequence);
            return event;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_where_another_left_off() {
    let world = World::embedded().await;
    world.model("m").await;
    let mut first = watch(&world, &[], Some(0)).await;
    let created = next(&mut first).await;
    assert_eq!((created.r#type(), created.sequence), (ModelEventType::ModelCreated, 1));
    drop(first);

    world.version("m").await;
    let mut second = watch(&world, &[], Some(created.sequence)).await;
    assert_eq!(next(&mut second).await.r#type(), ModelEventType::VersionCreated);
    // What is written while it watches comes without being asked for, and at once.
    world.version("m").await;
    let event = timeout(Duration::from_secs(2), next(&mut second)).await.unwrap();
    assert_eq!((event.version, event.sequence), (2, 3));
    drop(second);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_it_begins_with_now_and_says_where_that_is() {
    let world = World::embedded().await;
    world.model("before").await;
    let mut watching = watch(&world, &[], None).await;
    let heartbeat = timeout(PATIENCE, watching.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((heartbeat.event, heartbeat.sequence), (None, 1));
    world.model("after").await;
    assert_eq!(next(&mut watching).await.model, "after");
    drop(watching);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_one_model_hears_of_no_other() {
    let world = World::embedded().await;
    let mut watching = watch(&world, &["mine"], Some(0)).await;
    for name in ["other", "mine", "another"] {
        world.model(name).await;
    }
    world.version("other").await;
    world.version("mine").await;
    let heard = [next(&mut watching).await, next(&mut watching).await];
    assert_eq!(heard.each_ref().map(|event| event.sequence), [2, 5]);
    assert!(heard.iter().all(|event| event.model == "mine"));
    drop(watching);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_log_is_refused() {
    let world = World::embedded().await;
    let ahead = WatchModelsRequest { models: Vec::new(), after_sequence: Some(99) };
    let refused = world.client.clone().watch_models(ahead).await;
    assert_eq!(refused.as_ref().unwrap_err().code(), Code::OutOfRange);
    assert_eq!(reason(refused), "SEQUENCE_UNKNOWN");
    let negative = WatchModelsRequest { models: Vec::new(), after_sequence: Some(-1) };
    assert_eq!(reason(world.client.clone().watch_models(negative).await), "INVALID_SEQUENCE");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_watch_does_not_hold_up_a_stop() {
    let world = World::embedded().await;
    let mut watching = watch(&world, &[], Some(0)).await;
    assert!(watching.message().await.unwrap().is_some());
    let began = std::time::Instant::now();
    world.stop().await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let ended = watching.message().await.unwrap_err();
    assert_eq!(reason::<()>(Err(ended)), "STOPPING");
}

mod live {
    use super::*;

    /// Two replicas on one database: a change made through one reaches a watch of the other.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_watch_hears_of_what_another_replica_wrote() {
        let one = World::production().await;
        let other = one.replica().await;
        let mut watching = watch(&other, &[], Some(0)).await;
        one.model("m").await;
        other.version("m").await;
        one.version("m").await;
        let heard = [next(&mut watching).await, next(&mut watching).await, next(&mut watching).await];
        assert_eq!(heard.map(|event| (event.sequence, event.version)), [(1, 0), (2, 1), (3, 2)]);
        drop(watching);
        other.stop().await;
        one.stop().await;
    }
}
