//! The engine against reference values of the libraries it replaces, and against input that is wrong.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod bad_models;
mod bad_tables;
mod bad_texts;
mod engine;
mod families;
mod generation;
mod golden_heads;
mod golden_text;
mod golden_trees;
mod packing;
mod support;
mod tabular_formats;
