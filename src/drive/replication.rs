//! What replication asks of a drive: which contents are only here, their bytes, and to carry out what was published or
//! merged.

use std::fs::File;
use std::io::ErrorKind;
use std::sync::Arc;

use cairn_platform_api::{FsError, InodeNo, Timestamp, VfsResult};

use super::Drive;
use super::inner::{Inner, failed, fits};
use super::node::{Holds, NodeRef, Published};
use crate::base::os;
use crate::cache::{CacheRow, Presence, Stamp};
use crate::tree::{self, Content, ContentState, InodeRow, Namespace, Snapshot, Touched, keys};

/// Directories that a path may name before it counts as endless: the way up can change while it is walked.
const DEEPEST: usize = 10_000;

/// A file whose content, or its newest version, is only here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirtyFile {
    /// The inode.
    pub ino: InodeNo,
    /// Its length.
    pub size: u64,
    /// When its content last changed.
    pub modified: Timestamp,
    /// When its content or attributes last changed; no program can set this one.
    pub changed: Timestamp,
    /// Whether somebody has it open for writing.
    pub open_for_write: OpenForWrite,
}

/// Whether somebody has a file open for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenForWrite {
    /// Yes: it may change without notice.
    Yes,
    /// No.
    No,
}

/// Where a file's content is: the value of `user.cairn.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileState {
    /// Only here, or newer here.
    Local,
    /// Only here, and on its way.
    Sending,
    /// Here and on the remote.
    Replicated,
    /// On the remote, and not wholly here.
    Remote,
    /// A version that lost against another device's.
    Conflict,
}

impl FileState {
    /// The value of the attribute.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Sending => "sending",
            Self::Replicated => "replicated",
            Self::Remote => "remote",
            Self::Conflict => "conflict",
        }
    }
}

/// Reads the content of a local file for upload. Its calls block on the disk: they belong on a blocking thread.
pub struct ContentReader {
    inner: Arc<Inner>,
    node: NodeRef,
}

impl ContentReader {
    pub(super) fn open(inner: &Arc<Inner>, ino: InodeNo) -> VfsResult<Option<Self>> {
        let node = match inner.regular(ino) {
            Ok(node) => node,
            Err(FsError::Stale) => return Ok(None),
            Err(error) => return Err(error),
        };
        let local = node.body.lock().is_local();
        Ok(local.then(|| Self { inner: Arc::clone(inner), node }))
    }

    /// Makes what was written durable and says what the file looks like now. Equal stamps before and after reading it
    /// whole mean that what was read is the content. `None`: too fresh to tell, ask again in some 50 ms.
    ///
    /// # Errors
    /// The disk failed.
    pub fn stamp(&self) -> VfsResult<Option<Stamp>> {
        self.inner.sync_file(&self.node)?;
        let file = self.node.file.get().ok_or(FsError::Io)?;
        settled_stamp(file)
    }

    /// As [`Self::stamp`], without a sync of its own: `None` where the file may have changed since shortly before that sync.
    /// A stamp older than the sync stays equal as long as nothing is written: the sync made mapped pages read-only, so that
    /// the next write through a mapping is noticed too.
    ///
    /// # Errors
    /// The disk failed.
    pub fn stamp_since(&self, synced: Synced) -> VfsResult<Option<Stamp>> {
        if self.inner.write_back.is_lost(&self.node) {
            return Err(FsError::Io);
        }
        let file = self.node.file.get().ok_or(FsError::Io)?;
        let stamp = Stamp::from(os::status(file)?);
        Ok(stamp.is_settled(synced.begun).then_some(stamp))
    }

    /// How long the file is, and when its content last changed.
    ///
    /// # Errors
    /// The disk failed.
    pub fn look(&self) -> VfsResult<Look> {
        let status = os::status(self.node.file.get().ok_or(FsError::Io)?)?;
        Ok(Look { size: status.size, modified: status.mtime })
    }

    /// Makes what was written by now durable.
    ///
    /// # Errors
    /// The disk failed.
    pub fn sync(&self) -> VfsResult<()> {
        self.inner.sync_file(&self.node)
    }

