//! What runs log, of many callers in one commit.
//!
//! A commit waits for the disk. Who logs while another's commit is under way waits in a queue, and all who wait are then
//! written in one transaction: metrics of all of them by the same few statements, everything that can be refused in a
//! savepoint of its own. Each is answered after the commit, with what became of its own call.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use sqlx::{Acquire, Pool, QueryBuilder, query};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::runs::{History, add_metrics, add_params, must_be_active, set_tags};
use super::{BEGIN_WRITE, Connection, Db, GROUPS, LOCK_RUNS, WAIT_LITTLE, logged_models};
use crate::error::{Dependency, Entity, Error, Result};
use crate::tracking::Batch;

/// Calls that may wait; who comes then waits for a place, as for a free connection.
const WAITING: usize = 1024;
const PATIENCE: Duration = Duration::from_secs(5);
/// Calls of one commit, and values from which on no further call joins it: while some are written, others are read.
const CALLS_AT_ONCE: usize = 256;
const VALUES_AT_ONCE: usize = 4_000;

/// The way in for what runs log.
pub(super) struct Logging {
    queue: mpsc::Sender<Call>,
}

/// One caller, who waits for its answer.
struct Call {
    run: String,
    batch: Batch,
    answer: oneshot::Sender<Result<()>>,
}

impl Call {
    /// Whether there is nothing in it that could be refused once its run is known to be active.
    fn is_plain(&self) -> bool {
        let Batch { metrics, params, tags } = &self.batch;
        params.is_empty() && tags.is_empty() && metrics.iter().all(|metric| metric.model.is_none())
    }
}

impl Logging {
    /// Starts those who write; they end when this is dropped.
    pub(super) fn start(writer: &Pool<Db>) -> Self {
        let (queue, calls) = mpsc::channel(WAITING);
        let calls = Arc::new(Mutex::new(calls));
        for _ in 0..GROUPS {
            tokio::spawn(write_groups(writer.clone(), calls.clone()));
        }
        Self { queue }
    }

    /// Logs all of it or nothing; on disk when it returns. A caller that leaves may have been heard or not.
    pub(super) async fn log(&self, run: &str, batch: &Batch) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        let call = Call { run: run.to_owned(), batch: batch.clone(), answer };
        self.queue
            .send_timeout(call, PATIENCE)
            .await
            .map_err(|_| unavailable(anyhow!("too many calls wait to log")))?;
        answered.await.map_err(|_| anyhow!("what was to be logged was lost by a panic"))?
    }
}

fn unavailable(source: anyhow::Error) -> Error {
    Error::Unavailable { dependency: Dependency::Database, source }
}

async fn write_groups(writer: Pool<Db>, calls: Arc<Mutex<mpsc::Receiver<Call>>>) {
    while let Some(group) = next_group(&calls).await {
        // In a task of its own: a panic takes this group with it and no other.
        let written = tokio::spawn(write(writer.clone(), group)).await;
        if let Err(panicked) = written {
            tracing::error!(error = %panicked, "writing what runs have logged has panicked");
        }
    }
}

/// Waits for a caller and takes along who waits behind it.
async fn next_group(calls: &Mutex<mpsc::Receiver<Call>>) -> Option<Vec<Call>> {
    let mut calls = calls.lock().await;
    let mut group = vec![calls.recv().await?];
    let mut values = group[0].batch.metrics.len();
    while group.len() < CALLS_AT_ONCE && values < VALUES_AT_ONCE {
        let Ok(call) = calls.try_recv() else { break };
        values += call.batch.metrics.len();
        group.push(call);
    }
    group.retain(|call| !call.answer.is_closed());
    Some(group)
}

async fn write(writer: Pool<Db>, group: Vec<Call>) {
    let mut written = together(&writer, &group, History::New, None).await;
    if written.as_ref().is_err_and(has_value_already) {
        written = together(&writer, &group, History::Any, None).await;
    }
    let outcomes = match written {
        Ok(outcomes) => outcomes,
        // Some row stays locked: only who needs it is refused.
        Err(error) if group.len() > 1 && waited_too_long(&error) => {
            one_by_one(&writer, &group, Some(WAIT_LITTLE)).await
        }
        Err(Error::Unavailable { source, .. }) => {
            let told = format!("{source:#}");
            group.iter().map(|_| Err(unavailable(anyhow!(told.clone())))).collect()
        }
        Err(error) if group.len() == 1 => vec![Err(error)],
        // Something in one of them: it must not spoil the others.
        Err(_) => one_by_one(&writer, &group, None).await,
    };
    for (call, outcome) in group.into_iter().zip(outcomes) {
        // The caller may have left.
        let _ = call.answer.send(outcome);
    }
}

