//! Embedding models as tensors.

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
    text::{Embedding, Tokenizer},
};

#[async_trait]
impl Engine for Embedding {
    fn task(&self) -> Task {
        Task::TextEmbedding
    }

    fn platform(&self) -> &'static str {
        "verdict_safetensors"
    }

    fn signature(&self) -> Signature {
        let dimensions = i64::try_from(Embedding::tokenizer(self).dimensions).unwrap_or(-1);
        Signature {
            inputs: vec![
                texts("text"),
                Spec::setting("truncate", Datatype::Bool),
                Spec::setting("normalize", Datatype::Bool),
            ],
            outputs: vec![
                Spec::new("embedding", Datatype::Fp32, [-1, dimensions]),
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
        let normalize = inputs.flag("normalize");
        let at = text.at;
        let (items, timing) = self.embed(text.into_texts()?, truncate, normalize, admission).await?;
        let (vectors, errors) = settle(items, at, wanted)?;

        let dimensions = Embedding::tokenizer(self).dimensions;
        let tokens = Tensor::counts("tokens", vectors.iter().map(|vector| vector.as_ref().map_or(0, |it| it.tokens)));
        let mut values = Vec::with_capacity(vectors.len() * dimensions);
        for vector in &vectors {
            match vector {
                Some(vector) => values.extend_from_slice(&vector.values),
                None => values.resize(values.len() + dimensions, f32::NAN),
            }
        }
        let embedding = Tensor::new("embedding", [vectors.len(), dimensions], Data::Fp32(values));
        Ok(Answered { outputs: vec![embedding, tokens, errors], timing })
    }

    fn tokenizer(&self) -> Option<Tokenizer<'_>> {
        Some(Embedding::tokenizer(self))
    }

    fn tokens(&self, text: &str, special: bool) -> Option<Vec<Token>> {
        Some(Embedding::tokenizer(self).tokenizer.tokens(text, special))
    }
}
