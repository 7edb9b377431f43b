//! Files that go between a caller and the bucket straight, by URLs that were signed for it.
//!
//! A file that arrives in parts this way is nobody's until all of it is there: it lies under `incoming/`, is then read
//! once for its SHA-256, and moved to the place its content has. What is left there for a day is cleared away
//! within the next hour.

use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::s3::{Bucket, body_of, explained, is_older, unavailable};
use super::{ArtifactStore, Body, Direction, checked};
use crate::error::{Error, Result};
use crate::model::{Artifact, MAX_ARTIFACT_BYTES};
use crate::names::{ArtifactPath, Sha256Hex};

/// How long a signed URL can be used.
pub const VALID: Duration = Duration::from_secs(3600);
/// Most parts of an upload, as S3 has it.
pub const MAX_PARTS: i32 = 10_000;
/// Largest object that S3 copies in one call.
const MAX_COPY_BYTES: u64 = 5 << 30;

/// An upload in parts, before its parts have come.
pub struct Begun {
    pub id: String,
    /// Where each part is put, the first for part 1.
    pub urls: Vec<String>,
}

/// A file that has arrived, where it is until it is kept.
pub struct Staged {
    key: String,
    pub size: u64,
    pub sha256: Sha256Hex,
}

/// A part that was put: its number, from 1, and the ETag that was answered.
pub type Part = (i32, String);

/// Lets callers reach the bytes themselves.
#[async_trait]
pub trait Direct: Send + Sync {
    /// A URL at which anybody can read the file for `valid`.
    async fn url(&self, artifact: &Artifact, valid: Duration) -> Result<String>;
    /// Begins an upload in `parts`.
    async fn begin(&self, parts: i32) -> Result<Begun>;
    /// Puts the parts together and says what file they are. It is nobody's yet.
    async fn complete(&self, id: &str, parts: Vec<Part>) -> Result<Staged>;
    /// Keeps that file by its content.
    async fn adopt(&self, staged: &Staged) -> Result<()>;
    /// Throws away what has come of an upload.
    async fn abort(&self, id: &str) -> Result<()>;
}

/// Reads an id that [`Direct::begin`] has given: which object, and S3's own name for the upload.
fn parse(bucket: &Bucket, id: &str) -> Result<(String, String)> {
    let parts = id.split_once('.').and_then(|(object, upload)| Some((Uuid::try_parse(object).ok()?, upload)));
    let (object, upload) = parts.ok_or_else(unknown)?;
    Ok((bucket.incoming(&object.to_string()), upload.to_owned()))
}

fn unknown() -> Error {
    Error::invalid("UNKNOWN_UPLOAD", "upload_id", "names no upload that is under way; begin another")
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    tracing::debug!(error = format!("{:#}", explained(error)), "the bucket refused to end an upload in parts");
    Error::invalid(
        "UNKNOWN_UPLOAD",
        "upload_id",
        "names no upload that is under way, or its parts are not those that came",
    )
}

#[async_trait]
impl Direct for Bucket {
    async fn url(&self, artifact: &Artifact, valid: Duration) -> Result<String> {
        let until = PresigningConfig::expires_in(valid).map_err(anyhow::Error::from)?;
        let get = self.client.get_object().bucket(&self.bucket).key(self.key(&artifact.sha256));
        Ok(get.presigned(until).await.map_err(unavailable)?.uri().to_owned())
    }

    async fn begin(&self, parts: i32) -> Result<Begun> {
        let object = Uuid::new_v4().to_string();
        let key = self.incoming(&object);
        let created = self.client.create_multipart_upload().bucket(&self.bucket).key(&key);
        let upload =
            created.send().await.map_err(unavailable)?.upload_id.context("S3 began an upload without an id")?;
        let mut urls = Vec::new();
        for number in 1..=parts {
            let until = PresigningConfig::expires_in(VALID).map_err(anyhow::Error::from)?;
            let put = self.client.upload_part().bucket(&self.bucket).key(&key);
            let signed = put.upload_id(&upload).part_number(number).presigned(until).await.map_err(unavailable)?;
            urls.push(signed.uri().to_owned());
        }
        Ok(Begun { id: format!("{object}.{upload}"), urls })
    }

