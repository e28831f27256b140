//! Looking up, making, linking, removing and moving names.
//!
//! Names are looked up without a lock to know which inodes to lock, and again under the locks: where the answer changed in
//! between, it starts over.

use std::sync::Arc;

use cairn_platform_api::{
    Attributes, Caller, FileKind, FsError, InodeNo, NewNode, OpenMode, Opened, RenameMode, SYMLINK_MAX, Timestamp,
    VfsName, VfsResult,
};

use crate::drive::inner::{Inner, failed, note_set_id};
use crate::drive::local::{Begun, Keep, Writing};
use crate::drive::node::{Holds, NodeRef};
use crate::tree::{Change, ContentState, DentryId, DentryRow, Detached, InodeRow, Last, Namespace, keys};

const SET_GROUP_ID: u16 = 0o2000;

/// What a removal expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::drive) enum Removing {
    Directory,
    Other,
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Done,
    /// What was looked up is not so any more.
    Overtaken,
}

/// A name in a directory.
pub(in crate::drive) type At<'a> = (InodeNo, &'a VfsName);

impl Inner {
    pub(in crate::drive) fn lookup(&self, parent: InodeNo, name: &VfsName) -> VfsResult<Attributes> {
        loop {
            let Some(found) = self.tree.lookup(parent, name).map_err(failed)? else {
                self.directory(parent)?;
                return Err(FsError::NotFound);
            };
            // An inode without a row was replaced after the name was read: the name means another one now.
            if let Some(row) = self.row(found.ino)? {
                return self.attributes(found.ino, &row);
            }
        }
    }

    /// The row of a directory that names can be looked up in.
    fn directory(&self, ino: InodeNo) -> VfsResult<InodeRow> {
        self.expect_directory(ino, self.row(ino)?)
    }

    /// The row, if it is a directory's.
    fn expect_directory(&self, ino: InodeNo, row: Option<InodeRow>) -> VfsResult<InodeRow> {
        match row {
            Some(row) if row.is_directory() => Ok(row),
            Some(_) => Err(FsError::NotADirectory),
            None => match self.orphan(ino) {
                Some(row) if !row.is_directory() => Err(FsError::NotADirectory),
                _ => Err(FsError::NotFound),
            },
        }
    }

    pub(in crate::drive) fn mknod(&self, caller: Caller, at: At<'_>, node: NewNode) -> VfsResult<Attributes> {
        if matches!(node.kind, FileKind::Directory | FileKind::Symlink) {
            return Err(FsError::Invalid);
        }
        let mut row = InodeRow::new(node.kind, node.mode, Timestamp::now());
        row.rdev = node.rdev;
        self.make(caller, at, row).map(|(attributes, _)| attributes)
    }

    pub(in crate::drive) fn mkdir(&self, caller: Caller, at: At<'_>, mode: u16) -> VfsResult<Attributes> {
        let row = InodeRow::new(FileKind::Directory, mode, Timestamp::now());
        self.make(caller, at, row).map(|(attributes, _)| attributes)
    }

    pub(in crate::drive) fn symlink(&self, caller: Caller, at: At<'_>, target: &[u8]) -> VfsResult<Attributes> {
        if target.is_empty() {
            return Err(FsError::NotFound);
        }
        if target.len() > SYMLINK_MAX {
            return Err(FsError::NameTooLong);
        }
        let mut row = InodeRow::new(FileKind::Symlink, 0o777, Timestamp::now());
        row.target = Some(target.to_vec());
        self.make(caller, at, row).map(|(attributes, _)| attributes)
    }

    pub(in crate::drive) fn create(
        self: &Arc<Self>,
        caller: Caller,
        at: At<'_>,
        mode: u16,
        open: OpenMode,
    ) -> VfsResult<(Attributes, Opened)> {
        let row = InodeRow::new(FileKind::Regular, mode, Timestamp::now());
        let (attributes, node) = self.make(caller, at, row)?;
        let node = node.ok_or(FsError::Io)?;
        let writing = match open.write {
            true => Some(self.first_writer(&node)?),
            false => None,
        };
        Ok((attributes, self.hand_out(node, open, writing)))
    }

