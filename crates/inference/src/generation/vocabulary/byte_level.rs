//! Byte-level BPE, as GPT-2, Llama 3 and Qwen use it: texts split by a pattern, bytes written as characters, pairs merged
//! in the order of a list.

use std::sync::LazyLock;

use tokenizers::{
    Tokenizer,
    models::bpe::BPE,
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
    tokenizer::SplitDelimiterBehavior,
};

use crate::text::Token;

/// The patterns of `tokenizer.ggml.pre`, each applied to what the one before left; as llama.cpp has them.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";

/// What splits texts before they are merged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pre {
    patterns: &'static [&'static str],
    /// A piece that is a token is never merged from its parts.
    ignores_merges: bool,
    /// Whether a prompt begins with the beginning-of-text token where the file does not say.
    pub(super) adds_bos: bool,
}

impl Pre {
    /// By the name in the file.
    pub(super) fn named(name: &str) -> Option<Self> {
        let (patterns, is_llama3): (&[&str], bool) = match name {
            "default" => (&[PUNCTUATION, GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], false),
            "gpt-2" => (&[GPT2], false),
            "smollm" => (&[r"\p{N}", GPT2], false),
            "qwen2" | "deepseek-r1-qwen" => (&[QWEN2], false),
            "llama-bpe" | "llama3" | "llama-v3" => (&[LLAMA3], true),
            _ => return None,
        };
        Some(Self { patterns, ignores_merges: is_llama3, adds_bos: is_llama3 })
    }
}

/// The byte each character below U+0144 stands for.
static BYTES: LazyLock<[Option<u8>; 0x144]> = LazyLock::new(|| {
    let mut table = [None; 0x144];
    let mut moved = 0x100;
    for byte in 0..=255u8 {
        // Visible characters of Latin-1 stand for themselves; the others are moved behind it, in order.
        let character = match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => usize::from(byte),
            _ => {
                moved += 1;
                moved - 1
            }
        };
        table[character] = Some(byte);
    }
    table
});

/// Appends the bytes that the characters of a token stand for; a character that stands for none is itself.
pub(super) fn decode(text: &str, bytes: &mut Vec<u8>) {
    for character in text.chars() {
        match BYTES.get(character as usize).copied().flatten() {
            Some(byte) => bytes.push(byte),
            None => bytes.extend(character.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
}

/// Splits and merges.
pub(super) struct ByteLevelBpe(Tokenizer);

impl ByteLevelBpe {
    /// `normal` are the ids that text leads to; a merge names two tokens, apart by a space. A byte without a token, which
    /// some vocabularies have for bytes that are in no UTF-8, is left out of texts.
    pub(super) fn new(
        texts: &[String],
        normal: impl Iterator<Item = u32>,
        merges: Vec<String>,
        pre: Pre,
    ) -> Result<Self, String> {
        let mut ids = ahash::AHashMap::new();
        for id in normal {
            ids.entry(texts[id as usize].clone()).or_insert(id);
        }
        let split = |merge: String| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(format!("merge `{merge}` is not two tokens")),
        };
        let merges = merges.into_iter().map(split).collect::<Result<Vec<_>, _>>()?;
        let bpe = BPE::builder().vocab_and_merges(ids, merges).ignore_merges(pre.ignores_merges).build();
        let mut tokenizer = Tokenizer::new(bpe.map_err(|error| error.to_string())?);
        let mut steps = Vec::new();
        for pattern in pre.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
            steps.push(split.map_err(|error| error.to_string())?.into());
        }
        steps.push(ByteLevel::new(false, false, false).into());
        tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
        Ok(Self(tokenizer))
    }

    /// Appends the tokens of `text`, which begins at byte `offset`.
    pub(super) fn merge(&self, text: &str, offset: usize, tokens: &mut Vec<Token>) {
        // Nothing in these steps fails for a text.
        let Ok(encoding) = self.0.encode_fast(text, false) else { return };
        let with_offsets = encoding.get_ids().iter().zip(encoding.get_offsets());
        tokens.extend(with_offsets.map(|(id, (start, end))| Token {
            id: *id,
            start: offset + start,
            end: offset + end,
        }));
    }
}
