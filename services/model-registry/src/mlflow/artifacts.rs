//! Files: the `mlflow-artifacts` proxy, and the paths by which runs and logged models list and read theirs.

use std::collections::BTreeMap;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::refusal::Refusal;
use super::registered::VERSIONS;
use super::request::{Fields, missing};
use super::{Answer, Mlflow, answer};
use crate::artifacts::{Direction, checked};
use crate::error::{Dependency, Entity, Error};
use crate::metrics::ARTIFACT_BYTES;
use crate::model::{Artifact, MAX_ARTIFACT_BYTES};
use crate::names::{ArtifactPath, ModelName, Reference, Sha256Hex, VersionId};
use crate::tracking::PROXY;

/// Bytes read from a spooled file at once.
const READ_BYTES: usize = 256 << 10;

pub(super) fn routes() -> Router<Mlflow> {
    Router::new()
        .route("/mlflow-artifacts/artifacts", get(list))
        .route("/mlflow-artifacts/artifacts/{*path}", get(download).put(upload).delete(delete))
        .layer(DefaultBodyLimit::disable())
        .route("/mlflow/upload-artifact", post(upload_to_run))
        .route("/mlflow/artifacts/list", get(list_of_run))
        .route("/mlflow/logged-models/{model_id}/artifacts/directories", get(list_of_logged_model))
        .route("/mlflow/logged-models/{model_id}/artifacts/files", get(file_of_logged_model))
}

/// What is served outside of `/api`.
pub(super) fn plain_routes() -> Router<Mlflow> {
    Router::new().route("/get-artifact", get(file_of_run)).route("/model-versions/get-artifact", get(file_of_version))
}

/// A path a caller gave, relative to all files: it can't leave them.
fn path(text: &str) -> Result<ArtifactPath, Refusal> {
    ArtifactPath::parse("path", text).map_err(|_| Refusal::invalid("Invalid path"))
}

/// A directory a caller gave; empty for the top.
fn directory(text: &str) -> Result<String, Refusal> {
    match text.trim_end_matches('/') {
        "" | "." => Ok(String::new()),
        text => Ok(path(text)?.to_string()),
    }
}

/// What a URI of this registry's own files names; others are not served from here.
fn below_proxy(uri: &str, relative: &str) -> Result<String, Refusal> {
    let Some(root) = uri.strip_prefix(PROXY) else {
        let message = format!("The files of `{uri}` are not kept by this registry: read them where they are");
        return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "NOT_IMPLEMENTED", message));
    };
    let root = root.trim_matches('/');
    Ok(if relative.is_empty() { root.to_owned() } else { format!("{root}/{relative}") })
}

/// The path of a file below a place of this registry.
pub(super) fn of_this_registry(uri: &str, relative: &str) -> Result<ArtifactPath, Refusal> {
    path(&below_proxy(uri, relative)?)
}

impl Mlflow {
    /// Finds a file: one a client put, or one of a version, under `versions/NAME/NUMBER/`.
    async fn file(&self, path: &ArtifactPath) -> Result<Artifact, Refusal> {
        if let Some((id, rest)) = version_in(path.as_str()) {
            return Ok(self.store.version(&Reference::Number(id)).await?.artifact(&self::path(&rest)?)?.clone());
        }
        let found = self.store.file(path).await?;
        found.ok_or_else(|| {
            let message = format!("No such artifact: '{path}'");
            Refusal::new(StatusCode::NOT_FOUND, "RESOURCE_DOES_NOT_EXIST", message)
        })
    }

    /// Lists the files below a directory by their paths from there.
    async fn files(&self, directory: &str) -> Result<Vec<(String, u64)>, Refusal> {
        let relative = |dir: &str, path: &str| {
            let rest = if dir.is_empty() { Some(path) } else { path.strip_prefix(dir) };
            rest.map(|rest| rest.trim_start_matches('/').to_owned())
        };
        let (files, dir) = match version_in(directory) {
            Some((id, rest)) => (self.store.version(&Reference::Number(id)).await?.artifacts, rest),
            None => (self.store.files_below(directory).await?, directory.to_owned()),
        };
        let below = |file: Artifact| {
            let is_below = dir.is_empty() || file.path.as_str().starts_with(&format!("{dir}/"));
            is_below.then(|| relative(&dir, file.path.as_str()).map(|path| (path, file.size))).flatten()
        };
        Ok(files.into_iter().filter_map(below).collect())
    }

