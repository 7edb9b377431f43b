//! Qdrant's engine in process, one shard directory per collection.
//!
//! ```text
//! <root>/<collection>/collection.json     what it was made for; written last, so what has it is whole
//! <root>/<collection>/shard/              the engine's files
//! ```
//! The engine loads what was flushed and does not replay its write-ahead log. So every write here ends with a flush,
//! and only then is it answered: a process killed at any moment has lost nothing it acknowledged. A document that was
//! half written when it died reads as [`Holding::Other`] and is replaced when it is sent again.
//!
//! The engine never shortens that log either. When it has grown long, the collection is closed and opened again, and
//! shortened in between.

mod log;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use async_trait::async_trait;
use qdrant_edge::external::serde_json::Value;
use qdrant_edge::{
    Condition, CountRequest, CreateIndex, Distance, EdgeConfig, EdgeShard, EdgeSparseVectorParamsBuilder,
    EdgeVectorParamsBuilder, FieldCondition, FieldIndexOperations, Filter, Fusion, JsonPath, Match, Modifier,
    NamedQuery, NamedVectors, PayloadFieldSchema, PayloadSchemaType, PointId, PointInsertOperations, PointOperations,
    PointStruct, Prefetch, QueryEnum, QueryRequest, ScoringQuery, SparseVector, UpdateOperation, ValueVariants, Vector,
    VectorInternal, WithPayloadInterface, WithVector,
};

use super::{
    By, Counts, DENSE, ENGINE_RRF_K, FUSED_DEPTH, Found, Holding, Index, Payload, Point, Points, Query, SPARSE, Schema,
    WRITE_BATCH, engine_limit, label, ranked,
};
use crate::document::{Collection, Passage, passage_key};
use crate::error::{Error, Result};
use crate::sparse::Sparse;

/// Most collections of one process: each holds files and memory while it is open.
const MAX_COLLECTIONS: usize = 256;

/// Bytes of a collection's log that could be freed, from which on it is worth opening the collection again.
const LONG_LOG: u64 = 256 << 20;
/// How long that waits for calls on the collection to end, while others wait for it; then it is left for next time.
const REOPEN_PATIENCE: Duration = Duration::from_millis(200);

const SCHEMA_FILE: &str = "collection.json";

/// Collections below a directory that belongs to this process alone.
pub(crate) struct EdgeIndex(Arc<Collections>);

/// The collections there are. Only work off the async threads takes its locks: a task that waits in line for one while
/// it is not polled would hold up the line.
struct Collections {
    root: PathBuf,
    open: parking_lot::Mutex<HashMap<Collection, Arc<Shard>>>,
    /// Held while one is opened or made.
    opening: parking_lot::Mutex<()>,
    long_log: u64,
}

/// An open collection.
struct Shard {
    name: Collection,
    schema: Schema,
    engine: EdgeShard,
    /// Held while writing: the engine's flush must meet no other writer.
    writing: parking_lot::Mutex<()>,
    /// Whether something is stored that may not be on disk. Set before it is, cleared after it is flushed.
    dirty: AtomicBool,
}

impl EdgeIndex {
    /// Opens the directory, making it if there is none.
    pub(crate) fn open(root: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(root)
            .with_context(|| format!("cannot make the index directory {} (RAG_DATA_DIR)", root.display()))?;
        let root = root.to_owned();
        let (open, opening) = Default::default();
        Ok(Self(Arc::new(Collections { root, open, opening, long_log: LONG_LOG })))
    }

    async fn with<T: Send + 'static>(
        &self,
        collection: &Collection,
        work: impl FnOnce(&Shard) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (collections, name) = (self.0.clone(), collection.clone());
        let done = blocking(move || collections.find(&name)?.map(|shard| work(&shard)).transpose()).await?;
        done.ok_or_else(|| Error::CollectionNotFound(collection.clone()))
    }
}

