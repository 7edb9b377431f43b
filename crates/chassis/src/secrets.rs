//! Settings whose values are kept in AWS Secrets Manager.
//!
//! A setting that hides its value (`hide_env_values = true`) may be a reference instead of the value itself:
//!
//! | reference | value |
//! |---|---|
//! | `secretsmanager://NAME` | the secret as it is |
//! | `secretsmanager://NAME#KEY` | one field of a secret that is a JSON object |
//! | `secretsmanager://NAME#url?QUERY` | where there is no field `url`: a URL of PostgreSQL out of the fields that AWS's rotation keeps (`engine`, `host`, `port`, `username`, `password`, `dbname`), with QUERY behind it |
//!
//! `NAME` is a name or an ARN. Region, credentials and endpoint are the usual `AWS_` variables, profiles and roles. Values are
//! read once, before the arguments are, so that nothing behind them knows the difference; [`Secrets::follow`] tells of a
//! rotation. Messages name settings and secrets, never values.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use aws_config::BehaviorVersion;
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::error::DisplayErrorContext;
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;

const SCHEME: &str = "secretsmanager://";

/// The settings of this process that are references, by the name of their environment variable. Without any (the default) it
/// does nothing.
#[derive(Clone, Default)]
pub struct Secrets {
    kept: BTreeMap<String, Kept>,
}

#[derive(Clone)]
struct Kept {
    reference: Reference,
    value: String,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.kept.iter().map(|(name, kept)| (name, &kept.reference))).finish()
    }
}

impl Secrets {
    /// Reads the references among the secret settings of the subcommand that `arguments` name, and puts their values in as
    /// arguments of it.
    pub(crate) async fn resolve(
        command: &clap::Command,
        arguments: Vec<OsString>,
    ) -> anyhow::Result<(Vec<OsString>, Self)> {
        let found = references(command, &arguments)?;
        if found.is_empty() {
            return Ok((arguments, Self::default()));
        }
        let client = client().await;
        let (mut arguments, mut kept) = (arguments, BTreeMap::new());
        for Found { variable, flag, place, reference } in found {
            let value =
                reference.read(&client).await.with_context(|| format!("{variable}: cannot read {reference}"))?;
            let argument = OsString::from(format!("--{flag}={value}"));
            match place {
                Place::Environment => arguments.push(argument),
                Place::Argument(at) => arguments[at] = argument,
                Place::Arguments(at) => {
                    // The flag and its value are two arguments: they become the same one twice, of which one goes.
                    arguments[at] = argument;
                    arguments[at + 1] = OsString::new();
                }
            }
            kept.insert(variable, Kept { reference, value });
        }
        arguments.retain(|argument| !argument.is_empty());
        Ok((arguments, Self { kept }))
    }

    /// Reads the setting `variable` again every `every` until `stop`, and calls `changed` with each new value; does nothing
    /// where it is no reference.
    ///
    /// What cannot be read is logged and tried again; a value that `changed` does not take is logged and told of once more
    /// when it has changed again.
    pub fn follow(
        &self,
        variable: &str,
        every: Duration,
        stop: &CancellationToken,
        mut changed: impl FnMut(&str) -> anyhow::Result<()> + Send + 'static,
    ) -> Option<JoinHandle<()>> {
        let Kept { reference, mut value } = self.kept.get(variable)?.clone();
        let (stop, variable) = (stop.clone(), variable.to_owned());
        Some(tokio::spawn(async move {
            // One of its own: connections of another are bound to the runtime they were made on.
            let client = client().await;
            while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
                let Some(read) = stop.run_until_cancelled(reference.read(&client)).await else { return };
                match read {
                    Err(error) => {
                        tracing::warn!(
                            setting = variable,
                            error = format!("{error:#}"),
                            "cannot read {reference} again"
                        );
                    }
                    Ok(new) if new == value => {}
                    Ok(new) => {
                        match changed(&new) {
                            Ok(()) => {
                                tracing::info!(setting = variable, "{reference} has changed; the new value is used")
                            }
                            Err(error) => tracing::error!(
                                setting = variable,
                                error = format!("{error:#}"),
                                "{reference} has changed to what cannot be used; the old value stays"
                            ),
                        }
                        value = new;
                    }
                }
            }
        }))
    }
}

async fn client() -> Client {
    let https =
        aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
    Client::new(&aws_config::defaults(BehaviorVersion::latest()).http_client(https).load().await)
}

