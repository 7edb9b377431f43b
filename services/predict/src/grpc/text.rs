//! Calls about texts.

use futures::stream::{self, StreamExt};
use tonic::{Request, Response, Status};
use verdict_api::predict::{
    ClassifyRequest, ClassifyResponse, EmbedRequest, EmbedResponse, EmbedSparseRequest, EmbedSparseResponse,
    GetTokenizerRequest, GetTokenizerResponse, RerankRequest, RerankResponse, TokenizeRequest, TokenizeResponse,
    TokenizerHeader, get_tokenizer_response::Part,
};
use verdict_chassis::context;

use super::Answers;
use crate::{
    admission::Admission,
    catalog::Catalog,
    convert,
    error::Error,
    text::{self, Tokenizer},
    timing::Timing,
};

/// Bytes of tokenizer.json in one message.
const CHUNK: usize = 256 << 10;

pub(super) async fn embed(
    catalog: &Catalog,
    request: Request<EmbedRequest>,
) -> Result<Response<EmbedResponse>, Status> {
    let admission = Admission::of(&request)?;
    let call = convert::text::embed(request.into_inner())?;
    let found = catalog.find(&call.model)?;
    let embedding = found.model.embedding()?;
    let (vectors, timing) = embedding.embed(call.inputs, call.truncate, call.normalize, admission).await?;
    let embeddings = vectors.into_iter().map(convert::text::embedding).collect();
    Ok(Response::new(EmbedResponse { embeddings, served_by: Some(convert::served_by(&found, timing)) }))
}

pub(super) async fn embed_sparse(
    catalog: &Catalog,
    request: Request<EmbedSparseRequest>,
) -> Result<Response<EmbedSparseResponse>, Status> {
    let admission = Admission::of(&request)?;
    let call = convert::text::embed_sparse(request.into_inner())?;
    let found = catalog.find(&call.model)?;
    let embedding = found.model.sparse_embedding()?;
    let (vectors, timing) = embedding.embed(call.inputs, call.truncate, call.top, admission).await?;
    let embeddings = vectors.into_iter().map(convert::text::sparse_embedding).collect();
    Ok(Response::new(EmbedSparseResponse { embeddings, served_by: Some(convert::served_by(&found, timing)) }))
}

pub(super) async fn classify(
    catalog: &Catalog,
    request: Request<ClassifyRequest>,
) -> Result<Response<ClassifyResponse>, Status> {
    let admission = Admission::of(&request)?;
    let call = convert::text::classify(request.into_inner())?;
    let found = catalog.find(&call.model)?;
    let classification = found.model.classification()?;
    let (labels, timing) = classification.classify(call.inputs, call.truncate, call.top, admission).await?;
    let classifications = labels.into_iter().map(convert::text::classification).collect();
    Ok(Response::new(ClassifyResponse { classifications, served_by: Some(convert::served_by(&found, timing)) }))
}

pub(super) async fn rerank(
    catalog: &Catalog,
    request: Request<RerankRequest>,
) -> Result<Response<RerankResponse>, Status> {
    let admission = Admission::of(&request)?;
    let call = convert::text::rerank(request.into_inner())?;
    let found = catalog.find(&call.model)?;
    let (scores, timing) = found.model.reranking()?.score(call.query, call.documents, admission).await?;
    let (results, failed) = convert::text::ranked(scores, call.top_n);
    Ok(Response::new(RerankResponse { results, failed, served_by: Some(convert::served_by(&found, timing)) }))
}

pub(super) async fn tokenize(
    catalog: &Catalog,
    request: Request<TokenizeRequest>,
) -> Result<Response<TokenizeResponse>, Status> {
    let deadline = context::of(&request).deadline;
    let (model, inputs, special) = convert::text::tokenize(request.into_inner())?;
    let found = catalog.find(&model)?;
    let bytes = inputs.iter().map(String::len).sum();
    let loaded = found.model.clone();
    let tokens = text::off_thread(bytes, move || {
        let one = |text: &String| {
            text::before(deadline, || loaded.tokens(text, special)).flatten().map(convert::text::tokens)
        };
        inputs.iter().map(one).collect::<Result<_, Error>>()
    });
    let tokens = tokens.await??;
    let served_by = Some(convert::served_by(&found, Timing::default()));
    Ok(Response::new(TokenizeResponse { tokens, served_by }))
}

pub(super) fn get_tokenizer(
    catalog: &Catalog,
    request: Request<GetTokenizerRequest>,
) -> Result<Response<Answers<GetTokenizerResponse>>, Status> {
    let GetTokenizerRequest { model } = request.into_inner();
    let found = catalog.find(&model)?;
    let Tokenizer { json, tokenizer: _, max_length, dimensions } = found.model.tokenizer()?;
    let header = Part::Header(TokenizerHeader {
        served_by: Some(convert::served_by(&found, Timing::default())),
        max_length: convert::number(max_length),
        dimensions: convert::number(dimensions),
    });
    let chunks = (0..json.len()).step_by(CHUNK).map(move |start| json.slice(start..json.len().min(start + CHUNK)));
    let parts = std::iter::once(header).chain(chunks.map(|chunk| Part::Chunk(chunk.to_vec())));
    let messages = parts.map(|part| Ok(GetTokenizerResponse { part: Some(part) }));
    Ok(Response::new(stream::iter(messages).boxed()))
}
