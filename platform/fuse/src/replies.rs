//! Replies: how results become answers to the kernel, and what is counted on the way.

use std::fs::File;
use std::io;
use std::sync::{Arc, OnceLock};

use cairn_platform_api::{
    Answer, Attributes, Caller, FsError, HandleNo, InodeNo, Opened, SetAttributes, Vfs, VfsResult,
};
use fuser::{
    FileHandle, FopenFlags, Generation, INodeNo, OpenFlags, ReplyAttr, ReplyCreate, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyXattr,
};
use tokio::runtime::Handle;

use crate::convert::{self, file_attr};
use crate::errno::errno;
use crate::known::KnownInodes;
use crate::open_inodes::{Intent, KEEP, OpenInodes, Pages, Refused, Way};

/// Inode numbers are never used twice, so one generation does.
pub(crate) const GENERATION: Generation = Generation(0);

const SET_USER_ID: u16 = 0o4000;
const SET_GROUP_ID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;
/// Linux keeps file capabilities here; they fall with a change of content.
const CAPABILITIES: &[u8] = b"security.capability";

/// What answers that come later need too.
pub(crate) struct Shared {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) known: KnownInodes,
    pub(crate) inodes: OpenInodes,
    pub(crate) kernel: Arc<OnceLock<fuser::Notifier>>,
    pub(crate) runtime: Handle,
}

impl Shared {
    /// Decides how a new handle does its input and output.
    fn enter(
        &self,
        caller: Caller,
        ino: u64,
        intent: Intent,
        opened: &Opened,
        register: impl Register,
    ) -> Result<Way, Refused> {
        let (set_id, capable) = match (&opened.backing, intent) {
            (Some(_), Intent::Write | Intent::ReadWrite) => {
                (self.set_id_mode(ino, opened.handle), self.is_capable(ino))
            }
            _ => (None, false),
        };
        // The kernel takes no privileges away on writes to a backing file, so these writes had better come through us.
        let file = opened.backing.as_deref().filter(|_| set_id.is_none() && !capable);
        let handle = opened.handle.0;
        let way = self.inodes.enter(
            (ino, handle),
            intent,
            file,
            |old| self.is_replaced(old),
            |file| register.register(file),
        )?;
        // They cannot, as others have it open: then the privileges go now, as with the first write.
        let cleared = match set_id {
            Some(mode) if way.backing.is_some() && caller.uid != 0 => self.clear_set_id(ino, mode),
            _ => false,
        };
        let cleared = cleared | (capable && way.backing.is_some() && self.drop_capabilities(ino));
        if let (true, Some(kernel)) = (way.forget_attributes || cleared, self.kernel.get()) {
            // A negative offset leaves pages alone, so this waits for nothing. The kernel not knowing the inode is fine.
            let _ = kernel.inval_inode(INodeNo(ino), -1, 0);
        }
        Ok(way)
    }

    /// Whether a handle reads a content that is not its inode's any more.
    pub(crate) fn is_replaced(&self, handle: u64) -> bool {
        self.vfs.is_replaced(HandleNo(handle))
    }

    /// Whether an open would be refused, asked before it can truncate.
    pub(crate) fn refuses(&self, ino: u64, intent: Intent) -> bool {
        self.inodes.refuses(ino, intent, |old| self.is_replaced(old))
    }

    /// The mode of an inode that has set-id bits.
    fn set_id_mode(&self, ino: u64, handle: HandleNo) -> Option<u16> {
        let attributes = self.vfs.getattr(InodeNo(ino), Some(handle)).ok()?;
        (attributes.mode & (SET_USER_ID | SET_GROUP_ID) != 0).then_some(attributes.mode)
    }

    fn is_capable(&self, ino: u64) -> bool {
        self.vfs.getxattr(InodeNo(ino), CAPABILITIES).is_ok()
    }

    fn drop_capabilities(&self, ino: u64) -> bool {
        self.vfs.removexattr(InodeNo(ino), CAPABILITIES).is_ok()
    }

    fn clear_set_id(&self, ino: u64, mode: u16) -> bool {
        let group = if mode & GROUP_EXECUTE == 0 { 0 } else { SET_GROUP_ID };
        let set = SetAttributes { mode: Some(mode & !(SET_USER_ID | group)), ..SetAttributes::default() };
        match self.vfs.setattr(Caller { uid: 0, gid: 0, pid: 0, umask: 0 }, InodeNo(ino), None, set) {
            Answer::Now(result) => result.is_ok(),
            Answer::Later(change) => {
                self.runtime.spawn(change);
                true
            }
        }
    }

