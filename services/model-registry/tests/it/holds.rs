//! Legal holds: what is held cannot be deleted, by anybody, until it is released.

use serde_json::json;
use tonic::Code;
use verdict_api::registry::maintenance_service_client::MaintenanceServiceClient;
use verdict_api::registry::{
    DeleteModelRequest, DeleteVersionRequest, Hold, ListHoldsRequest, PlaceHoldRequest, ReleaseHoldRequest,
};
use verdict_chassis::client::Channel;

use crate::world::{Answer, World, reason};

fn maintenance(world: &World) -> MaintenanceServiceClient<Channel> {
    MaintenanceServiceClient::new(world.channel.clone())
}

async fn place(world: &World, model: &str, version: Option<i64>) -> Answer<Hold> {
    let request = PlaceHoldRequest {
        model: model.into(),
        version,
        placed_by: "legal@bank".into(),
        reason: "case 17".into(),
        request_id: String::new(),
    };
    Ok(maintenance(world).place_hold(request).await?.into_inner().hold.unwrap())
}

async fn release(world: &World, id: i64) -> Answer<Hold> {
    let (released_by, reason) = ("judge".to_owned(), "case 17 is closed".to_owned());
    let request = ReleaseHoldRequest { id, released_by, reason, ..Default::default() };
    Ok(maintenance(world).release_hold(request).await?.into_inner().hold.unwrap())
}

async fn delete_version(world: &World, model: &str, version: i64) -> Answer<()> {
    let request = DeleteVersionRequest { model: model.into(), version, ..Default::default() };
    world.client.clone().delete_version(request).await.map(drop)
}

async fn delete_model(world: &World, name: &str) -> Answer<()> {
    let request = DeleteModelRequest { name: name.into(), force: true, ..Default::default() };
    world.client.clone().delete_model(request).await.map(drop)
}

async fn what_is_held_stays(world: &World) {
    world.model("m").await;
    for bytes in [b"1", b"2"] {
        world.ready("m", &[("file", bytes)]).await;
    }
    world.point("m", "champion", 1, None).await.unwrap();
    let hold = place(world, "m", Some(1)).await.unwrap();
    assert_eq!((hold.version, hold.placed_by.as_str(), hold.reason.as_str()), (Some(1), "legal@bank", "case 17"));

    let refused = delete_model(world, "m").await;
    assert_eq!(refused.as_ref().unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(reason(refused), "LEGAL_HOLD");
    let rest =
        async |method: &str, path: &str, body| world.rest(method, &format!("/api/2.0/mlflow/{path}"), body).await;
    let (status, answer) = rest("DELETE", "model-versions/delete", json!({"name": "m", "version": "1"})).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("legal hold"), "{answer}");
    assert_eq!(rest("DELETE", "registered-models/delete", json!({"name": "m"})).await.0, 400);
    assert_eq!(world.get("m", 1).await.unwrap().aliases, ["champion"], "nothing of it has happened");
    delete_version(world, "m", 2).await.unwrap();

    // A hold goes with a model that is renamed.
    let (status, answer) = rest("POST", "registered-models/rename", json!({"name": "m", "new_name": "n"})).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(reason(delete_model(world, "n").await), "LEGAL_HOLD");

    // Two holds: both must be released.
    let whole = place(world, "n", None).await.unwrap();
    let released = release(world, hold.id).await.unwrap();
    assert_eq!((released.released_by.as_str(), released.release_reason.as_str()), ("judge", "case 17 is closed"));
    assert_eq!(reason(release(world, hold.id).await), "HOLD_RELEASED");
    assert_eq!(reason(release(world, 99).await), "HOLD_NOT_FOUND");
    let request =
        verdict_api::registry::DeleteAliasRequest { model: "n".into(), alias: "champion".into(), ..Default::default() };
    world.client.clone().delete_alias(request).await.unwrap();
    assert_eq!(reason(delete_version(world, "n", 1).await), "LEGAL_HOLD");
    let (status, _) = rest("DELETE", "model-versions/delete", json!({"name": "n", "version": "1"})).await;
    assert_eq!(status, 400);
    release(world, whole.id).await.unwrap();
    delete_version(world, "n", 1).await.unwrap();
    delete_model(world, "n").await.unwrap();
    let list = ListHoldsRequest { model: "n".into() };
    let holds = maintenance(world).list_holds(list).await.unwrap().into_inner().holds;
    let ids: Vec<_> = holds.iter().map(|hold| (hold.id, hold.release_time.is_some())).collect();
    assert_eq!(ids, [(whole.id, true), (hold.id, true)], "they stay on record");
}

async fn a_hold_names_what_is_there_and_who_placed_it(world: &World) {
    assert_eq!(reason(place(world, "m", None).await), "MODEL_NOT_FOUND");
    world.model("m").await;
    assert_eq!(reason(place(world, "m", Some(1)).await), "VERSION_NOT_FOUND");
    assert_eq!(reason(place(world, "m", Some(0)).await), "INVALID_VERSION");
    let nobody = PlaceHoldRequest { model: "m".into(), reason: "r".into(), ..Default::default() };
    assert_eq!(reason(maintenance(world).place_hold(nobody).await), "INVALID_TEXT");
    let no_reason = PlaceHoldRequest { model: "m".into(), placed_by: "p".into(), ..Default::default() };
    assert_eq!(reason(maintenance(world).place_hold(no_reason).await), "INVALID_TEXT");
    let twice = PlaceHoldRequest {
        model: "m".into(),
        placed_by: "p".into(),
        reason: "r".into(),
        request_id: "once".into(),
        version: None,
    };
    let first = maintenance(world).place_hold(twice.clone()).await.unwrap().into_inner().hold;
    assert_eq!(maintenance(world).place_hold(twice).await.unwrap().into_inner().hold, first);
    assert_eq!(reason(delete_model(world, "m").await), "LEGAL_HOLD");
}

mod embedded {
    use super::World;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_held_stays() {
        let world = World::embedded().await;
        super::what_is_held_stays(&world).await;
        world.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_hold_names_what_is_there_and_who_placed_it() {
        let world = World::embedded().await;
        super::a_hold_names_what_is_there_and_who_placed_it(&world).await;
        world.stop().await;
    }
}

mod live {
    use super::World;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_held_stays() {
        let world = World::production().await;
        super::what_is_held_stays(&world).await;
        world.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_hold_names_what_is_there_and_who_placed_it() {
        let world = World::production().await;
        super::a_hold_names_what_is_there_and_who_placed_it(&world).await;
        world.stop().await;
    }
}
