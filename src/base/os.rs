//! The few calls to the operating system that sparse files need and the standard library does not offer, each with a
//! portable fallback. The only place outside `platform/` that names an operating system.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use cairn_platform_api::Timestamp;

/// What the file system says of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStatus {
    /// Length in bytes.
    pub size: u64,
    /// Bytes allocated.
    pub allocated: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of content or attributes; the time of writing where the system does not tell.
    pub ctime: Timestamp,
}

/// Space of the file system that holds a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub total: u64,
    /// Free bytes.
    pub free: u64,
    /// Free bytes for an ordinary user.
    pub available: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// A file only its owner can read, opened for reading and writing; made where it is not there.
pub fn open_private(path: &Path, disposition: Disposition) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match disposition {
        Disposition::Existing => {}
        Disposition::Create => {
            options.create(true).truncate(false);
        }
        Disposition::CreateEmpty => {
            options.create(true).truncate(true);
        }
        Disposition::CreateNew => {
            options.create_new(true);
        }
    }
    system::owner_only(&mut options);
    options.open(path)
}

/// What the file system says of an open file.
pub fn status(file: &File) -> io::Result<FileStatus> {
    system::describe(&file.metadata()?)
}

/// What the file system says of the file at a path.
pub fn status_of(path: &Path) -> io::Result<FileStatus> {
    system::describe(&std::fs::symlink_metadata(path)?)
}

/// What [`open_private`] does about a file that is there, or is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It must be there.
    Existing,
    /// It is made where it is not there.
    Create,
    /// It is made, and emptied where it is there.
    CreateEmpty,
    /// It is made, and must not be there.
    CreateNew,
}

pub use system::{
    allocate, clone_content, copy_range, create_private_directory, create_private_entry, current_owner,
    drop_cached_pages, is_exposed, is_same_file, punch_hole, read_at, renew_change_time, seek_data, seek_hole,
    set_times, space, sync_directory, sync_file_system, write_all_at, write_at,
};

