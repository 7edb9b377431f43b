//! A version as the registry tells it.

use verdict_api::registry as api;

use crate::release::{Artifact, Feature, FeatureKind, Release, Task};

/// Takes a READY version; the error says why it cannot be served.
pub fn release(version: api::Version) -> Result<Release, String> {
    let api::Version {
        model,
        version,
        status,
        description: _,
        task,
        signature,
        parameters,
        tags: _,
        artifacts,
        digest,
        aliases: _,
        create_time: _,
        update_time: _,
        etag: _,
        source: _,
        run_id: _,
        author: _,
    } = version;
    if status != i32::from(api::VersionStatus::Ready) {
        return Err(format!("version {version} of `{model}` is not READY: finalize it first"));
    }
    let task = match api::Task::try_from(task) {
        Ok(api::Task::TextEmbedding) => Task::TextEmbedding,
        Ok(api::Task::TextReranking) => Task::TextReranking,
        Ok(api::Task::TextGeneration) => Task::TextGeneration,
        Ok(api::Task::TabularClassification) => Task::TabularClassification,
        Ok(api::Task::TextSparseEmbedding) => Task::TextSparseEmbedding,
        Ok(api::Task::TextClassification) => Task::TextClassification,
        Ok(api::Task::TabularRegression) => Task::TabularRegression,
        Ok(api::Task::Custom) => Task::Custom,
        Ok(api::Task::Unspecified) | Err(_) => {
            return Err(format!("version {version} of `{model}` has task {task}, which is not known here"));
        }
    };
    let api::Signature { inputs } = signature.unwrap_or_default();
    Ok(Release {
        model,
        version,
        task,
        digest,
        parameters: parameters.into_iter().collect(),
        inputs: inputs.into_iter().map(feature).collect::<Result<_, _>>()?,
        artifacts: artifacts.into_iter().map(artifact).collect::<Result<_, _>>()?,
    })
}

fn feature(feature: api::Feature) -> Result<Feature, String> {
    let api::Feature { name, r#type, optional, categories, description } = feature;
    let kind = match api::FeatureType::try_from(r#type) {
        Ok(api::FeatureType::Double) => FeatureKind::Double,
        Ok(api::FeatureType::Long) => FeatureKind::Long,
        Ok(api::FeatureType::Boolean) => FeatureKind::Boolean,
        Ok(api::FeatureType::String) => FeatureKind::Text,
        Ok(api::FeatureType::Unspecified) | Err(_) => {
            return Err(format!("input `{name}` has type {type}, which is not known here", type = r#type));
        }
    };
    Ok(Feature { name, kind, optional, categories, description })
}

fn artifact(artifact: api::Artifact) -> Result<Artifact, String> {
    let api::Artifact { path, size, sha256 } = artifact;
    let size = u64::try_from(size).map_err(|_| format!("file `{path}` has size {size}"))?;
    Ok(Artifact { path, size, sha256 })
}
