//! The pending change: rows now against their pre-images, as a change set; and which part of it can be published.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;

use bytes::Bytes;
use cairn_platform_api::{FileKind, InodeNo, Timestamp};

use super::keys::{self, family};
use super::namespace::{Images, Namespace, decoded, dentry_of};
use super::rows::{self, Content, ContentState, InodeRow, Place, Snapshot};
use super::{Birth, ChangeSet, ContentChange, Contents, CutLimits, DentryChange, InodeChange, Tree, TreeError};
use crate::base::ChangeId;
use crate::base::codec::DecodeError;
use crate::store::{Operation, Rows};

/// The pending change.
pub(super) struct Pending {
    /// The rows as they were published.
    pub images: Images,
    pub inodes: Vec<InodeChange>,
    pub dentries: Vec<PendingDentry>,
    /// Inodes of which nothing is left but times that only tell of what cancelled out (see [`is_incidental`]).
    incidental: BTreeSet<InodeNo>,
}

/// Files that are local and were not modified, with the contents that they have.
pub(super) type Unmodified = BTreeMap<InodeNo, Content>;

pub(super) struct PendingDentry {
    pub change: DentryChange,
    /// Where it was published.
    published: Option<Place>,
    /// A published directory at another place now.
    is_directory_move: bool,
    /// A published directory that is gone.
    is_directory_removal: bool,
}

impl PendingDentry {
    /// How much it takes in a segment, at most.
    fn weight(&self) -> usize {
        const FIELDS: usize = 60;
        FIELDS + self.change.to.as_ref().map_or(0, |place| place.name.as_bytes().len())
    }
}

impl Pending {
    pub fn read(rows: &impl Rows) -> Result<Self, TreeError> {
        let images = read_images(rows)?;
        let mut pending =
            Self { images: Images::new(), inodes: Vec::new(), dentries: Vec::new(), incidental: BTreeSet::new() };
        for (key, old) in &images {
            match key.first() {
                Some(&family::INODE) => {
                    let Some((kind, change)) = changed_inode(rows, key, old.as_ref())? else { continue };
                    if is_incidental(kind, &change) {
                        pending.incidental.insert(change.ino);
                    }
                    pending.inodes.push(change);
                }
                Some(&family::LINK) => pending.dentries.extend(changed_dentry(rows, &images, key, old.as_ref())?),
                _ => {}
            }
        }
        pending.inodes.sort_unstable_by_key(|inode| inode.ino);
        pending.dentries.sort_unstable_by_key(|dentry| dentry.change.dentry);
        pending.images = images;
        Ok(pending)
    }

    /// All of it, as a change set with local contents.
    pub fn to_change_set(&self, id: ChangeId, device_name: &str) -> ChangeSet {
        ChangeSet {
            id,
            device_name: device_name.to_owned(),
            inodes: self.inodes.clone(),
            dentries: self.dentries.iter().map(|dentry| dentry.change.clone()).collect(),
        }
    }

    /// Takes out the local contents that are the published ones they began as.
    pub fn leave_out_unmodified(&mut self, contents: &mut dyn Contents) -> Result<Unmodified, TreeError> {
        let mut unmodified = Unmodified::new();
        for inode in &mut self.inodes {
            if inode.birth.is_some() || inode.content.is_none_or(|content| content.new.is_some()) {
                continue;
            }
            let key = keys::inode(inode.ino);
            let old = self.images.get(&key[..]).and_then(|old| old.as_ref());
            let published = old_inode(&key, old)?.and_then(|row| row.content.published());
            if let Some(content) = published.filter(|content| contents.is_unmodified(inode.ino, content)) {
                inode.content = None;
                unmodified.insert(inode.ino, content);
            }
        }
        self.inodes.retain(|inode| !inode.is_empty());
        Ok(unmodified)
    }

    /// Takes out times that only tell of what cancelled out.
    pub fn leave_out_incidental(&mut self) -> Vec<InodeChange> {
        let incidental = std::mem::take(&mut self.incidental);
        let (left_out, rest) =
            std::mem::take(&mut self.inodes).into_iter().partition(|inode| incidental.contains(&inode.ino));
        self.inodes = rest;
        left_out
    }

