//! Garbage: what nothing refers to goes after its time, and nothing else ever does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_sdk_s3::config::Credentials;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use model_registry::archive::{Arrival, Provenance};
use model_registry::artifacts::direct::Direct;
use model_registry::artifacts::{ArtifactStore, Body, Direction, Kept, checked, directory::Directory, s3};
use model_registry::config::DatabaseUrl;
use model_registry::error::Result;
use model_registry::maintenance::garbage::{Collected, Leased, Rules, collect};
use model_registry::model::{Artifact, Micros, ModelDraft, Origin, Task, VersionDraft};
use model_registry::names::{ArtifactPath, ModelName, Sha256Hex, VersionId};
use model_registry::store::{self, Call, Everything};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, Executor, PgConnection, SqliteConnection};
use tokio::sync::Mutex;
use verdict_api::registry::maintenance_service_client::MaintenanceServiceClient;
use verdict_api::registry::{CollectGarbageRequest, DeleteVersionRequest};
use verdict_testkit::net::send;
use verdict_testkit::postgres;
use verdict_testkit::s3::Target;

use crate::world::{World, reason, sha256};

/// Files looked at, files deleted, bytes deleted.
async fn gc(world: &World, dry_run: bool, older_than: i64, retention: i64) -> (i64, i64, i64) {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let request = CollectGarbageRequest { dry_run, older_than: seconds(older_than), retention: seconds(retention) };
    let mut client = MaintenanceServiceClient::new(world.channel.clone());
    let mut answers = client.collect_garbage(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(answer) = answers.message().await.unwrap() {
        last = Some((answer.files, answer.deleted_files, answer.deleted_bytes));
    }
    last.unwrap()
}

async fn bytes_go_after_their_time(world: &World) {
    world.model("m").await;
    world.ready("m", &[("shared", b"in two versions"), ("only", b"in one")]).await;
    let second = world.ready("m", &[("shared", b"in two versions")]).await;
    let pending = world.version("m").await.version;
    world.upload("m", pending, "file", b"pending").await.unwrap();
    let path = "/api/2.0/mlflow-artifacts/artifacts/0/run/artifacts/file";
    assert_eq!(send(world.mlflow, "PUT", path, b"of a run").await.unwrap().0, 200);

    let expire = "UPDATE leases SET until = 1";
    world.sql(expire).await;
    assert_eq!(gc(world, false, 0, 0).await, (4, 0, 0), "everything is referred to");
    let delete = DeleteVersionRequest { model: "m".into(), version: 1, ..Default::default() };
    world.client.clone().delete_version(delete).await.unwrap();
    assert_eq!(gc(world, false, 0, 3600).await, (4, 0, 0), "it was deleted a moment ago");
    assert_eq!(gc(world, false, 3600, 0).await, (4, 0, 0), "it is young");
    assert_eq!(gc(world, true, 0, 0).await, (4, 1, 6), "it would go");
    assert_eq!(gc(world, false, 0, 0).await, (4, 1, 6));
    assert_eq!(gc(world, false, 0, 0).await, (3, 0, 0));
    assert_eq!(world.download(&second, "shared", 0).await.unwrap().1, b"in two versions");
    assert_eq!(send(world.mlflow, "GET", path, b"").await.unwrap().1, b"of a run");
    assert_eq!(world.finalize("m", pending).await.unwrap().artifacts[0].sha256, sha256(b"pending"));

    // A file that is replaced or deleted: its bytes are kept by the lease first.
    assert_eq!(send(world.mlflow, "PUT", path, b"anew").await.unwrap().0, 200);
    assert_eq!(gc(world, false, 0, 0).await, (4, 1, 8), "of the file as it was");
    assert_eq!(send(world.mlflow, "DELETE", path, b"").await.unwrap().0, 200);
    assert_eq!(gc(world, false, 0, 0).await, (3, 0, 0), "an upload may be about to refer to it");
    world.sql(expire).await;
    assert_eq!(gc(world, false, 0, 0).await, (3, 1, 4));

    let negative = prost_types::Duration { seconds: -1, nanos: 0 };
    let request = CollectGarbageRequest { older_than: Some(negative), ..Default::default() };
    let mut client = MaintenanceServiceClient::new(world.channel.clone());
    assert_eq!(reason(client.collect_garbage(request).await.map(drop)), "INVALID_DURATION");
}

const CONTENTS: [&[u8]; 5] = [b"zero", b"one", b"two", b"three", b"four"];
const TASKS: usize = 4;
/// Long enough for an upload to be done in between.
const SLOW: Duration = Duration::from_secs(2);

/// What one task does next; numbers choose among its own few places, and among contents that all tasks share.
#[derive(Clone, Copy, Debug)]
enum Step {
    Put(u8, usize),
    Delete(u8),
    /// Registers a version from the task's files.
    Register,
    Import(usize),
    /// Deletes the task's oldest version.
    Unregister,
    /// Lets the leases run out of whatever is not being uploaded.
    Expire,
    Collect,
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = prop_oneof![
        3 => (0..2_u8, 0..CONTENTS.len()).prop_map(|(place, content)| Step::Put(place, content)),
        2 => (0..2_u8).prop_map(Step::Delete),
        2 => Just(Step::Register),
        1 => (0..CONTENTS.len()).prop_map(Step::Import),
        2 => Just(Step::Unregister),
        3 => Just(Step::Expire),
        3 => Just(Step::Collect),
    ];
    prop::collection::vec(prop::collection::vec(step, 1..14), TASKS)
}

/// Where the leases are, to let them run out.
enum Database {
    Sqlite(std::path::PathBuf),
    Postgres(String),
}

impl Database {
    async fn expire(&self, except: &BTreeSet<usize>) {
        let kept: Vec<_> = except.iter().map(|content| format!("'{}'", sha256(CONTENTS[*content]))).collect();
        let except = if kept.is_empty() { "''".to_owned() } else { kept.join(", ") };
        let sql = sqlx::AssertSqlSafe(format!("UPDATE leases SET until = 1 WHERE sha256 NOT IN ({except})"));
        match self {
            Self::Sqlite(path) => {
                let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(20));
                SqliteConnection::connect_with(&options).await.unwrap().execute(sql).await.unwrap();
            }
            Self::Postgres(url) => {
                PgConnection::connect(url).await.unwrap().execute(sql).await.unwrap();
            }
        }
    }
}

