//! The function that the fold is made of: one change set onto the state that all earlier ones made.
//!
//! It reads nothing but the change set and rows of the namespace, so it does the same on all devices. Its steps: create
//! inodes and bring back removed ones that are changed; take all moved and removed dentries away; give directories their
//! places, then change attributes and contents, then give files their places; decide about inodes that are left without a
//! name; place conflict copies. `docs/CONVERGENCE.md` gives the reasons.

mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use cairn_platform_api::{FileKind, InodeNo, Timestamp};

use super::keys::family;
use super::namespace::{Namespace, State};
use super::rows::{Content, ContentState, DentryRow, InodeRow, Link, Place, Version};
use super::{ChangeSet, DentryId, InodeChange, TreeError, keys, names};
use crate::base::{ChangeId, DeviceId};
use crate::chunk::ContentId;
use crate::store::Rows;

/// Applies a change set.
pub(super) fn apply(state: &mut State<'_, '_>, set: &ChangeSet) -> Result<(), TreeError> {
    let has_aliases = state.rows.any(&[family::ALIAS])?;
    let mut apply = Apply {
        state,
        has_aliases,
        set,
        fresh: BTreeSet::new(),
        moving: BTreeSet::new(),
        connected: BTreeSet::new(),
        lost: BTreeMap::new(),
        copies: Vec::new(),
        stale: Vec::new(),
    };
    apply.introduce_author()?;
    apply.create()?;
    let (directories, files) = apply.detach()?;
    apply.place_directories(directories)?;
    apply.update()?;
    apply.place_files(files)?;
    apply.settle()?;
    apply.place_copies()
}

struct Apply<'s, 'a, 'b> {
    state: &'s mut State<'a, 'b>,
    set: &'s ChangeSet,
    /// Whether any directory was ever merged; spares most drives a read for every inode.
    has_aliases: bool,
    /// Inodes that this change set created.
    fresh: BTreeSet<InodeNo>,
    /// Directories that are on their way to a new place.
    moving: BTreeSet<InodeNo>,
    /// Directories from which the way up is known to end in the root. Nothing takes it from them: all that move or go lost
    /// their names before the first of them was asked for.
    connected: BTreeSet<InodeNo>,
    /// Names that inodes lost or did not get on the way; whoever has no name in the end is decided about by these.
    lost: BTreeMap<InodeNo, Vec<Lost>>,
    /// Contents that lost their file.
    copies: Vec<Copy>,
    /// Conflict copies to look for: of this inode, by the author of the change set, with this content.
    stale: Vec<(InodeNo, ContentId)>,
}

struct Lost {
    link: Link,
    why: Why,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The change set removes it, and its author had seen this content.
    Removed { seen: Option<ContentId> },
    /// The change set moves it.
    Moved,
    /// It was lost when the inode was removed earlier.
    Buried,
    /// An equal file has the name.
    Collapsed,
    /// It was to be in a directory that is not known.
    Unplaced,
}

/// A dentry on its way to a new place.
struct Move {
    link: Link,
    ino: InodeNo,
    from: Option<Place>,
}

/// A content that another one replaced without having seen it.
struct Copy {
    of: InodeNo,
    row: InodeRow,
    content: Content,
}

