//! Streams: how long they may last, and what a panic inside one does.

use std::time::{Duration, Instant};

use tonic::{Code, Request};
use verdict_api::rag::{AnswerResponse, IngestDocumentsRequest, answer_response::Event};
use verdict_chassis::server::ServerConfig;
use verdict_chassis::status;

use crate::probe::{Server, answer, search};

fn text(message: Option<AnswerResponse>) -> String {
    match message.and_then(|message| message.event) {
        Some(Event::Token(token)) => token.text,
        other => panic!("no token: {other:?}"),
    }
}

#[tokio::test]
async fn a_panic_inside_a_stream_ends_it_with_internal_and_the_server_lives_on() {
    let server = Server::start(ServerConfig::default()).await;
    let mut client = server.client();
    let mut stream = client.answer(answer("panic")).await.unwrap().into_inner();
    assert_eq!(text(stream.message().await.unwrap()), "first");
    let error = stream.message().await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Internal, "internal error"));
    client.search(search("still there")).await.unwrap();
}

#[tokio::test]
async fn a_stream_without_a_deadline_outlives_the_request_timeout() {
    let config = ServerConfig { request_timeout: Duration::from_millis(100), ..ServerConfig::default() };
    let server = Server::start(config).await;
    let mut stream = server.client().answer(answer("forever")).await.unwrap().into_inner();
    assert_eq!(text(stream.message().await.unwrap()), "first");
    let waited = tokio::time::timeout(Duration::from_millis(600), stream.message()).await;
    assert!(waited.is_err(), "the stream ended: {waited:?}");
}

#[tokio::test]
async fn a_stream_s_head_must_come_within_the_request_timeout() {
    let config = ServerConfig { request_timeout: Duration::from_millis(100), ..ServerConfig::default() };
    let server = Server::start(config).await;
    let error = server.client().answer(answer("late head")).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_caller_s_deadline_ends_the_whole_stream() {
    let server = Server::start(ServerConfig::default()).await;
    let mut request = Request::new(answer("forever"));
    request.set_timeout(Duration::from_millis(300));
    let started = Instant::now();
    let mut stream = server.client().answer(request).await.unwrap().into_inner();
    assert_eq!(text(stream.message().await.unwrap()), "first");
    let error = stream.message().await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert_eq!(status::reason(&error).as_deref(), Some("DEADLINE_EXCEEDED"));
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn an_upload_may_take_longer_than_the_request_timeout_while_it_moves() {
    let config = ServerConfig { request_timeout: Duration::from_millis(400), ..ServerConfig::default() };
    let server = Server::start(config).await;
    let documents = futures::stream::unfold(0, |sent| async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        (sent < 10).then(|| (IngestDocumentsRequest::default(), sent + 1))
    });
    let mut results = server.client().ingest_documents(documents).await.unwrap().into_inner();
    assert_eq!(results.message().await.unwrap().unwrap().chunks, 10);
}

#[tokio::test]
async fn an_upload_that_stands_still_is_ended() {
    let config = ServerConfig { request_timeout: Duration::from_millis(200), ..ServerConfig::default() };
    let server = Server::start(config).await;
    let error = server.client().ingest_documents(futures::stream::pending()).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(error.message().contains("no progress"), "{}", error.message());
}

#[tokio::test]
async fn a_call_made_while_streaming_keeps_the_deadline_of_the_stream() {
    let last = Server::start(ServerConfig::default()).await;
    let first = Server::with_next(ServerConfig::default(), Some(last.channel())).await;
    let mut request = Request::new(answer("next"));
    request.set_timeout(Duration::from_secs(5));
    let mut stream = first.client().answer(request).await.unwrap().into_inner();
    assert_eq!(text(stream.message().await.unwrap()), "first");
    let left: u64 = text(stream.message().await.unwrap()).parse().unwrap();
    assert!((1..=5000).contains(&left), "{left} ms are left");
}
