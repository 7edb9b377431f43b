//! Exemplars: for each bucket of a histogram of calls, the trace of one recent call in it.
//!
//! The recorder's exporter knows none, so they are kept here and written into what it renders, in the OpenMetrics format,
//! the only text format that has them.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tracing::Span;

use crate::metrics::SECONDS;
use crate::telemetry;

/// A bucket's exemplar is replaced at most this often: looking up a trace id costs more than recording a time.
const MILLIS_BETWEEN: u64 = 1000;
/// A bucket without an upper bound follows the others.
const BUCKETS: usize = SECONDS.len() + 1;

/// The exemplars of one histogram of times in seconds.
#[derive(Debug, Default)]
pub(crate) struct Exemplars {
    /// Milliseconds of the process's life from which on a bucket takes another one.
    due: [AtomicU64; BUCKETS],
    kept: Mutex<[Option<Exemplar>; BUCKETS]>,
}

#[derive(Clone, Debug)]
struct Exemplar {
    trace_id: String,
    seconds: f64,
    /// When, in seconds since 1970.
    at: f64,
}

/// All there are, by name and labels as the exporter renders them: `name_bucket{service="a",code="OK"`.
fn all() -> &'static Mutex<HashMap<String, Arc<Exemplars>>> {
    static ALL: OnceLock<Mutex<HashMap<String, Arc<Exemplars>>>> = OnceLock::new();
    ALL.get_or_init(Mutex::default)
}

/// Milliseconds since the first call.
fn uptime() -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(BEGAN.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Exemplars {
    /// Returns those of the histogram with this name and these labels, in the order the histogram was registered with.
    pub(crate) fn of(name: &str, labels: &[(&str, &str)]) -> Arc<Self> {
        let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let series = format!("{name}_bucket{{{}", labels.join(","));
        all().lock().entry(series).or_default().clone()
    }

    /// Keeps the trace of a call that took `seconds` when its bucket's turn has come.
    pub(crate) fn offer(&self, seconds: f64, span: &Span) {
        let bucket = SECONDS.partition_point(|bound| *bound < seconds);
        let now = uptime();
        if self.due[bucket].load(Ordering::Relaxed) > now {
            return;
        }
        let Some(trace_id) = telemetry::trace_id(span) else { return };
        self.due[bucket].store(now + MILLIS_BETWEEN, Ordering::Relaxed);
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.kept.lock()[bucket] = Some(Exemplar { trace_id, seconds, at });
    }

    /// Returns the one of the bucket whose upper bound is written `bound`.
    fn find(&self, bound: &str) -> Option<Exemplar> {
        let bucket = match bound.parse::<f64>() {
            Ok(bound) if bound.is_finite() => SECONDS.iter().position(|known| *known == bound)?,
            _ => SECONDS.len(),
        };
        self.kept.lock()[bucket].clone()
    }
}

/// Turns what the exporter renders (Prometheus's text format) into OpenMetrics, with the exemplars there are.
///
/// The names of counters lose `_total` where they are described and keep it where they are counted, blank lines go, and an
/// end is written: that is all the two formats differ in for what the exporter writes.
pub(crate) fn open_metrics(rendered: &str) -> String {
    let all = all().lock().clone();
    let mut text = String::with_capacity(rendered.len() + rendered.len() / 8);
    for line in rendered.lines().filter(|line| !line.is_empty()) {
        match line.strip_prefix("# ") {
            Some(description) => write_description(&mut text, description),
            None => {
                text.push_str(line);
                if let Some(exemplar) = exemplar(&all, line) {
                    let Exemplar { trace_id, seconds, at } = exemplar;
                    // Writing to a String can't fail.
                    let _ = write!(text, " # {{trace_id=\"{trace_id}\"}} {seconds} {at:.3}");
                }
            }
        }
        text.push('\n');
    }
    text.push_str("# EOF\n");
    text
}

/// Writes `TYPE name counter` or `HELP name text`.
fn write_description(text: &mut String, description: &str) {
    let mut parts = description.splitn(3, ' ');
    let (what, name, rest) = (parts.next(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let name = name.strip_suffix("_total").unwrap_or(name);
    let _ = write!(text, "# {} {name} {rest}", what.unwrap_or_default());
}

/// Finds the exemplar of a line `name_bucket{labels,le="bound"} count`.
fn exemplar(all: &HashMap<String, Arc<Exemplars>>, line: &str) -> Option<Exemplar> {
    let (series, rest) = line.split_once(",le=\"")?;
    all.get(series)?.find(rest.split('"').next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_exporter_renders_becomes_open_metrics() {
        let rendered =
            "# HELP hits_total Hits\n# TYPE hits_total counter\nhits_total{a=\"b\"} 3\n\n# TYPE up gauge\nup 1\n\n";
        let expected = "# HELP hits Hits\n# TYPE hits counter\nhits_total{a=\"b\"} 3\n# TYPE up gauge\nup 1\n# EOF\n";
        assert_eq!(open_metrics(rendered), expected);
    }

    #[test]
    fn an_exemplar_stands_behind_its_own_bucket_and_no_other() {
        let exemplars = Exemplars::of("t_seconds", &[("code", "OK")]);
        let keep = |seconds: f64| {
            let bucket = SECONDS.partition_point(|bound| *bound < seconds);
            exemplars.kept.lock()[bucket] = Some(Exemplar { trace_id: format!("{seconds}"), seconds, at: 7.0 });
        };
        keep(0.05);
        keep(90.0);
        let lines = ["0.025", "0.05", "0.1", "+Inf"].map(|le| format!("t_seconds_bucket{{code=\"OK\",le=\"{le}\"}} 2"));
        let other = "t_seconds_bucket{code=\"INTERNAL\",le=\"0.05\"} 1".to_owned();
        let expected = [
            lines[0].clone(),
            format!("{} # {{trace_id=\"0.05\"}} 0.05 7.000", lines[1]),
            lines[2].clone(),
            format!("{} # {{trace_id=\"90\"}} 90 7.000", lines[3]),
            other.clone(),
            "# EOF\n".to_owned(),
        ];
        assert_eq!(open_metrics(&[lines.join("\n"), other].join("\n")), expected.join("\n"));
    }
}
