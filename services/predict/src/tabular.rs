//! Tabular models: rows to margins and answers, rows to explanations, one row to a decision's score and reasons.

use std::{ops::Range, path::Path, sync::Arc, time::Instant};

use anyhow::{Context, bail, ensure};
use sha2::Sha256;
use verdict_inference::trees::{Kind, TabularModel};

use crate::{
    admission::Admission,
    answers::{Scope, put, put_numbers},
    batch::{Batcher, Limits},
    cut::Budget,
    error::{Error, Result},
    metrics::ModelMeters,
    policy::Policy,
    release::{Release, Task},
    schema::Schema,
    text::before,
    timing::{Timing, gather},
};

mod files;
mod mlmodel;

/// Up to this many rows are computed where they arrive: handing them to a worker would cost more.
const INLINE_ROWS: usize = 32;
/// Rows of one job, so that all workers share a large request.
const CHUNK_ROWS: usize = 512;
/// Rows of one job that explains: each takes as long as many rows that are only scored.
const EXPLAINED_ROWS: usize = 32;
/// Most jobs of one request.
const MOST_CHUNKS: usize = 256;

/// A tabular model with its schema, its policy where it has one, and its queue.
pub struct Tabular {
    name: String,
    model: Arc<TabularModel>,
    pub schema: Schema,
    pub policy: Option<Policy>,
    batcher: Batcher<Job, Vec<f32>>,
    /// Rows that take as long as explaining one.
    explain_cost: usize,
    meters: ModelMeters,
}

/// Margins, and the share of each feature in them.
#[derive(Debug)]
pub struct Explained {
    /// Rows × outputs.
    pub margins: Vec<f32>,
    /// For each row and output: one number a column, then the base value.
    pub shap: Vec<f32>,
}

/// Some rows of a request, as a range of its cells.
struct Job {
    work: Work,
    cells: Arc<Vec<f32>>,
    range: Range<usize>,
}

#[derive(Clone, Copy)]
enum Work {
    /// Their margins.
    Score,
    /// Their margins, then their shares.
    Explain,
}

impl Tabular {
    /// Loads a version from its folder, warms it up and starts its workers. The error names the file and the problem.
    pub fn load(
        release: &Release,
        dir: &Path,
        limits: Limits,
        meters: [ModelMeters; 2],
        scope: Option<Scope>,
    ) -> anyhow::Result<Self> {
        let files::Found { file, inputs } = files::find(dir, &release.artifacts)?;
        let model = std::fs::read(dir.join(&file)).map_err(anyhow::Error::from);
        let model =
            model.and_then(|bytes| Ok(TabularModel::load(&bytes)?)).with_context(|| file.display().to_string())?;
        match (release.task, model.kind()) {
            (Task::Custom, _)
            | (Task::TabularRegression, Kind::Regression | Kind::Ranking)
            | (Task::TabularClassification, Kind::BinaryClassification | Kind::MulticlassClassification) => {}
            (Task::TabularRegression, _) => {
                bail!("{} is a classifier ({}): publish it as such", file.display(), model.objective())
            }
            _ => bail!("{} is no classifier ({}): publish it as a regression", file.display(), model.objective()),
        }
        let inputs = if release.inputs.is_empty() { inputs } else { release.inputs.clone() };
        let schema = Schema::new(inputs, model.num_features(), model.feature_names()).map_err(anyhow::Error::msg)?;
        let policy = policy(dir, &schema)?;
        if policy.is_some() {
            let binary = model.kind() == Kind::BinaryClassification && model.num_outputs() == 1;
            ensure!(binary, "policy.json: decisions need a classifier of two classes with one output");
            model.explainable().context("policy.json: decisions need reasons")?;
        }
        Self::start(release.model.clone(), model, schema, policy, limits, meters, scope)
    }

    fn start(
        name: String,
        model: TabularModel,
        schema: Schema,
        policy: Option<Policy>,
        limits: Limits,
        meters: [ModelMeters; 2],
        scope: Option<Scope>,
    ) -> anyhow::Result<Self> {
        let model = Arc::new(model);
        let missing = Arc::new(vec![f32::NAN; model.num_features()]);
        let work = if model.explainable().is_ok() { Work::Explain } else { Work::Score };
        let answer = run(&model, &Job { work, range: 0..missing.len(), cells: missing });
        // A linear model makes nothing of a row that is missing; trees always say something.
        let linear = answer.iter().all(|value| value.is_nan() || value.is_finite());
        ensure!(linear, "warm-up: the model's score is not finite");
        let explain_cost = if model.explainable().is_ok() { explain_cost(&model) } else { 1 };
        let worker = model.clone();
        let limits = Limits { budget: Budget { items: limits.budget.items, cost: CHUNK_ROWS }, ..limits };
        let [queued, inline] = meters;
        let answers = scope.map(|scope| scope.of(written));
        let batcher = Batcher::start_cached(limits, queued, answers, move |jobs: &[&Job]| {
            jobs.iter().map(|job| run(&worker, job)).collect::<Vec<_>>()
        })?;
        Ok(Self { name, model, schema, policy, batcher, explain_cost, meters: inline })
    }

    /// Returns the model itself: its kind, classes and outputs, and what becomes of margins.
    pub fn model(&self) -> &TabularModel {
        &self.model
    }