/// An artifact store that takes its time to delete: what comes in between must not be lost.
struct Slow(Arc<dyn ArtifactStore>, Duration);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ArtifactStore for Slow {
    async fn keep(&self, artifact: &Artifact, body: Body<'_>) -> Result<()> {
        self.0.keep(artifact, body).await
    }

    async fn keep_file(&self, artifact: &Artifact, path: &Path) -> Result<()> {
        self.0.keep_file(artifact, path).await
    }

    async fn open(&self, artifact: &Artifact, offset: u64) -> Result<Body<'static>> {
        self.0.open(artifact, offset).await
    }

    fn direct(&self) -> Option<&dyn Direct> {
        self.0.direct()
    }

    fn list(&self) -> BoxStream<'static, Result<Kept>> {
        self.0.list()
    }

    async fn remove(&self, garbage: &[Sha256Hex], deadline: Instant) -> Result<()> {
        tokio::time::sleep(self.1).await;
        self.0.remove(garbage, deadline).await
    }

    async fn sweep(&self, stale_after: Duration) -> Result<()> {
        self.0.sweep(stale_after).await
    }
}

/// A registry without its server.
struct Registry {
    store: Arc<dyn Everything>,
    artifacts: Arc<dyn ArtifactStore>,
    database: Database,
    /// Contents being uploaded, as often as they are: a lease never runs out while its upload goes on.
    uploading: Mutex<BTreeMap<usize, usize>>,
}

fn file(path: &str, content: usize) -> Artifact {
    let bytes = CONTENTS[content];
    Artifact {
        path: ArtifactPath::parse("path", path).unwrap(),
        size: bytes.len() as u64,
        sha256: Sha256Hex::parse("sha256", &sha256(bytes)).unwrap(),
    }
}

impl Registry {
    fn new(store: Arc<dyn Everything>, artifacts: Arc<dyn ArtifactStore>, database: Database, slow: Duration) -> Self {
        let artifacts = Arc::new(Leased { store: store.clone(), artifacts: Arc::new(Slow(artifacts, slow)) });
        Self { store, artifacts, database, uploading: Mutex::default() }
    }

    async fn embedded(dir: &Path, slow: Duration) -> Self {
        let database = dir.join("registry.db");
        let store = store::open(&DatabaseUrl::Sqlite(database.clone()), 4, true).await.unwrap();
        let artifacts = Arc::new(Directory::open(dir.join("artifacts")).await.unwrap());
        Self::new(store, artifacts, Database::Sqlite(database), slow)
    }

