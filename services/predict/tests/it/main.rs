//! predict from the outside: the real service against a real registry with real models.

mod decisions;
mod generation;
mod process;
mod serving;
mod tabular;
mod texts;
mod world;
