//! The life of the process.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use rag::Config;
use verdict_chassis::{probe, runtime, server::Listeners, settings, stop, telemetry};

/// Ingests documents, searches them, answers with citations.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves until SIGTERM or SIGINT.
    Serve(Box<Config>),
    /// Prints every setting, its value and where it comes from.
    Config(Box<Config>),
    /// Asks the service that runs here whether it serves: ends with 0 if it does, with 1 and the reason if not.
    Probe {
        /// What it was told to listen on.
        #[arg(long, env = "RAG_LISTEN", default_value = "127.0.0.1:50053")]
        listen: SocketAddr,
    },
}

fn main() -> ExitCode {
    let (matches, _secrets) = settings::read(Cli::command());
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match cli.command {
        Command::Serve(config) => runtime::block_on("rag", serve(*config)),
        Command::Probe { listen } => runtime::block_on("rag", probe::ask(listen, rag::SERVICE)),
        Command::Config(_) => {
            if let (Some(command), Some((_, matches))) =
                (Cli::command().find_subcommand("config"), matches.subcommand())
            {
                println!("{}", settings::table(command, matches));
            }
            ExitCode::SUCCESS
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let telemetry = telemetry::init("rag", &config.telemetry)?;
    let stop = stop::on_signal();
    let outcome = match Listeners::bind(config.listen, config.admin_listen).await {
        Ok(listeners) => rag::run(config, listeners, stop).await,
        Err(error) => Err(error),
    };
    telemetry.flush(Duration::from_secs(3)).await;
    outcome
}
