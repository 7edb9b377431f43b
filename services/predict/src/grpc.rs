//! The two services: convert in, one call, convert out.

mod generate;
mod tabular;
mod text;

use std::sync::Arc;

use futures::stream::BoxStream;
use time::OffsetDateTime;
use tonic::{Request, Response, Status, Streaming, service::Routes};
use uuid::Uuid;
use verdict_api::predict::{
    ClassifyRequest, ClassifyResponse, DecideRequest, DecideResponse, EmbedRequest, EmbedResponse, EmbedSparseRequest,
    EmbedSparseResponse, ExplainRequest, ExplainResponse, GenerateRequest, GenerateResponse, GetDecisionRequest,
    GetDecisionResponse, GetTokenizerRequest, GetTokenizerResponse, ListDecisionsRequest, ListDecisionsResponse,
    ListServedModelsRequest, ListServedModelsResponse, PredictRequest, PredictResponse, RerankRequest, RerankResponse,
    StreamClassifyRequest, StreamClassifyResponse, StreamEmbedRequest, StreamEmbedResponse, StreamEmbedSparseRequest,
    StreamEmbedSparseResponse, StreamPredictRequest, StreamPredictResponse, StreamRerankRequest, StreamRerankResponse,
    TokenizeRequest, TokenizeResponse,
    decision_service_server::{self, DecisionServiceServer},
    predict_service_server::{self, PredictServiceServer},
};
use verdict_chassis::{context, telemetry};

use crate::{
    catalog::Catalog,
    convert,
    decide::{Decider, Moment},
};

/// Answers that come one after the other.
type Answers<T> = BoxStream<'static, Result<T, Status>>;

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
    type GenerateStream = Answers<GenerateResponse>;
    type GetTokenizerStream = Answers<GetTokenizerResponse>;
    type StreamEmbedStream = Answers<StreamEmbedResponse>;
    type StreamEmbedSparseStream = Answers<StreamEmbedSparseResponse>;
    type StreamRerankStream = Answers<StreamRerankResponse>;
    type StreamClassifyStream = Answers<StreamClassifyResponse>;
    type StreamPredictStream = Answers<StreamPredictResponse>;

    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        text::embed(&self.catalog, request).await
    }

    async fn rerank(&self, request: Request<RerankRequest>) -> Result<Response<RerankResponse>, Status> {
        text::rerank(&self.catalog, request).await
    }

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        generate::generate(&self.catalog, request).await
    }

    async fn predict(&self, request: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
        tabular::predict(&self.catalog, request).await
    }

    async fn tokenize(&self, request: Request<TokenizeRequest>) -> Result<Response<TokenizeResponse>, Status> {
        text::tokenize(&self.catalog, request).await
    }

    async fn get_tokenizer(
        &self,
        request: Request<GetTokenizerRequest>,
    ) -> Result<Response<Self::GetTokenizerStream>, Status> {
        text::get_tokenizer(&self.catalog, request)
    }

    async fn embed_sparse(
        &self,
        _request: Request<EmbedSparseRequest>,
    ) -> Result<Response<EmbedSparseResponse>, Status> {
        Err(Status::unimplemented("EmbedSparse"))
    }

    async fn classify(&self, _request: Request<ClassifyRequest>) -> Result<Response<ClassifyResponse>, Status> {
        Err(Status::unimplemented("Classify"))
    }

    async fn explain(&self, _request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        Err(Status::unimplemented("Explain"))
    }

    async fn stream_embed(
        &self,
        _request: Request<Streaming<StreamEmbedRequest>>,
    ) -> Result<Response<Self::StreamEmbedStream>, Status> {
        Err(Status::unimplemented("StreamEmbed"))
    }

    async fn stream_embed_sparse(
        &self,
        _request: Request<Streaming<StreamEmbedSparseRequest>>,
    ) -> Result<Response<Self::StreamEmbedSparseStream>, Status> {
        Err(Status::unimplemented("StreamEmbedSparse"))
    }

    async fn stream_rerank(
        &self,
        _request: Request<Streaming<StreamRerankRequest>>,
    ) -> Result<Response<Self::StreamRerankStream>, Status> {
        Err(Status::unimplemented("StreamRerank"))
    }

    async fn stream_classify(
        &self,
        _request: Request<Streaming<StreamClassifyRequest>>,
    ) -> Result<Response<Self::StreamClassifyStream>, Status> {
        Err(Status::unimplemented("StreamClassify"))
    }

    async fn stream_predict(
        &self,
        _request: Request<Streaming<StreamPredictRequest>>,
    ) -> Result<Response<Self::StreamPredictStream>, Status> {
        Err(Status::unimplemented("StreamPredict"))
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
