//! A registry, a predict and a rag, in this process, on disk in temporary folders.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::StreamExt;
use model_registry::publish::{Publication, publish};
use rag::Config;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use verdict_api::predict::predict_service_client::PredictServiceClient;
use verdict_api::predict::{ListServedModelsRequest, ServedModelState};
use verdict_api::rag::rag_service_client::RagServiceClient;
use verdict_api::rag::{
    Document, IngestDocumentsRequest, IngestDocumentsResponse, IngestState, SearchMode, SearchRequest, SearchResponse,
};
use verdict_api::registry::{Task, Version};
use verdict_chassis::client::{self, Channel};
use verdict_chassis::server::Listeners;

/// Long enough for a model to load on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) const COLLECTION: &str = "docs";

/// A model that rag needs: what it is called there, what it does, and where its files are in the cache.
pub(crate) type Model = (&'static str, Task, &'static str);

pub(crate) const EMBEDDER: Model = ("embedder", Task::TextEmbedding, "all-MiniLM-L6-v2");
pub(crate) const RERANKER: Model = ("reranker", Task::TextReranking, "ms-marco-MiniLM-L-12-v2");
pub(crate) const GENERATOR: Model = ("generator", Task::TextGeneration, "gemma-3-270m");

/// A service that runs in this process; dropped, it stops.
struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn run<F>(service: impl FnOnce(Listeners, CancellationToken) -> F) -> Running
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let listeners = Listeners::loopback().await.unwrap();
    let (address, stop) = (listeners.grpc_addr(), CancellationToken::new());
    let task = tokio::spawn(service(listeners, stop.clone()));
    Running { address, stop, task }
}

/// A registry with models, and a predict that serves them.
pub(crate) struct Models {
    registry: Running,
    predict: Running,
    _dirs: [TempDir; 2],
}

impl Models {
    /// Publishes the models as `champion`s and waits until predict serves them.
    pub(crate) async fn serve(models: &[Model]) -> Self {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let config = model_registry::Config::in_dir(dirs[0].path());
        let registry = run(|listeners, stop| model_registry::run(config, listeners, stop)).await;
        let config = predict::Config {
            models: models.iter().map(|(name, ..)| format!("{name}@champion").parse().unwrap()).collect(),
            registry_url: url(registry.address),
            ..predict::Config::in_dir(dirs[1].path())
        };
        for model in models {
            publish_model(&channel(registry.address), *model).await;
        }
        let predict = run(|listeners, stop| predict::run(config, listeners, stop)).await;
        let models = Self { registry, predict, _dirs: dirs };
        models.wait_for(|_| true).await;
        models
    }

    pub(crate) fn url(&self) -> String {
        url(self.predict.address)
    }

    /// Publishes a model under a name that is served, and waits until predict serves it.
    pub(crate) async fn replace(&self, model: Model) {
        let version = publish_model(&channel(self.registry.address), model).await;
        self.wait_for(|(name, served)| name != model.0 || served == version.version).await;
    }

