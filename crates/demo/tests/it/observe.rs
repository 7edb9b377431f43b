//! A real Prometheus watches the three services with the rules as they are shipped, thirty times as fast.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tonic::Code;
use verdict_api::predict::predict_service_client::PredictServiceClient;
use verdict_api::predict::serving_service_client::ServingServiceClient;
use verdict_api::predict::{
    Challenger, EmbedRequest, Guard, LoadModelRequest, PredictRequest, Route, Row, Rows, SetRouteRequest, Shadow,
    UnloadModelRequest, Value as Feature, predict_request::Input, value::Kind,
};
use verdict_api::registry::CreateModelRequest;
use verdict_api::registry::model_registry_service_client::ModelRegistryServiceClient;
use verdict_chassis::client::{self, Channel};
use verdict_testkit::net::{self, free_port};
use verdict_testkit::process::Child;
use verdict_testkit::required;

use crate::{Demo, root};

/// How much faster than life the rules run: `for: 5m` is ten seconds.
const FASTER: u64 = 30;
/// How long anything that must happen may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// A demo that is ended when the test ends.
struct Running(Demo);

impl Running {
    fn start(data: &Path) -> Self {
        let running = Self(Demo::new(data));
        for verb in ["up", "play"] {
            let output = running.0.run(verb);
            let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{verb}:\n{told}\n{said}");
        }
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.run("down");
    }
}

/// Turns `[5m]`, `offset 15m` and `for: 5m` into a thirtieth of themselves.
fn faster(rules: &str) -> String {
    let mut text = String::with_capacity(rules.len());
    let mut rest = rules;
    while let Some((at, mark)) =
        ["[", "offset ", "for: "].iter().filter_map(|mark| Some((rest.find(mark)?, mark))).min()
    {
        let (before, after) = rest.split_at(at + mark.len());
        text.push_str(before);
        rest = after;
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (amount, unit) = after.split_at(digits);
        let seconds = match (amount.parse::<u64>(), unit.chars().next()) {
            (Ok(amount), Some('m')) => amount * 60,
            (Ok(amount), Some('h')) => amount * 3600,
            (Ok(amount), Some('d')) => amount * 86_400,
            _ => continue,
        };
        text.push_str(&format!("{}s", (seconds / FASTER).max(1)));
        rest = &unit[1..];
    }
    text + rest
}

struct Prometheus {
    address: SocketAddr,
    process: Child,
}

