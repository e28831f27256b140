//! Where this machine's state lives and what is set there: the data directory, the drives in it, their settings.
//!
//! ```text
//! <data-dir>/credentials.toml            access keys of remotes
//!           /keys/<vault id>.key         key files this program made
//!           /vault                       the vault of a drive that was mounted without naming a remote
//!           /drives/<drive id>/drive.json, settings.toml, control.json, and what the drive itself keeps
//! ```
//!
//! Everything here is for its owner only (0700, 0600) and is replaced whole, never edited in place. Nothing in it is a secret
//! but the key files and the credentials; these are not read while others may read them, too. This module opens no drive and asks no remote.

pub mod credentials;
pub mod drives;
mod private;
pub mod settings;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::base::os::{self, Disposition};

pub use drives::{DriveRecord, SecretSource};
pub use settings::{FsyncPolicy, Settings};

/// Why the state of this machine cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The system does not say where the user's files are.
    #[error("there is no home directory to keep the data in; name one with --data-dir or CAIRN_DATA_DIR")]
    NoHome,
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path:?}; choose another with --data-dir, or make it writable")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of it cannot be read or written.
    #[error("cannot {doing} {path:?}")]
    File {
        /// `read`, `write`, `remove`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of it is not what it should be.
    #[error("{path:?} is not valid: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file with a secret that is not kept from others.
    #[error("{path:?} holds a secret, and others than its owner may use it; run: chmod 600 {}", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// No drive is called so.
    #[error("there is no drive {name:?} here; `cairn drives` lists those that are")]
    NoSuchDrive {
        /// What was asked for.
        name: String,
    },
    /// A name that another drive has.
    #[error("a drive called {name:?} is here already; choose another name with --name")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// A name that cannot be used.
    #[error("{name:?} cannot be the name of a drive: {reason}")]
    BadName {
        /// The name.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// The system has no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// The directory of everything this machine keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDir {
    path: PathBuf,
}

impl DataDir {
    /// The one that was named, else the usual place of the system for the data of a user's programs. Makes nothing.
    ///
    /// # Errors
    /// [`ConfigError::NoHome`], and [`ConfigError::DataDir`] when a relative path has nothing to be relative to.
    pub fn locate(named: Option<PathBuf>) -> Result<Self, ConfigError> {
        let path = match named {
            Some(path) => std::path::absolute(&path).map_err(|source| ConfigError::DataDir { path, source })?,
            None => directories::ProjectDirs::from("", "", "cairn").ok_or(ConfigError::NoHome)?.data_dir().to_owned(),
        };
        Ok(Self { path })
    }

    /// Makes the directory where it is missing, for its owner only.
    ///
    /// # Errors
    /// [`ConfigError::DataDir`].
    pub fn create(&self) -> Result<(), ConfigError> {
        for path in [self.path.clone(), self.drives(), self.keys()] {
            os::create_private_directory(&path)
                .map_err(|source| ConfigError::DataDir { path: self.path.clone(), source })?;
        }
        Ok(())
    }

    /// Its path, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the drives are.
    pub fn drives(&self) -> PathBuf {
        self.path.join("drives")
    }

    /// Where key files are.
    pub fn keys(&self) -> PathBuf {
        self.path.join("keys")
    }

    /// Where the vault is that is made when a mount names no remote.
    pub fn own_vault(&self) -> PathBuf {
        self.path.join("vault")
    }

    /// Where the key file is that was made for a vault.
    pub fn key_file(&self, vault: &str) -> PathBuf {
        self.keys().join(format!("{vault}.key"))
    }

    /// Waits until no other process changes the list of drives, and keeps others from it until the file is dropped.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub fn lock(&self) -> Result<File, ConfigError> {
        let path = self.path.join("lock");
        let file = os::open_private(&path, Disposition::Create).map_err(file_error("open", &path))?;
        fs4::FileExt::lock(&file).map_err(file_error("lock", &path))?;
        Ok(file)
    }

    /// Keeps a key in a new file, 0600, and says where.
    ///
    /// # Errors
    /// [`ConfigError::File`]; also when the file is there: a key is never replaced.
    pub fn create_key_file(&self, vault: &str, key: &[u8]) -> Result<PathBuf, ConfigError> {
        let path = self.key_file(vault);
        create_private_file(&path, key)?;
        Ok(path)
    }
}

