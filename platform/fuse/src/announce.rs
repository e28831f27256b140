//! [`Notifier`] over the FUSE connection.
//!
//! The kernel makes an invalidation wait for the directory's lock and for pages that are being read, and those may be
//! waiting for us, or for whoever announces. So a thread of its own hands the announcements over, in order; the caller
//! waits for it, so that afterwards the change shows, but no longer than [`PATIENCE`], and not at all behind one
//! that is stuck. An announcement is never lost.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use cairn_platform_api::{InodeNo, Notifier, VfsName};
use fuser::INodeNo;
use parking_lot::Mutex;

/// How long an announcement holds up the one who makes it.
const PATIENCE: Duration = Duration::from_secs(1);

enum Change {
    Entry(InodeNo, VfsName),
    Inode(InodeNo),
}

struct Announcement {
    change: Change,
    done: SyncSender<()>,
}

/// Hands announcements to the kernel.
pub(crate) struct Announcer {
    /// `None` once the mount is gone.
    queue: Mutex<Option<Sender<Announcement>>>,
    stuck: Arc<AtomicBool>,
}

impl Announcer {
    pub(crate) fn start(kernel: fuser::Notifier) -> io::Result<Self> {
        let (queue, announcements) = channel();
        let stuck = Arc::new(AtomicBool::new(false));
        let flag = stuck.clone();
        std::thread::Builder::new()
            .name("cairn-announce".to_owned())
            .spawn(move || hand_over(&kernel, &announcements, &flag))?;
        Ok(Self { queue: Mutex::new(Some(queue)), stuck })
    }

    /// The mount is gone: its connection is let go of.
    pub(crate) fn stop(&self) {
        self.queue.lock().take();
    }

    fn announce(&self, change: Change) {
        let (done, wait) = sync_channel(1);
        let Some(queue) = self.queue.lock().clone() else { return };
        if queue.send(Announcement { change, done }).is_err() || self.stuck.load(Ordering::Acquire) {
            return;
        }
        drop(queue);
        if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            self.stuck.store(true, Ordering::Release);
        }
    }
}

fn hand_over(kernel: &fuser::Notifier, announcements: &Receiver<Announcement>, stuck: &AtomicBool) {
    for Announcement { change, done } in announcements {
        let told = match &change {
            Change::Entry(parent, name) => kernel.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name.as_bytes())),
            Change::Inode(ino) => kernel.inval_inode(INodeNo(ino.0), 0, 0),
        };
        if let Err(error) = told {
            tracing::debug!(%error, "the kernel did not take an invalidation");
        }
        stuck.store(false, Ordering::Release);
        // The one who announced may have gone on.
        let _ = done.send(());
    }
}

impl Notifier for Announcer {
    fn entry_changed(&self, parent: InodeNo, name: &VfsName) {
        self.announce(Change::Entry(parent, name.clone()));
    }

    fn inode_changed(&self, ino: InodeNo) {
        self.announce(Change::Inode(ino));
    }
}
