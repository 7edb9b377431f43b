//! A Qdrant server, spoken to by gRPC. Needs Qdrant 1.16 or later, which takes the constant of the fusion.
//!
//! A collection here is a collection there, of the same name; what it was made for stands in its metadata. Writes wait
//! until they are applied.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, anyhow};
use async_trait::async_trait;
use qdrant_client::qdrant::facet_value::Variant;
use qdrant_client::qdrant::{
    Condition, CountPointsBuilder, CreateCollection, CreateCollectionBuilder, CreateFieldIndexCollectionBuilder,
    DeletePointsBuilder, Distance, FacetCountsBuilder, FieldType, Filter, GetPointsBuilder, Modifier, NamedVectors,
    PointId, PointStruct, PrefetchQueryBuilder, Query as EngineQuery, QueryPoints, QueryPointsBuilder, RrfBuilder,
    SparseVectorParamsBuilder, SparseVectorsConfigBuilder, UpsertPointsBuilder, Value, Vector, VectorInput,
    VectorParamsBuilder, VectorsConfigBuilder,
};
use qdrant_client::{Payload as EnginePayload, Qdrant, QdrantError};
use tonic::Code;

use super::{
    By, Counts, DENSE, ENGINE_RRF_K, FUSED_DEPTH, Found, Holding, Index, Payload, Point, Points, Query, SPARSE, Schema,
    WRITE_BATCH, engine_limit, label, ranked,
};
use crate::document::{Collection, Passage, passage_key};
use crate::error::{Error, Result};

/// Under this key of a collection's metadata stands its [`Schema`].
const METADATA_KEY: &str = "verdict";

/// Most revisions of one document that are asked for. One is usual; writers that died or met leave more.
const MAX_REVISIONS: u64 = 1000;

/// Collections on a Qdrant server.
pub(crate) struct QdrantIndex {
    client: Qdrant,
}

impl QdrantIndex {
    /// Prepares the connection; the first call makes it.
    pub(crate) fn connect(url: &str, api_key: Option<&str>) -> anyhow::Result<Self> {
        let mut builder = Qdrant::from_url(url)
            .timeout(Duration::from_secs(30))
            .connect_timeout(Duration::from_secs(5))
            .keep_alive_while_idle()
            .skip_compatibility_check();
        if let Some(api_key) = api_key {
            builder = builder.api_key(api_key);
        }
        let client = builder.build().with_context(|| format!("QDRANT_URL `{url}` is not usable"))?;
        Ok(Self { client })
    }

    async fn count(&self, collection: &Collection, filter: Option<Filter>) -> Result<u64> {
        let mut request = CountPointsBuilder::new(collection.as_str()).exact(true);
        if let Some(filter) = filter {
            request = request.filter(filter);
        }
        let response = self.client.count(request).await.map_err(|error| failed(collection, error))?;
        Ok(response.result.map_or(0, |result| result.count))
    }

    async fn get(&self, collection: &Collection, key: uuid::Uuid) -> Result<Option<Passage>> {
        let request =
            GetPointsBuilder::new(collection.as_str(), vec![PointId::from(key.to_string())]).with_payload(true);
        let response = self.client.get_points(request).await.map_err(|error| failed(collection, error))?;
        response.result.into_iter().next().map(|point| passage(point.payload)).transpose()
    }

    async fn holding(&self, collection: &Collection, document_id: &str, revision: &str) -> Result<Holding> {
        let stored = self.count(collection, Some(of_document(document_id))).await?;
        if stored == 0 {
            return Ok(Holding::Nothing);
        }
        let first = self.get(collection, passage_key(collection, document_id, revision, 0)).await?;
        if first.is_none_or(|first| u64::from(first.chunks) != stored) {
            return Ok(Holding::Other);
        }
        let of_revision = Filter::must([
            Condition::matches("document_id", document_id.to_owned()),
            Condition::matches("revision", revision.to_owned()),
        ]);
        let same = self.count(collection, Some(of_revision)).await? == stored;
        Ok(if same { Holding::Same { chunks: u32::try_from(stored).unwrap_or(u32::MAX) } } else { Holding::Other })
    }

    /// Returns the revisions that points of a document are of.
    async fn revisions(&self, collection: &Collection, document_id: &str) -> Result<Vec<String>> {
        let request = FacetCountsBuilder::new(collection.as_str(), "revision")
            .filter(of_document(document_id))
            .limit(MAX_REVISIONS)
            .exact(true);
        let response = self.client.facet(request).await.map_err(|error| failed(collection, error))?;
        let revision = |value| match value {
            Variant::StringValue(revision) => Some(revision),
            Variant::IntegerValue(_) | Variant::BoolValue(_) => None,
        };
        Ok(response.hits.into_iter().filter_map(|hit| revision(hit.value?.variant?)).collect())
    }

