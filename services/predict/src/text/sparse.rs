//! Sparse embedding: texts to weights of words.

use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use verdict_inference::{
    bert::{SparseEmbedder, heaviest},
    text::Encoded,
};

use super::{Item, Tokenizer, compute, encode_each, off_thread, written};
use crate::{
    admission::Admission,
    answers::Scope,
    batch::{Batcher, Limits},
    error::Result,
    metrics::ModelMeters,
    timing::Timing,
};

/// The weights of a text.
#[derive(Debug)]
pub struct SparseVector {
    /// Token id and weight above 0, by rising id.
    pub pairs: Vec<(u32, f32)>,
    pub tokens: usize,
}

/// A sparse embedding model with its queue.
pub struct SparseEmbedding {
    name: String,
    engine: Arc<SparseEmbedder>,
    batcher: Batcher<Encoded, Vec<(u32, f32)>>,
    tokenizer_json: Bytes,
}

impl SparseEmbedding {
    /// Warms the engine up and starts its workers.
    pub fn start(
        name: String,
        engine: SparseEmbedder,
        json: Bytes,
        limits: Limits,
        meters: ModelMeters,
        scope: Option<Scope>,
    ) -> anyhow::Result<Self> {
        let engine = Arc::new(engine);
        let warm = engine.tokenizer().encode("warm", true).context("warm-up")?;
        let vectors = engine.embed(&[&warm], None);
        anyhow::ensure!(
            vectors.len() == 1 && vectors[0].iter().all(|(_, weight)| weight.is_finite()),
            "warm-up: the model does not make finite weights"
        );
        let worker = engine.clone();
        let answers = scope.map(|scope| scope.of(written));
        let compute = move |batch: &[&Encoded]| worker.embed(batch, None);
        let batcher = Batcher::start_cached(limits, meters, answers, compute)?;
        Ok(Self { name, engine, batcher, tokenizer_json: json })
    }

    /// Turns texts into weights of words, of each text the `top` greatest.
    pub async fn embed(
        &self,
        inputs: Vec<String>,
        truncate: bool,
        top: Option<usize>,
        admission: Admission,
    ) -> Result<(Vec<Item<SparseVector>>, Timing)> {
        let (engine, deadline) = (self.engine.clone(), admission.deadline);
        let bytes = inputs.iter().map(String::len).sum();
        let encoded =
            off_thread(bytes, move || encode_each(&inputs, deadline, |text| engine.tokenizer().encode(text, truncate)))
                .await??;
        let (outputs, timing) = compute(&self.name, &self.batcher, encoded, admission).await?;
        let vector = |(pairs, tokens)| SparseVector {
            pairs: match top {
                Some(top) => heaviest(pairs, top),
                None => pairs,
            },
            tokens,
        };
        Ok((outputs.into_iter().map(|output| output.map(vector)).collect(), timing))
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> Tokenizer<'_> {
        Tokenizer {
            json: self.tokenizer_json.clone(),
            tokenizer: self.engine.tokenizer(),
            max_length: self.engine.max_length(),
            dimensions: self.engine.dimensions(),
        }
    }
}
