//! `MLmodel`: where MLflow notes the files of a model it logged, by flavor, and the columns it takes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use super::files::Found;
use crate::release::{Artifact, Feature, FeatureKind};

/// Flavors whose files can be read.
const FLAVORS: [&str; 3] = ["xgboost", "lightgbm", "onnx"];
/// Longest `MLmodel`: it is some lines, and a signature.
const MOST_BYTES: u64 = 4 << 20;

/// What matters here of the YAML that MLflow writes.
#[derive(Deserialize)]
struct MlModel {
    #[serde(default)]
    flavors: BTreeMap<String, Flavor>,
    signature: Option<Signature>,
}

#[derive(Deserialize)]
struct Flavor {
    data: Option<String>,
}

#[derive(Deserialize)]
struct Signature {
    /// JSON: a list of [`Column`].
    inputs: Option<String>,
}

/// A column of a signature, or a whole tensor; a tensor has no column names.
#[derive(Deserialize)]
struct Column {
    r#type: String,
    name: Option<String>,
    required: Option<bool>,
}

/// Reads `mlmodel`, a file of a version in `dir`.
pub(super) fn read(dir: &Path, mlmodel: &Artifact, artifacts: &[Artifact]) -> anyhow::Result<Found> {
    let found = || {
        ensure!(mlmodel.size <= MOST_BYTES, "is {} bytes, expected at most {MOST_BYTES}", mlmodel.size);
        parse(&std::fs::read_to_string(dir.join(&mlmodel.path))?, &mlmodel.path, artifacts)
    };
    found().with_context(|| mlmodel.path.clone())
}

fn parse(yaml: &str, path: &str, artifacts: &[Artifact]) -> anyhow::Result<Found> {
    let MlModel { flavors, signature } = serde_saphyr::from_str(yaml).map_err(|error| anyhow::anyhow!("{error}"))?;
    let Some((flavor, Flavor { data })) = FLAVORS.iter().find_map(|flavor| flavors.get_key_value(*flavor)) else {
        let names: Vec<_> = flavors.keys().map(String::as_str).collect();
        bail!("flavors {}; supported: {} (log other models as ONNX)", names.join(", "), FLAVORS.join(", "));
    };
    let data = data.as_deref().filter(|data| !data.is_empty());
    let Some(data) = data else { bail!("flavor {flavor} has no `data`") };
    let file = Path::new(path).parent().unwrap_or(Path::new("")).join(data);
    // Only what was listed and verified is read; that also keeps paths within the folder.
    let listed = artifacts.iter().any(|artifact| Path::new(&artifact.path) == file);
    ensure!(listed, "flavor {flavor} has its model in `{data}`, which is no file of the version");
    let inputs = signature.and_then(|signature| signature.inputs);
    let inputs = inputs.map(|json| columns(&json)).transpose().context("signature.inputs")?;
    Ok(Found { file: PathBuf::from(&file), inputs: inputs.unwrap_or_default() })
}

/// Returns the named columns of a signature; none where it is of tensors or has no names.
fn columns(json: &str) -> anyhow::Result<Vec<Feature>> {
    let columns: Vec<Column> = serde_json::from_str(json)?;
    if columns.iter().any(|column| column.r#type == "tensor" || column.name.is_none()) {
        return Ok(Vec::new());
    }
    let column = |Column { r#type, name, required }| {
        let name = name.unwrap_or_default();
        let kind = match r#type.as_str() {
            "double" | "float" => FeatureKind::Double,
            "long" | "integer" => FeatureKind::Long,
            "boolean" => FeatureKind::Boolean,
            "string" => FeatureKind::Text,
            other => bail!("column `{name}` has type {other}: double, float, long, integer or boolean is expected"),
        };
        // What MLflow calls required may still be NaN, which is how a double misses.
        let optional = !required.unwrap_or(true) || kind == FeatureKind::Double;
        Ok(Feature { name, kind, optional, categories: Vec::new(), description: String::new() })
    };
    columns.into_iter().map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const XGBOOST: &str = r#"artifact_path: model
flavors:
  python_function:
    data: model.xgb
    env:
      conda: conda.yaml
    loader_module: mlflow.xgboost
  xgboost:
    code: null
    data: model.ubj
    model_class: xgboost.core.Booster
mlflow_version: 3.18.0
signature:
  inputs: '[{"type": "double", "name": "it''s", "required": true}, {"type": "long",
    "name": "b", "required": true}, {"type": "boolean", "name": "c", "required": false}]'
  outputs: '[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1]}}]'
  params: null
"#;

    fn parsed(yaml: &str, paths: &[&str]) -> Result<Found, String> {
        let artifact = |path: &&str| Artifact { path: (*path).to_owned(), size: 1, sha256: String::new() };
        let artifacts: Vec<_> = paths.iter().map(artifact).collect();
        parse(yaml, paths[0], &artifacts).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn file_and_columns_are_those_mlflow_noted() {
        let found = parsed(XGBOOST, &["a/MLmodel", "a/model.ubj", "a/conda.yaml"]).unwrap();
        assert_eq!(found.file, PathBuf::from("a/model.ubj"));
        let columns: Vec<_> = found.inputs.iter().map(|f| (f.name.as_str(), f.kind, f.optional)).collect();
        let (double, long, boolean) = (FeatureKind::Double, FeatureKind::Long, FeatureKind::Boolean);
        assert_eq!(columns, [("it's", double, true), ("b", long, false), ("c", boolean, true)]);
    }

    #[test]
    fn tensors_and_nameless_columns_have_no_names() {
        assert_eq!(
            columns(r#"[{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 3]}}]"#).unwrap(),
            []
        );
        assert_eq!(columns(r#"[{"type": "double", "required": true}]"#).unwrap(), []);
    }

    #[test]
    fn what_cannot_be_served_is_said() {
        let refused = |yaml: &str, paths: &[&str]| parsed(yaml, paths).unwrap_err();
        let pickle =
            "flavors:\n  python_function:\n    model_path: model.pkl\n  sklearn:\n    pickled_model: model.pkl\n";
        let problem = refused(pickle, &["MLmodel", "model.pkl"]);
        assert!(problem.contains("flavors python_function, sklearn; supported: xgboost"), "{problem}");
        let outside = "flavors:\n  onnx:\n    data: ../../secret\n";
        assert!(refused(outside, &["m/MLmodel"]).contains("`../../secret`, which is no file of the version"));
        assert!(refused("flavors:\n  onnx:\n    data: ''\n", &["MLmodel"]).contains("flavor onnx has no `data`"));
        let dated = XGBOOST.replace("\"long\"", "\"datetime\"");
        let problem = refused(&dated, &["MLmodel", "model.ubj"]);
        assert!(problem.contains("signature.inputs: column `b` has type datetime"), "{problem}");
        refused("flavors: [", &["MLmodel"]);
        let bomb = format!("flavors: {}{}", "[".repeat(100_000), "]".repeat(100_000));
        refused(&bomb, &["MLmodel"]);
    }
}
