//! An inode in memory, and the rules that change its attributes.

use std::collections::{BTreeMap, HashMap};

use cairn_platform_api::{
    Attributes, Caller, FileKind, FsError, InodeNo, Permissions, SetAttributes, SetTime, Timestamp, VfsName, VfsResult,
    Xattrs,
};
use parking_lot::RwLock;

use crate::pages::{Pages, Space};

const SET_USER_ID: u16 = 0o4000;
const SET_GROUP_ID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;
/// Linux keeps file capabilities here; they fall with the set-id bits.
const CAPABILITIES: &[u8] = b"security.capability";
/// An access time older than this is renewed by a read (the kernel's `relatime`).
const ACCESS_TIME_STALE_NANOS: i64 = 24 * 3600 * 1_000_000_000;

/// An inode. The lock guards everything about it; see the crate documentation for the order of locks.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) ino: InodeNo,
    pub(crate) kind: FileKind,
    pub(crate) state: RwLock<State>,
}

/// What can change about an inode.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    pub(crate) nlink: u32,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    pub(crate) btime: Timestamp,
    pub(crate) xattrs: Xattrs,
    /// Handles that are open: the inode outlives its last name as long as there is one.
    pub(crate) handles: u32,
    /// The kernel took the last name away and has not let go of the inode.
    pub(crate) kept: bool,
    pub(crate) body: Body,
}

/// What the inode holds.
#[derive(Debug)]
pub(crate) enum Body {
    Regular(Pages),
    Directory(Directory),
    Symlink(Vec<u8>),
    Special,
}

/// The entries of a directory. Each has a cookie, its place in the order of `readdir`, which it keeps while the name
/// exists, whatever it names.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) parent: InodeNo,
    names: HashMap<VfsName, u64>,
    entries: BTreeMap<u64, Entry>,
    next_cookie: u64,
}

/// A directory entry.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: VfsName,
    pub(crate) ino: InodeNo,
    pub(crate) kind: FileKind,
}

/// Cookies 1 and 2 stand after `.` and `..`.
const FIRST_COOKIE: u64 = 3;

impl Directory {
    pub(crate) fn new(parent: InodeNo) -> Self {
        Self { parent, names: HashMap::new(), entries: BTreeMap::new(), next_cookie: FIRST_COOKIE }
    }

    pub(crate) fn get(&self, name: &VfsName) -> Option<&Entry> {
        self.names.get(name).and_then(|cookie| self.entries.get(cookie))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The cookie that the next new name will have: names of now are below it.
    pub(crate) fn next_cookie(&self) -> u64 {
        self.next_cookie
    }

    /// The entries after `offset` and below `limit`.
    pub(crate) fn range(&self, offset: u64, limit: u64) -> impl Iterator<Item = (u64, &Entry)> {
        let start = offset.saturating_add(1).clamp(FIRST_COOKIE, limit.max(FIRST_COOKIE));
        self.entries.range(start..limit.max(start)).map(|(cookie, entry)| (*cookie, entry))
    }

    /// Makes the name mean this inode, whether it was there or not.
    pub(crate) fn set(&mut self, name: &VfsName, ino: InodeNo, kind: FileKind) {
        let cookie = *self.names.entry(name.clone()).or_insert(self.next_cookie);
        self.next_cookie = self.next_cookie.max(cookie + 1);
        self.entries.insert(cookie, Entry { name: name.clone(), ino, kind });
    }

    pub(crate) fn remove(&mut self, name: &VfsName) {
        if let Some(cookie) = self.names.remove(name) {
            self.entries.remove(&cookie);
        }
    }
}

impl Node {
    pub(crate) fn new(ino: InodeNo, kind: FileKind, owner: (u32, u32), mode: u16, body: Body) -> Self {
        let now = Timestamp::now();
        let nlink = if kind == FileKind::Directory { 2 } else { 1 };
        let state = State {
            mode: mode & 0o7777,
            uid: owner.0,
            gid: owner.1,
            rdev: 0,
            nlink,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            xattrs: Xattrs::new(),
            handles: 0,
            kept: false,
            body,
        };
        Self { ino, kind, state: RwLock::new(state) }
    }

    pub(crate) fn attributes(&self, state: &State) -> Attributes {
        let (size, blocks) = match &state.body {
            Body::Regular(pages) => (pages.size(), pages.blocks()),
            Body::Directory(_) => (4096, 8),
            Body::Symlink(target) => (target.len() as u64, 0),
            Body::Special => (0, 0),
        };
        Attributes {
            ino: self.ino,
            kind: self.kind,
            mode: state.mode,
            nlink: state.nlink,
            uid: state.uid,
            gid: state.gid,
            rdev: state.rdev,
            size,
            blocks,
            atime: state.atime,
            mtime: state.mtime,
            ctime: state.ctime,
            btime: state.btime,
        }
    }
}

impl State {
    pub(crate) fn is_unused(&self) -> bool {
        self.nlink == 0 && self.handles == 0 && !self.kept
    }

