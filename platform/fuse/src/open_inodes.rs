//! How each inode that has open handles does its input and output, and how long its attributes may be kept.
//!
//! The kernel wants one way for all handles of an inode: through its page cache and us, or through one backing file. An
//! open that does not fit fails with `EIO`. So the first open decides, and the rest follow until the last one is gone.
//!
//! A handle may go on with a content that is not its inode's any more ([`cairn_platform_api::Vfs::is_replaced`]). The page
//! cache and the backing file then are those of the old content, so handles that come after it are *beside*: their reads
//! and writes come to us. What the old handle left in the page cache goes with the first open after it. Where the old
//! handle has a backing file the kernel insists that those beside it have it too, and uses it for mappings: a handle
//! whose mapping could write there is refused.
//!
//! While a program writes through the backing file, a store to a mapping moves `mtime` without the kernel's or our
//! knowledge. Attributes are then not kept at all; and since a mapping outlives its descriptor, only briefly from then
//! on, until the kernel forgets the inode.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuser::BackingId;
use parking_lot::Mutex;

/// How long the kernel keeps what it was told. It is told of every change that it did not make itself, so this only
/// bounds the harm of an announcement that got lost.
pub(crate) const KEEP: Duration = Duration::from_secs(3600);
/// How long it keeps the attributes of a file that may still be mapped for writing.
const KEEP_WRITTEN: Duration = Duration::from_secs(1);
/// More than any machine's threads, so that two seldom meet in one shard.
const SHARDS: usize = 64;

/// The inodes that are open, or were written through their backing file.
pub(crate) struct OpenInodes {
    passthrough: AtomicBool,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    open: HashMap<u64, OpenInode>,
    /// Closed since they were written through their backing file.
    written: HashSet<u64>,
    /// The page cache may hold pages of a content that was replaced.
    stale: HashSet<u64>,
}

#[derive(Default)]
struct OpenInode {
    backing: Option<Arc<BackingId>>,
    /// Those that go the inode's one way; all of them read one content.
    handles: Vec<u64>,
    /// Those that go their own.
    beside: u32,
    /// Some of those name the backing file.
    pinned: bool,
    /// How many of `handles` write.
    writers: u32,
    /// What is in the page cache when one of `handles` comes.
    pages: Pages,
}

impl OpenInode {
    /// Whether its one way is that to a content which was replaced.
    fn is_old(&self, is_replaced: impl FnOnce(u64) -> bool) -> bool {
        // Without handles a backing file is there only for those beside the ones that were.
        self.handles.first().copied().map_or(self.backing.is_some(), is_replaced)
    }

    fn refuses(&self, intent: Intent, is_old: bool) -> bool {
        is_old && self.backing.is_some() && intent == Intent::ReadWrite
    }
}

/// What becomes of the page cache of an inode when it is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Pages {
    /// It stays.
    #[default]
    Keep,
    /// It goes.
    Drop,
    /// It is not used.
    Bypass,
}

/// What a handle is open for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    Read,
    Write,
    ReadWrite,
}

impl Intent {
    fn writes(self) -> bool {
        self != Self::Read
    }
}

/// A mapping of the handle would write to a content that was replaced.
#[derive(Debug)]
pub(crate) struct Refused;

/// How a handle does its input and output.
pub(crate) struct Way {
    /// The backing file to use, or to name, where reads and writes bypass it like the page cache.
    pub(crate) backing: Option<Arc<BackingId>>,
    /// What becomes of the page cache.
    pub(crate) pages: Pages,
    /// Whether attributes that the kernel kept until now have to go.
    pub(crate) forget_attributes: bool,
}

impl OpenInodes {
    pub(crate) fn new() -> Self {
        Self { passthrough: AtomicBool::new(false), shards: std::array::from_fn(|_| Mutex::default()) }
    }

    /// The kernel agreed to passthrough.
    pub(crate) fn allow_passthrough(&self) {
        self.passthrough.store(true, Ordering::Relaxed);
    }

    fn shard(&self, ino: u64) -> &Mutex<Shard> {
        &self.shards[ino as usize % SHARDS]
    }

