//! The published rows of a drive as one stream of bytes: what a checkpoint holds.
//!
//! Rows of the namespace as they were published (pending local changes are taken away: a row that has a pre-image is
//! that), the log of change sets with their undo rows, lists of chunks, locations of chunks. Whoever loads them into an
//! empty store has row by row what a device has that replayed the same segments. `docs/FORMAT.md` has every byte.
//!
//! Writing reads page by page; taking apart holds one row, and checks each with the codec of its family. Neither knows
//! packs or remotes.

use std::collections::{HashSet, VecDeque};
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use cairn_platform_api::VfsName;

use super::keys::{self, family};
use super::rows::{self, ContentState, DentryRow, GraveRow, InodeRow, Place};
use super::{ChangeSet, DEVICE_NAME_MAX, TreeError, content, fold};
use crate::base::ChangeId;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::store::{GROUP_LENGTH, Rows, StoreError};

const VERSION: u8 = 1;
/// The longest key: a name in a directory.
const KEY_MAX: usize = GROUP_LENGTH + cairn_platform_api::NAME_MAX;
/// The longest value. The undo row of a change set that removes a million files has a third of it.
const VALUE_MAX: usize = 1 << 30;
/// Rows that are read at a time, and their bytes.
const PAGE_ROWS: usize = 1024;
const PAGE_BYTES: usize = 1 << 20;
/// Bytes that are handed out at a time, or one row.
const PIECE: usize = 64 << 10;

/// The families of the stream, in its order.
const FAMILIES: [u8; 11] = [
    family::ALIAS,
    family::CHUNK,
    family::AUTHOR,
    family::GRAVE,
    family::INODE,
    family::LINK,
    family::MANIFEST,
    family::NAME,
    family::LOG,
    family::UNDO,
    family::WANTED,
];

/// The families of the fold's state.
fn is_namespace(family: u8) -> bool {
    matches!(family, family::ALIAS | family::AUTHOR | family::GRAVE | family::INODE | family::LINK | family::NAME)
}

/// Writes the published rows into `sink`, piece by piece, and answers the greatest id of a change set among them. `rows`
/// must not change meanwhile.
///
/// # Errors
/// What `sink` answers, and [`TreeError`] where rows cannot be read.
pub fn dump_published<E: From<TreeError>>(
    rows: &impl Rows,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<Option<ChangeId>, E> {
    let mut newest = None;
    let unnamed = packs_without_a_segment(rows)?;
    let mut writer = Writer::with_capacity(2 * PIECE);
    writer.u8(VERSION);
    for family in FAMILIES {
        let mut published = Published::of(rows, family);
        while let Some((key, value)) = published.next()? {
            if family == family::LOG {
                newest = change_id(&key);
            }
            if family == family::CHUNK && !unnamed.is_empty() && unnamed.contains(&pack_of(&key, &value)?) {
                continue;
            }
            writer.bytes(&key);
            writer.bytes(&value);
            if writer.len() >= PIECE {
                sink(writer.as_slice())?;
                writer = Writer::with_capacity(2 * PIECE);
            }
        }
    }
    sink(writer.as_slice())?;
    Ok(newest)
}

/// The packs of this device that are on the remote and that no segment names yet. Where their chunks lie is known to nobody
/// else: who relied on it would publish contents that others cannot find.
fn packs_without_a_segment(rows: &impl Rows) -> Result<HashSet<Vec<u8>>, TreeError> {
    let mut unnamed = HashSet::new();
    let mut packs = Pages::of(rows, family::PACK);
    while let Some((key, _)) = packs.next()? {
        unnamed.insert(key);
    }
    Ok(unnamed)
}

/// The key of the row of the pack that a chunk's row names.
fn pack_of(key: &[u8], location: &[u8]) -> Result<Vec<u8>, TreeError> {
    let location = content::decode_location(location).map_err(|error| TreeError::corrupt(key, error))?;
    Ok(keys::pack(&location.pack))
}

/// The rows of a family as they were published, in order.
struct Published<'r, R> {
    rows: Pages<'r, R>,
    /// Pre-images of that family: they stand for the rows.
    images: Option<Pages<'r, R>>,
}

