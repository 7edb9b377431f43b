//! A document, the passages it is cut into, and the names they go by.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::chunk::Length;

/// Most bytes of a title, and of a heading: each passage repeats them.
pub(crate) const MAX_TITLE_BYTES: usize = 1024;

/// The name of a collection: 1 to 64 letters, digits, '_' and '-'.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Collection(String);

impl Collection {
    /// Takes a name, or says what is wrong with it.
    pub(crate) fn new(name: &str) -> Result<Self, &'static str> {
        let well_formed = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        if (1..=64).contains(&name.len()) && well_formed {
            Ok(Self(name.to_owned()))
        } else {
            Err("must be 1 to 64 letters, digits, '_' and '-'")
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Collection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A document as it was handed in.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) id: String,
    pub(crate) content_type: String,
    pub(crate) content: Vec<u8>,
    pub(crate) title: String,
    pub(crate) uri: String,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Document {
    /// The document's version: the digest of its content.
    pub(crate) fn version(&self) -> String {
        digest(&self.content)
    }

    /// The digest of all that its stored passages depend on: the content, how it is cut, and what is kept with it.
    /// Two documents of one revision have equal passages, so the second need not be done.
    pub(crate) fn revision(&self, version: &str, length: Length) -> String {
        let Length { tokens, overlap } = length;
        let Self { id: _, content_type, content: _, title, uri, metadata } = self;
        let parts = (PASSAGE_FORMAT, version, tokens, overlap, content_type, title, uri, metadata);
        // Strings and numbers in tuples and maps always serialise.
        digest(&serde_json::to_vec(&parts).unwrap_or_default())
    }
}

/// Raised when the same document is to be stored in another way than before.
const PASSAGE_FORMAT: u32 = 2;

/// A piece of a document as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Passage {
    pub(crate) document_id: String,
    /// See [`Document::revision`].
    pub(crate) revision: String,
    pub(crate) version: String,
    pub(crate) title: String,
    pub(crate) uri: String,
    /// Position among the chunks of the document, from 0.
    pub(crate) chunk: u32,
    /// How many chunks the document has.
    pub(crate) chunks: u32,
    /// Headings above it, outermost first.
    pub(crate) headings: Vec<String>,
    pub(crate) text: String,
    /// Bytes [start, end) in the document.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Passage {
    /// The key it is stored under: the same passage always gets the same, so storing it twice changes nothing.
    pub(crate) fn key(&self, collection: &Collection) -> Uuid {
        passage_key(collection, &self.document_id, &self.revision, self.chunk)
    }
}

/// Returns the key of a passage, a UUIDv5.
pub(crate) fn passage_key(collection: &Collection, document_id: &str, revision: &str, chunk: u32) -> Uuid {
    const NAMESPACE: Uuid = Uuid::from_u128(0x6f9a_2b1e_0c4d_5e7f_8a3b_9c2d_1e4f_7a60);
    Uuid::new_v5(&NAMESPACE, format!("{collection}\n{document_id}\n{revision}\n{chunk}").as_bytes())
}

/// Returns "sha256:" and the digest in hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_name_is_safe_as_a_directory() {
        assert!(Collection::new("docs-2_A").is_ok());
        for name in ["", ".", "a/b", "a b", "ä", &"a".repeat(65)] {
            assert!(Collection::new(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_revision_follows_content_and_what_is_kept_with_it_but_not_the_id() {
        let document = Document {
            id: "1".into(),
            content_type: "text/plain".into(),
            content: b"x".to_vec(),
            title: String::new(),
            uri: String::new(),
            metadata: BTreeMap::new(),
        };
        let length = Length { tokens: 200, overlap: 40 };
        let revision = |document: &Document| document.revision(&document.version(), length);
        let same = Document { id: "2".into(), ..document.clone() };
        let other = Document { metadata: [("a".into(), "b".into())].into(), ..document.clone() };
        assert_eq!(revision(&document), revision(&same));
        assert_ne!(revision(&document), revision(&other));
        assert_ne!(revision(&document), document.revision(&document.version(), Length { tokens: 100, overlap: 40 }));
    }
}