    fn first_writer(self: &Arc<Self>, node: &NodeRef) -> VfsResult<Writing> {
        match self.begin_writing(node, Keep::All)? {
            Begun::Writing(writing) => Ok(writing),
            Begun::Slow | Begun::Outdated => Err(FsError::Io),
        }
    }

    /// Makes an inode under a free name. A regular file comes with its node. Where the disk has no room for one more file,
    /// contents that are also on the remote give way.
    fn make(&self, caller: Caller, at: At<'_>, row: InodeRow) -> VfsResult<(Attributes, Option<NodeRef>)> {
        match row.kind {
            FileKind::Regular => self.with_room(0, || self.try_make(caller, at, row.clone())),
            _ => self.try_make(caller, at, row),
        }
    }

    fn try_make(
        &self,
        caller: Caller,
        (parent, name): At<'_>,
        mut row: InodeRow,
    ) -> VfsResult<(Attributes, Option<NodeRef>)> {
        // A name that is taken needs no number.
        if self.tree.lookup(parent, name).map_err(failed)?.is_some() {
            return Err(FsError::Exists);
        }
        let ino = InodeNo(self.tree.allocate().map_err(failed)?);
        let node = (row.kind == FileKind::Regular).then(|| self.nodes.acquire(ino));
        let mut change = self.tree.change(&[parent, ino]).map_err(failed)?;
        let directory = self.expect_directory(parent, change.inode(parent).map_err(failed)?)?;
        if change.lookup(parent, name).map_err(failed)?.is_some() {
            return Err(FsError::Exists);
        }
        inherit(&directory, caller, &mut row);
        if let Some(node) = &node {
            self.adopt_new_file(node, &row)?;
        }
        let made = change.create(ino, parent, name, &row).map_err(failed);
        let made = made.and_then(|_| touch_modified(&mut change, parent));
        if let Err(error) = made {
            if node.is_some() {
                // The number is not used again, so a file that stays is swept at the next unclean start.
                let _ = self.files.remove(ino);
            }
            return Err(error);
        }
        change.commit();
        row.nlink = row.nlink.max(1);
        let attributes = self.attributes(ino, &row)?;
        Ok((attributes, node))
    }

    fn adopt_new_file(&self, node: &NodeRef, row: &InodeRow) -> VfsResult<()> {
        if !self.space.admit(0) {
            return Err(FsError::NoSpace);
        }
        let file = self.files.create(node.ino)?;
        let mut body = node.body.lock();
        (body.loaded, body.holds, body.row) = (true, Holds::Local { equal: None }, Some(row.clone()));
        // Nobody set it: the number is new.
        let _ = node.file.set(Arc::new(file));
        node.note_completion(&mut body);
        note_set_id(node, row);
        Ok(())
    }

    pub(in crate::drive) fn link(&self, ino: InodeNo, (parent, name): At<'_>) -> VfsResult<Attributes> {
        let mut change = self.tree.change(&[ino, parent]).map_err(failed)?;
        let mut row = match change.inode(ino).map_err(failed)? {
            Some(row) => row,
            None => self.orphan(ino).ok_or(FsError::NotFound)?,
        };
        if row.is_directory() {
            return Err(FsError::NotPermitted);
        }
        self.expect_directory(parent, change.inode(parent).map_err(failed)?)?;
        if row.nlink == 0 {
            return Err(FsError::NotFound);
        }
        if row.nlink == u32::MAX {
            return Err(FsError::TooManyLinks);
        }
        if change.lookup(parent, name).map_err(failed)?.is_some() {
            return Err(FsError::Exists);
        }
        let dentry = DentryId(change.allocate());
        change.attach(dentry, ino, parent, name).map_err(failed)?;
        row = touch_changed(&mut change, ino)?;
        touch_modified(&mut change, parent)?;
        change.commit();
        self.attributes(ino, &row)
    }

