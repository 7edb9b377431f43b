//! Tensors as bytes: row-major, little-endian, without stride or padding; a text is its length in four bytes, then itself.

use crate::engine::tensor::{Data, Datatype};

const PREFIX: usize = 4;

/// Reads `count` elements that must be all of `bytes`; the error says what is wrong with them.
pub(super) fn read(datatype: Datatype, count: usize, bytes: Vec<u8>) -> Result<Data, String> {
    let Some(size) = datatype.size() else { return texts(count, &bytes).map(Data::Bytes) };
    if count.checked_mul(size) != Some(bytes.len()) {
        let name = datatype.name();
        return Err(format!("has {} bytes: the shape has {count} elements of {name}, {size} each", bytes.len()));
    }
    Ok(match datatype {
        Datatype::Bool => Data::Bool(truths(&bytes)?),
        Datatype::Uint8 => Data::Uint8(bytes),
        Datatype::Int8 => Data::Int8(bytes.into_iter().map(u8::cast_signed).collect()),
        Datatype::Uint16 => Data::Uint16(numbers(&bytes, u16::from_le_bytes)),
        Datatype::Int16 => Data::Int16(numbers(&bytes, i16::from_le_bytes)),
        Datatype::Fp16 => Data::Fp16(numbers(&bytes, u16::from_le_bytes)),
        Datatype::Bf16 => Data::Bf16(numbers(&bytes, u16::from_le_bytes)),
        Datatype::Uint32 => Data::Uint32(numbers(&bytes, u32::from_le_bytes)),
        Datatype::Int32 => Data::Int32(numbers(&bytes, i32::from_le_bytes)),
        Datatype::Fp32 => Data::Fp32(numbers(&bytes, f32::from_le_bytes)),
        Datatype::Uint64 => Data::Uint64(numbers(&bytes, u64::from_le_bytes)),
        Datatype::Int64 => Data::Int64(numbers(&bytes, i64::from_le_bytes)),
        Datatype::Fp64 => Data::Fp64(numbers(&bytes, f64::from_le_bytes)),
        Datatype::Bytes => Data::Bytes(texts(count, &bytes)?),
    })
}

/// Writes the elements.
pub(super) fn write(data: Data) -> Vec<u8> {
    match data {
        Data::Bool(values) => values.into_iter().map(u8::from).collect(),
        Data::Uint8(values) => values,
        Data::Int8(values) => values.into_iter().map(i8::cast_unsigned).collect(),
        Data::Uint16(values) | Data::Fp16(values) | Data::Bf16(values) => bytes(&values, u16::to_le_bytes),
        Data::Int16(values) => bytes(&values, i16::to_le_bytes),
        Data::Uint32(values) => bytes(&values, u32::to_le_bytes),
        Data::Int32(values) => bytes(&values, i32::to_le_bytes),
        Data::Fp32(values) => bytes(&values, f32::to_le_bytes),
        Data::Uint64(values) => bytes(&values, u64::to_le_bytes),
        Data::Int64(values) => bytes(&values, i64::to_le_bytes),
        Data::Fp64(values) => bytes(&values, f64::to_le_bytes),
        Data::Bytes(elements) => {
            let size = elements.iter().map(|element| PREFIX + element.len()).sum();
            let mut written = Vec::with_capacity(size);
            for element in elements {
                // An element longer than that is longer than any message.
                let length = u32::try_from(element.len()).unwrap_or(u32::MAX);
                written.extend_from_slice(&length.to_le_bytes());
                written.extend_from_slice(&element);
            }
            written
        }
    }
}

fn numbers<T, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (elements, _none) = bytes.as_chunks();
    elements.iter().map(|element| read(*element)).collect()
}

fn bytes<T: Copy, const N: usize>(values: &[T], write: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    let mut written = Vec::with_capacity(values.len() * N);
    for value in values {
        written.extend_from_slice(&write(*value));
    }
    written
}

fn truths(bytes: &[u8]) -> Result<Vec<bool>, String> {
    let truth = |(index, byte): (usize, &u8)| match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(format!("has the byte {other} at {index}: a BOOL is 0 or 1")),
    };
    bytes.iter().enumerate().map(truth).collect()
}

fn texts(count: usize, bytes: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    // Each element has a prefix: more elements than that cannot be there, whatever the shape says.
    let mut elements = Vec::with_capacity(count.min(bytes.len() / PREFIX));
    let mut rest = bytes;
    while !rest.is_empty() {
        let at = elements.len();
        if at == count {
            return Err(format!("has {} bytes more than the {count} elements of the shape", rest.len()));
        }
        let Some((prefix, after)) = rest.split_first_chunk::<PREFIX>() else {
            return Err(format!(
                "ends within the length of element {at}: four bytes are expected, {} left",
                rest.len()
            ));
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        let Some((element, after)) = after.split_at_checked(length) else {
            return Err(format!(
                "ends within element {at}: its length is {length}, and {} bytes are left",
                after.len()
            ));
        };
        elements.push(element.to_vec());
        rest = after;
    }
    if elements.len() != count {
        return Err(format!("has {} elements, and the shape {count}", elements.len()));
    }
    Ok(elements)
}
