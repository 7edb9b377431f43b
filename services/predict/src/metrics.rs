//! Every metric of this service, by name; the gRPC ones are the chassis'.

use std::{sync::Arc, time::Duration};

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::engine::statistics::Statistics;

/// Milliseconds one batch took in the engine, by model and version.
pub const INFERENCE_TIME: &str = "model_inference_time_ms";
/// Seconds from acceptance to the start of the batch, by model and version.
pub const QUEUE_WAIT: &str = "predict_queue_wait_seconds";
/// Items computed together, by model and version.
pub const BATCH_SIZE: &str = "predict_batch_size";
/// Requests and items that were turned away, by model and reason.
pub const REFUSALS: &str = "predict_refusals_total";
/// Tokens of generations, by model, version and kind (`prompt`, `cached`, `completion`).
pub const TOKENS: &str = "predict_generation_tokens_total";
/// Items nobody waited for any more when their turn came, by model and reason (`EXPIRED`, `WITHDRAWN`); not computed.
pub const DROPPED: &str = "predict_items_dropped_total";
/// Items that wait, by model, version and priority.
pub const QUEUED: &str = "predict_queue_items";
/// Items looked up in the response cache, by model and result (`hit`, `miss`).
pub const LOOKUPS: &str = "predict_response_cache_lookups_total";
/// Bytes the response cache holds.
pub const CACHE_BYTES: &str = "predict_response_cache_bytes";
/// Calls of a route, by route, target and result (`ok`, `failed`, `passed_over`).
pub const ROUTE_CALLS: &str = "predict_route_calls_total";
/// Seconds an answer of a route took, by route and target.
pub const ROUTE_LATENCY: &str = "predict_route_latency_seconds";
/// Challengers that were stopped, by route, target and guard (`error_rate`, `latency_p99`, `score_shift`).
pub const ROUTE_STOPS: &str = "predict_route_stops_total";
/// Copies for shadows, by route, shadow and result (`compared`, `failed`, `dropped`).
pub const SHADOW_COPIES: &str = "predict_shadow_copies_total";
/// Mean absolute difference between a shadow's answers and those that callers got, by route and shadow.
pub const SHADOW_DIFFERENCE: &str = "predict_shadow_mean_absolute_difference";
/// Models loaded and unloaded by call, by action (`load`, `unload`) and result (`ok`, `failed`).
pub const LOADS: &str = "predict_model_loads_total";
/// Recorded decisions, by model and outcome.
pub const DECISIONS: &str = "predict_decisions_total";
/// Decisions made durable by one transaction.
pub const COMMIT_SIZE: &str = "predict_decision_commit_size";
/// Changes of the version behind a reference, by reference and result (`swapped`, `failed`).
pub const SWAPS: &str = "predict_model_swaps_total";

/// Models that are to be served, by `state`: `serving`; `stale` (something serves, but perhaps not the newest version:
/// the last look at the registry or the last load failed); `loading`; `failed`.
pub const MODELS: &str = "predict_models";

/// Describes the metrics to the recorder; call once, after it is installed.
pub fn describe() {
    describe_histogram!(INFERENCE_TIME, Unit::Milliseconds, "Time one batch took in the engine");
    describe_histogram!(QUEUE_WAIT, Unit::Seconds, "Time from acceptance to the start of the batch");
    describe_histogram!(BATCH_SIZE, Unit::Count, "Items computed together");
    describe_counter!(REFUSALS, Unit::Count, "Requests and items that were turned away, by reason");
    describe_counter!(TOKENS, Unit::Count, "Tokens of generations: computed and cached of prompts, and generated");
    describe_counter!(DROPPED, Unit::Count, "Items nobody waited for any more when their turn came");
    describe_gauge!(QUEUED, Unit::Count, "Items that wait");
    describe_counter!(LOOKUPS, Unit::Count, "Items looked up in the response cache, by result");
    describe_gauge!(CACHE_BYTES, Unit::Bytes, "Bytes the response cache holds");
    describe_counter!(ROUTE_CALLS, Unit::Count, "Calls of a route by target and result");
    describe_histogram!(ROUTE_LATENCY, Unit::Seconds, "Time an answer of a route took");
    describe_counter!(ROUTE_STOPS, Unit::Count, "Challengers that were stopped, by guard");
    describe_counter!(SHADOW_COPIES, Unit::Count, "Copies for shadows, by result");
    describe_gauge!(SHADOW_DIFFERENCE, "Mean absolute difference of a shadow's answers");
    describe_counter!(LOADS, Unit::Count, "Models loaded and unloaded by call");
    describe_counter!(DECISIONS, Unit::Count, "Recorded decisions by outcome");
    describe_histogram!(COMMIT_SIZE, Unit::Count, "Decisions made durable by one transaction");
    describe_gauge!(MODELS, Unit::Count, "Models that are to be served, by state");
    describe_counter!(SWAPS, Unit::Count, "Changes of the version behind a reference, by result");
}

