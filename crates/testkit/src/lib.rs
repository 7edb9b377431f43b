//! What tests stand on: real servers, built binaries, model files, numbers with a tolerance. Knows no service.
//!
//! | module | what it gives |
//! |---|---|
//! | [`otlp`] | an OTLP/gRPC trace receiver in this process, which shows the spans it got |
//! | [`postgres`] | a fresh database on the server of `TEST_POSTGRES_URL` |
//! | [`s3`] | a fresh prefix in the bucket of `TEST_S3_*` |
//! | [`secrets_manager`] | secrets in the AWS Secrets Manager of `TEST_SECRETS_MANAGER_ENDPOINT` |
//! | [`process`] | a built binary as a child: started, waited for, terminated or killed, its log shown when a test fails |
//! | [`models`] | paths into the model cache |
//! | [`golden`] | distances between vectors |
//! | [`net`] | free ports, one plain HTTP GET |
//!
//! A server or file that is missing fails the test with the command that brings it: missing is never green. Tests that
//! need a server live in modules named `live`, which `make unit` leaves out.

pub mod golden;
pub mod models;
pub mod net;
pub mod otlp;
pub mod postgres;
pub mod process;
pub mod s3;
pub mod secrets_manager;

/// Reads a variable that `make test` sets; panics, saying so, where it is missing.
pub fn required(name: &str) -> String {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => value,
        _ => panic!("{name} is not set: run `make test`, which starts the server"),
    }
}