    async fn wait_for(&self, met: impl Fn((&str, i64)) -> bool) {
        let mut client = PredictServiceClient::new(channel(self.predict.address));
        let until = Instant::now() + PATIENCE;
        loop {
            let served = client.list_served_models(ListServedModelsRequest {}).await;
            let models = served.map(|served| served.into_inner().models).unwrap_or_default();
            let is_met = |model: &verdict_api::predict::ServedModel| {
                let name = model.reference.split('@').next().unwrap_or_default();
                model.state() == ServedModelState::Serving && met((name, model.version))
            };
            if !models.is_empty() && models.iter().all(is_met) {
                return;
            }
            assert!(Instant::now() < until, "not served in time: {models:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn publish_model(channel: &Channel, (name, task, files): Model) -> Version {
    let publication = Publication {
        model: name.to_owned(),
        description: String::new(),
        task,
        signature: None,
        parameters: BTreeMap::new(),
        tags: BTreeMap::new(),
        dir: verdict_testkit::models::dir(files),
        alias: Some("champion".to_owned()),
        request_id: None,
    };
    publish(channel.clone(), publication, |_, _, _| {}).await.unwrap()
}

/// A rag service.
pub(crate) struct Rag {
    running: Running,
    pub(crate) client: RagServiceClient<Channel>,
    _dir: TempDir,
}

impl Rag {
    pub(crate) async fn start(models: &Models) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::in_dir(dir.path());
        config.models.predict_url = models.url();
        let running = run(|listeners, stop| rag::run(config, listeners, stop)).await;
        let client = RagServiceClient::new(channel(running.address)).max_decoding_message_size(64 << 20);
        Self { running, client, _dir: dir }
    }

    pub(crate) async fn health(&self) -> ServingStatus {
        let request = HealthCheckRequest { service: rag::SERVICE.to_owned() };
        HealthClient::new(channel(self.running.address)).check(request).await.unwrap().into_inner().status()
    }

    pub(crate) async fn wait_health(&self, wanted: ServingStatus) {
        let until = Instant::now() + PATIENCE;
        while self.health().await != wanted {
            assert!(Instant::now() < until, "never {wanted:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops it and waits until it has stopped.
    pub(crate) async fn stop(mut self) {
        self.running.stop.cancel();
        (&mut self.running.task).await.unwrap().unwrap();
    }

    /// Ingests documents into [`COLLECTION`].
    pub(crate) async fn ingest(&self, documents: Vec<Document>) -> Vec<IngestDocumentsResponse> {
        ingest(self.client.clone(), documents).await.unwrap()
    }

    pub(crate) async fn search(&self, query: &str, mode: SearchMode) -> SearchResponse {
        let request = SearchRequest { mode: mode.into(), ..asking(query) };
        self.client.clone().search(request).await.unwrap().into_inner()
    }
}

/// Ingests documents and returns the reports, or what ended the stream.
pub(crate) async fn ingest(
    mut client: RagServiceClient<Channel>,
    documents: Vec<Document>,
) -> Result<Vec<IngestDocumentsResponse>, Status> {
    let request = |document| IngestDocumentsRequest { collection: COLLECTION.to_owned(), document: Some(document) };
    let requests: Vec<_> = documents.into_iter().map(request).collect();
    let mut reports = client.ingest_documents(futures::stream::iter(requests)).await?.into_inner();
    let mut all = Vec::new();
    while let Some(report) = reports.next().await {
        all.push(report?);
    }
    Ok(all)
}

pub(crate) fn states(reports: &[IngestDocumentsResponse]) -> Vec<IngestState> {
    reports.iter().map(IngestDocumentsResponse::state).collect()
}

pub(crate) fn asking(query: &str) -> SearchRequest {
    SearchRequest { collection: COLLECTION.to_owned(), query: query.to_owned(), ..SearchRequest::default() }
}

pub(crate) fn document(id: &str, content_type: &str, content: &str) -> Document {
    Document {
        id: id.to_owned(),
        content_type: content_type.to_owned(),
        content: content.as_bytes().to_vec(),
        title: String::new(),
        uri: format!("https://example.org/{id}"),
        metadata: HashMap::from([("kind".to_owned(), content_type.to_owned())]),
    }
}

/// Three documents of different types, about three different things.
pub(crate) fn library() -> Vec<Document> {
    vec![
        document("penicillin", "text/plain", PENICILLIN),
        document("loans", "text/markdown", LOANS),
        document("bridge", "text/html", BRIDGE),
    ]
}

pub(crate) const PENICILLIN: &str = "Penicillin is an antibiotic. It was discovered in 1928 by the Scottish physician \
Alexander Fleming at St Mary's Hospital in London.\n\nFleming noticed that a mould killed the bacteria in a dish that \
he had left open before his holiday.";

pub(crate) const LOANS: &str = "# Loan handbook\n\nThis handbook tells how applications are decided.\n\n\
## Review\n\nAn application is reviewed by a credit officer when its score is between 35 and 60 percent. \
The review must be finished within five working days.\n\n\
## Refusal\n\n- A refusal names its **four** main reasons.\n- The applicant may appeal within thirty days.\n";

pub(crate) const BRIDGE: &str = "<html><head><title>The Forth Bridge</title><style>p { color: red }</style></head>\
<body><h1>The Forth Bridge</h1><p>The Forth Bridge is a cantilever railway bridge in <b>Scotland</b>. It was opened \
on 4 March 1890.</p><h2>Steel</h2><p>It took 53,000 tonnes of steel &amp; 6.5 million rivets.</p>\
<script>var hidden = 'secret';</script></body></html>";

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

pub(crate) fn channel(address: SocketAddr) -> Channel {
    client::connect(&url(address)).unwrap()
}
