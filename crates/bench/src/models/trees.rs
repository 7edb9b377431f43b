//! Tree ensembles in process on both sides: 300 trees on the Adult census data.
//!
//! The model and the rows are those of the engine's golden files; 10,000 rows are made of their columns in other orders.
//! With two threads, two callers ask at the same time.

use std::{
    io::Read,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use verdict_inference::trees::TabularModel;

use super::peer;
use crate::{Cli, median};

/// Rows that are explained in a call.
const EXPLAINED: usize = 500;

/// What a row of the table measures, and against whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// One row a call: the median call, as calls per second.
    Row,
    /// 10,000 rows a call, to probabilities; rows per second.
    Rows,
    /// SHAP values; rows per second.
    Shap,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Row => "trees 1 row",
            Self::Rows => "trees 10000 rows",
            Self::Shap => "trees shap",
        }
    }

    fn peers(self) -> &'static [&'static str] {
        match self {
            Self::Row => &["onnxruntime", "xgboost", "lightgbm"],
            Self::Rows => &["xgboost", "onnxruntime", "lightgbm"],
            Self::Shap => &["xgboost", "lightgbm"],
        }
    }
}

#[derive(Deserialize)]
struct Reference {
    rows: Vec<Vec<Option<f32>>>,
    probability: Vec<f32>,
}

/// Measures every row whose name contains the filter.
pub(super) fn run(cli: &Cli) -> Result<()> {
    let works = [(Work::Row, 1), (Work::Rows, 1), (Work::Rows, 2), (Work::Shap, 1), (Work::Shap, 2)];
    let works: Vec<_> = works.into_iter().filter(|(work, _)| work.name().contains(&cli.rows)).collect();
    if works.is_empty() {
        return Ok(());
    }
    let (model, rows) = load(&cli.golden)?;
    for (work, threads) in works {
        for name in work.peers() {
            // LightGBM measures a model of its own, on the same data: ours does that one too.
            let (model, rows) =
                if *name == "lightgbm" { (&load_lightgbm(&cli.golden)?, &rows) } else { (&model, &rows) };
            let (mut ours, mut theirs, mut version) = (Vec::new(), Vec::new(), String::new());
            for _ in 0..cli.rounds {
                ours.push(measure(model, rows, work, threads, Duration::from_secs_f64(cli.seconds))?);
                let kind = format!("{work:?}").to_lowercase();
                let round = peer::ask(&cli.peers, &["trees", "--engine", name, "--work", &kind], threads, cli.seconds)?;
                theirs.push(round.median_per_s);
                version = format!("{} {}", round.peer, round.version);
            }
            let (ours, theirs) = (median(ours), median(theirs));
            println!(
                "{:<26} {threads:>7} {ours:>12.1} {theirs:>12.1} {:>7.2}  {version}, in process",
                work.name(),
                ours / theirs
            );
        }
    }
    Ok(())
}

/// Reads the XGBoost model and makes 10,000 rows; what the model answers must be what XGBoost answered.
fn load(golden: &Path) -> Result<(TabularModel, Vec<f32>)> {
    let model = TabularModel::load(&unpacked(&golden.join("adult_xgb300.json.gz"))?)?;
    let file = golden.join("adult_rows.json");
    let reference: Reference =
        serde_json::from_slice(&std::fs::read(&file).with_context(|| file.display().to_string())?)?;
    let cells: Vec<f32> = reference.rows.iter().flatten().map(|cell| cell.unwrap_or(f32::NAN)).collect();
    let mut answers = Vec::new();
    model.margins(&cells, &mut answers);
    model.transform(&mut answers);
    let apart = answers.iter().zip(&reference.probability).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    ensure!(apart < 1e-6, "probabilities {apart} from the reference; not timed");
    let (width, count) = (model.num_features(), reference.rows.len());
    let from = |row: usize, column: usize| (row * (2 * column + 3) + row / count) % count;
    let rows = (0..10_000).flat_map(|row| (0..width).map(move |column| (row, column)));
    let rows = rows.map(|(row, column)| cells[from(row, column) * width + column]).collect();
    Ok((model, rows))
}

fn load_lightgbm(golden: &Path) -> Result<TabularModel> {
    Ok(TabularModel::load(&unpacked(&golden.join("adult_lgb300.txt.gz"))?)?)
}

fn unpacked(file: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let packed = std::fs::File::open(file).with_context(|| file.display().to_string())?;
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Has `threads` callers ask for `time`; items per second.
fn measure(model: &TabularModel, rows: &[f32], work: Work, threads: usize, time: Duration) -> Result<f64> {
    let width = model.num_features();
    let call = |number: usize, out: &mut Vec<f32>| {
        match work {
            Work::Row => {
                let row = number % (rows.len() / width);
                model.margins(&rows[row * width..][..width], out);
                model.transform(out);
            }
            Work::Rows => {
                model.margins(rows, out);
                model.transform(out);
            }
            Work::Shap => model.shap(&rows[..EXPLAINED * width], out)?,
        }
        Ok::<_, anyhow::Error>(())
    };
    let items = match work {
        Work::Row => 1,
        Work::Rows => rows.len() / width,
        Work::Shap => EXPLAINED,
    };
    let caller = || {
        let (mut out, mut took, start) = (Vec::new(), Vec::new(), Instant::now());
        while start.elapsed() < time {
            let began = Instant::now();
            call(took.len(), &mut out)?;
            took.push(began.elapsed().as_secs_f64());
        }
        let (calls, seconds) = (took.len() as f64, start.elapsed().as_secs_f64());
        Ok::<_, anyhow::Error>(if work == Work::Row { 1.0 / median(took) } else { calls * items as f64 / seconds })
    };
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..threads).map(|_| scope.spawn(caller)).collect();
        let rates =
            callers.into_iter().map(|caller| caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))?);
        rates.sum()
    })
}
