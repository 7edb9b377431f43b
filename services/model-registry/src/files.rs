//! Files by path, as MLflow's clients and gRPC's callers name them: below `mlflow-artifacts:`, and as a part of it the files of
//! versions, which never change.

use crate::error::{Entity, Error, Result};
use crate::model::Artifact;
use crate::names::{ArtifactPath, ModelName, Reference, VersionId};
use crate::store::Everything;
use crate::tracking::PROXY;

/// Where a version's own files are read, whatever has become of its source.
pub(crate) const VERSIONS: &str = "versions";

/// The path, relative to all files, of what a URI of this registry's own files and a path below it name.
pub(crate) fn below(uri: &str, relative: &str) -> Result<String> {
    let root = uri.strip_prefix(PROXY).ok_or_else(|| Error::FilesElsewhere(uri.to_owned()))?.trim_matches('/');
    Ok(match (root.is_empty(), relative.is_empty()) {
        (true, _) => relative.to_owned(),
        (false, true) => root.to_owned(),
        (false, false) => format!("{root}/{relative}"),
    })
}

/// Refuses a path whose files no caller puts or deletes.
pub(crate) fn must_be_changeable(path: &ArtifactPath) -> Result<()> {
    if path.as_str() != VERSIONS && !path.as_str().starts_with(&format!("{VERSIONS}/")) {
        return Ok(());
    }
    Err(Error::Rejected(format!("Invalid path: {path}: the files of a version never change")))
}

/// Splits `versions/NAME/NUMBER/REST`.
fn version_in(path: &str) -> Option<(VersionId, String)> {
    let rest = path.strip_prefix(VERSIONS)?.strip_prefix('/')?;
    let (name, rest) = rest.split_once('/')?;
    let (number, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let model = ModelName::parse("path", name).ok()?;
    Some((VersionId { model, number: number.parse().ok()? }, rest.to_owned()))
}

/// Finds a file: one a caller put, or one of a version, under `versions/NAME/NUMBER/`.
pub(crate) async fn find(store: &dyn Everything, path: &ArtifactPath) -> Result<Artifact> {
    if let Some((id, rest)) = version_in(path.as_str()) {
        let rest = ArtifactPath::parse("path", &rest)?;
        return Ok(store.version(&Reference::Number(id)).await?.artifact(&rest)?.clone());
    }
    store.file(path).await?.ok_or_else(|| Error::NotFound(Entity::File(path.clone())))
}

/// Lists the files below a directory, empty for the top, each with its path from there.
pub(crate) async fn list(store: &dyn Everything, directory: &str) -> Result<Vec<(String, Artifact)>> {
    let (files, directory) = match version_in(directory) {
        Some((id, rest)) => (store.version(&Reference::Number(id)).await?.artifacts, rest),
        None => (store.files_below(directory).await?, directory.to_owned()),
    };
    let start = if directory.is_empty() { directory } else { format!("{directory}/") };
    let relative = |file: Artifact| Some((file.path.as_str().strip_prefix(&start)?.to_owned(), file));
    Ok(files.into_iter().filter_map(relative).collect())
}
