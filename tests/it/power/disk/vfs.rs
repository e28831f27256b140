//! [`Vfs`] for [`Disk`].

use std::sync::Arc;

use cairn_platform_api::{
    Allocate, Answer, Attributes, Caller, DirectoryDetail, DirectoryEntry, DirectorySink, FileKind, FsError,
    FsStatistics, HandleNo, InodeNo, NewNode, Notifier, OpenMode, Opened, ReadAnswer, RenameMode, SeekTo,
    SetAttributes, SetIdBits, SetTime, SetXattrMode, SyncScope, Timestamp, Vfs, VfsName, VfsResult,
};

use super::{BLOCK, Disk, Open};

impl Vfs for Disk {
    fn attach(&self, _notifier: Arc<dyn Notifier>) {}

    fn lookup(&self, parent: InodeNo, name: &VfsName) -> VfsResult<Attributes> {
        let mut state = self.reading()?;
        let ino = state.find(parent.0, name)?;
        state.attributes(ino)
    }

    fn getattr(&self, ino: InodeNo, _handle: Option<HandleNo>) -> VfsResult<Attributes> {
        self.reading()?.attributes(ino.0)
    }

    fn setattr(&self, _: Caller, ino: InodeNo, _: Option<HandleNo>, set: SetAttributes) -> Answer<Attributes> {
        let change = || {
            let mut state = self.change()?;
            if let Some(size) = set.size {
                state.set_size(ino.0, size)?;
            }
            let live = &mut state.inode(ino.0)?.live;
            live.mode = set.mode.unwrap_or(live.mode);
            live.owner = (set.uid.unwrap_or(live.owner.0), set.gid.unwrap_or(live.owner.1));
            live.ctime = Timestamp::now();
            live.mtime = match set.mtime {
                Some(SetTime::At(time)) => time,
                Some(SetTime::Now) => live.ctime,
                None => live.mtime,
            };
            state.attributes(ino.0)
        };
        change().into()
    }

    fn readlink(&self, ino: InodeNo) -> VfsResult<Vec<u8>> {
        Ok(self.reading()?.inode(ino.0)?.target.clone())
    }

    fn mknod(&self, caller: Caller, parent: InodeNo, name: &VfsName, node: NewNode) -> VfsResult<Attributes> {
        self.change()?.make(caller, (parent.0, name), node.kind, node.mode)
    }

    fn mkdir(&self, caller: Caller, parent: InodeNo, name: &VfsName, mode: u16) -> VfsResult<Attributes> {
        self.change()?.make(caller, (parent.0, name), FileKind::Directory, mode)
    }

    fn symlink(&self, caller: Caller, parent: InodeNo, name: &VfsName, target: &[u8]) -> VfsResult<Attributes> {
        let mut state = self.change()?;
        let made = state.make(caller, (parent.0, name), FileKind::Symlink, 0o777)?;
        state.inode(made.ino.0)?.target = target.to_vec();
        state.attributes(made.ino.0)
    }

    fn link(&self, _: InodeNo, _: InodeNo, _: &VfsName) -> VfsResult<Attributes> {
        Err(FsError::NotSupported)
    }

    fn unlink(&self, parent: InodeNo, name: &VfsName) -> VfsResult<()> {
        self.change()?.remove(parent.0, name)
    }

    fn rmdir(&self, parent: InodeNo, name: &VfsName) -> VfsResult<()> {
        self.change()?.remove(parent.0, name)
    }

    fn rename(
        &self,
        parent: InodeNo,
        name: &VfsName,
        new_parent: InodeNo,
        new_name: &VfsName,
        mode: RenameMode,
    ) -> VfsResult<()> {
        self.change()?.rename((parent.0, name.clone()), (new_parent.0, new_name.clone()), mode)
    }

    fn open(&self, _: Caller, ino: InodeNo, mode: OpenMode) -> Answer<Opened> {
        let open = || {
            let mut state = if mode.truncate { self.change()? } else { self.reading()? };
            if mode.truncate {
                state.set_size(ino.0, 0)?;
            }
            state.inode(ino.0)?;
            Ok(Opened { handle: state.open_handle(Open::File(ino.0)), backing: None })
        };
        open().into()
    }

    fn create(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &VfsName,
        mode: u16,
        _: OpenMode,
    ) -> VfsResult<(Attributes, Opened)> {
        let mut state = self.change()?;
        let made = state.make(caller, (parent.0, name), FileKind::Regular, mode)?;
        let handle = state.open_handle(Open::File(made.ino.0));
        Ok((made, Opened { handle, backing: None }))
    }

    fn read(&self, handle: HandleNo, offset: u64, length: u32) -> ReadAnswer {
        let read = || {
            let mut state = self.reading()?;
            let ino = state.file(handle)?;
            state.read(ino, offset, length as usize)
        };
        read().into()
    }

