//! The registry in PostgreSQL: many replicas, one truth.

use std::time::Duration;

use anyhow::{Context, ensure};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use url::Url;

#[expect(clippy::duplicate_mod, reason = "the same queries, compiled for each database")]
#[path = "tables.rs"]
mod tables;

/// The registry in PostgreSQL.
pub type PostgresStore = tables::Tables;

type Db = sqlx::Postgres;
/// One snapshot for all the queries of one read.
const BEGIN_READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// Each statement sees what was committed before it; the lock on `log` makes that everything.
const BEGIN_WRITE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// How long a call waits for a free connection before the database counts as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// The parser's own message may quote the URL with its password: it is left out.
fn quotes_the_password(_: sqlx::Error) -> anyhow::Error {
    anyhow::anyhow!("DATABASE_URL is not a PostgreSQL URL")
}

/// Connects to the database at `url` with at most `connections`, bringing its tables up to date if `migrate`.
///
/// Without `migrate` the tables must already be those of this program: `model-registry migrate` makes them so.
pub async fn open(url: &Url, connections: u32, migrate: bool) -> anyhow::Result<PostgresStore> {
    let options: PgConnectOptions = url.as_str().parse().map_err(quotes_the_password)?;
    let host = options.get_host().to_owned();
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options)
        .await
        .with_context(|| format!("DATABASE_URL: cannot connect to PostgreSQL at {host}"))?;
    let migrator = sqlx::migrate!("migrations/postgres");
    if migrate {
        migrator.run(&pool).await.context("DATABASE_URL: cannot bring the tables up to date")?;
    } else {
        let newest = migrator.iter().map(|migration| migration.version).max().unwrap_or_default();
        let (applied,): (i64,) = sqlx::query_as("SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations WHERE success")
            .fetch_one(&pool)
            .await
            .unwrap_or_default();
        ensure!(applied >= newest, "DATABASE_URL: the tables are not up to date; run `model-registry migrate` first");
    }
    Ok(PostgresStore::new(pool.clone(), pool))
}
