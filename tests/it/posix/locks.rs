//! File locks.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::support::*;
use crate::harness::eventually;

pub fn flock_excludes(dir: &Path) {
    let path = dir.join("file");
    let (one, two) = (file(&path), reopen(&path));
    flock(&one, FlockOperation::LockExclusive).unwrap();
    fails(flock(&two, FlockOperation::NonBlockingLockShared), Errno::AGAIN);
    flock(&one, FlockOperation::LockShared).unwrap();
    flock(&two, FlockOperation::NonBlockingLockShared).unwrap();
    fails(flock(&two, FlockOperation::NonBlockingLockExclusive), Errno::AGAIN);
    drop(one);
    // A process that another test is about to start may hold a copy of the descriptor for a moment.
    eventually("closing unlocks", || flock(&two, FlockOperation::NonBlockingLockExclusive).is_ok());
}

/// More than any driver has threads.
const WAITERS: usize = 5;

pub fn waiters_for_a_lock_hold_up_nobody(dir: &Path) {
    let path = dir.join("file");
    let holder = file(&path);
    flock(&holder, FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..WAITERS)
            .map(|_| {
                scope.spawn(|| {
                    let waiter = reopen(&path);
                    flock(&waiter, FlockOperation::LockExclusive).unwrap();
                })
            })
            .collect();
        eventually("all wait", || waiting(&path) == WAITERS);
        for round in 0..50 {
            let other = dir.join(format!("other{round}"));
            fs::write(&other, pattern(10_000, round)).unwrap();
            assert!(fs::read(&other).unwrap() == pattern(10_000, round));
            assert!(names(dir).len() == 2);
            fs::remove_file(&other).unwrap();
        }
        // A list that changes while it is read may lack one for a moment.
        eventually("they still wait", || waiting(&path) == WAITERS);
        flock(&holder, FlockOperation::Unlock).unwrap();
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    });
}

/// How many wait for a lock on a file: lines such as `1: -> FLOCK ADVISORY WRITE 812 00:2e:77 0 EOF`.
fn waiting(path: &Path) -> usize {
    let meta = fs::metadata(path).unwrap();
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let locked = format!(" {major:02x}:{minor:02x}:{} ", meta.ino());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    locks.lines().filter(|line| line.contains("->") && line.contains(&locked)).count()
}

/// Set for a process that plays another owner of locks.
const CHILD: &str = "CAIRN_TEST_LOCK_FILE";
const GOT_IT: i32 = 17;
const WOULD_WAIT: i32 = 18;

/// Not a case: the other process of [`posix_locks_are_between_processes`], which runs this test program once more.
#[test]
fn another_process_tries_a_posix_lock() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let code = match fcntl_lock(reopen(Path::new(&path)), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => GOT_IT,
        Err(Errno::AGAIN | Errno::ACCESS) => WOULD_WAIT,
        Err(_) => 1,
    };
    std::process::exit(code);
}

fn try_from_another_process(path: &Path) -> Option<i32> {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "posix::locks::another_process_tries_a_posix_lock"]).env(CHILD, path);
    child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code()
}

/// Waits for a lock, and says whether a signal ended that.
const WAITER: &str = "
import fcntl, signal, sys
class Signalled(Exception):
    pass
def handler(*_):
    raise Signalled
signal.signal(signal.SIGUSR1, handler)
with open(sys.argv[1], 'r+') as file:
    try:
        (fcntl.flock if sys.argv[2] == 'flock' else fcntl.lockf)(file, fcntl.LOCK_EX)
    except Signalled:
        sys.exit(17)
";

/// Python comes back from a call at a signal whose handler raises only if the call did: with `EINTR`.
pub fn a_signal_ends_the_wait_for_a_lock(dir: &Path) {
    if Command::new("python3").arg("--version").output().is_err() {
        return crate::skip::skipped("no python3");
    }
    let path = dir.join("file");
    let holder = file(&path);
    type Lock = fn(&File, FlockOperation) -> rustix::io::Result<()>;
    let (whole, ranges): (Lock, Lock) = (|file, how| flock(file, how), |file, how| fcntl_lock(file, how));
    for (kind, lock) in [("flock", whole), ("lockf", ranges)] {
        lock(&holder, FlockOperation::LockExclusive).unwrap();
        let mut waiter = Command::new("python3").args(["-c", WAITER]).arg(&path).arg(kind).spawn().unwrap();
        eventually("it waits", || waiting(&path) == 1);
        rustix::process::kill_process(Pid::from_child(&waiter), Signal::USR1).unwrap();
        let mut ended = None;
        eventually("it goes on", || {
            ended = waiter.try_wait().unwrap();
            ended.is_some()
        });
        assert_eq!(ended.and_then(|status| status.code()), Some(17), "{kind}");
        assert_eq!(waiting(&path), 0);
        lock(&holder, FlockOperation::Unlock).unwrap();
    }
}

pub fn posix_locks_are_between_processes(dir: &Path) {
    let path = dir.join("file");
    let holder = file(&path);
    fcntl_lock(&holder, FlockOperation::LockExclusive).unwrap();
    assert_eq!(try_from_another_process(&path), Some(WOULD_WAIT));
    fcntl_lock(&holder, FlockOperation::Unlock).unwrap();
    assert_eq!(try_from_another_process(&path), Some(GOT_IT));
    fcntl_lock(&holder, FlockOperation::LockExclusive).unwrap();
    // Closing any descriptor of the file gives up all of the process's locks on it.
    drop(File::open(&path).unwrap());
    assert_eq!(try_from_another_process(&path), Some(GOT_IT));
    assert_eq!(holder.metadata().unwrap().len(), 0);
}
