//! The arithmetic of a transformer, twice; nothing here allocates once a thread's buffers have grown.
//!
//! - On rows of `f32`, written once over the widest vectors the processor has (AVX-512, AVX2, NEON, or plain scalars).
//! - With products of narrow numbers (`bf16` or 8 bits, summed in 32), in AVX-512 and in plain Rust.

mod attention;
mod attention_bf16;
mod dense;
mod elementwise;
mod level;
mod matmul;
mod packed;
mod rows;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod reference;

pub(crate) use attention::{Attention, AttentionScratch};
pub(crate) use attention_bf16::{NarrowAttention, NarrowScratch};
pub(crate) use dense::{Arithmetic, AttentionBuffers, Dense, Operand};
pub(crate) use elementwise::LayerNorm;
pub(crate) use level::Level;
pub(crate) use matmul::{Linear, Then};
pub(crate) use packed::Packed;
pub(crate) use rows::{Format, Rows};
