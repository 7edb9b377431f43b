//! Evaluation datasets and their records, compiled once for each database.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::TryStreamExt;
use sqlx::{QueryBuilder, query};
use uuid::Uuid;

use super::searching::{Place, push_conditions, push_orders, push_page};
use super::{Connection, Db, IDS_AT_ONCE, ROWS_AT_ONCE, Tables};
use crate::error::{Entity, Error, Result};
use crate::evaluation::{
    After, Dataset, DatasetChange, DatasetDraft, DatasetSearch, Datasets, MAX_PAGE_BYTES, Record, RecordDraft, Schema,
    Upserted, digest,
};
use crate::search::Attribute;
use crate::store::rows::{from_json, to_json};
use crate::tracking::{Millis, Page};

const COLUMNS: &str = "SELECT id, name, digest, schema, records, create_time, update_time, created_by, updated_by
                       FROM evaluation_datasets";

const RECORD_COLUMNS: &str =
    "SELECT id, input_hash, inputs, outputs, expectations, tags, source, create_time, update_time, created_by, updated_by
     FROM evaluation_records WHERE dataset = ";

const PLACE: Place = Place {
    column: |attribute| match attribute {
        Attribute::Name => Some("evaluation_datasets.name"),
        Attribute::CreatedTime => Some("evaluation_datasets.create_time"),
        Attribute::LastUpdateTime => Some("evaluation_datasets.update_time"),
        Attribute::CreatedBy => Some("evaluation_datasets.created_by"),
        Attribute::LastUpdatedBy => Some("evaluation_datasets.updated_by"),
        _ => None,
    },
    tags: "evaluation_dataset_tags p WHERE p.dataset = evaluation_datasets.id",
    params: "",
    metrics: "",
    datasets: "",
    per_millisecond: 1,
};

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    name: String,
    digest: String,
    schema: Option<String>,
    records: i64,
    create_time: i64,
    update_time: i64,
    created_by: Option<String>,
    updated_by: Option<String>,
}

#[derive(sqlx::FromRow)]
struct RecordRow {
    id: String,
    input_hash: String,
    inputs: String,
    outputs: Option<String>,
    expectations: Option<String>,
    tags: String,
    source: Option<String>,
    create_time: i64,
    update_time: i64,
    created_by: Option<String>,
    updated_by: Option<String>,
}

impl RecordRow {
    /// Of the texts that callers have sent.
    fn bytes(&self) -> usize {
        let Self { inputs, outputs, expectations, tags, source, .. } = self;
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        inputs.len() + length(outputs) + length(expectations) + tags.len() + length(source)
    }

    fn into_record(self) -> Result<Record> {
        let Self { id, input_hash, inputs, outputs, expectations, tags, source, .. } = self;
        Ok(Record {
            id,
            input_hash,
            inputs: from_json(&inputs)?,
            outputs: outputs.as_deref().map(from_json).transpose()?,
            expectations: expectations.as_deref().map(from_json).transpose()?,
            tags: from_json(&tags)?,
            source: source.as_deref().map(from_json).transpose()?,
            create_time: Millis(self.create_time),
            update_time: Millis(self.update_time),
            created_by: self.created_by,
            updated_by: self.updated_by,
        })
    }
}

#[async_trait]
impl Datasets for Tables {
    async fn create_dataset(&self, now: Millis, draft: &DatasetDraft) -> Result<Dataset> {
        let DatasetDraft { id, name, tags, experiments } = draft;
        let mut tx = self.begin_write().await?;
        query(
            "INSERT INTO evaluation_datasets (id, name, digest, create_time, update_time, created_by, updated_by)
             VALUES ($1, $2, $3, $4, $4, $5, $5)",
        )
        .bind(id)
        .bind(name)
        .bind(digest(name, now))
        .bind(now.0)
        .bind(draft.user())
        .execute(&mut *tx)
        .await?;
        set_tags(&mut tx, id, tags).await?;
        add_experiments(&mut tx, id, experiments).await?;
        let dataset = find(&mut tx, id).await?;
        tx.commit().await?;
        Ok(dataset)
    }

    async fn dataset(&self, id: &str) -> Result<Dataset> {
        find(&mut *self.read().await?, id).await
    }

