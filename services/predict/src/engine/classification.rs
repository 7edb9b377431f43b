//! Classifying models as tensors.

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
    text::{Classification, Tokenizer},
};

#[async_trait]
impl Engine for Classification {
    fn task(&self) -> Task {
        Task::TextClassification
    }

    fn platform(&self) -> &'static str {
        "verdict_safetensors"
    }

    /// `label` names the columns of `score` and `logit`.
    fn signature(&self) -> Signature {
        let labels = i64::try_from(self.labels().len()).unwrap_or(-1);
        Signature {
            inputs: vec![texts("text"), Spec::setting("truncate", Datatype::Bool)],
            outputs: vec![
                Spec::new("score", Datatype::Fp32, [-1, labels]),
                Spec::new("logit", Datatype::Fp32, [-1, labels]),
                Spec::new("label", Datatype::Bytes, [labels]),
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
        let (items, timing) = self.logits(text.into_texts()?, truncate, admission).await?;
        let (answers, errors) = settle(items, at, wanted)?;

        let labels = self.labels();
        let tokens = Tensor::counts("tokens", answers.iter().map(|answer| answer.as_ref().map_or(0, |it| it.1)));
        let none = vec![f32::NAN; labels.len()];
        let rows = || answers.iter().map(|answer| answer.as_ref().map_or(&none, |(logits, _)| logits));
        let matrix = |name, values| Tensor::new(name, [answers.len(), labels.len()], Data::Fp32(values));
        let score = matrix("score", rows().flat_map(|logits| self.probabilities(logits)).collect());
        let logit = matrix("logit", rows().flatten().copied().collect());
        let label = Tensor::texts("label", labels.iter().cloned());
        Ok(Answered { outputs: vec![score, logit, label, tokens, errors], timing })
    }

    fn tokenizer(&self) -> Option<Tokenizer<'_>> {
        Some(Classification::tokenizer(self))
    }

    fn tokens(&self, text: &str, special: bool) -> Option<Vec<Token>> {
        Some(Classification::tokenizer(self).tokenizer.tokens(text, special))
    }
}
