//! Rows that belong to replication: packs that no segment names yet, segments to be sent, how far logs reach, and what is
//! known of checkpoints.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::base::DeviceId;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::chunk::{ChunkId, ChunkLocation, PackId};
use crate::store::{Exclusive, Operation, Rows, StoreError};
use crate::tree::keys::{self, family};
use crate::tree::{ManifestRows, TreeError};
use crate::vault::SegmentHash;

const VERSION: u8 = 1;
/// The row of [`LogHead`] among the singular rows.
const LOG_HEAD: u64 = 0x1000;
/// The row of [`KnownCheckpoint`] among the singular rows.
const CHECKPOINT: u64 = 0x1001;
/// The row of the length of all segments that were written or read here.
const SEGMENT_BYTES: u64 = 0x1002;
/// The longest name of a device, in bytes.
const NAME_MAX: usize = 255;

/// The last segment that was sealed here: 0 and zeros before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LogHead {
    pub(super) seq: u64,
    pub(super) hash: SegmentHash,
}

/// How far the log of another device was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LogCursor {
    pub(super) seq: u64,
    pub(super) hash: SegmentHash,
    pub(super) name: String,
}

pub(super) fn log_head(rows: &impl Rows) -> Result<LogHead, TreeError> {
    let key = keys::numbered(family::META, LOG_HEAD);
    let Some(value) = rows.get(&key)? else { return Ok(LogHead::default()) };
    decoded(&key, &value, |reader| Ok(LogHead { seq: reader.u64("a segment")?, hash: reader.array("a hash")? }))
}

/// What is known of the checkpoints on the remote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct KnownCheckpoint {
    /// Segments, of all devices together, that the one covers which covers most.
    pub(super) segments: u64,
    /// What [`segment_bytes`] was when it was written here, or found.
    pub(super) bytes: u64,
    /// The number of the last one that this device wrote.
    pub(super) number: u64,
}

pub(super) fn known_checkpoint(rows: &impl Rows) -> Result<KnownCheckpoint, TreeError> {
    let key = keys::numbered(family::META, CHECKPOINT);
    let Some(value) = rows.get(&key)? else { return Ok(KnownCheckpoint::default()) };
    decoded(&key, &value, |reader| {
        let segments = reader.u64("a number of segments")?;
        let bytes = reader.u64("a number of bytes")?;
        Ok(KnownCheckpoint { segments, bytes, number: reader.u64("the number of a checkpoint")? })
    })
}

pub(super) fn put_known_checkpoint(rows: &mut Operation<'_>, known: &KnownCheckpoint) {
    let mut writer = Writer::with_capacity(25);
    writer.u8(VERSION);
    [known.segments, known.bytes, known.number].into_iter().for_each(|number| writer.u64(number));
    rows.put(&keys::numbered(family::META, CHECKPOINT), writer.into_bytes());
}

/// The length of all segments that were written or read here.
pub(super) fn segment_bytes(rows: &impl Rows) -> Result<u64, TreeError> {
    let key = keys::numbered(family::META, SEGMENT_BYTES);
    let Some(value) = rows.get(&key)? else { return Ok(0) };
    decoded(&key, &value, |reader| reader.u64("a number of bytes"))
}

/// Counts segments that were written or read here.
pub(super) fn add_segment_bytes(rows: &mut Operation<'_>, bytes: u64) -> Result<(), TreeError> {
    let mut writer = Writer::with_capacity(9);
    writer.u8(VERSION);
    writer.u64(segment_bytes(rows)?.saturating_add(bytes));
    rows.put(&keys::numbered(family::META, SEGMENT_BYTES), writer.into_bytes());
    Ok(())
}

/// How many segments of all devices together are known here.
pub(super) fn segments(rows: &impl Rows) -> Result<u64, TreeError> {
    let read: u64 = log_cursors(rows)?.iter().map(|(_, cursor)| cursor.seq).sum();
    Ok(read + log_head(rows)?.seq)
}

/// Keeps where the rows of a checkpoint lie that is not written yet, so that a later attempt does not send them again.
pub(super) fn put_rows_pack(rows: &mut Operation<'_>, pack: PackId, chunks: &[(ChunkId, ChunkLocation)]) {
    rows.put(&rows_pack(&pack), encode_pack(chunks));
}

