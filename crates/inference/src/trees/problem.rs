//! What can be wrong with a model file, before it is known which file it is.

/// Why a model cannot be read.
#[derive(Debug)]
pub(super) enum Problem {
    /// The bytes are not what the format promises.
    Malformed(String),
    /// The bytes are sound, but ask for something that is not computed here.
    Unsupported(String),
}

impl Problem {
    /// Says where in the file the problem is.
    pub(super) fn at(self, place: impl std::fmt::Display) -> Self {
        match self {
            Self::Malformed(problem) => Self::Malformed(format!("{place}: {problem}")),
            Self::Unsupported(problem) => Self::Unsupported(format!("{place}: {problem}")),
        }
    }
}

pub(super) type Result<T, E = Problem> = std::result::Result<T, E>;

pub(super) fn malformed<T>(problem: impl Into<String>) -> Result<T> {
    Err(Problem::Malformed(problem.into()))
}

pub(super) fn unsupported<T>(problem: impl Into<String>) -> Result<T> {
    Err(Problem::Unsupported(problem.into()))
}
