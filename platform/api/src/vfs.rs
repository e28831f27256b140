//! The [`Vfs`] trait.

use std::ops::ControlFlow;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::types::*;
use crate::{FsError, VfsResult};

/// An answer that is here, or one that takes a disk sync or the network.
pub enum Answer<T> {
    /// Here.
    Now(VfsResult<T>),
    /// The driver runs this future off its request threads and replies when it ends. It may drop it before, when the caller
    /// does not wait any more: then what was begun is given up, or ends unseen; in any case nothing stays open.
    Later(BoxFuture<'static, VfsResult<T>>),
}

impl<T> Answer<T> {
    /// Waits for the answer; for callers that have nothing else to do.
    pub fn wait(self) -> VfsResult<T> {
        match self {
            Self::Now(result) => result,
            Self::Later(future) => futures::executor::block_on(future),
        }
    }
}

impl<T> From<VfsResult<T>> for Answer<T> {
    fn from(result: VfsResult<T>) -> Self {
        Self::Now(result)
    }
}

/// What `read` answers: at most the asked length, less only at the end of the file.
pub type ReadAnswer = Answer<Vec<u8>>;

/// Receives the entries of a directory. `Break` means "no room for this one": it is handed out again next time.
pub type DirectorySink<'a> = dyn FnMut(DirectoryEntry<'_>) -> ControlFlow<()> + 'a;

/// Tells the kernel what changed behind its back. Calls may block until the kernel has let go of the object, so
/// they are made from background work and without any lock.
pub trait Notifier: Send + Sync {
    /// The name under `parent` now means something else, or nothing.
    fn entry_changed(&self, parent: InodeNo, name: &VfsName);
    /// Attributes and content of the inode changed.
    fn inode_changed(&self, ino: InodeNo);
}

