//! The two services: convert in, one call, convert out.

use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt};
use time::OffsetDateTime;
use tonic::{Request, Response, Status, service::Routes};
use uuid::Uuid;
use verdict_api::predict::{
    DecideRequest, DecideResponse, EmbedRequest, EmbedResponse, GenerateRequest, GenerateResponse, GetDecisionRequest,
    GetDecisionResponse, GetTokenizerRequest, GetTokenizerResponse, ListDecisionsRequest, ListDecisionsResponse,
    ListServedModelsRequest, ListServedModelsResponse, PredictRequest, PredictResponse, RerankRequest, RerankResponse,
    TokenizeRequest, TokenizeResponse, TokenizerHeader,
    decision_service_server::{self, DecisionServiceServer},
    get_tokenizer_response::Part,
    predict_service_server::{self, PredictServiceServer},
};
use verdict_chassis::{context, telemetry};
use verdict_inference::trees::TreeEnsemble;

use crate::{
    catalog::Catalog,
    convert,
    decide::{Decider, Moment},
    error::Error,
    generate::Event,
    model::Engine,
    release::Task,
    text::{self, Tokenizer},
    timing::Timing,
};

/// Bytes of tokenizer.json in one message.
const CHUNK: usize = 256 << 10;

/// Makes the routes of both services; messages in are at most `limit` bytes.
pub fn routes(catalog: Arc<Catalog>, decider: Arc<Decider>, limit: usize) -> Routes {
    let predict = PredictServiceServer::new(Predict { catalog: catalog.clone() });
    let decisions = DecisionServiceServer::new(Decisions { catalog, decider });
    Routes::new(predict.max_decoding_message_size(limit)).add_service(decisions.max_decoding_message_size(limit))
}

struct Predict {
    catalog: Arc<Catalog>,
}

struct Decisions {
    catalog: Arc<Catalog>,
    decider: Arc<Decider>,
}