    /// The content at this moment, where the file system can share its blocks; `None` where it cannot, or where the disk
    /// has no room for both should all of the file be overwritten.
    ///
    /// # Errors
    /// The disk failed.
    pub fn freeze(&self) -> VfsResult<Option<FrozenContent>> {
        let file = self.node.file.get().ok_or(FsError::Io)?;
        // From before: at worst the content is newer than it says.
        let status = os::status(file)?;
        if self.inner.space.measure()?.available < status.allocated {
            return Ok(None);
        }
        let copy = self.inner.files.create_unnamed(self.node.ino)?;
        match os::clone_content(file, &copy) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::StorageFull) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let size = os::status(&copy)?.size;
        Ok(Some(FrozenContent { look: Look { size, modified: status.mtime }, file: copy }))
    }

    /// Fills the buffer from an offset; fewer bytes than asked mean the end.
    ///
    /// # Errors
    /// The disk failed.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> VfsResult<usize> {
        let file = self.node.file.get().ok_or(FsError::Io)?;
        Ok(os::read_at(file, buffer, offset)?)
    }

    /// Where the next bytes are that are stored, at or after an offset; `None` when only a hole follows.
    ///
    /// # Errors
    /// The disk failed.
    pub fn next_data(&self, offset: u64) -> VfsResult<Option<u64>> {
        Ok(os::seek_data(self.node.file.get().ok_or(FsError::Io)?, offset)?)
    }
}

/// What a content looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Its length.
    pub size: u64,
    /// When it last changed.
    pub modified: Timestamp,
}

/// A content as it was at one moment, whatever is written to the file since. It shares blocks with the file, and takes space
/// only for what is overwritten there; that is free again when this is dropped.
#[derive(Debug)]
pub struct FrozenContent {
    look: Look,
    file: File,
}

impl FrozenContent {
    /// How long it is, and when it had last changed.
    pub fn look(&self) -> Look {
        self.look
    }

    /// Fills the buffer from an offset; fewer bytes than asked mean the end.
    ///
    /// # Errors
    /// The disk failed.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> VfsResult<usize> {
        Ok(os::read_at(&self.file, buffer, offset)?)
    }

    /// Where the next bytes are that are stored, at or after an offset; `None` when only a hole follows.
    ///
    /// # Errors
    /// The disk failed.
    pub fn next_data(&self, offset: u64) -> VfsResult<Option<u64>> {
        Ok(os::seek_data(&self.file, offset)?)
    }
}

/// As the tree keeps it.
impl From<Stamp> for tree::Stamp {
    fn from(Stamp { size, mtime, ctime }: Stamp) -> Self {
        Self { size, mtime, ctime }
    }
}

impl From<tree::Stamp> for Stamp {
    fn from(tree::Stamp { size, mtime, ctime }: tree::Stamp) -> Self {
        Self { size, mtime, ctime }
    }
}

/// What a file looks like now, if every write from now on changes that. A file that was changed when the clock was ahead
/// is given the time that it is now, or else it would have to wait for that.
pub(super) fn settled_stamp(file: &File) -> VfsResult<Option<Stamp>> {
    let (stamp, now) = (Stamp::from(os::status(file)?), Timestamp::now());
    if stamp.is_of_the_future(now) {
        os::renew_change_time(file)?;
    }
    Ok(stamp.is_settled(now).then_some(stamp))
}

/// All contents were made durable after this moment.
#[derive(Debug, Clone, Copy)]
pub struct Synced {
    begun: Timestamp,
}

