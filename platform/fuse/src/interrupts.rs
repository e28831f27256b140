//! Signals to programs that wait for a late answer.
//!
//! The kernel would send `FUSE_INTERRUPT`, but fuser 0.18 refuses it, and then a request that has been read cannot be left
//! any more, not even by `SIGKILL`. So while an answer is not there it is looked whether its caller has a signal to handle.

use std::fs;
use std::pin::pin;
use std::time::Duration;

use cairn_platform_api::{FsError, VfsResult};

/// How often is looked: a person who presses Ctrl-C does not notice so much.
const PERIOD: Duration = Duration::from_millis(200);

/// The signals that end a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signals {
    /// All that the program has not blocked.
    Any,
    /// Those by which somebody asks a program to end. A failed sync is data lost to many programs, which must not come from a
    /// timer or a child that ended.
    Ending,
    /// Only the one that ends it: where a program does not expect an interruption, as when it touches a mapping.
    Kill,
}

/// A thread that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting {
    pub(crate) thread: u32,
    pub(crate) signals: Signals,
}

impl Waiting {
    /// The answer, or [`FsError::Interrupted`].
    pub(crate) async fn for_answer<T>(self, answer: impl Future<Output = VfsResult<T>>) -> VfsResult<T> {
        let mut answer = pin!(answer);
        loop {
            match tokio::time::timeout(PERIOD, &mut answer).await {
                Ok(result) => return result,
                Err(_) if self.is_interrupted() => return Err(FsError::Interrupted),
                Err(_) => {}
            }
        }
    }

    fn is_interrupted(self) -> bool {
        // Zero is a thread that this process cannot see.
        let status = fs::read_to_string(format!("/proc/{}/status", self.thread));
        self.thread != 0 && status.is_ok_and(|status| pending(&status) & self.signals.mask() != 0)
    }
}

impl Signals {
    fn mask(self) -> u64 {
        match self {
            Self::Any => u64::MAX,
            Self::Ending => mask_of(&[libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP]),
            Self::Kill => mask_of(&[libc::SIGKILL]),
        }
    }
}

fn mask_of(signals: &[libc::c_int]) -> u64 {
    signals.iter().fold(0, |mask, signal| mask | 1 << (signal - 1))
}

/// The signals that a thread would handle if it did not wait, as `proc(5)` shows them.
fn pending(status: &str) -> u64 {
    let set = |name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or(0)
    };
    (set("SigPnd:") | set("ShdPnd:")) & !(set("SigBlk:") | set("SigIgn:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_wait_for_a_thread_are_seen_and_those_it_does_not_want_are_not() {
        let status = "Name:\tcat\nSigPnd:\t0000000000000002\nShdPnd:\t0000000000004100\n\
            SigBlk:\t0000000000000002\nSigIgn:\t0000000000004000\n";
        assert_eq!(pending(status), 0x100);
        assert_eq!(pending(status) & Signals::Kill.mask(), 0x100);
        assert_eq!(pending(status) & Signals::Ending.mask(), 0x100);
        assert_eq!(pending("SigPnd:\t0000000000002000\n") & Signals::Ending.mask(), 0, "an alarm");
        assert_eq!(pending("SigPnd:\t0000000000000002\n") & Signals::Ending.mask(), 2, "Ctrl-C");
        assert_eq!(pending("Name:\tcat\n"), 0);
    }
}
