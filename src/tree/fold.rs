//! The fold: change sets of other devices in; and the cut: a change set of this device out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use cairn_platform_api::{InodeNo, VfsName};

use super::apply::apply;
use super::aside::{AsideRow, Contents, NoContents};
use super::keys::{self, family};
use super::namespace::{Images, Namespace, Record, State, decoded};
use super::pending::{self, Pending, Split, Unmodified, looks_equal};
use super::rows::{self, Content, ContentState, DentryRow, GraveRow, InodeRow, Place, Snapshot};
use super::{ChangeSet, InodeChange, Numbers, Tree, TreeError, content, join};
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::{ChangeId, Hlc};
use crate::store::{Exclusive, Operation, Rows};

/// The row of the greatest time seen.
const TIME_SEEN: u64 = 1;
const VERSION: u8 = 1;

/// Something that is not what it was: the kernel is told to forget it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Touched {
    /// A name means something else, or nothing.
    Entry {
        /// The directory.
        parent: InodeNo,
        /// The name.
        name: VfsName,
    },
    /// Attributes or content of an inode changed, or it is gone.
    Inode(InodeNo),
}

/// What a cut made.
#[derive(Debug)]
pub struct Cut<R> {
    /// The change set; it is in the log.
    pub change_set: ChangeSet,
    /// The inodes whose local content was published, and from which snapshot.
    pub published: Vec<(InodeNo, Snapshot)>,
    /// What is not what it was: files whose local content is published now, as far as they are clean.
    pub touched: Vec<Touched>,
    /// What sealing answered.
    pub sealed: R,
    /// Whether more can be published at once, by another cut: one has its limits.
    pub more: bool,
}

/// How much is not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PendingSummary {
    /// Inodes and names that were touched since they were published, files with local content among them; some may be as
    /// they were, until the next cut looks. Times that only tell of what cancelled out do not count.
    pub changes: u64,
}

