//! The audit log, protected aliases, etags and dry runs, on both back-ends.

use std::collections::HashMap;

use prost_types::FieldMask;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};
use verdict_api::registry::audit_service_client::AuditServiceClient;
use verdict_api::registry::protection_service_client::ProtectionServiceClient;
use verdict_api::registry::{
    AliasRule, ApproveVersionRequest, AuditAnchor, AuditEntry, Check, DeleteAliasRequest, DeleteAliasRuleRequest,
    DeleteModelRequest, GetAliasAtRequest, GetStandingRequest, ListAuditEntriesRequest, Model, RecordCheckRequest,
    SetAliasRequest, SetAliasRuleRequest, SetTagRequest, UpdateModelRequest, UpdateVersionRequest, VerifyAuditRequest,
    VerifyAuditResponse, Version,
};
use verdict_chassis::client::Channel;

use crate::world::{Answer, World, reason, sha256, version_of};

macro_rules! on_both {
    ($($case:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let world = super::World::embedded().await;
                super::$case(&world).await;
                world.stop().await;
            })+
        }
        mod live {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let world = super::World::production().await;
                super::$case(&world).await;
                world.stop().await;
            })+
        }
    };
}

on_both! {
    every_change_is_in_the_log_with_who_and_what,
    the_chain_can_be_followed_by_anybody,
    an_alias_is_known_for_every_point_in_time,
    a_protected_alias_moves_only_when_its_rule_is_met,
    an_etag_refuses_what_was_decided_on_an_older_state,
    a_dry_run_is_checked_to_the_end_and_changes_nothing,
    updates_change_what_their_mask_names,
}

fn audit(world: &World) -> AuditServiceClient<Channel> {
    AuditServiceClient::new(world.channel.clone())
}

fn protection(world: &World) -> ProtectionServiceClient<Channel> {
    ProtectionServiceClient::new(world.channel.clone())
}

/// A request by somebody.
fn by<T>(caller: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-caller", MetadataValue::try_from(caller).unwrap());
    request
}

/// The whole log, oldest first, read in pages of `page_size`.
async fn entries(world: &World, resource: &str, page_size: i32) -> Vec<AuditEntry> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let list =
            ListAuditEntriesRequest { resource: resource.to_owned(), page_size, page_token, ..Default::default() };
        let page = audit(world).list_audit_entries(list).await.unwrap().into_inner();
        all.extend(page.entries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            all.reverse();
            return all;
        }
    }
}

async fn verified(world: &World, anchor: Option<AuditAnchor>) -> VerifyAuditResponse {
    audit(world).verify_audit(VerifyAuditRequest { anchor, max_entries: 0 }).await.unwrap().into_inner()
}

