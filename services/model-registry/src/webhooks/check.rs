//! What a webhook may be, in the words MLflow's clients know.

use url::{ParseError, Url};

use super::address::{PRIVATE, Resolver};
use super::{Scheme, SecretChange, Topic, WebhookChange, WebhookConfig, WebhookDraft};
use crate::error::Error;

const MAX_NAME: usize = 63;
/// Bytes of a URL, of a description and of a secret.
const MAX_URL: usize = 2_000;
const MAX_DESCRIPTION: usize = 1_000;
const MAX_SECRET: usize = 1_000;

/// What is wrong with a webhook.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) field: &'static str,
    /// A sentence of its own.
    pub(crate) message: String,
}

type Checked = Result<(), Problem>;

impl Problem {
    fn err(field: &'static str, message: impl Into<String>) -> Checked {
        Err(Self { field, message: message.into() })
    }
}

impl From<Problem> for Error {
    fn from(Problem { field, message }: Problem) -> Self {
        Self::invalid("INVALID_WEBHOOK", field, format!("is refused: {message}"))
    }
}

/// What the settings allow.
#[derive(Debug)]
pub(super) struct Rules {
    schemes: Vec<Scheme>,
    addresses: Resolver,
}

impl Rules {
    pub(super) fn new(config: &WebhookConfig) -> Self {
        let addresses = Resolver { private: config.webhook_private_addresses };
        Self { schemes: config.webhook_schemes.clone(), addresses }
    }

    pub(super) fn draft(&self, draft: &WebhookDraft) -> Checked {
        let WebhookDraft { name, description, url, topics, status: _, secret } = draft;
        self::name(name)?;
        self.url(url)?;
        self::topics(topics)?;
        length("description", description, MAX_DESCRIPTION)?;
        secret.as_ref().map_or(Ok(()), |secret| self::secret(&secret.0))
    }

    pub(super) fn change(&self, change: &WebhookChange) -> Checked {
        let WebhookChange { name, description, url, topics, status: _, secret } = change;
        name.as_deref().map_or(Ok(()), self::name)?;
        url.as_deref().map_or(Ok(()), |url| self.url(url))?;
        topics.as_deref().map_or(Ok(()), self::topics)?;
        description.as_deref().map_or(Ok(()), |text| length("description", text, MAX_DESCRIPTION))?;
        match secret {
            Some(SecretChange::Set(secret)) => self::secret(&secret.0),
            Some(SecretChange::Remove) | None => Ok(()),
        }
    }

    fn url(&self, text: &str) -> Checked {
        if text.trim().is_empty() {
            return Problem::err("url", format!("Webhook URL cannot be empty or just whitespace: '{text}'"));
        }
        length("url", text, MAX_URL)?;
        let allowed = |scheme: &str| {
            if self.schemes.iter().any(|allowed| allowed.as_str() == scheme) {
                return Ok(());
            }
            let schemes: Vec<_> = self.schemes.iter().map(|scheme| scheme.as_str()).collect();
            let list = schemes.join(", ");
            Problem::err("url", format!("Invalid webhook URL scheme: '{scheme}'. Allowed schemes are: {list}."))
        };
        let url = match Url::parse(text) {
            Ok(url) => url,
            Err(ParseError::RelativeUrlWithoutBase) => return allowed(""),
            Err(error) => return Problem::err("url", format!("Invalid webhook URL '{text}': {error}")),
        };
        allowed(url.scheme())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Problem::err("url", "Invalid webhook URL: it must not hold a user name or password; use a secret.");
        }
        match url.host() {
            Some(host) if self.addresses.allows(&host) => Ok(()),
            Some(_) => Problem::err("url", format!("Invalid webhook URL '{text}': {PRIVATE}.")),
            None => Problem::err("url", format!("Invalid webhook URL '{text}': it has no host.")),
        }
    }
}

fn name(name: &str) -> Checked {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let is_inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let bytes = name.as_bytes();
    if bytes.len() <= MAX_NAME && is_end(bytes.first()) && is_end(bytes.last()) && bytes.iter().all(is_inner) {
        return Ok(());
    }
    let mut shown = name.to_owned();
    shown.truncate(shown.floor_char_boundary(200));
    Problem::err(
        "name",
        format!(
            "Webhook name '{shown}' is invalid. It must start and end with a letter or digit, be at most {MAX_NAME} \
             characters long, and contain only letters, digits, dots (.), underscores (_), and hyphens (-)."
        ),
    )
}

fn topics(topics: &[Topic]) -> Checked {
    if topics.is_empty() {
        return Problem::err("events", "Webhook events must be a non-empty list of WebhookEvent objects: [].");
    }
    Ok(())
}

fn secret(secret: &str) -> Checked {
    if secret.is_empty() {
        return Problem::err("secret", "Webhook secret cannot be empty.");
    }
    length("secret", secret, MAX_SECRET)
}

fn length(field: &'static str, text: &str, max: usize) -> Checked {
    if text.len() <= max && !text.contains('\0') {
        return Ok(());
    }
    Problem::err(field, format!("Webhook {field} must be at most {max} bytes, without NUL characters."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_and_end_with_a_letter_or_digit() {
        for good in ["a", "0", "a.b_c-d", &"x".repeat(63)] {
            assert!(name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a.", "a b", "ä", "a/b", &"x".repeat(64)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_are_https_to_public_hosts_unless_the_settings_say_otherwise() {
        let message =
            |rules: &Rules, url: &str| rules.url(url).err().map(|problem| problem.message).unwrap_or_default();
        let strict = Rules::new(&WebhookConfig::default());
        assert_eq!(message(&strict, "https://example.com/a?b=c"), "");
        for (url, said) in [
            ("   ", "Webhook URL cannot be empty or just whitespace"),
            ("http://example.com", "Invalid webhook URL scheme: 'http'. Allowed schemes are: https."),
            ("ftp://example.com", "Invalid webhook URL scheme: 'ftp'"),
            ("example.com", "Invalid webhook URL scheme: ''"),
            ("https://[invalid", "Invalid webhook URL 'https://[invalid'"),
            ("https://127.0.0.1/", "not one of the public internet"),
            ("https://2130706433/", "not one of the public internet"),
            ("https://[::ffff:10.0.0.1]/", "not one of the public internet"),
            ("https://user:word@example.com/", "must not hold a user name"),
        ] {
            assert!(message(&strict, url).contains(said), "{url}: {}", message(&strict, url));
        }
        assert!(!message(&strict, "https://user:word@example.com/").contains("word@"));
        let lax = Rules::new(&WebhookConfig {
            webhook_schemes: vec![Scheme::Https, Scheme::Http],
            webhook_private_addresses: true,
            ..WebhookConfig::default()
        });
        assert_eq!(message(&lax, "http://127.0.0.1:8080/hook"), "");
    }
}
