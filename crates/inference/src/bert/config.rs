//! What the JSON files beside a model's weights say, as far as it matters here.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::LoadError;

use super::{Pooling, ProblemType};

/// `config.json` of a BERT checkpoint.
#[derive(Debug, Deserialize)]
pub(super) struct BertConfig {
    model_type: String,
    hidden_act: String,
    #[serde(default = "absolute")]
    position_embedding_type: String,
    #[serde(default)]
    is_decoder: bool,
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) intermediate_size: usize,
    pub(super) max_position_embeddings: usize,
    pub(super) type_vocab_size: usize,
    #[serde(default = "bert_epsilon")]
    pub(super) layer_norm_eps: f32,
    #[serde(default)]
    id2label: BTreeMap<String, String>,
    #[serde(default)]
    label2id: BTreeMap<String, usize>,
    #[serde(default)]
    problem_type: Option<String>,
}

fn absolute() -> String {
    "absolute".into()
}

fn bert_epsilon() -> f32 {
    1e-12
}

impl BertConfig {
    pub(super) fn load(dir: &Path) -> Result<Self, LoadError> {
        let file = dir.join("config.json");
        let config: Self = read(&file)?;
        let unsupported = |field: &str, value: &str, only: &str| {
            Err(LoadError::unsupported(&file, format!("{field} `{value}`; supported: `{only}`")))
        };
        if config.model_type != "bert" {
            return unsupported("model_type", &config.model_type, "bert");
        }
        if config.hidden_act != "gelu" {
            return unsupported("hidden_act", &config.hidden_act, "gelu");
        }
        if config.position_embedding_type != "absolute" {
            return unsupported("position_embedding_type", &config.position_embedding_type, "absolute");
        }
        if config.is_decoder {
            return unsupported("is_decoder", "true", "false");
        }
        let sizes = [
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("num_hidden_layers", config.num_hidden_layers),
            ("num_attention_heads", config.num_attention_heads),
            ("intermediate_size", config.intermediate_size),
            ("max_position_embeddings", config.max_position_embeddings),
            ("type_vocab_size", config.type_vocab_size),
        ];
        if let Some((field, value)) = sizes.into_iter().find(|(_, value)| !(1..=1 << 24).contains(value)) {
            return Err(LoadError::malformed(&file, format!("{field} is {value}")));
        }
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
            return Err(LoadError::malformed(&file, format!("hidden_size {hidden} is no multiple of {heads} heads")));
        }
        if !(config.layer_norm_eps.is_finite() && config.layer_norm_eps >= 0.0) {
            return Err(LoadError::malformed(&file, format!("layer_norm_eps is {}", config.layer_norm_eps)));
        }
        Ok(config)
    }

    /// The labels of a classifier in the order of its outputs, and what they mean to each other. Without any it has the
    /// two that transformers gives such a model.
    pub(super) fn labels(&self, dir: &Path) -> Result<(Vec<String>, ProblemType), LoadError> {
        let file = dir.join("config.json");
        let malformed = |problem: String| Err(LoadError::malformed(&file, problem));
        let unnamed = BTreeMap::from([0, 1].map(|id| (id.to_string(), format!("LABEL_{id}"))));
        let given = if self.id2label.is_empty() { &unnamed } else { &self.id2label };
        let mut labels: Vec<String> = Vec::with_capacity(given.len());
        for id in 0..given.len() {
            match given.get(&id.to_string()) {
                Some(label) if labels.contains(label) => return malformed(format!("id2label names `{label}` twice")),
                Some(label) => labels.push(label.clone()),
                None => return malformed(format!("id2label has {} labels but none of id {id}", given.len())),
            }
        }
        for (id, label) in labels.iter().enumerate().filter(|_| !self.label2id.is_empty()) {
            match self.label2id.get(label) {
                Some(other) if *other == id => {}
                Some(other) => {
                    return malformed(format!("label2id says {other} of `{label}`, id2label says {id}"));
                }
                None => return malformed(format!("label2id lacks `{label}`")),
            }
        }
        let problem = match self.problem_type.as_deref() {
            Some("single_label_classification") => ProblemType::SingleLabel,
            Some("multi_label_classification") => ProblemType::MultiLabel,
            None if labels.len() > 1 => ProblemType::SingleLabel,
            other => {
                let problem = format!(
                    "problem_type `{}` with {} label(s); supported: `single_label_classification`, `multi_label_classification`",
                    other.unwrap_or("regression"),
                    labels.len()
                );
                return Err(LoadError::unsupported(&file, problem));
            }
        };
        Ok((labels, problem))
    }
}

/// How a sentence-transformers directory wants its model used; what a file doesn't say is `None`.
#[derive(Debug, Default)]
pub(super) struct SentenceConfig {
    pub(super) pooling: Option<Pooling>,
    pub(super) normalize: Option<bool>,
    pub(super) max_length: Option<usize>,
}

impl SentenceConfig {
    pub(super) fn load(dir: &Path) -> Result<Self, LoadError> {
        #[derive(Deserialize)]
        struct Length {
            max_seq_length: Option<usize>,
        }
        #[derive(Deserialize)]
        struct Module {
            r#type: String,
        }
        let length: Option<Length> = read_if_there(&dir.join("sentence_bert_config.json"))?;
        let modules: Option<Vec<Module>> = read_if_there(&dir.join("modules.json"))?;
        Ok(Self {
            pooling: pooling(&dir.join("1_Pooling").join("config.json"))?,
            normalize: modules.map(|modules| modules.iter().any(|module| module.r#type.ends_with(".Normalize"))),
            max_length: length.and_then(|length| length.max_seq_length),
        })
    }
}

fn pooling(file: &Path) -> Result<Option<Pooling>, LoadError> {
    let Some(modes) = read_if_there::<serde_json::Map<String, serde_json::Value>>(file)? else { return Ok(None) };
    let on: Vec<&str> = modes
        .iter()
        .filter(|(key, value)| key.starts_with("pooling_mode_") && **value == serde_json::Value::Bool(true))
        .map(|(key, _)| key.as_str())
        .collect();
    match on[..] {
        ["pooling_mode_mean_tokens"] => Ok(Some(Pooling::Mean)),
        ["pooling_mode_cls_token"] => Ok(Some(Pooling::Cls)),
        _ => Err(LoadError::unsupported(file, format!("pooling by {on:?}; supported: mean tokens or the CLS token"))),
    }
}

fn read<T: DeserializeOwned>(file: &Path) -> Result<T, LoadError> {
    let bytes = std::fs::read(file).map_err(|error| LoadError::io(file, error))?;
    serde_json::from_slice(&bytes).map_err(|error| LoadError::malformed(file, error))
}

fn read_if_there<T: DeserializeOwned>(file: &Path) -> Result<Option<T>, LoadError> {
    match read(file) {
        Err(LoadError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}
