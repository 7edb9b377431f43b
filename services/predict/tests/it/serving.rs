use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Barrier;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use verdict_api::{
    predict::{DecideRequest, PredictRequest, Row, Rows, ServedModelState, predict_request::Input},
    registry::{DeploymentState, ListDeploymentsRequest, Task, Version, lineage_service_client::LineageServiceClient},
};
use verdict_chassis::status;

use crate::world::{Predict, Registry, applications, config, credit_risk, told};

const MODEL: &str = "credit-risk@champion";

fn request() -> PredictRequest {
    let rows = applications().into_iter().map(|features| Row { features }).collect();
    PredictRequest { model: MODEL.to_owned(), input: Some(Input::Rows(Rows { rows })) }
}

/// Too many rows to be computed where they arrive: they wait in the queue of the version they found.
fn queued() -> PredictRequest {
    let rows = applications().into_iter().cycle().take(64).map(|features| Row { features }).collect();
    PredictRequest { model: MODEL.to_owned(), input: Some(Input::Rows(Rows { rows })) }
}

fn case() -> DecideRequest {
    let features = applications().swap_remove(0);
    DecideRequest { model: MODEL.to_owned(), features, ..DecideRequest::default() }
}

async fn version_of(predict: &Predict) -> i64 {
    predict.client().predict(request()).await.unwrap().into_inner().served_by.unwrap().version
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_moves_under_load_and_no_request_fails() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let second = registry.publish_credit_risk(2, None).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL]).await;

    let (done, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(9)));
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let (mut client, mut decisions) = (predict.client(), predict.decisions());
            let (done, begun) = (done.clone(), begun.clone());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                loop {
                    let is_last = done.load(Ordering::Relaxed);
                    answers.push(if caller % 2 == 0 {
                        let answer = client.predict(queued()).await.expect("no request fails").into_inner();
                        (answer.served_by.unwrap().version, answer.margins)
                    } else {
                        let decided = decisions.decide(case()).await.expect("no decision fails").into_inner();
                        let decision = decided.decision.unwrap();
                        (decision.version, vec![decision.margin])
                    });
                    if is_last {
                        return answers;
                    }
                    if answers.len() == 1 {
                        begun.wait().await;
                    }
                }
            })
        })
        .collect();
    begun.wait().await;
    registry.point("credit-risk", "champion", second.version).await;
    predict.wait("version 2 answers", async || version_of(&predict).await == 2).await;
    done.store(true, Ordering::Relaxed);
    let mut seen = BTreeMap::new();
    for caller in callers {
        let answers = caller.await.unwrap();
        assert!(answers.is_sorted_by_key(|(version, _)| *version), "a caller saw the old version after the new one");
        for (version, margins) in answers {
            let first = seen.entry((margins.len(), version)).or_insert_with(|| margins.clone());
            assert_eq!(*first, margins, "an answer is of the version it names");
        }
    }
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [(1, 1), (1, 2), (64, 1), (64, 2)]);
    for count in [1, 64] {
        assert_ne!(seen[&(count, 1)], seen[&(count, 2)]);
    }
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_not_serving_until_every_model_is_warm() {
    let registry = Registry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let predict = Predict::start(config(dir.path(), &registry.url(), &[MODEL])).await;
    predict.wait("it says why", async || predict.served().await[0].state() == ServedModelState::Failed).await;
    for service in ["", predict::SERVICES[0], predict::SERVICES[1]] {
        assert_eq!(predict.health(service).await, Some(ServingStatus::NotServing), "{service}");
    }
    let refused = predict.client().predict(request()).await.unwrap_err();
    assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::Unavailable, "MODEL_LOADING"));
    assert!(status::retry_after(&refused).is_some());

    registry.publish_credit_risk(1, Some("champion")).await;
    predict.wait_ready().await;
    for service in ["", predict::SERVICES[0], predict::SERVICES[1]] {
        assert_eq!(predict.health(service).await, Some(ServingStatus::Serving), "{service}");
    }
    assert_eq!(version_of(&predict).await, 1);
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_starts_from_its_cache_while_the_registry_is_down() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let second = registry.publish_credit_risk(2, None).await;
    let (predict, dir) = Predict::warm(&registry, &[MODEL]).await;
    predict.stop().await;
    let registry = registry.stop().await;

    let predict = Predict::start(config(dir.path(), &registry.url(), &[MODEL])).await;
    predict.wait_ready().await;
    assert_eq!(version_of(&predict).await, 1);
    predict.wait("it says so", async || predict.served().await[0].message.contains("not reachable")).await;

    // It catches up when the registry is back.
    let registry = registry.start().await;
    registry.point("credit-risk", "champion", second.version).await;
    predict.wait("version 2 answers", async || version_of(&predict).await == 2).await;
    assert_eq!(predict.served().await[0].message, "");
    predict.stop().await;

    // A damaged file is fetched again while the registry is there, and refused while it is not.
    let digest = second.digest.strip_prefix("sha256:").unwrap();
    let cached = dir.path().join("cache/sha256").join(digest).join("model.json");
    let mut bytes = fs::read(&cached).unwrap();
    let original = bytes.clone();
    bytes[100] ^= 1;
    fs::write(&cached, &bytes).unwrap();
    let predict = Predict::start(config(dir.path(), &registry.url(), &[MODEL])).await;
    predict.wait_ready().await;
    assert_eq!(fs::read(&cached).unwrap(), original);
    predict.stop().await;
    fs::write(&cached, &bytes).unwrap();
    let registry = registry.stop().await;
    let predict = Predict::start(config(dir.path(), &registry.url(), &[MODEL])).await;
    predict.wait("it refuses", async || predict.served().await[0].state() == ServedModelState::Failed).await;
    let message = predict.served().await.remove(0).message;
    assert!(message.contains("cached files cannot be used"), "{message}");
    assert_eq!(predict.health("").await, Some(ServingStatus::NotServing));
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_cannot_be_remembered_is_not_taken_until_it_can() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let second = registry.publish_credit_risk(2, None).await;
    let (predict, dir) = Predict::warm(&registry, &[MODEL]).await;

    let (resolved, aside) = (dir.path().join("cache/resolved"), dir.path().join("aside"));
    fs::rename(&resolved, &aside).unwrap();
    fs::write(&resolved, "no folder").unwrap();
    registry.point("credit-risk", "champion", second.version).await;
    predict.wait("it says why", async || predict.served().await[0].message.contains("cannot remember")).await;
    assert_eq!(version_of(&predict).await, 1);
    fs::remove_file(&resolved).unwrap();
    fs::rename(&aside, &resolved).unwrap();
    predict.wait("version 2 answers", async || version_of(&predict).await == 2).await;
    predict.stop().await;

    let registry = registry.stop().await;
    let predict = Predict::start(config(dir.path(), &registry.url(), &[MODEL])).await;
    predict.wait_ready().await;
    assert_eq!(version_of(&predict).await, 2);
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_or_broken_version_is_refused_and_the_old_one_stays() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let second = registry.publish_credit_risk(2, None).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL]).await;

    let artifact = second.artifacts.iter().find(|artifact| artifact.path == "model.json").unwrap();
    let blob = registry.blob(&artifact.sha256);
    let original = fs::read(&blob).unwrap();
    let mut bytes = original.clone();
    bytes[1000] ^= 1;
    overwrite(&blob, &bytes);
    registry.point("credit-risk", "champion", second.version).await;
    predict.wait("it says why", async || predict.served().await[0].message.contains("model.json")).await;
    let served = predict.served().await.remove(0);
    assert_eq!((served.state(), served.version), (ServedModelState::Serving, 1));
    assert_eq!(version_of(&predict).await, 1);
    assert_eq!(predict.health("").await, Some(ServingStatus::Serving));

    overwrite(&blob, &original);
    predict.wait("version 2 answers", async || version_of(&predict).await == 2).await;

    // Sound bytes, but a policy that makes no sense.
    publish_broken(&registry).await;
    predict.wait("it says why", async || predict.served().await[0].message.contains("thresholds must rise")).await;
    assert_eq!(version_of(&predict).await, 2);
    predict.stop().await;
}

