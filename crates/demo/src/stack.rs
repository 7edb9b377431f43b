//! The three services as processes: started in order, waited for, stopped by pid.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::Settings;

/// How long a service may drain before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// What predict serves, as rag's defaults expect it.
const SERVED: &str = "embedder@champion,reranker@champion,generator@champion,credit-risk@champion";

/// What the names of the services' settings begin with. Those of the shell are for the services it runs, not for these:
/// a `DATABASE_URL` would have the demo publish into somebody's registry.
const SETTINGS: [&str; 12] = [
    "ARTIFACT_STORE",
    "AWS_",
    "DATABASE_URL",
    "LOG_FORMAT",
    "MODEL_REGISTRY_",
    "OTEL_",
    "PREDICT_",
    "QDRANT_",
    "RAG_",
    "REGISTRY_",
    "RUST_LOG",
    "SERVER_",
];

/// What the artifact store needs to know of the shell, where there is one.
const AWS: [&str; 4] = ["AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"];

/// The running services; dropped, they are stopped.
pub(crate) struct Stack {
    settings: Settings,
    running: Vec<(&'static str, Child)>,
}

impl Stack {
    /// Checks that nothing is in the way, and starts nothing yet.
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        for name in ["rag", "predict", "model-registry"] {
            if let Some(pid) = running_pid(&pid_file(settings, name)) {
                bail!("{name} is already running (pid {}); stop it with `make down`", pid.as_raw_nonzero());
            }
        }
        for (name, address) in addresses(settings) {
            // Another's service would answer in place of the demo's.
            TcpListener::bind(address).with_context(|| {
                format!("{address} is not free for {name}: end what listens there, or give another address (--help)")
            })?;
        }
        fs::create_dir_all(settings.data_dir.join("run")).context("cannot make the data folder")?;
        fs::create_dir_all(settings.data_dir.join("logs"))?;
        Ok(Self { settings: settings.clone(), running: Vec::new() })
    }

