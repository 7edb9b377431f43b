//! Models and versions as a whole: they come with what belongs to them, so that a page of any size is one query.

use sqlx::QueryBuilder;

use super::{Connection, Db, Lists};
use crate::error::{Entity, Error, Result};
use crate::model::{Model, Version};
use crate::names::{ModelName, Reference, VersionId};
use crate::store::rows::{ModelPage, VersionPage};

/// To be followed by a table of models that is called `m`, and by [`MODELS_END`].
const MODELS: &str = "WITH page AS MATERIALIZED (SELECT m.* FROM ";

/// A page of models in one row: a driver's rows cost more.
const MODELS_END: &str = concat!(
    ") ",
    select_lists!(
        models: [
            "m.name", "m.description", "m.create_time", "m.update_time", "m.revision",
            "COALESCE((SELECT MAX(p.version) FROM versions p WHERE p.model = m.name), 0)"
        ] of "page m",
        tags: ["p.model", "p.key", "p.value"] of "page m CROSS JOIN tags p WHERE p.model = m.name AND p.version = 0",
        aliases: ["p.model", "p.alias", "p.version"] of "page m CROSS JOIN aliases p WHERE p.model = m.name"
    )
);

/// To be followed by a table of versions that is called `v`, and by [`VERSIONS_END`].
const VERSIONS: &str = "WITH page AS MATERIALIZED (SELECT v.* FROM ";

/// A page of versions in one row.
const VERSIONS_END: &str = concat!(
    ") ",
    select_lists!(
        versions: [
            "v.model", "v.version", "v.description", "v.task", "v.signature", "v.parameters", "v.digest", "v.source", "v.run",
            "v.run_link", "v.logged_model", "v.author", "v.stage", "v.create_time", "v.update_time", "v.revision"
        ] of "page v",
        tags: ["p.model", "p.version", "p.key", "p.value"]
            of "page v CROSS JOIN tags p WHERE p.model = v.model AND p.version = v.version",
        aliases: ["p.model", "p.version", "p.alias"]
            of "page v CROSS JOIN aliases p WHERE p.model = v.model AND p.version = v.version",
        artifacts: ["p.model", "p.version", "p.path", "p.size", "p.sha256"]
            of "page v CROSS JOIN artifacts p WHERE p.model = v.model AND p.version = v.version"
    )
);

/// Begins a query for models, which [`models`] ends: what follows names the table `m`.
pub(super) fn select_models() -> QueryBuilder<Db> {
    QueryBuilder::new(MODELS)
}

/// Begins a query for versions, which [`versions`] ends: what follows names the table `v`.
pub(super) fn select_versions() -> QueryBuilder<Db> {
    QueryBuilder::new(VERSIONS)
}

/// In the order of the query.
pub(super) async fn models(tx: &mut Connection, mut query: QueryBuilder<Db>) -> Result<Vec<Model>> {
    query.push(MODELS_END);
    let row = query.build().fetch_one(&mut *tx).await?;
    let mut lists = Lists::new(&row);
    let page = ModelPage { models: lists.next()?, tags: lists.next()?, aliases: lists.next()? };
    Ok(page.into_models())
}

/// In the order of the query.
pub(super) async fn versions(tx: &mut Connection, mut query: QueryBuilder<Db>) -> Result<Vec<Version>> {
    query.push(VERSIONS_END);
    let row = query.build().fetch_one(&mut *tx).await?;
    let mut lists = Lists::new(&row);
    let page =
        VersionPage { versions: lists.next()?, tags: lists.next()?, aliases: lists.next()?, artifacts: lists.next()? };
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
