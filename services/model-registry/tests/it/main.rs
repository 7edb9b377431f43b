//! model-registry from the outside: what it promises, on both back-ends and through the wire.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod clients;
mod conformance;
mod crash;
mod logging;
mod mlflow;
mod pages;
mod process;
mod publishing;
mod requests;
mod watching;
mod world;
