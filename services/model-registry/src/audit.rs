//! The audit log: who changed what, from what to what, in a chain of hashes.
//!
//! Every change of the registry writes its entry in its own transaction. The hash of an entry is SHA-256 over, in this order,
//!
//! - `verdict.registry.audit.v1`,
//! - the hash of the entry before, as 64 lower-case hexadecimal digits; of the first entry: nothing,
//! - sequence and time, as decimal numbers,
//! - caller, action and resource,
//! - `before` and `after`, each as `1` and the JSON text that is stored, or as `0` where there is none,
//!
//! each preceded by its length in bytes as a 64-bit big-endian number. Whoever changes, removes, adds or reorders an entry
//! has to make all later hashes anew, which is found out by anybody who has noted one of them: an anchor.

use async_trait::async_trait;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::model::Micros;
use crate::names::{AliasName, ModelName};

/// Most entries read at once while they are verified.
const BATCH: u32 = 1000;

/// One change, as it was written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// 1, 2, 3, … without a gap.
    pub sequence: i64,
    /// Never before that of the entry before.
    pub time: Micros,
    /// Who called, by the name they gave; empty where they gave none.
    pub caller: String,
    /// What happened: `alias.set`, `version.finalize`, ….
    pub action: String,
    /// What it happened to: `models/NAME`, `models/NAME/versions/NUMBER`, `models/NAME/aliases/ALIAS`, `webhooks/ID`,
    /// `artifacts`.
    pub resource: String,
    /// What changed, as it was: JSON.
    pub before: Option<String>,
    /// What changed, as it is since.
    pub after: Option<String>,
    /// Over all of it and the entry before, in lower-case hexadecimal.
    pub hash: String,
}

impl Entry {
    /// What the hash of this entry must be after an entry with the hash `previous`.
    pub fn expected_hash(&self, previous: &str) -> String {
        let mut hash = Sha256::new();
        let mut field = |parts: &[&str]| {
            let length: usize = parts.iter().map(|part| part.len()).sum();
            hash.update((length as u64).to_be_bytes());
            parts.iter().for_each(|part| hash.update(part));
        };
        field(&["verdict.registry.audit.v1"]);
        field(&[previous]);
        field(&[&self.sequence.to_string()]);
        field(&[&self.time.0.to_string()]);
        field(&[&self.caller]);
        field(&[&self.action]);
        field(&[&self.resource]);
        for state in [&self.before, &self.after] {
            match state {
                Some(json) => field(&["1", json]),
                None => field(&["0"]),
            }
        }
        hex::encode(hash.finalize())
    }
}

/// A change before it is written down: what was done, and the part that changed before and after.
#[derive(Clone, Debug)]
pub struct Change {
    pub action: &'static str,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

impl Change {
    /// Something that was not there before.
    pub fn made(action: &'static str, after: impl Serialize) -> Self {
        Self { action, before: None, after: json(after) }
    }

    /// Something that is no longer there.
    pub fn removed(action: &'static str, before: impl Serialize) -> Self {
        Self { action, before: json(before), after: None }
    }

    /// Something that is otherwise than before.
    pub fn changed(action: &'static str, before: impl Serialize, after: impl Serialize) -> Self {
        Self { action, before: json(before), after: json(after) }
    }
}

/// Null is nothing. What is written down are texts, numbers and maps keyed by text: always JSON.
fn json(value: impl Serialize) -> Option<Value> {
    serde_json::to_value(value).ok().filter(|value| !value.is_null())
}

/// The name of a model in the log.
pub fn model_resource(model: &ModelName) -> String {
    format!("models/{model}")
}

/// The name of a version in the log.
pub fn version_resource(model: &ModelName, number: i64) -> String {
    format!("models/{model}/versions/{number}")
}

/// The name of an alias in the log.
pub fn alias_resource(model: &ModelName, alias: &str) -> String {
    format!("models/{model}/aliases/{alias}")
}

/// The name of a webhook in the log.
pub fn webhook_resource(id: &str) -> String {
    format!("webhooks/{id}")
}

/// The name of a deployment in the log.
pub fn deployment_resource(deployment: &str) -> String {
    format!("deployments/{deployment}")
}

/// Which entries are asked for.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// This resource and what is below it; all when empty.
    pub resource: String,
    /// Only by this caller; by all when empty.
    pub caller: String,
    /// Only from then on.
    pub from: Option<Micros>,
    /// Only before then.
    pub until: Option<Micros>,
    /// Only before this entry, newest first; from the newest on when none.
    pub below: Option<i64>,
}