/// Writes each call in a transaction of its own. A run that is locked is waited for once, not for each of its calls.
async fn one_by_one(writer: &Pool<Db>, group: &[Call], patience: Option<&'static str>) -> Vec<Result<()>> {
    let (mut outcomes, mut locked) = (Vec::with_capacity(group.len()), HashSet::new());
    for call in group {
        if locked.contains(call.run.as_str()) {
            outcomes.push(Err(unavailable(anyhow!("run `{}` is locked by another", call.run))));
            continue;
        }
        let outcome = together(writer, std::slice::from_ref(call), History::Any, patience).await;
        if outcome.as_ref().is_err_and(waited_too_long) {
            locked.insert(call.run.as_str());
        }
        outcomes.push(outcome.and_then(|alone| alone.into_iter().collect()));
    }
    outcomes
}

/// Whether PostgreSQL gave up to wait for a lock.
fn waited_too_long(error: &Error) -> bool {
    has_code(error, "55P03")
}

/// Whether a value was not new to PostgreSQL, or two groups waited for each other because they added the same ones.
fn has_value_already(error: &Error) -> bool {
    has_code(error, "23505") || has_code(error, "40P01")
}

fn has_code(error: &Error, wanted: &str) -> bool {
    let (Error::Unavailable { source, .. } | Error::Internal(source)) = error else { return false };
    let database = source.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    database.and_then(|error| error.code()).is_some_and(|code| code == wanted)
}

/// Writes calls in one transaction; answers what became of each once all of it is on disk. `patience` says how long it waits
/// for locks, if not as long as usual.
async fn together(
    writer: &Pool<Db>,
    group: &[Call],
    history: History,
    patience: Option<&'static str>,
) -> Result<Vec<Result<()>>> {
    let mut tx = writer.begin_with(BEGIN_WRITE).await?;
    if let Some(patience) = patience {
        query(patience).execute(&mut *tx).await?;
    }
    let runs = hold(&mut tx, group).await?;
    let active = |call: &Call| match runs.get(&call.run) {
        Some(deleted) => must_be_active(&call.run, *deleted != 0),
        None => Err(Error::NotFound(Entity::Run(call.run.clone()))),
    };
    let mut outcomes: Vec<Result<()>> = group.iter().map(active).collect();

    let mut metrics = Vec::new();
    for (call, _) in group.iter().zip(&outcomes).filter(|(call, outcome)| outcome.is_ok() && call.is_plain()) {
        metrics.extend(call.batch.metrics.iter().map(|metric| (call.run.as_str(), metric)));
    }
    add_metrics(&mut tx, &metrics, history).await?;

    for (call, outcome) in group.iter().zip(&mut outcomes).filter(|(call, outcome)| outcome.is_ok() && !call.is_plain())
    {
        let mut part = tx.begin().await?;
        match add(&mut part, call).await {
            Ok(()) => part.commit().await?,
            Err(refused) => {
                part.rollback().await?;
                *outcome = Err(refused);
            }
        }
    }
    tx.commit().await?;
    Ok(outcomes)
}

/// Which runs there are, and whether they are deleted; they stay so until the end of the transaction.
async fn hold(tx: &mut Connection, group: &[Call]) -> Result<HashMap<String, i64>> {
    let mut query = QueryBuilder::<Db>::new("SELECT id, deleted FROM runs WHERE id IN (");
    let mut ids = query.separated(", ");
    for call in group {
        ids.push_bind(call.run.clone());
    }
    query.push(")").push(LOCK_RUNS);
    let rows: Vec<(String, i64)> = query.build_query_as().fetch_all(&mut *tx).await?;
    Ok(rows.into_iter().collect())
}

async fn add(tx: &mut Connection, Call { run, batch, answer: _ }: &Call) -> Result<()> {
    let Batch { metrics, params, tags } = batch;
    add_params(tx, run, params).await?;
    let of_run: Vec<_> = metrics.iter().map(|metric| (run.as_str(), metric)).collect();
    add_metrics(tx, &of_run, History::Any).await?;
    logged_models::add_metrics(tx, run, metrics).await?;
    set_tags(tx, run, tags).await
}
