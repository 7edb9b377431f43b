//! Health, reflection and the admin side.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::{v1, v1alpha};
use verdict_chassis::probe::ask as probe_of;
use verdict_chassis::server::{Listeners, ServerConfig};
use verdict_chassis::{status, telemetry};
use verdict_testkit::net;

use crate::probe::{SERVICE, Server, answer, search};

fn health_of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn health_follows_the_board() {
    let server = Server::start(ServerConfig::default()).await;
    let mut client = HealthClient::new(server.channel());
    for service in [SERVICE, ""] {
        let response = client.check(health_of(service)).await.unwrap().into_inner();
        assert_eq!(response.status(), ServingStatus::Serving, "`{service}`");
    }
    let mut watch = client.watch(health_of(SERVICE)).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.health.set(SERVICE, false, "the model went away");
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(client.check(health_of("")).await.unwrap().into_inner().status(), ServingStatus::NotServing);

    let error = client.check(health_of("no.such.Service")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert_eq!(status::reason(&error).as_deref(), Some("SERVICE_UNKNOWN"));
}

#[tokio::test]
async fn a_probe_succeeds_only_while_the_service_serves() {
    let server = Server::start(ServerConfig::default()).await;
    probe_of(server.grpc, SERVICE).await.unwrap();
    // What a container listens on is every address; it asks itself at loopback.
    let everywhere = SocketAddr::from(([0, 0, 0, 0], server.grpc.port()));
    probe_of(everywhere, SERVICE).await.unwrap();
    server.health.set(SERVICE, false, "the model went away");
    let error = probe_of(server.grpc, SERVICE).await.unwrap_err().to_string();
    assert!(error.contains(SERVICE) && error.contains("NOT_SERVING"), "{error}");
    assert!(probe_of(server.grpc, "no.such.Service").await.is_err());
    let nobody = SocketAddr::from(([127, 0, 0, 1], net::free_port()));
    let error = probe_of(nobody, SERVICE).await.unwrap_err().to_string();
    assert!(error.contains(&nobody.to_string()), "{error}");
}

#[tokio::test]
async fn reflection_lists_what_is_served_and_describes_it_in_both_versions() {
    let server = Server::start(ServerConfig::default()).await;
    let ask = |message| v1::ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let requests = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("verdict.rag.v1.RagService.Answer".to_owned())),
        ask(MessageRequest::FileContainingSymbol("google.rpc.ErrorInfo".to_owned())),
    ];
    let mut client = ServerReflectionClient::new(server.channel());
    let mut answers = client.server_reflection_info(futures::stream::iter(requests)).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(listed)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list");
    };
    let listed: BTreeSet<_> = listed.service.into_iter().map(|service| service.name).collect();
    assert!(listed.contains(SERVICE) && listed.contains("grpc.health.v1.Health"), "{listed:?}");
    assert!(!listed.iter().any(|name| name.contains("predict")), "only what is served here: {listed:?}");
    for what in ["a method", "what errors carry"] {
        let described = answers.message().await.unwrap().unwrap().message_response;
        assert!(matches!(described, Some(MessageResponse::FileDescriptorResponse(_))), "{what}: {described:?}");
    }

    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut older = v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel());
    let mut answers = older.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
    let Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(listed)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list");
    };
    assert!(listed.service.iter().any(|service| service.name == SERVICE));
}

#[tokio::test]
async fn the_admin_side_says_whether_and_why() {
    let server = Server::start(ServerConfig::default()).await;
    assert_eq!(net::get(server.admin, "/livez").await.unwrap(), (200, "live\n".to_owned()));
    assert_eq!(net::get(server.admin, "/readyz").await.unwrap().0, 200);
    server.health.set(SERVICE, false, "the model went away");
    let (code, body) = net::get(server.admin, "/readyz").await.unwrap();
    assert_eq!(code, 503);
    assert!(body.contains("the model went away"), "{body}");
    assert_eq!(net::get(server.admin, "/livez").await.unwrap().0, 200, "alive all the same");
}

#[tokio::test]
async fn every_call_is_measured_with_service_method_and_code() {
    let server = Server::start(ServerConfig::default()).await;
    let mut client = server.client();
    client.search(search("one")).await.unwrap();
    client.search(search("panic")).await.unwrap_err();
    let mut stream = client.answer(answer("short")).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    let mut open = client.answer(answer("forever")).await.unwrap().into_inner();
    open.message().await.unwrap();

    let (code, metrics) = net::get(server.admin, "/metrics").await.unwrap();
    assert_eq!(code, 200);
    for expected in [
        r#"http_request_duration_seconds_count{service="verdict.rag.v1.RagService",method="Search",code="OK"} 1"#,
        r#"http_request_duration_seconds_count{service="verdict.rag.v1.RagService",method="Search",code="INTERNAL"} 1"#,
        r#"http_request_duration_seconds_count{service="verdict.rag.v1.RagService",method="Answer",code="OK"} 1"#,
        r#"http_request_duration_seconds_bucket{service="verdict.rag.v1.RagService",method="Search",code="OK",le="0.01"}"#,
        r#"grpc_requests_in_flight{service="verdict.rag.v1.RagService"} 1"#,
        r#"grpc_service_serving{service="verdict.rag.v1.RagService"} 1"#,
        "process_start_time_seconds 1",
    ] {
        assert!(metrics.contains(expected), "{expected} is missing in\n{metrics}");
    }
    drop(open);
}

#[tokio::test]
async fn open_metrics_name_a_trace_of_a_call_in_each_bucket() {
    let server = Server::start(ServerConfig::default()).await;
    telemetry::for_tests("probe", None);
    server.client().search(search("one")).await.unwrap();
    let accept = [("Accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")];
    let answer = net::exchange(server.admin, "GET", "/metrics", &accept, b"").await.unwrap();
    assert!(answer.headers["content-type"].starts_with("application/openmetrics-text"), "{:?}", answer.headers);
    let text = String::from_utf8(answer.body).unwrap();
    let bucket =
        r#"http_request_duration_seconds_bucket{service="verdict.rag.v1.RagService",method="Search",code="OK""#;
    let exemplar = text.lines().filter(|line| line.starts_with(bucket)).find_map(|line| line.split_once(" # "));
    let (_, exemplar) = exemplar.unwrap_or_else(|| panic!("no exemplar in\n{text}"));
    let trace = exemplar.strip_prefix("{trace_id=\"").and_then(|rest| rest.split('"').next()).unwrap();
    assert!(trace.len() == 32 && trace.bytes().all(|byte| byte.is_ascii_hexdigit()), "{exemplar}");
    assert!(text.ends_with("# EOF\n") && !text.contains("\n\n"), "{text}");
}

#[tokio::test]
async fn a_taken_port_names_address_and_setting() {
    let taken = Listeners::loopback().await.unwrap();
    let free = "127.0.0.1:0".parse().unwrap();
    let error = Listeners::bind(taken.grpc_addr(), free).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains(&taken.grpc_addr().to_string()) && text.contains("--listen"), "{text}");
    let error = Listeners::bind(free, taken.admin_addr()).await.unwrap_err();
    assert!(format!("{error:#}").contains("--admin-listen"), "{error:#}");
}
