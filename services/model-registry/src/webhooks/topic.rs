//! What webhooks are told of, in the words and payloads of MLflow.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::error::Result;
use crate::model::{AliasMove, Micros, ModelDraft, Origin, TagChange, VersionDraft};
use crate::names::ModelName;

/// Marks a registered model, or a version, that is a prompt.
pub(crate) const IS_PROMPT: &str = "mlflow.prompt.is_prompt";
/// Whether a registered model whose mark has this value is a prompt.
pub(crate) fn is_prompt(mark: &str) -> bool {
    mark.eq_ignore_ascii_case("true")
}
/// Holds the template of a prompt's version.
const PROMPT_TEXT: &str = "mlflow.prompt.text";
/// The tags by which MLflow's clients keep prompts as models: not a prompt's own.
const PROMPT_INNER: [&str; 3] = [IS_PROMPT, "_mlflow_prompt_type", PROMPT_TEXT];

/// Something a webhook can be told of: an entity and an action, written `entity.action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Topic {
    #[serde(rename = "model_version.created")]
    VersionCreated,
    #[serde(rename = "model_version_alias.created")]
    AliasCreated,
    #[serde(rename = "model_version_alias.deleted")]
    AliasDeleted,
    #[serde(rename = "model_version_tag.deleted")]
    VersionTagDeleted,
    #[serde(rename = "model_version_tag.set")]
    VersionTagSet,
    #[serde(rename = "prompt.created")]
    PromptCreated,
    #[serde(rename = "prompt_alias.created")]
    PromptAliasCreated,
    #[serde(rename = "prompt_alias.deleted")]
    PromptAliasDeleted,
    #[serde(rename = "prompt_tag.deleted")]
    PromptTagDeleted,
    #[serde(rename = "prompt_tag.set")]
    PromptTagSet,
    #[serde(rename = "prompt_version.created")]
    PromptVersionCreated,
    #[serde(rename = "prompt_version_tag.deleted")]
    PromptVersionTagDeleted,
    #[serde(rename = "prompt_version_tag.set")]
    PromptVersionTagSet,
    #[serde(rename = "registered_model.created")]
    ModelCreated,
}

impl Topic {
    /// All there are, in the order of their names.
    pub const ALL: [Self; 14] = [
        Self::VersionCreated,
        Self::AliasCreated,
        Self::AliasDeleted,
        Self::VersionTagDeleted,
        Self::VersionTagSet,
        Self::PromptCreated,
        Self::PromptAliasCreated,
        Self::PromptAliasDeleted,
        Self::PromptTagDeleted,
        Self::PromptTagSet,
        Self::PromptVersionCreated,
        Self::PromptVersionTagDeleted,
        Self::PromptVersionTagSet,
        Self::ModelCreated,
    ];

    /// The entity and the action.
    pub fn parts(self) -> (&'static str, &'static str) {
        match self {
            Self::VersionCreated => ("model_version", "created"),
            Self::AliasCreated => ("model_version_alias", "created"),
            Self::AliasDeleted => ("model_version_alias", "deleted"),
            Self::VersionTagDeleted => ("model_version_tag", "deleted"),
            Self::VersionTagSet => ("model_version_tag", "set"),
            Self::PromptCreated => ("prompt", "created"),
            Self::PromptAliasCreated => ("prompt_alias", "created"),
            Self::PromptAliasDeleted => ("prompt_alias", "deleted"),
            Self::PromptTagDeleted => ("prompt_tag", "deleted"),
            Self::PromptTagSet => ("prompt_tag", "set"),
            Self::PromptVersionCreated => ("prompt_version", "created"),
            Self::PromptVersionTagDeleted => ("prompt_version_tag", "deleted"),
            Self::PromptVersionTagSet => ("prompt_version_tag", "set"),
            Self::ModelCreated => ("registered_model", "created"),
        }
    }

