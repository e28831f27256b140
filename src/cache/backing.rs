//! The directory of backing files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cairn_platform_api::{InodeNo, Timestamp};

use crate::base::os::{self, Disposition, FileStatus};

/// What a backing file looked like: two equal stamps of one file mean that nothing wrote to it in between, provided the
/// first was not taken within the clock granularity of the last write (see [`Stamp::is_settled`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Length in bytes.
    pub size: u64,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of content or attributes: nobody can set it, so a set-back `mtime` does not hide a write.
    pub ctime: Timestamp,
}

/// The kernel stamps files with the time of its last tick, at most 10 ms apart, so a write shortly after a stamp may leave
/// it unchanged. Generously more than a tick.
const STAMP_GRANULARITY_NANOS: i64 = 50_000_000;

impl Stamp {
    /// Whether a write after this moment is sure to change the stamp.
    pub fn is_settled(&self, now: Timestamp) -> bool {
        let age = now.as_nanos().saturating_sub(self.ctime.as_nanos());
        // A ctime in the future is a clock that was set back: nothing can be concluded.
        age > STAMP_GRANULARITY_NANOS
    }

    /// Whether the clock was set back since the last change: as long as it is behind, the stamp would not settle.
    pub fn is_of_the_future(&self, now: Timestamp) -> bool {
        self.ctime.as_nanos().saturating_sub(now.as_nanos()) > STAMP_GRANULARITY_NANOS
    }
}

impl From<FileStatus> for Stamp {
    fn from(status: FileStatus) -> Self {
        Self { size: status.size, mtime: status.mtime, ctime: status.ctime }
    }
}

/// The backing files of a drive: `<dir>/<2 hex>/<inode number in hex>`.
#[derive(Debug)]
pub struct BackingFiles {
    dir: PathBuf,
    /// The directory, open as long as the drive is, so that no failed write is missed by [`Self::sync_everything`]. Not every
    /// system can open one.
    root: Option<File>,
    /// Whether a sync of all failed. It tells that once, and not of which file; a sync of one file tells of that file.
    sync_failed: AtomicBool,
    syncs: AtomicU64,
    /// Counts the files without names.
    unnamed: AtomicU64,
}

