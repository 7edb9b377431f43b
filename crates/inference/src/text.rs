//! From text to token ids, as the model's own `tokenizer.json` says.

use std::path::Path;

use tokenizers::{Encoding, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use crate::{ItemError, LoadError};

/// One token and the bytes of the text it stands for; special tokens stand for none (`start == end`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    pub id: u32,
    pub start: usize,
    pub end: usize,
}

/// What a BERT-like model reads: token ids, special tokens included, and the segment of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    pub type_ids: Vec<u32>,
}

/// Turns text into the ids of one model, never padded.
#[derive(Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    max_length: usize,
    specials: usize,
    pair_specials: usize,
    pair_segments: u32,
}

impl TextTokenizer {
    /// Loads a `tokenizer.json`. `max_length` counts all tokens of an input, special ones included; truncation and
    /// padding settings inside the file are ignored.
    pub fn from_file(tokenizer_json: &Path, max_length: usize) -> Result<Self, LoadError> {
        let malformed = |error: tokenizers::Error| LoadError::malformed(tokenizer_json, error);
        let bytes = std::fs::read(tokenizer_json).map_err(|error| LoadError::io(tokenizer_json, error))?;
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(malformed)?;
        tokenizer.with_padding(None).with_truncation(None).map_err(malformed)?;
        // A private-use character takes the unknown-token path: a file without that token fails here, not in a request.
        let probe = tokenizer.encode_fast("a \u{10fffd}", true).map_err(malformed)?;
        let specials = probe.get_special_tokens_mask().iter().filter(|special| **special == 1).count();
        let pair = tokenizer.encode_fast(("a", "a"), true).map_err(malformed)?;
        let pair_specials = pair.get_special_tokens_mask().iter().filter(|special| **special == 1).count();
        let pair_segments = pair.get_type_ids().iter().copied().max().unwrap_or(0);
        if max_length <= specials.max(pair_specials) {
            let problem = format!("a maximum of {max_length} tokens leaves no room beside the special tokens");
            return Err(LoadError::unsupported(tokenizer_json, problem));
        }
        Ok(Self { tokenizer, max_length, specials, pair_specials, pair_segments })
    }

    /// The largest number of tokens of one input, special ones included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Encodes one text with the model's special tokens. A text beyond the maximum keeps its beginning when `truncate`
    /// is set and is `TooLong` otherwise; one without a token of its own is `Empty`.
    pub fn encode(&self, text: &str, truncate: bool) -> Result<Encoded, ItemError> {
        let mut encoding = self.plain(text)?;
        let room = self.max_length - self.specials;
        if encoding.len() > room {
            if !truncate {
                return Err(ItemError::TooLong { tokens: encoding.len() + self.specials, max: self.max_length });
            }
            encoding.truncate(room, 0, TruncationDirection::Right);
        }
        self.finish(encoding, None)
    }

    /// Encodes a query and a document as one input, cutting the longer of the two first ("longest_first") where both
    /// together exceed the maximum.
    pub fn encode_pair(&self, query: &str, document: &str) -> Result<Encoded, ItemError> {
        let cut = TruncationParams {
            max_length: self.max_length - self.pair_specials,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
            direction: TruncationDirection::Right,
        };
        let (query, document) =
            tokenizers::truncate_encodings(self.plain(query)?, Some(self.plain(document)?), &cut).map_err(invalid)?;
        self.finish(query, document)
    }

    /// The tokens of a text of any length with their byte ranges; `special` adds the model's special tokens.
    pub fn tokens(&self, text: &str, special: bool) -> Vec<Token> {
        let encoding = self.tokenizer.encode(text, special).expect("loading tried the unknown-token path");
        let spans = encoding.get_ids().iter().zip(encoding.get_offsets());
        spans.map(|(&id, &(start, end))| Token { id, start, end }).collect()
    }

    /// The largest id this tokenizer can produce.
    pub(crate) fn largest_id(&self) -> u32 {
        self.tokenizer.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// The largest segment this tokenizer gives to a token of a pair.
    pub(crate) fn largest_segment(&self) -> u32 {
        self.pair_segments
    }

    fn plain(&self, text: &str) -> Result<Encoding, ItemError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(invalid)?;
        if encoding.is_empty() { Err(ItemError::Empty) } else { Ok(encoding) }
    }

    fn finish(&self, first: Encoding, second: Option<Encoding>) -> Result<Encoded, ItemError> {
        let encoding = self.tokenizer.post_process(first, second, true).map_err(invalid)?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), type_ids: encoding.get_type_ids().to_vec() })
    }
}

fn invalid(error: tokenizers::Error) -> ItemError {
    ItemError::Invalid(format!("text cannot be tokenized: {error}"))
}
