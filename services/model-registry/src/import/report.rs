//! What was copied, what was here already, and what was left out and why.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use url::Url;

/// Most things left out that are printed; the JSON has all of them.
const PRINTED: usize = 50;

/// What came of an import.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub from: String,
    pub server_version: String,
    /// Nothing was written: `copied` is what would be.
    pub dry_run: bool,
    pub copied: Counts,
    pub here_already: Counts,
    /// The experiments whose number was taken here: their number there, and here.
    pub experiment_ids: BTreeMap<String, i64>,
    pub left_out: Vec<LeftOut>,
    /// What ended it before its end; started again, it goes on.
    pub stopped_by: Option<String>,
}

/// How many of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub experiments: u64,
    pub runs: u64,
    pub metric_values: u64,
    pub logged_models: u64,
    pub registered_models: u64,
    pub versions: u64,
    pub aliases: u64,
    pub files: u64,
    pub bytes: u64,
}

/// Something that was not copied.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    pub what: &'static str,
    pub name: String,
    pub why: String,
}

impl Report {
    pub(super) fn new(from: &Url, server_version: String, dry_run: bool) -> Self {
        Self {
            from: from.to_string(),
            server_version,
            dry_run,
            copied: Counts::default(),
            here_already: Counts::default(),
            experiment_ids: BTreeMap::new(),
            left_out: Vec::new(),
            stopped_by: None,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            experiments,
            runs,
            metric_values,
            logged_models,
            registered_models,
            versions,
            aliases,
            files,
            bytes,
        } = self;
        write!(
            f,
            "{experiments} experiments, {runs} runs, {metric_values} values of metrics, {logged_models} logged models, \
             {registered_models} registered models, {versions} versions, {aliases} aliases, {files} files ({})",
            indicatif::BinaryBytes(*bytes)
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, server_version, dry_run, copied, here_already, experiment_ids, left_out, stopped_by } = self;
        writeln!(f, "from {from} (MLflow {server_version})")?;
        let would = "would be copied, with the values of metrics that are not counted before";
        writeln!(f, "{}: {copied}", if *dry_run { would } else { "copied" })?;
        writeln!(f, "here already: {here_already}")?;
        for (there, here) in experiment_ids {
            writeln!(f, "experiment {there} has the number {here} here")?;
        }
        writeln!(f, "left out: {}", left_out.len())?;
        for LeftOut { what, name, why } in left_out.iter().take(PRINTED) {
            writeln!(f, "  {what} {name}: {why}")?;
        }
        if left_out.len() > PRINTED {
            writeln!(f, "  and {} more; --report FILE writes all of them", left_out.len() - PRINTED)?;
        }
        if let Some(why) = stopped_by {
            writeln!(f, "stopped before its end: {why}")?;
        }
        Ok(())
    }
}
