//! Names of the metrics rag writes besides those of the chassis.

use metrics::{Unit, describe_counter, describe_histogram};

/// Counter of documents by `state` (INDEXED, UNCHANGED, REPLACED, FAILED) and, for FAILED, `reason`.
pub(crate) const DOCUMENTS: &str = "rag_documents_total";
/// Counter of passages that were embedded and stored.
pub(crate) const PASSAGES: &str = "rag_passages_stored_total";
/// Histogram of the steps of searches and answers, by `step` (embed, search, rerank, generate).
pub(crate) const STEP: &str = "rag_step_duration_seconds";
/// Counter of answers by `outcome` (ANSWERED, ABSTAINED) and, for ABSTAINED, `reason`.
pub(crate) const ANSWERS: &str = "rag_answers_total";

/// Describes them.
pub(crate) fn describe() {
    describe_counter!(DOCUMENTS, "Documents handed in, by what became of them");
    describe_counter!(PASSAGES, "Passages embedded and stored");
    describe_histogram!(STEP, Unit::Seconds, "Time of the steps of searches and answers");
    describe_counter!(ANSWERS, "Questions, by how they ended");
}
