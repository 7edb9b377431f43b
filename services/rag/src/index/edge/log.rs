//! The engine's write-ahead log: it is written, never read, and never shortened by the engine itself.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Deletes the closed segments of the log in `dir` but the last, which carries the numbering on.
///
/// Fails while an engine has the log open, here or in another process: it holds the same lock.
pub(super) fn trim(dir: &Path) -> anyhow::Result<()> {
    let lock = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    lock.try_lock().with_context(|| format!("{} is in use", dir.display()))?;
    let mut closed = closed(dir)?;
    closed.pop();
    for (_, path) in closed {
        std::fs::remove_file(&path).with_context(|| format!("cannot delete {}", path.display()))?;
    }
    Ok(())
}

/// Returns the bytes of the segments that [`trim`] would delete.
pub(super) fn spare_bytes(dir: &Path) -> anyhow::Result<u64> {
    let mut closed = closed(dir)?;
    closed.pop();
    closed.iter().map(|(_, path)| Ok(std::fs::metadata(path)?.len())).sum()
}

/// Returns the closed segments in order, each with the number of its first entry.
fn closed(dir: &Path) -> anyhow::Result<Vec<(u64, PathBuf)>> {
    let mut closed = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let first = path.file_name().and_then(|name| name.to_str()?.strip_prefix("closed-")?.parse::<u64>().ok());
        closed.extend(first.map(|first| (first, path)));
    }
    closed.sort();
    Ok(closed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_closed_segments_but_the_last_go_and_none_while_the_log_is_open() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["closed-2", "closed-10", "closed-1", "open-1", "first-index"] {
            std::fs::write(dir.path().join(name), "xx").unwrap();
        }
        assert_eq!(spare_bytes(dir.path()).unwrap(), 4);
        let engine = File::open(dir.path()).unwrap();
        engine.lock().unwrap();
        assert!(trim(dir.path()).is_err());
        assert_eq!(spare_bytes(dir.path()).unwrap(), 4);
        drop(engine);
        trim(dir.path()).unwrap();
        assert_eq!(closed(dir.path()).unwrap(), [(10, dir.path().join("closed-10"))]);
        assert!(dir.path().join("open-1").exists());
    }
}
