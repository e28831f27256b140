//! A [`Vfs`](cairn_platform_api::Vfs) in memory: the reference model of the tests, and a drive that can be mounted.
//!
//! Files are sparse maps of pages, directories ordered maps of entries. Nothing is kept when the value is dropped.
//!
//! Locks, in the order they are taken: `moves` (moves of directories between parents, so that the tree above a
//! directory stands still while a move is checked for a cycle), then the states of inodes in the order of their
//! numbers, then the shards of the two tables, which are held for one look-up or insertion. No lock is shared by reads
//! and writes of different files.
//!
//! An inode is in the table as long as it has a name or an open handle, and where a kernel has mounted the file system
//! also until that has let go of it.

mod files;
mod namespace;
mod node;
mod pages;
mod table;
#[cfg(test)]
mod tests;
mod vfs;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cairn_platform_api::{Attributes, FileKind, FsError, HandleNo, InodeNo, OpenMode, VfsResult};
use parking_lot::Mutex;

use crate::node::{Body, Directory, Node, State};
use crate::pages::Space;
use crate::table::Table;

/// How much a file system holds where the maker does not say.
const DEFAULT_CAPACITY: u64 = 8 << 30;
/// How many inodes `statfs` says there can be.
const INODES: u64 = 1 << 32;

/// A file system in memory.
#[derive(Debug)]
pub struct MemoryFs {
    nodes: Table<Node>,
    handles: Table<Handle>,
    space: Space,
    moves: Mutex<()>,
    next_ino: AtomicU64,
    next_handle: AtomicU64,
    inodes: AtomicU64,
    mounted: AtomicBool,
}

/// What is open.
#[derive(Debug)]
enum Handle {
    File {
        node: Arc<Node>,
        mode: OpenMode,
    },
    /// `limit` is the first cookie that did not exist when this pass began.
    Directory {
        node: Arc<Node>,
        limit: AtomicU64,
    },
}

impl Handle {
    fn node(&self) -> &Arc<Node> {
        match self {
            Self::File { node, .. } | Self::Directory { node, .. } => node,
        }
    }
}

impl Default for MemoryFs {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryFs {
    /// An empty one that holds 8 GiB: a root directory of mode 0755 that belongs to root.
    pub fn new() -> Self {
        Self::with_capacity(DEFAULT_CAPACITY)
    }

    /// An empty one that holds this many bytes of file content.
    pub fn with_capacity(bytes: u64) -> Self {
        let fs = Self {
            nodes: Table::default(),
            handles: Table::default(),
            space: Space::new(bytes),
            moves: Mutex::new(()),
            next_ino: AtomicU64::new(InodeNo::ROOT.0 + 1),
            next_handle: AtomicU64::new(1),
            inodes: AtomicU64::new(1),
            mounted: AtomicBool::new(false),
        };
        let body = Body::Directory(Directory::new(InodeNo::ROOT));
        let root = Node::new(InodeNo::ROOT, FileKind::Directory, (0, 0), 0o755, body);
        fs.nodes.insert(InodeNo::ROOT.0, Arc::new(root));
        fs
    }

    /// Gives the root directory to another owner.
    #[must_use]
    pub fn owned_by(self, uid: u32, gid: u32) -> Self {
        if let Some(root) = self.nodes.get(InodeNo::ROOT.0) {
            let mut state = root.state.write();
            (state.uid, state.gid) = (uid, gid);
        }
        self
    }

    /// The inode, or `gone` where it has neither a name nor a handle.
    fn node(&self, ino: InodeNo, gone: FsError) -> VfsResult<Arc<Node>> {
        self.nodes.get(ino.0).ok_or(gone)
    }

    fn attributes_of(&self, ino: InodeNo) -> Option<Attributes> {
        let node = self.nodes.get(ino.0)?;
        let state = node.state.read();
        Some(node.attributes(&state))
    }

    fn handle(&self, handle: HandleNo) -> VfsResult<Arc<Handle>> {
        self.handles.get(handle.0).ok_or(FsError::BadHandle)
    }

    /// Counts a handle on an inode whose state the caller holds, and gives it a number.
    fn keep_open(&self, state: &mut State, handle: Handle) -> HandleNo {
        state.handles += 1;
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.insert(number, Arc::new(handle));
        HandleNo(number)
    }

    fn close(&self, handle: HandleNo) {
        if let Some(handle) = self.handles.remove(handle.0) {
            let node = handle.node();
            let mut state = node.state.write();
            state.handles -= 1;
            self.drop_if_unused(node.ino, &mut state);
        }
    }

    /// Lets go of an inode without name and handle.
    fn drop_if_unused(&self, ino: InodeNo, state: &mut State) {
        if state.is_unused() && self.nodes.remove(ino.0).is_some() {
            self.inodes.fetch_sub(1, Ordering::Relaxed);
            if let Body::Regular(pages) = &mut state.body {
                pages.clear(&self.space);
            }
        }
    }
}
