//! Tensors as typed fields. The fields hold more than one type each: what does not fit the tensor's is refused.

use verdict_api::inference::InferTensorContents;

use crate::engine::tensor::{Data, Datatype};

/// Tells whether a type has no typed field.
pub(super) fn is_raw_only(datatype: Datatype) -> bool {
    matches!(datatype, Datatype::Fp16 | Datatype::Bf16)
}

/// Tells whether there is nothing in any field.
pub(super) fn is_empty(contents: &InferTensorContents) -> bool {
    fields(contents).iter().all(|(_, count)| *count == 0)
}

/// Reads `count` elements from the field of their type; the error says what is wrong with them.
pub(super) fn read(datatype: Datatype, count: usize, contents: InferTensorContents) -> Result<Data, String> {
    let Some(own) = field(datatype) else {
        return Err(format!("cannot hold {}: it is sent in raw_input_contents", datatype.name()));
    };
    for (name, filled) in fields(&contents) {
        if name != own && filled > 0 {
            return Err(format!("has {name}: {} is sent in {own}", datatype.name()));
        }
        if name == own && filled != count {
            return Err(format!("has {filled} {own}, and the shape {count} elements"));
        }
    }
    let InferTensorContents {
        bool_contents,
        int_contents,
        int64_contents,
        uint_contents,
        uint64_contents,
        fp32_contents,
        fp64_contents,
        bytes_contents,
    } = contents;
    Ok(match datatype {
        Datatype::Bool => Data::Bool(bool_contents),
        Datatype::Int8 => Data::Int8(narrow(datatype, int_contents)?),
        Datatype::Int16 => Data::Int16(narrow(datatype, int_contents)?),
        Datatype::Int32 => Data::Int32(int_contents),
        Datatype::Int64 => Data::Int64(int64_contents),
        Datatype::Uint8 => Data::Uint8(narrow(datatype, uint_contents)?),
        Datatype::Uint16 => Data::Uint16(narrow(datatype, uint_contents)?),
        Datatype::Uint32 => Data::Uint32(uint_contents),
        Datatype::Uint64 => Data::Uint64(uint64_contents),
        Datatype::Fp32 => Data::Fp32(fp32_contents),
        Datatype::Fp64 => Data::Fp64(fp64_contents),
        Datatype::Bytes => Data::Bytes(bytes_contents),
        Datatype::Fp16 => Data::Fp16(Vec::new()),
        Datatype::Bf16 => Data::Bf16(Vec::new()),
    })
}

/// Writes the elements to the field of their type. FP16 and BF16, which have none, leave all fields empty.
pub(super) fn write(data: Data) -> InferTensorContents {
    let mut contents = InferTensorContents::default();
    match data {
        Data::Bool(values) => contents.bool_contents = values,
        Data::Int8(values) => contents.int_contents = values.into_iter().map(i32::from).collect(),
        Data::Int16(values) => contents.int_contents = values.into_iter().map(i32::from).collect(),
        Data::Int32(values) => contents.int_contents = values,
        Data::Int64(values) => contents.int64_contents = values,
        Data::Uint8(values) => contents.uint_contents = values.into_iter().map(u32::from).collect(),
        Data::Uint16(values) => contents.uint_contents = values.into_iter().map(u32::from).collect(),
        Data::Uint32(values) => contents.uint_contents = values,
        Data::Uint64(values) => contents.uint64_contents = values,
        Data::Fp32(values) => contents.fp32_contents = values,
        Data::Fp64(values) => contents.fp64_contents = values,
        Data::Bytes(elements) => contents.bytes_contents = elements,
        Data::Fp16(_) | Data::Bf16(_) => {}
    }
    contents
}

fn field(datatype: Datatype) -> Option<&'static str> {
    Some(match datatype {
        Datatype::Bool => "bool_contents",
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => "int_contents",
        Datatype::Int64 => "int64_contents",
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => "uint_contents",
        Datatype::Uint64 => "uint64_contents",
        Datatype::Fp32 => "fp32_contents",
        Datatype::Fp64 => "fp64_contents",
        Datatype::Bytes => "bytes_contents",
        Datatype::Fp16 | Datatype::Bf16 => return None,
    })
}

fn fields(contents: &InferTensorContents) -> [(&'static str, usize); 8] {
    [
        ("bool_contents", contents.bool_contents.len()),
        ("int_contents", contents.int_contents.len()),
        ("int64_contents", contents.int64_contents.len()),
        ("uint_contents", contents.uint_contents.len()),
        ("uint64_contents", contents.uint64_contents.len()),
        ("fp32_contents", contents.fp32_contents.len()),
        ("fp64_contents", contents.fp64_contents.len()),
        ("bytes_contents", contents.bytes_contents.len()),
    ]
}

fn narrow<W: Copy + std::fmt::Display, N: TryFrom<W>>(datatype: Datatype, values: Vec<W>) -> Result<Vec<N>, String> {
    let one = |(index, value): (usize, W)| {
        N::try_from(value).map_err(|_| format!("has {value} at {index}, which no {} can be", datatype.name()))
    };
    values.into_iter().enumerate().map(one).collect()
}
