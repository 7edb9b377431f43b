//! Tensors of a safetensors file, checked and copied out as `f32`.

use std::fs::File;
use std::path::Path;

use half::{bf16, f16};
use memmap2::Mmap;
use pulp::Arch;
use safetensors::{Dtype, SafeTensors};

use crate::LoadError;
use crate::kernels::LayerNorm;

/// Maps a file of weights into memory.
#[expect(unsafe_code, reason = "mapping a file is unsafe, because another process could change it")]
pub(crate) fn map(file: &Path) -> Result<Mmap, LoadError> {
    let opened = File::open(file).map_err(|error| LoadError::io(file, error))?;
    // SAFETY: model files are written once, under a name that is their digest or a temporary one, and never changed in
    // place; the map lives only while a model is loaded.
    unsafe { Mmap::map(&opened) }.map_err(|error| LoadError::io(file, error))
}

/// A parsed safetensors file whose tensor names may all carry one prefix.
pub(crate) struct Weights<'a> {
    file: &'a Path,
    tensors: SafeTensors<'a>,
    prefix: &'static str,
}

impl<'a> Weights<'a> {
    /// Parses `bytes`. Where `probe` exists only behind `prefix`, every name is looked up behind it first.
    pub(crate) fn parse(file: &'a Path, bytes: &'a [u8], probe: &str, prefix: &'static str) -> Result<Self, LoadError> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| LoadError::malformed(file, error))?;
        let prefix = if tensors.tensor(probe).is_err() { prefix } else { "" };
        Ok(Self { file, tensors, prefix })
    }

    /// Says whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.tensor(&format!("{}{name}", self.prefix)).or_else(|_| self.tensors.tensor(name)).is_ok()
    }

    /// Reads a layer normalisation, whose scale and shift older checkpoints call gamma and beta.
    pub(crate) fn norm(&self, name: &str, width: usize, epsilon: f32, arch: Arch) -> Result<LayerNorm, LoadError> {
        let old = self.has(&format!("{name}.gamma"));
        let (scale, shift) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        let scale = self.take(&format!("{name}.{scale}"), &[width])?;
        let shift = self.take(&format!("{name}.{shift}"), &[width])?;
        Ok(LayerNorm::new(arch, scale, shift, epsilon))
    }

    /// Copies one tensor out, refusing another shape than `shape` and numbers that are not finite.
    pub(crate) fn take(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let malformed = |problem: String| LoadError::malformed(self.file, problem);
        let found = self.tensors.tensor(&format!("{}{name}", self.prefix)).or_else(|_| self.tensors.tensor(name));
        let tensor = found.map_err(|_| malformed(format!("tensor `{name}` is missing")))?;
        if tensor.shape() != shape {
            return Err(malformed(format!("tensor `{name}` has shape {:?}, expected {shape:?}", tensor.shape())));
        }
        let bytes = tensor.data();
        let values: Vec<f32> = match tensor.dtype() {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
            other => {
                let problem = format!("tensor `{name}` has type {other:?}; supported: F32, F16, BF16");
                return Err(LoadError::unsupported(self.file, problem));
            }
        };
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(malformed(format!("tensor `{name}` holds {} at index {at}", values[at]))),
            None => Ok(values),
        }
    }
}
