//! `EvaluationService`: evaluation datasets, their records, scorers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as Wire};
use serde_json::{Map, Value, json};
use tonic::{Request, Response};
use uuid::Uuid;
use verdict_api::registry as api;
use verdict_api::registry::evaluation_service_server::EvaluationService;

use super::Answer;
use crate::convert;
use crate::error::{Error, Result};
use crate::evaluation::{
    After, Dataset, DatasetChange, DatasetDraft, DatasetSearch, Record, Scorer, Source, SourceKind, Upserted, reading,
};
use crate::search::{Problem, Subject, filter, order};
use crate::store::Everything;
use crate::tracking::Millis;

/// Whole numbers that 64-bit floating-point numbers tell apart: 2^53.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// What the calls work on.
pub(crate) struct Evaluation {
    pub(crate) store: Arc<dyn Everything>,
}

impl Evaluation {
    async fn change(&self, id: &str, change: DatasetChange) -> Result<Option<api::EvaluationDataset>> {
        Ok(Some(self.store.change_dataset(Millis::now(), id, &change).await?.try_into()?))
    }
}

#[async_trait]
impl EvaluationService for Evaluation {
    async fn create_evaluation_dataset(
        &self,
        request: Request<api::CreateEvaluationDatasetRequest>,
    ) -> Answer<api::CreateEvaluationDatasetResponse> {
        let api::CreateEvaluationDatasetRequest { name, tags, experiment_ids } = request.into_inner();
        reading::name(&name)?;
        let id = format!("d-{}", Uuid::new_v4().simple());
        let (tags, experiments) = (tags_of(tags)?, reading::numbered(experiment_ids)?);
        let draft = DatasetDraft { id, name, tags, experiments };
        let dataset = self.store.create_dataset(Millis::now(), &draft).await?;
        Ok(Response::new(api::CreateEvaluationDatasetResponse { dataset: Some(dataset.try_into()?) }))
    }

    async fn get_evaluation_dataset(
        &self,
        request: Request<api::GetEvaluationDatasetRequest>,
    ) -> Answer<api::GetEvaluationDatasetResponse> {
        let api::GetEvaluationDatasetRequest { dataset_id } = request.into_inner();
        let dataset = Some(self.store.dataset(&dataset_id).await?.try_into()?);
        Ok(Response::new(api::GetEvaluationDatasetResponse { dataset }))
    }

    async fn search_evaluation_datasets(
        &self,
        request: Request<api::SearchEvaluationDatasetsRequest>,
    ) -> Answer<api::SearchEvaluationDatasetsResponse> {
        let api::SearchEvaluationDatasetsRequest { experiment_ids, filter: text, order_by, page_size, page_token } =
            request.into_inner();
        let refused = |problem: Problem| Error::Rejected(problem.0);
        let search = DatasetSearch {
            experiments: reading::numbered(experiment_ids)?,
            conditions: filter(Subject::EvaluationDatasets, &text).map_err(refused)?,
            orders: order(Subject::EvaluationDatasets, &order_by).map_err(refused)?,
            offset: convert::after(&page_token, |text| text.parse().ok())?.unwrap_or(0),
            limit: convert::page_size(page_size)?,
        };
        let page = self.store.datasets(&search).await?;
        let datasets = page.items.into_iter().map(TryInto::try_into).collect::<Result<_>>()?;
        let next_page_token = page.next.map(|offset| convert::page_token(&offset.to_string())).unwrap_or_default();
        Ok(Response::new(api::SearchEvaluationDatasetsResponse { datasets, next_page_token }))
    }

    async fn delete_evaluation_dataset(
        &self,
        request: Request<api::DeleteEvaluationDatasetRequest>,
    ) -> Answer<api::DeleteEvaluationDatasetResponse> {
        let api::DeleteEvaluationDatasetRequest { dataset_id } = request.into_inner();
        self.store.delete_dataset(&dataset_id).await?;
        Ok(Response::new(api::DeleteEvaluationDatasetResponse {}))
    }

    async fn set_evaluation_dataset_tags(
        &self,
        request: Request<api::SetEvaluationDatasetTagsRequest>,
    ) -> Answer<api::SetEvaluationDatasetTagsResponse> {
        let api::SetEvaluationDatasetTagsRequest { dataset_id, tags } = request.into_inner();
        let dataset = self.change(&dataset_id, DatasetChange::SetTags(tags_of(tags)?)).await?;
        Ok(Response::new(api::SetEvaluationDatasetTagsResponse { dataset }))
    }

    async fn delete_evaluation_dataset_tag(
        &self,
        request: Request<api::DeleteEvaluationDatasetTagRequest>,
    ) -> Answer<api::DeleteEvaluationDatasetTagResponse> {
        let api::DeleteEvaluationDatasetTagRequest { dataset_id, key } = request.into_inner();
        let dataset = self.change(&dataset_id, DatasetChange::DeleteTag(key)).await?;
        Ok(Response::new(api::DeleteEvaluationDatasetTagResponse { dataset }))
    }

