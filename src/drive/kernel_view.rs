//! Inodes that matter as long as the kernel has not let go of them.
//!
//! Removed ones: a program that looked a name up just before it was replaced still opens the inode. And files that were open
//! for writing while the kernel went to the backing file itself: a mapping of them may outlive every handle, so they may be
//! written to at any time until the kernel forgets the inode, which the mapping holds.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use cairn_platform_api::InodeNo;
use parking_lot::Mutex;

use super::node::NodeRef;

/// Removed inodes that are kept for the kernel hold a file descriptor each. Beyond this number a program that races with a
/// removal sees that the file is gone.
const LINGERING_MAX: usize = 256;

/// What the kernel may still come back to. Nothing else is locked under these locks.
#[derive(Debug, Default)]
pub(super) struct KernelView {
    /// Whether there is a kernel: without one, nobody would say what to forget.
    mounted: AtomicBool,
    lingering: Mutex<HashMap<InodeNo, NodeRef>>,
    mappable: Mutex<HashSet<InodeNo>>,
}

impl KernelView {
    pub(super) fn mounted(&self) {
        self.mounted.store(true, Ordering::Release);
    }

    pub(super) fn unmounted(&self) {
        self.mounted.store(false, Ordering::Release);
        let lingering = std::mem::take(&mut *self.lingering.lock());
        drop(lingering);
        self.mappable.lock().clear();
    }

    /// Whether a removed inode is to be kept.
    pub(super) fn keeps_removed(&self) -> bool {
        self.mounted.load(Ordering::Acquire) && self.lingering.lock().len() < LINGERING_MAX
    }

    /// Keeps a removed inode until the kernel forgets it.
    pub(super) fn keep(&self, node: NodeRef) {
        let replaced = self.lingering.lock().insert(node.ino, node);
        drop(replaced);
    }

    /// Notes that a file may be mapped for writing from now on.
    pub(super) fn note_mappable(&self, ino: InodeNo) {
        if self.mounted.load(Ordering::Acquire) {
            self.mappable.lock().insert(ino);
        }
    }

    /// Whether somebody may be writing to a file through a mapping.
    pub(super) fn is_mappable(&self, ino: InodeNo) -> bool {
        self.mappable.lock().contains(&ino)
    }

    /// Some of the files that may be written to through a mapping.
    pub(super) fn mappable_after(&self, skip: usize, count: usize) -> Vec<InodeNo> {
        let mappable = self.mappable.lock();
        let skip = skip.checked_rem(mappable.len()).unwrap_or(0);
        mappable.iter().skip(skip).take(count).copied().collect()
    }

    /// The kernel forgot an inode. Answers whether it may have been written to through a mapping.
    pub(super) fn forget(&self, ino: InodeNo) -> bool {
        let kept = self.lingering.lock().remove(&ino);
        drop(kept);
        self.mappable.lock().remove(&ino)
    }
}