impl Collections {
    /// Returns the collection, opening it if it is not open yet.
    fn find(&self, name: &Collection) -> anyhow::Result<Option<Arc<Shard>>> {
        if let Some(shard) = self.open.lock().get(name) {
            return Ok(Some(shard.clone()));
        }
        let _opening = self.opening.lock();
        self.load(name)
    }

    /// Returns the collection, making it if there is none.
    fn make(&self, name: &Collection, schema: &Schema) -> anyhow::Result<Result<Schema>> {
        let _opening = self.opening.lock();
        if self.load(name)?.is_none()
            && let Err(refused) = Shard::create(&self.root, name, schema)?
        {
            return Ok(Err(refused));
        }
        let made = self.load(name)?.context("a collection that was just made is gone")?;
        Ok(Ok(made.schema.clone()))
    }

    /// As [`Collections::find`], with `opening` held.
    fn load(&self, name: &Collection) -> anyhow::Result<Option<Arc<Shard>>> {
        if let Some(shard) = self.open.lock().get(name) {
            return Ok(Some(shard.clone()));
        }
        let Some(shard) = Shard::load(&self.root.join(name.as_str()), name.clone())? else { return Ok(None) };
        let shard = Arc::new(shard);
        self.open.lock().insert(name.clone(), shard.clone());
        Ok(Some(shard))
    }

    /// Opens a collection again if its log is long, which shortens it. Leaves it open when calls on it don't end soon.
    fn shorten_log(&self, name: &Collection) -> anyhow::Result<()> {
        let _opening = self.opening.lock();
        if log::spare_bytes(&log_dir(&self.root.join(name.as_str())))? < self.long_log {
            return Ok(());
        }
        let Some(mut shard) = self.open.lock().remove(name) else { return Ok(()) };
        // Calls that begin now wait for `opening`; those that began before hold the shard.
        let since = Instant::now();
        while let Err(held) = Arc::try_unwrap(shard).map(drop) {
            if since.elapsed() > REOPEN_PATIENCE {
                self.open.lock().insert(name.clone(), held);
                return Ok(());
            }
            shard = held;
            std::thread::sleep(Duration::from_millis(2));
        }
        self.load(name)?;
        Ok(())
    }
}

/// Runs work that waits for disk or computes off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> Result<T> {
    let outcome = tokio::task::spawn_blocking(work).await.context("the index failed")?;
    Ok(outcome.context("index")?)
}

#[async_trait]
impl Index for EdgeIndex {
    async fn schema(&self, collection: &Collection) -> Result<Option<Schema>> {
        let (collections, name) = (self.0.clone(), collection.clone());
        blocking(move || Ok(collections.find(&name)?.map(|shard| shard.schema.clone()))).await
    }

    async fn create(&self, collection: &Collection, schema: &Schema) -> Result<Schema> {
        let (collections, name, schema) = (self.0.clone(), collection.clone(), schema.clone());
        blocking(move || collections.make(&name, &schema)).await?
    }

    async fn holdings(&self, collection: &Collection, documents: &[(String, String)]) -> Result<Vec<Holding>> {
        let documents = documents.to_vec();
        self.with(collection, move |shard| shard.holdings(&documents)).await
    }

    async fn replace(&self, collection: &Collection, documents: Vec<Points>) -> Result<Vec<Holding>> {
        let before = self.with(collection, move |shard| shard.replace(documents)).await?;
        let (collections, name) = (self.0.clone(), collection.clone());
        if let Err(error) = blocking(move || collections.shorten_log(&name)).await {
            // All is stored. A collection that could not be opened again is opened by the next call, or says why not.
            tracing::warn!(error = ?error, "could not shorten the log of collection `{collection}`");
        }
        Ok(before)
    }

    async fn delete(&self, collection: &Collection, document_id: &str) -> Result<u32> {
        let document_id = document_id.to_owned();
        self.with(collection, move |shard| shard.delete(&document_id)).await
    }

    async fn search(&self, collection: &Collection, query: Query) -> Result<Vec<Found>> {
        self.with(collection, move |shard| shard.search(query)).await
    }

