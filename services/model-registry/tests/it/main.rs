//! model-registry from the outside: what it promises, on both back-ends and through the wire.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod archives;
mod auditing;
mod clients;
mod conformance;
mod crash;
mod differential;
mod evaluation;
mod files;
mod filters;
mod garbage;
mod holds;
mod hostile;
mod importing;
mod lineage;
mod logging;
mod mlflow;
mod pages;
mod process;
mod publishing;
mod registering;
mod requests;
mod secrets;
mod stack;
mod traces;
mod tracking;
mod transfers;
mod uploads;
mod watching;
mod web_page;
mod webhooks;
mod world;
