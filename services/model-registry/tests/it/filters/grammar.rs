//! Conditions, which of them MLflow's grammar allows, and the ways to write them.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::evaluation;
use super::store::{KEYS, TEXTS};
use crate::world::World;

/// What is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Experiments,
    Runs,
    Models,
    Versions,
    LoggedModels,
}

/// What is compared, as the word before the dot tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Attribute(&'static str),
    Tag(String),
    Param(String),
    Metric(String),
    Dataset(&'static str),
}

#[derive(Clone, Debug)]
pub(super) enum Literal {
    Nothing,
    Text(String),
    /// As it is written.
    Number(&'static str),
    List(Vec<String>),
}

/// One comparison.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    pub(super) field: Field,
    pub(super) op: &'static str,
    pub(super) value: Literal,
}

const NUMERIC: [&str; 7] = [
    "start_time",
    "end_time",
    "creation_time",
    "last_update_time",
    "version_number",
    "creation_timestamp",
    "last_updated_timestamp",
];

impl Subject {
    pub(super) const ALL: [Self; 5] = [Self::Experiments, Self::Runs, Self::Models, Self::Versions, Self::LoggedModels];

    fn attributes(self) -> &'static [&'static str] {
        match self {
            Self::Experiments => &["name", "creation_time", "last_update_time"],
            Self::Runs => &["run_id", "run_name", "status", "user_id", "start_time", "end_time", "artifact_uri"],
            Self::Models => &["name"],
            Self::Versions => &["name", "version_number", "run_id", "source_path"],
            Self::LoggedModels => &[
                "name",
                "model_id",
                "model_type",
                "source_run_id",
                "status",
                "experiment_id",
                "artifact_location",
                "lifecycle_stage",
                "creation_timestamp",
                "last_updated_timestamp",
            ],
        }
    }

    /// Finds what a filter selects, in one order; or MLflow's code of the refusal. Nothing else may be answered.
    pub(super) async fn search(self, world: &World, filter: &str) -> Result<Vec<Value>, String> {
        let all = json!(["0", "1", "2", "3"]);
        let (path, items, body) = match self {
            Self::Experiments => ("experiments/search", "experiments", json!({"max_results": 1000})),
            Self::Runs => ("runs/search", "runs", json!({"experiment_ids": all, "max_results": 1000})),
            Self::Models => ("registered-models/search", "registered_models", Value::Null),
            Self::Versions => ("model-versions/search", "model_versions", Value::Null),
            Self::LoggedModels => {
                ("logged-models/search", "models", json!({"experiment_ids": all, "max_results": 1000}))
            }
        };
        let (method, path, body) = match body {
            Value::Null => {
                let query = form_urlencoded::Serializer::new(String::new())
                    .append_pair("filter", filter)
                    .append_pair("max_results", "1000")
                    .finish();
                ("GET", format!("/api/2.0/mlflow/{path}?{query}"), Value::Null)
            }
            mut body => {
                body["filter"] = filter.into();
                ("POST", format!("/api/2.0/mlflow/{path}"), body)
            }
        };
        let (status, mut answer) = world.rest(method, &path, body).await;
        match status {
            200 => Ok(answer[items].take().as_array().unwrap().clone()),
            400..500 => Err(answer["error_code"].as_str().unwrap_or("no code").to_owned()),
            _ => panic!("{status} to {filter:.500}: {answer}"),
        }
    }
}

impl Field {
    fn any(dice: &mut StdRng, subject: Subject) -> Self {
        let key = |dice: &mut StdRng| {
            let strange = ["none", "k' OR 1=1 --", "a%", "_", "; DROP TABLE runs", "漢 字", "it's"];
            let key = if dice.random_bool(0.8) { KEYS.choose(dice) } else { strange.choose(dice) };
            (*key.unwrap()).to_owned()
        };
        let kinds = match subject {
            Subject::Runs => 6,
            Subject::LoggedModels => 5,
            Subject::Experiments | Subject::Models | Subject::Versions => 3,
        };
        match dice.random_range(0..kinds) {
            0 | 1 => Self::Attribute(subject.attributes().choose(dice).unwrap()),
            2 => Self::Tag(key(dice)),
            3 => Self::Param(key(dice)),
            4 => Self::Metric(key(dice)),
            _ => Self::Dataset(["name", "digest", "context"].choose(dice).unwrap()),
        }
    }

    pub(super) fn is_number(&self) -> bool {
        match self {
            Self::Metric(_) => true,
            Self::Attribute(name) => NUMERIC.contains(name),
            Self::Tag(_) | Self::Param(_) | Self::Dataset(_) => false,
        }
    }

    fn written(&self, dice: &mut StdRng, is_logged_model: bool) -> String {
        let (entities, key): (&[&str], &str) = match self {
            Self::Attribute(name) if is_logged_model => (&["", "attributes."], name),
            Self::Attribute(name) => (&["", "attribute."], name),
            Self::Tag(key) if is_logged_model => (&["tags."], key),
            Self::Tag(key) => (&["tags.", "tag."], key),
            Self::Param(key) if is_logged_model => (&["params."], key),
            Self::Param(key) => (&["params.", "param.", "parameters."], key),
            Self::Metric(key) if is_logged_model => (&["metrics."], key),
            Self::Metric(key) => (&["metrics.", "metric."], key),
            Self::Dataset(key) => (&["dataset.", "datasets."], key),
        };
        let entity = *entities.choose(dice).unwrap();
        let is_bare = key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && dice.random_bool(0.5);
        match () {
            () if is_bare || entity.is_empty() => format!("{entity}{key}"),
            () if dice.random_bool(0.5) => format!("{entity}\"{key}\""),
            () => format!("{entity}`{key}`"),
        }
    }
}