    async fn add_evaluation_dataset_to_experiments(
        &self,
        request: Request<api::AddEvaluationDatasetToExperimentsRequest>,
    ) -> Answer<api::AddEvaluationDatasetToExperimentsResponse> {
        let api::AddEvaluationDatasetToExperimentsRequest { dataset_id, experiment_ids } = request.into_inner();
        let experiments = reading::numbered(experiment_ids)?;
        let dataset = self.change(&dataset_id, DatasetChange::AddExperiments(experiments)).await?;
        Ok(Response::new(api::AddEvaluationDatasetToExperimentsResponse { dataset }))
    }

    async fn remove_evaluation_dataset_from_experiments(
        &self,
        request: Request<api::RemoveEvaluationDatasetFromExperimentsRequest>,
    ) -> Answer<api::RemoveEvaluationDatasetFromExperimentsResponse> {
        let api::RemoveEvaluationDatasetFromExperimentsRequest { dataset_id, experiment_ids } = request.into_inner();
        let experiments = reading::numbered(experiment_ids)?;
        let dataset = self.change(&dataset_id, DatasetChange::RemoveExperiments(experiments)).await?;
        Ok(Response::new(api::RemoveEvaluationDatasetFromExperimentsResponse { dataset }))
    }

    async fn upsert_evaluation_records(
        &self,
        request: Request<api::UpsertEvaluationRecordsRequest>,
    ) -> Answer<api::UpsertEvaluationRecordsResponse> {
        let api::UpsertEvaluationRecordsRequest { dataset_id, records } = request.into_inner();
        let drafts = reading::records(&records.into_iter().map(as_sent).collect())?;
        let Upserted { inserted, updated } = self.store.upsert_records(Millis::now(), &dataset_id, drafts).await?;
        let count = |count: u32| i32::try_from(count).map_err(anyhow::Error::from).map_err(Error::from);
        let (inserted_count, updated_count) = (count(inserted)?, count(updated)?);
        Ok(Response::new(api::UpsertEvaluationRecordsResponse { inserted_count, updated_count }))
    }

    async fn list_evaluation_records(
        &self,
        request: Request<api::ListEvaluationRecordsRequest>,
    ) -> Answer<api::ListEvaluationRecordsResponse> {
        let api::ListEvaluationRecordsRequest { dataset_id, page_size, page_token } = request.into_inner();
        let limit = convert::page_size(page_size)?;
        let after = convert::after(&page_token, After::parse)?;
        let (records, next) = self.store.records(&dataset_id, after.as_ref(), limit).await?;
        let records = records.into_iter().map(api::EvaluationRecord::from).collect();
        let next_page_token = next.map(|after| convert::page_token(&after.to_string())).unwrap_or_default();
        Ok(Response::new(api::ListEvaluationRecordsResponse { records, next_page_token }))
    }

    async fn register_scorer(
        &self,
        request: Request<api::RegisterScorerRequest>,
    ) -> Answer<api::RegisterScorerResponse> {
        let api::RegisterScorerRequest { experiment_id, name, serialized } = request.into_inner();
        reading::name(&name)?;
        reading::scorer(&serialized)?;
        let scorer = self.store.add_scorer(Millis::now(), experiment_id, &name, &serialized).await?;
        Ok(Response::new(api::RegisterScorerResponse { scorer: Some(scorer.into()) }))
    }

    async fn list_scorers(&self, request: Request<api::ListScorersRequest>) -> Answer<api::ListScorersResponse> {
        let api::ListScorersRequest { experiment_id } = request.into_inner();
        let found = self.store.scorers(experiment_id).await?;
        Ok(Response::new(api::ListScorersResponse { scorers: found.into_iter().map(Into::into).collect() }))
    }

    async fn list_scorer_versions(
        &self,
        request: Request<api::ListScorerVersionsRequest>,
    ) -> Answer<api::ListScorerVersionsResponse> {
        let api::ListScorerVersionsRequest { experiment_id, name } = request.into_inner();
        let found = self.store.scorer_versions(experiment_id, &name).await?;
        Ok(Response::new(api::ListScorerVersionsResponse { scorers: found.into_iter().map(Into::into).collect() }))
    }

    async fn get_scorer(&self, request: Request<api::GetScorerRequest>) -> Answer<api::GetScorerResponse> {
        let api::GetScorerRequest { experiment_id, name, version } = request.into_inner();
        let scorer = self.store.scorer(experiment_id, &name, version).await?;
        Ok(Response::new(api::GetScorerResponse { scorer: Some(scorer.into()) }))
    }

