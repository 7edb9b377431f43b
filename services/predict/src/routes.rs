//! Routes: names that callers use as `model`, each with a champion, challengers that take a share of the calls, and
//! shadows that see copies.

pub mod board;
pub mod choose;
pub mod guard;
pub mod saved;
pub mod scores;
pub mod shadow;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use verdict_chassis::status::Field;

use crate::{
    error::{Error, Result},
    reference::Reference,
};

/// Most challengers of a route.
pub const MAX_CHALLENGERS: usize = 8;
/// Most shadows of a route.
pub const MAX_SHADOWS: usize = 4;
const MAX_NAME: usize = 63;
const WINDOW: (usize, usize) = (50, 10_000);
const MIN_CALLS: usize = 20;

/// Who answers under a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub name: String,
    /// Takes what the challengers do not.
    pub champion: Reference,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub challengers: Vec<Challenger>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shadows: Vec<Shadow>,
    /// Holds for each challenger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<Guard>,
}

/// A model that takes a share of a route's calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenger {
    pub reference: Reference,
    /// Share of the calls, 0 to 1.
    pub weight: f64,
    /// Set by the guard, with a weight of 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
}

/// Why and when a challenger was stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stopped {
    pub reason: String,
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
}

/// A model that sees copies of a route's calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shadow {
    pub reference: Reference,
    /// Share of the calls that are copied, above 0 and at most 1.
    #[serde(default = "all")]
    pub share: f64,
}

/// When a challenger is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guard {
    /// Newest calls that count.
    pub window: usize,
    /// Calls the challenger must have answered before it is judged.
    pub min_calls: usize,
    /// How far the challenger's share of failed calls may be above the champion's.
    pub max_error_rate_increase: Option<f64>,
    /// Most 99th percentile of the time an answer takes, in milliseconds.
    pub max_latency_p99_ms: Option<f64>,
    /// Most times the champion's 99th percentile.
    pub max_latency_p99_ratio: Option<f64>,
    /// Most distance between the mean scores of challenger and champion.
    pub max_score_shift: Option<f64>,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            window: 1000,
            min_calls: 100,
            max_error_rate_increase: None,
            max_latency_p99_ms: None,
            max_latency_p99_ratio: None,
            max_score_shift: None,
        }
    }
}

impl Route {
    /// Returns every reference the route names.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        let challengers = self.challengers.iter().map(|challenger| &challenger.reference);
        std::iter::once(&self.champion).chain(challengers).chain(self.shadows.iter().map(|shadow| &shadow.reference))
    }

    /// Returns the champion's share of the calls.
    pub fn champion_weight(&self) -> f64 {
        let others: f64 = self.challengers.iter().map(|challenger| challenger.weight).sum();
        (1.0 - others).max(0.0)
    }

    /// Returns the route if it makes sense; the error names every field that does not.
    pub fn checked(self) -> Result<Self> {
        let mut problems = Vec::new();
        let mut wrong = |field: String, problem: String| {
            problems.push(Field { field: format!("route.{field}"), problem });
        };
        if !is_route_name(&self.name) {
            let problem = format!(
                "is `{}`: 1 to {MAX_NAME} letters, digits, '.', '_' and '-' are expected, a letter or digit first",
                self.name.chars().take(80).collect::<String>()
            );
            wrong("name".to_owned(), problem);
        }
        if self.challengers.len() > MAX_CHALLENGERS {
            wrong("challengers".to_owned(), format!("are {}: at most {MAX_CHALLENGERS}", self.challengers.len()));
        }
        if self.shadows.len() > MAX_SHADOWS {
            wrong("shadows".to_owned(), format!("are {}: at most {MAX_SHADOWS}", self.shadows.len()));
        }
        for (index, Challenger { reference, weight, .. }) in self.challengers.iter().enumerate() {
            if !(0.0..=1.0).contains(weight) {
                wrong(format!("challengers[{index}].weight"), format!("is {weight}: 0 to 1 is expected"));
            }
            let before = self.challengers[..index].iter().map(|challenger| &challenger.reference);
            if std::iter::once(&self.champion).chain(before).any(|other| other == reference) {
                wrong(format!("challengers[{index}].reference"), format!("`{reference}` is there twice"));
            }
        }
        let sum: f64 = self.challengers.iter().map(|challenger| challenger.weight).sum();
        if sum > 1.0 + 1e-9 {
            wrong("challengers".to_owned(), format!("have weights of {sum} together: at most 1"));
        }
        for (index, Shadow { reference, share }) in self.shadows.iter().enumerate() {
            if !(*share > 0.0 && *share <= 1.0) {
                wrong(format!("shadows[{index}].share"), format!("is {share}: above 0 and at most 1 is expected"));
            }
            if self.shadows[..index].iter().any(|other| other.reference == *reference) {
                wrong(format!("shadows[{index}].reference"), format!("`{reference}` is there twice"));
            }
        }
        if let Some(guard) = &self.guard {
            guard.check(&mut wrong);
        }
        if problems.is_empty() { Ok(self) } else { Err(Error::Invalid(problems)) }
    }
}

