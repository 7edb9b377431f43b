//! Reading the audit log; writing it is part of every write.

use async_trait::async_trait;
use sqlx::{QueryBuilder, query_as};

use super::{Db, Tables};
use crate::audit::{AliasState, Anchor, Audit, Entry, Filter, alias_resource};
use crate::error::Result;
use crate::model::Micros;
use crate::names::{AliasName, ModelName};
use crate::store::rows::from_json;

const ENTRY: &str = "SELECT sequence, time, caller, action, resource, before, after, hash FROM audit";

#[derive(sqlx::FromRow)]
struct EntryRow {
    sequence: i64,
    time: i64,
    caller: String,
    action: String,
    resource: String,
    before: Option<String>,
    after: Option<String>,
    hash: String,
}

impl From<EntryRow> for Entry {
    fn from(row: EntryRow) -> Self {
        let EntryRow { sequence, time, caller, action, resource, before, after, hash } = row;
        Self { sequence, time: Micros(time), caller, action, resource, before, after, hash }
    }
}

#[async_trait]
impl Audit for Tables {
    async fn audit_entries(&self, filter: &Filter, limit: u32) -> Result<Vec<Entry>> {
        let Filter { resource, caller, from, until, below } = filter;
        let mut query = QueryBuilder::<Db>::new(ENTRY);
        query.push(" WHERE sequence < ").push_bind(below.unwrap_or(i64::MAX));
        if !resource.is_empty() {
            // What is below has this name and a slash before its own; '0' is the character after '/'.
            query.push(" AND (resource = ").push_bind(resource);
            query.push(" OR (resource > ").push_bind(format!("{resource}/"));
            query.push(" AND resource < ").push_bind(format!("{resource}0")).push("))");
        }
        if !caller.is_empty() {
            query.push(" AND caller = ").push_bind(caller);
        }
        if let Some(from) = from {
            query.push(" AND time >= ").push_bind(from.0);
        }
        if let Some(until) = until {
            query.push(" AND time < ").push_bind(until.0);
        }
        query.push(" ORDER BY sequence DESC LIMIT ").push_bind(i64::from(limit));
        let rows: Vec<EntryRow> = query.build_query_as().fetch_all(self.reader()).await?;
        Ok(rows.into_iter().map(Entry::from).collect())
    }

    async fn audit_after(&self, sequence: i64, limit: u32) -> Result<Vec<Entry>> {
        let mut query = QueryBuilder::<Db>::new(ENTRY);
        query.push(" WHERE sequence > ").push_bind(sequence);
        query.push(" ORDER BY sequence LIMIT ").push_bind(i64::from(limit));
        let rows: Vec<EntryRow> = query.build_query_as().fetch_all(self.reader()).await?;
        Ok(rows.into_iter().map(Entry::from).collect())
    }

    async fn audit_end(&self) -> Result<Anchor> {
        let (sequence, hash) =
            query_as("SELECT audit_sequence, audit_hash FROM log WHERE id = 1").fetch_one(self.reader()).await?;
        Ok(Anchor { sequence, hash })
    }

    async fn alias_at(&self, model: &ModelName, alias: &AliasName, time: Micros) -> Result<AliasState> {
        #[derive(serde::Deserialize)]
        struct At {
            version: i64,
        }
        let mut query = QueryBuilder::<Db>::new(ENTRY);
        query.push(" WHERE resource = ").push_bind(alias_resource(model, alias.as_str()));
        query.push(" AND action IN ('alias.set', 'alias.delete') AND time <= ").push_bind(time.0);
        query.push(" ORDER BY sequence DESC LIMIT 1");
        let row: Option<EntryRow> = query.build_query_as().fetch_optional(self.reader()).await?;
        let since = row.map(Entry::from);
        let after = since.as_ref().and_then(|entry| entry.after.as_deref());
        let version = after.map(from_json::<At>).transpose()?.map(|at| at.version);
        Ok(AliasState { version, since })
    }
}
