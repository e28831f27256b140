//! How long tests wait: for a condition, never for a time.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes on a slow, busy machine: reaching it means "never".
pub const DEADLINE: Duration = Duration::from_secs(180);

/// Waits until a condition holds, and fails where it never does.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "never happened: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Does something that may hang where the code is wrong; then the test fails and does not hang with it.
#[track_caller]
pub fn ends<T: Send + 'static>(what: &str, act: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, waiting) = mpsc::channel();
    thread::spawn(move || done.send(act()));
    match waiting.recv_timeout(DEADLINE) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("never ended: {what}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("failed: {what}"),
    }
}
