//! Versions come and go while calls are answered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use futures::stream::{self, StreamExt};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use verdict_api::{
    predict::{
        LoadModelRequest, Matrix, PredictRequest, ServedModel, ServedModelState, UnloadModelRequest,
        predict_request::Input,
    },
    registry::Task,
};

use crate::world::{Predict, Registry, config, credit_risk_with, told};

const MODEL: &str = "credit-risk@champion";
const CALLS: usize = 100_000;
const SWAPS: usize = 100;

fn row(model: &str) -> PredictRequest {
    let values =
        vec![2.0, 12.0, 3.0, 1.0, 7472.0, 4.0, 4.0, 1.0, 3.0, 2.0, 2.0, 2.0, 24.0, 1.0, 2.0, 1.0, 2.0, 1.0, 0.0, 1.0];
    PredictRequest { model: model.to_owned(), input: Some(Input::Matrix(Matrix { columns: 20, values })) }
}

fn load(reference: &str) -> LoadModelRequest {
    LoadModelRequest { reference: reference.to_owned(), ..LoadModelRequest::default() }
}

async fn loaded(predict: &Predict, reference: &str) -> ServedModel {
    predict.serving().load_model(load(reference)).await.unwrap().into_inner().model.unwrap()
}

fn unload(reference: &str) -> UnloadModelRequest {
    UnloadModelRequest { reference: reference.to_owned(), ..UnloadModelRequest::default() }
}