#[cfg(unix)]
mod system {
    use super::*;
    use rustix::fs::{FallocateFlags, SeekFrom, Timespec, Timestamps};
    use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};

    pub(super) fn owner_only(options: &mut OpenOptions) {
        options.mode(0o600);
    }

    /// Makes a directory only its owner can enter, durably, and those above it that are missing; one that is there is left as
    /// it is.
    pub fn create_private_directory(path: &Path) -> io::Result<()> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match make_directory(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.parent().is_some() => {
                create_private_directory(parent)?;
                make_directory(path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
            made => made?,
        }
        sync_directory(parent)
    }

    /// As [`create_private_directory`] where all above it is there; durable once the directory that holds it is synced.
    pub fn create_private_entry(path: &Path) -> io::Result<()> {
        match make_directory(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            made => made,
        }
    }

    fn make_directory(path: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new().mode(0o700).create(path)
    }

    /// Reads at an offset without moving the file's position; fewer bytes than asked mean the end.
    pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Writes everything at an offset.
    pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    /// Writes at an offset what there is room for, which may be less than everything, and fails where it is nothing.
    pub fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        loop {
            match file.write_at(bytes, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => return written,
            }
        }
    }

    /// The user and the group this process acts as.
    pub fn current_owner() -> (u32, u32) {
        (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    }

    /// Whether others than its owner may use a file. What is not a file, such as a pipe, has no content to protect.
    pub fn is_exposed(file: &File) -> io::Result<bool> {
        let found = file.metadata()?;
        Ok(found.is_file() && found.mode() & 0o077 != 0)
    }

    /// Whether two descriptors are of one file.
    pub fn is_same_file(one: &File, other: &File) -> io::Result<bool> {
        let (one, other) = (one.metadata()?, other.metadata()?);
        Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
    }

    pub(super) fn describe(found: &std::fs::Metadata) -> io::Result<FileStatus> {
        let nanos = |part: i64| u32::try_from(part).unwrap_or(0);
        Ok(FileStatus {
            size: found.size(),
            allocated: found.blocks().saturating_mul(512),
            atime: Timestamp::from_parts(found.atime(), nanos(found.atime_nsec())),
            mtime: Timestamp::from_parts(found.mtime(), nanos(found.mtime_nsec())),
            ctime: Timestamp::from_parts(found.ctime(), nanos(found.ctime_nsec())),
        })
    }

    /// Sets the times that are given.
    pub fn set_times(file: &File, atime: Option<Timestamp>, mtime: Option<Timestamp>) -> io::Result<()> {
        let spec = |time: Option<Timestamp>| match time {
            None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
            Some(time) => {
                let (seconds, nanos) = time.to_parts();
                Timespec { tv_sec: seconds, tv_nsec: nanos.into() }
            }
        };
        let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
        Ok(rustix::fs::futimens(file, &times)?)
    }

    /// Makes now the time of the last change of attributes, and changes nothing else.
    pub fn renew_change_time(file: &File) -> io::Result<()> {
        file.set_permissions(file.metadata()?.permissions())
    }

    /// Makes the entries of a directory durable.
    pub fn sync_directory(path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    /// The file systems that write everything out and say what failed, by their magic numbers: ext4, xfs, btrfs, f2fs,
    /// bcachefs, tmpfs. Of a FUSE mount the kernel does not even ask the server; overlayfs does not pass errors on.
    #[cfg(target_os = "linux")]
    const SYNCED_WHOLE: [u32; 6] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0xCA45_1A4E, 0x0102_1994];

    /// Makes all files of the file system that holds this open directory durable. Reports what failed since it was opened.
    /// [`io::ErrorKind::Unsupported`] where the system has no such call, or the file system is not known to do that.
    #[cfg(target_os = "linux")]
    pub fn sync_file_system(directory: &File) -> io::Result<()> {
        // Its type differs between architectures; the numbers have 32 bits.
        let magic = rustix::fs::fstatfs(directory)?.f_type as u32;
        if !SYNCED_WHOLE.contains(&magic) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(rustix::fs::syncfs(directory)?)
    }

    /// The system has no such call.
    #[cfg(not(target_os = "linux"))]
    pub fn sync_file_system(_: &File) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Has the next reads come from the disk, where the system can: pages that a failed sync left in memory are not on it.
    pub fn drop_cached_pages(file: &File) -> io::Result<()> {
        #[cfg(any(target_os = "linux", target_os = "freebsd"))]
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?;
        let _ = file;
        Ok(())
    }

    /// Gives a range back to the file system: it reads as zeros, the length stays.
    pub fn punch_hole(file: &File, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(file, flags, offset, length)?)
    }

    /// Reserves space for a range; the length stays.
    pub fn allocate(file: &File, offset: u64, length: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, length)?)
    }

    /// The next data at or after the offset, `None` when only a hole follows.
    pub fn seek_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
        seek(file, SeekFrom::Data(offset))
    }

    /// The next hole at or after the offset, `None` beyond the end.
    pub fn seek_hole(file: &File, offset: u64) -> io::Result<Option<u64>> {
        seek(file, SeekFrom::Hole(offset))
    }

    fn seek(file: &File, to: SeekFrom) -> io::Result<Option<u64>> {
        match rustix::fs::seek(file, to) {
            Ok(offset) => Ok(Some(offset)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Copies at most `length` bytes between files, sharing blocks where the file system can; 0 at the end.
    pub fn copy_range(from: &File, from_offset: u64, to: &File, to_offset: u64, length: u64) -> io::Result<u64> {
        #[cfg(target_os = "linux")]
        {
            use rustix::io::Errno;
            let (mut at, mut into) = (from_offset, to_offset);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut into), length) {
                Ok(count) => return Ok(count as u64),
                Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        copy_by_reading(from, from_offset, to, to_offset, length)
    }

    /// Gives an empty file the content that another file of the same file system has at one moment, by sharing its blocks.
    /// [`io::ErrorKind::Unsupported`] where the file system cannot.
    #[cfg(target_os = "linux")]
    pub fn clone_content(from: &File, to: &File) -> io::Result<()> {
        use rustix::io::Errno;
        // "A reflink operation is atomic with regards to concurrent writes": ioctl_ficlonerange(2).
        match rustix::fs::ioctl_ficlone(to, from) {
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::NOSYS) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            other => Ok(other?),
        }
    }

    /// The system has no such call.
    #[cfg(not(target_os = "linux"))]
    pub fn clone_content(_: &File, _: &File) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Space of the file system that holds the path.
    pub fn space(path: &Path) -> io::Result<Space> {
        let found = rustix::fs::statvfs(path)?;
        let unit = found.f_frsize.max(1);
        Ok(Space {
            total: found.f_blocks.saturating_mul(unit),
            free: found.f_bfree.saturating_mul(unit),
            available: found.f_bavail.saturating_mul(unit),
            inodes: found.f_files,
            inodes_free: found.f_ffree,
        })
    }
}

#[cfg(windows)]
mod system {
    use super::*;
    use std::fs::FileTimes;
    use std::os::windows::fs::FileExt;
    use std::time::{Duration, SystemTime};

    pub(super) fn owner_only(_: &mut OpenOptions) {}

    /// Makes a directory; the user's profile is private by its access list.
    pub fn create_private_directory(path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    /// The same.
    pub fn create_private_entry(path: &Path) -> io::Result<()> {
        create_private_directory(path)
    }

    /// Reads at an offset; fewer bytes than asked mean the end.
    pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match file.seek_read(&mut buffer[done..], offset + done as u64)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(done)
    }

    /// Writes everything at an offset.
    pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match file.seek_write(&bytes[done..], offset + done as u64)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => done += count,
            }
        }
        Ok(())
    }

    /// Writes at an offset what there is room for, which may be less than everything, and fails where it is nothing.
    pub fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        file.seek_write(bytes, offset)
    }

    /// Owners are not numbers here: the one that may do everything.
    pub fn current_owner() -> (u32, u32) {
        (0, 0)
    }

    /// Not known: access lists rule, and those of a user's profile let nobody else in.
    pub fn is_exposed(_: &File) -> io::Result<bool> {
        Ok(false)
    }

    /// Not known: taken as two.
    pub fn is_same_file(_: &File, _: &File) -> io::Result<bool> {
        Ok(false)
    }

    pub(super) fn describe(found: &std::fs::Metadata) -> io::Result<FileStatus> {
        let mtime = Timestamp::from(found.modified()?);
        Ok(FileStatus {
            size: found.len(),
            allocated: found.len(),
            atime: found.accessed().map_or(mtime, Timestamp::from),
            mtime,
            ctime: mtime,
        })
    }

    /// Sets the times that are given.
    pub fn set_times(file: &File, atime: Option<Timestamp>, mtime: Option<Timestamp>) -> io::Result<()> {
        let system = |time: Timestamp| {
            let nanos = Duration::from_nanos(time.as_nanos().unsigned_abs());
            if time.as_nanos() < 0 { SystemTime::UNIX_EPOCH - nanos } else { SystemTime::UNIX_EPOCH + nanos }
        };
        let mut times = FileTimes::new();
        if let Some(atime) = atime {
            times = times.set_accessed(system(atime));
        }
        if let Some(mtime) = mtime {
            times = times.set_modified(system(mtime));
        }
        file.set_times(times)
    }

    /// Such a time is not kept.
    pub fn renew_change_time(_: &File) -> io::Result<()> {
        Ok(())
    }

    /// Directory entries are durable by the file system's own journal.
    pub fn sync_directory(_: &Path) -> io::Result<()> {
        Ok(())
    }

    /// The system has no such call.
    pub fn sync_file_system(_: &File) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The system has no such call.
    pub fn drop_cached_pages(_: &File) -> io::Result<()> {
        Ok(())
    }

    /// Makes a range read as zeros; the length stays.
    pub fn punch_hole(file: &File, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.saturating_add(length).min(file.metadata()?.len());
        let zeros = [0; 64 * 1024];
        let mut at = offset;
        while at < end {
            let count = (end - at).min(zeros.len() as u64);
            write_all_at(file, &zeros[..count as usize], at)?;
            at += count;
        }
        Ok(())
    }

    /// Reserving is not offered here.
    pub fn allocate(_: &File, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    /// Everything up to the end counts as data.
    pub fn seek_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < file.metadata()?.len()).then_some(offset))
    }

    /// The only hole is the end.
    pub fn seek_hole(file: &File, offset: u64) -> io::Result<Option<u64>> {
        let size = file.metadata()?.len();
        Ok((offset < size).then_some(size))
    }

    /// Copies at most `length` bytes between files; 0 at the end.
    pub fn copy_range(from: &File, from_offset: u64, to: &File, to_offset: u64, length: u64) -> io::Result<u64> {
        copy_by_reading(from, from_offset, to, to_offset, length)
    }

    /// The system has no such call.
    pub fn clone_content(_: &File, _: &File) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Space of the file system that holds the path; inodes are not counted here.
    pub fn space(path: &Path) -> io::Result<Space> {
        const INODES: u64 = 1 << 32;
        let found = fs4::statvfs(path)?;
        Ok(Space {
            total: found.total_space(),
            free: found.free_space(),
            available: found.available_space(),
            inodes: INODES,
            inodes_free: INODES,
        })
    }
}

