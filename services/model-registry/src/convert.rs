//! Between the contract and the domain. Every conversion names every field, so that none is forgotten.

use std::collections::HashMap;

use prost_types::{FieldMask, Timestamp};
use verdict_api::{events, registry as api};

use crate::error::{Error, Result};
use crate::feed::Watched;
use crate::model::{
    AliasMove, Artifact, Event, EventKind, Feature, FeatureType, Micros, Model, ModelDraft, Origin, Signature,
    TagChange, Task, Update, Version, VersionDraft,
};
use crate::names::{AliasName, ArtifactPath, ModelName, Sha256Hex, VersionId, version_number};
use crate::registration::Registration;
use crate::store::Call;

/// Longest request id, in bytes.
const MAX_REQUEST_ID: usize = 128;
const DEFAULT_PAGE: i32 = 100;
const MAX_PAGE: i32 = 1000;

/// What comes with a mutation: a request id and an etag, each empty for none, and whether it is only to be checked.
pub(crate) fn call(request_id: String, etag: String, validate_only: bool) -> Result<Call> {
    if request_id.len() > MAX_REQUEST_ID || request_id.contains(char::is_control) {
        let problem = format!("must be at most {MAX_REQUEST_ID} bytes, without control characters");
        return Err(Error::invalid("INVALID_REQUEST_ID", "request_id", problem));
    }
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(Call { request_id: given(request_id), etag: given(etag), validate_only, ..Call::now() })
}

/// Checks a page size; 0 for the default.
pub(crate) fn page_size(size: i32) -> Result<u32> {
    let size = if size == 0 { DEFAULT_PAGE } else { size };
    let fits = u32::try_from(size).ok().filter(|_| (1..=MAX_PAGE).contains(&size));
    fits.ok_or_else(|| Error::invalid("INVALID_PAGE_SIZE", "page_size", format!("must be 1 to {MAX_PAGE}, or 0")))
}

/// Writes the key of a page's last item as the token of the next page.
pub(crate) fn page_token(last: &str) -> String {
    hex::encode(last)
}

/// Reads a page token with `key`; None for the first page.
pub(crate) fn after<T>(token: &str, key: impl Fn(&str) -> Option<T>) -> Result<Option<T>> {
    if token.is_empty() {
        return Ok(None);
    }
    let read = hex::decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok()).and_then(|text| key(&text));
    read.map(Some).ok_or_else(|| {
        Error::invalid(
            "INVALID_PAGE_TOKEN",
            "page_token",
            "is not one this call has given; leave it empty to start anew",
        )
    })
}

pub(crate) fn model_draft(request: api::CreateModelRequest) -> Result<(Call, ModelDraft)> {
    let api::CreateModelRequest { name, description, tags, request_id, validate_only } = request;
    let name = ModelName::parse("name", &name)?;
    let draft = ModelDraft { name, description, tags: tags.into_iter().collect() };
    draft.check()?;
    Ok((call(request_id, String::new(), validate_only)?, draft))
}

pub(crate) fn version_draft(request: api::CreateVersionRequest) -> Result<(Call, VersionDraft)> {
    let task = task(request.task())?;
    let api::CreateVersionRequest {
        model,
        description,
        task: _,
        signature,
        parameters,
        tags,
        request_id,
        validate_only,
    } = request;
    let draft = VersionDraft {
        model: ModelName::parse("model", &model)?,
        description,
        task,
        signature: signature.map(self::signature).transpose()?,
        parameters: parameters.into_iter().collect(),
        tags: tags.into_iter().collect(),
        origin: None,
    };
    draft.check()?;
    Ok((call(request_id, String::new(), validate_only)?, draft))
}

pub(crate) fn registration(request: api::RegisterVersionRequest) -> Result<(Call, Registration)> {
    let api::RegisterVersionRequest {
        model,
        source,
        run_id,
        run_link,
        logged_model_id,
        description,
        tags,
        request_id,
        validate_only,
    } = request;
    let model = ModelName::parse("model", &model)?;
    if source.is_empty() {
        return Err(Error::invalid("INVALID_SOURCE", "source", "must be given: where the files of the version are"));
    }
    let origin = Origin { source, run: run_id, run_link, logged_model: logged_model_id };
    let wanted = Registration { model, description, tags: tags.into_iter().collect(), origin };
    wanted.check()?;
    Ok((call(request_id, String::new(), validate_only)?, wanted))
}

