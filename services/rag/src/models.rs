//! The models rag asks, which predict runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tokenizers::Tokenizer;
use tonic::{Status, Streaming};
use verdict_api::predict::predict_service_client::PredictServiceClient;
use verdict_api::predict::{
    EmbedRequest, GenerateRequest, GenerateResponse, GetTokenizerRequest, ListServedModelsRequest, RerankRequest,
    ServedModelState, get_tokenizer_response,
};
use verdict_chassis::client::Channel;

use crate::config::ModelsConfig;
use crate::error::{Error, Result};
use crate::metrics;

/// Most texts of one call.
pub(crate) const EMBED_BATCH: usize = 64;
/// Calls of one request at once.
const CONCURRENT_BATCHES: usize = 2;
/// Largest tokenizer.json that is taken, in bytes.
const MAX_TOKENIZER_BYTES: usize = 64 << 20;
/// How often a busy predict is asked again before the caller is told.
const ATTEMPTS: u32 = 8;

/// The three models, by the names predict serves them under.
#[derive(Clone)]
pub(crate) struct Models {
    client: PredictServiceClient<Channel>,
    config: ModelsConfig,
    tokenizer: Arc<Mutex<Option<Known>>>,
}

/// The tokenizer of the embedder that was asked last, and that version's digest.
type Known = (String, Arc<Tokenizer>);

/// The embedder as it is served now.
#[derive(Clone)]
pub(crate) struct Embedder {
    pub(crate) digest: String,
    pub(crate) dimensions: u32,
    /// Most tokens of one input, the model's own included.
    pub(crate) max_length: usize,
    pub(crate) tokenizer: Arc<Tokenizer>,
}

/// Vectors of several texts.
pub(crate) struct Embedded {
    /// In the order of the texts; `Err` says why there is none.
    pub(crate) vectors: Vec<Result<Vec<f32>, String>>,
    pub(crate) digest: String,
}

impl Models {
    pub(crate) fn new(channel: Channel, config: ModelsConfig) -> Self {
        // A batch of 64 vectors of 4,096 dimensions is 1 MiB.
        let client = PredictServiceClient::new(channel).max_decoding_message_size(16 << 20);
        Self { client, config, tokenizer: Arc::default() }
    }

    /// Returns the embedder that is served now. Its tokenizer is fetched once per digest.
    pub(crate) async fn embedder(&self) -> Result<Embedder> {
        let request = GetTokenizerRequest { model: self.config.embedder.clone() };
        let mut parts = self.client.clone().get_tokenizer(request).await.map_err(Error::from_predict)?.into_inner();
        let broken = || Error::Internal(anyhow!("predict streams no tokenizer header first"));
        let first = parts.message().await.map_err(Error::from_predict)?.and_then(|first| first.part);
        let Some(get_tokenizer_response::Part::Header(header)) = first else { return Err(broken()) };
        let digest = header.served_by.ok_or_else(broken)?.digest;
        if header.dimensions == 0 {
            return Err(Error::ModelNotServed(format!("`{}` makes no embeddings", self.config.embedder)));
        }
        let known = self.tokenizer.lock().clone().filter(|(known, _)| *known == digest);
        let tokenizer = match known {
            Some((_, tokenizer)) => tokenizer,
            None => {
                let tokenizer = Arc::new(read_tokenizer(parts).await?);
                *self.tokenizer.lock() = Some((digest.clone(), tokenizer.clone()));
                tokenizer
            }
        };
        Ok(Embedder { digest, dimensions: header.dimensions, max_length: header.max_length as usize, tokenizer })
    }

    /// Embeds any number of texts, cut to what the model takes.
    pub(crate) async fn embed(&self, texts: Vec<String>) -> Result<Embedded> {
        let batches: Vec<Vec<String>> = texts.chunks(EMBED_BATCH).map(<[String]>::to_vec).collect();
        let answers: Vec<Embedded> = stream::iter(batches)
            .map(|batch| self.embed_batch(batch))
            .buffered(CONCURRENT_BATCHES)
            .try_collect()
            .await?;
        let digest = answers.first().map(|first| first.digest.clone()).unwrap_or_default();
        if answers.iter().any(|answer| answer.digest != digest) {
            let message = "the embedding model was replaced between two batches; try again".to_owned();
            return Err(Error::Busy { retry_after: Duration::from_millis(100), message });
        }
        Ok(Embedded { vectors: answers.into_iter().flat_map(|answer| answer.vectors).collect(), digest })
    }