/// Publishes, as champion, a version whose policy makes no sense.
async fn publish_broken(registry: &Registry) -> Version {
    let broken = tempfile::tempdir().unwrap();
    fs::copy(credit_risk().join("1/model.json"), broken.path().join("model.json")).unwrap();
    let policy =
        r#"{"id":"p","version":"1","adverse":"high","outcomes":[{"outcome":"approve","below":2},{"outcome":"x"}]}"#;
    fs::write(broken.path().join("policy.json"), policy).unwrap();
    let dir = broken.path().to_owned();
    registry.publish("credit-risk", Task::TabularClassification, dir, Some("champion")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_cannot_be_loaded_is_neither_fetched_nor_read_again_and_again() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let (predict, dir) = Predict::warm(&registry, &[MODEL, "credit-risk/1"]).await;
    let broken = publish_broken(&registry).await;
    let told = async || predict.served().await[0].message.contains("thresholds must rise");
    predict.wait("it says why", told).await;

    // Whoever looked at this file again would put it right.
    let folder = dir.path().join("cache/sha256").join(broken.digest.strip_prefix("sha256:").unwrap());
    fs::write(folder.join("policy.json"), "spoiled").unwrap();
    // Wakes both slots; the other one has nothing to do, and sweeps.
    let sound = registry.publish_credit_risk(2, None).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(fs::read(folder.join("policy.json")).unwrap(), b"spoiled");
    assert!(told().await);
    assert_eq!(version_of(&predict).await, 1);

    registry.point("credit-risk", "champion", sound.version).await;
    predict.wait("it answers", async || version_of(&predict).await == sound.version).await;
    predict.wait("the files of the broken one go", async || !folder.exists()).await;
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_configured_is_ready_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let predict = Predict::start(config(dir.path(), "http://127.0.0.1:1", &[])).await;
    predict.wait_ready().await;
    let refused = predict.client().predict(request()).await.unwrap_err();
    assert!(refused.message().contains("PREDICT_MODELS"), "{}", refused.message());
    predict.stop().await;
}

/// Writes a file that is read-only for its owner, as a store may keep its own.
fn overwrite(path: &std::path::Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_knows_what_serves_here_until_it_stops() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let second = registry.publish_credit_risk(2, None).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL]).await;
    let lineage = LineageServiceClient::new(registry.channel());
    let listed = async || {
        let list = ListDeploymentsRequest { model: "credit-risk".into(), include_ended: true, ..Default::default() };
        let found = lineage.clone().list_deployments(list).await.unwrap().into_inner().deployments;
        found.into_iter().map(|it| (it.version, it.state(), it.digest, it.reference)).collect::<Vec<_>>()
    };
    predict.wait("version 1 is reported", async || listed().await.len() == 1).await;
    registry.point("credit-risk", "champion", second.version).await;
    predict.wait("version 2 is reported", async || listed().await.len() == 2).await;
    let told = listed().await;
    assert_eq!(told[0], (2, DeploymentState::Serving, second.digest, MODEL.to_owned()));
    assert_eq!((told[1].0, told[1].1), (1, DeploymentState::Ended));
    predict.stop().await;
    assert_eq!(listed().await[0].1, DeploymentState::Ended);
    registry.stop().await;
}