impl Apply<'_, '_, '_> {
    fn introduce_author(&mut self) -> Result<(), TreeError> {
        let key = keys::author(self.set.id.device);
        let known = self.state.rows.get(&key)?;
        if self.state.is_pending() || known.is_some_and(|known| known == self.set.device_name.as_bytes()) {
            return Ok(());
        }
        self.state.set_author(&key, &self.set.device_name)
    }

    /// The name that a device had when it last published.
    fn device_name(&self, device: DeviceId) -> Result<String, TreeError> {
        if device == self.set.id.device {
            return Ok(self.set.device_name.clone());
        }
        let known = self.state.rows.get(&keys::author(device))?;
        Ok(known.map_or_else(|| device.to_string(), |name| String::from_utf8_lossy(&name).into_owned()))
    }

    /// Follows a directory that was merged into another.
    fn resolve(&self, ino: InodeNo) -> Result<InodeNo, TreeError> {
        let mut ino = ino;
        while let Some(target) = self.alias(ino)? {
            ino = target;
        }
        Ok(ino)
    }

    fn alias(&self, ino: InodeNo) -> Result<Option<InodeNo>, TreeError> {
        if self.has_aliases { self.state.alias(ino) } else { Ok(None) }
    }

    fn create(&mut self) -> Result<(), TreeError> {
        for change in &self.set.inodes {
            let known = self.alias(change.ino)?.is_some() || self.state.rows.inode(change.ino)?.is_some();
            if known {
                continue;
            }
            let wanted = change.birth.is_some() || change.content.is_some();
            if wanted && self.revive(change.ino)? {
                // With a birth come all attributes there are.
                if let (Some(_), Some(mut row)) = (&change.birth, self.state.rows.inode(change.ino)?) {
                    row.xattrs.clear();
                    self.state.put_inode(change.ino, &row)?;
                }
            } else if let Some(row) = self.newborn(change) {
                self.state.put_inode(change.ino, &row)?;
                self.fresh.insert(change.ino);
            }
        }
        Ok(())
    }

    fn newborn(&self, change: &InodeChange) -> Option<InodeRow> {
        let birth = change.birth.as_ref()?;
        let mut row = InodeRow::new(birth.kind, 0, Timestamp::default());
        row.rdev = birth.rdev;
        row.btime = birth.btime;
        row.target.clone_from(&birth.target);
        set_fields(&mut row, change);
        if let (FileKind::Regular, Some(content)) = (birth.kind, change.content) {
            if let Some(new) = content.new {
                row.content = ContentState::Published(new);
                row.version = Some(Version { change: self.set.id, base: content.base });
            }
        }
        Some(row)
    }

    /// Brings a removed inode back, without its names; answers whether it is there now.
    fn revive(&mut self, ino: InodeNo) -> Result<bool, TreeError> {
        if self.state.rows.inode(ino)?.is_some() {
            return Ok(true);
        }
        let Some(mut grave) = self.state.grave(ino)? else { return Ok(false) };
        grave.row.nlink = if grave.row.is_directory() { 2 } else { 0 };
        self.state.put_inode(ino, &grave.row)?;
        self.state.set_grave(ino, None)?;
        let lost = grave.links.into_iter().map(|link| Lost { link, why: Why::Buried });
        self.lost.entry(ino).or_default().extend(lost);
        Ok(true)
    }

    /// The directory that `ino` means, brought back with a name if it was removed; `None` where it is not known.
    fn directory(&mut self, ino: InodeNo) -> Result<Option<InodeNo>, TreeError> {
        let is_there = self.state.rows.inode(self.resolve(ino)?)?.is_some();
        match self.revived_directory(ino)? {
            Some(directory) if !is_there => {
                self.relink(directory)?;
                self.resolve(directory).map(Some)
            }
            directory => Ok(directory),
        }
    }

    /// The directory that `ino` means, brought back without a name if it was removed; `None` where it is not known.
    fn revived_directory(&mut self, ino: InodeNo) -> Result<Option<InodeNo>, TreeError> {
        let ino = self.resolve(ino)?;
        if let Some(row) = self.state.rows.inode(ino)? {
            return Ok(row.is_directory().then_some(ino));
        }
        match self.state.grave(ino)? {
            Some(grave) if grave.row.is_directory() => {
                self.revive(ino)?;
                Ok(Some(ino))
            }
            _ => Ok(None),
        }
    }

    /// Takes away all dentries that are removed or moved, and answers those that are to be placed: directories, files.
    fn detach(&mut self) -> Result<(Vec<Move>, Vec<Move>), TreeError> {
        let (mut directories, mut files) = (Vec::new(), Vec::new());
        for change in &self.set.dentries {
            let ino = self.resolve(change.ino)?;
            let merged = ino != change.ino;
            let dentry = if merged { self.only_dentry(ino)?.unwrap_or(change.dentry) } else { change.dentry };
            let Some(to) = &change.to else {
                // Whoever removes a directory by the name it had before it was merged has not seen what it is now.
                if let (false, Some(place)) = (merged, self.state.rows.place(ino, dentry)?) {
                    self.state.detach(dentry, ino, &place)?;
                    self.lose(ino, Link { dentry, place }, Why::Removed { seen: change.seen });
                }
                continue;
            };
            if !self.revive(ino)? {
                continue;
            }
            let to = Place { parent: self.resolve(to.parent)?, name: to.name.clone() };
            let from = self.state.rows.place(ino, dentry)?;
            let is_directory = self.state.is_directory(ino)?;
            if from.as_ref() == Some(&to) || is_directory && !self.moving.insert(ino) {
                continue;
            }
            if let Some(place) = &from {
                self.state.detach(dentry, ino, place)?;
                self.lose(ino, Link { dentry, place: place.clone() }, Why::Moved);
            }
            let moved = Move { link: Link { dentry, place: to }, ino, from };
            if is_directory { directories.push(moved) } else { files.push(moved) }
        }
        Ok((directories, files))
    }

    /// The dentry of a directory, also of a removed one.
    fn only_dentry(&self, directory: InodeNo) -> Result<Option<DentryId>, TreeError> {
        if let Some(link) = self.state.rows.links(directory)?.first() {
            return Ok(Some(link.dentry));
        }
        Ok(self.state.grave(directory)?.and_then(|grave| grave.links.first().map(|link| link.dentry)))
    }

    fn lose(&mut self, ino: InodeNo, link: Link, why: Why) {
        self.lost.entry(ino).or_default().push(Lost { link, why });
    }

    /// Gives directories their places, parents first. Those that would be below themselves go back to where they were.
    fn place_directories(&mut self, mut waiting: Vec<Move>) -> Result<(), TreeError> {
        while !waiting.is_empty() {
            let before = waiting.len();
            for moved in std::mem::take(&mut waiting) {
                match self.directory(moved.link.place.parent)? {
                    None => {
                        self.moving.remove(&moved.ino);
                        self.lose(moved.ino, moved.link, Why::Unplaced);
                    }
                    Some(parent) if self.top(parent)? == InodeNo::ROOT => {
                        let place = Place { parent, name: moved.link.place.name };
                        self.attach_directory(moved.link.dentry, moved.ino, place)?;
                    }
                    Some(_) => waiting.push(moved),
                }
            }
            if waiting.len() == before {
                self.break_cycle(&mut waiting)?;
            }
        }
        Ok(())
    }

    /// None of these directories can have its place: gives one of them the place it had, or one in the root.
    fn break_cycle(&mut self, waiting: &mut Vec<Move>) -> Result<(), TreeError> {
        for index in 0..waiting.len() {
            let Some(from) = waiting[index].from.clone() else { continue };
            if let Some(parent) = self.directory(from.parent)? {
                if self.top(parent)? == InodeNo::ROOT {
                    let moved = waiting.remove(index);
                    return self.attach_directory(moved.link.dentry, moved.ino, Place { parent, ..from });
                }
            }
        }
        let moved = waiting.remove(0);
        let place = Place { parent: InodeNo::ROOT, ..moved.link.place };
        self.attach_directory(moved.link.dentry, moved.ino, place)
    }

    /// Where the way up from a directory ends: in the root, or in one that has no name at this moment.
    fn top(&mut self, directory: InodeNo) -> Result<InodeNo, TreeError> {
        let mut climbed = Vec::new();
        let mut at = directory;
        while at != InodeNo::ROOT && !self.connected.contains(&at) {
            climbed.push(at);
            match self.state.rows.parent(at)? {
                Some(parent) if parent != at => at = parent,
                _ => return Ok(at),
            }
        }
        self.connected.extend(climbed);
        Ok(InodeNo::ROOT)
    }

    /// Gives a directory without a name a place. One that is there already takes in its names, and so on down to where the
    /// two trees differ.
    fn attach_directory(&mut self, dentry: DentryId, ino: InodeNo, place: Place) -> Result<(), TreeError> {
        self.moving.remove(&ino);
        let row = DentryRow { dentry, ino, kind: FileKind::Directory };
        let mut waiting = vec![(row, place)];
        while let Some((row, place)) = waiting.pop() {
            if row.kind != FileKind::Directory {
                self.attach_file(row.dentry, row.ino, place, self.set.id)?;
                continue;
            }
            match self.state.rows.lookup(place.parent, &place.name)? {
                None => self.state.attach(row.dentry, row.ino, &place)?,
                Some(there) if there.kind == FileKind::Directory => {
                    let names = self.merge(row.ino, there.ino)?;
                    waiting.extend(names.into_iter().rev());
                }
                Some(_) => {
                    let place = self.free_place(place, self.set.id)?;
                    self.state.attach(row.dentry, row.ino, &place)?;
                }
            }
        }
        Ok(())
    }

    /// Two directories under one name: `from`, which has no name itself, means `into` from now on. Answers the names that
    /// were in it, with the places that they are to have.
    fn merge(&mut self, from: InodeNo, into: InodeNo) -> Result<Vec<(DentryRow, Place)>, TreeError> {
        let mut children = Vec::new();
        self.state.rows.list(from, None, &mut |name, row| {
            children.push((name, row));
            ControlFlow::Continue(())
        })?;
        for (name, row) in &children {
            self.state.detach(row.dentry, row.ino, &Place { parent: from, name: name.clone() })?;
        }
        self.state.remove_inode(from)?;
        self.state.set_alias(from, into)?;
        self.has_aliases = true;
        Ok(children.into_iter().map(|(name, row)| (row, Place { parent: into, name })).collect())
    }

    /// Changes attributes and contents of inodes that were there before.
    fn update(&mut self) -> Result<(), TreeError> {
        for change in self.set.inodes.iter().filter(|change| !self.fresh.contains(&change.ino)).collect::<Vec<_>>() {
            let ino = self.resolve(change.ino)?;
            let Some(old) = self.state.rows.inode(ino)? else { continue };
            let mut row = old.clone();
            set_fields(&mut row, change);
            if let (Some(content), Some(current)) = (change.content, old.content.published()) {
                let is_new = content.new.is_none_or(|new| new.id != current.id);
                if is_new && content.base != Some(current.id) {
                    self.copies.push(Copy { of: ino, row: old.clone(), content: current });
                    self.stale.extend(content.base.map(|base| (ino, base)));
                }
                match content.new {
                    Some(new) if is_new => {
                        row.content = ContentState::Published(new);
                        row.version = Some(Version { change: self.set.id, base: content.base });
                    }
                    Some(_) => {}
                    None => row.content = ContentState::Local { base: Some(current) },
                }
            }
            if row != old {
                self.state.put_inode(ino, &row)?;
            }
        }
        Ok(())
    }

    fn place_files(&mut self, files: Vec<Move>) -> Result<(), TreeError> {
        for moved in files {
            match self.directory(moved.link.place.parent)? {
                Some(parent) => {
                    let place = Place { parent, name: moved.link.place.name };
                    self.attach_file(moved.link.dentry, moved.ino, place, self.set.id)?;
                }
                None => self.lose(moved.ino, moved.link, Why::Unplaced),
            }
        }
        Ok(())
    }

    /// Gives a file a name; where another one has it, a conflict name of `by`, or none where the two are equal.
    fn attach_file(&mut self, dentry: DentryId, ino: InodeNo, place: Place, by: ChangeId) -> Result<(), TreeError> {
        let Some(there) = self.state.rows.lookup(place.parent, &place.name)? else {
            return self.state.attach(dentry, ino, &place);
        };
        if there.ino == ino || self.are_equal(there.ino, ino)? {
            self.lose(ino, Link { dentry, place }, Why::Collapsed);
            return Ok(());
        }
        let place = self.free_place(place, by)?;
        self.state.attach(dentry, ino, &place)
    }

    fn are_equal(&self, one: InodeNo, other: InodeNo) -> Result<bool, TreeError> {
        let (Some(one), Some(other)) = (self.state.rows.inode(one)?, self.state.rows.inode(other)?) else {
            return Ok(false);
        };
        Ok(match (one.content, other.content) {
            (ContentState::Published(one), ContentState::Published(other)) => one.id == other.id,
            _ => one.kind == FileKind::Symlink && other.kind == FileKind::Symlink && one.target == other.target,
        })
    }

    /// The first conflict name of a place that is free.
    fn free_place(&self, place: Place, by: ChangeId) -> Result<Place, TreeError> {
        let device = self.device_name(by.device)?;
        let mut attempt = 0;
        loop {
            let name = names::conflict_name(&place.name, &device, by.hlc, attempt);
            if self.state.rows.lookup(place.parent, &name)?.is_none() {
                return Ok(Place { parent: place.parent, name });
            }
            attempt += 1;
        }
    }
}

fn set_fields(row: &mut InodeRow, change: &InodeChange) {
    row.mode = change.mode.unwrap_or(row.mode);
    row.uid = change.uid.unwrap_or(row.uid);
    row.gid = change.gid.unwrap_or(row.gid);
    row.atime = change.atime.unwrap_or(row.atime);
    row.mtime = change.mtime.unwrap_or(row.mtime);
    row.ctime = change.ctime.unwrap_or(row.ctime);
    for (name, value) in &change.xattrs {
        match value {
            Some(value) => row.xattrs.insert(name.clone(), value.clone()),
            None => row.xattrs.remove(name),
        };
    }
    if change.mode.is_some() || !change.xattrs.is_empty() {
        row.permissions().settle();
    }
}
