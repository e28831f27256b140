//! Operations on names: look-up, making, linking, removing, moving, listing.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn_platform_api::{
    Attributes, Caller, DirectoryDetail, DirectoryEntry, DirectorySink, FileKind, FsError, HandleNo, InodeNo,
    RenameMode, VfsName, VfsResult,
};
use parking_lot::RwLockWriteGuard;

use crate::node::{Body, Directory, Entry, Node, State};
use crate::{Handle, MemoryFs};

/// Entries taken from a directory at a time, so that it is not locked while attributes are gathered.
const LISTING_BATCH: usize = 128;

/// Exclusive hold of several inodes, taken in the order of their numbers.
struct Held<'a>(Vec<(InodeNo, RwLockWriteGuard<'a, State>)>);

impl<'a> Held<'a> {
    fn lock(nodes: &'a mut Vec<Arc<Node>>) -> Self {
        nodes.sort_by_key(|node| node.ino);
        nodes.dedup_by_key(|node| node.ino);
        Self(nodes.iter().map(|node| (node.ino, node.state.write())).collect())
    }

    fn at(&mut self, ino: InodeNo) -> &mut State {
        self.0.iter_mut().find(|(held, _)| *held == ino).map(|(_, state)| &mut **state).expect("the inode was locked")
    }

    /// Whether the name still means the same as when it was looked up without a lock.
    fn still(&mut self, parent: InodeNo, name: &VfsName, seen: Option<&Entry>) -> VfsResult<bool> {
        let now = self.at(parent).directory()?.get(name);
        Ok(now.map(|entry| entry.ino) == seen.map(|entry| entry.ino))
    }
}

impl MemoryFs {
    fn parent(&self, parent: InodeNo) -> VfsResult<Arc<Node>> {
        self.node(parent, FsError::NotFound)
    }

    fn entry(&self, parent: &Node, name: &VfsName) -> VfsResult<Option<Entry>> {
        Ok(parent.state.read().directory()?.get(name).cloned())
    }

    pub(crate) fn find(&self, parent: InodeNo, name: &VfsName) -> VfsResult<Attributes> {
        let parent = self.parent(parent)?;
        loop {
            let entry = self.entry(&parent, name)?.ok_or(FsError::NotFound)?;
            // An inode that is gone was replaced after the name was read: the name means another one now.
            if let Some(attributes) = self.attributes_of(entry.ino) {
                return Ok(attributes);
            }
        }
    }

    /// Makes an inode under a free name. `finish` runs before anybody else can see it.
    pub(crate) fn make<R>(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &VfsName,
        (kind, mode): (FileKind, u16),
        body: impl FnOnce() -> Body,
        finish: impl FnOnce(&Arc<Node>, &mut State) -> R,
    ) -> VfsResult<(Attributes, R)> {
        let parent = self.parent(parent)?;
        let mut state = parent.state.write();
        if state.directory_mut()?.get(name).is_some() {
            return Err(FsError::Exists);
        }
        let ino = InodeNo(self.next_ino.fetch_add(1, Ordering::Relaxed));
        let node = Arc::new(Node::new(ino, kind, (caller.uid, caller.gid), mode, body()));
        let mut child = node.state.write();
        child.inherit(&state, caller, kind);
        let result = finish(&node, &mut child);
        let attributes = node.attributes(&child);
        drop(child);
        self.nodes.insert(ino.0, node);
        self.inodes.fetch_add(1, Ordering::Relaxed);
        state.directory_mut()?.set(name, ino, kind);
        if kind == FileKind::Directory {
            state.nlink += 1;
        }
        state.touch_modified();
        Ok((attributes, result))
    }

    pub(crate) fn make_directory(
        &self,
        caller: Caller,
        parent: InodeNo,
        name: &VfsName,
        mode: u16,
    ) -> VfsResult<Attributes> {
        let body = || Body::Directory(Directory::new(parent));
        self.make(caller, parent, name, (FileKind::Directory, mode), body, |_, _| ()).map(|(made, ())| made)
    }

