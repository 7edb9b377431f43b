//! Files in an S3 bucket: `prefix/sha256/ab/cdef…`, small ones in one put, large ones in parts.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::Credentials;
use aws_sdk_s3::error::{DisplayErrorContext, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, Object};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use url::Url;

use super::direct::Direct;
use super::{ArtifactStore, Body, Kept, corrupted};
use crate::error::{Dependency, Error, Result};
use crate::model::{Artifact, Micros};
use crate::names::Sha256Hex;

/// Size of a part, and the largest file that is put whole: what one upload holds in memory. S3 takes 10,000 parts, so this
/// reaches 80 GB.
const PART_BYTES: usize = 8 << 20;
/// Deletions under way at once.
const DELETIONS_AT_ONCE: usize = 10;

/// A client with the usual AWS settings; with `endpoint` for servers that are not AWS, addressing buckets by path.
pub async fn client(endpoint: Option<&Url>, credentials: Option<Credentials>) -> Client {
    let https =
        aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(https);
    if let Some(credentials) = credentials {
        loader = loader.credentials_provider(credentials);
    }
    if let Some(endpoint) = endpoint {
        let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new()).or_else("us-east-1");
        loader = loader.endpoint_url(endpoint.as_str()).region(region);
    }
    let config = aws_sdk_s3::config::Builder::from(&loader.load().await).force_path_style(endpoint.is_some()).build();
    Client::from_conf(config)
}

/// An artifact store in a bucket. Any number of processes may share it.
pub struct Bucket {
    pub(super) client: Client,
    pub(super) bucket: String,
    pub(super) prefix: String,
}

impl Bucket {
    /// Opens an existing bucket. `prefix` is empty or ends in '/'.
    pub async fn open(client: Client, bucket: String, prefix: String) -> anyhow::Result<Self> {
        let this = Self { client, bucket, prefix };
        let context =
            || format!("ARTIFACT_STORE: cannot use the S3 bucket `{}`; does it exist, may it be read?", this.bucket);
        this.client.head_bucket().bucket(&this.bucket).send().await.map_err(explained).with_context(context)?;
        Ok(this)
    }

    pub(super) fn key(&self, sha256: &Sha256Hex) -> String {
        let (first, rest) = sha256.as_str().split_at(2);
        format!("{}sha256/{first}/{rest}", self.prefix)
    }

    /// Aborts uploads in parts that began long ago: S3 keeps their parts until then.
    async fn sweep_parts(&self, stale_after: Duration) -> Result<()> {
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let list = self.client.list_multipart_uploads().bucket(&self.bucket).prefix(&self.prefix);
            let list = list.set_key_marker(key_marker).set_upload_id_marker(id_marker);
            let found = list.send().await.map_err(unavailable)?;
            for upload in found.uploads().iter().filter(|upload| is_older(upload.initiated(), stale_after)) {
                let (key, id) = (upload.key().unwrap_or_default(), upload.upload_id().unwrap_or_default());
                let abort = self.client.abort_multipart_upload().bucket(&self.bucket).key(key).upload_id(id);
                match abort.send().await {
                    Ok(_) => tracing::info!(key, "aborted an upload that was cut off"),
                    // It has ended since it was listed.
                    Err(error) if error.as_service_error().is_some_and(|error| error.is_no_such_upload()) => {}
                    Err(error) => return Err(unavailable(error)),
                }
            }
            if found.is_truncated() != Some(true) || found.next_key_marker().is_none() {
                return Ok(());
            }
            (key_marker, id_marker) = (found.next_key_marker, found.next_upload_id_marker);
        }
    }

    async fn put_whole(&self, key: &str, mut body: Body<'_>) -> Result<()> {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.try_next().await? {
            bytes.extend_from_slice(&chunk);
        }
        let body = ByteStream::from(bytes.freeze());
        self.client.put_object().bucket(&self.bucket).key(key).body(body).send().await.map_err(unavailable)?;
        Ok(())
    }

    async fn put_in_parts(&self, key: &str, mut body: Body<'_>) -> Result<()> {
        let created = self
            .client
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(key)
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .send()
            .await
            .map_err(unavailable)?;
        let upload_id = created.upload_id.context("S3 began an upload without an id")?;
        let mut upload = Upload { bucket: self, key, id: Some(upload_id), parts: Vec::new() };
        let mut waiting = BytesMut::with_capacity(PART_BYTES);
        while let Some(chunk) = body.try_next().await? {
            waiting.extend_from_slice(&chunk);
            while waiting.len() >= PART_BYTES {
                upload.add(waiting.split_to(PART_BYTES).freeze()).await?;
            }
        }
        if !waiting.is_empty() {
            upload.add(waiting.freeze()).await?;
        }
        upload.complete().await
    }
}

#[async_trait]
impl ArtifactStore for Bucket {
    async fn keep(&self, artifact: &Artifact, body: Body<'_>) -> Result<()> {
        let key = self.key(&artifact.sha256);
        if artifact.size <= PART_BYTES as u64 {
            return self.put_whole(&key, body).await;
        }
        self.put_in_parts(&key, body).await
    }

