//! The story, step by step.

mod ask;
mod decide;
mod ingest;
mod swap;

use std::{fs, time::Instant};

use anyhow::{Context, Result};
use serde_json::json;
use verdict_api::{
    predict::{ListServedModelsRequest, predict_service_client::PredictServiceClient},
    registry::Task,
};
use verdict_chassis::{client, stop};

use crate::{
    Settings, publish,
    stack::Stack,
    tell::{self, Step},
};

/// Plays the whole story, then stops the services. Interrupted, it stops them too.
pub(crate) async fn run(settings: &Settings) -> Result<()> {
    let since = Instant::now();
    let mut stack = Stack::new(settings)?;
    let played = tokio::select! {
        played = start_and_play(settings, &mut stack) => played,
        () = interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    let step = Step::begin("Stop the services");
    drop(stack);
    step.end("stopped");
    played?;
    println!(
        "\nThe story took {}. Logs are in {}.",
        tell::span(since.elapsed()),
        settings.data_dir.join("logs").display()
    );
    Ok(())
}

/// Starts the services with the demo models, or on what the registry has, and leaves them running.
pub(crate) async fn up(settings: &Settings, as_is: bool) -> Result<()> {
    let mut stack = Stack::new(settings)?;
    let started = tokio::select! {
        started = start(settings, &mut stack, as_is) => started,
        () = interrupted() => Err(anyhow::anyhow!("interrupted")),
    };
    started?;
    stack.leave_running();
    println!(
        "\nRunning: model-registry {} (MLflow: http://{}), predict {}, rag {}. `make down` stops them; `make demo` needs them stopped.",
        settings.registry, settings.registry_mlflow, settings.predict, settings.rag
    );
    Ok(())
}

async fn interrupted() {
    stop::on_signal().cancelled().await;
}

/// Registry, models unless it has them, predict, rag.
async fn start(settings: &Settings, stack: &mut Stack, as_is: bool) -> Result<()> {
    let database = settings.stores.registry_database.as_ref().map_or("SQLite", |_| "PostgreSQL");
    let files = settings.stores.artifact_store.as_ref().map_or("a folder", |_| "S3");
    let step = Step::begin(format!("Start model-registry ({database}, artifacts in {files})"));
    stack.start_registry().await?;
    step.end(format!("healthy at {}", settings.registry));
    if !as_is {
        publish_models(settings).await?;
    }

    let step = Step::begin("Start predict: it resolves, downloads, verifies and warms what it serves");
    stack.start_predict().await?;
    let mut predict = PredictServiceClient::new(client::connect(&format!("http://{}", settings.predict))?);
    for model in predict.list_served_models(ListServedModelsRequest {}).await?.into_inner().models {
        tell::detail(format!("{} → version {}, {}", model.reference, model.version, model.state().as_str_name()));
    }
    tell::grpcurl(settings.predict, "verdict.predict.v1.PredictService/ListServedModels", &json!({}));
    step.end(format!("all warm at {}", settings.predict));

    let step = Step::begin("Start rag (qdrant-edge in process)");
    stack.start_rag().await?;
    step.end(format!("healthy at {}", settings.rag));
    Ok(())
}

async fn publish_models(settings: &Settings) -> Result<()> {
    let registry = client::connect(&format!("http://{}", settings.registry))?;
    let step = Step::begin("Publish four models: each file is hashed, uploaded in chunks, verified, then frozen");
    let publications = [
        publish::downloaded(settings, "embedder", Task::TextEmbedding, "all-MiniLM-L6-v2")?,
        publish::downloaded(settings, "reranker", Task::TextReranking, "ms-marco-MiniLM-L-12-v2")?,
        publish::downloaded(settings, "generator", Task::TextGeneration, "gemma-3-270m")?,
        publish::credit_risk(settings, 1, Some(publish::CHAMPION))?,
    ];
    for publication in publications {
        let version = publish::show(&registry, publication).await?;
        let bytes: i64 = version.artifacts.iter().map(|artifact| artifact.size).sum();
        tell::detail(format!(
            "{}/{} = {}@champion, {} files, {:.1} MB, {}",
            version.model,
            version.version,
            version.model,
            version.artifacts.len(),
            bytes as f64 / 1e6,
            tell::one_line(&version.digest, 24),
        ));
    }
    tell::grpcurl(
        settings.registry,
        "verdict.registry.v1.ModelRegistryService/ResolveModel",
        &json!({"uri": "models:/credit-risk@champion"}),
    );
    step.end("published");
    Ok(())
}

async fn start_and_play(settings: &Settings, stack: &mut Stack) -> Result<()> {
    start(settings, stack, false).await?;
    play(settings).await
}

/// Plays the story on services that run.
pub(crate) async fn play(settings: &Settings) -> Result<()> {
    decide::ten_applications(settings).await?;
    ingest::documents(settings).await?;
    ask::questions(settings).await?;
    swap::under_load(settings).await
}

/// Reads a gzipped file of the carried data.
fn carried(settings: &Settings, name: &str) -> Result<String> {
    let file = settings.demo_data.join(name);
    let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(bytes.as_slice()), &mut text)
        .with_context(|| format!("{} is not gzip", file.display()))?;
    Ok(text)
}

/// Says which call failed, and what the service said.
fn failed(call: &str, status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{call}: {:?}: {}", status.code(), status.message())
}
