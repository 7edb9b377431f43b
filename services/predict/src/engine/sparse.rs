//! Sparse embedding models as tensors: the weights of all texts one after the other, and how many each has.

use async_trait::async_trait;
use verdict_inference::text::Token;

use super::{
    Answered, Engine, Inputs, Signature, Wanted,
    items::{ERROR, settle, several},
    tensor::{Data, Datatype, Spec, Tensor},
    texts,
};
use crate::{
    admission::Admission,
    error::Result,
    release::Task,
    text::{SparseEmbedding, Tokenizer},
};

#[async_trait]
impl Engine for SparseEmbedding {
    fn task(&self) -> Task {
        Task::TextSparseEmbedding
    }

    fn platform(&self) -> &'static str {
        "verdict_safetensors"
    }

    fn signature(&self) -> Signature {
        Signature {
            inputs: vec![texts("text"), Spec::setting("truncate", Datatype::Bool)],
            outputs: vec![
                Spec::new("indices", Datatype::Uint32, [-1]),
                Spec::new("values", Datatype::Fp32, [-1]),
                Spec::new("counts", Datatype::Uint32, [-1]),
                Spec::new("tokens", Datatype::Uint32, [-1]),
                texts(ERROR),
            ],
        }
    }

    fn sample(&self) -> Vec<Tensor> {
        vec![Tensor::texts("text", ["warm"])]
    }

    async fn compute(&self, mut inputs: Inputs, wanted: &Wanted, admission: Admission) -> Result<Answered> {
        let text = inputs.require("text")?;
        several(&text)?;
        let truncate = inputs.flag("truncate").unwrap_or(false);
        let at = text.at;
        let (items, timing) = self.embed(text.into_texts()?, truncate, None, admission).await?;
        let (vectors, errors) = settle(items, at, wanted)?;

        let tokens = Tensor::counts("tokens", vectors.iter().map(|vector| vector.as_ref().map_or(0, |it| it.tokens)));
        let counts = vectors.iter().map(|vector| vector.as_ref().map_or(0, |it| it.pairs.len()));
        let counts = Tensor::counts("counts", counts);
        let (indices, values): (Vec<u32>, Vec<f32>) =
            vectors.into_iter().flatten().flat_map(|vector| vector.pairs).unzip();
        let indices = Tensor::new("indices", [indices.len()], Data::Uint32(indices));
        Ok(Answered { outputs: vec![indices, Tensor::floats("values", values), counts, tokens, errors], timing })
    }

    fn tokenizer(&self) -> Option<Tokenizer<'_>> {
        Some(SparseEmbedding::tokenizer(self))
    }

    fn tokens(&self, text: &str, special: bool) -> Option<Vec<Token>> {
        Some(SparseEmbedding::tokenizer(self).tokenizer.tokens(text, special))
    }
}
