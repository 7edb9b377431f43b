//! What callers send, as records, tags and names. Refusals say which record and which field.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{RecordDraft, Source, SourceKind};
use crate::error::{Error, Result};
use crate::tracking::limits::length;

/// Most records of one call.
const MAX_RECORDS: usize = 100_000;
/// Most experiments of one call.
const MAX_EXPERIMENTS: usize = 1_000;
/// Most tags of one call.
const MAX_TAGS: usize = 1_000;
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 5_000;
/// Longest scorer, in characters.
const MAX_SCORER: usize = 65_535;

fn reject<T>(message: String) -> Result<T> {
    Err(Error::Rejected(message))
}

/// Reads JSON that came as the text of the parameter `name`.
pub fn json(name: &str, text: &str) -> Result<Value> {
    serde_json::from_str(text)
        .or_else(|error| reject(format!("Invalid value for parameter '{name}': not JSON: {error}")))
}

/// Checks what a dataset or a scorer is called.
pub fn name(name: &str) -> Result<()> {
    if name.trim().is_empty() {
        return reject("Invalid value for parameter 'name': it must not be blank".to_owned());
    }
    without_nul("name", name)?;
    length("name", name, MAX_NAME)
}

/// PostgreSQL can't keep NUL, so neither database is given one.
fn without_nul(what: &str, text: &str) -> Result<()> {
    if text.contains('\0') {
        return reject(format!("Invalid value for parameter '{what}': it must not hold NUL characters"));
    }
    Ok(())
}

/// Checks a scorer as its client wrote it.
pub fn scorer(serialized: &str) -> Result<()> {
    without_nul("serialized_scorer", serialized)?;
    length("serialized_scorer", serialized, MAX_SCORER)
}

/// Reads ids of experiments.
pub fn experiments(ids: &[String]) -> Result<Vec<i64>> {
    let number = |id: &String| id.parse().or_else(|_| reject(format!("Invalid experiment ID: '{id}'")));
    numbered(ids.iter().map(number).collect::<Result<_>>()?)
}

/// Checks numbers of experiments; answers each once, in order.
pub fn numbered(mut ids: Vec<i64>) -> Result<Vec<i64>> {
    if ids.len() > MAX_EXPERIMENTS {
        return reject(format!("'experiment_ids' may hold at most {MAX_EXPERIMENTS} ids, got {}", ids.len()));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Reads the tags of a dataset: texts, numbers and truths by name. Nothing is said of a tag that is null.
pub fn tags(value: &Value) -> Result<BTreeMap<String, String>> {
    let Value::Object(fields) = value else {
        return reject("Invalid value for parameter 'tags': it must be a JSON object of texts by name".to_owned());
    };
    if fields.len() > MAX_TAGS {
        return reject(format!("'tags' may hold at most {MAX_TAGS} tags, got {}", fields.len()));
    }
    let mut tags = BTreeMap::new();
    for (key, value) in fields {
        let value = match value {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(true) => "True".to_owned(),
            Value::Bool(false) => "False".to_owned(),
            Value::Array(_) | Value::Object(_) => {
                return reject(format!("Invalid value for tag '{key}': it must be a text, a number or a truth"));
            }
        };
        tag(key, &value)?;
        tags.insert(key.clone(), value);
    }
    Ok(tags)
}

/// Checks a tag of a dataset.
pub fn tag(key: &str, value: &str) -> Result<()> {
    if key.is_empty() || key.contains('\0') || value.contains('\0') {
        return reject(format!("Invalid tag '{}': it needs a name, and no NUL characters", key.replace('\0', "\\0")));
    }
    length("key", key, MAX_NAME)?;
    length("value", value, MAX_TAG)
}

/// Reads records.
pub fn records(value: &Value) -> Result<Vec<RecordDraft>> {
    let Value::Array(records) = value else {
        return reject("Invalid value for parameter 'records': it must be a JSON list of objects".to_owned());
    };
    if records.len() > MAX_RECORDS {
        let count = records.len();
        return reject(format!("'records' may hold at most {MAX_RECORDS} records, got {count}: send them in parts"));
    }
    records.iter().enumerate().map(|(index, record)| self::record(&format!("records[{index}]"), record)).collect()
}

fn record(at: &str, value: &Value) -> Result<RecordDraft> {
    let Value::Object(fields) = value else { return reject(format!("Each record must be a dictionary: {at} is not")) };
    let Some(inputs) = object(at, fields, "inputs")? else {
        return reject(format!("Each record must have an 'inputs' field: {at} has none"));
    };
    let tags = object(at, fields, "tags")?;
    if let Some(user) = tags.as_ref().and_then(|tags| tags.get(super::USER)).and_then(Value::as_str) {
        tag(super::USER, user)?;
        length(&format!("{at}.tags.{}", super::USER), user, MAX_NAME)?;
    }
    Ok(RecordDraft {
        inputs,
        outputs: fields.get("outputs").map(|outputs| Some(outputs.clone()).filter(|outputs| !outputs.is_null())),
        expectations: object(at, fields, "expectations")?,
        tags,
        source: object(at, fields, "source")?
            .filter(|source| !source.is_empty())
            .map(|one| source(at, one))
            .transpose()?,
    })
}

fn object(at: &str, fields: &Map<String, Value>, name: &str) -> Result<Option<Map<String, Value>>> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(fields)) => Ok(Some(fields.clone())),
        Some(_) => reject(format!("Invalid value for {at}.{name}: it must be a JSON object")),
    }
}

