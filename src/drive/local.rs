//! Content changes hands: from the remote's to ours when somebody opens it for writing, and back when the upload of what it
//! is now is published.
//!
//! A local file is always complete. One that is not here is made so before it is opened for writing:
//! 1. a cache row that claims parts of it goes, durably, and no other is written ([`Claims::Withheld`]);
//! 2. what is missing of it is fetched, and made durable: a row that says local while a power loss can still take the bytes
//!    would make zeros the truth, to be published over the content that was safe;
//! 3. the inode becomes local in a commit that nobody waits for: a crash before it leaves a published content of which
//!    nothing is claimed to be here, whatever lies in its backing file.
//!
//! What must hold after a crash, whatever was durable by then: no cache row may claim that bytes of a backing file belong to a
//! published content when they do not. Hence:
//! - A range is claimed only after it was synced ([`Inner::save_presence`]).
//! - A claim without a stamp is durably gone before the first byte is written. A claim with a stamp may stay: a write changes
//!   the stamp.
//! - A stamp is recorded only when it is old enough that the next write is sure to change it.
//! - Only the node in the table speaks for its inode: others have the backing file of an older content.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cairn_platform_api::{FsError, VfsResult};

use super::inner::{Inner, failed, fits};
use super::node::{Body, Claims, Holds, NodeRef, Published};
use super::replication::settled_stamp;
use crate::base::os;
use crate::cache::{CacheRow, Presence, RangeSet, Stamp};
use crate::tree::{Content, ContentState, InodeRow, Namespace, keys};

/// Keeps a file local: as long as one of these is alive, nothing turns it into published content.
#[derive(Debug)]
pub(super) struct Writing {
    inner: std::sync::Weak<Inner>,
    node: NodeRef,
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.node.writers.fetch_sub(1, Ordering::AcqRel);
        // Nothing is to be recorded of a file without a name, and it must not be kept.
        let named = self.node.body.lock().orphan.is_none();
        if let Some(inner) = self.inner.upgrade().filter(|_| named) {
            inner.later(&self.node);
        }
    }
}

/// What became of an attempt to make a file local.
pub(super) enum Begun {
    /// It is.
    Writing(Writing),
    /// It takes a disk sync, or content from the remote.
    Slow,
    /// The node has another content than the inode has now: look it up again.
    Outdated,
}

/// How much of its content a file is to have when it becomes local.
#[derive(Debug, Clone, Copy)]
pub(super) enum Keep {
    All,
    /// The first bytes; the others are cut off.
    First(u64),
}

/// How long a file that was fetched is waited for until its stamp is old enough, and how often. Beyond that it counts as
/// modified from the beginning.
const STAMP_WAIT: Duration = Duration::from_millis(10);
const STAMP_LOOKS: u32 = 100;

/// Whether what a file keeps is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// Where the cache row says so.
    AsClaimed,
    /// It was synced since it was complete. The stamp is one that every write changes.
    Durable(Option<Stamp>),
}

impl Keep {
    fn of(self, content: Content) -> u64 {
        match self {
            Self::All => content.size,
            Self::First(bytes) => bytes.min(content.size),
        }
    }
}

/// As long as this lives, nothing more is claimed of a published content.
struct Withholding<'a> {
    inner: &'a Inner,
    node: &'a NodeRef,
}

impl<'a> Withholding<'a> {
    fn new(inner: &'a Inner, node: &'a NodeRef) -> Self {
        let withheld = |old: &&mut Published| old.stamp.is_none() && old.claims != Claims::Never;
        if let Some(published) = node.body.lock().published_mut().filter(withheld) {
            published.claims = Claims::Withheld;
        }
        Self { inner, node }
    }
}

impl Drop for Withholding<'_> {
    fn drop(&mut self) {
        let mut body = self.node.body.lock();
        let withheld = body.published_mut().filter(|published| published.claims == Claims::Withheld);
        if let Some(published) = withheld {
            published.claims = Claims::Unsaved;
            drop(body);
            self.inner.later(self.node);
        }
    }
}

impl Inner {
    /// Makes a file local, where that takes neither a disk sync nor the remote.
    pub(super) fn begin_writing(self: &Arc<Self>, node: &NodeRef, keep: Keep) -> VfsResult<Begun> {
        self.begin_writing_kept(node, keep, Kept::AsClaimed)
    }

