//! Ten credit applications: score, outcome, reasons, and the record behind each.

use std::{collections::HashMap, fs::File};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;
use verdict_api::predict::{
    DecideRequest, GetDecisionRequest, Value, decision_service_client::DecisionServiceClient, value::Kind,
};
use verdict_chassis::client;

use super::failed;
use crate::{
    Settings,
    tell::{self, Step},
};

pub(super) const MODEL: &str = "credit-risk@champion";

/// An application as it is carried: feature name → value.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Application(serde_json::Map<String, serde_json::Value>);

impl Application {
    /// The features as the service takes them.
    pub(super) fn features(&self) -> HashMap<String, Value> {
        let value = |json: &serde_json::Value| match json {
            serde_json::Value::String(text) => Some(Kind::Text(text.clone())),
            serde_json::Value::Bool(truth) => Some(Kind::Boolean(*truth)),
            serde_json::Value::Number(number) => number.as_f64().map(Kind::Number),
            serde_json::Value::Null | serde_json::Value::Array(_) | serde_json::Value::Object(_) => None,
        };
        self.0.iter().map(|(name, json)| (name.clone(), Value { kind: value(json) })).collect()
    }

    fn as_request(&self) -> serde_json::Value {
        let features: serde_json::Map<_, _> = self
            .0
            .iter()
            .map(|(name, value)| {
                let kind = if value.is_string() { "text" } else { "number" };
                (name.clone(), json!({ kind: value }))
            })
            .collect();
        json!({"model": MODEL, "features": features})
    }
}

/// Reads the carried applications.
pub(super) fn applications(settings: &Settings) -> Result<Vec<Application>> {
    let file = settings.demo_data.join("credit-risk/applications.json");
    let open = File::open(&file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_reader(open).with_context(|| format!("in {}", file.display()))
}

/// Decides ten applications and shows that the record of one can be read back and its request repeated.
pub(super) async fn ten_applications(settings: &Settings) -> Result<()> {
    let mut decisions = DecisionServiceClient::new(client::connect(&format!("http://{}", settings.predict))?);
    let applications = applications(settings)?;
    ensure!(applications.len() >= 10, "ten applications are needed");
    let step = Step::begin("Decide ten credit applications: score, policy, reasons (SHAP), a durable record each");
    tell::grpcurl(settings.predict, "verdict.predict.v1.DecisionService/Decide", &applications[0].as_request());
    let mut first = None;
    for (number, application) in applications.iter().take(10).enumerate() {
        let request = DecideRequest {
            model: MODEL.into(),
            features: application.features(),
            max_reasons: 3,
            ..Default::default()
        };
        let decision = decisions
            .decide(request.clone())
            .await
            .map_err(|status| failed("Decide", status))?
            .into_inner()
            .decision
            .context("no decision in the answer")?;
        let reasons: Vec<_> = decision
            .reasons
            .iter()
            .map(|reason| format!("{} {} ({:+.2})", reason.code, reason.text, reason.contribution))
            .collect();
        tell::detail(format!(
            "#{:<2} score {:.4}  {:<8} {}",
            number + 1,
            decision.score,
            decision.outcome,
            reasons.join("; ")
        ));
        first.get_or_insert((request, decision));
    }
    step.end("ten decisions, each recorded before it was answered");

    let (request, decision) = first.context("no decision was made")?;
    let step = Step::begin("Read a decision back, and repeat its request");
    let id = decision.decision_id.clone();
    tell::grpcurl(settings.predict, "verdict.predict.v1.DecisionService/GetDecision", &json!({"decision_id": id}));
    let recorded = decisions
        .get_decision(GetDecisionRequest { decision_id: id.clone() })
        .await
        .map_err(|status| failed("GetDecision", status))?
        .into_inner()
        .decision;
    ensure!(recorded.as_ref() == Some(&decision), "the record differs from the answer");
    let again = DecideRequest { request_id: decision.request_id.clone(), ..request };
    let repeated = decisions.decide(again).await.map_err(|status| failed("Decide", status))?.into_inner().decision;
    ensure!(repeated.is_some_and(|repeated| repeated.decision_id == id), "the repeated request decided anew");
    step.end(format!("decision {id}: the record equals the answer; the repeated request returned the same decision"));
    Ok(())
}