/// Copies at most `length` bytes at an offset to the same offset by reading and writing them; 0 at the end.
pub fn copy_bytes(from: &File, to: &File, offset: u64, length: u64) -> io::Result<u64> {
    copy_by_reading(from, offset, to, offset, length)
}

fn copy_by_reading(from: &File, from_offset: u64, to: &File, to_offset: u64, length: u64) -> io::Result<u64> {
    const STEP: usize = 1 << 20;
    let mut buffer = vec![0; usize::try_from(length).unwrap_or(STEP).min(STEP)];
    let count = read_at(from, &mut buffer, from_offset)?;
    write_all_at(to, &buffer[..count], to_offset)?;
    Ok(count as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_times_and_holes_of_a_private_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = open_private(&dir.path().join("f"), Disposition::CreateEmpty).expect("made");
        write_all_at(&file, b"abc", 1 << 20).expect("written");
        let mut buffer = [1; 8];
        assert_eq!(read_at(&file, &mut buffer, (1 << 20) - 2).expect("read"), 5);
        assert_eq!(&buffer[..5], b"\0\0abc");
        // Windows counts in steps of 100 ns.
        let time = Timestamp::from_parts(-5, 300);
        set_times(&file, None, Some(time)).expect("times set");
        assert_eq!(status(&file).expect("status").mtime, time);
        let changed = status(&file).expect("status").ctime;
        // The kernel's clock for this moves in ticks.
        let moves = || {
            renew_change_time(&file).expect("renewed");
            status(&file).expect("status").ctime != changed
        };
        assert!(!cfg!(unix) || (0..100_000_000).any(|_| moves()), "the time of the last change stays");
        assert_eq!(status(&file).expect("status").mtime, time);
        punch_hole(&file, 1 << 20, 2).expect("punched");
        assert_eq!(read_at(&file, &mut buffer, 1 << 20).expect("read"), 3);
        assert_eq!(&buffer[..3], b"\0\0c");
        assert_eq!(seek_hole(&file, 2 << 20).expect("sought"), None);
        assert!(space(dir.path()).expect("space").total > 0);
        let copy = open_private(&dir.path().join("g"), Disposition::Create).expect("made");
        assert_eq!(copy_range(&file, 1 << 20, &copy, 0, 100).expect("copied"), 3);
        sync_directory(dir.path()).expect("synced");
    }
}