    /// Returns the margins of each row of `cells`, which [`Schema`] has checked.
    pub async fn margins(&self, cells: Vec<f32>, admission: Admission) -> Result<(Vec<f32>, Timing)> {
        let rows = cells.len() / self.schema.inputs().len();
        if rows > INLINE_ROWS {
            return self.share(Work::Score, cells, CHUNK_ROWS, admission).await.map(|(parts, timing)| {
                let margins = parts.concat();
                (margins, timing)
            });
        }
        before(admission.deadline, || ())?;
        let accepted = Instant::now();
        let mut margins = Vec::with_capacity(rows * self.model.num_outputs());
        self.model.margins(&cells, &mut margins);
        let compute = accepted.elapsed();
        self.meters.computed(std::time::Duration::ZERO, compute, rows);
        Ok((margins, Timing { compute, batch: rows, ..Timing::default() }))
    }

    /// Returns the margins of each row, and how far each column moved them from the base value.
    pub async fn explain(&self, cells: Vec<f32>, admission: Admission) -> Result<(Explained, Timing)> {
        self.model.explainable().map_err(|why| Error::NotExplainable { model: self.name.clone(), why })?;
        let (outputs, shares) = (self.model.num_outputs(), self.schema.inputs().len() + 1);
        let (parts, timing) = self.share(Work::Explain, cells, EXPLAINED_ROWS, admission).await?;
        let mut explained = Explained { margins: Vec::new(), shap: Vec::new() };
        for part in parts {
            // So many numbers a row: its margins and their shares.
            let rows = part.len() / (outputs * (1 + shares));
            let (margins, shap) = part.split_at(rows * outputs);
            explained.margins.extend_from_slice(margins);
            explained.shap.extend_from_slice(shap);
        }
        Ok((explained, timing))
    }

    /// Cuts the rows into jobs of `chunk` rows, or more where those would be too many, and waits for all.
    async fn share(
        &self,
        work: Work,
        cells: Vec<f32>,
        chunk: usize,
        admission: Admission,
    ) -> Result<(Vec<Vec<f32>>, Timing)> {
        let (accepted, width) = (Instant::now(), self.schema.inputs().len());
        let rows = cells.len() / width;
        let cells = Arc::new(cells);
        let chunk = chunk.max(rows.div_ceil(MOST_CHUNKS));
        let cost = match work {
            Work::Score => 1,
            Work::Explain => self.explain_cost,
        };
        let jobs = (0..rows).step_by(chunk).map(|start| {
            let end = rows.min(start + chunk);
            (Job { work, cells: cells.clone(), range: start * width..end * width }, (end - start) * cost)
        });
        let refused = |refused| Error::refused(&self.name, refused);
        let tickets = self.batcher.submit(jobs.collect(), admission).map_err(refused)?;
        let (parts, timing) = gather(accepted, tickets).await?;
        let parts = parts.into_iter().map(|part| part.ok_or_else(panicked)).collect::<Result<_>>()?;
        let cached = rows.min(chunk * timing.cached);
        Ok((parts, Timing { batch: chunk.min(rows) * timing.batch, cached, ..timing }))
    }
}

/// Measures how many rows take as long as explaining one, so that the cost of both means the same.
fn explain_cost(model: &TabularModel) -> usize {
    const ROWS: usize = 64;
    let width = model.num_features();
    let job = |work, rows| Job { work, cells: Arc::new(vec![f32::NAN; rows * width]), range: 0..rows * width };
    let fastest = |job: &Job| {
        let time = |_| {
            let begun = Instant::now();
            std::hint::black_box(run(model, job));
            begun.elapsed()
        };
        (0..3).map(time).min().unwrap_or_default().as_secs_f64()
    };
    let rows = fastest(&job(Work::Explain, 1)) / fastest(&job(Work::Score, ROWS)).max(1e-9) * ROWS as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and a chunk")]
    let cost = rows.clamp(1.0, CHUNK_ROWS as f64) as usize;
    cost
}

/// Writes down what the answer to a job depends on.
fn written(job: &Job, hash: &mut Sha256) {
    let Job { work, cells, range } = job;
    put(
        hash,
        match work {
            Work::Score => b"score",
            Work::Explain => b"explain",
        },
    );
    put_numbers(hash, cells[range.clone()].iter().map(|cell| cell.to_le_bytes()));
}

fn run(model: &TabularModel, job: &Job) -> Vec<f32> {
    let Job { work, cells, range } = job;
    let cells = &cells[range.clone()];
    let mut answer = Vec::new();
    model.margins(cells, &mut answer);
    if let Work::Explain = work {
        let mut shap = Vec::new();
        // Asked before the job was made.
        if model.shap(cells, &mut shap).is_ok() {
            answer.append(&mut shap);
        }
    }
    answer
}

fn policy(dir: &Path, schema: &Schema) -> anyhow::Result<Option<Policy>> {
    let path = dir.join("policy.json");
    match std::fs::read(&path) {
        Ok(json) => {
            Policy::parse(&json, schema.inputs()).map(Some).map_err(|problem| anyhow::anyhow!("policy.json: {problem}"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("policy.json cannot be read"),
    }
}

fn panicked() -> Error {
    Error::failed(crate::batch::Failure::Panicked)
}
