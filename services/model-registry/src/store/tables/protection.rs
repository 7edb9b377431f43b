//! Rules of aliases, checks and approvals of versions.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::json;
use sqlx::{query, query_as};

use super::reading::{model, version};
use super::write::{Begun, Write, event};
use super::{Connection, Tables};
use crate::audit::{Change, alias_resource};
use crate::error::{Error, Result};
use crate::model::{AliasMove, Event, EventKind, Micros};
use crate::names::{ModelName, VersionId};
use crate::protection::{Act, Approval, Protection, RecordedCheck, Rule, Standing};
use crate::store::Call;
use crate::store::rows::{from_json, to_json};

#[async_trait]
impl Protection for Tables {
    async fn rules(&self, of: &ModelName) -> Result<BTreeMap<String, Rule>> {
        let mut tx = self.read().await?;
        model(&mut tx, of).await?;
        rules(&mut tx, of).await
    }

    async fn standing(&self, of: &VersionId) -> Result<Standing> {
        standing(&mut *self.read().await?, of).await
    }

    async fn act(&self, call: &Call, act: &Act) -> Result<()> {
        let mut write = match self.begin("act", call, act).await? {
            Begun::Before(()) => return Ok(()),
            Begun::Now(write) => write,
        };
        match act {
            Act::SetRule { model: of, alias, rule } => {
                call.must_expect(of, model(&mut write.tx, of).await?.revision)?;
                let before = rules(&mut write.tx, of).await?.remove(alias.as_str());
                query(
                    "INSERT INTO alias_rules (model, alias, required_checks, approvals, etag_required)
                     VALUES ($1, $2, $3, $4, $5)
                     ON CONFLICT (model, alias) DO UPDATE SET required_checks = excluded.required_checks,
                         approvals = excluded.approvals, etag_required = excluded.etag_required",
                )
                .bind(of.as_str())
                .bind(alias.as_str())
                .bind(to_json(&rule.required_checks)?)
                .bind(i64::from(rule.approvals))
                .bind(i64::from(rule.etag_required))
                .execute(&mut *write.tx)
                .await?;
                let changed = Change::changed("alias.set_rule", before, rule);
                write.audit(alias_resource(of, alias.as_str()), changed).await?;
                write.tell(event(EventKind::ModelUpdated, of)).await?;
            }
            Act::DeleteRule { model: of, alias } => {
                call.must_expect(of, model(&mut write.tx, of).await?.revision)?;
                let Some(before) = rules(&mut write.tx, of).await?.remove(alias.as_str()) else {
                    let message = format!("alias `{of}@{alias}` has no rule");
                    return Err(Error::Precondition { reason: "NO_ALIAS_RULE", message });
                };
                query("DELETE FROM alias_rules WHERE model = $1 AND alias = $2")
                    .bind(of.as_str())
                    .bind(alias.as_str())
                    .execute(&mut *write.tx)
                    .await?;
                let removed = Change::removed("alias.delete_rule", before);
                write.audit(alias_resource(of, alias.as_str()), removed).await?;
                write.tell(event(EventKind::ModelUpdated, of)).await?;
            }
            Act::RecordCheck { of, name, check } => {
                must_be_ready(&mut write.tx, of).await?;
                let before = standing(&mut write.tx, of).await?.checks.remove(name);
                query(
                    "INSERT INTO checks (model, version, name, passed, summary, caller, time)
                     VALUES ($1, $2, $3, $4, $5, $6, $7)
                     ON CONFLICT (model, version, name) DO UPDATE SET passed = excluded.passed,
                         summary = excluded.summary, caller = excluded.caller, time = excluded.time",
                )
                .bind(of.model.as_str())
                .bind(of.number)
                .bind(name)
                .bind(i64::from(check.passed))
                .bind(&check.summary)
                .bind(&call.caller)
                .bind(call.now.0)
                .execute(&mut *write.tx)
                .await?;
                let before = before.map(|it| json!({"name": name, "passed": it.passed, "summary": it.summary}));
                let after = json!({"name": name, "passed": check.passed, "summary": check.summary});
                write.of_version(of, Change::changed("version.record_check", before, after)).await?;
            }
            Act::Approve { of, alias, comment } => {
                must_be_ready(&mut write.tx, of).await?;
                let standing = standing(&mut write.tx, of).await?;
                if call.caller.is_empty() {
                    let problem = "must say who approves (gRPC metadata; or the user of HTTP basic authentication)";
                    return Err(Error::invalid("CALLER_UNKNOWN", "x-caller", problem));
                }
                if call.caller == standing.author {
                    let message = format!("`{}` made version `{of}` and cannot approve it", call.caller);
                    return Err(Error::Precondition { reason: "APPROVER_IS_AUTHOR", message });
                }
                query(
                    "INSERT INTO approvals (model, version, alias, approver, comment, time)
                     VALUES ($1, $2, $3, $4, $5, $6)
                     ON CONFLICT (model, version, alias, approver) DO UPDATE SET comment = excluded.comment,
                         time = excluded.time",
                )
                .bind(of.model.as_str())
                .bind(of.number)
                .bind(alias.as_str())
                .bind(&call.caller)
                .bind(comment)
                .bind(call.now.0)
                .execute(&mut *write.tx)
                .await?;
                let after = json!({"alias": alias, "comment": comment});
                write.of_version(of, Change::made("version.approve", after)).await?;
            }
        }
        write.commit(()).await
    }
}

