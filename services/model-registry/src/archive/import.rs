//! Reads an archive: every byte is checked before anything refers to it.
//!
//! Files that come after the documents that name them, as they do in archives of this registry, go straight to the
//! artifact store. Other programs write blobs in any order: what comes early waits in a file on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use futures::stream::{StreamExt, TryStreamExt};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::document::{Arrival, Document};
use super::oci::{self, BLOBS, Descriptor, INDEX_FILE, LAYOUT_FILE, Manifest, Packed, invalid};
use super::tar::Reader;
use crate::artifacts::{ArtifactStore, Body, Direction, checked};
use crate::error::{Dependency, Error, Result};
use crate::model::{Artifact, MAX_ARTIFACT_BYTES, MAX_ARTIFACTS};
use crate::names::{ArtifactPath, ModelName, Sha256Hex};

/// Largest `oci-layout` and `index.json`, in bytes.
const MAX_INDEX: u64 = 1 << 20;
/// Largest manifest and config, in bytes: a thousand layers with the longest paths stay below half of it.
const MAX_MANIFEST: u64 = 4 << 20;
/// Largest document about a version, in bytes: as large as a message that could have made the version.
const MAX_DOCUMENT: u64 = 64 << 20;
/// Most blobs: files, manifest, config and document.
const MAX_BLOBS: usize = MAX_ARTIFACTS + 3;
/// Bytes read from the disk at once.
const READ_BYTES: usize = 256 << 10;

/// Reads all of an archive and keeps its files in `store`; `into` is the model to add to, that of the archive if none.
///
/// Returns the version and the digest of the manifest. After an error nothing refers to what may have been kept.
pub(super) async fn receive(
    body: Body<'_>,
    spool: &Path,
    store: &dyn ArtifactStore,
    into: Option<ModelName>,
) -> Result<(Arrival, String)> {
    let mut entries = Reader::new(body);
    let mut import =
        Import { early: Early::new(spool).await?, seen: BTreeSet::new(), index: None, named: None, plan: None };
    let mut has_layout = false;
    while let Some(entry) = entries.next().await? {
        match (entry.name.as_str(), entry.name.strip_prefix(BLOBS)) {
            (LAYOUT_FILE, _) if !has_layout => {
                oci::check_layout(&small(&mut entries, &entry.name, entry.size).await?)?;
                has_layout = true;
            }
            (INDEX_FILE, _) if import.index.is_none() => {
                import.index = Some(oci::read_index(&small(&mut entries, &entry.name, entry.size).await?)?);
            }
            (_, Some(hex)) => {
                let sha256 = Sha256Hex::parse("digest", hex)
                    .map_err(|_| invalid(format!("has a blob `{}` that is not named by a SHA-256", entry.name)))?;
                import.blob(sha256, entry.size, entries.content(), store).await?;
            }
            (LAYOUT_FILE | INDEX_FILE, _) => return Err(invalid(format!("has `{}` twice", entry.name))),
            (name, _) => return Err(invalid(format!("has a file `{name}`, which an image layout has not"))),
        }
        import.make_plan(into.as_ref()).await?;
    }
    if !has_layout {
        return Err(invalid(format!("has no `{LAYOUT_FILE}`: it is not an OCI image layout")));
    }
    import.finish(store).await
}

