//! Tabular models: rows to margins, one row to a decision's score and reasons.

use std::{ops::Range, sync::Arc, time::Instant};

use sha2::Sha256;
use verdict_inference::trees::TreeEnsemble;

use crate::{
    admission::Admission,
    answers::{Scope, put, put_numbers},
    batch::{Batcher, Limits},
    cut::Budget,
    error::{Error, Result},
    metrics::ModelMeters,
    policy::Policy,
    schema::Schema,
    text::before,
    timing::{Timing, gather},
};

/// Up to this many rows are computed where they arrive: handing them to a worker would cost more.
const INLINE_ROWS: usize = 32;
/// Rows of one job, so that all workers share a large request.
const CHUNK_ROWS: usize = 512;
/// Most jobs of one request.
const MOST_CHUNKS: usize = 256;

/// A tree ensemble with its schema, its policy where it has one, and its queue.
pub struct Tabular {
    name: String,
    ensemble: Arc<TreeEnsemble>,
    pub schema: Schema,
    pub policy: Option<Policy>,
    batcher: Batcher<Job, Vec<f32>>,
    meters: ModelMeters,
}

/// A score with the share of each feature in it.
#[derive(Debug)]
pub struct Explained {
    pub margin: f32,
    pub score: f32,
    /// One SHAP value per column.
    pub shap: Vec<f32>,
}

enum Job {
    /// Some rows of a request, as a range of its cells.
    Margins { cells: Arc<Vec<f32>>, range: Range<usize> },
    /// One row: its SHAP values, the expected value, its margin.
    Explain(Vec<f32>),
}

impl Tabular {
    /// Warms the ensemble up and starts its workers.
    pub fn start(
        name: String,
        ensemble: TreeEnsemble,
        schema: Schema,
        policy: Option<Policy>,
        limits: Limits,
        meters: [ModelMeters; 2],
        scope: Option<Scope>,
    ) -> anyhow::Result<Self> {
        let ensemble = Arc::new(ensemble);
        let missing = vec![f32::NAN; ensemble.num_features()];
        let answer = run(&ensemble, &Job::Explain(missing));
        anyhow::ensure!(answer.iter().all(|value| value.is_finite()), "warm-up: the model's score is not finite");
        let worker = ensemble.clone();
        let limits = Limits { budget: Budget { items: limits.budget.items, cost: CHUNK_ROWS }, ..limits };
        let [queued, inline] = meters;
        let answers = scope.map(|scope| scope.of(written));
        let batcher = Batcher::start_cached(limits, queued, answers, move |jobs: &[&Job]| {
            jobs.iter().map(|job| run(&worker, job)).collect::<Vec<_>>()
        })?;
        Ok(Self { name, ensemble, schema, policy, batcher, meters: inline })
    }

    /// Returns one margin per row of `cells`, which [`Schema`] has checked.
    pub async fn margins(&self, cells: Vec<f32>, admission: Admission) -> Result<(Vec<f32>, Timing)> {
        let width = self.schema.inputs().len();
        let rows = cells.len() / width;
        let accepted = Instant::now();
        if rows <= INLINE_ROWS {
            before(admission.deadline, || ())?;
            let mut margins = Vec::with_capacity(rows);
            self.ensemble.margins(&cells, &mut margins);
            let compute = accepted.elapsed();
            self.meters.computed(std::time::Duration::ZERO, compute, rows);
            return Ok((margins, Timing { compute, batch: rows, ..Timing::default() }));
        }
        let cells = Arc::new(cells);
        let chunk = CHUNK_ROWS.max(rows.div_ceil(MOST_CHUNKS));
        let jobs = (0..rows).step_by(chunk).map(|start| {
            let end = rows.min(start + chunk);
            (Job::Margins { cells: cells.clone(), range: start * width..end * width }, end - start)
        });
        let parts = self.submit(jobs.collect(), admission)?;
        let (parts, timing) = gather(accepted, parts).await?;
        let mut margins = Vec::with_capacity(rows);
        for part in parts {
            margins.extend_from_slice(&part.ok_or_else(panicked)?);
        }
        let cached = rows.min(chunk * timing.cached);
        Ok((margins, Timing { batch: chunk.min(rows) * timing.batch, cached, ..timing }))
    }

    /// Scores one row and says how far each feature moved the score from the average case.
    pub async fn explain(&self, row: Vec<f32>, admission: Admission) -> Result<Explained> {
        let tickets = self.submit(vec![(Job::Explain(row), 1)], admission)?;
        let (mut answers, _) = gather(Instant::now(), tickets).await?;
        let mut shap = answers.pop().flatten().ok_or_else(panicked)?;
        let margin = shap.pop().ok_or_else(panicked)?;
        // What is left at the end is the expected value: the average case itself.
        shap.truncate(self.schema.inputs().len());
        Ok(Explained { margin, score: TreeEnsemble::probability(margin), shap })
    }

    fn submit(&self, jobs: Vec<(Job, usize)>, admission: Admission) -> Result<Vec<crate::batch::Ticket<Vec<f32>>>> {
        self.batcher.submit(jobs, admission).map_err(|refused| Error::refused(&self.name, refused))
    }
}

/// Writes down what the answer to a job depends on.
fn written(job: &Job, hash: &mut Sha256) {
    let (kind, cells) = match job {
        Job::Margins { cells, range } => (b"margins".as_slice(), &cells[range.clone()]),
        Job::Explain(row) => (b"explain".as_slice(), row.as_slice()),
    };
    put(hash, kind);
    put_numbers(hash, cells.iter().map(|cell| cell.to_le_bytes()));
}

fn run(ensemble: &TreeEnsemble, job: &Job) -> Vec<f32> {
    match job {
        Job::Margins { cells, range } => {
            let mut margins = Vec::with_capacity(range.len() / ensemble.num_features().max(1));
            ensemble.margins(&cells[range.clone()], &mut margins);
            margins
        }
        Job::Explain(row) => {
            let mut margin = Vec::with_capacity(1);
            ensemble.margins(row, &mut margin);
            let mut answer = ensemble.shap(row);
            answer.append(&mut margin);
            answer
        }
    }
}

fn panicked() -> Error {
    Error::failed(crate::batch::Failure::Panicked)
}
