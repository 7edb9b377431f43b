//! The least a gRPC server can do: tonic alone, one method, a constant answer. What `overhead` measures beside predict.

use std::{
    convert::Infallible,
    net::SocketAddr,
    task::{Context, Poll},
};

use anyhow::Result;
use futures::future::{BoxFuture, Ready, ready};
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, UnaryService},
    transport::Server,
};
use tonic_prost::ProstCodec;
use tower::Service;
use verdict_api::predict::{PredictRequest, PredictResponse, ServedBy};

/// Serves on a free port of loopback until it is killed; says which on standard output.
pub(crate) async fn serve() -> Result<()> {
    let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    println!("{}", listener.local_addr()?);
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder().add_service(Echo).serve_with_incoming(incoming).await?;
    Ok(())
}

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "verdict.predict.v1.PredictService";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let codec: ProstCodec<PredictResponse, PredictRequest> = ProstCodec::default();
        Box::pin(async move { Ok(Grpc::new(codec).unary(Answer, request).await) })
    }
}

struct Answer;

impl UnaryService<PredictRequest> for Answer {
    type Response = PredictResponse;
    type Future = Ready<Result<Response<PredictResponse>, Status>>;

    /// An answer as long as predict's.
    fn call(&mut self, _: Request<PredictRequest>) -> Self::Future {
        let served_by = ServedBy {
            model: "one-tree".to_owned(),
            version: 1,
            alias: "champion".to_owned(),
            digest: format!("sha256:{:064}", 7),
            compute_ms: 0.001,
            batch_size: 1,
            ..ServedBy::default()
        };
        ready(Ok(Response::new(PredictResponse {
            probabilities: vec![0.5],
            margins: vec![0.25],
            outputs: 1,
            served_by: Some(served_by),
            ..PredictResponse::default()
        })))
    }
}
