//! A service whose handlers do what the request's text says, served by the chassis like any other.

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use verdict_api::rag::rag_service_client::RagServiceClient;
use verdict_api::rag::rag_service_server::{RagService, RagServiceServer};
use verdict_api::rag::*;
use verdict_chassis::client::{self, Channel};
use verdict_chassis::health::Health;
use verdict_chassis::server::{self, Listeners, ServerConfig};
use verdict_chassis::{context, telemetry};

pub(crate) const SERVICE: &str = "verdict.rag.v1.RagService";

pub(crate) type Client = RagServiceClient<Channel>;

/// A running server; stopped when dropped.
pub(crate) struct Server {
    pub(crate) grpc: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) health: Health,
    pub(crate) stop: CancellationToken,
    serving: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Server {
    /// Starts one that is ready.
    pub(crate) async fn start(config: ServerConfig) -> Self {
        Self::with_next(config, None).await
    }

    /// Starts one that passes calls on to `next`.
    pub(crate) async fn with_next(config: ServerConfig, next: Option<Channel>) -> Self {
        let listeners = Listeners::loopback().await.unwrap();
        let (grpc, admin) = (listeners.grpc_addr(), listeners.admin_addr());
        let (health, stop) = (Health::new(&[SERVICE]), CancellationToken::new());
        health.set(SERVICE, true, "warm");
        let probe = RagServiceServer::new(Probe { next }).max_decoding_message_size(config.max_message_bytes);
        let (board, token) = (health.clone(), stop.clone());
        let serving = tokio::spawn(async move {
            let routes = Routes::new(probe);
            server::serve(&config, listeners, routes, board, verdict_api::FILE_DESCRIPTOR_SET, token).await
        });
        Self { grpc, admin, health, stop, serving: Some(serving) }
    }

    pub(crate) fn channel(&self) -> Channel {
        client::connect(&format!("http://{}", self.grpc)).unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        RagServiceClient::new(self.channel())
    }

    /// Waits until `serve` returns.
    pub(crate) async fn stopped(&mut self) {
        self.serving.take().unwrap().await.unwrap().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A `Search` request that asks the probe to do `what`.
pub(crate) fn search(what: &str) -> SearchRequest {
    SearchRequest { query: what.to_owned(), ..SearchRequest::default() }
}

/// An `Answer` request that asks the probe to do `what`.
pub(crate) fn answer(what: &str) -> AnswerRequest {
    AnswerRequest { question: what.to_owned(), ..AnswerRequest::default() }
}

/// What the probe replied.
pub(crate) fn reply(response: Response<SearchResponse>) -> String {
    response.into_inner().hits.remove(0).passage.unwrap().text
}

fn token(text: &str) -> AnswerResponse {
    AnswerResponse { event: Some(answer_response::Event::Token(AnswerToken { text: text.to_owned() })) }
}

struct Probe {
    next: Option<Channel>,
}

#[tonic::async_trait]
impl RagService for Probe {
    type IngestDocumentsStream = BoxStream<'static, Result<IngestDocumentsResponse, Status>>;
    type AnswerStream = BoxStream<'static, Result<AnswerResponse, Status>>;

    /// Reads the whole upload before it answers.
    async fn ingest_documents(
        &self,
        request: Request<Streaming<IngestDocumentsRequest>>,
    ) -> Result<Response<Self::IngestDocumentsStream>, Status> {
        let mut documents = request.into_inner();
        let mut chunks = 0;
        while documents.message().await?.is_some() {
            chunks += 1;
        }
        let result = IngestDocumentsResponse { chunks, ..IngestDocumentsResponse::default() };
        Ok(Response::new(futures::stream::iter([Ok(result)]).boxed()))
    }

    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<SearchResponse>, Status> {
        let own = context::of(&request);
        let query = request.into_inner().query;
        let text = match query.split_once(':').unwrap_or((&query, "")) {
            ("panic", _) => panic!("asked to"),
            ("sleep", millis) => {
                tokio::time::sleep(Duration::from_millis(millis.parse().unwrap())).await;
                "slept".to_owned()
            }
            ("remaining", _) => own.remaining().map_or_else(String::new, |left| left.as_millis().to_string()),
            ("request id", _) => own.request_id,
            ("trace", _) => telemetry::current_trace_id().unwrap_or_default(),
            ("next", rest) => {
                let mut next = RagServiceClient::new(self.next.clone().expect("a next server"));
                let rest = rest.to_owned();
                let passed_on = context::spawn(async move { next.search(search(&rest)).await });
                reply(passed_on.await.unwrap()?)
            }
            _ => query,
        };
        let passage = Passage { text, ..Passage::default() };
        let hit = Hit { passage: Some(passage), ..Hit::default() };
        Ok(Response::new(SearchResponse { hits: vec![hit], ..SearchResponse::default() }))
    }

    async fn answer(&self, request: Request<AnswerRequest>) -> Result<Response<Self::AnswerStream>, Status> {
        let question = request.into_inner().question;
        let first = futures::stream::iter([Ok(token("first"))]);
        let rest: Self::AnswerStream = match question.as_str() {
            "forever" => futures::stream::pending().boxed(),
            "panic" => futures::stream::once(async {
                // What is ready at once is sent as one piece; the first message is to be on its way before.
                tokio::time::sleep(Duration::from_millis(20)).await;
                panic!("asked to, in the stream")
            })
            .boxed(),
            "late head" => {
                tokio::time::sleep(Duration::from_secs(30)).await;
                futures::stream::empty().boxed()
            }
            "trace" => {
                futures::stream::once(async { Ok(token(&telemetry::current_trace_id().unwrap_or_default())) }).boxed()
            }
            "next" => {
                let next = self.next.clone().expect("a next server");
                futures::stream::once(async move {
                    let passed_on = RagServiceClient::new(next).search(search("remaining")).await?;
                    Ok(token(&reply(passed_on)))
                })
                .boxed()
            }
            _ => futures::stream::empty().boxed(),
        };
        Ok(Response::new(first.chain(rest).boxed()))
    }

    async fn delete_document(
        &self,
        _: Request<DeleteDocumentRequest>,
    ) -> Result<Response<DeleteDocumentResponse>, Status> {
        Err(Status::unimplemented("the probe deletes nothing"))
    }

    async fn get_collection(
        &self,
        _: Request<GetCollectionRequest>,
    ) -> Result<Response<GetCollectionResponse>, Status> {
        Err(Status::unimplemented("the probe collects nothing"))
    }
}