    async fn complete(&self, id: &str, parts: Vec<Part>) -> Result<Staged> {
        let (key, upload) = parse(self, id)?;
        let part = |(number, e_tag)| CompletedPart::builder().part_number(number).e_tag(e_tag).build();
        let parts = parts.into_iter().map(part).collect();
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = self.client.complete_multipart_upload().bucket(&self.bucket).key(&key).upload_id(upload);
        match complete.multipart_upload(parts).send().await {
            Ok(_) => {}
            Err(error) if error.as_service_error().is_some() => return Err(refused(error)),
            Err(error) => return Err(unavailable(error)),
        }
        let (mut size, mut hash, mut body) = (0, Sha256::new(), self.staged(&key).await?);
        while let Some(bytes) = body.try_next().await? {
            size += bytes.len() as u64;
            hash.update(&bytes);
        }
        if size > MAX_ARTIFACT_BYTES {
            let problem = format!("may have at most {MAX_ARTIFACT_BYTES} bytes (64 GiB)");
            return Err(Error::invalid("INVALID_SIZE", "file", problem));
        }
        Ok(Staged { key, size, sha256: Sha256Hex::of(hash) })
    }

    async fn adopt(&self, staged: &Staged) -> Result<()> {
        let Staged { key, size, sha256 } = staged;
        if *size > MAX_COPY_BYTES {
            let artifact = Artifact { path: ArtifactPath::stored(key.clone()), size: *size, sha256: sha256.clone() };
            self.keep(&artifact, checked(self.staged(key).await?, artifact.clone(), Direction::In)).await?;
        } else {
            let copy = self.client.copy_object().bucket(&self.bucket).key(self.key(sha256));
            copy.copy_source(format!("{}/{key}", self.bucket)).send().await.map_err(unavailable)?;
        }
        if let Err(error) = self.client.delete_object().bucket(&self.bucket).key(key).send().await {
            tracing::warn!(error = format!("{:#}", explained(error)), "cannot remove an upload that was moved");
        }
        Ok(())
    }

    async fn abort(&self, id: &str) -> Result<()> {
        let (key, upload) = parse(self, id)?;
        let abort = self.client.abort_multipart_upload().bucket(&self.bucket).key(key).upload_id(upload);
        match abort.send().await {
            Ok(_) => Ok(()),
            Err(error) if error.as_service_error().is_some() => Err(refused(error)),
            Err(error) => Err(unavailable(error)),
        }
    }
}

impl Bucket {
    fn incoming(&self, object: &str) -> String {
        format!("{}incoming/{object}", self.prefix)
    }

    /// The bytes of a file that has arrived.
    async fn staged(&self, key: &str) -> Result<Body<'static>> {
        let object = self.client.get_object().bucket(&self.bucket).key(key).send().await.map_err(unavailable)?;
        Ok(body_of(object.body))
    }

    /// Removes uploads that came to an end nobody acted on, long ago.
    pub(super) async fn sweep_incoming(&self, stale_after: Duration) -> Result<()> {
        let list = self.client.list_objects_v2().bucket(&self.bucket).prefix(self.incoming(""));
        let mut pages = list.into_paginator().send();
        while let Some(page) = pages.try_next().await.map_err(unavailable)? {
            for object in page.contents().iter().filter(|object| is_older(object.last_modified(), stale_after)) {
                let Some(key) = object.key() else { continue };
                self.client.delete_object().bucket(&self.bucket).key(key).send().await.map_err(unavailable)?;
                tracing::info!(key, "removed an upload that nobody has acted on");
            }
        }
        Ok(())
    }
}
