//! Text models: texts to tokens, tokens through the queue, one answer or one error per text.

mod classify;
mod sparse;

use std::{sync::Arc, time::Instant};

use anyhow::Context;
use bytes::Bytes;
use sha2::Sha256;
use tonic::Code;
use verdict_inference::{
    ItemError,
    bert::{Embedder, Reranker, normalize},
    text::{Encoded, TextTokenizer},
};

pub use self::{
    classify::{Classification, LabelScore, Labels},
    sparse::{SparseEmbedding, SparseVector},
};
use crate::{
    admission::Admission,
    answers::{Scope, put_numbers},
    batch::{Batcher, Limits},
    error::{Error, Result},
    metrics::ModelMeters,
    timing::{Timing, gather},
};

/// Most bytes of one text.
pub const MAX_TEXT: usize = 1 << 20;
/// More bytes than this are worked on by a thread that may block.
const INLINE: usize = 16 << 10;

/// Why one of several inputs has no answer.
#[derive(Clone, Debug)]
pub struct ItemFailure {
    pub code: Code,
    pub reason: &'static str,
    pub message: String,
}

/// The answer to one input.
pub type Item<T> = std::result::Result<T, ItemFailure>;

/// The vector of a text.
#[derive(Debug)]
pub struct Vector {
    pub values: Vec<f32>,
    pub tokens: usize,
}

/// What the reranker says of a document.
#[derive(Debug)]
pub struct Score {
    pub logit: f32,
    pub tokens: usize,
}

/// An embedding model with its queue.
pub struct Embedding {
    name: String,
    engine: Arc<Embedder>,
    batcher: Batcher<Encoded, Vec<f32>>,
    tokenizer_json: Bytes,
}

/// A reranking model with its queue.
pub struct Reranking {
    name: String,
    engine: Arc<Reranker>,
    batcher: Batcher<Encoded, f32>,
    tokenizer_json: Bytes,
}

/// Whose tokenizer a text model brings along.
pub struct Tokenizer<'a> {
    pub json: Bytes,
    pub tokenizer: &'a TextTokenizer,
    pub max_length: usize,
    /// 0 where the model makes no vectors.
    pub dimensions: usize,
}

impl Embedding {
    /// Warms the engine up and starts its workers.
    pub fn start(
        name: String,
        engine: Embedder,
        json: Bytes,
        limits: Limits,
        meters: ModelMeters,
        scope: Option<Scope>,
    ) -> anyhow::Result<Self> {
        let engine = Arc::new(engine);
        let warm = engine.tokenizer().encode("warm", true).context("warm-up")?;
        let vectors = engine.embed(&[&warm]);
        anyhow::ensure!(
            vectors.len() == 1
                && vectors[0].len() == engine.dimensions()
                && vectors[0].iter().all(|value| value.is_finite()),
            "warm-up: the model does not make finite vectors of {} numbers",
            engine.dimensions()
        );
        let worker = engine.clone();
        let answers = scope.map(|scope| scope.of(written));
        let batcher = Batcher::start_cached(limits, meters, answers, move |batch: &[&Encoded]| worker.embed(batch))?;
        Ok(Self { name, engine, batcher, tokenizer_json: json })
    }

