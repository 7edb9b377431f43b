//! One call: its id, its deadline, its limits, its errors.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpStream;
use tonic::{Code, Request};
use verdict_chassis::server::ServerConfig;
use verdict_chassis::{client, status};

use crate::probe::{SERVICE, Server, answer, reply, search};

fn with_header(what: &str, name: &'static str, value: &'static str) -> Request<verdict_api::rag::SearchRequest> {
    let mut request = Request::new(search(what));
    request.metadata_mut().insert(name, value.parse().unwrap());
    request
}

#[tokio::test]
async fn the_request_id_is_echoed_and_reaches_the_handler() {
    let server = Server::start(ServerConfig::default()).await;
    let response = server.client().search(with_header("request id", "x-request-id", "mine-42")).await.unwrap();
    assert_eq!(response.metadata().get("x-request-id").unwrap(), "mine-42");
    assert_eq!(reply(response), "mine-42");
}

#[tokio::test]
async fn a_request_id_is_made_when_there_is_none_or_it_is_no_good() {
    let server = Server::start(ServerConfig::default()).await;
    let bad = "x".repeat(200).leak();
    for request in [Request::new(search("request id")), with_header("request id", "x-request-id", bad)] {
        let response = server.client().search(request).await.unwrap();
        let id = response.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
        assert_eq!(id.len(), 36, "a UUID: {id}");
        assert_eq!(reply(response), id);
    }
}

#[tokio::test]
async fn errors_carry_the_request_id_too() {
    let server = Server::start(ServerConfig::default()).await;
    let error = server.client().search(with_header("panic", "x-request-id", "mine-43")).await.unwrap_err();
    assert_eq!(error.metadata().get("x-request-id").unwrap(), "mine-43");
}

#[tokio::test]
async fn a_panic_is_an_internal_error_and_the_server_lives_on() {
    let server = Server::start(ServerConfig::default()).await;
    let mut client = server.client();
    for _ in 0..3 {
        let error = client.search(search("panic")).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Internal, "internal error"));
        assert_eq!(status::reason(&error).as_deref(), Some("INTERNAL"));
    }
    assert_eq!(reply(client.search(search("still there")).await.unwrap()), "still there");
}

#[tokio::test]
async fn what_is_over_the_concurrency_limit_is_refused_with_a_hint_when_to_retry() {
    let server = Server::start(ServerConfig { max_in_flight: 2, ..ServerConfig::default() }).await;
    let mut client = server.client();
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = client.answer(answer("forever")).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        open.push(stream);
    }
    let error = client.search(search("one too many")).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(status::reason(&error).as_deref(), Some("TOO_MANY_IN_FLIGHT"));
    assert!(status::retry_after(&error).unwrap() > Duration::ZERO);

    let mut health = tonic_health::pb::health_client::HealthClient::new(server.channel());
    let probed = health.check(tonic_health::pb::HealthCheckRequest::default()).await;
    probed.expect("probes are answered even then");

    drop(open);
    let until = Instant::now() + Duration::from_secs(10);
    while client.search(search("room again")).await.is_err() {
        assert!(Instant::now() < until, "a stream that was dropped still holds its place");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_caller_s_deadline_ends_the_call() {
    let server = Server::start(ServerConfig::default()).await;
    let started = Instant::now();
    let error = server.client().search(with_header("sleep:20000", "grpc-timeout", "200m")).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert_eq!(status::reason(&error).as_deref(), Some("DEADLINE_EXCEEDED"));
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn the_server_ends_a_call_whose_caller_does_not_count() {
    let server = Server::start(ServerConfig::default()).await;
    // Plain HTTP/2: gRPC clients run the timer themselves and would hide the server's.
    let socket = TokioIo::new(TcpStream::connect(server.grpc).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
    tokio::spawn(connection);
    let message = search("sleep:20000").encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let request = http::Request::post(format!("http://{}/{SERVICE}/Search", server.grpc))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "200m")
        .body(Full::new(Bytes::from([&[0], &length[..], &message].concat())))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.headers().get("grpc-status").unwrap(), "4");
}

#[tokio::test]
async fn the_server_s_own_timeout_ends_calls_that_set_none_or_more() {
    let config = ServerConfig { request_timeout: Duration::from_millis(200), ..ServerConfig::default() };
    let server = Server::start(config).await;
    for request in [Request::new(search("sleep:20000")), with_header("sleep:20000", "grpc-timeout", "1H")] {
        let error = server.client().search(request).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error:?}");
        assert_eq!(status::reason(&error).as_deref(), Some("DEADLINE_EXCEEDED"), "the server said it: {error:?}");
    }
}