impl Write {
    async fn of_version(&mut self, of: &VersionId, change: Change) -> Result<()> {
        self.record(Event { version: of.number, ..event(EventKind::VersionUpdated, &of.model) }, change).await
    }

    /// Refuses to move an alias whose rule asks for something that is missing.
    pub(super) async fn must_be_allowed(&mut self, call: &Call, to: &AliasMove) -> Result<()> {
        let Some(number) = to.to else { return Ok(()) };
        let Some(rule) = rules(&mut self.tx, &to.model).await?.remove(to.alias.as_str()) else { return Ok(()) };
        let of = VersionId { model: to.model.clone(), number };
        let mut standing = standing(&mut self.tx, &of).await?;
        standing.approvals.retain(|approval| approval.alias == to.alias.as_str());
        let missing = rule.missing(&standing, to.expected.is_some() || call.etag.is_some());
        if missing.is_empty() {
            return Ok(());
        }
        let message = format!(
            "alias `{}@{}` is protected and can't point at {number}: {}",
            to.model,
            to.alias,
            missing.join("; ")
        );
        Err(Error::Precondition { reason: "ALIAS_PROTECTED", message })
    }

    /// Refuses to do away with an alias while its rule stands; without an alias, with any that has a rule.
    pub(super) async fn must_not_be_protected(&mut self, model: &ModelName, alias: Option<&str>) -> Result<()> {
        let rules = rules(&mut self.tx, model).await?;
        let Some(alias) = rules.keys().find(|rule| alias.is_none_or(|alias| alias == *rule)) else { return Ok(()) };
        let message = format!("alias `{model}@{alias}` is protected; delete its rule first");
        Err(Error::Precondition { reason: "ALIAS_PROTECTED", message })
    }
}

/// What is said of a version is said of its files, so they must not change any more.
async fn must_be_ready(tx: &mut Connection, of: &VersionId) -> Result<()> {
    if version(tx, of).await?.digest.is_some() {
        return Ok(());
    }
    let message = format!("version `{of}` is PENDING; finalize it before it is checked and approved");
    Err(Error::Precondition { reason: "VERSION_PENDING", message })
}

async fn rules(tx: &mut Connection, model: &ModelName) -> Result<BTreeMap<String, Rule>> {
    let rows: Vec<(String, String, i64, i64)> =
        query_as("SELECT alias, required_checks, approvals, etag_required FROM alias_rules WHERE model = $1")
            .bind(model.as_str())
            .fetch_all(&mut *tx)
            .await?;
    let rule = |(alias, required_checks, approvals, etag_required): (String, String, i64, i64)| {
        let approvals = u32::try_from(approvals).map_err(anyhow::Error::from)?;
        let required_checks = from_json(&required_checks)?;
        Ok((alias, Rule { required_checks, approvals, etag_required: etag_required != 0 }))
    };
    rows.into_iter().map(rule).collect()
}

async fn standing(tx: &mut Connection, of: &VersionId) -> Result<Standing> {
    let author = version(tx, of).await?.author;
    let checks: Vec<(String, i64, String, String, i64)> =
        query_as("SELECT name, passed, summary, caller, time FROM checks WHERE model = $1 AND version = $2")
            .bind(of.model.as_str())
            .bind(of.number)
            .fetch_all(&mut *tx)
            .await?;
    let check = |(name, passed, summary, caller, time): (String, i64, String, String, i64)| {
        (name, RecordedCheck { passed: passed != 0, summary, caller, time: Micros(time) })
    };
    let approvals: Vec<(String, String, String, i64)> = query_as(
        "SELECT alias, approver, comment, time FROM approvals WHERE model = $1 AND version = $2
         ORDER BY alias, approver",
    )
    .bind(of.model.as_str())
    .bind(of.number)
    .fetch_all(&mut *tx)
    .await?;
    let approval = |(alias, approver, comment, time): (String, String, String, i64)| Approval {
        alias,
        approver,
        comment,
        time: Micros(time),
    };
    Ok(Standing {
        author,
        checks: checks.into_iter().map(check).collect(),
        approvals: approvals.into_iter().map(approval).collect(),
    })
}
