//! A registry, its client, and where it keeps the bytes of files.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_sdk_s3::config::Credentials;
use aws_sdk_s3::primitives::ByteStream;
use model_registry::artifacts::s3;
use model_registry::webhooks::{Scheme, WebhookConfig};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, Executor, PgConnection, SqliteConnection};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use verdict_api::events::ModelEvent;
use verdict_api::registry::download_artifact_response::Part as Downloaded;
use verdict_api::registry::model_registry_service_client::ModelRegistryServiceClient;
use verdict_api::registry::upload_artifact_request::Part;
use verdict_api::registry::{
    Artifact, CreateModelRequest, CreateVersionRequest, DownloadArtifactRequest, FinalizeVersionRequest,
    GetVersionRequest, Model, SetAliasRequest, Task, UploadArtifactHeader, UploadArtifactRequest, Version,
    WatchModelsRequest,
};
use verdict_chassis::client::{self, Channel};
use verdict_chassis::server::Listeners;
use verdict_chassis::status;
use verdict_testkit::net::{free_port, send};
use verdict_testkit::postgres;
use verdict_testkit::process::Child;
use verdict_testkit::s3::Target;

pub(crate) type Client = ModelRegistryServiceClient<Channel>;
pub(crate) type Answer<T> = Result<T, Status>;

/// Long enough for a process to start on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Where things are kept, for tests that damage them or share them.
enum Blobs {
    Directory(PathBuf),
    Bucket { database: String, target: Target },
}

/// Keeps the service running while it lives.
enum Running {
    Here { stop: CancellationToken, task: JoinHandle<anyhow::Result<()>>, _dir: TempDir },
    Child { child: Child, _data: TempDir },
}

/// A registry of its own for one test.
pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) channel: Channel,
    /// Where MLflow's API is served.
    pub(crate) mlflow: SocketAddr,
    blobs: Blobs,
    running: Running,
}

