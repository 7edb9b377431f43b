//! Rows on texts as they come: mixed lengths, a single short query, a list of passages to rerank; in single precision
//! and in the fast one a model has by default. The peers have the token ids, grouped by length; ours tokenizes.

use std::{
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;
use verdict_api::predict::{EmbedRequest, RerankRequest, predict_service_client::PredictServiceClient};
use verdict_chassis::client::Channel;
use verdict_inference::text::{Encoded, TextTokenizer};
use verdict_testkit::models;

use super::{
    ours::{EMBEDDER, FAST_EMBEDDER, RERANKER, Stack},
    peer::{Round, read},
    quality::Corpus,
};
use crate::{Cli, median};

/// Texts of the corpus a round goes through as a whole, evenly taken from all of it.
const SAMPLE: usize = 256;
/// Texts of one call.
const BATCH: usize = 64;
/// Passages of one query.
const PASSAGES: usize = 100;
const QUESTION: &str = "does aspirin lower the risk of colorectal cancer";

/// What a row measures, and which peers compute the same.
struct Row {
    name: &'static str,
    work: Work,
    peers: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Work {
    /// Texts of the corpus with this model; texts per second.
    Embed(&'static str),
    /// One text of 32 tokens in a call, one caller, whatever the threads; calls per second.
    Query(&'static str),
    /// Passages of the corpus against one query; passages per second.
    Rerank,
}

const ROWS: [Row; 5] = [
    Row {
        name: "texts: embed SciFact, fp32",
        work: Work::Embed(EMBEDDER),
        peers: &["onnxruntime-fp32", "openvino-fp32"],
    },
    Row {
        name: "texts: embed SciFact, fast",
        work: Work::Embed(FAST_EMBEDDER),
        peers: &["onnxruntime-int8", "openvino-bf16"],
    },
    Row { name: "texts: query, fp32", work: Work::Query(EMBEDDER), peers: &["onnxruntime-fp32", "openvino-fp32"] },
    Row { name: "texts: query, fast", work: Work::Query(FAST_EMBEDDER), peers: &["onnxruntime-int8", "openvino-bf16"] },
    Row { name: "texts: rerank 100, fast", work: Work::Rerank, peers: &["onnxruntime-int8", "openvino-bf16"] },
];

/// Says whether the filter names a row of these.
pub(super) fn wanted(cli: &Cli) -> bool {
    ROWS.iter().any(|row| row.name.contains(&cli.rows))
}

/// Measures the rows whose names contain the filter.
pub(super) async fn run(cli: &Cli, stack: &Stack, threads: usize) -> Result<()> {
    let corpus = cli.scifact.as_deref().map(Corpus::load).transpose()?;
    for row in ROWS.iter().filter(|row| row.name.contains(&cli.rows)) {
        let texts = match (&row.work, &corpus) {
            (Work::Query(_), _) => vec![vec!["bank"; 30].join(" ")],
            (_, None) => {
                println!(
                    "{:<26} {threads:>7} left out: neither --scifact nor BENCH_SCIFACT says where SciFact is",
                    row.name
                );
                continue;
            }
            (work, Some(corpus)) => {
                let most = if matches!(work, Work::Rerank) { PASSAGES } else { SAMPLE };
                corpus.texts.iter().step_by((corpus.texts.len() / most).max(1)).take(most).cloned().collect()
            }
        };
        let inputs = tempfile::NamedTempFile::new()?;
        let model = write_inputs(row.work, &texts, inputs.path())?;
        let callers = if matches!(row.work, Work::Embed(_)) { threads } else { 1 };
        let (mut ours, mut theirs) = (Vec::new(), vec![Vec::new(); row.peers.len()]);
        let mut names = vec![String::new(); row.peers.len()];
        for _ in 0..cli.rounds {
            ours.push(measure(stack, row.work, &texts, callers, Duration::from_secs_f64(cli.seconds)).await?);
            for (at, peer) in row.peers.iter().enumerate() {
                let round = run_peer(cli, &model, inputs.path(), peer, threads)?;
                theirs[at].push(round.median_per_s);
                names[at] = format!("{} {}", round.peer, round.version);
            }
        }
        let ours = median(ours);
        for (theirs, name) in theirs.into_iter().map(median).zip(names) {
            println!("{:<26} {threads:>7} {ours:>12.1} {theirs:>12.1} {:>7.2}  {name}", row.name, ours / theirs);
        }
    }
    Ok(())
}

/// Writes what the peers read, and says of which model.
fn write_inputs(work: Work, texts: &[String], path: &Path) -> Result<PathBuf> {
    let (model, length) = match work {
        Work::Rerank => ("ms-marco-MiniLM-L-12-v2", 512),
        Work::Embed(_) | Work::Query(_) => ("all-MiniLM-L6-v2", 256),
    };
    let model = models::dir(model);
    let tokenizer = TextTokenizer::from_file(&model.join("tokenizer.json"), length)?;
    let encode = |text: &String| match work {
        Work::Rerank => tokenizer.encode_pair(QUESTION, text),
        Work::Embed(_) | Work::Query(_) => tokenizer.encode(text, true),
    };
    let encoded = texts.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
    let input = |Encoded { ids, type_ids }: &Encoded| json!({"ids": ids, "type_ids": type_ids});
    let inputs: Vec<_> = encoded.iter().map(input).collect();
    serde_json::to_writer(BufWriter::new(File::create(path)?), &inputs)?;
    Ok(model)
}

fn run_peer(cli: &Cli, model: &Path, inputs: &Path, peer: &str, threads: usize) -> Result<Round> {
    let mut command = Command::new(cli.peers.with_file_name("bench_texts.py"));
    command.arg("--inputs").arg(inputs).arg("--model").arg(model).args(["--peer", peer, "--runs", "1"]);
    command.args(["--threads", &threads.to_string(), "--seconds", &cli.seconds.to_string()]);
    read(command)
}

/// Has `callers` ask as fast as they are answered: texts go round as a whole, once and until `time` is over; texts per second.
async fn measure(stack: &Stack, work: Work, texts: &[String], callers: usize, time: Duration) -> Result<f64> {
    let calls: Vec<&[String]> = match work {
        Work::Embed(_) | Work::Query(_) => texts.chunks(BATCH).collect(),
        Work::Rerank => vec![texts],
    };
    let channels = (0..callers).map(|_| stack.channel()).collect::<Result<Vec<_>>>()?;
    call(channels[0].clone(), work, calls[0]).await?;
    let (began, mut done) = (Instant::now(), 0);
    while done == 0 || began.elapsed() < time {
        let next = AtomicUsize::new(0);
        let ask = async |channel: &Channel| {
            while let Some(texts) = calls.get(next.fetch_add(1, Ordering::Relaxed)) {
                call(channel.clone(), work, texts).await?;
            }
            anyhow::Ok(())
        };
        futures::future::try_join_all(channels.iter().map(ask)).await?;
        done += texts.len();
    }
    Ok(done as f64 / began.elapsed().as_secs_f64())
}

async fn call(channel: Channel, work: Work, texts: &[String]) -> Result<()> {
    let mut predict = PredictServiceClient::new(channel).max_decoding_message_size(64 << 20);
    match work {
        Work::Embed(model) | Work::Query(model) => {
            let request = EmbedRequest { model: model.into(), inputs: texts.to_vec(), truncate: true, normalize: None };
            let answer = predict.embed(request).await?.into_inner();
            ensure!(answer.embeddings.iter().all(|one| one.error.is_none()), "a text is refused");
        }
        Work::Rerank => {
            let documents = texts.to_vec();
            let request = RerankRequest { model: RERANKER.into(), query: QUESTION.into(), documents, top_n: 0 };
            let answer = predict.rerank(request).await?.into_inner();
            ensure!(answer.failed.is_empty(), "a passage is refused");
        }
    }
    Ok(())
}
