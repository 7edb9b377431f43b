//! The life of the process.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use predict::Config;
use verdict_chassis::{probe, runtime, server::Listeners, settings, stop, telemetry};

/// Runs the models: embeds, reranks, generates, predicts and decides.
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
        #[arg(long, env = "PREDICT_LISTEN", default_value = "127.0.0.1:50052")]
        listen: SocketAddr,
    },
}

fn main() -> ExitCode {
    let (matches, secrets) = settings::read(Cli::command());
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match cli.command {
        Command::Serve(config) => runtime::block_on("predict", serve(Config { secrets, ..*config })),
        Command::Probe { listen } => runtime::block_on("predict", probe::ask(listen, predict::SERVICES[0])),
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
    let telemetry = telemetry::init("predict", &config.telemetry)?;
    let stop = stop::on_signal();
    let outcome = match Listeners::bind(config.listen, config.admin_listen).await {
        Ok(listeners) => predict::run(config, listeners, stop).await,
        Err(error) => Err(error),
    };
    telemetry.flush(Duration::from_secs(3)).await;
    outcome
}
