//! Logs, spans and their context: one subscriber per process.
//!
//! Logs go to standard output: JSON lines, or text when it is a terminal. Spans always get valid W3C ids and pass on
//! the caller's; they are exported over OTLP/gRPC when an endpoint is set. The log filter says what is logged, not what
//! is traced: spans are exported from level INFO.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry::{Context, global};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tracing::Span;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::metrics;

/// What is logged and how, and where spans go.
#[derive(clap::Args, Clone, Debug)]
pub struct TelemetryConfig {
    /// What is logged, as directives: `info`, or `warn,predict=debug`
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_filter: String,
    /// How it is written: JSON lines, or text for people; `auto` looks whether standard output is a terminal
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value = "auto")]
    pub log_format: LogFormat,
    /// OTLP/gRPC collector that spans are sent to, such as `http://localhost:4317`; without it none are sent
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
}

/// How log lines are written.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// One JSON object per line.
    Json,
    /// Text for people.
    Pretty,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { log_filter: "info".to_owned(), log_format: LogFormat::Auto, otlp_endpoint: None }
    }
}

/// Keeps the exporter; ends with [`Telemetry::flush`].
#[must_use = "flush it at the end: the spans of the last requests are the interesting ones"]
#[derive(Debug)]
pub struct Telemetry {
    provider: SdkTracerProvider,
}

/// Installs the subscriber, the propagator, the panic log and the metrics recorder of this process; once.
///
/// Must be called inside a tokio runtime when an endpoint is set. Errors name the setting that is wrong.
pub fn init(service: &'static str, config: &TelemetryConfig) -> anyhow::Result<Telemetry> {
    install(service, config, Duration::from_secs(1))
}

/// Installs telemetry for a test process at the first call; later calls, also with another endpoint, change nothing.
///
/// Logs warnings and worse unless `RUST_LOG` says otherwise, and exports within a tenth of a second. Call it inside the
/// runtime that outlives the test's calls.
pub fn for_tests(service: &'static str, endpoint: Option<&str>) {
    static INSTALLED: OnceLock<Option<Telemetry>> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let config = TelemetryConfig {
            log_filter: std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned()),
            log_format: LogFormat::Pretty,
            otlp_endpoint: endpoint.map(str::to_owned),
        };
        match install(service, &config, Duration::from_millis(100)) {
            Ok(telemetry) => Some(telemetry),
            Err(error) => panic!("telemetry for tests: {error:#}"),
        }
    });
}

/// Returns the trace id of the current span: 32 hexadecimal digits.
///
/// `None` outside of any span, or where telemetry isn't installed.
pub fn current_trace_id() -> Option<String> {
    trace_id(&Span::current())
}

impl Telemetry {
    /// Sends the spans that wait, for at most `timeout`, and stops the exporter.
    pub async fn flush(self, timeout: Duration) {
        let provider = self.provider;
        let done = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(timeout));
        match tokio::time::timeout(timeout, done).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(error = %error, "the last spans were not sent"),
            Ok(Err(error)) => tracing::warn!(error = %error, "the last spans were not sent"),
            Err(_) => tracing::warn!("the last spans were not sent within {timeout:?}"),
        }
    }
}

fn install(service: &'static str, config: &TelemetryConfig, delay: Duration) -> anyhow::Result<Telemetry> {
    let filter = EnvFilter::try_new(&config.log_filter)
        .with_context(|| format!("--log-filter (RUST_LOG) `{}` is not a filter", config.log_filter))?;
    let provider = provider(service, config, delay)?;
    let json = match config.log_format {
        LogFormat::Auto => !std::io::stdout().is_terminal(),
        LogFormat::Json => true,
        LogFormat::Pretty => false,
    };
    let lines = if json {
        fmt::layer().json().flatten_event(true).with_current_span(false).with_span_list(true).boxed()
    } else {
        fmt::layer().with_ansi(std::io::stdout().is_terminal()).boxed()
    };
    // What each span would cost without being asked for: times of idleness, threads, lines of source.
    let spans = tracing_opentelemetry::layer().with_tracked_inactivity(false).with_threads(false).with_location(false);
    let spans = spans.with_tracer(provider.tracer("verdict")).with_filter(LevelFilter::INFO);
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(spans)
        .try_init()
        .context("telemetry is already installed in this process")?;
    global::set_text_map_propagator(TraceContextPropagator::new());
    global::set_tracer_provider(provider.clone());
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(panic.location = location, panic.message = message, backtrace = %backtrace, "panicked at {location}");
    }));
    metrics::recorder();
    Ok(Telemetry { provider })
}

fn provider(service: &'static str, config: &TelemetryConfig, delay: Duration) -> anyhow::Result<SdkTracerProvider> {
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(service);
    }
    let builder = SdkTracerProvider::builder().with_resource(resource.build());
    let Some(endpoint) = config.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) else {
        return Ok(builder.build());
    };
    let setting = "--otlp-endpoint (OTEL_EXPORTER_OTLP_ENDPOINT)";
    match url::Url::parse(endpoint) {
        Ok(url) if url.scheme() == "http" && url.has_host() => {}
        Ok(_) | Err(_) => bail!("{setting} `{endpoint}` is not of the form http://host:port"),
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .with_context(|| format!("{setting} `{endpoint}` can't be used"))?;
    let batches = BatchSpanProcessor::builder(exporter)
        .with_batch_config(BatchConfigBuilder::default().with_scheduled_delay(delay).build())
        .build();
    Ok(builder.with_span_processor(batches).build())
}

/// Makes `span` a part of the caller's trace, and records its `trace_id` where the span has such a field.
pub fn continue_trace(span: &Span, headers: &HeaderMap) {
    // Fails only where telemetry isn't installed; there is nothing to continue then.
    let _ = span.set_parent(extract(headers));
    if let Some(trace_id) = trace_id(span) {
        span.record("trace_id", trace_id);
    }
}

pub(crate) fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| context.trace_id().to_string())
}

/// Reads the caller's trace context.
fn extract(headers: &HeaderMap) -> Context {
    global::get_text_map_propagator(|propagator| propagator.extract(&Headers(headers)))
}

/// Writes the trace context of `span`.
pub(crate) fn inject(span: &Span, headers: &mut HeaderMap) {
    global::get_text_map_propagator(|propagator| propagator.inject_context(&span.context(), &mut HeadersMut(headers)));
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
