//! The chassis from outside: a real server on loopback, a real client, one small service with chosen behaviour.
#![expect(
    clippy::unwrap_used,
    reason = "all of this is test code; clippy.toml exempts only the functions marked as tests"
)]

mod admin;
mod calls;
mod drain;
mod probe;
mod streams;
mod trace;
