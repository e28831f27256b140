//! Room on the disk: bytes are refused before they are accepted, not after.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::base::os::{self, Space};

/// How long a measurement of the disk is believed: other programs use it too.
const BELIEVED_FOR: Duration = Duration::from_millis(500);
/// The most that is admitted on one measurement, so that what others take is noticed.
const CREDIT_MAX: i64 = 256 << 20;

/// Admits bytes as long as the disk keeps its reserve.
#[derive(Debug)]
pub struct DiskSpace {
    dir: PathBuf,
    reserve: u64,
    /// Bytes that may still be admitted on the last measurement.
    credit: AtomicI64,
    /// When that was, in milliseconds since `start`.
    measured: AtomicU64,
    start: Instant,
}

impl DiskSpace {
    /// Watches the disk that holds `dir`.
    pub fn new(dir: &Path, reserve: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            reserve,
            credit: AtomicI64::new(0),
            measured: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    /// Whether `bytes` more can be written without touching the reserve. Holes that are filled count, and so do bytes that
    /// overwrite others: what was not used after all is given back by the next measurement.
    pub fn admit(&self, bytes: u64) -> bool {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let age = self.now().saturating_sub(self.measured.load(Ordering::Relaxed));
        if age <= BELIEVED_FOR.as_millis() as u64 && self.take(bytes) {
            return true;
        }
        let Ok(space) = os::space(&self.dir) else {
            // A disk that does not answer refuses the write itself.
            return true;
        };
        let room = i64::try_from(self.room(&space)).unwrap_or(i64::MAX);
        if room < bytes {
            return false;
        }
        self.measured.store(self.now(), Ordering::Relaxed);
        self.credit.store(room.min(CREDIT_MAX.max(bytes)).saturating_sub(bytes), Ordering::Relaxed);
        true
    }

    /// The disk, with the reserve taken off what is free.
    ///
    /// # Errors
    /// The disk does not answer.
    pub fn measure(&self) -> std::io::Result<Space> {
        let space = os::space(&self.dir)?;
        let free = space.free.saturating_sub(self.reserve);
        Ok(Space { free, available: self.room(&space), ..space })
    }

    fn room(&self, space: &Space) -> u64 {
        space.available.saturating_sub(self.reserve)
    }

    fn now(&self) -> u64 {
        // One more than elapsed, so that "never measured" is old from the beginning on.
        self.start.elapsed().as_millis() as u64 + BELIEVED_FOR.as_millis() as u64 + 1
    }

    fn take(&self, bytes: i64) -> bool {
        let before = self.credit.fetch_sub(bytes, Ordering::Relaxed);
        before >= bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_never_given_away() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(DiskSpace::new(dir.path(), 0).admit(1));
        let all = DiskSpace::new(dir.path(), u64::MAX / 2);
        assert!(!all.admit(1));
        assert_eq!(all.measure().expect("measured").available, 0);
    }
}
