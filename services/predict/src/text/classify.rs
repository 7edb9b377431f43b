//! Classification: texts to scores of labels.

use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use verdict_inference::{bert::Classifier, text::Encoded};

use super::{Item, Tokenizer, compute, encode_each, off_thread, written};
use crate::{
    admission::Admission,
    answers::Scope,
    batch::{Batcher, Limits},
    error::Result,
    metrics::ModelMeters,
    timing::Timing,
};

/// What the classifier says of a text.
#[derive(Debug)]
pub struct Labels {
    /// Best first; labels of one score in the order of the model.
    pub scores: Vec<LabelScore>,
    pub tokens: usize,
}

/// How well a label fits.
#[derive(Debug)]
pub struct LabelScore {
    pub label: String,
    /// 0 to 1.
    pub score: f32,
    pub logit: f32,
}

/// A classifying model with its queue.
pub struct Classification {
    name: String,
    engine: Arc<Classifier>,
    batcher: Batcher<Encoded, Vec<f32>>,
    tokenizer_json: Bytes,
}

impl Classification {
    /// Warms the engine up and starts its workers.
    pub fn start(
        name: String,
        engine: Classifier,
        json: Bytes,
        limits: Limits,
        meters: ModelMeters,
        scope: Option<Scope>,
    ) -> anyhow::Result<Self> {
        let engine = Arc::new(engine);
        let warm = engine.tokenizer().encode("warm", true).context("warm-up")?;
        let logits = engine.logits(&[&warm]);
        anyhow::ensure!(
            logits.len() == 1 && logits[0].iter().all(|logit| logit.is_finite()),
            "warm-up: the model does not make finite logits"
        );
        let worker = engine.clone();
        let answers = scope.map(|scope| scope.of(written));
        let batcher = Batcher::start_cached(limits, meters, answers, move |batch: &[&Encoded]| worker.logits(batch))?;
        Ok(Self { name, engine, batcher, tokenizer_json: json })
    }

    /// Scores the labels of texts, of each text the `top` best.
    pub async fn classify(
        &self,
        inputs: Vec<String>,
        truncate: bool,
        top: Option<usize>,
        admission: Admission,
    ) -> Result<(Vec<Item<Labels>>, Timing)> {
        let (outputs, timing) = self.logits(inputs, truncate, admission).await?;
        let labels = |(logits, tokens): (Vec<f32>, usize)| {
            let named = self.labels().iter().zip(self.probabilities(&logits)).zip(logits);
            let mut scores: Vec<_> =
                named.map(|((label, score), logit)| LabelScore { label: label.clone(), score, logit }).collect();
            scores.sort_by(|a, b| b.logit.total_cmp(&a.logit));
            scores.truncate(top.unwrap_or(usize::MAX));
            Labels { scores, tokens }
        };
        Ok((outputs.into_iter().map(|output| output.map(labels)).collect(), timing))
    }

    /// Computes the logits of texts, in the order of the labels, each text with its number of tokens.
    pub async fn logits(
        &self,
        inputs: Vec<String>,
        truncate: bool,
        admission: Admission,
    ) -> Result<(Vec<Item<(Vec<f32>, usize)>>, Timing)> {
        let (engine, deadline) = (self.engine.clone(), admission.deadline);
        let bytes = inputs.iter().map(String::len).sum();
        let encoded =
            off_thread(bytes, move || encode_each(&inputs, deadline, |text| engine.tokenizer().encode(text, truncate)))
                .await??;
        compute(&self.name, &self.batcher, encoded, admission).await
    }

    /// The labels in the order of the logits.
    pub fn labels(&self) -> &[String] {
        self.engine.labels()
    }

    /// Turns the logits of one text into scores from 0 to 1.
    pub fn probabilities(&self, logits: &[f32]) -> Vec<f32> {
        self.engine.probabilities(logits)
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> Tokenizer<'_> {
        Tokenizer {
            json: self.tokenizer_json.clone(),
            tokenizer: self.engine.tokenizer(),
            max_length: self.engine.max_length(),
            dimensions: 0,
        }
    }
}
