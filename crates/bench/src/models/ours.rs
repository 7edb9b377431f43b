//! This project's side: registry and predict as processes, callers over gRPC.

use std::{
    collections::BTreeMap,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use model_registry::publish::{Publication, publish, signature_from_json};
use verdict_api::{
    predict::{
        EmbedRequest, Matrix, PredictRequest, predict_request::Input, predict_service_client::PredictServiceClient,
    },
    registry::Task,
};
use verdict_chassis::client::{self, Channel};
use verdict_testkit::{models, net::free_port, process::Child};

use super::Work;

/// In single precision, as its peers are.
pub(crate) const EMBEDDER: &str = "embedder@champion";
/// In the precision a model has that says none.
pub(crate) const FAST_EMBEDDER: &str = "embedder-fast@champion";
pub(crate) const RERANKER: &str = "reranker@champion";
const CREDIT_RISK: &str = "credit-risk@champion";
pub(crate) const GENERATOR: &str = "generator@champion";
/// The first tree of the credit-risk model, for what a call costs besides the model.
pub(super) const ONE_TREE: &str = "one-tree@champion";
/// Columns of the credit-risk model.
pub(super) const COLUMNS: usize = 20;

/// Reference, task, folder, signature and parameters of a model.
type Published<'a> = (&'a str, Task, PathBuf, Option<verdict_api::registry::Signature>, BTreeMap<String, String>);

/// A registry and a predict with the models of the benchmarks; dropped, they are killed.
pub(crate) struct Stack {
    predict: String,
    children: [Child; 2],
    _data: tempfile::TempDir,
}

impl Stack {
    /// Starts both, publishes the models of the rows but generation, and waits until they are warm.
    pub(crate) async fn start(bin_dir: &Path, demo_data: &Path, workers: usize) -> Result<Self> {
        let credit = demo_data.join("credit-risk");
        let signature = signature_from_json(File::open(credit.join("signature.json"))?)?;
        let embedder = models::dir("all-MiniLM-L6-v2");
        let data = tempfile::tempdir()?;
        let smallest = data.path().join("one-tree");
        one_tree(&credit.join("1/model.json"), &smallest)?;
        let fp32 = BTreeMap::from([("precision".to_owned(), "fp32".to_owned())]);
        let none = BTreeMap::new;
        let published = [
            (EMBEDDER, Task::TextEmbedding, embedder.clone(), None, fp32),
            (FAST_EMBEDDER, Task::TextEmbedding, embedder, None, none()),
            (RERANKER, Task::TextReranking, models::dir("ms-marco-MiniLM-L-12-v2"), None, none()),
            (CREDIT_RISK, Task::TabularClassification, credit.join("1"), Some(signature), none()),
            (ONE_TREE, Task::TabularClassification, smallest, None, none()),
        ];
        Self::with(bin_dir, published, ("PREDICT_WORKERS", workers)).await
    }

    /// As `start`, with the generator alone, which computes with `threads`.
    pub(crate) async fn generator(bin_dir: &Path, threads: usize) -> Result<Self> {
        let published = [(GENERATOR, Task::TextGeneration, models::dir("gemma-3-270m"), None, BTreeMap::new())];
        Self::with(bin_dir, published, ("PREDICT_GENERATION_THREADS", threads)).await
    }

