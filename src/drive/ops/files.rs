//! Opening, reading, writing and syncing files.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cairn_platform_api::{
    Allocate, Answer, Caller, FileKind, FsError, HandleNo, InodeNo, OpenMode, Opened, ReadAnswer, SeekTo, SetIdBits,
    SyncScope, Timestamp, VfsResult,
};

use super::{Handle, OpenFile};
use crate::base::os;
use crate::drive::content::{is_present, read_present};
use crate::drive::inner::{CAPABILITIES, Inner, failed};
use crate::drive::local::{Begun, Keep, Writing};
use crate::drive::node::{Access, NodeRef};
use crate::tree::InodeRow;

/// The largest offset: `off_t` is signed.
const SIZE_MAX: u64 = i64::MAX as u64;
/// The most one copy request moves, so that it does not hold its thread for long.
const COPY_MAX: u64 = 16 << 20;
const SET_USER_ID: u16 = 0o4000;
const SET_GROUP_ID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;

/// What a change of content or owner does to set-user-id and set-group-id. Without group execute the latter once meant
/// mandatory locking, and stays.
pub(super) fn clear_set_id(row: &mut InodeRow) {
    row.mode &= !SET_USER_ID;
    if row.mode & GROUP_EXECUTE != 0 {
        row.mode &= !SET_GROUP_ID;
    }
}

/// The end of a range, if a file can be as long as that.
fn end_of(offset: u64, length: u64) -> VfsResult<u64> {
    offset.checked_add(length).filter(|end| *end <= SIZE_MAX).ok_or(FsError::TooLarge)
}

impl Inner {
    pub(in crate::drive) fn open(self: &Arc<Self>, caller: Caller, ino: InodeNo, mode: OpenMode) -> Answer<Opened> {
        match self.try_open(caller, ino, mode) {
            Ok(Some(opened)) => Answer::Now(Ok(opened)),
            Ok(None) => self.open_slowly(caller, ino, mode),
            Err(error) => error.into(),
        }
    }

    fn open_slowly(self: &Arc<Self>, caller: Caller, ino: InodeNo, mode: OpenMode) -> Answer<Opened> {
        let (beginning, inner) = (Arc::clone(self), Arc::clone(self));
        let begin = async move { beginning.writable(ino, kept(mode)).await };
        let answer = self.answer_who_waits(begin, move |(node, writing)| {
            let opening = async move {
                let finishing = Arc::clone(&inner);
                let opened = inner.blocking(move || finishing.opened(caller, node, mode, Some(writing))).await?;
                Ok(Unclaimed { inner, opened: Some(opened) })
            };
            Box::pin(opening)
        });
        match answer {
            Answer::Now(opened) => Answer::Now(opened.and_then(Unclaimed::claim)),
            Answer::Later(opened) => Answer::Later(Box::pin(async move { opened.await.and_then(Unclaimed::claim) })),
        }
    }

    /// Opens where that takes neither a disk sync nor the remote.
    fn try_open(self: &Arc<Self>, caller: Caller, ino: InodeNo, mode: OpenMode) -> VfsResult<Option<Opened>> {
        loop {
            let node = self.regular(ino)?;
            if !mode.write && !mode.truncate {
                return self.opened(caller, node, mode, None).map(Some);
            }
            match self.begin_writing(&node, kept(mode))? {
                Begun::Writing(writing) => return self.opened(caller, node, mode, Some(writing)).map(Some),
                Begun::Slow => return Ok(None),
                Begun::Outdated => self.nodes.detach(&node),
            }
        }
    }

    /// The node of a regular file.
    pub(in crate::drive) fn regular(&self, ino: InodeNo) -> VfsResult<NodeRef> {
        match self.row(ino)?.map(|row| row.kind) {
            None | Some(FileKind::Regular) => self.node(ino),
            Some(FileKind::Directory) => Err(FsError::IsADirectory),
            Some(_) => Err(FsError::Invalid),
        }
    }