    /// Starts model-registry and waits until it is healthy.
    pub(crate) async fn start_registry(&mut self) -> Result<()> {
        let (grpc, admin) = (self.settings.registry, self.settings.registry_admin);
        let mut environment = vec![
            ("MODEL_REGISTRY_LISTEN", grpc.to_string()),
            ("MODEL_REGISTRY_ADMIN_LISTEN", admin.to_string()),
            ("MODEL_REGISTRY_MLFLOW_LISTEN", self.settings.registry_mlflow.to_string()),
            ("MODEL_REGISTRY_DATA_DIR", self.data("model-registry")),
        ];
        let stores = &self.settings.stores;
        environment.extend(stores.registry_database.clone().map(|url| ("DATABASE_URL", url)));
        if let Some(store) = stores.artifact_store.clone() {
            environment.push(("ARTIFACT_STORE", store));
            environment.extend(AWS.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?))));
        }
        self.start("model-registry", grpc, &environment, Duration::from_secs(60)).await
    }

    /// Starts predict on the demo models and waits until they are warm.
    pub(crate) async fn start_predict(&mut self) -> Result<()> {
        let (grpc, admin) = (self.settings.predict, self.settings.predict_admin);
        let mut environment = vec![
            ("PREDICT_LISTEN", grpc.to_string()),
            ("PREDICT_ADMIN_LISTEN", admin.to_string()),
            ("PREDICT_DATA_DIR", self.data("predict")),
            ("PREDICT_MODELS", SERVED.to_owned()),
            ("REGISTRY_URL", format!("http://{}", self.settings.registry)),
        ];
        environment.extend(self.settings.stores.predict_database.clone().map(|url| ("DATABASE_URL", url)));
        self.start("predict", grpc, &environment, Duration::from_secs(300)).await
    }

    /// Starts rag and waits until it reaches its models.
    pub(crate) async fn start_rag(&mut self) -> Result<()> {
        let (grpc, admin) = (self.settings.rag, self.settings.rag_admin);
        let environment = [
            ("RAG_LISTEN", grpc.to_string()),
            ("RAG_ADMIN_LISTEN", admin.to_string()),
            ("RAG_DATA_DIR", self.data("rag")),
            ("PREDICT_URL", format!("http://{}", self.settings.predict)),
        ];
        self.start("rag", grpc, &environment, Duration::from_secs(60)).await
    }

    /// Leaves the services running for `down` to stop.
    pub(crate) fn leave_running(mut self) {
        self.running.clear();
    }

    fn data(&self, service: &str) -> String {
        self.settings.data_dir.join(service).display().to_string()
    }

    async fn start(
        &mut self,
        name: &'static str,
        address: SocketAddr,
        environment: &[(&str, String)],
        patience: Duration,
    ) -> Result<()> {
        let log = self.settings.data_dir.join("logs").join(format!("{name}.log"));
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let binary = bin_dir(&self.settings)?.join(name);
        let mut command = Command::new(&binary);
        for (inherited, _) in std::env::vars_os() {
            if inherited.to_str().is_some_and(is_setting) {
                command.env_remove(inherited);
            }
        }
        let child = command
            .arg("serve")
            .envs(environment.iter().map(|(key, value)| (*key, value)))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        fs::write(pid_file(&self.settings, name), child.id().to_string())?;
        self.running.push((name, child));
        self.healthy(name, address, patience).await.with_context(|| format!("see {}", log.display()))
    }

    async fn healthy(&mut self, name: &str, address: SocketAddr, patience: Duration) -> Result<()> {
        let channel = verdict_chassis::client::connect(&format!("http://{address}"))?;
        let mut health = HealthClient::new(channel);
        let since = Instant::now();
        loop {
            let answer = health.check(HealthCheckRequest { service: String::new() }).await;
            // Before the answer counts: with the child gone, somebody else gave it.
            if let Some((_, child)) = self.running.last_mut()
                && let Some(status) = child.try_wait()?
            {
                bail!("{name} ended with {status} before it was healthy");
            }
            if answer.is_ok_and(|answer| answer.into_inner().status == ServingStatus::Serving as i32) {
                return Ok(());
            }
            if since.elapsed() > patience {
                bail!("{name} is not healthy after {} s", patience.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        while let Some((name, mut child)) = self.running.pop() {
            // One that has ended by itself has no pid any more.
            let has_ended = matches!(child.try_wait(), Ok(Some(_)));
            let stopped = has_ended
                || i32::try_from(child.id()).ok().and_then(Pid::from_raw).is_some_and(|pid| {
                    kill_process(pid, Signal::TERM).is_ok()
                        && wait_until(STOP_GRACE, || matches!(child.try_wait(), Ok(Some(_))))
                });
            if !stopped {
                eprintln!("{name} did not stop in {} s and is killed", STOP_GRACE.as_secs());
                child.kill().ok();
                child.wait().ok();
            }
            fs::remove_file(pid_file(&self.settings, name)).ok();
        }
    }
}

/// Stops what `up` left running; fine when nothing is.
pub(crate) async fn down(settings: &Settings) -> Result<()> {
    for name in ["rag", "predict", "model-registry"] {
        let file = pid_file(settings, name);
        let Some(pid) = running_pid(&file) else {
            println!("{name} is not running");
            fs::remove_file(&file).ok();
            continue;
        };
        kill_process(pid, Signal::TERM).with_context(|| format!("cannot stop {name}"))?;
        if !wait_until(STOP_GRACE, || running_pid(&file).is_none()) {
            kill_process(pid, Signal::KILL).with_context(|| format!("cannot kill {name}"))?;
            println!("{name} did not stop in {} s and was killed", STOP_GRACE.as_secs());
        } else {
            println!("{name} stopped");
        }
        fs::remove_file(&file).ok();
    }
    Ok(())
}

fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let since = Instant::now();
    while !done() {
        if since.elapsed() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// Every address the services listen on, and whose it is.
fn addresses(settings: &Settings) -> [(&'static str, SocketAddr); 7] {
    [
        ("model-registry", settings.registry),
        ("model-registry's admin server", settings.registry_admin),
        ("model-registry's MLflow API", settings.registry_mlflow),
        ("predict", settings.predict),
        ("predict's admin server", settings.predict_admin),
        ("rag", settings.rag),
        ("rag's admin server", settings.rag_admin),
    ]
}

fn is_setting(name: &str) -> bool {
    SETTINGS.iter().any(|setting| name.starts_with(setting))
}

fn bin_dir(settings: &Settings) -> Result<PathBuf> {
    match &settings.bin_dir {
        Some(dir) => Ok(dir.clone()),
        None => {
            let me = std::env::current_exe().context("cannot find this program's folder; give --bin-dir")?;
            Ok(me.parent().unwrap_or(Path::new(".")).to_owned())
        }
    }
}

fn pid_file(settings: &Settings, name: &str) -> PathBuf {
    settings.data_dir.join("run").join(format!("{name}.pid"))
}

/// The pid in the file, if that process lives and is ours: a pid may have been given to another program since.
fn running_pid(file: &Path) -> Option<Pid> {
    let pid = Pid::from_raw(fs::read_to_string(file).ok()?.trim().parse().ok()?)?;
    test_kill_process(pid).ok()?;
    let command = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    let name = file.file_stem()?.to_string_lossy().into_owned();
    let zombie = command.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
    (command.is_empty() || (command.contains(&format!("({name}")) && !zombie)).then_some(pid)
}
