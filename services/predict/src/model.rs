//! A model version that is loaded, warm and ready to be asked.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use tracing::warn;
use verdict_inference::{
    bert::{Classifier, Embedder, EmbedderOptions, Pooling, Reranker, Run, SparseEmbedder},
    generation::Generator,
    trees::TreeEnsemble,
};

use crate::{
    batch::Limits,
    cache::Files,
    error::{Error, Result},
    generate::Generation,
    metrics::ModelMeters,
    policy::Policy,
    release::{Release, Task},
    schema::Schema,
    tabular::Tabular,
    text::{Classification, Embedding, Reranking, SparseEmbedding},
};

/// A warm model version. Dropping it, after the last call that holds it, ends its workers.
pub struct Loaded {
    pub release: Release,
    pub engine: Engine,
    /// Keeps the files the engine may have mapped.
    _files: Files,
}

/// What runs the model.
pub enum Engine {
    Embedding(Embedding),
    Reranking(Reranking),
    SparseEmbedding(SparseEmbedding),
    Classification(Classification),
    Generation(Generation),
    Tabular(Box<Tabular>),
}

/// How queues and workers of the engines are sized.
#[derive(Clone, Copy, Debug)]
pub struct Sizing {
    pub batch: Limits,
    /// For text generation; its workers run one generation each.
    pub generation: Limits,
}

impl Loaded {
    /// Loads a verified version, runs it once, and starts its workers. Blocks; the error names the file and the problem.
    pub fn load(release: Release, files: Files, sizing: &Sizing) -> anyhow::Result<Self> {
        let dir = files.dir.as_path();
        let name = release.model.clone();
        let threads = NonZeroUsize::new(sizing.batch.workers).unwrap_or(NonZeroUsize::MIN);
        let meters = || ModelMeters::new(&release.model, release.version);
        let engine = match release.task {
            Task::TextEmbedding => {
                let engine = Embedder::load(dir, embedder_options(&release, threads)?)?;
                Engine::Embedding(Embedding::start(name, engine, tokenizer_json(dir)?, sizing.batch, meters())?)
            }
            Task::TextReranking => {
                let engine = Reranker::load(dir, run(&release, threads)?)?;
                Engine::Reranking(Reranking::start(name, engine, tokenizer_json(dir)?, sizing.batch, meters())?)
            }
            Task::TextSparseEmbedding => {
                let engine = SparseEmbedder::load(dir, run(&release, threads)?)?;
                let json = tokenizer_json(dir)?;
                Engine::SparseEmbedding(SparseEmbedding::start(name, engine, json, sizing.batch, meters())?)
            }
            Task::TextClassification => {
                let engine = Classifier::load(dir, run(&release, threads)?)?;
                let json = tokenizer_json(dir)?;
                Engine::Classification(Classification::start(name, engine, json, sizing.batch, meters())?)
            }
            Task::TextGeneration => {
                let engine = Generator::load(&gguf(&release, dir)?)?;
                Engine::Generation(Generation::start(name, engine, sizing.generation, meters())?)
            }
            Task::TabularRegression => {
                bail!("a model that {} cannot be loaded", release.task.does())
            }
            Task::TabularClassification => {
                let path = dir.join("model.json");
                let bytes = std::fs::read(&path).context("a tabular version needs model.json")?;
                let ensemble = TreeEnsemble::from_xgboost_json(&bytes)?;
                let schema = Schema::new(release.inputs.clone(), ensemble.num_features(), ensemble.feature_names())
                    .map_err(anyhow::Error::msg)?;
                let policy = policy(dir, &schema)?;
                let meters = [meters(), meters()];
                Engine::Tabular(Box::new(Tabular::start(name, ensemble, schema, policy, sizing.batch, meters)?))
            }
        };
        Ok(Self { release, engine, _files: files })
    }

    /// Returns the embedding engine, or the error of asking a model for what it does not do.
    pub fn embedding(&self) -> Result<&Embedding> {
        let Engine::Embedding(engine) = &self.engine else { return self.wrong(Task::TextEmbedding) };
        Ok(engine)
    }

    /// Returns the reranking engine.
    pub fn reranking(&self) -> Result<&Reranking> {
        let Engine::Reranking(engine) = &self.engine else { return self.wrong(Task::TextReranking) };
        Ok(engine)
    }

