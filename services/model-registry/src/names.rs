//! The names and numbers that callers write, checked once where they come in.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Longest model or alias name, in bytes.
const MAX_NAME: usize = 255;
/// Longest artifact path, in bytes.
const MAX_PATH: usize = 512;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text as it was checked.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// Name of a registered model, as MLflow has it: 1 to 255 bytes without '/', ':', '@' and control characters.
    ModelName
}

name! {
    /// Name that points at one version of a model: like a model's, but neither a number nor "latest".
    AliasName
}

name! {
    /// Where a file stands within its version: relative, '/'-separated, without '.', '..' or empty parts, at most 512 bytes.
    ArtifactPath
}

name! {
    /// SHA-256 of a file's bytes: 64 lower-case hexadecimal digits.
    Sha256Hex
}

macro_rules! stored {
    ($($name:ident),+) => { $(
        impl $name {
            /// Takes back what this program has itself written to its database.
            pub(crate) fn stored(text: String) -> Self {
                Self(text)
            }
        }
    )+ };
}

stored!(ModelName, ArtifactPath, Sha256Hex);

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

impl ModelName {
    /// Checks the name a caller gave in `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        let is_fine = |c: char| !c.is_control() && !matches!(c, '/' | ':' | '@');
        let is_plain = text.trim() == text && text != "." && text != "..";
        if !text.is_empty() && is_plain && text.len() <= MAX_NAME && text.chars().all(is_fine) {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::invalid(
            "INVALID_NAME",
            field,
            "must be 1 to 255 bytes without '/', ':', '@' and control characters, neither beginning nor ending in a space",
        ))
    }
}

impl AliasName {
    /// Checks the alias a caller gave in `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        if !text.is_empty()
            && text.len() <= MAX_NAME
            && text.bytes().all(is_name_byte)
            && !is_number
            && text != "latest"
        {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::invalid(
            "INVALID_ALIAS",
            field,
            "must be 1 to 255 letters, digits, '.', '_' or '-', and neither a number nor \"latest\"",
        ))
    }
}

impl ArtifactPath {
    /// Checks the path a caller gave in `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        let part_is_fine = |part: &str| {
            !part.is_empty() && part != "." && part != ".." && !part.chars().any(|c| c.is_control() || c == '\\')
        };
        if text.len() <= MAX_PATH && text.split('/').all(part_is_fine) {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::invalid(
            "INVALID_PATH",
            field,
            "must be a relative path of at most 512 bytes, its parts separated by '/' and none of them empty, '.' or '..', \
             without backslashes and control characters",
        ))
    }

    /// Whether one of the two would have to be a directory for the other to exist.
    pub fn collides_with(&self, other: &Self) -> bool {
        let holds = |dir: &str, file: &str| file.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
        holds(&self.0, &other.0) || holds(&other.0, &self.0)
    }
}

impl Sha256Hex {
    /// Checks the digest a caller gave in `field`.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::invalid("INVALID_SHA256", field, "must be 64 lower-case hexadecimal digits"))
    }

    /// Writes a finished hash.
    pub fn of(hash: sha2::Sha256) -> Self {
        Self(hex::encode(sha2::Digest::finalize(hash)))
    }
}

/// One version of one model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VersionId {
    pub model: ModelName,
    /// Starts at 1.
    pub number: i64,
}

impl VersionId {
    /// Checks the model a caller gave in `model` and the number given in `version`.
    pub fn parse(model: &str, number: i64) -> Result<Self> {
        Ok(Self { model: ModelName::parse("model", model)?, number: version_number("version", number)? })
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.model, self.number)
    }
}

/// Checks the version number a caller gave in `field`.
pub fn version_number(field: &str, number: i64) -> Result<i64> {
    if number >= 1 {
        return Ok(number);
    }
    Err(Error::invalid("INVALID_VERSION", field, "must be 1 or more"))
}

/// What names a version: its number, or an alias that points at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    Number(VersionId),
    Alias { model: ModelName, alias: AliasName },
}

impl Reference {
    /// Reads `models:/name@alias`, `models:/name/version`, or the same without `models:/`.
    pub fn parse(field: &str, uri: &str) -> Result<Self> {
        let invalid = || {
            Error::invalid(
                "INVALID_URI",
                field,
                "must be `models:/name@alias`, `models:/name/version`, or the same without `models:/`",
            )
        };
        let text = uri.strip_prefix("models:/").unwrap_or(uri);
        if let Some((model, alias)) = text.split_once('@') {
            let model = ModelName::parse(field, model).map_err(|_| invalid())?;
            let alias = AliasName::parse(field, alias).map_err(|_| invalid())?;
            return Ok(Self::Alias { model, alias });
        }
        let (model, number) = text.split_once('/').ok_or_else(invalid)?;
        let model = ModelName::parse(field, model).map_err(|_| invalid())?;
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        match number.parse() {
            Ok(number) if is_number && number >= 1 => Ok(Self::Number(VersionId { model, number })),
            _ => Err(invalid()),
        }
    }

    /// The model it names a version of.
    pub fn model(&self) -> &ModelName {
        match self {
            Self::Number(id) => &id.model,
            Self::Alias { model, .. } => model,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_that_leave_their_directory_are_refused() {
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a\\b", "a\nb", "a/\0"] {
            assert!(ArtifactPath::parse("path", bad).is_err(), "{bad:?}");
        }
        for good in ["model.json", "1_Pooling/config.json", "a/b/c", "...", "größe.txt"] {
            assert!(ArtifactPath::parse("path", good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_file_cannot_also_be_a_directory() {
        let path = |text| ArtifactPath::parse("path", text).unwrap();
        assert!(path("a").collides_with(&path("a/b")));
        assert!(path("a/b/c").collides_with(&path("a/b")));
        assert!(!path("a").collides_with(&path("ab")));
        assert!(!path("a/b").collides_with(&path("a/c")));
    }

    #[test]
    fn references_are_read_in_all_four_forms() {
        let model = ModelName::parse("name", "fraud.v2").unwrap();
        let alias = AliasName::parse("alias", "champion").unwrap();
        let by_alias = Reference::Alias { model: model.clone(), alias };
        let by_number = Reference::Number(VersionId { model, number: 12 });
        assert_eq!(Reference::parse("uri", "models:/fraud.v2@champion").unwrap(), by_alias);
        assert_eq!(Reference::parse("uri", "fraud.v2@champion").unwrap(), by_alias);
        assert_eq!(Reference::parse("uri", "models:/fraud.v2/12").unwrap(), by_number);
        assert_eq!(Reference::parse("uri", "fraud.v2/12").unwrap(), by_number);
        for bad in
            ["", "fraud", "fraud@", "@champion", "fraud/0", "fraud/+1", "fraud/-1", "fraud/latest", "a/b@c", "fraud@1"]
        {
            assert!(Reference::parse("uri", bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_path_stays_below_its_directory(text in "[a-c./\\\\]{0,12}") {
            if let Ok(path) = ArtifactPath::parse("path", &text) {
                let joined = std::path::Path::new("/root").join(path.as_str());
                let normal = std::path::Component::Normal;
                let parts: Vec<_> = joined.components().skip(2).collect();
                prop_assert!(!parts.is_empty());
                prop_assert!(parts.iter().all(|part| *part == normal(part.as_os_str())));
            }
        }
    }
}
