//! The story `make demo` plays: the three services as processes, real models, real documents.
//!
//! [`stack`] starts and stops the services, [`publish`] puts the models into the registry, [`story`] plays the steps,
//! [`tell`] prints them.

mod publish;
mod stack;
mod story;
mod tell;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

/// Plays Verdict's main job on this machine: publish models, decide, explain, ingest, ask, hot-swap.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts the three services, plays the story, stops them.
    Run(Settings),
    /// Starts the three services with the demo models published, and leaves them running.
    Up {
        #[command(flatten)]
        settings: Settings,
        /// Publish nothing: serve what the registry has.
        #[arg(long)]
        as_is: bool,
    },
    /// Plays the story on the services that `up` left running.
    Play(Settings),
    /// Stops what `up` started.
    Down(Settings),
}

/// Where things are.
#[derive(Args, Clone)]
pub(crate) struct Settings {
    /// Folder with the binaries model-registry, predict and rag; default: the one this program lies in.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// What the services keep: databases, artifacts, vectors, logs.
    #[arg(long, env = "VERDICT_DATA_DIR", default_value = ".verdict")]
    data_dir: PathBuf,
    /// Carried data: the credit-risk model, applications, the Cranfield abstracts.
    #[arg(long, default_value = "crates/demo/data")]
    demo_data: PathBuf,
    /// Documents to ingest beside the Cranfield abstracts: every .md file below this folder.
    #[arg(long, default_value = "docs")]
    docs: PathBuf,
    /// Downloaded models, as `make models` leaves them; default: ~/.cache/verdict/models.
    #[arg(long)]
    models: Option<PathBuf>,
    /// How many of the 1,400 Cranfield abstracts to ingest.
    #[arg(long, default_value_t = 1400)]
    abstracts: usize,
    #[command(flatten)]
    stores: Stores,
    /// gRPC address of model-registry.
    #[arg(long, env = "MODEL_REGISTRY_LISTEN", default_value = "127.0.0.1:50051")]
    registry: SocketAddr,
    /// Admin address of model-registry.
    #[arg(long, env = "MODEL_REGISTRY_ADMIN_LISTEN", default_value = "127.0.0.1:9101")]
    registry_admin: SocketAddr,
    /// Address of model-registry's MLflow API.
    #[arg(long, env = "MODEL_REGISTRY_MLFLOW_LISTEN", default_value = "127.0.0.1:5000")]
    registry_mlflow: SocketAddr,
    /// gRPC address of predict.
    #[arg(long, env = "PREDICT_LISTEN", default_value = "127.0.0.1:50052")]
    predict: SocketAddr,
    /// Admin address of predict.
    #[arg(long, env = "PREDICT_ADMIN_LISTEN", default_value = "127.0.0.1:9102")]
    predict_admin: SocketAddr,
    /// gRPC address of rag.
    #[arg(long, env = "RAG_LISTEN", default_value = "127.0.0.1:50053")]
    rag: SocketAddr,
    /// Admin address of rag.
    #[arg(long, env = "RAG_ADMIN_LISTEN", default_value = "127.0.0.1:9103")]
    rag_admin: SocketAddr,
}

/// Where the services keep what must last, instead of the data folder.
#[derive(Args, Clone, Default)]
pub(crate) struct Stores {
    /// model-registry's database: postgres://user:password@host/database.
    #[arg(long, env = "DEMO_REGISTRY_DATABASE", hide_env_values = true)]
    registry_database: Option<String>,
    /// predict's decision log, likewise.
    #[arg(long, env = "DEMO_PREDICT_DATABASE", hide_env_values = true)]
    predict_database: Option<String>,
    /// model-registry's files: s3://bucket/prefix; the shell's AWS_ variables say where that is.
    #[arg(long, env = "DEMO_ARTIFACT_STORE")]
    artifact_store: Option<String>,
}

impl Settings {
    fn models_dir(&self) -> PathBuf {
        self.models.clone().unwrap_or_else(|| {
            let cache = std::env::var_os("VERDICT_CACHE")
                .map(PathBuf::from)
                .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/verdict"));
            cache.join("models")
        })
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(settings) => story::run(&settings).await,
        Command::Up { settings, as_is } => story::up(&settings, as_is).await,
        Command::Play(settings) => story::play(&settings).await,
        Command::Down(settings) => stack::down(&settings).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
