//! A new champion while requests are in flight.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use verdict_api::{
    predict::{PredictRequest, Row, Rows, predict_request::Input, predict_service_client::PredictServiceClient},
    registry::{SetAliasRequest, model_registry_service_client::ModelRegistryServiceClient},
};
use verdict_chassis::client;

use super::{
    decide::{MODEL, applications},
    failed,
};
use crate::{
    Settings, publish,
    tell::{self, Step},
};

/// Callers that keep asking while the champion changes.
const CALLERS: usize = 8;
/// How long the callers go on once the new version has answered.
const AFTER: Duration = Duration::from_millis(500);
/// How long the new version may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers by version, and failures, of one caller or of all.
#[derive(Default)]
struct Tally {
    answers: BTreeMap<i64, u64>,
    failures: Vec<String>,
}

/// Publishes a second version, moves the alias under load and counts what every caller got.
pub(super) async fn under_load(settings: &Settings) -> Result<()> {
    let channel = client::connect(&format!("http://{}", settings.registry))?;
    let step = Step::begin("Publish a second version of credit-risk");
    let next = publish::show(&channel, publish::credit_risk(settings, 2, None)?).await?;
    step.end(format!("{}/{} is ready, `{MODEL}` still points at the first", next.model, next.version));

    let step = Step::begin(format!("Move `champion` to it while {CALLERS} callers keep predicting"));
    let stop = Arc::new(AtomicBool::new(false));
    let switched = Arc::new(AtomicBool::new(false));
    let row = Row { features: applications(settings)?.first().context("no application")?.features() };
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let predict = PredictServiceClient::new(client::connect(&format!("http://{}", settings.predict))?);
            Ok(tokio::spawn(call(predict, row.clone(), next.version, stop.clone(), switched.clone())))
        })
        .collect::<Result<_>>()?;
    tokio::time::sleep(AFTER).await;

    let registry = ModelRegistryServiceClient::new(channel);
    let current = resolve(registry.clone()).await?;
    let request = SetAliasRequest {
        model: publish::CREDIT_RISK.into(),
        alias: publish::CHAMPION.into(),
        version: next.version,
        expected_version: Some(current),
        ..Default::default()
    };
    tell::grpcurl(
        settings.registry,
        "verdict.registry.v1.ModelRegistryService/SetAlias",
        &json!({
            "model": publish::CREDIT_RISK, "alias": publish::CHAMPION,
            "version": next.version, "expected_version": current
        }),
    );
    let moved = Instant::now();
    registry.clone().set_alias(request).await.map_err(|status| failed("SetAlias", status))?;
    while !switched.load(Ordering::Relaxed) && moved.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let took = moved.elapsed();
    tokio::time::sleep(AFTER).await;
    stop.store(true, Ordering::Relaxed);

    let mut all = Tally::default();
    for caller in callers {
        let tally = caller.await?;
        for (version, count) in tally.answers {
            *all.answers.entry(version).or_default() += count;
        }
        all.failures.extend(tally.failures);
    }
    for (version, count) in &all.answers {
        tell::detail(format!("version {version} answered {count} requests"));
    }
    ensure!(all.failures.is_empty(), "{} requests failed, the first: {}", all.failures.len(), all.failures[0]);
    ensure!(switched.load(Ordering::Relaxed), "the new version did not answer within {} s", PATIENCE.as_secs());
    step.end(format!(
        "hot-swap: {} requests in flight or answered, 0 failed; the new version answered {} after the alias moved",
        all.answers.values().sum::<u64>(),
        tell::span(took)
    ));
    Ok(())
}

async fn resolve(mut registry: ModelRegistryServiceClient<client::Channel>) -> Result<i64> {
    let request = verdict_api::registry::ResolveModelRequest { uri: format!("models:/{MODEL}") };
    let answer = registry.resolve_model(request).await.map_err(|status| failed("ResolveModel", status))?;
    Ok(answer.into_inner().version.context("no version in the answer")?.version)
}

async fn call(
    mut predict: PredictServiceClient<client::Channel>,
    row: Row,
    next: i64,
    stop: Arc<AtomicBool>,
    switched: Arc<AtomicBool>,
) -> Tally {
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        let request =
            PredictRequest { model: MODEL.into(), input: Some(Input::Rows(Rows { rows: vec![row.clone()] })) };
        match predict.predict(request).await {
            Ok(answer) => {
                let version = answer.into_inner().served_by.unwrap_or_default().version;
                *tally.answers.entry(version).or_default() += 1;
                if version == next {
                    switched.store(true, Ordering::Relaxed);
                }
            }
            Err(status) => tally.failures.push(format!("{:?}: {}", status.code(), status.message())),
        }
    }
    tally
}