impl BackingFiles {
    /// Opens the directory, making it and its 256 shards where they are missing.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        os::create_private_directory(dir)?;
        for shard in 0..=u8::MAX {
            os::create_private_entry(&dir.join(format!("{shard:02x}")))?;
        }
        os::sync_directory(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            root: File::open(dir).ok(),
            sync_failed: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
            unnamed: AtomicU64::new(0),
        })
    }

    /// Makes all backing files and their names durable at once.
    ///
    /// # Errors
    /// The disk failed; [`io::ErrorKind::Unsupported`] where files have to be synced one by one, as after a failure.
    pub fn sync_everything(&self) -> io::Result<()> {
        let failed = self.sync_failed.load(Ordering::Acquire);
        let root = self.root.as_ref().filter(|_| !failed).ok_or(io::ErrorKind::Unsupported)?;
        self.note_sync();
        os::sync_file_system(root).inspect_err(|_| self.sync_failed.store(true, Ordering::Release))
    }

    /// Makes the content of a backing file durable.
    ///
    /// # Errors
    /// The disk failed.
    pub fn sync_file(&self, file: &File) -> io::Result<()> {
        self.note_sync();
        file.sync_all()
    }

    fn note_sync(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    /// How many syncs there were.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// The directory that holds the files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn shard(&self, ino: InodeNo) -> PathBuf {
        self.dir.join(format!("{:02x}", ino.0 & 0xff))
    }

    fn path(&self, ino: InodeNo) -> PathBuf {
        self.shard(ino).join(format!("{:x}", ino.0))
    }

    /// Makes an empty backing file in place of whatever was there.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(&self, ino: InodeNo) -> io::Result<File> {
        os::open_private(&self.path(ino), Disposition::CreateEmpty)
    }

    /// Makes an empty file that nobody else can open, for a content whose inode is gone or has another content now.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create_unnamed(&self, ino: InodeNo) -> io::Result<File> {
        let number = self.unnamed.fetch_add(1, Ordering::Relaxed);
        // No inode number, so it is nobody's if it stays.
        let path = self.shard(ino).join(format!("{:x}.{number}", ino.0));
        let file = os::open_private(&path, Disposition::CreateEmpty)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }

    /// Makes an empty file that is to take the place of a backing file.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create_copy(&self, ino: InodeNo) -> io::Result<File> {
        os::open_private(&self.copy_path(ino), Disposition::CreateEmpty)
    }

    /// Replaces the backing file by its copy.
    ///
    /// # Errors
    /// The copy cannot be renamed.
    pub fn put_copy_in_place(&self, ino: InodeNo) -> io::Result<()> {
        std::fs::rename(self.copy_path(ino), self.path(ino))
    }

    /// Removes the copy of a backing file.
    ///
    /// # Errors
    /// The copy is there and cannot be removed.
    pub fn remove_copy(&self, ino: InodeNo) -> io::Result<()> {
        remove_file(&self.copy_path(ino))
    }

    /// No inode number, so it is nobody's if it stays; there is one at most of every file.
    fn copy_path(&self, ino: InodeNo) -> PathBuf {
        self.shard(ino).join(format!("{:x}.copy", ino.0))
    }

    /// Opens the backing file, `None` where there is none.
    ///
    /// # Errors
    /// The file is there and cannot be opened.
    pub fn existing(&self, ino: InodeNo) -> io::Result<Option<File>> {
        match os::open_private(&self.path(ino), Disposition::Existing) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the file system says of the backing file, `None` where there is none.
    ///
    /// # Errors
    /// The file is there and cannot be looked at.
    pub fn status(&self, ino: InodeNo) -> io::Result<Option<FileStatus>> {
        match os::status_of(&self.path(ino)) {
            Ok(status) => Ok(Some(status)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the backing file; descriptors that are open keep its content.
    ///
    /// # Errors
    /// The file is there and cannot be removed.
    pub fn remove(&self, ino: InodeNo) -> io::Result<()> {
        remove_file(&self.path(ino))
    }

    /// Gives a backing file another number.
    ///
    /// # Errors
    /// The file is not there or cannot be moved.
    pub fn rename(&self, from: InodeNo, to: InodeNo) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    /// Makes the name of a backing file durable.
    ///
    /// # Errors
    /// The directory cannot be synced.
    pub fn sync_name(&self, ino: InodeNo) -> io::Result<()> {
        self.note_sync();
        os::sync_directory(&self.shard(ino))
    }

    /// Visits the inode numbers that have a backing file. Names that are no inode number are left alone.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn scan(&self, mut visit: impl FnMut(InodeNo)) -> io::Result<()> {
        for shard in 0..=u8::MAX {
            for entry in std::fs::read_dir(self.dir.join(format!("{shard:02x}")))? {
                let name = entry?.file_name();
                let number = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok());
                if let Some(number) = number.filter(|number| number & 0xff == u64::from(shard)) {
                    visit(InodeNo(number));
                }
            }
        }
        Ok(())
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_made_found_listed_and_removed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let files = BackingFiles::open(dir.path()).expect("opened");
        let ino = InodeNo(0x1_0000_0abc);
        assert!(files.existing(ino).expect("looked").is_none());
        files.create(ino).expect("made");
        files.sync_name(ino).expect("synced");
        std::fs::write(dir.path().join("bc/stray"), b"").expect("written");
        files.create_unnamed(ino).expect("made");
        let mut found = Vec::new();
        files.scan(|ino| found.push(ino)).expect("scanned");
        assert_eq!(found, [ino]);
        files.remove(ino).expect("removed");
        files.remove(ino).expect("removing what is gone is fine");
        assert!(files.existing(ino).expect("looked").is_none());
    }

    #[test]
    fn a_fresh_stamp_is_not_settled_and_neither_is_one_from_the_future() {
        let stamp = |ctime| Stamp { size: 1, mtime: Timestamp::default(), ctime: Timestamp::from_nanos(ctime) };
        let now = Timestamp::from_nanos(1_000_000_000);
        assert!(!stamp(999_000_000).is_settled(now));
        assert!(!stamp(2_000_000_000).is_settled(now));
        assert!(stamp(900_000_000).is_settled(now));
        assert!(stamp(2_000_000_000).is_of_the_future(now));
        assert!(!stamp(1_040_000_000).is_of_the_future(now) && !stamp(0).is_of_the_future(now));
    }
}
