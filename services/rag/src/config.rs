//! Settings: every one a flag and an environment variable.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use verdict_chassis::server::ServerConfig;
use verdict_chassis::settings;
use verdict_chassis::telemetry::TelemetryConfig;

/// What `rag serve` can be told.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    /// Address gRPC is served on
    #[arg(long, env = "RAG_LISTEN", default_value = "127.0.0.1:50053")]
    pub listen: SocketAddr,
    /// Address /metrics, /livez and /readyz are served on
    #[arg(long, env = "RAG_ADMIN_LISTEN", default_value = "127.0.0.1:9103")]
    pub admin_listen: SocketAddr,
    /// Directory of the embedded index; unused when QDRANT_URL is set
    #[arg(long, env = "RAG_DATA_DIR", default_value = ".verdict/rag")]
    pub data_dir: PathBuf,
    #[command(flatten)]
    pub qdrant: QdrantConfig,
    #[command(flatten)]
    pub models: ModelsConfig,
    /// Most tokens of a chunk, as the embedder counts them; never more than it takes
    #[arg(long, env = "RAG_CHUNK_TOKENS", default_value = "200", value_parser = settings::positive)]
    pub chunk_tokens: usize,
    /// Most tokens a chunk repeats of the one before it; must be less than the chunk's
    #[arg(long, env = "RAG_CHUNK_OVERLAP", default_value = "40")]
    pub chunk_overlap: usize,
    #[command(flatten)]
    pub answer: AnswerConfig,
    #[command(flatten)]
    pub server: ServerConfig,
    #[command(flatten)]
    pub telemetry: TelemetryConfig,
}

/// Where vectors are kept.
#[derive(clap::Args, Clone)]
pub struct QdrantConfig {
    /// gRPC address of a Qdrant server (port 6334); the embedded engine when not set
    #[arg(long, env = "QDRANT_URL")]
    pub qdrant_url: Option<String>,
    /// Key of the Qdrant server
    #[arg(long, env = "QDRANT_API_KEY", hide_env_values = true)]
    pub qdrant_api_key: Option<String>,
}

impl std::fmt::Debug for QdrantConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { qdrant_url, qdrant_api_key } = self;
        let key = qdrant_api_key.as_ref().map(|_| "[REDACTED]");
        f.debug_struct("QdrantConfig").field("qdrant_url", qdrant_url).field("qdrant_api_key", &key).finish()
    }
}

/// Which models are asked, and where.
#[derive(clap::Args, Clone, Debug)]
pub struct ModelsConfig {
    /// Address of predict
    #[arg(long, env = "PREDICT_URL", default_value = "http://127.0.0.1:50052")]
    pub predict_url: String,
    /// Model that embeds, `name@alias` or `name/version` as predict serves it
    #[arg(long, env = "RAG_EMBEDDER", default_value = "embedder@champion")]
    pub embedder: String,
    /// Model that reranks
    #[arg(long, env = "RAG_RERANKER", default_value = "reranker@champion")]
    pub reranker: String,
    /// Model that writes answers
    #[arg(long, env = "RAG_GENERATOR", default_value = "generator@champion")]
    pub generator: String,
}

/// When an answer is given.
#[derive(clap::Args, Clone, Debug)]
pub struct AnswerConfig {
    /// Most tokens of sentences put before the generator, about
    #[arg(long, env = "RAG_CONTEXT_TOKENS", default_value = "400", value_parser = settings::positive)]
    pub context_tokens: usize,
    /// Most sentences put before the generator
    #[arg(long, env = "RAG_CONTEXT_SENTENCES", default_value = "2", value_parser = settings::positive)]
    pub context_sentences: usize,
    /// Reranker logit of the nearest sentence, below which there is nothing to answer from
    #[arg(long, env = "RAG_MIN_RELEVANCE", default_value = "0.0", allow_negative_numbers = true)]
    pub min_relevance: f32,
    /// Share of an answer's words that its citations must carry, 0 to 1; what falls below is not said
    #[arg(long, env = "RAG_MIN_SUPPORT", default_value = "0.75", value_parser = share)]
    pub min_support: f32,
}

fn share(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("`{text}` is not a number from 0 to 1")),
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 50053)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 9103)),
            data_dir: PathBuf::from(".verdict/rag"),
            qdrant: QdrantConfig { qdrant_url: None, qdrant_api_key: None },
            models: ModelsConfig {
                predict_url: "http://127.0.0.1:50052".to_owned(),
                embedder: "embedder@champion".to_owned(),
                reranker: "reranker@champion".to_owned(),
                generator: "generator@champion".to_owned(),
            },
            chunk_tokens: 200,
            chunk_overlap: 40,
            answer: AnswerConfig { context_tokens: 400, context_sentences: 2, min_relevance: 0.0, min_support: 0.75 },
            server: ServerConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl Config {
    /// The default settings with everything on disk below `dir`.
    pub fn in_dir(dir: &Path) -> Self {
        Self { data_dir: dir.to_owned(), ..Self::default() }
    }

    /// Finds what no single setting can know to be wrong.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.chunk_overlap < self.chunk_tokens,
            "--chunk-overlap ({}) must be less than --chunk-tokens ({})",
            self.chunk_overlap,
            self.chunk_tokens
        );
        Ok(())
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

    #[test]
    fn the_defaults_of_the_command_line_are_those_of_the_type() {
        let parsed = Cli::try_parse_from(["rag"]).unwrap().config;
        assert_eq!(format!("{parsed:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn an_overlap_as_long_as_the_chunk_is_refused_by_name() {
        let config = Config { chunk_overlap: 200, ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("--chunk-overlap"));
    }

    #[test]
    fn the_key_of_the_server_is_not_printed() {
        let qdrant = QdrantConfig { qdrant_url: None, qdrant_api_key: Some("s3cret".into()) };
        assert!(!format!("{qdrant:?}").contains("s3cret"));
    }
}
