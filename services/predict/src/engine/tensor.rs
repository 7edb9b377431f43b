//! Named tensors: what every model family takes and gives in the Open Inference Protocol.

use verdict_chassis::status::Field;

use crate::error::{Error, Result};

/// The type of a tensor's elements, by the protocol's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

/// Elements in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    Bool(Vec<bool>),
    Uint8(Vec<u8>),
    Uint16(Vec<u16>),
    Uint32(Vec<u32>),
    Uint64(Vec<u64>),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    /// IEEE 754 binary16, as bits.
    Fp16(Vec<u16>),
    /// The upper half of an IEEE 754 binary32, as bits.
    Bf16(Vec<u16>),
    Fp32(Vec<f32>),
    Fp64(Vec<f64>),
    /// Texts, or any bytes.
    Bytes(Vec<Vec<u8>>),
}

/// Numbers, flags or texts with a name and a shape whose product is their count.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: Data,
    /// Position among the request's inputs, to name it in an error.
    pub at: usize,
}

/// What a model says of one of its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub name: String,
    pub datatype: Datatype,
    /// -1 where any length will do.
    pub shape: Vec<i64>,
    /// May be left out of a request.
    pub optional: bool,
}

impl Datatype {
    /// Every type, in the order of the protocol.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// Returns the protocol's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// Finds a type by the protocol's name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|datatype| datatype.name() == name)
    }

    /// Returns the bytes of one element; `None` for BYTES, whose elements differ.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl Data {
    /// Returns the type of the elements.
    pub fn datatype(&self) -> Datatype {
        match self {
            Self::Bool(_) => Datatype::Bool,
            Self::Uint8(_) => Datatype::Uint8,
            Self::Uint16(_) => Datatype::Uint16,
            Self::Uint32(_) => Datatype::Uint32,
            Self::Uint64(_) => Datatype::Uint64,
            Self::Int8(_) => Datatype::Int8,
            Self::Int16(_) => Datatype::Int16,
            Self::Int32(_) => Datatype::Int32,
            Self::Int64(_) => Datatype::Int64,
            Self::Fp16(_) => Datatype::Fp16,
            Self::Bf16(_) => Datatype::Bf16,
            Self::Fp32(_) => Datatype::Fp32,
            Self::Fp64(_) => Datatype::Fp64,
            Self::Bytes(_) => Datatype::Bytes,
        }
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Bool(values) => values.len(),
            Self::Uint8(values) => values.len(),
            Self::Int8(values) => values.len(),
            Self::Uint16(values) | Self::Fp16(values) | Self::Bf16(values) => values.len(),
            Self::Int16(values) => values.len(),
            Self::Uint32(values) => values.len(),
            Self::Int32(values) => values.len(),
            Self::Uint64(values) => values.len(),
            Self::Int64(values) => values.len(),
            Self::Fp32(values) => values.len(),
            Self::Fp64(values) => values.len(),
            Self::Bytes(values) => values.len(),
        }
    }

    /// Tells whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Tensor {
    /// Makes an output, or an input of our own.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>, data: Data) -> Self {
        Self { name: name.into(), shape: shape.into(), data, at: 0 }
    }

    /// Makes a tensor of one dimension from texts.
    pub fn texts<T: Into<Vec<u8>>>(name: &str, texts: impl IntoIterator<Item = T>) -> Self {
        let texts: Vec<Vec<u8>> = texts.into_iter().map(Into::into).collect();
        Self::new(name, [texts.len()], Data::Bytes(texts))
    }

    /// Makes a tensor of one dimension from numbers.
    pub fn floats(name: &str, values: Vec<f32>) -> Self {
        Self::new(name, [values.len()], Data::Fp32(values))
    }

    /// Makes a tensor of one dimension from counts; one that does not fit is the largest.
    pub fn counts(name: &str, counts: impl IntoIterator<Item = usize>) -> Self {
        let counts: Vec<_> = counts.into_iter().map(|count| u32::try_from(count).unwrap_or(u32::MAX)).collect();
        Self::new(name, [counts.len()], Data::Uint32(counts))
    }

    /// Makes the error of a tensor of the request, or of a part of it (`shape`, `contents[3]`).
    pub fn refused(&self, reason: &'static str, part: &str, problem: impl Into<String>) -> Error {
        refused(reason, format!("inputs[{}].{part}", self.at), problem)
    }

    /// Takes the elements as texts.
    pub fn into_texts(self) -> Result<Vec<String>> {
        let at = self.at;
        let Data::Bytes(elements) = self.data else { return Err(unexpected(&self.name)) };
        let text = |(index, bytes)| {
            String::from_utf8(bytes).map_err(|error| {
                let problem = format!("is no UTF-8 text: {}", error.utf8_error());
                refused("WRONG_VALUE", format!("inputs[{at}].contents[{index}]"), problem)
            })
        };
        elements.into_iter().enumerate().map(text).collect()
    }

    /// Takes the elements as numbers.
    pub fn into_floats(self) -> Result<Vec<f32>> {
        let Data::Fp32(values) = self.data else { return Err(unexpected(&self.name)) };
        Ok(values)
    }
}

impl Spec {
    /// Describes a tensor that every request has, or that every answer can have.
    pub fn new(name: impl Into<String>, datatype: Datatype, shape: impl Into<Vec<i64>>) -> Self {
        Self { name: name.into(), datatype, shape: shape.into(), optional: false }
    }

    /// Describes a setting of the call: one element that may be left out.
    pub fn setting(name: &str, datatype: Datatype) -> Self {
        Self { optional: true, ..Self::new(name, datatype, [1]) }
    }

    /// Tells whether a tensor of this shape fits.
    pub fn fits(&self, shape: &[usize]) -> bool {
        let fits = |(want, have): (&i64, &usize)| *want < 0 || usize::try_from(*want) == Ok(*have);
        self.shape.len() == shape.len() && self.shape.iter().zip(shape).all(fits)
    }
}

/// Makes the error of one field of a request of the Open Inference Protocol.
pub fn refused(reason: &'static str, field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Refused { reason, field: Field::new(field, problem) }
}

/// A tensor whose type was checked and is another: a fault of ours.
fn unexpected(name: &str) -> Error {
    Error::Internal(anyhow::anyhow!("tensor `{name}` has another type than its description"))
}