    /// A node that is local, and stays so.
    pub(super) async fn writable(self: &Arc<Self>, ino: InodeNo, keep: Keep) -> VfsResult<(NodeRef, Writing)> {
        loop {
            let node = self.regular(ino)?;
            match self.begin_writing_slowly(&node, keep).await {
                Ok(Begun::Writing(writing)) => return Ok((node, writing)),
                Ok(Begun::Outdated) => self.nodes.detach(&node),
                Ok(Begun::Slow) => {}
                Err(error) if self.nodes.is_current(&node) => return Err(error),
                Err(_) => {}
            }
        }
    }

    fn opened(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeRef,
        mode: OpenMode,
        writing: Option<Writing>,
    ) -> VfsResult<Opened> {
        if mode.truncate {
            self.set_size(&node, 0)?;
            let uid = caller.uid;
            self.update_through(&node, |row| {
                after_write(row, if uid == 0 { SetIdBits::Keep } else { SetIdBits::Clear });
                row.mtime = Timestamp::now();
                row.ctime = row.mtime;
                Ok(())
            })?;
        }
        self.used(node.ino);
        Ok(self.hand_out(node, mode, writing))
    }

    /// Gives a handle out. The driver keeps it from being mixed with handles of a content that was replaced.
    pub(super) fn hand_out(&self, node: NodeRef, mode: OpenMode, writing: Option<Writing>) -> Opened {
        let access = {
            let mut body = node.body.lock();
            body.handles += 1;
            let suited = if node.is_complete() { Access::Backing } else { Access::Requests };
            *body.access.get_or_insert(suited)
        };
        let backing = node.file.get().filter(|_| access == Access::Backing).cloned();
        if writing.is_some() && access == Access::Backing {
            self.kernel.note_mappable(node.ino);
        }
        let handle = self.handles.insert(Handle::File(OpenFile::new(node, mode, writing)));
        Opened { handle, backing }
    }

    pub(in crate::drive) fn release(&self, handle: HandleNo) {
        let Some(handle) = self.handles.remove(handle) else { return };
        if let Handle::File(file) = &*handle {
            let mut body = file.node.body.lock();
            body.handles = body.handles.saturating_sub(1);
            let last = body.handles == 0;
            if last {
                body.access = None;
            }
            drop(body);
            if last && self.write_back.is_lost(&file.node) {
                self.later(&file.node);
            }
            self.used(file.node.ino);
        }
    }

    pub(in crate::drive) fn read(self: &Arc<Self>, handle: HandleNo, offset: u64, length: u32) -> ReadAnswer {
        let handle = match self.handles.get(handle) {
            Ok(handle) => handle,
            Err(error) => return error.into(),
        };
        let file = match handle.readable() {
            Ok(file) => file,
            Err(error) => return error.into(),
        };
        let range = offset..offset.saturating_add(length.into());
        if is_present(&file.node, &range) {
            return read_present(&file.node, range).into();
        }
        let ahead = file.progress.lock().note(&range);
        self.answer_later(Arc::clone(self).read_partial(file.node.clone(), range, ahead))
    }

    pub(in crate::drive) fn write(
        &self,
        handle: HandleNo,
        offset: u64,
        data: &[u8],
        set_id: SetIdBits,
    ) -> VfsResult<u32> {
        let handle = self.handles.get(handle)?;
        let file = handle.writable()?;
        let length = data.len() as u64;
        self.admit(length)?;
        let written = self.with_room(length, || write_backing(file, offset, data))?;
        self.drop_privileges(&file.node, set_id)?;
        u32::try_from(written).map_err(|_| FsError::Invalid)
    }

    /// Room for bytes, made if need be.
    pub(in crate::drive) fn admit(&self, bytes: u64) -> VfsResult<()> {
        if self.space.admit(bytes) {
            return Ok(());
        }
        self.free_space(bytes);
        if self.space.admit(bytes) { Ok(()) } else { Err(FsError::NoSpace) }
    }

