//! Evaluation datasets and their records. Tags and records are JSON in a text, both ways.

use axum::Router;
use axum::extract::State;
use axum::routing::{delete, get, patch, post};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::request::{Fields, Path, missing};
use super::{Answer, Mlflow, Refusal, answer};
use crate::evaluation::{
    After, Dataset, DatasetChange, DatasetDraft, DatasetSearch, Record, Source, Upserted, reading,
};
use crate::search::Subject;
use crate::tracking::Millis;

/// Records and datasets of a page where nothing else is asked for.
const PAGE: u32 = 1_000;
/// Most records of a page.
const MAX_RECORDS: u32 = 10_000;

pub(super) fn routes() -> Router<Mlflow> {
    Router::new()
        .route("/mlflow/datasets/create", post(create))
        .route("/mlflow/datasets/search", get(search).post(search))
        .route("/mlflow/datasets/{dataset_id}", get(by_id).delete(remove))
        .route("/mlflow/datasets/{dataset_id}/tags", patch(set_tags))
        .route("/mlflow/datasets/{dataset_id}/tags/{key}", delete(delete_tag))
        .route("/mlflow/datasets/{dataset_id}/records", get(records).post(upsert))
        .route("/mlflow/datasets/{dataset_id}/experiment-ids", get(experiment_ids))
        .route("/mlflow/datasets/{dataset_id}/add-experiments", post(add_experiments))
        .route("/mlflow/datasets/{dataset_id}/remove-experiments", post(remove_experiments))
}

/// JSON in a text.
fn json_in(fields: &Fields, name: &str) -> Result<Option<Value>, Refusal> {
    let text = fields.text(name)?.filter(|text| !text.is_empty());
    Ok(text.map(|text| reading::json(name, &text)).transpose()?)
}

fn required_json(fields: &Fields, name: &str) -> Result<Value, Refusal> {
    json_in(fields, name)?.ok_or_else(|| missing(name))
}

fn dataset(dataset: Dataset) -> Value {
    let Dataset { id, name, digest, schema, records, tags, experiments, create_time, update_time, .. } = dataset;
    let mut fields = json!({
        "dataset_id": id,
        "name": name,
        "tags": json!(tags).to_string(),
        "digest": digest,
        "created_time": create_time.0,
        "last_update_time": update_time.0,
        "experiment_ids": experiments.iter().map(i64::to_string).collect::<Vec<_>>(),
    });
    let profile = (records > 0).then(|| json!({"num_records": records}).to_string());
    let given = [
        ("schema", schema.map(|schema| json!(schema).to_string())),
        ("profile", profile),
        ("created_by", dataset.created_by),
        ("last_updated_by", dataset.updated_by),
    ];
    put(&mut fields, given);
    fields
}

fn put<const N: usize>(fields: &mut Value, given: [(&str, Option<String>); N]) {
    for (name, value) in given {
        if let Some(value) = value {
            fields[name] = value.into();
        }
    }
}

/// A record as MLflow's clients read it.
fn record(dataset: &str, record: Record) -> Value {
    let Record { id, input_hash: _, inputs, outputs, expectations, tags, source, create_time, update_time, .. } =
        record;
    let mut fields = json!({
        "dataset_record_id": id,
        "dataset_id": dataset,
        "inputs": inputs,
        "tags": tags,
        "created_time": create_time.0,
        "last_update_time": update_time.0,
    });
    if let Some(outputs) = outputs {
        fields["outputs"] = outputs;
    }
    if let Some(expectations) = expectations {
        fields["expectations"] = expectations.into();
    }
    let name = source.as_ref().and_then(Source::id).map(str::to_owned);
    if let Some(source) = source {
        fields["source_type"] = source.kind.word().into();
        fields["source"] = json!(source);
    }
    put(&mut fields, [("source_id", name), ("created_by", record.created_by), ("last_updated_by", record.updated_by)]);
    fields
}

