//! Loading the rows of a checkpoint into a store that has no change sets yet.
//!
//! Rows are put in place in bounded operations as the stream comes in, but for those of the root directory: they are kept
//! aside, and what is not below the root is not seen by anybody. The last operation puts the root in place, with the
//! pending change on top, and says how far the logs were read. Until then a row says which checkpoint is being loaded and
//! how far: after a crash the load goes on there, or what was loaded is taken away again. Meanwhile nothing is cut.
//!
//! What this device made itself in the meantime has numbers of its own, which no row of a checkpoint may have.

use std::ops::ControlFlow;

use bytes::Bytes;
use cairn_platform_api::InodeNo;

use super::dump::{Pages, RowStream, StreamRow, change_id};
use super::fold::{Fold, Touched};
use super::keys::{self, family};
use super::namespace::{Images, Namespace, decoded};
use super::pending::Pending;
use super::rows;
use super::{Tree, TreeError};
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::{ChangeId, DeviceId};
use crate::store::{Exclusive, Operation, Rows};

/// The row that says what is being loaded.
const LOADING: u64 = 2;
const VERSION: u8 = 1;
/// The longest key of a row.
const KEY_MAX: usize = 1024;
/// Bytes of rows in one operation, or one row.
const GROUP: usize = if cfg!(test) { 500 } else { 1 << 20 };
/// Rows that are taken away in one operation.
const CLEARED: usize = 4096;

/// What a checkpoint is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JoinSource {
    /// Who wrote it.
    pub device: DeviceId,
    /// Its number among those of that device.
    pub number: u64,
    /// The hash of its object.
    pub hash: [u8; 32],
}

/// Why rows were not loaded.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The store.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// They are not what the published state of a drive can be.
    #[error(transparent)]
    Rows(#[from] DecodeError),
}

/// Whether a checkpoint can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinState {
    /// There are no change sets yet.
    Blank,
    /// This checkpoint is being loaded.
    Loading(JoinSource),
    /// There are change sets: logs are read.
    Settled,
}

/// A load that is going on.
#[derive(Debug)]
pub struct Join {
    source: JoinSource,
    stream: RowStream,
    /// The greatest change set that was loaded.
    newest: Option<ChangeId>,
    group: Vec<StreamRow>,
    group_bytes: usize,
}

impl Join {
    /// The byte of the stream that [`Tree::load`] takes next.
    pub fn position(&self) -> u64 {
        self.stream.position()
    }

    fn mark(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(128);
        writer.u8(VERSION);
        writer.u32(self.source.device.0);
        writer.u64(self.source.number);
        writer.raw(&self.source.hash);
        writer.u64(self.stream.position());
        writer.bytes(self.stream.last());
        rows::write_option(&mut writer, self.newest, rows::write_change_id);
        writer.into_vec()
    }

    fn from_mark(mark: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(mark);
        reader.version(VERSION, "the row of a load")?;
        let device = DeviceId(reader.u32("a device")?);
        let source = JoinSource { device, number: reader.u64("a number")?, hash: reader.array("a hash")? };
        let position = reader.u64("a position")?;
        let last = reader.bytes(KEY_MAX, "a key")?.to_vec();
        let newest = rows::read_option(&mut reader, rows::read_change_id)?;
        reader.finish()?;
        Ok(Self { newest, ..Self::at(source, RowStream::resume(position, last)) })
    }

    fn at(source: JoinSource, stream: RowStream) -> Self {
        Self { source, stream, newest: None, group: Vec::new(), group_bytes: 0 }
    }
}

fn mark_key() -> [u8; 9] {
    keys::numbered(family::META, LOADING)
}

fn loading(rows: &impl Rows) -> Result<Option<Join>, TreeError> {
    let key = mark_key();
    rows.get(&key)?.map(|mark| decoded(&key, Join::from_mark(&mark))).transpose()
}

