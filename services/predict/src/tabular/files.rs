//! Where a version keeps its tabular model: in a file known by its name, or where MLflow's `MLmodel` says.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use crate::release::Artifact;

/// Names a model may have. What is inside is found by content.
const NAMES: [&str; 7] = ["model.json", "model.ubj", "model.txt", "model.onnx", "model.xgb", "model.lgb", "model.bst"];
/// Flavors of MLflow whose files can be read.
const FLAVORS: [&str; 3] = ["xgboost", "lightgbm", "onnx"];
/// Longest `MLmodel`: it is some lines, and a signature.
const MOST_BYTES: u64 = 4 << 20;

/// Returns the file of the model, relative to the version's folder.
pub(super) fn find(dir: &Path, artifacts: &[Artifact]) -> anyhow::Result<PathBuf> {
    let mut logged = artifacts.iter().filter(|artifact| artifact.path.rsplit('/').next() == Some("MLmodel"));
    if let Some(mlmodel) = logged.next() {
        ensure!(logged.next().is_none(), "the version has several MLmodel files; one model is expected");
        return logged_model(dir, mlmodel, artifacts).with_context(|| mlmodel.path.clone());
    }
    let found: Vec<&str> =
        artifacts.iter().map(|artifact| artifact.path.as_str()).filter(|path| NAMES.contains(path)).collect();
    match found.as_slice() {
        [one] => Ok(PathBuf::from(one)),
        [] => bail!("a tabular version needs one of {}, or MLflow's MLmodel", NAMES.join(", ")),
        several => bail!("the version has {}; one model is expected", several.join(" and ")),
    }
}

fn logged_model(dir: &Path, mlmodel: &Artifact, artifacts: &[Artifact]) -> anyhow::Result<PathBuf> {
    ensure!(mlmodel.size <= MOST_BYTES, "is {} bytes, expected at most {MOST_BYTES}", mlmodel.size);
    let yaml = std::fs::read_to_string(dir.join(&mlmodel.path))?;
    let flavors = flavors(&yaml);
    let Some((flavor, data)) = flavors.iter().find(|(flavor, _)| FLAVORS.contains(flavor)) else {
        let names: Vec<_> = flavors.iter().map(|(flavor, _)| *flavor).collect();
        bail!("flavors {}; supported: {} (log other models as ONNX)", names.join(", "), FLAVORS.join(", "));
    };
    let Some(data) = data else { bail!("flavor {flavor} has no `data`") };
    let path = Path::new(&mlmodel.path).parent().unwrap_or(Path::new("")).join(data);
    // Only what was listed and verified is read; that also keeps paths within the folder.
    let listed = artifacts.iter().any(|artifact| Path::new(&artifact.path) == path);
    ensure!(listed, "flavor {flavor} has its model in `{data}`, which is no file of the version");
    Ok(path)
}

/// The flavors of an `MLmodel`, each with its `data`. MLflow writes block YAML, two spaces a level, keys in order.
fn flavors(yaml: &str) -> Vec<(&str, Option<&str>)> {
    let mut flavors: Vec<(&str, Option<&str>)> = Vec::new();
    let lines = yaml.lines().skip_while(|line| line.trim_end() != "flavors:").skip(1);
    for line in lines.take_while(|line| line.starts_with(' ') || line.is_empty()) {
        let (indent, text) = (line.len() - line.trim_start().len(), line.trim());
        match (indent, text.split_once(':')) {
            (2, Some((flavor, ""))) => flavors.push((flavor, None)),
            (4, Some(("data", value))) => {
                if let Some((_, data)) = flavors.last_mut() {
                    *data = Some(value.trim().trim_matches(['\'', '"'])).filter(|value| !value.is_empty());
                }
            }
            _ => {}
        }
    }
    flavors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifacts(paths: &[&str]) -> Vec<Artifact> {
        let artifact = |path: &&str| Artifact { path: (*path).to_owned(), size: 1, sha256: String::new() };
        paths.iter().map(artifact).collect()
    }

    fn find_in(mlmodel: &str, paths: &[&str]) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        if let Some(path) = paths.iter().find(|path| path.ends_with("MLmodel")) {
            std::fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
            std::fs::write(dir.path().join(path), mlmodel).unwrap();
        }
        let found = find(dir.path(), &artifacts(paths));
        found.map(|path| path.display().to_string()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_model_is_found_by_name_or_through_mlmodel() {
        assert_eq!(find_in("", &["policy.json", "model.txt"]).unwrap(), "model.txt");
        let mlmodel = "artifact_path: model\nflavors:\n  python_function:\n    data: model.xgb\n    env:\n      conda: conda.yaml\n  xgboost:\n    code: null\n    data: model.ubj\n    model_class: xgboost.core.Booster\nmlflow_version: 3.18.0\n";
        assert_eq!(find_in(mlmodel, &["MLmodel", "model.ubj", "conda.yaml"]).unwrap(), "model.ubj");
        assert_eq!(find_in(mlmodel, &["a/MLmodel", "a/model.ubj"]).unwrap(), "a/model.ubj");
    }

    #[test]
    fn what_is_missing_or_ambiguous_is_said() {
        let refused = |mlmodel: &str, paths: &[&str]| find_in(mlmodel, paths).unwrap_err();
        assert!(refused("", &["policy.json"]).contains("needs one of model.json, "));
        assert!(refused("", &["model.json", "model.onnx"]).contains("model.json and model.onnx"));
        let pickle =
            "flavors:\n  python_function:\n    model_path: model.pkl\n  sklearn:\n    pickled_model: model.pkl\n";
        let problem = refused(pickle, &["MLmodel", "model.pkl"]);
        assert!(problem.contains("MLmodel: flavors python_function, sklearn; supported: xgboost"), "{problem}");
        let outside = "flavors:\n  onnx:\n    data: ../../secret\n";
        assert!(refused(outside, &["m/MLmodel"]).contains("`../../secret`, which is no file of the version"));
        assert!(refused("flavors:\n  onnx:\n    data: ''\n", &["MLmodel"]).contains("flavor onnx has no `data`"));
    }
}
