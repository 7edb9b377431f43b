//! predict from the outside: the real service against a real registry with real models.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod decisions;
mod generation;
mod inference;
mod lifecycle;
mod mlflow;
mod process;
mod queues;
mod routes;
mod serving;
mod shadows;
mod streams;
mod tabular;
mod texts;
mod tritonclient;
mod world;
