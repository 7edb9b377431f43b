//! BERT-like encoders: dense and sparse embedding, cross-encoder reranking, classification.
//!
//! Each family loads `config.json`, `tokenizer.json` and `model.safetensors` of a directory and takes what its own
//! tokenizer made. Where an input has ids the model doesn't have, or more tokens than it has positions, computing panics;
//! the tokenizer a model was loaded with makes neither.

mod classifier;
mod config;
mod crew;
mod embedder;
mod encoder;
mod head;
mod layer;
mod model;
mod options;
mod reranker;
mod sparse;

pub use classifier::{Classifier, ProblemType};
pub use embedder::{Embedder, EmbedderOptions, Pooling, normalize};
pub use options::{Precision, Run};
pub use reranker::Reranker;
pub use sparse::{SparseEmbedder, heaviest};