    /// Answers with a file.
    pub(super) async fn send(&self, path: &ArtifactPath) -> Answer {
        let file = self.file(path).await?;
        let body = checked(self.artifacts.open(&file, 0).await?, file.clone(), Direction::Out).map_ok(|bytes| {
            metrics::counter!(ARTIFACT_BYTES, "direction" => "out").increment(bytes.len() as u64);
            bytes
        });
        let name = path.as_str().rsplit('/').next().unwrap_or_default();
        let disposition: String =
            name.chars().map(|c| if c.is_ascii_graphic() && c != '"' { c } else { '_' }).collect();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(name)));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(file.size));
        if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{disposition}\"")) {
            headers.insert(header::CONTENT_DISPOSITION, value);
        }
        Ok((headers, Body::from_stream(body.map_err(std::io::Error::other))).into_response())
    }
}

/// Splits `versions/NAME/NUMBER/REST`.
fn version_in(path: &str) -> Option<(VersionId, String)> {
    let rest = path.strip_prefix(VERSIONS)?.strip_prefix('/')?;
    let (name, rest) = rest.split_once('/')?;
    let (number, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let model = ModelName::parse("path", name).ok()?;
    Some((VersionId { model, number: number.parse().ok()? }, rest.to_owned()))
}

/// What browsers are told; they are also told not to guess.
fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("json") => "application/json",
        Some("txt" | "log" | "py" | "md" | "yaml" | "yml" | "csv" | "toml" | "cfg" | "ini") => "text/plain",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        None if name == "MLmodel" => "text/plain",
        _ => "application/octet-stream",
    }
}

async fn upload(State(mlflow): State<Mlflow>, Path(text): Path<String>, body: Body) -> Answer {
    mlflow.take(path(&text)?, body).await
}

/// A small file of a run, as MLflow's web page sends it.
async fn upload_to_run(State(mlflow): State<Mlflow>, parameters: Parameters, bytes: Bytes) -> Answer {
    let given = |name: &str| {
        let value = parameters.get(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| Refusal::invalid(format!("Request must specify {name}.")))
    };
    let (run, relative) = (given("run_uuid")?, path(given("path")?)?);
    if bytes.is_empty() {
        return Err(Refusal::invalid("Request must specify data."));
    }
    let run = mlflow.store.run(run).await?;
    mlflow.take(path(&below_proxy(&run.artifact_uri, relative.as_str())?)?, Body::from(bytes)).await
}

impl Mlflow {
    /// Takes a file in: spooled and hashed, kept by its hash, then noted under its path.
    async fn take(&self, path: ArtifactPath, body: Body) -> Answer {
        if version_in(path.as_str()).is_some() || path.as_str().starts_with(&format!("{VERSIONS}/")) {
            return Err(Refusal::invalid(format!("Invalid path: {path}: the files of a version never change")));
        }
        let unavailable = |error: std::io::Error| {
            Refusal::from(Error::Unavailable { dependency: Dependency::ArtifactStore, source: error.into() })
        };
        // The store is told size and digest beforehand, so the bytes wait on disk until both are known.
        let spool = tempfile::tempfile_in(&self.spool).map_err(unavailable)?;
        let mut spool = tokio::fs::File::from_std(spool);
        let (mut size, mut hash) = (0_u64, Sha256::new());
        let mut body = body.into_data_stream();
        while let Some(bytes) = body.next().await {
            let bytes =
                bytes.map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", error.to_string()))?;
            size += bytes.len() as u64;
            if size > MAX_ARTIFACT_BYTES {
                return Err(Refusal::invalid(format!("A file may have at most {MAX_ARTIFACT_BYTES} bytes (64 GiB)")));
            }
            hash.update(&bytes);
            metrics::counter!(ARTIFACT_BYTES, "direction" => "in").increment(bytes.len() as u64);
            spool.write_all(&bytes).await.map_err(unavailable)?;
        }
        spool.flush().await.map_err(unavailable)?;
        spool.rewind().await.map_err(unavailable)?;
        let file = Artifact { path, size, sha256: Sha256Hex::of(hash) };
        let spooled = ReaderStream::with_capacity(spool, READ_BYTES)
            .map_err(|error| Error::Unavailable { dependency: Dependency::ArtifactStore, source: error.into() });
        self.artifacts.keep(&file, checked(spooled.boxed(), file.clone(), Direction::In)).await?;
        self.store.put_file(&file).await?;
        Ok(answer::nothing())
    }
}

