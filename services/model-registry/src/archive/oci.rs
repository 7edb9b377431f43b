//! The documents of an archive: an OCI image layout with one ModelPack manifest.
//!
//! They are written the same on every machine: fields in one order, maps sorted, no white space, nothing that a clock or a
//! registry would say differently.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::document::Document;
use crate::error::{Error, Result};
use crate::model::Artifact;
use crate::names::Sha256Hex;

pub(super) const LAYOUT_FILE: &str = "oci-layout";
pub(super) const INDEX_FILE: &str = "index.json";
pub(super) const BLOBS: &str = "blobs/sha256/";

const LAYOUT_VERSION: &str = "1.0.0";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const MODEL: &str = "application/vnd.cncf.model.manifest.v1+json";
const CONFIG: &str = "application/vnd.cncf.model.config.v1+json";
/// The layer that holds the [`Document`]. It has no title: tools that unpack layers by their titles leave it alone.
const VERSION: &str = "application/vnd.verdict.registry.version.v1+json";

const TITLE: &str = "org.opencontainers.image.title";
const FILEPATH: &str = "org.cncf.model.filepath";
const UNTESTED: &str = "org.cncf.model.file.mediatype.untested";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Vec<Descriptor>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// What a document says of a blob.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    media_type: String,
    digest: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Descriptor {
    fn of(media_type: &str, blob: &Blob) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: blob.digest(),
            size: blob.bytes.len() as u64,
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }

    /// The SHA-256 that names the blob.
    pub(super) fn sha256(&self) -> Result<Sha256Hex> {
        let hex = self.digest.strip_prefix("sha256:").unwrap_or_default();
        Sha256Hex::parse("digest", hex).map_err(|_| {
            invalid(format!("has a digest `{}` that is not `sha256:` and 64 lower-case digits", self.digest))
        })
    }

    /// The path of the file it describes; none where it describes something else.
    pub(super) fn title(&self) -> Option<&str> {
        self.annotations.get(TITLE).map(String::as_str)
    }

    pub(super) fn is_version(&self) -> bool {
        self.media_type == VERSION
    }
}

/// What ModelPack's own tools show of a model.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Config<'a> {
    descriptor: Model<'a>,
    config: BTreeMap<&'static str, &'static str>,
    modelfs: Files,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Model<'a> {
    created_at: &'a str,
    name: &'a str,
    version: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Files {
    r#type: &'static str,
    diff_ids: Vec<String>,
}

/// A small blob, in memory.
pub(crate) struct Blob {
    pub(super) sha256: Sha256Hex,
    pub(super) bytes: Bytes,
}

impl Blob {
    fn json(content: &impl Serialize) -> Result<Self> {
        let bytes = serde_json::to_vec(content).map_err(anyhow::Error::from)?;
        Ok(Self { sha256: Sha256Hex::of(Sha256::new_with_prefix(&bytes)), bytes: bytes.into() })
    }

    pub(super) fn digest(&self) -> String {
        format!("sha256:{}", self.sha256)
    }
}

/// A version ready to be written: all but the bytes of its files.
pub(crate) struct Packed {
    pub(super) layout: Bytes,
    pub(super) index: Bytes,
    pub(super) manifest: Blob,
    pub(super) config: Blob,
    pub(super) version: Blob,
}

