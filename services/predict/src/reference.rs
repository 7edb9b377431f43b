//! Names that point at a model version.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Points at one version of a registered model: `name@alias` or `name/version`, with or without `models:/` before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    pub model: String,
    pub selector: Selector,
}

/// How a reference picks the version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    Alias(String),
    Version(i64),
}

impl Reference {
    /// Returns the alias, or an empty text when the reference is by number.
    pub fn alias(&self) -> &str {
        match &self.selector {
            Selector::Alias(alias) => alias,
            Selector::Version(_) => "",
        }
    }

    /// Returns a name for a file about this reference, which no two references share: a hash, because model and alias
    /// together may be longer than the name of a file.
    pub(crate) fn file_stem(&self) -> String {
        hex::encode(Sha256::digest(self.to_string()))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::Alias(alias) => write!(f, "{}@{alias}", self.model),
            Selector::Version(version) => write!(f, "{}/{version}", self.model),
        }
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl TryFrom<String> for Reference {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix("models:/").unwrap_or(text);
        let wrong = || format!("`{text}` is not a model reference: use name@alias or name/version");
        let (model, selector) = if let Some((model, alias)) = bare.split_once('@') {
            (model, Selector::Alias(name(alias).ok_or_else(wrong)?))
        } else if let Some((model, version)) = bare.split_once('/') {
            let version = version.parse().ok().filter(|version| *version > 0).ok_or_else(wrong)?;
            (model, Selector::Version(version))
        } else {
            return Err(wrong());
        };
        Ok(Self { model: name(model).ok_or_else(wrong)?, selector })
    }
}

/// Takes what the registry takes for a name; anything else cannot be there.
fn name(text: &str) -> Option<String> {
    let fits = (1..=255).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    fits.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_survive_printing_and_parsing() {
        for text in ["credit-risk@champion", "credit-risk/12"] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
            assert_eq!(format!("models:/{text}").parse::<Reference>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_by_name() {
        for text in ["", "credit-risk", "@champion", "a@", "a/0", "a/-1", "a/b", "../x@y", "a b@c", "a@b@c", "a/1/2"] {
            let refused = text.parse::<Reference>().unwrap_err();
            assert!(refused.contains(&format!("`{text}`")), "{refused}");
        }
    }
}