/// Whether a checkpoint is being loaded.
pub(super) fn is_loading(rows: &impl Rows) -> Result<bool, TreeError> {
    Ok(rows.get(&mark_key())?.is_some())
}

impl Tree {
    /// Whether a checkpoint can be loaded.
    ///
    /// # Errors
    /// [`TreeError`] where rows cannot be read; so for all methods.
    pub fn join_state(&self) -> Result<JoinState, TreeError> {
        Ok(match loading(&*self.store)? {
            Some(join) => JoinState::Loading(join.source),
            None if self.store.any(&[family::LOG])? => JoinState::Settled,
            None => JoinState::Blank,
        })
    }

    /// Begins to load a checkpoint, or goes on with it. What was loaded of another one is taken away first. `None` where
    /// there are change sets already.
    ///
    /// # Errors
    /// As [`Tree::join_state`], and where the store takes no operations.
    pub fn begin_join(&self, source: JoinSource) -> Result<Option<Join>, TreeError> {
        match loading(&*self.store)? {
            Some(join) if join.source == source => return Ok(Some(join)),
            Some(_) => self.abandon_join()?,
            None => {}
        }
        let mut rows = self.store.exclusive()?;
        if rows.any(&[family::LOG])? {
            return Ok(None);
        }
        let join = Join::at(source, RowStream::default());
        rows.put(&mark_key(), join.mark());
        rows.commit();
        Ok(Some(join))
    }

    /// Takes the bytes of the stream that come next.
    ///
    /// # Errors
    /// [`JoinError::Rows`] where they are not what a checkpoint may hold.
    pub fn load(&self, join: &mut Join, bytes: &[u8]) -> Result<(), JoinError> {
        join.stream.push(bytes);
        while let Some(row) = join.stream.next_row()? {
            self.refuse_own_number(&row.key)?;
            if row.key.first() == Some(&family::LOG) {
                join.newest = change_id(&row.key);
            }
            join.group_bytes += row.key.len() + row.value.len();
            join.group.push(row);
            if join.group_bytes >= GROUP {
                self.put_group(join)?;
            }
        }
        Ok(())
    }

    /// Numbers that this device gives out would mean two things.
    fn refuse_own_number(&self, key: &[u8]) -> Result<(), DecodeError> {
        let numbered =
            matches!(key.first(), Some(&(family::INODE | family::NAME | family::LINK | family::GRAVE | family::ALIAS)));
        if numbered && keys::number(key).is_some_and(|number| self.is_own(number)) {
            return Err(DecodeError::Invalid("a number of this device"));
        }
        Ok(())
    }

    fn is_own(&self, number: u64) -> bool {
        number >> 40 == u64::from(self.device.id.0)
    }

    fn put_group(&self, join: &mut Join) -> Result<(), TreeError> {
        let mut rows = self.store.operation()?;
        join.group_bytes = 0;
        for row in join.group.drain(..) {
            if is_of_root(&row.key) {
                rows.put(&aside(&row.key), row.value);
            } else {
                rows.put(&row.key, row.value);
            }
        }
        rows.put(&mark_key(), join.mark());
        rows.commit();
        Ok(())
    }