/// An entry by its place and hash: what an auditor notes to find out later whether the log was written anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Anchor {
    /// 0 before the first entry, which has no hash.
    pub sequence: i64,
    pub hash: String,
}

/// How far the chain was followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The last entry that was found intact.
    pub to: Anchor,
    /// The end of the log as it was noted when it was last written to.
    pub end: Anchor,
    /// Where the chain is broken, and how.
    pub broken: Option<(i64, String)>,
}

/// Where an alias pointed at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasState {
    /// None: the alias was not there.
    pub version: Option<i64>,
    /// The entry that set or removed it; none where nothing had ever happened to it.
    pub since: Option<Entry>,
}

/// The audit log of a store.
#[async_trait]
pub trait Audit: Send + Sync {
    /// Lists entries, newest first.
    async fn audit_entries(&self, filter: &Filter, limit: u32) -> Result<Vec<Entry>>;
    /// Reads entries after `sequence`, oldest first.
    async fn audit_after(&self, sequence: i64, limit: u32) -> Result<Vec<Entry>>;
    /// The end of the log.
    async fn audit_end(&self) -> Result<Anchor>;
    /// Where an alias pointed at a time.
    async fn alias_at(&self, model: &ModelName, alias: &AliasName, time: Micros) -> Result<AliasState>;
}

/// Follows the chain from `anchor` on for at most `limit` entries, calling `progress(entries, of)` on the way.
///
/// An anchor is taken at its word: its entry must have its hash. What was changed before it is found by beginning earlier.
pub async fn verify<A: Audit + ?Sized>(
    log: &A,
    anchor: Anchor,
    limit: u64,
    mut progress: impl FnMut(u64, u64),
) -> Result<Verified> {
    let end = log.audit_end().await?;
    let broken =
        |to: Anchor, at: i64, problem: String| Ok(Verified { to, end: end.clone(), broken: Some((at, problem)) });
    if anchor.sequence > 0 {
        let noted = log.audit_after(anchor.sequence - 1, 1).await?.pop();
        match noted.filter(|entry| entry.sequence == anchor.sequence) {
            None => return broken(Anchor::default(), anchor.sequence, "the anchor's entry is missing".to_owned()),
            Some(entry) if entry.hash != anchor.hash => {
                return broken(Anchor::default(), anchor.sequence, "the anchor's entry has another hash".to_owned());
            }
            Some(_) => {}
        }
    }
    let (mut at, mut time, mut done) = (anchor, Micros(i64::MIN), 0);
    let wanted = limit.min(end.sequence.saturating_sub(at.sequence).unsigned_abs());
    while done < limit {
        let batch = u32::try_from((limit - done).min(u64::from(BATCH))).unwrap_or(BATCH);
        let entries = log.audit_after(at.sequence, batch).await?;
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            let next = at.sequence + 1;
            if entry.sequence != next {
                return broken(at, next, format!("the entry is missing; the next one is {}", entry.sequence));
            }
            if entry.time < time {
                return broken(at, next, "the entry is older than the one before it".to_owned());
            }
            if entry.expected_hash(&at.hash) != entry.hash {
                return broken(
                    at,
                    next,
                    "the entry, or the one before it, is not what its hash was made of".to_owned(),
                );
            }
            time = entry.time;
            at = Anchor { sequence: next, hash: entry.hash };
            done += 1;
            if next == end.sequence && at.hash != end.hash {
                return broken(at, next, "the entry is not the one that was noted as the end of the log".to_owned());
            }
        }
        progress(done, wanted.max(done));
    }
    if done < limit && at.sequence < end.sequence {
        return broken(at.clone(), at.sequence + 1, format!("the log ends early: it had {} entries", end.sequence));
    }
    Ok(Verified { to: at, end, broken: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_what_the_documentation_says() {
        let entry = Entry {
            sequence: 2,
            time: Micros(7),
            caller: "ada".to_owned(),
            action: "alias.set".to_owned(),
            resource: "models/m/aliases/a".to_owned(),
            before: None,
            after: Some(r#"{"version":3}"#.to_owned()),
            hash: String::new(),
        };
        let mut bytes = Vec::new();
        let previous = "ab".repeat(32);
        for field in [
            "verdict.registry.audit.v1",
            &previous,
            "2",
            "7",
            "ada",
            "alias.set",
            "models/m/aliases/a",
            "0",
            r#"1{"version":3}"#,
        ] {
            bytes.extend((field.len() as u64).to_be_bytes());
            bytes.extend(field.as_bytes());
        }
        assert_eq!(entry.expected_hash(&previous), hex::encode(Sha256::digest(bytes)));
    }
}
