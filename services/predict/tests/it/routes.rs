//! Routes: who answers under a name.

use std::{collections::BTreeMap, fs};

use futures::stream::{self, StreamExt};
use predict::{Config, admission};
use prost_types::Duration;
use tonic::Code;
use verdict_api::{
    predict::{
        Challenger, DecideRequest, Decision, DeleteRouteRequest, GetRouteReportRequest, GetRouteReportResponse,
        GetRouteRequest, Guard, ListRoutesRequest, Matrix, PredictRequest, PredictResponse, Route, SetRouteRequest,
        Shadow, UnloadModelRequest, predict_request::Input,
    },
    registry::Task,
};

use crate::world::{Predict, Registry, applications, config, credit_risk, credit_risk_with, told, with};

const CHAMPION: &str = "credit-risk@champion";
const CHALLENGER: &str = "credit-risk@challenger";

fn row(model: &str) -> PredictRequest {
    let values =
        vec![2.0, 12.0, 3.0, 1.0, 7472.0, 4.0, 4.0, 1.0, 3.0, 2.0, 2.0, 2.0, 24.0, 1.0, 2.0, 1.0, 2.0, 1.0, 0.0, 1.0];
    PredictRequest { model: model.to_owned(), input: Some(Input::Matrix(Matrix { columns: 20, values })) }
}

fn route(name: &str, challengers: &[(&str, f64)]) -> Route {
    let challenger = |(reference, weight): &(&str, f64)| Challenger {
        reference: (*reference).to_owned(),
        weight: *weight,
        ..Challenger::default()
    };
    Route {
        name: name.to_owned(),
        champion: CHAMPION.to_owned(),
        challengers: challengers.iter().map(challenger).collect(),
        ..Route::default()
    }
}

fn set(route: Route) -> SetRouteRequest {
    SetRouteRequest { route: Some(route), ..SetRouteRequest::default() }
}

async fn stand(predict: &Predict, route: Route) -> Route {
    predict.serving().set_route(set(route)).await.unwrap().into_inner().route.unwrap()
}

async fn report(predict: &Predict, name: &str) -> GetRouteReportResponse {
    let request = GetRouteReportRequest { name: name.to_owned(), recent_pairs: 0 };
    predict.serving().get_route_report(request).await.unwrap().into_inner()
}

fn version(answer: &PredictResponse) -> i64 {
    answer.served_by.as_ref().unwrap().version
}

