//! What the operations of a drive share: rows, backing files, nodes, and how a node comes to know its content.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};

use cairn_platform_api::{Answer, Attributes, FileKind, FsError, InodeNo, Notifier, VfsResult};
use futures::channel::oneshot;
use futures::future::{self, BoxFuture, Either};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;

use super::DriveSettings;
use super::aside::Asides;
use super::background::Recovery;
use super::ballast::Ballast;
use super::eviction::Usage;
use super::handles::Handles;
use super::kernel_view::KernelView;
use super::node::{Body, Holds, Node, NodeRef, Nodes, Published};
use super::ops::Handle;
use super::retiring::Retiring;
use super::source::ContentSource;
use super::write_back::WriteBack;
use crate::base::os::{self, FileStatus};
use crate::cache::{BackingFiles, CacheRow, DiskSpace, Presence, RangeSet, Stamp};
use crate::store::{Rows, Store, StoreError};
use crate::tree::{Content, ContentState, InodeRow, Namespace, Tree, TreeError, keys};

/// File capabilities: like the set-id bits they fall with a change of content.
pub(super) const CAPABILITIES: &[u8] = b"security.capability";
pub(super) const SET_ID_BITS: u16 = 0o6000;

pub(super) struct Inner {
    /// Itself, for work that outlives a call.
    pub(super) this: Weak<Inner>,
    pub(super) settings: DriveSettings,
    pub(super) tree: Arc<Tree>,
    pub(super) store: Arc<Store>,
    pub(super) files: Arc<BackingFiles>,
    pub(super) space: DiskSpace,
    pub(super) ballast: Ballast,
    pub(super) recovery: Recovery,
    pub(super) source: Arc<dyn ContentSource>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) write_back: Arc<WriteBack>,
    pub(super) handles: Handles<Handle>,
    pub(super) notifier: OnceLock<Arc<dyn Notifier>>,
    pub(super) retiring: Arc<Retiring>,
    pub(super) asides: Asides,
    /// Nodes to look at in the background. They stay in use until then, for they may know what no row says yet.
    pub(super) chores: Mutex<HashMap<InodeNo, NodeRef>>,
    /// Held by who does them.
    pub(super) chores_turn: Mutex<()>,
    pub(super) sending: RwLock<HashSet<InodeNo>>,
    pub(super) usage: Usage,
    /// What the kernel still knows of.
    pub(super) kernel: KernelView,
    pub(super) read_ahead_units: Arc<Semaphore>,
    /// Chunks that may be on their way for files that are being made local.
    pub(super) hydrating: Semaphore,
    /// Held as long as the drive is open.
    pub(super) _lock: File,
}