    async fn with<const N: usize>(
        bin_dir: &Path,
        published: [Published<'_>; N],
        (setting, value): (&str, usize),
    ) -> Result<Self> {
        let data = tempfile::tempdir()?;
        let local = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (registry, registry_admin, predict, predict_admin) = (local(), local(), local(), local());
        let below = |name: &str| data.path().join(name).display().to_string();
        let mut first = Child::spawn(
            &bin_dir.join("model-registry"),
            &["serve"],
            [
                ("MODEL_REGISTRY_LISTEN", registry.to_string()),
                ("MODEL_REGISTRY_ADMIN_LISTEN", registry_admin.to_string()),
                ("MODEL_REGISTRY_MLFLOW_LISTEN", "none".to_owned()),
                ("MODEL_REGISTRY_DATA_DIR", below("registry")),
            ],
        );
        first.wait_ready(registry_admin, Duration::from_secs(30)).await;
        let channel = client::connect(&format!("http://{registry}"))?;
        let references = published.each_ref().map(|(reference, ..)| *reference).join(",");
        for (reference, task, dir, signature, parameters) in published {
            let model = reference.split('@').next().unwrap_or(reference);
            publish_one(&channel, model, task, dir, signature, parameters).await?;
        }
        let mut second = Child::spawn(
            &bin_dir.join("predict"),
            &["serve"],
            [
                ("PREDICT_LISTEN", predict.to_string()),
                ("PREDICT_ADMIN_LISTEN", predict_admin.to_string()),
                ("PREDICT_DATA_DIR", below("predict")),
                ("PREDICT_MODELS", references),
                // The same texts come again and again: what is measured is the work.
                ("PREDICT_RESPONSE_CACHE_BYTES", "0".to_owned()),
                (setting, value.to_string()),
                ("REGISTRY_URL", format!("http://{registry}")),
            ],
        );
        second.wait_ready(predict_admin, Duration::from_secs(120)).await;
        Ok(Self { predict: format!("http://{predict}"), children: [first, second], _data: data })
    }

    /// The most memory predict ever had.
    pub(crate) fn peak_megabytes(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.children[1].pid()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        Ok(peak.context("the system does not say how much memory a process had")?.trim().parse::<f64>()? / 1024.0)
    }

    /// Has `callers` ask as fast as they are answered for `time`; items per second.
    pub(crate) async fn measure(&self, work: Work, callers: usize, time: Duration) -> Result<f64> {
        let warm = Instant::now() + time / 10;
        let (items, seconds) = {
            let calls: Vec<_> = (0..callers)
                .map(|_| Ok(tokio::spawn(call(self.channel()?, work, warm, warm + time))))
                .collect::<Result<_>>()?;
            let (mut items, mut seconds) = (0.0, 0.0_f64);
            for call in calls {
                let (done, took) = call.await??;
                items += done;
                seconds = seconds.max(took);
            }
            (items, seconds)
        };
        Ok(items / seconds)
    }

    pub(super) fn url(&self) -> &str {
        &self.predict
    }

    pub(crate) fn channel(&self) -> Result<Channel> {
        client::connect(&self.predict)
    }
}

/// Writes the model at `from` with its first tree alone.
fn one_tree(from: &Path, dir: &Path) -> Result<()> {
    let mut model: serde_json::Value = serde_json::from_slice(&std::fs::read(from)?)?;
    let trees = &mut model["learner"]["gradient_booster"]["model"];
    trees["trees"].as_array_mut().context("the model has no trees")?.truncate(1);
    trees["tree_info"].as_array_mut().context("the model has no tree_info")?.truncate(1);
    trees["iteration_indptr"] = serde_json::json!([0, 1]);
    trees["gbtree_model_param"]["num_trees"] = "1".into();
    std::fs::create_dir(dir)?;
    std::fs::write(dir.join("model.json"), serde_json::to_vec(&model)?)?;
    Ok(())
}

async fn publish_one(
    registry: &Channel,
    model: &str,
    task: Task,
    dir: PathBuf,
    signature: Option<verdict_api::registry::Signature>,
    parameters: BTreeMap<String, String>,
) -> Result<()> {
    let publication = Publication {
        model: model.to_owned(),
        description: String::new(),
        task,
        signature,
        parameters,
        tags: BTreeMap::new(),
        dir,
        alias: Some("champion".to_owned()),
        request_id: None,
    };
    publish(registry.clone(), publication, |_, _, _| {}).await.with_context(|| format!("cannot publish `{model}`"))?;
    Ok(())
}

/// Asks again and again; counts what was answered between `warm` and `until`.
async fn call(channel: Channel, work: Work, warm: Instant, until: Instant) -> Result<(f64, f64)> {
    let mut predict = PredictServiceClient::new(channel).max_decoding_message_size(64 << 20);
    let (mut items, mut since, mut last) = (0_usize, None, Instant::now());
    let embed = |batch, tokens: usize| EmbedRequest {
        model: EMBEDDER.into(),
        // [CLS] and [SEP] are tokens too.
        inputs: vec![vec!["bank"; tokens - 2].join(" "); batch],
        ..Default::default()
    };
    let matrix = |rows: usize| PredictRequest {
        model: CREDIT_RISK.into(),
        input: Some(Input::Matrix(Matrix {
            columns: COLUMNS as u32,
            values: (0..rows * COLUMNS).map(|at| ((at * 7919) % 5) as f32 + (at % 3) as f32).collect(),
        })),
    };
    while last < until {
        let done = match work {
            Work::Embed { batch, tokens } => {
                let answer = predict.embed(embed(batch, tokens)).await?.into_inner();
                ensure!(answer.embeddings.iter().all(|one| one.tokens as usize == tokens), "other token counts");
                answer.embeddings.len()
            }
            Work::Predict { rows } => predict.predict(matrix(rows)).await?.into_inner().probabilities.len(),
        };
        last = Instant::now();
        match since {
            None if last >= warm => since = Some(last),
            None => {}
            Some(_) => items += done,
        }
    }
    let since = since.context("no call ended in time")?;
    ensure!(items > 0, "a call takes longer than a round: give more --seconds");
    Ok((items as f64, last.duration_since(since).as_secs_f64()))
}
