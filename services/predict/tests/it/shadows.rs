//! Shadows: they see copies, answer nobody, and slow nobody down.

use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use predict::Config;
use verdict_api::{
    predict::{
        DecideRequest, EmbedRequest, GetRouteReportRequest, PredictRequest, Route, Row, Rows, SetRouteRequest, Shadow,
        ShadowReport, predict_request::Input,
    },
    registry::Task,
};

use crate::world::{Predict, Registry, applications, config};

const SMALL: &str = "all-MiniLM-L6-v2@champion";
const LARGE: &str = "bge-small-en-v1.5@champion";

async fn stand(predict: &Predict, name: &str, champion: &str, shadows: &[(&str, f64)]) {
    let shadow = |(reference, share): &(&str, f64)| Shadow { reference: (*reference).to_owned(), share: Some(*share) };
    let route = Route {
        name: name.to_owned(),
        champion: champion.to_owned(),
        shadows: shadows.iter().map(shadow).collect(),
        ..Route::default()
    };
    predict.serving().set_route(SetRouteRequest { route: Some(route), ..SetRouteRequest::default() }).await.unwrap();
}

async fn seen(predict: &Predict, name: &str) -> ShadowReport {
    let request = GetRouteReportRequest { name: name.to_owned(), recent_pairs: 5 };
    predict.serving().get_route_report(request).await.unwrap().into_inner().shadows.remove(0)
}

