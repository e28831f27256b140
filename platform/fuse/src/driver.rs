//! The FUSE operations: decode, call the [`Vfs`], encode.

use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use cairn_platform_api::{
    Answer, DirectoryDetail, FileKind, FsError, HandleNo, NewNode, SetAttributes, SetIdBits, SyncScope, Vfs, VfsResult,
};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use crate::Passthrough;
use crate::convert::{self, file_attr};
use crate::errno::errno;
use crate::interrupts::{Signals, Waiting};
use crate::known::KnownInodes;
use crate::open_inodes::OpenInodes;
use crate::replies::{GENERATION, Shared, empty, intent, xattr};

/// How long "no such name" is kept: long enough for a compiler's search along its include path.
const KEEP_ABSENCE: Duration = Duration::from_secs(1);
/// The largest write request: the most pages the kernel puts into one without being configured otherwise.
const MAX_WRITE: u32 = 1 << 20;
/// Requests in the background (read-ahead, write-back) at a time; the kernel's default of 12 starves fast disks.
const MAX_BACKGROUND: u16 = 64;
/// From here on the kernel holds back read-ahead.
const CONGESTION: u16 = 48;
/// Backing files may lie on a plain file system, and the mount may be a layer of an overlay.
const STACK_DEPTH: u32 = 1;

/// What is wanted of the kernel, where it offers it. Locks are not: it keeps them itself, as one host mounts the drive.
/// With `HANDLE_KILLPRIV_V2` clearing set-id bits is ours, and the kernel need not ask for `security.capability`
/// before each write. With `POSIX_ACL` it checks the lists that we keep; with `DONT_MASK` it tells the umask and leaves
/// applying it to us, who know whether the directory has a default list.
const WANTED: [InitFlags; 10] = [
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
];

/// The file system as fuser drives it.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    passthrough: Passthrough,
    ended: Box<dyn FnOnce(VfsResult<()>) + Send + Sync>,
}

impl Driver {
    /// `kernel` is filled in before the first request; `ended` is called with what [`Vfs::destroy`] says.
    pub(crate) fn new(
        vfs: Arc<dyn Vfs>,
        passthrough: Passthrough,
        runtime: Handle,
        kernel: Arc<OnceLock<fuser::Notifier>>,
        ended: Box<dyn FnOnce(VfsResult<()>) + Send + Sync>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared { vfs, known: KnownInodes::new(), inodes: OpenInodes::new(), kernel, runtime }),
            passthrough,
            ended,
        }
    }

    /// As [`Self::deliver`], where a signal ends the wait.
    fn deliver_unless<T: Send + 'static>(
        &self,
        (request, signals): (&Request, Signals),
        answer: Answer<T>,
        reply: impl FnOnce(VfsResult<T>) + Send + 'static,
    ) {
        let waiting = Waiting { thread: request.pid(), signals };
        let answer = match answer {
            Answer::Now(result) => Answer::Now(result),
            Answer::Later(future) => Answer::Later(Box::pin(waiting.for_answer(future))),
        };
        self.deliver(answer, reply);
    }

    /// Replies now, or off this thread when the answer is there.
    fn deliver<T: 'static>(&self, answer: Answer<T>, reply: impl FnOnce(VfsResult<T>) + Send + 'static) {
        match answer {
            Answer::Now(result) => reply(result),
            Answer::Later(future) => drop(self.shared.runtime.spawn(async move { reply(future.await) })),
        }
    }
}