pub(crate) fn task(task: api::Task) -> Result<Task> {
    match task {
        api::Task::Unspecified => Err(Error::invalid(
            "INVALID_TASK",
            "task",
            "must be one of the tasks of the contract, like TASK_TEXT_EMBEDDING",
        )),
        api::Task::TextEmbedding => Ok(Task::TextEmbedding),
        api::Task::TextReranking => Ok(Task::TextReranking),
        api::Task::TextGeneration => Ok(Task::TextGeneration),
        api::Task::TabularClassification => Ok(Task::TabularClassification),
        api::Task::TextSparseEmbedding => Ok(Task::TextSparseEmbedding),
        api::Task::TextClassification => Ok(Task::TextClassification),
        api::Task::TabularRegression => Ok(Task::TabularRegression),
        api::Task::Custom => Ok(Task::Custom),
    }
}

impl From<Task> for api::Task {
    fn from(task: Task) -> Self {
        match task {
            Task::TextEmbedding => Self::TextEmbedding,
            Task::TextReranking => Self::TextReranking,
            Task::TextGeneration => Self::TextGeneration,
            Task::TabularClassification => Self::TabularClassification,
            Task::TextSparseEmbedding => Self::TextSparseEmbedding,
            Task::TextClassification => Self::TextClassification,
            Task::TabularRegression => Self::TabularRegression,
            Task::Custom => Self::Custom,
        }
    }
}

pub(crate) fn signature(signature: api::Signature) -> Result<Signature> {
    let api::Signature { inputs } = signature;
    let inputs = inputs.into_iter().enumerate().map(|(index, input)| {
        let kind = match input.r#type() {
            api::FeatureType::Unspecified => {
                let field = format!("signature.inputs[{index}].type");
                let problem = "must be one of FEATURE_TYPE_DOUBLE, _LONG, _BOOLEAN and _STRING";
                return Err(Error::invalid("INVALID_SIGNATURE", field, problem));
            }
            api::FeatureType::Double => FeatureType::Double,
            api::FeatureType::Long => FeatureType::Long,
            api::FeatureType::Boolean => FeatureType::Boolean,
            api::FeatureType::String => FeatureType::String,
        };
        let api::Feature { name, r#type: _, optional, categories, description } = input;
        Ok(Feature { name, kind, optional, categories, description })
    });
    Ok(Signature { inputs: inputs.collect::<Result<_>>()? })
}

impl From<Signature> for api::Signature {
    fn from(signature: Signature) -> Self {
        let Signature { inputs } = signature;
        Self { inputs: inputs.into_iter().map(api::Feature::from).collect() }
    }
}