async fn download(State(mlflow): State<Mlflow>, Path(text): Path<String>) -> Answer {
    mlflow.send(&path(&text)?).await
}

async fn delete(State(mlflow): State<Mlflow>, Path(text): Path<String>) -> Answer {
    let path = path(&text)?;
    if path.as_str().starts_with(&format!("{VERSIONS}/")) {
        return Err(Refusal::invalid(format!("Invalid path: {text}: the files of a version never change")));
    }
    mlflow.store.delete_files(&path).await?;
    Ok(answer::nothing())
}

/// The files and directories right below a directory, each under `prefix`.
fn listed(files: Vec<(String, u64)>, prefix: &str) -> Value {
    let mut entries: BTreeMap<String, Option<u64>> = BTreeMap::new();
    for (path, size) in files {
        match path.split_once('/') {
            Some((dir, _)) => entries.insert(dir.to_owned(), None),
            None => entries.insert(path, Some(size)),
        };
    }
    let entry = |(name, size): (String, Option<u64>)| {
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        match size {
            Some(size) => json!({"path": path, "is_dir": false, "file_size": size}),
            None => json!({"path": path, "is_dir": true}),
        }
    };
    entries.into_iter().map(entry).collect()
}

async fn list(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let directory = directory(&fields.text_or_empty("path")?)?;
    Ok(answer::one("files", listed(mlflow.files(&directory).await?, "")))
}

async fn list_below(mlflow: &Mlflow, uri: &str, relative: &str) -> Answer {
    let relative = directory(relative)?;
    let files = listed(mlflow.files(&below_proxy(uri, &relative)?).await?, &relative);
    Ok(axum::Json(json!({"root_uri": uri, "files": files})).into_response())
}

async fn list_of_run(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let run = mlflow.store.run(&fields.run_id()?).await?;
    list_below(&mlflow, &run.artifact_uri, &fields.text_or_empty("path")?).await
}

async fn list_of_logged_model(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    let model = mlflow.store.logged_model(&id).await?;
    list_below(&mlflow, &model.artifact_location, &fields.text_or_empty("artifact_directory_path")?).await
}

async fn file_of_logged_model(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    let Some(relative) = fields.text("artifact_file_path")?.filter(|path| !path.is_empty()) else {
        let message = "Request must include the \"artifact_file_path\" query parameter.";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", message));
    };
    let relative = path(&relative)?;
    let model = mlflow.store.logged_model(&id).await?;
    mlflow.send(&path(&below_proxy(&model.artifact_location, relative.as_str())?)?).await
}

type Parameters = Query<BTreeMap<String, String>>;

fn given<'a>(parameters: &'a Parameters, name: &str) -> Result<&'a str, Refusal> {
    parameters.get(name).map(String::as_str).filter(|value| !value.is_empty()).ok_or_else(|| missing(name))
}

async fn file_of_run(State(mlflow): State<Mlflow>, parameters: Parameters) -> Answer {
    let run = given(&parameters, "run_id").or_else(|_| given(&parameters, "run_uuid"))?;
    let relative = path(given(&parameters, "path")?)?;
    let run = mlflow.store.run(run).await?;
    mlflow.send(&path(&below_proxy(&run.artifact_uri, relative.as_str())?)?).await
}

async fn file_of_version(State(mlflow): State<Mlflow>, parameters: Parameters) -> Answer {
    let model = ModelName::parse("name", given(&parameters, "name")?)?;
    let number = given(&parameters, "version")?;
    let number: i64 = number.parse().map_err(|_| Refusal::from(Entity::Model(model.clone())))?;
    let relative = path(given(&parameters, "path")?)?;
    mlflow.send(&path(&format!("{VERSIONS}/{model}/{number}/{relative}"))?).await
}