impl World {
    /// SQLite and a directory, in this process.
    pub(crate) async fn embedded() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mlflow = local();
        let webhooks = WebhookConfig {
            webhook_schemes: vec![Scheme::Https, Scheme::Http],
            webhook_private_addresses: true,
            ..WebhookConfig::default()
        };
        let in_dir = model_registry::Config::in_dir(dir.path());
        let config = model_registry::Config { mlflow_listen: Some(mlflow), webhooks, ..in_dir };
        let (listeners, stop) = (Listeners::loopback().await.unwrap(), CancellationToken::new());
        let address = listeners.grpc_addr();
        let blobs = Blobs::Directory(dir.path().join("artifacts"));
        let task = tokio::spawn(model_registry::run(config, listeners, stop.clone()));
        while TcpStream::connect(mlflow).await.is_err() {
            assert!(!task.is_finished(), "the registry has ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let channel = client::connect(&format!("http://{address}")).unwrap();
        let running = Running::Here { stop, task, _dir: dir };
        Self { client: Client::new(channel.clone()), channel, mlflow, blobs, running }
    }

    /// PostgreSQL and S3, in a process that is told of them by its environment.
    pub(crate) async fn production() -> Self {
        Self::process(postgres::database().await, Target::from_env()).await
    }

    /// Another process on the same database and bucket.
    pub(crate) async fn replica(&self) -> Self {
        match &self.blobs {
            Blobs::Bucket { database, target } => Self::process(database.clone(), target.clone()).await,
            Blobs::Directory(_) => panic!("a SQLite file is one process's"),
        }
    }

    async fn process(database: String, target: Target) -> Self {
        let (listen, admin, mlflow) = (local(), local(), local());
        let data = tempfile::tempdir().unwrap();
        let mut env = vec![
            ("MODEL_REGISTRY_LISTEN", listen.to_string()),
            ("MODEL_REGISTRY_ADMIN_LISTEN", admin.to_string()),
            ("MODEL_REGISTRY_MLFLOW_LISTEN", mlflow.to_string()),
            ("MODEL_REGISTRY_DATA_DIR", data.path().display().to_string()),
            ("MODEL_REGISTRY_WEBHOOK_SCHEMES", "https,http".to_owned()),
            ("MODEL_REGISTRY_WEBHOOK_PRIVATE_ADDRESSES", "true".to_owned()),
            ("MODEL_REGISTRY_WEBHOOK_KEY", "c".repeat(42) + "A="),
            ("DATABASE_URL", database.clone()),
            ("ARTIFACT_STORE", target.url()),
            ("MODEL_REGISTRY_MLFLOW_DIRECT_TRANSFERS", "true".to_owned()),
        ];
        env.extend(target.env());
        let mut child = Child::spawn(Path::new(env!("CARGO_BIN_EXE_model-registry")), &["serve"], env);
        child.wait_ready(admin, PATIENCE).await;
        let channel = client::connect(&format!("http://{listen}")).unwrap();
        let blobs = Blobs::Bucket { database, target };
        Self {
            client: Client::new(channel.clone()),
            channel,
            mlflow,
            blobs,
            running: Running::Child { child, _data: data },
        }
    }

    /// The file of the SQLite database, if it is one.
    pub(crate) fn sqlite(&self) -> Option<PathBuf> {
        match &self.blobs {
            Blobs::Directory(artifacts) => Some(artifacts.with_file_name("registry.db")),
            Blobs::Bucket { .. } => None,
        }
    }

    /// The URL of the PostgreSQL database.
    pub(crate) fn database(&self) -> &str {
        match &self.blobs {
            Blobs::Bucket { database, .. } => database,
            Blobs::Directory(_) => panic!("it keeps its metadata in SQLite"),
        }
    }

    /// Does something to the database behind the registry's back.
    pub(crate) async fn sql(&self, statement: &'static str) {
        match &self.blobs {
            Blobs::Bucket { database, .. } => {
                PgConnection::connect(database).await.unwrap().execute(statement).await.unwrap();
            }
            Blobs::Directory(root) => {
                let file = SqliteConnectOptions::new().filename(root.with_file_name("registry.db"));
                SqliteConnection::connect_with(&file).await.unwrap().execute(statement).await.unwrap();
            }
        }
    }

    /// Calls MLflow's API; answers the status and the JSON that came.
    pub(crate) async fn rest(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let (status, answer) = send(self.mlflow, method, path, &body).await.unwrap();
        (status, serde_json::from_slice(&answer).unwrap_or(Value::Null))
    }

    /// Ends the service as a signal would.
    pub(crate) async fn stop(self) {
        drop((self.client, self.channel));
        match self.running {
            Running::Here { stop, task, _dir } => {
                stop.cancel();
                task.await.unwrap().unwrap();
            }
            Running::Child { mut child, _data } => assert!(child.terminate(PATIENCE).await.success()),
        }
    }

    /// The artifact store itself, in its bucket.
    pub(crate) async fn bucket(&self) -> s3::Bucket {
        let Blobs::Bucket { target: Target { endpoint, access_key, secret_key, bucket, prefix }, .. } = &self.blobs
        else {
            panic!("it keeps its files in a directory");
        };
        let credentials = Credentials::new(access_key, secret_key, None, None, "test");
        let client = s3::client(Some(&endpoint.parse().unwrap()), Some(credentials)).await;
        s3::Bucket::open(client, bucket.clone(), format!("{prefix}/")).await.unwrap()
    }

    /// Puts other bytes in the place of a file's, or none.
    pub(crate) async fn damage(&self, sha256: &str, bytes: Option<&[u8]>) {
        let key = format!("sha256/{}/{}", &sha256[..2], &sha256[2..]);
        match &self.blobs {
            Blobs::Directory(root) => match bytes {
                Some(bytes) => std::fs::write(root.join(key), bytes).unwrap(),
                None => std::fs::remove_file(root.join(key)).unwrap(),
            },
            Blobs::Bucket { target: Target { endpoint, access_key, secret_key, bucket, prefix }, .. } => {
                let credentials = Credentials::new(access_key, secret_key, None, None, "test");
                let client = s3::client(Some(&endpoint.parse().unwrap()), Some(credentials)).await;
                let key = format!("{prefix}/{key}");
                client.head_object().bucket(bucket).key(&key).send().await.unwrap();
                match bytes {
                    Some(bytes) => {
                        let body = ByteStream::from(bytes.to_vec());
                        client.put_object().bucket(bucket).key(key).body(body).send().await.unwrap();
                    }
                    None => {
                        client.delete_object().bucket(bucket).key(key).send().await.unwrap();
                    }
                }
            }
        }
    }

    pub(crate) async fn model(&self, name: &str) -> Model {
        let request = CreateModelRequest { name: name.to_owned(), ..Default::default() };
        self.client.clone().create_model(request).await.unwrap().into_inner().model.unwrap()
    }

    /// Adds a pending version.
    pub(crate) async fn version(&self, model: &str) -> Version {
        self.client.clone().create_version(version_of(model)).await.unwrap().into_inner().version.unwrap()
    }

    /// Adds a READY version with these files.
    pub(crate) async fn ready(&self, model: &str, files: &[(&str, &[u8])]) -> Version {
        let version = self.version(model).await.version;
        for (path, bytes) in files {
            self.upload(model, version, path, bytes).await.unwrap();
        }
        self.finalize(model, version).await.unwrap()
    }

    pub(crate) async fn upload(&self, model: &str, version: i64, path: &str, bytes: &[u8]) -> Answer<Artifact> {
        self.send(parts(model, version, artifact(path, bytes), bytes)).await
    }

    pub(crate) async fn send(&self, parts: Vec<UploadArtifactRequest>) -> Answer<Artifact> {
        let sent = self.client.clone().upload_artifact(futures::stream::iter(parts)).await?;
        Ok(sent.into_inner().artifact.unwrap())
    }

    pub(crate) async fn finalize(&self, model: &str, version: i64) -> Answer<Version> {
        let request = FinalizeVersionRequest { model: model.to_owned(), version, ..Default::default() };
        Ok(self.client.clone().finalize_version(request).await?.into_inner().version.unwrap())
    }

    pub(crate) async fn get(&self, model: &str, version: i64) -> Answer<Version> {
        let request = GetVersionRequest { model: model.to_owned(), version };
        Ok(self.client.clone().get_version(request).await?.into_inner().version.unwrap())
    }

    pub(crate) async fn point(&self, model: &str, alias: &str, to: i64, expected: Option<i64>) -> Answer<Model> {
        let request = SetAliasRequest {
            model: model.to_owned(),
            alias: alias.to_owned(),
            version: to,
            expected_version: expected,
            ..Default::default()
        };
        Ok(self.client.clone().set_alias(request).await?.into_inner().model.unwrap())
    }

    /// Reads a file from `offset` on: its header and its bytes.
    pub(crate) async fn download(&self, of: &Version, path: &str, offset: i64) -> Answer<(Artifact, Vec<u8>)> {
        let (model, path) = (of.model.clone(), path.to_owned());
        let request = DownloadArtifactRequest { model, version: of.version, path, offset, length: 0 };
        let mut parts = self.client.clone().download_artifact(request).await?.into_inner();
        let Some(Downloaded::Header(header)) = parts.message().await?.unwrap().part else { panic!("no header") };
        let mut bytes = Vec::new();
        while let Some(message) = parts.message().await? {
            match message.part {
                Some(Downloaded::Chunk(chunk)) => bytes.extend(chunk),
                other => panic!("{other:?} after the header"),
            }
        }
        Ok((header, bytes))
    }

    /// Every event there is by now.
    pub(crate) async fn events(&self) -> Vec<ModelEvent> {
        self.model("the-end-of-the-log").await;
        let request = WatchModelsRequest { models: Vec::new(), after_sequence: Some(0) };
        let mut watch = self.client.clone().watch_models(request).await.unwrap().into_inner();
        let mut events = Vec::new();
        loop {
            match watch.message().await.unwrap().unwrap().event {
                Some(event) if event.model == "the-end-of-the-log" => return events,
                event => events.extend(event),
            }
        }
    }
}

pub(crate) fn local() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

pub(crate) fn version_of(model: &str) -> CreateVersionRequest {
    CreateVersionRequest { model: model.to_owned(), task: Task::TextEmbedding.into(), ..Default::default() }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

pub(crate) fn artifact(path: &str, bytes: &[u8]) -> Artifact {
    Artifact { path: path.to_owned(), size: bytes.len() as i64, sha256: sha256(bytes) }
}

/// The messages of an upload that says `artifact` and sends `bytes`.
pub(crate) fn parts(model: &str, version: i64, artifact: Artifact, bytes: &[u8]) -> Vec<UploadArtifactRequest> {
    parts_from(0, model, version, artifact, bytes)
}

/// The messages of an upload that goes on at `offset`.
pub(crate) fn parts_from(
    offset: usize,
    model: &str,
    version: i64,
    artifact: Artifact,
    bytes: &[u8],
) -> Vec<UploadArtifactRequest> {
    let artifact = Some(artifact);
    let header = UploadArtifactHeader { model: model.to_owned(), version, artifact, offset: offset as i64 };
    let header = UploadArtifactRequest { part: Some(Part::Header(header)), crc32c: None };
    let chunk = |chunk: &[u8]| {
        let crc32c = Some(crc32c::crc32c(chunk));
        UploadArtifactRequest { part: Some(Part::Chunk(chunk.to_vec())), crc32c }
    };
    std::iter::once(header).chain(bytes[offset..].chunks(1 << 20).map(chunk)).collect()
}

/// The stable reason of a refusal.
pub(crate) fn reason<T: std::fmt::Debug>(answer: Answer<T>) -> String {
    status::reason(&answer.unwrap_err()).unwrap()
}