/// The meters of one loaded model version.
pub struct ModelMeters {
    inference: Histogram,
    wait: Histogram,
    size: Histogram,
    full: Counter,
    pushed_out: Counter,
    too_late: Counter,
    panics: Counter,
    /// Computed and cached of prompts, and generated.
    tokens: [Counter; 3],
    expired: Counter,
    withdrawn: Counter,
    hits: Counter,
    misses: Counter,
    depth: [Gauge; 3],
    statistics: Option<Arc<Statistics>>,
}

impl ModelMeters {
    /// Takes the labels once, so that recording costs no allocation.
    pub fn new(model: &str, version: i64) -> Self {
        let labels = [("model", model.to_owned()), ("version", version.to_string())];
        let refusal = |reason| counter!(REFUSALS, "model" => model.to_owned(), "reason" => reason);
        let dropped = |reason| counter!(DROPPED, "model" => model.to_owned(), "reason" => reason);
        let lookups = |result| counter!(LOOKUPS, "model" => model.to_owned(), "result" => result);
        let depth = |priority: &'static str| gauge!(QUEUED, "model" => model.to_owned(), "version" => version.to_string(), "priority" => priority);
        Self {
            inference: histogram!(INFERENCE_TIME, &labels),
            wait: histogram!(QUEUE_WAIT, &labels),
            size: histogram!(BATCH_SIZE, &labels),
            full: refusal("QUEUE_FULL"),
            pushed_out: refusal("PUSHED_OUT"),
            too_late: refusal("DEADLINE_TOO_SHORT"),
            panics: refusal("ENGINE_PANIC"),
            tokens: ["prompt", "cached", "completion"].map(
                |kind| counter!(TOKENS, "model" => model.to_owned(), "version" => version.to_string(), "kind" => kind),
            ),
            expired: dropped("EXPIRED"),
            withdrawn: dropped("WITHDRAWN"),
            hits: lookups("hit"),
            misses: lookups("miss"),
            depth: ["interactive", "batch", "shadow"].map(depth),
            statistics: None,
        }
    }

    /// Also counts batches for whoever asks this model for its statistics.
    #[must_use]
    pub fn counting(self, statistics: Arc<Statistics>) -> Self {
        Self { statistics: Some(statistics), ..self }
    }

    /// Records one computed batch: how long its first item waited, how long it took, how many items it had.
    pub fn computed(&self, waited: Duration, took: Duration, items: usize) {
        self.wait.record(waited.as_secs_f64());
        self.inference.record(took.as_secs_f64() * 1e3);
        self.size.record(items as f64);
        if let Some(statistics) = &self.statistics {
            statistics.computed(took, items);
        }
    }

    /// Records how long a generation waited.
    pub fn waited(&self, waited: Duration) {
        self.wait.record(waited.as_secs_f64());
    }

    /// Records a step of generations that ran together.
    pub fn stepped(&self, took: Duration, together: usize) {
        self.inference.record(took.as_secs_f64() * 1e3);
        self.size.record(together as f64);
        if let Some(statistics) = &self.statistics {
            statistics.computed(took, together);
        }
    }

    /// Counts the tokens of a generation that ended.
    pub fn generated(&self, prompt: usize, cached: usize, completion: usize) {
        for (counter, tokens) in self.tokens.iter().zip([prompt, cached, completion]) {
            counter.increment(tokens as u64);
        }
    }

    /// Counts a request the full queue refused.
    pub fn refused(&self) {
        self.full.increment(1);
    }

    /// Counts an item that made room for others.
    pub fn pushed_out(&self) {
        self.pushed_out.increment(1);
    }

    /// Counts a request that could not be done before its deadline.
    pub fn too_late(&self) {
        self.too_late.increment(1);
    }

    /// Counts an item whose deadline had passed when its turn came.
    pub fn expired(&self) {
        self.expired.increment(1);
    }