    fn begin_writing_kept(self: &Arc<Self>, node: &NodeRef, keep: Keep, kept: Kept) -> VfsResult<Begun> {
        if let Some(writing) = self.join_writing(node) {
            return Ok(Begun::Writing(writing));
        }
        let mut change = self.tree.change(&[node.ino]).map_err(failed)?;
        let mut body = node.body.lock();
        let row = change.inode(node.ino).map_err(failed)?;
        if !self.speaks_for(node, &body, row.as_ref()) {
            return Ok(Begun::Outdated);
        }
        let (content, stamp, claimed_parts) = match &body.holds {
            Holds::Local { .. } if body.judged => return Ok(Begun::Outdated),
            Holds::Local { .. } => return Ok(Begun::Writing(self.writing(node))),
            Holds::Published(published) => (published.content, published.stamp, published.claimed_parts),
            Holds::Nothing => return Err(FsError::Invalid),
        };
        let end = keep.of(content);
        // With a stamp it was durable before the stamp was recorded.
        let durable = match (keep, kept) {
            (_, Kept::Durable(_)) => true,
            // Without a stamp nobody could tell that it was not written to.
            (Keep::All, Kept::AsClaimed) => stamp.is_some(),
            (Keep::First(_), Kept::AsClaimed) => stamp.is_some() || end == 0,
        };
        let file = node.file.get().filter(|_| durable && !claimed_parts && body.missing(0..end).is_empty());
        let Some(file) = file else { return Ok(Begun::Slow) };
        let modified = row.as_ref().or(body.orphan.as_ref()).map(|row| row.mtime);
        let stamp = match kept {
            Kept::Durable(Some(fresh)) if stamp.is_none() && Stamp::from(os::status(file)?) == fresh => {
                let claimed = CacheRow { content: content.id, size: content.size, presence: Presence::Complete(fresh) };
                if row.is_some() {
                    change.rows().put(&keys::cache(node.ino), claimed.encode());
                }
                Some(fresh)
            }
            _ => stamp,
        };
        if let Some(mut row) = row {
            row.content = ContentState::Local { base: Some(content) };
            change.put_inode(node.ino, &row).map_err(failed)?;
        }
        if stamp.is_none() {
            // Fetching is not modifying.
            os::set_times(file, None, modified)?;
        }
        if end < content.size {
            file.set_len(end)?;
            node.note_length(content.size, end);
        }
        change.commit();
        body.holds = Holds::Local { equal: stamp.map(|stamp| (content, stamp)) };
        if let Some(orphan) = &mut body.orphan {
            orphan.content = ContentState::Local { base: Some(content) };
        }
        node.note_completion(&mut body);
        self.usage.remove(node.ino);
        Ok(Begun::Writing(self.writing(node)))
    }

    /// One more writer of a file that is local already.
    fn join_writing(&self, node: &NodeRef) -> Option<Writing> {
        let body = node.body.lock();
        (body.is_local() && !body.judged).then(|| self.writing(node))
    }

    /// One more writer. The body is locked.
    fn writing(&self, node: &NodeRef) -> Writing {
        self.write_back.note_written(node.ino);
        node.writers.fetch_add(1, Ordering::AcqRel);
        Writing { inner: self.this.clone(), node: node.clone() }
    }

    /// Whether the inode with this row has the content of the node.
    pub(super) fn speaks_for(&self, node: &NodeRef, body: &Body, row: Option<&InodeRow>) -> bool {
        self.nodes.is_current(node) && row.is_none_or(|row| fits(body, row))
    }

    /// Makes a file local that is not here, or of which the cache row claims parts.
    pub(super) async fn begin_writing_slowly(self: &Arc<Self>, node: &NodeRef, keep: Keep) -> VfsResult<Begun> {
        let _turn = node.turn.lock().await;
        self.prepared(node.clone()).await?;
        let withholding = Withholding::new(self, node);
        let claimed = node.body.lock().published().map(|published| (published.content, published.claimed_parts));
        if let Some((content, claimed_parts)) = claimed {
            if claimed_parts {
                let (inner, unclaimed) = (Arc::clone(self), node.clone());
                self.blocking(move || inner.delete_claims(&unclaimed)).await?;
                self.store.flush_later().await.map_err(failed)?;
                if let Some(published) = node.body.lock().published_mut() {
                    published.claimed_parts = false;
                }
            }
            self.hydrate(node, keep.of(content)).await?;
        }
        let kept = match claimed {
            Some((content, _)) => self.make_durable(node, keep, content).await?,
            None => Kept::Durable(None),
        };
        let (inner, hydrated) = (Arc::clone(self), node.clone());
        let begun = self.blocking(move || inner.begin_writing_kept(&hydrated, keep, kept)).await;
        drop(withholding);
        begun
    }