#[tonic::async_trait]
impl predict_service_server::PredictService for Predict {
    type GenerateStream = BoxStream<'static, Result<GenerateResponse, Status>>;
    type GetTokenizerStream = BoxStream<'static, Result<GetTokenizerResponse, Status>>;

    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        let deadline = context::of(&request).deadline;
        let call = convert::embed(request.into_inner())?;
        let found = self.catalog.find(&call.model)?;
        let embedding = found.model.embedding()?;
        let (vectors, timing) = embedding.embed(call.inputs, call.truncate, call.normalize, deadline).await?;
        let embeddings = vectors.into_iter().map(convert::embedding).collect();
        Ok(Response::new(EmbedResponse { embeddings, served_by: Some(convert::served_by(&found, timing)) }))
    }

    async fn rerank(&self, request: Request<RerankRequest>) -> Result<Response<RerankResponse>, Status> {
        let deadline = context::of(&request).deadline;
        let call = convert::rerank(request.into_inner())?;
        let found = self.catalog.find(&call.model)?;
        let (scores, timing) = found.model.reranking()?.score(call.query, call.documents, deadline).await?;
        let (results, failed) = convert::ranked(scores, call.top_n);
        Ok(Response::new(RerankResponse { results, failed, served_by: Some(convert::served_by(&found, timing)) }))
    }

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        let deadline = context::of(&request).deadline;
        let call = convert::generate(request.into_inner(), rand::random())?;
        let found = self.catalog.find(&call.model)?;
        let running = found.model.generation()?.generate(call.prompt, call.sampling, deadline).await?;
        let events = stream::unfold((running, found), |(mut running, found)| async move {
            let event = running.next().await?.map_err(Status::from);
            let message = event.map(|event| match event {
                Event::Step(step) => convert::generated(step),
                Event::Finish(finish) => convert::finished(finish, &found),
            });
            Some((message, (running, found)))
        });
        Ok(Response::new(events.boxed()))
    }

    async fn predict(&self, request: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
        let deadline = context::of(&request).deadline;
        let PredictRequest { model, input } = request.into_inner();
        let found = self.catalog.find(&model)?;
        let tabular = found.model.tabular()?;
        let (bytes, loaded) = (convert::cell_bytes(input.as_ref()), found.model.clone());
        let cells = text::off_thread(bytes, move || convert::cells(input, &loaded.tabular()?.schema)).await??;
        let (margins, timing) = tabular.margins(cells, deadline).await?;
        let probabilities = margins.iter().map(|margin| TreeEnsemble::probability(*margin)).collect();
        let served_by = Some(convert::served_by(&found, timing));
        Ok(Response::new(PredictResponse { probabilities, margins, served_by }))
    }

    async fn tokenize(&self, request: Request<TokenizeRequest>) -> Result<Response<TokenizeResponse>, Status> {
        let deadline = context::of(&request).deadline;
        let (model, inputs, special) = convert::tokenize(request.into_inner())?;
        let found = self.catalog.find(&model)?;
        let bytes = inputs.iter().map(String::len).sum();
        let loaded = found.model.clone();
        let split = move |text: &String| match &loaded.engine {
            Engine::Embedding(model) => Ok(model.tokenizer().tokenizer.tokens(text, special)),
            Engine::Reranking(model) => Ok(model.tokenizer().tokenizer.tokens(text, special)),
            Engine::Generation(model) => Ok(model.tokens(text, special)),
            Engine::Tabular(_) => loaded.wrong(Task::TextEmbedding),
        };
        let tokens = text::off_thread(bytes, move || {
            let one = |text| text::before(deadline, || split(text)).flatten().map(convert::tokens);
            inputs.iter().map(one).collect::<Result<_, Error>>()
        });
        let tokens = tokens.await??;
        let served_by = Some(convert::served_by(&found, Timing::default()));
        Ok(Response::new(TokenizeResponse { tokens, served_by }))
    }

    async fn get_tokenizer(
        &self,
        request: Request<GetTokenizerRequest>,
    ) -> Result<Response<Self::GetTokenizerStream>, Status> {
        let GetTokenizerRequest { model } = request.into_inner();
        let found = self.catalog.find(&model)?;
        let Tokenizer { json, tokenizer: _, max_length, dimensions } = match &found.model.engine {
            Engine::Embedding(model) => model.tokenizer(),
            Engine::Reranking(model) => model.tokenizer(),
            // A generator's tokenizer is inside its weights; it has no tokenizer.json to hand out.
            Engine::Generation(_) | Engine::Tabular(_) => found.model.wrong(Task::TextEmbedding)?,
        };
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

    async fn list_served_models(
        &self,
        request: Request<ListServedModelsRequest>,
    ) -> Result<Response<ListServedModelsResponse>, Status> {
        let ListServedModelsRequest {} = request.into_inner();
        let models = self.catalog.slots().iter().map(|slot| convert::standing(slot.standing())).collect();
        Ok(Response::new(ListServedModelsResponse { models }))
    }
}

#[tonic::async_trait]
impl decision_service_server::DecisionService for Decisions {
    async fn decide(&self, request: Request<DecideRequest>) -> Result<Response<DecideResponse>, Status> {
        let moment = Moment {
            id: Uuid::now_v7(),
            now: OffsetDateTime::now_utc(),
            trace_id: telemetry::current_trace_id().unwrap_or_default(),
            deadline: context::of(&request).deadline,
        };
        let case = convert::decision::case(request.into_inner())?;
        let decision = self.decider.decide(&self.catalog, case, moment).await?;
        Ok(Response::new(DecideResponse { decision: Some(convert::decision::decision(decision)) }))
    }

    async fn get_decision(
        &self,
        request: Request<GetDecisionRequest>,
    ) -> Result<Response<GetDecisionResponse>, Status> {
        let GetDecisionRequest { decision_id } = request.into_inner();
        let id = convert::decision::id("decision_id", &decision_id)?;
        let decision = self.decider.find(id).await?;
        Ok(Response::new(GetDecisionResponse { decision: Some(convert::decision::decision(decision)) }))
    }

    async fn list_decisions(
        &self,
        request: Request<ListDecisionsRequest>,
    ) -> Result<Response<ListDecisionsResponse>, Status> {
        let page = convert::decision::page(request.into_inner())?;
        let decisions = self.decider.list(page.model.as_deref(), page.before, page.size + 1).await?;
        Ok(Response::new(convert::decision::listed(decisions, page.size)))
    }
}