    async fn production(slow: Duration) -> Self {
        let url = postgres::database().await;
        let store = store::open(&url.parse().unwrap(), 10, true).await.unwrap();
        let Target { endpoint, access_key, secret_key, bucket, prefix } = Target::from_env();
        let credentials = Credentials::new(access_key, secret_key, None, None, "test");
        let client = s3::client(Some(&endpoint.parse().unwrap()), Some(credentials)).await;
        let bucket = s3::Bucket::open(client, bucket, format!("{prefix}/")).await.unwrap();
        Self::new(store, Arc::new(bucket), Database::Postgres(url), slow)
    }

    async fn collect(&self) -> Collected {
        let rules = Rules { older_than: Duration::ZERO, retention: Duration::ZERO, dry_run: false };
        let now = Micros(Micros::now().0 + 1_000_000);
        let found = collect(self.store.clone(), self.artifacts.clone(), now, rules);
        found.try_fold(Collected::default(), |_, found| async move { Ok(found) }).await.unwrap()
    }

    /// Keeps a file's bytes, and lets `refer` write the row.
    async fn upload(&self, file: &Artifact, content: usize, refer: impl AsyncFnOnce()) {
        *self.uploading.lock().await.entry(content).or_default() += 1;
        let body = stream::iter([Ok(bytes::Bytes::from_static(CONTENTS[content]))]).boxed();
        self.artifacts.keep(file, checked(body, file.clone(), Direction::In)).await.unwrap();
        // Long enough for others to collect garbage in between.
        tokio::time::sleep(Duration::from_millis(3)).await;
        refer().await;
        let mut uploading = self.uploading.lock().await;
        *uploading.get_mut(&content).unwrap() -= 1;
    }

    async fn run(&self, task: usize, steps: Vec<Step>) {
        let model = ModelName::parse("model", &format!("m{task}")).unwrap();
        let dir = format!("t{task}");
        let draft = |origin| VersionDraft {
            model: model.clone(),
            description: String::new(),
            task: Task::Custom,
            signature: None,
            parameters: BTreeMap::new(),
            tags: BTreeMap::new(),
            origin,
        };
        let mut versions: Vec<VersionId> = Vec::new();
        for step in steps {
            match step {
                Step::Put(place, content) => {
                    let file = file(&format!("{dir}/{place}"), content);
                    self.upload(&file, content, async || self.store.put_file(&file).await.unwrap()).await;
                }
                Step::Delete(place) => {
                    let path = ArtifactPath::parse("path", &format!("{dir}/{place}")).unwrap();
                    self.store.delete_files(&path).await.unwrap();
                }
                Step::Register => {
                    let source = format!("mlflow-artifacts:/{dir}");
                    let origin = Origin { source, ..Origin::default() };
                    versions.push(self.store.add_version(&Call::now(), &draft(Some(origin))).await.unwrap().id);
                }
                Step::Import(content) => {
                    let file = file("file", content);
                    let id = VersionId { model: model.clone(), number: 1 };
                    let provenance = Provenance { id, create_time: Micros(1), origin: Origin::default() };
                    let artifacts = vec![file.clone()];
                    let arrival = Arrival { draft: draft(None), artifacts, provenance };
                    let mut imported = None;
                    let refer = async || imported = Some(self.store.import(&Call::now(), &arrival).await.unwrap());
                    self.upload(&file, content, refer).await;
                    let (version, added) = imported.unwrap();
                    if added {
                        versions.push(version.id);
                    }
                }
                Step::Unregister => {
                    if !versions.is_empty() {
                        self.store.delete_version(&Call::now(), &versions.remove(0), false).await.unwrap();
                    }
                }
                Step::Expire => {
                    let uploading = self.uploading.lock().await;
                    let under_way = uploading.iter().filter(|(_, times)| **times > 0).map(|(content, _)| *content);
                    self.database.expire(&under_way.collect()).await;
                }
                Step::Collect => {
                    self.collect().await;
                }
            }
            self.referred(&dir, &model).await;
        }
    }

    /// What a task refers to now; every byte of it must be there.
    async fn referred(&self, dir: &str, model: &ModelName) -> BTreeSet<String> {
        let mut files = self.store.files_below(dir).await.unwrap();
        for version in self.store.versions(model, None, 1000).await.unwrap() {
            files.extend(version.artifacts);
        }
        for file in &files {
            let body = checked(self.artifacts.open(file, 0).await.unwrap(), file.clone(), Direction::Out);
            body.try_collect::<Vec<_>>().await.unwrap();
        }
        files.into_iter().map(|file| file.sha256.to_string()).collect()
    }