    /// Makes what was fetched of a file durable. One that is kept whole gets a stamp: it tells later that nobody wrote to it.
    async fn make_durable(self: &Arc<Self>, node: &NodeRef, keep: Keep, content: Content) -> VfsResult<Kept> {
        let whole = matches!(keep, Keep::All);
        if node.body.lock().stamp().is_some() || !whole && keep.of(content) == 0 {
            return Ok(Kept::Durable(None));
        }
        let (inner, hydrated) = (Arc::clone(self), node.clone());
        self.blocking(move || {
            if let Some(file) = hydrated.file.get().filter(|_| whole) {
                // Fetching is not modifying, and the stamp is to say so.
                let row = inner.row(hydrated.ino)?;
                let modified = row.or_else(|| hydrated.body.lock().orphan.clone()).map(|row| row.mtime);
                os::set_times(file, None, modified)?;
            }
            inner.sync_file(&hydrated)
        })
        .await?;
        for _ in 0..STAMP_LOOKS {
            let Some(file) = node.file.get().filter(|_| whole).cloned() else { break };
            if let Some(stamp) = self.blocking(move || settled_stamp(&file)).await? {
                return Ok(Kept::Durable(Some(stamp)));
            }
            tokio::time::sleep(STAMP_WAIT).await;
        }
        Ok(Kept::Durable(None))
    }

    fn delete_claims(&self, node: &NodeRef) -> VfsResult<()> {
        let mut change = self.tree.change(&[node.ino]).map_err(failed)?;
        let _body = node.body.lock();
        // The successor of a detached node claims for itself.
        if self.nodes.is_current(node) {
            change.rows().delete(&keys::cache(node.ino));
            change.commit();
        }
        Ok(())
    }

    /// The node with a backing file, made where there was none: a hole as long as the content.
    pub(super) async fn prepared(self: &Arc<Self>, node: NodeRef) -> VfsResult<NodeRef> {
        if node.file.get().is_some() {
            return Ok(node);
        }
        let inner = Arc::clone(self);
        self.blocking(move || inner.with_room(0, || inner.prepare(&node)).map(|()| node)).await
    }

    fn prepare(&self, node: &NodeRef) -> VfsResult<()> {
        loop {
            let view = self.tree.view(&[node.ino]);
            let body = node.body.lock();
            if node.file.get().is_some() {
                return Ok(());
            }
            // The name belongs to who speaks for the inode: the only copy of a local content may be under it.
            let row = view.inode(node.ino).map_err(failed)?;
            let file = if row.is_none() || !self.speaks_for(node, &body, row.as_ref()) {
                if row.is_some() {
                    // Should the content come back, that is another node's.
                    self.nodes.detach(node);
                }
                self.files.create_unnamed(node.ino)?
            } else if self.retiring.is_stuck(node.ino) {
                return Err(FsError::NoSpace);
            } else if self.retiring.contains(node.ino) {
                drop((body, view));
                self.wait_for_retirements()?;
                continue;
            } else {
                // One that no row claims may still be open for readers of an older content: it is replaced, not emptied.
                self.files.remove(node.ino)?;
                let file = self.files.create(node.ino)?;
                self.write_back.replaced(node.ino, None);
                file
            };
            file.set_len(body.content().map_or(0, |content| content.size))?;
            // Nobody set it: the body is locked.
            let _ = node.file.set(Arc::new(file));
            return Ok(());
        }
    }

    /// Waits until the backing files that were to go when the rows are durable are gone.
    pub(super) fn wait_for_retirements(&self) -> VfsResult<()> {
        let (last, gone) = std::sync::mpsc::channel::<()>();
        // Runs after the removals that were asked for before it.
        self.store.after_commit(Box::new(move || drop(last)));
        self.store.flush().map_err(failed)?;
        // The other end is dropped, never sent to.
        let _ = gone.recv();
        Ok(())
    }

    /// Makes the backing file durable, its name too.
    pub(super) fn sync_file(&self, node: &NodeRef) -> VfsResult<()> {
        match node.file.get() {
            Some(file) => Ok(self.write_back.sync(node, file)?),
            None => Ok(()),
        }
    }

    /// Writes the cache row of what is here, after making it durable. Blocks on the disk.
    pub(super) fn save_presence(&self, node: &NodeRef) -> VfsResult<Saved> {
        let Some(seen) = Self::unsaved(node) else { return Ok(Saved::All) };
        if let Err(error) = self.sync_file(node) {
            if let Some(published) = node.body.lock().published_mut() {
                published.claims = Claims::Never;
            }
            return Err(error);
        }
        self.claim(node, &seen, Fresh::Wait)
    }

    /// What the cache row does not say yet.
    pub(super) fn unsaved(node: &NodeRef) -> Option<Seen> {
        let body = node.body.lock();
        let published = body.published().filter(|published| published.claims == Claims::Unsaved)?;
        Some(Seen { content: published.content, present: published.present.clone() })
    }

