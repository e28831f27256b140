//! The kernel's values as ours, and ours as the kernel's.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cairn_platform_api::{
    Allocate, Attributes, Caller, FileKind, FsError, InodeNo, NAME_MAX, OpenMode, RenameMode, SeekTo, SetTime,
    SetXattrMode, Timestamp, VfsName, VfsResult,
};
use fuser::{FileAttr, FileType, INodeNo, OpenAccMode, OpenFlags, RenameFlags, Request, TimeOrNow};

/// Length limit of names, as `statfs` shows it.
pub(crate) const NAME_LENGTH: u32 = NAME_MAX as u32;

pub(crate) fn caller(request: &Request) -> Caller {
    maker(request, 0)
}

/// The caller of a request that makes something.
pub(crate) fn maker(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid(), umask: permissions(umask) }
}

pub(crate) fn inode(ino: INodeNo) -> InodeNo {
    InodeNo(ino.0)
}

pub(crate) fn name(name: &OsStr) -> VfsResult<VfsName> {
    VfsName::new(name.as_bytes())
}

/// Permission bits.
pub(crate) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

pub(crate) fn kind_of_mode(mode: u32) -> VfsResult<FileKind> {
    match mode & libc::S_IFMT {
        // `mknod(2)` takes a missing type as a regular file.
        0 | libc::S_IFREG => Ok(FileKind::Regular),
        libc::S_IFIFO => Ok(FileKind::Fifo),
        libc::S_IFSOCK => Ok(FileKind::Socket),
        libc::S_IFCHR => Ok(FileKind::CharDevice),
        libc::S_IFBLK => Ok(FileKind::BlockDevice),
        _ => Err(FsError::Invalid),
    }
}

pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// `O_APPEND` of a file that is also open for reading is left to the kernel, which knows the end of the file and holds
/// its lock: such a file may be mapped, and a page that comes back from a mapping must go where it belongs, through
/// whichever handle the kernel takes.
pub(crate) fn open_mode(flags: OpenFlags) -> OpenMode {
    let (read, write) = match flags.acc_mode() {
        OpenAccMode::O_RDONLY => (true, false),
        OpenAccMode::O_WRONLY => (false, true),
        OpenAccMode::O_RDWR => (true, true),
    };
    OpenMode {
        read,
        write,
        append: write && !read && flags.0 & libc::O_APPEND != 0,
        truncate: flags.0 & libc::O_TRUNC != 0,
    }
}

pub(crate) fn rename_mode(flags: RenameFlags) -> VfsResult<RenameMode> {
    match flags {
        RenameFlags::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        RenameFlags::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        none if none.is_empty() => Ok(RenameMode::Replace),
        _ => Err(FsError::Invalid),
    }
}

pub(crate) fn xattr_mode(flags: i32) -> VfsResult<SetXattrMode> {
    match flags {
        0 => Ok(SetXattrMode::Any),
        libc::XATTR_CREATE => Ok(SetXattrMode::Create),
        libc::XATTR_REPLACE => Ok(SetXattrMode::Replace),
        _ => Err(FsError::Invalid),
    }
}

pub(crate) fn allocate(mode: i32) -> VfsResult<Allocate> {
    const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP_SIZE;
    const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_RANGE_KEEP_SIZE: i32 = ZERO_RANGE | KEEP_SIZE;
    match mode {
        0 => Ok(Allocate::Extend),
        KEEP_SIZE => Ok(Allocate::KeepSize),
        PUNCH_HOLE => Ok(Allocate::PunchHole),
        ZERO_RANGE => Ok(Allocate::ZeroRange),
        ZERO_RANGE_KEEP_SIZE => Ok(Allocate::ZeroRangeKeepSize),
        _ => Err(FsError::NotSupported),
    }
}

pub(crate) fn seek_to(whence: i32) -> VfsResult<SeekTo> {
    match whence {
        libc::SEEK_DATA => Ok(SeekTo::Data),
        libc::SEEK_HOLE => Ok(SeekTo::Hole),
        _ => Err(FsError::Invalid),
    }
}

pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
        TimeOrNow::Now => SetTime::Now,
    }
}

/// fuser 0.18 decodes a time before 1970 as the epoch less the seconds *less* the nanoseconds, which the kernel means
/// to be added; taken apart again that is unambiguous.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp::from_parts(i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds);
            Timestamp::from_parts(seconds, before.subsec_nanos())
        }
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let distance = Duration::from_nanos(time.as_nanos().unsigned_abs());
    if time.as_nanos() < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

/// The unit `stat` recommends for reading and writing; larger requests save round trips.
const PREFERRED_IO_SIZE: u32 = 128 * 1024;

pub(crate) fn file_attr(attributes: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(attributes.ino.0),
        size: attributes.size,
        blocks: attributes.blocks,
        atime: system_time(attributes.atime),
        mtime: system_time(attributes.mtime),
        ctime: system_time(attributes.ctime),
        crtime: system_time(attributes.btime),
        kind: file_type(attributes.kind),
        perm: attributes.mode,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: PREFERRED_IO_SIZE,
        flags: 0,
    }
}

/// Attributes that carry nothing but number and type: for `.` and `..`, of which the kernel takes no more, and with
/// number 0 for "there is no such name".
pub(crate) fn bare_attr(ino: u64, kind: FileKind) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(kind),
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: PREFERRED_IO_SIZE,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser 0.18 makes of the kernel's seconds and nanoseconds.
    fn as_fuser_decodes(seconds: i64, nanos: u32) -> SystemTime {
        if seconds >= 0 {
            UNIX_EPOCH + Duration::new(seconds as u64, nanos)
        } else {
            UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), nanos)
        }
    }

    #[test]
    fn times_before_1970_and_after_2038_keep_their_nanoseconds() {
        for (seconds, nanos) in [(-2, 800_000_000), (-1, 0), (-1, 1), (0, 0), (0, 5), (4_000_000_000, 999_999_999)] {
            let time = timestamp(as_fuser_decodes(seconds, nanos));
            assert_eq!(time.to_parts(), (seconds, nanos));
            assert_eq!(Timestamp::from(system_time(time)), time);
        }
    }

    #[test]
    fn only_write_only_files_append_by_themselves() {
        let mode = |flags| open_mode(OpenFlags(flags));
        assert!(mode(libc::O_WRONLY | libc::O_APPEND).append);
        assert!(!mode(libc::O_RDWR | libc::O_APPEND).append);
        assert!(mode(libc::O_RDWR | libc::O_TRUNC).truncate);
    }

    #[test]
    fn unknown_flags_are_refused() {
        assert_eq!(allocate(libc::FALLOC_FL_COLLAPSE_RANGE), Err(FsError::NotSupported));
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT), Err(FsError::Invalid));
        assert_eq!(xattr_mode(3), Err(FsError::Invalid));
        assert_eq!(kind_of_mode(libc::S_IFDIR), Err(FsError::Invalid));
    }
}
