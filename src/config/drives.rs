//! The drives of this machine: one directory each, with a `drive.json` that says what it is.
//!
//! A directory without `drive.json` is no drive: it is what an attach that was interrupted left behind. The record is written
//! last when a drive is attached and removed first when it is detached.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ConfigError, DataDir, create_private_dir, file_error, random_hex, read_text, replace_private_file};

const RECORD_FILE: &str = "drive.json";
/// The only version of `drive.json` there is.
const RECORD_VERSION: u32 = 1;
/// Longer names do not fit a line of `cairn drives`.
const LONGEST_NAME: usize = 64;

/// What a drive is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DriveRecord {
    version: u32,
    /// Names the directory: 16 hex digits, random.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The vault, as hex.
    pub vault: String,
    /// Its URL, without secrets.
    pub remote: String,
    /// This machine's number in the vault, six hex digits.
    pub device: String,
    /// This machine's name in the vault.
    pub device_name: String,
    /// Where the secret comes from that unlocks the vault.
    pub secret: SecretSource,
}

/// Where the secret of a vault comes from. The secret itself is never kept in a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "from")]
pub enum SecretSource {
    /// A key file.
    KeyFile {
        /// Where it is.
        path: PathBuf,
    },
    /// A file with the passphrase in its first line.
    PassphraseFile {
        /// Where it is.
        path: PathBuf,
    },
    /// `CAIRN_PASSPHRASE`, or the person at the terminal.
    Passphrase,
}

/// What a new drive will be.
#[derive(Debug, Clone)]
pub struct NewDrive {
    /// What people call it; `None` makes one from the remote's URL.
    pub name: Option<String>,
    /// The vault, as hex.
    pub vault: String,
    /// Its URL, without secrets.
    pub remote: String,
    /// This machine's number in the vault, six hex digits.
    pub device: String,
    /// This machine's name in the vault.
    pub device_name: String,
    /// Where the secret comes from.
    pub secret: SecretSource,
}

impl DataDir {
    /// The directory of a drive.
    pub fn drive_dir(&self, record: &DriveRecord) -> PathBuf {
        self.drives().join(&record.id)
    }

    /// All drives, by name. A machine without a data directory has none.
    ///
    /// # Errors
    /// [`ConfigError`] when any of them cannot be read: an incomplete list would lead to wrong conclusions.
    pub fn list_drives(&self) -> Result<Vec<DriveRecord>, ConfigError> {
        let directory = self.drives();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(ConfigError::File { doing: "read", path: directory, source }),
        };
        let mut drives = Vec::new();
        for entry in entries {
            let entry = entry.map_err(file_error("read", &directory))?;
            if let Some(record) = read_record(&entry.path())? {
                drives.push(record);
            }
        }
        drives.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(drives)
    }

    /// The drive of that name, id or remote URL.
    ///
    /// # Errors
    /// [`ConfigError::NoSuchDrive`], or what [`Self::list_drives`] says.
    pub fn find_drive(&self, name: &str) -> Result<DriveRecord, ConfigError> {
        self.list_drives()?
            .into_iter()
            .find(|drive| drive.name == name || drive.id == name || drive.remote == name)
            .ok_or_else(|| ConfigError::NoSuchDrive { name: name.to_owned() })
    }

    /// Reserves the directory of a new drive; it becomes one with [`Self::commit_drive`].
    ///
    /// # Errors
    /// [`ConfigError`] when the name is taken or unusable, or the directory cannot be made.
    pub fn prepare_drive(&self, new: NewDrive) -> Result<DriveRecord, ConfigError> {
        self.create()?;
        let drives = self.list_drives()?;
        let taken = |name: &str| drives.iter().any(|drive| drive.name == name);
        let name = match new.name {
            Some(name) => checked_name(name)?,
            None => free_name(&name_from_remote(&new.remote), taken),
        };
        if taken(&name) {
            return Err(ConfigError::NameTaken { name });
        }
        let record = DriveRecord {
            version: RECORD_VERSION,
            id: random_hex(8)?,
            name,
            vault: new.vault,
            remote: new.remote,
            device: new.device,
            device_name: new.device_name,
            secret: new.secret,
        };
        let path = self.drive_dir(&record);
        create_private_dir(&path)?;
        Ok(record)
    }

    /// Makes the prepared directory a drive.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub fn commit_drive(&self, record: &DriveRecord) -> Result<(), ConfigError> {
        let mut text = serde_json::to_vec_pretty(record).expect("a record has only strings and numbers");
        text.push(b'\n');
        replace_private_file(&self.drive_dir(record).join(RECORD_FILE), &text)
    }

    /// Removes a drive with everything in its directory, prepared or committed.
    ///
    /// # Errors
    /// [`ConfigError::File`]; the drive is gone from the list as soon as its record is.
    pub fn remove_drive(&self, record: &DriveRecord) -> Result<(), ConfigError> {
        let path = self.drive_dir(record);
        match fs::remove_file(path.join(RECORD_FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ConfigError::File { doing: "remove", path, source: error });
            }
            _ => {}
        }
        fs::remove_dir_all(&path).map_err(file_error("remove", &path))
    }
}

