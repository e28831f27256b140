//! [`Vfs`] for [`Drive`].

use std::sync::Arc;

use cairn_platform_api::{
    Allocate, Answer, Attributes, Caller, DirectoryDetail, DirectorySink, FsStatistics, HandleNo, InodeNo, NewNode,
    Notifier, OpenMode, Opened, ReadAnswer, RenameMode, SeekTo, SetAttributes, SetIdBits, SetXattrMode, SyncScope, Vfs,
    VfsName, VfsResult,
};

use super::Drive;
use super::ops::Removing;

impl Drive {
    /// After what was made durable here, waits for the remote where the drive is set to.
    fn then_remotely(&self, handle: HandleNo, here: Answer<()>) -> Answer<()> {
        let Some(sync) = self.remote_sync.get() else { return here };
        let ino = match self.inner.handles.get(handle) {
            Ok(handle) => handle.ino(),
            Err(error) => return error.into(),
        };
        // Does nothing before it is awaited.
        let remote = sync(ino);
        match here {
            Answer::Now(Err(error)) => error.into(),
            Answer::Now(Ok(())) => Answer::Later(remote),
            Answer::Later(here) => Answer::Later(Box::pin(async move {
                here.await?;
                remote.await
            })),
        }
    }
}

impl Vfs for Drive {
    fn attach(&self, notifier: Arc<dyn Notifier>) {
        // A second mount of one drive would be told nothing; there is none.
        let _ = self.inner.notifier.set(notifier);
        self.inner.kernel.mounted();
    }

    fn forget(&self, ino: InodeNo) {
        if self.inner.kernel.forget(ino) {
            self.inner.later(&self.inner.nodes.acquire(ino));
        }
    }

    fn lookup(&self, parent: InodeNo, name: &VfsName) -> VfsResult<Attributes> {
        self.inner.lookup(parent, name)
    }

    fn getattr(&self, ino: InodeNo, _handle: Option<HandleNo>) -> VfsResult<Attributes> {
        self.inner.attributes_of(ino)
    }

    fn setattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        handle: Option<HandleNo>,
        set: SetAttributes,
    ) -> Answer<Attributes> {
        self.inner.setattr(caller, ino, handle, set)
    }

    fn readlink(&self, ino: InodeNo) -> VfsResult<Vec<u8>> {
        self.inner.readlink(ino)
    }

    fn mknod(&self, caller: Caller, parent: InodeNo, name: &VfsName, node: NewNode) -> VfsResult<Attributes> {
        self.inner.mknod(caller, (parent, name), node)
    }

    fn mkdir(&self, caller: Caller, parent: InodeNo, name: &VfsName, mode: u16) -> VfsResult<Attributes> {
        self.inner.mkdir(caller, (parent, name), mode)
    }

    fn symlink(&self, caller: Caller, parent: InodeNo, name: &VfsName, target: &[u8]) -> VfsResult<Attributes> {
        self.inner.symlink(caller, (parent, name), target)
    }

    fn link(&self, ino: InodeNo, parent: InodeNo, name: &VfsName) -> VfsResult<Attributes> {
        self.inner.link(ino, (parent, name))
    }

    fn unlink(&self, parent: InodeNo, name: &VfsName) -> VfsResult<()> {
        self.inner.remove((parent, name), Removing::Other)
    }

    fn rmdir(&self, parent: InodeNo, name: &VfsName) -> VfsResult<()> {
        self.inner.remove((parent, name), Removing::Directory)
    }

    fn rename(
        &self,
        parent: InodeNo,
        name: &VfsName,
        new_parent: InodeNo,
        new_name: &VfsName,
        mode: RenameMode,
    ) -> VfsResult<()> {
        self.inner.rename((parent, name), (new_parent, new_name), mode)
    }

    fn open(&self, caller: Caller, ino: InodeNo, mode: OpenMode) -> Answer<Opened> {
        self.inner.open(caller, ino, mode)
    }

    fn create(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &VfsName,
        mode: u16,
        open: OpenMode,
    ) -> VfsResult<(Attributes, Opened)> {
        self.inner.create(caller, (parent, name), mode, open)
    }

    fn read(&self, handle: HandleNo, offset: u64, length: u32) -> ReadAnswer {
        self.inner.read(handle, offset, length)
    }

    fn write(&self, handle: HandleNo, offset: u64, data: &[u8], set_id: SetIdBits) -> Answer<u32> {
        self.inner.write(handle, offset, data, set_id).into()
    }

    fn flush(&self, handle: HandleNo) -> VfsResult<()> {
        self.inner.handles.get(handle).map(|_| ())
    }

    fn release(&self, handle: HandleNo) {
        self.inner.release(handle);
    }

    fn fsync(&self, handle: HandleNo, scope: SyncScope) -> Answer<()> {
        self.then_remotely(handle, self.inner.fsync(handle, scope))
    }

    fn fallocate(&self, handle: HandleNo, offset: u64, length: u64, how: Allocate) -> Answer<()> {
        self.inner.fallocate(handle, offset, length, how).into()
    }

    fn lseek(&self, handle: HandleNo, offset: u64, to: SeekTo) -> VfsResult<u64> {
        self.inner.lseek(handle, offset, to)
    }

    fn copy_file_range(
        &self,
        from: HandleNo,
        from_offset: u64,
        to: HandleNo,
        to_offset: u64,
        length: u64,
    ) -> Answer<u64> {
        self.inner.copy_file_range((from, from_offset), (to, to_offset), length)
    }

    fn opendir(&self, ino: InodeNo) -> VfsResult<HandleNo> {
        self.inner.opendir(ino)
    }

    fn readdir(
        &self,
        handle: HandleNo,
        offset: u64,
        detail: DirectoryDetail,
        sink: &mut DirectorySink<'_>,
    ) -> VfsResult<()> {
        self.inner.readdir(handle, offset, detail, sink)
    }

    fn releasedir(&self, handle: HandleNo) {
        self.inner.release(handle);
    }

    fn fsyncdir(&self, handle: HandleNo) -> Answer<()> {
        self.then_remotely(handle, self.inner.fsyncdir(handle))
    }

    fn statfs(&self) -> VfsResult<FsStatistics> {
        self.inner.statfs()
    }

    fn getxattr(&self, ino: InodeNo, name: &[u8]) -> VfsResult<Vec<u8>> {
        self.inner.getxattr(ino, name)
    }

    fn listxattr(&self, ino: InodeNo) -> VfsResult<Vec<Vec<u8>>> {
        self.inner.listxattr(ino)
    }

    fn setxattr(&self, ino: InodeNo, name: &[u8], value: &[u8], mode: SetXattrMode) -> VfsResult<()> {
        self.inner.setxattr(ino, name, value, mode)
    }

    fn removexattr(&self, ino: InodeNo, name: &[u8]) -> VfsResult<()> {
        self.inner.removexattr(ino, name)
    }

    fn destroy(&self) -> VfsResult<()> {
        self.close()
    }

    fn is_replaced(&self, handle: HandleNo) -> bool {
        self.inner.is_replaced(handle)
    }
}
