//! rag from the outside: the real service against a real predict and a real registry with real models.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod answering;
mod crash;
mod ingesting;
mod quality;
mod searching;
mod world;