    async fn delete_scorer(&self, request: Request<api::DeleteScorerRequest>) -> Answer<api::DeleteScorerResponse> {
        let api::DeleteScorerRequest { experiment_id, name, version } = request.into_inner();
        self.store.delete_scorer(experiment_id, &name, version).await?;
        Ok(Response::new(api::DeleteScorerResponse {}))
    }
}

fn tags_of(tags: HashMap<String, String>) -> Result<BTreeMap<String, String>> {
    reading::tags(&json!(tags))
}

/// A record as it would have come over REST.
fn as_sent(record: api::EvaluationRecord) -> Value {
    let api::EvaluationRecord { inputs, outputs, expectations, tags, source, .. } = record;
    let source = source.map(|source| {
        let kind = match source.r#type() {
            api::EvaluationSourceType::Unspecified => SourceKind::Unspecified,
            api::EvaluationSourceType::Trace => SourceKind::Trace,
            api::EvaluationSourceType::Human => SourceKind::Human,
            api::EvaluationSourceType::Document => SourceKind::Document,
            api::EvaluationSourceType::Code => SourceKind::Code,
        };
        json!({"source_type": kind.word(), "source_data": source.data.map(read_struct)})
    });
    let given = [
        ("inputs", inputs.map(read_struct)),
        ("outputs", outputs.map(read)),
        ("expectations", expectations.map(read_struct)),
        ("tags", tags.map(read_struct)),
        ("source", source),
    ];
    given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn read_struct(object: Struct) -> Value {
    Value::Object(object.fields.into_iter().map(|(name, value)| (name, read(value))).collect())
}

fn read(value: Wire) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        // As over REST, where whole numbers are integers: the same inputs are one record, whoever sends them.
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() <= MAX_EXACT => json!(number as i64),
        Some(Kind::NumberValue(number)) => json!(number),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::BoolValue(truth)) => Value::Bool(truth),
        Some(Kind::StructValue(object)) => read_struct(object),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(read).collect(),
    }
}

fn write_struct(object: Map<String, Value>) -> Struct {
    Struct { fields: object.into_iter().map(|(name, value)| (name, write(value))).collect() }
}

fn write(value: Value) -> Wire {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => Kind::ListValue(ListValue { values: values.into_iter().map(write).collect() }),
        Value::Object(object) => Kind::StructValue(write_struct(object)),
    };
    Wire { kind: Some(kind) }
}

impl TryFrom<Dataset> for api::EvaluationDataset {
    type Error = Error;

    fn try_from(dataset: Dataset) -> Result<Self> {
        let Dataset {
            id,
            name,
            digest,
            schema,
            records,
            tags,
            experiments,
            create_time,
            update_time,
            created_by,
            updated_by,
        } = dataset;
        let schema = schema.map(|schema| serde_json::to_string(&schema).map_err(anyhow::Error::from)).transpose()?;
        Ok(Self {
            dataset_id: id,
            name,
            digest,
            schema: schema.unwrap_or_default(),
            record_count: records,
            tags: tags.into_iter().collect(),
            experiment_ids: experiments,
            create_time_ms: create_time.0,
            update_time_ms: update_time.0,
            created_by: created_by.unwrap_or_default(),
            updated_by: updated_by.unwrap_or_default(),
        })
    }
}

impl From<Record> for api::EvaluationRecord {
    fn from(record: Record) -> Self {
        let Record {
            id,
            input_hash: _,
            inputs,
            outputs,
            expectations,
            tags,
            source,
            create_time,
            update_time,
            created_by,
            updated_by,
        } = record;
        Self {
            record_id: id,
            inputs: Some(write_struct(inputs)),
            outputs: outputs.map(write),
            expectations: expectations.map(write_struct),
            tags: Some(write_struct(tags)),
            source: source.map(Into::into),
            create_time_ms: create_time.0,
            update_time_ms: update_time.0,
            created_by: created_by.unwrap_or_default(),
            updated_by: updated_by.unwrap_or_default(),
        }
    }
}

impl From<Source> for api::EvaluationSource {
    fn from(source: Source) -> Self {
        let Source { kind, data } = source;
        let kind = match kind {
            SourceKind::Unspecified => api::EvaluationSourceType::Unspecified,
            SourceKind::Trace => api::EvaluationSourceType::Trace,
            SourceKind::Human => api::EvaluationSourceType::Human,
            SourceKind::Document => api::EvaluationSourceType::Document,
            SourceKind::Code => api::EvaluationSourceType::Code,
        };
        Self { r#type: kind.into(), data: Some(write_struct(data)) }
    }
}

impl From<Scorer> for api::Scorer {
    fn from(scorer: Scorer) -> Self {
        let Scorer { id, experiment, name, version, serialized, create_time } = scorer;
        Self { scorer_id: id, experiment_id: experiment, name, version, serialized, create_time_ms: create_time }
    }
}
