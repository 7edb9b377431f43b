//! A registry and a predict, in this process, on disk in temporary folders.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Read,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use model_registry::publish::{Publication, publish};
use predict::Config;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use verdict_api::{
    inference::grpc_inference_service_client::GrpcInferenceServiceClient,
    predict::{
        ListServedModelsRequest, ServedModel, Value, decision_service_client::DecisionServiceClient,
        predict_service_client::PredictServiceClient, serving_service_client::ServingServiceClient, value::Kind,
    },
    registry::{SetAliasRequest, Signature, Task, Version, model_registry_service_client::ModelRegistryServiceClient},
};
use verdict_chassis::{
    client::{self, Channel},
    server::Listeners,
    status,
};

/// Long enough for a model to load on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A service that runs in this process.
struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// A model registry.
pub(crate) struct Registry {
    pub(crate) dir: TempDir,
    running: Running,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listeners = Listeners::loopback().await.unwrap();
        let running = Self::run(model_registry::Config::in_dir(dir.path()), listeners);
        Self { dir, running }
    }

    /// Starts one that serves the `mlflow` client as well.
    pub(crate) async fn start_with_mlflow(listen: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listeners = Listeners::loopback().await.unwrap();
        let in_dir = model_registry::Config::in_dir(dir.path());
        let running = Self::run(model_registry::Config { mlflow_listen: Some(listen), ..in_dir }, listeners);
        Self { dir, running }
    }

    fn run(config: model_registry::Config, listeners: Listeners) -> Running {
        let (address, stop) = (listeners.grpc_addr(), CancellationToken::new());
        let task = tokio::spawn(model_registry::run(config, listeners, stop.clone()));
        Running { address, stop, task }
    }

    /// Stops it; what it keeps stays.
    pub(crate) async fn stop(self) -> Stopped {
        let address = self.running.address;
        self.running.stop().await;
        Stopped { dir: self.dir, address }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.running.address)
    }

    pub(crate) fn channel(&self) -> Channel {
        client::connect(&self.url()).unwrap()
    }

    pub(crate) async fn publish(&self, model: &str, task: Task, dir: PathBuf, alias: Option<&str>) -> Version {
        self.publish_with(model, task, dir, alias, &[]).await
    }

    pub(crate) async fn publish_with(
        &self,
        model: &str,
        task: Task,
        dir: PathBuf,
        alias: Option<&str>,
        parameters: &[(&str, &str)],
    ) -> Version {
        let signature = (task == Task::TabularClassification).then(signature);
        let publication = Publication {
            model: model.to_owned(),
            description: String::new(),
            task,
            signature,
            parameters: parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            tags: BTreeMap::new(),
            dir,
            alias: alias.map(str::to_owned),
            request_id: None,
        };
        publish(self.channel(), publication, |_, _, _| {}).await.unwrap()
    }

    /// Publishes files without a signature, as `champion`.
    pub(crate) async fn publish_files(&self, model: &str, task: Task, files: &[(&str, Vec<u8>)]) -> Version {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, bytes).unwrap();
        }
        let publication = Publication {
            model: model.to_owned(),
            description: String::new(),
            task,
            signature: None,
            parameters: BTreeMap::new(),
            tags: BTreeMap::new(),
            dir: dir.path().to_owned(),
            alias: Some("champion".to_owned()),
            request_id: None,
        };
        publish(self.channel(), publication, |_, _, _| {}).await.unwrap()
    }

    /// Publishes version 1 or 2 of the credit-risk model.
    pub(crate) async fn publish_credit_risk(&self, version: u32, alias: Option<&str>) -> Version {
        self.publish("credit-risk", Task::TabularClassification, credit_risk().join(version.to_string()), alias).await
    }

    /// Publishes one of the text models of the cache under its own name, as `champion`, in the precision of the reference
    /// values.
    pub(crate) async fn publish_text(&self, name: &str, task: Task) -> Version {
        let dir = verdict_testkit::models::dir(name);
        self.publish_with(name, task, dir, Some("champion"), &[("precision", "fp32")]).await
    }

    pub(crate) async fn point(&self, model: &str, alias: &str, version: i64) {
        let request =
            SetAliasRequest { model: model.to_owned(), alias: alias.to_owned(), version, ..SetAliasRequest::default() };
        ModelRegistryServiceClient::new(self.channel()).set_alias(request).await.unwrap();
    }

    /// Returns where the directory store keeps the bytes of a file.
    pub(crate) fn blob(&self, sha256: &str) -> PathBuf {
        self.dir.path().join("artifacts/sha256").join(&sha256[..2]).join(&sha256[2..])
    }
}

/// A registry that is down.
pub(crate) struct Stopped {
    dir: TempDir,
    address: SocketAddr,
}

impl Stopped {
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Starts it again where it was.
    pub(crate) async fn start(self) -> Registry {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listeners = Listeners::bind(self.address, any).await.unwrap();
        let running = Registry::run(model_registry::Config::in_dir(self.dir.path()), listeners);
        Registry { dir: self.dir, running }
    }
}

/// A predict service.
pub(crate) struct Predict {
    running: Running,
    channel: Channel,
}