    fn write(&self, handle: HandleNo, offset: u64, data: &[u8], _: SetIdBits) -> Answer<u32> {
        let write = || {
            let mut state = self.change()?;
            let ino = state.file(handle)?;
            state.write(ino, offset, data)?;
            Ok(data.len() as u32)
        };
        write().into()
    }

    fn flush(&self, _: HandleNo) -> VfsResult<()> {
        Ok(())
    }

    fn release(&self, handle: HandleNo) {
        self.state().handles.remove(&handle.0);
    }

    fn fsync(&self, handle: HandleNo, _: SyncScope) -> Answer<()> {
        let sync = || {
            let mut state = self.step()?;
            let ino = state.file(handle)?;
            state.sync_file(ino)
        };
        sync().into()
    }

    fn fallocate(&self, handle: HandleNo, offset: u64, length: u64, how: Allocate) -> Answer<()> {
        let allocate = || {
            let mut state = self.change()?;
            let ino = state.file(handle)?;
            if how != Allocate::PunchHole {
                return Ok(());
            }
            let size = state.inode(ino)?.live.size;
            let zeros = vec![0; length.min(size.saturating_sub(offset)) as usize];
            state.write(ino, offset, &zeros)
        };
        allocate().into()
    }

    fn lseek(&self, handle: HandleNo, offset: u64, to: SeekTo) -> VfsResult<u64> {
        let mut state = self.reading()?;
        let ino = state.file(handle)?;
        let size = state.inode(ino)?.live.size;
        let found = if to == SeekTo::Data { offset } else { size };
        if offset < size { Ok(found) } else { Err(FsError::NoOffset) }
    }

    fn copy_file_range(&self, _: HandleNo, _: u64, _: HandleNo, _: u64, _: u64) -> Answer<u64> {
        FsError::NotSupported.into()
    }

    fn opendir(&self, ino: InodeNo) -> VfsResult<HandleNo> {
        let mut state = self.reading()?;
        let names = state.inode(ino.0)?.names.iter().map(|(name, ino)| (name.clone(), *ino)).collect();
        Ok(state.open_handle(Open::Directory(ino.0, names)))
    }

    fn readdir(
        &self,
        handle: HandleNo,
        offset: u64,
        _: DirectoryDetail,
        sink: &mut DirectorySink<'_>,
    ) -> VfsResult<()> {
        let mut state = self.reading()?;
        let Some(Open::Directory(ino, names)) = state.handles.get(&handle.0) else { return Err(FsError::BadHandle) };
        let (ino, names) = (*ino, names.clone());
        let dots = [(b".".to_vec(), ino), (b"..".to_vec(), ino)];
        let names = names.into_iter().map(|(name, ino)| (name.as_bytes().to_vec(), ino));
        for (next, (name, ino)) in (1..).zip(dots.into_iter().chain(names)).skip(offset as usize) {
            let kind = state.inode(ino)?.kind;
            let attributes = if next > 2 { Some(state.attributes(ino)?) } else { None };
            if sink(DirectoryEntry { ino: InodeNo(ino), kind, name: &name, next, attributes }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn releasedir(&self, handle: HandleNo) {
        self.release(handle);
    }

    fn fsyncdir(&self, handle: HandleNo) -> Answer<()> {
        let sync = || {
            let mut state = self.step()?;
            match state.handles.get(&handle.0) {
                Some(Open::Directory(ino, _)) => {
                    let ino = *ino;
                    state.sync_directory(ino)
                }
                _ => Err(FsError::BadHandle),
            }
        };
        sync().into()
    }

    fn statfs(&self) -> VfsResult<FsStatistics> {
        const BLOCKS: u64 = 1 << 20;
        Ok(FsStatistics {
            block_size: BLOCK as u32,
            blocks: BLOCKS,
            blocks_free: BLOCKS,
            blocks_available: BLOCKS,
            inodes: BLOCKS,
            inodes_free: BLOCKS,
        })
    }

    fn getxattr(&self, _: InodeNo, _: &[u8]) -> VfsResult<Vec<u8>> {
        Err(FsError::NotSupported)
    }

    fn listxattr(&self, _: InodeNo) -> VfsResult<Vec<Vec<u8>>> {
        Err(FsError::NotSupported)
    }

    fn setxattr(&self, _: InodeNo, _: &[u8], _: &[u8], _: SetXattrMode) -> VfsResult<()> {
        Err(FsError::NotSupported)
    }

    fn removexattr(&self, _: InodeNo, _: &[u8]) -> VfsResult<()> {
        Err(FsError::NotSupported)
    }

    fn destroy(&self) -> VfsResult<()> {
        Ok(())
    }
}