/// An error of the rows as a file system error. Whoever caused it logs it.
pub(super) fn failed(error: impl Into<TreeError>) -> FsError {
    match error.into() {
        TreeError::Store(StoreError::NoSpace) => FsError::NoSpace,
        TreeError::Store(StoreError::ReadOnly) => FsError::ReadOnly,
        error => {
            tracing::error!(error = &error as &(dyn std::error::Error + 'static), "the rows of the drive failed");
            FsError::Io
        }
    }
}

/// What loading a node found.
enum Loading {
    Ready,
    /// The node has another content than the inode.
    Outdated,
    /// The rows and the backing file do not fit: see [`Inner::repair`].
    Unfit(Misfit),
}

/// How rows and backing file can disagree, after an unclean stop or a merge.
#[derive(Debug, Clone, Copy)]
enum Misfit {
    /// A cache row speaks of another content, or of a file that is not there.
    StaleRow,
    /// The stamp of a clean file differs: somebody wrote to it, and it is local.
    Written,
    /// A local file without backing file: it was never synced, and power was lost.
    Lost,
}

impl Inner {
    /// Runs what may take long away from the request threads.
    pub(super) fn answer_later<T: Send + 'static>(
        &self,
        work: impl Future<Output = VfsResult<T>> + Send + 'static,
    ) -> Answer<T> {
        let task = self.settings.runtime.spawn(work);
        Answer::Later(Box::pin(async move { task.await.unwrap_or(Err(FsError::Io)) }))
    }

    /// As [`Self::answer_later`], in two parts: the first is given up when nobody waits for the answer any more.
    pub(super) fn answer_who_waits<A: Send + 'static, T: Send + 'static>(
        &self,
        begin: impl Future<Output = VfsResult<A>> + Send + 'static,
        finish: impl FnOnce(A) -> BoxFuture<'static, VfsResult<T>> + Send + 'static,
    ) -> Answer<T> {
        let (mut sender, receiver) = oneshot::channel();
        self.settings.runtime.spawn(async move {
            let begun = match future::select(Box::pin(begin), sender.cancellation()).await {
                Either::Left((begun, _)) => begun,
                Either::Right(_) => return,
            };
            let answer = match begun {
                Ok(begun) => finish(begun).await,
                Err(error) => Err(error),
            };
            // Nobody waits any more.
            let _ = sender.send(answer);
        });
        Answer::Later(Box::pin(async move { receiver.await.unwrap_or(Err(FsError::Io)) }))
    }

    /// Runs what blocks on the disk.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> VfsResult<T> + Send + 'static,
    ) -> VfsResult<T> {
        self.settings.runtime.spawn_blocking(work).await.unwrap_or(Err(FsError::Io))
    }

    /// The row of an inode, `None` where it has no name any more.
    pub(super) fn row(&self, ino: InodeNo) -> VfsResult<Option<InodeRow>> {
        self.tree.inode(ino).map_err(failed)
    }

    /// The cache row of an inode. One that cannot be read claims nothing.
    pub(super) fn cache_row(&self, rows: &impl Rows, ino: InodeNo) -> VfsResult<Option<CacheRow>> {
        let Some(bytes) = rows.get(&keys::cache(ino)).map_err(failed)? else { return Ok(None) };
        Ok(CacheRow::decode(&bytes)
            .inspect_err(|error| tracing::error!(ino = ino.0, error = %error, "a cache row is damaged"))
            .ok())
    }

    /// The node of a regular file, knowing its content.
    pub(super) fn node(&self, ino: InodeNo) -> VfsResult<NodeRef> {
        loop {
            let node = self.nodes.acquire(ino);
            match self.load(&node)? {
                Loading::Ready => return Ok(node),
                Loading::Outdated => self.nodes.detach(&node),
                Loading::Unfit(misfit) => self.repair(&node, misfit)?,
            }
        }
    }

    fn load(&self, node: &NodeRef) -> VfsResult<Loading> {
        let view = self.tree.view(&[node.ino]);
        let mut body = node.body.lock();
        let row = match view.inode(node.ino).map_err(failed)? {
            Some(_) if body.orphan.is_some() => return Ok(Loading::Outdated),
            Some(row) => row,
            None if body.orphan.is_some() => return Ok(Loading::Ready),
            None => return Err(FsError::Stale),
        };
        if body.loaded {
            return Ok(if fits(&body, &row) { Loading::Ready } else { Loading::Outdated });
        }
        let cached = self.cache_row(&*view, node.ino)?;
        let file = if self.retiring.contains(node.ino) { None } else { self.files.existing(node.ino)? };
        let outcome = fill(node, &mut body, &row, cached, file)?;
        if matches!(outcome, Loading::Ready) {
            body.loaded = true;
            note_set_id(node, &row);
            body.row = Some(row);
        }
        Ok(outcome)
    }

    fn repair(&self, node: &NodeRef, misfit: Misfit) -> VfsResult<()> {
        let ino = node.ino;
        let mut change = self.tree.change(&[ino]).map_err(failed)?;
        let Some(mut row) = change.inode(ino).map_err(failed)? else { return Ok(()) };
        let body = node.body.lock();
        if body.loaded || !self.nodes.is_current(node) {
            // Somebody else has repaired it, and may have a new backing file under its name.
            return Ok(());
        }
        match (misfit, row.content) {
            (Misfit::StaleRow, _) => {
                change.rows().delete(&keys::cache(ino));
                let retirement = self.retiring.announce(ino);
                change.commit();
                retirement.after_commit(&self.store, &self.files);
                self.usage.remove(ino);
            }
            (Misfit::Written, ContentState::Published(content)) => {
                tracing::info!(ino = ino.0, "a clean file was written before an unclean stop: it is local");
                row.content = ContentState::Local { base: Some(content) };
                change.put_inode(ino, &row).map_err(failed)?;
                change.rows().delete(&keys::cache(ino));
                change.commit();
            }
            (Misfit::Lost, ContentState::Local { base: Some(content) }) => {
                tracing::error!(
                    ino = ino.0,
                    "the local content of a file was lost: it is back at its published content"
                );
                row.content = ContentState::Published(content);
                change.put_inode(ino, &row).map_err(failed)?;
                change.rows().delete(&keys::cache(ino));
                change.commit();
            }
            (Misfit::Lost, ContentState::Local { base: None }) => {
                self.files.create(ino)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Asks the background work to look at a node. Only the one in the table can have anything to tell.
    pub(super) fn later(&self, node: &NodeRef) {
        let mut chores = self.chores.lock();
        let replaced = if self.nodes.is_current(node) { chores.insert(node.ino, node.clone()) } else { None };
        drop(chores);
        drop(replaced);
    }

    /// The attributes of an inode, with or without names.
    pub(super) fn attributes_of(&self, ino: InodeNo) -> VfsResult<Attributes> {
        match self.row(ino)? {
            Some(row) => self.attributes(ino, &row),
            None => self.attributes(ino, &self.orphan(ino).ok_or(FsError::Stale)?),
        }
    }

    /// The row of an inode without names, as long as somebody has it.
    pub(super) fn orphan(&self, ino: InodeNo) -> Option<InodeRow> {
        self.nodes.in_use(ino).and_then(|node| node.body.lock().orphan.clone())
    }

    /// The attributes of an inode with this row.
    pub(super) fn attributes(&self, ino: InodeNo, row: &InodeRow) -> VfsResult<Attributes> {
        let mut attributes = nominal(ino, row);
        if let ContentState::Local { .. } = row.content {
            if let Some((status, stamp)) = self.backing_status(ino)? {
                attributes.size = status.size;
                attributes.blocks = status.allocated / 512;
                if stamp != Some(Stamp::from(status)) {
                    attributes.mtime = status.mtime;
                    attributes.ctime = row.ctime.max(status.ctime);
                }
            }
        }
        Ok(attributes)
    }

    /// What the backing file of a local file looks like, and the stamp at which it would equal its published content.
    fn backing_status(&self, ino: InodeNo) -> VfsResult<Option<(FileStatus, Option<Stamp>)>> {
        if let Some(node) = self.nodes.in_use(ino) {
            let body = node.body.lock();
            if let Some(file) = node.file.get().filter(|_| body.loaded) {
                return Ok(Some((os::status(file)?, body.stamp())));
            }
        }
        let stamp = match self.cache_row(&*self.store, ino)? {
            Some(CacheRow { presence: Presence::Complete(stamp), .. }) => Some(stamp),
            _ => None,
        };
        Ok(self.files.status(ino)?.map(|status| (status, stamp)))
    }

    /// Changes the row of an inode, with or without names, and answers its attributes.
    pub(super) fn update<R>(
        &self,
        ino: InodeNo,
        change_row: impl FnOnce(&mut InodeRow) -> VfsResult<R>,
    ) -> VfsResult<(InodeRow, R)> {
        // Before the change, so that it is dropped after it.
        let node = self.nodes.in_use(ino);
        let mut change = self.tree.change(&[ino]).map_err(failed)?;
        let mut body = node.as_ref().map(|node| node.body.lock());
        let (row, result) = if let Some(mut row) = change.inode(ino).map_err(failed)? {
            let result = change_row(&mut row)?;
            change.put_inode(ino, &row).map_err(failed)?;
            change.commit();
            (row, result)
        } else {
            let orphan = body.as_mut().and_then(|body| body.orphan.as_mut()).ok_or(FsError::Stale)?;
            let result = change_row(orphan)?;
            (orphan.clone(), result)
        };
        drop(body);
        if let Some(node) = &node {
            note_set_id(node, &row);
        }
        Ok((row, result))
    }

    /// Changes the row of the inode that a handle is open on, with or without names. `None`: another device has replaced the
    /// content, and the row is that of the new one.
    pub(super) fn update_through(
        &self,
        node: &NodeRef,
        change_row: impl FnOnce(&mut InodeRow) -> VfsResult<()>,
    ) -> VfsResult<Option<InodeRow>> {
        let mut change = self.tree.change(&[node.ino]).map_err(failed)?;
        let mut body = node.body.lock();
        let row = match change.inode(node.ino).map_err(failed)? {
            Some(row) if !self.speaks_for(node, &body, Some(&row)) => return Ok(None),
            Some(mut row) => {
                change_row(&mut row)?;
                change.put_inode(node.ino, &row).map_err(failed)?;
                change.commit();
                row
            }
            None => {
                let Some(orphan) = &mut body.orphan else { return Ok(None) };
                change_row(orphan)?;
                orphan.clone()
            }
        };
        drop(body);
        note_set_id(node, &row);
        Ok(Some(row))
    }

    /// Tells the kernel what it must forget. Blocks; nothing may be locked.
    pub(super) fn notify(&self, tell: impl FnOnce(&dyn Notifier)) {
        if let Some(notifier) = self.notifier.get() {
            tell(&**notifier);
        }
    }
}

/// Whether a loaded node still has the content that the row says.
pub(super) fn fits(body: &Body, row: &InodeRow) -> bool {
    match (row.content, &body.holds) {
        (ContentState::Published(content), Holds::Published(published)) => published.content == content,
        (ContentState::Local { .. }, Holds::Local { .. }) | (ContentState::None, Holds::Nothing) => true,
        _ => false,
    }
}

/// Remembers whether writes have to look at the mode.
pub(super) fn note_set_id(node: &Node, row: &InodeRow) {
    let set = row.mode & SET_ID_BITS != 0 || row.xattrs.contains_key(CAPABILITIES);
    node.set_id.store(set, Ordering::Release);
}

/// Fills in what a node is to know.
fn fill(
    node: &NodeRef,
    body: &mut Body,
    row: &InodeRow,
    cached: Option<CacheRow>,
    file: Option<File>,
) -> VfsResult<Loading> {
    let status = file.as_ref().map(os::status).transpose()?;
    body.holds = match row.content {
        ContentState::None => Holds::Nothing,
        ContentState::Published(content) => Holds::Published(match (cached, status) {
            (None, _) => {
                body.holds = Holds::Published(Published::new(content, Some(RangeSet::default())));
                return Ok(Loading::Ready);
            }
            (Some(cached), Some(status)) if cached.content == content.id => match cached.presence {
                Presence::Complete(stamp) if stamp == Stamp::from(status) => Published::whole(content, stamp),
                Presence::Complete(_) => return Ok(Loading::Unfit(Misfit::Written)),
                Presence::Partial(present) if status.size == content.size => {
                    Published { claimed_parts: true, ..Published::new(content, Some(present)) }
                }
                Presence::Partial(_) => return Ok(Loading::Unfit(Misfit::StaleRow)),
            },
            (Some(_), _) => return Ok(Loading::Unfit(Misfit::StaleRow)),
        }),
        ContentState::Local { .. } if status.is_none() => return Ok(Loading::Unfit(Misfit::Lost)),
        ContentState::Local { .. } => Holds::Local {
            equal: cached.and_then(|cached| match cached.presence {
                Presence::Complete(stamp) => Some((Content { size: cached.size, id: cached.content }, stamp)),
                Presence::Partial(_) => None,
            }),
        },
    };
    if let Some(file) = file {
        // Nobody set it: the node was not loaded, and its body is locked.
        let _ = node.file.set(Arc::new(file));
        node.note_completion(body);
    }
    Ok(Loading::Ready)
}

/// What the row alone says.
fn nominal(ino: InodeNo, row: &InodeRow) -> Attributes {
    let (size, blocks) = match (row.kind, &row.content, &row.target) {
        (FileKind::Directory, ..) => (4096, 8),
        (_, ContentState::Published(content), _) => (content.size, content.size.div_ceil(512)),
        (_, _, Some(target)) => (target.len() as u64, 0),
        _ => (0, 0),
    };
    Attributes {
        ino,
        kind: row.kind,
        mode: row.mode,
        nlink: row.nlink,
        uid: row.uid,
        gid: row.gid,
        rdev: row.rdev,
        size,
        blocks,
        atime: row.atime,
        mtime: row.mtime,
        ctime: row.ctime,
        btime: row.btime,
    }
}