    /// Enters a handle. `file` is its backing file, where it has one; `register` makes it known to the kernel.
    /// `is_replaced` says of a handle whether it reads a content that is not the inode's any more.
    pub(crate) fn enter(
        &self,
        (ino, handle): (u64, u64),
        intent: Intent,
        file: Option<&File>,
        is_replaced: impl FnOnce(u64) -> bool,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Result<Way, Refused> {
        let mut shard = self.shard(ino).lock();
        let Shard { open, stale, .. } = &mut *shard;
        let open = open.entry(ino).or_default();
        let first = open.handles.first().copied();
        let is_old = open.is_old(is_replaced);
        match first {
            _ if open.refuses(intent, is_old) => return Err(Refused),
            _ if is_old => {
                open.beside += 1;
                open.pinned |= open.backing.is_some();
                return Ok(Way { backing: open.backing.clone(), pages: Pages::Bypass, forget_attributes: false });
            }
            Some(_) => {}
            None => {
                open.backing = file.filter(|_| self.passthrough.load(Ordering::Relaxed)).and_then(|file| {
                    let registered = register(file);
                    if let Err(error) = &registered {
                        self.note_refusal(error);
                    }
                    registered.ok().map(Arc::new)
                });
                open.pages = if stale.remove(&ino) { Pages::Drop } else { Pages::Keep };
            }
        }
        open.handles.push(handle);
        if intent.writes() {
            open.writers += 1;
        }
        let first_writer = intent.writes() && open.writers == 1;
        let forget_attributes = first_writer && open.backing.is_some();
        Ok(Way { backing: open.backing.clone(), pages: open.pages, forget_attributes })
    }

    /// The kernel refused a backing file. Without the privilege it always will; other reasons are the file's own.
    fn note_refusal(&self, error: &io::Error) {
        if error.raw_os_error() == Some(libc::EPERM) && self.passthrough.swap(false, Ordering::Relaxed) {
            tracing::info!("no kernel passthrough: it takes CAP_SYS_ADMIN");
        } else {
            tracing::debug!(%error, "a file is served without kernel passthrough");
        }
    }

    /// Whether a handle would be refused by [`Self::enter`].
    pub(crate) fn refuses(&self, ino: u64, intent: Intent, is_replaced: impl FnOnce(u64) -> bool) -> bool {
        let shard = self.shard(ino).lock();
        shard.open.get(&ino).is_some_and(|open| open.refuses(intent, open.is_old(is_replaced)))
    }

    /// A handle is about to go; `is_replaced` as in [`Self::enter`].
    pub(crate) fn leave(&self, (ino, handle): (u64, u64), intent: Intent, is_replaced: impl FnOnce(u64) -> bool) {
        let mut shard = self.shard(ino).lock();
        let Shard { open: all, written, stale } = &mut *shard;
        let Some(open) = all.get_mut(&ino) else { return };
        match open.handles.iter().position(|known| *known == handle) {
            Some(index) => {
                open.handles.swap_remove(index);
                if is_replaced(handle) {
                    stale.insert(ino);
                }
                if intent.writes() {
                    open.writers -= 1;
                    if open.writers == 0 && open.backing.is_some() {
                        written.insert(ino);
                    }
                }
            }
            None => open.beside = open.beside.saturating_sub(1),
        }
        if open.handles.is_empty() && !open.pinned {
            open.backing = None;
        }
        if open.handles.is_empty() && open.beside == 0 {
            all.remove(&ino);
        }
    }

    /// The kernel dropped the inode.
    pub(crate) fn forget(&self, ino: u64) {
        let mut shard = self.shard(ino).lock();
        shard.written.remove(&ino);
        shard.stale.remove(&ino);
    }

    /// How long the kernel may keep the inode's attributes.
    pub(crate) fn keep_attributes(&self, ino: u64) -> Duration {
        let shard = self.shard(ino).lock();
        match shard.open.get(&ino) {
            Some(open) if open.backing.is_some() && open.writers > 0 => Duration::ZERO,
            _ if shard.written.contains(&ino) => KEEP_WRITTEN,
            _ => KEEP,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current(_: u64) -> bool {
        false
    }

    fn refused(_: &File) -> io::Result<BackingId> {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }

    #[test]
    fn a_refused_backing_file_is_not_tried_again() {
        let (inodes, file) = (OpenInodes::new(), File::open("/dev/null").unwrap());
        inodes.allow_passthrough();
        let way = inodes.enter((7, 1), Intent::Write, Some(&file), current, refused).expect("nothing is old");
        assert!(way.backing.is_none());
        let asked = |_: &File| panic!("asked again");
        let way = inodes.enter((8, 2), Intent::Write, Some(&file), current, asked).expect("nothing is old");
        assert!(way.backing.is_none());
        assert_eq!(inodes.keep_attributes(7), KEEP);
    }

    #[test]
    fn the_last_handle_takes_the_entry_along() {
        let inodes = OpenInodes::new();
        for (handle, intent) in [(1, Intent::Read), (2, Intent::Write)] {
            inodes.enter((7, handle), intent, None, current, refused).expect("nothing is old");
        }
        inodes.leave((7, 2), Intent::Write, current);
        assert_eq!(inodes.shard(7).lock().open.len(), 1);
        inodes.leave((7, 1), Intent::Read, current);
        assert_eq!(inodes.shard(7).lock().open.len(), 0);
    }

    #[test]
    fn handles_of_a_replaced_content_leave_nothing_to_those_that_come_later() {
        let inodes = OpenInodes::new();
        let replaced = |handle| handle == 1;
        let enter =
            |handle| inodes.enter((7, handle), Intent::ReadWrite, None, replaced, refused).expect("no file").pages;
        assert_eq!(enter(1), Pages::Keep);
        assert_eq!(enter(2), Pages::Bypass);
        assert_eq!(enter(3), Pages::Bypass);
        inodes.leave((7, 1), Intent::ReadWrite, replaced);
        assert_eq!([enter(4), enter(5)], [Pages::Drop; 2], "both see what the old one left, whichever is first");
        for handle in [2, 3, 4, 5] {
            inodes.leave((7, handle), Intent::ReadWrite, replaced);
        }
        assert!(inodes.shard(7).lock().open.is_empty());
        assert_eq!(enter(6), Pages::Keep);
    }
}