    async fn delete_where(&self, collection: &Collection, filter: Filter) -> Result<()> {
        let request = DeletePointsBuilder::new(collection.as_str()).points(filter).wait(true);
        self.client.delete_points(request).await.map_err(|error| failed(collection, error))?;
        Ok(())
    }
}

#[async_trait]
impl Index for QdrantIndex {
    async fn schema(&self, collection: &Collection) -> Result<Option<Schema>> {
        let info = match self.client.collection_info(collection.as_str()).await {
            Ok(response) => response.result,
            Err(error) if is(&error, Code::NotFound) => return Ok(None),
            Err(error) => return Err(failed(collection, error)),
        };
        let metadata = info.and_then(|info| info.config).map(|config| config.metadata).unwrap_or_default();
        let schema = metadata.get(METADATA_KEY).cloned().map(serde_json::Value::from);
        let schema = schema.ok_or_else(|| anyhow!("Qdrant collection `{collection}` was not made by this service"))?;
        Ok(Some(serde_json::from_value(schema).context("metadata of a Qdrant collection is damaged")?))
    }

    async fn create(&self, collection: &Collection, schema: &Schema) -> Result<Schema> {
        let found = match self.schema(collection).await? {
            Some(found) => found,
            None => match self.client.create_collection(creation(collection, schema)?).await {
                Ok(_) => schema.clone(),
                Err(error) if is(&error, Code::AlreadyExists) => {
                    let found = self.schema(collection).await?;
                    found.ok_or_else(|| Error::CollectionNotFound(collection.clone()))?
                }
                Err(error) => return Err(failed(collection, error)),
            },
        };
        // Each time: whoever made the collection may have died before its indexes.
        for (field, kind) in INDEXED {
            let request = CreateFieldIndexCollectionBuilder::new(collection.as_str(), field, kind).wait(true);
            self.client.create_field_index(request).await.map_err(|error| failed(collection, error))?;
        }
        Ok(found)
    }

    async fn holdings(&self, collection: &Collection, documents: &[(String, String)]) -> Result<Vec<Holding>> {
        let holdings = documents.iter().map(|(id, revision)| self.holding(collection, id, revision));
        futures::future::try_join_all(holdings).await
    }

    async fn replace(&self, collection: &Collection, documents: Vec<Points>) -> Result<Vec<Holding>> {
        let mut before = Vec::with_capacity(documents.len());
        for document in documents {
            let Points { document_id, revision, points } = document;
            let held = self.holding(collection, &document_id, &revision).await?;
            before.push(held);
            if matches!(held, Holding::Same { .. }) {
                continue;
            }
            // Before anything is written: of two writers that meet, one at most sees what the other wrote, so one at
            // least stays whole.
            let mut seen = match held {
                Holding::Other => self.revisions(collection, &document_id).await?,
                Holding::Nothing | Holding::Same { .. } => Vec::new(),
            };
            seen.retain(|seen| *seen != revision);
            let points = points.into_iter().map(|point| engine_point(collection, point)).collect::<Result<Vec<_>>>()?;
            for batch in points.chunks(WRITE_BATCH) {
                let request = UpsertPointsBuilder::new(collection.as_str(), batch.to_vec()).wait(true);
                self.client.upsert_points(request).await.map_err(|error| failed(collection, error))?;
            }
            if !seen.is_empty() {
                self.delete_where(collection, of_revisions(&document_id, seen)).await?;
            }
        }
        Ok(before)
    }

    async fn delete(&self, collection: &Collection, document_id: &str) -> Result<u32> {
        let stored = self.count(collection, Some(of_document(document_id))).await?;
        if stored > 0 {
            self.delete_where(collection, of_document(document_id)).await?;
        }
        Ok(u32::try_from(stored).unwrap_or(u32::MAX))
    }

    async fn search(&self, collection: &Collection, query: Query) -> Result<Vec<Found>> {
        let limit = query.limit;
        let response =
            self.client.query(request(collection, query)).await.map_err(|error| failed(collection, error))?;
        let found = response
            .result
            .into_iter()
            .map(|point| Ok(Found { score: point.score, passage: passage(point.payload)? }))
            .collect::<Result<_>>()?;
        Ok(ranked(found, limit))
    }