    pub(crate) fn add_link(&self, ino: InodeNo, parent: InodeNo, name: &VfsName) -> VfsResult<Attributes> {
        let node = self.node(ino, FsError::NotFound)?;
        if node.kind == FileKind::Directory {
            return Err(FsError::NotPermitted);
        }
        let parent_node = self.parent(parent)?;
        if parent_node.kind != FileKind::Directory {
            return Err(FsError::NotADirectory);
        }
        let mut nodes = vec![node.clone(), parent_node];
        let mut held = Held::lock(&mut nodes);
        let nlink = match held.at(ino).nlink {
            0 => return Err(FsError::NotFound),
            nlink => nlink.checked_add(1).ok_or(FsError::TooManyLinks)?,
        };
        let directory = held.at(parent).directory_mut()?;
        if directory.get(name).is_some() {
            return Err(FsError::Exists);
        }
        directory.set(name, ino, node.kind);
        held.at(parent).touch_modified();
        let state = held.at(ino);
        state.nlink = nlink;
        state.touch_changed();
        Ok(node.attributes(state))
    }

    /// Takes away a name of a directory (`rmdir`) or of anything else (`unlink`).
    pub(crate) fn remove_name(&self, parent: InodeNo, name: &VfsName, removing: Removing) -> VfsResult<()> {
        let parent_node = self.parent(parent)?;
        loop {
            let entry = self.entry(&parent_node, name)?.ok_or(FsError::NotFound)?;
            match (removing, entry.kind) {
                (Removing::Directory, FileKind::Directory) => {}
                (Removing::Directory, _) => return Err(FsError::NotADirectory),
                (Removing::Other, FileKind::Directory) => return Err(FsError::IsADirectory),
                (Removing::Other, _) => {}
            }
            let Some(node) = self.nodes.get(entry.ino.0) else { continue };
            let mut nodes = vec![parent_node.clone(), node];
            let mut held = Held::lock(&mut nodes);
            if !held.still(parent, name, Some(&entry))? {
                continue;
            }
            self.lose_name(&mut held, parent, entry.ino)?;
            held.at(parent).directory_mut()?.remove(name);
            held.at(parent).touch_modified();
            self.drop_if_unused(entry.ino, held.at(entry.ino));
            return Ok(());
        }
    }

