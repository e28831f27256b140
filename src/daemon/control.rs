//! What a command says to the process that has a drive mounted, and how the two find each other.
//!
//! The process listens on a port of 127.0.0.1 that the system chooses, and writes the port and a random token into
//! `control.json` in the drive's directory, which only the owner can read. A client sends one line of JSON, an [`Envelope`], and
//! gets lines of JSON back, each a [`Reply`], until the connection is closed; the last but progress is the result.
//! A `control.json` that outlived its process is recognised by nobody answering for it.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, DriveRecord, random_hex, replace_private_file};
use crate::replicate::{DrainProgress, Status};

/// The file's name within the drive's directory.
const CONTROL_FILE: &str = "control.json";
/// Longest line either side accepts: a status with thousands of devices fits.
pub(super) const LONGEST_LINE: usize = 4 << 20;

/// How to reach the process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ControlFile {
    /// Port on 127.0.0.1.
    pub port: u16,
    /// Proves that the client can read this file.
    pub token: Token,
    /// The process.
    pub process: u32,
    /// Where the drive is mounted, as text.
    pub mountpoint: String,
}

/// A random secret that lets a client give orders.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn random() -> Result<Self, ConfigError> {
        random_hex(32).map(Self)
    }

    /// Compares in a time that does not tell where the two differ.
    pub(super) fn matches(&self, other: &Self) -> bool {
        blake3::hash(self.0.as_bytes()) == blake3::hash(other.0.as_bytes())
    }
}

impl ControlFile {
    /// Reads the file in a drive's directory; `None` when no process has left one, or only part of one.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(drive_dir: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(drive_dir.join(CONTROL_FILE)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it; the returned guard removes it.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub fn publish(&self, drive_dir: &Path) -> Result<Published, ConfigError> {
        let path = drive_dir.join(CONTROL_FILE);
        let bytes = serde_json::to_vec(self).expect("a control file has only strings and numbers");
        replace_private_file(&path, &bytes)?;
        Ok(Published { path })
    }
}

/// A control file that is removed when this is dropped.
#[derive(Debug)]
pub struct Published {
    path: std::path::PathBuf,
}

impl Drop for Published {
    fn drop(&mut self) {
        // One that stays is harmless: nobody will answer for it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What a client sends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// From the control file.
    pub token: Token,
    /// The order.
    pub request: Request,
}

/// An order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "order")]
pub enum Request {
    /// Say how things are.
    Status,
    /// Send everything now, and say when it is done.
    Drain {
        /// Give up after so many milliseconds.
        timeout_ms: Option<u64>,
    },
    /// Stop sending and fetching changes.
    Pause,
    /// Go on.
    Resume,
    /// Fetch other devices' changes now.
    Pull,
    /// Change the limits until the drive is mounted again.
    Limits {
        /// Bytes a second to send.
        upload: Limit,
        /// Bytes a second to fetch.
        download: Limit,
    },
    /// End the mount.
    Unmount {
        /// What to do about programs that use it.
        in_use: InUse,
    },
}

/// A change of a bandwidth limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Leave it.
    Keep,
    /// No limit.
    None,
    /// So many bytes a second.
    BytesPerSecond(u64),
}

impl Limit {
    /// The limit after the change.
    pub fn apply(self, now: Option<u64>) -> Option<u64> {
        match self {
            Self::Keep => now,
            Self::None => None,
            Self::BytesPerSecond(bytes) => Some(bytes),
        }
    }
}

/// What an unmount does about programs that use the drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InUse {
    /// Leave the mount, and say so.
    Refuse,
    /// Take the mount away from them.
    Force,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Reply {
    /// It is done.
    Done,
    /// The process is about to end, unless it says otherwise before the connection does.
    Ending,
    /// How things are.
    Status(Box<DriveStatus>),
    /// A drain goes on.
    Draining {
        /// What is left.
        left: DrainProgress,
        /// Bytes that the remote has acknowledged since the drain began, compressed and sealed.
        sent: u64,
        /// Bytes a second, over the last seconds.
        rate: u64,
        /// What keeps it from going on, in one sentence, if anything does.
        trouble: Option<String>,
    },
    /// A drain ended before everything was sent.
    Incomplete {
        /// What is left.
        left: DrainProgress,
        /// Why, in one sentence.
        reason: String,
    },
    /// It could not be done.
    Failed {
        /// Why, in one sentence.
        message: String,
    },
}

/// How a drive is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DriveStatus {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The vault, as hex.
    pub vault: String,
    /// The vault's URL, without secrets.
    pub remote: String,
    /// This device's id.
    pub device: String,
    /// This device's name.
    pub device_name: String,
    /// Where it is mounted, if it is.
    pub mountpoint: Option<String>,
    /// The process that has it mounted, if one has.
    pub process: Option<u32>,
    /// How replication is; nothing is known of a drive that is not mounted.
    pub replication: Option<Status>,
}

impl DriveStatus {
    /// Of a drive that is not mounted.
    pub fn not_mounted(record: &DriveRecord) -> Self {
        Self {
            name: record.name.clone(),
            id: record.id.clone(),
            vault: record.vault.clone(),
            remote: record.remote.clone(),
            device: record.device.clone(),
            device_name: record.device_name.clone(),
            mountpoint: None,
            process: None,
            replication: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_survive_json() {
        let token = Token::random().expect("random numbers");
        for request in [
            Request::Status,
            Request::Drain { timeout_ms: Some(5) },
            Request::Limits { upload: Limit::BytesPerSecond(7), download: Limit::Keep },
            Request::Unmount { in_use: InUse::Force },
        ] {
            let text = serde_json::to_string(&Envelope { token: token.clone(), request }).expect("can be written");
            let back: Envelope = serde_json::from_str(&text).expect("can be read");
            assert_eq!(back.request, request);
            assert!(back.token.matches(&token) && !back.token.matches(&Token("other".to_owned())));
        }
        let reply = Reply::Incomplete { left: DrainProgress::default(), reason: "paused".to_owned() };
        let text = serde_json::to_string(&reply).expect("can be written");
        assert_eq!(serde_json::from_str::<Reply>(&text).expect("can be read"), reply);
    }

    #[test]
    fn control_file_lives_as_long_as_its_guard() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let file = ControlFile {
            port: 1,
            token: Token::random().expect("random numbers"),
            process: 2,
            mountpoint: "/mnt".to_owned(),
        };
        assert!(ControlFile::read(temporary.path()).expect("readable").is_none());
        let guard = file.publish(temporary.path()).expect("written");
        let read = ControlFile::read(temporary.path()).expect("readable").expect("there");
        assert!(read.token.matches(&file.token) && read.mountpoint == "/mnt");
        drop(guard);
        assert!(ControlFile::read(temporary.path()).expect("readable").is_none());
    }

    #[test]
    fn token_is_not_shown() {
        assert_eq!(format!("{:?}", Token("secret".to_owned())), "Token(..)");
    }
}