    async fn datasets(&self, search: &DatasetSearch) -> Result<Page<Dataset>> {
        let DatasetSearch { experiments, conditions, orders, offset, limit } = search;
        let mut tx = self.read().await?;
        let mut query = QueryBuilder::<Db>::new(COLUMNS);
        query.push(" WHERE 1 = 1");
        if !experiments.is_empty() {
            query.push(" AND id IN (SELECT dataset FROM evaluation_dataset_experiments WHERE experiment IN (");
            let mut ids = query.separated(", ");
            for id in experiments {
                ids.push_bind(*id);
            }
            query.push("))");
        }
        push_conditions(&mut query, &PLACE, conditions);
        push_orders(
            &mut query,
            &PLACE,
            orders,
            if orders.is_empty() { "create_time DESC, id DESC" } else { "id DESC" },
        );
        push_page(&mut query, *offset, *limit);
        let rows = query.build_query_as().fetch_all(&mut *tx).await?;
        Ok(Page::cut(with_parts(&mut tx, rows).await?, *offset, *limit))
    }

    async fn change_dataset(&self, now: Millis, id: &str, change: &DatasetChange) -> Result<Dataset> {
        let mut tx = self.begin_write().await?;
        lock(&mut tx, id).await?;
        let touched = match change {
            DatasetChange::SetTags(tags) => {
                set_tags(&mut tx, id, tags).await?;
                false
            }
            DatasetChange::DeleteTag(key) => {
                query("DELETE FROM evaluation_dataset_tags WHERE dataset = $1 AND key = $2")
                    .bind(id)
                    .bind(key)
                    .execute(&mut *tx)
                    .await?;
                false
            }
            DatasetChange::AddExperiments(experiments) => {
                add_experiments(&mut tx, id, experiments).await?;
                true
            }
            DatasetChange::RemoveExperiments(experiments) => remove_experiments(&mut tx, id, experiments).await? > 0,
        };
        if touched {
            query("UPDATE evaluation_datasets SET update_time = $1 WHERE id = $2")
                .bind(now.0)
                .bind(id)
                .execute(&mut *tx)
                .await?;
        }
        let dataset = find(&mut tx, id).await?;
        tx.commit().await?;
        Ok(dataset)
    }

