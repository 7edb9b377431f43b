//! The families of decoders, as their GGUF files describe them: what a layer does, and with which numbers.

use super::gguf::{Gguf, Value};
use crate::LoadError;

/// Every sixth layer of Gemma 3 sees the whole text; the others see a window.
const PATTERN: usize = 6;
/// Numbers in a head, at most; the largest in use have a quarter of it.
const MAX_HEAD: usize = 1024;
/// Rotation base of Gemma 3's local layers.
const LOCAL_BASE: f64 = 10_000.0;
/// The one size of Gemma 3 that scales attention by the width of the model per head instead of the width of a head.
const LAYERS_OF_27B: usize = 62;

/// Which numbers of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairs {
    /// i and i + half.
    Halves,
    /// 2i and 2i + 1.
    Neighbours,
}

/// What gates the feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    GeluTanh,
    Silu,
}

/// The numbers and choices of a model.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) context: usize,
    pub(super) width: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head: usize,
    pub(super) feed_forward: usize,
    pub(super) epsilon: f32,
    /// Multiplies embeddings.
    pub(super) embedding_scale: f32,
    /// Multiplies products of queries and keys.
    pub(super) attention_scale: f32,
    pub(super) pairs: Pairs,
    pub(super) activation: Activation,
    /// Queries, keys and values have a bias.
    pub(super) has_bias: bool,
    /// Queries and keys are normalised per head.
    pub(super) has_head_norms: bool,
    /// Attention and feed-forward are normalised after as well as before.
    pub(super) has_post_norms: bool,
    /// Positions a local layer sees.
    pub(super) window: Option<usize>,
    /// Angle per position of each pair of a head, in global and in local layers.
    pub(super) frequencies: Vec<f64>,
    pub(super) local_frequencies: Vec<f64>,
}

impl Config {
    /// Reads `general.architecture` and the numbers that go with it.
    pub(super) fn read(gguf: &Gguf) -> Result<Self, LoadError> {
        let architecture = gguf.text("general.architecture")?.to_owned();
        let is_gemma = architecture == "gemma3";
        let (pairs, has_bias, has_head_norms) = match architecture.as_str() {
            "gemma3" => (Pairs::Halves, false, true),
            "llama" => (Pairs::Neighbours, gguf.has_tensor("blk.0.attn_q.bias"), false),
            "qwen2" => (Pairs::Halves, true, false),
            "qwen3" => (Pairs::Halves, false, true),
            other => {
                let problem = format!("architecture `{other}`; `gemma3`, `llama`, `qwen2` and `qwen3` are");
                return Err(gguf.unsupported(problem));
            }
        };
        let key = |key: &str| format!("{architecture}.{key}");
        let size = |name: &str| gguf.size(&key(name));
        for unknown in ["expert_count", "final_logit_softcapping", "attention.clamp_kqv", "logit_scale"] {
            if !matches!(gguf.get(&key(unknown)), None | Some(Value::Integer(0))) {
                return Err(gguf.unsupported(format!("metadata `{}`", key(unknown))));
            }
        }
        let (width, heads, layers) = (size("embedding_length")?, size("attention.head_count")?, size("block_count")?);
        let kv_heads = gguf.size_or(&key("attention.head_count_kv"), heads)?;
        let head = match gguf.get(&key("attention.key_length")) {
            None if is_gemma || !width.is_multiple_of(heads) => size("attention.key_length")?,
            None => width / heads,
            Some(_) => size("attention.key_length")?,
        };
        if gguf.size_or(&key("attention.value_length"), head)? != head {
            return Err(gguf.unsupported("heads whose keys and values differ in length"));
        }
        if !head.is_multiple_of(16) || head > MAX_HEAD {
            return Err(gguf.unsupported(format!("heads of {head} numbers; multiples of 16 up to {MAX_HEAD} are")));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(gguf.malformed(format!("{heads} query heads do not share {kv_heads} key heads evenly")));
        }
        if gguf.size_or(&key("rope.dimension_count"), head)? != head {
            return Err(gguf.unsupported("rotation of a part of a head"));
        }
        if is_gemma && gguf.size_or(&key("attention.sliding_window_pattern"), PATTERN)? != PATTERN {
            return Err(gguf.unsupported(format!("a sliding window pattern other than {PATTERN}")));
        }
        let stretch = match gguf.get(&key("rope.scaling.type")) {
            None => 1.0,
            Some(Value::Text(kind)) if kind == "none" => 1.0,
            Some(Value::Text(kind)) if kind == "linear" => gguf.number_or(&key("rope.scaling.factor"), 1.0)?,
            Some(kind) => return Err(gguf.unsupported(format!("rope scaling {kind:?}; `linear` is"))),
        };
        let frequencies = |base: f64, stretch: f64| -> Vec<f64> {
            (0..head / 2).map(|pair| base.powf(-2.0 * pair as f64 / head as f64) / stretch).collect()
        };
        let base = gguf.number_or(&key("rope.freq_base"), if is_gemma { 1_000_000.0 } else { 10_000.0 })?;
        let mut global = frequencies(base, stretch);
        if gguf.has_tensor("rope_freqs.weight") {
            let factors = super::pack::load_vector(gguf, "rope_freqs.weight", head / 2)?;
            if factors.iter().any(|factor| *factor <= 0.0) {
                return Err(gguf.malformed("tensor `rope_freqs.weight` holds a number that is not positive"));
            }
            global.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= f64::from(factor));
        }
        let local_base = gguf.number_or(&key("rope.freq_base_swa"), LOCAL_BASE)?;
        let scaled_by = if is_gemma && layers == LAYERS_OF_27B { width / heads } else { head };
        Ok(Self {
            context: size("context_length")?,
            width,
            layers,
            heads,
            kv_heads,
            head,
            feed_forward: size("feed_forward_length")?,
            epsilon: gguf.number_or(&key("attention.layer_norm_rms_epsilon"), 1e-6)? as f32,
            embedding_scale: if is_gemma { (width as f32).sqrt() } else { 1.0 },
            attention_scale: 1.0 / (scaled_by as f32).sqrt(),
            pairs,
            activation: if is_gemma { Activation::GeluTanh } else { Activation::Silu },
            has_bias,
            has_head_norms,
            has_post_norms: is_gemma,
            window: if is_gemma { Some(size("attention.sliding_window")?) } else { None },
            frequencies: global,
            local_frequencies: if is_gemma { frequencies(local_base, 1.0) } else { Vec::new() },
        })
    }

    /// Whether a layer sees a window instead of the whole text.
    pub(super) fn is_local(&self, layer: usize) -> bool {
        self.window.is_some() && !(layer + 1).is_multiple_of(PATTERN)
    }

    /// Numbers of all query heads, and of all key heads.
    pub(super) fn query_width(&self) -> usize {
        self.heads * self.head
    }

    pub(super) fn kv_width(&self) -> usize {
        self.kv_heads * self.head
    }
}
