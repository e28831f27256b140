//! The operations of [`Vfs`](cairn_platform_api::Vfs), by family.

mod attributes;
mod directories;
mod files;
mod names;
mod xattrs;

use std::sync::atomic::{AtomicU64, Ordering};

use cairn_platform_api::{FsError, HandleNo, InodeNo, OpenMode, VfsResult};
use parking_lot::Mutex;

use super::content::Progress;
use super::inner::Inner;
use super::local::Writing;
use super::node::{Node, NodeRef};
use crate::base::os;

pub(super) use directories::OpenDirectory;
pub(super) use names::Removing;

/// What is open.
#[derive(Debug)]
pub(super) enum Handle {
    File(OpenFile),
    Directory(OpenDirectory),
}

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) node: NodeRef,
    pub(super) mode: OpenMode,
    progress: Mutex<Progress>,
    /// How many failed syncs of the node this handle has reported, or had seen when it was opened.
    reported: AtomicU64,
    /// There as long as the handle can write.
    _writing: Option<Writing>,
}

impl OpenFile {
    fn new(node: NodeRef, mode: OpenMode, writing: Option<Writing>) -> Self {
        let reported = AtomicU64::new(node.failures.load(Ordering::Acquire));
        Self { node, mode, progress: Mutex::default(), reported, _writing: writing }
    }
}

impl Inner {
    /// Whether a handle goes on with a content that a merge replaced: then its node is not the inode's any more, and neither
    /// is its backing file. (A node is given up for another with the same file, too, when the two do not agree on what is
    /// published.) Where nobody has what the inode has now, it cannot be told, and is taken for so: then what is cached goes.
    pub(super) fn is_replaced(&self, handle: HandleNo) -> bool {
        let Ok(handle) = self.handles.get(handle) else { return false };
        let Ok(file) = handle.file() else { return false };
        let Some(current) = self.nodes.in_use(file.node.ino) else { return true };
        if std::ptr::eq::<Node>(&*current, &*file.node) {
            return false;
        }
        match (current.file.get(), file.node.file.get()) {
            (Some(current), Some(own)) => !os::is_same_file(current, own).unwrap_or(false),
            _ => true,
        }
    }
}

impl Handle {
    /// What is open.
    pub(super) fn ino(&self) -> InodeNo {
        match self {
            Self::File(file) => file.node.ino,
            Self::Directory(directory) => directory.ino(),
        }
    }

    fn file(&self) -> VfsResult<&OpenFile> {
        match self {
            Self::File(file) => Ok(file),
            Self::Directory(_) => Err(FsError::BadHandle),
        }
    }

    fn readable(&self) -> VfsResult<&OpenFile> {
        self.file().and_then(|file| if file.mode.read { Ok(file) } else { Err(FsError::BadHandle) })
    }

    fn writable(&self) -> VfsResult<&OpenFile> {
        self.file().and_then(|file| if file.mode.write { Ok(file) } else { Err(FsError::BadHandle) })
    }
}
