//! The tokenizer inside a GGUF file: SentencePiece merges by score, with byte fallback.
//!
//! Ids equal those of llama.cpp. One thing is stricter: control tokens are never made out of plain text, even where
//! merges of their characters would lead to them.

use std::{
    collections::{BinaryHeap, HashMap},
    hash::{BuildHasher, RandomState},
};

use super::gguf::{Gguf, Value};
use crate::{LoadError, text::Token};

/// How SentencePiece writes a space.
const SPACE: &str = "\u{2581}";
const NO_TOKEN: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    /// Unknown, control and unused tokens: no text leads to them and they stand for none.
    Control,
    /// Found in the text before anything else, as runs of newlines.
    UserDefined,
    Byte,
}

/// Tokens by text; the texts themselves stay in the vocabulary.
struct Index {
    slots: Vec<u32>,
    state: RandomState,
}

impl Index {
    fn new(texts: &[String], ids: impl Iterator<Item = u32>) -> Self {
        let slots = vec![NO_TOKEN; (texts.len() * 2).next_power_of_two()];
        let mut index = Self { slots, state: RandomState::new() };
        for id in ids {
            let slot = index.slot(texts, &texts[id as usize]);
            index.slots[slot] = id;
        }
        index
    }

    fn find(&self, texts: &[String], text: &str) -> Option<u32> {
        Some(self.slots[self.slot(texts, text)]).filter(|id| *id != NO_TOKEN)
    }

    /// The slot `text` is in, or the free one it belongs to; half of the slots are free, so there is one.
    fn slot(&self, texts: &[String], text: &str) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.state.hash_one(text) as usize & mask;
        while self.slots[slot] != NO_TOKEN && texts[self.slots[slot] as usize] != text {
            slot = (slot + 1) & mask;
        }
        slot
    }
}

/// Tokens that are found in a text before anything else: by their first byte, longest first.
struct Specials(HashMap<u8, Vec<u32>>);

impl Specials {
    fn new(texts: &[String], ids: impl Iterator<Item = u32>) -> Self {
        let mut specials: HashMap<u8, Vec<u32>> = HashMap::new();
        for id in ids {
            if let Some(first) = texts[id as usize].bytes().next() {
                specials.entry(first).or_default().push(id);
            }
        }
        for ids in specials.values_mut() {
            ids.sort_by_key(|id| std::cmp::Reverse(texts[*id as usize].len()));
        }
        Self(specials)
    }

    /// The longest of these tokens that `rest` begins with.
    fn longest(&self, texts: &[String], rest: &[u8]) -> Option<u32> {
        let mut candidates = self.0.get(rest.first()?)?.iter().copied();
        candidates.find(|id| rest.starts_with(texts[*id as usize].as_bytes()))
    }
}

/// A vocabulary and what the model adds to a text.
pub(super) struct Vocabulary {
    texts: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<Kind>,
    index: Index,
    user_defined: Specials,
    /// Apart from the others: a vocabulary has thousands of them, all with the same first byte, and plain text looks for
    /// none.
    control: Specials,
    bytes: Vec<u32>,
    /// Put before a prompt, if the file says so.
    pub(super) bos: Option<u32>,
    ends: Vec<u32>,
}