    /// Forgets the pre-images of rows that are as they were published.
    pub fn forget_unchanged(&self, rows: &mut Operation<'_>) -> Result<(), TreeError> {
        for (key, old) in &self.images {
            if rows.get(key)? == *old {
                rows.delete(&keys::preimage(key));
            }
        }
        Ok(())
    }
}

/// What of an inode is only here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unpublished {
    /// Nothing.
    Nothing,
    /// Its attributes or its content, or newer ones.
    Row,
    /// The inode itself, one of its names, or of the names in it.
    Names,
}

impl Tree {
    /// What of an inode is only here, besides what it is while it is asked for. Reads all that is pending.
    ///
    /// # Errors
    /// [`TreeError`] where rows cannot be read.
    pub fn unpublished(&self, ino: InodeNo) -> Result<Unpublished, TreeError> {
        let pending = Pending::read(&**self.store())?;
        let concerns = |dentry: &PendingDentry| {
            let places = [&dentry.change.to, &dentry.published];
            dentry.change.ino == ino || places.into_iter().flatten().any(|place| place.parent == ino)
        };
        let row = pending.inodes.iter().find(|inode| inode.ino == ino);
        Ok(match row {
            Some(row) if row.birth.is_some() => Unpublished::Names,
            _ if pending.dentries.iter().any(concerns) => Unpublished::Names,
            Some(_) if !pending.incidental.contains(&ino) => Unpublished::Row,
            _ => Unpublished::Nothing,
        })
    }
}

/// A row as it was published.
pub(super) fn published(rows: &impl Rows, key: &[u8]) -> Result<Option<Bytes>, TreeError> {
    let preimage = keys::preimage(key);
    match rows.get(&preimage)? {
        Some(image) => Ok(decoded(&preimage, rows::decode_image(&image))?.map(Bytes::copy_from_slice)),
        None => Ok(rows.get(key)?),
    }
}

/// All pre-images.
fn read_images(rows: &impl Rows) -> Result<Images, TreeError> {
    let mut images = Images::new();
    let mut failure = None;
    rows.scan_family(family::PREIMAGE, &mut |key, value| {
        let image = rows::decode_image(value);
        match keys::of_preimage(key).ok_or(DecodeError::Invalid("a key")).and_then(|row| Ok((row, image?))) {
            Ok((row, image)) => {
                images.insert(row.into(), image.map(Bytes::copy_from_slice));
                ControlFlow::Continue(())
            }
            Err(error) => {
                failure = Some(TreeError::corrupt(key, error));
                ControlFlow::Break(())
            }
        }
    })?;
    failure.map_or(Ok(images), Err)
}

fn old_inode(key: &[u8], old: Option<&Bytes>) -> Result<Option<InodeRow>, TreeError> {
    old.map(|value| decoded(key, InodeRow::decode(value))).transpose()
}

fn changed_inode(
    rows: &impl Rows,
    key: &[u8],
    old: Option<&Bytes>,
) -> Result<Option<(FileKind, InodeChange)>, TreeError> {
    let ino = InodeNo(keys::number(key).ok_or_else(|| TreeError::corrupt(key, DecodeError::Invalid("a key")))?);
    let Some(new) = rows.inode(ino)? else { return Ok(None) };
    let kind = new.kind;
    let change = match old_inode(key, old)? {
        None => born(ino, new),
        Some(old) => difference(ino, &old, new),
    };
    Ok((!change.is_empty()).then_some((kind, change)))
}

/// Whether nothing is left of a change but times that tell of something that cancelled out: the name of a temporary file, a
/// mode that was set and set back. They are no reason to publish anything, and are published with what is.
///
/// Changes of names leave the same time in both fields of a directory; whoever lets a program set one makes them differ.
fn is_incidental(kind: FileKind, change: &InodeChange) -> bool {
    let InodeChange { atime, mtime, ctime, .. } = change;
    let is_of_names = kind == FileKind::Directory && mtime == ctime;
    change.birth.is_none() && change.changes_times_only() && atime.is_none() && (mtime.is_none() || is_of_names)
}

