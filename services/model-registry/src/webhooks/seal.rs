//! Secrets at rest: AES-256-GCM under the key of a setting.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, anyhow};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use super::{Sealed, Secret};

const ENCRYPTED: &str = "aes-256-gcm:";
const PLAIN: &str = "plain:";

/// 32 bytes that nobody else knows.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl FromStr for Key {
    type Err = String;

    /// Reads standard base64, or the URL-safe one in which MLflow's own keys are.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let bytes = STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text));
        let key = bytes.ok().and_then(|bytes| bytes.try_into().ok());
        key.map(Self).ok_or_else(|| "must be 32 bytes in base64, as `openssl rand -base64 32` makes them".to_owned())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// Seals secrets before they are stored. A sealed secret opens only for the webhook it was sealed for.
pub(super) struct Seal(Option<LessSafeKey>);

impl Seal {
    pub(super) fn new(key: Option<&Key>) -> anyhow::Result<Self> {
        let key = key.map(|Key(bytes)| UnboundKey::new(&AES_256_GCM, bytes)).transpose();
        Ok(Self(key.map_err(|_| anyhow!("the key of webhook secrets is not one of AES-256"))?.map(LessSafeKey::new)))
    }

    pub(super) fn close(&self, webhook: &str, secret: &Secret) -> anyhow::Result<Sealed> {
        let Some(key) = &self.0 else { return Ok(Sealed(format!("{PLAIN}{}", secret.0))) };
        // Random: of 2^32 secrets under one key two would share their nonce with a chance of 2^-33.
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| anyhow!("the system has no random numbers"))?;
        let mut text = secret.0.clone().into_bytes();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(webhook), &mut text)
            .map_err(|_| anyhow!("cannot encrypt the secret of a webhook"))?;
        Ok(Sealed(format!("{ENCRYPTED}{}", STANDARD_NO_PAD.encode([&nonce[..], &text].concat()))))
    }

    pub(super) fn open(&self, webhook: &str, Sealed(sealed): &Sealed) -> anyhow::Result<Secret> {
        if let Some(plain) = sealed.strip_prefix(PLAIN) {
            return Ok(Secret(plain.to_owned()));
        }
        let key = self.0.as_ref().context("the secret is encrypted, and MODEL_REGISTRY_WEBHOOK_KEY is not set")?;
        let wrong = "the secret was encrypted under another MODEL_REGISTRY_WEBHOOK_KEY; set it anew";
        let mut bytes =
            sealed.strip_prefix(ENCRYPTED).and_then(|text| STANDARD_NO_PAD.decode(text).ok()).context(wrong)?;
        let (nonce, text) = bytes.split_first_chunk_mut::<NONCE_LEN>().context(wrong)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key.open_in_place(nonce, Aad::from(webhook), text).map_err(|_| anyhow!(wrong))?;
        Ok(Secret(String::from_utf8(opened.to_vec()).context(wrong)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(fill: u8) -> Seal {
        let key: Key = STANDARD.encode([fill; 32]).parse().unwrap();
        assert!(!format!("{key:?}").contains(&fill.to_string()));
        Seal::new(Some(&key)).unwrap()
    }

    #[test]
    fn a_sealed_secret_opens_under_its_key_for_its_webhook_alone() {
        let secret = Secret("päss".to_owned());
        let sealed = seal(7).close("a", &secret).unwrap();
        assert!(sealed.0.starts_with(ENCRYPTED) && !sealed.0.contains("ss"), "{sealed:?}");
        assert_ne!(seal(7).close("a", &secret).unwrap(), sealed, "a nonce is never used twice");
        assert_eq!(seal(7).open("a", &sealed).unwrap(), secret);
        assert!(seal(7).open("b", &sealed).is_err());
        assert!(seal(8).open("a", &sealed).is_err());
        assert!(Seal::new(None).unwrap().open("a", &sealed).is_err());
        for damaged in ["", "aes-256-gcm:", "aes-256-gcm:AAAA", "aes-256-gcm:?"] {
            assert!(seal(7).open("a", &Sealed(damaged.to_owned())).is_err(), "{damaged}");
        }
    }

    #[test]
    fn a_secret_stored_before_there_was_a_key_is_still_read() {
        let secret = Secret("s".to_owned());
        let plain = Seal::new(None).unwrap().close("a", &secret).unwrap();
        assert_eq!(seal(7).open("a", &plain).unwrap(), secret);
    }

    #[test]
    fn a_key_is_32_bytes_in_either_base64() {
        assert!("-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_8=".parse::<Key>().is_ok());
        assert!("+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/8=".parse::<Key>().is_ok());
        for wrong in ["", "c2hvcnQ=", "not base64"] {
            assert!(wrong.parse::<Key>().is_err(), "{wrong}");
        }
    }
}
