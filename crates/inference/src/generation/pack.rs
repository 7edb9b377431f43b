//! From the number formats of GGUF files to interleaved 8-bit weights.

use std::borrow::Cow;

use candle_core::{
    CpuStorage,
    quantized::{GgmlDType, QuantizedType},
};
use half::f16;

use super::{
    gguf::{Gguf, Tensor},
    linear::{BLOCK, Scales, Tile},
};
use crate::LoadError;

/// 32 numbers of a weight row in 8 bits: `scale * value`.
type Rounded = (f16, [i8; BLOCK]);

/// Reads a vector of `length` finite numbers.
pub(super) fn load_vector(gguf: &Gguf, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
    let tensor = gguf.tensor(name)?;
    if tensor.dimensions != [length] {
        return Err(gguf.malformed(format!("tensor `{name}` is {:?}, not [{length}]", tensor.dimensions)));
    }
    let size = tensor.bytes_of(length).ok_or_else(|| gguf.malformed(format!("`{name}` breaks a block")))?;
    let mut buffer = vec![0u32; size.div_ceil(4)];
    let bytes = &mut bytemuck::cast_slice_mut(&mut buffer)[..size];
    gguf.read(bytes, tensor.start)?;
    let values = numbers(tensor.dtype, bytes, length).map_err(|problem| gguf.malformed(problem))?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(gguf.malformed(format!("tensor `{name}` holds a number that is not finite")));
    }
    Ok(values)
}

/// `count` numbers in any format; `bytes` is aligned to four.
fn numbers(dtype: GgmlDType, bytes: &[u8], count: usize) -> Result<Vec<f32>, String> {
    let blocks: Box<dyn QuantizedType> = dtype.from_data(Cow::Borrowed(bytes));
    match blocks.dequantize(count) {
        Ok(CpuStorage::F32(values)) => Ok(values),
        Ok(_) => Err(format!("{dtype:?} does not decode to single precision")),
        Err(error) => Err(error.to_string()),
    }
}

/// Decodes up to sixteen rows and interleaves them; lanes beyond keep what they hold.
pub(super) fn pack(tensor: &Tensor, bytes: &[u8], tiles: &mut [Tile], scales: &mut [Scales]) -> Result<(), String> {
    let per_row = tiles.len();
    let mut store = |index: usize, (scale, values): (f16, [i8; BLOCK])| {
        if !scale.is_finite() {
            return Err("holds a scale that is not finite".to_owned());
        }
        let (lane, block) = (index / per_row, index % per_row);
        scales[block][lane] = scale;
        for (line, values) in tiles[block].lines.iter_mut().zip(values.as_chunks::<4>().0) {
            line.0[lane * 4..lane * 4 + 4].copy_from_slice(&values.map(|value| value as u8 ^ 0x80));
        }
        Ok(())
    };
    let exact: Option<fn(&[u8]) -> Rounded> = match tensor.dtype {
        GgmlDType::Q8_0 => Some(q8_0),
        GgmlDType::Q5_0 => Some(q5_0),
        GgmlDType::Q4_0 => Some(q4_0),
        _ => None,
    };
    if let Some(decode) = exact {
        let blocks = bytes.chunks_exact(tensor.dtype.type_size());
        return blocks.enumerate().try_for_each(|(index, block)| store(index, decode(block)));
    }
    let values = numbers(tensor.dtype, bytes, bytes.len() / tensor.dtype.type_size() * tensor.dtype.block_size())?;
    values.as_chunks::<BLOCK>().0.iter().enumerate().try_for_each(|(index, values)| store(index, round(values)))
}

fn scale(block: &[u8]) -> f16 {
    f16::from_le_bytes([block[0], block[1]])
}

fn q8_0(block: &[u8]) -> Rounded {
    (scale(block), std::array::from_fn(|index| block[2 + index] as i8))
}

/// The four low bits of value `index`: the first half of a block in the low nibbles, the second in the high ones.
fn nibble(quarters: &[u8], index: usize) -> u8 {
    if index < BLOCK / 2 { quarters[index] & 15 } else { quarters[index - BLOCK / 2] >> 4 }
}

fn q5_0(block: &[u8]) -> Rounded {
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let value = |index| nibble(&block[6..], index) | (((fifth >> index) & 1) << 4) as u8;
    (scale(block), std::array::from_fn(|index| value(index) as i8 - 16))
}

fn q4_0(block: &[u8]) -> Rounded {
    (scale(block), std::array::from_fn(|index| nibble(&block[2..], index) as i8 - 8))
}

/// Rounds to 8 bits; a value that is not finite makes the scale so.
fn round(values: &[f32; BLOCK]) -> Rounded {
    if values.iter().any(|value| !value.is_finite()) {
        return (f16::NAN, [0; BLOCK]);
    }
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = f16::from_f32(largest / 127.0);
    let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
    (scale, values.map(|value| (value * inverse).round().clamp(-127.0, 127.0) as i8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_of_whole_steps_keep_their_exact_values() {
        for (dtype, decode) in
            [(GgmlDType::Q8_0, q8_0 as fn(&[u8]) -> Rounded), (GgmlDType::Q5_0, q5_0), (GgmlDType::Q4_0, q4_0)]
        {
            let mut bytes: Vec<u8> = (0..dtype.type_size()).map(|index| (index * 89 + 17) as u8).collect();
            bytes[..2].copy_from_slice(&f16::from_f32(0.0078).to_le_bytes());
            let mut aligned = vec![0u32; bytes.len().div_ceil(4)];
            bytemuck::cast_slice_mut(&mut aligned)[..bytes.len()].copy_from_slice(&bytes);
            let expected = numbers(dtype, &bytemuck::cast_slice(&aligned)[..bytes.len()], BLOCK).unwrap();
            let (scale, values) = decode(&bytes);
            assert_eq!(values.map(|value| f32::from(value) * scale.to_f32()).to_vec(), expected, "{dtype:?}");
        }
    }
}
