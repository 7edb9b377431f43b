//! Files: the `mlflow-artifacts` proxy, and the paths by which runs and logged models list and read theirs.

use std::collections::BTreeMap;
use std::ops::Range;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::refusal::Refusal;
use super::request::{Fields, Path, missing};
use super::{Answer, Mlflow, answer};
use crate::artifacts::incoming::{self, Announced};
use crate::artifacts::{Direction, checked, limited};
use crate::error::{Entity, Error};
use crate::files::{self, VERSIONS};
use crate::metrics::ARTIFACT_BYTES;
use crate::model::Artifact;
use crate::names::{ArtifactPath, ModelName};

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
pub(super) fn path(text: &str) -> Result<ArtifactPath, Refusal> {
    ArtifactPath::parse("path", text).map_err(|_| Refusal::invalid("Invalid path"))
}

/// A directory a caller gave; empty for the top.
fn directory(text: &str) -> Result<String, Refusal> {
    match text.trim_end_matches('/') {
        "" | "." => Ok(String::new()),
        text => Ok(path(text)?.to_string()),
    }
}

/// Refuses what keeps its files elsewhere.
pub(super) fn must_be_kept_here(uri: &str) -> Result<(), Refusal> {
    Ok(files::below(uri, "").map(drop)?)
}

/// The path of a file below a place of this registry.
pub(super) fn of_this_registry(uri: &str, relative: &str) -> Result<ArtifactPath, Refusal> {
    path(&files::below(uri, relative)?)
}

impl Mlflow {
    /// Finds a file.
    pub(super) async fn file(&self, path: &ArtifactPath) -> Result<Artifact, Refusal> {
        Ok(files::find(&*self.store, path).await?)
    }

    /// Lists the files below a directory by their paths from there.
    async fn files(&self, directory: &str) -> Result<Vec<(String, u64)>, Refusal> {
        let files = files::list(&*self.store, directory).await?;
        Ok(files.into_iter().map(|(path, file)| (path, file.size)).collect())
    }

    /// Answers with a file, or the part of it that `asked` wants.
    pub(super) async fn send(&self, path: &ArtifactPath, asked: &HeaderMap) -> Answer {
        let file = self.file(path).await?;
        let range =
            asked.get(header::RANGE).and_then(|range| range.to_str().ok()).map(|range| within(range, file.size));
        let (status, range) = match range {
            None | Some(Wanted::Whole) => (StatusCode::OK, 0..file.size),
            Some(Wanted::Part(range)) => (StatusCode::PARTIAL_CONTENT, range),
            Some(Wanted::Nothing) => {
                let size = HeaderValue::try_from(format!("bytes */{}", file.size)).map_err(anyhow::Error::from);
                let refusal = Refusal::invalid(format!("The range reaches beyond the file's {} bytes", file.size));
                let headers = [(header::CONTENT_RANGE, size.map_err(Error::from)?)];
                return Ok((StatusCode::RANGE_NOT_SATISFIABLE, headers, refusal).into_response());
            }
        };
        let body = self.artifacts.open(&file, range.start).await?;
        let length = range.end - range.start;
        let body = match length == file.size {
            true => checked(body, file.clone(), Direction::Out),
            false => limited(body, length),
        };
        let body = body.map_ok(|bytes| {
            metrics::counter!(ARTIFACT_BYTES, "direction" => "out").increment(bytes.len() as u64);
            bytes
        });
        let name = path.as_str().rsplit('/').next().unwrap_or_default();
        let disposition: String =
            name.chars().map(|c| if c.is_ascii_graphic() && c != '"' { c } else { '_' }).collect();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(name)));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        if status == StatusCode::PARTIAL_CONTENT
            && let Ok(part) = HeaderValue::try_from(format!("bytes {}-{}/{}", range.start, range.end - 1, file.size))
        {
            headers.insert(header::CONTENT_RANGE, part);
        }
        if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{disposition}\"")) {
            headers.insert(header::CONTENT_DISPOSITION, value);
        }
        Ok((status, headers, Body::from_stream(body.map_err(std::io::Error::other))).into_response())
    }
}

/// The bytes a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// It is not understood, or asks for several parts: it is as if it were not there.
    Whole,
    Part(Range<u64>),
    /// There are none of them.
    Nothing,
}

/// Reads `bytes=FIRST-LAST`, `bytes=FIRST-` and `bytes=-LAST_SO_MANY`, for a file of `size` bytes.
fn within(header: &str, size: u64) -> Wanted {
    let Some((first, last)) = header.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Wanted::Whole;
    };
    let number = |text: &str| text.trim().parse::<u64>();
    let range = match (number(first), number(last)) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.trim().is_empty() => first..size,
        (Err(_), Ok(many)) if first.trim().is_empty() => size.saturating_sub(many)..size,
        _ => return Wanted::Whole,
    };
    if range.start < range.end { Wanted::Part(range) } else { Wanted::Nothing }
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
    mlflow.put_below(&run.artifact_uri, relative.as_str(), bytes).await
}