impl<'r, R: Rows> Published<'r, R> {
    fn of(rows: &'r R, family: u8) -> Self {
        let images = is_namespace(family).then(|| Pages::of_images(rows, family));
        Self { rows: Pages::of(rows, family), images }
    }

    fn next(&mut self) -> Result<Option<(Vec<u8>, Bytes)>, TreeError> {
        let Some(images) = &mut self.images else { return self.rows.next() };
        loop {
            let row = self.rows.first()?.map(|(key, _)| key);
            let image = images.first()?.map(|(key, _)| key);
            let image_is_first = match (row, image) {
                (_, None) => return self.rows.next(),
                (None, Some(_)) => true,
                (Some(row), Some(image)) if row == image => {
                    self.rows.next()?;
                    true
                }
                (Some(row), Some(image)) => image < row,
            };
            if !image_is_first {
                return self.rows.next();
            }
            let Some((key, image)) = images.next()? else { continue };
            match rows::decode_image(&image) {
                Ok(Some(value)) => return Ok(Some((key, image.slice_ref(value)))),
                Ok(None) => {}
                Err(error) => return Err(TreeError::corrupt(&keys::preimage(&key), error)),
            }
        }
    }
}

/// Reads the rows of a family a page at a time, so that nobody who waits for the store waits for whoever takes them.
pub(super) struct Pages<'r, R> {
    rows: &'r R,
    family: u8,
    /// Only pre-images of rows of this family, under the keys of those rows.
    images_of: Option<u8>,
    after: Option<Vec<u8>>,
    page: VecDeque<(Vec<u8>, Bytes)>,
    ended: bool,
}

impl<'r, R: Rows> Pages<'r, R> {
    pub fn of(rows: &'r R, family: u8) -> Self {
        Self { rows, family, images_of: None, after: None, page: VecDeque::new(), ended: false }
    }

    fn of_images(rows: &'r R, family: u8) -> Self {
        Self { images_of: Some(family), ..Self::of(rows, family::PREIMAGE) }
    }

    fn first(&mut self) -> Result<Option<&(Vec<u8>, Bytes)>, StoreError> {
        while self.page.is_empty() && !self.ended {
            self.turn()?;
        }
        Ok(self.page.front())
    }

    pub fn next(&mut self) -> Result<Option<(Vec<u8>, Bytes)>, TreeError> {
        self.first()?;
        Ok(self.page.pop_front())
    }

    fn turn(&mut self) -> Result<(), StoreError> {
        let prefix = [self.family];
        let start = self.after.take();
        let start = start.as_deref().map_or(Bound::Included(&prefix[..]), Bound::Excluded);
        let Self { rows, images_of, after, page, ended, .. } = self;
        let (mut seen, mut bytes) = (0, 0);
        *ended = true;
        rows.scan_from(&prefix, start, &mut |key, value| {
            let row = match images_of {
                None => Some(key.to_vec()),
                Some(family) if key.get(GROUP_LENGTH) == Some(family) => keys::of_preimage(key),
                Some(_) => None,
            };
            seen += 1;
            if let Some(row) = row {
                bytes += row.len() + value.len();
                page.push_back((row, Bytes::copy_from_slice(value)));
            }
            if seen < PAGE_ROWS && bytes < PAGE_BYTES {
                return ControlFlow::Continue(());
            }
            *after = Some(key.to_vec());
            *ended = false;
            ControlFlow::Break(())
        })
    }
}

/// Takes the stream apart again.
#[derive(Debug, Default)]
pub struct RowStream {
    buffer: Vec<u8>,
    /// What of the buffer was taken.
    taken: usize,
    /// Where in the stream that is.
    position: u64,
    /// The key of the row before.
    last: Vec<u8>,
}

/// A row of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRow {
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Bytes,
}

impl RowStream {
    /// Goes on at `position`, after the row with the key `last`.
    pub(super) fn resume(position: u64, last: Vec<u8>) -> Self {
        Self { position, last, ..Self::default() }
    }

    /// Where the next row begins.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The key of the row before.
    pub(super) fn last(&self) -> &[u8] {
        &self.last
    }