impl Guard {
    fn check(&self, wrong: &mut impl FnMut(String, String)) {
        let (least, most) = WINDOW;
        if !(least..=most).contains(&self.window) {
            wrong("guard.window".to_owned(), format!("is {}: {least} to {most} is expected", self.window));
        }
        if !(MIN_CALLS..=self.window.max(MIN_CALLS)).contains(&self.min_calls) {
            let problem = format!("is {}: {MIN_CALLS} to the window, {}, is expected", self.min_calls, self.window);
            wrong("guard.min_calls".to_owned(), problem);
        }
        if let Some(rate) = self.max_error_rate_increase.filter(|rate| !(0.0..=1.0).contains(rate)) {
            wrong("guard.max_error_rate_increase".to_owned(), format!("is {rate}: 0 to 1 is expected"));
        }
        let positive = [
            ("guard.max_latency_p99", self.max_latency_p99_ms),
            ("guard.max_latency_p99_ratio", self.max_latency_p99_ratio),
            ("guard.max_score_shift", self.max_score_shift),
        ];
        for (field, value) in positive {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                wrong(field.to_owned(), format!("is {value}: above 0 is expected"));
            }
        }
    }
}

/// Tells whether this may be the name of a route.
pub fn is_route_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn all() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_reads_back_and_what_is_wrong_is_named() {
        let json = r#"{"name": "risk", "champion": "m@champion", "challengers": [{"reference": "m/2", "weight": 0.1}],
            "shadows": [{"reference": "m/3"}], "guard": {"max_error_rate_increase": 0.05}}"#;
        let route = serde_json::from_str::<Route>(json).unwrap().checked().unwrap();
        assert_eq!((route.shadows[0].share, route.guard.unwrap().window), (1.0, 1000));
        assert_eq!(serde_json::from_str::<Route>(&serde_json::to_string(&route).unwrap()).unwrap(), route);
        assert!((route.champion_weight() - 0.9).abs() < 1e-12);

        let mut bad = route.clone();
        bad.name = "a/b".to_owned();
        bad.challengers.push(Challenger { reference: "m@champion".parse().unwrap(), weight: 0.95, stopped: None });
        bad.challengers.push(Challenger { reference: "m/4".parse().unwrap(), weight: f64::NAN, stopped: None });
        bad.shadows[0].share = 0.0;
        bad.guard = Some(Guard { window: 10, max_score_shift: Some(-1.0), ..Guard::default() });
        let Err(Error::Invalid(fields)) = bad.checked() else { panic!("refused") };
        let named: Vec<_> = fields.iter().map(|field| field.field.trim_start_matches("route.")).collect();
        assert_eq!(
            named,
            [
                "name",
                "challengers[1].reference",
                "challengers[2].weight",
                "shadows[0].share",
                "guard.window",
                "guard.min_calls",
                "guard.max_score_shift"
            ]
        );
        assert!(serde_json::from_str::<Route>(r#"{"name": "r", "champion": "m"}"#).is_err());
        assert!(serde_json::from_str::<Route>(r#"{"name": "r", "champion": "m/1", "champ": 1}"#).is_err());
    }
}
