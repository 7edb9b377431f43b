//! The services: convert in, one call, convert out.

mod generate;
mod inference;
mod lookup;
mod serving;
mod streams;
mod tabular;
mod text;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, stream::BoxStream};
use time::OffsetDateTime;
use tonic::{Request, Response, Status, Streaming, codec::CompressionEncoding, service::Routes};
use uuid::Uuid;
use verdict_api::{
    inference::grpc_inference_service_server::GrpcInferenceServiceServer,
    predict::{
        ClassifyRequest, ClassifyResponse, DecideRequest, DecideResponse, EmbedRequest, EmbedResponse,
        EmbedSparseRequest, EmbedSparseResponse, ExplainRequest, ExplainResponse, GenerateRequest, GenerateResponse,
        GetDecisionRequest, GetDecisionResponse, GetTokenizerRequest, GetTokenizerResponse, ListDecisionsRequest,
        ListDecisionsResponse, ListServedModelsRequest, ListServedModelsResponse, PredictRequest, PredictResponse,
        RerankRequest, RerankResponse, StreamClassifyRequest, StreamClassifyResponse, StreamEmbedRequest,
        StreamEmbedResponse, StreamEmbedSparseRequest, StreamEmbedSparseResponse, StreamPredictRequest,
        StreamPredictResponse, StreamRerankRequest, StreamRerankResponse, TokenizeRequest, TokenizeResponse,
        decision_service_server::{self, DecisionServiceServer},
        predict_service_server::{self, PredictServiceServer},
        serving_service_server::ServingServiceServer,
    },
};
use verdict_chassis::{server::ServerConfig, telemetry};

use self::inference::Inference;
use crate::{
    admission::Call,
    convert,
    decide::{Decider, Moment},
    follow::Follower,
    traffic::Traffic,
};

/// Answers that come one after the other.
type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// Makes the routes of all services, within the limits of the server.
pub fn routes(traffic: Traffic, follower: Arc<Follower>, decider: Arc<Decider>, config: &ServerConfig) -> Routes {
    let (limit, patience) = (config.max_message_bytes, config.request_timeout);
    let serving = Arc::new(serving::Service::new(follower, traffic.board.clone()));
    let predict = PredictServiceServer::new(Predict { traffic: traffic.clone(), patience });
    let inference = Inference { traffic: traffic.clone(), serving: serving.clone(), patience };
    // What is decompressed is bounded by the same limit.
    let inference = GrpcInferenceServiceServer::new(inference).accept_compressed(CompressionEncoding::Gzip);
    let decisions = DecisionServiceServer::new(Decisions { traffic, decider });
    Routes::new(predict.max_decoding_message_size(limit))
        .add_service(decisions.max_decoding_message_size(limit))
        .add_service(ServingServiceServer::from_arc(serving).max_decoding_message_size(limit))
        .add_service(inference.max_decoding_message_size(limit))
}

#[derive(Clone)]
struct Predict {
    traffic: Traffic,
    /// Most time of one request on a stream.
    patience: Duration,
}

struct Decisions {
    traffic: Traffic,
    decider: Arc<Decider>,
}

/// Has a call answered by a handler: by a route, where the request names one.
macro_rules! routed {
    ($service:ident, $how:ident, $request:ident, $handler:path) => {
        $service
            .traffic
            .$how($request, |catalog, request| async move { $handler(&catalog, request).await }.boxed())
            .await
    };
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
        routed!(self, call, request, text::embed)
    }

    async fn rerank(&self, request: Request<RerankRequest>) -> Result<Response<RerankResponse>, Status> {
        routed!(self, call, request, text::rerank)
    }

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        routed!(self, open, request, generate::generate)
    }

    async fn predict(&self, request: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
        routed!(self, call, request, tabular::predict)
    }

    async fn tokenize(&self, mut request: Request<TokenizeRequest>) -> Result<Response<TokenizeResponse>, Status> {
        self.traffic.resolve(&mut request)?;
        text::tokenize(&self.traffic.catalog, request).await
    }

    async fn get_tokenizer(
        &self,
        mut request: Request<GetTokenizerRequest>,
    ) -> Result<Response<Self::GetTokenizerStream>, Status> {
        self.traffic.resolve(&mut request)?;
        text::get_tokenizer(&self.traffic.catalog, request)
    }

    async fn embed_sparse(
        &self,
        request: Request<EmbedSparseRequest>,
    ) -> Result<Response<EmbedSparseResponse>, Status> {
        routed!(self, call, request, text::embed_sparse)
    }

    async fn classify(&self, request: Request<ClassifyRequest>) -> Result<Response<ClassifyResponse>, Status> {
        routed!(self, call, request, text::classify)
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        routed!(self, call, request, tabular::explain)
    }

    async fn stream_embed(
        &self,
        requests: Request<Streaming<StreamEmbedRequest>>,
    ) -> Result<Response<Self::StreamEmbedStream>, Status> {
        let predict = self.clone();
        Ok(streams::answers(requests, self.patience, move |request| {
            let predict = predict.clone();
            async move { predict.embed(request).await }
        }))
    }

    async fn stream_embed_sparse(
        &self,
        requests: Request<Streaming<StreamEmbedSparseRequest>>,
    ) -> Result<Response<Self::StreamEmbedSparseStream>, Status> {
        let predict = self.clone();
        Ok(streams::answers(requests, self.patience, move |request| {
            let predict = predict.clone();
            async move { predict.embed_sparse(request).await }
        }))
    }

    async fn stream_rerank(
        &self,
        requests: Request<Streaming<StreamRerankRequest>>,
    ) -> Result<Response<Self::StreamRerankStream>, Status> {
        let predict = self.clone();
        Ok(streams::answers(requests, self.patience, move |request| {
            let predict = predict.clone();
            async move { predict.rerank(request).await }
        }))
    }

    async fn stream_classify(
        &self,
        requests: Request<Streaming<StreamClassifyRequest>>,
    ) -> Result<Response<Self::StreamClassifyStream>, Status> {
        let predict = self.clone();
        Ok(streams::answers(requests, self.patience, move |request| {
            let predict = predict.clone();
            async move { predict.classify(request).await }
        }))
    }

    async fn stream_predict(
        &self,
        requests: Request<Streaming<StreamPredictRequest>>,
    ) -> Result<Response<Self::StreamPredictStream>, Status> {
        let predict = self.clone();
        Ok(streams::answers(requests, self.patience, move |request| {
            let predict = predict.clone();
            async move { predict.predict(request).await }
        }))
    }

    async fn list_served_models(
        &self,
        request: Request<ListServedModelsRequest>,
    ) -> Result<Response<ListServedModelsResponse>, Status> {
        let ListServedModelsRequest {} = request.into_inner();
        let models = self.traffic.catalog.slots().iter().map(|slot| convert::standing(slot.standing())).collect();
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
            call: Call::of(&request)?,
        };
        let case = convert::decision::case(request.into_inner())?;
        let decision = self.decider.decide(&self.traffic, case, moment).await?;
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
