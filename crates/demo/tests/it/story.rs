//! The story of `make demo`: the whole path through the three services.

use std::net::TcpListener;

use crate::Demo;

#[test]
fn the_story_plays_to_its_end_and_plays_again() {
    let data = tempfile::tempdir().unwrap();
    for (run, ingested) in [("first", "60 indexed, 0 unchanged"), ("second", "0 indexed, 60 unchanged")] {
        let output = Demo::new(data.path()).run("run");
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
    let output = Demo { rag: taken, ..Demo::new(data.path()) }.run("up");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(&format!("{taken} is not free for rag")), "{said}");
    assert!(!data.path().join("run").exists(), "nothing was started");
}
