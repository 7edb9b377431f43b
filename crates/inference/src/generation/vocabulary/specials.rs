//! Tokens that are found in a text before anything else.

use std::collections::HashMap;

/// Such tokens by their first byte, longest first.
pub(super) struct Specials(HashMap<u8, Vec<u32>>);

impl Specials {
    pub(super) fn new(texts: &[String], ids: impl Iterator<Item = u32>) -> Self {
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
    pub(super) fn longest(&self, texts: &[String], rest: &[u8]) -> Option<u32> {
        let mut candidates = self.0.get(rest.first()?)?.iter().copied();
        candidates.find(|id| rest.starts_with(texts[*id as usize].as_bytes()))
    }

    /// Whether `text` ends with the beginning of one of these tokens.
    pub(super) fn may_begin_at_the_end_of(&self, texts: &[String], text: &[u8]) -> bool {
        self.0.values().flatten().any(|id| {
            let token = texts[*id as usize].as_bytes();
            (1..token.len().min(text.len() + 1)).any(|count| text.ends_with(&token[..count]))
        })
    }
}