    /// Returns the engine of sparse embeddings.
    pub fn sparse_embedding(&self) -> Result<&SparseEmbedding> {
        let Engine::SparseEmbedding(engine) = &self.engine else { return self.wrong(Task::TextSparseEmbedding) };
        Ok(engine)
    }

    /// Returns the classifying engine.
    pub fn classification(&self) -> Result<&Classification> {
        let Engine::Classification(engine) = &self.engine else { return self.wrong(Task::TextClassification) };
        Ok(engine)
    }

    /// Returns the generating engine.
    pub fn generation(&self) -> Result<&Generation> {
        let Engine::Generation(engine) = &self.engine else { return self.wrong(Task::TextGeneration) };
        Ok(engine)
    }

    /// Returns the tabular engine.
    pub fn tabular(&self) -> Result<&Tabular> {
        let Engine::Tabular(engine) = &self.engine else { return self.wrong(Task::TabularClassification) };
        Ok(engine)
    }

    /// Makes the error of asking this model for what another task does.
    pub fn wrong<T>(&self, wanted: Task) -> Result<T> {
        Err(Error::WrongTask { model: self.release.model.clone(), does: self.release.task, wanted })
    }
}

/// What the parameters of a version say of how a text model runs.
fn run(release: &Release, threads: NonZeroUsize) -> anyhow::Result<Run> {
    let mut run = Run { threads, ..Run::default() };
    for (name, value) in &release.parameters {
        if !set(&mut run, name, value)? {
            warn!(model.name = %release.model, "parameter `{name}` is not known to models of this task and has no effect");
        }
    }
    Ok(run)
}

fn embedder_options(release: &Release, threads: NonZeroUsize) -> anyhow::Result<EmbedderOptions> {
    let run = Run { threads, ..Run::default() };
    let mut options = EmbedderOptions { pooling: None, normalize: None, run };
    for (name, value) in &release.parameters {
        match (name.as_str(), value.as_str()) {
            ("pooling", "mean") => options.pooling = Some(Pooling::Mean),
            ("pooling", "cls") => options.pooling = Some(Pooling::Cls),
            ("pooling", _) => bail!("parameter `pooling` is `{value}`: mean or cls is expected"),
            ("normalize", "true") => options.normalize = Some(true),
            ("normalize", "false") => options.normalize = Some(false),
            ("normalize", _) => bail!("parameter `normalize` is `{value}`: true or false is expected"),
            _ if set(&mut options.run, name, value)? => {}
            _ => {
                warn!(model.name = %release.model, "parameter `{name}` is not known to embedding models and has no effect")
            }
        }
    }
    Ok(options)
}

/// Sets what a parameter common to text models says; false where it is none.
fn set(run: &mut Run, name: &str, value: &str) -> anyhow::Result<bool> {
    match name {
        "precision" => {
            run.precision = value.parse().map_err(|problem| anyhow::anyhow!("parameter `precision` is {problem}"))?;
        }
        "max_length" => match value.parse() {
            Ok(length) if length > 0 => run.max_length = Some(length),
            _ => bail!("parameter `max_length` is `{value}`: a number of tokens is expected"),
        },
        _ => return Ok(false),
    }
    Ok(true)
}

fn tokenizer_json(dir: &Path) -> anyhow::Result<Bytes> {
    Ok(std::fs::read(dir.join("tokenizer.json")).context("a text model needs tokenizer.json")?.into())
}

fn gguf(release: &Release, dir: &Path) -> anyhow::Result<PathBuf> {
    let mut found = release.artifacts.iter().filter(|artifact| artifact.path.ends_with(".gguf"));
    let Some(artifact) = found.next() else { bail!("a generating version needs a .gguf file, and there is none") };
    ensure!(found.next().is_none(), "a generating version needs one .gguf file, and there are several");
    Ok(dir.join(&artifact.path))
}

fn policy(dir: &Path, schema: &Schema) -> anyhow::Result<Option<Policy>> {
    let path = dir.join("policy.json");
    match std::fs::read(&path) {
        Ok(json) => {
            Policy::parse(&json, schema.inputs()).map(Some).map_err(|problem| anyhow::anyhow!("policy.json: {problem}"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("policy.json cannot be read"),
    }
}
