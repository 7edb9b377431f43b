//! The chassis from outside: a real server on loopback, a real client, one small service with chosen behaviour.

mod admin;
mod calls;
mod drain;
mod probe;
mod streams;
mod trace;