    async fn open(&self, artifact: &Artifact, offset: u64) -> Result<Body<'static>> {
        let get = self.client.get_object().bucket(&self.bucket).key(self.key(&artifact.sha256));
        // A range that begins at the end is refused by S3; the last byte stands in for it, to learn the size.
        let is_at_end = offset > 0 && offset == artifact.size;
        let from = if is_at_end { offset - 1 } else { offset };
        let get = if from > 0 { get.range(format!("bytes={from}-")) } else { get };
        let object = match get.send().await {
            Ok(object) => object,
            Err(error) if is_gone(&error) => {
                return Err(corrupted(format!("the bytes of `{}` are gone", artifact.path)));
            }
            Err(error) => return Err(unavailable(error)),
        };
        let whole = object.content_range().and_then(|range| range.rsplit_once('/')).map(|(_, whole)| whole.to_owned());
        let size = match whole {
            Some(whole) => whole.parse().ok(),
            None => object.content_length().and_then(|length| u64::try_from(length).ok()),
        };
        if size != Some(artifact.size) {
            let size = size.map_or("an unknown number of".to_owned(), |size| size.to_string());
            return Err(corrupted(format!("`{}` has {size} bytes instead of {}", artifact.path, artifact.size)));
        }
        if is_at_end {
            return Ok(stream::empty().boxed());
        }
        Ok(body_of(object.body))
    }

    fn direct(&self) -> Option<&dyn Direct> {
        Some(self)
    }

    fn list(&self) -> BoxStream<'static, Result<Kept>> {
        let prefix = format!("{}sha256/", self.prefix);
        let pages = self.client.list_objects_v2().bucket(&self.bucket).prefix(&prefix).into_paginator().send();
        let pages = stream::unfold(pages, |mut pages| async move { Some((pages.next().await?, pages)) });
        let objects = pages.map_err(unavailable).map_ok(move |page| {
            let listed: Vec<_> = page.contents().iter().filter_map(|object| kept(&prefix, object)).map(Ok).collect();
            stream::iter(listed)
        });
        objects.try_flatten().boxed()
    }

    async fn remove(&self, garbage: &[Sha256Hex], deadline: Instant) -> Result<()> {
        let deletions: Vec<_> = garbage
            .iter()
            .map(|sha256| async move {
                if Instant::now() >= deadline {
                    return Err(unavailable(std::io::Error::from(std::io::ErrorKind::TimedOut)));
                }
                let delete = self.client.delete_object().bucket(&self.bucket).key(self.key(sha256));
                delete.send().await.map(drop).map_err(unavailable)
            })
            .collect();
        let mut deletions = stream::iter(deletions).buffer_unordered(DELETIONS_AT_ONCE);
        let mut outcome = Ok(());
        while let Some(deleted) = deletions.next().await {
            outcome = outcome.and(deleted);
        }
        outcome
    }

    async fn sweep(&self, stale_after: Duration) -> Result<()> {
        self.sweep_parts(stale_after).await?;
        self.sweep_incoming(stale_after).await
    }
}

/// Whether that time is longer ago.
pub(super) fn is_older(time: Option<&DateTime>, than: Duration) -> bool {
    let time = time.and_then(|time| SystemTime::try_from(*time).ok());
    time.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > than)
}

/// The bytes of an object.
pub(super) fn body_of(object: ByteStream) -> Body<'static> {
    let body = stream::try_unfold(object, |mut body| async move {
        let bytes = body
            .next()
            .await
            .transpose()
            .map_err(|error| Error::Unavailable { dependency: Dependency::ArtifactStore, source: error.into() })?;
        Ok(bytes.map(|bytes| (bytes, body)))
    });
    body.boxed()
}

/// What a listed object is, if it is a file of ours.
fn kept(prefix: &str, object: &Object) -> Option<Kept> {
    let sha256 = Sha256Hex::parse("key", &object.key()?.strip_prefix(prefix)?.replacen('/', "", 1)).ok()?;
    let nanos = object.last_modified()?.as_nanos();
    let modified = Micros(i64::try_from(nanos / 1000).ok()?);
    Some(Kept { sha256, size: object.size()?.unsigned_abs(), modified })
}

/// An upload in parts. Dropped before it is complete it is aborted, so that S3 keeps nothing of it.
struct Upload<'a> {
    bucket: &'a Bucket,
    key: &'a str,
    /// None once complete.
    id: Option<String>,
    parts: Vec<CompletedPart>,
}

impl Upload<'_> {
    async fn add(&mut self, bytes: Bytes) -> Result<()> {
        let number = i32::try_from(self.parts.len() + 1).map_err(anyhow::Error::from)?;
        let sent = self
            .bucket
            .client
            .upload_part()
            .bucket(&self.bucket.bucket)
            .key(self.key)
            .set_upload_id(self.id.clone())
            .part_number(number)
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .body(ByteStream::from(bytes))
            .send()
            .await
            .map_err(unavailable)?;
        let part = CompletedPart::builder().part_number(number);
        self.parts.push(part.set_e_tag(sent.e_tag).set_checksum_crc32(sent.checksum_crc32).build());
        Ok(())
    }

    async fn complete(mut self) -> Result<()> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(std::mem::take(&mut self.parts))).build();
        self.bucket
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket.bucket)
            .key(self.key)
            .set_upload_id(self.id.clone())
            .multipart_upload(parts)
            .send()
            .await
            .map_err(unavailable)?;
        self.id = None;
        Ok(())
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.id.take(), tokio::runtime::Handle::try_current()) else { return };
        let abort = self.bucket.client.abort_multipart_upload();
        let abort = abort.bucket(&self.bucket.bucket).key(self.key).upload_id(id);
        runtime.spawn(async move {
            if let Err(error) = abort.send().await {
                tracing::warn!(error = %DisplayErrorContext(&error), "cannot abort an unfinished upload");
            }
        });
    }
}

fn is_gone<R>(error: &SdkError<GetObjectError, R>) -> bool {
    matches!(error.as_service_error(), Some(GetObjectError::NoSuchKey(_)))
}

pub(super) fn explained<E: std::error::Error + Send + Sync + 'static>(error: E) -> anyhow::Error {
    anyhow::anyhow!("{}", DisplayErrorContext(&error))
}

pub(super) fn unavailable<E: std::error::Error + Send + Sync + 'static>(error: E) -> Error {
    Error::Unavailable { dependency: Dependency::ArtifactStore, source: explained(error) }
}