/// Makes a directory that is for its owner only; one that exists stays as it is.
///
/// # Errors
/// [`ConfigError::File`].
pub fn create_private_dir(path: &Path) -> Result<(), ConfigError> {
    os::create_private_directory(path).map_err(file_error("make", path))
}

/// Makes a file that only its owner may read, durably.
///
/// # Errors
/// [`ConfigError::File`]; also when the file is there.
pub fn create_private_file(path: &Path, bytes: &[u8]) -> Result<(), ConfigError> {
    private::create_file(path, bytes).map_err(file_error("write", path))
}

/// Replaces a file that only its owner may read, whole or not at all, durably.
///
/// # Errors
/// [`ConfigError::File`].
pub fn replace_private_file(path: &Path, bytes: &[u8]) -> Result<(), ConfigError> {
    private::replace_file(path, bytes).map_err(file_error("write", path))
}

/// Reads a file that holds a secret.
///
/// # Errors
/// [`ConfigError::File`], and [`ConfigError::Exposed`] where the system knows that others may use it.
pub fn read_secret_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
    match private::read_secret(path).map_err(file_error("read", path))? {
        private::Secret::Content(content) => Ok(content),
        private::Secret::Exposed => Err(ConfigError::Exposed { path: path.to_owned() }),
    }
}

fn file_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ConfigError + 'a {
    move |source| ConfigError::File { doing, path: path.to_owned(), source }
}

/// The text of a file; `None` when it is confirmed absent.
fn read_text(path: &Path) -> Result<Option<String>, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::File { doing: "read", path: path.to_owned(), source }),
    }
}

/// `bytes` random bytes as lower-case hex.
///
/// # Errors
/// [`ConfigError::Random`].
pub fn random_hex(bytes: usize) -> Result<String, ConfigError> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(ConfigError::Random)?;
    Ok(hex::encode(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_directory_is_made_whole_and_key_files_are_never_replaced() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let data = DataDir::locate(Some(temporary.path().join("a/b"))).expect("absolute");
        data.create().expect("made");
        data.create().expect("made twice changes nothing");
        let path = data.create_key_file("00ff", &[7; 32]).expect("written");
        assert!(data.create_key_file("00ff", &[8; 32]).is_err());
        assert_eq!(std::fs::read(path).expect("readable"), [7; 32]);
    }

    #[test]
    fn unusable_data_directory_is_named() {
        let temporary = tempfile::NamedTempFile::new().expect("a temporary file");
        let data = DataDir::locate(Some(temporary.path().join("data"))).expect("absolute");
        let shown = data.create().expect_err("a file is in the way").to_string();
        assert!(shown.contains("data") && shown.contains("--data-dir"), "{shown}");
    }

    #[cfg(unix)]
    #[test]
    fn a_secret_that_others_may_use_is_not_read() {
        use std::os::unix::fs::PermissionsExt;
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let path = temporary.path().join("secret");
        create_private_file(&path, b"bytes").expect("written");
        let set = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("ours");
        for mode in [0o640, 0o604, 0o620, 0o644, 0o777] {
            set(mode);
            let shown = read_secret_file(&path).expect_err("others may use it").to_string();
            assert!(shown.contains(&format!("chmod 600 {}", path.display())), "{mode:o}: {shown}");
        }
        for mode in [0o600, 0o400, 0o700] {
            set(mode);
            assert_eq!(read_secret_file(&path).expect("private").as_slice(), b"bytes");
        }
    }

    #[test]
    fn replaced_file_is_whole() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let path = temporary.path().join("file");
        for bytes in [b"first".as_slice(), b"2nd"] {
            replace_private_file(&path, bytes).expect("written");
            assert_eq!(std::fs::read(&path).expect("readable"), bytes);
        }
        assert_eq!(std::fs::read_dir(temporary.path()).expect("readable").count(), 1, "nothing is left behind");
    }
}
