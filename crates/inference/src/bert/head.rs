//! The head of a sequence classifier: the pooled first token, then one linear layer.

use crate::LoadError;
use crate::kernels::{Linear, Then};
use crate::text::Encoded;
use crate::weights::Weights;

use super::config::BertConfig;
use super::encoder::{Encoder, Rows};

/// Pooler and classifier, in `f32`: they cost next to nothing.
pub(super) struct Head {
    pooler: Linear,
    classifier: Linear,
    labels: usize,
}

impl Head {
    pub(super) fn load(
        config: &BertConfig,
        weights: &Weights<'_>,
        encoder: &Encoder,
        labels: usize,
    ) -> Result<Self, LoadError> {
        let (hidden, arch) = (config.hidden_size, encoder.arithmetic().arch);
        let linear = |name: &str, outputs: usize| {
            let weight = weights.take(&format!("{name}.weight"), &[outputs, hidden])?;
            let bias = weights.take(&format!("{name}.bias"), &[outputs])?;
            Ok(Linear::new(arch, &weight, bias, hidden, outputs))
        };
        Ok(Self { pooler: linear("pooler.dense", hidden)?, classifier: linear("classifier", labels)?, labels })
    }

    /// Computes the logits of each input, one for each label.
    pub(super) fn logits(&self, encoder: &Encoder, batch: &[&Encoded]) -> Vec<Vec<f32>> {
        let mut pooled = vec![0.0; encoder.hidden()];
        let mut all = Vec::with_capacity(batch.len());
        encoder.run(batch, Rows::First, |first| {
            self.pooler.apply(first, &mut pooled, Then::Store);
            pooled.iter_mut().for_each(|value| *value = value.tanh());
            let mut logits = vec![0.0; self.labels];
            self.classifier.apply(&pooled, &mut logits, Then::Store);
            all.push(logits);
        });
        all
    }
}