/// The chunks of all such packs.
pub(super) fn rows_packs(rows: &impl Rows) -> Result<Vec<(ChunkId, ChunkLocation)>, TreeError> {
    let mut chunks = Vec::new();
    let mut failure = None;
    rows.scan_family(family::ROWS_PACK, &mut |key, value| match decoded(key, value, |r| read_pack(r, &mut chunks)) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failure = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failure.map_or(Ok(chunks), Err)
}

/// The checkpoint is written: it says itself where its rows lie.
pub(super) fn forget_rows_packs(rows: &mut Operation<'_>) -> Result<(), StoreError> {
    let mut keys = Vec::new();
    rows.scan_family(family::ROWS_PACK, &mut |key, _| {
        keys.push(key.to_vec());
        ControlFlow::Continue(())
    })?;
    keys.iter().for_each(|key| rows.delete(key));
    Ok(())
}

fn rows_pack(pack: &PackId) -> Vec<u8> {
    let mut key = keys::pack(pack);
    key[0] = family::ROWS_PACK;
    key
}

pub(super) fn log_cursor(rows: &impl Rows, device: DeviceId) -> Result<LogCursor, TreeError> {
    let key = keys::cursor(device);
    let Some(value) = rows.get(&key)? else { return Ok(LogCursor::default()) };
    decoded(&key, &value, read_cursor)
}

/// The cursors of all devices, in the order of their ids.
pub(super) fn log_cursors(rows: &impl Rows) -> Result<Vec<(DeviceId, LogCursor)>, TreeError> {
    let mut cursors = Vec::new();
    let mut failure = None;
    rows.scan_family(family::CURSOR, &mut |key, value| match decoded(key, value, read_cursor) {
        Ok(cursor) => {
            let number = keys::number(key).and_then(|number| u32::try_from(number).ok());
            cursors.extend(number.map(|number| (DeviceId(number), cursor)));
            ControlFlow::Continue(())
        }
        Err(error) => {
            failure = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failure.map_or(Ok(cursors), Err)
}

fn read_cursor(reader: &mut Reader<'_>) -> Result<LogCursor, DecodeError> {
    let seq = reader.u64("a segment")?;
    let hash = reader.array("a hash")?;
    let name = String::from_utf8_lossy(reader.bytes(NAME_MAX, "a device name")?).into_owned();
    Ok(LogCursor { seq, hash, name })
}

pub(super) fn put_log_cursor(rows: &mut Operation<'_>, device: DeviceId, cursor: &LogCursor) {
    let mut writer = Writer::with_capacity(64);
    writer.u8(VERSION);
    writer.u64(cursor.seq);
    writer.raw(&cursor.hash);
    writer.bytes(cursor.name.as_bytes());
    rows.put(&keys::cursor(device), writer.into_bytes());
}

/// Keeps where the chunks of an acknowledged pack lie, for everybody here and for the next segment.
pub(super) fn put_pack(rows: &mut Operation<'_>, pack: PackId, chunks: &[(ChunkId, ChunkLocation)]) {
    chunks.iter().for_each(|(id, location)| rows.put_chunk_location(id, location));
    rows.put(&keys::pack(&pack), encode_pack(chunks));
}

fn encode_pack(chunks: &[(ChunkId, ChunkLocation)]) -> Bytes {
    let mut writer = Writer::with_capacity(16 + chunks.len() * 84);
    writer.u8(VERSION);
    writer.length(chunks.len());
    for (id, location) in chunks {
        writer.raw(&id.0);
        location.encode(&mut writer);
    }
    writer.into_bytes()
}

/// The chunks of packs that no segment names yet: whole packs, until there are `limit` chunks. With the keys of their rows.
pub(super) fn packs(rows: &impl Rows, limit: usize) -> Result<UnnamedPacks, TreeError> {
    let mut packs = UnnamedPacks::default();
    let mut failure = None;
    rows.scan_family(family::PACK, &mut |key, value| {
        if packs.chunks.len() >= limit {
            return ControlFlow::Break(());
        }
        match decoded(key, value, |reader| read_pack(reader, &mut packs.chunks)) {
            Ok(()) => {
                packs.keys.push(key.to_vec());
                ControlFlow::Continue(())
            }
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failure.map_or(Ok(packs), Err)
}

/// Packs that no segment names yet.
#[derive(Debug, Default)]
pub(super) struct UnnamedPacks {
    pub(super) chunks: Vec<(ChunkId, ChunkLocation)>,
    keys: Vec<Vec<u8>>,
}

fn read_pack(reader: &mut Reader<'_>, chunks: &mut Vec<(ChunkId, ChunkLocation)>) -> Result<(), DecodeError> {
    for _ in 0..reader.count(usize::MAX, "a number of chunks")? {
        let id = ChunkId(reader.array("a chunk id")?);
        chunks.push((id, ChunkLocation::decode(reader)?));
    }
    Ok(())
}

/// Puts a sealed segment into the outbox: it names these packs, and is the new head of the log.
///
/// # Errors
/// Where rows cannot be read.
pub(super) fn put_segment(
    rows: &mut Exclusive<'_>,
    head: &LogHead,
    object: Bytes,
    packs: &UnnamedPacks,
) -> Result<(), TreeError> {
    add_segment_bytes(rows, object.len() as u64)?;
    let mut writer = Writer::with_capacity(41);
    writer.u8(VERSION);
    writer.u64(head.seq);
    writer.raw(&head.hash);
    rows.put(&keys::numbered(family::META, LOG_HEAD), writer.into_bytes());
    rows.put(&keys::outbox(head.seq), object);
    packs.keys.iter().for_each(|key| rows.delete(key));
    Ok(())
}

/// The first segment that was not acknowledged.
pub(super) fn first_in_outbox(rows: &impl Rows) -> Result<Option<(u64, Bytes)>, StoreError> {
    let mut first = None;
    rows.scan_family(family::OUTBOX, &mut |key, value| {
        first = keys::number(key).map(|seq| (seq, Bytes::copy_from_slice(value)));
        ControlFlow::Break(())
    })?;
    Ok(first)
}

/// How many segments were not acknowledged.
pub(super) fn outbox_len(rows: &impl Rows) -> Result<u64, StoreError> {
    let mut count = 0;
    rows.scan_family(family::OUTBOX, &mut |_, _| {
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok(count)
}

fn decoded<T>(
    key: &[u8],
    value: &[u8],
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<T, TreeError> {
    let mut reader = Reader::new(value);
    let result = reader.version(VERSION, "a row of replication").and_then(|_| {
        let value = read(&mut reader)?;
        reader.finish()?;
        Ok(value)
    });
    result.map_err(|source| TreeError::corrupt(key, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn location(pack: PackId, index: u32) -> ChunkLocation {
        ChunkLocation { pack, offset: 100 * (index + 1), sealed_len: 90, plain_len: 50, index, epoch: 1 }
    }

    #[test]
    fn cursors_and_heads_are_read_back() {
        let store = Store::in_memory().expect("a store opens");
        assert_eq!(log_head(&store).expect("it reads"), LogHead::default());
        let cursor = LogCursor { seq: 7, hash: [3; 32], name: "laptop".to_owned() };
        let mut operation = store.operation().expect("the store takes operations");
        put_log_cursor(&mut operation, DeviceId(9), &cursor);
        operation.commit();
        assert_eq!(log_cursor(&store, DeviceId(9)).expect("it reads"), cursor);
        assert_eq!(log_cursor(&store, DeviceId(8)).expect("it reads"), LogCursor::default());
        assert_eq!(log_cursors(&store).expect("they read"), [(DeviceId(9), cursor)]);
    }

    #[test]
    fn packs_wait_for_the_segment_that_names_them() {
        let store = Store::in_memory().expect("a store opens");
        let mut operation = store.operation().expect("the store takes operations");
        for pack in [1, 2, 3] {
            let id = PackId([pack; 32]);
            let chunks: Vec<_> = (0..4).map(|index| (ChunkId([index as u8 + pack; 32]), location(id, index))).collect();
            put_pack(&mut operation, id, &chunks);
        }
        operation.commit();
        let mut exclusive = store.exclusive().expect("the store takes operations");
        let first = packs(&*exclusive, 5).expect("they read");
        assert_eq!(first.chunks.len(), 8, "whole packs");
        let head = LogHead { seq: 1, hash: [1; 32] };
        put_segment(&mut exclusive, &head, Bytes::from_static(b"segment"), &first).expect("the rows read");
        exclusive.commit();
        assert_eq!(packs(&store, usize::MAX).expect("they read").chunks.len(), 4);
        assert_eq!(log_head(&store).expect("it reads"), head);
        assert_eq!(first_in_outbox(&store).expect("it reads"), Some((1, Bytes::from_static(b"segment"))));
        assert_eq!(outbox_len(&store).expect("it reads"), 1);
        assert_eq!((segment_bytes(&store).expect("it reads"), segments(&store).expect("they read")), (7, 1));
    }

    #[test]
    fn what_is_known_of_checkpoints_is_read_back_and_their_packs_are_forgotten_together() {
        let store = Store::in_memory().expect("a store opens");
        assert_eq!(known_checkpoint(&store).expect("it reads"), KnownCheckpoint::default());
        let known = KnownCheckpoint { segments: 3, bytes: 70, number: 2 };
        let mut operation = store.operation().expect("the store takes operations");
        put_known_checkpoint(&mut operation, &known);
        for pack in [1, 2] {
            let id = PackId([pack; 32]);
            put_rows_pack(&mut operation, id, &[(ChunkId([pack; 32]), location(id, 0))]);
        }
        operation.commit();
        assert_eq!(known_checkpoint(&store).expect("it reads"), known);
        assert_eq!(rows_packs(&store).expect("they read").len(), 2);
        assert!(packs(&store, usize::MAX).expect("they read").chunks.is_empty(), "no segment names them");
        let mut operation = store.operation().expect("the store takes operations");
        forget_rows_packs(&mut operation).expect("they read");
        operation.commit();
        assert!(rows_packs(&store).expect("they read").is_empty());
    }
}
