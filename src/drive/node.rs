//! Inodes in use: what an open file, directory or running request shares with the others on the same inode.
//!
//! A node lives in the table as long as somebody holds a [`NodeRef`]. When a merge gives an inode another content, its node
//! is *detached*: those who hold it go on with the old content, the next to come gets a new node.
//!
//! Locks: a shard of the table guards its map and the counts in it; nothing else is locked under it. `Node::body` comes after
//! the gate and the stripes of the tree, and is held over local file calls at most.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use cairn_platform_api::InodeNo;
use parking_lot::Mutex;

use super::layout::Layout;
use crate::cache::{RangeSet, Stamp};
use crate::tree::{Content, InodeRow};

const SHARDS: usize = 64;

/// An inode in use.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) ino: InodeNo,
    /// The backing file, opened for reading and writing, once for all handles.
    pub(super) file: OnceLock<Arc<File>>,
    /// Whether the backing file holds the whole content: then reads and writes go straight to it, without the lock.
    pub(super) complete: AtomicBool,
    /// Handles that are open for writing.
    pub(super) writers: AtomicU32,
    /// Whether the mode has set-id bits that a write may have to clear.
    pub(super) set_id: AtomicBool,
    /// Whether the content was replaced or removed by a fold, and its backing file is kept for those who write to it.
    pub(super) set_aside: AtomicBool,
    /// Whether the backing file's name is known to be durable.
    pub(super) name_synced: AtomicBool,
    /// Whether the file was emptied and its new content not synced.
    pub(super) emptied: AtomicBool,
    /// Whether a sync of the backing file failed.
    pub(super) lost: AtomicBool,
    /// How many syncs failed. A handle that has seen fewer reports the failure once.
    pub(super) failures: AtomicU64,
    /// The chunks of the published content, once somebody needed them.
    pub(super) layout: OnceLock<Arc<Layout>>,
    /// Held by who makes the file local, over the time that takes.
    pub(super) turn: tokio::sync::Mutex<()>,
    pub(super) body: Mutex<Body>,
}

/// What is known of an inode.
#[derive(Debug, Default)]
pub(super) struct Body {
    pub(super) loaded: bool,
    pub(super) holds: Holds,
    /// Handles that are open.
    pub(super) handles: u32,
    /// How they reach the content: all the same way.
    pub(super) access: Option<Access>,
    /// The row as it was when it was last looked at.
    pub(super) row: Option<InodeRow>,
    /// The row as it was when the last name went.
    pub(super) orphan: Option<InodeRow>,
    /// What was set aside is decided about: nobody begins to write to it.
    pub(super) judged: bool,
}

/// What the backing file of a node holds. A file is local or partly here, never both.
#[derive(Debug, Default)]
pub(super) enum Holds {
    /// Nothing: it is no regular file, or not loaded.
    #[default]
    Nothing,
    /// A published content, or parts of it. Nobody writes to the file but the drive, what it fetches.
    Published(Published),
    /// The truth, all of it.
    Local {
        /// The published content that it equals as long as it has this stamp. The cache row says so.
        equal: Option<(Content, Stamp)>,
    },
}

/// How much of a published content is here.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) content: Content,
    /// Valid bytes of the backing file; `None` when all are.
    pub(super) present: Option<RangeSet>,
    /// The stamp that the cache row says the whole content has. A file that differs from it was written past the drive.
    pub(super) stamp: Option<Stamp>,
    /// The cache row claims bytes without a stamp: it must be gone before one of them is overwritten.
    pub(super) claimed_parts: bool,
    pub(super) claims: Claims,
}

/// Whether the cache row says what is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claims {
    /// It does.
    Saved,
    /// More is here.
    Unsaved,
    /// More must not be claimed: the file is about to be written to.
    Withheld,
    /// More must not be claimed: it may have been lost when a sync failed.
    Never,
}

/// How open handles reach the content. A kernel serves an inode either itself from the backing file or through us, never both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// The kernel may go to the backing file.
    Backing,
    /// Every request comes to the drive.
    Requests,
}

impl Published {
    /// A content of which nothing more than `present` is here, and no row says more.
    pub(super) fn new(content: Content, present: Option<RangeSet>) -> Self {
        Self { content, present, stamp: None, claimed_parts: false, claims: Claims::Saved }
    }

    /// A content that is wholly here, as a cache row says.
    pub(super) fn whole(content: Content, stamp: Stamp) -> Self {
        Self { stamp: Some(stamp), ..Self::new(content, None) }
    }

    fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let end = range.end.min(self.content.size);
        match &self.present {
            Some(present) if range.start < end => present.missing(range.start..end),
            _ => Vec::new(),
        }
    }
}

impl Body {
    pub(super) fn is_local(&self) -> bool {
        matches!(self.holds, Holds::Local { .. })
    }

    pub(super) fn published(&self) -> Option<&Published> {
        match &self.holds {
            Holds::Published(published) => Some(published),
            _ => None,
        }
    }

    pub(super) fn published_mut(&mut self) -> Option<&mut Published> {
        match &mut self.holds {
            Holds::Published(published) => Some(published),
            _ => None,
        }
    }

    /// The published content that the node stands for.
    pub(super) fn content(&self) -> Option<Content> {
        self.published().map(|published| published.content)
    }

