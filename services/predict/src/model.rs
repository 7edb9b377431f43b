//! A model version that is loaded, warm and ready to be asked.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use tracing::warn;
use verdict_inference::{
    bert::{Classifier, Embedder, EmbedderOptions, Pooling, Reranker, Run, SparseEmbedder},
    generation::Generator,
    text::Token,
};

use crate::{
    answers::AnswerCache,
    batch::Limits,
    cache::Files,
    engine::{Engine, Served, statistics::Statistics},
    error::{Error, Result},
    generate::{Generation, GenerationLimits},
    metrics::ModelMeters,
    release::{Release, Task},
    tabular::Tabular,
    text::{Classification, Embedding, Reranking, SparseEmbedding, Tokenizer},
};

/// A warm model version. Dropping it, after the last call that holds it, ends its workers.
pub struct Loaded {
    pub release: Release,
    pub served: Served,
    /// Keeps the files the engine may have mapped.
    _files: Files,
}

/// How queues and workers of the engines are sized.
#[derive(Clone)]
pub struct Sizing {
    pub batch: Limits,
    /// For text generation.
    pub generation: GenerationLimits,
    /// Where answers are kept, if they are.
    pub answers: Option<Arc<AnswerCache>>,
}

impl Loaded {
    /// Loads a verified version, runs it once, and starts its workers. Blocks; the error names the file and the problem.
    pub fn load(mut release: Release, files: Files, sizing: &Sizing) -> anyhow::Result<Self> {
        let served = start(&release, &files.dir, sizing)?;
        release.task = served.engine.task();
        Ok(Self { release, served, _files: files })
    }

    /// Returns the embedding engine, or the error of asking a model for what it does not do.
    pub fn embedding(&self) -> Result<&Embedding> {
        self.typed(Task::TextEmbedding)
    }

    /// Returns the reranking engine.
    pub fn reranking(&self) -> Result<&Reranking> {
        self.typed(Task::TextReranking)
    }

    /// Returns the engine of sparse embeddings.
    pub fn sparse_embedding(&self) -> Result<&SparseEmbedding> {
        self.typed(Task::TextSparseEmbedding)
    }

    /// Returns the classifying engine.
    pub fn classification(&self) -> Result<&Classification> {
        self.typed(Task::TextClassification)
    }

    /// Returns the generating engine.
    pub fn generation(&self) -> Result<&Generation> {
        self.typed(Task::TextGeneration)
    }

    /// Returns the tabular engine.
    pub fn tabular(&self) -> Result<&Tabular> {
        self.typed(Task::TabularClassification)
    }

    /// Returns the tokenizer that can be handed out, or the error of asking a model that has none.
    pub fn tokenizer(&self) -> Result<Tokenizer<'_>> {
        self.served.engine.tokenizer().map_or_else(|| self.wrong(Task::TextEmbedding), Ok)
    }

    /// Splits a text into tokens, or makes the error of asking a model that has none.
    pub fn tokens(&self, text: &str, special: bool) -> Result<Vec<Token>> {
        self.served.engine.tokens(text, special).map_or_else(|| self.wrong(Task::TextEmbedding), Ok)
    }

    fn typed<E: Engine>(&self, wanted: Task) -> Result<&E> {
        self.served.typed().map_or_else(|| self.wrong(wanted), Ok)
    }

    /// Makes the error of asking this model for what another task does.
    pub fn wrong<T>(&self, wanted: Task) -> Result<T> {
        Err(Error::WrongTask { model: self.release.model.clone(), does: self.release.task, wanted })
    }
}

/// Starts the engine of a version whose files are in `dir`, and warms it up. Blocks.
pub(crate) fn start(release: &Release, dir: &Path, sizing: &Sizing) -> anyhow::Result<Served> {
    let name = release.model.clone();
    let identity = release.identity();
    let scope = |operation| sizing.answers.as_ref().map(|answers| answers.scope(&identity, operation));
    let statistics = Arc::new(Statistics::default());
    let meters = || ModelMeters::new(&release.model, release.version).counting(statistics.clone());
    let threads = NonZeroUsize::new(sizing.batch.workers).unwrap_or(NonZeroUsize::MIN);
    let engine: Box<dyn Engine> = match release.task {
        Task::TextEmbedding => {
            let engine = Embedder::load(dir, embedder_options(release, threads)?)?;
            Box::new(Embedding::start(name, engine, tokenizer_json(dir)?, sizing.batch, meters(), scope("embed"))?)
        }
        Task::TextReranking => {
            let engine = Reranker::load(dir, run(release, threads)?)?;
            Box::new(Reranking::start(name, engine, tokenizer_json(dir)?, sizing.batch, meters(), scope("rerank"))?)
        }
        Task::TextSparseEmbedding => {
            let engine = SparseEmbedder::load(dir, run(release, threads)?)?;
            let json = tokenizer_json(dir)?;
            Box::new(SparseEmbedding::start(name, engine, json, sizing.batch, meters(), scope("embed_sparse"))?)
        }
        Task::TextClassification => {
            let engine = Classifier::load(dir, run(release, threads)?)?;
            let json = tokenizer_json(dir)?;
            Box::new(Classification::start(name, engine, json, sizing.batch, meters(), scope("classify"))?)
        }
        Task::TextGeneration => {
            let engine = Generator::load(&gguf(release, dir)?)?;
            Box::new(Generation::start(name, engine, sizing.generation, meters())?)
        }
        Task::TabularClassification | Task::TabularRegression | Task::Custom => {
            Box::new(Tabular::load(release, dir, sizing.batch, [meters(), meters()], scope("rows"))?)
        }
    };
    Served::warm(engine, statistics)
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
