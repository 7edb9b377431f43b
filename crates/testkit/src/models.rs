//! The model cache that `make models` fills.

use std::path::PathBuf;

/// Returns the cache: `VERDICT_CACHE`, or `~/.cache/verdict`.
pub fn cache() -> PathBuf {
    match std::env::var_os("VERDICT_CACHE") {
        Some(cache) if !cache.is_empty() => cache.into(),
        _ => std::env::home_dir().expect("neither VERDICT_CACHE nor HOME is set").join(".cache/verdict"),
    }
}

/// Returns the directory of model `name`; panics with what to run when it isn't there.
pub fn dir(name: &str) -> PathBuf {
    let dir = cache().join("models").join(name);
    assert!(dir.is_dir(), "model `{name}` is not in {}: run `make models`", dir.display());
    dir
}
