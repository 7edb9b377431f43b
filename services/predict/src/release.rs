//! A registry version as predict needs to know it: what to fetch, how to check it, how to run it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// One READY version of a registered model. Immutable, so it can be remembered across restarts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Release {
    pub model: String,
    pub version: i64,
    pub task: Task,
    /// Content digest, `sha256:…`.
    pub digest: String,
    pub parameters: BTreeMap<String, String>,
    /// Input columns in order; empty when the version was published without a signature.
    pub inputs: Vec<Feature>,
    pub artifacts: Vec<Artifact>,
}

/// What a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    TextEmbedding,
    TextReranking,
    TextGeneration,
    TabularClassification,
    TextSparseEmbedding,
    TextClassification,
    TabularRegression,
    /// Registered by MLflow's client, which has no tasks: its `MLmodel` tells, and only tabular models are served.
    Custom,
}

/// One input column of a tabular model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    pub name: String,
    pub kind: FeatureKind,
    pub optional: bool,
    /// For text: the values it may take; the position is the code the model was trained on.
    pub categories: Vec<String>,
    pub description: String,
}

/// The type of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FeatureKind {
    Double,
    Long,
    Boolean,
    Text,
}

/// One file of a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    pub path: String,
    pub size: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

impl Task {
    /// Says what a model of this task does, to follow "the model".
    pub fn does(self) -> &'static str {
        match self {
            Self::TextEmbedding => "embeds texts",
            Self::TextReranking => "reranks documents",
            Self::TextGeneration => "generates text",
            Self::TabularClassification => "classifies tabular rows",
            Self::TextSparseEmbedding => "makes sparse vectors of texts",
            Self::TextClassification => "classifies texts",
            Self::TabularRegression => "predicts numbers from tabular rows",
            Self::Custom => "does what its MLmodel says",
        }
    }
}

impl Release {
    /// Says what is wrong with a release whose files cannot be trusted or stored: a path that leaves its directory, a
    /// digest that is not the one of the listed files.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.artifacts.is_empty() {
            return Err("it has no files".to_owned());
        }
        for artifact in &self.artifacts {
            let parts = artifact.path.split('/');
            if artifact.path.contains('\\') || parts.into_iter().any(|part| matches!(part, "" | "." | "..")) {
                return Err(format!("its file path `{}` is not a plain relative path", artifact.path));
            }
        }
        let expected = digest(&self.artifacts);
        if expected != self.digest {
            return Err(format!("its digest is {}, but its listed files make {expected}", self.digest));
        }
        Ok(())
    }

    /// Names what answers depend on: the files, what is done with them, and how.
    pub(crate) fn identity(&self) -> String {
        let parameters = self.parameters.iter().map(|(name, value)| format!("\n{name}={value:?}"));
        format!("{}\n{:?}{}", self.digest, self.task, parameters.collect::<String>())
    }

    /// Returns the hexadecimal part of the digest.
    pub(crate) fn digest_hex(&self) -> &str {
        self.digest.strip_prefix("sha256:").unwrap_or(&self.digest)
    }
}

/// Computes the content digest of a version: SHA-256 over `path \n size \n sha256 \n` of each file, sorted by path.
pub fn digest(artifacts: &[Artifact]) -> String {
    let mut sorted: Vec<_> = artifacts.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let mut hash = Sha256::new();
    for Artifact { path, size, sha256 } in sorted {
        hash.update(format!("{path}\n{size}\n{sha256}\n"));
    }
    format!("sha256:{}", hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(paths: &[&str]) -> Release {
        let artifacts: Vec<_> =
            paths.iter().map(|path| Artifact { path: (*path).to_owned(), size: 1, sha256: "ab".to_owned() }).collect();
        Release {
            model: "m".to_owned(),
            version: 1,
            task: Task::TextEmbedding,
            digest: digest(&artifacts),
            parameters: BTreeMap::new(),
            inputs: Vec::new(),
            artifacts,
        }
    }

    #[test]
    fn the_digest_does_not_depend_on_the_order_of_the_files() {
        assert_eq!(release(&["a", "b/c"]).digest, release(&["b/c", "a"]).digest);
        assert_ne!(release(&["a", "b/c"]).digest, release(&["a", "b/d"]).digest);
    }

    #[test]
    fn a_path_that_leaves_its_directory_is_refused() {
        for path in ["../x", "/etc/passwd", "a//b", "a/./b", "", "a\\..\\b"] {
            assert!(release(&[path]).check().is_err(), "{path}");
        }
        assert_eq!(release(&["1_Pooling/config.json"]).check(), Ok(()));
    }

    #[test]
    fn a_digest_of_other_files_is_refused() {
        let mut forged = release(&["a"]);
        forged.artifacts[0].size = 2;
        assert!(forged.check().unwrap_err().contains("listed files make"));
    }
}
