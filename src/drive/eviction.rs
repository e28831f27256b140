//! Keeping the clean contents within their budget.
//!
//! Only a [`CleanFile`] can be evicted, and the only way to get one is to look, under the locks of the inode, at a published
//! row, a cache row of the same content, a backing file with the recorded stamp, and nobody who has it open. Files in use are
//! never evicted, so the contents of open files can exceed the budget for as long as they are open; on a full disk, what is
//! fetched for them is handed to the reader and not kept.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn_platform_api::{InodeNo, VfsResult};
use parking_lot::Mutex;

use super::inner::{Inner, failed};
use super::node::Body;
use crate::cache::{CacheRow, Presence, Stamp};
use crate::tree::{Change, ContentState, Namespace, keys};

/// Evicting goes on to this part of the budget, so that it is not needed again at once.
const LOW_WATER_PERCENT: u64 = 90;

/// Writes and new files that the kernel makes by itself, or that a quota refuses, ask nobody for room: so much of the disk is kept
/// free for them besides the reserve, or a part of a small disk, as long as there are clean contents.
const FREE_BYTES: u64 = 256 << 20;
const FREE_FILES: u64 = 1000;
const FREE_PART: u64 = 16;

/// Room on the disk.
#[derive(Debug, Clone, Copy, Default)]
struct Room {
    bytes: u64,
    files: u64,
}

/// The clean contents that are here, how large they are on the disk, and when they were last used.
#[derive(Debug, Default)]
pub(super) struct Usage {
    files: Mutex<HashMap<InodeNo, Used>>,
    total: AtomicU64,
    clock: AtomicU64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Used {
    bytes: u64,
    last: u64,
}

impl Usage {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Notes how much a clean file takes.
    pub(super) fn set(&self, ino: InodeNo, bytes: u64) {
        let now = self.now();
        self.insert(ino, Used { bytes, last: now });
    }

    /// Notes a file that was there before the drive was opened: the first to go.
    fn found(&self, ino: InodeNo, bytes: u64) {
        if !self.files.lock().contains_key(&ino) {
            self.insert(ino, Used { bytes, last: 0 });
        }
    }

    fn insert(&self, ino: InodeNo, used: Used) {
        let mut files = self.files.lock();
        self.total.fetch_add(used.bytes, Ordering::Relaxed);
        if let Some(old) = files.insert(ino, used) {
            self.total.fetch_sub(old.bytes, Ordering::Relaxed);
        }
    }

    /// Notes that a file is used now.
    pub(super) fn touch(&self, ino: InodeNo) {
        let now = self.now();
        if let Some(used) = self.files.lock().get_mut(&ino) {
            used.last = now;
        }
    }

    /// Notes that a file is gone, or not clean any more.
    pub(super) fn remove(&self, ino: InodeNo) {
        if let Some(old) = self.files.lock().remove(&ino) {
            self.total.fetch_sub(old.bytes, Ordering::Relaxed);
        }
    }

    /// Bytes of all clean files.
    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// The files that were not used for longest, enough to make this much room.
    fn oldest(&self, wanted: Room) -> Vec<InodeNo> {
        let mut files: Vec<(u64, InodeNo, u64)> =
            self.files.lock().iter().map(|(ino, used)| (used.last, *ino, used.bytes)).collect();
        files.sort_unstable();
        let mut sum = Room::default();
        let enough = files.iter().take_while(|(_, _, size)| {
            let more = sum.bytes < wanted.bytes || sum.files < wanted.files;
            sum = Room { bytes: sum.bytes + size, files: sum.files + 1 };
            more
        });
        enough.map(|(_, ino, _)| *ino).collect()
    }
}

/// A backing file that holds nothing but a published content, and that nobody uses.
struct CleanFile {
    ino: InodeNo,
    allocated: u64,
}

impl Inner {
    /// Looks whether a file is clean and unused. The change holds its locks, and `body` keeps others from loading it.
    fn clean_file(&self, change: &Change<'_>, ino: InodeNo, body: &Body) -> VfsResult<Option<CleanFile>> {
        if body.loaded || self.kernel.is_mappable(ino) {
            return Ok(None);
        }
        let Some(row) = change.inode(ino).map_err(failed)? else { return Ok(None) };
        let ContentState::Published(content) = row.content else { return Ok(None) };
        let Some(cached) = self.cache_row(&**change, ino)?.filter(|cached| cached.content == content.id) else {
            return Ok(None);
        };
        let Some(status) = self.files.status(ino)? else { return Ok(None) };
        let clean = match cached.presence {
            Presence::Complete(stamp) => stamp == Stamp::from(status),
            // Only the drive writes to partial files, and it makes them local first.
            Presence::Partial(_) => true,
        };
        Ok(clean.then_some(CleanFile { ino, allocated: status.allocated }))
    }

    fn remove_clean(&self, mut change: Change<'_>, file: &CleanFile) {
        change.rows().delete(&keys::cache(file.ino));
        let retirement = self.retiring.announce(file.ino);
        change.commit();
        retirement.after_commit(&self.store, &self.files);
        self.usage.remove(file.ino);
    }

    /// Evicts a file, if it is clean and nobody uses it. Answers how many bytes that makes, `None` where it stays.
    pub(super) fn evict(&self, ino: InodeNo) -> VfsResult<Option<u64>> {
        let node = self.nodes.acquire(ino);
        let change = self.tree.change(&[ino]).map_err(failed)?;
        let body = node.body.lock();
        let Some(file) = self.clean_file(&change, ino, &body)? else { return Ok(None) };
        self.remove_clean(change, &file);
        Ok(Some(file.allocated))
    }

