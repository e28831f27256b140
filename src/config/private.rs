//! Files that only their owner may read: written whole and durably, and not read when others may read them, too.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::base::os::{self, Disposition};

/// What became of reading a secret.
pub(super) enum Secret {
    /// The file's content.
    Content(Zeroizing<Vec<u8>>),
    /// Others than its owner may use the file, so it was not read.
    Exposed,
}

/// Reads a file that holds a secret.
pub(super) fn read_secret(path: &Path) -> io::Result<Secret> {
    let mut file = File::open(path)?;
    if os::is_exposed(&file)? {
        return Ok(Secret::Exposed);
    }
    let mut content = Zeroizing::new(Vec::new());
    file.read_to_end(&mut content)?;
    Ok(Secret::Content(content))
}

/// Replaces the file by `bytes`, whole or not at all, durably.
pub(super) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    write(os::open_private(&temporary, Disposition::CreateEmpty)?, bytes)?;
    std::fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Makes a file that must not exist yet, durably.
pub(super) fn create_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(os::open_private(path, Disposition::CreateNew)?, bytes)?;
    sync_parent(path)
}

fn write(mut file: File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), os::sync_directory)
}
