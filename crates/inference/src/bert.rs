//! BERT-like encoders: sentence embedding and cross-encoder reranking.

mod config;
mod embedder;
mod encoder;
mod reranker;

pub use embedder::{Embedder, EmbedderOptions, Pooling, normalize};
pub use reranker::Reranker;
