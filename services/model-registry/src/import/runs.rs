//! Runs, each with its files and all values of its metrics.

use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::mem;

use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::json;
use tempfile::SpooledTempFile;

use super::pages::Pages;
use super::wire::{Histories, RunAnswer, RunPage};
use super::{Failure, Found, Import, checked_id, compare};
use crate::error::{Error, Result};
use crate::tracking::import::History;
use crate::tracking::{Metric, Millis, PROXY, Run};

/// Bytes of a run's metrics that are held in memory; more wait on disk until the run is written.
const SPOOL_BYTES: usize = 4 << 20;
/// Values of a metric that are asked for, and written, at once.
const VALUES_ASKED: &str = "25000";
const VALUES_WRITTEN: usize = 1000;

impl Import<'_> {
    /// Copies the runs of an experiment.
    pub(super) async fn runs(&self, there: &str, here: i64) -> Found<()> {
        let mut pages = Pages::of("runs");
        loop {
            let query = json!({
                "experiment_ids": [there],
                "run_view_type": self.view(),
                "max_results": 200,
                // Those that begin meanwhile come last, so that no page moves.
                "order_by": ["attributes.start_time ASC"],
                "page_token": pages.token(),
            });
            let page: RunPage = self.source.post(&["runs", "search"], &query).await?;
            let ids = page.runs.into_iter().map(|run| run.info.run_id);
            let copying = stream::iter(ids).map(Ok).try_for_each_concurrent(self.at_once(), |id| async move {
                self.settle("run", &id, self.run(&id, here)).await
            });
            copying.await.map_err(Failure::Fatal)?;
            if !pages.go_on(page.next_page_token)? {
                return Ok(());
            }
        }
    }

    async fn run(&self, id: &str, experiment: i64) -> Found<()> {
        let id = checked_id(id)?;
        let answer: RunAnswer = self.source.get(&["runs", "get"], &[("run_id", id)]).await?;
        let mut run = answer.run.into_run(experiment);
        if run.id != id {
            return Err(Failure::item(format!("the server answered run {} for it", run.id)));
        }
        let here = match self.store.run(id).await {
            Ok(here) => Some(here),
            Err(Error::NotFound(_)) => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(here) = &here {
            if let Some(why) = compare::runs(here, &run).told() {
                return Err(Failure::item(why));
            }
            self.here_already(|counts| counts.runs += 1);
            if !here.artifact_uri.starts_with(PROXY) {
                self.leave_out("files of run", id, format!("they stay at {}", here.artifact_uri));
                return Ok(());
            }
        }
        let dir = format!("{experiment}/{id}/artifacts");
        let there = mem::replace(&mut run.artifact_uri, format!("{PROXY}/{dir}"));
        let place = self.place_of_run(id, &there);
        match self.copy_files(&format!("run {id}"), &place, &dir).await {
            Ok(()) => {}
            Err(Failure::Item { why, .. }) => {
                self.leave_out("files of run", id, format!("they stay at {there}: {why}"));
                run.artifact_uri = there;
            }
            Err(fatal) => return Err(fatal),
        }
        if here.is_some() {
            return Ok(());
        }
        if self.config.dry_run {
            // How many values each has is not known before they are read.
            self.copied(|counts| counts.runs += 1);
            return Ok(());
        }
        let (spool, values) = self.history(&run).await?;
        if self.store.import_run(&run, spooled(spool)).await? {
            self.copied(|counts| {
                counts.runs += 1;
                counts.metric_values += values;
            });
        } else {
            self.here_already(|counts| counts.runs += 1);
        }
        Ok(())
    }

    /// Reads all values of all metrics of a run into a file; answers how many.
    async fn history(&self, run: &Run) -> Found<(SpooledTempFile, u64)> {
        let failed = |error: std::io::Error| Failure::Fatal(anyhow::Error::from(error).context("cannot spool metrics"));
        let mut spool = tempfile::spooled_tempfile_in(SPOOL_BYTES, &self.spool);
        let mut values = 0;
        for metric in &run.metrics {
            let mut pages = Pages::of("the values of a metric");
            loop {
                let query = [
                    ("run_id", run.id.as_str()),
                    ("metric_key", metric.key.as_str()),
                    ("max_results", VALUES_ASKED),
                    ("page_token", pages.token()),
                ];
                // A server of MLflow 2 knows no pages of them: it sends all.
                let query = if pages.token().is_empty() { &query[..3] } else { &query[..] };
                let page: Histories = self.source.get(&["metrics", "get-history"], query).await?;
                for value in page.metrics {
                    let Metric { key, value, timestamp, step, .. } = value.into_metric();
                    let line = serde_json::to_string(&(key, value.to_bits(), timestamp.0, step));
                    let line = line.map_err(|error| Failure::item(error.to_string()))?;
                    spool.write_all(line.as_bytes()).and_then(|()| spool.write_all(b"\n")).map_err(failed)?;
                    values += 1;
                }
                if !pages.go_on(page.next_page_token)? {
                    break;
                }
            }
        }
        spool.flush().and_then(|()| spool.seek(SeekFrom::Start(0))).map_err(failed)?;
        Ok((spool, values))
    }
}

/// Reads back what was spooled, a thousand values at once.
fn spooled(spool: SpooledTempFile) -> History<'static> {
    let mut lines = BufReader::new(spool).lines();
    let metric = |line: std::io::Result<String>| -> Result<Metric> {
        let line = line.map_err(anyhow::Error::from)?;
        let (key, bits, timestamp, step): (String, u64, i64, i64) =
            serde_json::from_str(&line).map_err(anyhow::Error::from)?;
        let (value, timestamp) = (f64::from_bits(bits), Millis(timestamp));
        Ok(Metric { key, value, timestamp, step, model: None, dataset: None })
    };
    Box::new(std::iter::from_fn(move || {
        let some: Result<Vec<Metric>> = lines.by_ref().take(VALUES_WRITTEN).map(metric).collect();
        match some {
            Ok(some) if some.is_empty() => None,
            some => Some(some),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_from_the_spool_as_they_were() {
        let values = [1.5, f64::NAN, f64::INFINITY, -0.0, f64::MIN_POSITIVE];
        let mut spool = SpooledTempFile::new(16);
        for (step, value) in (0_i64..2500).zip(values.iter().cycle()) {
            let line = serde_json::to_string(&("a\n\"b", value.to_bits(), 7 - step, step)).unwrap();
            writeln!(spool, "{line}").unwrap();
        }
        spool.seek(SeekFrom::Start(0)).unwrap();
        let parts: Vec<Vec<Metric>> = spooled(spool).map(|part| part.unwrap()).collect();
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 500]);
        for (at, metric) in parts.iter().flatten().enumerate() {
            assert_eq!(metric.value.to_bits(), values[at % 5].to_bits());
            assert_eq!((metric.key.as_str(), metric.step, metric.timestamp.0), ("a\n\"b", at as i64, 7 - at as i64));
        }
    }
}
