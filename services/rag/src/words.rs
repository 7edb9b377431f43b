//! Words as retrieval sees them: lower-cased, without English stop words, stemmed.

use rust_stemmers::{Algorithm, Stemmer};

/// Words that carry no topic; sorted, so that a binary search finds them.
const STOP_WORDS: [&str; 126] = [
    "a",
    "about",
    "above",
    "after",
    "again",
    "against",
    "all",
    "am",
    "an",
    "and",
    "any",
    "are",
    "as",
    "at",
    "be",
    "because",
    "been",
    "before",
    "being",
    "below",
    "between",
    "both",
    "but",
    "by",
    "can",
    "could",
    "did",
    "do",
    "does",
    "doing",
    "down",
    "during",
    "each",
    "few",
    "for",
    "from",
    "further",
    "had",
    "has",
    "have",
    "having",
    "he",
    "her",
    "here",
    "hers",
    "herself",
    "him",
    "himself",
    "his",
    "how",
    "i",
    "if",
    "in",
    "into",
    "is",
    "it",
    "its",
    "itself",
    "just",
    "me",
    "more",
    "most",
    "my",
    "myself",
    "no",
    "nor",
    "not",
    "now",
    "of",
    "off",
    "on",
    "once",
    "only",
    "or",
    "other",
    "our",
    "ours",
    "ourselves",
    "out",
    "over",
    "own",
    "same",
    "she",
    "should",
    "so",
    "some",
    "such",
    "than",
    "that",
    "the",
    "their",
    "theirs",
    "them",
    "themselves",
    "then",
    "there",
    "these",
    "they",
    "this",
    "those",
    "through",
    "to",
    "too",
    "under",
    "until",
    "up",
    "very",
    "was",
    "we",
    "were",
    "what",
    "when",
    "where",
    "which",
    "while",
    "who",
    "whom",
    "why",
    "will",
    "with",
    "would",
    "you",
    "your",
    "yours",
    "yourself",
    "yourselves",
];

/// Longest word that is kept, in bytes; what is longer is data, not language.
const LONGEST: usize = 64;

/// Splits text into stems.
pub(crate) struct Words {
    stemmer: Stemmer,
}

impl Default for Words {
    fn default() -> Self {
        Self { stemmer: Stemmer::create(Algorithm::English) }
    }
}

impl Words {
    /// Returns the stems of `text` in order: runs of letters and digits, lower-cased, no stop words.
    pub(crate) fn stems(&self, text: &str) -> Vec<String> {
        text.split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty() && word.len() <= LONGEST)
            .map(str::to_lowercase)
            .filter(|word| STOP_WORDS.binary_search(&word.as_str()).is_err())
            .map(|word| self.stemmer.stem(&word).into_owned())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_words_are_sorted_so_that_they_are_found() {
        assert!(STOP_WORDS.is_sorted());
    }

    #[test]
    fn forms_of_a_word_share_a_stem_and_stop_words_are_dropped() {
        let words = Words::default();
        assert_eq!(words.stems("The rejected applications"), words.stems("rejecting AN application!"));
        assert_eq!(words.stems("what is it"), Vec::<String>::new());
    }

    #[test]
    fn numbers_are_words_and_blobs_are_not() {
        assert_eq!(Words::default().stems(&format!("12.5 {}", "x".repeat(65))), ["12", "5"]);
    }
}
