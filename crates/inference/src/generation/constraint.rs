//! Texts that conform to a JSON schema: what may come next is worked out from the schema and the text so far.

use std::sync::Arc;

use llguidance::{
    Matcher, ParserFactory,
    api::{ParserLimits, StopReason, TopLevelGrammar},
    earley::SlicedBiasComputer,
    toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::{Value, json};

use super::vocabulary::Vocabulary;
use crate::ItemError;

/// The largest schema, as JSON text.
pub const MAX_SCHEMA_BYTES: usize = 64 << 10;
/// Longer tokens are never used in a text with a schema.
const MAX_TOKEN_BYTES: usize = 256;
/// The largest vocabulary a schema can be applied to.
const MAX_VOCABULARY: usize = 1 << 20;

/// A vocabulary as a tree of bytes, ready for schemas. Made once for a model.
pub(super) struct Schemas(Result<ParserFactory, String>);

impl Schemas {
    pub(super) fn new(vocabulary: &Vocabulary) -> Self {
        Self(factory(vocabulary).map_err(|error| error.to_string()))
    }

    /// Compiles a schema: `field`s the engine does not know how to enforce are refused, never ignored.
    pub(super) fn compile(&self, schema: &str) -> Result<Constraint, ItemError> {
        let invalid = |problem: String| ItemError::Invalid(format!("the schema {problem}"));
        if schema.len() > MAX_SCHEMA_BYTES {
            return Err(invalid(format!("has {} bytes; at most {MAX_SCHEMA_BYTES} are taken", schema.len())));
        }
        let mut schema: Value =
            serde_json::from_str(schema).map_err(|error| invalid(format!("is not JSON: {error}")))?;
        let Some(fields) = schema.as_object_mut() else { return Err(invalid("is not a JSON object".to_owned())) };
        // Separators without spaces: a small model that may write spaces writes nothing else.
        fields.insert("x-guidance".to_owned(), json!({"whitespace_flexible": false}));
        let factory = self.0.as_ref().map_err(|problem| ItemError::Invalid(problem.clone()))?;
        let parser = factory.create_parser(TopLevelGrammar::from_json_schema(schema));
        let parser = parser.map_err(|error| invalid(format!("cannot be enforced: {error}")))?;
        Ok(Constraint(Matcher::new(Ok(parser))))
    }
}

fn factory(vocabulary: &Vocabulary) -> anyhow::Result<ParserFactory> {
    let count = vocabulary.len();
    anyhow::ensure!(count <= MAX_VOCABULARY, "schemas take vocabularies of at most {MAX_VOCABULARY} tokens");
    let Some(end) = vocabulary.ends().first() else { anyhow::bail!("the model has no token that ends a text") };
    let words: Vec<Vec<u8>> = (0..count as u32)
        .map(|id| {
            let mut bytes = Vec::new();
            vocabulary.decode(id, &mut bytes);
            // 0xff is no UTF-8, and marks special tokens in the tree; of those a text with a schema needs the ends alone.
            if vocabulary.is_end(id) {
                format!("\u{0}<end {id}>").bytes().map(|byte| if byte == 0 { 0xff } else { byte }).collect()
            } else if bytes.len() > MAX_TOKEN_BYTES || bytes.contains(&0xff) {
                Vec::new()
            } else {
                bytes
            }
        })
        .collect();
    let trie = TokTrie::from(&TokRxInfo::new(count as u32, *end), &words).with_eos_tokens(vocabulary.ends());
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory =
        ParserFactory::new(&environment, InferenceCapabilities::default(), &SlicedBiasComputer::json_slices())?;
    *factory.limits_mut() = ParserLimits { max_lexer_states: 20_000, verbose_errors: false, ..ParserLimits::default() };
    factory.quiet();
    Ok(factory)
}

/// What a text must conform to, and how far it is. Made by `Generator::constrain`, for one text.
pub struct Constraint(Matcher);

impl Constraint {
    /// One bit for each token that may come next: at least one.
    pub(super) fn mask(&mut self) -> Result<Vec<u32>, ItemError> {
        let mask = self.0.compute_mask_or_eos().map_err(|error| failed(&error))?;
        self.is_complete()?;
        if mask.is_zero() {
            return Err(ItemError::Invalid("the schema leaves no token to continue with".to_owned()));
        }
        Ok(mask.as_slice().to_vec())
    }

    /// Takes a token that the mask allowed, and says whether the text is complete.
    pub(super) fn take(&mut self, id: u32) -> Result<bool, ItemError> {
        self.0.consume_token(id).map_err(|error| failed(&error))?;
        self.is_complete()
    }

    /// Whether nothing can follow. A parser that gave up is an error and no end.
    fn is_complete(&self) -> Result<bool, ItemError> {
        match self.0.stop_reason() {
            StopReason::NotStopped => Ok(false),
            StopReason::NoExtension | StopReason::NoExtensionBias | StopReason::EndOfSentence => Ok(true),
            other => Err(failed(&anyhow::anyhow!("{other}"))),
        }
    }
}

fn failed(error: &anyhow::Error) -> ItemError {
    ItemError::Invalid(format!("the schema's text grew beyond its bounds: {error}"))
}
