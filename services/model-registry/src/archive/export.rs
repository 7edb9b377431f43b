//! Writes a version as an archive, piece by piece.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::document::{Document, Provenance};
use super::oci::{BLOBS, INDEX_FILE, LAYOUT_FILE, Packed};
use super::tar;
use crate::artifacts::{ArtifactStore, Body, Direction, MAX_CHUNK, checked};
use crate::error::{Error, Result};
use crate::model::{Artifact, Version};

/// What one entry of an archive holds.
enum Content {
    Here(Bytes),
    Kept(Artifact),
}

/// An archive about to be written.
pub(super) struct Export {
    /// Of the manifest.
    pub(super) digest: String,
    /// Of the whole archive, in bytes.
    pub(super) size: u64,
    /// Header, content, size.
    entries: Vec<(Bytes, Content, u64)>,
}

impl Export {
    /// Lays out the archive of a READY version.
    pub(super) fn new(version: &Version, provenance: Option<Provenance>) -> Result<Self> {
        let id = &version.id;
        if version.digest.is_none() {
            let message = format!("version `{id}` is PENDING; finalize it before it is exported");
            return Err(Error::Precondition { reason: "VERSION_PENDING", message });
        }
        if version.artifacts.is_empty() {
            let message = format!("the files of version `{id}` are not kept here but at `{}`", version.origin.source);
            return Err(Error::Precondition { reason: "VERSION_EMPTY", message });
        }
        let document = Document::of(version, provenance.unwrap_or_else(|| Provenance::here(version)))?;
        let Packed { layout, index, manifest, config, version: document } = Packed::new(&document, &version.artifacts)?;
        let digest = manifest.digest();
        // What is needed to check the files comes before them, so that who reads never has to keep them waiting.
        let mut contents =
            vec![(LAYOUT_FILE.to_owned(), Content::Here(layout)), (INDEX_FILE.to_owned(), Content::Here(index))];
        let mut written = BTreeSet::new();
        for blob in [manifest, config, document] {
            if written.insert(blob.sha256.clone()) {
                contents.push((format!("{BLOBS}{}", blob.sha256), Content::Here(blob.bytes)));
            }
        }
        for artifact in &version.artifacts {
            if written.insert(artifact.sha256.clone()) {
                contents.push((format!("{BLOBS}{}", artifact.sha256), Content::Kept(artifact.clone())));
            }
        }
        let mut entries = Vec::with_capacity(contents.len());
        let mut whole = tar::END.len() as u64;
        for (name, content) in contents {
            let size = match &content {
                Content::Here(bytes) => bytes.len() as u64,
                Content::Kept(artifact) => artifact.size,
            };
            let header = tar::header(&name, size)?;
            whole += (header.len() + tar::padding(size).len()) as u64 + size;
            entries.push((header, content, size));
        }
        Ok(Self { digest, size: whole, entries })
    }

    /// The bytes, those of the files from `store` and checked again on the way.
    pub(super) fn bytes(self, store: Arc<dyn ArtifactStore>) -> Body<'static> {
        let entries = stream::iter(self.entries).flat_map(move |(header, content, size)| {
            let store = store.clone();
            let content = match content {
                Content::Here(bytes) => here(bytes),
                Content::Kept(artifact) => {
                    let open = async move {
                        let body = store.open(&artifact, 0).await?;
                        Ok::<_, Error>(checked(body, artifact, Direction::Out))
                    };
                    stream::once(open).try_flatten().boxed()
                }
            };
            here(header).chain(content).chain(here(Bytes::from_static(tar::padding(size))))
        });
        entries.chain(here(Bytes::from_static(tar::END))).boxed()
    }
}

/// Bytes that are in memory, in pieces.
fn here(mut bytes: Bytes) -> Body<'static> {
    let pieces = std::iter::from_fn(move || {
        let piece = bytes.split_to(bytes.len().min(MAX_CHUNK));
        (!piece.is_empty()).then_some(Ok(piece))
    });
    stream::iter(pieces).boxed()
}
