//! What can be searched and sorted by, under the names that clients write.

use super::{Problem, Subject, refuse};

/// What is compared or sorted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    Attribute(Attribute),
    Tag(String),
    Param(String),
    Metric(String),
    Dataset(DatasetField),
}

/// An attribute of any subject, whatever alias it was written under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    ArtifactLocation,
    ArtifactUri,
    /// Of an evaluation dataset, as all that was created or updated by somebody.
    CreatedBy,
    CreatedTime,
    /// Of an experiment.
    CreationTime,
    /// Of a registered, versioned or logged model.
    CreationTimestamp,
    EndTime,
    ExperimentId,
    /// Of an experiment or evaluation dataset.
    LastUpdateTime,
    LastUpdatedBy,
    /// Of a registered, versioned or logged model.
    LastUpdatedTimestamp,
    LifecycleStage,
    ModelId,
    ModelType,
    Name,
    RunId,
    RunName,
    SourcePath,
    SourceRunId,
    StartTime,
    Status,
    StatusMessage,
    UserId,
    VersionNumber,
}

/// What a run's dataset is searched by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatasetField {
    Name,
    Digest,
    Context,
}

use Attribute::*;

/// Attributes by name. Where several names mean one, messages use the first.
type Names = &'static [(&'static str, Attribute)];

const RUN_SORT: Names = &[
    ("artifact_uri", ArtifactUri),
    ("end_time", EndTime),
    ("run_id", RunId),
    ("run_name", RunName),
    ("start_time", StartTime),
    ("status", Status),
    ("user_id", UserId),
    ("created", StartTime),
    ("Created", StartTime),
];
const RUN_SEARCH: Names = &[
    ("artifact_uri", ArtifactUri),
    ("end_time", EndTime),
    ("run_id", RunId),
    ("run_name", RunName),
    ("start_time", StartTime),
    ("status", Status),
    ("user_id", UserId),
    ("created", StartTime),
    ("Created", StartTime),
    ("run name", RunName),
    ("Run name", RunName),
    ("Run Name", RunName),
];
const EXPERIMENT_SEARCH: Names =
    &[("creation_time", CreationTime), ("last_update_time", LastUpdateTime), ("name", Name)];
const EXPERIMENT_SORT: Names = &[
    ("creation_time", CreationTime),
    ("experiment_id", ExperimentId),
    ("last_update_time", LastUpdateTime),
    ("name", Name),
];
const MODEL_SEARCH: Names = &[("name", Name)];
const MODEL_SORT: Names = &[
    ("name", Name),
    ("creation_timestamp", CreationTimestamp),
    ("last_updated_timestamp", LastUpdatedTimestamp),
    ("timestamp", LastUpdatedTimestamp),
];
const VERSION_SEARCH: Names =
    &[("name", Name), ("run_id", RunId), ("source_path", SourcePath), ("version_number", VersionNumber)];
const VERSION_SORT: Names = &[
    ("creation_timestamp", CreationTimestamp),
    ("last_updated_timestamp", LastUpdatedTimestamp),
    ("name", Name),
    ("version_number", VersionNumber),
];
const LOGGED_MODEL: Names = &[
    ("artifact_location", ArtifactLocation),
    ("creation_timestamp", CreationTimestamp),
    ("experiment_id", ExperimentId),
    ("last_updated_timestamp", LastUpdatedTimestamp),
    ("lifecycle_stage", LifecycleStage),
    ("model_id", ModelId),
    ("model_type", ModelType),
    ("name", Name),
    ("source_run_id", SourceRunId),
    ("status", Status),
    ("status_message", StatusMessage),
    ("creation_time", CreationTimestamp),
    ("creation_timestamp_ms", CreationTimestamp),
    ("last_updated_timestamp_ms", LastUpdatedTimestamp),
];

const DATASET_SEARCH: Names = &[
    ("created_by", CreatedBy),
    ("created_time", CreatedTime),
    ("last_update_time", LastUpdateTime),
    ("last_updated_by", LastUpdatedBy),
    ("name", Name),
];
const DATASET_SORT: Names = &[("created_time", CreatedTime), ("last_update_time", LastUpdateTime), ("name", Name)];