impl Tree {
    /// Takes in change sets, of any devices, in any order; those that are in the log already are ignored. `record` writes
    /// what belongs to them (cursors, lists of chunks) in the same bulk work, also when all are known.
    ///
    /// Answers what differs afterwards. Holds the gate exclusively, in memory only.
    ///
    /// # Errors
    /// [`TreeError`] where rows cannot be read or the store takes no operations; then nothing has happened.
    pub fn fold(
        &self,
        sets: Vec<ChangeSet>,
        record: impl FnOnce(&mut Exclusive<'_>) -> Result<(), TreeError>,
    ) -> Result<Vec<Touched>, TreeError> {
        self.fold_with(sets, &mut NoContents, record)
    }

    /// As [`Tree::fold`]; `contents` knows the files. What is local and was not modified is no change, and a content that
    /// goes while somebody can write to it is set aside.
    ///
    /// # Errors
    /// As [`Tree::fold`].
    pub fn fold_with(
        &self,
        sets: Vec<ChangeSet>,
        contents: &mut dyn Contents,
        record: impl FnOnce(&mut Exclusive<'_>) -> Result<(), TreeError>,
    ) -> Result<Vec<Touched>, TreeError> {
        let mut exclusive = self.store.exclusive()?;
        let mut new = BTreeMap::new();
        for set in sets {
            if exclusive.get(&keys::change(family::LOG, set.id))?.is_none() {
                self.clock.observe(set.id.hlc);
                new.insert(set.id, set);
            }
        }
        let mut touched = Vec::new();
        let mut reserved = None;
        if !new.is_empty() {
            let mut pending = Pending::read(&exclusive)?;
            let unmodified = pending.leave_out_unmodified(contents)?;
            let incidental = pending.leave_out_incidental();
            let pending_set = pending.to_change_set(self.next_id(), &self.device.name);
            let mut fold = Fold { rows: &mut exclusive, before: Images::new() };
            fold.undo_pending(pending.images)?;
            fold.merge(new)?;
            fold.apply_pending(&pending_set)?;
            fold.localize(&unmodified)?;
            fold.advance_times(&incidental)?;
            reserved = fold.set_aside(&unmodified, contents, &self.numbers)?;
            fold.keep_time(self.clock.tick());
            touched = fold.touched()?;
        }
        record(&mut exclusive)?;
        exclusive.commit();
        if let Some(block) = reserved {
            self.numbers.reserved(block);
        }
        Ok(touched)
    }

    /// Publishes what can be published: makes a change set of it, applies it as published, and hands it to `seal` in the
    /// same bulk work, which writes the outbox row. `None` where there is nothing to publish.
    ///
    /// A file whose local content has a snapshot is published with that; it stays local unless `still_clean` says that its
    /// backing file has the stamp of the snapshot and nobody can be writing to it. New files without a snapshot are held
    /// back, and names that depend on them.
    ///
    /// # Errors
    /// What `seal` answers, [`TreeError::Joining`] while a checkpoint is being loaded, and [`TreeError`] as [`Tree::fold`];
    /// then nothing has happened.
    pub fn cut<R, E: From<TreeError>>(
        &self,
        still_clean: &mut dyn FnMut(InodeNo, &Snapshot) -> bool,
        seal: impl FnOnce(&ChangeSet, &mut Exclusive<'_>) -> Result<R, E>,
    ) -> Result<Option<Cut<R>>, E> {
        let mut exclusive = self.store.exclusive().map_err(TreeError::from)?;
        if join::is_loading(&exclusive)? {
            return Err(TreeError::Joining.into());
        }
        let pending = Pending::read(&exclusive)?;
        let snapshots = snapshots_of(&exclusive, &pending)?;
        let mut divide = |limits| pending.split(self.next_id(), &self.device.name, &snapshots, limits, still_clean);
        let mut limits = self.cut_limits;
        let mut split = divide(limits);
        while split.more && split.publish.is_empty() {
            // Where the oldest depend on later ones, they go together.
            limits = limits.doubled();
            split = divide(limits);
        }
        let Split { publish, rest, published, more } = split;
        if publish.is_empty() && published.is_empty() {
            if rest.is_empty() {
                Fold { rows: &mut exclusive, before: Images::new() }.undo_pending(pending.images)?;
            } else {
                pending.forget_unchanged(&mut exclusive)?;
            }
            exclusive.commit();
            return Ok(None);
        }
        let mut fold = Fold { rows: &mut exclusive, before: Images::new() };
        if rest.len() > publish.len() {
            fold.publish_beside(&publish, &rest, &published)?;
        } else {
            fold.undo_pending(pending.images)?;
            if !publish.is_empty() {
                fold.apply_published(&publish)?;
            }
            fold.apply_pending(&rest)?;
        }
        if !publish.is_empty() {
            fold.rows.put(&keys::change(family::LOG, publish.id), publish.encode());
        }
        fold.keep_time(publish.id.hlc);
        for (ino, _) in &published {
            fold.rows.delete(&keys::snapshot(*ino));
        }
        let touched = fold.touched()?;
        if publish.is_empty() {
            // Contents were changed and changed back: nothing to send, and the files are clean again.
            exclusive.commit();
            return Ok(None);
        }
        let sealed = seal(&publish, &mut exclusive)?;
        exclusive.commit();
        Ok(Some(Cut { change_set: publish, published, touched, sealed, more }))
    }

    /// An id greater than all that were seen.
    pub(super) fn next_id(&self) -> ChangeId {
        ChangeId { hlc: self.clock.tick(), device: self.device.id }
    }

    /// How much is not published.
    ///
    /// # Errors
    /// [`TreeError`] where rows cannot be read.
    pub fn pending_summary(&self) -> Result<PendingSummary, TreeError> {
        let mut summary = PendingSummary::default();
        let mut failure = None;
        self.store.scan_family(family::PREIMAGE, &mut |key, image| {
            if !matches!(key.get(9), Some(&(family::INODE | family::LINK))) {
                return ControlFlow::Continue(());
            }
            match pending::is_of_interest(&*self.store, key, image) {
                Ok(counts) => {
                    summary.changes += u64::from(counts);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        failure.map_or(Ok(summary), Err)
    }

    /// Visits the inodes whose content is local.
    ///
    /// # Errors
    /// [`TreeError`] where rows cannot be read.
    pub fn local_inodes(&self, visit: &mut dyn FnMut(InodeNo) -> ControlFlow<()>) -> Result<(), TreeError> {
        let mut failure = None;
        self.store.scan_family(family::PREIMAGE, &mut |key, _| {
            let Some((family::INODE, number)) = key.get(9).copied().zip(keys::number(key)) else {
                return ControlFlow::Continue(());
            };
            match self.inode(InodeNo(number)) {
                Ok(Some(InodeRow { content: ContentState::Local { .. }, .. })) => visit(InodeNo(number)),
                Ok(_) => ControlFlow::Continue(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        failure.map_or(Ok(()), Err)
    }

    /// The change sets after `after` in the order of their ids, of all devices.
    ///
    /// # Errors
    /// [`TreeError`] where rows cannot be read.
    pub fn log(
        &self,
        after: Option<ChangeId>,
        visit: &mut dyn FnMut(ChangeSet) -> ControlFlow<()>,
    ) -> Result<(), TreeError> {
        let start = after.map(|after| keys::change(family::LOG, after));
        let start = start.as_deref().map_or(Bound::Included(&[family::LOG][..]), Bound::Excluded);
        let mut failure = None;
        self.store.scan_from(&[family::LOG], start, &mut |key, value| match ChangeSet::decode(value) {
            Ok(set) => visit(set),
            Err(error) => {
                failure = Some(TreeError::corrupt(key, error));
                ControlFlow::Break(())
            }
        })?;
        failure.map_or(Ok(()), Err)
    }

    pub(super) fn restore_clock(&self) -> Result<(), TreeError> {
        if let Some(value) = self.store.get(&keys::numbered(family::META, TIME_SEEN))? {
            let time = Reader::new(&value).u64("a time");
            self.clock.observe(Hlc(decoded(&keys::numbered(family::META, TIME_SEEN), time)?));
        }
        Ok(())
    }
}

#[cfg(test)]
impl Tree {
    /// What would differ if the pending change were undone and applied again: nothing.
    pub(super) fn unsettled(&self) -> Result<Vec<Touched>, TreeError> {
        let mut exclusive = self.store.exclusive()?;
        let pending = Pending::read(&exclusive)?;
        let set = pending.to_change_set(self.next_id(), &self.device.name);
        let mut fold = Fold { rows: &mut exclusive, before: Images::new() };
        fold.undo_pending(pending.images)?;
        fold.apply_pending(&set)?;
        fold.touched()
    }
}

fn snapshots_of(rows: &impl Rows, pending: &Pending) -> Result<HashMap<InodeNo, Snapshot>, TreeError> {
    let mut snapshots = HashMap::new();
    for inode in &pending.inodes {
        if inode.content.is_some_and(|content| content.new.is_none()) {
            snapshots.extend(content::snapshot(rows, inode.ino)?.map(|snapshot| (inode.ino, snapshot)));
        }
    }
    Ok(snapshots)
}

/// One piece of bulk work: rows, and what those that it changed were before it.
pub(super) struct Fold<'r, 'a> {
    pub rows: &'r mut Operation<'a>,
    pub before: Images,
}

impl Fold<'_, '_> {
    /// Puts rows back.
    pub fn restore(&mut self, images: Images) -> Result<(), TreeError> {
        for (key, old) in images {
            let now = self.rows.get(&key)?;
            self.rows.set(&key, old);
            self.before.entry(key).or_insert(now);
        }
        Ok(())
    }

    pub fn undo_pending(&mut self, images: Images) -> Result<(), TreeError> {
        for key in images.keys() {
            self.rows.delete(&keys::preimage(key));
        }
        self.restore(images)
    }

    fn undo_published(&mut self, id: ChangeId) -> Result<(), TreeError> {
        let key = keys::change(family::UNDO, id);
        let images = self.rows.get(&key)?.unwrap_or_default();
        self.restore(decoded(&key, decode_images(&images))?)
    }

    /// Applies new change sets where they belong among those of the log.
    fn merge(&mut self, new: BTreeMap<ChangeId, ChangeSet>) -> Result<(), TreeError> {
        let Some(first) = new.keys().next().copied() else { return Ok(()) };
        let mut again = Vec::new();
        let start = keys::change(family::LOG, first);
        let mut failure = None;
        self.rows.scan_from(
            &[family::LOG],
            Bound::Excluded(&start),
            &mut |key, value| match ChangeSet::decode(value) {
                Ok(set) => {
                    again.push(set);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    failure = Some(TreeError::corrupt(key, error));
                    ControlFlow::Break(())
                }
            },
        )?;
        failure.map_or(Ok(()), Err)?;
        for set in again.iter().rev() {
            self.undo_published(set.id)?;
        }
        for set in new.values() {
            self.rows.put(&keys::change(family::LOG, set.id), set.encode());
        }
        let mut all = new;
        all.extend(again.into_iter().map(|set| (set.id, set)));
        all.values().try_for_each(|set| self.apply_published(set))
    }

    fn apply_published(&mut self, set: &ChangeSet) -> Result<(), TreeError> {
        let mut state = State::published(self.rows);
        apply(&mut state, set)?;
        let State { record, .. } = state;
        if let Record::Published(images) = &record {
            self.rows.put(&keys::change(family::UNDO, set.id), encode_images(images));
        }
        self.keep_before(record);
        Ok(())
    }

    /// Publishes a change set that was cut from the pending change, the rest of which stays where it is.
    ///
    /// Applying the rest again would make the rows that are here already, since a cut changes nothing that can be seen: so
    /// it is enough to write what was published under the rest, into rows or into their pre-images.
    fn publish_beside(
        &mut self,
        publish: &ChangeSet,
        rest: &ChangeSet,
        published: &[(InodeNo, Snapshot)],
    ) -> Result<(), TreeError> {
        let mut state = State::beside_pending(self.rows);
        apply(&mut state, publish)?;
        let State { rows, record } = state;
        let mut written = rows.written();
        if let (Record::Published(images), false) = (&record, publish.is_empty()) {
            self.rows.put(&keys::change(family::UNDO, publish.id), encode_images(images));
        }
        let mut clean = BTreeSet::new();
        for (ino, _) in published {
            let key = keys::inode(*ino);
            if !written.contains_key(&key[..]) {
                written.insert(key.into(), pending::published(self.rows, &key)?);
            }
            if rest.inodes.binary_search_by_key(ino, |inode| inode.ino).is_err() {
                clean.insert(*ino);
            }
        }
        written.into_iter().try_for_each(|(key, value)| self.set_published(&key, value, &clean))
    }

    /// Writes a published row under the pending change.
    fn set_published(
        &mut self,
        key: &[u8],
        published: Option<Bytes>,
        clean: &BTreeSet<InodeNo>,
    ) -> Result<(), TreeError> {
        let preimage = keys::preimage(key);
        let now = self.rows.get(key)?;
        let is_pending = self.rows.get(&preimage)?.is_some();
        let next = match key.first() {
            Some(&(family::NAME | family::LINK)) if is_pending => now.clone(),
            Some(&family::INODE) if is_pending => {
                let clean = keys::number(key).is_some_and(|ino| clean.contains(&InodeNo(ino)));
                over_published(key, now.as_ref(), published.as_ref(), clean)?
            }
            _ => published.clone(),
        };
        if next == published {
            self.rows.delete(&preimage);
        } else {
            self.rows.put(&preimage, rows::encode_image(published.as_deref()));
        }
        self.rows.set(key, next);
        self.before.entry(key.into()).or_insert(now);
        Ok(())
    }

    /// A row that was not changed before in this bulk work was before it what it was when it was changed first.
    fn keep_before(&mut self, record: Record) {
        if let Record::Published(images) | Record::Pending(Some(images)) = record {
            for (key, old) in images {
                self.before.entry(key).or_insert(old);
            }
        }
    }

    pub fn apply_pending(&mut self, set: &ChangeSet) -> Result<(), TreeError> {
        if set.is_empty() {
            return Ok(());
        }
        let mut state = State::pending_again(self.rows);
        apply(&mut state, set)?;
        let State { record, .. } = state;
        self.keep_before(record);
        Ok(())
    }

    /// What was not modified and is what it was before goes on being local.
    fn localize(&mut self, unmodified: &Unmodified) -> Result<(), TreeError> {
        for (ino, content) in unmodified {
            let Some(mut row) = self.rows.inode(*ino)? else { continue };
            if row.content == ContentState::Published(*content) {
                row.content = ContentState::Local { base: Some(*content) };
                let mut state = State::pending_again(self.rows);
                state.put_inode(*ino, &row)?;
                let State { record, .. } = state;
                self.keep_before(record);
            }
        }
        Ok(())
    }

    /// Times that only tell of what cancelled out stay where they are the later ones.
    fn advance_times(&mut self, incidental: &[InodeChange]) -> Result<(), TreeError> {
        for change in incidental {
            let Some(mut row) = self.rows.inode(change.ino)? else { continue };
            let (mtime, ctime) =
                (row.mtime.max(change.mtime.unwrap_or(row.mtime)), row.ctime.max(change.ctime.unwrap_or(row.ctime)));
            if (mtime, ctime) != (row.mtime, row.ctime) {
                (row.mtime, row.ctime) = (mtime, ctime);
                let mut state = State::pending_again(self.rows);
                state.put_inode(change.ino, &row)?;
                let State { record, .. } = state;
                self.keep_before(record);
            }
        }
        Ok(())
    }

    /// Keeps contents that are not their inodes' any more, as far as somebody may write to them. Answers the last block of
    /// numbers that was reserved for that.
    fn set_aside(
        &mut self,
        unmodified: &Unmodified,
        contents: &mut dyn Contents,
        numbers: &Numbers,
    ) -> Result<Option<u64>, TreeError> {
        let mut reserved = None;
        for (ino, row, content) in self.replaced(unmodified)? {
            // It is of the content that goes.
            let snapshot = keys::snapshot(ino);
            if self.rows.get(&snapshot)?.is_some() {
                self.rows.delete(&snapshot);
            }
            let Some(stamp) = contents.replaced(ino, &content) else { continue };
            let (number, block) = numbers.next();
            if let Some(block) = block {
                Numbers::reserve(self.rows, block);
                reserved = reserved.max(Some(block));
            }
            let place = match self.rows.links(ino)?.into_iter().next() {
                Some(link) => Some(link.place),
                None => grave_place(self.rows, ino)?,
            };
            let number = InodeNo(number);
            self.rows.put(&keys::aside(number), AsideRow { of: ino, row, place, stamp }.encode());
            self.rows.delete(&keys::cache(ino));
            contents.set_aside(ino, number, stamp);
        }
        Ok(reserved)
    }

    /// Inodes that had a published content, or one that was not modified, and have another or none: what they were.
    fn replaced(&self, unmodified: &Unmodified) -> Result<Vec<(InodeNo, InodeRow, Content)>, TreeError> {
        let mut replaced = Vec::new();
        for (key, old) in &self.before {
            let (Some(&family::INODE), Some(number), Some(old)) = (key.first(), keys::number(key), old) else {
                continue;
            };
            let ino = InodeNo(number);
            let row = decoded(key, InodeRow::decode(old))?;
            let content = match row.content {
                ContentState::Published(content) => Some(content),
                ContentState::Local { .. } => unmodified.get(&ino).copied(),
                ContentState::None => None,
            };
            let Some(content) = content else { continue };
            let now = self.rows.inode(ino)?.and_then(|row| row.content.published());
            if now != Some(content) {
                replaced.push((ino, row, content));
            }
        }
        Ok(replaced)
    }

    pub fn keep_time(&mut self, time: Hlc) {
        self.rows.put(&keys::numbered(family::META, TIME_SEEN), time.0.to_le_bytes().to_vec());
    }

    /// What differs from before.
    pub fn touched(&self) -> Result<Vec<Touched>, TreeError> {
        let mut touched = Vec::new();
        for (key, old) in &self.before {
            let new = self.rows.get(key)?;
            if new == *old {
                continue;
            }
            match key.split_first() {
                Some((&family::INODE, _)) => {
                    let row = |value: &Option<Bytes>| {
                        value.as_ref().map(|value| decoded(key, InodeRow::decode(value))).transpose()
                    };
                    let is_equal = match (row(old)?, row(&new)?) {
                        (Some(old), Some(new)) => looks_equal(&old, &new),
                        _ => false,
                    };
                    touched.extend(keys::number(key).filter(|_| !is_equal).map(|ino| Touched::Inode(InodeNo(ino))));
                }
                Some((&family::NAME, _)) => touched.extend(touched_entry(key, old.as_ref(), new.as_ref())?),
                _ => {}
            }
        }
        Ok(touched)
    }
}

/// Where an inode was that is gone.
fn grave_place(rows: &impl Rows, ino: InodeNo) -> Result<Option<Place>, TreeError> {
    let key = keys::grave(ino);
    let Some(value) = rows.get(&key)? else { return Ok(None) };
    let grave = decoded(&key, GraveRow::decode(&value))?;
    Ok(grave.links.into_iter().next().map(|link| link.place))
}

/// An inode with its pending change over what is published now.
fn over_published(
    key: &[u8],
    now: Option<&Bytes>,
    published: Option<&Bytes>,
    is_clean: bool,
) -> Result<Option<Bytes>, TreeError> {
    let (Some(value), Some(published)) = (now, published) else { return Ok(now.cloned()) };
    let mut row = decoded(key, InodeRow::decode(value))?;
    let published = decoded(key, InodeRow::decode(published))?;
    row.version = published.version;
    match row.content {
        ContentState::Local { .. } if is_clean => {
            row.content = published.content;
            row.mtime = published.mtime;
        }
        ContentState::Local { .. } => row.content = ContentState::Local { base: published.content.published() },
        _ => {}
    }
    Ok(Some(row.encode()))
}

fn touched_entry(key: &[u8], old: Option<&Bytes>, new: Option<&Bytes>) -> Result<Option<Touched>, TreeError> {
    let ino = |value: Option<&Bytes>| {
        value.map(|value| decoded(key, DentryRow::decode(value)).map(|row| row.ino)).transpose()
    };
    if ino(old)? == ino(new)? {
        return Ok(None);
    }
    let invalid = || TreeError::corrupt(key, DecodeError::Invalid("a key"));
    let parent = InodeNo(keys::number(key).ok_or_else(invalid)?);
    let name = VfsName::new(&key[9..]).map_err(|_| invalid())?;
    Ok(Some(Touched::Entry { parent, name }))
}

fn encode_images(images: &Images) -> Vec<u8> {
    let mut writer = Writer::with_capacity(images.len() * 128);
    writer.u8(VERSION);
    writer.length(images.len());
    for (key, old) in images {
        writer.bytes(key);
        rows::write_option(&mut writer, old.as_ref(), |writer, old| writer.bytes(old));
    }
    writer.into_vec()
}

fn decode_images(bytes: &[u8]) -> Result<Images, DecodeError> {
    let mut images = Images::new();
    visit_images(bytes, &mut |key, old| {
        images.insert(key.into(), old.map(Bytes::copy_from_slice));
        Ok(())
    })?;
    Ok(images)
}

/// Receives a row as it was before.
type ImageVisitor<'a> = dyn FnMut(&[u8], Option<&[u8]>) -> Result<(), DecodeError> + 'a;

/// Visits the rows in an undo row.
pub(super) fn visit_images(bytes: &[u8], visit: &mut ImageVisitor<'_>) -> Result<(), DecodeError> {
    let mut reader = Reader::new(bytes);
    reader.version(VERSION, "an undo row")?;
    for _ in 0..reader.count(usize::MAX, "rows")? {
        let key = reader.bytes(usize::MAX, "a key")?;
        visit(key, rows::read_option(&mut reader, |reader| reader.bytes(usize::MAX, "a row"))?)?;
    }
    reader.finish()
}