fn source(at: &str, fields: Map<String, Value>) -> Result<Source> {
    if let Some(other) = fields.keys().find(|key| !["source_type", "source_data"].contains(&key.as_str())) {
        return reject(format!("Invalid field '{other}' in {at}.source: it has 'source_type' and 'source_data'"));
    }
    let word = fields.get("source_type").and_then(Value::as_str).unwrap_or_default().to_uppercase();
    let Ok(kind) = serde_json::from_value::<SourceKind>(Value::String(word.clone())) else {
        return reject(format!(
            "Invalid dataset record source type: {word}. Valid source types: ['UNSPECIFIED', 'TRACE', 'HUMAN', 'DOCUMENT', \
             'CODE']"
        ));
    };
    let data = object(&format!("{at}.source"), &fields, "source_data")?.unwrap_or_default();
    Ok(Source { kind, data })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_record_that_is_none_is_refused_by_its_place() {
        let one = |record: Value| told(records(&json!([{"inputs": {}}, record])));
        assert_eq!(one(json!(5)), "Each record must be a dictionary: records[1] is not");
        assert_eq!(one(json!({"input": {}})), "Each record must have an 'inputs' field: records[1] has none");
        assert_eq!(one(json!({"inputs": []})), "Invalid value for records[1].inputs: it must be a JSON object");
        let source = json!({"inputs": {}, "source": {"source_type": "oracle"}});
        assert!(one(source).starts_with("Invalid dataset record source type: ORACLE."));
        let source = json!({"inputs": {}, "source": {"source_type": "HUMAN", "by": 1}});
        assert!(one(source).contains("'by' in records[1].source"));
        assert!(told(records(&json!({}))).contains("JSON list"));
        assert!(told(json("records", &"[".repeat(10_000))).contains("not JSON"));
        assert!(told(json("records", r#"[{"inputs": {"a": NaN}}]"#)).contains("not JSON"));
    }

    #[test]
    fn tags_are_texts() {
        let read = tags(&json!({"a": "x", "b": 1.5, "c": true, "d": null})).unwrap();
        assert_eq!(read, BTreeMap::from([("a", "x"), ("b", "1.5"), ("c", "True")].map(|(k, v)| (k.into(), v.into()))));
        for bad in [json!([]), json!({"a": {}}), json!({"": "x"}), json!({"a": "x\0"}), json!({"a": "x".repeat(5_001)})]
        {
            assert!(tags(&bad).is_err(), "{bad}");
        }
    }
}