async fn every_change_is_in_the_log_with_who_and_what(world: &World) {
    world.model("fraud").await;
    let create = by("ada", version_of("fraud"));
    let version = world.client.clone().create_version(create).await.unwrap().into_inner().version.unwrap();
    assert_eq!(version.author, "ada");
    world.upload("fraud", 1, "w", b"1").await.unwrap();
    world.finalize("fraud", 1).await.unwrap();
    let set = SetAliasRequest { model: "fraud".into(), alias: "champion".into(), version: 1, ..Default::default() };
    world.client.clone().set_alias(by("bob", set)).await.unwrap();
    let tag = SetTagRequest { model: "fraud".into(), key: "k".into(), value: "v".into(), ..Default::default() };
    world.client.clone().set_tag(by("zoe", tag)).await.unwrap();
    // MLflow's clients say who they are by basic authentication, or not at all.
    let (status, _) = world
        .rest(
            "POST",
            "/api/2.0/mlflow/registered-models/set-tag",
            serde_json::json!({"name": "fraud", "key": "k", "value": "w"}),
        )
        .await;
    assert_eq!(status, 200);

    let log = entries(world, "", 3).await;
    let told: Vec<_> = log.iter().map(|e| (e.sequence, &*e.caller, &*e.action, &*e.resource)).collect();
    assert_eq!(
        told,
        [
            (1, "", "model.create", "models/fraud"),
            (2, "ada", "version.create", "models/fraud/versions/1"),
            (3, "", "version.put_artifact", "models/fraud/versions/1"),
            (4, "", "version.finalize", "models/fraud/versions/1"),
            (5, "bob", "alias.set", "models/fraud/aliases/champion"),
            (6, "zoe", "tag.set", "models/fraud"),
            (7, "", "tag.set", "models/fraud"),
        ]
    );
    assert_eq!((&*log[5].before_json, &*log[5].after_json), ("", r#"{"tags":{"k":"v"}}"#));
    assert_eq!((&*log[6].before_json, &*log[6].after_json), (r#"{"tags":{"k":"v"}}"#, r#"{"tags":{"k":"w"}}"#));
    assert_eq!(entries(world, "models/fraud/versions", 100).await.len(), 3);
    assert_eq!(entries(world, "models/fra", 100).await.len(), 0, "half a name is none");
    let by_bob = ListAuditEntriesRequest { caller: "bob".into(), ..Default::default() };
    assert_eq!(audit(world).list_audit_entries(by_bob).await.unwrap().into_inner().entries, [log[4].clone()]);
    let until = ListAuditEntriesRequest { end_time: log[4].time, ..Default::default() };
    let before = audit(world).list_audit_entries(until).await.unwrap().into_inner().entries;
    assert!(before.iter().all(|entry| entry.sequence < 5));

    // What goes says what it was, also the alias that goes with its model.
    let delete = DeleteModelRequest { name: "fraud".into(), force: true, ..Default::default() };
    world.client.clone().delete_model(by("eve", delete)).await.unwrap();
    let log = entries(world, "models/fraud", 100).await;
    let last: Vec<_> = log[7..].iter().map(|e| (&*e.action, &*e.before_json, &*e.after_json)).collect();
    assert_eq!(last[0], ("alias.delete", r#"{"version":1}"#, ""));
    assert_eq!((last[1].0, last[1].2, last.len()), ("model.delete", "", 2));
    let all = verified(world, None).await;
    assert!(all.intact);
    assert_eq!(all.verified.unwrap().sequence, 9);
}

async fn the_chain_can_be_followed_by_anybody(world: &World) {
    world.model("m").await;
    for _ in 0..3 {
        world.ready("m", &[("a", b"1")]).await;
    }
    let log = entries(world, "", 100).await;
    assert_eq!(log.len(), 10);
    // As the documentation says it, without this crate's code.
    let mut previous = String::new();
    for entry in &log {
        let time = entry.time.unwrap();
        let micros = time.seconds * 1_000_000 + i64::from(time.nanos / 1000);
        let state = |json: &str| if json.is_empty() { "0".to_owned() } else { format!("1{json}") };
        let mut bytes = Vec::new();
        for field in [
            "verdict.registry.audit.v1",
            &previous,
            &entry.sequence.to_string(),
            &micros.to_string(),
            &entry.caller,
            &entry.action,
            &entry.resource,
            &state(&entry.before_json),
            &state(&entry.after_json),
        ] {
            bytes.extend((field.len() as u64).to_be_bytes());
            bytes.extend(field.as_bytes());
        }
        assert_eq!(sha256(&bytes), entry.hash, "entry {}", entry.sequence);
        previous = entry.hash.clone();
    }
    let all = verified(world, None).await;
    let end = AuditAnchor { sequence: 10, hash: previous };
    assert_eq!((all.intact, all.verified.unwrap(), all.end.unwrap()), (true, end.clone(), end.clone()));
    // In steps, from what the step before answered; and from an anchor noted long ago.
    let some = VerifyAuditRequest { anchor: None, max_entries: 4 };
    let some = audit(world).verify_audit(some).await.unwrap().into_inner();
    assert_eq!((some.intact, some.verified.as_ref().unwrap().sequence), (true, 4));
    let rest = verified(world, some.verified).await;
    assert_eq!((rest.intact, rest.verified.unwrap()), (true, end.clone()));
    let lie = AuditAnchor { hash: "0".repeat(64), ..end };
    let refused = verified(world, Some(lie)).await;
    assert!(!refused.intact && refused.broken_sequence == 10, "{refused:?}");
    let beyond = verified(world, Some(AuditAnchor { sequence: 99, hash: "0".repeat(64) })).await;
    assert!(!beyond.intact && beyond.broken_sequence == 99, "{beyond:?}");
}

async fn alias_at(world: &World, alias: &str, time: Option<prost_types::Timestamp>) -> (i64, Option<AuditEntry>) {
    let get = GetAliasAtRequest { model: "m".into(), alias: alias.into(), time };
    let answer = audit(world).get_alias_at(get).await.unwrap().into_inner();
    (answer.version, answer.since)
}

async fn an_alias_is_known_for_every_point_in_time(world: &World) {
    world.model("m").await;
    for _ in 0..2 {
        world.ready("m", &[("a", b"1")]).await;
    }
    world.point("m", "champion", 1, None).await.unwrap();
    world.point("m", "champion", 2, None).await.unwrap();
    let delete = DeleteAliasRequest { model: "m".into(), alias: "champion".into(), ..Default::default() };
    world.client.clone().delete_alias(delete).await.unwrap();
    world.point("m", "champion", 1, None).await.unwrap();
    let moves = entries(world, "models/m/aliases/champion", 100).await;
    let at: Vec<i64> = {
        let mut at = Vec::new();
        for entry in &moves {
            let (version, since) = alias_at(world, "champion", entry.time).await;
            assert_eq!(since.as_ref(), Some(entry));
            at.push(version);
        }
        at
    };
    assert_eq!(at, [1, 2, 0, 1]);
    assert_eq!(alias_at(world, "champion", None).await.0, 1);
    let before = prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 };
    assert_eq!(alias_at(world, "champion", Some(before)).await, (0, None));
    assert_eq!(alias_at(world, "challenger", None).await, (0, None));
    // Under another name it goes on; under the old one it has ended.
    let rename = serde_json::json!({"name": "m", "new_name": "n"});
    assert_eq!(world.rest("POST", "/api/2.0/mlflow/registered-models/rename", rename).await.0, 200);
    assert_eq!(alias_at(world, "champion", None).await.0, 0);
    let get = GetAliasAtRequest { model: "n".into(), alias: "champion".into(), time: None };
    assert_eq!(audit(world).get_alias_at(get).await.unwrap().into_inner().version, 1);
    assert!(verified(world, None).await.intact);
}

async fn a_protected_alias_moves_only_when_its_rule_is_met(world: &World) {
    world.model("m").await;
    let create = by("ada", version_of("m"));
    world.client.clone().create_version(create).await.unwrap();
    world.upload("m", 1, "a", b"1").await.unwrap();
    world.finalize("m", 1).await.unwrap();
    world.point("m", "champion", 1, None).await.unwrap();
    world.client.clone().create_version(by("ada", version_of("m"))).await.unwrap();
    world.upload("m", 2, "a", b"2").await.unwrap();
    // What is said of a version is said of its files: they must not change any more.
    let early = RecordCheckRequest {
        model: "m".into(),
        version: 2,
        check: Some(Check { name: "backtest".into(), passed: true, ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(reason(protection(world).record_check(by("ci", early)).await), "VERSION_PENDING");
    world.finalize("m", 2).await.unwrap();

    let rule = |required: &[&str], approvals, etag_required| SetAliasRuleRequest {
        model: "m".into(),
        rule: Some(AliasRule {
            alias: "champion".into(),
            required_checks: required.iter().map(ToString::to_string).collect(),
            approvals,
            etag_required,
        }),
        ..Default::default()
    };
    assert_eq!(reason(protection(world).set_alias_rule(rule(&[], 0, false)).await), "INVALID_RULE");
    protection(world).set_alias_rule(by("risk", rule(&["backtest"], 1, true))).await.unwrap();

    let refused = world.point("m", "champion", 2, None).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for missing in ["`backtest` has not been recorded", "0 of 1 approvals", "`etag` or `expected_version`"] {
        assert!(refused.message().contains(missing), "{missing}: {}", refused.message());
    }
    // MLflow's clients are held to it too, and can neither delete the alias, its version, its model, nor rename it away.
    let registered = "/api/2.0/mlflow/registered-models";
    for (method, path, body) in [
        ("POST", format!("{registered}/alias"), serde_json::json!({"name": "m", "alias": "champion", "version": "2"})),
        ("DELETE", format!("{registered}/alias"), serde_json::json!({"name": "m", "alias": "champion"})),
        ("DELETE", format!("{registered}/delete"), serde_json::json!({"name": "m"})),
        ("POST", format!("{registered}/rename"), serde_json::json!({"name": "m", "new_name": "n"})),
        (
            "DELETE",
            "/api/2.0/mlflow/model-versions/delete".to_owned(),
            serde_json::json!({"name": "m", "version": "1"}),
        ),
    ] {
        let (status, answer) = world.rest(method, &path, body).await;
        assert_eq!(status, 400, "{method} {path}: {answer}");
        assert!(answer["message"].as_str().unwrap().contains("is protected"), "{answer}");
    }
    assert_eq!(alias_at(world, "champion", None).await.0, 1, "nothing of it has happened");

    let check = |passed| RecordCheckRequest {
        model: "m".into(),
        version: 2,
        check: Some(Check { name: "backtest".into(), passed, summary: "AUC 0.81".into(), ..Default::default() }),
        ..Default::default()
    };
    protection(world).record_check(by("ci", check(false))).await.unwrap();
    let refused = world.point("m", "champion", 2, Some(1)).await.unwrap_err();
    assert!(refused.message().contains("`backtest` has failed"), "{}", refused.message());
    protection(world).record_check(by("ci", check(true))).await.unwrap();

    let approve = |alias: &str| ApproveVersionRequest {
        model: "m".into(),
        version: 2,
        alias: alias.into(),
        comment: "read the report".into(),
        ..Default::default()
    };
    assert_eq!(reason(protection(world).approve_version(approve("champion")).await), "CALLER_UNKNOWN");
    let own = protection(world).approve_version(by("ada", approve("champion"))).await;
    assert_eq!(reason(own), "APPROVER_IS_AUTHOR");
    protection(world).approve_version(by("bob", approve("challenger"))).await.unwrap();
    assert_eq!(reason(world.point("m", "champion", 2, Some(1)).await), "ALIAS_PROTECTED");
    protection(world).approve_version(by("bob", approve("champion"))).await.unwrap();
    assert_eq!(reason(world.point("m", "champion", 2, None).await), "ALIAS_PROTECTED");
    assert_eq!(world.point("m", "champion", 2, Some(1)).await.unwrap().aliases["champion"], 2);

    // Two who take the same id do not get each other's answer.
    let twice = ApproveVersionRequest { request_id: "approve".into(), ..approve("champion") };
    protection(world).approve_version(by("bob", twice.clone())).await.unwrap();
    assert_eq!(reason(protection(world).approve_version(by("eve", twice)).await), "REQUEST_ID_REUSED");

    let get = GetStandingRequest { model: "m".into(), version: 2 };
    let standing = protection(world).get_standing(get).await.unwrap().into_inner();
    assert_eq!((&*standing.author, standing.checks.len(), standing.approvals.len()), ("ada", 1, 2));
    assert_eq!((&*standing.checks[0].caller, standing.checks[0].passed), ("ci", true));

    // A rule for an alias that is not there yet keeps its model too.
    world.model("n").await;
    let ahead = SetAliasRuleRequest { model: "n".into(), ..rule(&["backtest"], 0, false) };
    protection(world).set_alias_rule(ahead).await.unwrap();
    let delete = DeleteModelRequest { name: "n".into(), ..Default::default() };
    assert_eq!(reason(world.client.clone().delete_model(delete).await), "ALIAS_PROTECTED");

    let delete = DeleteAliasRuleRequest { model: "m".into(), alias: "champion".into(), ..Default::default() };
    protection(world).delete_alias_rule(by("risk", delete.clone())).await.unwrap();
    assert_eq!(reason(protection(world).delete_alias_rule(delete).await), "NO_ALIAS_RULE");
    world.point("m", "champion", 1, None).await.unwrap();
    let actions: Vec<_> =
        entries(world, "models/m/aliases/champion", 100).await.into_iter().map(|e| (e.action, e.caller)).collect();
    let wanted = [
        ("alias.set", ""),
        ("alias.set_rule", "risk"),
        ("alias.set", ""),
        ("alias.delete_rule", "risk"),
        ("alias.set", ""),
    ];
    assert_eq!(actions, wanted.map(|(action, caller)| (action.to_owned(), caller.to_owned())));
    assert!(verified(world, None).await.intact);
}

async fn an_etag_refuses_what_was_decided_on_an_older_state(world: &World) {
    let etag = world.model("m").await.etag;
    world.ready("m", &[("a", b"1")]).await;
    let set = |etag: &str| SetAliasRequest {
        model: "m".into(),
        alias: "champion".into(),
        version: 1,
        etag: etag.into(),
        ..Default::default()
    };
    let refused: Answer<_> = world.client.clone().set_alias(set(&etag)).await;
    assert_eq!(refused.as_ref().unwrap_err().code(), Code::Aborted);
    assert_eq!(reason(refused), "ETAG_MISMATCH");
    let get = verdict_api::registry::GetModelRequest { name: "m".into() };
    let model = world.client.clone().get_model(get).await.unwrap().into_inner().model.unwrap();
    world.client.clone().set_alias(set(&model.etag)).await.unwrap();
    let version = world.get("m", 1).await.unwrap();
    let tag = SetTagRequest {
        model: "m".into(),
        version: Some(1),
        key: "k".into(),
        value: "v".into(),
        etag: version.etag,
        ..Default::default()
    };
    world.client.clone().set_tag(tag.clone()).await.unwrap();
    let again = SetTagRequest { value: "w".into(), ..tag };
    assert_eq!(reason(world.client.clone().set_tag(again).await), "ETAG_MISMATCH");
}

async fn a_dry_run_is_checked_to_the_end_and_changes_nothing(world: &World) {
    world.model("m").await;
    world.ready("m", &[("a", b"1")]).await;
    let before = entries(world, "", 100).await;
    let set = |version| SetAliasRequest {
        model: "m".into(),
        alias: "champion".into(),
        version,
        request_id: "one".into(),
        validate_only: true,
        ..Default::default()
    };
    let would = world.client.clone().set_alias(set(1)).await.unwrap().into_inner().model.unwrap();
    assert_eq!(would.aliases, HashMap::from([("champion".to_owned(), 1)]), "answered as if it had happened");
    assert_eq!(reason(world.client.clone().set_alias(set(2)).await), "VERSION_NOT_FOUND");
    let create = verdict_api::registry::CreateVersionRequest { validate_only: true, ..version_of("m") };
    let would = world.client.clone().create_version(create).await.unwrap().into_inner().version.unwrap();
    assert_eq!(would.version, 2);
    assert_eq!(entries(world, "", 100).await, before);
    // Neither the number nor the request id is used up.
    assert_eq!(world.version("m").await.version, 2);
    let real = SetAliasRequest { validate_only: false, ..set(1) };
    world.client.clone().set_alias(real).await.unwrap();
    assert_eq!(alias_at(world, "champion", None).await.0, 1);
}

async fn updates_change_what_their_mask_names(world: &World) {
    world.model("m").await;
    world.ready("m", &[("a", b"1")]).await;
    let mask = |paths: &[&str]| Some(FieldMask { paths: paths.iter().map(ToString::to_string).collect() });
    let tags = |key: &str| HashMap::from([(key.to_owned(), "v".to_owned())]);
    let model = |paths: &[&str], key: &str, etag: String| UpdateModelRequest {
        model: Some(Model { name: "m".into(), description: "new".into(), tags: tags(key), etag, ..Default::default() }),
        update_mask: mask(paths),
        ..Default::default()
    };
    let update = async |request| Ok(world.client.clone().update_model(request).await?.into_inner().model.unwrap());
    let updated = update(model(&["description"], "k", String::new())).await.unwrap();
    assert_eq!((&*updated.description, updated.tags.len()), ("new", 0));
    let updated = update(model(&["tags"], "k", updated.etag)).await.unwrap();
    assert_eq!(updated.tags, tags("k"));
    let updated = update(model(&["tags", "description"], "l", updated.etag.clone())).await.unwrap();
    assert_eq!(updated.tags, tags("l"), "all of them at once");
    let once = UpdateModelRequest { request_id: "once".into(), ..model(&["tags"], "m", String::new()) };
    let first = update(once.clone()).await.unwrap();
    update(model(&["tags"], "n", String::new())).await.unwrap();
    assert_eq!(update(once).await.unwrap(), first, "a repeated call gets the first answer");
    let dry = UpdateModelRequest { validate_only: true, ..model(&["tags"], "o", String::new()) };
    assert_eq!(update(dry).await.unwrap().tags, tags("o"), "as if it had happened");
    assert_eq!(reason(update(model(&["name"], "k", String::new())).await), "INVALID_MASK");
    assert_eq!(reason(update(model(&[], "k", String::new())).await), "INVALID_MASK");
    assert_eq!(reason(update(model(&["tags"], "k", "0".into())).await), "ETAG_MISMATCH");

    let version = UpdateVersionRequest {
        version: Some(Version { model: "m".into(), version: 1, description: "why".into(), ..Default::default() }),
        update_mask: mask(&["description"]),
        ..Default::default()
    };
    let updated = world.client.clone().update_version(version).await.unwrap().into_inner().version.unwrap();
    assert_eq!((&*updated.description, &updated.digest), ("why", &world.get("m", 1).await.unwrap().digest));
}

/// What somebody does who can write the database: each is found out.
#[tokio::test(flavor = "multi_thread")]
async fn tampering_with_the_log_is_found_out() {
    use sqlx::{Connection, Executor, SqliteConnection};
    for (sql, at) in [
        ("UPDATE audit SET caller = 'eve' WHERE sequence = 3", 3),
        ("UPDATE audit SET after = '{\"version\":9}' WHERE sequence = 5", 5),
        ("UPDATE audit SET time = time - 1 WHERE sequence = 2", 2),
        ("DELETE FROM audit WHERE sequence = 4", 4),
        ("DELETE FROM audit WHERE sequence > 7", 8),
        ("DELETE FROM audit WHERE sequence = 1", 1),
        (
            "UPDATE audit SET sequence = -sequence WHERE sequence IN (3, 4);
          UPDATE audit SET sequence = 7 + sequence WHERE sequence < 0",
            3,
        ),
        ("UPDATE log SET audit_hash = 'x'", 10),
    ] {
        let data = tempfile::tempdir().unwrap();
        let config = model_registry::Config::in_dir(data.path());
        let store = model_registry::store::open(&config.database.url(), 2, true).await.unwrap();
        for n in 0..10 {
            let draft = model_registry::model::ModelDraft {
                name: model_registry::names::ModelName::parse("name", &format!("m{n}")).unwrap(),
                description: String::new(),
                tags: Default::default(),
            };
            store.create_model(&model_registry::store::Call::now(), &draft).await.unwrap();
        }
        let verify = async || {
            let begin = model_registry::audit::Anchor::default();
            model_registry::audit::verify(&*store, begin, 100, |_, _| {}).await.unwrap()
        };
        assert_eq!(verify().await.broken, None);
        let file = format!("sqlite://{}", data.path().join("registry.db").display());
        let mut database = SqliteConnection::connect(&file).await.unwrap();
        database.execute(sql).await.unwrap();
        let broken = verify().await.broken;
        assert_eq!(broken.as_ref().map(|(sequence, _)| *sequence), Some(at), "{sql}: {broken:?}");
    }
}