/// Whether a row that has this pre-image is pending for its own sake; it may be as it was before.
pub(super) fn is_of_interest(rows: &impl Rows, preimage: &[u8], image: &[u8]) -> Result<bool, TreeError> {
    let invalid = || TreeError::corrupt(preimage, DecodeError::Invalid("a key"));
    let key = keys::of_preimage(preimage).ok_or_else(invalid)?;
    let old = decoded(preimage, rows::decode_image(image))?.map(Bytes::copy_from_slice);
    if key.first() != Some(&family::INODE) || old.is_none() {
        return Ok(true);
    }
    Ok(changed_inode(rows, &key, old.as_ref())?.is_none_or(|(kind, change)| !is_incidental(kind, &change)))
}

fn born(ino: InodeNo, row: InodeRow) -> InodeChange {
    let content = match row.content {
        ContentState::None => None,
        ContentState::Published(content) => Some(ContentChange { base: None, new: Some(content) }),
        ContentState::Local { base } => Some(ContentChange { base: base.map(|base| base.id), new: None }),
    };
    InodeChange {
        ino,
        birth: Some(Birth { kind: row.kind, rdev: row.rdev, btime: row.btime, target: row.target }),
        mode: Some(row.mode),
        uid: Some(row.uid),
        gid: Some(row.gid),
        atime: Some(row.atime),
        mtime: Some(row.mtime),
        ctime: Some(row.ctime),
        xattrs: row.xattrs.into_iter().map(|(name, value)| (name, Some(value))).collect(),
        content,
    }
}

fn difference(ino: InodeNo, old: &InodeRow, new: InodeRow) -> InodeChange {
    fn changed<T: PartialEq>(old: &T, new: T) -> Option<T> {
        (*old != new).then_some(new)
    }
    let mut xattrs: BTreeMap<_, _> = old.xattrs.keys().map(|name| (name.clone(), None)).collect();
    for (name, value) in new.xattrs {
        if old.xattrs.get(&name) == Some(&value) {
            xattrs.remove(&name);
        } else {
            xattrs.insert(name, Some(value));
        }
    }
    let base = old.content.published().map(|content| content.id);
    let content = match new.content {
        ContentState::Published(content) if Some(content.id) != base => {
            Some(ContentChange { base, new: Some(content) })
        }
        ContentState::Local { .. } => Some(ContentChange { base, new: None }),
        _ => None,
    };
    InodeChange {
        ino,
        birth: None,
        mode: changed(&old.mode, new.mode),
        uid: changed(&old.uid, new.uid),
        gid: changed(&old.gid, new.gid),
        atime: changed(&old.atime, new.atime),
        mtime: changed(&old.mtime, new.mtime),
        ctime: changed(&old.ctime, new.ctime),
        xattrs: xattrs.into_iter().collect(),
        content,
    }
}

fn changed_dentry(
    rows: &impl Rows,
    images: &Images,
    key: &[u8],
    old: Option<&Bytes>,
) -> Result<Option<PendingDentry>, TreeError> {
    let invalid = || TreeError::corrupt(key, DecodeError::Invalid("a key"));
    let ino = InodeNo(keys::number(key).ok_or_else(invalid)?);
    let dentry = dentry_of(key).ok_or_else(invalid)?;
    let published = old.map(|value| decoded(key, Place::decode(value))).transpose()?;
    let to = rows.place(ino, dentry)?;
    if published == to {
        return Ok(None);
    }
    let inode_key = keys::inode(ino);
    let old_inode = match images.get(&inode_key[..]) {
        Some(old) => old_inode(&inode_key, old.as_ref())?,
        None => rows.inode(ino)?,
    };
    let seen = match (&to, &old_inode) {
        (None, Some(row)) => row.content.published().map(|content| content.id),
        _ => None,
    };
    let is_directory = old_inode.is_some_and(|row| row.kind == FileKind::Directory);
    let is_directory_move = is_directory && published.is_some() && to.is_some();
    let is_directory_removal = is_directory && to.is_none();
    let change = DentryChange { dentry, ino, to, seen };
    Ok(Some(PendingDentry { change, published, is_directory_move, is_directory_removal }))
}