impl Filesystem for Driver {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in WANTED {
            if config.add_capabilities(wanted).is_err() {
                tracing::debug!(?wanted, "the kernel does not offer this");
            }
        }
        if self.passthrough == Passthrough::Auto
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH).is_ok()
        {
            self.shared.inodes.allow_passthrough();
        }
        config.set_max_write(MAX_WRITE).expect("fuser takes up to 16 MiB");
        config.set_max_background(MAX_BACKGROUND).expect("it is not zero");
        config.set_congestion_threshold(CONGESTION).expect("it is not zero");
        Ok(())
    }

    fn destroy(&mut self) {
        let ended = std::mem::replace(&mut self.ended, Box::new(|_| ()));
        ended(self.shared.vfs.destroy());
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let result = convert::name(name).and_then(|name| self.shared.vfs.lookup(convert::inode(parent), &name));
        if result == Err(FsError::NotFound) {
            let absent = convert::bare_attr(0, FileKind::Regular);
            return reply.entry_with_ttls(&Duration::ZERO, &KEEP_ABSENCE, &absent, GENERATION);
        }
        self.shared.entry(reply, result);
    }

    fn forget(&self, _request: &Request, ino: INodeNo, times: u64) {
        let shared = &self.shared;
        shared.known.forget(ino.0, times, || {
            shared.inodes.forget(ino.0);
            shared.vfs.forget(convert::inode(ino));
        });
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let handle = handle.map(|handle| HandleNo(handle.0));
        self.shared.attr(reply, self.shared.vfs.getattr(convert::inode(ino), handle));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttributes {
            mode: mode.map(convert::permissions),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        let handle = handle.map(|handle| HandleNo(handle.0));
        let shared = self.shared.clone();
        let answer = self.shared.vfs.setattr(convert::caller(request), convert::inode(ino), handle, set);
        self.deliver_unless((request, Signals::Any), answer, move |result| shared.attr(reply, result));
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.shared.vfs.readlink(convert::inode(ino)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let made = convert::name(name).and_then(|name| {
            let node = NewNode { kind: convert::kind_of_mode(mode)?, mode: convert::permissions(mode), rdev };
            self.shared.vfs.mknod(convert::maker(request, umask), convert::inode(parent), &name, node)
        });
        self.shared.entry(reply, made);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let made = convert::name(name).and_then(|name| {
            let mode = convert::permissions(mode);
            self.shared.vfs.mkdir(convert::maker(request, umask), convert::inode(parent), &name, mode)
        });
        self.shared.entry(reply, made);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, convert::name(name).and_then(|name| self.shared.vfs.unlink(convert::inode(parent), &name)));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, convert::name(name).and_then(|name| self.shared.vfs.rmdir(convert::inode(parent), &name)));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let made = convert::name(name)
            .and_then(|name| self.shared.vfs.symlink(convert::caller(request), convert::inode(parent), &name, target));
        self.shared.entry(reply, made);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let moved = convert::rename_mode(flags).and_then(|mode| {
            let (name, new_name) = (convert::name(name)?, convert::name(new_name)?);
            self.shared.vfs.rename(convert::inode(parent), &name, convert::inode(new_parent), &new_name, mode)
        });
        empty(reply, moved);
    }

    fn link(&self, _request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let linked = convert::name(name)
            .and_then(|name| self.shared.vfs.link(convert::inode(ino), convert::inode(parent), &name));
        self.shared.entry(reply, linked);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let caller = convert::caller(request);
        if self.shared.refuses(ino.0, intent(flags)) {
            return reply.error(errno(FsError::Busy));
        }
        let answer = self.shared.vfs.open(caller, convert::inode(ino), convert::open_mode(flags));
        let shared = self.shared.clone();
        self.deliver_unless((request, Signals::Any), answer, move |result| {
            shared.opened(reply, caller, ino.0, intent(flags), result);
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (caller, parent, flags) = (convert::maker(request, umask), convert::inode(parent), OpenFlags(flags));
        let name = match convert::name(name) {
            Ok(name) => name,
            Err(error) => return reply.error(errno(error)),
        };
        let open = convert::open_mode(flags);
        let created = self.shared.vfs.create(caller, parent, &name, convert::permissions(mode), open);
        if matches!(created, Err(FsError::Exists)) && flags.0 & libc::O_EXCL == 0 {
            // It came up after the kernel had found nothing.
            let found = match self.shared.vfs.lookup(parent, &name) {
                Ok(found) => found,
                Err(error) => return reply.error(errno(error)),
            };
            let shared = self.shared.clone();
            let answer = self.shared.vfs.open(caller, found.ino, open);
            return self.deliver_unless((request, Signals::Any), answer, move |result| {
                shared.created(reply, caller, intent(flags), result.map(|opened| (found, opened)));
            });
        }
        self.shared.created(reply, caller, intent(flags), created);
    }

    fn read(
        &self,
        request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let answer = self.shared.vfs.read(HandleNo(handle.0), offset, size);
        self.deliver_unless((request, Signals::Kill), answer, |result| match result {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let set_id =
            if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) { SetIdBits::Clear } else { SetIdBits::Keep };
        self.deliver(self.shared.vfs.write(HandleNo(handle.0), offset, data, set_id), |result| match result {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        empty(reply, self.shared.vfs.flush(HandleNo(handle.0)));
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.shared.inodes.leave((ino.0, handle.0), intent(flags), |handle| self.shared.is_replaced(handle));
        self.shared.vfs.release(HandleNo(handle.0));
        reply.ok();
    }

    fn fsync(&self, request: &Request, _ino: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let scope = if data_only { SyncScope::Data } else { SyncScope::All };
        let answer = self.shared.vfs.fsync(HandleNo(handle.0), scope);
        self.deliver_unless((request, Signals::Ending), answer, |result| empty(reply, result));
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.shared.vfs.opendir(convert::inode(ino)) {
            Ok(handle) => reply.opened(FileHandle(handle.0), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.shared.vfs.readdir(HandleNo(handle.0), offset, DirectoryDetail::Names, &mut |entry| {
            let kind = convert::file_type(entry.kind);
            full(reply.add(INodeNo(entry.ino.0), entry.next, kind, OsStr::from_bytes(entry.name)))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let shared = &self.shared;
        let mut told = Vec::new();
        let listed = shared.vfs.readdir(HandleNo(handle.0), offset, DirectoryDetail::Attributes, &mut |entry| {
            let (keep, attr) = match &entry.attributes {
                Some(attributes) => (shared.inodes.keep_attributes(entry.ino.0), file_attr(attributes)),
                None => (Duration::ZERO, convert::bare_attr(entry.ino.0, entry.kind)),
            };
            let name = OsStr::from_bytes(entry.name);
            let is_full = reply.add(INodeNo(entry.ino.0), entry.next, name, &keep, &attr, GENERATION);
            // Of the directory itself and the one above the kernel takes no more than the number.
            if !is_full && !matches!(entry.name, b"." | b"..") {
                told.push(entry.ino.0);
            }
            full(is_full)
        });
        match listed {
            Ok(()) => {
                // Not while the file system handed them out: it may hold locks then that `Vfs::forget` takes.
                told.into_iter().for_each(|ino| shared.known.tell(ino));
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.shared.vfs.releasedir(HandleNo(handle.0));
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, _ino: INodeNo, handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        let answer = self.shared.vfs.fsyncdir(HandleNo(handle.0));
        self.deliver_unless((request, Signals::Ending), answer, |result| empty(reply, result));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.shared.vfs.statfs() {
            Ok(s) => reply.statfs(
                s.blocks,
                s.blocks_free,
                s.blocks_available,
                s.inodes,
                s.inodes_free,
                s.block_size,
                convert::NAME_LENGTH,
                s.block_size,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let set = convert::xattr_mode(flags)
            .and_then(|mode| self.shared.vfs.setxattr(convert::inode(ino), name.as_bytes(), value, mode));
        empty(reply, set);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        xattr(reply, size, self.shared.vfs.getxattr(convert::inode(ino), name.as_bytes()));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let mut names = self.shared.vfs.listxattr(convert::inode(ino));
        // Reading and setting them the kernel checks by itself; what it shows of a FUSE mount is the whole list.
        if let (Ok(names), true) = (&mut names, request.uid() != 0) {
            names.retain(|name| !name.starts_with(b"trusted."));
        }
        let list = names.map(|names| names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect());
        xattr(reply, size, list);
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.shared.vfs.removexattr(convert::inode(ino), name.as_bytes()));
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        match convert::allocate(mode) {
            Ok(how) => self.deliver(self.shared.vfs.fallocate(HandleNo(handle.0), offset, length, how), |result| {
                empty(reply, result)
            }),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let found = convert::seek_to(whence).and_then(|to| {
            let offset = u64::try_from(offset).map_err(|_| FsError::NoOffset)?;
            let found = self.shared.vfs.lseek(HandleNo(handle.0), offset, to)?;
            i64::try_from(found).map_err(|_| FsError::TooLarge)
        });
        match found {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _from_ino: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _to_ino: INodeNo,
        to: FileHandle,
        to_offset: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The reply has 32 bits for the count.
        let length = length.min(u64::from(u32::MAX));
        let answer = self.shared.vfs.copy_file_range(HandleNo(from.0), from_offset, HandleNo(to.0), to_offset, length);
        self.deliver(answer, |result| match result {
            Ok(copied) => reply.written(u32::try_from(copied).expect("no more is copied than was asked for")),
            Err(error) => reply.error(errno(error)),
        });
    }
}

fn full(full: bool) -> ControlFlow<()> {
    if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
