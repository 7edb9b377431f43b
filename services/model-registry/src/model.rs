//! What the registry keeps: models, versions, their files and what happened to them.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Entity, Error, Result};
use crate::names::{AliasName, ArtifactPath, ModelName, Sha256Hex, VersionId};

/// Longest description, in bytes.
const MAX_DESCRIPTION: usize = 10_000;
/// Longest key of a tag or parameter, in bytes.
const MAX_KEY: usize = 250;
/// Longest value of a tag or parameter, in bytes.
const MAX_VALUE: usize = 5_000;
/// Most tags of one model or version, and most parameters of a version.
const MAX_PAIRS: usize = 100;
/// Most input columns of a signature.
const MAX_INPUTS: usize = 2_000;
/// Most categories of one input column.
const MAX_CATEGORIES: usize = 10_000;
/// Most files of one version.
pub const MAX_ARTIFACTS: usize = 1_000;
/// Largest file, in bytes.
pub const MAX_ARTIFACT_BYTES: u64 = 64 << 30;

/// A point in time: microseconds since 1970-01-01 UTC, which is what both databases keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(pub i64);

impl Micros {
    /// Reads the machine's clock. Only the edge of the service calls this; everything further in is handed its time.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

/// A registered model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    pub name: ModelName,
    pub description: String,
    pub tags: BTreeMap<String, String>,
    pub aliases: BTreeMap<String, i64>,
    /// Highest number that exists; 0 for none.
    pub latest_version: i64,
    pub create_time: Micros,
    pub update_time: Micros,
    /// Sequence of the newest event about it.
    pub revision: i64,
}

/// One version of a model. READY once it has a digest; from then on only its tags change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    pub id: VersionId,
    pub description: String,
    pub task: Task,
    pub signature: Option<Signature>,
    pub parameters: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    /// Sorted by path.
    pub artifacts: Vec<Artifact>,
    pub digest: Option<String>,
    /// Aliases that point here, sorted.
    pub aliases: Vec<String>,
    pub origin: Origin,
    /// Who made it, by the name they gave; empty where they gave none.
    #[serde(default)]
    pub author: String,
    pub stage: Stage,
    pub create_time: Micros,
    pub update_time: Micros,
    /// Sequence of the newest event about it.
    pub revision: i64,
}

impl Version {
    /// Refuses what would change a READY version.
    pub fn must_be_pending(&self) -> Result<()> {
        if self.digest.is_none() {
            return Ok(());
        }
        let message = format!("version `{}` is READY and can no longer change; create a new version", self.id);
        Err(Error::Precondition { reason: "VERSION_IMMUTABLE", message })
    }

    /// Refuses a file that this version can't take (any more).
    pub fn must_accept(&self, artifact: &Artifact) -> Result<()> {
        self.must_be_pending()?;
        if let Some(other) = self.artifacts.iter().find(|other| other.path.collides_with(&artifact.path)) {
            let problem = format!("collides with `{}`: a file cannot also be a directory", other.path);
            return Err(Error::invalid("INVALID_PATH", "header.artifact.path", problem));
        }
        let is_new = self.artifacts.iter().all(|other| other.path != artifact.path);
        if is_new && self.artifacts.len() >= MAX_ARTIFACTS {
            let message = format!("version `{}` already has {MAX_ARTIFACTS} files, the most it may have", self.id);
            return Err(Error::Precondition { reason: "TOO_MANY_ARTIFACTS", message });
        }
        Ok(())
    }

    /// Finds one of its files.
    pub fn artifact(&self, path: &ArtifactPath) -> Result<&Artifact> {
        let missing = || Error::NotFound(Entity::Artifact { version: self.id.clone(), path: path.clone() });
        self.artifacts.iter().find(|artifact| artifact.path == *path).ok_or_else(missing)
    }
}

