//! The vocabulary in a GGUF file: SentencePiece merges by score (`llama`), or byte-level BPE (`gpt2`).
//!
//! Ids equal those of llama.cpp. One thing is stricter: control tokens are never made out of plain text, even where
//! merges of their characters would lead to them.

mod byte_level;
mod sentencepiece;
mod specials;

use self::{
    byte_level::{ByteLevelBpe, Pre},
    sentencepiece::{SPACE, SentencePiece},
    specials::Specials,
};
use super::gguf::{Gguf, Value};
use crate::{LoadError, text::Token};

const NO_TOKEN: u32 = u32::MAX;
/// Control tokens that end a text or a turn in the families' chat formats, whatever the file names as its end.
const ENDS: [&str; 7] =
    ["<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "<|end|>"];
/// Put into a text where the name of a control token must stay plain text; a code point that is no character.
pub(super) const BREAK: char = '\u{fdd0}';

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    /// Unknown, control and unused tokens: no text leads to them and they stand for none.
    Control,
    /// Found in the text before anything else, as runs of newlines.
    UserDefined,
    Byte,
}

enum Merges {
    SentencePiece(SentencePiece),
    ByteLevel(Box<ByteLevelBpe>),
}

/// A vocabulary and what the model adds to a text.
pub(super) struct Vocabulary {
    texts: Vec<String>,
    kinds: Vec<Kind>,
    user_defined: Specials,
    /// Apart from the others: a vocabulary has thousands of them, all with the same first byte, and plain text looks for
    /// none.
    control: Specials,
    merges: Merges,
    /// Put before a prompt, if the file says so.
    pub(super) bos: Option<u32>,
    bos_text: String,
    eos_text: String,
    ends: Vec<u32>,
}