fn read_record(directory: &Path) -> Result<Option<DriveRecord>, ConfigError> {
    let path = directory.join(RECORD_FILE);
    let text = match read_text(&path) {
        // A plain file among the directories is none of ours.
        Err(ConfigError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotADirectory => return Ok(None),
        text => text?,
    };
    let Some(text) = text else { return Ok(None) };
    let invalid = |reason: String| ConfigError::Invalid { path: path.clone(), reason };
    let record: DriveRecord = serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
    if record.version != RECORD_VERSION {
        return Err(invalid(format!("it has version {}, this program knows {RECORD_VERSION}", record.version)));
    }
    if directory.file_name().and_then(|name| name.to_str()) != Some(&record.id) {
        return Err(invalid(format!("it says it is drive {}", record.id)));
    }
    Ok(Some(record))
}

fn checked_name(name: String) -> Result<String, ConfigError> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > LONGEST_NAME {
        "it is longer than 64 bytes"
    } else if name.contains(['/', ':', '\\']) || name.starts_with(['-', '.', '~']) {
        "it looks like a path, a URL or an option"
    } else if name.chars().any(char::is_control) {
        "it has control characters"
    } else {
        return Ok(name);
    };
    Err(ConfigError::BadName { name, reason })
}

/// The last part of the URL's path, or its host, or `drive`.
fn name_from_remote(remote: &str) -> String {
    let path = remote.split('?').next().unwrap_or_default();
    let part = path.rsplit(['/', ':']).find(|part| !part.is_empty()).unwrap_or("drive");
    let name: String = part.chars().map(|c| if c.is_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    let name: String = name.trim_start_matches(['-', '.']).chars().take(LONGEST_NAME / 4).collect();
    if name.is_empty() { "drive".to_owned() } else { name }
}

fn free_name(wanted: &str, taken: impl Fn(&str) -> bool) -> String {
    if !taken(wanted) {
        return wanted.to_owned();
    }
    (2..)
        .map(|number: u32| format!("{wanted}-{number}"))
        .find(|name| !taken(name))
        .expect("there are fewer drives than numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_drive(name: Option<&str>, remote: &str) -> NewDrive {
        NewDrive {
            name: name.map(str::to_owned),
            vault: "00112233445566778899aabbccddeeff".to_owned(),
            remote: remote.to_owned(),
            device: "00000a".to_owned(),
            device_name: "desk".to_owned(),
            secret: SecretSource::Passphrase,
        }
    }

    fn data() -> (tempfile::TempDir, DataDir) {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let data = DataDir::locate(Some(temporary.path().join("data"))).expect("absolute");
        (temporary, data)
    }

    #[test]
    fn drive_exists_from_its_commit_to_its_removal() {
        let (_temporary, data) = data();
        assert_eq!(data.list_drives().expect("none"), []);
        let record = data.prepare_drive(new_drive(None, "s3://bucket/photos?region=x")).expect("prepared");
        assert_eq!(data.list_drives().expect("none yet"), []);
        data.commit_drive(&record).expect("committed");
        for name in ["photos", record.id.as_str(), "s3://bucket/photos?region=x"] {
            assert_eq!(data.find_drive(name).expect("found"), record);
        }
        data.remove_drive(&record).expect("removed");
        assert!(matches!(data.find_drive("photos"), Err(ConfigError::NoSuchDrive { .. })));
        assert!(!data.drive_dir(&record).exists());
    }

    #[test]
    fn names_are_unique_and_made_when_none_is_given() {
        let (_temporary, data) = data();
        for expected in ["vault", "vault-2", "vault-3"] {
            let record = data.prepare_drive(new_drive(None, "fs:///mnt/vault/")).expect("prepared");
            assert_eq!(record.name, expected);
            data.commit_drive(&record).expect("committed");
        }
        let shown = data.prepare_drive(new_drive(Some("vault-2"), "memory:")).expect_err("taken").to_string();
        assert!(shown.contains("vault-2") && shown.contains("--name"), "{shown}");
    }

    #[test]
    fn names_that_could_be_mistaken_are_refused() {
        for name in ["", "a/b", "s3:x", "-f", ".hidden", "~", "a\nb", &"x".repeat(65)] {
            assert!(checked_name(name.to_owned()).is_err(), "{name:?}");
        }
        assert_eq!(name_from_remote("memory:"), "memory");
        assert_eq!(name_from_remote("fs:///"), "fs");
        assert_eq!(name_from_remote("fs:///a/my files"), "my-files");
        assert_eq!(name_from_remote("fs:///..."), "drive");
    }

    #[test]
    fn damaged_record_is_an_error_that_names_the_file() {
        let (_temporary, data) = data();
        let record = data.prepare_drive(new_drive(None, "memory:")).expect("prepared");
        data.commit_drive(&record).expect("committed");
        let path = data.drive_dir(&record).join(RECORD_FILE);
        let good = fs::read_to_string(&path).expect("readable");
        for bad in [
            good.replace("\"version\": 1", "\"version\": 2"),
            good.replace(&record.id, "0000000000000000"),
            good.replace("\"name\"", "\"nom\""),
            good[..good.len() / 2].to_owned(),
        ] {
            fs::write(&path, bad).expect("written");
            let shown = data.list_drives().expect_err("damaged").to_string();
            assert!(shown.contains(RECORD_FILE), "{shown}");
        }
    }
}
