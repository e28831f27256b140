//! Operations on open files and on extended attributes.

use cairn_platform_api::{
    AclKind, Allocate, Attributes, Caller, FileKind, FsError, HandleNo, InodeNo, OpenMode, Opened, SeekTo,
    SetAttributes, SetIdBits, SetXattrMode, VfsName, VfsResult, XATTR_NAME_MAX, XATTR_VALUE_MAX,
};

use crate::node::{Body, State};
use crate::pages::{Pages, SIZE_MAX};
use crate::{Handle, MemoryFs};

/// The most one copy request moves, so that it does not hold its thread for long.
const COPY_MAX: u64 = 16 << 20;
/// The most all names of extended attributes of an inode take (Linux `XATTR_LIST_MAX`).
const XATTR_LIST_MAX: usize = 65536;

impl MemoryFs {
    /// Runs `act` on the state of a file that is open for writing, exclusively.
    fn with_writable<R>(
        &self,
        handle: HandleNo,
        act: impl FnOnce(&mut State, OpenMode) -> VfsResult<R>,
    ) -> VfsResult<R> {
        match &*self.handle(handle)? {
            Handle::File { node, mode } if mode.write => act(&mut node.state.write(), *mode),
            _ => Err(FsError::BadHandle),
        }
    }

    pub(crate) fn open_file(&self, caller: Caller, ino: InodeNo, mode: OpenMode) -> VfsResult<Opened> {
        let node = self.node(ino, FsError::Stale)?;
        let mut state = node.state.write();
        state.pages()?;
        if state.is_unused() {
            return Err(FsError::Stale);
        }
        if mode.truncate {
            let set = SetAttributes { size: Some(0), ..Default::default() };
            state.set_attributes(&self.space, caller, node.kind, set)?;
        }
        let handle = self.keep_open(&mut state, Handle::File { node: node.clone(), mode });
        Ok(Opened { handle, backing: None })
    }

    pub(crate) fn create_file(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &VfsName,
        mode: u16,
        open: OpenMode,
    ) -> VfsResult<(Attributes, Opened)> {
        let body = || Body::Regular(Pages::default());
        let (attributes, handle) =
            self.make(caller, parent, name, (FileKind::Regular, mode), body, |node, state| {
                self.keep_open(state, Handle::File { node: node.clone(), mode: open })
            })?;
        Ok((attributes, Opened { handle, backing: None }))
    }

    pub(crate) fn read_file(&self, handle: HandleNo, offset: u64, length: u32) -> VfsResult<Vec<u8>> {
        let handle = self.handle(handle)?;
        let Handle::File { node, mode: OpenMode { read: true, .. } } = &*handle else {
            return Err(FsError::BadHandle);
        };
        let state = node.state.read();
        let bytes = state.pages()?.read(offset, length);
        let due = state.access_time_due();
        drop(state);
        if let Some(now) = due {
            node.state.write().atime = now;
        }
        Ok(bytes)
    }

    pub(crate) fn write_file(&self, handle: HandleNo, offset: u64, data: &[u8], set_id: SetIdBits) -> VfsResult<u32> {
        self.with_writable(handle, |state, mode| {
            let pages = state.pages_mut()?;
            let offset = if mode.append { pages.size() } else { offset };
            pages.write(&self.space, offset, data)?;
            state.drop_capabilities();
            if set_id == SetIdBits::Clear {
                state.clear_set_id();
            }
            state.touch_modified();
            Ok(u32::try_from(data.len()).expect("a request is far smaller than 4 GiB"))
        })
    }

    pub(crate) fn allocate(&self, handle: HandleNo, offset: u64, length: u64, how: Allocate) -> VfsResult<()> {
        let end = offset.checked_add(length).filter(|end| *end <= SIZE_MAX).ok_or(FsError::TooLarge)?;
        if length == 0 {
            return Err(FsError::Invalid);
        }
        self.with_writable(handle, |state, _| {
            let pages = state.pages_mut()?;
            match how {
                Allocate::Extend | Allocate::KeepSize => pages.reserve(&self.space, offset, end)?,
                Allocate::ZeroRange | Allocate::ZeroRangeKeepSize => pages.zero(&self.space, offset, end)?,
                Allocate::PunchHole => pages.punch(&self.space, offset, end),
            }
            if matches!(how, Allocate::Extend | Allocate::ZeroRange) && end > pages.size() {
                pages.set_size(&self.space, end)?;
            }
            state.clear_set_id();
            state.drop_capabilities();
            state.touch_modified();
            Ok(())
        })
    }

    pub(crate) fn seek(&self, handle: HandleNo, offset: u64, to: SeekTo) -> VfsResult<u64> {
        self.handle(handle)?.node().state.read().pages()?.seek(offset, to)
    }

    pub(crate) fn copy(
        &self,
        (from, from_offset): (HandleNo, u64),
        (to, to_offset): (HandleNo, u64),
        length: u64,
    ) -> VfsResult<u64> {
        let length = u32::try_from(length.min(COPY_MAX)).expect("the limit is below 4 GiB");
        let bytes = self.read_file(from, from_offset, length)?;
        if bytes.is_empty() {
            return Ok(0);
        }
        self.with_writable(to, |state, _| {
            state.pages_mut()?.write(&self.space, to_offset, &bytes)?;
            state.clear_set_id();
            state.drop_capabilities();
            state.touch_modified();
            Ok(bytes.len() as u64)
        })
    }

    pub(crate) fn set_xattr(&self, ino: InodeNo, name: &[u8], value: &[u8], mode: SetXattrMode) -> VfsResult<()> {
        check_xattr_name(name)?;
        if value.len() > XATTR_VALUE_MAX {
            return Err(FsError::AttributeTooLarge);
        }
        let node = self.node(ino, FsError::Stale)?;
        let mut state = node.state.write();
        match (mode, state.xattrs.contains_key(name)) {
            (SetXattrMode::Create, true) => return Err(FsError::Exists),
            (SetXattrMode::Replace, false) => return Err(FsError::NoAttribute),
            (_, true) => {}
            (_, false) => {
                let listed: usize = state.xattrs.keys().map(|name| name.len() + 1).sum();
                if listed + name.len() + 1 > XATTR_LIST_MAX {
                    return Err(FsError::NoSpace);
                }
            }
        }
        match AclKind::of(name) {
            Some(acl) => state.permissions(node.kind).set_acl(acl, value)?,
            None => drop(state.xattrs.insert(name.to_vec(), value.to_vec())),
        }
        state.touch_changed();
        Ok(())
    }

    pub(crate) fn remove_xattr(&self, ino: InodeNo, name: &[u8]) -> VfsResult<()> {
        check_xattr_name(name)?;
        let node = self.node(ino, FsError::Stale)?;
        let mut state = node.state.write();
        match AclKind::of(name) {
            Some(acl) => state.permissions(node.kind).remove_acl(acl)?,
            None => drop(state.xattrs.remove(name).ok_or(FsError::NoAttribute)?),
        }
        state.touch_changed();
        Ok(())
    }
}

/// Of the kernel's own namespace there are access control lists alone.
pub(crate) fn check_xattr_name(name: &[u8]) -> VfsResult<()> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX {
        return Err(FsError::Range);
    }
    if name.starts_with(b"system.") && AclKind::of(name).is_none() {
        return Err(FsError::NotSupported);
    }
    Ok(())
}