impl Prometheus {
    async fn watch(demo: &Demo, dir: &Path) -> Self {
        let rules = dir.join("rules");
        fs::create_dir(&rules).unwrap();
        for service in ["model-registry", "predict", "rag"] {
            let shipped = fs::read_to_string(root().join(format!("charts/{service}/rules/{service}.yaml"))).unwrap();
            fs::write(rules.join(format!("{service}.yaml")), faster(&shipped)).unwrap();
        }
        let job = |name: &str, admin: SocketAddr| json!({"job_name": name, "static_configs": [{"targets": [admin.to_string()]}]});
        let config = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules.join("*.yaml")],
            "scrape_configs": [
                job("model-registry", demo.registry_admin),
                job("predict", demo.predict_admin),
                job("rag", demo.rag_admin),
            ],
        });
        // JSON is YAML.
        let file = dir.join("prometheus.yml");
        fs::write(&file, config.to_string()).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let arguments = [
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", dir.join("data").display()),
            format!("--web.listen-address={address}"),
            "--enable-feature=exemplar-storage".to_owned(),
        ];
        let arguments = arguments.each_ref().map(String::as_str);
        let mut process = Child::spawn(Path::new(&required("TEST_PROMETHEUS")), &arguments, [("GOMAXPROCS", "1")]);
        process.wait_listening(address, PATIENCE).await;
        Self { address, process }
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = net::get(self.address, path).await.unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str::<Value>(&body).unwrap()["data"].take()
    }

    /// Names of alerts that fire, each with its job.
    async fn firing(&self) -> BTreeSet<(String, String)> {
        let alerts = self.get("/api/v1/alerts").await;
        let alerts = alerts["alerts"].as_array().unwrap().iter().filter(|alert| alert["state"] == "firing");
        let label = |alert: &Value, name: &str| alert["labels"][name].as_str().unwrap_or_default().to_owned();
        alerts.map(|alert| (label(alert, "alertname"), label(alert, "job"))).collect()
    }

    async fn fires(&self, alert: &str, job: &str) -> bool {
        self.firing().await.contains(&(alert.to_owned(), job.to_owned()))
    }

    /// Waits until nothing of `wanted` is missing among the names it has series of.
    async fn has_names(&self, wanted: &BTreeSet<String>) {
        let until = Instant::now() + PATIENCE;
        loop {
            let names = self.get("/api/v1/label/__name__/values").await;
            let names: BTreeSet<_> = names.as_array().unwrap().iter().filter_map(|name| name.as_str()).collect();
            let missing: Vec<_> = wanted.iter().filter(|name| !names.contains(name.as_str())).collect();
            if missing.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "rules or dashboards name what no service exports: {missing:?}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn has_fired(&self, alert: &str, job: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.fires(alert, job).await {
            assert!(Instant::now() < until, "{alert} of {job} does not fire; these do: {:?}", self.firing().await);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Every name a rule or dashboard is built on, as the check of `make check-observe` reads them.
fn named() -> BTreeSet<String> {
    let output = Command::new(root().join("scripts/check_observe.sh")).arg("names").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Runs the commands of the runbooks on the services.
fn runbooks(demo: &Demo) {
    let addresses = [
        ("REGISTRY", demo.registry),
        ("REGISTRY_ADMIN", demo.registry_admin),
        ("PREDICT", demo.predict),
        ("PREDICT_ADMIN", demo.predict_admin),
        ("RAG", demo.rag),
        ("RAG_ADMIN", demo.rag_admin),
    ];
    let mut command = Command::new(root().join("scripts/run_runbooks.py"));
    command.envs(addresses.iter().map(|(name, address)| (*name, address.to_string())));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn channel(address: SocketAddr) -> Channel {
    client::connect(&format!("http://{address}")).unwrap()
}

/// The first of the carried applications.
fn application() -> Row {
    let text = fs::read_to_string(root().join("crates/demo/data/credit-risk/applications.json")).unwrap();
    let applications: Vec<serde_json::Map<String, Value>> = serde_json::from_str(&text).unwrap();
    let kind = |value: &Value| match value {
        Value::String(text) => Kind::Text(text.clone()),
        other => Kind::Number(other.as_f64().unwrap()),
    };
    let features = applications[0].iter().map(|(name, value)| (name.clone(), Feature { kind: Some(kind(value)) }));
    Row { features: features.collect() }
}

/// Does what the story leaves out: a webhook whose receiver is not there, a model loaded and unloaded by call, a route with
/// a shadow and a challenger that is slower than its guard allows.
async fn use_the_rest(demo: &Demo) {
    let hook = json!({
        "name": "nobody", "url": "https://receiver.invalid/",
        "events": [{"entity": "REGISTERED_MODEL", "action": "CREATED"}],
    });
    let path = "/api/2.0/mlflow/webhooks";
    let (status, body) = net::send(demo.registry_mlflow, "POST", path, hook.to_string().as_bytes()).await.unwrap();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let model = CreateModelRequest { name: "told-of".into(), ..Default::default() };
    ModelRegistryServiceClient::new(channel(demo.registry)).create_model(model).await.unwrap();

    let mut serving = ServingServiceClient::new(channel(demo.predict));
    let first = "credit-risk/1".to_owned();
    let load = LoadModelRequest { reference: first.clone(), ..Default::default() };
    serving.load_model(load.clone()).await.unwrap();
    serving.unload_model(UnloadModelRequest { reference: first.clone(), ..Default::default() }).await.unwrap();
    serving.load_model(load).await.unwrap();
    let route = Route {
        name: "scoring".into(),
        champion: "credit-risk@champion".into(),
        challengers: vec![Challenger { reference: first.clone(), weight: 0.5, ..Default::default() }],
        shadows: vec![Shadow { reference: first, share: None }],
        guard: Some(Guard {
            window: 50,
            min_calls: 20,
            max_latency_p99: Some(prost_types::Duration { seconds: 0, nanos: 1000 }),
            ..Default::default()
        }),
        ..Default::default()
    };
    serving.set_route(SetRouteRequest { route: Some(route), ..Default::default() }).await.unwrap();
    let mut predict = PredictServiceClient::new(channel(demo.predict));
    let row = application();
    for _ in 0..200 {
        let input = Some(Input::Rows(Rows { rows: vec![row.clone()] }));
        predict.predict(PredictRequest { model: "scoring".into(), input }).await.unwrap();
    }
}

/// Asks for more than the embedder's queue holds until `enough`; returns how many calls were refused.
async fn overload(predict: SocketAddr, enough: impl AsyncFn() -> bool) -> usize {
    let client = PredictServiceClient::new(channel(predict));
    let until = Instant::now() + PATIENCE;
    let (mut refused, mut round) = (0, 0);
    while !enough().await {
        assert!(Instant::now() < until, "{refused} calls were refused and it was not noticed");
        round += 1;
        let calls = (0..8).map(|call| {
            let mut client = client.clone();
            let inputs = (0..1024).map(|text| format!("text {text} of call {call} in round {round}")).collect();
            async move {
                client.embed(EmbedRequest { model: "embedder@champion".into(), inputs, ..Default::default() }).await
            }
        });
        for answer in futures::future::join_all(calls).await {
            match answer {
                Ok(_) => {}
                Err(status) if status.code() == Code::ResourceExhausted => refused += 1,
                Err(status) => panic!("{status:?}"),
            }
        }
    }
    refused
}

mod live {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn prometheus_finds_every_metric_that_is_named_and_alerts_fire_when_they_should() {
        let (data, watching) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let running = Running::start(data.path());
        let demo = &running.0;
        let prometheus = Prometheus::watch(demo, watching.path()).await;
        use_the_rest(demo).await;
        prometheus.has_names(&named()).await;
        prometheus.has_fired("ChallengerStopped", "predict").await;

        assert!(!prometheus.fires("QueueRefusals", "predict").await, "nothing was refused yet");
        let noticed = async || prometheus.fires("QueueRefusals", "predict").await;
        assert!(overload(demo.predict, noticed).await > 0);

        runbooks(demo);
        let exemplars = prometheus.get("/api/v1/query_exemplars?query=http_request_duration_seconds_bucket").await;
        assert!(exemplars.to_string().contains("trace_id"), "{exemplars}");
        let rules = prometheus.get("/api/v1/rules").await.to_string();
        assert!(rules.contains(r#""health":"ok""#) && !rules.contains(r#""health":"err""#), "{rules}");

        assert!(!prometheus.fires("ServiceDown", "rag").await, "rag runs");
        let pid = fs::read_to_string(data.path().join("run/rag.pid")).unwrap();
        assert!(Command::new("kill").args(["-TERM", pid.trim()]).status().unwrap().success());
        prometheus.has_fired("ServiceDown", "rag").await;
        assert!(!prometheus.fires("ServiceDown", "predict").await, "{}", prometheus.process.log());
    }
}

#[test]
fn rules_are_made_faster_and_stay_as_they_are_otherwise() {
    let rules = "expr: rate(a[5m]) > 0.1 and b[$x] offset 15m\nfor: 1h # [up]\nfor: 10s";
    assert_eq!(faster(rules), "expr: rate(a[10s]) > 0.1 and b[$x] offset 30s\nfor: 120s # [up]\nfor: 10s");
}