impl Packed {
    /// Writes the documents. Equal arguments give equal bytes.
    pub(super) fn new(document: &Document, artifacts: &[Artifact]) -> Result<Self> {
        let version = Blob::json(document)?;
        let mut layers = vec![Descriptor::of(VERSION, &version)];
        layers.extend(artifacts.iter().map(layer));
        let config = Blob::json(&Config {
            descriptor: Model {
                created_at: &document.create_time,
                name: &document.model,
                version: document.version.to_string(),
                description: &document.description,
            },
            config: BTreeMap::new(),
            modelfs: Files { r#type: "layers", diff_ids: layers.iter().map(|layer| layer.digest.clone()).collect() },
        })?;
        let manifest = Blob::json(&Manifest {
            schema_version: 2,
            media_type: MANIFEST.to_owned(),
            artifact_type: MODEL.to_owned(),
            config: Descriptor::of(CONFIG, &config),
            layers,
        })?;
        let index = Index {
            schema_version: 2,
            media_type: Some(INDEX.to_owned()),
            manifests: vec![Descriptor {
                artifact_type: Some(MODEL.to_owned()),
                annotations: BTreeMap::from([(REF_NAME.to_owned(), document.version.to_string())]),
                ..Descriptor::of(MANIFEST, &manifest)
            }],
        };
        let layout = Layout { image_layout_version: LAYOUT_VERSION.to_owned() };
        Ok(Self { layout: Blob::json(&layout)?.bytes, index: Blob::json(&index)?.bytes, manifest, config, version })
    }
}

fn layer(artifact: &Artifact) -> Descriptor {
    let Artifact { path, size, sha256 } = artifact;
    let annotation = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    Descriptor {
        media_type: format!("application/vnd.cncf.model.{}.v1.raw", kind(path.as_str())),
        digest: format!("sha256:{sha256}"),
        size: *size,
        artifact_type: None,
        annotations: BTreeMap::from([
            annotation(TITLE, path.as_str()),
            annotation(FILEPATH, path.as_str()),
            annotation(UNTESTED, "true"),
        ]),
    }
}

/// What ModelPack calls a file, by its name alone.
fn kind(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("md" | "rst" | "pdf") => "doc",
        Some("py" | "sh" | "ipynb") => "code",
        Some("json" | "yaml" | "yml" | "toml" | "txt" | "cfg" | "jinja") => "weight.config",
        None if matches!(name, "LICENSE" | "NOTICE" | "README") => "doc",
        None if name == "MLmodel" => "weight.config",
        _ => "weight",
    }
}

/// Reads `oci-layout`.
pub(super) fn check_layout(bytes: &[u8]) -> Result<()> {
    let Layout { image_layout_version } = read("an `oci-layout`", bytes)?;
    if image_layout_version == LAYOUT_VERSION {
        return Ok(());
    }
    Err(invalid(format!("has layout version `{image_layout_version}`, not `{LAYOUT_VERSION}`")))
}

/// Reads `index.json`: it must name one manifest.
pub(super) fn read_index(bytes: &[u8]) -> Result<Descriptor> {
    let Index { schema_version: _, media_type: _, mut manifests } = read("an `index.json`", bytes)?;
    match (manifests.pop(), manifests.len()) {
        (Some(manifest), 0) if manifest.media_type == MANIFEST => Ok(manifest),
        (Some(manifest), 0) => Err(invalid(format!("holds a `{}`, not a `{MANIFEST}`", manifest.media_type))),
        (_, others) => {
            let count = if others == 0 { 0 } else { others + 1 };
            Err(invalid(format!(
                "names {count} manifests in `{INDEX_FILE}`; it must be one, as an archive is one version"
            )))
        }
    }
}

/// Reads the manifest: it must be that of a model.
pub(super) fn read_manifest(bytes: &[u8]) -> Result<Manifest> {
    let manifest: Manifest = read("a manifest", bytes)?;
    for (is, should) in [(&manifest.artifact_type, MODEL), (&manifest.config.media_type, CONFIG)] {
        if is != should {
            return Err(invalid(format!("has a manifest of `{is}`, where a model has `{should}`")));
        }
    }
    Ok(manifest)
}

/// Reads one JSON document.
pub(super) fn read<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| invalid(format!("has {what} that cannot be read: {error}")))
}

/// An archive that cannot be one.
pub(super) fn invalid(problem: impl Into<String>) -> Error {
    Error::invalid("INVALID_ARCHIVE", "archive", problem)
}