    /// An upload that begins while the same bytes are being deleted.
    async fn race(self) {
        let model = ModelName::parse("model", "m").unwrap();
        let draft = ModelDraft { name: model.clone(), description: String::new(), tags: BTreeMap::new() };
        self.store.create_model(&Call::now(), &draft).await.unwrap();
        let file = file("t/file", 0);
        let put = async || self.store.put_file(&file).await.unwrap();
        self.upload(&file, 0, put).await;
        self.store.delete_files(&file.path).await.unwrap();
        self.database.expire(&BTreeSet::new()).await;
        let anew = async {
            tokio::time::sleep(SLOW / 4).await;
            self.upload(&file, 0, put).await;
        };
        let (collected, ()) = tokio::join!(self.collect(), anew);
        assert_eq!(collected.deleted_files, 1);
        assert_eq!(self.referred("t", &model).await.len(), 1);
        assert_eq!(self.collect().await.deleted_files, 0);
    }

    /// All tasks at once; in the end what is there is what is referred to, no less and no more.
    async fn torture(self, steps: Vec<Vec<Step>>) {
        for task in 0..TASKS {
            let name = ModelName::parse("model", &format!("m{task}")).unwrap();
            let draft = ModelDraft { name, description: String::new(), tags: BTreeMap::new() };
            self.store.create_model(&Call::now(), &draft).await.unwrap();
        }
        let registry = Arc::new(self);
        let tasks = steps.into_iter().enumerate().map(|(task, steps)| {
            let registry = registry.clone();
            tokio::spawn(async move { registry.run(task, steps).await })
        });
        for task in futures::future::join_all(tasks).await {
            task.unwrap();
        }
        registry.database.expire(&BTreeSet::new()).await;
        registry.collect().await;
        let mut referred = BTreeSet::new();
        for task in 0..TASKS {
            let model = ModelName::parse("model", &format!("m{task}")).unwrap();
            referred.extend(registry.referred(&format!("t{task}"), &model).await);
        }
        let there: Vec<_> = registry.artifacts.list().try_collect().await.unwrap();
        assert_eq!(there.into_iter().map(|kept| kept.sha256.to_string()).collect::<BTreeSet<_>>(), referred);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_uploads_deletions_and_collections_loses_a_byte(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            Registry::embedded(dir.path(), Duration::from_millis(20)).await.torture(steps).await;
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_says_what_went() {
    let world = World::embedded().await;
    world.model("m").await;
    world.ready("m", &[("file", &[1; 2048])]).await;
    let delete = DeleteVersionRequest { model: "m".into(), version: 1, ..Default::default() };
    world.client.clone().delete_version(delete).await.unwrap();
    world.sql("UPDATE leases SET until = 1").await;
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_model-registry"));
        let output = command.arg("gc").args(arguments).env("REGISTRY_URL", world.channel.url()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(&[]), "1 files, 0 deleted (0 B)\n", "it is young, and was deleted a moment ago");
    let all = ["--older-than", "0", "--retention", "0"];
    assert_eq!(run(&[&all[..], &["--dry-run"]].concat()), "1 files, 1 would be deleted (2.00 KiB)\n");
    assert_eq!(run(&all), "1 files, 1 deleted (2.00 KiB)\n");
    assert_eq!(run(&all), "0 files, 0 deleted (0 B)\n");
    world.stop().await;
}

mod embedded {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_upload_of_what_is_being_deleted_is_not_lost() {
        let dir = tempfile::tempdir().unwrap();
        Registry::embedded(dir.path(), SLOW).await.race().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_go_after_their_time() {
        let world = World::embedded().await;
        super::bytes_go_after_their_time(&world).await;
        world.stop().await;
    }
}

mod live {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_upload_of_what_is_being_deleted_is_not_lost() {
        Registry::production(SLOW).await.race().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_go_after_their_time() {
        let world = World::production().await;
        super::bytes_go_after_their_time(&world).await;
        world.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_order_of_uploads_deletions_and_collections_loses_a_byte() {
        let mut runner = TestRunner::deterministic();
        for _ in 0..6 {
            let steps = steps().new_tree(&mut runner).unwrap().current();
            Registry::production(Duration::from_millis(20)).await.torture(steps).await;
        }
    }
}
