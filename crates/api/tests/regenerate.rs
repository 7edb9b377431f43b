//! Proves that `src/gen` is what `proto/` generates. `UPDATE=1` writes it instead (`make proto`).

use std::{collections::BTreeMap, fs, path::Path};

const PROTOS: &[&str] = &[
    "verdict/events/v1/events.proto",
    "verdict/registry/v1/registry.proto",
    "verdict/registry/v1/audit.proto",
    "verdict/registry/v1/lineage.proto",
    "verdict/registry/v1/protection.proto",
    "verdict/registry/v1/tracking.proto",
    "verdict/registry/v1/evaluation.proto",
    "verdict/registry/v1/files.proto",
    "verdict/registry/v1/traces.proto",
    "verdict/registry/v1/webhooks.proto",
    "verdict/registry/v1/archive.proto",
    "verdict/registry/v1/maintenance.proto",
    "verdict/predict/v1/predict.proto",
    "verdict/predict/v1/decision.proto",
    "verdict/predict/v1/serving.proto",
    "verdict/rag/v1/rag.proto",
    "inference/grpc_service.proto",
];

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect()
}

#[test]
fn generated_code_is_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/gen");
    let fresh = tempfile::tempdir().unwrap();
    let descriptors = protox::compile(PROTOS, [root.join("../../proto")]).unwrap();
    tonic_prost_build::configure()
        .out_dir(fresh.path())
        .file_descriptor_set_path(fresh.path().join("descriptors.bin"))
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors.clone())
        .unwrap();
    fs::write(fresh.path().join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors)).unwrap();
    // What the compiler makes of well-known types is empty: they come from prost-types.
    fs::remove_file(fresh.path().join("google.protobuf.rs")).ok();

    if std::env::var_os("UPDATE").is_some() {
        for name in files(&committed).keys() {
            fs::remove_file(committed.join(name)).unwrap();
        }
        for (name, bytes) in files(fresh.path()) {
            fs::write(committed.join(name), bytes).unwrap();
        }
        return;
    }
    let (want, have) = (files(fresh.path()), files(&committed));
    let stale: Vec<_> = want.keys().chain(have.keys()).filter(|name| want.get(*name) != have.get(*name)).collect();
    assert!(stale.is_empty(), "stale in crates/api/src/gen: {stale:?}; run `make proto`");
}
