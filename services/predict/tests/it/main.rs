//! predict from the outside: the real service against a real registry with real models.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod decisions;
mod generation;
mod inference;
mod process;
mod serving;
mod streams;
mod tabular;
mod texts;
mod tritonclient;
mod world;
