//! The demo with the binaries of this build: three processes, real models.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod observe;
mod story;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use verdict_testkit::{net::free_port, process::binary};

/// Where a demo keeps its data and listens.
struct Demo {
    data: PathBuf,
    registry: SocketAddr,
    registry_admin: SocketAddr,
    registry_mlflow: SocketAddr,
    predict: SocketAddr,
    predict_admin: SocketAddr,
    rag: SocketAddr,
    rag_admin: SocketAddr,
}

impl Demo {
    /// On ports that were free just now.
    fn new(data: &Path) -> Self {
        let free = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        Self {
            data: data.to_owned(),
            registry: free(),
            registry_admin: free(),
            registry_mlflow: free(),
            predict: free(),
            predict_admin: free(),
            rag: free(),
            rag_admin: free(),
        }
    }

    /// Runs `verdict-demo` with a verb and few of the abstracts. The shell it is run in has settings for other services.
    fn run(&self, verb: &str) -> Output {
        // The services' folder is the demo's own: all are built into it.
        for service in ["model-registry", "predict", "rag"] {
            binary(service);
        }
        let ports = [
            ("--registry", self.registry),
            ("--registry-admin", self.registry_admin),
            ("--registry-mlflow", self.registry_mlflow),
            ("--predict", self.predict),
            ("--predict-admin", self.predict_admin),
            ("--rag", self.rag),
            ("--rag-admin", self.rag_admin),
        ];
        Command::new(env!("CARGO_BIN_EXE_verdict-demo"))
            .current_dir(root())
            .env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/elsewhere")
            .env("ARTIFACT_STORE", "s3://elsewhere")
            .env("QDRANT_URL", "http://127.0.0.1:1")
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", "not an address")
            .env("RUST_LOG", "not=a=filter")
            .args([verb, "--abstracts", "60", "--data-dir"])
            .arg(&self.data)
            .args(ports.iter().flat_map(|(flag, address)| [(*flag).to_owned(), address.to_string()]))
            .output()
            .expect("verdict-demo starts")
    }
}

/// The folder of the project.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
