//! Settings: value parsers for clap, and the table that `<service> config` prints.

use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;

use crate::secrets::Secrets;

/// Parses the arguments and the environment; secret settings may be references to AWS Secrets Manager, which are read here
/// (see [`crate::secrets`]). What is wrong ends the process with a message that names the setting; the value is not shown
/// where the argument hides it (`hide_env_values = true`).
pub fn read(command: clap::Command) -> (clap::ArgMatches, Secrets) {
    let resolved = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(Secrets::resolve(&command, std::env::args_os().collect())));
    let (arguments, secrets) =
        resolved.unwrap_or_else(|error| command.clone().error(ErrorKind::ValueValidation, format!("{error:#}")).exit());
    (matches_from(command, arguments).unwrap_or_else(|error| error.exit()), secrets)
}

fn matches_from(
    command: clap::Command,
    arguments: impl IntoIterator<Item = impl Into<std::ffi::OsString> + Clone>,
) -> Result<clap::ArgMatches, clap::Error> {
    command.clone().try_get_matches_from(arguments).map_err(|mut error| {
        let is_secret = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(argument)) => hides(&command, argument),
            _ => false,
        };
        if is_secret {
            error.insert(ContextKind::InvalidValue, ContextValue::String("[hidden]".to_owned()));
        }
        error
    })
}

/// Whether the argument that messages call `name` (`--key <KEY>`) hides its value, in the command or below it.
fn hides(command: &clap::Command, name: &str) -> bool {
    let flag = name.split_whitespace().next().and_then(|flag| flag.strip_prefix("--"));
    command.get_arguments().any(|argument| argument.is_hide_env_values_set() && argument.get_long() == flag)
        || command.get_subcommands().any(|below| hides(below, name))
}

/// Parses a duration: a whole number and `ms`, `s`, `m` or `h`; a bare `0` is allowed.
///
/// For `#[arg(value_parser = settings::duration)]`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (amount, unit) = text.split_at(digits);
    let problem = || format!("`{text}` is not a whole number followed by ms, s, m or h, like 250ms or 10s");
    let amount: u64 = amount.parse().map_err(|_| problem())?;
    let millis = match unit {
        "ms" => Some(amount),
        "s" => amount.checked_mul(1000),
        "m" => amount.checked_mul(60_000),
        "h" => amount.checked_mul(3_600_000),
        _ => return Err(problem()),
    };
    match millis {
        Some(millis) if millis <= 366 * 24 * 3_600_000 => Ok(Duration::from_millis(millis)),
        _ => Err(format!("`{text}` is more than a year")),
    }
}

/// Parses a duration like [`duration`], but not 0.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

/// Parses a count of at least 1.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("`{text}` is not a whole number: {error}")),
    }
}

/// Lists every setting of a parsed command, one line each: `ENV_NAME=value  # --flag, where the value comes from`.
///
/// `command` and `matches` are those of the same (sub)command. A value whose argument hides its environment value
/// (`hide_env_values = true`) is printed as `[set]`.
pub fn table(command: &clap::Command, matches: &clap::ArgMatches) -> String {
    let mut lines = Vec::new();
    for argument in command.get_arguments() {
        let id = argument.get_id().as_str();
        let Some(flag) = argument.get_long().filter(|_| id != "help" && id != "version") else { continue };
        let name = argument.get_env().map_or_else(|| format!("--{flag}"), |env| env.to_string_lossy().into_owned());
        let value = matches
            .try_get_raw(id)
            .ok()
            .flatten()
            .map(|values| values.map(|value| value.to_string_lossy().into_owned()).collect::<Vec<_>>().join(","));
        let value = match value {
            Some(_) if argument.is_hide_env_values_set() => "[set]".to_owned(),
            Some(value) => value,
            None => String::new(),
        };
        let source = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => "command line",
            Some(ValueSource::EnvVariable) => "environment",
            Some(ValueSource::DefaultValue) => "default",
            _ => "not set",
        };
        lines.push(format!("{:<60} # --{flag}, {source}", format!("{name}={value}")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert!(positive_duration("0s").is_err() && positive_duration("1ms").is_ok());
        for bad in ["", "10", "s", "-1s", "1.5s", "99999999999999h", "10 parsecs"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wrong_value_is_shown_unless_its_argument_hides_it() {
        let number = || clap::value_parser!(u8);
        let serve = clap::Command::new("serve")
            .arg(clap::Arg::new("size").long("size").value_parser(number()))
            .arg(clap::Arg::new("key").long("key").hide_env_values(true).value_parser(number()));
        let command = clap::Command::new("x").subcommand(serve);
        let problem =
            |flag: &str| matches_from(command.clone(), ["x", "serve", flag, "hunter2"]).unwrap_err().to_string();
        let (shown, hidden) = (problem("--size"), problem("--key"));
        assert!(shown.contains("'hunter2' for '--size"), "{shown}");
        assert!(hidden.contains("'[hidden]' for '--key") && !hidden.contains("hunter2"), "{hidden}");
    }

    #[test]
    fn the_table_names_variable_flag_and_source_and_hides_secrets() {
        let command = clap::Command::new("x")
            .arg(clap::Arg::new("size").long("size").env("X_SIZE").default_value("7"))
            .arg(clap::Arg::new("key").long("key").env("X_KEY").hide_env_values(true));
        let matches = command.clone().get_matches_from(["x", "--key", "abc"]);
        let table = table(&command, &matches);
        assert!(table.contains("X_SIZE=7") && table.contains("# --size, default"), "{table}");
        assert!(table.contains("X_KEY=[set]") && !table.contains("abc"), "{table}");
    }
}
