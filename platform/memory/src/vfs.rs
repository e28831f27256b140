//! [`Vfs`] for [`MemoryFs`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cairn_platform_api::{
    Allocate, Answer, Attributes, Caller, DirectoryDetail, DirectorySink, FileKind, FsError, FsStatistics, HandleNo,
    InodeNo, NewNode, Notifier, OpenMode, Opened, ReadAnswer, RenameMode, SYMLINK_MAX, SeekTo, SetAttributes,
    SetIdBits, SetXattrMode, SyncScope, Vfs, VfsName, VfsResult,
};

use crate::files::check_xattr_name;
use crate::namespace::Removing;
use crate::node::Body;
use crate::pages::{PAGE, Pages};
use crate::{INODES, MemoryFs};

impl Vfs for MemoryFs {
    /// Nothing changes behind the kernel's back.
    fn attach(&self, _notifier: Arc<dyn Notifier>) {
        self.mounted.store(true, Ordering::Relaxed);
    }

    fn lookup(&self, parent: InodeNo, name: &VfsName) -> VfsResult<Attributes> {
        self.find(parent, name)
    }

    fn forget(&self, ino: InodeNo) {
        if let Some(node) = self.nodes.get(ino.0) {
            let mut state = node.state.write();
            state.kept = false;
            self.drop_if_unused(ino, &mut state);
        }
    }

    fn getattr(&self, ino: InodeNo, _handle: Option<HandleNo>) -> VfsResult<Attributes> {
        self.attributes_of(ino).ok_or(FsError::Stale)
    }