async fn world() -> (Registry, Predict, tempfile::TempDir) {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    registry.publish_credit_risk(2, Some("challenger")).await;
    let (predict, dir) = Predict::warm(&registry, &[CHAMPION, CHALLENGER]).await;
    (registry, predict, dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_shared_by_weight_and_equal_keys_stay_together() {
    let (_registry, predict, _dir) = world().await;
    stand(&predict, route("risk", &[(CHALLENGER, 0.3)])).await;
    let calls = 3000;
    let ask = async |key: Option<String>| {
        let key = key.as_deref().map(|key| (admission::ROUTING_KEY, key));
        let request = with(row("risk"), key.as_slice());
        let answer = predict.client().predict(request).await.unwrap().into_inner();
        assert_eq!(answer.served_by.as_ref().unwrap().alias, ["champion", "challenger"][version(&answer) as usize - 1]);
        version(&answer)
    };
    // Five standard errors.
    let most = 5.0 * (0.3_f64 * 0.7 / calls as f64).sqrt();
    let by_chance = stream::iter(0..calls).map(|_| ask(None)).buffer_unordered(16).collect::<Vec<_>>().await;
    let share = by_chance.iter().filter(|version| **version == 2).count() as f64 / calls as f64;
    assert!((share - 0.3).abs() < most, "{share}");

    let keyed = stream::iter(0..calls).map(|key| ask(Some(format!("customer-{key}")))).buffered(16);
    let keyed = keyed.collect::<Vec<_>>().await;
    let share = keyed.iter().filter(|version| **version == 2).count() as f64 / calls as f64;
    assert!((share - 0.3).abs() < most, "{share}");
    for (key, first) in keyed.iter().enumerate().take(200) {
        assert_eq!(ask(Some(format!("customer-{key}"))).await, *first);
    }
    // More for the challenger moves keys to it, and none away.
    stand(&predict, route("risk", &[(CHALLENGER, 0.5)])).await;
    for (key, first) in keyed.iter().enumerate().take(200) {
        assert!(ask(Some(format!("customer-{key}"))).await >= *first);
    }
    let report = report(&predict, "risk").await;
    assert_eq!(report.targets.iter().map(|target| target.calls).sum::<u64>(), 2 * calls as u64 + 400);
    assert_eq!((report.targets[0].weight, report.targets[1].weight), (0.5, 0.5));
    assert!(report.targets.iter().all(|target| target.failed == 0 && target.latency_p99_ms > 0.0));
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenger_whose_scores_shift_is_stopped_and_the_reason_is_told() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let shifted = credit_risk_with(|model| {
        model["learner"]["learner_model_param"]["base_score"] = serde_json::json!("[9.9E-1]");
    });
    let dir = shifted.path().to_owned();
    registry.publish("credit-risk", Task::TabularClassification, dir, Some("challenger")).await;
    let (predict, data) = Predict::warm(&registry, &[CHAMPION, CHALLENGER]).await;
    let guard = Guard {
        min_calls: 50,
        window: 200,
        max_error_rate_increase: Some(0.05),
        max_latency_p99: Some(Duration { seconds: 30, nanos: 0 }),
        max_score_shift: Some(0.2),
        ..Guard::default()
    };
    let before = stand(&predict, Route { guard: Some(guard), ..route("risk", &[(CHALLENGER, 0.5)]) }).await;
    let mut answered = 0;
    let stopped = loop {
        predict.client().predict(row("risk")).await.unwrap();
        answered += 1;
        assert!(answered < 2000, "the challenger is not stopped: {:?}", report(&predict, "risk").await);
        let route = predict.serving().get_route(GetRouteRequest { name: "risk".to_owned() }).await.unwrap();
        let route = route.into_inner().route.unwrap();
        if route.challengers[0].weight == 0.0 {
            break route;
        }
    };
    assert!(stopped.challengers[0].stopped_reason.contains("mean score"), "{stopped:?}");
    assert!(stopped.challengers[0].stop_time.is_some() && stopped.etag != before.etag);
    let told_by = report(&predict, "risk").await;
    assert_eq!(told_by.targets[1].stopped_reason, stopped.challengers[0].stopped_reason);
    assert!(told_by.targets[1].mean_score.unwrap() - told_by.targets[0].mean_score.unwrap() > 0.2);
    for _ in 0..50 {
        assert_eq!(version(&predict.client().predict(row("risk")).await.unwrap().into_inner()), 1);
    }
    // It stays stopped over a restart.
    predict
        .wait("it is on disk", async || {
            fs::read_to_string(data.path().join("serving.json")).unwrap().contains("mean score")
        })
        .await;
    predict.stop().await;
    let predict = Predict::start(config(data.path(), &registry.url(), &[CHAMPION, CHALLENGER])).await;
    predict.wait_ready().await;
    assert_eq!(report(&predict, "risk").await.targets[1].stopped_reason, stopped.challengers[0].stopped_reason);
    // Whoever sets it again starts it anew.
    let again = stand(&predict, Route { guard: Some(guard), ..route("risk", &[(CHALLENGER, 0.1)]) }).await;
    assert_eq!((again.challengers[0].weight, again.challengers[0].stopped_reason.as_str()), (0.1, ""));
    predict.stop().await;
}

fn case(application: usize, request_id: &str) -> DecideRequest {
    DecideRequest {
        model: "risk".to_owned(),
        features: applications().swap_remove(application),
        request_id: request_id.to_owned(),
        max_reasons: 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_of_a_route_record_who_decided_and_stay_decided() {
    let (_registry, predict, _dir) = world().await;
    stand(&predict, route("risk", &[(CHALLENGER, 0.5)])).await;
    let decide = async |request: DecideRequest| -> Decision {
        predict.decisions().decide(request).await.unwrap().into_inner().decision.unwrap()
    };
    let mut made = BTreeMap::new();
    for n in 0..40 {
        let decision = decide(case(n % 10, &format!("order-{n}"))).await;
        assert_eq!((decision.route.as_str(), decision.model.as_str()), ("risk", "credit-risk"));
        assert_eq!(decision.alias, ["champion", "challenger"][decision.version as usize - 1]);
        made.insert(n, decision);
    }
    let versions: Vec<_> = made.values().map(|decision| decision.version).collect();
    assert!(versions.contains(&1) && versions.contains(&2), "{versions:?}");
    // Weights change; what was decided stays decided, by whoever did.
    stand(&predict, route("risk", &[(CHALLENGER, 1.0)])).await;
    for (n, decision) in &made {
        assert_eq!(decide(case(n % 10, &format!("order-{n}"))).await, *decision);
    }
    assert_eq!(decide(case(0, "order-new")).await.version, 2);
    // Asked for by reference it is another request.
    let by_reference = DecideRequest { model: CHAMPION.to_owned(), ..case(0, "order-0") };
    let reused = predict.decisions().decide(by_reference).await.unwrap_err();
    assert_eq!(told(&reused).0, "REQUEST_ID_REUSED");
    let other = predict.decisions().decide(case(1, "order-0")).await.unwrap_err();
    assert_eq!(told(&other).0, "REQUEST_ID_REUSED");
    let unknown = DecideRequest { model: "no-route".to_owned(), ..case(0, "") };
    assert_eq!(told(&predict.decisions().decide(unknown).await.unwrap_err()).1, ["model"]);
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenger_that_cannot_decide_is_stopped_and_the_champion_goes_on() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let bare = tempfile::tempdir().unwrap();
    fs::copy(credit_risk().join("1/model.json"), bare.path().join("model.json")).unwrap();
    let dir = bare.path().to_owned();
    registry.publish("credit-risk", Task::TabularClassification, dir, Some("challenger")).await;
    let (predict, _dir) = Predict::warm(&registry, &[CHAMPION, CHALLENGER]).await;
    let guard = Guard { min_calls: 20, window: 50, max_error_rate_increase: Some(0.1), ..Guard::default() };
    stand(&predict, Route { guard: Some(guard), ..route("risk", &[(CHALLENGER, 0.5)]) }).await;
    let mut failed = 0;
    for _ in 0..200 {
        failed += usize::from(predict.decisions().decide(case(0, "")).await.is_err());
    }
    assert_eq!(failed, 20, "stopped as soon as it is judged");
    let report = report(&predict, "risk").await;
    assert_eq!((report.targets[1].failed, report.targets[1].weight), (20, 0.0));
    assert!(report.targets[1].stopped_reason.contains("failed"), "{report:?}");
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_challenger_that_is_too_slow_is_stopped() {
    let (_registry, predict, _dir) = world().await;
    // Nothing is that fast.
    let fast = Duration { seconds: 0, nanos: 1000 };
    let guard = Guard { min_calls: 20, window: 50, max_latency_p99: Some(fast), ..Guard::default() };
    stand(&predict, Route { guard: Some(guard), ..route("risk", &[(CHALLENGER, 0.5)]) }).await;
    for _ in 0..150 {
        predict.client().predict(row("risk")).await.unwrap();
    }
    let report = report(&predict, "risk").await;
    assert_eq!((report.targets[1].weight, report.targets[1].calls), (0.0, 32), "judged at every 16th call");
    assert!(report.targets[1].stopped_reason.contains("99th percentile"), "{report:?}");
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_are_set_listed_changed_and_deleted_and_survive_a_restart_without_the_registry() {
    let (registry, predict, dir) = world().await;
    let mut serving = predict.serving();
    let first = SetRouteRequest { request_id: "set-1".to_owned(), ..set(route("risk", &[(CHALLENGER, 0.2)])) };
    let made = serving.set_route(first.clone()).await.unwrap().into_inner().route.unwrap();
    assert_eq!(serving.set_route(first).await.unwrap().into_inner().route.unwrap(), made);
    let reused = SetRouteRequest { request_id: "set-1".to_owned(), ..set(route("risk", &[])) };
    assert_eq!(told(&serving.set_route(reused).await.unwrap_err()).0, "REQUEST_ID_REUSED");
    let checked = SetRouteRequest { validate_only: true, ..set(route("other", &[])) };
    serving.set_route(checked).await.unwrap();
    let missing = serving.get_route(GetRouteRequest { name: "other".to_owned() }).await.unwrap_err();
    assert_eq!((missing.code(), told(&missing).0.as_str()), (Code::NotFound, "ROUTE_NOT_FOUND"));

    let stale = Route { etag: "0".to_owned(), ..route("risk", &[]) };
    let stale = serving.set_route(set(stale)).await.unwrap_err();
    assert_eq!((stale.code(), told(&stale).0.as_str()), (Code::Aborted, "ETAG_MISMATCH"));
    let changed = Route { etag: made.etag.clone(), ..route("risk", &[(CHALLENGER, 0.4)]) };
    let changed = stand(&predict, changed).await;
    assert!(changed.etag != made.etag && changed.create_time == made.create_time);

    let unserved = serving.set_route(set(route("x", &[("credit-risk@canary", 0.1)]))).await.unwrap_err();
    assert_eq!((unserved.code(), told(&unserved).0.as_str()), (Code::NotFound, "MODEL_NOT_SERVED"));
    let mut wrong = route("-x", &[(CHALLENGER, 0.6), (CHALLENGER, 0.6)]);
    wrong.shadows = vec![Shadow { reference: CHALLENGER.to_owned(), share: Some(2.0) }];
    let wrong = told(&serving.set_route(set(wrong)).await.unwrap_err()).1;
    assert_eq!(wrong, ["route.name", "route.challengers[1].reference", "route.challengers", "route.shadows[0].share"]);
    let unparsed =
        told(&serving.set_route(set(Route { champion: "m".to_owned(), ..route("x", &[]) })).await.unwrap_err());
    assert_eq!(unparsed.1, ["route.champion"]);
    assert_eq!(told(&serving.set_route(SetRouteRequest::default()).await.unwrap_err()).1, ["route"]);

    for name in ["a", "b", "c"] {
        stand(&predict, route(name, &[])).await;
    }
    let page = |page_token: String| ListRoutesRequest { page_size: 3, page_token };
    let one = serving.list_routes(page(String::new())).await.unwrap().into_inner();
    let two = serving.list_routes(page(one.next_page_token.clone())).await.unwrap().into_inner();
    let names: Vec<_> = one.routes.iter().chain(&two.routes).map(|route| route.name.as_str()).collect();
    assert_eq!((names, two.next_page_token.as_str()), (vec!["a", "b", "c", "risk"], ""));
    assert_eq!(told(&serving.list_routes(page("/".to_owned())).await.unwrap_err()).1, ["page_token"]);

    let unload = UnloadModelRequest { reference: CHALLENGER.to_owned(), ..UnloadModelRequest::default() };
    let refused = serving.unload_model(unload.clone()).await.unwrap_err();
    assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::FailedPrecondition, "MODEL_IN_ROUTE"));
    let delete = |name: &str, etag: &str| DeleteRouteRequest {
        name: name.to_owned(),
        etag: etag.to_owned(),
        ..DeleteRouteRequest::default()
    };
    assert_eq!(told(&serving.delete_route(delete("risk", &made.etag)).await.unwrap_err()).0, "ETAG_MISMATCH");
    serving.delete_route(delete("a", "")).await.unwrap();
    assert_eq!(told(&serving.delete_route(delete("a", "")).await.unwrap_err()).0, "ROUTE_NOT_FOUND");
    predict.stop().await;

    // Nothing is configured any more: what the routes name is served all the same, from the cache.
    let registry = registry.stop().await;
    let predict = Predict::start(config(dir.path(), &registry.url(), &[])).await;
    predict.wait_ready().await;
    let stands = predict.serving().get_route(GetRouteRequest { name: "risk".to_owned() }).await.unwrap();
    assert_eq!(stands.into_inner().route.unwrap(), changed);
    let answers =
        stream::iter(0..50).then(async |_| version(&predict.client().predict(row("risk")).await.unwrap().into_inner()));
    let answers = answers.collect::<Vec<_>>().await;
    assert!(answers.contains(&1) && answers.contains(&2));
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_are_set_by_a_file_and_a_cold_challenger_is_passed_over() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("routes.json");
    let json = serde_json::json!({"routes": [{"name": "risk", "champion": CHAMPION,
        "challengers": [{"reference": "credit-risk@nobody", "weight": 0.9}]}]});
    fs::write(&file, json.to_string()).unwrap();
    let config = || Config { routes: Some(file.clone()), ..config(dir.path(), &registry.url(), &[CHAMPION]) };
    let predict = Predict::start(config()).await;
    let warm = async || predict.served().await.iter().any(|model| model.reference == CHAMPION && model.version == 1);
    predict.wait("the champion is warm", warm).await;
    for _ in 0..20 {
        assert_eq!(version(&predict.client().predict(row("risk")).await.unwrap().into_inner()), 1);
    }
    let told = report(&predict, "risk").await;
    assert_eq!(told.targets[0].calls, 20);
    assert!(told.targets[1].passed_over > 5 && told.targets[1].calls == 0);
    predict.stop().await;

    fs::write(&file, r#"{"routes": [{"name": "risk", "champion": "credit-risk@champion", "weight": 1}]}"#).unwrap();
    let listeners = verdict_chassis::server::Listeners::loopback().await.unwrap();
    let refused = predict::run(config(), listeners, tokio_util::sync::CancellationToken::new()).await.unwrap_err();
    assert!(format!("{refused:#}").contains("unknown field `weight`"), "{refused:#}");
}