/// Waits until all of `calls` are accounted for, but no longer than `most`.
async fn settled(predict: &Predict, name: &str, calls: usize, most: Duration) -> ShadowReport {
    let until = Instant::now() + most;
    loop {
        let seen = seen(predict, name).await;
        if seen.copied + seen.dropped == calls as u64 || Instant::now() > until {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_between_primary_and_shadow_are_told_for_scores_and_decisions() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    registry.publish_credit_risk(2, Some("next")).await;
    let (predict, _dir) = Predict::warm(&registry, &["credit-risk@champion", "credit-risk@next"]).await;
    stand(&predict, "risk", "credit-risk@champion", &[("credit-risk@next", 1.0)]).await;
    let rows = |model: &str| {
        let rows = applications().into_iter().map(|features| Row { features }).collect();
        PredictRequest { model: model.to_owned(), input: Some(Input::Rows(Rows { rows })) }
    };
    let given = predict.client().predict(rows("risk")).await.unwrap().into_inner();
    assert_eq!(given.served_by.unwrap().version, 1);
    let other = predict.client().predict(rows("credit-risk@next")).await.unwrap().into_inner();
    predict.wait("it is compared", async || seen(&predict, "risk").await.compared == 1).await;
    let told = seen(&predict, "risk").await;
    let pairs = given.probabilities.iter().zip(&other.probabilities);
    let signed: Vec<_> = pairs.map(|(one, other)| f64::from(*other) - f64::from(*one)).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let absolute: Vec<_> = signed.iter().map(|value| value.abs()).collect();
    let largest = absolute.iter().copied().fold(0.0, f64::max);
    assert_eq!((told.differences, told.copied, told.dropped, told.failed), (10, 1, 0, 0));
    assert!((told.mean_difference - mean(&signed)).abs() < 1e-12);
    assert!((told.mean_absolute_difference - mean(&absolute)).abs() < 1e-12);
    assert_eq!((told.max_absolute_difference, told.absolute_difference_p99), (largest, largest));
    let pair = &told.recent[0];
    assert_eq!((pair.primary.as_str(), pair.absolute_difference), ("credit-risk@champion", largest));
    assert_eq!(pair.primary_score, Some(f64::from(given.probabilities[pair.index as usize])));
    assert_eq!(pair.shadow_score, Some(f64::from(other.probabilities[pair.index as usize])));

    let features = applications().swap_remove(3);
    let case = DecideRequest { model: "risk".to_owned(), features, ..DecideRequest::default() };
    let decision = predict.decisions().decide(case).await.unwrap().into_inner().decision.unwrap();
    predict.wait("it is compared", async || seen(&predict, "risk").await.compared == 2).await;
    let pair = seen(&predict, "risk").await.recent.remove(0);
    assert_eq!(pair.primary_score, Some(f64::from(decision.score)));
    assert!((pair.shadow_score.unwrap() - f64::from(other.probabilities[3])).abs() < 1e-6);

    // Half of the calls.
    stand(&predict, "half", "credit-risk@champion", &[("credit-risk@next", 0.5)]).await;
    for _ in 0..200 {
        predict.client().predict(rows("half")).await.unwrap();
    }
    // The number of copies is not known before: nothing more comes after a while.
    let half = settled(&predict, "half", usize::MAX, Duration::from_secs(2)).await;
    assert!((1..150).contains(&(half.copied + half.dropped)), "{half:?}");
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_with_another_task_fails_alone() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    registry.publish_text("all-MiniLM-L6-v2", Task::TextEmbedding).await;
    let (predict, _dir) = Predict::warm(&registry, &["credit-risk@champion", SMALL]).await;
    stand(&predict, "risk", "credit-risk@champion", &[(SMALL, 1.0)]).await;
    let rows = Rows { rows: vec![Row { features: applications().remove(0) }] };
    let request = PredictRequest { model: "risk".to_owned(), input: Some(Input::Rows(rows)) };
    predict.client().predict(request).await.unwrap();
    predict.wait("it has failed", async || seen(&predict, "risk").await.failed == 1).await;
    assert!(seen(&predict, "risk").await.last_failure.contains("embeds texts"));
    predict.stop().await;
}

/// Four callers keep both cores busy with a small model; the shadow has several times the work to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_shadow_leaves_the_primary_as_fast_as_it_was() {
    let registry = Registry::start().await;
    registry.publish_text("all-MiniLM-L6-v2", Task::TextEmbedding).await;
    registry.publish_text("bge-small-en-v1.5", Task::TextEmbedding).await;
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &registry.url(), &[SMALL, LARGE]);
    let predict = Predict::start(Config { shadow_queue: 8, response_cache_bytes: 0, ..config }).await;
    predict.wait_ready().await;
    stand(&predict, "plain", SMALL, &[]).await;
    stand(&predict, "watched", SMALL, &[(LARGE, 1.0)]).await;
    let text = "the bank lends money to people who want to buy a car ".repeat(4);
    let block = async |route: &str, count: usize| {
        let calls = stream::iter(0..count).map(|_| {
            let (mut client, inputs) = (predict.client(), vec![text.clone()]);
            let request = EmbedRequest { model: route.to_owned(), inputs, ..EmbedRequest::default() };
            async move {
                let begun = Instant::now();
                client.embed(request).await.unwrap();
                begun.elapsed()
            }
        });
        calls.buffer_unordered(4).collect::<Vec<_>>().await
    };
    block("plain", 20).await;
    let (mut plain, mut watched) = (Vec::new(), Vec::new());
    for round in 1..=10 {
        plain.extend(block("plain", 60).await);
        watched.extend(block("watched", 60).await);
        // On a machine that has other work there may be no time to spare for it at all.
        settled(&predict, "watched", 60 * round, Duration::from_secs(2)).await;
    }
    predict.wait("some are compared", async || seen(&predict, "watched").await.compared > 0).await;
    let percentile = |times: &mut Vec<Duration>, percent: usize| {
        times.sort();
        times[times.len() * percent / 100].as_secs_f64() * 1e3
    };
    let [p50, p99] = [50, 99].map(|p| (percentile(&mut plain, p), percentile(&mut watched, p)));
    let told = seen(&predict, "watched").await;
    println!(
        "p50 {:.2} ms alone, {:.2} ms with a shadow; p99 {:.2} ms alone, {:.2} ms with a shadow; {} compared, {} dropped",
        p50.0, p50.1, p99.0, p99.1, told.compared, told.dropped
    );
    assert!(told.compared > 0 && told.dropped > 0, "{told:?}");
    assert_eq!(told.failed, 0);
    assert!(told.mean_absolute_difference > 0.05, "two models, two vectors");
    assert!(p99.1 < p99.0 * 1.5, "the p99 with a shadow is {:.2} times the one without", p99.1 / p99.0);
    assert!(p50.1 < p50.0 * 1.3, "the median with a shadow is {:.2} times the one without", p50.1 / p50.0);
    predict.stop().await;
}