    async fn passage(&self, collection: &Collection, of: &Passage) -> Result<Option<Passage>> {
        self.get(collection, of.key(collection)).await
    }

    async fn counts(&self, collection: &Collection) -> Result<Counts> {
        let first_chunks = Filter::must([Condition::matches("chunk", 0)]);
        let documents = self.count(collection, Some(first_chunks)).await?;
        Ok(Counts { documents, chunks: self.count(collection, None).await? })
    }

    /// The server does it by itself.
    async fn settle(&self, _collection: &Collection) -> Result<()> {
        Ok(())
    }

    async fn probe(&self) -> Result<()> {
        self.client.health_check().await.map_err(|error| unavailable(error.into()))?;
        Ok(())
    }
}

/// Payload fields that filters and counts ask for.
const INDEXED: [(&str, FieldType); 4] = [
    ("document_id", FieldType::Keyword),
    ("revision", FieldType::Keyword),
    ("labels", FieldType::Keyword),
    ("chunk", FieldType::Integer),
];

fn creation(collection: &Collection, schema: &Schema) -> Result<CreateCollection> {
    let mut dense = VectorsConfigBuilder::default();
    dense.add_named_vector_params(DENSE, VectorParamsBuilder::new(u64::from(schema.dimensions), Distance::Cosine));
    let mut sparse = SparseVectorsConfigBuilder::default();
    sparse.add_named_vector_params(SPARSE, SparseVectorParamsBuilder::default().modifier(Modifier::Idf));
    let schema = serde_json::to_value(schema).context("schema")?;
    Ok(CreateCollectionBuilder::new(collection.as_str())
        .vectors_config(dense)
        .sparse_vectors_config(sparse)
        .metadata(HashMap::from([(METADATA_KEY.to_owned(), schema)]))
        .build())
}

fn engine_point(collection: &Collection, point: Point) -> Result<PointStruct> {
    let Point { passage, dense, sparse } = point;
    let id = passage.key(collection).to_string();
    let mut vectors = NamedVectors::default().add_vector(DENSE, Vector::from(dense));
    if !sparse.is_empty() {
        let pairs: Vec<_> = sparse.indices.into_iter().zip(sparse.values).collect();
        vectors = vectors.add_vector(SPARSE, Vector::from(pairs));
    }
    let payload = serde_json::to_value(Payload::new(passage)).context("payload")?;
    let payload = EnginePayload::try_from(payload).map_err(|error| anyhow!(error))?;
    Ok(PointStruct::new(id, vectors, payload))
}

fn request(collection: &Collection, query: Query) -> QueryPoints {
    let Query { by, limit, filter } = query;
    let filter = Filter::must(filter.iter().map(|(key, value)| Condition::matches("labels", label(key, value))));
    let limit = engine_limit(limit);
    let request = QueryPointsBuilder::new(collection.as_str()).limit(limit as u64).with_payload(true);
    let prefetch = |vector: VectorInput, name: &str| {
        PrefetchQueryBuilder::default()
            .query(EngineQuery::new_nearest(vector))
            .using(name)
            .limit(limit.max(FUSED_DEPTH) as u64)
            .filter(filter.clone())
    };
    let sparse_input = |sparse: crate::sparse::Sparse| {
        let pairs: Vec<_> = sparse.indices.into_iter().zip(sparse.values).collect();
        VectorInput::from(pairs.as_slice())
    };
    match by {
        By::Dense(dense) => request.query(EngineQuery::new_nearest(dense)).using(DENSE).filter(filter),
        By::Sparse(sparse) => {
            request.query(EngineQuery::new_nearest(sparse_input(sparse))).using(SPARSE).filter(filter)
        }
        By::Both(dense, sparse) => request
            .add_prefetch(prefetch(VectorInput::from(dense), DENSE))
            .add_prefetch(prefetch(sparse_input(sparse), SPARSE))
            .query(EngineQuery::new_rrf(RrfBuilder::with_k(ENGINE_RRF_K as u32))),
    }
    .build()
}

fn of_document(document_id: &str) -> Filter {
    Filter::must([Condition::matches("document_id", document_id.to_owned())])
}

fn of_revisions(document_id: &str, revisions: Vec<String>) -> Filter {
    let mut filter = of_document(document_id);
    filter.must.push(Condition::matches("revision", revisions));
    filter
}