    /// Does something that the disk may refuse although it said that there is room: a quota, or no more files. Then room is made, and
    /// it is tried once more.
    pub(in crate::drive) fn with_room<T>(&self, bytes: u64, mut act: impl FnMut() -> VfsResult<T>) -> VfsResult<T> {
        match act() {
            Err(FsError::NoSpace | FsError::QuotaExceeded) => {
                self.free_space(bytes);
                act()
            }
            done => done,
        }
    }

    /// Clears what a write by somebody without privileges clears.
    fn drop_privileges(&self, node: &NodeRef, set_id: SetIdBits) -> VfsResult<()> {
        if !node.set_id.load(Ordering::Acquire) {
            return Ok(());
        }
        self.update_through(node, |row| {
            after_write(row, set_id);
            Ok(())
        })
        .map(drop)
    }

    /// Cuts or extends a local file.
    pub(super) fn set_size(&self, node: &NodeRef, size: u64) -> VfsResult<()> {
        if size > SIZE_MAX {
            return Err(FsError::TooLarge);
        }
        let file = node.file.get().ok_or(FsError::Io)?;
        let _body = node.body.lock();
        let before = os::status(file)?.size;
        file.set_len(size)?;
        node.note_length(before, size);
        Ok(())
    }

    pub(in crate::drive) fn fsync(self: &Arc<Self>, handle: HandleNo, _scope: SyncScope) -> Answer<()> {
        let handle = match self.handles.get(handle) {
            Ok(handle) => handle,
            Err(error) => return error.into(),
        };
        if let Err(error) = handle.file() {
            return error.into();
        }
        let inner = Arc::clone(self);
        self.answer_later(async move {
            let (syncing, file) = (Arc::clone(&inner), Arc::clone(&handle));
            let synced = inner.blocking(move || syncing.sync_file(&file.file()?.node)).await;
            let flushed = inner.store.flush_later().await.map_err(failed);
            let file = handle.file()?;
            // A failure is told once to everybody who had the file open then, even if a later sync succeeds: what was lost is lost.
            let failures = file.node.failures.load(Ordering::Acquire);
            let missed = file.reported.swap(failures, Ordering::AcqRel) < failures;
            if missed { Err(synced.err().unwrap_or(FsError::Io)) } else { synced.and(flushed) }
        })
    }

    pub(in crate::drive) fn fallocate(
        &self,
        handle: HandleNo,
        offset: u64,
        length: u64,
        how: Allocate,
    ) -> VfsResult<()> {
        let end = end_of(offset, length)?;
        if length == 0 {
            return Err(FsError::Invalid);
        }
        let handle = self.handles.get(handle)?;
        let node = &handle.writable()?.node;
        let file = node.file.get().ok_or(FsError::Io)?;
        if how != Allocate::PunchHole {
            self.admit(length)?;
        }
        let body = node.body.lock();
        match how {
            Allocate::Extend | Allocate::KeepSize => os::allocate(file, offset, length)?,
            Allocate::PunchHole => os::punch_hole(file, offset, length)?,
            Allocate::ZeroRange | Allocate::ZeroRangeKeepSize => {
                os::punch_hole(file, offset, length)?;
                os::allocate(file, offset, length)?;
            }
        }
        let size = os::status(file)?.size;
        if matches!(how, Allocate::Extend | Allocate::ZeroRange) && end > size {
            file.set_len(end)?;
        }
        // Not every file system below counts this as a modification.
        os::set_times(file, None, Some(Timestamp::now()))?;
        drop(body);
        self.drop_privileges(node, SetIdBits::Clear)
    }

