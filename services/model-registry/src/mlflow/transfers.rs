//! Files that go straight between MLflow's clients and the bucket: uploads in parts, and URLs to download from.
//!
//! Only where files are in a bucket and the operator lets clients reach it; else 501, and clients go through the proxy.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

use super::artifacts::path;
use super::refusal::Refusal;
use super::request::{Fields, Path, missing};
use super::{Answer, Mlflow, answer};
use crate::artifacts::direct::{Direct, MAX_PARTS, VALID};
use crate::files;
use crate::model::Artifact;
use crate::names::ArtifactPath;

/// Longest time a caller may ask for, in seconds: a day.
const MAX_EXPIRATION: i64 = 24 * 3600;

pub(super) fn routes() -> Router<Mlflow> {
    Router::new()
        .route("/mlflow-artifacts/mpu/create", post(begin_at_top))
        .route("/mlflow-artifacts/mpu/create/{*path}", post(begin))
        .route("/mlflow-artifacts/mpu/complete", post(complete_at_top))
        .route("/mlflow-artifacts/mpu/complete/{*path}", post(complete))
        .route("/mlflow-artifacts/mpu/abort", post(abort))
        .route("/mlflow-artifacts/mpu/abort/{*path}", post(abort))
        .route("/mlflow-artifacts/presigned/{*path}", get(presigned))
        .route("/mlflow/artifacts/presigned-download-url", post(presigned_of_run))
}

fn unsupported(what: &str) -> Refusal {
    let message = format!("{what} is not supported for the current artifact repository");
    Refusal::new(axum::http::StatusCode::NOT_IMPLEMENTED, "NOT_IMPLEMENTED", message)
}

impl Mlflow {
    fn direct(&self, what: &str) -> Result<&dyn Direct, Refusal> {
        self.artifacts.direct().filter(|_| self.direct_transfers).ok_or_else(|| unsupported(what))
    }

    async fn url_of(&self, path: &ArtifactPath, valid: Duration) -> Result<(String, u64), Refusal> {
        let direct = self.direct("Presigned download")?;
        let file = self.file(path).await?;
        Ok((direct.url(&file, valid).await?, file.size))
    }
}

/// The file that `fields` speak of: in `directory`, under the last part of the path it has on the client's disk.
fn file(directory: &str, fields: &Fields) -> Result<ArtifactPath, Refusal> {
    let local = fields.required("path")?;
    let name = local.rsplit('/').next().unwrap_or_default();
    let whole = if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") };
    files::must_be_changeable(&path(&whole)?)?;
    path(&whole)
}

async fn begin_at_top(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    begin_in(&mlflow, "", &fields).await
}

async fn begin(State(mlflow): State<Mlflow>, Path(directory): Path<String>, fields: Fields) -> Answer {
    begin_in(&mlflow, &directory, &fields).await
}

async fn begin_in(mlflow: &Mlflow, directory: &str, fields: &Fields) -> Answer {
    let direct = mlflow.direct("Multipart upload")?;
    file(directory, fields)?;
    let parts = fields.integer("num_parts")?.unwrap_or(1);
    let parts = i32::try_from(parts).ok().filter(|parts| (1..=MAX_PARTS).contains(parts));
    let parts = parts.ok_or_else(|| Refusal::invalid(format!("Parameter 'num_parts' must be 1 to {MAX_PARTS}.")))?;
    let begun = direct.begin(parts).await?;
    let credentials: Vec<_> = begun
        .urls
        .into_iter()
        .enumerate()
        .map(|(index, url)| json!({"url": url, "part_number": index + 1, "headers": {}}))
        .collect();
    Ok(Json(json!({"upload_id": begun.id, "credentials": credentials})).into_response())
}

async fn complete_at_top(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    complete_in(&mlflow, "", &fields).await
}

async fn complete(State(mlflow): State<Mlflow>, Path(directory): Path<String>, fields: Fields) -> Answer {
    complete_in(&mlflow, &directory, &fields).await
}

async fn complete_in(mlflow: &Mlflow, directory: &str, fields: &Fields) -> Answer {
    let direct = mlflow.direct("Multipart upload")?;
    let path = file(directory, fields)?;
    let part = |part: &Fields| {
        let number = part.integer("part_number")?.and_then(|number| i32::try_from(number).ok());
        let number = number.ok_or_else(|| missing("part_number"))?;
        Ok::<_, Refusal>((number, part.required("etag")?))
    };
    let parts = fields.objects("parts")?.iter().map(part).collect::<Result<Vec<_>, _>>()?;
    if parts.is_empty() || parts.len() > MAX_PARTS.unsigned_abs() as usize {
        return Err(Refusal::invalid(format!("Parameter 'parts' must hold 1 to {MAX_PARTS} parts.")));
    }
    let staged = direct.complete(&fields.required("upload_id")?, parts).await?;
    direct.adopt(&staged).await?;
    let file = Artifact { path, size: staged.size, sha256: staged.sha256 };
    mlflow.store.put_file(&file).await?;
    Ok(answer::nothing())
}

async fn abort(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    mlflow.direct("Multipart upload")?.abort(&fields.required("upload_id")?).await?;
    Ok(answer::nothing())
}

async fn presigned(State(mlflow): State<Mlflow>, Path(text): Path<String>) -> Answer {
    let (url, size) = mlflow.url_of(&path(&text)?, VALID).await?;
    Ok(signed(json!({"url": url, "headers": {}, "file_size": size})))
}

async fn presigned_of_run(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let run = mlflow.store.run(&fields.run_id()?).await?;
    let relative = path(&fields.required("path")?)?;
    let seconds = fields.integer("expiration")?.filter(|seconds| *seconds != 0);
    let seconds = seconds.unwrap_or(VALID.as_secs().cast_signed());
    let valid = u64::try_from(seconds).ok().filter(|_| (1..=MAX_EXPIRATION).contains(&seconds));
    let valid = valid.ok_or_else(|| {
        Refusal::invalid(format!("Parameter 'expiration' must be 1 to {MAX_EXPIRATION} seconds, or 0."))
    })?;
    let file = path(&files::below(&run.artifact_uri, relative.as_str())?)?;
    let (url, size) = mlflow.url_of(&file, Duration::from_secs(valid)).await?;
    Ok(signed(json!({"presigned_url": url, "headers": {}, "file_size": size})))
}

/// A URL that opens a file is nothing for a cache.
fn signed(answer: serde_json::Value) -> Response {
    ([(axum::http::header::CACHE_CONTROL, "no-store")], Json(answer)).into_response()
}
