//! Backing files that go, or are set aside, as soon as the rows that say so are durable.
//!
//! Until then the name must not be used again: after a crash the old row would speak of the new file. So a removal is
//! announced before the change that makes it right is committed, and whoever wants to make a backing file waits.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cairn_platform_api::InodeNo;
use parking_lot::Mutex;

use crate::cache::BackingFiles;
use crate::store::Store;

/// The inodes whose backing files are to go, and how often that was asked. Nothing else is locked under the lock.
#[derive(Debug, Default)]
pub(super) struct Retiring {
    pending: Mutex<HashMap<InodeNo, u32>>,
    /// Those whose file is set aside and not moved yet: nobody removes it.
    moving: Mutex<HashSet<InodeNo>>,
    /// Those that could not be moved yet, and where to.
    stuck: Mutex<Vec<(Retirement, InodeNo, Arc<AtomicBool>)>>,
}

/// The announcement that a backing file goes, or is moved. Dropping it takes it back.
#[derive(Debug)]
#[must_use = "a retirement that is dropped is taken back"]
pub(super) struct Retirement {
    retiring: Arc<Retiring>,
    ino: InodeNo,
    moves: bool,
}

impl Retiring {
    pub(super) fn announce(self: &Arc<Self>, ino: InodeNo) -> Retirement {
        *self.pending.lock().entry(ino).or_insert(0) += 1;
        Retirement { retiring: Arc::clone(self), ino, moves: false }
    }

    /// As [`Self::announce`], of a file that is to be moved.
    pub(super) fn announce_move(self: &Arc<Self>, ino: InodeNo) -> Retirement {
        self.moving.lock().insert(ino);
        let mut retirement = self.announce(ino);
        retirement.moves = true;
        retirement
    }

    /// Whether there is any.
    pub(super) fn is_pending(&self) -> bool {
        !self.pending.lock().is_empty()
    }

    pub(super) fn contains(&self, ino: InodeNo) -> bool {
        self.pending.lock().contains_key(&ino)
    }
}

impl Retirement {
    /// Removes the file once what is committed now is durable, unless it is to be moved: that frees the name, too.
    pub(super) fn after_commit(self, store: &Store, files: &Arc<BackingFiles>) {
        let files = Arc::clone(files);
        store.after_commit(Box::new(move || {
            let moves = self.retiring.moving.lock().contains(&self.ino);
            if let Some(error) = (!moves).then(|| files.remove(self.ino).err()).flatten() {
                tracing::warn!(ino = self.ino.0, error = %error, "a backing file cannot be removed");
            }
            // Whole, and only now: whoever waits for it finds the name free.
            drop(self);
        }));
    }
}

impl Retirement {
    /// Moves the file under another number once what is committed now is durable, and notes that in `moved`. Where that
    /// fails, the name stays taken.
    pub(super) fn then_move(self, to: InodeNo, moved: Arc<AtomicBool>, store: &Store, files: &Arc<BackingFiles>) {
        let files = Arc::clone(files);
        store.after_commit(Box::new(move || match files.rename(self.ino, to) {
            Ok(()) => {
                moved.store(true, Ordering::Release);
                drop(self);
            }
            // Not just the directory that it is to go to.
            Err(_) if matches!(files.status(self.ino), Ok(None)) => {
                tracing::error!(ino = self.ino.0, "a replaced content is not there any more");
                moved.store(true, Ordering::Release);
                drop(self);
            }
            Err(error) => {
                tracing::error!(ino = self.ino.0, error = %error, "a replaced content cannot be set aside");
                let retiring = Arc::clone(&self.retiring);
                retiring.stuck.lock().push((self, to, moved));
            }
        }));
    }
}

impl Retiring {
    /// Tries again what could not be moved.
    pub(super) fn retry(&self, store: &Store, files: &Arc<BackingFiles>) {
        let stuck = std::mem::take(&mut *self.stuck.lock());
        for (retirement, to, moved) in stuck {
            retirement.then_move(to, moved, store, files);
        }
    }

    /// Whether the name of a backing file stays taken until further notice.
    pub(super) fn is_stuck(&self, ino: InodeNo) -> bool {
        self.stuck.lock().iter().any(|(retirement, ..)| retirement.ino == ino)
    }
}

impl Drop for Retirement {
    fn drop(&mut self) {
        if self.moves {
            self.retiring.moving.lock().remove(&self.ino);
        }
        let mut pending = self.retiring.pending.lock();
        if let Some(count) = pending.get_mut(&self.ino) {
            *count -= 1;
            if *count == 0 {
                pending.remove(&self.ino);
            }
        }
    }
}