/// What a cut publishes and what stays pending.
pub(super) struct Split {
    pub publish: ChangeSet,
    pub rest: ChangeSet,
    /// Inodes whose local content is published, from these snapshots.
    pub published: Vec<(InodeNo, Snapshot)>,
    /// Whether something is held back only because one change set has its limits.
    pub more: bool,
}

/// Whether local content is still what its snapshot says, and stays so while we ask.
pub(super) type StillClean<'a> = dyn FnMut(InodeNo, &Snapshot) -> bool + 'a;

impl Pending {
    /// Divides the pending change. Of what goes beyond the limits the oldest inodes and names are published; those after them
    /// are held back as if they were not uploaded yet.
    pub fn split(
        &self,
        id: ChangeId,
        device_name: &str,
        snapshots: &HashMap<InodeNo, Snapshot>,
        limits: CutLimits,
        still_clean: &mut StillClean<'_>,
    ) -> Split {
        let held = Held::of(self, snapshots, limits);
        let empty = || ChangeSet { id, device_name: device_name.into(), inodes: Vec::new(), dentries: Vec::new() };
        let mut split = Split { publish: empty(), rest: empty(), published: Vec::new(), more: held.limited };
        let waiting = held.parents();
        for inode in &self.inodes {
            // The times of a directory travel with the names that changed them.
            if held.inodes.contains(&inode.ino) || waiting.contains(&inode.ino) && inode.changes_times_only() {
                split.rest.inodes.push(inode.clone());
            } else {
                split.divide_inode(inode, snapshots.get(&inode.ino), still_clean);
            }
        }
        for (index, dentry) in self.dentries.iter().enumerate() {
            let part = if held.dentries[index] { &mut split.rest } else { &mut split.publish };
            part.dentries.push(dentry.change.clone());
        }
        let is_incidental = |inode: &InodeChange| self.incidental.contains(&inode.ino);
        if split.publish.dentries.is_empty() && split.publish.inodes.iter().all(is_incidental) {
            split.rest.inodes.append(&mut split.publish.inodes);
            split.rest.inodes.sort_unstable_by_key(|inode| inode.ino);
        }
        split
    }
}

impl Split {
    fn divide_inode(&mut self, inode: &InodeChange, snapshot: Option<&Snapshot>, still_clean: &mut StillClean<'_>) {
        let mut publish = inode.clone();
        let mut base = None;
        if let Some(content @ ContentChange { new: None, .. }) = inode.content {
            base = Some(content.base);
            publish.content = None;
            publish.mtime = None;
            publish.ctime = inode.ctime.filter(|_| snapshot.is_some() || inode.birth.is_some());
            if let Some(snapshot) = snapshot {
                let new = snapshot.content;
                let is_new = content.base != Some(new.id) || inode.birth.is_some();
                publish.content = is_new.then_some(ContentChange { new: Some(new), ..content });
                publish.mtime = Some(snapshot.stamp.mtime);
                self.published.push((inode.ino, *snapshot));
                base = (!still_clean(inode.ino, snapshot)).then_some(Some(new.id));
            }
        }
        if let Some(base) = base {
            let content = Some(ContentChange { base, new: None });
            let ctime = inode.ctime.filter(|_| publish.ctime.is_none());
            self.rest.inodes.push(InodeChange { mtime: inode.mtime, ctime, content, ..InodeChange::new(inode.ino) });
        }
        if !publish.is_empty() {
            self.publish.inodes.push(publish);
        }
    }
}

/// How much a change takes in a segment, roughly.
fn weight(inode: &InodeChange, snapshot: Option<&Snapshot>) -> usize {
    const FIELDS: usize = 180;
    // A list of chunks: 36 bytes for some 256 KiB, until it is stored as chunks itself.
    let list = snapshot.map_or(0, |snapshot| (snapshot.content.size >> 18).saturating_mul(36).min(64 << 10) as usize);
    let xattrs = inode.xattrs.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len) + 4);
    let target = inode.birth.as_ref().and_then(|birth| birth.target.as_ref()).map_or(0, Vec::len);
    FIELDS + list + target + xattrs.sum::<usize>()
}