/// A setting that is a reference.
struct Found {
    variable: String,
    flag: String,
    place: Place,
    reference: Reference,
}

/// Where the reference stands.
enum Place {
    Environment,
    /// `--flag=REFERENCE`, at this place.
    Argument(usize),
    /// `--flag REFERENCE`, the flag at this place.
    Arguments(usize),
}

/// The references among the secret settings of the subcommand that is called, an argument before the environment.
fn references(command: &clap::Command, arguments: &[OsString]) -> anyhow::Result<Vec<Found>> {
    let called = arguments.get(1).and_then(|name| name.to_str());
    let command = called.and_then(|name| command.find_subcommand(name)).unwrap_or(command);
    let mut found = Vec::new();
    for argument in command.get_arguments().filter(|argument| argument.is_hide_env_values_set()) {
        let (Some(flag), Some(variable)) = (argument.get_long(), argument.get_env().and_then(OsStr::to_str)) else {
            continue;
        };
        let long = format!("--{flag}");
        let at = arguments.iter().position(|argument| {
            argument.to_str().is_some_and(|text| text == long || text.starts_with(&format!("{long}=")))
        });
        let (place, text) = match at {
            Some(at) => match arguments[at].to_str().and_then(|text| text.split_once('=')) {
                Some((_, value)) => (Place::Argument(at), Some(value.to_owned())),
                None => {
                    let value = arguments.get(at + 1).and_then(|value| value.to_str());
                    (Place::Arguments(at), value.map(str::to_owned))
                }
            },
            None => (Place::Environment, std::env::var(variable).ok()),
        };
        let Some(text) = text.filter(|text| text.starts_with(SCHEME)) else { continue };
        let reference = text.parse().with_context(|| variable.to_owned())?;
        found.push(Found { variable: variable.to_owned(), flag: flag.to_owned(), place, reference });
    }
    Ok(found)
}

/// Which secret, and which part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reference {
    name: String,
    key: Option<String>,
    /// Without its question mark.
    query: Option<String>,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the secret `{}`", self.name)?;
        match &self.key {
            Some(key) => write!(f, ", key `{key}`"),
            None => Ok(()),
        }
    }
}

impl std::str::FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let rest = text.strip_prefix(SCHEME).context("must begin with secretsmanager://")?;
        let (name, key) = match rest.split_once('#') {
            Some((name, key)) => (name, Some(key)),
            None => (rest, None),
        };
        ensure!(
            !name.is_empty() && key != Some(""),
            "`{text}` is not of the form secretsmanager://NAME or secretsmanager://NAME#KEY"
        );
        let (key, query) = match key.and_then(|key| key.strip_prefix("url?")) {
            Some(query) => (Some("url"), Some(query)),
            None => (key, None),
        };
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Ok(Self { name: name.to_owned(), key: owned(key), query: owned(query) })
    }
}

impl Reference {
    async fn read(&self, client: &Client) -> anyhow::Result<String> {
        let secret = client
            .get_secret_value()
            .secret_id(&self.name)
            .version_stage("AWSCURRENT")
            .send()
            .await
            .map_err(|error| anyhow!("{}", DisplayErrorContext(error)))?;
        let text = secret.secret_string().context("it holds bytes, not text")?;
        self.part(text)
    }

