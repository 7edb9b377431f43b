//! The body of log-batch: up to a thousand values, so it is read at once where it is as every client writes it. What
//! differs in any way is read field by field, which says what is wrong.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use serde::Deserialize;

use super::Refusal;
use super::request::Fields;
use super::runs::metric;
use crate::tracking::{Batch, Metric, Millis};

/// What is logged, to which run.
#[derive(Debug, PartialEq)]
pub(super) struct Logged {
    pub(super) run: String,
    pub(super) batch: Batch,
}

impl<S: Send + Sync> FromRequest<S> for Logged {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let body = Bytes::from_request(request, state).await.map_err(|error| Refusal::invalid(error.body_text()))?;
        match usual(&body) {
            Some(logged) => Ok(logged),
            None => by_field(Fields::from_json(&body)?),
        }
    }
}

fn by_field(mut fields: Fields) -> Result<Logged, Refusal> {
    let run = fields.run_id()?;
    let metrics = fields.take_objects("metrics")?;
    let read = |(index, fields): (usize, &Fields)| metric(fields, &format!("metrics[{index}]."));
    let batch = Batch {
        metrics: metrics.iter().enumerate().map(read).collect::<Result<_, _>>()?,
        params: fields.pair_list("params")?,
        tags: fields.pair_list("tags")?,
    };
    Ok(Logged { run, batch })
}

#[derive(Deserialize)]
struct Usual {
    run_id: String,
    #[serde(default)]
    metrics: Vec<UsualMetric>,
    #[serde(default)]
    params: Vec<UsualPair>,
    #[serde(default)]
    tags: Vec<UsualPair>,
}

#[derive(Deserialize)]
struct UsualMetric {
    key: String,
    value: f64,
    timestamp: i64,
    #[serde(default)]
    step: i64,
    model_id: Option<String>,
    dataset_name: Option<String>,
    dataset_digest: Option<String>,
}

#[derive(Deserialize)]
struct UsualPair {
    key: String,
    value: String,
}

/// Reads a body as clients write it; `None` where it is anything else.
fn usual(body: &[u8]) -> Option<Logged> {
    let Usual { run_id, metrics, params, tags } = serde_json::from_slice(body).ok()?;
    let is_plain = |text: &str| !text.contains('\0');
    let metric = |one: UsualMetric| {
        let UsualMetric { key, value, timestamp, step, model_id, dataset_name, dataset_digest } = one;
        let texts = [&model_id, &dataset_name, &dataset_digest];
        (!key.is_empty() && is_plain(&key) && texts.into_iter().flatten().all(|text| is_plain(text))).then(|| {
            let given = |text: Option<String>| text.filter(|text| !text.is_empty());
            let (model, dataset) = (given(model_id), given(dataset_name).zip(given(dataset_digest)));
            Metric { key, value, timestamp: Millis(timestamp), step, model, dataset }
        })
    };
    let pair = |UsualPair { key, value }: UsualPair| (is_plain(&key) && is_plain(&value)).then_some((key, value));
    let batch = Batch {
        metrics: metrics.into_iter().map(metric).collect::<Option<_>>()?,
        params: params.into_iter().map(pair).collect::<Option<_>>()?,
        tags: tags.into_iter().map(pair).collect::<Option<_>>()?,
    };
    (!run_id.is_empty() && is_plain(&run_id)).then_some(Logged { run: run_id, batch })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slowly(body: &Value) -> Result<Logged, Refusal> {
        by_field(Fields::from_json(body.to_string().as_bytes()).unwrap())
    }

    fn whole() -> Value {
        json!({
            "run_id": "r",
            "metrics": [
                {"key": "loss", "value": 0.1, "timestamp": 7, "step": 3},
                {"key": "n", "value": 2, "timestamp": 7, "model_id": "m", "dataset_name": "d", "dataset_digest": "x"},
                {"key": "half", "value": -1e300, "timestamp": 0, "dataset_name": "d", "model_id": ""},
            ],
            "params": [{"key": "depth", "value": "3"}],
            "tags": [{"key": "team", "value": ""}],
        })
    }

    #[test]
    fn both_ways_read_the_same() {
        let body = whole();
        let read = usual(body.to_string().as_bytes()).expect("read at once");
        assert_eq!(read, slowly(&body).unwrap());
        assert_eq!(read.batch.metrics.len(), 3);
    }

    #[test]
    fn what_is_unusual_is_read_field_by_field() {
        let unusual = [
            ("/run_id", json!("")),
            ("/run_id", json!("a\0")),
            ("/metrics", json!(null)),
            ("/metrics/0/key", json!("")),
            ("/metrics/0/key", json!("a\0b")),
            ("/metrics/0/value", json!("NaN")),
            ("/metrics/0/timestamp", json!("7")),
            ("/metrics/0/step", json!(1.0)),
            ("/metrics/1/model_id", json!("\0")),
            ("/params/0/value", json!(null)),
            ("/params/0/key", json!("\0")),
            ("/tags", json!({})),
        ];
        for (at, value) in unusual {
            let mut body = whole();
            *body.pointer_mut(at).unwrap() = value;
            assert_eq!(usual(body.to_string().as_bytes()), None, "{at}");
        }
        assert!(slowly(&json!({"run_id": "r", "metrics": [{"key": "a", "value": "NaN", "timestamp": "7"}]})).is_ok());
        assert_eq!(usual(b"{\"run_id\": \"r\"}").unwrap().batch.metrics, []);
    }
}