impl Drive {
    /// Makes all contents durable at once, which costs about as much as one file; `None` where the system can only sync file
    /// by file. Blocks on the disk.
    ///
    /// # Errors
    /// The disk failed.
    pub fn sync_contents(&self) -> VfsResult<Option<Synced>> {
        let begun = Timestamp::now();
        match self.inner.files.sync_everything() {
            Ok(()) => Ok(Some(Synced { begun })),
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`Drive::uploaded`], for a stamp from [`ContentReader::stamp_since`].
    ///
    /// # Errors
    /// The rows or the file fail.
    pub fn uploaded_since(&self, ino: InodeNo, content: Content, stamp: Stamp, synced: Synced) -> VfsResult<()> {
        self.inner.uploaded(ino, content, stamp, Some(synced))
    }

    /// The path of an inode below the root of the drive, by one of its names; its number where it has none. For people.
    pub fn path_of(&self, ino: InodeNo) -> String {
        let mut names = Vec::new();
        let mut at = ino;
        while at != InodeNo::ROOT && names.len() < DEEPEST {
            let Some(link) = self.inner.tree.links(at).unwrap_or_default().into_iter().next() else {
                return format!("{ino:?}");
            };
            names.push(link.place.name.to_string());
            at = link.place.parent;
        }
        names.reverse();
        names.join("/")
    }

    /// How many syncs of contents there were.
    pub fn content_syncs(&self) -> u64 {
        self.inner.files.syncs()
    }
}

impl Inner {
    pub(super) fn dirty_file(&self, ino: InodeNo) -> VfsResult<Option<DirtyFile>> {
        let Some(row) = self.row(ino)?.filter(|row| matches!(row.content, ContentState::Local { .. })) else {
            return Ok(None);
        };
        let attributes = self.attributes(ino, &row)?;
        let writers = self.nodes.in_use(ino).is_some_and(|node| node.has_writers());
        let open_for_write = if writers { OpenForWrite::Yes } else { OpenForWrite::No };
        Ok(Some(DirtyFile {
            ino,
            size: attributes.size,
            modified: attributes.mtime,
            changed: attributes.ctime,
            open_for_write,
        }))
    }

    /// Remembers that the backing file equals a content as long as it has this stamp.
    pub(super) fn uploaded(
        &self,
        ino: InodeNo,
        content: Content,
        stamp: Stamp,
        synced: Option<Synced>,
    ) -> VfsResult<()> {
        let node = match self.regular(ino) {
            Ok(node) => node,
            Err(FsError::Stale) => return Ok(()),
            Err(error) => return Err(error),
        };
        // A file that still has a stamp from before a sync of all was made durable by that.
        if !synced.is_some_and(|synced| stamp.is_settled(synced.begun)) {
            self.sync_file(&node)?;
        }
        let mut change = self.tree.change(&[ino]).map_err(failed)?;
        let mut body = node.body.lock();
        let Some(mut row) = change
            .inode(ino)
            .map_err(failed)?
            .filter(|row| body.is_local() && self.speaks_for(&node, &body, Some(row)))
        else {
            return Ok(());
        };
        let Some(file) = node.file.get() else { return Ok(()) };
        if Stamp::from(os::status(file)?) != stamp {
            return Ok(());
        }
        if body.stamp() != Some(stamp) {
            row.mtime = stamp.mtime;
            row.ctime = row.ctime.max(stamp.ctime);
            change.put_inode(ino, &row).map_err(failed)?;
        }
        let presence = Presence::Complete(stamp);
        let claimed = CacheRow { content: content.id, size: content.size, presence };
        change.rows().put(&keys::cache(ino), claimed.encode());
        change.commit();
        body.holds = Holds::Local { equal: Some((content, stamp)) };
        Ok(())
    }

    /// Whether a file that is about to be published still is what was uploaded, and nobody can be writing to it. Runs in
    /// the bulk work of a cut, which holds the gate: nothing here may take it.
    pub(super) fn still_clean(&self, ino: InodeNo, snapshot: &Snapshot) -> bool {
        let stamp = Stamp::from(snapshot.stamp);
        let claims = |found: Option<CacheRow>| {
            found.is_some_and(|row| row.content == snapshot.content.id && row.presence == Presence::Complete(stamp))
        };
        if !claims(self.cache_row(&*self.store, ino).ok().flatten()) {
            return false;
        }
        let Some(node) = self.nodes.in_use(ino) else {
            return self.files.status(ino).is_ok_and(|found| found.is_some_and(|status| Stamp::from(status) == stamp));
        };
        let mut body = node.body.lock();
        let status = match node.file.get() {
            Some(file) => os::status(file).ok(),
            None => self.files.status(ino).ok().flatten(),
        };
        if node.has_writers() || status.is_none_or(|status| Stamp::from(status) != stamp) {
            return false;
        }
        if body.loaded {
            body.holds = Holds::Published(Published::whole(snapshot.content, stamp));
        }
        true
    }