/// The kinds of fields, as the word before the dot tells them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Entity {
    Attribute,
    Tag,
    Param,
    Metric,
    Dataset,
}

impl Entity {
    pub(super) fn singular(self) -> &'static str {
        match self {
            Self::Attribute => "attribute",
            Self::Tag => "tag",
            Self::Param => "parameter",
            Self::Metric => "metric",
            Self::Dataset => "dataset",
        }
    }

    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Attribute => "attributes",
            Self::Tag => "tags",
            Self::Param => "params",
            Self::Metric => "metrics",
            Self::Dataset => "datasets",
        }
    }

    fn parse(subject: Subject, word: &str) -> Result<Self, Problem> {
        match subject {
            Subject::Runs => match inside(word, '`').unwrap_or(word) {
                "attribute" | "attributes" | "attr" | "run" => Ok(Self::Attribute),
                "tag" | "tags" => Ok(Self::Tag),
                "parameter" | "parameters" | "param" | "params" => Ok(Self::Param),
                "metric" | "metrics" => Ok(Self::Metric),
                "dataset" | "datasets" => Ok(Self::Dataset),
                other => refuse(format!(
                    "Invalid entity type '{other}'. \
                     Valid values are ['metric', 'parameter', 'tag', 'attribute', 'dataset']"
                )),
            },
            Subject::LoggedModels => match word {
                "attributes" => Ok(Self::Attribute),
                "tags" => Ok(Self::Tag),
                "params" => Ok(Self::Param),
                "metrics" => Ok(Self::Metric),
                _ => refuse(format!(
                    "Invalid entity type: '{word}'. Expected one of ['attributes', 'metrics', 'params', 'tags']."
                )),
            },
            Subject::EvaluationDatasets => match word {
                "tags" => Ok(Self::Tag),
                _ => refuse(format!("Invalid identifier token '{word}' specified")),
            },
            Subject::Experiments | Subject::RegisteredModels | Subject::ModelVersions => match word {
                "attribute" => Ok(Self::Attribute),
                "tag" | "tags" => Ok(Self::Tag),
                _ => {
                    refuse(format!("Invalid entity type '{word}'. Valid entity types are ('attribute', 'tag', 'tags')"))
                }
            },
        }
    }
}

impl Field {
    /// Whether it holds a number; all others hold texts.
    pub fn is_number(&self) -> bool {
        match self {
            Self::Metric(_) => true,
            Self::Attribute(attribute) => matches!(
                attribute,
                CreatedTime
                    | CreationTime
                    | CreationTimestamp
                    | EndTime
                    | LastUpdateTime
                    | LastUpdatedTimestamp
                    | StartTime
                    | VersionNumber
            ),
            Self::Tag(_) | Self::Param(_) | Self::Dataset(_) => false,
        }
    }

    pub(super) fn entity(&self) -> Entity {
        match self {
            Self::Attribute(_) => Entity::Attribute,
            Self::Tag(_) => Entity::Tag,
            Self::Param(_) => Entity::Param,
            Self::Metric(_) => Entity::Metric,
            Self::Dataset(_) => Entity::Dataset,
        }
    }

    /// The name that messages use.
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Tag(key) | Self::Param(key) | Self::Metric(key) => key,
            Self::Dataset(DatasetField::Name) => "name",
            Self::Dataset(DatasetField::Digest) => "digest",
            Self::Dataset(DatasetField::Context) => "context",
            Self::Attribute(attribute) => [RUN_SEARCH, EXPERIMENT_SEARCH, VERSION_SEARCH, LOGGED_MODEL, DATASET_SEARCH]
                .into_iter()
                .flatten()
                .find_map(|(name, named)| (named == attribute).then_some(*name))
                .unwrap_or_default(),
        }
    }
}

