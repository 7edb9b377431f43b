//! What a caller may choose about a model beside what its own files say.

use std::num::NonZeroUsize;

use pulp::Arch;

use crate::kernels::{Arithmetic, Format, Level};

/// What the products of a model are computed in; sums are always wide, and so is everything between the products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// 8 bits where this processor multiplies them several times as fast as `f32` (AVX-512 VNNI), else `f32`.
    #[default]
    Auto,
    /// Single precision throughout.
    Fp32,
    /// `bf16` weights and activations. Slower than `Fp32` without AVX-512 BF16.
    Bf16,
    /// 8-bit weights with one scale for each output, 8-bit activations with a scale and a zero point for each row, found
    /// as they come; attention in `bf16` where the processor has it. Slower than `Fp32` without AVX-512 VNNI.
    Int8,
}

impl Precision {
    /// The precision `Auto` stands for on this processor; the others are what they are.
    pub fn resolved(self) -> Self {
        match self {
            Self::Auto if Level::detect().has_fast_int8() => Self::Int8,
            Self::Auto => Self::Fp32,
            Self::Fp32 | Self::Bf16 | Self::Int8 => self,
        }
    }

    pub(super) fn arithmetic(self) -> Arithmetic {
        let narrow = match self.resolved() {
            Self::Bf16 => Some(Format::Bf16),
            Self::Int8 => Some(Format::Int8),
            Self::Fp32 | Self::Auto => None,
        };
        Arithmetic { arch: Arch::new(), level: Level::detect(), narrow }
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "fp32" => Ok(Self::Fp32),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            _ => Err(format!("`{name}`: auto, fp32, bf16 or int8 is expected")),
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

/// How any text model is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub precision: Precision,
    /// Threads that compute a single short input together, while no other call of this model is being computed; each
    /// model starts one less of its own. Calls with more to do use the thread that makes them.
    pub threads: NonZeroUsize,
    /// `None`: as the model's files say, else as many tokens as the model has positions.
    pub max_length: Option<usize>,
}

impl Default for Run {
    fn default() -> Self {
        Self { precision: Precision::Auto, threads: NonZeroUsize::MIN, max_length: None }
    }
}
