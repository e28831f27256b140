//! Short forms of system calls, for the cases.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::harness::is_root;

/// A user and group that own nothing here.
pub const NOBODY: u32 = 65534;

pub fn file(path: &Path) -> File {
    File::options().read(true).write(true).create_new(true).open(path).unwrap()
}

/// Opens what is there for reading and writing.
pub fn reopen(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[track_caller]
pub fn fails<T>(result: rustix::io::Result<T>, expected: Errno) {
    assert_eq!(result.err(), Some(expected));
}

#[track_caller]
pub fn fails_io<T>(result: io::Result<T>, expected: Errno) {
    assert_eq!(result.err().and_then(|error| error.raw_os_error()), Some(expected.raw_os_error()));
}

pub fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

pub fn ino(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

pub fn nlink(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().nlink()
}

/// Modification time in nanoseconds.
pub fn mtime(path: &Path) -> i128 {
    let meta = fs::symlink_metadata(path).unwrap();
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

/// Change time in nanoseconds.
pub fn ctime(path: &Path) -> i128 {
    let meta = fs::symlink_metadata(path).unwrap();
    i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec())
}

pub fn time(seconds: i64, nanos: i64) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanos }
}

pub fn set_times(path: &Path, atime: Timespec, mtime: Timespec) {
    let times = Timestamps { last_access: atime, last_modification: mtime };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Sets the modification time far back, so that any change of it shows.
pub fn age(path: &Path) {
    set_times(path, time(1000, 0), time(1000, 0));
}

pub fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(CWD, from, CWD, to, flags)
}

pub fn mknod(path: &Path, kind: FileType, mode: u32) -> rustix::io::Result<()> {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(mode), 0)
}

/// The names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

/// Whether cases can act as other users here; says why not.
pub fn has_other_users(dir: &Path) -> bool {
    if !is_root() {
        return false;
    }
    let reachable = as_nobody(dir, "true");
    if !reachable {
        crate::skip::skipped(format_args!("other users cannot reach {}", dir.display()));
    }
    reachable
}

/// Runs a shell command as somebody else in a directory; says whether it succeeded.
pub fn as_nobody(dir: &Path, script: &str) -> bool {
    as_user(dir, NOBODY, NOBODY, script)
}

pub fn as_user(dir: &Path, uid: u32, gid: u32, script: &str) -> bool {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("umask 022; {script}")).current_dir(dir).uid(uid).gid(gid);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

/// The same bytes every time, different at every offset.
pub fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let step = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(step).take(length).collect()
}