fn passage(payload: HashMap<String, Value>) -> Result<Passage> {
    let payload: Payload = EnginePayload::from(payload).deserialize().context("a stored point is damaged")?;
    Ok(payload.passage)
}

fn is(error: &QdrantError, code: Code) -> bool {
    matches!(error, QdrantError::ResponseError { status } if status.code() == code)
}

/// Sorts a failure by what can be done about it.
fn failed(collection: &Collection, error: QdrantError) -> Error {
    match &error {
        QdrantError::ResponseError { status } => match status.code() {
            Code::NotFound => Error::CollectionNotFound(collection.clone()),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => unavailable(error.into()),
            _ => Error::Internal(error.into()),
        },
        QdrantError::ResourceExhaustedError { retry_after_seconds, .. } => {
            Error::Busy { retry_after: Duration::from_secs(*retry_after_seconds), message: "Qdrant is busy".into() }
        }
        _ => Error::Internal(error.into()),
    }
}

fn unavailable(source: anyhow::Error) -> Error {
    Error::Unavailable { dependency: "Qdrant", source }
}

#[cfg(test)]
mod tests {
    use qdrant_client::qdrant::query::Variant as QueryVariant;
    use qdrant_client::qdrant::vectors_config;

    use super::*;
    use crate::sparse::Sparse;
    use crate::words::Words;

    fn collection() -> Collection {
        Collection::new("docs").unwrap()
    }

    #[test]
    fn a_collection_is_asked_for_with_both_vectors_and_its_schema() {
        let schema = Schema { embedding_digest: "sha256:1".into(), dimensions: 384 };
        let request = creation(&collection(), &schema).unwrap();
        let Some(vectors_config::Config::ParamsMap(dense)) = request.vectors_config.unwrap().config else { panic!() };
        assert_eq!((dense.map[DENSE].size, dense.map[DENSE].distance), (384, Distance::Cosine as i32));
        assert_eq!(request.sparse_vectors_config.unwrap().map[SPARSE].modifier, Some(Modifier::Idf as i32));
        let stored: Schema = serde_json::from_value(request.metadata[METADATA_KEY].clone().into()).unwrap();
        assert_eq!(stored, schema);
    }

    #[test]
    fn a_hybrid_query_fuses_two_filtered_lists_with_the_stated_constant() {
        let sparse = Sparse::of_query(&Words::default(), "boundary layer");
        let filter = [("source".to_owned(), "docs".to_owned())].into();
        let query = Query { by: By::Both(vec![1.0, 0.0], sparse), limit: 10, filter };
        let request = request(&collection(), query);
        assert_eq!(request.prefetch.len(), 2);
        assert_eq!(request.prefetch[0].using.as_deref(), Some(DENSE));
        assert_eq!(request.prefetch[1].using.as_deref(), Some(SPARSE));
        for prefetch in &request.prefetch {
            assert_eq!(prefetch.limit, Some(FUSED_DEPTH as u64));
            assert_eq!(
                prefetch.filter.as_ref().unwrap().must,
                [Condition::matches("labels", r#"["source","docs"]"#.to_owned())]
            );
        }
        let Some(QueryVariant::Rrf(rrf)) = request.query.unwrap().variant else { panic!() };
        assert_eq!(rrf.k, Some(61));
    }

    #[test]
    fn only_the_revisions_that_were_seen_are_deleted() {
        let filter = of_revisions("d", vec!["1".into(), "2".into()]);
        let seen = Condition::matches("revision", vec!["1".to_owned(), "2".to_owned()]);
        assert_eq!(filter.must, [Condition::matches("document_id", "d".to_owned()), seen]);
        assert!(filter.must_not.is_empty() && filter.should.is_empty());
    }

    #[test]
    fn a_passage_survives_the_way_into_a_point_and_back() {
        let passage = Passage {
            document_id: "d".into(),
            revision: "r".into(),
            version: "v".into(),
            title: "t".into(),
            uri: String::new(),
            chunk: 1,
            chunks: 2,
            headings: vec!["a".into(), "b".into()],
            text: "x".into(),
            start: 3,
            end: 4,
            metadata: [("k".into(), "v".into())].into(),
        };
        let sparse = Sparse::of_passage(&Words::default(), "boundary");
        let point = Point { passage: passage.clone(), dense: vec![0.5], sparse };
        let point = engine_point(&collection(), point).unwrap();
        assert_eq!(super::passage(point.payload).unwrap(), passage);
        assert_eq!(point.id, Some(PointId::from(passage.key(&collection()).to_string())));
    }
}
