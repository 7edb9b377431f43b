//! The registry in one SQLite file: the embedded default.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Pool, QueryBuilder, Transaction};

use super::ROWS_AT_ONCE;
use super::rows::kept;
use super::within::JsonLists;
use crate::tracking::Metric;

/// Selects lists of rows, each from its tables and with its columns, as one row that [`Lists`] reads.
macro_rules! select_lists {
    ($name:ident: [$first:expr $(, $other:expr)*] of $from:expr $(, $($more:tt)+)?) => {
        concat!(
            "SELECT ",
            select_lists!(@ $name: [$first $(, $other)*] of $from)
            $(, select_lists!(@@ $($more)+))?
        )
    };
    (@@ $($name:ident: [$($column:expr),+] of $from:expr),+) => {
        concat!($(", ", select_lists!(@ $name: [$($column),+] of $from)),+)
    };
    (@ $name:ident: [$first:expr $(, $other:expr)*] of $from:expr) => {
        concat!(
            "(SELECT json_group_array(json_array(", $first $(, ", ", $other)*, ")) FROM ", $from, ") AS list_of_",
            stringify!($name)
        )
    };
}

/// The value of a metric in such a list: none, because JSON would round it.
macro_rules! metric_value {
    () => {
        "NULL"
    };
}

#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
#[path = "tables/mod.rs"]
mod tables;

/// The registry in SQLite.
pub type SqliteStore = tables::Tables;

type Db = sqlx::Sqlite;
type Lists<'r> = JsonLists<'r>;
const BEGIN_READ: &str = "BEGIN DEFERRED";
/// Takes the write lock at once, so that a transaction never fails halfway for want of it.
const BEGIN_WRITE: &str = "BEGIN IMMEDIATE";

/// A write has no lock to wait for once it has begun.
const WAIT_LITTLE: &str = "SELECT 1";

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

/// What ends an insert into the history of metrics whose values are new, and costs nothing more where one is not.
const IF_NEW: &str = " ON CONFLICT DO NOTHING";

/// How many groups of callers may be written at once.
const GROUPS: usize = 1;

/// How long a write waits for another process (a backup, a second registry) to finish its own.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const READERS: u32 = 4;
/// Bytes of the file that readers map: what is read from there needs no place in the page cache, over which all connections
/// of a process share one lock.
const MAPPED: u64 = 4 << 30;
/// Rows a query may be ahead of who reads them: each time it must wait costs more than a row.
const ROWS_AHEAD: usize = 512;
/// Statements that insert up to as many rows are kept ready.
const COMMON_ROWS: usize = 16;

/// How long a search may take, as PostgreSQL's `statement_timeout`: a caller who leaves does not end it.
const GIVE_UP: Duration = Duration::from_secs(60);
/// Instructions of SQLite's between two looks at the clock: a few milliseconds.
const LOOK_EVERY: i32 = 200_000;

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
    let options = options.pragma("mmap_size", MAPPED.to_string());
    let reader = limited(pool(READERS), GIVE_UP).connect_with(options).await.with_context(context)?;
    Ok(SqliteStore::new(writer, reader))
}

/// Runs come in two queries, the second for the values of their metrics.
const VALUES_COME_ALONG: bool = false;

/// What runs are read with: one snapshot for both queries.
async fn run_reader(reader: &Pool<Db>) -> sqlx::Result<Transaction<'static, Db>> {
    reader.begin_with(BEGIN_READ).await
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

/// Ends what is asked of a connection when it has taken `longest`, counted from the first look at the clock.
///
/// Only what takes long is looked at, and only then has the next who uses a connection to be given a clock of their own: those
/// who ask for little pay nothing.
fn limited(pool: SqlitePoolOptions, longest: Duration) -> SqlitePoolOptions {
    // How many connections have looked at their clock since they were given it.
    let running = Arc::new(AtomicUsize::new(0));
    let at_first = running.clone();
    let connected = pool.after_connect(move |connection, _| {
        let clock = Clock::new(longest, at_first.clone());
        Box::pin(clock.give_to(connection))
    });
    connected.after_release(move |connection, _| {
        let running = running.clone();
        Box::pin(async move {
            if running.load(Ordering::Relaxed) > 0 {
                Clock::new(longest, running).give_to(connection).await?;
            }
            Ok(true)
        })
    })
}

/// What one use of a connection may take.
struct Clock {
    longest: Duration,
    begun: Option<Instant>,
    running: Arc<AtomicUsize>,
}

impl Clock {
    fn new(longest: Duration, running: Arc<AtomicUsize>) -> Self {
        Self { longest, begun: None, running }
    }

    /// Whether there is time left.
    fn goes_on(&mut self) -> bool {
        let running = &self.running;
        let begun = self.begun.get_or_insert_with(|| {
            running.fetch_add(1, Ordering::Relaxed);
            Instant::now()
        });
        begun.elapsed() < self.longest
    }

    async fn give_to(mut self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        connection.lock_handle().await?.set_progress_handler(LOOK_EVERY, move || self.goes_on());
        Ok(())
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        if self.begun.is_some() {
            self.running.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    /// Counts, slowly.
    async fn count(reader: &sqlx::SqlitePool, to: i64) -> sqlx::Result<i64> {
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) SELECT COUNT(*) FROM n";
        sqlx::query_scalar(sql).bind(to).fetch_one(reader).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_search_that_takes_too_long_is_ended_and_no_other() {
        const LONGEST: Duration = Duration::from_millis(300);
        for connections in [1, 2] {
            let dir = tempfile::tempdir().unwrap();
            let options = SqliteConnectOptions::new().filename(dir.path().join("db")).create_if_missing(true);
            let pool = SqlitePoolOptions::new().max_connections(connections).test_before_acquire(false);
            let reader = limited(pool, LONGEST).connect_with(options).await.unwrap();
            let (began, many) = (Instant::now(), 1_000_000_000);
            let (ended, other) = tokio::join!(count(&reader, many), count(&reader, 10));
            assert!(matches!(Error::from(ended.unwrap_err()), Error::Unavailable { .. }));
            assert_eq!(other.unwrap(), 10);
            assert!(began.elapsed() < 20 * LONGEST, "{:?}", began.elapsed());
            // Each of these looks at the clock; together they take longer than one may.
            let began = Instant::now();
            while began.elapsed() < 3 * LONGEST {
                assert_eq!(count(&reader, 50_000).await.unwrap(), 50_000);
            }
            assert!(count(&reader, many).await.is_err(), "the next is ended again");
        }
    }
}
