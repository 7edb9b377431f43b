//! What answers of models are judged by: evaluation datasets with their records, and scorers.
//!
//! MLflow's under MLflow's names. A dataset belongs to any number of experiments, a scorer to one. [`reading`] makes
//! records and tags of what callers send, and says what is wrong with it.

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::search::{Condition, Order};
use crate::tracking::{Millis, Page};

pub mod reading;

/// Most fields a dataset's records may have together.
pub const MAX_FIELDS: usize = 10_000;
/// Most bytes of records on one page, as JSON; a record that is larger comes alone. It leaves room below the 4 MiB that gRPC's
/// clients take by default.
pub const MAX_PAGE_BYTES: usize = 2 << 20;
/// Most names of scorers in an experiment, and most versions of one: both are listed without pages.
pub const MAX_SCORERS: i64 = 1_000;

/// The tag that says who did something.
const USER: &str = "mlflow.user";

/// What models are tried on: inputs, and what is expected of the answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// `d-` and 32 hexadecimal digits.
    pub id: String,
    pub name: String,
    /// Changes whenever records do.
    pub digest: String,
    /// None before the first record.
    pub schema: Option<Schema>,
    pub records: i64,
    pub tags: BTreeMap<String, String>,
    /// The experiments it belongs to, in order.
    pub experiments: Vec<i64>,
    pub create_time: Millis,
    pub update_time: Millis,
    pub created_by: Option<String>,
    pub updated_by: Option<String>,
}

/// A dataset before it is there.
#[derive(Clone, Debug)]
pub struct DatasetDraft {
    pub id: String,
    pub name: String,
    pub tags: BTreeMap<String, String>,
    pub experiments: Vec<i64>,
}

impl DatasetDraft {
    /// Who made it, if it says so.
    pub fn user(&self) -> Option<&String> {
        self.tags.get(USER)
    }
}

/// Eight digits that differ whenever a dataset was changed at another time.
pub fn digest(name: &str, now: Millis) -> String {
    let mut digest = hex::encode(Sha256::digest(format!("{name}:{}", now.0)));
    digest.truncate(8);
    digest
}

/// What changes about a dataset itself.
#[derive(Clone, Debug)]
pub enum DatasetChange {
    SetTags(BTreeMap<String, String>),
    /// Of a tag that is not there nothing changes.
    DeleteTag(String),
    AddExperiments(Vec<i64>),
    /// Of an experiment it does not belong to nothing changes.
    RemoveExperiments(Vec<i64>),
}

/// The kinds of values that records have had, by field: the kind of the first value stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    inputs: BTreeMap<String, String>,
    outputs: Outputs,
    expectations: BTreeMap<String, String>,
    version: String,
}

/// Outputs are an object with fields, or one value of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Outputs {
    Fields(BTreeMap<String, String>),
    Kind(String),
}

impl Default for Schema {
    fn default() -> Self {
        let (inputs, expectations) = (BTreeMap::new(), BTreeMap::new());
        Self { inputs, outputs: Outputs::Fields(BTreeMap::new()), expectations, version: "1.0".to_owned() }
    }
}

impl Schema {
    /// Takes up the fields of a record that are new.
    pub fn widen(&mut self, draft: &RecordDraft) -> Result<()> {
        let add = |to: &mut BTreeMap<String, String>, fields: &Map<String, Value>| {
            for (name, value) in fields {
                if !to.contains_key(name) {
                    to.insert(name.clone(), kind(value).to_owned());
                }
            }
        };
        add(&mut self.inputs, &draft.inputs);
        if let Some(expectations) = &draft.expectations {
            add(&mut self.expectations, expectations);
        }
        match (&mut self.outputs, &draft.outputs) {
            (Outputs::Fields(to), Some(Some(Value::Object(fields)))) => add(to, fields),
            (Outputs::Fields(to), Some(Some(value))) if to.is_empty() => {
                self.outputs = Outputs::Kind(kind(value).to_owned());
            }
            _ => {}
        }
        let outputs = match &self.outputs {
            Outputs::Fields(fields) => fields.len(),
            Outputs::Kind(_) => 1,
        };
        if self.inputs.len() + outputs + self.expectations.len() > MAX_FIELDS {
            return Err(Error::Rejected(format!(
                "The records of a dataset may have at most {MAX_FIELDS} fields together"
            )));
        }
        Ok(())
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "float",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// One thing to try a model on.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// `dr-` and 32 hexadecimal digits, in the order in which records came.
    pub id: String,
    /// Of the inputs; a dataset has each only once.
    pub input_hash: String,
    pub inputs: Map<String, Value>,
    pub outputs: Option<Value>,
    pub expectations: Option<Map<String, Value>>,
    pub tags: Map<String, Value>,
    pub source: Option<Source>,
    pub create_time: Millis,
    pub update_time: Millis,
    pub created_by: Option<String>,
    pub updated_by: Option<String>,
}

/// A record as it is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordDraft {
    pub inputs: Map<String, Value>,
    /// None where they were not sent, which leaves what is there; Some(None) takes them away.
    pub outputs: Option<Option<Value>>,
    /// Added to those that are there, as tags are.
    pub expectations: Option<Map<String, Value>>,
    pub tags: Option<Map<String, Value>>,
    pub source: Option<Source>,
}

