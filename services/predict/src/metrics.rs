//! Every metric of this service, by name; the gRPC ones are the chassis'.

use std::time::Duration;

use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};

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
/// Recorded decisions, by model and outcome.
pub const DECISIONS: &str = "predict_decisions_total";
/// Decisions made durable by one transaction.
pub const COMMIT_SIZE: &str = "predict_decision_commit_size";
/// Changes of the version behind a reference, by reference and result (`swapped`, `failed`).
pub const SWAPS: &str = "predict_model_swaps_total";

/// Describes the metrics to the recorder; call once, after it is installed.
pub fn describe() {
    describe_histogram!(INFERENCE_TIME, Unit::Milliseconds, "Time one batch took in the engine");
    describe_histogram!(QUEUE_WAIT, Unit::Seconds, "Time from acceptance to the start of the batch");
    describe_histogram!(BATCH_SIZE, Unit::Count, "Items computed together");
    describe_counter!(REFUSALS, Unit::Count, "Requests and items that were turned away, by reason");
    describe_counter!(TOKENS, Unit::Count, "Tokens of generations: computed and cached of prompts, and generated");
    describe_counter!(DECISIONS, Unit::Count, "Recorded decisions by outcome");
    describe_histogram!(COMMIT_SIZE, Unit::Count, "Decisions made durable by one transaction");
    describe_counter!(SWAPS, Unit::Count, "Changes of the version behind a reference, by result");
}

/// The meters of one loaded model version.
pub struct ModelMeters {
    inference: Histogram,
    wait: Histogram,
    size: Histogram,
    full: Counter,
    panics: Counter,
    late: Counter,
    /// Computed and cached of prompts, and generated.
    tokens: [Counter; 3],
}

impl ModelMeters {
    /// Takes the labels once, so that recording costs no allocation.
    pub fn new(model: &str, version: i64) -> Self {
        let labels = [("model", model.to_owned()), ("version", version.to_string())];
        let refusal = |reason| counter!(REFUSALS, "model" => model.to_owned(), "reason" => reason);
        Self {
            inference: histogram!(INFERENCE_TIME, &labels),
            wait: histogram!(QUEUE_WAIT, &labels),
            size: histogram!(BATCH_SIZE, &labels),
            full: refusal("QUEUE_FULL"),
            panics: refusal("ENGINE_PANIC"),
            late: refusal("TOO_LATE"),
            tokens: ["prompt", "cached", "completion"].map(
                |kind| counter!(TOKENS, "model" => model.to_owned(), "version" => version.to_string(), "kind" => kind),
            ),
        }
    }

    /// Records one computed batch: how long its first item waited, how long it took, how many items it had.
    pub fn computed(&self, waited: Duration, took: Duration, items: usize) {
        self.wait.record(waited.as_secs_f64());
        self.inference.record(took.as_secs_f64() * 1e3);
        self.size.record(items as f64);
    }

    /// Records how long a generation waited.
    pub fn waited(&self, waited: Duration) {
        self.wait.record(waited.as_secs_f64());
    }

    /// Records a step of generations that ran together.
    pub fn stepped(&self, took: Duration, together: usize) {
        self.inference.record(took.as_secs_f64() * 1e3);
        self.size.record(together as f64);
    }

    /// Counts the tokens of a generation that ended.
    pub fn generated(&self, prompt: usize, cached: usize, completion: usize) {
        for (counter, tokens) in self.tokens.iter().zip([prompt, cached, completion]) {
            counter.increment(tokens as u64);
        }
    }

    /// Counts a request that would have started after its deadline.
    pub fn too_late(&self) {
        self.late.increment(1);
    }

    /// Counts a request the full queue refused.
    pub fn refused(&self) {
        self.full.increment(1);
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