/// The digest of a version: SHA-256 over `path "\n" size "\n" sha256 "\n"` of each file, in the order of their paths.
pub fn digest(artifacts: &[Artifact]) -> String {
    let mut sorted: Vec<_> = artifacts.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let mut hash = Sha256::new();
    for Artifact { path, size, sha256 } in sorted {
        hash.update(format!("{path}\n{size}\n{sha256}\n"));
    }
    format!("sha256:{}", Sha256Hex::of(hash))
}

/// One file of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    pub path: ArtifactPath,
    /// Bytes.
    pub size: u64,
    pub sha256: Sha256Hex,
}

impl Artifact {
    /// Checks a size a caller announced.
    pub fn size(field: &str, size: i64) -> Result<u64> {
        u64::try_from(size).ok().filter(|size| *size <= MAX_ARTIFACT_BYTES).ok_or_else(|| {
            Error::invalid("INVALID_SIZE", field, format!("must be 0 to {MAX_ARTIFACT_BYTES} bytes (64 GiB)"))
        })
    }
}

/// Where a version comes from, as MLflow's clients say it; empty where they did not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Origin {
    /// URI of the files: `mlflow-artifacts:/…`, `models:/…`, `runs:/…` or a place outside of this registry.
    pub source: String,
    /// The run that made it.
    pub run: String,
    pub run_link: String,
    pub logged_model: String,
}

/// The stage that MLflow's older clients move a version through; aliases took its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    #[default]
    None,
    Staging,
    Production,
    Archived,
}

/// What a model does, hence which engine runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Texts to vectors
    TextEmbedding,
    /// Query and document to a score
    TextReranking,
    /// Text to more text
    TextGeneration,
    /// Named features to a probability, or one for each class
    TabularClassification,
    /// Texts to sparse vectors
    TextSparseEmbedding,
    /// Texts to labels
    TextClassification,
    /// Named features to a number, or several
    TabularRegression,
    /// Anything that MLflow's clients load and predict does not
    Custom,
}

/// What a tabular model takes, in column order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    pub inputs: Vec<Feature>,
}

/// One input column. Its serialised form is that of `signature.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: FeatureType,
    #[serde(default)]
    pub optional: bool,
    #[serde(default)]
    pub categories: Vec<String>,
    #[serde(default)]
    pub description: String,
}

/// The type of an input column, as in an MLflow signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureType {
    Double,
    Long,
    Boolean,
    String,
}

impl Signature {
    /// Checks the columns: named, each name once, categories only for text and each once.
    pub fn check(&self) -> Result<()> {
        let invalid = |field: String, problem: String| Err(Error::invalid("INVALID_SIGNATURE", field, problem));
        if self.inputs.is_empty() || self.inputs.len() > MAX_INPUTS {
            return invalid("signature.inputs".into(), format!("must hold 1 to {MAX_INPUTS} columns"));
        }
        let mut names = std::collections::HashSet::new();
        for (index, input) in self.inputs.iter().enumerate() {
            let field = |name: &str| format!("signature.inputs[{index}].{name}");
            check_key(&field("name"), &input.name)?;
            check_text(&field("description"), &input.description, MAX_DESCRIPTION)?;
            if !names.insert(&input.name) {
                return invalid(field("name"), format!("is `{}` a second time", input.name));
            }
            if !input.categories.is_empty() && input.kind != FeatureType::String {
                return invalid(field("categories"), "are for columns of type string only".into());
            }
            if input.categories.len() > MAX_CATEGORIES {
                return invalid(field("categories"), format!("must be at most {MAX_CATEGORIES}"));
            }
            let mut seen = std::collections::HashSet::new();
            for category in &input.categories {
                check_text(&field("categories"), category, MAX_VALUE)?;
                if !seen.insert(category) {
                    return invalid(field("categories"), format!("hold `{category}` twice"));
                }
            }
        }
        Ok(())
    }
}

/// A model before it is registered.
#[derive(Clone, Debug, Serialize)]
pub struct ModelDraft {
    pub name: ModelName,
    pub description: String,
    pub tags: BTreeMap<String, String>,
}

