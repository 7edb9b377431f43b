//! The arithmetic of a transformer on rows of `f32`, written once over the widest vectors the processor has
//! (AVX-512, AVX2, NEON, or plain scalars); nothing here allocates once a thread's buffers have grown.

mod attention;
mod elementwise;
mod matmul;

#[cfg(test)]
mod reference;

pub(crate) use attention::{Attention, AttentionScratch};
pub(crate) use elementwise::LayerNorm;
pub(crate) use matmul::{Linear, Then};
