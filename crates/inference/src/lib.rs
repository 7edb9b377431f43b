//! The engine: embedding, reranking, generation and tree ensembles on a CPU.
//!
//! Everything here is synchronous and `Send + Sync`; one call computes on the thread that makes it, so callers choose
//! how many run at once. Only the steps of a generation share rayon's pool. Weights come from formats that cannot run
//! code: safetensors, GGUF and JSON.

use std::path::{Path, PathBuf};

pub mod bert;
pub mod generation;
pub mod text;
pub mod trees;

mod kernels;
mod weights;

/// Why one item of a batch cannot be computed; the rest of the batch is unaffected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    #[error("text has {tokens} tokens, the model takes at most {max}")]
    TooLong { tokens: usize, max: usize },
    #[error("text is empty")]
    Empty,
    #[error("{0}")]
    Invalid(String),
}

/// Why a model cannot be loaded. Every variant names the file and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{}: {source}", file.display())]
    Io { file: PathBuf, source: std::io::Error },
    /// The file is not what its format promises: damaged, cut off or inconsistent.
    #[error("{}: {problem}", file.display())]
    Malformed { file: PathBuf, problem: String },
    /// The file is sound, but asks for something this engine does not compute; `problem` says what is supported.
    #[error("{}: not supported: {problem}", file.display())]
    Unsupported { file: PathBuf, problem: String },
}

impl LoadError {
    pub(crate) fn io(file: &Path, source: std::io::Error) -> Self {
        Self::Io { file: file.to_owned(), source }
    }

    pub(crate) fn malformed(file: &Path, problem: impl ToString) -> Self {
        Self::Malformed { file: file.to_owned(), problem: problem.to_string() }
    }

    pub(crate) fn unsupported(file: &Path, problem: impl ToString) -> Self {
        Self::Unsupported { file: file.to_owned(), problem: problem.to_string() }
    }
}