    /// Finds the topic of an entity and an action.
    pub fn find(entity: &str, action: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.parts() == (entity, action))
    }

    /// A payload that shows what such a delivery looks like.
    pub(crate) fn example(self) -> Value {
        let (entity, _) = self.parts();
        let name = if entity.starts_with("prompt") { "example_prompt" } else { "example_model" };
        let tags = json!({"example_key": "example_value"});
        match self {
            Self::ModelCreated => json!({"name": name, "tags": tags, "description": "An example registered model"}),
            Self::PromptCreated => json!({"name": name, "tags": tags, "description": "An example prompt"}),
            Self::VersionCreated => json!({
                "name": name, "version": "1", "source": "models:/123", "run_id": "abcd1234abcd5678", "tags": tags,
                "description": "An example model version",
            }),
            Self::PromptVersionCreated => json!({
                "name": name, "version": "1", "template": "Hello {{name}}!", "tags": tags,
                "description": "An example prompt version",
            }),
            Self::VersionTagSet | Self::PromptVersionTagSet => {
                json!({"name": name, "version": "1", "key": "example_key", "value": "example_value"})
            }
            Self::VersionTagDeleted | Self::PromptVersionTagDeleted => {
                json!({"name": name, "version": "1", "key": "example_key"})
            }
            Self::PromptTagSet => json!({"name": name, "key": "example_key", "value": "example_value"}),
            Self::PromptTagDeleted => json!({"name": name, "key": "example_key"}),
            Self::AliasCreated | Self::PromptAliasCreated => {
                json!({"name": name, "alias": "example_alias", "version": "1"})
            }
            Self::AliasDeleted | Self::PromptAliasDeleted => json!({"name": name, "alias": "example_alias"}),
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (entity, action) = self.parts();
        write!(f, "{entity}.{action}")
    }
}