    /// Counts down the names of an inode that loses one in `parent`.
    fn lose_name(&self, held: &mut Held<'_>, parent: InodeNo, ino: InodeNo) -> VfsResult<()> {
        let state = held.at(ino);
        if let Body::Directory(directory) = &state.body {
            if !directory.is_empty() {
                return Err(FsError::NotEmpty);
            }
            state.nlink = 0;
            state.touch_changed();
            held.at(parent).nlink -= 1;
        } else {
            state.nlink -= 1;
            state.touch_changed();
        }
        let state = held.at(ino);
        state.kept = state.nlink == 0 && self.mounted.load(Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn move_name(
        &self,
        (parent, name): (InodeNo, &VfsName),
        (new_parent, new_name): (InodeNo, &VfsName),
        mode: RenameMode,
    ) -> VfsResult<()> {
        let (from, to) = (self.parent(parent)?, self.parent(new_parent)?);
        loop {
            let source = self.entry(&from, name)?.ok_or(FsError::NotFound)?;
            let target = self.entry(&to, new_name)?;
            match (mode, &target) {
                (RenameMode::NoReplace, Some(_)) => return Err(FsError::Exists),
                (RenameMode::Exchange, None) => return Err(FsError::NotFound),
                _ => {}
            }
            let directories =
                [Some(&source), target.as_ref()].into_iter().flatten().any(|entry| entry.kind == FileKind::Directory);
            let moves = (directories && parent != new_parent).then(|| self.moves.lock());
            if moves.is_some() {
                self.refuse_cycle(&source, new_parent)?;
                if let (RenameMode::Exchange, Some(target)) = (mode, &target) {
                    self.refuse_cycle(target, parent)?;
                }
            }
            let mut nodes = vec![from.clone(), to.clone()];
            nodes.extend(self.nodes.get(source.ino.0));
            nodes.extend(target.as_ref().and_then(|target| self.nodes.get(target.ino.0)));
            let mut held = Held::lock(&mut nodes);
            if !held.still(parent, name, Some(&source))? || !held.still(new_parent, new_name, target.as_ref())? {
                continue;
            }
            return match target {
                Some(target) if target.ino == source.ino => Ok(()),
                Some(target) if mode == RenameMode::Exchange => {
                    held.place(&target, (new_parent, parent), name)?;
                    held.place(&source, (parent, new_parent), new_name)
                }
                target => self.replace(&mut held, (parent, name, &source), (new_parent, new_name, target)),
            };
        }
    }

    fn replace(
        &self,
        held: &mut Held<'_>,
        (parent, name, source): (InodeNo, &VfsName, &Entry),
        (new_parent, new_name, target): (InodeNo, &VfsName, Option<Entry>),
    ) -> VfsResult<()> {
        held.at(new_parent).directory_mut()?;
        if let Some(target) = &target {
            match (source.kind == FileKind::Directory, target.kind == FileKind::Directory) {
                (true, false) => return Err(FsError::NotADirectory),
                (false, true) => return Err(FsError::IsADirectory),
                _ => self.lose_name(held, new_parent, target.ino)?,
            }
        }
        held.at(parent).directory_mut()?.remove(name);
        held.place(source, (parent, new_parent), new_name)?;
        held.at(parent).touch_modified();
        if let Some(target) = target {
            self.drop_if_unused(target.ino, held.at(target.ino));
        }
        Ok(())
    }

    /// Fails where the directory `moved` is `into` or above it. The caller holds `moves`.
    fn refuse_cycle(&self, moved: &Entry, into: InodeNo) -> VfsResult<()> {
        if moved.kind != FileKind::Directory {
            return Ok(());
        }
        let mut above = into;
        loop {
            if above == moved.ino {
                return Err(FsError::Invalid);
            }
            let next = self.parent(above)?.state.read().directory()?.parent;
            if next == above {
                return Ok(());
            }
            above = next;
        }
    }

    pub(crate) fn open_directory(&self, ino: InodeNo) -> VfsResult<HandleNo> {
        let node = self.node(ino, FsError::Stale)?;
        let mut state = node.state.write();
        let limit = AtomicU64::new(state.directory()?.next_cookie());
        Ok(self.keep_open(&mut state, Handle::Directory { node: node.clone(), limit }))
    }

    /// Hands out the names that were there when the pass began: what is made or renamed meanwhile is not, so that
    /// every pass ends.
    pub(crate) fn list(
        &self,
        handle: HandleNo,
        mut offset: u64,
        detail: DirectoryDetail,
        sink: &mut DirectorySink<'_>,
    ) -> VfsResult<()> {
        let handle = self.handle(handle)?;
        let Handle::Directory { node, limit } = &*handle else { return Err(FsError::BadHandle) };
        let up = {
            let state = node.state.read();
            let directory = state.directory()?;
            if offset == 0 {
                limit.store(directory.next_cookie(), Ordering::Relaxed);
            }
            directory.parent
        };
        for (next, ino, name) in [(1, node.ino, &b"."[..]), (2, up, b"..")] {
            let entry = DirectoryEntry { ino, kind: FileKind::Directory, name, next, attributes: None };
            if offset < next && sink(entry).is_break() {
                return Ok(());
            }
        }
        loop {
            let batch: Vec<(u64, Entry)> = {
                let state = node.state.read();
                let entries = state.directory()?.range(offset, limit.load(Ordering::Relaxed));
                entries.take(LISTING_BATCH).map(|(cookie, entry)| (cookie, entry.clone())).collect()
            };
            let Some((last, _)) = batch.last() else { return Ok(()) };
            offset = *last;
            for (cookie, entry) in &batch {
                if self.hand_out(*cookie, entry, detail, sink).is_break() {
                    return Ok(());
                }
            }
        }
    }

    fn hand_out(
        &self,
        next: u64,
        Entry { name, ino, kind }: &Entry,
        detail: DirectoryDetail,
        sink: &mut DirectorySink<'_>,
    ) -> ControlFlow<()> {
        let attributes = match detail {
            DirectoryDetail::Names => None,
            DirectoryDetail::Attributes => self.attributes_of(*ino),
        };
        sink(DirectoryEntry { ino: *ino, kind: *kind, name: name.as_bytes(), next, attributes })
    }
}

impl Held<'_> {
    /// Puts what came from directory `from` under a name in `to`.
    fn place(&mut self, moved: &Entry, (from, to): (InodeNo, InodeNo), name: &VfsName) -> VfsResult<()> {
        self.at(to).directory_mut()?.set(name, moved.ino, moved.kind);
        self.at(to).touch_modified();
        self.at(moved.ino).touch_changed();
        if moved.kind == FileKind::Directory && from != to {
            self.at(moved.ino).directory_mut()?.parent = to;
            self.at(from).nlink -= 1;
            self.at(to).nlink += 1;
        }
        Ok(())
    }
}

/// What a removal expects.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Removing {
    Directory,
    Other,
}