async fn create(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let name = fields.required("name")?;
    reading::name(&name)?;
    let draft = DatasetDraft {
        id: format!("d-{}", Uuid::new_v4().simple()),
        name,
        tags: reading::tags(&json_in(&fields, "tags")?.unwrap_or_else(|| Map::new().into()))?,
        experiments: reading::experiments(&fields.texts("experiment_ids")?)?,
    };
    Ok(answer::one("dataset", dataset(mlflow.store.create_dataset(Millis::now(), &draft).await?)))
}

async fn by_id(State(mlflow): State<Mlflow>, Path(id): Path<String>) -> Answer {
    Ok(answer::one("dataset", dataset(mlflow.store.dataset(&id).await?)))
}

async fn remove(State(mlflow): State<Mlflow>, Path(id): Path<String>) -> Answer {
    mlflow.store.delete_dataset(&id).await?;
    Ok(answer::nothing())
}

async fn search(State(mlflow): State<Mlflow>, fields: Fields) -> Answer {
    let search = DatasetSearch {
        experiments: reading::experiments(&fields.texts("experiment_ids")?)?,
        conditions: fields.conditions(Subject::EvaluationDatasets)?,
        orders: fields.orders(Subject::EvaluationDatasets)?,
        offset: fields.offset()?,
        limit: fields.limit(PAGE, 50_000)?,
    };
    let page = mlflow.store.datasets(&search).await?;
    Ok(answer::page("datasets", page.items.into_iter().map(dataset).collect(), page.next))
}

async fn change(mlflow: &Mlflow, id: &str, change: DatasetChange) -> Answer {
    let changed = mlflow.store.change_dataset(Millis::now(), id, &change).await?;
    Ok(answer::one("dataset", dataset(changed)))
}

async fn set_tags(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    let tags = reading::tags(&required_json(&fields, "tags")?)?;
    change(&mlflow, &id, DatasetChange::SetTags(tags)).await
}

async fn delete_tag(State(mlflow): State<Mlflow>, Path((id, key)): Path<(String, String)>) -> Answer {
    change(&mlflow, &id, DatasetChange::DeleteTag(key)).await?;
    Ok(answer::nothing())
}

async fn experiment_ids(State(mlflow): State<Mlflow>, Path(id): Path<String>) -> Answer {
    let ids = mlflow.store.dataset(&id).await?.experiments;
    Ok(answer::one("experiment_ids", ids.iter().map(i64::to_string).collect()))
}

async fn add_experiments(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    let experiments = reading::experiments(&fields.texts("experiment_ids")?)?;
    change(&mlflow, &id, DatasetChange::AddExperiments(experiments)).await
}

async fn remove_experiments(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    let experiments = reading::experiments(&fields.texts("experiment_ids")?)?;
    change(&mlflow, &id, DatasetChange::RemoveExperiments(experiments)).await
}

async fn upsert(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    let drafts = reading::records(&required_json(&fields, "records")?)?;
    let Upserted { inserted, updated } = mlflow.store.upsert_records(Millis::now(), &id, drafts).await?;
    Ok(answer::whole(json!({"inserted_count": inserted, "updated_count": updated})))
}

/// Reads where a page begins.
fn after(fields: &Fields) -> Result<Option<After>, Refusal> {
    let token = fields.text_or_empty("page_token")?;
    if token.is_empty() {
        return Ok(None);
    }
    let text = hex::decode(&token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let after = text.as_deref().and_then(After::parse);
    after.map(Some).ok_or_else(|| Refusal::invalid("Invalid page token: take one from an answer."))
}

async fn records(State(mlflow): State<Mlflow>, Path(id): Path<String>, fields: Fields) -> Answer {
    let (after, limit) = (after(&fields)?, fields.limit(PAGE, MAX_RECORDS)?);
    let (records, next) = mlflow.store.records(&id, after.as_ref(), limit).await?;
    let records: Value = records.into_iter().map(|one| record(&id, one)).collect();
    let mut page = json!({"records": records.to_string()});
    if let Some(after) = next {
        page["next_page_token"] = hex::encode(after.to_string()).into();
    }
    Ok(answer::whole(page))
}
