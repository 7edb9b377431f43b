//! Plays the story of `make demo` with the binaries of this build: the whole path through the three services.

use std::{
    path::Path,
    process::{Command, Output},
};

use verdict_testkit::{net::free_port, process::binary};

/// Runs `verdict-demo run` on ports of its own with few of the abstracts.
fn play(data: &Path) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let port = || format!("127.0.0.1:{}", free_port());
    // The services' folder is the demo's own: all are built into it.
    for service in ["model-registry", "predict", "rag"] {
        binary(service);
    }
    Command::new(env!("CARGO_BIN_EXE_verdict-demo"))
        .current_dir(root)
        .args(["run", "--abstracts", "60", "--data-dir"])
        .arg(data)
        .args(["--registry", &port(), "--registry-admin", &port()])
        .args(["--predict", &port(), "--predict-admin", &port()])
        .args(["--rag", &port(), "--rag-admin", &port()])
        .output()
        .expect("verdict-demo starts")
}

#[test]
fn the_story_plays_to_its_end_and_plays_again() {
    let data = tempfile::tempdir().unwrap();
    for (run, ingested) in [("first", "60 indexed, 0 unchanged"), ("second", "0 indexed, 60 unchanged")] {
        let output = play(data.path());
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{run} run:\n{told}\n{}", String::from_utf8_lossy(&output.stderr));
        for line in ["ten decisions, each recorded", "the record equals the answer", ingested, "0 failed"] {
            assert!(told.contains(line), "{run} run: no `{line}` in\n{told}");
        }
        assert!(!data.path().join("run").read_dir().unwrap().any(|_| true), "{run} run left a pid file");
    }
}
