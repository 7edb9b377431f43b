//! Reranking models as tensors.

use async_trait::async_trait;
use verdict_inference::text::Token;

use super::{
    Answered, Engine, Inputs, Signature, Wanted,
    items::{ERROR, settle, several},
    tensor::{Datatype, Spec, Tensor, refused},
    texts,
};
use crate::{
    admission::Admission,
    convert::text::{check_query, sigmoid},
    error::Result,
    release::Task,
    text::{Reranking, Score, Tokenizer},
};

#[async_trait]
impl Engine for Reranking {
    fn task(&self) -> Task {
        Task::TextReranking
    }

    fn platform(&self) -> &'static str {
        "verdict_safetensors"
    }

    fn signature(&self) -> Signature {
        Signature {
            inputs: vec![Spec::new("query", Datatype::Bytes, [1]), texts("documents")],
            outputs: vec![
                Spec::new("score", Datatype::Fp32, [-1]),
                Spec::new("logit", Datatype::Fp32, [-1]),
                Spec::new("tokens", Datatype::Uint32, [-1]),
                texts(ERROR),
            ],
        }
    }

    fn sample(&self) -> Vec<Tensor> {
        vec![Tensor::texts("query", ["warm"]), Tensor::texts("documents", ["up"])]
    }

    /// Scores in the order of the documents; who wants the best first sorts by `score`.
    async fn compute(&self, mut inputs: Inputs, wanted: &Wanted, admission: Admission) -> Result<Answered> {
        let query = inputs.require("query")?;
        let documents = inputs.require("documents")?;
        several(&documents)?;
        let (query_at, at) = (query.at, documents.at);
        let query = query.into_texts()?.pop().unwrap_or_default();
        check_query(&query)
            .map_err(|problem| refused("WRONG_VALUE", format!("inputs[{query_at}].contents[0]"), problem))?;
        let (items, timing) = self.score(query, documents.into_texts()?, admission).await?;
        let (scores, errors) = settle(items, at, wanted)?;

        let logits: Vec<_> =
            scores.iter().map(|score| score.as_ref().map_or(f32::NAN, |it: &Score| it.logit)).collect();
        let tokens = Tensor::counts("tokens", scores.iter().map(|score| score.as_ref().map_or(0, |it| it.tokens)));
        let score = Tensor::floats("score", logits.iter().map(|logit| sigmoid(*logit)).collect());
        Ok(Answered { outputs: vec![score, Tensor::floats("logit", logits), tokens, errors], timing })
    }

    fn tokenizer(&self) -> Option<Tokenizer<'_>> {
        Some(Reranking::tokenizer(self))
    }

    fn tokens(&self, text: &str, special: bool) -> Option<Vec<Token>> {
        Some(Reranking::tokenizer(self).tokenizer.tokens(text, special))
    }
}
