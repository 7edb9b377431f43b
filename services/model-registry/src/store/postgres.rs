//! The registry in PostgreSQL: many replicas, one truth.

use std::time::Duration;

use anyhow::{Context, ensure};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{Connection, PgPool, QueryBuilder};
use tokio_util::sync::CancellationToken;
use url::Url;
use verdict_chassis::secrets::Secrets;

use super::rows::kept;
use super::within::ArrayLists;
use crate::tracking::Metric;

/// Selects lists of rows, each from its tables and with its columns, as one row that [`Lists`] reads.
macro_rules! select_lists {
    ($name:ident: [$first:expr $(, $other:expr)*] of $from:expr $(, $($more:tt)+)?) => {
        concat!(
            "SELECT * FROM ",
            select_lists!(@ $name: [$first $(, $other)*] of $from)
            $(, select_lists!(@@ $($more)+))?
        )
    };
    (@@ $($name:ident: [$($column:expr),+] of $from:expr),+) => {
        concat!($(" CROSS JOIN ", select_lists!(@ $name: [$($column),+] of $from)),+)
    };
    (@ $name:ident: [$first:expr $(, $other:expr)*] of $from:expr) => {
        concat!(
            "(SELECT array_agg(", $first, ")" $(, ", array_agg(", $other, ")")*,
            " FROM ", $from, ") AS list_of_", stringify!($name)
        )
    };
}

/// The value of a metric in such a list.
macro_rules! metric_value {
    () => {
        "p.value"
    };
}

#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
#[path = "tables/mod.rs"]
mod tables;

/// The registry in PostgreSQL.
pub type PostgresStore = tables::Tables;

type Db = sqlx::Postgres;
type Lists<'r> = ArrayLists<'r>;
/// One snapshot for all the queries of one read.
const BEGIN_READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// Each statement sees what was committed before it; the lock on `log` makes that everything.
const BEGIN_WRITE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// For who has others waiting behind it: a row that another holds is not waited for as long as usual.
const WAIT_LITTLE: &str = "SET LOCAL lock_timeout = '100ms'";

/// Two that add an experiment at once would take the same number.
const LOCK_EXPERIMENTS: &str = "LOCK TABLE experiments IN SHARE ROW EXCLUSIVE MODE";

/// Whether a text is matched by a regular expression.
const MATCHES: &str = "~";

/// The attributes of spans as texts: trace, key, value.
const SPAN_ATTRIBUTES: &str = "(SELECT spans.trace AS trace, e.key AS key, e.value AS value
    FROM spans, json_each_text(CAST(spans.content AS json) -> 'attributes') e)";
/// Runs that others may read and log to, but not delete; in one order, so that no two transactions wait for each other.
const LOCK_RUNS: &str = " ORDER BY id FOR SHARE";

/// What ends an insert into the history of metrics whose values are new: it fails if one is not, and costs a third less than to
/// ask for each.
const IF_NEW: &str = "";

/// How many groups of callers may be written at once.
const GROUPS: usize = 2;

/// Settings of every connection.
const SETTINGS: [(&str, &str); 7] = [
    // Writes wait for each other. A replica that died in the middle of its own must not hold up the others until TCP gives it up.
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "10s"),
    // A caller who leaves does not end the query that was begun for them: the database does.
    ("statement_timeout", "60s"),
    // What a page needs is a few hundred rows, found in indexes that are mostly in memory. As if each cost a seek of a disk,
    // whole tables would be read instead.
    ("random_page_cost", "1.1"),
    // Of those rows none is asked for twice (PostgreSQL 14 and newer remember them for that).
    ("enable_memoize", "off"),
    // Compiling a query, or starting processes for it, takes longer than a page.
    ("jit", "off"),
    ("max_parallel_workers_per_gather", "0"),
];

/// How long a call waits for a free connection before the database counts as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that was idle for longer is asked whether it still lives before it is used.
const ASK_AFTER_IDLE: Duration = Duration::from_secs(1);

/// The parser's own message may quote the URL with its password: it is left out.
fn quotes_the_password(_: sqlx::Error) -> anyhow::Error {
    anyhow::anyhow!("DATABASE_URL is not a PostgreSQL URL")
}