    /// Turns texts into vectors, scaled to length 1 where `normalized` or, when that is `None`, the model says so.
    pub async fn embed(
        &self,
        inputs: Vec<String>,
        truncate: bool,
        normalized: Option<bool>,
        admission: Admission,
    ) -> Result<(Vec<Item<Vector>>, Timing)> {
        let (engine, deadline) = (self.engine.clone(), admission.deadline);
        let bytes = inputs.iter().map(String::len).sum();
        let encoded =
            off_thread(bytes, move || encode_each(&inputs, deadline, |text| engine.tokenizer().encode(text, truncate)))
                .await??;
        let (outputs, timing) = compute(&self.name, &self.batcher, encoded, admission).await?;
        let scale = normalized.unwrap_or(self.engine.normalizes());
        let vector = |(mut values, tokens): (Vec<f32>, usize)| {
            if scale {
                normalize(&mut values);
            }
            Vector { values, tokens }
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

impl Reranking {
    /// Warms the engine up and starts its workers.
    pub fn start(
        name: String,
        engine: Reranker,
        json: Bytes,
        limits: Limits,
        meters: ModelMeters,
        scope: Option<Scope>,
    ) -> anyhow::Result<Self> {
        let engine = Arc::new(engine);
        let warm = engine.tokenizer().encode_pair("warm", "up").context("warm-up")?;
        let logits = engine.score(&[&warm]);
        anyhow::ensure!(logits.len() == 1 && logits[0].is_finite(), "warm-up: the model does not make a finite logit");
        let worker = engine.clone();
        let answers = scope.map(|scope| scope.of(written));
        let batcher = Batcher::start_cached(limits, meters, answers, move |batch: &[&Encoded]| worker.score(batch))?;
        Ok(Self { name, engine, batcher, tokenizer_json: json })
    }

    /// Scores each document against the query, in the order of the documents.
    pub async fn score(
        &self,
        query: String,
        documents: Vec<String>,
        admission: Admission,
    ) -> Result<(Vec<Item<Score>>, Timing)> {
        let (engine, deadline) = (self.engine.clone(), admission.deadline);
        let bytes = documents.iter().map(|document| document.len() + query.len()).sum();
        let encoded = off_thread(bytes, move || {
            encode_each(&documents, deadline, |text| engine.tokenizer().encode_pair(&query, text))
        })
        .await??;
        let (outputs, timing) = compute(&self.name, &self.batcher, encoded, admission).await?;
        let score = |(logit, tokens)| Score { logit, tokens };
        Ok((outputs.into_iter().map(|output| output.map(score)).collect(), timing))
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

impl From<ItemError> for ItemFailure {
    fn from(error: ItemError) -> Self {
        let reason = match error {
            ItemError::TooLong { .. } => "TOO_LONG",
            ItemError::Empty => "EMPTY_INPUT",
            ItemError::Invalid(_) => "INVALID_INPUT",
        };
        Self { code: Code::InvalidArgument, reason, message: error.to_string() }
    }
}

/// Runs `work` where it is: at once when there are few bytes to work on, else on a thread that may block.
pub(crate) async fn off_thread<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    if bytes <= INLINE {
        return Ok(work());
    }
    Ok(tokio::task::spawn_blocking(work).await.context("work on a request panicked")?)
}

/// Does `work` unless the deadline has passed.
pub(crate) fn before<T>(deadline: Option<Instant>, work: impl FnOnce() -> T) -> Result<T> {
    match deadline {
        Some(deadline) if deadline <= Instant::now() => Err(Error::Expired),
        Some(_) | None => Ok(work()),
    }
}

/// Writes down what the model sees of a text.
fn written(encoded: &Encoded, hash: &mut Sha256) {
    put_numbers(hash, encoded.ids.iter().map(|id| id.to_le_bytes()));
    put_numbers(hash, encoded.type_ids.iter().map(|id| id.to_le_bytes()));
}

fn encode_each(
    texts: &[String],
    deadline: Option<Instant>,
    encode: impl Fn(&str) -> std::result::Result<Encoded, ItemError>,
) -> Result<Vec<Item<Encoded>>> {
    let one = |text: &String| {
        if text.len() > MAX_TEXT {
            let message = format!("text has {} bytes, at most {MAX_TEXT} are taken", text.len());
            return Err(ItemFailure { code: Code::InvalidArgument, reason: "TOO_LONG", message });
        }
        encode(text).map_err(ItemFailure::from)
    };
    texts.iter().map(|text| before(deadline, || one(text))).collect()
}

/// Puts what could be encoded through the queue; answers in order, each with its number of tokens.
async fn compute<O: Send + 'static>(
    model: &str,
    batcher: &Batcher<Encoded, O>,
    encoded: Vec<Item<Encoded>>,
    admission: Admission,
) -> Result<(Vec<Item<(O, usize)>>, Timing)> {
    let mut jobs = Vec::with_capacity(encoded.len());
    let mut places = Vec::with_capacity(encoded.len());
    for item in encoded {
        places.push(item.map(|encoded| {
            let tokens = encoded.ids.len();
            jobs.push((encoded, tokens));
            tokens
        }));
    }
    let accepted = Instant::now();
    let tickets = batcher.submit(jobs, admission).map_err(|refused| Error::refused(model, refused))?;
    let (outputs, timing) = gather(accepted, tickets).await?;
    let timing = Timing { tokens: places.iter().flatten().sum(), ..timing };
    let mut outputs = outputs.into_iter();
    let items = places.into_iter().map(|place| {
        let tokens = place?;
        let panicked = || ItemFailure {
            code: Code::Internal,
            reason: "ENGINE_PANIC",
            message: "the engine failed on this input".to_owned(),
        };
        Ok((outputs.next().flatten().ok_or_else(panicked)?, tokens))
    });
    Ok((items.collect(), timing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_tokenized_after_the_deadline() {
        let encode = |text: &str| panic!("{text} is tokenized");
        let refused = encode_each(&["a".to_owned(), "b".to_owned()], Some(Instant::now()), encode).unwrap_err();
        assert!(matches!(refused, Error::Expired));
    }
}
