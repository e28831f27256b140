//! A [`Vfs`] that keeps names and attributes in memory and contents in files, which it offers to the kernel: for
//! testing the driver by itself: its passthrough, answers that come late, and announcements.

use std::collections::HashMap;
use std::fs::{File, FileTimes};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use cairn_platform_api::*;
use cairn_platform_memory::MemoryFs;
use rustix::fs::{FallocateFlags, SeekFrom};
use tempfile::TempDir;
use tokio::sync::Semaphore;

pub struct BackedFs {
    contents: TempDir,
    files: Mutex<HashMap<HandleNo, (InodeNo, Arc<File>)>>,
    served: AtomicU64,
    /// Whether files are offered to the kernel.
    pub offers: AtomicBool,
    /// Each read takes a permit for a moment, so with none left reads wait.
    pub reads: Arc<Semaphore>,
    pub notifier: OnceLock<Arc<dyn Notifier>>,
    pub destroyed: AtomicBool,
    pub memory: MemoryFs,
}

fn error(error: rustix::io::Errno) -> FsError {
    match error {
        rustix::io::Errno::NXIO => FsError::NoOffset,
        rustix::io::Errno::INVAL => FsError::Invalid,
        _ => FsError::Io,
    }
}

impl BackedFs {
    pub fn new(memory: MemoryFs) -> Self {
        let contents = tempfile::Builder::new().prefix("cairn-contents-").tempdir().unwrap();
        Self {
            memory,
            contents,
            files: Mutex::default(),
            served: AtomicU64::new(0),
            offers: AtomicBool::new(true),
            reads: Arc::new(Semaphore::new(1000)),
            notifier: OnceLock::new(),
            destroyed: AtomicBool::new(false),
        }
    }

    /// Reads and writes that came through the driver.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    pub fn content(&self, ino: InodeNo) -> Arc<File> {
        let path = self.contents.path().join(ino.0.to_string());
        Arc::new(File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap())
    }

    /// Gives an inode another content, as a merge does: who has it open goes on with the old one.
    pub fn replace(&self, ino: InodeNo, content: &[u8]) {
        let path = self.contents.path().join(ino.0.to_string());
        let new = path.with_extension("new");
        std::fs::write(&new, content).unwrap();
        std::fs::rename(&new, &path).unwrap();
        self.notifier.get().unwrap().inode_changed(ino);
    }

    fn file(&self, handle: HandleNo) -> VfsResult<(InodeNo, Arc<File>)> {
        self.files.lock().unwrap().get(&handle).cloned().ok_or(FsError::BadHandle)
    }

    /// Replaces what the backing file knows better.
    fn attributes(&self, attributes: Attributes) -> VfsResult<Attributes> {
        let path = self.contents.path().join(attributes.ino.0.to_string());
        let (FileKind::Regular, Ok(meta)) = (attributes.kind, path.metadata()) else { return Ok(attributes) };
        Ok(Attributes {
            size: meta.len(),
            blocks: meta.blocks(),
            atime: Timestamp::from_parts(meta.atime(), meta.atime_nsec() as u32),
            mtime: Timestamp::from_parts(meta.mtime(), meta.mtime_nsec() as u32),
            ctime: attributes.ctime.max(Timestamp::from_parts(meta.ctime(), meta.ctime_nsec() as u32)),
            ..attributes
        })
    }

    fn opened(&self, ino: InodeNo, mode: OpenMode, handle: HandleNo) -> Opened {
        let file = self.content(ino);
        if mode.truncate {
            file.set_len(0).unwrap();
        }
        self.files.lock().unwrap().insert(handle, (ino, file.clone()));
        Opened { handle, backing: Some(file).filter(|_| self.offers.load(Ordering::Relaxed)) }
    }
}

/// The caller of what the driver does not say by whom.
const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };

impl Vfs for BackedFs {
    fn attach(&self, notifier: Arc<dyn Notifier>) {
        assert!(self.notifier.set(notifier.clone()).is_ok());
        self.memory.attach(notifier);
    }
    fn lookup(&self, parent: InodeNo, name: &VfsName) -> VfsResult<Attributes> {
        self.attributes(self.memory.lookup(parent, name)?)
    }
    fn forget(&self, ino: InodeNo) {
        self.memory.forget(ino);
    }
    fn getattr(&self, ino: InodeNo, handle: Option<HandleNo>) -> VfsResult<Attributes> {
        self.attributes(self.memory.getattr(ino, handle)?)
    }
    fn setattr(
        &self,
        caller: Caller,
        ino: InodeNo,
        handle: Option<HandleNo>,
        set: SetAttributes,
    ) -> Answer<Attributes> {
        let result = self.memory.setattr(caller, ino, handle, set).wait().and_then(|attributes| {
            if attributes.kind == FileKind::Regular {
                let content = self.content(ino);
                if let Some(size) = set.size {
                    content.set_len(size)?;
                }
                let time = |set| match set {
                    SetTime::Now => SystemTime::now(),
                    SetTime::At(time) => {
                        let nanos = std::time::Duration::from_nanos(time.as_nanos().unsigned_abs());
                        if time.as_nanos() < 0 {
                            SystemTime::UNIX_EPOCH - nanos
                        } else {
                            SystemTime::UNIX_EPOCH + nanos
                        }
                    }
                };
                let mut times = FileTimes::new();
                times = set.atime.map_or(times, |at| times.set_accessed(time(at)));
                times = set.mtime.map_or(times, |at| times.set_modified(time(at)));
                content.set_times(times)?;
            }
            self.attributes(attributes)
        });
        result.into()
    }
    fn readlink(&self, ino: InodeNo) -> VfsResult<Vec<u8>> {
        self.memory.readlink(ino)
    }
    fn mknod(&self, caller: Caller, parent: InodeNo, name: &VfsName, node: NewNode) -> VfsResult<Attributes> {
        self.memory.mknod(caller, parent, name, node)
    }
    fn mkdir(&self, caller: Caller, parent: InodeNo, name: &VfsName, mode: u16) -> VfsResult<Attributes> {
        self.memory.mkdir(caller, parent, name, mode)
    }
    fn symlink(&self, caller: Caller, parent: InodeNo, name: &VfsName, target: &[u8]) -> VfsResult<Attributes> {
        self.memory.symlink(caller, parent, name, target)
    }
    fn link(&self, ino: InodeNo, parent: InodeNo, name: &VfsName) -> VfsResult<Attributes> {
        self.attributes(self.memory.link(ino, parent, name)?)
    }
    fn unlink(&self, parent: InodeNo, name: &VfsName) -> VfsResult<()> {
        self.memory.unlink(parent, name)
    }
    fn rmdir(&self, parent: InodeNo, name: &VfsName) -> VfsResult<()> {
        self.memory.rmdir(parent, name)
    }
    fn rename(
        &self,
        parent: InodeNo,
        name: &VfsName,
        new_parent: InodeNo,
        new_name: &VfsName,
        mode: RenameMode,
    ) -> VfsResult<()> {
        self.memory.rename(parent, name, new_parent, new_name, mode)
    }
    fn open(&self, caller: Caller, ino: InodeNo, mode: OpenMode) -> Answer<Opened> {
        // Later, so that this way is tested too.
        let opened = self.memory.open(caller, ino, mode).wait();
        let opened = opened.map(|opened| self.opened(ino, mode, opened.handle));
        Answer::Later(Box::pin(std::future::ready(opened)))
    }
    fn create(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &VfsName,
        mode: u16,
        open: OpenMode,
    ) -> VfsResult<(Attributes, Opened)> {
        let (attributes, opened) = self.memory.create(caller, parent, name, mode, open)?;
        Ok((attributes, self.opened(attributes.ino, open, opened.handle)))
    }
    fn read(&self, handle: HandleNo, offset: u64, length: u32) -> ReadAnswer {
        self.served.fetch_add(1, Ordering::Relaxed);
        let read = self.file(handle).and_then(|(_, file)| {
            let mut bytes = vec![0; length as usize];
            let mut filled = 0;
            while filled < bytes.len() {
                match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
                    0 => break,
                    more => filled += more,
                }
            }
            bytes.truncate(filled);
            Ok(bytes)
        });
        let reads = self.reads.clone();
        Answer::Later(Box::pin(async move {
            let _permit = reads.acquire_owned().await.map_err(|_| FsError::Io)?;
            read
        }))
    }
    fn write(&self, handle: HandleNo, offset: u64, data: &[u8], set_id: SetIdBits) -> Answer<u32> {
        self.served.fetch_add(1, Ordering::Relaxed);
        let written = self.file(handle).and_then(|(ino, file)| {
            if set_id == SetIdBits::Clear {
                let mode = self.memory.getattr(ino, None)?.mode;
                let cleared = if mode & 0o010 == 0 { mode & !0o4000 } else { mode & !0o6000 };
                let set = SetAttributes { mode: Some(cleared), ..SetAttributes::default() };
                self.memory.setattr(ROOT, ino, None, set).wait()?;
            }
            file.write_all_at(data, offset)?;
            // Most files have none.
            let _ = self.memory.removexattr(ino, b"security.capability");
            Ok(data.len() as u32)
        });
        written.into()
    }
    fn flush(&self, _handle: HandleNo) -> VfsResult<()> {
        Ok(())
    }
    fn release(&self, handle: HandleNo) {
        self.files.lock().unwrap().remove(&handle);
        self.memory.release(handle);
    }
    fn is_replaced(&self, handle: HandleNo) -> bool {
        let Ok((ino, file)) = self.file(handle) else { return false };
        file.metadata().unwrap().ino() != self.content(ino).metadata().unwrap().ino()
    }
    fn fsync(&self, handle: HandleNo, _scope: SyncScope) -> Answer<()> {
        Answer::Later(Box::pin(std::future::ready(self.file(handle).map(|_| ()))))
    }
    fn fallocate(&self, handle: HandleNo, offset: u64, length: u64, how: Allocate) -> Answer<()> {
        let flags = match how {
            Allocate::Extend => FallocateFlags::empty(),
            Allocate::KeepSize => FallocateFlags::KEEP_SIZE,
            Allocate::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Allocate::ZeroRange => FallocateFlags::ZERO_RANGE,
            Allocate::ZeroRangeKeepSize => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        };
        let done =
            self.file(handle).and_then(|(_, file)| rustix::fs::fallocate(&file, flags, offset, length).map_err(error));
        done.into()
    }
    fn lseek(&self, handle: HandleNo, offset: u64, to: SeekTo) -> VfsResult<u64> {
        let to = match to {
            SeekTo::Data => SeekFrom::Data(offset),
            SeekTo::Hole => SeekFrom::Hole(offset),
        };
        rustix::fs::seek(&self.file(handle)?.1, to).map_err(error)
    }
    fn copy_file_range(
        &self,
        from: HandleNo,
        mut from_offset: u64,
        to: HandleNo,
        mut to_offset: u64,
        length: u64,
    ) -> Answer<u64> {
        let copied = self.file(from).and_then(|(_, from)| {
            let (_, to) = self.file(to)?;
            let copied =
                rustix::fs::copy_file_range(&from, Some(&mut from_offset), &to, Some(&mut to_offset), length as usize);
            copied.map(|copied| copied as u64).map_err(error)
        });
        copied.into()
    }
    fn opendir(&self, ino: InodeNo) -> VfsResult<HandleNo> {
        self.memory.opendir(ino)
    }
    fn readdir(
        &self,
        handle: HandleNo,
        offset: u64,
        detail: DirectoryDetail,
        sink: &mut DirectorySink<'_>,
    ) -> VfsResult<()> {
        self.memory.readdir(handle, offset, detail, &mut |entry| {
            let attributes = entry.attributes.and_then(|attributes| self.attributes(attributes).ok());
            sink(DirectoryEntry { attributes, ..entry })
        })
    }
    fn releasedir(&self, handle: HandleNo) {
        self.memory.releasedir(handle);
    }
    fn fsyncdir(&self, handle: HandleNo) -> Answer<()> {
        self.memory.fsyncdir(handle)
    }
    fn statfs(&self) -> VfsResult<FsStatistics> {
        self.memory.statfs()
    }
    fn getxattr(&self, ino: InodeNo, name: &[u8]) -> VfsResult<Vec<u8>> {
        self.memory.getxattr(ino, name)
    }
    fn listxattr(&self, ino: InodeNo) -> VfsResult<Vec<Vec<u8>>> {
        self.memory.listxattr(ino)
    }
    fn setxattr(&self, ino: InodeNo, name: &[u8], value: &[u8], mode: SetXattrMode) -> VfsResult<()> {
        self.memory.setxattr(ino, name, value, mode)
    }
    fn removexattr(&self, ino: InodeNo, name: &[u8]) -> VfsResult<()> {
        self.memory.removexattr(ino, name)
    }
    fn destroy(&self) -> VfsResult<()> {
        self.destroyed.store(true, Ordering::Relaxed);
        Err(FsError::Io)
    }
}