/// Something that has just happened.
#[derive(Clone, Copy, Debug)]
pub enum News<'a> {
    Model(&'a ModelDraft),
    Version(i64, &'a VersionDraft),
    Alias(&'a AliasMove),
    Tag(&'a TagChange),
}

impl News<'_> {
    /// Which model it is about.
    pub(crate) fn model(&self) -> &ModelName {
        match self {
            Self::Model(ModelDraft { name, .. }) => name,
            Self::Version(_, VersionDraft { model, .. })
            | Self::Alias(AliasMove { model, .. })
            | Self::Tag(TagChange { model, .. }) => model,
        }
    }

    /// Whether it is about a prompt; None where only the tags of its model tell.
    pub(crate) fn is_prompt(&self) -> Option<bool> {
        match self {
            Self::Model(ModelDraft { tags, .. }) | Self::Version(_, VersionDraft { tags, .. }) => {
                Some(tags.contains_key(IS_PROMPT))
            }
            Self::Alias(_) | Self::Tag(_) => None,
        }
    }

    /// What webhooks are told of it. MLflow does not speak of the tags of a registered model that is no prompt.
    pub(crate) fn told(&self, is_prompt: bool) -> Option<(Topic, Value)> {
        let either = |prompt, model| if is_prompt { prompt } else { model };
        Some(match self {
            Self::Model(ModelDraft { name, description, tags }) => (
                either(Topic::PromptCreated, Topic::ModelCreated),
                json!({"name": name, "tags": own(tags, is_prompt), "description": description}),
            ),
            Self::Version(number, VersionDraft { model, description, tags, origin, .. }) => {
                let mut payload = json!({
                    "name": model,
                    "version": number.to_string(),
                    "tags": own(tags, is_prompt),
                    "description": some(description),
                });
                if is_prompt {
                    payload["template"] = json!(tags.get(PROMPT_TEXT));
                    return Some((Topic::PromptVersionCreated, payload));
                }
                let Origin { source, run, .. } = origin.clone().unwrap_or_default();
                payload["source"] = json!(source);
                payload["run_id"] = json!(some(&run));
                (Topic::VersionCreated, payload)
            }
            Self::Alias(AliasMove { model, alias, to: Some(version), expected: _ }) => (
                either(Topic::PromptAliasCreated, Topic::AliasCreated),
                json!({"name": model, "alias": alias.as_str(), "version": version.to_string()}),
            ),
            Self::Alias(AliasMove { model, alias, to: None, expected: _ }) => (
                either(Topic::PromptAliasDeleted, Topic::AliasDeleted),
                json!({"name": model, "alias": alias.as_str()}),
            ),
            Self::Tag(TagChange { model, version, key, value }) => {
                let mut payload = json!({"name": model, "key": key});
                if let Some(version) = version {
                    payload["version"] = version.to_string().into();
                }
                if let Some(value) = value {
                    payload["value"] = value.as_str().into();
                }
                let topic = match (is_prompt, version, value) {
                    (false, None, _) => return None,
                    (false, Some(_), Some(_)) => Topic::VersionTagSet,
                    (false, Some(_), None) => Topic::VersionTagDeleted,
                    (true, None, Some(_)) => Topic::PromptTagSet,
                    (true, None, None) => Topic::PromptTagDeleted,
                    (true, Some(_), Some(_)) => Topic::PromptVersionTagSet,
                    (true, Some(_), None) => Topic::PromptVersionTagDeleted,
                };
                (topic, payload)
            }
        })
    }
}

fn own(tags: &BTreeMap<String, String>, is_prompt: bool) -> Value {
    let is_own = |key: &str| !is_prompt || !PROMPT_INNER.contains(&key);
    tags.iter().filter(|(key, _)| is_own(key)).map(|(key, value)| (key.clone(), json!(value))).collect()
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// The body of a delivery.
pub(crate) fn body(topic: Topic, time: Micros, payload: &Value) -> Result<String> {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]+00:00");
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(time.0) * 1000)
        .map_err(anyhow::Error::from)?
        .format(format)
        .map_err(anyhow::Error::from)?;
    let (entity, action) = topic.parts();
    Ok(json!({"entity": entity, "action": action, "timestamp": time, "data": payload}).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::AliasName;

    #[test]
    fn topics_are_in_the_order_of_their_names_and_stored_by_them() {
        let names: Vec<_> = Topic::ALL.iter().map(ToString::to_string).collect();
        assert!(names.is_sorted());
        assert!(Topic::ALL.is_sorted());
        for (topic, name) in Topic::ALL.into_iter().zip(names) {
            assert_eq!(serde_json::to_value(topic).unwrap(), json!(name));
            let (entity, action) = topic.parts();
            assert_eq!(Topic::find(entity, action), Some(topic));
        }
        assert_eq!(Topic::find("prompt", "deleted"), None);
    }

    #[test]
    fn the_time_in_a_body_is_written_as_python_writes_it() {
        let body = body(Topic::AliasDeleted, Micros(1_700_000_000_000_042), &json!({"name": "m"})).unwrap();
        let body: Value = serde_json::from_str(&body).unwrap();
        let said = json!({
            "entity": "model_version_alias", "action": "deleted", "timestamp": "2023-11-14T22:13:20.000042+00:00",
            "data": {"name": "m"},
        });
        assert_eq!(body, said);
    }

    #[test]
    fn a_prompt_is_told_of_without_the_tags_that_make_it_one() {
        let model = ModelName::parse("name", "greeting").unwrap();
        let tags = [(IS_PROMPT, "true"), (PROMPT_TEXT, "Hello {{name}}!"), ("_mlflow_prompt_type", "text"), ("a", "b")];
        let tags = tags.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let draft = VersionDraft {
            model: model.clone(),
            description: String::new(),
            task: crate::model::Task::Custom,
            signature: None,
            parameters: BTreeMap::new(),
            tags: BTreeMap::from(tags),
            origin: Some(Origin { source: "prompt-template".to_owned(), ..Origin::default() }),
        };
        let news = News::Version(3, &draft);
        assert_eq!(news.is_prompt(), Some(true));
        let payload = json!({
            "name": "greeting", "version": "3", "template": "Hello {{name}}!", "tags": {"a": "b"}, "description": null,
        });
        assert_eq!(news.told(true), Some((Topic::PromptVersionCreated, payload)));
    }

    #[test]
    fn tags_of_a_model_are_told_of_only_where_it_is_a_prompt() {
        let model = ModelName::parse("name", "m").unwrap();
        let change = TagChange { model: model.clone(), version: None, key: "k".into(), value: Some("v".into()) };
        assert_eq!(News::Tag(&change).told(false), None);
        let payload = json!({"name": "m", "key": "k", "value": "v"});
        assert_eq!(News::Tag(&change).told(true), Some((Topic::PromptTagSet, payload)));
        let alias = AliasName::parse("alias", "champion").unwrap();
        let gone = AliasMove { model, alias, to: None, expected: None };
        let payload = json!({"name": "m", "alias": "champion"});
        assert_eq!(News::Alias(&gone).told(false), Some((Topic::AliasDeleted, payload)));
    }
}
