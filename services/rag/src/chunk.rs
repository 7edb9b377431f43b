//! Cuts a text into chunks: by tokens of the embedding model, on structural borders.

use std::sync::Arc;

use text_splitter::{ChunkConfig, ChunkSizer, MarkdownSplitter, TextSplitter};
use tokenizers::Tokenizer;

use crate::parse::{Syntax, Text};

/// Bytes that count as one token at least. A word the tokenizer does not know is one token however long it is, so
/// tokens alone would let a chunk grow without bound.
const BYTES_PER_TOKEN: usize = 16;

/// Tokens the model adds to every input, as [CLS] and [SEP].
const SPECIAL_TOKENS: usize = 2;

/// How long chunks are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Length {
    /// Most tokens of a chunk.
    pub(crate) tokens: usize,
    /// Most tokens a chunk repeats of the one before it.
    pub(crate) overlap: usize,
}

/// A chunk's place in the text.
#[derive(Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Headings above it, outermost first.
    pub(crate) headings: Vec<String>,
}

/// Cuts as one embedding model sees tokens.
#[derive(Clone)]
pub(crate) struct Chunker {
    sizer: Sizer,
    length: Length,
    /// Most tokens the model takes, its own included.
    max_length: usize,
}

#[derive(Clone)]
struct Sizer(Arc<Tokenizer>);

impl ChunkSizer for Sizer {
    fn size(&self, chunk: &str) -> usize {
        // A text the tokenizer refuses counts by its bytes.
        let tokens = self.0.encode_fast(chunk, false).map_or(chunk.len(), |encoding| encoding.len());
        tokens.max(chunk.len().div_ceil(BYTES_PER_TOKEN))
    }
}

impl Chunker {
    /// Makes a chunker; chunks are at most what the model takes at once, whatever `length` asks for.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, length: Length, max_length: usize) -> Self {
        let tokens = length.tokens.min(max_length.saturating_sub(SPECIAL_TOKENS)).max(1);
        let overlap = length.overlap.min(tokens - 1);
        Self { sizer: Sizer(tokenizer), length: Length { tokens, overlap }, max_length }
    }

    /// Returns the chunks in order. None is empty, and white space at their ends is left out.
    pub(crate) fn cut(&self, text: &Text) -> Vec<Piece> {
        let config = ChunkConfig::new(self.length.tokens)
            .with_sizer(self.sizer.clone())
            .with_overlap(self.length.overlap)
            .unwrap_or_else(|_| ChunkConfig::new(self.length.tokens).with_sizer(self.sizer.clone()));
        let piece = |(start, chunk): (usize, &str)| Piece {
            start,
            end: start + chunk.len(),
            headings: text.headings_at(start),
        };
        match text.syntax {
            Syntax::Plain => TextSplitter::new(config).chunk_indices(&text.text).map(piece).collect(),
            Syntax::Markdown => MarkdownSplitter::new(config).chunk_indices(&text.text).map(piece).collect(),
        }
    }

    /// Returns what is embedded for a chunk: title and headings, as far as the model has room for them, above its text.
    pub(crate) fn with_context(&self, title: &str, headings: &[String], text: &str) -> String {
        let room = self.max_length.saturating_sub(SPECIAL_TOKENS + self.tokens(text));
        let mut path: Vec<&str> = headings.iter().map(String::as_str).collect();
        if path.first() != Some(&title) && !title.is_empty() {
            path.insert(0, title);
        }
        // The innermost headings say most about the chunk, the outermost is the title: drop from the middle first.
        while !path.is_empty() {
            let context = path.join("\n");
            if self.tokens(&context) <= room {
                return context + "\n" + text;
            }
            path.remove(usize::from(path.len() > 2));
        }
        text.to_owned()
    }

    /// Counts tokens without those the model adds.
    pub(crate) fn tokens(&self, text: &str) -> usize {
        self.sizer.size(text)
    }

    /// What chunks depend on besides the text.
    pub(crate) fn length(&self) -> Length {
        self.length
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::parse::parse;

    /// A tokenizer that knows letters, digits and punctuation only: a token per character of a word.
    pub(crate) fn letters() -> Arc<Tokenizer> {
        let vocab: serde_json::Map<_, _> = (33u8..127)
            .flat_map(|c| [(c as char).to_string(), format!("##{}", c as char)])
            .chain(["[UNK]".to_owned()])
            .enumerate()
            .map(|(id, token)| (token, id.into()))
            .collect();
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": { "type": "BertPreTokenizer" },
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": vocab,
            },
        });
        Arc::new(Tokenizer::from_bytes(json.to_string()).unwrap())
    }

    fn chunker(tokens: usize, overlap: usize) -> Chunker {
        Chunker::new(letters(), Length { tokens, overlap }, 1000)
    }

    fn chunks(chunker: &Chunker, text: &Text) -> Vec<String> {
        chunker.cut(text).iter().map(|piece| text.text[piece.start..piece.end].to_owned()).collect()
    }

    #[test]
    fn chunks_end_on_paragraphs_and_keep_their_headings() {
        let source = "# T\n\nfirst para\n\n## Sub\n\nsecond para here\n";
        let text = parse("text/markdown", source.into()).unwrap();
        let pieces = chunker(20, 0).cut(&text);
        assert_eq!(pieces.len(), 2);
        assert_eq!(&source[pieces[0].start..pieces[0].end], "# T\n\nfirst para");
        assert_eq!(&source[pieces[1].start..pieces[1].end], "## Sub\n\nsecond para here");
        assert_eq!(pieces[1].headings, ["T", "Sub"]);
    }

    #[test]
    fn no_chunk_is_longer_than_asked_and_together_they_hold_every_word() {
        let source: String = (0..200).map(|i| format!("word{i} ")).collect();
        let text = parse("text/plain", source.clone().into()).unwrap();
        let chunker = chunker(50, 10);
        let chunks = chunks(&chunker, &text);
        assert!(chunks.iter().all(|chunk| chunker.tokens(chunk) <= 50));
        assert!((0..200).all(|i| chunks.iter().any(|chunk| chunk.contains(&format!("word{i}")))));
    }

    #[test]
    fn a_blob_without_spaces_is_cut_by_its_bytes() {
        let text = parse("text/plain", "é".repeat(20_000).into()).unwrap();
        let chunks = chunks(&chunker(50, 0), &text);
        assert!(chunks.iter().all(|chunk| chunk.len() <= 50 * BYTES_PER_TOKEN));
        assert_eq!(chunks.concat(), text.text);
    }

    #[test]
    fn context_is_given_only_where_it_fits() {
        let chunker = Chunker::new(letters(), Length { tokens: 20, overlap: 0 }, 22);
        let headings = ["T".to_owned(), "long heading".to_owned()];
        assert_eq!(chunker.with_context("T", &headings, "abc"), "T\nlong heading\nabc");
        assert_eq!(chunker.with_context("T", &headings, "abcdefghi"), "long heading\nabcdefghi");
        assert_eq!(chunker.with_context("T", &headings, &"x".repeat(20)), "x".repeat(20));
    }
}