    pub(crate) fn entry(&self, reply: ReplyEntry, result: VfsResult<Attributes>) {
        match result {
            Ok(attributes) => {
                let keep = self.inodes.keep_attributes(attributes.ino.0);
                self.known.tell(attributes.ino.0);
                reply.entry_with_ttls(&keep, &KEEP, &file_attr(&attributes), GENERATION);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    pub(crate) fn attr(&self, reply: ReplyAttr, result: VfsResult<Attributes>) {
        match result {
            Ok(attributes) => {
                reply.attr(&self.inodes.keep_attributes(attributes.ino.0), &file_attr(&attributes));
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    pub(crate) fn opened(&self, reply: ReplyOpen, caller: Caller, ino: u64, intent: Intent, result: VfsResult<Opened>) {
        let opened = match result {
            Ok(opened) => opened,
            Err(error) => return reply.error(errno(error)),
        };
        let handle = FileHandle(opened.handle.0);
        let Ok(way) = self.enter(caller, ino, intent, &opened, &reply) else {
            self.vfs.release(opened.handle);
            return reply.error(errno(FsError::Busy));
        };
        match way.backing {
            Some(backing) => {
                let bypass = page_flags(way.pages) & FopenFlags::FOPEN_DIRECT_IO;
                reply.opened_passthrough(handle, close_flags(intent) | bypass, &backing);
            }
            None => reply.opened(handle, close_flags(intent) | page_flags(way.pages)),
        }
    }

    pub(crate) fn created(
        &self,
        reply: ReplyCreate,
        caller: Caller,
        intent: Intent,
        result: VfsResult<(Attributes, Opened)>,
    ) {
        let (attributes, opened) = match result {
            Ok(created) => created,
            Err(error) => return reply.error(errno(error)),
        };
        let (handle, attr) = (FileHandle(opened.handle.0), file_attr(&attributes));
        self.known.tell(attributes.ino.0);
        // Both may be kept: as long as the file is empty a mapping cannot change it, and whatever makes it longer has
        // the attributes fetched anew.
        let Ok(way) = self.enter(caller, attributes.ino.0, intent, &opened, &reply) else {
            self.vfs.release(opened.handle);
            return reply.error(errno(FsError::Busy));
        };
        match way.backing {
            Some(backing) => {
                let flags = close_flags(intent) | (page_flags(way.pages) & FopenFlags::FOPEN_DIRECT_IO);
                reply.created_passthrough(&KEEP, &attr, GENERATION, handle, flags, &backing);
            }
            None => reply.created(&KEEP, &attr, GENERATION, handle, close_flags(intent) | page_flags(way.pages)),
        }
    }
}

/// Makes a backing file known to the kernel over the connection of a reply.
trait Register {
    fn register(&self, file: &File) -> io::Result<fuser::BackingId>;
}

impl Register for &ReplyOpen {
    fn register(&self, file: &File) -> io::Result<fuser::BackingId> {
        self.open_backing(file)
    }
}

impl Register for &ReplyCreate {
    fn register(&self, file: &File) -> io::Result<fuser::BackingId> {
        self.open_backing(file)
    }
}

/// Closing what was only read needs no word from us.
fn close_flags(intent: Intent) -> FopenFlags {
    match intent {
        Intent::Read => FopenFlags::FOPEN_NOFLUSH,
        Intent::Write | Intent::ReadWrite => FopenFlags::empty(),
    }
}

fn page_flags(pages: Pages) -> FopenFlags {
    match pages {
        Pages::Keep => FopenFlags::FOPEN_KEEP_CACHE,
        Pages::Drop => FopenFlags::empty(),
        Pages::Bypass => FopenFlags::FOPEN_DIRECT_IO,
    }
}

pub(crate) fn intent(flags: OpenFlags) -> Intent {
    let mode = convert::open_mode(flags);
    match (mode.read, mode.write) {
        (true, true) => Intent::ReadWrite,
        (false, true) => Intent::Write,
        (_, false) => Intent::Read,
    }
}

pub(crate) fn empty(reply: ReplyEmpty, result: VfsResult<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

/// Answers a request for an extended attribute or a list of them: its length, or all of it, or nothing.
pub(crate) fn xattr(reply: ReplyXattr, size: u32, result: VfsResult<Vec<u8>>) {
    match result {
        Err(error) => reply.error(errno(error)),
        Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > size as usize => reply.error(errno(FsError::Range)),
        Ok(bytes) => reply.data(&bytes),
    }
}