impl RecordDraft {
    /// A hash over the inputs, whatever the order of their fields.
    pub fn input_hash(&self) -> String {
        let mut inputs = Value::Object(self.inputs.clone());
        inputs.sort_all_objects();
        hex::encode(Sha256::digest(inputs.to_string()))
    }

    /// Who sent it, if it says so.
    pub fn user(&self) -> Option<&str> {
        self.tags.as_ref()?.get(USER)?.as_str()
    }

    /// The record of a dataset that has none with these inputs.
    pub fn into_record(self, id: String, now: Millis) -> Record {
        let (input_hash, user) = (self.input_hash(), self.user().map(str::to_owned));
        let Self { inputs, outputs, expectations, tags, source } = self;
        Record {
            id,
            input_hash,
            inputs,
            outputs: outputs.unwrap_or_else(|| Some(Value::Object(Map::new()))),
            expectations,
            tags: tags.unwrap_or_default(),
            source,
            create_time: now,
            update_time: now,
            created_by: user.clone(),
            updated_by: user,
        }
    }

    /// Brings a record with the same inputs up to date.
    pub fn merge_into(self, record: &mut Record, now: Millis) {
        let user = self.user().map(str::to_owned);
        let Self { inputs: _, outputs, expectations, tags, source: _ } = self;
        if let Some(outputs) = outputs {
            record.outputs = outputs;
        }
        if let Some(expectations) = expectations.filter(|expectations| !expectations.is_empty()) {
            record.expectations.get_or_insert_default().extend(expectations);
        }
        record.tags.extend(tags.unwrap_or_default());
        record.updated_by = user.or(record.updated_by.take());
        record.update_time = now;
    }
}

/// Where a record comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    #[serde(rename = "source_type")]
    pub kind: SourceKind,
    #[serde(rename = "source_data")]
    pub data: Map<String, Value>,
}

impl Source {
    /// What the source is called, where it has a name.
    pub fn id(&self) -> Option<&str> {
        let name = if self.kind == SourceKind::Trace { "trace_id" } else { "source_id" };
        self.data.get(name)?.as_str()
    }
}

/// Where records come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SourceKind {
    Unspecified,
    Trace,
    Human,
    Document,
    Code,
}

impl SourceKind {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "UNSPECIFIED",
            Self::Trace => "TRACE",
            Self::Human => "HUMAN",
            Self::Document => "DOCUMENT",
            Self::Code => "CODE",
        }
    }
}

/// What a search of datasets is for, and which page of it.
#[derive(Clone, Debug)]
pub struct DatasetSearch {
    /// They belong to one of these; empty for any.
    pub experiments: Vec<i64>,
    pub conditions: Vec<Condition>,
    pub orders: Vec<Order>,
    /// How many to pass over.
    pub offset: u64,
    pub limit: u32,
}

/// The last record of the page before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct After {
    pub create_time: Millis,
    pub id: String,
}

impl After {
    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let (time, id) = text.split_once(':')?;
        let is_plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        is_plain.then_some(Self { create_time: Millis(time.parse().ok()?), id: id.to_owned() })
    }
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.create_time.0, self.id)
    }
}

/// How many records were new, and how many were there before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upserted {
    pub inserted: u32,
    pub updated: u32,
}

/// Evaluation datasets, each method one transaction.
#[async_trait]
pub trait Datasets: Send + Sync {
    /// Adds one to experiments that exist. Names may be taken more than once.
    async fn create_dataset(&self, now: Millis, draft: &DatasetDraft) -> Result<Dataset>;
    /// Finds one.
    async fn dataset(&self, id: &str) -> Result<Dataset>;
    /// Finds those that meet all conditions.
    async fn datasets(&self, search: &DatasetSearch) -> Result<Page<Dataset>>;
    /// Changes one.
    async fn change_dataset(&self, now: Millis, id: &str, change: &DatasetChange) -> Result<Dataset>;
    /// Removes one with its records; what is not there is gone already.
    async fn delete_dataset(&self, id: &str) -> Result<()>;
    /// Adds records, or brings those with the same inputs up to date: all of them or none.
    async fn upsert_records(&self, now: Millis, id: &str, drafts: Vec<RecordDraft>) -> Result<Upserted>;
    /// Lists records in the order in which they came, and where the next page begins.
    async fn records(&self, id: &str, after: Option<&After>, limit: u32) -> Result<(Vec<Record>, Option<After>)>;
}

