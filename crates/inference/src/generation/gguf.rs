//! The GGUF container: typed metadata and tensors, with every length checked before it is believed.
//!
//! Only the header is held in memory; tensor data is read where it is needed. Versions 2 and 3, little-endian.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
};

use candle_core::quantized::GgmlDType;

use crate::LoadError;

/// Beyond this size a header is not a header: the largest vocabularies in use take a tenth of it.
const MAX_HEADER_BYTES: u64 = 128 << 20;
const FIRST_READ_BYTES: u64 = 16 << 20;
const MAX_DIMENSIONS: u32 = 4;

/// A metadata value. Numbers keep the width of their kind, not of their encoding.
#[derive(Debug)]
pub(super) enum Value {
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Integers(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

/// A tensor whose extent lies within the file.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) dtype: GgmlDType,
    /// Row-major: the last one is contiguous.
    pub(super) dimensions: Vec<usize>,
    /// First byte in the file.
    pub(super) start: u64,
}

impl Tensor {
    /// Bytes of `elements` elements; `None` if they do not fill whole blocks.
    pub(super) fn bytes_of(&self, elements: usize) -> Option<usize> {
        let block = self.dtype.block_size();
        elements.is_multiple_of(block).then(|| elements / block)?.checked_mul(self.dtype.type_size())
    }
}

/// An open GGUF file.
#[derive(Debug)]
pub(super) struct Gguf {
    path: PathBuf,
    file: File,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, Tensor>,
}

impl Gguf {
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let file = File::open(path).map_err(|error| LoadError::io(path, error))?;
        let length = file.metadata().map_err(|error| LoadError::io(path, error))?.len();
        let mut read = FIRST_READ_BYTES;
        loop {
            let mut bytes = vec![0; length.min(read) as usize];
            read_at(&file, &mut bytes, 0).map_err(|error| LoadError::io(path, error))?;
            match parse(&bytes, length) {
                Ok((metadata, tensors)) => return Ok(Self { path: path.to_owned(), file, metadata, tensors }),
                Err(Fault::Short) if read < length.min(MAX_HEADER_BYTES) => read *= 2,
                Err(Fault::Short) => return Err(LoadError::malformed(path, "the file ends inside its header")),
                Err(Fault::Bad(problem)) => return Err(LoadError::malformed(path, problem)),
            }
        }
    }

    pub(super) fn malformed(&self, problem: impl ToString) -> LoadError {
        LoadError::malformed(&self.path, problem)
    }

    pub(super) fn unsupported(&self, problem: impl ToString) -> LoadError {
        LoadError::unsupported(&self.path, problem)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// Takes a value out of the metadata, which may be large.
    pub(super) fn take(&mut self, key: &str) -> Result<Value, LoadError> {
        self.metadata.remove(key).ok_or_else(|| self.malformed(format!("metadata lacks `{key}`")))
    }

    /// The text under `key`, which must be there.
    pub(super) fn text(&self, key: &str) -> Result<&str, LoadError> {
        match self.get(key) {
            Some(Value::Text(text)) => Ok(text),
            other => Err(self.wrong(key, "a string", other)),
        }
    }

    /// The positive integer under `key`, which must be there.
    pub(super) fn size(&self, key: &str) -> Result<usize, LoadError> {
        match self.get(key) {
            Some(Value::Integer(value)) if (1..=i64::from(u32::MAX)).contains(value) => Ok(*value as usize),
            other => Err(self.wrong(key, "a positive 32-bit integer", other)),
        }
    }

    /// The positive integer under `key`, or `default` where the file does not say.
    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize, LoadError> {
        if self.get(key).is_none() { Ok(default) } else { self.size(key) }
    }

    /// The positive finite number under `key`, or `default` where the file does not say.
    pub(super) fn number_or(&self, key: &str, default: f64) -> Result<f64, LoadError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Float(value)) if value.is_finite() && *value > 0.0 => Ok(*value),
            other => Err(self.wrong(key, "a positive number", other)),
        }
    }

    /// The flag under `key`, if the file says.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            other => Err(self.wrong(key, "a boolean", other)),
        }
    }

    fn wrong(&self, key: &str, expected: &str, found: Option<&Value>) -> LoadError {
        self.malformed(match found {
            None => format!("metadata lacks `{key}`"),
            Some(value @ (Value::Integers(_) | Value::Floats(_) | Value::Texts(_))) => {
                format!("metadata `{key}` is {expected}, found an array of {}", value.len())
            }
            Some(value) => format!("metadata `{key}` is {expected}, found {value:?}"),
        })
    }

    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor called `name`, which must be there.
    pub(super) fn tensor(&self, name: &str) -> Result<&Tensor, LoadError> {
        self.tensors.get(name).ok_or_else(|| self.malformed(format!("tensor `{name}` is missing")))
    }

    /// Fills `bytes` from `at` on; any thread may call it at any time.
    pub(super) fn read(&self, bytes: &mut [u8], at: u64) -> Result<(), LoadError> {
        read_at(&self.file, bytes, at).map_err(|error| LoadError::io(&self.path, error))
    }
}

impl Value {
    fn len(&self) -> usize {
        match self {
            Self::Integer(_) | Self::Float(_) | Self::Bool(_) | Self::Text(_) => 1,
            Self::Integers(values) => values.len(),
            Self::Floats(values) => values.len(),
            Self::Texts(values) => values.len(),
        }
    }
}

fn read_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

/// Why a header cannot be read: more bytes are needed, or none would help.
enum Fault {
    Short,
    Bad(String),
}

fn bad<T>(problem: String) -> Result<T, Fault> {
    Err(Fault::Bad(problem))
}