impl Vocabulary {
    pub(super) fn load(gguf: &mut Gguf) -> Result<Self, LoadError> {
        let model = gguf.text("tokenizer.ggml.model")?;
        if model != "llama" {
            return Err(gguf.unsupported(format!("tokenizer `{model}`; `llama` (SentencePiece) is")));
        }
        if gguf.flag_or("tokenizer.ggml.add_space_prefix", true)? {
            return Err(gguf.unsupported("a tokenizer that adds a space before the text"));
        }
        let token = |key: &str| match gguf.get(key) {
            None => Ok(None),
            Some(Value::Integer(id)) if (0..i64::from(NO_TOKEN)).contains(id) => Ok(Some(*id as u32)),
            Some(_) => Err(gguf.malformed(format!("metadata `{key}` is no token id"))),
        };
        let bos = token("tokenizer.ggml.bos_token_id")?;
        let (eos, eot) = (token("tokenizer.ggml.eos_token_id")?, token("tokenizer.ggml.eot_token_id")?);
        let adds_bos = gguf.flag_or("tokenizer.ggml.add_bos_token", true)?;

        let Value::Texts(texts) = gguf.take("tokenizer.ggml.tokens")? else {
            return Err(gguf.malformed("`tokenizer.ggml.tokens` is an array of strings"));
        };
        let Value::Floats(scores) = gguf.take("tokenizer.ggml.scores")? else {
            return Err(gguf.malformed("`tokenizer.ggml.scores` is an array of numbers"));
        };
        let Value::Integers(kinds) = gguf.take("tokenizer.ggml.token_type")? else {
            return Err(gguf.malformed("`tokenizer.ggml.token_type` is an array of integers"));
        };
        if scores.len() != texts.len() || kinds.len() != texts.len() || scores.iter().any(|score| score.is_nan()) {
            let problem = format!(
                "the vocabulary has {} tokens, {} scores and {} types; one finite score and one type per token",
                texts.len(),
                scores.len(),
                kinds.len()
            );
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
        let user_defined = Specials::new(&texts, of(Kind::UserDefined));
        let control = Specials::new(&texts, of(Kind::Control));
        let turn_end = of(Kind::Control).find(|id| texts[*id as usize] == "<end_of_turn>");
        let ends = [eos, eot, turn_end].into_iter().flatten().collect();
        let index = Index::new(&texts, of(Kind::Normal));
        Ok(Self { texts, scores, index, user_defined, control, bytes, bos: bos.filter(|_| adds_bos), ends, kinds })
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether generation ends with this token.
    pub(super) fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Appends the bytes a token stands for.
    pub(super) fn decode(&self, id: u32, bytes: &mut Vec<u8>) {
        let text = &self.texts[id as usize];
        match self.kinds[id as usize] {
            Kind::Normal => bytes.extend_from_slice(text.replace(SPACE, " ").as_bytes()),
            Kind::UserDefined => bytes.extend_from_slice(text.as_bytes()),
            Kind::Byte => bytes.extend(self.bytes.iter().position(|byte| *byte == id).map(|byte| byte as u8)),
            Kind::Control => {}
        }
    }

    /// The tokens of `text` with the bytes each stands for; a character without a token of its own becomes one token
    /// per byte, each covering the whole character. `parse_control` recognises control tokens by their name.
    pub(super) fn tokens(&self, text: &str, parse_control: bool) -> Vec<Token> {
        let mut tokens = Vec::new();
        let (mut plain, mut at) = (0, 0);
        while at < text.len() {
            match self.special_at(text, at, parse_control) {
                Some(id) => {
                    let end = at + self.texts[id as usize].len();
                    self.merge(&text[plain..at], plain, &mut tokens);
                    tokens.push(Token { id, start: at, end });
                    (plain, at) = (end, end);
                }
                None => at += 1,
            }
        }
        self.merge(&text[plain..], plain, &mut tokens);
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

    /// Merges characters into tokens, best score first and leftmost among equals; `offset` is where `text` begins.
    fn merge(&self, text: &str, offset: usize, tokens: &mut Vec<Token>) {
        let mut escaped = String::with_capacity(text.len() * 2);
        let mut symbols = Vec::with_capacity(text.len());
        for (start, character) in text.char_indices() {
            let from = escaped.len();
            match character {
                ' ' => escaped.push_str(SPACE),
                other => escaped.push(other),
            }
            let (end, index) = (start + character.len_utf8(), symbols.len());
            symbols.push(Symbol {
                text: from..escaped.len(),
                source: start..end,
                previous: index.checked_sub(1),
                next: (end < text.len()).then_some(index + 1),
            });
        }
        let mut pairs = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.consider(&escaped, &symbols, Some(right - 1), Some(right), &mut pairs);
        }
        while let Some(Pair { left, right, size, .. }) = pairs.pop() {
            let (a, b) = (&symbols[left].text, &symbols[right].text);
            if a.is_empty() || b.is_empty() || a.len() + b.len() != size {
                continue;
            }
            let (end, source_end, next) = (b.end, symbols[right].source.end, symbols[right].next);
            symbols[right].text = 0..0;
            symbols[left].text.end = end;
            symbols[left].source.end = source_end;
            symbols[left].next = next;
            if let Some(next) = next {
                symbols[next].previous = Some(left);
            }
            self.consider(&escaped, &symbols, symbols[left].previous, Some(left), &mut pairs);
            self.consider(&escaped, &symbols, Some(left), next, &mut pairs);
        }
        for symbol in symbols.iter().filter(|symbol| !symbol.text.is_empty()) {
            let (start, end) = (offset + symbol.source.start, offset + symbol.source.end);
            let piece = &escaped[symbol.text.clone()];
            match self.index.find(&self.texts, piece) {
                Some(id) => tokens.push(Token { id, start, end }),
                None => {
                    tokens.extend(piece.bytes().map(|byte| Token { id: self.bytes[usize::from(byte)], start, end }))
                }
            }
        }
    }

    /// Queues two neighbours if together they are a token.
    fn consider(
        &self,
        escaped: &str,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
        pairs: &mut BinaryHeap<Pair>,
    ) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let piece = &escaped[symbols[left].text.start..symbols[right].text.end];
        if let Some(id) = self.index.find(&self.texts, piece) {
            pairs.push(Pair { score: self.scores[id as usize], left, right, size: piece.len() });
        }
    }
}

struct Symbol {
    /// In the escaped text; empty once merged into its left neighbour.
    text: std::ops::Range<usize>,
    source: std::ops::Range<usize>,
    previous: Option<usize>,
    next: Option<usize>,
}

struct Pair {
    score: f32,
    left: usize,
    right: usize,
    size: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}