    pub(in crate::drive) fn remove(&self, (parent, name): At<'_>, removing: Removing) -> VfsResult<()> {
        loop {
            let Some(found) = self.tree.lookup(parent, name).map_err(failed)? else {
                self.directory(parent)?;
                return Err(FsError::NotFound);
            };
            match (removing, found.kind == FileKind::Directory) {
                (Removing::Directory, false) => return Err(FsError::NotADirectory),
                (Removing::Other, true) => return Err(FsError::IsADirectory),
                _ => {}
            }
            let kept = self.hold_removed(Some(found));
            let mut change = self.tree.change(&[parent, found.ino]).map_err(failed)?;
            if change.lookup(parent, name).map_err(failed)? != Some(found) {
                continue;
            }
            let gone = self.take_name(&mut change, (parent, name), found)?;
            touch_modified(&mut change, parent)?;
            self.commit_removal(change, Some(gone), kept);
            return Ok(());
        }
    }

    /// Takes a name away, and what hangs on it if it was the last.
    fn take_name(&self, change: &mut Change<'_>, (parent, name): At<'_>, found: DentryRow) -> VfsResult<Detached> {
        if found.kind == FileKind::Directory && !change.is_empty(found.ino).map_err(failed)? {
            return Err(FsError::NotEmpty);
        }
        let mut gone = change.detach(parent, name).map_err(failed)?;
        gone.row.ctime = Timestamp::now();
        match gone.last {
            Last::Yes => {
                // Until the change is committed nobody may see the inode without its row and its orphan.
                change.rows().delete(&keys::cache(found.ino));
                gone.row.nlink = 0;
            }
            Last::No => change.put_inode(found.ino, &gone.row).map_err(failed)?,
        }
        Ok(gone)
    }

    /// Commits a removal. What a removed inode was is kept for those who have it open, and its backing file goes when that
    /// is safe.
    fn commit_removal(&self, change: Change<'_>, gone: Option<Detached>, kept: Option<NodeRef>) {
        let Some(gone) = gone.filter(|gone| gone.last == Last::Yes) else { return change.commit() };
        let node = self.nodes.in_use(gone.ino);
        // Over the commit, so that nobody sees the inode with neither row nor orphan.
        let mut body = node.as_ref().map(|node| node.body.lock());
        let retirement = (gone.row.content != ContentState::None).then(|| self.retiring.announce(gone.ino));
        if let Some(body) = body.as_mut().filter(|body| body.loaded) {
            body.orphan = Some(gone.row);
        }
        change.commit();
        drop(body);
        let chore = self.chores.lock().remove(&gone.ino);
        drop(chore);
        if let Some(retirement) = retirement {
            retirement.after_commit(&self.store, &self.files);
            self.usage.remove(gone.ino);
        }
        if let Some(kept) = kept {
            self.kernel.keep(kept);
        }
    }

    /// The node of an inode that may be about to lose its last name, where the kernel may come back to it.
    fn hold_removed(&self, found: Option<DentryRow>) -> Option<NodeRef> {
        let found = found.filter(|_| self.kernel.keeps_removed())?;
        if found.kind == FileKind::Regular {
            return self.node(found.ino).ok();
        }
        let node = self.nodes.acquire(found.ino);
        node.body.lock().loaded = true;
        Some(node)
    }

    pub(in crate::drive) fn rename(&self, from: At<'_>, to: At<'_>, mode: RenameMode) -> VfsResult<()> {
        while self.try_rename(from, to, mode)? == Attempt::Overtaken {}
        Ok(())
    }

