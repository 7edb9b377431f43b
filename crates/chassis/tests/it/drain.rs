//! The stop: what may finish, what is cut, and that nothing holds it beyond its deadline.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use verdict_chassis::server::ServerConfig;
use verdict_testkit::net;

use crate::probe::{Server, answer, reply, search};

fn grace(millis: u64) -> ServerConfig {
    ServerConfig { drain_grace: Duration::from_millis(millis), ..ServerConfig::default() }
}

async fn stop(server: &mut Server) -> Duration {
    let started = Instant::now();
    server.stop.cancel();
    server.stopped().await;
    started.elapsed()
}

#[tokio::test]
async fn an_open_stream_is_cut_after_the_grace() {
    let mut server = Server::start(grace(300)).await;
    let mut stream = server.client().answer(answer("forever")).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    let took = stop(&mut server).await;
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(3), "{took:?}");
    let end = tokio::time::timeout(Duration::from_secs(5), stream.message()).await.expect("the caller hears of it");
    assert!(end.is_err(), "a cut stream doesn't look like a finished one: {end:?}");
}

#[tokio::test]
async fn sockets_that_say_nothing_or_stop_in_the_handshake_do_not_hold_the_stop() {
    let mut server = Server::start(grace(5000)).await;
    let _idle = TcpStream::connect(server.grpc).await.unwrap();
    let took = stop(&mut server).await;
    assert!(took < Duration::from_secs(3), "an idle socket held the stop for {took:?}");

    let mut server = Server::start(grace(300)).await;
    let mut half = TcpStream::connect(server.grpc).await.unwrap();
    half.write_all(b"PRI * HT").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let took = stop(&mut server).await;
    assert!(took < Duration::from_secs(3), "half a preface held the stop for {took:?}");
}

#[tokio::test]
async fn an_idle_client_does_not_hold_the_stop() {
    let mut server = Server::start(grace(5000)).await;
    let mut client = server.client();
    client.search(search("hello")).await.unwrap();
    let took = stop(&mut server).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn a_call_in_flight_gets_its_answer() {
    let mut server = Server::start(grace(5000)).await;
    let mut client = server.client();
    let call = tokio::spawn(async move { client.search(search("sleep:400")).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    let took = stop(&mut server).await;
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(reply(call.await.unwrap().unwrap()), "slept");
}

#[tokio::test]
async fn stopping_says_not_serving_before_it_closes() {
    let delay = Duration::from_millis(500);
    let mut server = Server::start(ServerConfig { drain_delay: delay, ..ServerConfig::default() }).await;
    let mut client = HealthClient::new(server.channel());
    let mut watch = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.stop.cancel();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(watch.message().await.unwrap().is_none(), "the watch ends, so that it doesn't hold the drain");
    assert_eq!(net::get(server.admin, "/readyz").await.unwrap().0, 503);
    server.client().search(search("new connections are still served")).await.unwrap();
    server.stopped().await;
    assert!(TcpStream::connect(server.grpc).await.is_err(), "the port is closed");
    assert!(TcpStream::connect(server.admin).await.is_err(), "the admin port too");
}

#[tokio::test]
async fn an_old_connection_is_asked_to_reconnect_and_no_call_fails() {
    let age = Duration::from_millis(20);
    let server = Server::start(ServerConfig { max_connection_age: age, ..ServerConfig::default() }).await;
    // The channel reconnects without a word; a bare connection shows that it has to.
    let socket = TokioIo::new(TcpStream::connect(server.grpc).await.unwrap());
    let (_open, bare) = http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), socket).await.unwrap();
    let bare = tokio::spawn(tokio::time::timeout(Duration::from_secs(5), bare));
    let mut client = server.client();
    let until = Instant::now() + Duration::from_secs(2);
    // Without pauses, so that calls meet connections that are just going.
    while Instant::now() < until {
        client.search(search("hello")).await.unwrap();
    }
    bare.await.unwrap().expect("the server ends it").expect("and says so before");
}

/// Waits until the server closes the connection, and returns what it had to say before.
async fn closed(mut connection: TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(5), connection.read_to_end(&mut said)).await;
    end.expect("the server closes it").unwrap();
    said
}

#[tokio::test]
async fn a_connection_that_says_nothing_or_half_a_preface_is_closed() {
    let handshake = Duration::from_millis(100);
    let config = ServerConfig { handshake_timeout: handshake, max_connections: 2, ..ServerConfig::default() };
    let server = Server::start(config).await;
    let idle = TcpStream::connect(server.grpc).await.unwrap();
    let mut half = TcpStream::connect(server.grpc).await.unwrap();
    half.write_all(b"PRI * HT").await.unwrap();
    server.client().search(search("when they have left their seats")).await.unwrap();
    assert_eq!((closed(idle).await, closed(half).await), (Vec::new(), Vec::new()));
}

#[tokio::test]
async fn a_connection_that_speaks_no_http_2_is_closed_at_once() {
    let server = Server::start(ServerConfig::default()).await;
    let mut other = TcpStream::connect(server.grpc).await.unwrap();
    other.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    closed(other).await;
}

#[tokio::test]
async fn a_preface_that_comes_in_parts_is_as_good() {
    const NO_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let server = Server::start(ServerConfig::default()).await;
    let mut slow = TcpStream::connect(server.grpc).await.unwrap();
    for part in [&b"PRI * HT"[..], b"TP/2.0\r\n\r\nSM\r\n", &[&b"\r\n"[..], &NO_SETTINGS].concat()] {
        slow.write_all(part).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let mut frame = [0; 9];
    slow.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4, "the server answers with its settings: {frame:?}");
}
