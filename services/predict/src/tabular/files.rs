//! Where a version keeps its tabular model: in a file known by its name, or where MLflow's `MLmodel` says.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};

use super::mlmodel;
use crate::release::{Artifact, Feature};

/// Names a model may have. What is inside is found by content.
const NAMES: [&str; 7] = ["model.json", "model.ubj", "model.txt", "model.onnx", "model.xgb", "model.lgb", "model.bst"];

/// The model of a version.
#[derive(Debug)]
pub(super) struct Found {
    /// Relative to the version's folder.
    pub(super) file: PathBuf,
    /// The columns that MLflow noted; empty where it noted none, or was not there.
    pub(super) inputs: Vec<Feature>,
}

/// Finds the model among the files of a version, which are in `dir`.
pub(super) fn find(dir: &Path, artifacts: &[Artifact]) -> anyhow::Result<Found> {
    let mut logged = artifacts.iter().filter(|artifact| artifact.path.rsplit('/').next() == Some("MLmodel"));
    if let Some(mlmodel) = logged.next() {
        ensure!(logged.next().is_none(), "the version has several MLmodel files; one model is expected");
        return mlmodel::read(dir, mlmodel, artifacts);
    }
    let found: Vec<&str> =
        artifacts.iter().map(|artifact| artifact.path.as_str()).filter(|path| NAMES.contains(path)).collect();
    match found.as_slice() {
        [one] => Ok(Found { file: PathBuf::from(one), inputs: Vec::new() }),
        [] => bail!("a tabular version needs one of {}, or MLflow's MLmodel", NAMES.join(", ")),
        several => bail!("the version has {}; one model is expected", several.join(" and ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_in(paths: &[&str]) -> Result<PathBuf, String> {
        let artifact = |path: &&str| Artifact { path: (*path).to_owned(), size: 1, sha256: String::new() };
        let artifacts: Vec<_> = paths.iter().map(artifact).collect();
        find(Path::new("nowhere"), &artifacts).map(|found| found.file).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_model_is_found_by_its_name() {
        assert_eq!(find_in(&["policy.json", "model.txt"]), Ok(PathBuf::from("model.txt")));
    }

    #[test]
    fn what_is_missing_or_ambiguous_is_said() {
        assert!(find_in(&["policy.json"]).unwrap_err().contains("needs one of model.json, "));
        assert!(find_in(&["model.json", "model.onnx"]).unwrap_err().contains("model.json and model.onnx"));
        assert!(find_in(&["a/MLmodel", "b/MLmodel"]).unwrap_err().contains("several MLmodel files"));
    }
}
