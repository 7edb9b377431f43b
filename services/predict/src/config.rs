//! Every setting of the service.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, thread, time::Duration};

use verdict_chassis::{secrets::Secrets, server::ServerConfig, settings, telemetry::TelemetryConfig};

use crate::{
    answers::AnswerCache, batch::Limits, convert::MAX_INPUTS, cut::Budget, generate::GenerationLimits, model::Sizing,
    reference::Reference,
};

/// What predict serves, from where, and how much of it at once.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    /// Where gRPC is served
    #[arg(long, env = "PREDICT_LISTEN", default_value = "127.0.0.1:50052")]
    pub listen: SocketAddr,
    /// Where /metrics, /livez and /readyz are served
    #[arg(long, env = "PREDICT_ADMIN_LISTEN", default_value = "127.0.0.1:9102")]
    pub admin_listen: SocketAddr,
    /// What to serve: name@alias or name/version, separated by commas
    #[arg(long, env = "PREDICT_MODELS", value_delimiter = ',', value_parser = reference)]
    pub models: Vec<Reference>,
    /// The model registry
    #[arg(long, env = "REGISTRY_URL", default_value = "http://127.0.0.1:50051")]
    pub registry_url: String,
    /// Name of this deployment in the registry's lineage, its own for each process [default: host name and port]
    #[arg(long, env = "PREDICT_DEPLOYMENT")]
    pub deployment: Option<String>,
    /// Folder of the model cache and, by default, of the decision log
    #[arg(long, env = "PREDICT_DATA_DIR", default_value = ".verdict/predict")]
    pub data_dir: PathBuf,
    /// Decision log: sqlite:PATH or postgres://…; decisions.db in the data folder when it is not set
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// Inputs that wait per model; more are refused. At least as many as one request may bring
    #[arg(long, env = "PREDICT_QUEUE_SIZE", default_value_t = 4096, value_parser = queue)]
    pub queue_size: usize,
    /// Tokens of one batch
    #[arg(long, env = "PREDICT_BATCH_TOKENS", default_value = "4096", value_parser = settings::positive)]
    pub batch_tokens: usize,
    /// Inputs of one batch
    #[arg(long, env = "PREDICT_BATCH_ITEMS", default_value = "64", value_parser = settings::positive)]
    pub batch_items: usize,
    /// How long an idle thread waits for a batch to fill up; 0s starts at once
    #[arg(long, env = "PREDICT_BATCH_DELAY", default_value = "0s", value_parser = settings::duration)]
    pub batch_delay: Duration,
    /// Bytes of answers that are kept to be given again, per tenant and exact input; 0 keeps none
    #[arg(long, env = "PREDICT_RESPONSE_CACHE_BYTES", default_value_t = 64 << 20)]
    pub response_cache_bytes: usize,
    /// JSON file of routes to set at the start: see docs/predict.md
    #[arg(long, env = "PREDICT_ROUTES")]
    pub routes: Option<PathBuf>,
    /// Calls that wait to be copied to shadows; more are not copied
    #[arg(long, env = "PREDICT_SHADOW_QUEUE", default_value = "256", value_parser = settings::positive)]
    pub shadow_queue: usize,
    /// Threads that compute, per model; as many as there are cores when it is not set
    #[arg(long, env = "PREDICT_WORKERS", value_parser = settings::positive)]
    pub workers: Option<usize>,
    /// Generations that run together, per model: each step computes a token of all of them
    #[arg(long, env = "PREDICT_GENERATION_RUNNING", default_value = "8", value_parser = settings::positive)]
    pub generation_running: usize,
    /// Threads a generating model computes with; as many as there are cores when it is not set
    #[arg(long, env = "PREDICT_GENERATION_THREADS", value_parser = settings::positive)]
    pub generation_threads: Option<usize>,
    /// Tokens whose keys and values a generating model keeps, prompts and answers of all generations together; also the
    /// most tokens of one
    #[arg(long, env = "PREDICT_GENERATION_CACHE_TOKENS", default_value = "16384", value_parser = settings::positive)]
    pub generation_cache_tokens: usize,
    /// Generations that wait, per model; more are refused
    #[arg(long, env = "PREDICT_GENERATION_QUEUE", default_value = "32", value_parser = settings::positive)]
    pub generation_queue: usize,
    #[command(flatten)]
    pub server: ServerConfig,
    #[command(flatten)]
    pub telemetry: TelemetryConfig,
    /// Which settings are references that may change while the process runs.
    #[arg(skip)]
    pub secrets: Secrets,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50052)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 9102)),
            models: Vec::new(),
            registry_url: "http://127.0.0.1:50051".to_owned(),
            deployment: None,
            data_dir: PathBuf::from(".verdict/predict"),
            database_url: None,
            queue_size: 4096,
            batch_tokens: 4096,
            batch_items: 64,
            batch_delay: Duration::ZERO,
            response_cache_bytes: 64 << 20,
            routes: None,
            shadow_queue: 256,
            workers: None,
            generation_running: 8,
            generation_threads: None,
            generation_cache_tokens: 16_384,
            generation_queue: 32,
            server: ServerConfig::default(),
            telemetry: TelemetryConfig::default(),
            secrets: Secrets::default(),
        }
    }
}

impl Config {
    /// Returns the default settings with everything on disk below `dir`, whatever the environment says.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: dir.into(), ..Self::default() }
    }

    /// Returns how queues and workers are sized.
    pub fn sizing(&self) -> Sizing {
        let cores = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let budget = Budget { items: self.batch_items, cost: self.batch_tokens };
        let workers = self.workers.unwrap_or_else(cores);
        Sizing {
            batch: Limits { budget, queue: self.queue_size, workers, delay: self.batch_delay },
            generation: GenerationLimits {
                running: self.generation_running,
                queue: self.generation_queue,
                threads: self.generation_threads.unwrap_or_else(cores),
                cache_tokens: self.generation_cache_tokens,
            },
            answers: AnswerCache::new(self.response_cache_bytes),
        }
    }
}

fn reference(text: &str) -> Result<Reference, String> {
    text.trim().parse()
}

fn queue(text: &str) -> Result<usize, String> {
    match settings::positive(text)? {
        size if size < MAX_INPUTS => Err(format!("must be at least {MAX_INPUTS}, the most inputs of one request")),
        size => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    fn parse(args: &[&str]) -> Result<Config, String> {
        let args = std::iter::once("predict").chain(args.iter().copied());
        Cli::try_parse_from(args).map(|cli| cli.config).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_of_the_command_line_are_those_of_the_type() {
        assert_eq!(format!("{:?}", parse(&[]).unwrap()), format!("{:?}", Config::default()));
    }

    #[test]
    fn models_are_separated_by_commas_and_checked() {
        let models = parse(&["--models", "a@b, c/2"]).unwrap().models;
        assert_eq!(models.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a@b", "c/2"]);
        assert!(parse(&["--models", "a"]).unwrap_err().contains("name@alias"));
        assert!(parse(&["--queue-size", "5"]).unwrap_err().contains("at least 1024"));
    }
}
