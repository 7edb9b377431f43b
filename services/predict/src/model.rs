//! A model version that is loaded, warm and ready to be asked.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use tracing::warn;
use verdict_inference::{
    bert::{Embedder, EmbedderOptions, Pooling, Reranker},
    generation::Generator,
    trees::TreeEnsemble,
};

use crate::{
    batch::Limits,
    cache::Files,
    error::{Error, Result},
    generate::{Generation, GenerationLimits},
    metrics::ModelMeters,
    policy::Policy,
    release::{Release, Task},
    schema::Schema,
    tabular::Tabular,
    text::{Embedding, Reranking},
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
    Generation(Generation),
    Tabular(Box<Tabular>),
}

/// How queues and workers of the engines are sized.
#[derive(Clone, Copy, Debug)]
pub struct Sizing {
    pub batch: Limits,
    pub generation: GenerationLimits,
}

impl Loaded {
    /// Loads a verified version, runs it once, and starts its workers. Blocks; the error names the file and the problem.
    pub fn load(release: Release, files: Files, sizing: &Sizing) -> anyhow::Result<Self> {
        let dir = files.dir.as_path();
        let name = release.model.clone();
        let meters = || ModelMeters::new(&release.model, release.version);
        let engine = match release.task {
            Task::TextEmbedding => {
                let engine = Embedder::load(dir, embedder_options(&release)?)?;
                Engine::Embedding(Embedding::start(name, engine, tokenizer_json(dir)?, sizing.batch, meters())?)
            }
            Task::TextReranking => {
                let engine = Reranker::load(dir)?;
                Engine::Reranking(Reranking::start(name, engine, tokenizer_json(dir)?, sizing.batch, meters())?)
            }
            Task::TextGeneration => {
                let engine = Generator::load(&gguf(&release, dir)?)?;
                Engine::Generation(Generation::start(name, engine, sizing.generation, meters())?)
            }
            Task::TextSparseEmbedding | Task::TextClassification | Task::TabularRegression => {
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
        match &self.engine {
            Engine::Embedding(embedding) => Ok(embedding),
            Engine::Reranking(_) | Engine::Generation(_) | Engine::Tabular(_) => self.wrong(Task::TextEmbedding),
        }
    }

    /// Returns the reranking engine.
    pub fn reranking(&self) -> Result<&Reranking> {
        match &self.engine {
            Engine::Reranking(reranking) => Ok(reranking),
            Engine::Embedding(_) | Engine::Generation(_) | Engine::Tabular(_) => self.wrong(Task::TextReranking),
        }
    }

    /// Returns the generating engine.
    pub fn generation(&self) -> Result<&Generation> {
        match &self.engine {
            Engine::Generation(generation) => Ok(generation),
            Engine::Embedding(_) | Engine::Reranking(_) | Engine::Tabular(_) => self.wrong(Task::TextGeneration),
        }
    }

    /// Returns the tabular engine.
    pub fn tabular(&self) -> Result<&Tabular> {
        match &self.engine {
            Engine::Tabular(tabular) => Ok(tabular),
            Engine::Embedding(_) | Engine::Reranking(_) | Engine::Generation(_) => {
                self.wrong(Task::TabularClassification)
            }
        }
    }

    /// Makes the error of asking this model for what another task does.
    pub fn wrong<T>(&self, wanted: Task) -> Result<T> {
        Err(Error::WrongTask { model: self.release.model.clone(), does: self.release.task, wanted })
    }
}

fn embedder_options(release: &Release) -> anyhow::Result<EmbedderOptions> {
    let mut options = EmbedderOptions { pooling: None, normalize: None, max_length: None };
    for (name, value) in &release.parameters {
        match (name.as_str(), value.as_str()) {
            ("pooling", "mean") => options.pooling = Some(Pooling::Mean),
            ("pooling", "cls") => options.pooling = Some(Pooling::Cls),
            ("pooling", _) => bail!("parameter `pooling` is `{value}`: mean or cls is expected"),
            ("normalize", "true") => options.normalize = Some(true),
            ("normalize", "false") => options.normalize = Some(false),
            ("normalize", _) => bail!("parameter `normalize` is `{value}`: true or false is expected"),
            ("max_length", _) => match value.parse() {
                Ok(length) if length > 0 => options.max_length = Some(length),
                _ => bail!("parameter `max_length` is `{value}`: a number of tokens is expected"),
            },
            _ => {
                warn!(model.name = %release.model, "parameter `{name}` is not known to embedding models and has no effect")
            }
        }
    }
    Ok(options)
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