impl ModelDraft {
    /// Checks what a name alone doesn't.
    pub fn check(&self) -> Result<()> {
        check_text("description", &self.description, MAX_DESCRIPTION)?;
        pairs("tags", &self.tags)
    }
}

/// A version before it has its number.
#[derive(Clone, Debug, Serialize)]
pub struct VersionDraft {
    pub model: ModelName,
    pub description: String,
    pub task: Task,
    pub signature: Option<Signature>,
    pub parameters: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    /// Given, the version is READY at once, with the files that are at its source now.
    pub origin: Option<Origin>,
}

impl VersionDraft {
    /// Checks what the types alone don't.
    pub fn check(&self) -> Result<()> {
        check_described(&self.description, &self.tags)?;
        pairs("parameters", &self.parameters)?;
        self.signature.as_ref().map_or(Ok(()), Signature::check)
    }
}

/// Checks the description and the tags of a version.
pub(crate) fn check_described(description: &str, tags: &BTreeMap<String, String>) -> Result<()> {
    check_text("description", description, MAX_DESCRIPTION)?;
    pairs("tags", tags)
}

/// Where an alias is to point.
#[derive(Clone, Debug, Serialize)]
pub struct AliasMove {
    pub model: ModelName,
    pub alias: AliasName,
    /// None removes the alias.
    pub to: Option<i64>,
    /// Where it must point for the move to happen; 0 when it must not exist. None: anywhere.
    pub expected: Option<i64>,
}

/// A tag to set or remove.
#[derive(Clone, Debug, Serialize)]
pub struct TagChange {
    pub model: ModelName,
    /// None: a tag of the model itself.
    pub version: Option<i64>,
    pub key: String,
    /// None removes the tag.
    pub value: Option<String>,
}

impl TagChange {
    /// Checks key and value.
    pub fn check(&self) -> Result<()> {
        check_key("key", &self.key)?;
        self.value.as_ref().map_or(Ok(()), |value| check_text("value", value, MAX_VALUE))
    }

    /// Refuses one tag too many.
    pub fn must_fit(&self, tags: &BTreeMap<String, String>) -> Result<()> {
        if tags.len() < MAX_PAIRS || tags.contains_key(&self.key) || self.value.is_none() {
            return Ok(());
        }
        let message = format!("`{}` already has {MAX_PAIRS} tags, the most it may have", self.model);
        Err(Error::Precondition { reason: "TOO_MANY_TAGS", message })
    }
}

/// What is to be said of a model, or of one of its versions, from now on; `None` leaves it as it is.
#[derive(Clone, Debug, Serialize)]
pub struct Update {
    pub model: ModelName,
    /// None: the model itself.
    pub version: Option<i64>,
    pub description: Option<String>,
    /// All of them: those that are not named go.
    pub tags: Option<BTreeMap<String, String>>,
}

/// What has been updated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Updated {
    Model(Model),
    Version(Box<Version>),
}

impl Update {
    /// Checks texts and tags.
    pub fn check(&self) -> Result<()> {
        self.description.as_ref().map_or(Ok(()), |it| check_text("description", it, MAX_DESCRIPTION))?;
        self.tags.as_ref().map_or(Ok(()), |tags| pairs("tags", tags))
    }
}

/// Something that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Given when it is written down: strictly increasing in the order of commits.
    pub sequence: i64,
    pub time: Micros,
    pub kind: EventKind,
    pub model: ModelName,
    /// 0 where it is about the model as a whole.
    pub version: i64,
    /// Empty where it is not about an alias.
    pub alias: String,
    /// Where a moved alias pointed before; 0 when it is new.
    pub previous_version: i64,
    /// Of a finalized `version`; empty otherwise.
    pub digest: String,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    ModelCreated,
    ModelUpdated,
    ModelDeleted,
    VersionCreated,
    VersionFinalized,
    VersionUpdated,
    VersionDeleted,
    AliasSet,
    AliasDeleted,
}