async fn small(entries: &mut Reader<'_>, name: &str, size: u64) -> Result<Vec<u8>> {
    if size > MAX_INDEX {
        return Err(invalid(format!("has `{name}` with {size} bytes, at most {MAX_INDEX} are taken")));
    }
    let mut bytes = Vec::new();
    let mut content = entries.content();
    while let Some(piece) = content.try_next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// An import under way.
struct Import {
    early: Early,
    /// Every blob so far.
    seen: BTreeSet<Sha256Hex>,
    index: Option<Descriptor>,
    named: Option<Named>,
    plan: Option<Plan>,
}

/// What the manifest names.
struct Named {
    manifest: Vec<u8>,
    config: Descriptor,
    document: Descriptor,
    artifacts: Vec<Artifact>,
}

/// What an archive must hold, once its documents have been read.
struct Plan {
    arrival: Arrival,
    manifest_digest: String,
    /// Size of each file by its content.
    files: BTreeMap<Sha256Hex, u64>,
}

impl Import {
    async fn blob(&mut self, sha256: Sha256Hex, size: u64, content: Body<'_>, store: &dyn ArtifactStore) -> Result<()> {
        if !self.seen.insert(sha256.clone()) {
            return Err(invalid(format!("has blob {sha256} twice")));
        }
        if self.seen.len() > MAX_BLOBS || size > MAX_ARTIFACT_BYTES {
            let most = format!("at most {MAX_ARTIFACTS} files of {MAX_ARTIFACT_BYTES} bytes (64 GiB)");
            return Err(invalid(format!("has a blob {sha256} of {size} bytes too much: a version has {most}")));
        }
        let blob = blob(sha256, size);
        let Some(plan) = &self.plan else { return self.early.add(blob, content).await };
        match plan.files.get(&blob.sha256) {
            Some(named) if *named == size => store.keep(&blob, checked(content, blob.clone(), Direction::In)).await,
            Some(named) => {
                Err(invalid(format!("has blob {} with {size} bytes, where its manifest says {named}", blob.sha256)))
            }
            None => Err(invalid(format!("has blob {}, which its manifest does not name", blob.sha256))),
        }
    }

    /// Reads the documents as soon as all of them are there.
    async fn make_plan(&mut self, into: Option<&ModelName>) -> Result<()> {
        let (Some(index), None) = (&self.index, &self.plan) else { return Ok(()) };
        let named = match self.named.take() {
            Some(named) => named,
            None => match self.early.document(index, MAX_MANIFEST).await? {
                Some(manifest) => named(manifest)?,
                None => return Ok(()),
            },
        };
        let (config, document) = (named.config.sha256()?, named.document.sha256()?);
        if !self.early.has(&config) || !self.early.has(&document) {
            self.named = Some(named);
            return Ok(());
        }
        self.early.document(&named.config, MAX_MANIFEST).await?;
        let read = self.early.document(&named.document, MAX_DOCUMENT).await?.unwrap_or_default();
        let read: Document = oci::read("a document about the version", &read)?;
        let packed = Packed::new(&read, &named.artifacts)?;
        let arrival = read.into_arrival(named.artifacts, into.cloned())?;
        // They must be what this version would be exported with: so they will be, from here on.
        if packed.manifest.bytes != named.manifest {
            return Err(invalid("has a manifest that differs from the one this registry writes for the same version"));
        }
        let documents = BTreeSet::from([index.sha256()?, config, document]);
        let files: BTreeMap<_, _> = arrival.artifacts.iter().map(|file| (file.sha256.clone(), file.size)).collect();
        let is_named = |sha256: &&Sha256Hex| files.contains_key(*sha256) || documents.contains(*sha256);
        if let Some(other) = self.seen.iter().find(|sha256| !is_named(sha256)) {
            return Err(invalid(format!("has blob {other}, which its manifest does not name")));
        }
        self.plan = Some(Plan { arrival, manifest_digest: packed.manifest.digest(), files });
        Ok(())
    }

    /// Makes sure that nothing is missing, and keeps the files that came early.
    async fn finish(mut self, store: &dyn ArtifactStore) -> Result<(Arrival, String)> {
        let Some(plan) = self.plan else {
            let missing = match &self.index {
                None => format!("has no `{INDEX_FILE}`"),
                Some(_) => "lacks its manifest, its config or the document about the version".to_owned(),
            };
            return Err(invalid(missing));
        };
        let Plan { arrival, manifest_digest, files } = plan;
        if let Some(missing) = arrival.artifacts.iter().find(|artifact| !self.seen.contains(&artifact.sha256)) {
            return Err(invalid(format!("lacks the bytes of `{}` (blob {})", missing.path, missing.sha256)));
        }
        for (sha256, size) in files {
            if self.early.has(&sha256) {
                let blob = blob(sha256, size);
                store.keep(&blob, checked(self.early.content(&blob).await?, blob.clone(), Direction::In)).await?;
            }
        }
        Ok((arrival, manifest_digest))
    }
}

/// Reads a manifest: the files it names, each with a path of its own, and the document about the version.
fn named(manifest: Vec<u8>) -> Result<Named> {
    let Manifest { config, layers, .. } = oci::read_manifest(&manifest)?;
    if layers.len() > MAX_ARTIFACTS + 1 {
        return Err(invalid(format!("has {} layers, at most {MAX_ARTIFACTS} files are taken", layers.len())));
    }
    let mut document = None;
    let mut artifacts: Vec<Artifact> = Vec::new();
    for layer in layers {
        if layer.is_version() && document.is_none() {
            document = Some(layer);
            continue;
        }
        let path = layer.title().ok_or_else(|| invalid("has a layer without a title, so its file has no name"))?;
        let path = ArtifactPath::parse("archive.path", path)?;
        if layer.size > MAX_ARTIFACT_BYTES {
            return Err(invalid(format!(
                "has `{path}` with {} bytes, at most {MAX_ARTIFACT_BYTES} are taken",
                layer.size
            )));
        }
        artifacts.push(Artifact { path, size: layer.size, sha256: layer.sha256()? });
    }
    let paths: BTreeSet<&str> = artifacts.iter().map(|artifact| artifact.path.as_str()).collect();
    if paths.len() < artifacts.len() {
        return Err(invalid("has two files with the same path"));
    }
    for path in &paths {
        if let Some((at, _)) = path.match_indices('/').find(|(at, _)| paths.contains(&path[..*at])) {
            return Err(invalid(format!("has `{}` as a file and as the directory of `{path}`", &path[..at])));
        }
    }
    let document = document.ok_or_else(|| {
        invalid("says nothing of the version's task and parameters: model-registry has not exported it")
    })?;
    if artifacts.is_empty() {
        return Err(invalid("has no files"));
    }
    Ok(Named { manifest, config, document, artifacts })
}

/// A blob as something to keep; its path is for messages.
fn blob(sha256: Sha256Hex, size: u64) -> Artifact {
    Artifact { path: ArtifactPath::stored(format!("{BLOBS}{sha256}")), size, sha256 }
}

/// Blobs that came before it was known what they are, in a file without a name.
struct Early {
    file: tokio::fs::File,
    end: u64,
    /// Where each begins, and its size.
    blobs: BTreeMap<Sha256Hex, (u64, u64)>,
}

impl Early {
    async fn new(dir: &Path) -> Result<Self> {
        let dir = dir.to_owned();
        let file = tokio::task::spawn_blocking(move || tempfile::tempfile_in(dir)).await;
        let file = file.map_err(std::io::Error::other).flatten().map_err(unavailable)?;
        Ok(Self { file: tokio::fs::File::from_std(file), end: 0, blobs: BTreeMap::new() })
    }

    async fn add(&mut self, blob: Artifact, content: Body<'_>) -> Result<()> {
        self.file.seek(std::io::SeekFrom::Start(self.end)).await.map_err(unavailable)?;
        let mut content = checked(content, blob.clone(), Direction::In);
        while let Some(bytes) = content.try_next().await? {
            self.file.write_all(&bytes).await.map_err(unavailable)?;
        }
        self.file.flush().await.map_err(unavailable)?;
        self.blobs.insert(blob.sha256, (self.end, blob.size));
        self.end += blob.size;
        Ok(())
    }

    fn has(&self, sha256: &Sha256Hex) -> bool {
        self.blobs.contains_key(sha256)
    }

    /// Reads a whole document of at most `most` bytes; none while it is not there.
    async fn document(&mut self, descriptor: &Descriptor, most: u64) -> Result<Option<Vec<u8>>> {
        let sha256 = descriptor.sha256()?;
        let Some((_, size)) = self.blobs.get(&sha256).copied() else { return Ok(None) };
        if size > most || size != descriptor.size {
            let said = descriptor.size;
            return Err(invalid(format!(
                "has blob {sha256} with {size} bytes; {said} were said and {most} are the most"
            )));
        }
        let mut bytes = Vec::new();
        let mut content = self.content(&blob(sha256, size)).await?;
        while let Some(piece) = content.try_next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(Some(bytes))
    }

    async fn content(&mut self, blob: &Artifact) -> Result<Body<'_>> {
        let (start, size) = self.blobs.get(&blob.sha256).copied().unwrap_or_default();
        self.file.seek(std::io::SeekFrom::Start(start)).await.map_err(unavailable)?;
        Ok(ReaderStream::with_capacity((&mut self.file).take(size), READ_BYTES).map_err(unavailable).boxed())
    }
}

fn unavailable(error: std::io::Error) -> Error {
    Error::Unavailable { dependency: Dependency::ArtifactStore, source: error.into() }
}
