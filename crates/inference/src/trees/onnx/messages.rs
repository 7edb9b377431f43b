//! The parts of ONNX's protobuf that are read: `onnx.proto3` of ONNX 1.x, field numbers as there.
//!
//! Repeated messages stay bytes until they are counted: an empty one takes two bytes in a file and much more in memory.

use prost::Message;

use super::super::problem::{Problem, Result, malformed, unsupported};

/// Nodes, initializers and inputs of a graph, attributes of a node.
const MOST_PARTS: usize = 1 << 14;
pub(super) const FLOAT: i32 = 1;
pub(super) const INT32: i32 = 6;
pub(super) const INT64: i32 = 7;
pub(super) const STRING: i32 = 8;
pub(super) const DOUBLE: i32 = 11;

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelProto {
    #[prost(bytes = "vec", tag = "7")]
    pub(super) graph: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct GraphProto {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(super) node: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub(super) initializer: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "11")]
    pub(super) input: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "12")]
    pub(super) output: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub(super) input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(super) output: Vec<String>,
    #[prost(string, tag = "3")]
    pub(super) name: String,
    #[prost(string, tag = "4")]
    pub(super) op_type: String,
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub(super) attribute: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AttributeProto {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(float, tag = "2")]
    pub(super) f: f32,
    #[prost(int64, tag = "3")]
    pub(super) i: i64,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) s: Vec<u8>,
    #[prost(message, optional, tag = "5")]
    pub(super) t: Option<TensorProto>,
    #[prost(float, repeated, tag = "7")]
    pub(super) floats: Vec<f32>,
    #[prost(int64, repeated, tag = "8")]
    pub(super) ints: Vec<i64>,
    #[prost(bytes = "vec", repeated, tag = "9")]
    pub(super) strings: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    pub(super) dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub(super) data_type: i32,
    #[prost(float, repeated, tag = "4")]
    pub(super) float_data: Vec<f32>,
    #[prost(int32, repeated, tag = "5")]
    pub(super) int32_data: Vec<i32>,
    #[prost(int64, repeated, tag = "7")]
    pub(super) int64_data: Vec<i64>,
    #[prost(string, tag = "8")]
    pub(super) name: String,
    #[prost(bytes = "vec", tag = "9")]
    pub(super) raw_data: Vec<u8>,
    #[prost(double, repeated, tag = "10")]
    pub(super) double_data: Vec<f64>,
    #[prost(int32, tag = "14")]
    pub(super) data_location: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, optional, tag = "2")]
    pub(super) r#type: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub(super) tensor_type: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorType {
    #[prost(int32, tag = "1")]
    pub(super) elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) shape: Option<TensorShape>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorShape {
    #[prost(message, repeated, tag = "1")]
    pub(super) dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Dimension {
    #[prost(int64, tag = "1")]
    pub(super) dim_value: i64,
}

/// Reads one message.
pub(super) fn decode<M: Message + Default>(bytes: &[u8], what: &str) -> Result<M> {
    M::decode(bytes).map_err(|error| Problem::Malformed(format!("{what}: {error}")))
}

/// Reads counted messages.
pub(super) fn decode_all<M: Message + Default>(parts: &[Vec<u8>], what: &str) -> Result<Vec<M>> {
    if parts.len() > MOST_PARTS {
        return unsupported(format!("{} of {what}, at most {MOST_PARTS}", parts.len()));
    }
    parts.iter().map(|part| decode(part, what)).collect()
}

impl TensorProto {
    /// The numbers, in `f64`.
    pub(super) fn numbers(&self) -> Result<Vec<f64>> {
        if self.data_location != 0 {
            return unsupported(format!("tensor `{}` lies in another file", self.name));
        }
        let raw = &self.raw_data;
        Ok(match self.data_type {
            FLOAT if !raw.is_empty() => chunks(raw).map(|bytes| f64::from(f32::from_le_bytes(bytes))).collect(),
            FLOAT => self.float_data.iter().map(|number| f64::from(*number)).collect(),
            DOUBLE if !raw.is_empty() => chunks(raw).map(f64::from_le_bytes).collect(),
            DOUBLE => self.double_data.clone(),
            INT64 if !raw.is_empty() => chunks(raw).map(|bytes| i64::from_le_bytes(bytes) as f64).collect(),
            INT64 => self.int64_data.iter().map(|number| *number as f64).collect(),
            INT32 if !raw.is_empty() => chunks(raw).map(|bytes| f64::from(i32::from_le_bytes(bytes))).collect(),
            INT32 => self.int32_data.iter().map(|number| f64::from(*number)).collect(),
            other => {
                return unsupported(format!(
                    "tensor `{}` of type {other}; supported: float, double, int32, int64",
                    self.name
                ));
            }
        })
    }
}

fn chunks<const N: usize>(raw: &[u8]) -> impl Iterator<Item = [u8; N]> {
    raw.as_chunks::<N>().0.iter().copied()
}

/// The attributes of a node.
pub(super) struct Attributes {
    attributes: Vec<AttributeProto>,
}

impl Attributes {
    pub(super) fn read(node: &NodeProto) -> Result<Self> {
        Ok(Self { attributes: decode_all(&node.attribute, "an attribute")? })
    }

    fn get(&self, name: &str) -> Option<&AttributeProto> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.get(name).map_or(default, |attribute| attribute.i)
    }

    pub(super) fn float(&self, name: &str, default: f32) -> f32 {
        self.get(name).map_or(default, |attribute| attribute.f)
    }

    pub(super) fn text<'a>(&'a self, name: &str, default: &'a str) -> Result<&'a str> {
        match self.get(name) {
            None => Ok(default),
            Some(attribute) => utf8(&attribute.s, name),
        }
    }

    pub(super) fn ints(&self, name: &str) -> &[i64] {
        self.get(name).map_or(&[], |attribute| &attribute.ints)
    }

    pub(super) fn floats(&self, name: &str) -> &[f32] {
        self.get(name).map_or(&[], |attribute| &attribute.floats)
    }

    pub(super) fn texts(&self, name: &str) -> Result<Vec<&str>> {
        let texts = self.get(name).map_or(&[][..], |attribute| &attribute.strings);
        texts.iter().map(|text| utf8(text, name)).collect()
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&TensorProto> {
        self.get(name).and_then(|attribute| attribute.t.as_ref())
    }

    /// Numbers that are floats, or a tensor named `{name}_as_tensor`.
    pub(super) fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        match self.tensor(&format!("{name}_as_tensor")) {
            Some(tensor) => tensor.numbers(),
            None => Ok(self.floats(name).iter().map(|number| f64::from(*number)).collect()),
        }
    }
}

fn utf8<'a>(bytes: &'a [u8], name: &str) -> Result<&'a str> {
    std::str::from_utf8(bytes).or_else(|_| malformed(format!("attribute {name} is not UTF-8")))
}