/// What cannot be published yet: new files that are not uploaded, and what depends on them.
struct Held<'p> {
    pending: &'p Pending,
    inodes: BTreeSet<InodeNo>,
    dentries: Vec<bool>,
    born: BTreeSet<InodeNo>,
    by_published_place: HashMap<&'p Place, usize>,
    by_new_place: HashMap<&'p Place, usize>,
    by_new_parent: HashMap<InodeNo, Vec<usize>>,
    by_inode: HashMap<InodeNo, Vec<usize>>,
    queue: Vec<usize>,
    holds_directory_moves: bool,
    /// Inodes of which a name is held back that is not removed.
    named: BTreeSet<InodeNo>,
    limited: bool,
}

impl<'p> Held<'p> {
    fn of(pending: &'p Pending, snapshots: &HashMap<InodeNo, Snapshot>, limits: CutLimits) -> Self {
        let mut held = Self {
            pending,
            inodes: BTreeSet::new(),
            dentries: vec![false; pending.dentries.len()],
            born: pending.inodes.iter().filter(|inode| inode.birth.is_some()).map(|inode| inode.ino).collect(),
            by_published_place: HashMap::new(),
            by_new_place: HashMap::new(),
            by_new_parent: HashMap::new(),
            by_inode: HashMap::new(),
            queue: Vec::new(),
            holds_directory_moves: false,
            named: BTreeSet::new(),
            limited: false,
        };
        for (index, dentry) in pending.dentries.iter().enumerate() {
            held.by_published_place.extend(dentry.published.as_ref().map(|place| (place, index)));
            if let Some(place) = &dentry.change.to {
                held.by_new_place.insert(place, index);
                held.by_new_parent.entry(place.parent).or_default().push(index);
            }
            held.by_inode.entry(dentry.change.ino).or_default().push(index);
        }
        held.keep_within(snapshots, limits);
        held
    }

    /// Holds back what is not uploaded, and what one change set has no room for.
    fn keep_within(&mut self, snapshots: &HashMap<InodeNo, Snapshot>, limits: CutLimits) {
        let (mut births, mut bytes) = (0, 0_usize);
        let mut counted = BTreeSet::new();
        for inode in &self.pending.inodes {
            let snapshot = snapshots.get(&inode.ino);
            let is_local = inode.content.is_some_and(|content| content.new.is_none());
            let is_birth = inode.birth.as_ref().is_some_and(|birth| birth.kind != FileKind::Directory);
            let waits = inode.birth.is_some() && is_local && snapshot.is_none();
            // A new inode is published with a name.
            let name = inode.birth.as_ref().and_then(|_| self.by_inode.get(&inode.ino)?.first().copied());
            let weight = weight(inode, snapshot) + name.map_or(0, |index| self.pending.dentries[index].weight());
            let is_too_much = is_birth && births >= limits.births || bytes > 0 && bytes + weight > limits.bytes;
            self.limited |= is_too_much && !waits;
            if !waits && !is_too_much {
                births += usize::from(is_birth);
                bytes += weight;
                counted.extend(name);
            } else if inode.birth.is_some() {
                self.hold_inode(inode.ino);
            } else {
                self.inodes.insert(inode.ino);
            }
        }
        self.hold_what_depends();
        let mut is_full = false;
        for index in self.names_in_order() {
            if self.dentries[index] || counted.contains(&index) {
                continue;
            }
            let weight = self.pending.dentries[index].weight();
            is_full |= bytes > 0 && bytes + weight > limits.bytes;
            if is_full {
                self.limited = true;
                self.hold(index);
            } else {
                bytes += weight;
            }
        }
        self.hold_what_depends();
    }

