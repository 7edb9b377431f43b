//! Every metric of this service, by name.

use metrics::{Unit, describe_counter, describe_gauge};

/// Bytes of files that came in (`direction="in"`) and went out (`direction="out"`).
pub const ARTIFACT_BYTES: &str = "model_registry_artifact_bytes_total";
/// Watches that are open.
pub const WATCHES: &str = "model_registry_watches";
/// 1 while the database answers, 0 while it doesn't.
pub const DATABASE_UP: &str = "model_registry_database_up";
/// Sequence of the newest event.
pub const LOG_SEQUENCE: &str = "model_registry_log_sequence";

/// Attempts to deliver to webhooks, by `outcome`: delivered, retried, failed.
pub const WEBHOOK_ATTEMPTS: &str = "model_registry_webhook_attempts_total";

/// Seconds the oldest delivery that waits for an active webhook has waited; 0 when none waits.
pub const WEBHOOK_OUTBOX_AGE: &str = "model_registry_webhook_outbox_age_seconds";

/// Gives the metrics their help and units.
pub fn describe() {
    describe_counter!(ARTIFACT_BYTES, Unit::Bytes, "Bytes of model files uploaded and downloaded");
    describe_counter!(WEBHOOK_ATTEMPTS, Unit::Count, "Attempts to deliver to webhooks");
    describe_gauge!(WEBHOOK_OUTBOX_AGE, Unit::Seconds, "Age of the oldest delivery that waits for a webhook");
    describe_gauge!(WATCHES, Unit::Count, "Open watches");
    describe_gauge!(DATABASE_UP, Unit::Count, "Whether the database answers");
    describe_gauge!(LOG_SEQUENCE, Unit::Count, "Sequence of the newest event");
}