    /// The stamp at which the backing file equals a published content.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        match &self.holds {
            Holds::Published(published) => published.stamp,
            Holds::Local { equal } => equal.map(|(_, stamp)| stamp),
            Holds::Nothing => None,
        }
    }

    /// The parts of a range that must be fetched before they can be read.
    pub(super) fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.published().map_or_else(Vec::new, |published| published.missing(range))
    }

    /// Notes that a range of the published content is in the backing file now.
    pub(super) fn mark(&mut self, range: Range<u64>) {
        let Some(published) = self.published_mut() else { return };
        if let Some(present) = &mut published.present {
            present.insert(range);
            if published.claims == Claims::Saved {
                published.claims = Claims::Unsaved;
            }
        }
    }
}

impl Node {
    fn new(ino: InodeNo) -> Self {
        Self {
            ino,
            file: OnceLock::new(),
            complete: AtomicBool::new(false),
            writers: AtomicU32::new(0),
            set_id: AtomicBool::new(false),
            set_aside: AtomicBool::new(false),
            name_synced: AtomicBool::new(false),
            emptied: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            layout: OnceLock::new(),
            turn: tokio::sync::Mutex::default(),
            body: Mutex::default(),
        }
    }

    /// Whether the whole content is in the backing file.
    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Looks whether nothing is missing any more, and remembers it.
    pub(super) fn note_completion(&self, body: &mut Body) {
        if self.file.get().is_none() {
            return;
        }
        match &mut body.holds {
            Holds::Nothing => return,
            Holds::Local { .. } => {}
            Holds::Published(published) => {
                if !published.missing(0..u64::MAX).is_empty() {
                    return;
                }
                published.present = None;
            }
        }
        self.complete.store(true, Ordering::Release);
    }

    /// Whether somebody has it open for writing.
    pub(super) fn has_writers(&self) -> bool {
        self.writers.load(Ordering::Acquire) > 0
    }

    /// Notes that the file is cut or extended.
    pub(super) fn note_length(&self, before: u64, after: u64) {
        if after == 0 && before > 0 {
            self.emptied.store(true, Ordering::Release);
        }
    }

    /// Counts a failed sync, for every handle that is open now.
    pub(super) fn note_failure(&self) {
        self.failures.fetch_add(1, Ordering::AcqRel);
    }
}

#[derive(Debug)]
struct Slot {
    node: Arc<Node>,
    users: u32,
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    shards: Vec<Mutex<HashMap<InodeNo, Slot>>>,
}

impl Nodes {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() })
    }

    fn shard(&self, ino: InodeNo) -> &Mutex<HashMap<InodeNo, Slot>> {
        &self.shards[(ino.0 as usize) % SHARDS]
    }

    /// The node of an inode, made where there is none.
    pub(super) fn acquire(self: &Arc<Self>, ino: InodeNo) -> NodeRef {
        let mut shard = self.shard(ino).lock();
        let slot = shard.entry(ino).or_insert_with(|| Slot { node: Arc::new(Node::new(ino)), users: 0 });
        slot.users += 1;
        NodeRef { nodes: Arc::clone(self), node: Arc::clone(&slot.node) }
    }

    /// The node of an inode that is in use.
    pub(super) fn in_use(self: &Arc<Self>, ino: InodeNo) -> Option<NodeRef> {
        let mut shard = self.shard(ino).lock();
        let slot = shard.get_mut(&ino)?;
        slot.users += 1;
        Some(NodeRef { nodes: Arc::clone(self), node: Arc::clone(&slot.node) })
    }

    /// Whether a node is the one in the table: others have a content that was replaced, and may not speak for the inode.
    pub(super) fn is_current(&self, node: &Node) -> bool {
        self.shard(node.ino).lock().get(&node.ino).is_some_and(|slot| std::ptr::eq(Arc::as_ptr(&slot.node), node))
    }

    /// Takes a node out of the table; whoever holds it keeps it.
    pub(super) fn detach(&self, node: &Node) {
        if let Entry::Occupied(entry) = self.shard(node.ino).lock().entry(node.ino) {
            if std::ptr::eq(Arc::as_ptr(&entry.get().node), node) {
                entry.remove();
            }
        }
    }

    fn release(&self, node: &Arc<Node>) {
        if let Entry::Occupied(mut entry) = self.shard(node.ino).lock().entry(node.ino) {
            if Arc::ptr_eq(&entry.get().node, node) {
                entry.get_mut().users -= 1;
                if entry.get().users == 0 {
                    entry.remove();
                }
            }
        }
    }
}

/// Keeps a node in use.
#[derive(Debug)]
pub(super) struct NodeRef {
    nodes: Arc<Nodes>,
    node: Arc<Node>,
}

impl Clone for NodeRef {
    fn clone(&self) -> Self {
        let mut shard = self.nodes.shard(self.node.ino).lock();
        if let Some(slot) = shard.get_mut(&self.node.ino).filter(|slot| Arc::ptr_eq(&slot.node, &self.node)) {
            slot.users += 1;
        }
        drop(shard);
        Self { nodes: Arc::clone(&self.nodes), node: Arc::clone(&self.node) }
    }
}

impl Deref for NodeRef {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Drop for NodeRef {
    fn drop(&mut self) {
        self.nodes.release(&self.node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_shared_while_in_use_and_replaced_when_detached() {
        let nodes = Nodes::new();
        let ino = InodeNo(70);
        let first = nodes.acquire(ino);
        let second = first.clone();
        assert!(std::ptr::eq(&*first, &*nodes.acquire(ino)));
        nodes.detach(&first);
        let other = nodes.acquire(ino);
        assert!(!std::ptr::eq(&*first, &*other));
        assert!(nodes.is_current(&other) && !nodes.is_current(&first));
        drop((first, second));
        assert!(nodes.in_use(ino).is_some(), "the users of a detached node do not count for its successor");
        drop(other);
        assert!(nodes.in_use(ino).is_none());
    }
}
