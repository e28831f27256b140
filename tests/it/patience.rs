//! How long tests wait: for a condition, never for a time.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// How often is looked before it means "never", and how long is waited between two looks. Looks are counted and not time: while
/// a machine stands still, or others have it, nobody looks either.
const LOOKS: u32 = 120_000;
const PAUSE: Duration = Duration::from_millis(5);

/// For deadlines of the program that no test is to meet.
pub const NEVER: Duration = Duration::from_secs(24 * 3600);

/// Waits until there is an answer, and fails where there never is one.
#[track_caller]
pub fn eventually_some<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(LOOKS, look).unwrap_or_else(|| panic!("never happened: {what}"))
}

/// Waits for an answer for as long as so many looks take.
pub fn within<T>(looks: u32, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..looks {
        if let Some(found) = look() {
            return Some(found);
        }
        thread::sleep(PAUSE);
    }
    None
}

/// Waits until a condition holds, and fails where it never does.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    eventually_some(what, || holds().then_some(()));
}

/// Does something that may hang where the code is wrong; then the test fails and does not hang with it.
#[track_caller]
pub fn ends<T: Send + 'static>(what: &str, act: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, waiting) = mpsc::channel();
    thread::spawn(move || done.send(act()));
    for _ in 0..LOOKS {
        match waiting.recv_timeout(PAUSE) {
            Ok(value) => return value,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => panic!("failed: {what}"),
        }
    }
    panic!("never ended: {what}");
}
