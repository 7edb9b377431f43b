use std::fs;

use tonic::Code;
use verdict_api::{
    predict::{DecideRequest, Decision, GetDecisionRequest, ListDecisionsRequest},
    registry::Task,
};

use crate::world::{Predict, Registry, applications, credit_risk, number, text, told};

const MODEL: &str = "credit-risk@champion";

fn case(application: usize, request_id: &str) -> DecideRequest {
    DecideRequest {
        model: MODEL.to_owned(),
        features: applications().swap_remove(application),
        request_id: request_id.to_owned(),
        max_reasons: 0,
    }
}

async fn decide(predict: &Predict, request: DecideRequest) -> Decision {
    predict.decisions().decide(request).await.unwrap().into_inner().decision.unwrap()
}

async fn recorded(predict: &Predict, decision_id: &str) -> Decision {
    let request = GetDecisionRequest { decision_id: decision_id.to_owned() };
    predict.decisions().get_decision(request).await.unwrap().into_inner().decision.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_scored_explained_recorded_and_listed() {
    let registry = Registry::start().await;
    let version = registry.publish_credit_risk(1, Some("champion")).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL]).await;

    let mut made = Vec::new();
    for application in 0..10 {
        let decision = decide(&predict, case(application, "")).await;
        let outcome = match decision.score {
            score if score < 0.35 => "approve",
            score if score < 0.6 => "review",
            _ => "decline",
        };
        assert_eq!(decision.outcome, outcome);
        assert_eq!(
            (decision.model.as_str(), decision.version, decision.alias.as_str()),
            ("credit-risk", 1, "champion")
        );
        assert_eq!((decision.digest.as_str(), decision.policy.as_str()), (version.digest.as_str(), "credit-risk/1"));
        assert_eq!(decision.features, applications()[application]);
        assert!(decision.features_hash.starts_with("sha256:") && !decision.request_id.is_empty());
        assert!(decision.reasons.len() <= 4 && !decision.reasons.is_empty());
        assert!(decision.reasons.iter().all(|reason| reason.contribution > 0.0 && reason.code.starts_with('R')));
        assert!(decision.reasons.windows(2).all(|pair| pair[0].contribution >= pair[1].contribution));
        assert_eq!(recorded(&predict, &decision.decision_id).await, decision);
        made.push(decision);
    }
    let all = decide(&predict, DecideRequest { max_reasons: 20, ..case(0, "") }).await;
    let one = decide(&predict, DecideRequest { max_reasons: 1, ..case(0, "") }).await;
    assert!(all.reasons.len() > 4 && one.reasons == all.reasons[..1]);
    made.extend([all, one]);

    let mut listed = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListDecisionsRequest { model: "credit-risk".to_owned(), page_size: 5, page_token };
        let page = predict.decisions().list_decisions(request).await.unwrap().into_inner();
        listed.extend(page.decisions);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    made.reverse();
    assert_eq!(listed, made);
    let none = ListDecisionsRequest { model: "other".to_owned(), ..ListDecisionsRequest::default() };
    assert!(predict.decisions().list_decisions(none).await.unwrap().into_inner().decisions.is_empty());
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_names_of_its_own_decides_by_those_of_its_signature() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let nameless = tempfile::tempdir().unwrap();
    let json = fs::read(credit_risk().join("1/model.json")).unwrap();
    let mut model: serde_json::Value = serde_json::from_slice(&json).unwrap();
    model["learner"]["feature_names"] = serde_json::json!([]);
    fs::write(nameless.path().join("model.json"), model.to_string()).unwrap();
    fs::copy(credit_risk().join("1/policy.json"), nameless.path().join("policy.json")).unwrap();
    let dir = nameless.path().to_owned();
    registry.publish("nameless", Task::TabularClassification, dir, Some("champion")).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL, "nameless@champion"]).await;

    let named = decide(&predict, case(0, "")).await;
    let decided = decide(&predict, DecideRequest { model: "nameless@champion".to_owned(), ..case(0, "") }).await;
    assert_eq!((decided.score, &decided.outcome, &decided.reasons), (named.score, &named.outcome, &named.reasons));
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_id_returns_the_first_decision_and_no_other() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let second = registry.publish_credit_risk(2, None).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL, "credit-risk/2"]).await;

    let first = decide(&predict, case(0, "order-1")).await;
    assert_eq!(first.request_id, "order-1");
    assert_eq!(decide(&predict, case(0, "order-1")).await, first);
    let other_model = DecideRequest { model: "credit-risk/2".to_owned(), ..case(0, "order-1") };
    for reused in [case(1, "order-1"), other_model] {
        let refused = predict.decisions().decide(reused).await.unwrap_err();
        assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::AlreadyExists, "REQUEST_ID_REUSED"));
    }

    // The alias moves on; what was decided stays decided.
    registry.point("credit-risk", "champion", second.version).await;
    predict.wait("version 2 serves", async || predict.served().await[0].version == 2).await;
    assert_eq!(decide(&predict, case(0, "order-1")).await, first);
    assert_eq!(decide(&predict, case(0, "order-2")).await.version, 2);

    let together = (0..16).map(|_| decide(&predict, case(3, "order-3")));
    let together = futures::future::join_all(together).await;
    assert!(together.iter().all(|decision| *decision == together[0]), "one request id, one decision");
    predict.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_decided_is_refused_with_its_reason() {
    let registry = Registry::start().await;
    registry.publish_credit_risk(1, Some("champion")).await;
    let bare = tempfile::tempdir().unwrap();
    fs::copy(credit_risk().join("1/model.json"), bare.path().join("model.json")).unwrap();
    registry.publish("scores-only", Task::TabularClassification, bare.path().to_owned(), Some("champion")).await;
    let (predict, _dir) = Predict::warm(&registry, &[MODEL, "scores-only@champion"]).await;
    let refused = async |request: DecideRequest| predict.decisions().decide(request).await.unwrap_err();

    let no_policy = refused(DecideRequest { model: "scores-only@champion".to_owned(), ..case(0, "") }).await;
    assert_eq!((no_policy.code(), told(&no_policy).0.as_str()), (Code::FailedPrecondition, "NO_POLICY"));
    let unknown = refused(DecideRequest { model: "fraud@champion".to_owned(), ..case(0, "") }).await;
    assert_eq!((unknown.code(), told(&unknown).0.as_str()), (Code::NotFound, "MODEL_NOT_SERVED"));

    let mut bad = case(0, "");
    bad.features.remove("age_in_years");
    bad.features.insert("credit_amount".to_owned(), text("much"));
    bad.features.insert("income".to_owned(), number(1.0));
    let (reason, mut fields) = told(&refused(bad).await);
    fields.sort();
    assert_eq!(reason, "INVALID_REQUEST");
    assert_eq!(fields, ["features.age_in_years", "features.credit_amount", "features.income"]);
    assert_eq!(told(&refused(case(0, &"x".repeat(129))).await).1, ["request_id"]);
    assert_eq!(told(&refused(case(0, "a\0b")).await).1, ["request_id"]);

    let mut decisions = predict.decisions();
    let missing = GetDecisionRequest { decision_id: "0199d4c4-0000-7000-8000-000000000000".to_owned() };
    let missing = decisions.get_decision(missing).await.unwrap_err();
    assert_eq!((missing.code(), told(&missing).0.as_str()), (Code::NotFound, "DECISION_NOT_FOUND"));
    let malformed = decisions.get_decision(GetDecisionRequest { decision_id: "7".to_owned() }).await.unwrap_err();
    assert_eq!(told(&malformed).1, ["decision_id"]);
    let page = ListDecisionsRequest { page_size: -1, ..ListDecisionsRequest::default() };
    assert_eq!(told(&decisions.list_decisions(page).await.unwrap_err()).1, ["page_size"]);
    let page = ListDecisionsRequest { page_token: "zzz".to_owned(), ..ListDecisionsRequest::default() };
    assert_eq!(told(&decisions.list_decisions(page).await.unwrap_err()).1, ["page_token"]);
    predict.stop().await;
}
