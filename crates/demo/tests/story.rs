//! Plays the story of `make demo` with the binaries of this build: the whole path through the three services.

use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

use verdict_testkit::{net::free_port, process::binary};

/// Runs `verdict-demo` with a verb on ports of its own, but for the one given for rag, and with few of the abstracts.
/// The shell it is run in has settings for other services.
fn demo(verb: &str, data: &Path, rag: u16) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let port = || format!("127.0.0.1:{}", free_port());
    // The services' folder is the demo's own: all are built into it.
    for service in ["model-registry", "predict", "rag"] {
        binary(service);
    }
    Command::new(env!("CARGO_BIN_EXE_verdict-demo"))
        .current_dir(root)
        .env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/elsewhere")
        .env("ARTIFACT_STORE", "s3://elsewhere")
        .env("QDRANT_URL", "http://127.0.0.1:1")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "not an address")
        .env("RUST_LOG", "not=a=filter")
        .args([verb, "--abstracts", "60", "--data-dir"])
        .arg(data)
        .args(["--registry", &port(), "--registry-admin", &port(), "--registry-mlflow", &port()])
        .args(["--predict", &port(), "--predict-admin", &port()])
        .args(["--rag", &format!("127.0.0.1:{rag}"), "--rag-admin", &port()])
        .output()
        .expect("verdict-demo starts")
}

#[test]
fn the_story_plays_to_its_end_and_plays_again() {
    let data = tempfile::tempdir().unwrap();
    for (run, ingested) in [("first", "60 indexed, 0 unchanged"), ("second", "0 indexed, 60 unchanged")] {
        let output = demo("run", data.path(), free_port());
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{run} run:\n{told}\n{}", String::from_utf8_lossy(&output.stderr));
        for line in ["ten decisions, each recorded", "the record equals the answer", ingested, "0 failed"] {
            assert!(told.contains(line), "{run} run: no `{line}` in\n{told}");
        }
        assert!(!data.path().join("run").read_dir().unwrap().any(|_| true), "{run} run left a pid file");
    }
}

#[test]
fn a_taken_port_is_named_before_anything_starts() {
    let data = tempfile::tempdir().unwrap();
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = stranger.local_addr().unwrap();
    let output = demo("up", data.path(), taken.port());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(&format!("{taken} is not free for rag")), "{said}");
    assert!(!data.path().join("run").exists(), "nothing was started");
}
