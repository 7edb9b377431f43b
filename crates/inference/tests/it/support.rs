//! Golden files and the demo models.

use std::io::Read;
use std::path::PathBuf;

use serde::de::DeserializeOwned;

pub fn golden(name: &str) -> Vec<u8> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let bytes = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    if file.extension().is_none_or(|extension| extension != "gz") {
        return bytes;
    }
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut unpacked).unwrap();
    unpacked
}

pub fn golden_json<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&golden(name)).unwrap()
}

/// The directory of a demo model.
pub fn model(name: &str) -> PathBuf {
    let cache = std::env::var_os("VERDICT_CACHE").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/verdict"));
    let dir = cache.join("models").join(name);
    assert!(dir.is_dir(), "model {name} is missing; fetch it by `make models`");
    dir
}