/// A text between quotes it does not hold.
fn quoted(dice: &mut StdRng, text: &str) -> String {
    let quote = match (text.contains('\''), text.contains('"')) {
        (true, _) => '"',
        (_, true) => '\'',
        _ if dice.random_bool(0.5) => '"',
        _ => '\'',
    };
    format!("{quote}{text}{quote}")
}

/// Whether a text can be written: it may not hold both quotes, nor seem to escape the one that ends it.
fn can_be_written(text: &str) -> bool {
    let holds_both = text.contains('\'') && text.contains('"');
    !holds_both && !text.ends_with('\\')
}

impl Condition {
    /// Rolls a condition; often on a value that is there.
    pub(super) fn any(dice: &mut StdRng, subject: Subject, everything: &[Value]) -> Self {
        let field = Field::any(dice, subject);
        let number = |dice: &mut StdRng| {
            *["0", "1", "-1", "0.5", ".5", "2", "3", "50", "1e3", "-1e308", "9223372036854775807", "1700000000000"]
                .choose(dice)
                .unwrap()
        };
        let text = |dice: &mut StdRng| {
            let there = evaluation::texts(subject, &field, everything.choose(dice).unwrap());
            let there: Vec<&String> = there.iter().filter(|text| can_be_written(text)).collect();
            match there.choose(dice) {
                Some(text) if dice.random_bool(0.6) => (*text).clone(),
                _ => loop {
                    let text = *TEXTS.choose(dice).unwrap();
                    if can_be_written(text) {
                        break text.to_owned();
                    }
                },
            }
        };
        let is_right = dice.random_bool(0.93);
        let value = match (field.is_number(), is_right) {
            (true, true) | (false, false) => Literal::Number(number(dice)),
            (false, true) | (true, false) => Literal::Text(text(dice)),
        };
        let (op, value) = match dice.random_range(0..12) {
            0..=7 if field.is_number() => (*["=", "!=", "<", "<=", ">", ">="].choose(dice).unwrap(), value),
            0..=2 => ("=", value),
            3 => ("!=", value),
            4..=7 => (*["LIKE", "ILIKE"].choose(dice).unwrap(), pattern(dice, value)),
            8 | 9 if field.is_number() => (">", value),
            8 | 9 => {
                let texts = (0..dice.random_range(1..4)).map(|_| text(dice)).collect();
                (*["IN", "NOT IN"].choose(dice).unwrap(), Literal::List(texts))
            }
            10 => (*["IS NULL", "IS NOT NULL"].choose(dice).unwrap(), Literal::Nothing),
            _ => (*["<", ">=", "LIKE", "=="].choose(dice).unwrap(), value),
        };
        Self { field, op, value }
    }

    /// Whether MLflow's grammar has it.
    pub(super) fn is_allowed(&self, subject: Subject) -> bool {
        let Self { field, op, value } = self;
        let takes_lists = match subject {
            Subject::Runs => matches!(field, Field::Attribute("run_id") | Field::Dataset(_)),
            Subject::Versions => matches!(field, Field::Attribute("run_id")) && *op == "IN",
            Subject::LoggedModels => !field.is_number(),
            Subject::Experiments | Subject::Models => false,
        };
        let is_optional = subject == Subject::Runs && matches!(field, Field::Tag(_) | Field::Param(_));
        match (*op, value) {
            ("=" | "!=" | "<" | "<=" | ">" | ">=", Literal::Number(_)) if field.is_number() => true,
            // Searching logged models takes an unquoted value for a text.
            ("=" | "!=" | "LIKE" | "ILIKE", Literal::Number(_)) if subject == Subject::LoggedModels => {
                !field.is_number()
            }
            ("=" | "!=" | "LIKE" | "ILIKE", Literal::Text(text)) => !field.is_number() && !text.contains('\0'),
            ("IN" | "NOT IN", Literal::List(texts)) => takes_lists && texts.iter().all(|text| !text.contains('\0')),
            ("IS NULL" | "IS NOT NULL", Literal::Nothing) => is_optional,
            _ => false,
        }
    }
}

/// Turns a text into a pattern that may match it.
fn pattern(dice: &mut StdRng, value: Literal) -> Literal {
    let Literal::Text(text) = value else { return value };
    let chars: Vec<char> = text.chars().collect();
    let at = dice.random_range(0..=chars.len());
    let (before, after) = (String::from_iter(&chars[..at]), String::from_iter(&chars[at..]));
    let pattern = match dice.random_range(0..5) {
        0 => format!("{before}%"),
        1 => format!("%{after}"),
        2 => format!("{before}_{}", after.chars().skip(1).collect::<String>()),
        3 => text.to_ascii_uppercase(),
        _ => text.clone(),
    };
    Literal::Text(if can_be_written(&pattern) { pattern } else { "%".to_owned() })
}

/// Writes a filter.
pub(super) fn written(dice: &mut StdRng, conditions: &[Condition], is_logged_model: bool) -> String {
    let mut text = String::new();
    for Condition { field, op, value } in conditions {
        if !text.is_empty() {
            text.push_str([" AND ", " and ", "\nAND\t", "  AnD  "].choose(dice).unwrap());
        }
        text.push_str(&field.written(dice, is_logged_model));
        let op = if dice.random_bool(0.2) { op.to_lowercase() } else { (*op).to_owned() };
        text.push_str(&format!(" {op} "));
        match value {
            Literal::Nothing => {}
            Literal::Text(value) => text.push_str(&quoted(dice, value)),
            Literal::Number(number) => text.push_str(number),
            Literal::List(texts) => {
                let texts: Vec<String> = texts.iter().map(|one| quoted(dice, one)).collect();
                text.push_str(&format!("({})", texts.join(", ")));
            }
        }
    }
    text
}