/// Connects to the database at `url` with at most `connections` (at least 2), bringing its tables up to date if `migrate`.
///
/// Without `migrate` the tables must already be those of this program: `model-registry migrate` makes them so.
pub async fn open(url: &Url, connections: u32, migrate: bool) -> anyhow::Result<PostgresStore> {
    let [writer, reader] = connect(url, connections, migrate).await?;
    Ok(PostgresStore::new(writer, reader))
}

/// Opens the store as [`open`] does, and connects anew with what `DATABASE_URL` becomes; connections that are there stay until
/// their time has come.
pub async fn open_following(
    url: &Url,
    connections: u32,
    migrate: bool,
    secrets: &Secrets,
    every: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<PostgresStore> {
    let pools = connect(url, connections, migrate).await?;
    let [writer, reader] = pools.clone();
    secrets.follow("DATABASE_URL", every, stop, move |url| {
        let options: PgConnectOptions = url.parse().map_err(quotes_the_password)?;
        let options = options.options(SETTINGS);
        for pool in &pools {
            pool.set_connect_options(options.clone());
        }
        Ok(())
    });
    Ok(PostgresStore::new(writer, reader))
}

/// A pool for writes and one for reads.
async fn connect(url: &Url, connections: u32, migrate: bool) -> anyhow::Result<[PgPool; 2]> {
    let options: PgConnectOptions = url.as_str().parse().map_err(quotes_the_password)?;
    let host = options.get_host().to_owned();
    let unlimited = options.clone();
    let options = options.options(SETTINGS);
    // Apart, so that writes that wait for each other leave connections to reads.
    let writers = connections.div_ceil(2);
    let pool = |size: u32| {
        let options = PgPoolOptions::new().max_connections(size.max(1)).acquire_timeout(ACQUIRE_TIMEOUT);
        options.test_before_acquire(false).before_acquire(|connection, known| {
            Box::pin(async move {
                if known.idle_for > ASK_AFTER_IDLE {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
    };
    let context = || format!("DATABASE_URL: cannot connect to PostgreSQL at {host}");
    let writer = pool(writers).connect_with(options.clone()).await.with_context(context)?;
    let reader = pool(connections - writers).connect_lazy_with(options);
    let migrator = sqlx::migrate!("migrations/postgres");
    if migrate {
        let one = PgPoolOptions::new().max_connections(1).connect_with(unlimited).await.with_context(context)?;
        migrator.run(&one).await.context("DATABASE_URL: cannot bring the tables up to date")?;
        one.close().await;
    } else {
        let newest = migrator.iter().map(|migration| migration.version).max().unwrap_or_default();
        let (applied,): (i64,) = sqlx::query_as("SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations WHERE success")
            .fetch_one(&writer)
            .await
            .unwrap_or_default();
        ensure!(applied >= newest, "DATABASE_URL: the tables are not up to date; run `model-registry migrate` first");
    }
    Ok([writer, reader])
}

/// Runs come whole in one query, which needs no transaction to see one snapshot.
const VALUES_COME_ALONG: bool = true;

/// What runs are read with.
async fn run_reader(reader: &PgPool) -> sqlx::Result<PoolConnection<Db>> {
    reader.acquire().await
}

/// Adds rows to a table of metrics: a list for each column, which costs less to send and to plan than a parameter for each
/// value, and is one statement whatever the number of rows.
async fn insert_metrics(
    tx: &mut PgConnection,
    table: &str,
    rows: &[(&str, &Metric)],
    conflict: &str,
) -> crate::error::Result<()> {
    let mut insert = QueryBuilder::<Db>::new(format!(
        "INSERT INTO {table} (run, key, timestamp, step, value, nan)
         SELECT * FROM UNNEST($1::text[], $2::text[], $3::int8[], $4::int8[], $5::float8[], $6::int8[])"
    ));
    insert.push(conflict);
    let (values, nans): (Vec<f64>, Vec<i64>) = rows.iter().map(|(_, metric)| kept(metric.value)).unzip();
    let column = |of: fn(&Metric) -> i64| rows.iter().map(|(_, metric)| of(metric)).collect::<Vec<_>>();
    insert
        .build()
        .bind(rows.iter().map(|(run, _)| *run).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, metric)| metric.key.as_str()).collect::<Vec<_>>())
        .bind(column(|metric| metric.timestamp.0))
        .bind(column(|metric| metric.step))
        .bind(values)
        .bind(nans)
        .execute(tx)
        .await?;
    Ok(())
}