type Header = (HashMap<String, Value>, HashMap<String, Tensor>);

/// Reads a header out of the first `bytes` of a file of `length` bytes.
fn parse(bytes: &[u8], length: u64) -> Result<Header, Fault> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4)? != b"GGUF" {
        return bad("not a GGUF file: it does not begin with `GGUF`".to_owned());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return bad(format!("GGUF version {version} is not supported; 2 and 3 are"));
    }
    let (tensor_count, value_count) = (reader.u64()?, reader.u64()?);
    let mut metadata = HashMap::new();
    for _ in 0..value_count {
        let key = reader.text()?;
        let kind = reader.u32()?;
        let value = reader.value(kind).map_err(|fault| fault.at("metadata", &key))?;
        if metadata.insert(key.clone(), value).is_some() {
            return bad(format!("metadata `{key}` is there twice"));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Integer(value)) if *value >= 8 && *value <= 1 << 20 && value.count_ones() == 1 => *value as u64,
        Some(value) => return bad(format!("`general.alignment` is a power of two from 8 to 2^20, found {value:?}")),
    };
    let mut tensors = HashMap::new();
    for _ in 0..tensor_count {
        let name = reader.text()?;
        let tensor = reader.tensor().map_err(|fault| fault.at("tensor", &name))?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return bad(format!("tensor `{name}` is there twice"));
        }
    }
    let data = (reader.at as u64).next_multiple_of(alignment);
    for (name, tensor) in &mut tensors {
        let elements = tensor.dimensions.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        let size = elements.and_then(|elements| tensor.bytes_of(elements));
        let end = size.and_then(|size| data.checked_add(tensor.start)?.checked_add(size as u64));
        if !tensor.start.is_multiple_of(alignment) || end.is_none_or(|end| end > length) {
            let Tensor { dtype, dimensions, start } = tensor;
            return bad(format!(
                "tensor `{name}` ({dtype:?} {dimensions:?} at {start}) does not lie within the file's {length} bytes"
            ));
        }
        tensor.start += data;
    }
    Ok((metadata, tensors))
}

impl Fault {
    fn at(self, what: &str, name: &str) -> Self {
        match self {
            Self::Short => Self::Short,
            Self::Bad(problem) => Self::Bad(format!("{what} `{name}`: {problem}")),
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], Fault> {
        let rest = &self.bytes[self.at..];
        let count = usize::try_from(count).ok().filter(|count| *count <= rest.len()).ok_or(Fault::Short)?;
        self.at += count;
        Ok(&rest[..count])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = self.take(N as u64)?;
        Ok(std::array::from_fn(|index| bytes[index]))
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, Fault> {
        let count = self.u64()?;
        let bytes = self.take(count)?;
        String::from_utf8(bytes.to_owned()).or_else(|_| bad("holds a string that is not UTF-8".to_owned()))
    }

    fn value(&mut self, kind: u32) -> Result<Value, Fault> {
        Ok(match kind {
            0..=5 | 10 | 11 => Value::Integer(self.integer(kind)?),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.array()? {
                [flag @ (0 | 1)] => Value::Bool(flag == 1),
                [other] => return bad(format!("{other} is no boolean")),
            },
            8 => Value::Text(self.text()?),
            9 => {
                let kind = self.u32()?;
                let count = self.u64()?;
                // An element takes a byte at least, so an invented count ends here and not in an allocation.
                if count > (self.bytes.len() - self.at) as u64 {
                    return Err(Fault::Short);
                }
                match kind {
                    0..=5 | 10 | 11 => {
                        Value::Integers((0..count).map(|_| self.integer(kind)).collect::<Result<_, _>>()?)
                    }
                    6 => Value::Floats(
                        (0..count).map(|_| self.array().map(f32::from_le_bytes)).collect::<Result<_, _>>()?,
                    ),
                    7 => Value::Integers((0..count).map(|_| self.integer(0)).collect::<Result<_, _>>()?),
                    8 => Value::Texts((0..count).map(|_| self.text()).collect::<Result<_, _>>()?),
                    other => return bad(format!("arrays of type {other} are not supported")),
                }
            }
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return bad(format!("type {other} is not known")),
        })
    }

    fn integer(&mut self, kind: u32) -> Result<i64, Fault> {
        Ok(match kind {
            0 => i64::from(u8::from_le_bytes(self.array()?)),
            1 => i64::from(i8::from_le_bytes(self.array()?)),
            2 => i64::from(u16::from_le_bytes(self.array()?)),
            3 => i64::from(i16::from_le_bytes(self.array()?)),
            4 => i64::from(self.u32()?),
            5 => i64::from(i32::from_le_bytes(self.array()?)),
            10 => i64::try_from(self.u64()?).or_else(|_| bad("integer exceeds 63 bits".to_owned()))?,
            _ => i64::from_le_bytes(self.array()?),
        })
    }

    fn tensor(&mut self) -> Result<Tensor, Fault> {
        let count = self.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&count) {
            return bad(format!("{count} dimensions; 1 to {MAX_DIMENSIONS} are possible"));
        }
        let mut dimensions = (0..count)
            .map(|_| match usize::try_from(self.u64()?) {
                Ok(size) if size > 0 => Ok(size),
                _ => bad("a dimension is zero or too large".to_owned()),
            })
            .collect::<Result<Vec<_>, _>>()?;
        dimensions.reverse();
        let code = self.u32()?;
        let Some(dtype) = dtype(code) else { return bad(format!("number format {code} is not supported")) };
        Ok(Tensor { dtype, dimensions, start: self.u64()? })
    }
}

fn dtype(code: u32) -> Option<GgmlDType> {
    Some(match code {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}