#[tokio::test]
async fn a_malformed_deadline_is_named() {
    let server = Server::start(ServerConfig::default()).await;
    let raw = tonic::transport::Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
    let mut client = verdict_api::rag::rag_service_client::RagServiceClient::new(raw.connect().await.unwrap());
    let error = client.search(with_header("echo", "grpc-timeout", "soon")).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(status::fields(&error)[0].field, "grpc-timeout");
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_with_the_limit_in_the_message() {
    let server = Server::start(ServerConfig { max_message_bytes: 100_000, ..ServerConfig::default() }).await;
    let mut client = server.client();
    let error = client.search(search(&"x".repeat(5_000_000))).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error:?}");
    assert_eq!(status::reason(&error).as_deref(), Some("MESSAGE_TOO_LARGE"));
    assert!(error.message().contains("100000"), "{}", error.message());
    let fits = "x".repeat(99_000);
    assert_eq!(reply(client.search(search(&fits)).await.unwrap()), fits);
}

#[tokio::test]
async fn a_message_over_tonic_s_own_limit_passes_below_ours() {
    let server = Server::start(ServerConfig::default()).await;
    let big = "x".repeat(6 << 20);
    let mut client = server.client().max_decoding_message_size(64 << 20);
    assert_eq!(reply(client.search(search(&big)).await.unwrap()).len(), big.len());
}

#[tokio::test]
async fn the_deadline_and_the_request_id_travel_on_to_the_next_service() {
    let last = Server::start(ServerConfig::default()).await;
    let first = Server::with_next(ServerConfig::default(), Some(last.channel())).await;
    let mut request = with_header("next:remaining", "grpc-timeout", "5S");
    request.metadata_mut().insert("x-request-id", "mine-44".parse().unwrap());
    let left: u64 = reply(first.client().search(request).await.unwrap()).parse().unwrap();
    assert!((1..=5000).contains(&left), "{left} ms are left");
    let id = reply(first.client().search(with_header("next:request id", "x-request-id", "mine-45")).await.unwrap());
    assert_eq!(id, "mine-45");
}

#[tokio::test]
async fn an_unreachable_service_is_named() {
    let nobody = format!("http://127.0.0.1:{}", verdict_testkit::net::free_port());
    let channel = client::connect(&nobody).unwrap();
    let mut client = verdict_api::rag::rag_service_client::RagServiceClient::new(channel);
    let error = client.search(search("anyone")).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(status::reason(&error).as_deref(), Some("UNREACHABLE"));
    assert!(error.message().contains(&nobody), "{}", error.message());
}

#[tokio::test]
async fn a_url_that_cannot_be_used_is_refused_when_it_is_given() {
    for bad in ["", "localhost:50051", "ftp://x:1", "https://x:1", "http://"] {
        let error = client::connect(bad).unwrap_err().to_string();
        assert!(error.contains("http://host:port"), "{bad}: {error}");
    }
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let server = Server::start(ServerConfig::default()).await;
    let mut other = verdict_api::predict::predict_service_client::PredictServiceClient::new(server.channel());
    let error = other.embed(verdict_api::predict::EmbedRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
}
