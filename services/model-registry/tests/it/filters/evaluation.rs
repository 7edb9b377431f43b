//! What a condition means, over answers of the API and without a database.

use serde_json::Value;

use super::grammar::{Condition, Field, Literal, Subject};

/// The values of a field of something as REST shows it: none where it is not set, several where it has several.
fn values(subject: Subject, field: &Field, item: &Value) -> Vec<Value> {
    let (info, data) = match subject {
        Subject::Runs | Subject::LoggedModels => (&item["info"], &item["data"]),
        Subject::Experiments | Subject::Models | Subject::Versions => (item, item),
    };
    let pairs = |list: &Value, name: &str, key: &str| -> Vec<Value> {
        let pairs = list.as_array().cloned().unwrap_or_default();
        pairs.iter().filter(|pair| pair["key"] == key).map(|pair| pair[name].clone()).collect()
    };
    match field {
        Field::Attribute(name) => {
            let shown = match (subject, *name) {
                (Subject::Versions, "version_number") => return vec![number(&item["version"])],
                (Subject::Versions, "source_path") => "source",
                (Subject::LoggedModels, "lifecycle_stage") => return vec!["active".into()],
                (Subject::LoggedModels, "artifact_location") => "artifact_uri",
                (Subject::LoggedModels, "creation_timestamp") => "creation_timestamp_ms",
                (Subject::LoggedModels, "last_updated_timestamp") => "last_updated_timestamp_ms",
                (Subject::LoggedModels, "status") => {
                    return vec![info["status"].as_str().unwrap().trim_start_matches("LOGGED_MODEL_").into()];
                }
                (_, name) => name,
            };
            info.get(shown).cloned().into_iter().collect()
        }
        Field::Tag(key) => pairs(if subject == Subject::Runs { &data["tags"] } else { &info["tags"] }, "value", key),
        Field::Param(key) => pairs(&data["params"], "value", key),
        Field::Metric(key) => pairs(&data["metrics"], "value", key).iter().map(number).collect(),
        Field::Dataset(part) => {
            let inputs = item["inputs"]["dataset_inputs"].as_array().cloned().unwrap_or_default();
            let part = |input: &Value| match *part {
                "context" => pairs(&input["tags"], "value", "mlflow.data.context").pop(),
                part => Some(input["dataset"][part].clone()),
            };
            inputs.iter().filter_map(part).collect()
        }
    }
}

/// A number; NaN compares as 0, as MLflow keeps it.
fn number(value: &Value) -> Value {
    match value.as_str() {
        Some("NaN") => 0.0.into(),
        Some(text) => text.parse::<f64>().unwrap().into(),
        None => value.clone(),
    }
}

/// The texts that a field of something has.
pub(super) fn texts(subject: Subject, field: &Field, item: &Value) -> Vec<String> {
    values(subject, field, item).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Whether something meets a condition.
pub(super) fn holds(subject: Subject, condition: &Condition, item: &Value) -> bool {
    let Condition { field, op, value } = condition;
    let values = values(subject, field, item);
    match *op {
        "IS NULL" => values.is_empty(),
        "IS NOT NULL" => !values.is_empty(),
        op => values.iter().any(|have| match have.as_str() {
            Some(have) if !field.is_number() => compares_as_text(have, op, value),
            _ => compares_as_number(have.as_f64().unwrap(), op, value),
        }),
    }
}

fn compares_as_text(have: &str, op: &str, value: &Literal) -> bool {
    let wanted = match value {
        Literal::Text(text) => text.as_str(),
        Literal::Number(raw) => raw,
        Literal::List(texts) => return texts.iter().any(|text| text == have) == (op == "IN"),
        Literal::Nothing => panic!("{op} needs a value"),
    };
    match op {
        "=" => have == wanted,
        "!=" => have != wanted,
        "LIKE" => is_like(have, wanted),
        "ILIKE" => is_like(&have.to_lowercase(), &wanted.to_lowercase()),
        _ => panic!("{op} is not for texts"),
    }
}

fn compares_as_number(have: f64, op: &str, value: &Literal) -> bool {
    let Literal::Number(raw) = value else { panic!("{value:?} is no number") };
    let wanted: f64 = raw.parse().unwrap();
    match op {
        "=" => have == wanted,
        "!=" => have != wanted,
        "<" => have < wanted,
        "<=" => have <= wanted,
        ">" => have > wanted,
        ">=" => have >= wanted,
        _ => panic!("{op} is not for numbers"),
    }
}

/// `%` is any text, `_` any character, and nothing escapes them.
fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern): (Vec<char>, Vec<char>) = (text.chars().collect(), pattern.chars().collect());
    // Which lengths of the text the pattern so far can match.
    let mut ends = vec![false; text.len() + 1];
    ends[0] = true;
    for sign in pattern {
        let mut next = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            next[at] = match sign {
                '%' => ends[at] || at > 0 && next[at - 1],
                '_' => at > 0 && ends[at - 1],
                sign => at > 0 && ends[at - 1] && text[at - 1] == sign,
            };
        }
        ends = next;
    }
    ends[text.len()]
}
