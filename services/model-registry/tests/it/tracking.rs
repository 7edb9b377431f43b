//! Experiments, runs and logged models over gRPC: what it promises beyond showing what REST shows.

use std::collections::HashMap;

use tonic::Code;
use verdict_api::registry as api;
use verdict_api::registry::get_experiment_request::Which;
use verdict_api::registry::tracking_service_client::TrackingServiceClient;
use verdict_chassis::client::Channel;
use verdict_chassis::status;

use crate::world::{Answer, World, reason};

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
    a_batch_is_as_large_as_mlflow_s_and_counts_once_however_often_it_is_sent,
    a_history_comes_in_pages_with_every_value,
    a_refusal_has_its_reason_and_says_what_is_wrong,
    a_move_to_a_stage_is_an_event,
);

fn client(world: &World) -> TrackingServiceClient<Channel> {
    TrackingServiceClient::new(world.channel.clone())
}

async fn run(world: &World) -> String {
    let made = client(world).create_run(api::CreateRunRequest::default()).await.unwrap().into_inner();
    made.run.unwrap().run_id
}

fn metrics(count: i64) -> Vec<api::Metric> {
    let metric = |n: i64| {
        let value = if n == 5 { f64::NAN } else { n as f64 };
        api::Metric { key: "loss".to_owned(), value, timestamp_ms: n, step: n, ..Default::default() }
    };
    (0..count).map(metric).collect()
}

fn param(n: i64) -> api::Param {
    api::Param { key: format!("p{n}"), value: n.to_string() }
}

async fn a_batch_is_as_large_as_mlflow_s_and_counts_once_however_often_it_is_sent(world: &World) {
    let run_id = run(world).await;
    let tag = |n: i64| api::Tag { key: format!("t{n}"), value: n.to_string() };
    let batch = api::LogBatchRequest {
        run_id: run_id.clone(),
        metrics: metrics(800),
        params: (0..100).map(param).collect(),
        tags: (0..100).map(tag).collect(),
    };
    for _ in 0..2 {
        client(world).log_batch(batch.clone()).await.unwrap();
    }
    let found = client(world).get_run(api::GetRunRequest { run_id: run_id.clone() }).await.unwrap().into_inner();
    let found = found.run.unwrap();
    assert_eq!((found.params.len(), found.tags.len(), found.metrics.len()), (100, 101, 1));
    assert_eq!((found.metrics[0].value, found.metrics[0].step), (799.0, 799));

    // One wrong part, and nothing of the rest is there.
    let mut wrong = batch;
    wrong.metrics[0].key = "other".to_owned();
    wrong.params[99].value = "changed".to_owned();
    let refused = client(world).log_batch(wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("Changing param values is not allowed"), "{}", refused.message());
    let again = client(world).get_run(api::GetRunRequest { run_id }).await.unwrap().into_inner().run.unwrap();
    assert_eq!(again, found);
}

async fn a_history_comes_in_pages_with_every_value(world: &World) {
    let run_id = run(world).await;
    let batch = api::LogBatchRequest { run_id: run_id.clone(), metrics: metrics(1000), ..Default::default() };
    client(world).log_batch(batch).await.unwrap();
    let mut of = api::ListMetricHistoryRequest { run_id, key: "loss".to_owned(), page_size: 333, ..Default::default() };
    let (mut values, mut pages) = (Vec::new(), 0);
    loop {
        let page = client(world).list_metric_history(of.clone()).await.unwrap().into_inner();
        values.extend(page.metrics.into_iter().map(|metric| metric.value));
        pages += 1;
        if page.next_page_token.is_empty() {
            break;
        }
        of.page_token = page.next_page_token;
    }
    assert_eq!((values.len(), pages), (1000, 4));
    assert!(values[5].is_nan() && values.iter().enumerate().all(|(n, value)| n == 5 || *value == n as f64));
    of.page_size = 25_001;
    assert_eq!(reason(client(world).list_metric_history(of).await), "INVALID_PAGE_SIZE");
}

/// Code, reason and message of a refusal.
fn told<T: std::fmt::Debug>(answer: Answer<T>) -> (Code, String, String) {
    let refused = answer.unwrap_err();
    (refused.code(), status::reason(&refused).unwrap_or_default(), refused.message().to_owned())
}

