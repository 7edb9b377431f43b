//! Linear layers in the precision a model was loaded with.

use pulp::Arch;

use super::{Attention, AttentionScratch, Format, Level, Linear, NarrowAttention, NarrowScratch, Packed, Rows, Then};

/// What a model's products are computed in, on this processor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arithmetic {
    pub(crate) arch: Arch,
    pub(crate) level: Level,
    /// `None`: `f32` throughout.
    pub(crate) narrow: Option<Format>,
}

/// A linear layer: `output = rows · weightᵀ + bias`.
pub(crate) enum Dense {
    Wide(Linear),
    Narrow(Packed),
}

/// Rows as they were computed and, where products are narrow, as products read them.
#[derive(Default)]
pub(crate) struct Operand {
    pub(crate) values: Vec<f32>,
    width: usize,
    rounded: Rows,
}

/// Buffers of attention of one thread.
#[derive(Default)]
pub(crate) struct AttentionBuffers {
    wide: AttentionScratch,
    narrow: NarrowScratch,
}

impl Arithmetic {
    /// Packs the weight `weight(output, input)`, with as many outputs as `bias` has numbers.
    pub(crate) fn dense(self, weight: impl Fn(usize, usize) -> f32, bias: &[f32], inputs: usize) -> Dense {
        match self.narrow {
            Some(format) => Dense::Narrow(Packed::new(self.level, format, weight, bias, inputs)),
            None => {
                let outputs = bias.len();
                let rows = (0..outputs).flat_map(|output| (0..inputs).map(move |input| (output, input)));
                let weight: Vec<f32> = rows.map(|(output, input)| weight(output, input)).collect();
                Dense::Wide(Linear::new(self.arch, &weight, bias.to_vec(), inputs, outputs))
            }
        }
    }

    /// Computes attention of one sequence; see [`Attention`].
    pub(crate) fn attention(
        self,
        qkv: &[f32],
        (heads, head): (usize, usize),
        output: &mut [f32],
        buffers: &mut AttentionBuffers,
    ) {
        if self.narrow.is_some() && self.level.has_fast_bf16() {
            let scratch = &mut buffers.narrow;
            NarrowAttention { qkv, heads, head, output, scratch }.run(self.level);
        } else {
            let scratch = &mut buffers.wide;
            Attention { qkv, heads, head, output, scratch }.run(self.arch);
        }
    }
}

impl Operand {
    /// Makes room for `count` rows of `width` numbers; what they are is not said.
    pub(crate) fn sized(&mut self, count: usize, width: usize) -> &mut [f32] {
        self.width = width;
        self.values.resize(count * width, 0.0);
        &mut self.values
    }

    pub(crate) fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    /// Makes the rows ready to be multiplied.
    pub(crate) fn ready(&mut self, arithmetic: Arithmetic) {
        if let Some(format) = arithmetic.narrow {
            self.rounded.fill(arithmetic.level, format, &self.values, self.width);
        }
    }

    /// Changes each row by `change`, and makes it ready.
    pub(crate) fn each(&mut self, arithmetic: Arithmetic, mut change: impl FnMut(&mut [f32])) {
        if let Some(format) = arithmetic.narrow {
            self.rounded.reset(format, self.rows(), self.width);
        }
        for (row, values) in self.values.chunks_exact_mut(self.width).enumerate() {
            change(values);
            if let Some(format) = arithmetic.narrow {
                self.rounded.set(arithmetic.level, format, row, values);
            }
        }
    }
}

impl Dense {
    pub(crate) fn outputs(&self) -> usize {
        match self {
            Self::Wide(linear) => linear.outputs(),
            Self::Narrow(packed) => packed.outputs(),
        }
    }

    /// Applies the layer to all rows of an operand that is ready.
    pub(crate) fn apply(&self, rows: &Operand, output: &mut [f32], then: Then) {
        match self {
            Self::Wide(linear) => linear.apply(&rows.values, output, then),
            Self::Narrow(packed) => packed.apply(&rows.rounded, output, then),
        }
    }
}
