//! Listing directories.

use std::ops::ControlFlow;
use std::sync::Arc;

use cairn_platform_api::{
    Answer, Attributes, DirectoryDetail, DirectoryEntry, DirectorySink, FileKind, FsError, HandleNo, InodeNo, VfsName,
    VfsResult,
};
use parking_lot::Mutex;

use super::Handle;
use crate::drive::inner::{Inner, failed};
use crate::drive::node::NodeRef;
use crate::tree::Namespace;

/// An open directory. A pass over it hands out the names there were when it began: what goes meanwhile is left out where it
/// is noticed, what comes is not in it, so that every pass ends and hands out nothing twice.
#[derive(Debug)]
pub(in crate::drive) struct OpenDirectory {
    node: NodeRef,
    names: Mutex<Option<Arc<Vec<Listed>>>>,
}

impl OpenDirectory {
    pub(super) fn ino(&self) -> InodeNo {
        self.node.ino
    }
}

#[derive(Debug)]
struct Listed {
    name: VfsName,
    ino: InodeNo,
    kind: FileKind,
}

/// Where the names of the snapshot begin: after `.` and `..`.
const FIRST: u64 = 2;

impl Inner {
    pub(in crate::drive) fn opendir(&self, ino: InodeNo) -> VfsResult<HandleNo> {
        let node = self.nodes.acquire(ino);
        {
            let view = self.tree.view(&[ino]);
            let row = view.inode(ino).map_err(failed)?;
            let mut body = node.body.lock();
            if !row.as_ref().or(body.orphan.as_ref()).ok_or(FsError::Stale)?.is_directory() {
                return Err(FsError::NotADirectory);
            }
            body.loaded = true;
        }
        Ok(self.handles.insert(Handle::Directory(OpenDirectory { node, names: Mutex::new(None) })))
    }

    fn open_directory(handle: &Handle) -> VfsResult<&OpenDirectory> {
        match handle {
            Handle::Directory(directory) => Ok(directory),
            Handle::File(_) => Err(FsError::BadHandle),
        }
    }

    pub(in crate::drive) fn readdir(
        &self,
        handle: HandleNo,
        offset: u64,
        detail: DirectoryDetail,
        sink: &mut DirectorySink<'_>,
    ) -> VfsResult<()> {
        let handle = self.handles.get(handle)?;
        let directory = Self::open_directory(&handle)?;
        let ino = directory.node.ino;
        let names = self.snapshot(directory, offset)?;
        let up = self.tree.store().parent(ino).map_err(failed)?.unwrap_or(ino);
        for (next, ino, name) in [(1, ino, &b"."[..]), (FIRST, up, b"..")] {
            let entry = DirectoryEntry { ino, kind: FileKind::Directory, name, next, attributes: None };
            if offset < next && sink(entry).is_break() {
                return Ok(());
            }
        }
        let skip = usize::try_from(offset.saturating_sub(FIRST)).map_err(|_| FsError::Invalid)?;
        for (entry, next) in names.iter().zip(FIRST + 1..).skip(skip) {
            if self.hand_out_entry(ino, entry, next, detail, sink)?.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The names of this pass.
    fn snapshot(&self, directory: &OpenDirectory, offset: u64) -> VfsResult<Arc<Vec<Listed>>> {
        let mut kept = directory.names.lock();
        match &*kept {
            Some(names) if offset != 0 => Ok(Arc::clone(names)),
            _ => {
                let mut names = Vec::new();
                self.tree
                    .list(directory.node.ino, None, &mut |name, found| {
                        names.push(Listed { name, ino: found.ino, kind: found.kind });
                        ControlFlow::Continue(())
                    })
                    .map_err(failed)?;
                let names = Arc::new(names);
                *kept = Some(Arc::clone(&names));
                Ok(names)
            }
        }
    }

    fn hand_out_entry(
        &self,
        directory: InodeNo,
        entry: &Listed,
        next: u64,
        detail: DirectoryDetail,
        sink: &mut DirectorySink<'_>,
    ) -> VfsResult<ControlFlow<()>> {
        let name = entry.name.as_bytes();
        if detail == DirectoryDetail::Names {
            return Ok(sink(DirectoryEntry { ino: entry.ino, kind: entry.kind, name, next, attributes: None }));
        }
        let attributes = match self.row(entry.ino)? {
            Some(row) => self.attributes(entry.ino, &row)?,
            // Gone, or replaced by another inode under the name.
            None => match self.lookup(directory, &entry.name) {
                Ok(attributes) => attributes,
                Err(FsError::NotFound) => return Ok(ControlFlow::Continue(())),
                Err(error) => return Err(error),
            },
        };
        let Attributes { ino, kind, .. } = attributes;
        Ok(sink(DirectoryEntry { ino, kind, name, next, attributes: Some(attributes) }))
    }

    pub(in crate::drive) fn fsyncdir(&self, handle: HandleNo) -> Answer<()> {
        let checked = self.handles.get(handle).and_then(|handle| Self::open_directory(&handle).map(|_| ()));
        if let Err(error) = checked {
            return error.into();
        }
        let flushed = self.store.flush_later();
        Answer::Later(Box::pin(async move { flushed.await.map_err(failed) }))
    }
}