    fn setattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        _handle: Option<HandleNo>,
        set: SetAttributes,
    ) -> Answer<Attributes> {
        let node = match self.node(ino, FsError::Stale) {
            Ok(node) => node,
            Err(error) => return error.into(),
        };
        let mut state = node.state.write();
        let done = state.set_attributes(&self.space, caller, node.kind, set);
        done.map(|()| node.attributes(&state)).into()
    }

    fn readlink(&self, ino: InodeNo) -> VfsResult<Vec<u8>> {
        match &self.node(ino, FsError::Stale)?.state.read().body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(FsError::Invalid),
        }
    }

    fn mknod(&self, caller: Caller, parent: InodeNo, name: &VfsName, node: NewNode) -> VfsResult<Attributes> {
        let body = match node.kind {
            FileKind::Regular => Body::Regular(Pages::default()),
            FileKind::Directory | FileKind::Symlink => return Err(FsError::Invalid),
            FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => Body::Special,
        };
        let (mut attributes, ()) =
            self.make(caller, parent, name, (node.kind, node.mode), || body, |_, state| state.rdev = node.rdev)?;
        attributes.rdev = node.rdev;
        Ok(attributes)
    }

    fn mkdir(&self, caller: Caller, parent: InodeNo, name: &VfsName, mode: u16) -> VfsResult<Attributes> {
        self.make_directory(caller, parent, name, mode)
    }

    fn symlink(&self, caller: Caller, parent: InodeNo, name: &VfsName, target: &[u8]) -> VfsResult<Attributes> {
        if target.is_empty() {
            return Err(FsError::NotFound);
        }
        if target.len() > SYMLINK_MAX {
            return Err(FsError::NameTooLong);
        }
        let body = || Body::Symlink(target.to_vec());
        self.make(caller, parent, name, (FileKind::Symlink, 0o777), body, |_, _| ()).map(|(made, ())| made)
    }

    fn link(&self, ino: InodeNo, parent: InodeNo, name: &VfsName) -> VfsResult<Attributes> {
        self.add_link(ino, parent, name)
    }

    fn unlink(&self, parent: InodeNo, name: &VfsName) -> VfsResult<()> {
        self.remove_name(parent, name, Removing::Other)
    }

    fn rmdir(&self, parent: InodeNo, name: &VfsName) -> VfsResult<()> {
        self.remove_name(parent, name, Removing::Directory)
    }

    fn rename(
        &self,
        parent: InodeNo,
        name: &VfsName,
        new_parent: InodeNo,
        new_name: &VfsName,
        mode: RenameMode,
    ) -> VfsResult<()> {
        self.move_name((parent, name), (new_parent, new_name), mode)
    }

    fn open(&self, caller: Caller, ino: InodeNo, mode: OpenMode) -> Answer<Opened> {
        self.open_file(caller, ino, mode).into()
    }

    fn create(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &VfsName,
        mode: u16,
        open: OpenMode,
    ) -> VfsResult<(Attributes, Opened)> {
        self.create_file(caller, parent, name, mode, open)
    }

    fn read(&self, handle: HandleNo, offset: u64, length: u32) -> ReadAnswer {
        self.read_file(handle, offset, length).into()
    }

    fn write(&self, handle: HandleNo, offset: u64, data: &[u8], set_id: SetIdBits) -> Answer<u32> {
        self.write_file(handle, offset, data, set_id).into()
    }

    fn flush(&self, handle: HandleNo) -> VfsResult<()> {
        self.handle(handle).map(|_| ())
    }

    fn release(&self, handle: HandleNo) {
        self.close(handle);
    }

    fn fsync(&self, handle: HandleNo, _scope: SyncScope) -> Answer<()> {
        self.handle(handle).map(|_| ()).into()
    }

    fn fallocate(&self, handle: HandleNo, offset: u64, length: u64, how: Allocate) -> Answer<()> {
        self.allocate(handle, offset, length, how).into()
    }

    fn lseek(&self, handle: HandleNo, offset: u64, to: SeekTo) -> VfsResult<u64> {
        self.seek(handle, offset, to)
    }

    fn copy_file_range(
        &self,
        from: HandleNo,
        from_offset: u64,
        to: HandleNo,
        to_offset: u64,
        length: u64,
    ) -> Answer<u64> {
        self.copy((from, from_offset), (to, to_offset), length).into()
    }

    fn opendir(&self, ino: InodeNo) -> VfsResult<HandleNo> {
        self.open_directory(ino)
    }

    fn readdir(
        &self,
        handle: HandleNo,
        offset: u64,
        detail: DirectoryDetail,
        sink: &mut DirectorySink<'_>,
    ) -> VfsResult<()> {
        self.list(handle, offset, detail, sink)
    }

    fn releasedir(&self, handle: HandleNo) {
        self.close(handle);
    }

    fn fsyncdir(&self, handle: HandleNo) -> Answer<()> {
        self.handle(handle).map(|_| ()).into()
    }

    fn statfs(&self) -> VfsResult<FsStatistics> {
        let (blocks, free) = self.space.pages();
        Ok(FsStatistics {
            block_size: PAGE as u32,
            blocks,
            blocks_free: free,
            blocks_available: free,
            inodes: INODES,
            inodes_free: INODES.saturating_sub(self.inodes.load(Ordering::Relaxed)),
        })
    }

    fn getxattr(&self, ino: InodeNo, name: &[u8]) -> VfsResult<Vec<u8>> {
        check_xattr_name(name)?;
        let node = self.node(ino, FsError::Stale)?;
        let state = node.state.read();
        state.xattrs.get(name).cloned().ok_or(FsError::NoAttribute)
    }

    fn listxattr(&self, ino: InodeNo) -> VfsResult<Vec<Vec<u8>>> {
        let node = self.node(ino, FsError::Stale)?;
        let state = node.state.read();
        Ok(state.xattrs.keys().cloned().collect())
    }

    fn setxattr(&self, ino: InodeNo, name: &[u8], value: &[u8], mode: SetXattrMode) -> VfsResult<()> {
        self.set_xattr(ino, name, value, mode)
    }

    fn removexattr(&self, ino: InodeNo, name: &[u8]) -> VfsResult<()> {
        self.remove_xattr(ino, name)
    }

    fn destroy(&self) -> VfsResult<()> {
        Ok(())
    }
}
