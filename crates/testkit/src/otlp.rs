//! A trace collector in the test's own process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// A span as it was exported; ids are hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// 32 digits, the same for every span of one trace.
    pub trace_id: String,
    /// 16 digits.
    pub span_id: String,
    /// `None` for the root of a trace.
    pub parent_span_id: Option<String>,
    /// What the span is called.
    pub name: String,
    /// `service.name` of the process that sent it.
    pub service: String,
}

/// Receives OTLP/gRPC traces until it is dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    server: JoinHandle<()>,
}

impl Receiver {
    /// Starts on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let service = TraceServiceServer::new(Collector { spans: Arc::clone(&spans) });
        let server = Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { server.await.expect("the OTLP receiver serves") });
        Self { address, spans, server }
    }

    /// Returns its URL, for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns every span received so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().clone()
    }

    /// Waits until the spans fulfil `predicate` and returns them; panics with what arrived when `timeout` passes first.
    pub async fn wait_for(&self, predicate: impl Fn(&[Span]) -> bool, timeout: Duration) -> Vec<Span> {
        let until = Instant::now() + timeout;
        loop {
            let spans = self.spans();
            if predicate(&spans) {
                return spans;
            }
            assert!(Instant::now() < until, "not within {timeout:?}; these spans arrived: {spans:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut seen = self.spans.lock();
        for sent in request.into_inner().resource_spans {
            let service = service_name(sent.resource.as_ref());
            for span in sent.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                seen.push(Span {
                    trace_id: hex::encode(span.trace_id),
                    span_id: hex::encode(span.span_id),
                    parent_span_id: Some(hex::encode(span.parent_span_id)).filter(|id| !id.is_empty()),
                    name: span.name,
                    service: service.clone(),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn service_name(resource: Option<&Resource>) -> String {
    let attribute = resource.and_then(|r| r.attributes.iter().find(|attribute| attribute.key == "service.name"));
    match attribute.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(name)) => name.clone(),
        _ => String::new(),
    }
}