    /// Adds the bytes that come next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..std::mem::take(&mut self.taken));
        self.buffer.extend_from_slice(bytes);
    }

    /// The next row, once all its bytes are there.
    ///
    /// # Errors
    /// [`DecodeError`]: this is not a stream of rows.
    pub fn next_row(&mut self) -> Result<Option<StreamRow>, DecodeError> {
        if self.position == 0 {
            if self.buffer.is_empty() {
                return Ok(None);
            }
            self.take(|reader| reader.version(VERSION, "the stream of rows"))?;
        }
        let row = self.take(|reader| {
            let key = reader.bytes(KEY_MAX, "the key of a row")?.to_vec();
            Ok(StreamRow { key, value: Bytes::copy_from_slice(reader.bytes(VALUE_MAX, "a row")?) })
        });
        let row = match row {
            Err(DecodeError::Truncated(_)) => return Ok(None),
            other => other?,
        };
        if row.key <= self.last {
            return Err(DecodeError::Invalid("the order of the rows"));
        }
        check_row(&row.key, &row.value)?;
        self.last.clone_from(&row.key);
        Ok(Some(row))
    }

    fn take<T>(&mut self, read: impl FnOnce(&mut Reader<'_>) -> Result<T, DecodeError>) -> Result<T, DecodeError> {
        let rest = self.buffer.get(self.taken..).unwrap_or_default();
        let mut reader = Reader::new(rest);
        let value = read(&mut reader)?;
        let length = rest.len() - reader.remaining();
        self.taken += length;
        self.position += length as u64;
        Ok(value)
    }

    /// Checks that the stream ended with a whole row.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.position > 0 && self.taken == self.buffer.len() {
            Ok(())
        } else {
            Err(DecodeError::Truncated("the stream of rows"))
        }
    }
}

/// The id in the key of a row of the log or of an undo row.
pub(super) fn change_id(key: &[u8]) -> Option<ChangeId> {
    let id = ChangeId::from_bytes(key.get(1..)?.try_into().ok()?);
    id.device.is_valid().then_some(id)
}

/// Checks that a row is one that the published state can have.
fn check_row(key: &[u8], value: &[u8]) -> Result<(), DecodeError> {
    const KEY: DecodeError = DecodeError::Invalid("the key of a row");
    let (family, rest) = key.split_first().ok_or(KEY)?;
    let (more, length) = match *family {
        family::LOG | family::UNDO => (0, 12),
        family::CHUNK | family::MANIFEST | family::WANTED => (0, 32),
        family::LINK => (0, 16),
        family::NAME => (cairn_platform_api::NAME_MAX, 8),
        family::INODE | family::GRAVE | family::ALIAS | family::AUTHOR => (0, 8),
        _ => return Err(DecodeError::Invalid("the family of a row")),
    };
    if !(length..=length + more).contains(&rest.len()) {
        return Err(KEY);
    }
    match *family {
        family::INODE => check_published(&InodeRow::decode(value)?),
        family::GRAVE => check_published(&GraveRow::decode(value)?.row),
        family::LINK => Place::decode(value).map(drop),
        family::NAME => {
            VfsName::new(rest.get(length..).unwrap_or_default()).map_err(|_| KEY)?;
            DentryRow::decode(value).map(drop)
        }
        family::ALIAS if value.len() == 8 => Ok(()),
        family::ALIAS => Err(DecodeError::Invalid("an alias")),
        family::AUTHOR if value.len() <= DEVICE_NAME_MAX && std::str::from_utf8(value).is_ok() => Ok(()),
        family::AUTHOR => Err(DecodeError::Invalid("the name of a device")),
        family::LOG if Some(ChangeSet::decode(value)?.id) == change_id(key) => Ok(()),
        family::LOG => Err(KEY),
        family::UNDO => {
            change_id(key).ok_or(KEY)?;
            fold::visit_images(value, &mut |key, old| match key.first() {
                Some(family) if is_namespace(*family) => old.map_or(Ok(()), |old| check_row(key, old)),
                _ => Err(KEY),
            })
        }
        family::MANIFEST | family::WANTED => content::decode_manifest(value).map(drop),
        _ => content::decode_location(value).map(drop),
    }
}

/// Local content is never published.
fn check_published(row: &InodeRow) -> Result<(), DecodeError> {
    match row.content {
        ContentState::Local { .. } => Err(DecodeError::Invalid("the state of a content")),
        _ => Ok(()),
    }
}
