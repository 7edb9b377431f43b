//! Asks a server as fast as it answers, over connections that stay open.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::data::{EXPERIMENT, MODELS, TEAMS, model};

/// Metrics in a batch.
const BATCH: usize = 1000;
/// Metrics that a batch has values of.
const KEYS: usize = 10;

/// What is asked for, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Alias,
    LogMetric,
    LogBatch,
    VersionsByName,
    VersionsByTag,
    RunsByMetric,
}

impl Work {
    pub(super) const ALL: [Self; 6] =
        [Self::Alias, Self::VersionsByName, Self::VersionsByTag, Self::RunsByMetric, Self::LogMetric, Self::LogBatch];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Alias => "version by alias",
            Self::LogMetric => "log-metric",
            Self::LogBatch => "log-batch (1000)",
            Self::VersionsByName => "search versions by name",
            Self::VersionsByTag => "search versions by tag",
            Self::RunsByMetric => "search runs by metric",
        }
    }

    fn logs(self) -> bool {
        matches!(self, Self::LogMetric | Self::LogBatch)
    }
}

/// A server, and what is asked of it.
pub(super) struct Target {
    address: SocketAddr,
    work: Work,
    /// Of the experiment that is searched.
    experiment: String,
    /// The run each client logs to.
    runs: Vec<String>,
    /// Requests made so far: each is another one.
    made: AtomicUsize,
}

/// What one round came to.
pub(super) struct Round {
    pub(super) per_second: f64,
    pub(super) latencies: Vec<Duration>,
    /// Calls that were not answered with 200.
    pub(super) failed: usize,
}

impl Target {
    /// Finds the data on the server, and begins a run for each client where `work` logs.
    pub(super) async fn new(address: SocketAddr, work: Work, clients: usize) -> Result<Self> {
        let mut connection = Connection::open(address).await?;
        let path = format!("/api/2.0/mlflow/experiments/get-by-name?experiment_name={EXPERIMENT}");
        let found = connection.json(Request::get(path).body(Full::default())?).await?;
        let experiment = found["experiment"]["experiment_id"].as_str().context("no experiment id")?.to_owned();
        let mut runs = vec![String::new(); clients];
        if work.logs() {
            for run in &mut runs {
                let begin = json!({"experiment_id": "0", "start_time": 1});
                let made = connection.json(post("runs/create", &begin)?).await?;
                *run = made["run"]["info"]["run_id"].as_str().context("no run id")?.to_owned();
            }
        }
        Ok(Self { address, work, experiment, runs, made: AtomicUsize::new(0) })
    }

    /// The next request of a client.
    fn request(&self, client: usize) -> Result<Request<Full<Bytes>>> {
        let at = self.made.fetch_add(1, Ordering::Relaxed);
        let get = |path: String| Ok(Request::get(format!("/api/2.0/mlflow/{path}")).body(Full::default())?);
        let run = &self.runs[client];
        match self.work {
            Work::Alias => get(format!("registered-models/alias?name={}&alias=champion", model(at % MODELS))),
            Work::VersionsByName => {
                get(format!("model-versions/search?filter=name%3D%27{}%27&max_results=100", model(at % MODELS)))
            }
            Work::VersionsByTag => {
                let filter = format!("tags.team%3D%27team-{}%27", at % TEAMS);
                get(format!("model-versions/search?filter={filter}&max_results=100"))
            }
            Work::RunsByMetric => post(
                "runs/search",
                &json!({
                    "experiment_ids": [self.experiment],
                    "filter": format!("metrics.`metric-{}` < 0.1", at % 10),
                    "max_results": 100,
                }),
            ),
            Work::LogMetric => post(
                "runs/log-metric",
                &json!({"run_id": run, "key": "loss", "value": at as f64 / 7.0, "timestamp": at, "step": at}),
            ),
            Work::LogBatch => {
                let metric = |of: usize| {
                    let step = at * BATCH / KEYS + of / KEYS;
                    json!({"key": format!("loss-{}", of % KEYS), "value": of as f64 / 7.0, "timestamp": at, "step": step})
                };
                let metrics: Vec<Value> = (0..BATCH).map(metric).collect();
                post("runs/log-batch", &json!({"run_id": run, "metrics": metrics}))
            }
        }
    }
}

fn post(path: &str, body: &Value) -> Result<Request<Full<Bytes>>> {
    let request = Request::post(format!("/api/2.0/mlflow/{path}")).header("content-type", "application/json");
    Ok(request.body(Full::from(serde_json::to_vec(body)?))?)
}

/// One connection that stays open.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    pub(super) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host: address.to_string() })
    }

    /// Sends a request and reads the whole answer; anything but 200 is an error.
    pub(super) async fn ask(&mut self, mut request: Request<Full<Bytes>>) -> Result<Bytes> {
        request.headers_mut().insert("host", self.host.parse()?);
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status == 200, "{status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    async fn json(&mut self, request: Request<Full<Bytes>>) -> Result<Value> {
        Ok(serde_json::from_slice(&self.ask(request).await?)?)
    }
}

/// Has every client ask as fast as it is answered for `time`; what is under way then is waited for and counts. What a server
/// fails at ends it, unless it `may_fail`: then it is counted apart.
pub(super) async fn measure(target: &Target, time: Duration, may_fail: bool) -> Result<Round> {
    let mut connections = Vec::new();
    for _ in &target.runs {
        connections.push(Connection::open(target.address).await?);
    }
    let clients = connections.into_iter().enumerate();
    let warm = clients.map(async |(client, mut connection)| {
        if let Err(failure) = connection.ask(target.request(client)?).await {
            ensure!(may_fail, failure);
            connection = Connection::open(target.address).await?;
        }
        anyhow::Ok((client, connection))
    });
    let warm = futures::future::try_join_all(warm).await?;
    let began = Instant::now();
    let ask = async |client: usize, mut connection: Connection| {
        let (mut latencies, mut failed) = (Vec::new(), 0);
        while began.elapsed() < time {
            let request = target.request(client)?;
            let asked = Instant::now();
            match connection.ask(request).await {
                Ok(_) => latencies.push(asked.elapsed()),
                Err(_) if may_fail => {
                    failed += 1;
                    connection = Connection::open(target.address).await?;
                }
                Err(failure) => return Err(failure),
            }
        }
        anyhow::Ok((latencies, failed))
    };
    let asked = futures::future::try_join_all(warm.into_iter().map(|(client, connection)| ask(client, connection)));
    let (latencies, failed): (Vec<_>, Vec<usize>) = asked.await?.into_iter().unzip();
    let latencies = latencies.concat();
    ensure!(!latencies.is_empty(), "nothing was answered in {time:?}");
    let per_second = latencies.len() as f64 / began.elapsed().as_secs_f64();
    Ok(Round { per_second, latencies, failed: failed.into_iter().sum() })
}
