//! Settings of webhooks.

use std::time::Duration;

use verdict_chassis::settings;

use super::seal::Key;

/// How changes are delivered to webhooks, and where to.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Webhooks")]
pub struct WebhookConfig {
    /// Schemes that the URL of a webhook may have, separated by commas
    #[arg(long, env = "MODEL_REGISTRY_WEBHOOK_SCHEMES", value_enum, value_delimiter = ',', default_value = "https")]
    pub webhook_schemes: Vec<Scheme>,
    /// Deliver to addresses of private networks and of this machine too. Whoever may register a webhook can then make the
    /// registry call what only it can reach
    #[arg(long, env = "MODEL_REGISTRY_WEBHOOK_PRIVATE_ADDRESSES")]
    pub webhook_private_addresses: bool,
    /// Key that encrypts what webhooks are signed with in the database: 32 bytes in base64, as `openssl rand -base64 32` makes them.
    /// Without it they are stored as they are
    #[arg(long, env = "MODEL_REGISTRY_WEBHOOK_KEY", hide_env_values = true)]
    pub webhook_key: Option<Key>,
    /// Time in which a receiver must have answered one attempt
    #[arg(long, env = "MODEL_REGISTRY_WEBHOOK_TIMEOUT", default_value = "30s", value_parser = settings::positive_duration)]
    pub webhook_timeout: Duration,
    /// Attempts after the first, 1 s, 2 s, 4 s, … at most a minute apart
    #[arg(long, env = "MODEL_REGISTRY_WEBHOOK_RETRIES", default_value = "8", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub webhook_retries: u32,
    /// Deliveries under way at once, each to another webhook
    #[arg(long, env = "MODEL_REGISTRY_WEBHOOK_WORKERS", default_value = "10", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub webhook_workers: u32,
    /// Age at which a delivery is forgotten, delivered or not
    #[arg(long, env = "MODEL_REGISTRY_WEBHOOK_RETENTION", default_value = "168h", value_parser = settings::positive_duration)]
    pub webhook_retention: Duration,
}

impl Default for WebhookConfig {
    fn default() -> Self {
        Self {
            webhook_schemes: vec![Scheme::Https],
            webhook_private_addresses: false,
            webhook_key: None,
            webhook_timeout: Duration::from_secs(30),
            webhook_retries: 8,
            webhook_workers: 10,
            webhook_retention: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// The scheme of a URL.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Https,
    Http,
}

impl Scheme {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
        }
    }
}
