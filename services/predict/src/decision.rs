//! A recorded decision and what it is made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

/// The value of a feature that is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Boolean(bool),
    /// Finite.
    Number(f64),
    Text(String),
}

/// The features of one case by name, in the order of their names.
pub type Features = BTreeMap<String, Value>;

/// One feature's share of a score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    pub code: String,
    pub text: String,
    pub feature: String,
    /// SHAP value in log-odds.
    pub contribution: f32,
}

/// A decision as it is recorded. Never changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// UUIDv7: sorts by time.
    pub id: Uuid,
    pub request_id: String,
    /// To the microsecond.
    pub time: OffsetDateTime,
    pub model: String,
    pub version: i64,
    /// Empty when asked for by number.
    pub alias: String,
    pub digest: String,
    pub features: Features,
    pub features_hash: String,
    pub score: f32,
    pub margin: f32,
    pub outcome: String,
    pub reasons: Vec<Reason>,
    pub policy: String,
    pub trace_id: String,
    /// Route it was asked for by; empty when by reference.
    pub route: String,
}

impl Decision {
    /// Tells whether this decision answers the same request as `other`: same model or route as it was asked for, same
    /// features.
    pub fn answers_the_same(&self, other: &Self) -> bool {
        if !other.route.is_empty() {
            return self.is_by_route(&other.route, &other.features_hash);
        }
        self.is_about(&other.model, &other.alias, other.version, &other.features_hash)
    }

    /// Tells whether this decision is about these features and was asked for by this route, whoever made it.
    pub fn is_by_route(&self, route: &str, features_hash: &str) -> bool {
        self.route == route && self.features_hash == features_hash
    }

    /// Tells whether this decision is about these features and this model, by alias where it was asked for by alias.
    pub fn is_about(&self, model: &str, alias: &str, version: i64, features_hash: &str) -> bool {
        self.route.is_empty()
            && self.model == model
            && self.alias == alias
            && (!alias.is_empty() || self.version == version)
            && self.features_hash == features_hash
    }
}

/// Writes features in canonical form: JSON, keys sorted, no white space.
pub fn canonical(features: &Features) -> serde_json::Result<String> {
    serde_json::to_string(features)
}

/// Hashes canonical features: `sha256:…`.
pub fn features_hash(canonical: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(canonical)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_features_read_back_as_they_were() {
        let features = Features::from([
            ("b".to_owned(), Value::Number(35.0)),
            ("a".to_owned(), Value::Text("car (new)".to_owned())),
            ("c".to_owned(), Value::Boolean(true)),
            ("d".to_owned(), Value::Number(0.1)),
        ]);
        let canonical = canonical(&features).unwrap();
        assert_eq!(canonical, r#"{"a":"car (new)","b":35.0,"c":true,"d":0.1}"#);
        assert_eq!(serde_json::from_str::<Features>(&canonical).unwrap(), features);
    }
}