    /// Makes what was loaded visible, with the pending change on top; `record` writes what belongs to it in the same bulk
    /// work. Answers what differs afterwards. `length` is that of the stream, `newest` the greatest change set in it, as the
    /// checkpoint says.
    ///
    /// # Errors
    /// [`JoinError::Rows`] where the stream has not ended, or is not what the checkpoint says.
    pub fn finish_join(
        &self,
        mut join: Join,
        length: u64,
        newest: ChangeId,
        record: impl FnOnce(&mut Exclusive<'_>) -> Result<(), TreeError>,
    ) -> Result<Vec<Touched>, JoinError> {
        join.stream.finish()?;
        if join.position() != length {
            return Err(DecodeError::Truncated("the stream of rows").into());
        }
        self.put_group(&mut join)?;
        if join.newest != Some(newest) {
            return Err(DecodeError::Invalid("the newest change set").into());
        }
        let mut exclusive = self.store.exclusive().map_err(TreeError::from)?;
        let root = aside_rows(&exclusive)?;
        if !root.iter().any(|row| row.key == keys::inode(InodeNo::ROOT)) {
            return Err(DecodeError::Invalid("the root directory").into());
        }
        self.clock.observe(newest.hlc);
        let pending = Pending::read(&exclusive)?;
        let pending_set = pending.to_change_set(self.next_id(), &self.device.name);
        let mut fold = Fold { rows: &mut exclusive, before: Images::new() };
        fold.undo_pending(pending.images)?;
        for row in root {
            fold.rows.delete(&aside(&row.key));
            fold.restore(Images::from([(row.key.into(), Some(row.value))]))?;
        }
        if !fold.rows.inode(InodeNo::ROOT)?.is_some_and(|root| root.is_directory()) {
            return Err(DecodeError::Invalid("the root directory").into());
        }
        fold.rows.delete(&mark_key());
        fold.apply_pending(&pending_set)?;
        fold.keep_time(self.clock.tick());
        let touched = fold.touched()?;
        record(&mut exclusive)?;
        exclusive.commit();
        Ok(touched)
    }

    /// Takes away what was loaded of a checkpoint that cannot be used. Lists and locations of chunks stay: they are true.
    ///
    /// # Errors
    /// As [`Tree::begin_join`].
    pub fn abandon_join(&self) -> Result<(), TreeError> {
        let Some(join) = loading(&*self.store)? else { return Ok(()) };
        // After a crash in the middle of this, loading it again begins at the beginning.
        let begun_again = Join::at(join.source, RowStream::default());
        let mut rows = self.store.operation()?;
        rows.put(&mark_key(), begun_again.mark());
        rows.commit();
        for family in [
            family::ASIDE,
            family::NAME,
            family::INODE,
            family::LINK,
            family::GRAVE,
            family::ALIAS,
            family::AUTHOR,
            family::LOG,
            family::UNDO,
        ] {
            self.clear_loaded(family)?;
        }
        let mut rows = self.store.operation()?;
        rows.delete(&mark_key());
        rows.commit();
        Ok(())
    }

    fn clear_loaded(&self, family: u8) -> Result<(), TreeError> {
        let mut pages = Pages::of(&*self.store, family);
        loop {
            let mut doomed = Vec::new();
            while doomed.len() < CLEARED {
                let Some((key, _)) = pages.next()? else { break };
                if family == family::ASIDE || !(is_of_root(&key) || self.has_own_number(&key)) {
                    doomed.push(key);
                }
            }
            if doomed.is_empty() {
                return Ok(());
            }
            let mut rows = self.store.operation()?;
            doomed.iter().for_each(|key| rows.delete(key));
            rows.commit();
        }
    }

    fn has_own_number(&self, key: &[u8]) -> bool {
        self.refuse_own_number(key).is_err()
    }
}

/// Whether a row is of the root directory: its attributes, or a name in it.
fn is_of_root(key: &[u8]) -> bool {
    matches!(key.first(), Some(&(family::INODE | family::NAME))) && keys::number(key) == Some(InodeNo::ROOT.0)
}

/// Where a row of the root is kept until the end: the family byte, the number, then the key's family and rest.
fn aside(key: &[u8]) -> Vec<u8> {
    let mut aside = keys::preimage(key);
    aside[0] = family::ASIDE;
    aside
}

fn aside_rows(rows: &Operation<'_>) -> Result<Vec<StreamRow>, TreeError> {
    let mut found = Vec::new();
    rows.scan_family(family::ASIDE, &mut |key, value| {
        found.extend(keys::of_preimage(key).map(|key| StreamRow { key, value: Bytes::copy_from_slice(value) }));
        ControlFlow::Continue(())
    })?;
    Ok(found)
}