/// Finds the field that a filter names.
pub(super) fn searched(subject: Subject, raw: &str) -> Result<Field, Problem> {
    let names = match subject {
        Subject::Experiments => EXPERIMENT_SEARCH,
        Subject::Runs => RUN_SEARCH,
        Subject::RegisteredModels => MODEL_SEARCH,
        Subject::ModelVersions => VERSION_SEARCH,
        Subject::LoggedModels => LOGGED_MODEL,
        Subject::EvaluationDatasets => DATASET_SEARCH,
    };
    find(subject, raw, names)
}

/// Finds the field that an `order_by` clause names.
pub(super) fn sorted(subject: Subject, raw: &str) -> Result<Field, Problem> {
    let names = match subject {
        Subject::Experiments => EXPERIMENT_SORT,
        Subject::Runs => RUN_SORT,
        Subject::RegisteredModels => MODEL_SORT,
        Subject::ModelVersions => VERSION_SORT,
        Subject::LoggedModels => return sorted_logged_model(raw),
        Subject::EvaluationDatasets => DATASET_SORT,
    };
    match (subject, find(subject, raw, names)) {
        (_, Ok(field @ Field::Attribute(_))) => Ok(field),
        (Subject::RegisteredModels, _) => {
            let valid = set(names);
            refuse(format!("Invalid order by key '{raw}' specified. Valid keys are '{valid}'"))
        }
        (Subject::Runs, Ok(Field::Dataset(_))) => refuse("Invalid identifier type 'dataset'"),
        (Subject::Runs, found) => found,
        (Subject::ModelVersions, Ok(field)) => {
            let (key, valid) = (field.key(), set(names));
            refuse(format!("Invalid order by key '{key}' specified. Valid keys are {valid}"))
        }
        (_, Ok(field)) => refuse(format!("Invalid order_by entity: {}", field.entity().singular())),
        (_, problem) => problem,
    }
}

/// Finds the field that orders logged models: an attribute, or `metrics.` and the rest as it is.
fn sorted_logged_model(name: &str) -> Result<Field, Problem> {
    match name.split_once('.') {
        Some(("metrics", key)) => Ok(Field::Metric(key.to_owned())),
        Some(_) => refuse(format!("Invalid order by field name: {name}. Only metrics are supported.")),
        None => match attribute(name, LOGGED_MODEL) {
            Some(attribute) => Ok(Field::Attribute(attribute)),
            None => refuse(format!("Invalid order by field name: {name}")),
        },
    }
}

fn find(subject: Subject, raw: &str, names: Names) -> Result<Field, Problem> {
    let (entity, key) = match raw.split_once('.') {
        Some((word, key)) => (Entity::parse(subject, word)?, key),
        None => (Entity::Attribute, raw),
    };
    let key = inside(key, '\'').or(inside(key, '"')).unwrap_or(key);
    let key = inside(key, '`').unwrap_or(key);
    match entity {
        Entity::Tag => Ok(Field::Tag(key.to_owned())),
        Entity::Param => Ok(Field::Param(key.to_owned())),
        Entity::Metric => Ok(Field::Metric(key.to_owned())),
        Entity::Dataset => match key {
            "name" => Ok(Field::Dataset(DatasetField::Name)),
            "digest" => Ok(Field::Dataset(DatasetField::Digest)),
            "context" => Ok(Field::Dataset(DatasetField::Context)),
            _ => refuse(format!(
                "Invalid dataset key '{key}' specified. Valid keys are '{{'context', 'digest', 'name'}}'"
            )),
        },
        Entity::Attribute => match attribute(key, names) {
            Some(attribute) => Ok(Field::Attribute(attribute)),
            None => refuse(format!("Invalid attribute key '{key}' specified. Valid keys are '{}'", set(names))),
        },
    }
}

fn attribute(key: &str, names: Names) -> Option<Attribute> {
    names.iter().find_map(|(name, attribute)| (*name == key).then_some(*attribute))
}

fn inside(text: &str, quote: char) -> Option<&str> {
    text.strip_prefix(quote)?.strip_suffix(quote)
}

fn set(names: Names) -> String {
    let keys: Vec<_> = names.iter().map(|(name, _)| format!("'{name}'")).collect();
    format!("{{{}}}", keys.join(", "))
}
