//! The process-wide metrics recorder and the names the chassis itself writes.
//!
//! Buckets follow from the unit at the end of a histogram's name, so that no histogram becomes a summary by accident:
//! `…_seconds`, `…_ms`, `…_bytes`, and counts for everything else.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Gauge, Histogram, Unit, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::Span;

use crate::exemplars::Exemplars;

/// Histogram of every gRPC call: `service`, `method`, `code` (its gRPC name, such as `NOT_FOUND`); ends with the response body.
pub const CALL_DURATION: &str = "http_request_duration_seconds";
/// Gauge of calls that have begun and not ended, by `service`.
pub const IN_FLIGHT: &str = "grpc_requests_in_flight";
/// Gauge by `service`: 1 while health says SERVING, 0 while it doesn't.
pub const SERVING: &str = "grpc_service_serving";
/// Gauge: when this process began, in seconds since 1970; a change is a restart.
pub const START_TIME: &str = "process_start_time_seconds";

/// Upper bounds of the buckets of times in seconds; the last bucket has none.
pub(crate) const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const MILLISECONDS: [f64; 16] =
    [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 5000.0, 30000.0];
const BYTES: [f64; 8] = [256.0, 1024.0, 4096.0, 16384.0, 65536.0, 1_048_576.0, 16_777_216.0, 268_435_456.0];
const COUNTS: [f64; 14] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0];

/// Codes of gRPC, 0 to 16.
const CODES: usize = 17;

/// What the calls of one method are measured by: looked up in the recorder once, so that a call costs no look-up.
#[derive(Debug)]
pub(crate) struct CallMeters {
    service: Arc<str>,
    method: Arc<str>,
    in_flight: OnceLock<Gauge>,
    durations: [OnceLock<Durations>; CODES],
}

/// Calls of one method that ended with one code: how long they took, and a trace to look at for each bucket.
#[derive(Debug)]
struct Durations {
    histogram: Histogram,
    exemplars: Arc<Exemplars>,
}

impl CallMeters {
    pub(crate) fn new(service: Arc<str>, method: Arc<str>) -> Self {
        Self { service, method, in_flight: OnceLock::new(), durations: [const { OnceLock::new() }; CODES] }
    }

    /// Returns the gauge of calls in flight.
    pub(crate) fn in_flight(&self) -> &Gauge {
        self.in_flight.get_or_init(|| gauge!(IN_FLIGHT, "service" => Arc::clone(&self.service)))
    }

    /// Records a call that ended with the code of this number and name; `span` was its span.
    pub(crate) fn ended(&self, code: usize, name: &'static str, took: Duration, span: &Span) {
        let look_up = || {
            let (service, method) = (Arc::clone(&self.service), Arc::clone(&self.method));
            let exemplars = Exemplars::of(CALL_DURATION, &[("service", &service), ("method", &method), ("code", name)]);
            let histogram = histogram!(CALL_DURATION, "service" => service, "method" => method, "code" => name);
            Durations { histogram, exemplars }
        };
        let durations = self.durations[code.min(CODES - 1)].get_or_init(look_up);
        durations.histogram.record(took.as_secs_f64());
        durations.exemplars.offer(took.as_secs_f64(), span);
    }
}

/// Says whether a service serves. It may be the first to say something, before the server begins.
pub(crate) fn serving(service: &'static str, serving: bool) {
    recorder();
    gauge!(SERVING, "service" => service).set(if serving { 1.0 } else { 0.0 });
}

/// Installs the recorder at the first call and returns what renders it.
///
/// `None` when something else installed a recorder before; the reason is logged once.
pub(crate) fn recorder() -> Option<&'static PrometheusHandle> {
    static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    RECORDER
        .get_or_init(|| {
            let installed = PrometheusBuilder::new()
                .set_buckets(&COUNTS)
                .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS))
                .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_ms".into()), &MILLISECONDS))
                .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_bytes".into()), &BYTES))
                .and_then(PrometheusBuilder::install_recorder);
            match installed {
                Ok(handle) => {
                    describe_histogram!(
                        CALL_DURATION,
                        Unit::Seconds,
                        "Time from a call's head to the end of its answer"
                    );
                    describe_gauge!(IN_FLIGHT, "Calls that have begun and not ended");
                    describe_gauge!(SERVING, "1 while the service's health is SERVING");
                    describe_gauge!(START_TIME, Unit::Seconds, "When this process began, since 1970-01-01 UTC");
                    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    gauge!(START_TIME).set(since.as_secs_f64());
                    Some(handle)
                }
                Err(error) => {
                    tracing::error!(error = %error, "no metrics: the recorder can't be installed");
                    None
                }
            }
        })
        .as_ref()
}
