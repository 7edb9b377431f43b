//! The files that clients have put, by path, compiled once for each database.

use async_trait::async_trait;
use sqlx::{query, query_as, query_scalar};

use super::{Connection, Tables};
use crate::error::Result;
use crate::model::Artifact;
use crate::names::{ArtifactPath, Sha256Hex, VersionId};
use crate::tracking::{Files, PROXY};

#[derive(sqlx::FromRow)]
struct Row {
    path: String,
    size: i64,
    sha256: String,
}

impl Row {
    fn into_artifact(self) -> Artifact {
        let Self { path, size, sha256 } = self;
        Artifact { path: ArtifactPath::stored(path), size: size.unsigned_abs(), sha256: Sha256Hex::stored(sha256) }
    }
}

#[async_trait]
impl Files for Tables {
    async fn put_file(&self, file: &Artifact) -> Result<()> {
        let mut tx = self.begin_write().await?;
        query(
            "INSERT INTO files (path, size, sha256) VALUES ($1, $2, $3)
             ON CONFLICT (path) DO UPDATE SET size = excluded.size, sha256 = excluded.sha256",
        )
        .bind(file.path.as_str())
        .bind(i64::try_from(file.size).map_err(anyhow::Error::from)?)
        .bind(file.sha256.as_str())
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn file(&self, path: &ArtifactPath) -> Result<Option<Artifact>> {
        let row: Option<Row> = query_as("SELECT path, size, sha256 FROM files WHERE path = $1")
            .bind(path.as_str())
            .fetch_optional(self.reader())
            .await?;
        Ok(row.map(Row::into_artifact))
    }

    async fn files_below(&self, dir: &str) -> Result<Vec<Artifact>> {
        let (first, end) = below(dir);
        let rows: Vec<Row> =
            query_as("SELECT path, size, sha256 FROM files WHERE path >= $1 AND path < $2 ORDER BY path")
                .bind(first)
                .bind(end)
                .fetch_all(self.reader())
                .await?;
        Ok(rows.into_iter().map(Row::into_artifact).collect())
    }

    async fn delete_files(&self, path: &ArtifactPath) -> Result<u64> {
        let (first, end) = below(path.as_str());
        let mut tx = self.begin_write().await?;
        let gone = query("DELETE FROM files WHERE path = $1 OR (path >= $2 AND path < $3)")
            .bind(path.as_str())
            .bind(first)
            .bind(end)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(gone.rows_affected())
    }
}

/// The first path below a directory, and the first after all of them: '0' is the character after '/'.
fn below(dir: &str) -> (String, String) {
    match dir.trim_end_matches('/') {
        "" => (String::new(), "\u{10ffff}".to_owned()),
        dir => (format!("{dir}/"), format!("{dir}0")),
    }
}

/// Gives a version the files that are at `source` now, where that is a place in this registry.
pub(super) async fn take(tx: &mut Connection, version: &VersionId, source: &str) -> Result<()> {
    if let Some((model, number)) = source.strip_prefix("models:/").and_then(|rest| rest.rsplit_once('/'))
        && let Ok(number) = number.parse::<i64>()
    {
        query(
            "INSERT INTO artifacts (model, version, path, size, sha256)
             SELECT $1, $2, path, size, sha256 FROM artifacts WHERE model = $3 AND version = $4",
        )
        .bind(version.model.as_str())
        .bind(version.number)
        .bind(model)
        .bind(number)
        .execute(&mut *tx)
        .await?;
        return Ok(());
    }
    let source = match source.strip_prefix("models:/") {
        Some(logged) => query_scalar("SELECT artifact_location FROM logged_models WHERE id = $1")
            .bind(logged)
            .fetch_optional(&mut *tx)
            .await?
            .unwrap_or_default(),
        None => source.to_owned(),
    };
    let Some(dir) = source.strip_prefix(PROXY) else { return Ok(()) };
    let (first, end) = below(dir.trim_start_matches('/'));
    query(
        "INSERT INTO artifacts (model, version, path, size, sha256)
         SELECT $1, $2, substr(path, $3), size, sha256 FROM files WHERE path >= $4 AND path < $5",
    )
    .bind(version.model.as_str())
    .bind(version.number)
    .bind(i32::try_from(first.chars().count() + 1).map_err(anyhow::Error::from)?)
    .bind(first)
    .bind(end)
    .execute(&mut *tx)
    .await?;
    Ok(())
}
