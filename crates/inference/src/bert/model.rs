//! What all text models load: configuration, tokenizer, encoder.

use std::path::Path;

use crate::LoadError;
use crate::text::TextTokenizer;
use crate::weights::{self, Weights};

use super::config::BertConfig;
use super::encoder::Encoder;
use super::options::{Precision, Run};

/// The part all models have in common.
pub(super) struct Model {
    pub(super) encoder: Encoder,
    pub(super) tokenizer: TextTokenizer,
    pub(super) precision: Precision,
}

impl Model {
    /// Loads `config.json`, `tokenizer.json` and `model.safetensors` of a directory; `head` reads what the family has
    /// beyond the encoder.
    pub(super) fn load<H>(
        dir: &Path,
        run: Run,
        default_length: Option<usize>,
        head: impl FnOnce(&BertConfig, &Weights<'_>, &Encoder) -> Result<H, LoadError>,
    ) -> Result<(Self, H), LoadError> {
        let config = BertConfig::load(dir)?;
        let max_length = run.max_length.or(default_length).unwrap_or(config.max_position_embeddings);
        if max_length > config.max_position_embeddings {
            let problem = format!("{max_length} tokens; the model has {} positions", config.max_position_embeddings);
            return Err(LoadError::unsupported(&dir.join("config.json"), problem));
        }
        let tokenizer_json = dir.join("tokenizer.json");
        let tokenizer = TextTokenizer::from_file(&tokenizer_json, max_length)?;
        let file = dir.join("model.safetensors");
        let bytes = weights::map(&file)?;
        let weights = Weights::parse(&file, &bytes, "embeddings.word_embeddings.weight", "bert.")?;
        let encoder = Encoder::load(&config, &weights, run.precision.arithmetic(), run.threads.get())?;
        encoder.check(&tokenizer, &tokenizer_json)?;
        let head = head(&config, &weights, &encoder)?;
        Ok((Self { encoder, tokenizer, precision: run.precision.resolved() }, head))
    }
}
