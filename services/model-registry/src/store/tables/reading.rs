//! Models and versions as a whole: they come with what belongs to them, so that a page of any size is one query.

use sqlx::QueryBuilder;

use super::{Connection, Db};
use crate::error::{Entity, Error, Result};
use crate::model::{Model, Version};
use crate::names::{ModelName, Reference, VersionId};
use crate::store::rows::{ModelRow, VersionPage};

/// To be followed by a table of models that is called `m`.
const MODELS: &str = concat!(
    "SELECT m.name, m.description, m.create_time, m.update_time, m.revision,
            COALESCE((SELECT MAX(p.version) FROM versions p WHERE p.model = m.name), 0) AS latest_version, ",
    rows_of!("p.key, p.value", "tags p WHERE p.model = m.name AND p.version = 0"),
    " AS tags, ",
    rows_of!("p.alias, p.version", "aliases p WHERE p.model = m.name"),
    " AS aliases FROM "
);

/// To be followed by a table of versions that is called `v`, and by [`VERSIONS_END`].
const VERSIONS: &str = "WITH page AS MATERIALIZED (SELECT v.* FROM ";

/// A page of versions as one row, each column the JSON of one table: a driver's rows cost more than reading JSON.
const VERSIONS_END: &str = concat!(
    ") SELECT ",
    rows_of!(
        "v.model, v.version, v.description, v.task, v.signature, v.parameters, v.digest, v.source, v.run, v.run_link,
         v.logged_model, v.author, v.stage, v.create_time, v.update_time, v.revision",
        "page v"
    ),
    ", ",
    rows_of!(
        "p.model, p.version, p.key, p.value",
        "page v CROSS JOIN tags p WHERE p.model = v.model AND p.version = v.version"
    ),
    ", ",
    rows_of!(
        "p.model, p.version, p.alias",
        "page v CROSS JOIN aliases p WHERE p.model = v.model AND p.version = v.version"
    ),
    ", ",
    rows_of!(
        "p.model, p.version, p.path, p.size, p.sha256",
        "page v CROSS JOIN artifacts p WHERE p.model = v.model AND p.version = v.version"
    )
);

/// Begins a query for models: what follows names the table `m`.
pub(super) fn select_models() -> QueryBuilder<Db> {
    QueryBuilder::new(MODELS)
}

/// Begins a query for versions, which [`versions`] ends: what follows names the table `v`.
pub(super) fn select_versions() -> QueryBuilder<Db> {
    QueryBuilder::new(VERSIONS)
}

pub(super) async fn models(tx: &mut Connection, mut query: QueryBuilder<Db>) -> Result<Vec<Model>> {
    let rows: Vec<ModelRow> = query.build_query_as().fetch_all(&mut *tx).await?;
    rows.into_iter().map(ModelRow::into_model).collect()
}

/// In the order of the query.
pub(super) async fn versions(tx: &mut Connection, mut query: QueryBuilder<Db>) -> Result<Vec<Version>> {
    query.push(VERSIONS_END);
    let page: VersionPage = query.build_query_as().fetch_one(&mut *tx).await?;
    page.into_versions()
}

pub(super) async fn model(tx: &mut Connection, name: &ModelName) -> Result<Model> {
    find_model(tx, name).await?.ok_or_else(|| Error::NotFound(Entity::Model(name.clone())))
}

pub(super) async fn find_model(tx: &mut Connection, name: &ModelName) -> Result<Option<Model>> {
    let mut query = select_models();
    query.push("models AS m WHERE m.name = ").push_bind(name.as_str().to_owned());
    Ok(models(tx, query).await?.pop())
}

pub(super) async fn version(tx: &mut Connection, id: &VersionId) -> Result<Version> {
    let mut query = select_versions();
    query.push("versions AS v WHERE v.model = ").push_bind(id.model.as_str().to_owned());
    query.push(" AND v.version = ").push_bind(id.number);
    if let Some(version) = versions(tx, query).await?.pop() {
        return Ok(version);
    }
    model(tx, &id.model).await?;
    Err(Error::NotFound(Entity::Version(id.clone())))
}

/// Finds a version by number or alias.
pub(super) async fn referenced(tx: &mut Connection, reference: &Reference) -> Result<Version> {
    let (name, alias) = match reference {
        Reference::Number(id) => return version(tx, id).await,
        Reference::Alias { model, alias } => (model, alias),
    };
    let mut query = select_versions();
    query.push("versions AS v WHERE v.model = ").push_bind(name.as_str().to_owned());
    query
        .push(" AND v.version = (SELECT p.version FROM aliases p WHERE p.model = ")
        .push_bind(name.as_str().to_owned());
    query.push(" AND p.alias = ").push_bind(alias.as_str().to_owned()).push(")");
    if let Some(version) = versions(tx, query).await?.pop() {
        return Ok(version);
    }
    model(tx, name).await?;
    Err(Error::NotFound(Entity::Alias { model: name.clone(), alias: alias.clone() }))
}