/// Each of eight callers keeps eight calls under way, over its own connection, until all swaps and calls are done.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_thousand_calls_during_a_hundred_swaps_none_fails() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    registry.publish_credit_risk(2, None).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL]).await;
    let margin = async |version: i64| {
        registry.point("credit-risk", "champion", version).await;
        predict.wait("the alias is followed", async || predict.served().await[0].version == version).await;
        predict.client().predict(row(MODEL)).await.unwrap().into_inner().margins[0]
    };
    let margins = [margin(2).await, margin(1).await];
    let margins = [margins[1], margins[0]];
    assert_ne!(margins[0].to_bits(), margins[1].to_bits());

    let begun = Instant::now();
    let (swapped, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (client, swapped, answered) = (predict.new_client(), swapped.clone(), answered.clone());
            let count = answered.clone();
            let is_over = move || swapped.load(Ordering::Relaxed) && count.load(Ordering::Relaxed) >= CALLS;
            tokio::spawn(async move {
                let calls = stream::repeat(()).take_while(|()| std::future::ready(!is_over())).map(|()| {
                    let mut client = client.clone();
                    async move { client.predict(row(MODEL)).await }
                });
                let mut calls = std::pin::pin!(calls.buffer_unordered(8));
                let mut seen = [0_usize; 2];
                while let Some(answer) = calls.next().await {
                    let answer = answer.expect("no call fails").into_inner();
                    let version = answer.served_by.unwrap().version;
                    seen[version as usize - 1] += 1;
                    assert_eq!(answer.margins, [margins[version as usize - 1]], "an answer is of the version it names");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                seen
            })
        })
        .collect();
    for swap in 0..SWAPS {
        let version = 2 - (swap % 2) as i64;
        registry.point("credit-risk", "champion", version).await;
        predict.wait("the alias is followed", async || predict.served().await[0].version == version).await;
    }
    let swaps_took = begun.elapsed();
    swapped.store(true, Ordering::Relaxed);
    let mut seen = [0; 2];
    for caller in callers {
        let by_version = caller.await.unwrap();
        seen = [seen[0] + by_version[0], seen[1] + by_version[1]];
    }
    println!("{seen:?} calls in {:?}, {SWAPS} swaps in {swaps_took:?}", begun.elapsed());
    assert!(seen[0] + seen[1] >= CALLS && seen.iter().all(|count| *count > 0), "{seen:?}");
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_fails_its_warm_up_is_rolled_back() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL]).await;
    // Sound bytes, but every leaf is so large that no sum of them is a number.
    let infinite = credit_risk_with(|model| {
        let trees = model["learner"]["gradient_booster"]["model"]["trees"].as_array_mut().unwrap();
        for tree in trees {
            let is_leaf: Vec<_> =
                tree["left_children"].as_array().unwrap().iter().map(|child| child.as_i64() == Some(-1)).collect();
            let values = tree["split_conditions"].as_array_mut().unwrap();
            for (value, _) in values.iter_mut().zip(is_leaf).filter(|(_, is_leaf)| *is_leaf) {
                *value = serde_json::json!(3e38);
            }
        }
    });
    let dir = infinite.path().to_owned();
    registry.publish("credit-risk", Task::TabularClassification, dir, Some("champion")).await;
    predict.wait("it says why", async || predict.served().await[0].message.contains("warm-up")).await;
    let served = predict.served().await.remove(0);
    assert_eq!((served.state(), served.version), (ServedModelState::Serving, 1));
    let answer = predict.client().predict(row(MODEL)).await.unwrap().into_inner();
    assert_eq!(answer.served_by.unwrap().version, 1);

    let refused = predict.serving().load_model(load("credit-risk/2")).await.unwrap_err();
    assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::FailedPrecondition, "MODEL_NOT_LOADED"));
    assert!(refused.message().contains("warm-up"), "{}", refused.message());
    assert_eq!(predict.served().await.len(), 1, "nothing has changed");
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_loaded_and_unloaded_by_call_and_stay_over_a_restart_without_the_registry() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let second = registry.publish_credit_risk(2, Some("next")).await;
    let dir = tempfile::tempdir().unwrap();
    let predict = Predict::start(config(dir.path(), &registry.url(), &[MODEL])).await;
    predict.wait_ready().await;

    let first_answer = LoadModelRequest { request_id: "load-1".to_owned(), ..load("credit-risk@next") };
    let model = predict.serving().load_model(first_answer.clone()).await.unwrap().into_inner().model.unwrap();
    assert_eq!((model.state(), model.version, model.digest), (ServedModelState::Serving, 2, second.digest));
    assert_eq!(loaded(&predict, "credit-risk/1").await.version, 1);
    assert_eq!(loaded(&predict, "credit-risk/1").await.version, 1, "what is served is answered at once");
    for (model, version) in [(MODEL, 1), ("credit-risk@next", 2), ("credit-risk/1", 1), ("credit-risk/2", 2)] {
        let answer = predict.client().predict(row(model)).await.unwrap().into_inner();
        assert_eq!(answer.served_by.unwrap().version, version, "{model}");
    }
    // What was loaded by call is followed as well.
    registry.point("credit-risk", "next", 1).await;
    predict.wait("it is followed", async || predict.served().await[1].version == 1).await;
    registry.point("credit-risk", "next", 2).await;
    predict.wait("it is followed", async || predict.served().await[1].version == 2).await;

    let again = predict.serving().load_model(first_answer).await.unwrap().into_inner().model.unwrap();
    assert_eq!(again.version, 2);
    let reused = LoadModelRequest { request_id: "load-1".to_owned(), ..load("credit-risk/2") };
    let reused = predict.serving().load_model(reused).await.unwrap_err();
    assert_eq!((reused.code(), told(&reused).0.as_str()), (Code::AlreadyExists, "REQUEST_ID_REUSED"));
    let missing = predict.serving().load_model(load("credit-risk/7")).await.unwrap_err();
    assert_eq!((missing.code(), told(&missing).0.as_str()), (Code::FailedPrecondition, "MODEL_NOT_LOADED"));
    assert_eq!(told(&predict.serving().load_model(load("credit-risk")).await.unwrap_err()).1, ["reference"]);
    assert_eq!(predict.health("").await, Some(ServingStatus::Serving));

    predict.serving().unload_model(unload("credit-risk/1")).await.unwrap();
    let gone = predict.serving().unload_model(unload("credit-risk/1")).await.unwrap_err();
    assert_eq!((gone.code(), told(&gone).0.as_str()), (Code::NotFound, "MODEL_NOT_SERVED"));
    let references =
        async |predict: &Predict| predict.served().await.into_iter().map(|model| model.reference).collect::<Vec<_>>();
    assert_eq!(references(&predict).await, [MODEL, "credit-risk@next"]);
    predict.stop().await;

    let registry = registry.stop().await;
    let predict = Predict::start(config(dir.path(), &registry.url(), &[MODEL])).await;
    predict.wait_ready().await;
    assert_eq!(references(&predict).await, [MODEL, "credit-risk@next"]);
    let answer = predict.client().predict(row("credit-risk@next")).await.unwrap().into_inner();
    assert_eq!(answer.served_by.unwrap().version, 2);
    let refused = predict.serving().load_model(load("credit-risk@canary")).await.unwrap_err();
    assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::Unavailable, "REGISTRY_UNAVAILABLE"));
    assert_eq!(references(&predict).await.len(), 2);
    predict.serving().unload_model(unload("credit-risk@next")).await.unwrap();
    let refused = predict.client().predict(row("credit-risk@next")).await.unwrap_err();
    assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::NotFound, "MODEL_NOT_SERVED"));
    predict.stop().await;

    let predict = Predict::start(config(dir.path(), &registry.url(), &[MODEL])).await;
    predict.wait_ready().await;
    assert_eq!(references(&predict).await, [MODEL]);
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_flight_end_on_a_version_that_is_unloaded() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL]).await;
    let values = row(MODEL).input.map(|input| match input {
        Input::Matrix(matrix) => matrix.values.repeat(20_000),
        Input::Rows(_) => unreachable!(),
    });
    let many = PredictRequest {
        model: MODEL.to_owned(),
        input: Some(Input::Matrix(Matrix { columns: 20, values: values.unwrap() })),
    };
    let calls: Vec<_> = (0..4)
        .map(|_| {
            let (mut client, many) = (predict.client(), many.clone());
            tokio::spawn(async move { client.predict(many).await })
        })
        .collect();
    // While they are under way: each either found the version and ends on it, or is told that it is not served.
    predict.serving().unload_model(unload(MODEL)).await.unwrap();
    for call in calls {
        match call.await.unwrap() {
            Ok(answer) => assert_eq!(answer.into_inner().margins.len(), 20_000),
            Err(refused) => assert_eq!(told(&refused).0, "MODEL_NOT_SERVED"),
        }
    }
    predict.stop().await;
}
