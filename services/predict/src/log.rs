//! The decision log: what was decided, on what, and why, for as long as the database keeps it.

#[cfg(test)]
mod conformance;
mod record;
pub mod writer;

use std::{path::Path, str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use async_trait::async_trait;
use sqlx::{
    ConnectOptions, Connection, Database,
    migrate::Migrator,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPool, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use verdict_chassis::secrets::Secrets;

use self::record::Record;
use crate::decision::Decision;

/// What the decision log remembers. Each method is one transaction: it happened, or it did not.
#[async_trait]
pub trait DecisionLog: Send + Sync {
    /// Records decisions, durably when this returns. Answers, for each, the decision that stands under its request id:
    /// itself, or the one that was there before.
    async fn append(&self, decisions: &[Decision]) -> anyhow::Result<Vec<Decision>>;
    /// Returns the decision with this id.
    async fn find(&self, id: Uuid) -> anyhow::Result<Option<Decision>>;
    /// Returns the decision that stands under a request id.
    async fn find_request(&self, request_id: &str) -> anyhow::Result<Option<Decision>>;
    /// Lists decisions newest first, of one model where given, made before the decision `before` where given.
    async fn list(&self, model: Option<&str>, before: Option<Uuid>, limit: u32) -> anyhow::Result<Vec<Decision>>;
}

/// Opens the log at `url` (`sqlite:…` or `postgres://…`), or the SQLite file `default` when there is no URL, and brings
/// its tables up to date.
pub async fn open(url: Option<&str>, default: &Path) -> anyhow::Result<Arc<dyn DecisionLog>> {
    match url {
        None => Ok(Arc::new(Sqlite::open(SqliteConnectOptions::new().filename(default)).await?)),
        Some(url) if url.starts_with("sqlite:") => {
            let options = SqliteConnectOptions::from_str(url).context("DATABASE_URL is not a SQLite URL")?;
            Ok(Arc::new(Sqlite::open(options).await?))
        }
        Some(url) if is_postgres(url) => Ok(Arc::new(Postgres::open(postgres_options(url)?).await?)),
        Some(_) => bail!("DATABASE_URL must start with sqlite: or postgres://"),
    }
}

/// Opens the log as [`open`] does; in PostgreSQL, new connections are made with what `DATABASE_URL` becomes while the process
/// runs, where it is a reference, which is read again every `every`.
pub async fn open_following(
    url: Option<&str>,
    default: &Path,
    secrets: &Secrets,
    every: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<Arc<dyn DecisionLog>> {
    let Some(url) = url.filter(|url| is_postgres(url)) else { return open(url, default).await };
    let log = Postgres::open(postgres_options(url)?).await?;
    let pool = log.pool.clone();
    secrets.follow("DATABASE_URL", every, stop, move |url| {
        pool.set_connect_options(patient(postgres_options(url)?));
        Ok(())
    });
    Ok(Arc::new(log))
}

fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

fn postgres_options(url: &str) -> anyhow::Result<PgConnectOptions> {
    // The error may quote the URL with its password: it is left out.
    let options = PgConnectOptions::from_str(url)
        .map_err(|_quotes_the_password| anyhow::anyhow!("DATABASE_URL is not a PostgreSQL URL"))?;
    Ok(options.disable_statement_logging())
}

/// With an end to statements: one that nobody waits for any longer must not hold its locks.
fn patient(options: PgConnectOptions) -> PgConnectOptions {
    options.options([("statement_timeout", format!("{}ms", writer::PATIENCE.as_millis()))])
}

/// The log in one SQLite file: the embedded default.
pub struct Sqlite {
    pool: SqlitePool,
}

/// The log in PostgreSQL.
pub struct Postgres {
    pool: PgPool,
}

impl Sqlite {
    /// Opens the file, making it and its folder where they are missing. A commit returns when it is on disk.
    pub async fn open(options: SqliteConnectOptions) -> anyhow::Result<Self> {
        let path = options.get_filename().to_owned();
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .disable_statement_logging();
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(5))
            .connect_with(options)
            .await
            .with_context(|| format!("cannot open the decision log {}", path.display()))?;
        migrations(sqlx::migrate!("migrations/sqlite")).run(&pool).await.context("cannot migrate the decision log")?;
        Ok(Self { pool })
    }
}

impl Postgres {
    /// Connects and brings the tables up to date.
    pub async fn open(options: PgConnectOptions) -> anyhow::Result<Self> {
        let unreachable = "cannot reach the decision log's PostgreSQL (DATABASE_URL)";
        // On a connection of its own: bringing large tables up to date may take longer than a statement may.
        let migrating =
            PgPoolOptions::new().max_connections(1).connect_with(options.clone()).await.context(unreachable)?;
        migrations(sqlx::migrate!("migrations/postgres"))
            .run(&migrating)
            .await
            .context("cannot migrate the decision log")?;
        migrating.close().await;
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_secs(5))
            .connect_with(patient(options))
            .await
            .context(unreachable)?;
        Ok(Self { pool })
    }
}

/// A connection that is closed unless its work came to an end. One that was left in the middle may stand still, or hold
/// answers that are not for whoever takes it next.
struct Taken<DB: Database> {
    connection: PoolConnection<DB>,
    is_done: bool,
}

impl<DB: Database> Drop for Taken<DB> {
    fn drop(&mut self) {
        if !self.is_done {
            self.connection.close_on_drop();
        }
    }
}

/// Keeps this service's migrations apart from those of others in the same database.
fn migrations(mut migrator: Migrator) -> Migrator {
    migrator.dangerous_set_table_name("predict_migrations");
    migrator
}

const INSERT: &str = "INSERT INTO decisions (decision_id, request_id, time_us, model, version, alias, digest, features, \
    features_hash, score, margin, outcome, reasons, policy, trace_id, route) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) ON CONFLICT (request_id) DO NOTHING";
const FIND: &str = "SELECT * FROM decisions WHERE decision_id = $1";
const FIND_REQUEST: &str = "SELECT * FROM decisions WHERE request_id = $1";
const LIST: &str = "SELECT * FROM decisions WHERE decision_id < $1 ORDER BY decision_id DESC LIMIT $2";
const LIST_MODEL: &str =
    "SELECT * FROM decisions WHERE model = $3 AND decision_id < $1 ORDER BY decision_id DESC LIMIT $2";
/// Sorts behind every UUID.
const END: &str = "g";

/// The two back-ends speak the same SQL through different types.
macro_rules! backend {
    ($log:ty) => {
        #[async_trait]
        impl DecisionLog for $log {
            async fn append(&self, decisions: &[Decision]) -> anyhow::Result<Vec<Decision>> {
                let mut standing = Vec::with_capacity(decisions.len());
                let mut taken = Taken { connection: self.pool.acquire().await?, is_done: false };
                let mut transaction = taken.connection.begin().await?;
                for decision in decisions {
                    let Record {
                        decision_id,
                        request_id,
                        time_us,
                        model,
                        version,
                        alias,
                        digest,
                        features,
                        features_hash,
                        score,
                        margin,
                        outcome,
                        reasons,
                        policy,
                        trace_id,
                        route,
                    } = Record::try_from(decision)?;
                    let inserted = sqlx::query(INSERT)
                        .bind(decision_id)
                        .bind(&request_id)
                        .bind(time_us)
                        .bind(model)
                        .bind(version)
                        .bind(alias)
                        .bind(digest)
                        .bind(features)
                        .bind(features_hash)
                        .bind(score)
                        .bind(margin)
                        .bind(outcome)
                        .bind(reasons)
                        .bind(policy)
                        .bind(trace_id)
                        .bind(route)
                        .execute(&mut *transaction)
                        .await?;
                    if inserted.rows_affected() == 1 {
                        standing.push(decision.clone());
                    } else {
                        let earlier: Record =
                            sqlx::query_as(FIND_REQUEST).bind(&request_id).fetch_one(&mut *transaction).await?;
                        standing.push(earlier.try_into()?);
                    }
                }
                transaction.commit().await?;
                taken.is_done = true;
                Ok(standing)
            }

            async fn find(&self, id: Uuid) -> anyhow::Result<Option<Decision>> {
                let found: Option<Record> =
                    sqlx::query_as(FIND).bind(id.to_string()).fetch_optional(&self.pool).await?;
                found.map(TryInto::try_into).transpose()
            }

            async fn find_request(&self, request_id: &str) -> anyhow::Result<Option<Decision>> {
                let found: Option<Record> =
                    sqlx::query_as(FIND_REQUEST).bind(request_id).fetch_optional(&self.pool).await?;
                found.map(TryInto::try_into).transpose()
            }

            async fn list(
                &self,
                model: Option<&str>,
                before: Option<Uuid>,
                limit: u32,
            ) -> anyhow::Result<Vec<Decision>> {
                let before = before.map_or_else(|| END.to_owned(), |id| id.to_string());
                let query = sqlx::query_as(if model.is_some() { LIST_MODEL } else { LIST });
                let query = query.bind(before).bind(i64::from(limit));
                let query = if let Some(model) = model { query.bind(model) } else { query };
                let rows: Vec<Record> = query.fetch_all(&self.pool).await?;
                rows.into_iter().map(TryInto::try_into).collect()
            }
        }
    };
}

backend!(Sqlite);
backend!(Postgres);