    async fn passage(&self, collection: &Collection, of: &Passage) -> Result<Option<Passage>> {
        let key = of.key(collection);
        self.with(collection, move |shard| shard.passage(PointId::Uuid(key))).await
    }

    async fn counts(&self, collection: &Collection) -> Result<Counts> {
        self.with(collection, |shard| {
            let first_chunks = only(matches("chunk", ValueVariants::Integer(0)));
            Ok(Counts { documents: shard.count(Some(first_chunks))? as u64, chunks: shard.count(None)? as u64 })
        })
        .await
    }

    async fn settle(&self, collection: &Collection) -> Result<()> {
        self.with(collection, |shard| {
            let _writing = shard.writing.lock();
            // What is rebuilt has to reach the disk as what is written does.
            shard.dirty.store(true, Ordering::SeqCst);
            if shard.engine.optimize()? {
                shard.index_payload()?;
            }
            shard.flush();
            Ok(())
        })
        .await
    }

    async fn probe(&self) -> Result<()> {
        let collections = self.0.clone();
        blocking(move || {
            let root = &collections.root;
            std::fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))?;
            Ok(())
        })
        .await
    }
}

impl Shard {
    /// Makes the collection's directory beside its place and moves it there, so that it is whole or absent.
    fn create(root: &Path, name: &Collection, schema: &Schema) -> anyhow::Result<Result<()>> {
        if std::fs::read_dir(root)?.count() >= MAX_COLLECTIONS {
            return Ok(Err(Error::TooManyCollections(MAX_COLLECTIONS)));
        }
        let draft = root.join(format!(".new-{name}"));
        if draft.exists() {
            std::fs::remove_dir_all(&draft)?;
        }
        std::fs::create_dir_all(draft.join("shard"))?;
        let dense = EdgeVectorParamsBuilder::new(schema.dimensions as usize, Distance::Cosine).build();
        let sparse = EdgeSparseVectorParamsBuilder::new().modifier(Modifier::Idf).build();
        let config = EdgeConfig::builder().vector(DENSE, dense).sparse_vector(SPARSE, sparse).build();
        drop(EdgeShard::new(&draft.join("shard"), config)?);
        let file = std::fs::File::create(draft.join(SCHEMA_FILE))?;
        serde_json::to_writer(&file, schema)?;
        file.sync_all()?;
        std::fs::rename(&draft, root.join(name.as_str()))?;
        std::fs::File::open(root)?.sync_all()?;
        Ok(Ok(()))
    }