/// A file system. See the [crate] documentation for the rules; POSIX.1-2017 and the Linux manual pages of the
/// system calls say what each operation does. Times follow the calls too: an operation that changes a directory
/// sets its `mtime` and `ctime`.
pub trait Vfs: Send + Sync + 'static {
    /// Hands over the way to tell the kernel of changes; called once, before any other method.
    fn attach(&self, notifier: Arc<dyn Notifier>);

    /// Finds a name; [`FsError::NotFound`] where there is none.
    fn lookup(&self, parent: InodeNo, name: &VfsName) -> VfsResult<Attributes>;
    /// The kernel has let go of the inode: no path, descriptor or mapping refers to it any more. Until then it may still `open` or `getattr` one whose last name it has taken
    /// away (it had looked the name up before), so an inode that loses its last name through [`Vfs::unlink`],
    /// [`Vfs::rmdir`] or [`Vfs::rename`] is kept until this is called and its handles are released. Without that, a
    /// program that opens a file while another replaces it again and again sees [`FsError::Stale`] once in a while: the
    /// kernel looks up again only once. Called for inodes with names too, which it does not concern.
    fn forget(&self, _ino: InodeNo) {}
    /// The attributes of an inode, through an open handle where there is one: an unlinked open file still answers.
    fn getattr(&self, ino: InodeNo, handle: Option<HandleNo>) -> VfsResult<Attributes>;
    /// Changes attributes. A change of owner or content by others than root clears set-id bits as `chown(2)` and
    /// `write(2)` say.
    fn setattr(&self, caller: Caller, ino: InodeNo, handle: Option<HandleNo>, set: SetAttributes)
    -> Answer<Attributes>;
    /// The target of a symbolic link.
    fn readlink(&self, ino: InodeNo) -> VfsResult<Vec<u8>>;

    /// Makes a node owned by the caller; in a set-group-id directory it gets the directory's group. Here and in the others
    /// that make something, what it may do follows from its mode, the caller's umask and the directory's default access
    /// control list ([`crate::Permissions::inherit`]).
    fn mknod(&self, caller: Caller, parent: InodeNo, name: &VfsName, node: NewNode) -> VfsResult<Attributes>;
    /// Makes a directory; in a set-group-id directory the bit is inherited too.
    fn mkdir(&self, caller: Caller, parent: InodeNo, name: &VfsName, mode: u16) -> VfsResult<Attributes>;
    /// Makes a symbolic link.
    fn symlink(&self, caller: Caller, parent: InodeNo, name: &VfsName, target: &[u8]) -> VfsResult<Attributes>;
    /// Gives an inode that is not a directory one more name.
    fn link(&self, ino: InodeNo, parent: InodeNo, name: &VfsName) -> VfsResult<Attributes>;
    /// Takes a name away; the content lives on while it is open.
    fn unlink(&self, parent: InodeNo, name: &VfsName) -> VfsResult<()>;
    /// Removes an empty directory.
    fn rmdir(&self, parent: InodeNo, name: &VfsName) -> VfsResult<()>;
    /// Moves a name, atomically.
    fn rename(
        &self,
        parent: InodeNo,
        name: &VfsName,
        new_parent: InodeNo,
        new_name: &VfsName,
        mode: RenameMode,
    ) -> VfsResult<()>;

    /// Opens a regular file; [`FsError::Stale`] when the inode is gone, so that the kernel looks up again.
    fn open(&self, caller: Caller, ino: InodeNo, mode: OpenMode) -> Answer<Opened>;
    /// Makes a regular file and opens it; fails with [`FsError::Exists`] where the name is taken.
    fn create(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &VfsName,
        mode: u16,
        open: OpenMode,
    ) -> VfsResult<(Attributes, Opened)>;
    /// Reads.
    fn read(&self, handle: HandleNo, offset: u64, length: u32) -> ReadAnswer;
    /// Writes all of `data`, or fails and changes nothing. With [`OpenMode::append`] the offset is the end of the file.
    /// `set_id` says whether the writer may keep the set-id bits.
    fn write(&self, handle: HandleNo, offset: u64, data: &[u8], set_id: SetIdBits) -> Answer<u32>;
    /// A descriptor of the handle was closed. Never waits for a disk or a network.
    fn flush(&self, handle: HandleNo) -> VfsResult<()>;
    /// The last descriptor of the handle is gone.
    fn release(&self, handle: HandleNo);
    /// Whether the handle reads a content that is not its inode's any more: somebody else's replaced it since. Whoever
    /// caches contents by inode must not mix the two. Never waits.
    fn is_replaced(&self, _handle: HandleNo) -> bool {
        false
    }
    /// Makes the file durable here.
    fn fsync(&self, handle: HandleNo, scope: SyncScope) -> Answer<()>;
    /// Changes the allocation of a range.
    fn fallocate(&self, handle: HandleNo, offset: u64, length: u64, how: Allocate) -> Answer<()>;
    /// Finds data or holes.
    fn lseek(&self, handle: HandleNo, offset: u64, to: SeekTo) -> VfsResult<u64>;
    /// Copies between two open files of this file system; may copy less than asked, 0 at the end of the source.
    fn copy_file_range(
        &self,
        from: HandleNo,
        from_offset: u64,
        to: HandleNo,
        to_offset: u64,
        length: u64,
    ) -> Answer<u64>;

    /// Opens a directory.
    fn opendir(&self, ino: InodeNo) -> VfsResult<HandleNo>;
    /// Hands out entries from `offset` (0 at the start) until the sink breaks. Entries that stay in the directory
    /// during the whole pass are handed out exactly once, whatever else changes.
    fn readdir(
        &self,
        handle: HandleNo,
        offset: u64,
        detail: DirectoryDetail,
        sink: &mut DirectorySink<'_>,
    ) -> VfsResult<()>;
    /// Closes a directory.
    fn releasedir(&self, handle: HandleNo);
    /// Makes the entries of the directory durable here.
    fn fsyncdir(&self, handle: HandleNo) -> Answer<()>;

    /// Space and inodes.
    fn statfs(&self) -> VfsResult<FsStatistics>;

    /// The value of an extended attribute, or [`FsError::NoAttribute`].
    fn getxattr(&self, ino: InodeNo, name: &[u8]) -> VfsResult<Vec<u8>>;
    /// The names of all extended attributes.
    fn listxattr(&self, ino: InodeNo) -> VfsResult<Vec<Vec<u8>>>;
    /// Sets an extended attribute. Those of [`crate::AclKind`] are access control lists, which go with the mode
    /// ([`crate::Permissions`]).
    fn setxattr(&self, ino: InodeNo, name: &[u8], value: &[u8], mode: SetXattrMode) -> VfsResult<()>;
    /// Removes an extended attribute, or [`FsError::NoAttribute`]; an access control list may be missing.
    fn removexattr(&self, ino: InodeNo, name: &[u8]) -> VfsResult<()>;

    /// The driver is about to stop: the mount is gone. Makes everything durable.
    fn destroy(&self) -> VfsResult<()>;
}

/// The default answer of an operation that an implementation does not offer.
impl<T> From<FsError> for Answer<T> {
    fn from(error: FsError) -> Self {
        Self::Now(Err(error))
    }
}