    pub(in crate::drive) fn lseek(&self, handle: HandleNo, offset: u64, to: SeekTo) -> VfsResult<u64> {
        let handle = self.handles.get(handle)?;
        let node = &handle.file()?.node;
        let found = match node.file.get().filter(|_| node.is_complete()) {
            Some(file) => match to {
                SeekTo::Data => os::seek_data(file, offset)?,
                SeekTo::Hole => os::seek_hole(file, offset)?,
            },
            // What is not here counts as data.
            None => {
                let size = match node.file.get() {
                    Some(file) => os::status(file)?.size,
                    None => node.body.lock().content().map_or(0, |content| content.size),
                };
                let found = if to == SeekTo::Data { offset } else { size };
                (offset < size).then_some(found)
            }
        };
        found.ok_or(FsError::NoOffset)
    }

    pub(in crate::drive) fn copy_file_range(
        self: &Arc<Self>,
        (from, from_offset): (HandleNo, u64),
        (to, to_offset): (HandleNo, u64),
        length: u64,
    ) -> Answer<u64> {
        let length = length.min(COPY_MAX);
        let (source, target) = match (self.handles.get(from), self.handles.get(to)) {
            (Ok(source), Ok(target)) => (source, target),
            (Err(error), _) | (_, Err(error)) => return error.into(),
        };
        if let Err(error) = source.readable().and(target.writable()).and(end_of(to_offset, length)) {
            return error.into();
        }
        let inner = Arc::clone(self);
        self.answer_later(async move {
            let node = source.readable()?.node.clone();
            let range = from_offset..from_offset.saturating_add(length);
            let fetched = if is_present(&node, &range) {
                None
            } else {
                Some(Arc::clone(&inner).read_partial(node, range, 0).await?)
            };
            let copying = Arc::clone(&inner);
            inner.blocking(move || copying.copy(&source, from_offset, &target, to_offset, length, fetched)).await
        })
    }

    fn copy(
        &self,
        source: &Handle,
        from_offset: u64,
        target: &Handle,
        to_offset: u64,
        length: u64,
        fetched: Option<Vec<u8>>,
    ) -> VfsResult<u64> {
        self.admit(length)?;
        let node = &target.writable()?.node;
        let into = node.file.get().ok_or(FsError::Io)?;
        let body = node.body.lock();
        let copied = match (fetched, source.readable()?.node.file.get()) {
            (Some(bytes), _) => {
                os::write_all_at(into, &bytes, to_offset)?;
                bytes.len() as u64
            }
            (None, Some(from)) => os::copy_range(from, from_offset, into, to_offset, length)?,
            (None, None) => 0,
        };
        drop(body);
        if copied > 0 {
            self.drop_privileges(node, SetIdBits::Clear)?;
        }
        Ok(copied)
    }
}

/// A handle that was made and that nobody has yet: it goes if nobody comes.
struct Unclaimed {
    inner: Arc<Inner>,
    opened: Option<Opened>,
}

impl Unclaimed {
    fn claim(mut self) -> VfsResult<Opened> {
        self.opened.take().ok_or(FsError::Io)
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(opened) = self.opened.take() {
            self.inner.release(opened.handle);
        }
    }
}

/// Writes to the backing file what there is room for.
fn write_backing(file: &OpenFile, offset: u64, data: &[u8]) -> VfsResult<usize> {
    let (node, length) = (&file.node, data.len() as u64);
    let backing = node.file.get().ok_or(FsError::Io)?;
    if file.mode.append {
        // Keeps other appends away.
        let _body = node.body.lock();
        let end = os::status(backing)?.size;
        end_of(end, length)?;
        return Ok(os::write_at(backing, data, end)?);
    }
    end_of(offset, length)?;
    Ok(os::write_at(backing, data, offset)?)
}

/// What an opened file is to keep of its content.
fn kept(mode: OpenMode) -> Keep {
    if mode.truncate { Keep::First(0) } else { Keep::All }
}

/// What a change of content does to a row.
fn after_write(row: &mut InodeRow, set_id: SetIdBits) {
    row.xattrs.remove(CAPABILITIES);
    if set_id == SetIdBits::Clear {
        clear_set_id(row);
    }
}
