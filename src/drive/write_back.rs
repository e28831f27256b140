//! Contents that somebody relies on without having synced them.
//!
//! - A program that replaces a file by renaming a new one over it seldom syncs the new one before. If the rows of the rename
//!   were durable before that content, a power loss would leave neither the old content nor the new. So the commit that makes
//!   such a rename durable first makes the content so, on the thread that commits: who renames does not wait.
//! - A program that empties a file and writes it anew is in the same danger. Its content is synced by the background work soon
//!   after it is closed.
//! - What was written in a session is durable when the session has ended.
//!
//! A sync that failed may have lost what it was to make durable, and the system may not say so again: later syncs of that file
//! fail, too, until it has another backing file, so nothing takes its bytes for safe. A node in use knows that of its backing
//! file itself, since another content may have taken the inode meanwhile; of the others it is remembered by their numbers.
//!
//! Nothing else is locked under the locks here. It keeps nothing of the drive alive but the directory of backing files.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cairn_platform_api::InodeNo;
use parking_lot::Mutex;

use super::node::{Node, Nodes};
use crate::cache::BackingFiles;

/// From this many on, files are made durable all at once.
pub(super) const SYNC_EACH_BELOW: usize = 8;

#[derive(Debug)]
pub(super) struct WriteBack {
    files: Arc<BackingFiles>,
    nodes: Arc<Nodes>,
    /// What must be durable before the rows are.
    ahead_of_rows: Mutex<HashSet<InodeNo>>,
    /// What was open for writing in this session, or may have been in one that was not ended.
    written: Mutex<HashSet<InodeNo>>,
    /// The backing files for which a sync failed.
    lost: Mutex<HashSet<InodeNo>>,
}

impl WriteBack {
    pub(super) fn new(files: &Arc<BackingFiles>, nodes: &Arc<Nodes>) -> Self {
        Self {
            files: Arc::clone(files),
            nodes: Arc::clone(nodes),
            ahead_of_rows: Mutex::default(),
            written: Mutex::default(),
            lost: Mutex::default(),
        }
    }

    /// What the operation that is under way writes must not be durable before this content.
    pub(super) fn put_ahead_of_rows(&self, ino: InodeNo) {
        self.ahead_of_rows.lock().insert(ino);
    }

    /// Makes durable what must be so before the rows. What cannot be does not hold them up: it is told to who syncs it.
    pub(super) fn go_ahead_of_rows(&self) {
        let inos = std::mem::take(&mut *self.ahead_of_rows.lock());
        // Who tells has logged it.
        let _ = self.sync_each(inos.into_iter().collect());
    }

    pub(super) fn note_written(&self, ino: InodeNo) {
        self.written.lock().insert(ino);
    }

    /// What was written in this session, once.
    pub(super) fn take_written(&self) -> Vec<InodeNo> {
        std::mem::take(&mut *self.written.lock()).into_iter().collect()
    }

    /// Makes the contents of files durable, their names too, at the cost of one sync where there are many. The first error is
    /// answered after all were tried.
    pub(super) fn sync_each(&self, inos: Vec<InodeNo>) -> io::Result<()> {
        if inos.len() >= SYNC_EACH_BELOW && self.files.sync_everything().is_ok() {
            return Ok(());
        }
        let mut outcome = Ok(());
        for ino in inos {
            outcome = outcome.and(self.sync_by_number(ino));
        }
        outcome
    }

    /// A file that is gone has nothing to lose.
    fn sync_by_number(&self, ino: InodeNo) -> io::Result<()> {
        let node = self.nodes.in_use(ino);
        if let Some((node, file)) = node.as_ref().and_then(|node| Some((node, node.file.get()?))) {
            return self.sync(node, file);
        }
        match self.files.existing(ino)? {
            Some(_) if self.lost.lock().contains(&ino) => Err(lost()),
            Some(file) => {
                let synced = self.files.sync_file(&file).and_then(|()| self.files.sync_name(ino));
                synced.inspect_err(|error| {
                    told(ino, error);
                    self.lose(ino);
                })
            }
            None => Ok(()),
        }
    }

    /// Makes the backing file of a node durable, its name too.
    pub(super) fn sync(&self, node: &Node, file: &File) -> io::Result<()> {
        if self.is_lost(node) {
            return Err(lost());
        }
        let named = node.name_synced.load(Ordering::Acquire);
        let synced = self.files.sync_file(file);
        let synced = synced.and_then(|()| if named { Ok(()) } else { self.files.sync_name(node.ino) });
        match &synced {
            Ok(()) => node.name_synced.store(true, Ordering::Release),
            Err(error) => {
                told(node.ino, error);
                node.note_failure();
                node.lost.store(true, Ordering::Release);
                if self.nodes.is_current(node) {
                    self.lose(node.ino);
                }
            }
        }
        synced
    }

    /// Whether a sync of a node's backing file failed.
    pub(super) fn is_lost(&self, node: &Node) -> bool {
        node.lost.load(Ordering::Acquire) || self.nodes.is_current(node) && self.lost.lock().contains(&node.ino)
    }

    /// The backing files that a sync failed for.
    pub(super) fn lost_files(&self) -> Vec<InodeNo> {
        self.lost.lock().iter().copied().collect()
    }

    /// A sync of the backing file with this number failed.
    pub(super) fn lose(&self, ino: InodeNo) {
        self.lost.lock().insert(ino);
    }

    /// The backing file of an inode is another content's from now on, or nobody's. The node that has the old one is told what
    /// is known of that. Answers whether a sync of it failed.
    pub(super) fn replaced(&self, ino: InodeNo, node: Option<&Node>) -> bool {
        let lost = self.lost.lock().remove(&ino);
        if let Some(node) = node.filter(|_| lost) {
            node.lost.store(true, Ordering::Release);
        }
        lost
    }
}

fn told(ino: InodeNo, error: &io::Error) {
    tracing::error!(ino = ino.0, error = %error, "a backing file cannot be synced");
}

fn lost() -> io::Error {
    io::Error::other("an earlier sync of the file failed")
}