async fn a_refusal_has_its_reason_and_says_what_is_wrong(world: &World) {
    let run_id = run(world).await;
    let mut client = client(world);
    let invalid = "INVALID_PARAMETER_VALUE";
    let nobody = api::GetExperimentRequest { which: Some(Which::ExperimentId(99)) };
    let unsaid = api::GetExperimentRequest { which: None };
    let taken = api::CreateExperimentRequest { name: "Default".to_owned(), ..Default::default() };
    let many =
        api::LogBatchRequest { params: (0..101).map(param).collect(), run_id: run_id.clone(), ..Default::default() };
    let climbing = api::Param { key: "a/../b".to_owned(), value: String::new() };
    let climbing = api::LogBatchRequest { params: vec![climbing], run_id: run_id.clone(), ..Default::default() };
    let nul =
        api::CreateRunRequest { tags: HashMap::from([("k".to_owned(), "a\0b".to_owned())]), ..Default::default() };
    let filter = api::SearchRunsRequest { filter: "metrics.a =".to_owned(), ..Default::default() };
    let wide = api::SearchRunsRequest { experiment_ids: vec![0; 10_001], ..Default::default() };
    let page = api::SearchRunsRequest { page_size: 1001, ..Default::default() };
    let token = api::SearchRunsRequest { page_token: "?".to_owned(), ..Default::default() };
    let view = api::SearchRunsRequest { view: 9, ..Default::default() };
    let status = api::UpdateRunRequest { run_id: run_id.clone(), status: 9, ..Default::default() };
    let stage = api::TransitionStageRequest { model: "m".to_owned(), version: 1, ..Default::default() };
    for (told, code, reason, wanted) in [
        (told(client.get_experiment(nobody).await), Code::NotFound, "EXPERIMENT_NOT_FOUND", "`99` not found"),
        (told(client.get_experiment(unsaid).await), Code::InvalidArgument, invalid, "'experiment_id'"),
        (told(client.create_experiment(taken).await), Code::AlreadyExists, "EXPERIMENT_EXISTS", "already exists"),
        (
            told(client.delete_experiment(api::DeleteExperimentRequest::default()).await),
            Code::InvalidArgument,
            invalid,
            "Missing value for required parameter 'experiment_id'",
        ),
        (told(client.get_run(api::GetRunRequest::default()).await), Code::InvalidArgument, invalid, "'run_id'"),
        (told(client.log_batch(many).await), Code::InvalidArgument, invalid, "at most 100 params"),
        (told(client.log_batch(climbing).await), Code::InvalidArgument, invalid, "parameter 'params[0].key'"),
        (told(client.create_run(nul).await), Code::InvalidArgument, invalid, "'tags' supplied: it must not hold NUL"),
        (told(client.search_runs(filter).await), Code::InvalidArgument, invalid, "Invalid clause(s)"),
        (told(client.search_runs(wide).await), Code::InvalidArgument, invalid, "at most 10000"),
        (told(client.search_runs(page).await), Code::InvalidArgument, "INVALID_PAGE_SIZE", "1 to 1000"),
        (told(client.search_runs(token).await), Code::InvalidArgument, invalid, "Invalid page token"),
        (told(client.search_runs(view).await), Code::InvalidArgument, invalid, "parameter 'view'"),
        (told(client.update_run(status).await), Code::InvalidArgument, invalid, "parameter 'status'"),
        (told(client.transition_stage(stage).await), Code::InvalidArgument, invalid, "parameter 'stage'"),
        (
            told(client.get_logged_model(api::GetLoggedModelRequest { model_id: "m-0".to_owned() }).await),
            Code::NotFound,
            "LOGGED_MODEL_NOT_FOUND",
            "`m-0` not found",
        ),
        (
            told(client.restore_run(api::RestoreRunRequest { run_id }).await),
            Code::InvalidArgument,
            invalid,
            "must be in the 'deleted' state",
        ),
    ] {
        assert_eq!((told.0, told.1.as_str()), (code, reason), "{}", told.2);
        assert!(told.2.contains(wanted), "{}", told.2);
    }
}

async fn a_move_to_a_stage_is_an_event(world: &World) {
    world.model("m").await;
    for _ in 0..2 {
        world.ready("m", &[("a", b"1")]).await;
    }
    let mut client = client(world);
    let mut move_to = async |version: i64, archive_existing_versions: bool| {
        let stage = api::Stage::Staging.into();
        let request = api::TransitionStageRequest { model: "m".to_owned(), version, stage, archive_existing_versions };
        client.transition_stage(request).await.unwrap().into_inner().version.unwrap()
    };
    assert_eq!(move_to(1, false).await.stage(), api::Stage::Staging);
    let moved = move_to(2, true).await;
    assert_eq!((moved.stage(), moved.version.unwrap().version), (api::Stage::Staging, 2));
    let of = api::ListLatestVersionsRequest { model: "m".to_owned(), stages: vec![api::Stage::Archived.into()] };
    let archived = client.list_latest_versions(of).await.unwrap().into_inner().versions;
    assert_eq!(archived.iter().map(|one| one.version.as_ref().unwrap().version).collect::<Vec<_>>(), [1]);
    let events = world.events().await;
    let last: Vec<i64> = events.iter().rev().take(2).map(|event| event.version).collect();
    assert_eq!(last, [2, 1], "both have changed");
}