impl From<Feature> for api::Feature {
    fn from(feature: Feature) -> Self {
        let Feature { name, kind, optional, categories, description } = feature;
        let kind = match kind {
            FeatureType::Double => api::FeatureType::Double,
            FeatureType::Long => api::FeatureType::Long,
            FeatureType::Boolean => api::FeatureType::Boolean,
            FeatureType::String => api::FeatureType::String,
        };
        Self { name, r#type: kind.into(), optional, categories, description }
    }
}

pub(crate) fn upload_header(header: api::UploadArtifactHeader) -> Result<(VersionId, Artifact, u64)> {
    let api::UploadArtifactHeader { model, version, artifact, offset } = header;
    let id = VersionId {
        model: ModelName::parse("header.model", &model)?,
        number: version_number("header.version", version)?,
    };
    let artifact = self::artifact("header.artifact", artifact)?;
    let fits = u64::try_from(offset).ok().filter(|offset| *offset <= artifact.size);
    let offset = fits.ok_or_else(|| {
        Error::invalid("INVALID_OFFSET", "header.offset", format!("must be 0 to {}, the size", artifact.size))
    })?;
    Ok((id, artifact, offset))
}

/// Checks a file a caller describes in `field`.
pub(crate) fn artifact(field: &str, artifact: Option<api::Artifact>) -> Result<Artifact> {
    let missing = || Error::invalid("INVALID_UPLOAD", field, "must be given: path, size and sha256");
    let api::Artifact { path, size, sha256 } = artifact.ok_or_else(missing)?;
    Ok(Artifact {
        path: ArtifactPath::parse(&format!("{field}.path"), &path)?,
        size: Artifact::size(&format!("{field}.size"), size)?,
        sha256: Sha256Hex::parse(&format!("{field}.sha256"), &sha256)?,
    })
}

/// Tells whether a mask names `description`, and whether `tags`.
fn masked(mask: Option<FieldMask>) -> Result<[bool; 2]> {
    const FIELDS: [&str; 2] = ["description", "tags"];
    let paths = mask.map(|mask| mask.paths).unwrap_or_default();
    let problem = match paths.iter().find(|path| !FIELDS.contains(&path.as_str())) {
        Some(other) => format!("names `{other}`; only `description` and `tags` can be updated"),
        None if paths.is_empty() => "must name what changes: `description`, `tags` or both".to_owned(),
        None => return Ok(FIELDS.map(|name| paths.iter().any(|path| path == name))),
    };
    Err(Error::invalid("INVALID_MASK", "update_mask", problem))
}

pub(crate) fn model_update(request: api::UpdateModelRequest) -> Result<(Call, Update)> {
    let api::UpdateModelRequest { model, update_mask, request_id, validate_only } = request;
    let missing = || Error::invalid("INVALID_UPDATE", "model", "must be given");
    let api::Model { name, description, tags, etag, .. } = model.ok_or_else(missing)?;
    let of = ModelName::parse("model.name", &name)?;
    let call = call(request_id, etag, validate_only)?;
    Ok((call, update(of, None, description, tags, update_mask)?))
}

pub(crate) fn version_update(request: api::UpdateVersionRequest) -> Result<(Call, Update)> {
    let api::UpdateVersionRequest { version, update_mask, request_id, validate_only } = request;
    let missing = || Error::invalid("INVALID_UPDATE", "version", "must be given");
    let api::Version { model, version, description, tags, etag, .. } = version.ok_or_else(missing)?;
    let of = ModelName::parse("version.model", &model)?;
    let number = version_number("version.version", version)?;
    let call = call(request_id, etag, validate_only)?;
    Ok((call, update(of, Some(number), description, tags, update_mask)?))
}

fn update(
    model: ModelName,
    version: Option<i64>,
    description: String,
    tags: HashMap<String, String>,
    mask: Option<FieldMask>,
) -> Result<Update> {
    let [is_description, is_tags] = masked(mask)?;
    let update = Update {
        model,
        version,
        description: is_description.then_some(description),
        tags: is_tags.then(|| tags.into_iter().collect()),
    };
    update.check()?;
    Ok(update)
}

pub(crate) fn alias_set(request: api::SetAliasRequest) -> Result<(Call, AliasMove)> {
    let api::SetAliasRequest { model, alias, version, expected_version, request_id, etag, validate_only } = request;
    if expected_version.is_some_and(|expected| expected < 0) {
        return Err(Error::invalid("INVALID_VERSION", "expected_version", "must be 0 or more"));
    }
    let to = AliasMove {
        model: ModelName::parse("model", &model)?,
        alias: AliasName::parse("alias", &alias)?,
        to: Some(version_number("version", version)?),
        expected: expected_version,
    };
    Ok((call(request_id, etag, validate_only)?, to))
}

pub(crate) fn alias_delete(request: api::DeleteAliasRequest) -> Result<(Call, AliasMove)> {
    let api::DeleteAliasRequest { model, alias, request_id, etag, validate_only } = request;
    let (model, alias) = (ModelName::parse("model", &model)?, AliasName::parse("alias", &alias)?);
    let call = call(request_id, etag, validate_only)?;
    Ok((call, AliasMove { model, alias, to: None, expected: None }))
}

pub(crate) fn tag_set(request: api::SetTagRequest) -> Result<(Call, TagChange)> {
    let api::SetTagRequest { model, version, key, value, request_id, etag, validate_only } = request;
    tag_change(call(request_id, etag, validate_only)?, model, version, key, Some(value))
}

pub(crate) fn tag_delete(request: api::DeleteTagRequest) -> Result<(Call, TagChange)> {
    let api::DeleteTagRequest { model, version, key, request_id, etag, validate_only } = request;
    tag_change(call(request_id, etag, validate_only)?, model, version, key, None)
}

fn tag_change(
    call: Call,
    model: String,
    version: Option<i64>,
    key: String,
    value: Option<String>,
) -> Result<(Call, TagChange)> {
    let version = version.map(|number| version_number("version", number)).transpose()?;
    let change = TagChange { model: ModelName::parse("model", &model)?, version, key, value };
    change.check()?;
    Ok((call, change))
}

impl From<Model> for api::Model {
    fn from(model: Model) -> Self {
        let Model { name, description, tags, aliases, latest_version, create_time, update_time, revision } = model;
        Self {
            name: name.to_string(),
            description,
            tags: tags.into_iter().collect(),
            aliases: aliases.into_iter().collect(),
            latest_version,
            create_time: Some(timestamp(create_time)),
            update_time: Some(timestamp(update_time)),
            etag: revision.to_string(),
        }
    }
}

impl From<Version> for api::Version {
    fn from(version: Version) -> Self {
        let Version {
            id: VersionId { model, number },
            description,
            task,
            signature,
            parameters,
            tags,
            artifacts,
            digest,
            aliases,
            origin: Origin { source, run, run_link: _, logged_model: _ },
            author,
            stage: _,
            create_time,
            update_time,
            revision,
        } = version;
        let status = if digest.is_some() { api::VersionStatus::Ready } else { api::VersionStatus::Pending };
        Self {
            model: model.to_string(),
            version: number,
            status: status.into(),
            description,
            task: api::Task::from(task).into(),
            signature: signature.map(api::Signature::from),
            parameters: parameters.into_iter().collect(),
            tags: tags.into_iter().collect(),
            artifacts: artifacts.into_iter().map(api::Artifact::from).collect(),
            digest: digest.unwrap_or_default(),
            aliases,
            create_time: Some(timestamp(create_time)),
            update_time: Some(timestamp(update_time)),
            etag: revision.to_string(),
            source,
            run_id: run,
            author,
        }
    }
}

impl From<Artifact> for api::Artifact {
    fn from(artifact: Artifact) -> Self {
        let Artifact { path, size, sha256 } = artifact;
        // At most 64 GiB: it always fits.
        Self { path: path.to_string(), size: i64::try_from(size).unwrap_or(i64::MAX), sha256: sha256.to_string() }
    }
}

impl From<Watched> for api::WatchModelsResponse {
    fn from(watched: Watched) -> Self {
        let Watched { event, sequence } = watched;
        Self { event: event.map(model_event), sequence }
    }
}

fn model_event(event: Event) -> events::ModelEvent {
    let Event { sequence, time, kind, model, version, alias, previous_version, digest } = event;
    let kind = match kind {
        EventKind::ModelCreated => events::ModelEventType::ModelCreated,
        EventKind::ModelUpdated => events::ModelEventType::ModelUpdated,
        EventKind::ModelDeleted => events::ModelEventType::ModelDeleted,
        EventKind::VersionCreated => events::ModelEventType::VersionCreated,
        EventKind::VersionFinalized => events::ModelEventType::VersionFinalized,
        EventKind::VersionUpdated => events::ModelEventType::VersionUpdated,
        EventKind::VersionDeleted => events::ModelEventType::VersionDeleted,
        EventKind::AliasSet => events::ModelEventType::AliasSet,
        EventKind::AliasDeleted => events::ModelEventType::AliasDeleted,
    };
    events::ModelEvent {
        sequence,
        time: Some(timestamp(time)),
        r#type: kind.into(),
        model: model.to_string(),
        version,
        alias,
        previous_version,
        digest,
    }
}

pub(crate) fn timestamp(Micros(micros): Micros) -> Timestamp {
    // Below a million microseconds there are less than 2^31 nanoseconds.
    let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1000).unwrap_or(0);
    Timestamp { seconds: micros.div_euclid(1_000_000), nanos }
}

/// Reads a point in time a caller gave in `field`.
pub(crate) fn micros(field: &str, time: Timestamp) -> Result<Micros> {
    let Timestamp { seconds, nanos } = time;
    let whole = seconds.checked_mul(1_000_000).filter(|_| (0..1_000_000_000).contains(&nanos));
    let micros = whole.and_then(|micros| micros.checked_add(i64::from(nanos) / 1000));
    micros.map(Micros).ok_or_else(|| Error::invalid("INVALID_TIME", field, "must be a time this calendar has"))
}