    pub(crate) fn directory(&self) -> VfsResult<&Directory> {
        match &self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(FsError::NotADirectory),
        }
    }

    /// The entries of a directory that can still be added to.
    pub(crate) fn directory_mut(&mut self) -> VfsResult<&mut Directory> {
        match &mut self.body {
            Body::Directory(_) if self.nlink == 0 => Err(FsError::NotFound),
            Body::Directory(directory) => Ok(directory),
            _ => Err(FsError::NotADirectory),
        }
    }

    pub(crate) fn pages(&self) -> VfsResult<&Pages> {
        match &self.body {
            Body::Regular(pages) => Ok(pages),
            Body::Directory(_) => Err(FsError::IsADirectory),
            Body::Symlink(_) | Body::Special => Err(FsError::Invalid),
        }
    }

    pub(crate) fn pages_mut(&mut self) -> VfsResult<&mut Pages> {
        match &mut self.body {
            Body::Regular(pages) => Ok(pages),
            Body::Directory(_) => Err(FsError::IsADirectory),
            Body::Symlink(_) | Body::Special => Err(FsError::Invalid),
        }
    }

    /// Content or entries changed.
    pub(crate) fn touch_modified(&mut self) {
        self.mtime = Timestamp::now();
        self.ctime = self.mtime;
    }

    /// Only attributes or the number of names changed.
    pub(crate) fn touch_changed(&mut self) {
        self.ctime = Timestamp::now();
    }

    /// The access time a read sets now, if it sets one.
    pub(crate) fn access_time_due(&self) -> Option<Timestamp> {
        let now = Timestamp::now();
        let stale = self.atime <= self.mtime
            || self.atime <= self.ctime
            || now.as_nanos().saturating_sub(self.atime.as_nanos()) > ACCESS_TIME_STALE_NANOS;
        stale.then_some(now)
    }

    /// What a change of content or owner does to set-user-id and set-group-id. Without group execute the latter once
    /// meant mandatory locking, and stays.
    pub(crate) fn clear_set_id(&mut self) {
        self.mode &= !SET_USER_ID;
        if self.mode & GROUP_EXECUTE != 0 {
            self.mode &= !SET_GROUP_ID;
        }
    }

    pub(crate) fn drop_capabilities(&mut self) {
        if !self.xattrs.is_empty() {
            self.xattrs.remove(CAPABILITIES);
        }
    }

    /// What goes together in an inode of this kind.
    pub(crate) fn permissions(&mut self, kind: FileKind) -> Permissions<'_> {
        Permissions { kind, mode: &mut self.mode, xattrs: &mut self.xattrs }
    }

    /// What something made in the directory `from` gets from it.
    pub(crate) fn inherit(&mut self, from: &Self, caller: Caller, kind: FileKind) {
        if from.mode & SET_GROUP_ID != 0 {
            self.gid = from.gid;
            if kind == FileKind::Directory {
                self.mode |= SET_GROUP_ID;
            }
        }
        self.permissions(kind).inherit(&from.xattrs, caller.umask);
    }

    pub(crate) fn set_attributes(
        &mut self,
        space: &Space,
        caller: Caller,
        kind: FileKind,
        set: SetAttributes,
    ) -> VfsResult<()> {
        let now = Timestamp::now();
        if let Some(size) = set.size {
            self.pages_mut()?.set_size(space, size)?;
            self.mtime = now;
            self.drop_capabilities();
            if caller.uid != 0 {
                self.clear_set_id();
            }
        }
        if set.uid.is_some() || set.gid.is_some() {
            self.uid = set.uid.unwrap_or(self.uid);
            self.gid = set.gid.unwrap_or(self.gid);
            if !matches!(self.body, Body::Directory(_)) {
                self.clear_set_id();
                self.drop_capabilities();
            }
        }
        if let Some(mode) = set.mode {
            self.permissions(kind).set_mode(mode & 0o7777);
        }
        let time = |set: SetTime| match set {
            SetTime::At(time) => time,
            SetTime::Now => now,
        };
        self.atime = set.atime.map_or(self.atime, time);
        self.mtime = set.mtime.map_or(self.mtime, time);
        self.ctime = now;
        Ok(())
    }
}