    fn load(path: &Path, name: Collection) -> anyhow::Result<Option<Self>> {
        let file = match std::fs::File::open(path.join(SCHEMA_FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot open collection `{name}`")),
        };
        let schema = serde_json::from_reader(std::io::BufReader::new(file))
            .with_context(|| format!("{SCHEMA_FILE} of collection `{name}` is damaged"))?;
        let in_use = || format!("cannot open collection `{name}`; is another process using {}?", path.display());
        log::trim(&log_dir(path)).with_context(in_use)?;
        let engine = EdgeShard::load(&path.join("shard"), None).with_context(in_use)?;
        let (writing, dirty) = (parking_lot::Mutex::default(), AtomicBool::default());
        let shard = Self { name, schema, engine, writing, dirty };
        shard.index_payload()?;
        Ok(Some(shard))
    }

    /// Sees to it that filters are served by indexes; those that exist are kept.
    fn index_payload(&self) -> anyhow::Result<()> {
        let fields = [
            ("document_id", PayloadSchemaType::Keyword),
            ("revision", PayloadSchemaType::Keyword),
            ("labels", PayloadSchemaType::Keyword),
            ("chunk", PayloadSchemaType::Integer),
        ];
        let indexed = self.engine.info().payload_schema;
        for (field, schema) in fields {
            if !indexed.contains_key(&field_path(field)) {
                let create = CreateIndex {
                    field_name: field_path(field),
                    field_schema: Some(PayloadFieldSchema::FieldType(schema)),
                };
                self.update(UpdateOperation::FieldIndexOperation(FieldIndexOperations::CreateIndex(create)))?;
            }
        }
        Ok(())
    }

    /// Changes what is stored; on disk it is after [`Shard::flush`].
    fn update(&self, operation: UpdateOperation) -> anyhow::Result<()> {
        self.dirty.store(true, Ordering::SeqCst);
        Ok(self.engine.update(operation)?)
    }

    /// Brings what is stored to disk if it is not there. To be called with `writing` held.
    fn flush(&self) {
        if self.dirty.load(Ordering::SeqCst) {
            self.engine.flush();
            self.dirty.store(false, Ordering::SeqCst);
        }
    }

    fn count(&self, filter: Option<Filter>) -> anyhow::Result<usize> {
        Ok(self.engine.count(CountRequest { filter, exact: true })?)
    }

    fn passage(&self, id: PointId) -> anyhow::Result<Option<Passage>> {
        let records = self.engine.retrieve(&[id], Some(WithPayloadInterface::Bool(true)), None)?;
        records.into_iter().next().map(|record| passage(record.payload)).transpose()
    }

    fn holding(&self, document_id: &str, revision: &str) -> anyhow::Result<Holding> {
        let of_document = matches("document_id", text(document_id));
        let stored = self.count(Some(only(of_document.clone())))?;
        if stored == 0 {
            return Ok(Holding::Nothing);
        }
        let of_revision =
            Filter { must: Some(vec![of_document, matches("revision", text(revision))]), ..Filter::new() };
        let first = self.passage(PointId::Uuid(passage_key(&self.name, document_id, revision, 0)))?;
        let whole = first.is_some_and(|first| first.chunks as usize == stored);
        let same = whole && self.count(Some(of_revision))? == stored;
        Ok(if same { Holding::Same { chunks: stored as u32 } } else { Holding::Other })
    }

    /// As [`Shard::holding`] for each; what is [`Holding::Same`] is on disk, because it is not sent again.
    fn holdings(&self, documents: &[(String, String)]) -> anyhow::Result<Vec<Holding>> {
        let all = || documents.iter().map(|(id, revision)| self.holding(id, revision)).collect();
        let held: Vec<Holding> = all()?;
        let acknowledges = held.iter().any(|held| matches!(held, Holding::Same { .. }));
        if !acknowledges || !self.dirty.load(Ordering::SeqCst) {
            return Ok(held);
        }
        let _writing = self.writing.lock();
        self.flush();
        all()
    }

    fn replace(&self, documents: Vec<Points>) -> anyhow::Result<Vec<Holding>> {
        let _writing = self.writing.lock();
        let mut before = Vec::with_capacity(documents.len());
        for document in documents {
            let Points { document_id, revision, points } = document;
            let held = self.holding(&document_id, &revision)?;
            before.push(held);
            if matches!(held, Holding::Same { .. }) {
                continue;
            }
            self.upsert(points)?;
            if held == Holding::Other {
                let stale = Filter {
                    must: Some(vec![matches("document_id", text(&document_id))]),
                    must_not: Some(vec![matches("revision", text(&revision))]),
                    ..Filter::new()
                };
                self.update(UpdateOperation::PointOperation(PointOperations::DeletePointsByFilter(stale)))?;
            }
        }
        self.flush();
        Ok(before)
    }

    fn upsert(&self, points: Vec<Point>) -> anyhow::Result<()> {
        let mut points = points.into_iter().peekable();
        while points.peek().is_some() {
            let batch = points.by_ref().take(WRITE_BATCH).map(|point| self.point(point)).collect::<Result<_, _>>()?;
            let insert = PointOperations::UpsertPoints(PointInsertOperations::PointsList(batch));
            self.update(UpdateOperation::PointOperation(insert))?;
        }
        Ok(())
    }

    fn point(&self, point: Point) -> anyhow::Result<qdrant_edge::PointStructPersisted> {
        let Point { passage, dense, sparse } = point;
        let id = PointId::Uuid(passage.key(&self.name));
        let mut vectors = NamedVectors::default().add_vector(DENSE, Vector::new_dense(dense));
        if !sparse.is_empty() {
            vectors = vectors.add_vector(SPARSE, Vector::new_sparse(sparse.indices, sparse.values)?);
        }
        Ok(PointStruct::new(id, vectors, serde_json::to_value(Payload::new(passage))?).into())
    }

    fn delete(&self, document_id: &str) -> anyhow::Result<u32> {
        let _writing = self.writing.lock();
        let of_document = only(matches("document_id", text(document_id)));
        let stored = self.count(Some(of_document.clone()))?;
        if stored > 0 {
            let delete = PointOperations::DeletePointsByFilter(of_document);
            self.update(UpdateOperation::PointOperation(delete))?;
        }
        // Also where there is nothing: an earlier call that failed may have deleted it in memory only.
        self.flush();
        Ok(stored as u32)
    }

    fn search(&self, query: Query) -> anyhow::Result<Vec<Found>> {
        let limit = query.limit;
        let points = self.engine.query(request(query)?)?;
        let found = points
            .into_iter()
            .map(|point| Ok(Found { score: point.score, passage: passage(point.payload)? }))
            .collect::<anyhow::Result<_>>()?;
        Ok(ranked(found, limit))
    }
}

fn request(query: Query) -> anyhow::Result<QueryRequest> {
    let Query { by, limit, filter } = query;
    let conditions: Vec<_> = filter.iter().map(|(key, value)| matches("labels", text(&label(key, value)))).collect();
    let filter = (!conditions.is_empty()).then(|| Filter { must: Some(conditions), ..Filter::new() });
    let limit = engine_limit(limit);
    let prefetch = |query| Prefetch {
        prefetches: Vec::new(),
        query: Some(query),
        limit: limit.max(FUSED_DEPTH),
        params: None,
        filter: filter.clone(),
        score_threshold: None,
    };
    let (prefetches, query) = match by {
        By::Dense(vector) => (Vec::new(), nearest(DENSE, VectorInternal::Dense(vector))),
        By::Sparse(vector) => (Vec::new(), nearest(SPARSE, sparse_vector(vector)?)),
        By::Both(dense, sparse) => {
            let dense = prefetch(nearest(DENSE, VectorInternal::Dense(dense)));
            let sparse = prefetch(nearest(SPARSE, sparse_vector(sparse)?));
            (vec![dense, sparse], ScoringQuery::Fusion(Fusion::Rrf { k: ENGINE_RRF_K, weights: None }))
        }
    };
    Ok(QueryRequest {
        prefetches,
        query: Some(query),
        filter,
        score_threshold: None,
        limit,
        offset: 0,
        params: None,
        with_vector: WithVector::Bool(false),
        with_payload: WithPayloadInterface::Bool(true),
    })
}

fn nearest(name: &str, vector: VectorInternal) -> ScoringQuery {
    ScoringQuery::Vector(QueryEnum::Nearest(NamedQuery::new(vector, name)))
}

fn sparse_vector(sparse: Sparse) -> anyhow::Result<VectorInternal> {
    let vector = SparseVector::new(sparse.indices, sparse.values)?;
    Ok(VectorInternal::Sparse(vector))
}

/// Where the engine keeps the log of the collection in `path`.
fn log_dir(path: &Path) -> PathBuf {
    path.join("shard").join("wal")
}

fn field_path(field: &str) -> JsonPath {
    field.parse().expect("a plain field name is a path")
}

fn text(value: &str) -> ValueVariants {
    ValueVariants::String(value.to_owned())
}

fn matches(field: &str, value: ValueVariants) -> Condition {
    Condition::Field(FieldCondition::new_match(field_path(field), Match::from(value)))
}

fn only(condition: Condition) -> Filter {
    Filter::new_must(condition)
}

fn passage(payload: Option<qdrant_edge::Payload>) -> anyhow::Result<Passage> {
    let payload = payload.context("a stored point has no payload")?;
    let payload: Payload = serde_json::from_value(Value::Object(payload.0)).context("a stored point is damaged")?;
    Ok(payload.passage)
}
