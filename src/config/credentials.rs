//! Access keys of remotes, and the file they are kept in.
//!
//! The file `credentials.toml` in the data directory has one table for each remote or group of remotes:
//!
//! ```toml
//! [[remote]]
//! url = "s3://bucket"                # every remote whose URL begins with this; the longest match counts
//! access_key_id = "..."
//! secret_access_key = "..."
//! session_token = "..."              # optional
//! ```
//!
//! Secrets live in [`SecretText`], which prints nothing and is wiped when it is dropped. This module does not read the
//! environment or `~/.aws`: the S3 provider does, when no key is given here.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::{ConfigError, read_secret_file};

/// The file's name within the data directory.
pub const CREDENTIALS_FILE: &str = "credentials.toml";

/// A secret. It is never displayed, and its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Lends the secret to what needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

/// What S3 signs requests with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// Names the key; not a secret by itself, but not shown either.
    pub access_key_id: SecretText,
    /// The key.
    pub secret_access_key: SecretText,
    /// Goes with keys that are valid for a time only.
    pub session_token: Option<SecretText>,
}

/// The access keys this machine has for remotes.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    entries: Vec<(String, AccessKey)>,
}

/// Why a credentials file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// It cannot be read, or others may read it, too.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// It is not what it should be. The text of the file is not repeated, as it holds secrets.
    #[error("the credentials file {path:?} is not valid{}: {reason}", line_suffix(*line))]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line of the mistake, counted from 1, where known.
        line: Option<usize>,
        /// What is wrong.
        reason: String,
    },
}

fn line_suffix(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(" in line {line}"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    remote: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    url: String,
    access_key_id: SecretText,
    secret_access_key: SecretText,
    session_token: Option<SecretText>,
}

impl Credentials {
    /// Reads a credentials file; one that does not exist holds no keys.
    ///
    /// # Errors
    /// [`CredentialsError`] when it cannot be read, others may read it, too, or it is not valid.
    pub fn load(path: &Path) -> Result<Self, CredentialsError> {
        let content = match read_secret_file(path) {
            Err(ConfigError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            content => content?,
        };
        match std::str::from_utf8(&content) {
            Ok(text) => Self::parse(path, text),
            Err(_) => {
                Err(CredentialsError::Syntax { path: path.into(), line: None, reason: "it is not UTF-8".to_owned() })
            }
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, CredentialsError> {
        let file: File = toml::from_str(text).map_err(|error| CredentialsError::Syntax {
            path: path.into(),
            line: error.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1),
            reason: reason_without_secrets(error.message()),
        })?;
        let entries = file.remote.into_iter().map(|Entry { url, access_key_id, secret_access_key, session_token }| {
            (url, AccessKey { access_key_id, secret_access_key, session_token })
        });
        Ok(Self { entries: entries.collect() })
    }

    /// Adds the key for all remotes whose URL begins with `url`.
    pub fn insert(&mut self, url: impl Into<String>, key: AccessKey) {
        self.entries.push((url.into(), key));
    }

    /// The key for a remote: that of the longest prefix of its URL which ends where a part of the URL ends.
    pub fn key_for(&self, remote: &str) -> Option<&AccessKey> {
        let matching = self.entries.iter().filter(|(url, _)| is_url_prefix(url, remote));
        matching.max_by_key(|(url, _)| url.len()).map(|(_, key)| key)
    }
}

/// Whether `prefix` is a prefix of `url` by whole parts: `s3://work` is none of `s3://workshop/x`.
fn is_url_prefix(prefix: &str, url: &str) -> bool {
    match url.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || prefix.ends_with(['/', '?', '&']) || rest.starts_with(['/', '?', '&']),
        None => false,
    }
}

/// Parsers quote the value they dislike; what a value could be is worth telling, the value is not.
fn reason_without_secrets(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    match first.find("invalid type") {
        Some(_) => "a value is not a text in quotes".into(),
        None => first.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[[remote]]
url = "s3://work"
access_key_id = "ID-ONE"
secret_access_key = "SECRET-ONE"
[[remote]]
url = "s3://work/private"
access_key_id = "ID-TWO"
secret_access_key = "SECRET-TWO"
session_token = "TOKEN-TWO"
"#;

    fn parse(text: &str) -> Result<Credentials, CredentialsError> {
        Credentials::parse(Path::new("credentials.toml"), text)
    }

    #[test]
    fn the_longest_prefix_by_whole_parts_counts() {
        let credentials = parse(FILE).expect("valid");
        let id = |url: &str| credentials.key_for(url).map(|key| key.access_key_id.reveal().to_owned());
        assert_eq!(id("s3://work?region=x"), Some("ID-ONE".into()));
        assert_eq!(id("s3://work/other"), Some("ID-ONE".into()));
        assert_eq!(id("s3://work/private/deep?region=x"), Some("ID-TWO".into()));
        assert_eq!(id("s3://work/privateer"), Some("ID-ONE".into()));
        assert_eq!(id("s3://workshop"), None);
    }

    #[test]
    fn nothing_printed_holds_a_secret() {
        let shown = format!("{:?}", parse(FILE).expect("valid"));
        assert!(!shown.contains("SECRET") && !shown.contains("TOKEN") && !shown.contains("ID-"), "{shown}");
        for bad in [
            FILE.replace("session_token", "sesion_token"),
            FILE.replace("\"SECRET-TWO\"", "SECRET-TWO"),
            FILE.replace("\"SECRET-TWO\"", "1234SECRET"),
            FILE.replace("\"SECRET-TWO\"", "12345678"),
            FILE.replace("secret_access_key = \"SECRET-TWO\"", ""),
            FILE.replace("\"SECRET-TWO\"", "\"SECRET-TWO"),
        ] {
            let error = parse(&bad).expect_err("not valid");
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("SECRET") && !shown.contains("12345678"), "{shown}");
            assert!(shown.contains("credentials.toml") && shown.contains("line"), "{shown}");
        }
    }

    #[test]
    fn a_missing_file_holds_no_keys() {
        let credentials = Credentials::load(Path::new("/nonexistent/credentials.toml")).expect("no keys");
        assert!(credentials.key_for("s3://work").is_none());
    }
}
