//! A large file up and down, over MLflow's REST API and over gRPC, and what our server's memory does meanwhile.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures::TryStreamExt;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::{
    Request,
    body::{Body, Bytes, Frame},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use model_registry::publish::{Publication, publish};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_util::io::ReaderStream;
use verdict_api::registry::{
    DownloadArtifactRequest, Task, download_artifact_response::Part,
    model_registry_service_client::ModelRegistryServiceClient,
};
use verdict_chassis::client;

use super::servers::{Database, Ours};
use crate::Cli;

/// How much memory the server may take on.
const GROWTH_BYTES: u64 = 64 << 20;
const CHUNK: usize = 1 << 20;
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

/// Sends the file up and down, both ways.
pub(super) async fn run(cli: &Cli) -> Result<()> {
    let (dir, files) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut ours = Ours::start(
        &Cli { registry: super::Options { versions: 2, runs: 1, ..cli.registry.clone() }, ..cli.clone() },
        &Database::sqlite(dir.path()),
    )
    .await?;
    let size = cli.registry.file_mib << 20;
    let file = files.path().join("weights");
    write(&file, cli.registry.file_mib).await?;

    report(&ours, "file up, HTTP", size, put(&ours, &file)).await?;
    report(&ours, "file down, HTTP", size, get(&ours, size)).await?;
    let channel = client::connect(&format!("http://{}", ours.grpc))?;
    let publication = Publication {
        model: "large".to_owned(),
        description: String::new(),
        task: Task::Custom,
        signature: None,
        parameters: BTreeMap::new(),
        tags: BTreeMap::new(),
        dir: files.path().to_owned(),
        alias: None,
        request_id: None,
    };
    let up = async {
        publish(channel.clone(), publication, |_, _, _| {}).await?;
        Ok(())
    };
    report(&ours, "file up, gRPC", size, up).await?;
    let down = async {
        let mut client = ModelRegistryServiceClient::new(channel.clone()).max_decoding_message_size(16 << 20);
        let request = DownloadArtifactRequest {
            model: "large".to_owned(),
            version: 1,
            path: "weights".to_owned(),
            offset: 0,
            length: 0,
        };
        let (mut parts, mut read) = (client.download_artifact(request).await?.into_inner(), 0);
        while let Some(message) = parts.message().await? {
            if let Some(Part::Chunk(chunk)) = message.part {
                read += chunk.len() as u64;
            }
        }
        ensure!(read == size, "{read} bytes came of {size}");
        Ok(())
    };
    report(&ours, "file down, gRPC", size, down).await?;
    ours.stop().await;
    Ok(())
}

/// Runs `transfer`, and prints how fast it was and by how much the server's memory grew.
async fn report(ours: &Ours, name: &str, size: u64, transfer: impl Future<Output = Result<()>>) -> Result<()> {
    let (before, began) = (ours.memory()?, Instant::now());
    let mut most = before;
    let mut transfer = std::pin::pin!(transfer);
    loop {
        tokio::select! {
            done = &mut transfer => break done?,
            () = tokio::time::sleep(SAMPLE_EVERY) => most = most.max(ours.memory()?),
        }
    }
    let (seconds, growth) = (began.elapsed().as_secs_f64(), most - before);
    println!(
        "{name:<24} {:>7} MiB {:>8.0} MiB/s   memory +{} MiB of {}  {}",
        size >> 20,
        (size >> 20) as f64 / seconds,
        growth >> 20,
        GROWTH_BYTES >> 20,
        if growth < GROWTH_BYTES { "holds" } else { "MISSED" }
    );
    Ok(())
}

/// Bytes that no compression or deduplication makes small.
async fn write(path: &Path, mib: u64) -> Result<()> {
    let mut file = tokio::fs::File::create(path).await?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut chunk = vec![0_u8; CHUNK];
    for _ in 0..mib {
        for eight in chunk.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            eight.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&chunk).await?;
    }
    Ok(file.flush().await?)
}

async fn put(ours: &Ours, file: &Path) -> Result<()> {
    let file = tokio::fs::File::open(file).await?;
    let size = file.metadata().await?.len();
    let body = StreamBody::new(ReaderStream::with_capacity(file, CHUNK).map_ok(Frame::data));
    let request =
        Request::put(PATH).header("content-length", size).header("host", ours.address.to_string()).body(body)?;
    exchange(ours, request).await?;
    Ok(())
}

async fn get(ours: &Ours, size: u64) -> Result<()> {
    let read = exchange(ours, Request::get(PATH).header("host", ours.address.to_string()).body(Empty::new())?).await?;
    ensure!(read == size, "{read} bytes came of {size}");
    Ok(())
}

const PATH: &str = "/api/2.0/mlflow-artifacts/artifacts/large/weights";

/// Sends a request and reads the answer, which is not kept; the number of its bytes.
async fn exchange<B>(ours: &Ours, request: Request<B>) -> Result<u64>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(ours.address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    ensure!(answer.status() == 200, "{}", answer.status());
    let (mut body, mut read) = (answer.into_body(), 0);
    while let Some(frame) = body.frame().await {
        read += frame?.data_ref().map_or(0, |bytes| bytes.len() as u64);
    }
    Ok(read)
}
