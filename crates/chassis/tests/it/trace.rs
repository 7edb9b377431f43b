//! One trace across services, as a collector sees it.

use std::time::Duration;

use tonic::Request;
use verdict_api::rag::answer_response::Event;
use verdict_chassis::server::ServerConfig;
use verdict_chassis::telemetry;
use verdict_testkit::otlp::{Receiver, Span};

use crate::probe::{Server, answer, reply, search};

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

// One test: telemetry is installed once per process.
#[tokio::test]
async fn one_trace_goes_through_every_hop_and_out_to_the_collector() {
    let collector = Receiver::start().await;
    telemetry::for_tests("probe", Some(&collector.endpoint()));
    let last = Server::start(ServerConfig::default()).await;
    let first = Server::with_next(ServerConfig::default(), Some(last.channel())).await;

    // The caller's own channel, so that its header arrives as it is.
    let raw = tonic::transport::Endpoint::from_shared(format!("http://{}", first.grpc)).unwrap();
    let mut client = verdict_api::rag::rag_service_client::RagServiceClient::new(raw.connect().await.unwrap());
    let mut request = Request::new(search("next:trace"));
    request.metadata_mut().insert("traceparent", CALLER.parse().unwrap());
    assert_eq!(reply(client.search(request).await.unwrap()), TRACE, "the last handler is in the caller's trace");

    let mut request = Request::new(answer("trace"));
    request.metadata_mut().insert("traceparent", CALLER.parse().unwrap());
    let mut stream = client.answer(request).await.unwrap().into_inner();
    stream.message().await.unwrap();
    let streamed = stream.message().await.unwrap().unwrap().event;
    assert!(matches!(streamed, Some(Event::Token(token)) if token.text == TRACE), "a stream is in the trace too");
    assert!(stream.message().await.unwrap().is_none());

    let spans = collector.wait_for(|spans| spans.len() >= 4, Duration::from_secs(20)).await;
    assert!(spans.iter().all(|span| span.trace_id == TRACE && span.service == "probe"), "{spans:#?}");
    let searches: Vec<&Span> = spans.iter().filter(|s| s.name == "verdict.rag.v1.RagService/Search").collect();
    assert_eq!(searches.len(), 3, "server, client, server: {spans:#?}");
    let entry = searches.iter().find(|span| span.parent_span_id.as_deref() == Some("00f067aa0ba902b7"));
    let entry = entry.expect("the entry is a child of the caller's span");
    let child_of = |parent: &Span| searches.iter().find(|s| s.parent_span_id.as_ref() == Some(&parent.span_id));
    let outgoing = child_of(entry).expect("the outgoing call is a child of the entry, though a spawned task made it");
    child_of(outgoing).expect("the last server's span is a child of the outgoing call");

    assert_eq!(telemetry::current_trace_id(), None, "outside of any call there is no trace");
}
