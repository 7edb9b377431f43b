//! Protected aliases: what must be so before `champion` moves.
//!
//! A rule belongs to one alias of one model. It asks for checks that have passed on the version the alias is to point at,
//! for approvals by people who did not make that version, and for a caller who says which state they act on. While a rule
//! stands its alias is neither deleted nor renamed away. Rules, checks and approvals are in the audit log.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::model::{Micros, check_key, check_text};
use crate::names::{AliasName, ModelName, VersionId};
use crate::store::Call;

/// Most checks a rule may ask for.
const MAX_CHECKS: usize = 50;
/// Most approvals a rule may ask for.
const MAX_APPROVALS: u32 = 10;
/// Longest summary of a check and comment of an approval, in bytes.
const MAX_WORDS: usize = 10_000;

/// What an alias asks for before it moves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Checks whose newest result on the version must be a pass.
    pub required_checks: BTreeSet<String>,
    /// How many other people than the version's author must have approved.
    pub approvals: u32,
    /// Whether the caller must give the model's etag, or the version the alias points at.
    pub etag_required: bool,
}

impl Rule {
    /// Checks names and numbers.
    pub fn check(&self) -> Result<()> {
        if self.required_checks.len() > MAX_CHECKS {
            return Err(Error::invalid("INVALID_RULE", "required_checks", format!("must be at most {MAX_CHECKS}")));
        }
        self.required_checks.iter().try_for_each(|name| check_key("required_checks", name))?;
        if self.approvals > MAX_APPROVALS {
            return Err(Error::invalid("INVALID_RULE", "approvals", format!("must be 0 to {MAX_APPROVALS}")));
        }
        if *self == Self::default() {
            let problem = "or `approvals` or `etag_required` must be given: this rule asks for nothing";
            return Err(Error::invalid("INVALID_RULE", "required_checks", problem));
        }
        Ok(())
    }

    /// Lists what is missing for the alias to move to a version of which this is known; empty when it may.
    pub fn missing(&self, standing: &Standing, expects: bool) -> Vec<String> {
        let mut missing = Vec::new();
        for name in &self.required_checks {
            match standing.checks.get(name) {
                Some(check) if check.passed => {}
                Some(_) => missing.push(format!("check `{name}` has failed")),
                None => missing.push(format!("check `{name}` has not been recorded")),
            }
        }
        let by_others = standing.approvals.iter().filter(|approval| approval.approver != standing.author).count();
        if self.approvals > 0 && standing.author.is_empty() {
            missing.push("nobody knows who made the version, so nobody else can approve it".to_owned());
        } else if by_others < self.approvals as usize {
            let wanted = self.approvals;
            missing.push(format!("it has {by_others} of {wanted} approvals by others than `{}`", standing.author));
        }
        if self.etag_required && !expects {
            missing.push("the call must give `etag` or `expected_version`".to_owned());
        }
        missing
    }
}

/// The result of a check on a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub passed: bool,
    pub summary: String,
}

/// A result, and who recorded it when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedCheck {
    pub passed: bool,
    pub summary: String,
    pub caller: String,
    pub time: Micros,
}

/// Somebody's consent that an alias points at a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    pub alias: String,
    pub approver: String,
    pub comment: String,
    pub time: Micros,
}

/// What is known about a version, for the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub author: String,
    /// By name, the newest result of each.
    pub checks: BTreeMap<String, RecordedCheck>,
    pub approvals: Vec<Approval>,
}

/// A change of what protects.
#[derive(Clone, Debug, Serialize)]
pub enum Act {
    SetRule { model: ModelName, alias: AliasName, rule: Rule },
    DeleteRule { model: ModelName, alias: AliasName },
    RecordCheck { of: VersionId, name: String, check: Check },
    Approve { of: VersionId, alias: AliasName, comment: String },
}

impl Act {
    /// Checks what types alone don't.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::SetRule { rule, .. } => rule.check(),
            Self::DeleteRule { .. } => Ok(()),
            Self::RecordCheck { name, check, .. } => {
                check_key("name", name)?;
                check_text("summary", &check.summary, MAX_WORDS)
            }
            Self::Approve { comment, .. } => check_text("comment", comment, MAX_WORDS),
        }
    }
}

/// Rules, checks and approvals, each method one transaction.
#[async_trait]
pub trait Protection: Send + Sync {
    /// Lists the rules of a model by alias.
    async fn rules(&self, model: &ModelName) -> Result<BTreeMap<String, Rule>>;
    /// Finds what is known about a version.
    async fn standing(&self, of: &VersionId) -> Result<Standing>;
    /// Changes a rule, records a check or approves. Whoever approves must have a name that is not the author's.
    async fn act(&self, call: &Call, act: &Act) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_lists_everything_that_is_missing() {
        let rule =
            Rule { required_checks: ["bias".to_owned(), "drift".to_owned()].into(), approvals: 2, etag_required: true };
        let check = |passed| RecordedCheck { passed, summary: String::new(), caller: "ci".into(), time: Micros(1) };
        let approval = |who: &str| Approval {
            alias: "champion".into(),
            approver: who.into(),
            comment: String::new(),
            time: Micros(1),
        };
        let mut standing = Standing {
            author: "ada".into(),
            checks: [("bias".to_owned(), check(false))].into(),
            approvals: vec![approval("ada"), approval("bob")],
        };
        assert_eq!(
            rule.missing(&standing, false),
            [
                "check `bias` has failed",
                "check `drift` has not been recorded",
                "it has 1 of 2 approvals by others than `ada`",
                "the call must give `etag` or `expected_version`",
            ]
        );
        standing.checks.extend([("bias".to_owned(), check(true)), ("drift".to_owned(), check(true))]);
        standing.approvals.push(approval("eve"));
        assert!(rule.missing(&standing, true).is_empty());
        standing.author.clear();
        assert_eq!(rule.missing(&standing, true).len(), 1);
    }
}
