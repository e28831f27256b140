//! Attributes: what `stat` shows and what changes it.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{FileExt, MetadataExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::support::*;
use crate::harness::is_root;

pub fn times_keep_nanoseconds_before_1970_and_after_2038(dir: &Path) {
    let path = dir.join("file");
    file(&path);
    for (seconds, nanos) in [(-1, 999_999_999), (-2_000_000_000, 1), (0, 0), (1, 123_456_789), (4_102_444_800, 7)] {
        set_times(&path, time(seconds, nanos), time(seconds + 1, nanos));
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.atime(), meta.atime_nsec()), (seconds, nanos));
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (seconds + 1, nanos));
    }
}

/// What 64 bits of nanoseconds hold, as the kernel holds times to what an ext4 can keep. Of a directory, since a content's
/// time is kept by the file system below.
pub fn times_beyond_what_is_kept_become_the_first_or_the_last(dir: &Path) {
    let sub = dir.join("sub");
    fs::create_dir(&sub).unwrap();
    let (first, last) = ((-9_223_372_037, 145_224_192), (9_223_372_036, 854_775_807));
    let times = [(-8_520_336_000, 1), (7_258_118_400, 999_999_999), first, last];
    for (seconds, nanos) in times {
        set_times(&sub, time(seconds, nanos), time(seconds, nanos));
        let meta = fs::metadata(&sub).unwrap();
        assert_eq!([(meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec())], [(seconds, nanos); 2]);
    }
    for (seconds, nanos) in [(i64::MIN, 0), (i64::MIN + 1, 7), (first.0, first.1 - 1), (first.0 - 1, 999_999_999)] {
        set_times(&sub, time(0, 0), time(seconds, nanos));
        let meta = fs::metadata(&sub).unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), first, "{seconds} {nanos}");
    }
    for (seconds, nanos) in [(i64::MAX, 0), (i64::MAX - 1, 7), (last.0, last.1 + 1), (last.0 + 1, 0)] {
        set_times(&sub, time(0, 0), time(seconds, nanos));
        let meta = fs::metadata(&sub).unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), last, "{seconds} {nanos}");
    }
}

pub fn utimensat_knows_now_and_omit(dir: &Path) {
    let path = dir.join("file");
    file(&path);
    set_times(&path, time(1000, 5), time(2000, 6));
    let before = ctime(&path);
    set_times(&path, time(0, UTIME_OMIT), time(3000, 7));
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.atime(), meta.atime_nsec(), meta.mtime(), meta.mtime_nsec()), (1000, 5, 3000, 7));
    assert!(ctime(&path) > before);
    let start = SystemTime::now() - Duration::from_secs(1);
    set_times(&path, time(0, UTIME_NOW), time(0, UTIME_OMIT));
    let meta = fs::metadata(&path).unwrap();
    assert!(meta.accessed().unwrap() >= start);
    assert_eq!(meta.mtime(), 3000);
}

pub fn times_of_a_symbolic_link_are_its_own(dir: &Path) {
    file(&dir.join("file"));
    symlink("file", dir.join("link")).unwrap();
    set_times(&dir.join("link"), time(1000, 0), time(2000, 0));
    assert_eq!(mtime(&dir.join("link")), 2_000_000_000_000);
    assert!(mtime(&dir.join("file")) > 2_000_000_000_000);
}

pub fn a_write_after_utimensat_shows_at_once(dir: &Path) {
    let path = dir.join("file");
    let open = file(&path);
    open.write_all_at(b"first", 0).unwrap();
    age(&path);
    assert_eq!((mtime(&path), fs::metadata(&path).unwrap().len()), (1_000_000_000_000, 5));
    open.write_all_at(b"and more", 5).unwrap();
    assert!(mtime(&path) > 1_000_000_000_000);
    assert_eq!(fs::metadata(&path).unwrap().len(), 13);
    let times = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(5));
    open.set_times(times).unwrap();
    drop(open);
    assert_eq!(mtime(&path), 5_000_000_000);
}

pub fn size_and_blocks_follow_every_descriptor(dir: &Path) {
    let path = dir.join("file");
    let (one, two) = (file(&path), reopen(&path));
    one.write_all_at(&pattern(100_000, 1), 0).unwrap();
    assert_eq!(two.metadata().unwrap().len(), 100_000);
    assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 100_000);
    two.write_all_at(b"end", 200_000).unwrap();
    assert_eq!((one.metadata().unwrap().len(), fs::metadata(&path).unwrap().len()), (200_003, 200_003));
    one.set_len(10).unwrap();
    assert_eq!(two.metadata().unwrap().len(), 10);
    let mut byte = [0];
    assert_eq!(two.read_at(&mut byte, 10).unwrap(), 0);
    drop((one, two));
    assert_eq!(fs::metadata(&path).unwrap().len(), 10);
}

