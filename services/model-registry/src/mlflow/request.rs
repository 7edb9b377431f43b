//! Parameters: from the query of a GET, from the JSON body of everything else.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{self, FromRequest, FromRequestParts, Request};
use axum::http::Method;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::refusal::Refusal;
use crate::search::{Condition, Order, Subject, filter, order};
use crate::tracking::{Millis, limits, page};

type Result<T> = std::result::Result<T, Refusal>;

const DOCS: &str = "See the API docs for more information about request parameters.";

/// The parameters of a call, as they came.
#[derive(Debug)]
pub(super) struct Fields(Map<String, Value>);

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        if request.method() == Method::GET && !query.is_empty() {
            return Ok(Self::from_query(&query));
        }
        let body = Bytes::from_request(request, state).await.map_err(|error| Refusal::invalid(error.body_text()))?;
        Self::from_json(&body)
    }
}

/// The parameters in the path of a call; what is no UTF-8 is refused in MLflow's form.
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let read = extract::Path::from_request_parts(parts, state).await;
        read.map(|extract::Path(value)| Self(value)).map_err(|error| Refusal::invalid(error.body_text()))
    }
}

impl Fields {
    /// What is repeated becomes a list; a list of one looks like a text and is read as either.
    fn from_query(query: &str) -> Self {
        let mut fields: Map<String, Value> = Map::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let value = Value::String(value.into_owned());
            match fields.get_mut(name.as_ref()) {
                None => {
                    fields.insert(name.into_owned(), value);
                }
                Some(Value::Array(values)) => values.push(value),
                Some(first) => *first = Value::Array(vec![first.take(), value]),
            }
        }
        Self(fields)
    }

    pub(super) fn from_json(body: &[u8]) -> Result<Self> {
        if body.is_empty() {
            return Ok(Self(Map::new()));
        }
        let read = |text: &[u8]| serde_json::from_slice::<Value>(text);
        match read(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(Value::Null) => Ok(Self(Map::new())),
            // Old clients encode twice.
            Ok(Value::String(text)) => match read(text.as_bytes()) {
                Ok(Value::Object(fields)) => Ok(Self(fields)),
                _ => Err(Refusal::invalid("The request body is not a JSON object.")),
            },
            Ok(_) => Err(Refusal::invalid("The request body is not a JSON object.")),
            Err(error) => Err(Refusal::invalid(format!("The request body is not JSON: {error}"))),
        }
    }

    /// Parameters that came in another way than a body or a query.
    pub(super) fn from_map(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A text; None where it was not given.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => {
                limits::no_nul(name, text)?;
                Ok(Some(text.clone()))
            }
            Some(other) => Err(wrong_type(name, other)),
        }
    }

    /// A text, empty where it was not given.
    pub(super) fn text_or_empty(&self, name: &str) -> Result<String> {
        Ok(self.text(name)?.unwrap_or_default())
    }

    /// A text that must be given.
    pub(super) fn required(&self, name: &str) -> Result<String> {
        self.text(name)?.filter(|text| !text.is_empty()).ok_or_else(|| missing(name))
    }

    /// A run id, under its old name too.
    pub(super) fn run_id(&self) -> Result<String> {
        match self.text("run_id")?.filter(|id| !id.is_empty()) {
            Some(id) => Ok(id),
            None => self.text("run_uuid")?.filter(|id| !id.is_empty()).ok_or_else(|| missing("run_id")),
        }
    }

    /// A whole number, as a number or as a text.
    pub(super) fn integer(&self, name: &str) -> Result<Option<i64>> {
        self.get(name).map(|value| integer(name, value)).transpose()
    }

    /// A truth, as a truth or as a text.
    pub(super) fn truth(&self, name: &str) -> Result<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(*truth)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(other) => Err(wrong_type(name, other)),
        }
    }

    /// A list; of one where a single text came.
    pub(super) fn list(&self, name: &str) -> Result<Vec<Value>> {
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => Ok(values.clone()),
            Some(other) => Err(wrong_type(name, other)),
        }
    }

    /// A list of texts.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<String>> {
        let values = match self.get(name) {
            Some(Value::String(_)) => return Ok(self.text(name)?.into_iter().collect()),
            _ => self.list(name)?,
        };
        values.iter().filter_map(Value::as_str).try_for_each(|text| limits::no_nul(name, text))?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        values.iter().map(text).collect::<Option<_>>().ok_or_else(|| wrong_type(name, &Value::Array(values.clone())))
    }

    /// A list of objects.
    pub(super) fn objects(&self, name: &str) -> Result<Vec<Self>> {
        self.list(name)?.into_iter().map(|value| Self::of(name, value)).collect()
    }

    /// Takes a list of objects out: it may be long.
    pub(super) fn take_objects(&mut self, name: &str) -> Result<Vec<Self>> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(values)) => values.into_iter().map(|value| Self::of(name, value)).collect(),
            Some(other) => Err(wrong_type(name, &other)),
        }
    }

    fn of(name: &str, value: Value) -> Result<Self> {
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            other => Err(wrong_type(name, &other)),
        }
    }

    /// An object.
    pub(super) fn object(&self, name: &str) -> Result<Option<Self>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Self(fields.clone()))),
            Some(other) => Err(wrong_type(name, other)),
        }
    }

    /// An object whose values are texts.
    pub(super) fn map(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let Some(fields) = self.object(name)? else { return Ok(BTreeMap::new()) };
        fields.0.keys().try_for_each(|key| limits::no_nul(name, key))?;
        fields.0.keys().map(|key| Ok((key.clone(), fields.text_or_empty(key)?))).collect()
    }

    /// Pairs of `key` and `value`; of several with one key the last counts.
    pub(super) fn pairs(&self, name: &str) -> Result<BTreeMap<String, String>> {
        Ok(self.pair_list(name)?.into_iter().collect())
    }

    /// Pairs of `key` and `value`, in order.
    pub(super) fn pair_list(&self, name: &str) -> Result<Vec<(String, String)>> {
        let pair = |(index, pair): (usize, Self)| {
            let key = pair.text("key")?.ok_or_else(|| missing(&format!("{name}[{index}].key")))?;
            Ok((key, pair.text_or_empty("value")?))
        };
        self.objects(name)?.into_iter().enumerate().map(pair).collect()
    }

    /// A point in time, in milliseconds.
    pub(super) fn millis(&self, name: &str) -> Result<Option<Millis>> {
        Ok(self.integer(name)?.map(Millis))
    }

    /// A number as MLflow writes it: also "NaN", "Infinity", or a number in a text.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>> {
        let value = match self.get(name) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(text)) => match text.as_str() {
                "NaN" => Some(f64::NAN),
                "Infinity" => Some(f64::INFINITY),
                "-Infinity" => Some(f64::NEG_INFINITY),
                text => text.trim().parse().ok(),
            },
            Some(_) => None,
        };
        let wrong = || wrong_type(name, self.get(name).unwrap_or(&Value::Null));
        value.map(Some).ok_or_else(wrong)
    }

    /// A parameter as it came.
    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        self.get(name)
    }

    /// Whether a parameter came at all.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| *value != Value::String(String::new()))
    }

    /// How many are wanted: at least 1, at most `max`.
    pub(super) fn limit(&self, default: u32, max: u32) -> Result<u32> {
        let Some(wanted) = self.integer("max_results")? else { return Ok(default) };
        if wanted > i64::from(max) {
            return Err(Refusal::invalid(format!(
                "Invalid value {wanted} for parameter 'max_results' supplied: It must be at most {max}. {DOCS}"
            )));
        }
        u32::try_from(wanted).ok().filter(|wanted| *wanted > 0).ok_or_else(|| {
            Refusal::invalid(format!(
                "Invalid value {wanted} for parameter 'max_results' supplied: It must be a positive integer. {DOCS}"
            ))
        })
    }

    /// How many to pass over, from the token of the page before.
    pub(super) fn offset(&self) -> Result<u64> {
        let token = self.text_or_empty("page_token")?;
        Ok(page::offset(&token)?)
    }

    /// The conditions of `filter`.
    pub(super) fn conditions(&self, subject: Subject) -> Result<Vec<Condition>> {
        // Searches of evaluation datasets have another word for it.
        let name = if subject == Subject::EvaluationDatasets { "filter_string" } else { "filter" };
        filter(subject, &self.text_or_empty(name)?).map_err(|problem| Refusal::invalid(problem.0))
    }

    /// The clauses of `order_by`.
    pub(super) fn orders(&self, subject: Subject) -> Result<Vec<Order>> {
        order(subject, &self.texts("order_by")?).map_err(|problem| Refusal::invalid(problem.0))
    }
}

/// `Missing value for required parameter '…'.`
pub(super) fn missing(name: &str) -> Refusal {
    Refusal::invalid(format!("Missing value for required parameter '{name}'. {DOCS}"))
}

fn integer(name: &str, value: &Value) -> Result<i64> {
    let read = match value {
        Value::Number(number) => number
            .as_i64()
            .or_else(|| number.as_f64().filter(|number| number.fract() == 0.0).map(|number| number as i64)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    read.ok_or_else(|| wrong_type(name, value))
}

fn wrong_type(name: &str, value: &Value) -> Refusal {
    let kind = match value {
        Value::Null => "NoneType",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float",
        Value::Number(_) => "int",
        Value::String(_) => "str",
        Value::Array(_) => "list",
        Value::Object(_) => "dict",
    };
    let mut shown = value.to_string();
    shown.truncate(shown.floor_char_boundary(200));
    Refusal::invalid(format!(
        "Invalid value {shown} for parameter '{name}' supplied:  Hint: Value was of type '{kind}'. {DOCS}"
    ))
}