/// One version of what judges answers.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Scorer {
    pub id: String,
    pub experiment: i64,
    pub name: String,
    pub version: i64,
    /// As its client wrote it.
    pub serialized: String,
    pub create_time: i64,
}

/// Scorers of active experiments, each method one transaction.
#[async_trait]
pub trait Scorers: Send + Sync {
    /// Adds the next version. Numbers start at 1 and are not used again while the scorer has a version.
    async fn add_scorer(&self, now: Millis, experiment: i64, name: &str, serialized: &str) -> Result<Scorer>;
    /// Lists the newest version of each, by name.
    async fn scorers(&self, experiment: i64) -> Result<Vec<Scorer>>;
    /// Lists the versions of one, oldest first.
    async fn scorer_versions(&self, experiment: i64, name: &str) -> Result<Vec<Scorer>>;
    /// Finds a version, the newest where none is named.
    async fn scorer(&self, experiment: i64, name: &str, version: Option<i64>) -> Result<Scorer>;
    /// Removes a version, or all of them.
    async fn delete_scorer(&self, experiment: i64, name: &str, version: Option<i64>) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn draft(record: Value) -> RecordDraft {
        reading::records(&Value::Array(vec![record])).unwrap().pop().unwrap()
    }

    #[test]
    fn inputs_are_the_same_whatever_the_order_of_their_fields() {
        let hash = |text: &str| draft(serde_json::from_str(text).unwrap()).input_hash();
        let one = hash(r#"{"inputs": {"a": 1, "b": {"c": [1, 2], "d": "x"}}}"#);
        assert_eq!(one, hash(r#"{"inputs": {"b": {"d": "x", "c": [1, 2]}, "a": 1}}"#));
        for other in [r#"{"inputs": {"a": 1.0, "b": {"c": [1, 2], "d": "x"}}}"#, r#"{"inputs": {"a": 1}}"#] {
            assert_ne!(one, hash(other));
        }
    }

    #[test]
    fn a_schema_keeps_the_first_kind_of_a_field() {
        let mut schema = Schema::default();
        for record in [
            json!({"inputs": {"q": "x", "n": 1}, "expectations": {"ok": true}}),
            json!({"inputs": {"q": 5, "f": 0.5, "l": [], "o": {}, "z": null}, "outputs": {"answer": "y"}}),
            json!({"inputs": {}, "outputs": "text"}),
        ] {
            schema.widen(&draft(record)).unwrap();
        }
        let wanted = json!({
            "inputs": {"q": "string", "n": "integer", "f": "float", "l": "array", "o": "object", "z": "null"},
            "outputs": {"answer": "string"},
            "expectations": {"ok": "boolean"},
            "version": "1.0",
        });
        assert_eq!(serde_json::to_value(&schema).unwrap(), wanted);
        let mut plain = Schema::default();
        plain.widen(&draft(json!({"inputs": {}, "outputs": "text"}))).unwrap();
        plain.widen(&draft(json!({"inputs": {}, "outputs": {"answer": 1}}))).unwrap();
        assert_eq!(serde_json::to_value(&plain).unwrap()["outputs"], "string");
        let wide: Map<String, Value> = (0..=MAX_FIELDS).map(|n| (n.to_string(), Value::Null)).collect();
        assert!(plain.widen(&draft(json!({"inputs": wide}))).is_err());
    }

    #[test]
    fn a_record_sent_again_is_merged() {
        let first =
            json!({"inputs": {"q": 1}, "expectations": {"a": 1, "b": 1}, "tags": {"mlflow.user": "ada", "t": "1"}});
        let mut record = draft(first).into_record("dr-1".into(), Millis(5));
        assert_eq!((&record.outputs, record.created_by.as_deref()), (&Some(json!({})), Some("ada")));
        draft(json!({"inputs": {"q": 1}, "expectations": {"b": 2}, "tags": {"u": "2"}}))
            .merge_into(&mut record, Millis(9));
        assert_eq!(Value::Object(record.expectations.clone().unwrap()), json!({"a": 1, "b": 2}));
        assert_eq!(Value::Object(record.tags.clone()), json!({"mlflow.user": "ada", "t": "1", "u": "2"}));
        assert_eq!((record.create_time, record.update_time, &record.outputs), (Millis(5), Millis(9), &Some(json!({}))));
        assert_eq!(record.updated_by.as_deref(), Some("ada"));
        draft(json!({"inputs": {"q": 1}, "outputs": null})).merge_into(&mut record, Millis(9));
        assert_eq!(record.outputs, None);
    }
}
