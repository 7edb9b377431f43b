//! `import-mlflow`: all that a real MLflow server keeps, in both back-ends, killed on the way and started again.
//!
//! `tests/clients/fill.py` fills the server and `tests/clients/compare.py` compares what both answer, through the ordinary client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

const BINARY: &str = env!("CARGO_BIN_EXE_model-registry");

/// The command, with what it keeps in `data`, whatever the environment of the tests says.
fn command(data: &Path) -> Command {
    let mut command = Command::new(BINARY);
    command.args(["import-mlflow", "--data-dir"]).arg(data);
    for name in ["URI", "USERNAME", "PASSWORD", "TOKEN"] {
        command.env_remove(format!("MLFLOW_TRACKING_{name}"));
    }
    command.env_remove("DATABASE_URL").env_remove("ARTIFACT_STORE");
    command
}

#[test]
fn a_server_that_is_none_or_a_wrong_setting_is_named_and_nothing_is_made() {
    let data = tempfile::tempdir().unwrap();
    let told = |arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        command.arg("import-mlflow").args(arguments).arg("--data-dir").arg(data.path().join("new"));
        for name in
            ["MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"]
        {
            command.env_remove(name);
        }
        let output = command.env_remove("DATABASE_URL").output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let problem = told(&[]);
    assert!(problem.contains("--from"), "{problem}");
    let problem = told(&["--from", "ftp://127.0.0.1"]);
    assert!(problem.contains("--from: must begin with http:// or https://"), "{problem}");
    let problem = told(&["--from", "http://user:hunter2@127.0.0.1"]);
    assert!(problem.contains("MLFLOW_TRACKING_USERNAME") && !problem.contains("hunter2"), "{problem}");
    let problem = told(&["--from", "http://127.0.0.1:1", "--username", "me"]);
    assert!(problem.contains("--password"), "{problem}");
    assert!(!data.path().join("new").exists());
}

/// A server whose list of runs goes round in a circle; it knows nothing else.
fn endless() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let from = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let (mut first, mut line) = (String::new(), String::new());
            let mut length = 0;
            while lines.read_line(&mut line).unwrap() > 2 {
                if let Some(said) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = said.trim().parse().unwrap();
                }
                if first.is_empty() {
                    first.clone_from(&line);
                }
                line.clear();
            }
            lines.read_exact(&mut vec![0; length]).unwrap();
            let experiment =
                r#"{"experiments": [{"experiment_id": "0", "name": "Default", "lifecycle_stage": "active"}]}"#;
            let body = match &first {
                first if first.contains("/experiments/search") => experiment,
                first if first.contains("/runs/search") => r#"{"runs": [], "next_page_token": "round"}"#,
                first if first.contains("/version") => "3.18.0",
                _ => "{}",
            };
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        }
    });
    from
}

#[test]
fn a_list_without_an_end_is_found_out() {
    let data = tempfile::tempdir().unwrap();
    let output = command(data.path()).args(["--from", &endless()]).output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("the pages of runs have no end: the server answers the page token `round` again"), "{told}");
}