pub fn truncation_sets_times_and_zeroes(dir: &Path) {
    let path = dir.join("file");
    fs::write(&path, pattern(10_000, 2)).unwrap();
    age(&path);
    let open = reopen(&path);
    open.set_len(5000).unwrap();
    assert!(mtime(&path) > 1_000_000_000_000);
    open.set_len(9000).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 9000);
    assert_eq!(bytes[..5000], pattern(10_000, 2)[..5000]);
    assert!(bytes[5000..].iter().all(|b| *b == 0));
    age(&path);
    drop(File::create(&path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert!(mtime(&path) > 1_000_000_000_000);
    fails_io(File::options().write(true).open(dir), Errno::ISDIR);
}

pub fn a_sparse_file_counts_by_blocks(dir: &Path) {
    let open = file(&dir.join("file"));
    open.set_len(1 << 40).unwrap();
    open.write_all_at(b"x", 1 << 39).unwrap();
    let meta = open.metadata().unwrap();
    assert_eq!(meta.len(), 1 << 40);
    assert!(meta.blocks() < 4096, "{} blocks", meta.blocks());
    let mut bytes = [1; 3];
    open.read_exact_at(&mut bytes, (1 << 39) - 1).unwrap();
    assert_eq!(&bytes, b"\0x\0");
}

/// Or before, where the file system below keeps contents that cannot be as long (16 TiB on ext4): then it is refused.
pub fn a_file_ends_before_8_exbibytes(dir: &Path) {
    let open = file(&dir.join("file"));
    const LENGTH: u64 = i64::MAX as u64;
    match open.set_len(LENGTH) {
        Ok(()) => {
            open.write_all_at(b"end", LENGTH - 3).unwrap();
            assert_eq!(fs::metadata(dir.join("file")).unwrap().len(), LENGTH);
            let mut bytes = [1; 5];
            open.read_exact_at(&mut bytes, LENGTH - 5).unwrap();
            assert_eq!(&bytes, b"\0\0end");
            assert_eq!(open.read_at(&mut bytes[..1], LENGTH - 1).unwrap(), 1);
            // What would end beyond the kernel refuses by itself.
            fails_io(open.write_all_at(b"xx", LENGTH - 1), Errno::INVAL);
            open.set_len(0).unwrap();
        }
        Err(error) => assert_eq!(error.raw_os_error(), Some(Errno::FBIG.raw_os_error())),
    }
    assert_eq!(fs::metadata(dir.join("file")).unwrap().len(), 0);
}

pub fn modes_are_kept_and_the_umask_applies(dir: &Path) {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    for bits in [0o000, 0o777, 0o4755, 0o1666, 0o640] {
        let path = dir.join(format!("file{bits:o}"));
        file(&path);
        let before = ctime(&path);
        set_mode(&path, bits);
        assert_eq!(mode(&path), bits);
        assert!(ctime(&path) > before);
    }
    // The umask belongs to the whole process, so it is looked at and not set.
    let umask = umask();
    File::options().write(true).create_new(true).mode(0o777).open(dir.join("new")).unwrap();
    fs::DirBuilder::new().mode(0o777).create(dir.join("sub")).unwrap();
    assert_eq!((mode(&dir.join("new")), mode(&dir.join("sub"))), (0o777 & !umask, 0o777 & !umask));
}

fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
    u32::from_str_radix(line.trim(), 8).unwrap()
}

pub fn owner_and_group_can_be_changed(dir: &Path) {
    if !is_root() {
        return;
    }
    let path = dir.join("file");
    file(&path);
    let before = ctime(&path);
    chown(&path, Some(1234), None).unwrap();
    chown(&path, None, Some(4321)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (1234, 4321));
    assert!(ctime(&path) > before);
}

pub fn statfs_counts_what_is_written(dir: &Path) {
    let free = || {
        let stat = rustix::fs::statvfs(dir).unwrap();
        assert!(stat.f_blocks >= stat.f_bfree && stat.f_bfree >= stat.f_bavail && stat.f_namemax == 255);
        stat
    };
    let stat = free();
    assert!(stat.f_blocks > 0 && stat.f_files > 0 && stat.f_frsize > 0);
    // Other cases write and free at the same time, so only the order of magnitude is sure: a sparse file takes nothing.
    let open = file(&dir.join("sparse"));
    open.set_len(1 << 43).unwrap();
    assert!(free().f_bfree > 0);
}

pub fn a_birth_time_is_not_shown(dir: &Path) {
    use rustix::fs::{AtFlags, CWD, StatxFlags};
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let shown = rustix::fs::statx(CWD, dir, AtFlags::empty(), wanted).unwrap();
    assert!(!StatxFlags::from_bits_retain(shown.stx_mask).contains(StatxFlags::BTIME));
}
