//! The values of the [`crate::Vfs`] seam.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use crate::{FsError, VfsResult};

/// The longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;
/// The longest extended attribute name, in bytes (Linux `XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX: usize = 255;
/// The longest extended attribute value, in bytes (Linux `XATTR_SIZE_MAX`).
pub const XATTR_VALUE_MAX: usize = 65536;
/// The longest symbolic link target, in bytes (Linux `PATH_MAX` less the NUL).
pub const SYMLINK_MAX: usize = 4095;

/// An inode number, unique for ever within a drive.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeNo(pub u64);

impl InodeNo {
    /// The root directory.
    pub const ROOT: Self = Self(1);
}

impl fmt::Debug for InodeNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ino {:#x}", self.0)
    }
}

/// An open file or directory, given out by `open`, `create` or `opendir`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HandleNo(pub u64);

/// The name of a directory entry: 1 to 255 bytes without `/` and NUL, not `.` or `..`. The bytes are kept exactly.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VfsName(Box<[u8]>);

impl VfsName {
    /// Checks the bytes of a name.
    ///
    /// # Errors
    /// [`FsError::NameTooLong`] above [`NAME_MAX`], [`FsError::Invalid`] for bytes that no name may have.
    pub fn new(bytes: &[u8]) -> VfsResult<Self> {
        if bytes.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(FsError::Invalid);
        }
        Ok(Self(bytes.into()))
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for VfsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

impl fmt::Display for VfsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// A point in time: nanoseconds since 1970-01-01 UTC, negative before. The range covers years 1678 to 2262.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From nanoseconds since the epoch.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the epoch.
    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    /// From seconds and the nanoseconds after them (0 to 999,999,999), held to what can be represented.
    pub const fn from_parts(seconds: i64, nanos: u32) -> Self {
        let nanos = seconds as i128 * 1_000_000_000 + nanos as i128;
        if nanos < i64::MIN as i128 {
            Self(i64::MIN)
        } else if nanos > i64::MAX as i128 {
            Self(i64::MAX)
        } else {
            Self(nanos as i64)
        }
    }

    /// Seconds, rounded down, and the nanoseconds after them.
    pub const fn to_parts(self) -> (i64, u32) {
        (self.0.div_euclid(1_000_000_000), self.0.rem_euclid(1_000_000_000) as u32)
    }

    /// The clock of this machine.
    pub fn now() -> Self {
        Self::from(std::time::SystemTime::now())
    }
}

impl From<std::time::SystemTime> for Timestamp {
    fn from(time: std::time::SystemTime) -> Self {
        match time.duration_since(std::time::UNIX_EPOCH) {
            Ok(after) => Self(i64::try_from(after.as_nanos()).unwrap_or(i64::MAX)),
            Err(before) => Self(i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |nanos| -nanos)),
        }
    }
}

/// What `stat` shows. The size of a directory and the blocks of everything but regular files are nominal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// The inode.
    pub ino: InodeNo,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with set-user-id, set-group-id and sticky: `0o7777` at most.
    pub mode: u16,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, as `makedev` packs it.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// File system user id.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// Process id, 0 where there is none.
    pub pid: u32,
    /// Permission bits that what it makes does not get, unless the directory has a default access control list.
    pub umask: u16,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// This time.
    At(Timestamp),
    /// The time of the operation.
    Now,
}

/// The attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// New permission bits (`0o7777`).
    pub mode: Option<u16>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New length: cuts, or extends with zeros.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenMode {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Every write goes to the end.
    pub append: bool,
    /// Cut to nothing on open.
    pub truncate: bool,
}

/// An open file.
#[derive(Debug, Clone)]
pub struct Opened {
    /// Its handle.
    pub handle: HandleNo,
    /// A local file with the whole content, which a driver may let the kernel read, write and map in place of
    /// calling [`crate::Vfs::read`] and [`crate::Vfs::write`]. Open for at least what the caller asked for. As long as
    /// any handle of the inode is open it must be the same file on disk. A mapping of it can outlive the handle: the
    /// file may be written to after [`crate::Vfs::release`], until [`crate::Vfs::forget`], without a word to anybody.
    pub backing: Option<Arc<File>>,
}

/// What to make with [`crate::Vfs::mknod`]: anything but a directory or a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewNode {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u16,
    /// Device number of a device node, else 0.
    pub rdev: u32,
}

/// How `rename` treats the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces it.
    Replace,
    /// Fails with [`FsError::Exists`].
    NoReplace,
    /// Swaps the two, which must both exist.
    Exchange,
}

/// How `setxattr` treats what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetXattrMode {
    /// Makes or replaces.
    Any,
    /// Fails with [`FsError::Exists`] where there is one.
    Create,
    /// Fails with [`FsError::NoAttribute`] where there is none.
    Replace,
}

/// What `fallocate` does with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocate {
    /// Reserves space, extending the file.
    Extend,
    /// Reserves space, keeping the length.
    KeepSize,
    /// Makes a hole, keeping the length.
    PunchHole,
    /// Zeroes, extending the file.
    ZeroRange,
    /// Zeroes, keeping the length.
    ZeroRangeKeepSize,
}

/// What `lseek` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// The next byte that is not in a hole.
    Data,
    /// The next hole; the end of the file is one.
    Hole,
}

/// How much an fsync makes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncScope {
    /// Content, and the attributes needed to read it.
    Data,
    /// Content and all attributes.
    All,
}

/// One entry of a directory, as `readdir` hands it out.
#[derive(Debug, Clone, Copy)]
pub struct DirectoryEntry<'a> {
    /// The inode.
    pub ino: InodeNo,
    /// What it is.
    pub kind: FileKind,
    /// The name's bytes; `.` and `..` come first.
    pub name: &'a [u8],
    /// Where to go on after this entry.
    pub next: u64,
    /// Its attributes where the caller asked for them; never for `.` and `..`.
    pub attributes: Option<Attributes>,
}

/// Whether `readdir` hands out attributes too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectoryDetail {
    /// Names only.
    Names,
    /// Names and attributes.
    Attributes,
}

/// What `statfs` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsStatistics {
    /// Unit of the block counts, in bytes.
    pub block_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for everybody but root.
    pub blocks_available: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// What a write does to the set-user-id and set-group-id bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetIdBits {
    /// Leaves them: the writer may keep them.
    Keep,
    /// Clears them, as `write(2)` by an ordinary user does.
    Clear,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_held_to_what_can_be_represented() {
        let (first, last) = (Timestamp(i64::MIN), Timestamp(i64::MAX));
        for time in [first, Timestamp(i64::MIN + 1), Timestamp(-1), Timestamp(0), last] {
            let (seconds, nanos) = time.to_parts();
            assert_eq!(Timestamp::from_parts(seconds, nanos), time);
        }
        assert_eq!(Timestamp::from_parts(-1, 999_999_999), Timestamp(-1));
        assert_eq!(Timestamp::from_parts(i64::MIN, 0), first);
        assert_eq!(Timestamp::from_parts(-9_223_372_037, 0), first);
        assert_eq!(Timestamp::from_parts(-9_223_372_037, 999_999_999), Timestamp(-9_223_372_036_000_000_001));
        assert_eq!(Timestamp::from_parts(i64::MAX, 999_999_999), last);
    }
}