impl Version {
    /// What the audit log keeps of a version that comes or goes.
    pub fn outline(&self) -> serde_json::Value {
        let Self { description, task, parameters, tags, digest, origin, stage, .. } = self;
        let signature = self.signature.as_ref().and_then(|signature| serde_json::to_vec(signature).ok());
        serde_json::json!({
            "description": description, "task": task, "parameters": parameters, "tags": tags, "digest": digest,
            "source": origin.source, "run": origin.run, "stage": stage,
            "signature_sha256": signature.map(|json| hex::encode(Sha256::digest(json))),
        })
    }
}

/// Checks a text: its length, and no NUL, which PostgreSQL can't keep.
pub(crate) fn check_text(field: &str, text: &str, max: usize) -> Result<()> {
    if text.len() <= max && !text.contains('\0') {
        return Ok(());
    }
    Err(Error::invalid("INVALID_TEXT", field, format!("must be at most {max} bytes, without NUL characters")))
}

pub(crate) fn check_key(field: &str, key: &str) -> Result<()> {
    if !key.is_empty() && key.len() <= MAX_KEY && !key.contains(char::is_control) {
        return Ok(());
    }
    let problem = format!("must be 1 to {MAX_KEY} bytes, without control characters");
    Err(Error::invalid("INVALID_KEY", field, problem))
}

fn pairs(field: &str, pairs: &BTreeMap<String, String>) -> Result<()> {
    if pairs.len() > MAX_PAIRS {
        return Err(Error::invalid("INVALID_TEXT", field, format!("must be at most {MAX_PAIRS}")));
    }
    for (name, value) in pairs {
        check_key(&format!("{field} key"), name)?;
        check_text(&format!("{field}[{name}]"), value, MAX_VALUE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_depends_on_every_path_size_and_hash_but_not_on_the_order() {
        let artifact = |path: &str, size, fill: &str| Artifact {
            path: ArtifactPath::parse("path", path).unwrap(),
            size,
            sha256: Sha256Hex::parse("sha256", &fill.repeat(64)).unwrap(),
        };
        let files = [artifact("b.json", 2, "b"), artifact("a.json", 1, "a")];
        let written = format!("a.json\n1\n{}\nb.json\n2\n{}\n", "a".repeat(64), "b".repeat(64));
        assert_eq!(digest(&files), format!("sha256:{}", hex::encode(Sha256::digest(written))));
        assert_eq!(digest(&files), digest(&[files[1].clone(), files[0].clone()]));
        assert_ne!(digest(&files), digest(&[files[0].clone(), artifact("a.json", 1, "c")]));
        assert_ne!(digest(&files), digest(&[files[0].clone(), artifact("a.json", 3, "a")]));
        assert_ne!(digest(&files), digest(&[files[0].clone(), artifact("c.json", 1, "a")]));
    }

    #[test]
    fn a_signature_names_each_column_once() {
        let feature = |name: &str, kind, categories: &[&str]| Feature {
            name: name.into(),
            kind,
            optional: false,
            categories: categories.iter().map(ToString::to_string).collect(),
            description: String::new(),
        };
        let field = |inputs: Vec<Feature>| match (Signature { inputs }).check() {
            Err(Error::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(vec![]), "signature.inputs");
        assert_eq!(field(vec![feature("", FeatureType::Long, &[])]), "signature.inputs[0].name");
        let twice = vec![feature("age", FeatureType::Long, &[]), feature("age", FeatureType::Double, &[])];
        assert_eq!(field(twice), "signature.inputs[1].name");
        assert_eq!(field(vec![feature("age", FeatureType::Long, &["x"])]), "signature.inputs[0].categories");
        assert_eq!(field(vec![feature("sex", FeatureType::String, &["x", "x"])]), "signature.inputs[0].categories");
    }
}