    /// Counts an item whose caller had left when its turn came.
    pub fn withdrawn(&self) {
        self.withdrawn.increment(1);
    }

    /// Counts items that were found in the response cache, and those that were not.
    pub fn looked_up(&self, hits: usize, misses: usize) {
        self.hits.increment(hits as u64);
        self.misses.increment(misses as u64);
    }

    /// Tells how many items wait: interactive, batch, shadow.
    pub fn depth(&self, items: [usize; 3]) {
        for (gauge, items) in self.depth.iter().zip(items) {
            gauge.set(items as f64);
        }
    }

    /// Counts an item that made the engine panic.
    pub fn panicked(&self) {
        self.panics.increment(1);
    }
}

/// Counts a recorded decision.
pub fn decided(model: &str, outcome: &str) {
    counter!(DECISIONS, "model" => model.to_owned(), "outcome" => outcome.to_owned()).increment(1);
}

/// Records how many decisions one transaction made durable.
pub fn committed(decisions: usize) {
    histogram!(COMMIT_SIZE).record(decisions as f64);
}

/// Counts a change of the version behind a reference.
pub fn swap(reference: &str, result: &'static str) {
    counter!(SWAPS, "reference" => reference.to_owned(), "result" => result).increment(1);
}

/// Tells how many models are in which state.
pub fn models(counts: [(&'static str, usize); 4]) {
    for (state, count) in counts {
        gauge!(MODELS, "state" => state).set(count as f64);
    }
}

/// Tells how many bytes the response cache holds.
pub fn cached(bytes: u64) {
    gauge!(CACHE_BYTES).set(bytes as f64);
}

/// Counts a model that was loaded (`load`) or unloaded (`unload`) by a call.
pub fn loaded(action: &'static str, result: &'static str) {
    counter!(LOADS, "action" => action, "result" => result).increment(1);
}

/// The meters of one target of a route.
pub struct TargetMeters {
    ok: Counter,
    failed: Counter,
    passed_over: Counter,
    latency: Histogram,
}

impl TargetMeters {
    /// Takes the labels once.
    pub fn new(route: &str, target: &str) -> Self {
        let labels = [("route", route.to_owned()), ("target", target.to_owned())];
        let calls = |result: &'static str| counter!(ROUTE_CALLS, "route" => route.to_owned(), "target" => target.to_owned(), "result" => result);
        let (ok, failed, passed_over) = (calls("ok"), calls("failed"), calls("passed_over"));
        Self { ok, failed, passed_over, latency: histogram!(ROUTE_LATENCY, &labels) }
    }

    /// Records a call that was answered or failed.
    pub fn called(&self, took: Duration, failed: bool) {
        if failed { &self.failed } else { &self.ok }.increment(1);
        self.latency.record(took.as_secs_f64());
    }

    /// Counts a call that another target answered because this one was not warm.
    pub fn passed_over(&self) {
        self.passed_over.increment(1);
    }
}

/// Counts a challenger that its guard stopped.
pub fn stopped(route: &str, target: &str, guard: &'static str) {
    let (route, target) = (route.to_owned(), target.to_owned());
    counter!(ROUTE_STOPS, "route" => route, "target" => target, "guard" => guard).increment(1);
}

/// The meters of one shadow of a route.
pub struct ShadowMeters {
    compared: Counter,
    failed: Counter,
    dropped: Counter,
    difference: Gauge,
}

impl ShadowMeters {
    /// Takes the labels once.
    pub fn new(route: &str, shadow: &str) -> Self {
        let labels = [("route", route.to_owned()), ("shadow", shadow.to_owned())];
        let copies = |result: &'static str| counter!(SHADOW_COPIES, "route" => route.to_owned(), "shadow" => shadow.to_owned(), "result" => result);
        let (compared, failed, dropped) = (copies("compared"), copies("failed"), copies("dropped"));
        Self { compared, failed, dropped, difference: gauge!(SHADOW_DIFFERENCE, &labels) }
    }

    /// Counts a copy whose answer was compared; `mean` is the mean absolute difference of all.
    pub fn compared(&self, mean: f64) {
        self.compared.increment(1);
        self.difference.set(mean);
    }

    /// Counts a copy that failed.
    pub fn failed(&self) {
        self.failed.increment(1);
    }

    /// Counts a copy that was not made.
    pub fn dropped(&self) {
        self.dropped.increment(1);
    }
}