    /// Evicts until the clean contents are within the budget.
    pub(super) fn keep_budget(&self) {
        let budget = self.settings.cache_budget;
        let total = self.usage.total();
        if total > budget {
            let goal = budget / 100 * LOW_WATER_PERCENT;
            self.give_way(Room { bytes: total.saturating_sub(goal), files: 0 });
        }
    }

    /// Evicts while the disk has little room.
    pub(super) fn keep_room(&self) {
        let Ok(space) = self.space.measure() else { return };
        let bytes = FREE_BYTES.min(space.total / FREE_PART).saturating_sub(space.available);
        let files = FREE_FILES.min(space.inodes / FREE_PART).saturating_sub(space.inodes_free);
        if bytes > 0 || files > 0 {
            self.give_way(Room { bytes, files });
        }
    }

    /// Evicts what was not used for longest, as soon as nobody can be writing to it. Blocks on the kernel: not for requests.
    fn give_way(&self, wanted: Room) {
        for ino in self.usage.oldest(wanted) {
            if self.kernel.is_mappable(ino) {
                self.ask_to_forget(ino);
            }
        }
        self.evict_oldest(wanted);
    }

    /// Asks the kernel to let go of an inode, so that nothing can be mapped any more; it does where nothing is.
    pub(super) fn ask_to_forget(&self, ino: InodeNo) {
        let links = self.tree.links(ino).unwrap_or_default();
        self.notify(|notifier| {
            links.iter().for_each(|link| notifier.entry_changed(link.place.parent, &link.place.name))
        });
    }

    /// Makes room on a full disk, as far as clean contents can.
    pub(super) fn free_space(&self, bytes: u64) {
        // What was published or fetched just now may be waiting to be recorded.
        self.do_chores();
        let wanted = Room { bytes: bytes.max(self.settings.cache_budget / 100), files: 1 };
        if self.evict_oldest(wanted) > 0 || self.retiring.is_pending() {
            // The files, those that others evicted too, go when the rows that say so are durable.
            if let Err(error) = self.wait_for_retirements() {
                tracing::warn!(error = %error, "evicted contents cannot be removed");
            }
        }
    }

    /// Answers how many files went.
    fn evict_oldest(&self, wanted: Room) -> usize {
        let mut gone = 0;
        for ino in self.usage.oldest(wanted) {
            match self.evict(ino) {
                Ok(None) if self.kernel.is_mappable(ino) => self.used(ino),
                Ok(None) => {}
                Ok(Some(_)) => gone += 1,
                Err(error) => tracing::warn!(ino = ino.0, error = %error, "a content cannot be evicted"),
            }
        }
        gone
    }

    /// Notes that a file is used.
    pub(super) fn used(&self, ino: InodeNo) {
        self.usage.touch(ino);
    }

    /// Counts a file that was clean when the drive was opened; after an unclean stop also looks whether it still is.
    pub(super) fn account(&self, ino: InodeNo) -> VfsResult<()> {
        let Some(CacheRow { presence, .. }) = self.cache_row(&*self.store, ino)? else { return Ok(()) };
        let Some(row) = self.row(ino)?.filter(|row| matches!(row.content, ContentState::Published(_))) else {
            return Ok(());
        };
        match self.files.status(ino)? {
            Some(status) if !matches!(presence, Presence::Complete(stamp) if stamp != Stamp::from(status)) => {
                self.usage.found(ino, status.allocated);
            }
            // Loading it finds out what it is now, and makes the rows say so.
            _ => drop(self.node(ino)?),
        }
        drop(row);
        Ok(())
    }

    /// Removes the backing file of an inode that is not there any more, or whose content is not claimed by any row.
    pub(super) fn sweep(&self, ino: InodeNo) -> VfsResult<()> {
        let node = self.nodes.acquire(ino);
        let change = self.tree.change(&[ino]).map_err(failed)?;
        let body = node.body.lock();
        let wanted = match change.inode(ino).map_err(failed)?.map(|row| row.content) {
            Some(ContentState::Local { .. }) => true,
            Some(ContentState::Published(_)) => self.cache_row(&*change, ino)?.is_some(),
            Some(ContentState::None) | None => self.is_aside(&*change, ino)?,
        };
        // One that retires goes by itself, or moves.
        if !wanted && !body.loaded && body.orphan.is_none() && !self.retiring.contains(ino) {
            self.files.remove(ino)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_goes_first_and_no_more_than_needed() {
        let usage = Usage::default();
        (1..=4).for_each(|ino| usage.set(InodeNo(ino), 10));
        usage.found(InodeNo(5), 10);
        usage.found(InodeNo(4), 99);
        usage.touch(InodeNo(1));
        usage.set(InodeNo(3), 30);
        assert_eq!(usage.total(), 70);
        assert_eq!(usage.oldest(Room { bytes: 11, files: 0 }), [InodeNo(5), InodeNo(2)]);
        assert_eq!(usage.oldest(Room { bytes: 0, files: 1 }), [InodeNo(5)]);
        usage.remove(InodeNo(5));
        assert_eq!(usage.total(), 60);
        assert_eq!(usage.oldest(Room { bytes: 1000, files: 0 }), [2, 4, 1, 3].map(InodeNo));
    }
}