    /// Writes the cache row of what was seen before a sync.
    pub(super) fn claim(&self, node: &NodeRef, seen: &Seen, fresh: Fresh) -> VfsResult<Saved> {
        let mut change = self.tree.change(&[node.ino]).map_err(failed)?;
        let mut body = node.body.lock();
        let row = change.inode(node.ino).map_err(failed)?;
        if row.is_none() || !self.speaks_for(node, &body, row.as_ref()) {
            return Ok(Saved::All);
        }
        let unsaved =
            |published: &&mut Published| published.claims == Claims::Unsaved && published.content == seen.content;
        let (Some(file), Some(published)) = (node.file.get(), body.published_mut().filter(unsaved)) else {
            return Ok(Saved::All);
        };
        let status = os::status(file)?;
        let presence = match &seen.present {
            Some(present) => Presence::Partial(present.clone()),
            None => match (settled_stamp(file)?, fresh) {
                (Some(stamp), _) => Presence::Complete(stamp),
                (None, Fresh::Wait) => return Ok(Saved::NotAll),
                (None, Fresh::ClaimAsParts) => Presence::Partial(std::iter::once(0..seen.content.size).collect()),
            },
        };
        published.stamp = match presence {
            Presence::Complete(stamp) => Some(stamp),
            Presence::Partial(_) => None,
        };
        published.claimed_parts = published.stamp.is_none();
        let saved = if published.present == seen.present { Saved::All } else { Saved::NotAll };
        if saved == Saved::All {
            published.claims = Claims::Saved;
        }
        let claimed = CacheRow { content: seen.content.id, size: seen.content.size, presence };
        change.rows().put(&keys::cache(node.ino), claimed.encode());
        change.commit();
        self.usage.set(node.ino, status.allocated);
        Ok(saved)
    }

    /// Looks at a local file that nobody writes to any more: one that was published meanwhile, or never changed, is clean
    /// again.
    pub(super) fn settle(&self, node: &NodeRef) -> VfsResult<()> {
        let equal = match node.body.lock().holds {
            Holds::Local { equal } if !node.has_writers() => equal,
            _ => None,
        };
        match equal {
            Some((content, stamp)) => self.become_clean(node, content, stamp),
            None => Ok(()),
        }
    }

    /// Turns a local file into published content where it still has the stamp of that content and nobody writes to it.
    fn become_clean(&self, node: &NodeRef, content: Content, stamp: Stamp) -> VfsResult<()> {
        let mut change = self.tree.change(&[node.ino]).map_err(failed)?;
        let mut body = node.body.lock();
        let Some(mut row) = change.inode(node.ino).map_err(failed)? else { return Ok(()) };
        let still = matches!(body.holds, Holds::Local { equal } if equal == Some((content, stamp)))
            && !node.has_writers()
            && self.speaks_for(node, &body, Some(&row));
        let Some(file) = node.file.get().filter(|_| still && row.content.published() == Some(content)) else {
            return Ok(());
        };
        let status = os::status(file)?;
        if Stamp::from(status) != stamp {
            return Ok(());
        }
        // The cache row says so already.
        row.content = ContentState::Published(content);
        change.put_inode(node.ino, &row).map_err(failed)?;
        change.commit();
        body.holds = Holds::Published(Published::whole(content, stamp));
        drop(body);
        self.usage.set(node.ino, status.allocated);
        Ok(())
    }

    /// Looks whether a clean file is still what its stamp says: a mapping can write to it without a word to anybody.
    pub(super) fn check_stamp(&self, node: &NodeRef) -> VfsResult<()> {
        let written = |body: &Body| match (body.published().and_then(|published| published.stamp), node.file.get()) {
            (Some(stamp), Some(file)) => os::status(file).map(|status| Stamp::from(status) != stamp),
            _ => Ok(false),
        };
        if !written(&node.body.lock())? {
            return Ok(());
        }
        let mut change = self.tree.change(&[node.ino]).map_err(failed)?;
        let mut body = node.body.lock();
        let Some(mut row) = change.inode(node.ino).map_err(failed)? else { return Ok(()) };
        let Some(content) = body.content().filter(|_| self.speaks_for(node, &body, Some(&row))) else { return Ok(()) };
        if written(&body)? {
            tracing::info!(ino = node.ino.0, "a clean file was written through a mapping: it is local");
            row.content = ContentState::Local { base: Some(content) };
            change.put_inode(node.ino, &row).map_err(failed)?;
            change.rows().delete(&keys::cache(node.ino));
            change.commit();
            body.holds = Holds::Local { equal: None };
            self.usage.remove(node.ino);
        }
        Ok(())
    }
}

/// What was here before a sync.
pub(super) struct Seen {
    content: Content,
    present: Option<RangeSet>,
}

/// What becomes of a file that is complete, but so fresh that its stamp says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fresh {
    /// It is claimed later.
    Wait,
    /// All of it is claimed without a stamp: the next writer has to wait for that to be taken back.
    ClaimAsParts,
}

/// Whether a cache row says all there is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Saved {
    All,
    NotAll,
}