impl Predict {
    /// Starts it on a folder of its own, and waits until everything is warm.
    pub(crate) async fn warm(registry: &Registry, models: &[&str]) -> (Self, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let predict = Self::start(config(dir.path(), &registry.url(), models)).await;
        predict.wait_ready().await;
        (predict, dir)
    }

    pub(crate) async fn start(config: Config) -> Self {
        let listeners = Listeners::loopback().await.unwrap();
        let (address, stop) = (listeners.grpc_addr(), CancellationToken::new());
        let task = tokio::spawn(predict::run(config, listeners, stop.clone()));
        let channel = client::connect(&format!("http://{address}")).unwrap();
        Self { running: Running { address, stop, task }, channel }
    }

    pub(crate) async fn stop(self) {
        drop(self.channel);
        self.running.stop().await;
    }

    pub(crate) fn client(&self) -> PredictServiceClient<Channel> {
        PredictServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(crate) fn inference(&self) -> GrpcInferenceServiceClient<Channel> {
        GrpcInferenceServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running.address
    }

    /// Returns a client with a connection of its own.
    pub(crate) fn new_client(&self) -> PredictServiceClient<Channel> {
        PredictServiceClient::new(client::connect(self.channel.url()).unwrap())
    }

    pub(crate) fn decisions(&self) -> DecisionServiceClient<Channel> {
        DecisionServiceClient::new(self.channel.clone())
    }

    pub(crate) fn serving(&self) -> ServingServiceClient<Channel> {
        ServingServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn served(&self) -> Vec<ServedModel> {
        self.client().list_served_models(ListServedModelsRequest {}).await.unwrap().into_inner().models
    }

    pub(crate) async fn health(&self, service: &str) -> Option<ServingStatus> {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = HealthClient::new(self.channel.clone()).check(request).await.ok()?;
        Some(answer.into_inner().status())
    }

    pub(crate) async fn wait_ready(&self) {
        let ready = async || self.health("").await == Some(ServingStatus::Serving);
        self.wait("everything is warm", ready).await;
    }

    /// Waits until `met`; panics with what is served when it takes too long.
    pub(crate) async fn wait(&self, what: &str, met: impl AsyncFn() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !met().await {
            assert!(Instant::now() < until, "still not: {what}; served: {:?}", self.served().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(crate) fn config(dir: &Path, registry: &str, models: &[&str]) -> Config {
    let models = models.iter().map(|model| model.parse().unwrap()).collect();
    Config { models, registry_url: registry.to_owned(), ..Config::in_dir(dir) }
}

/// Where the credit-risk model and its data are.
pub(crate) fn credit_risk() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/demo/data/credit-risk")
}

/// Copies version 1 of the credit-risk model into a folder, its model changed.
pub(crate) fn credit_risk_with(change: impl FnOnce(&mut serde_json::Value)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let json = fs::read(credit_risk().join("1/model.json")).unwrap();
    let mut model: serde_json::Value = serde_json::from_slice(&json).unwrap();
    change(&mut model);
    fs::write(dir.path().join("model.json"), model.to_string()).unwrap();
    fs::copy(credit_risk().join("1/policy.json"), dir.path().join("policy.json")).unwrap();
    dir
}

/// Makes a request with metadata.
pub(crate) fn with<T>(message: T, metadata: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in metadata {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    request
}

fn signature() -> Signature {
    let json = fs::read(credit_risk().join("signature.json")).unwrap();
    serde_json::from_slice::<model_registry::model::Signature>(&json).unwrap().into()
}

/// Reads a reference file of the inference crate.
pub(crate) fn golden(name: &str) -> serde_json::Value {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/inference/tests/golden");
    serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap()
}

/// Reads a compressed file of the inference crate.
pub(crate) fn unpacked(name: &str) -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/inference/tests/golden").join(name);
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(fs::File::open(file).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Reads numbers of a reference file.
pub(crate) fn floats(values: &serde_json::Value) -> Vec<f32> {
    values.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

/// The ten applications for credit of the demo.
pub(crate) fn applications() -> Vec<HashMap<String, Value>> {
    let json = fs::read(credit_risk().join("applications.json")).unwrap();
    let applications: Vec<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(&json).unwrap();
    let value = |value: serde_json::Value| match value {
        serde_json::Value::Number(number) => self::number(number.as_f64().unwrap()),
        serde_json::Value::String(text) => self::text(&text),
        other => panic!("{other}"),
    };
    let features = |application: serde_json::Map<_, _>| application.into_iter().map(|(name, wire)| (name, value(wire)));
    applications.into_iter().map(|application| features(application).collect()).collect()
}

pub(crate) fn number(number: f64) -> Value {
    Value { kind: Some(Kind::Number(number)) }
}

pub(crate) fn text(text: &str) -> Value {
    Value { kind: Some(Kind::Text(text.to_owned())) }
}

/// Returns the reason of a refusal and the fields it names.
pub(crate) fn told(refused: &Status) -> (String, Vec<String>) {
    let fields = status::fields(refused).into_iter().map(|field| field.field).collect();
    (status::reason(refused).unwrap_or_default(), fields)
}