    /// What the reference says of a secret's text. Errors hold nothing of it.
    fn part(&self, text: &str) -> anyhow::Result<String> {
        let Some(key) = &self.key else { return Ok(text.to_owned()) };
        let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)
            .map_err(|_quotes_it| anyhow!("it is not a JSON object, so it has no key `{key}`"))?;
        let field = |name: &str| match fields.get(name) {
            Some(serde_json::Value::String(text)) => Ok(text.clone()),
            Some(serde_json::Value::Number(number)) => Ok(number.to_string()),
            Some(_) => bail!("its key `{name}` is neither a text nor a number"),
            None => bail!("it has no key `{name}`"),
        };
        if key != "url" || fields.contains_key("url") {
            ensure!(self.query.is_none(), "its key `url` is a URL already, which no query can be put behind");
            return field(key);
        }
        let engine = field("engine")?;
        ensure!(engine == "postgres", "its engine is not postgres");
        let mut url = Url::parse("postgres://host")?;
        let unusable = |name: &'static str| move |_| anyhow!("its key `{name}` does not fit into a URL");
        url.set_host(Some(&field("host")?)).map_err(|_| anyhow!("its key `host` is no host name"))?;
        url.set_port(Some(field("port")?.parse().context("its key `port` is no port")?)).map_err(unusable("port"))?;
        url.set_username(&field("username")?).map_err(unusable("username"))?;
        url.set_password(Some(&field("password")?)).map_err(unusable("password"))?;
        url.set_path(&field("dbname")?);
        url.set_query(self.query.as_deref());
        Ok(url.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(reference: &str, text: &str) -> anyhow::Result<String> {
        reference.parse::<Reference>()?.part(text)
    }

    #[test]
    fn a_reference_names_a_secret_and_perhaps_a_key() {
        let parse = |text: &str| text.parse::<Reference>();
        let of = |name: &str, key: Option<&str>, query: Option<&str>| Reference {
            name: name.to_owned(),
            key: key.map(str::to_owned),
            query: query.map(str::to_owned),
        };
        assert_eq!(parse("secretsmanager://a/b").unwrap(), of("a/b", None, None));
        assert_eq!(parse("secretsmanager://a/b#key").unwrap(), of("a/b", Some("key"), None));
        assert_eq!(
            parse("secretsmanager://a#url?sslmode=require").unwrap(),
            of("a", Some("url"), Some("sslmode=require"))
        );
        let arn = "arn:aws:secretsmanager:us-west-2:111122223333:secret:a-AbCdEf";
        assert_eq!(parse(&format!("secretsmanager://{arn}#k")).unwrap(), of(arn, Some("k"), None));
        for bad in ["", "secretsmanager://", "secretsmanager://#k", "secretsmanager://a#"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_part_is_the_whole_or_one_field() {
        assert_eq!(part("secretsmanager://a", "hunter2").unwrap(), "hunter2");
        assert_eq!(part("secretsmanager://a#k", r#"{"k": "hunter2", "n": 5}"#).unwrap(), "hunter2");
        assert_eq!(part("secretsmanager://a#n", r#"{"k": "hunter2", "n": 5}"#).unwrap(), "5");
    }

    #[test]
    fn a_url_is_made_of_what_the_rotation_keeps() {
        let kept = r#"{"engine": "postgres", "host": "db.internal", "port": 5432, "username": "registry", "password": "p@ss/w?rd", "dbname": "registry"}"#;
        assert_eq!(
            part("secretsmanager://a#url?sslmode=verify-full", kept).unwrap(),
            "postgres://registry:p%40ss%2Fw%3Frd@db.internal:5432/registry?sslmode=verify-full"
        );
        assert_eq!(part("secretsmanager://a#url", r#"{"url": "postgres://x/y"}"#).unwrap(), "postgres://x/y");
        let mysql = kept.replace("postgres", "mysql");
        assert!(part("secretsmanager://a#url", &mysql).is_err());
    }

    #[test]
    fn an_error_holds_nothing_of_the_secret() {
        for (reference, text) in [
            ("secretsmanager://a#k", "hunter2"),
            ("secretsmanager://a#k", r#"{"other": "hunter2"}"#),
            ("secretsmanager://a#k", r#"{"k": ["hunter2"]}"#),
            ("secretsmanager://a#url", r#"{"engine": "hunter2"}"#),
            ("secretsmanager://a#url?x", r#"{"url": "hunter2"}"#),
            ("secretsmanager://a#url", r#"{"engine": "postgres", "host": "h", "port": "hunter2"}"#),
        ] {
            let error = format!("{:#}", part(reference, text).unwrap_err());
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn references_are_found_where_secrets_may_stand_and_nowhere_else() {
        let serve = clap::Command::new("serve")
            .arg(clap::Arg::new("key").long("key").env("VERDICT_TEST_NO_SUCH_KEY").hide_env_values(true))
            .arg(clap::Arg::new("open").long("open").env("VERDICT_TEST_NO_SUCH_OPEN"));
        let command = clap::Command::new("x").subcommand(serve);
        let find = |arguments: &[&str]| {
            let arguments: Vec<OsString> = ["x", "serve"].iter().chain(arguments).map(OsString::from).collect();
            references(&command, &arguments).map(|found| found.len())
        };
        assert_eq!(find(&["--key=secretsmanager://a"]).unwrap(), 1);
        assert_eq!(find(&["--key", "secretsmanager://a#b"]).unwrap(), 1);
        assert_eq!(find(&["--key", "hunter2"]).unwrap(), 0);
        assert_eq!(find(&["--open=secretsmanager://a"]).unwrap(), 0);
        assert!(find(&["--key=secretsmanager://"]).is_err());
    }
}