impl Vocabulary {
    pub(super) fn load(gguf: &mut Gguf) -> Result<Self, LoadError> {
        let model = gguf.text("tokenizer.ggml.model")?.to_owned();
        let token = |key: &str| match gguf.get(key) {
            None => Ok(None),
            Some(Value::Integer(id)) if (0..i64::from(NO_TOKEN)).contains(id) => Ok(Some(*id as u32)),
            Some(_) => Err(gguf.malformed(format!("metadata `{key}` is no token id"))),
        };
        let bos = token("tokenizer.ggml.bos_token_id")?;
        let (eos, eot) = (token("tokenizer.ggml.eos_token_id")?, token("tokenizer.ggml.eot_token_id")?);
        let adds_bos = gguf.flag("tokenizer.ggml.add_bos_token")?;

        let Value::Texts(texts) = gguf.take("tokenizer.ggml.tokens")? else {
            return Err(gguf.malformed("`tokenizer.ggml.tokens` is an array of strings"));
        };
        let Value::Integers(kinds) = gguf.take("tokenizer.ggml.token_type")? else {
            return Err(gguf.malformed("`tokenizer.ggml.token_type` is an array of integers"));
        };
        if kinds.len() != texts.len() {
            let problem = format!("the vocabulary has {} tokens and {} types; one per token", texts.len(), kinds.len());
            return Err(gguf.malformed(problem));
        }
        if let Some(id) = [bos, eos, eot].into_iter().flatten().find(|id| *id as usize >= texts.len()) {
            return Err(gguf.malformed(format!("special token {id} is not in the vocabulary")));
        }
        let kinds = kinds
            .into_iter()
            .map(|kind| match kind {
                1 => Ok(Kind::Normal),
                2 | 3 | 5 => Ok(Kind::Control),
                4 => Ok(Kind::UserDefined),
                6 => Ok(Kind::Byte),
                other => Err(gguf.malformed(format!("token type {other} is not known"))),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let of = |kind: Kind| kinds.iter().zip(0u32..).filter(move |(other, _)| **other == kind).map(|(_, id)| id);
        let (merges, adds_bos) = match model.as_str() {
            "llama" => (Merges::SentencePiece(sentencepiece(gguf, &texts, &kinds)?), adds_bos.unwrap_or(true)),
            "gpt2" => {
                let pre = match gguf.get("tokenizer.ggml.pre") {
                    None => "default",
                    Some(_) => gguf.text("tokenizer.ggml.pre")?,
                };
                let Some(pre) = Pre::named(pre) else {
                    let problem = format!(
                        "pre-tokenizer `{pre}`; `default`, `gpt-2`, `llama-bpe`, `qwen2`, `deepseek-r1-qwen` and `smollm` are"
                    );
                    return Err(gguf.unsupported(problem));
                };
                let Value::Texts(merges) = gguf.take("tokenizer.ggml.merges")? else {
                    return Err(gguf.malformed("`tokenizer.ggml.merges` is an array of strings"));
                };
                let bpe = ByteLevelBpe::new(&texts, of(Kind::Normal), merges, pre);
                let bpe = bpe.map_err(|problem| gguf.malformed(problem))?;
                (Merges::ByteLevel(Box::new(bpe)), adds_bos.unwrap_or(pre.adds_bos))
            }
            other => {
                let problem = format!("tokenizer `{other}`; `llama` (SentencePiece) and `gpt2` (byte-level BPE) are");
                return Err(gguf.unsupported(problem));
            }
        };
        let user_defined = Specials::new(&texts, of(Kind::UserDefined));
        let control = Specials::new(&texts, of(Kind::Control));
        let mut ends: Vec<u32> = [eos, eot].into_iter().flatten().collect();
        ends.extend(of(Kind::Control).filter(|id| ENDS.contains(&texts[*id as usize].as_str())));
        ends.sort_unstable();
        ends.dedup();
        let text = |id: Option<u32>| id.map_or(String::new(), |id| texts[id as usize].clone());
        let (bos_text, eos_text) = (text(bos), text(eos));
        let bos = bos.filter(|_| adds_bos);
        Ok(Self { user_defined, control, merges, bos, bos_text, eos_text, ends, kinds, texts })
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// The names of the tokens that begin and end a text; empty where there is none.
    pub(super) fn names(&self) -> (&str, &str) {
        (&self.bos_text, &self.eos_text)
    }

    /// Whether generation ends with this token.
    pub(super) fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }

    /// The tokens that end a text.
    pub(super) fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Appends the bytes a token stands for; none for control tokens.
    pub(super) fn decode(&self, id: u32, bytes: &mut Vec<u8>) {
        let text = &self.texts[id as usize];
        match (self.kinds[id as usize], &self.merges) {
            (Kind::Control, _) => {}
            (Kind::UserDefined, _) => bytes.extend_from_slice(text.as_bytes()),
            (Kind::Byte, Merges::SentencePiece(merges)) => bytes.extend(merges.byte(id)),
            (_, Merges::SentencePiece(_)) => bytes.extend_from_slice(text.replace(SPACE, " ").as_bytes()),
            (_, Merges::ByteLevel(_)) => byte_level::decode(text, bytes),
        }
    }

    /// The tokens of `text` with the bytes each stands for; a character without a token of its own becomes several
    /// tokens, each covering the whole character. `parse_control` recognises control tokens by their name, except where
    /// `broken` put a `BREAK` into it.
    pub(super) fn tokens(&self, text: &str, parse_control: bool) -> Vec<Token> {
        let mut tokens = Vec::new();
        let (mut plain, mut at) = (0, 0);
        while at < text.len() {
            match self.special_at(text, at, parse_control) {
                Some(id) => {
                    let end = at + self.texts[id as usize].len();
                    self.merge(&text[plain..at], plain, parse_control, &mut tokens);
                    tokens.push(Token { id, start: at, end });
                    (plain, at) = (end, end);
                }
                None => at += 1,
            }
        }
        self.merge(&text[plain..], plain, parse_control, &mut tokens);
        tokens
    }

    /// The longest special token that begins at byte `at`.
    fn special_at(&self, text: &str, at: usize, parse_control: bool) -> Option<u32> {
        let rest = &text.as_bytes()[at..];
        let user_defined = self.user_defined.longest(&self.texts, rest);
        let control = if parse_control { self.control.longest(&self.texts, rest) } else { None };
        let length = |id: u32| self.texts[id as usize].len();
        user_defined
            .into_iter()
            .chain(control)
            .reduce(|one, other| if length(other) > length(one) { other } else { one })
    }

    /// The tokens of a text without special ones; `offset` is where it begins.
    fn merge(&self, text: &str, offset: usize, has_breaks: bool, tokens: &mut Vec<Token>) {
        if text.is_empty() {
            return;
        }
        let unbroken = if has_breaks && text.contains(BREAK) { Some(text.replace(BREAK, "")) } else { None };
        let text = unbroken.as_deref().unwrap_or(text);
        match &self.merges {
            Merges::SentencePiece(merges) => {
                let begins = tokens.last().is_none_or(|token| self.kinds[token.id as usize] == Kind::Control);
                merges.merge(&self.texts, text, offset, begins, tokens);
            }
            Merges::ByteLevel(merges) => merges.merge(text, offset, tokens),
        }
    }

    /// `text` with the names of control tokens broken, so that they stay plain text in a template: also a name that
    /// begins in it and would end in what follows.
    pub(super) fn broken(&self, text: &str) -> String {
        let mut broken = String::with_capacity(text.len());
        for (at, character) in text.char_indices().filter(|(_, character)| *character != BREAK) {
            broken.push(character);
            if self.control.longest(&self.texts, &text.as_bytes()[at..]).is_some() {
                broken.push(BREAK);
            }
        }
        if self.control.may_begin_at_the_end_of(&self.texts, broken.as_bytes()) {
            broken.push(BREAK);
        }
        broken
    }
}

/// Reads scores and byte tokens.
fn sentencepiece(gguf: &mut Gguf, texts: &[String], kinds: &[Kind]) -> Result<SentencePiece, LoadError> {
    let adds_space = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let Value::Floats(scores) = gguf.take("tokenizer.ggml.scores")? else {
        return Err(gguf.malformed("`tokenizer.ggml.scores` is an array of numbers"));
    };
    if scores.len() != texts.len() || scores.iter().any(|score| score.is_nan()) {
        let problem = format!(
            "the vocabulary has {} tokens and {} scores; one finite score per token",
            texts.len(),
            scores.len()
        );
        return Err(gguf.malformed(problem));
    }
    let of = |kind: Kind| kinds.iter().zip(0u32..).filter(move |(other, _)| **other == kind).map(|(_, id)| id);
    let mut bytes = vec![NO_TOKEN; 256];
    for id in of(Kind::Byte) {
        let hex = texts[id as usize].strip_prefix("<0x").and_then(|text| text.strip_suffix('>'));
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let byte = byte.ok_or_else(|| gguf.malformed(format!("byte token {id} is not of the form <0xFF>")))?;
        bytes[usize::from(byte)] = id;
    }
    if let Some(byte) = bytes.iter().position(|id| *id == NO_TOKEN) {
        return Err(gguf.unsupported(format!("a vocabulary without a token for byte {byte}")));
    }
    Ok(SentencePiece::new(texts, scores, of(Kind::Normal), bytes, adds_space))
}
