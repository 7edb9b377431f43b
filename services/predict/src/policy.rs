//! What a score means: thresholds to an outcome, SHAP values to reasons.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;

use crate::{decision::Reason, release::Feature};

/// A version's `policy.json`, checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    id: String,
    version: String,
    adverse: Side,
    outcomes: Vec<Outcome>,
    #[serde(default)]
    reasons: BTreeMap<String, Wording>,
}

/// Which scores are bad for the person it is about.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Side {
    High,
    Low,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Outcome {
    outcome: String,
    /// Scores below this, and not below the one before, get this outcome; the last outcome has none.
    below: Option<f32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wording {
    code: String,
    text: String,
}

impl Policy {
    /// Reads a policy for a model with these input columns. The error says which part is wrong and how it should be.
    pub fn parse(json: &[u8], inputs: &[Feature]) -> Result<Self, String> {
        let policy: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        policy.check(inputs)?;
        Ok(policy)
    }

    /// Returns `id/version`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.id, self.version)
    }

    /// Returns the outcome of a score in [0, 1].
    pub fn outcome(&self, score: f32) -> &str {
        let found = self.outcomes.iter().find(|outcome| outcome.below.is_none_or(|below| score < below));
        found.map_or("", |outcome| &outcome.outcome)
    }

    /// Picks the features that moved the score towards the adverse side, strongest first, at most `most`.
    ///
    /// `shap` has one value per column of `inputs`. Equal values keep the order of the columns.
    pub fn reasons(&self, inputs: &[Feature], shap: &[f32], most: usize) -> Vec<Reason> {
        let towards = |value: f32| if self.adverse == Side::High { value } else { -value };
        let mut adverse: Vec<_> = inputs.iter().zip(shap).filter(|(_, value)| towards(**value) > 0.0).collect();
        adverse.sort_by(|(_, a), (_, b)| towards(**b).total_cmp(&towards(**a)));
        adverse.truncate(most);
        adverse
            .into_iter()
            .map(|(feature, contribution)| {
                let (code, text) = match self.reasons.get(&feature.name) {
                    Some(Wording { code, text }) => (code.clone(), text.clone()),
                    None if feature.description.is_empty() => (feature.name.to_uppercase(), feature.name.clone()),
                    None => (feature.name.to_uppercase(), feature.description.clone()),
                };
                Reason { code, text, feature: feature.name.clone(), contribution: *contribution }
            })
            .collect()
    }

    fn check(&self, inputs: &[Feature]) -> Result<(), String> {
        for (field, text) in [("id", &self.id), ("version", &self.version)] {
            if text.trim().is_empty() {
                return Err(format!("`{field}` is empty"));
            }
        }
        let Some((last, others)) = self.outcomes.split_last() else {
            return Err("`outcomes` is empty: at least one is needed".to_owned());
        };
        if last.below.is_some() {
            return Err(format!("the last outcome, `{}`, must have no `below`: it takes the rest", last.outcome));
        }
        let mut floor = 0.0;
        for outcome in others {
            let Some(below) = outcome.below else {
                return Err(format!("outcome `{}` needs `below`: only the last goes without", outcome.outcome));
            };
            if !(below > floor && below <= 1.0) {
                return Err(format!(
                    "`below` of outcome `{}` is {below}: thresholds must rise, above {floor} and at most 1",
                    outcome.outcome
                ));
            }
            floor = below;
        }
        let mut seen = HashSet::new();
        for Outcome { outcome, .. } in &self.outcomes {
            if outcome.trim().is_empty() || !seen.insert(outcome) {
                return Err(format!("outcome `{outcome}` is empty or there twice"));
            }
        }
        for (feature, Wording { code, text }) in &self.reasons {
            if !inputs.iter().any(|input| input.name == *feature) {
                return Err(format!("`reasons` names `{feature}`, which is no input of the model"));
            }
            if code.trim().is_empty() || text.trim().is_empty() {
                return Err(format!("the reason for `{feature}` needs a `code` and a `text`"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::FeatureKind;

    fn inputs() -> Vec<Feature> {
        ["age", "amount", "purpose"]
            .map(|name| Feature {
                name: name.to_owned(),
                kind: FeatureKind::Double,
                optional: false,
                categories: Vec::new(),
                description: if name == "amount" { "credit amount".to_owned() } else { String::new() },
            })
            .to_vec()
    }

    fn policy(adverse: &str) -> Policy {
        let json = format!(
            r#"{{"id":"p","version":"1","adverse":"{adverse}","outcomes":[{{"outcome":"approve","below":0.35}},
            {{"outcome":"review","below":0.6}},{{"outcome":"decline"}}],"reasons":{{"age":{{"code":"R01","text":"young"}}}}}}"#
        );
        Policy::parse(json.as_bytes(), &inputs()).unwrap()
    }

    #[test]
    fn thresholds_belong_to_the_outcome_above_them() {
        let policy = policy("high");
        let outcomes = [0.0, 0.349_999, 0.35, 0.599_999, 0.6, 1.0].map(|score| policy.outcome(score));
        assert_eq!(outcomes, ["approve", "approve", "review", "review", "decline", "decline"]);
    }

    #[test]
    fn reasons_are_adverse_and_strongest_first() {
        let codes = |adverse, most| -> Vec<_> {
            policy(adverse).reasons(&inputs(), &[0.1, 0.4, -0.2], most).into_iter().map(|reason| reason.code).collect()
        };
        assert_eq!(codes("high", 4), ["AMOUNT", "R01"]);
        assert_eq!(codes("high", 1), ["AMOUNT"]);
        assert_eq!(codes("low", 4), ["PURPOSE"]);
        assert_eq!(policy("high").reasons(&inputs(), &[0.1, 0.4, -0.2], 4)[0].text, "credit amount");
    }

    #[test]
    fn a_wrong_policy_is_refused_with_the_part_that_is_wrong() {
        let refused = |outcomes: &str, rest: &str| {
            let json = format!(r#"{{"id":"p","version":"1","adverse":"high","outcomes":[{outcomes}]{rest}}}"#);
            Policy::parse(json.as_bytes(), &inputs()).unwrap_err()
        };
        assert!(refused("", "").contains("`outcomes` is empty"));
        assert!(refused(r#"{"outcome":"a","below":0.5}"#, "").contains("the last outcome, `a`"));
        assert!(refused(r#"{"outcome":"a"},{"outcome":"b"}"#, "").contains("`a` needs `below`"));
        let falling = r#"{"outcome":"a","below":0.5},{"outcome":"b","below":0.4},{"outcome":"c"}"#;
        assert!(refused(falling, "").contains("thresholds must rise"));
        assert!(refused(r#"{"outcome":"a","below":0.5},{"outcome":"a"}"#, "").contains("there twice"));
        let unknown = r#","reasons":{"income":{"code":"R","text":"t"}}"#;
        assert!(refused(r#"{"outcome":"a"}"#, unknown).contains("`income`, which is no input"));
        assert!(refused(r#"{"outcome":"a"}"#, r#","threshold":1"#).contains("unknown field `threshold`"));
        assert!(refused(r#"{"outcome":"a","bellow":0.1}"#, "").contains("unknown field `bellow`"));
    }
}
