//! SentencePiece: characters merge by the scores of the tokens they make, with byte fallback.

use std::{
    collections::BinaryHeap,
    hash::{BuildHasher, RandomState},
};

use super::NO_TOKEN;
use crate::text::Token;

/// How SentencePiece writes a space.
pub(super) const SPACE: &str = "\u{2581}";

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

/// What merges need beside the texts.
pub(super) struct SentencePiece {
    scores: Vec<f32>,
    index: Index,
    /// The token of each byte.
    bytes: Vec<u32>,
    adds_space: bool,
}

impl SentencePiece {
    /// `normal` are the ids that text leads to.
    pub(super) fn new(
        texts: &[String],
        scores: Vec<f32>,
        normal: impl Iterator<Item = u32>,
        bytes: Vec<u32>,
        adds_space: bool,
    ) -> Self {
        Self { scores, index: Index::new(texts, normal), bytes, adds_space }
    }

    /// The byte a byte token stands for.
    pub(super) fn byte(&self, id: u32) -> Option<u8> {
        self.bytes.iter().position(|byte| *byte == id).map(|byte| byte as u8)
    }

    /// Merges characters into tokens, best score first and leftmost among equals; `offset` is where `text` begins, and
    /// `begins` says that nothing or a special token is before it.
    pub(super) fn merge(&self, texts: &[String], text: &str, offset: usize, begins: bool, tokens: &mut Vec<Token>) {
        let mut escaped = String::with_capacity(text.len() * 2);
        let mut symbols = Vec::with_capacity(text.len());
        if self.adds_space && begins && !text.is_empty() {
            escaped.push_str(SPACE);
            symbols.push(Symbol { text: 0..escaped.len(), source: 0..0, previous: None, next: Some(1) });
        }
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
            self.consider(texts, &escaped, &symbols, Some(right - 1), Some(right), &mut pairs);
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
            self.consider(texts, &escaped, &symbols, symbols[left].previous, Some(left), &mut pairs);
            self.consider(texts, &escaped, &symbols, Some(left), next, &mut pairs);
        }
        for symbol in symbols.iter().filter(|symbol| !symbol.text.is_empty()) {
            let (start, end) = (offset + symbol.source.start, offset + symbol.source.end);
            let piece = &escaped[symbol.text.clone()];
            match self.index.find(texts, piece) {
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
        texts: &[String],
        escaped: &str,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
        pairs: &mut BinaryHeap<Pair>,
    ) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let piece = &escaped[symbols[left].text.start..symbols[right].text.end];
        if let Some(id) = self.index.find(texts, piece) {
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
