//! Room that is kept so that a full disk can be emptied again.
//!
//! Writes that the kernel passes to a backing file by itself are not admitted by us, and can fill the disk to its last block.
//! Then nothing could be recorded any more, not even the unlink that would make room. The ballast is a file that is given up
//! in that moment, and made again when there is room besides the reserve.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::inner::Inner;
use crate::base::os::{self, Disposition};
use crate::cache::DiskSpace;
use crate::store::StoreError;

/// Some commits of the store; each needs room for the rows that changed and the pages on the way to them.
const SIZE: u64 = 16 << 20;

/// What opening a drive and mounting it may take.
const OPENING: u64 = 4 << 20;

#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    held: AtomicBool,
}

impl Ballast {
    /// The ballast of the drive in `dir`, as the last session left it. On a full disk it is given up: opening the drive takes
    /// some room too.
    pub(super) fn new(dir: &Path) -> Self {
        let path = dir.join("ballast");
        let held = path.exists().into();
        let ballast = Self { path, held };
        if os::space(dir).is_ok_and(|space| space.available < OPENING) {
            ballast.give_up();
        }
        ballast
    }

    /// Makes it where it is missing and fits.
    fn make(&self, space: &DiskSpace) {
        let fits = || space.measure().is_ok_and(|space| space.available > 2 * SIZE);
        if self.held.load(Ordering::Relaxed) || !fits() {
            return;
        }
        let made = os::open_private(&self.path, Disposition::CreateEmpty)
            .and_then(|file| os::allocate(&file, 0, SIZE).and_then(|()| file.sync_all()));
        match made {
            Ok(()) => self.held.store(true, Ordering::Relaxed),
            // What was allocated of it must not stay: a file system without `fallocate` cannot have one.
            Err(_) => drop(self.remove()),
        }
    }

    fn give_up(&self) {
        if self.held.swap(false, Ordering::Relaxed) {
            match self.remove() {
                Ok(()) => tracing::warn!("the disk is full: the drive gives up its reserve to record what was done"),
                Err(error) => {
                    tracing::warn!(%error, "the disk is full, and the reserve of the drive cannot be given up")
                }
            }
        }
    }

    fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

impl Inner {
    /// Gives the ballast up while the store finds no space, and sees that it is there otherwise.
    pub(super) fn keep_ballast(&self) {
        match self.store.operation() {
            Err(StoreError::NoSpace) => self.ballast.give_up(),
            Err(_) => {}
            Ok(operation) => {
                drop(operation);
                self.ballast.make(&self.space);
            }
        }
    }
}
