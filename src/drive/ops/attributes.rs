//! Attributes and space.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cairn_platform_api::{
    Answer, Attributes, Caller, FileKind, FsError, FsStatistics, HandleNo, InodeNo, SetAttributes, SetTime, Timestamp,
    VfsResult,
};

use super::Handle;
use super::files::clear_set_id;
use crate::base::os;
use crate::drive::inner::{CAPABILITIES, Inner};
use crate::drive::local::{Begun, Keep};
use crate::drive::node::NodeRef;
use crate::tree::{ContentState, InodeRow};

/// The unit of `statfs`.
const BLOCK: u64 = 4096;

impl Inner {
    pub(in crate::drive) fn setattr(
        self: &Arc<Self>,
        caller: Caller,
        ino: InodeNo,
        handle: Option<HandleNo>,
        set: SetAttributes,
    ) -> Answer<Attributes> {
        let Some(size) = set.size else { return self.set_row(caller, ino, set).into() };
        let node = match self.sized(ino, handle) {
            Ok(node) => node,
            Err(error) => return error.into(),
        };
        match self.begin_writing(&node, Keep::First(size)) {
            Ok(Begun::Writing(_writing)) => self.set_length(&node, size, caller, set).into(),
            Ok(Begun::Slow | Begun::Outdated) => {
                let (beginning, inner) = (Arc::clone(self), Arc::clone(self));
                let begin = async move { beginning.writable(ino, Keep::First(size)).await };
                self.answer_who_waits(begin, move |(node, writing)| {
                    let setting = Arc::clone(&inner);
                    let set = move || {
                        let _writing = writing;
                        setting.set_length(&node, size, caller, set)
                    };
                    Box::pin(async move { inner.blocking(set).await })
                })
            }
            Err(error) => error.into(),
        }
    }

    /// The node whose length is to be set.
    fn sized(&self, ino: InodeNo, handle: Option<HandleNo>) -> VfsResult<NodeRef> {
        if let Some(handle) = handle {
            if let Handle::File(file) = &*self.handles.get(handle)? {
                return Ok(file.node.clone());
            }
        }
        self.regular(ino)
    }

    fn set_length(&self, node: &NodeRef, size: u64, caller: Caller, set: SetAttributes) -> VfsResult<Attributes> {
        self.set_size(node, size)?;
        let now = Timestamp::now();
        match self.update_through(node, |row| self.set_in_row(node.ino, row, caller, set, now))? {
            Some(row) => self.attributes(node.ino, &row),
            // What a replaced content has besides its length is nobody's.
            None => self.attributes_of(node.ino),
        }
    }

    /// Sets everything but the length.
    fn set_row(&self, caller: Caller, ino: InodeNo, set: SetAttributes) -> VfsResult<Attributes> {
        let now = Timestamp::now();
        let (row, ()) = self.update(ino, |row| self.set_in_row(ino, row, caller, set, now))?;
        self.attributes(ino, &row)
    }

    fn set_in_row(
        &self,
        ino: InodeNo,
        row: &mut InodeRow,
        caller: Caller,
        set: SetAttributes,
        now: Timestamp,
    ) -> VfsResult<()> {
        let time = |set: SetTime| match set {
            SetTime::At(time) => time,
            SetTime::Now => now,
        };
        let mtime = set.mtime.map(time);
        change_row(row, caller, &set, now);
        row.atime = set.atime.map_or(row.atime, time);
        row.mtime = mtime.unwrap_or(row.mtime);
        if row.is_directory() && row.mtime == row.ctime {
            // What a program set is told from what changes of names leave (`tree::pending`), which may go unpublished.
            row.ctime = Timestamp::from_nanos(row.ctime.as_nanos().saturating_add(1));
        }
        match mtime {
            Some(mtime) if matches!(row.content, ContentState::Local { .. }) => self.set_backing_time(ino, mtime),
            _ => Ok(()),
        }
    }

    /// The backing file of a local file tells when it was modified.
    fn set_backing_time(&self, ino: InodeNo, mtime: Timestamp) -> VfsResult<()> {
        let node = self.nodes.in_use(ino);
        if node.as_ref().is_some_and(|node| node.set_aside.load(Ordering::Acquire)) {
            // Its time tells whether it was written to.
            return Ok(());
        }
        let open = node.and_then(|node| node.file.get().cloned());
        let file = match open {
            Some(file) => Some(file),
            None => self.files.existing(ino)?.map(Arc::new),
        };
        match file {
            Some(file) => Ok(os::set_times(&file, None, Some(mtime))?),
            None => Ok(()),
        }
    }

    pub(in crate::drive) fn readlink(&self, ino: InodeNo) -> VfsResult<Vec<u8>> {
        self.row(ino)?.ok_or(FsError::Stale)?.target.ok_or(FsError::Invalid)
    }

    pub(in crate::drive) fn statfs(&self) -> VfsResult<FsStatistics> {
        let space = self.space.measure()?;
        Ok(FsStatistics {
            block_size: BLOCK as u32,
            blocks: space.total / BLOCK,
            blocks_free: space.free / BLOCK,
            blocks_available: space.available / BLOCK,
            inodes: space.inodes,
            inodes_free: space.inodes_free,
        })
    }
}

fn change_row(row: &mut InodeRow, caller: Caller, set: &SetAttributes, now: Timestamp) {
    if set.size.is_some() {
        row.mtime = now;
        row.xattrs.remove(CAPABILITIES);
        if caller.uid != 0 {
            clear_set_id(row);
        }
    }
    if set.uid.is_some() || set.gid.is_some() {
        row.uid = set.uid.unwrap_or(row.uid);
        row.gid = set.gid.unwrap_or(row.gid);
        if row.kind != FileKind::Directory {
            clear_set_id(row);
            row.xattrs.remove(CAPABILITIES);
        }
    }
    if let Some(mode) = set.mode {
        row.permissions().set_mode(mode & 0o7777);
    }
    row.ctime = now;
}