    async fn delete_dataset(&self, id: &str) -> Result<()> {
        let mut tx = self.begin_write().await?;
        // Locks the row, where rows can be locked, so that nothing is added to what is being deleted.
        query("UPDATE evaluation_datasets SET records = records WHERE id = $1").bind(id).execute(&mut *tx).await?;
        for sql in [
            "DELETE FROM evaluation_records WHERE dataset = $1",
            "DELETE FROM evaluation_dataset_tags WHERE dataset = $1",
            "DELETE FROM evaluation_dataset_experiments WHERE dataset = $1",
            "DELETE FROM evaluation_datasets WHERE id = $1",
        ] {
            query(sql).bind(id).execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn upsert_records(&self, now: Millis, id: &str, drafts: Vec<RecordDraft>) -> Result<Upserted> {
        let mut tx = self.begin_write().await?;
        lock(&mut tx, id).await?;
        let before = find(&mut tx, id).await?;
        let mut schema = before.schema.clone();
        let mut known = with_inputs_of(&mut tx, id, &drafts).await?;
        let (mut upserted, mut user) = (Upserted::default(), None);
        for draft in drafts {
            schema.get_or_insert_with(Schema::default).widen(&draft)?;
            user = draft.user().map(str::to_owned).or(user);
            let hash = draft.input_hash();
            match known.get_mut(&hash) {
                Some(record) => {
                    draft.merge_into(record, now);
                    upserted.updated += 1;
                }
                None => {
                    let id = format!("dr-{}", Uuid::now_v7().simple());
                    known.insert(hash, draft.into_record(id, now));
                    upserted.inserted += 1;
                }
            }
        }
        put_records(&mut tx, id, &Vec::from_iter(known.into_values())).await?;
        query(
            "UPDATE evaluation_datasets SET update_time = $1, digest = $2, updated_by = $3, schema = $4, records = records + $5
             WHERE id = $6",
        )
        .bind(now.0)
        .bind(digest(&before.name, now))
        .bind(user)
        .bind(schema.as_ref().map(to_json).transpose()?)
        .bind(i64::from(upserted.inserted))
        .bind(id)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(upserted)
    }

    async fn records(&self, id: &str, after: Option<&After>, limit: u32) -> Result<(Vec<Record>, Option<After>)> {
        let mut tx = self.read().await?;
        find(&mut tx, id).await?;
        let mut query = QueryBuilder::<Db>::new(RECORD_COLUMNS);
        query.push_bind(id.to_owned());
        if let Some(After { create_time, id }) = after {
            query.push(" AND (create_time, id) > (").push_bind(create_time.0);
            query.push(", ").push_bind(id.clone()).push(")");
        }
        query.push(" ORDER BY create_time, id LIMIT ").push_bind(i64::from(limit) + 1);
        let mut rows = query.build_query_as::<RecordRow>().fetch(&mut *tx);
        let (mut records, mut bytes, mut has_more) = (Vec::new(), 0, false);
        while let Some(row) = rows.try_next().await? {
            bytes += row.bytes();
            has_more = records.len() >= limit as usize || (bytes > MAX_PAGE_BYTES && !records.is_empty());
            if has_more {
                break;
            }
            records.push(row.into_record()?);
        }
        let last = records.last().filter(|_| has_more);
        let next = last.map(|Record { create_time, id, .. }| After { create_time: *create_time, id: id.clone() });
        Ok((records, next))
    }
}

fn missing(id: &str) -> Error {
    Error::NotFound(Entity::EvaluationDataset(id.to_owned()))
}

/// Makes other writers of this dataset wait, where it exists.
async fn lock(tx: &mut Connection, id: &str) -> Result<()> {
    let locked =
        query("UPDATE evaluation_datasets SET records = records WHERE id = $1").bind(id).execute(&mut *tx).await?;
    if locked.rows_affected() == 0 { Err(missing(id)) } else { Ok(()) }
}

async fn find(tx: &mut Connection, id: &str) -> Result<Dataset> {
    let mut query = QueryBuilder::<Db>::new(COLUMNS);
    query.push(" WHERE id = ").push_bind(id.to_owned());
    let rows = query.build_query_as().fetch_all(&mut *tx).await?;
    with_parts(tx, rows).await?.pop().ok_or_else(|| missing(id))
}

async fn set_tags(tx: &mut Connection, id: &str, tags: &BTreeMap<String, String>) -> Result<()> {
    for some in Vec::from_iter(tags).chunks(ROWS_AT_ONCE) {
        let mut query = QueryBuilder::<Db>::new("INSERT INTO evaluation_dataset_tags (dataset, key, value) ");
        query.push_values(some, |mut row, (key, value)| {
            row.push_bind(id.to_owned()).push_bind((*key).clone()).push_bind((*value).clone());
        });
        query.push(" ON CONFLICT (dataset, key) DO UPDATE SET value = excluded.value");
        query.build().execute(&mut *tx).await?;
    }
    Ok(())
}

async fn add_experiments(tx: &mut Connection, id: &str, experiments: &[i64]) -> Result<()> {
    for some in experiments.chunks(ROWS_AT_ONCE) {
        let mut query = QueryBuilder::<Db>::new("SELECT id FROM experiments WHERE ");
        push_ids(&mut query, "id", some);
        let there: Vec<i64> = query.build_query_scalar().fetch_all(&mut *tx).await?;
        if let Some(missing) = some.iter().find(|id| !there.contains(id)) {
            return Err(Error::NotFound(Entity::Experiment(missing.to_string())));
        }
        let mut query = QueryBuilder::<Db>::new("INSERT INTO evaluation_dataset_experiments (dataset, experiment) ");
        query.push_values(some, |mut row, experiment| {
            row.push_bind(id.to_owned()).push_bind(*experiment);
        });
        query.push(" ON CONFLICT DO NOTHING");
        query.build().execute(&mut *tx).await?;
    }
    Ok(())
}

async fn remove_experiments(tx: &mut Connection, id: &str, experiments: &[i64]) -> Result<u64> {
    let mut removed = 0;
    for some in experiments.chunks(IDS_AT_ONCE) {
        let mut query = QueryBuilder::<Db>::new("DELETE FROM evaluation_dataset_experiments WHERE dataset = ");
        query.push_bind(id.to_owned()).push(" AND ");
        push_ids(&mut query, "experiment", some);
        removed += query.build().execute(&mut *tx).await?.rows_affected();
    }
    Ok(removed)
}

fn push_ids(query: &mut QueryBuilder<Db>, column: &str, ids: &[i64]) {
    let mut list = query.push(format!("{column} IN (")).separated(", ");
    for id in ids {
        list.push_bind(*id);
    }
    query.push(")");
}

/// The records that have the inputs of some draft already, by the hash of these.
async fn with_inputs_of(tx: &mut Connection, id: &str, drafts: &[RecordDraft]) -> Result<BTreeMap<String, Record>> {
    let mut records = BTreeMap::new();
    for some in drafts.chunks(IDS_AT_ONCE) {
        let mut query = QueryBuilder::<Db>::new(RECORD_COLUMNS);
        query.push_bind(id.to_owned());
        let mut hashes = query.push(" AND input_hash IN (").separated(", ");
        for draft in some {
            hashes.push_bind(draft.input_hash());
        }
        query.push(")");
        let rows: Vec<RecordRow> = query.build_query_as().fetch_all(&mut *tx).await?;
        for row in rows {
            records.insert(row.input_hash.clone(), row.into_record()?);
        }
    }
    Ok(records)
}

async fn put_records(tx: &mut Connection, id: &str, records: &[Record]) -> Result<()> {
    for some in records.chunks(ROWS_AT_ONCE) {
        let rows = some.iter().map(texts_of).collect::<Result<Vec<_>>>()?;
        let mut query = QueryBuilder::<Db>::new(
            "INSERT INTO evaluation_records (dataset, input_hash, id, inputs, outputs, expectations, tags, source,
                                             create_time, update_time, created_by, updated_by) ",
        );
        query.push_values(some.iter().zip(rows), |mut row, (record, [inputs, outputs, expectations, tags, source])| {
            row.push_bind(id.to_owned()).push_bind(record.input_hash.clone()).push_bind(record.id.clone());
            row.push_bind(inputs).push_bind(outputs).push_bind(expectations).push_bind(tags).push_bind(source);
            row.push_bind(record.create_time.0).push_bind(record.update_time.0);
            row.push_bind(record.created_by.clone()).push_bind(record.updated_by.clone());
        });
        query.push(
            " ON CONFLICT (dataset, input_hash) DO UPDATE SET outputs = excluded.outputs, expectations = excluded.expectations,
                  tags = excluded.tags, update_time = excluded.update_time, updated_by = excluded.updated_by",
        );
        query.build().execute(&mut *tx).await?;
    }
    Ok(())
}

/// Inputs, outputs, expectations, tags and source as JSON.
fn texts_of(record: &Record) -> Result<[Option<String>; 5]> {
    Ok([
        Some(to_json(&record.inputs)?),
        record.outputs.as_ref().map(to_json).transpose()?,
        record.expectations.as_ref().map(to_json).transpose()?,
        Some(to_json(&record.tags)?),
        record.source.as_ref().map(to_json).transpose()?,
    ])
}

/// Adds tags and experiments to rows.
async fn with_parts(tx: &mut Connection, rows: Vec<Row>) -> Result<Vec<Dataset>> {
    let mut tags: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut experiments: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for some in rows.chunks(IDS_AT_ONCE) {
        let mut query = of_datasets("SELECT dataset, key, value FROM evaluation_dataset_tags", some);
        let found: Vec<(String, String, String)> = query.build_query_as().fetch_all(&mut *tx).await?;
        for (dataset, key, value) in found {
            tags.entry(dataset).or_default().insert(key, value);
        }
        let mut query = of_datasets("SELECT dataset, experiment FROM evaluation_dataset_experiments", some);
        query.push(" ORDER BY experiment");
        let found: Vec<(String, i64)> = query.build_query_as().fetch_all(&mut *tx).await?;
        for (dataset, experiment) in found {
            experiments.entry(dataset).or_default().push(experiment);
        }
    }
    let dataset = |row: Row| {
        let Row { id, name, digest, schema, records, create_time, update_time, created_by, updated_by } = row;
        Ok(Dataset {
            name,
            digest,
            schema: schema.as_deref().map(from_json).transpose()?,
            records,
            tags: tags.remove(&id).unwrap_or_default(),
            experiments: experiments.remove(&id).unwrap_or_default(),
            id,
            create_time: Millis(create_time),
            update_time: Millis(update_time),
            created_by,
            updated_by,
        })
    };
    rows.into_iter().map(dataset).collect()
}

fn of_datasets(select: &'static str, rows: &[Row]) -> QueryBuilder<Db> {
    let mut query = QueryBuilder::<Db>::new(select);
    let mut ids = query.push(" WHERE dataset IN (").separated(", ");
    for row in rows {
        ids.push_bind(row.id.clone());
    }
    query.push(")");
    query
}
