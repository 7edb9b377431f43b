//! What every service wears, so that a service holds only what is its own.
//!
//! | module | what it gives |
//! |---|---|
//! | [`telemetry`] | logs, OTLP spans, W3C trace context, the Prometheus recorder; once per process |
//! | [`secrets`] | settings that are kept in AWS Secrets Manager, read at the start and again when they were rotated |
//! | [`settings`] | parsers for durations and counts, and the table `<service> config` prints |
//! | [`runtime`] | the runtime a process lives on, and its end, which no blocking work holds up |
//! | [`stop`] | the token that SIGTERM and SIGINT cancel |
//! | [`health`] | what is ready and why not: one board behind gRPC health and `/readyz` |
//! | [`probe`] | asks a running service whether it serves, for health checks that are commands |
//! | [`server`] | [`server::serve`]: listeners, the one stack around every call, drain with a deadline, admin HTTP |
//! | [`context`] | request id and deadline of the call being served, for handlers and for what they spawn |
//! | [`client`] | channels to other services that carry trace, request id and the time that is left |
//! | [`status`] | `tonic::Status` with `google.rpc` details; clients match on the reason |
//! | [`metrics`] | names of the metrics above and the bucket rule for all others; OpenMetrics has exemplars: traces of calls |
//!
//! The life of a call: request id and trace context are read or made → span and metrics begin → a panic becomes
//! INTERNAL → the deadline runs → the concurrency limit admits or refuses → the handler. Span and metrics end when the
//! response body ends, not when its head leaves, so a stream is measured and traced over its whole life.
//!
//! A service sets the message limit on its generated servers as well, because tonic's own is 4 MiB:
//! `FooServer::new(foo).max_decoding_message_size(config.server.max_message_bytes)`.

mod admin;
pub mod client;
pub mod context;
mod exemplars;
pub mod health;
pub mod metrics;
pub mod probe;
pub mod runtime;
pub mod secrets;
pub mod server;
pub mod settings;
pub mod status;
pub mod stop;
pub mod telemetry;
mod timeout;
