//! The registry in one SQLite file: the embedded default.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use sqlx::QueryBuilder;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::ROWS_AT_ONCE;
use super::rows::kept;
use crate::tracking::Metric;

/// Rows of another table that belong to a row, as the text of a JSON array of arrays: whatever their number, they come with
/// it in one query.
macro_rules! rows_of {
    ($columns:expr, $from:literal) => {
        concat!("(SELECT json_group_array(json_array(", $columns, ")) FROM ", $from, ")")
    };
}

/// A number as a text that gives the same number back: as JSON SQLite would write 15 digits.
macro_rules! exact {
    ($column:literal) => {
        concat!("quote(", $column, ")")
    };
}

#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
#[path = "tables/mod.rs"]
mod tables;

/// The registry in SQLite.
pub type SqliteStore = tables::Tables;

type Db = sqlx::Sqlite;
const BEGIN_READ: &str = "BEGIN DEFERRED";
/// Takes the write lock at once, so that a transaction never fails halfway for want of it.
const BEGIN_WRITE: &str = "BEGIN IMMEDIATE";

/// There is only one writer.
const LOCK_EXPERIMENTS: &str = "SELECT 1";

/// Whether a text is matched by a regular expression.
const MATCHES: &str = "REGEXP";

/// The attributes of spans as texts: trace, key, value.
const SPAN_ATTRIBUTES: &str = "(SELECT spans.trace AS trace, e.key AS key, CASE e.type WHEN 'true' THEN 'true'
    WHEN 'false' THEN 'false' ELSE CAST(e.value AS TEXT) END AS value
    FROM spans, json_each(spans.content, '$.attributes') e)";
/// As above.
const LOCK_RUNS: &str = "";

/// How many groups of callers may be written at once.
const GROUPS: usize = 1;

/// How long a write waits for another process (a backup, a second registry) to finish its own.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const READERS: u32 = 4;
/// Rows a query may be ahead of who reads them: each time it must wait costs more than a row.
const ROWS_AHEAD: usize = 512;
/// Statements that insert up to as many rows are kept ready.
const COMMON_ROWS: usize = 16;

/// Opens the file at `path`, making it and its tables where missing. A commit is on disk when it returns.
pub async fn open(path: &Path) -> anyhow::Result<SqliteStore> {
    let context = || format!("DATABASE_URL: cannot open the SQLite file {}", path.display());
    if let Some(dir) = path.parent() {
        tokio::fs::create_dir_all(dir).await.with_context(context)?;
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .pragma("case_sensitive_like", "ON")
        .with_regexp()
        .busy_timeout(BUSY_TIMEOUT)
        .row_buffer_size(ROWS_AHEAD);
    // A file does not go away between two calls.
    let pool = |size| SqlitePoolOptions::new().max_connections(size).test_before_acquire(false);
    let writer = pool(1).connect_with(options.clone()).await.with_context(context)?;
    sqlx::migrate!("migrations/sqlite").run(&writer).await.with_context(context)?;
    // The process that had taken these on is this one's predecessor: it has ended.
    sqlx::query("UPDATE webhooks SET lease_until = 0 WHERE lease_until <> 0")
        .execute(&writer)
        .await
        .with_context(context)?;
    let reader = pool(READERS).connect_with(options).await.with_context(context)?;
    Ok(SqliteStore::new(writer, reader))
}

/// Adds rows to a table of metrics.
async fn insert_metrics(
    tx: &mut SqliteConnection,
    table: &str,
    rows: &[(&str, &Metric)],
    conflict: &str,
) -> crate::error::Result<()> {
    let mut insert = QueryBuilder::<Db>::new(format!("INSERT INTO {table} (run, key, timestamp, step, value, nan) "));
    insert.push_values(rows, |mut row, (run, metric)| {
        let (value, nan) = kept(metric.value);
        row.push_bind((*run).to_owned()).push_bind(metric.key.clone()).push_bind(metric.timestamp.0);
        row.push_bind(metric.step).push_bind(value).push_bind(nan);
    });
    insert.push(conflict);
    // Statements of every length there may be would push each other, and all others, out of the cache.
    let is_common = rows.len() <= COMMON_ROWS || rows.len() == ROWS_AT_ONCE;
    insert.build().persistent(is_common).execute(tx).await?;
    Ok(())
}