impl Mlflow {
    /// Keeps a small file below a URI of this registry's own files.
    pub(super) async fn put_below(&self, uri: &str, relative: &str, bytes: Bytes) -> Answer {
        self.take(path(&files::below(uri, relative)?)?, Body::from(bytes)).await
    }

    /// Takes a file in: spooled and hashed, kept by its hash, then noted under its path.
    async fn take(&self, path: ArtifactPath, body: Body) -> Answer {
        files::must_be_changeable(&path)?;
        // A caller that breaks off says so itself: it is not this registry's fault.
        let broken = |error: axum::Error| Error::BrokenOff(Box::new(tonic::Status::cancelled(error.to_string())));
        let body = body.into_data_stream().map_err(broken).boxed();
        let file = incoming::take(self.artifacts.as_ref(), &self.spool, path, &Announced::default(), body).await?;
        self.store.put_file(&file).await?;
        Ok(answer::nothing())
    }
}

async fn download(State(mlflow): State<Mlflow>, Path(text): Path<String>, headers: HeaderMap) -> Answer {
    mlflow.send(&path(&text)?, &headers).await
}

async fn delete(State(mlflow): State<Mlflow>, Path(text): Path<String>) -> Answer {
    let path = path(&text)?;
    files::must_be_changeable(&path)?;
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

async fn list_below(mlflow: &Mlflow, uri: &str, relative: &str) -> Result<Value, Refusal> {
    let relative = directory(relative)?;
    let files = listed(mlflow.files(&files::below(uri, &relative)?).await?, &relative);
    Ok(json!({"root_uri": uri, "files": files}))
}

async fn list_of_run(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    Ok(answer::whole(files_of_run(&mlflow, &fields).await?))
}

/// What [`list_of_run`] answers.
pub(super) async fn files_of_run(mlflow: &Mlflow, fields: &Fields) -> Result<Value, Refusal> {
    let run = mlflow.store.run(&fields.run_id()?).await?;
    list_below(mlflow, &run.artifact_uri, &fields.text_or_empty("path")?).await
}

async fn list_of_logged_model(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    let model = mlflow.store.logged_model(&id).await?;
    let directory = fields.text_or_empty("artifact_directory_path")?;
    Ok(answer::whole(list_below(&mlflow, &model.artifact_location, &directory).await?))
}

async fn file_of_logged_model(
    State(mlflow): State<Mlflow>,
    Path(id): Path<String>,
    headers: HeaderMap,
    fields: Fields,
) -> Answer {
    let Some(relative) = fields.text("artifact_file_path")?.filter(|path| !path.is_empty()) else {
        let message = "Request must include the \"artifact_file_path\" query parameter.";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", message));
    };
    let relative = path(&relative)?;
    let model = mlflow.store.logged_model(&id).await?;
    mlflow.send(&path(&files::below(&model.artifact_location, relative.as_str())?)?, &headers).await
}

type Parameters = Query<BTreeMap<String, String>>;

fn given<'a>(parameters: &'a Parameters, name: &str) -> Result<&'a str, Refusal> {
    parameters.get(name).map(String::as_str).filter(|value| !value.is_empty()).ok_or_else(|| missing(name))
}

async fn file_of_run(State(mlflow): State<Mlflow>, headers: HeaderMap, parameters: Parameters) -> Answer {
    let run = given(&parameters, "run_id").or_else(|_| given(&parameters, "run_uuid"))?;
    let relative = path(given(&parameters, "path")?)?;
    let run = mlflow.store.run(run).await?;
    mlflow.send(&path(&files::below(&run.artifact_uri, relative.as_str())?)?, &headers).await
}

async fn file_of_version(State(mlflow): State<Mlflow>, headers: HeaderMap, parameters: Parameters) -> Answer {
    let model = ModelName::parse("name", given(&parameters, "name")?)?;
    let number = given(&parameters, "version")?;
    let number: i64 = number.parse().map_err(|_| Refusal::from(Entity::Model(model.clone())))?;
    let relative = path(given(&parameters, "path")?)?;
    mlflow.send(&path(&format!("{VERSIONS}/{model}/{number}/{relative}"))?, &headers).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_rfc_9110_has_it() {
        for (header, size, wanted) in [
            ("bytes=0-0", 10, Wanted::Part(0..1)),
            ("bytes=2-", 10, Wanted::Part(2..10)),
            ("bytes=-3", 10, Wanted::Part(7..10)),
            ("bytes=-30", 10, Wanted::Part(0..10)),
            ("bytes=5-99", 10, Wanted::Part(5..10)),
            ("bytes=10-", 10, Wanted::Nothing),
            ("bytes=-0", 10, Wanted::Nothing),
            ("bytes=0-", 0, Wanted::Nothing),
            ("bytes=3-2", 10, Wanted::Whole),
            ("bytes=0-1,3-4", 10, Wanted::Whole),
            ("items=0-1", 10, Wanted::Whole),
            ("bytes=-", 10, Wanted::Whole),
            ("bytes=0-18446744073709551615", 10, Wanted::Part(0..10)),
        ] {
            assert_eq!(within(header, size), wanted, "{header} of {size}");
        }
    }
}