    fn try_rename(&self, from: At<'_>, to: At<'_>, mode: RenameMode) -> VfsResult<Attempt> {
        let ((parent, name), (new_parent, new_name)) = (from, to);
        let source = self.tree.lookup(parent, name).map_err(failed)?;
        let target = self.tree.lookup(new_parent, new_name).map_err(failed)?;
        let (Some(source), Ok(_)) = (source, self.directory(new_parent)) else {
            return Err(self.refusal(parent, source.is_some(), new_parent));
        };
        match (mode, &target) {
            (RenameMode::NoReplace, Some(_)) => return Err(FsError::Exists),
            (RenameMode::Exchange, None) => return Err(FsError::NotFound),
            _ => {}
        }
        let kept = self.hold_removed(target.filter(|_| mode != RenameMode::Exchange));
        let mut inos = vec![parent, new_parent, source.ino];
        inos.extend(target.map(|target| target.ino));
        let directory = |found: &DentryRow| found.kind == FileKind::Directory;
        let moves_directory = parent != new_parent && (directory(&source) || target.as_ref().is_some_and(directory));
        let mut change = match moves_directory {
            true => self.tree.change_topology(&inos),
            false => self.tree.change(&inos),
        }
        .map_err(failed)?;
        if change.lookup(parent, name).map_err(failed)? != Some(source)
            || change.lookup(new_parent, new_name).map_err(failed)? != target
        {
            return Ok(Attempt::Overtaken);
        }
        self.expect_directory(new_parent, change.inode(new_parent).map_err(failed)?)?;
        if moves_directory {
            refuse_cycle(&change, &source, new_parent)?;
            if let (RenameMode::Exchange, Some(target)) = (mode, &target) {
                refuse_cycle(&change, target, parent)?;
            }
        }
        let gone = match target {
            Some(target) if target.ino == source.ino => return Ok(Attempt::Done),
            Some(target) if mode == RenameMode::Exchange => {
                change.swap_names(parent, name, new_parent, new_name).map_err(failed)?;
                touch_changed(&mut change, target.ino)?;
                None
            }
            target => {
                let gone = match target {
                    Some(target) => Some(self.make_room(&mut change, &source, to, target)?),
                    None => None,
                };
                change.move_name(parent, name, new_parent, new_name).map_err(failed)?;
                gone
            }
        };
        let row = touch_changed(&mut change, source.ino)?;
        touch_modified(&mut change, parent)?;
        touch_modified(&mut change, new_parent)?;
        if gone.is_some() && matches!(row.content, ContentState::Local { .. }) {
            self.write_back.put_ahead_of_rows(source.ino);
        }
        self.commit_removal(change, gone, kept);
        Ok(Attempt::Done)
    }

    /// Why a rename between these directories, or what is none, cannot be.
    fn refusal(&self, parent: InodeNo, has_source: bool, new_parent: InodeNo) -> FsError {
        match (self.directory(parent), self.directory(new_parent)) {
            (Err(FsError::NotFound), _) | (_, Err(FsError::NotFound)) => FsError::NotFound,
            (Err(error), _) => error,
            (Ok(_), _) if !has_source => FsError::NotFound,
            (Ok(_), Err(error)) => error,
            (Ok(_), Ok(_)) => FsError::NotFound,
        }
    }

    /// Takes away the target of a rename.
    fn make_room(
        &self,
        change: &mut Change<'_>,
        source: &DentryRow,
        at: At<'_>,
        target: DentryRow,
    ) -> VfsResult<Detached> {
        match (source.kind == FileKind::Directory, target.kind == FileKind::Directory) {
            (true, false) => Err(FsError::NotADirectory),
            (false, true) => Err(FsError::IsADirectory),
            _ => self.take_name(change, at, target),
        }
    }
}

/// Fails where the directory `moved` is `into` or above it.
fn refuse_cycle(change: &Change<'_>, moved: &DentryRow, into: InodeNo) -> VfsResult<()> {
    if moved.kind == FileKind::Directory && change.is_within(into, moved.ino).map_err(failed)? {
        return Err(FsError::Invalid);
    }
    Ok(())
}

/// Owner, group and mode of something made in a directory.
fn inherit(directory: &InodeRow, caller: Caller, row: &mut InodeRow) {
    (row.uid, row.gid) = (caller.uid, caller.gid);
    if directory.mode & SET_GROUP_ID != 0 {
        row.gid = directory.gid;
        if row.is_directory() {
            row.mode |= SET_GROUP_ID;
        }
    }
    row.permissions().inherit(&directory.xattrs, caller.umask);
}

/// The entries of a directory changed.
fn touch_modified(change: &mut Change<'_>, directory: InodeNo) -> VfsResult<()> {
    let mut row = change.inode(directory).map_err(failed)?.ok_or(FsError::NotFound)?;
    row.mtime = Timestamp::now();
    row.ctime = row.mtime;
    change.put_inode(directory, &row).map_err(failed)
}

/// Something about an inode other than its content changed.
fn touch_changed(change: &mut Change<'_>, ino: InodeNo) -> VfsResult<InodeRow> {
    let mut row = change.inode(ino).map_err(failed)?.ok_or(FsError::NotFound)?;
    row.ctime = Timestamp::now();
    change.put_inode(ino, &row).map_err(failed)?;
    Ok(row)
}
