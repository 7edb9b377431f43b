//! Models and versions as a whole: rows and what belongs to them.

use std::collections::BTreeMap;

use sqlx::{QueryBuilder, query_as};

use super::{Connection, Db, IDS_AT_ONCE};
use crate::error::{Entity, Error, Result};
use crate::model::{Model, Version};
use crate::names::{ModelName, VersionId};
use crate::store::rows::{ArtifactRow, ModelRow, VersionParts, VersionRow};

pub(super) async fn model(tx: &mut Connection, name: &ModelName) -> Result<Model> {
    find_model(tx, name).await?.ok_or_else(|| Error::NotFound(Entity::Model(name.clone())))
}

pub(super) async fn find_model(tx: &mut Connection, name: &ModelName) -> Result<Option<Model>> {
    let row = query_as(
        "SELECT name, description, create_time, update_time, revision,
                COALESCE((SELECT MAX(version) FROM versions WHERE model = name), 0) AS latest_version
         FROM models WHERE name = $1",
    )
    .bind(name.as_str())
    .fetch_all(&mut *tx)
    .await?;
    Ok(with_parts_of_models(tx, row).await?.pop())
}

/// Adds tags and aliases to rows.
pub(super) async fn with_parts_of_models(tx: &mut Connection, rows: Vec<ModelRow>) -> Result<Vec<Model>> {
    let mut aliases: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
    let mut tags: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for some in rows.chunks(IDS_AT_ONCE) {
        let mut query = of_models("SELECT model, alias, version FROM aliases WHERE ", some);
        let found: Vec<(String, String, i64)> = query.build_query_as().fetch_all(&mut *tx).await?;
        for (model, alias, version) in found {
            aliases.entry(model).or_default().insert(alias, version);
        }
        let mut query = of_models("SELECT model, key, value FROM tags WHERE version = 0 AND ", some);
        let found: Vec<(String, String, String)> = query.build_query_as().fetch_all(&mut *tx).await?;
        for (model, key, value) in found {
            tags.entry(model).or_default().insert(key, value);
        }
    }
    let with_parts = |row: ModelRow| {
        let (tags, aliases) = (tags.remove(&row.name), aliases.remove(&row.name));
        row.into_model(tags.unwrap_or_default(), aliases.unwrap_or_default())
    };
    Ok(rows.into_iter().map(with_parts).collect())
}

fn of_models(select: &'static str, rows: &[ModelRow]) -> QueryBuilder<Db> {
    let mut query = QueryBuilder::<Db>::new(select);
    let mut names = query.push("model IN (").separated(", ");
    for row in rows {
        names.push_bind(row.name.clone());
    }
    query.push(")");
    query
}

pub(super) async fn version(tx: &mut Connection, id: &VersionId) -> Result<Version> {
    let wanted = [(id.model.as_str().to_owned(), id.number)];
    if let Some(version) = versions_of(tx, &wanted).await?.pop() {
        return Ok(version);
    }
    model(tx, &id.model).await?;
    Err(Error::NotFound(Entity::Version(id.clone())))
}

/// The versions with these models and numbers, in this order, in four queries for a thousand; what is gone is left out.
pub(super) async fn versions_of(tx: &mut Connection, ids: &[(String, i64)]) -> Result<Vec<Version>> {
    let mut found: BTreeMap<(String, i64), Version> = BTreeMap::new();
    for some in ids.chunks(IDS_AT_ONCE) {
        let mut parts: BTreeMap<(String, i64), VersionParts> = BTreeMap::new();
        let mut query = of_versions("SELECT model, version, path, size, sha256 FROM artifacts", some);
        query.push(" ORDER BY path");
        for artifact in query.build_query_as::<ArtifactRow>().fetch_all(&mut *tx).await? {
            let (id, artifact) = artifact.into_artifact();
            parts.entry(id).or_default().artifacts.push(artifact);
        }
        let mut query = of_versions("SELECT model, version, key, value FROM tags", some);
        let tags: Vec<(String, i64, String, String)> = query.build_query_as().fetch_all(&mut *tx).await?;
        for (model, version, key, value) in tags {
            parts.entry((model, version)).or_default().tags.insert(key, value);
        }
        let mut query = of_versions("SELECT model, version, alias FROM aliases", some);
        query.push(" ORDER BY alias");
        let aliases: Vec<(String, i64, String)> = query.build_query_as().fetch_all(&mut *tx).await?;
        for (model, version, alias) in aliases {
            parts.entry((model, version)).or_default().aliases.push(alias);
        }
        let mut query = of_versions(
            "SELECT model, version, description, task, signature, parameters, digest, source, run, run_link, logged_model,
                    author, stage, create_time, update_time, revision
             FROM versions",
            some,
        );
        for row in query.build_query_as::<VersionRow>().fetch_all(&mut *tx).await? {
            let id = row.id();
            let parts = parts.remove(&id).unwrap_or_default();
            found.insert(id, row.into_version(parts)?);
        }
    }
    Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
}

fn of_versions(select: &'static str, ids: &[(String, i64)]) -> QueryBuilder<Db> {
    let mut query = QueryBuilder::<Db>::new(select);
    query.push(" WHERE (model, version) IN (VALUES ");
    let mut list = query.separated(", ");
    for (model, version) in ids {
        list.push("(").push_bind_unseparated(model.clone());
        list.push_unseparated(", ").push_bind_unseparated(*version).push_unseparated(")");
    }
    query.push(")");
    query
}