    async fn embed_batch(&self, batch: Vec<String>) -> Result<Embedded> {
        let texts = batch.len();
        let request =
            EmbedRequest { model: self.config.embedder.clone(), inputs: batch, truncate: true, normalize: Some(true) };
        let call = || async { Ok(self.client.clone().embed(request.clone()).await?.into_inner()) };
        let response = patiently(call).await?;
        if response.embeddings.len() != texts {
            return Err(Error::Internal(anyhow!("predict answers another number of embeddings than texts")));
        }
        let digest = response.served_by.map(|served_by| served_by.digest).unwrap_or_default();
        let vector = |embedding: verdict_api::predict::Embedding| match embedding.error {
            None => Ok(embedding.values),
            Some(error) => Err(error.message),
        };
        Ok(Embedded { vectors: response.embeddings.into_iter().map(vector).collect(), digest })
    }

    /// Scores documents against a query; what can't be scored has `None`.
    pub(crate) async fn rerank(&self, query: &str, documents: Vec<String>) -> Result<Vec<Option<f32>>> {
        let mut logits = vec![None; documents.len()];
        let request =
            RerankRequest { model: self.config.reranker.clone(), query: query.to_owned(), documents, top_n: 0 };
        let response = self.client.clone().rerank(request).await.map_err(Error::from_predict)?.into_inner();
        for result in response.results {
            if let Some(logit) = logits.get_mut(result.index as usize) {
                *logit = Some(result.logit);
            }
        }
        Ok(logits)
    }

    /// Starts to write on after a prompt, greedily, until a stop string or `max_tokens`.
    pub(crate) async fn generate(
        &self,
        prompt: String,
        max_tokens: u32,
        stop: Vec<String>,
    ) -> Result<Streaming<GenerateResponse>> {
        let request = GenerateRequest {
            model: self.config.generator.clone(),
            prompt,
            max_tokens,
            stop,
            ..GenerateRequest::default()
        };
        Ok(self.client.clone().generate(request).await.map_err(Error::from_predict)?.into_inner())
    }

    /// Succeeds when predict serves all three models.
    pub(crate) async fn probe(&self) -> Result<()> {
        let mut request = tonic::Request::new(ListServedModelsRequest {});
        request.set_timeout(Duration::from_secs(2));
        let served = self.client.clone().list_served_models(request).await.map_err(Error::from_predict)?.into_inner();
        let is_serving = |name: &str| {
            served.models.iter().any(|model| {
                let by_version = model.reference.split('@').next().map(|base| format!("{base}/{}", model.version));
                model.state() == ServedModelState::Serving
                    && (model.reference == name || by_version.as_deref() == Some(name))
            })
        };
        let ModelsConfig { predict_url: _, embedder, reranker, generator } = &self.config;
        match [embedder, reranker, generator].into_iter().find(|name| !is_serving(name)) {
            None => Ok(()),
            Some(missing) => Err(Error::ModelNotServed(format!("`{missing}` is not warm"))),
        }
    }

    /// What the embedder is called, for messages.
    pub(crate) fn embedder_name(&self) -> &str {
        &self.config.embedder
    }
}

async fn read_tokenizer(mut parts: Streaming<verdict_api::predict::GetTokenizerResponse>) -> Result<Tokenizer> {
    let mut bytes = Vec::new();
    while let Some(part) = parts.next().await {
        if let Some(get_tokenizer_response::Part::Chunk(chunk)) = part.map_err(Error::from_predict)?.part {
            bytes.extend_from_slice(&chunk);
        }
        if bytes.len() > MAX_TOKENIZER_BYTES {
            return Err(Error::Internal(anyhow!("the tokenizer is larger than {MAX_TOKENIZER_BYTES} bytes")));
        }
    }
    let parse = move || {
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| anyhow!(error))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| anyhow!(error))?;
        Ok::<_, anyhow::Error>(tokenizer)
    };
    let parsed = tokio::task::spawn_blocking(parse).await.context("tokenizer")?;
    Ok(parsed.context("the embedder's tokenizer.json is not readable")?)
}

/// Asks again while predict says it is busy, as long as it asks to wait; then the caller is told.
async fn patiently<T, F: Future<Output = Result<T, Status>>>(mut call: impl FnMut() -> F) -> Result<T> {
    let mut attempt = 1;
    loop {
        match call().await.map_err(Error::from_predict) {
            Err(Error::Busy { retry_after, .. }) if attempt < ATTEMPTS => {
                tokio::time::sleep(retry_after.min(Duration::from_secs(2)) * attempt).await;
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

/// Measures a step into the metrics and hands its time back.
pub(crate) async fn timed<T>(step: &'static str, work: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    let outcome = work.await;
    let took = begun.elapsed();
    ::metrics::histogram!(metrics::STEP, "step" => step).record(took.as_secs_f64());
    (outcome, took)
}