    /// Carries out what a merge or a publication did to an inode.
    pub(super) fn refresh(&self, ino: InodeNo) -> VfsResult<()> {
        // Declared before the change, so that it is dropped after it. It is the one that is in use under the change: what
        // another has under its name must not be taken away.
        let node;
        let mut change = self.tree.change(&[ino]).map_err(failed)?;
        node = self.nodes.in_use(ino);
        let row = change.inode(ino).map_err(failed)?;
        let cached = self.cache_row(&*change, ino)?;
        let mut body = node.as_ref().map(|node| node.body.lock());
        let loaded = body.as_ref().is_some_and(|body| body.loaded);
        let stale = match &row {
            None => true,
            Some(InodeRow { content: ContentState::Published(content), .. }) => {
                let fitting = body.as_ref().zip(row.as_ref()).is_none_or(|(body, row)| !body.loaded || fits(body, row));
                !fitting || cached.as_ref().is_some_and(|cached| cached.content != content.id)
            }
            Some(_) => false,
        };
        if let (Some(body), Some(node)) = (&mut body, &node) {
            match &row {
                None if loaded && body.orphan.is_none() => body.orphan = body.row.clone().map(without_names),
                Some(row) if loaded => {
                    super::inner::note_set_id(node, row);
                    body.row = Some(row.clone());
                }
                _ => {}
            }
            if stale && row.is_some() {
                self.nodes.detach(node);
            }
        }
        if stale {
            self.write_back.replaced(ino, node.as_deref());
            change.rows().delete(&keys::cache(ino));
            let retirement = self.retiring.announce(ino);
            change.commit();
            retirement.after_commit(&self.store, &self.files);
            self.usage.remove(ino);
        } else {
            drop(change);
            if let Some(CacheRow { presence: Presence::Complete(_), .. }) = cached {
                if let Some(status) = self.files.status(ino)? {
                    self.count_if_published(ino, row.as_ref(), status.allocated);
                }
            }
        }
        Ok(())
    }

    fn count_if_published(&self, ino: InodeNo, row: Option<&InodeRow>, allocated: u64) {
        if row.is_some_and(|row| matches!(row.content, ContentState::Published(_))) {
            self.usage.set(ino, allocated);
        }
    }

    pub(super) fn apply_touched(&self, touched: &[Touched]) {
        for touched in touched {
            if let Touched::Inode(ino) = touched {
                if let Err(error) = self.refresh(*ino) {
                    tracing::error!(ino = ino.0, error = %error, "a merged change could not be carried out on the cache");
                }
            }
        }
        self.notify(|notifier| {
            for touched in touched {
                match touched {
                    Touched::Entry { parent, name } => notifier.entry_changed(*parent, name),
                    Touched::Inode(ino) => notifier.inode_changed(*ino),
                }
            }
        });
    }

    /// Where the content of a regular file is.
    pub(super) fn state_of(&self, ino: InodeNo, row: &InodeRow) -> Option<FileState> {
        let state = match row.content {
            ContentState::None => return None,
            ContentState::Local { .. } if self.sending.read().contains(&ino) => FileState::Sending,
            ContentState::Local { .. } => FileState::Local,
            ContentState::Published(content) => {
                let in_use = self.nodes.in_use(ino).is_some_and(|node| node.is_complete());
                let cached = self.cache_row(&*self.store, ino).ok().flatten();
                let here = in_use
                    || content.size == 0
                    || cached.is_some_and(|row| {
                        row.content == content.id
                            && match row.presence {
                                Presence::Complete(_) => true,
                                Presence::Partial(present) => present.contains(&(0..content.size)),
                            }
                    });
                if here { FileState::Replicated } else { FileState::Remote }
            }
        };
        Some(if self.is_conflict(ino) { FileState::Conflict } else { state })
    }

    /// Whether one of its names is one that a merge gives to a version that lost.
    fn is_conflict(&self, ino: InodeNo) -> bool {
        const MARK: &[u8] = b" (conflict ";
        let links = self.tree.links(ino).unwrap_or_default();
        links.iter().any(|link| link.place.name.as_bytes().windows(MARK.len()).any(|part| part == MARK))
    }
}

fn without_names(mut row: InodeRow) -> InodeRow {
    row.nlink = 0;
    row
}