/// Answers the first call with 401 and returns the credentials it came with, and what the command then said.
fn refused_with(credentials: &[(&str, &str)]) -> (String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let from = format!("http://{}/below/a/path", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let mut lines = Vec::new();
        let (stream, _) = listener.accept().unwrap();
        for line in BufReader::new(&stream).lines() {
            match line.unwrap() {
                line if line.is_empty() => break,
                line => lines.push(line),
            }
        }
        (&stream).write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno").unwrap();
        lines
    });
    let data = tempfile::tempdir().unwrap();
    let mut command = command(data.path());
    let output = command.args(["--from", &from]).envs(credentials.iter().copied()).output().unwrap();
    assert!(!output.status.success());
    let lines = server.join().unwrap();
    assert_eq!(lines[0], "POST /below/a/path/api/2.0/mlflow/experiments/search HTTP/1.1");
    let sent =
        lines.iter().find_map(|line| line.to_lowercase().starts_with("authorization:").then(|| line[14..].trim()));
    (sent.unwrap_or_default().to_owned(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn user_and_password_or_a_token_come_from_mlflows_own_variables() {
    let user = [("MLFLOW_TRACKING_USERNAME", "ada"), ("MLFLOW_TRACKING_PASSWORD", "p:w")];
    let (sent, told) = refused_with(&user);
    assert_eq!(sent, "Basic YWRhOnA6dw==");
    assert!(
        told.contains("lets nobody in") && told.contains("MLFLOW_TRACKING_TOKEN") && !told.contains("p:w"),
        "{told}"
    );
    let (sent, _) = refused_with(&[user.as_slice(), &[("MLFLOW_TRACKING_TOKEN", "abc")]].concat());
    assert_eq!(sent, "Bearer abc");
    assert_eq!(refused_with(&[]).0, "");
}

mod live {
    use std::net::SocketAddr;
    use std::os::unix::process::CommandExt;
    use std::path::PathBuf;
    use std::process::{Child as Process, Output, Stdio};
    use std::time::{Duration, Instant};

    use serde_json::Value;
    use tempfile::TempDir;
    use verdict_testkit::net::{get, send};
    use verdict_testkit::postgres;
    use verdict_testkit::process::Child;
    use verdict_testkit::s3::Target;

    use super::*;
    use crate::world::{PATIENCE, local};

    /// Long enough for an MLflow server to start on a busy machine: it imports half of Python.
    const SERVER_PATIENCE: Duration = Duration::from_secs(180);

    /// A real `mlflow server` with everything in it.
    struct Server {
        process: Process,
        address: SocketAddr,
        packages: String,
        dir: TempDir,
    }

    impl Server {
        /// Starts the one whose version begins with `version`.
        async fn start(version: &str) -> Self {
            let clients = std::env::var("TEST_MLFLOW_CLIENTS").unwrap_or_default();
            let client = clients.split_whitespace().find_map(|client| client.strip_prefix(&format!("{version}=")));
            let packages =
                client.expect("TEST_MLFLOW_CLIENTS names no such version: run `make test`, which installs them");
            let server =
                std::env::var("TEST_MLFLOW_SERVER").expect("no TEST_MLFLOW_SERVER: run `make test`, which installs it");
            let (dir, address) = (tempfile::tempdir().unwrap(), local());
            let log = std::fs::File::create(dir.path().join("log")).unwrap();
            let process = Command::new("python3")
                .args(["-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1", "--port"])
                .arg(address.port().to_string())
                .arg("--backend-store-uri")
                .arg(format!("sqlite:///{}/mlflow.db", dir.path().display()))
                .arg("--artifacts-destination")
                .arg(dir.path().join("artifacts"))
                .env("PYTHONPATH", format!("{packages}:{server}"))
                .env("MLFLOW_DISABLE_TELEMETRY", "true")
                .env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
                .current_dir(dir.path())
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                // Its workers are processes of their own: they are ended with it, as a group.
                .process_group(0)
                .spawn()
                .unwrap();
            let packages = packages.to_owned();
            let mut server = Self { process, address, packages, dir };
            let deadline = Instant::now() + SERVER_PATIENCE;
            while !matches!(get(address, "/health").await, Ok((200, _))) {
                let log = std::fs::read_to_string(server.dir.path().join("log")).unwrap_or_default();
                assert!(server.process.try_wait().unwrap().is_none() && Instant::now() < deadline, "{log}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            server
        }

        /// Starts and fills one.
        async fn filled(version: &str) -> Self {
            let server = Self::start(version).await;
            let directory = server.dir.path().display().to_string();
            let said = server.python("fill.py", &[&server.url(), &directory]).await;
            assert!(said.contains(&format!("filled with mlflow {version}")), "{said}");
            server
        }

        fn url(&self) -> String {
            format!("http://{}", self.address)
        }

        /// Runs a script of `tests/clients` with the client of the server's own version.
        async fn python(&self, script: &str, arguments: &[&str]) -> String {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script);
            let mut command = Command::new("python3");
            command.arg(script).args(arguments).env("PYTHONPATH", &self.packages).current_dir(self.dir.path());
            let Output { status, stdout, stderr } =
                tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
            let (said, error) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
            assert!(status.success(), "{said}\n{error}");
            said.into_owned()
        }

        /// Compares what it answers with what a registry does.
        async fn compare(&self, registry: &Registry, more: &[&str]) {
            let (mut child, mlflow) = registry.serve().await;
            let said = self.python("compare.py", &[&[&*self.url(), &format!("http://{mlflow}")], more].concat()).await;
            assert!(said.contains("all equal with mlflow"), "{said}");
            assert!(child.terminate(PATIENCE).await.success(), "{}", child.log());
        }

        /// What it answers to a search of MLflow's API.
        async fn rest(&self, path: &str, body: Value) -> Value {
            let (status, answer) = send(self.address, "POST", path, body.to_string().as_bytes()).await.unwrap();
            assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
            serde_json::from_slice(&answer).unwrap()
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let group = format!("-{}", self.process.id());
            let _killed = Command::new("kill").args(["-KILL", "--", &group]).status();
            let _ended = self.process.wait();
        }
    }

    /// Where a registry keeps things, whether it is served or not.
    struct Registry {
        env: Vec<(&'static str, String)>,
        data: TempDir,
    }

    impl Registry {
        fn embedded() -> Self {
            Self { env: Vec::new(), data: tempfile::tempdir().unwrap() }
        }

        async fn production() -> Self {
            let target = Target::from_env();
            let mut env = vec![("DATABASE_URL", postgres::database().await), ("ARTIFACT_STORE", target.url())];
            env.extend(target.env());
            Self { env, data: tempfile::tempdir().unwrap() }
        }

        fn env(&self) -> impl Iterator<Item = (&'static str, String)> {
            let data = ("MODEL_REGISTRY_DATA_DIR", self.data.path().display().to_string());
            self.env.iter().cloned().chain([data])
        }

        async fn serve(&self) -> (Child, SocketAddr) {
            let (listen, admin, mlflow) = (local(), local(), local());
            let env = self.env().chain([
                ("MODEL_REGISTRY_LISTEN", listen.to_string()),
                ("MODEL_REGISTRY_ADMIN_LISTEN", admin.to_string()),
                ("MODEL_REGISTRY_MLFLOW_LISTEN", mlflow.to_string()),
            ]);
            let mut child = Child::spawn(Path::new(BINARY), &["serve"], env);
            child.wait_ready(admin, PATIENCE).await;
            (child, mlflow)
        }

        fn report(&self) -> PathBuf {
            self.data.path().join("report.json")
        }

        fn start(&self, from: &str, more: &[&str]) -> Child {
            let report = self.report().display().to_string();
            let arguments = [&["import-mlflow", "--from", from, "--report", &report], more].concat();
            Child::spawn(Path::new(BINARY), &arguments, self.env())
        }

        /// Imports to the end; answers the report.
        async fn import(&self, from: &str, more: &[&str]) -> Value {
            let mut child = self.start(from, more);
            let status = child.wait(SERVER_PATIENCE).await;
            assert!(status.success(), "{}", child.log());
            serde_json::from_slice(&std::fs::read(self.report()).unwrap()).unwrap()
        }
    }

    const NOTHING: [&str; 9] = [
        "experiments",
        "runs",
        "metric_values",
        "logged_models",
        "registered_models",
        "versions",
        "aliases",
        "files",
        "bytes",
    ];

    fn left_out(report: &Value) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut all: Vec<_> =
            report["left_out"].as_array().unwrap().iter().map(|one| (text(&one["what"]), text(&one["why"]))).collect();
        all.sort();
        all
    }

    /// Imports all of a filled server, then again, and compares.
    async fn imports_all(version: &str, registry: Registry) {
        let server = Server::filled(version).await;
        let planned = registry.import(&server.url(), &["--include-deleted", "--dry-run"]).await;
        let report = registry.import(&server.url(), &["--include-deleted"]).await;
        for part in
            ["experiments", "runs", "logged_models", "registered_models", "versions", "aliases", "files", "bytes"]
        {
            assert_eq!(planned["copied"][part], report["copied"][part], "{part}: {planned}\n{report}");
        }
        // The files the server cannot reach are named, and nothing else is.
        let missing = left_out(&report);
        let whats: Vec<&str> = missing.iter().map(|(what, _)| what.as_str()).collect();
        assert_eq!(whats, ["files of run", "files of version"], "{report}");
        assert!(missing.iter().all(|(_, why)| why.contains("they stay at s3://nowhere/")), "{report}");
        assert_eq!((&report["stopped_by"], &report["dry_run"]), (&Value::Null, &Value::Bool(false)));
        server.compare(&registry, &[]).await;

        let again = registry.import(&server.url(), &["--include-deleted"]).await;
        for part in NOTHING {
            assert_eq!(again["copied"][part], 0, "{part}: {again}");
        }
        for part in ["experiments", "runs", "logged_models", "registered_models", "versions", "aliases"] {
            assert_eq!(again["here_already"][part], report["copied"][part], "{part}: {again}");
        }
        server.compare(&registry, &["--prompts"]).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_of_mlflow_3_18_is_imported() {
        imports_all("3.18", Registry::embedded()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_of_mlflow_2_22_is_imported() {
        imports_all("2.22", Registry::embedded()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_of_mlflow_3_18_is_imported_into_postgres_and_s3() {
        imports_all("3.18", Registry::production().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_of_mlflow_2_22_is_imported_into_postgres_and_s3() {
        imports_all("2.22", Registry::production().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_model_is_imported_without_its_run() {
        let server = Server::filled("3.18").await;
        let registry = Registry::embedded();
        let report = registry.import(&server.url(), &["--model", "credit", "--model", "absent"]).await;
        let (copied, missing) = (&report["copied"], left_out(&report));
        assert_eq!((&copied["experiments"], &copied["runs"], &copied["versions"]), (&0.into(), &0.into(), &2.into()));
        assert_eq!(missing.len(), 1, "{report}");
        assert!(missing[0].1.contains("RESOURCE_DOES_NOT_EXIST"), "{report}");
        // Compares the predictions of what is there.
        server.compare(&registry, &["--partial"]).await;
    }

    /// Kills imports a little later each time until one comes to its end.
    async fn goes_on_after_a_kill(registry: Registry) {
        let server = Server::filled("3.18").await;
        let (mut patience, mut kills) = (Duration::from_millis(250), 0);
        loop {
            let mut child = registry.start(&server.url(), &["--include-deleted", "--concurrency", "1"]);
            let deadline = Instant::now() + patience;
            while Instant::now() < deadline && !registry.report().exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if registry.report().exists() {
                assert!(child.wait(PATIENCE).await.success(), "{}", child.log());
                break;
            }
            child.kill();
            drop(child);
            kills += 1;
            if kills == 4 {
                // In the middle: what is there is whole.
                server.compare(&registry, &["--partial"]).await;
            }
            patience += Duration::from_millis(150);
        }
        assert!(kills >= 4, "killed only {kills} times");
        server.compare(&registry, &[]).await;
        let again = registry.import(&server.url(), &["--include-deleted"]).await;
        for part in NOTHING {
            assert_eq!(again["copied"][part], 0, "{part}: {again}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_import_that_was_killed_goes_on() {
        goes_on_after_a_kill(Registry::embedded()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_import_that_was_killed_goes_on_in_postgres_and_s3() {
        goes_on_after_a_kill(Registry::production().await).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_here_stays_as_it_is_and_a_taken_number_is_mapped() {
        let server = Server::start("3.18").await;
        let create = |name: &str| serde_json::json!({ "name": name });
        for name in ["theirs", "clash"] {
            server.rest("/api/2.0/mlflow/experiments/create", create(name)).await;
        }
        let run = serde_json::json!({"experiment_id": "1", "start_time": 1000, "run_name": "kept"});
        let run = server.rest("/api/2.0/mlflow/runs/create", run).await;
        let run = run["run"]["info"]["run_id"].as_str().unwrap().to_owned();
        server.rest("/api/2.0/mlflow/registered-models/create", create("clash")).await;

        let registry = Registry::embedded();
        let (mut child, mlflow) = registry.serve().await;
        let here = |path: &'static str, body: Value| async move {
            let (status, answer) = send(mlflow, "POST", path, body.to_string().as_bytes()).await.unwrap();
            assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
        };
        for name in ["ours", "clash"] {
            here("/api/2.0/mlflow/experiments/create", create(name)).await;
        }
        here("/api/2.0/mlflow/registered-models/create", create("clash")).await;
        assert!(child.terminate(PATIENCE).await.success());

        let report = registry.import(&server.url(), &[]).await;
        assert_eq!(report["experiment_ids"], serde_json::json!({"1": 3}), "{report}");
        let missing = left_out(&report);
        let whats: Vec<&str> = missing.iter().map(|(what, _)| what.as_str()).collect();
        assert_eq!(whats, ["experiment", "registered model"], "{report}");
        assert!(missing.iter().all(|(_, why)| why.contains("is here already")), "{report}");

        // Changed here, a run stays as it is; changed there, it is not overwritten.
        let (mut child, mlflow) = registry.serve().await;
        let tag = serde_json::json!({"run_id": run, "key": "mine", "value": "yes"});
        let (status, _) =
            send(mlflow, "POST", "/api/2.0/mlflow/runs/set-tag", tag.to_string().as_bytes()).await.unwrap();
        assert_eq!(status, 200);
        let (_, found) = get(mlflow, &format!("/api/2.0/mlflow/runs/get?run_id={run}")).await.unwrap();
        let uri = format!("\"artifact_uri\":\"mlflow-artifacts:/3/{run}/artifacts\"");
        assert!(found.contains(&uri) && found.contains("\"start_time\":1000"), "{found}");
        assert!(child.terminate(PATIENCE).await.success());
        let report = registry.import(&server.url(), &["--experiment", "theirs"]).await;
        let missing = left_out(&report);
        assert_eq!(missing.len(), 1, "{report}");
        assert!(missing[0].1.starts_with("it is here already with other tags;"), "{report}");
        assert_eq!(report["copied"]["runs"], 0);
    }
}