    /// Names in the order in which they are published where one change set has no room for all: what depends on each other
    /// is together, and removals of directories come after those of the names in them.
    fn names_in_order(&self) -> Vec<usize> {
        let dentries = &self.pending.dentries;
        let (removals, others): (Vec<_>, Vec<_>) =
            (0..dentries.len()).partition(|index| dentries[*index].is_directory_removal);
        let mut order = Vec::with_capacity(dentries.len());
        let mut met = vec![false; dentries.len()];
        let mut inodes = BTreeSet::new();
        for first in others {
            let mut waiting = vec![first];
            while let Some(index) = waiting.pop() {
                let dentry = &dentries[index];
                if dentry.is_directory_removal || std::mem::replace(&mut met[index], true) {
                    continue;
                }
                order.push(index);
                waiting.extend(dentry.change.to.as_ref().and_then(|place| self.by_published_place.get(place)));
                waiting.extend(dentry.published.as_ref().and_then(|place| self.by_new_place.get(place)));
                if inodes.insert(dentry.change.ino) {
                    waiting.extend(self.by_inode.get(&dentry.change.ino).into_iter().flatten().rev());
                }
            }
        }
        order.extend(removals.into_iter().rev());
        order
    }

    /// The directories in which names are held back.
    fn parents(&self) -> BTreeSet<InodeNo> {
        let held = self.pending.dentries.iter().zip(&self.dentries).filter(|(_, held)| **held);
        held.flat_map(|(dentry, _)| [&dentry.change.to, &dentry.published])
            .flatten()
            .map(|place| place.parent)
            .collect()
    }

    fn hold(&mut self, index: usize) {
        if !std::mem::replace(&mut self.dentries[index], true) {
            self.queue.push(index);
        }
    }

    fn hold_all(&mut self, indices: Option<Vec<usize>>) {
        indices.into_iter().flatten().for_each(|index| self.hold(index));
    }

    /// A new inode stays back with its names; a directory with what is in it.
    fn hold_inode(&mut self, ino: InodeNo) {
        if self.inodes.insert(ino) {
            self.hold_all(self.by_inode.get(&ino).cloned());
            self.hold_all(self.by_new_parent.get(&ino).cloned());
        }
    }

    fn hold_what_depends(&mut self) {
        while let Some(index) = self.queue.pop() {
            self.hold_what_depends_on(index);
        }
    }

    fn hold_what_depends_on(&mut self, index: usize) {
        let dentry = &self.pending.dentries[index];
        // Whoever has the place in the published state stays there, and whoever takes the place of one that stays waits.
        if let Some(&there) = dentry.change.to.as_ref().and_then(|place| self.by_published_place.get(place)) {
            self.hold(there);
        }
        if let Some(place) = &dentry.published {
            if let Some(&follower) = self.by_new_place.get(place) {
                self.hold(follower);
            }
            // A directory that still has a name in it cannot be removed.
            let removed = self.by_inode.get(&place.parent).into_iter().flatten().copied();
            let removed = removed.filter(|index| self.pending.dentries[*index].change.to.is_none()).collect();
            self.hold_all(Some(removed));
        }
        let ino = dentry.change.ino;
        if self.born.contains(&ino) && !self.inodes.contains(&ino) {
            let mut names = self.by_inode.get(&ino).into_iter().flatten();
            if names.all(|index| self.dentries[*index]) {
                self.hold_inode(ino);
            }
        }
        // An inode keeps a name until it has the next one.
        if dentry.change.to.is_some() && self.named.insert(ino) {
            let removed = self.by_inode.get(&ino).into_iter().flatten().copied();
            let removed = removed.filter(|index| self.pending.dentries[*index].change.to.is_none()).collect();
            self.hold_all(Some(removed));
        }
        // Directory moves depend on each other in ways that places do not show.
        if dentry.is_directory_move && !std::mem::replace(&mut self.holds_directory_moves, true) {
            let moves = self.pending.dentries.iter().enumerate();
            let moves = moves.filter(|(_, dentry)| dentry.is_directory_move).map(|(index, _)| index).collect();
            self.hold_all(Some(moves));
        }
    }
}

/// Whether two rows look the same from outside the tree.
pub(super) fn looks_equal(one: &InodeRow, other: &InodeRow) -> bool {
    let visible = |row: &InodeRow| {
        let content = match row.content {
            ContentState::Local { .. } => ContentState::Local { base: None },
            content => content,
        };
        // The backing file has the time of local content.
        let mtime = if row.kind == FileKind::Regular && content == (ContentState::Local { base: None }) {
            Timestamp::default()
        } else {
            row.mtime
        };
        InodeRow { content, mtime, version: None, ..row.clone() }
    };
    visible(one) == visible(other)
}
