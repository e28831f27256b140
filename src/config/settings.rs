//! The settings of a drive: `settings.toml` beside `drive.json`. Every one is optional; a field that is not known is refused,
//! so that a misspelt limit cannot go unnoticed.
//!
//! ```toml
//! cache-budget = "20 GiB"     # how much clean content is kept here; what only this machine has is never dropped
//! upload-limit = "2 MiB"      # a second
//! download-limit = "10 MiB"   # a second
//! settle = "1s"               # a file is sent once it has not been written for so long; shorter sends more often
//! max-delay = "30s"           # a file that is always written is sent so long after its first change
//! pull-interval = "3s"        # how often other devices' changes are asked for; shorter asks the remote more often
//! request-timeout = "30s"     # how long one request to the remote may take
//! read-deadline = "30s"       # how long a reader waits for content that is not here before it gets an error
//! fsync = "local"             # or "remote": `fsync` waits until the remote has it too
//! ```

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, read_text};

/// The file's name within the drive's directory.
pub const SETTINGS_FILE: &str = "settings.toml";

/// What is set; `None` leaves what the part of the program that it concerns thinks best.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Bytes of clean content to keep at most.
    pub cache_budget: Option<HumanSize>,
    /// Bytes a second to send at most.
    pub upload_limit: Option<HumanSize>,
    /// Bytes a second to fetch at most.
    pub download_limit: Option<HumanSize>,
    /// How long a file rests before it is sent.
    pub settle: Option<HumanDuration>,
    /// How long a file that does not rest may wait.
    pub max_delay: Option<HumanDuration>,
    /// How often the remote is asked for other devices' changes.
    pub pull_interval: Option<HumanDuration>,
    /// How long one request may take.
    pub request_timeout: Option<HumanDuration>,
    /// How long a reader waits for content that is not here.
    pub read_deadline: Option<HumanDuration>,
    /// What `fsync` waits for.
    #[serde(default)]
    pub fsync: FsyncPolicy,
}

/// What `fsync` waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FsyncPolicy {
    /// The content survives power loss here.
    #[default]
    Local,
    /// The remote has it too. Programs that call `fsync` wait for the network.
    Remote,
}

/// A number of bytes, written as `10 MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HumanSize(pub u64);

impl TryFrom<String> for HumanSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for HumanSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<bytesize::ByteSize>() {
            Ok(bytesize::ByteSize(0)) => Err("a size of 0 makes no sense here".into()),
            Ok(bytesize::ByteSize(bytes)) => Ok(Self(bytes)),
            Err(_) => Err(format!("{text:?} is not a size such as \"10 MiB\"")),
        }
    }
}

/// A span of time, written as `1m 30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HumanDuration(pub Duration);

impl TryFrom<String> for HumanDuration {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|_| format!("{text:?} is not a duration such as \"90s\" or \"1m 30s\""))
    }
}

impl Settings {
    /// Reads the settings of the drive in `directory`; without the file nothing is set.
    ///
    /// # Errors
    /// [`ConfigError`] when the file cannot be read or has something in it that is not understood.
    pub fn load(directory: &Path) -> Result<Self, ConfigError> {
        let path = directory.join(SETTINGS_FILE);
        match read_text(&path)? {
            None => Ok(Self::default()),
            Some(text) => toml::from_str(&text)
                .map_err(|error| ConfigError::Invalid { path, reason: error.message().trim().replace('\n', "; ") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Settings, ConfigError> {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(temporary.path().join(SETTINGS_FILE), text).expect("written");
        Settings::load(temporary.path())
    }

    #[test]
    fn sizes_and_durations_are_human() {
        let settings = load("cache-budget = '2 GiB'\nupload-limit = '500 kB'\nsettle = '1m 30s'\nfsync = 'remote'")
            .expect("understood");
        assert_eq!(settings.cache_budget, Some(HumanSize(2 << 30)));
        assert_eq!(settings.upload_limit, Some(HumanSize(500_000)));
        assert_eq!(settings.settle, Some(HumanDuration(Duration::from_secs(90))));
        assert_eq!(settings.fsync, FsyncPolicy::Remote);
        assert_eq!(settings.download_limit, None);
    }

    #[test]
    fn what_is_not_understood_is_refused_and_named() {
        for (text, named) in [
            ("uplaod-limit = '1 MiB'", "uplaod-limit"),
            ("upload-limit = 'fast'", "fast"),
            ("upload-limit = '0 B'", "0"),
            ("settle = 'soon'", "soon"),
            ("fsync = 'maybe'", "maybe"),
            ("= 3", "key"),
        ] {
            let shown = load(text).expect_err("refused").to_string();
            assert!(shown.contains(named) && shown.contains(SETTINGS_FILE), "{shown}");
        }
    }

    #[test]
    fn without_a_file_nothing_is_set() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(Settings::load(temporary.path()).expect("nothing to read"), Settings::default());
    }
}
