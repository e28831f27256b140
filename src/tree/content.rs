//! Rows about contents: snapshots, lists of chunks, locations of chunks. None of them is part of the namespace.

use std::ops::ControlFlow;

use cairn_platform_api::InodeNo;

use super::keys::{self, family};
use super::namespace::{Namespace, decoded};
use super::rows::{Content, ContentState, Snapshot};
use super::{Tree, TreeError};
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::chunk::{ChunkId, ChunkLocation, ChunkRef, ContentId, Manifest, PackId};
use crate::store::{Operation, Rows};

const VERSION: u8 = 1;

/// Writing rows about contents, in any operation or bulk work.
pub trait ManifestRows {
    /// Keeps a content's list of chunks.
    fn put_manifest(&mut self, id: &ContentId, manifest: &Manifest);
    /// Keeps which chunks hold a content's list of chunks, which could not be read yet.
    fn put_wanted_list(&mut self, id: &ContentId, list: &Manifest);
    /// Keeps a content's list of chunks that could not be read before.
    fn put_found_list(&mut self, id: &ContentId, manifest: &Manifest);
    /// Keeps where a chunk lies.
    fn put_chunk_location(&mut self, id: &ChunkId, location: &ChunkLocation);
}

impl ManifestRows for Operation<'_> {
    fn put_manifest(&mut self, id: &ContentId, manifest: &Manifest) {
        self.put(&keys::manifest(id), encode_manifest(manifest));
    }

    fn put_wanted_list(&mut self, id: &ContentId, list: &Manifest) {
        self.put(&keys::wanted(id), encode_manifest(list));
    }

    fn put_found_list(&mut self, id: &ContentId, manifest: &Manifest) {
        self.delete(&keys::wanted(id));
        self.put_manifest(id, manifest);
    }

    fn put_chunk_location(&mut self, id: &ChunkId, location: &ChunkLocation) {
        let mut writer = Writer::with_capacity(56);
        writer.u8(VERSION);
        writer.raw(&location.pack.0);
        for number in [location.offset, location.sealed_len, location.plain_len, location.index, location.epoch] {
            writer.u32(number);
        }
        self.put(&keys::chunk(id), writer.into_bytes());
    }
}

impl Tree {
    /// A content's list of chunks, where it is known.
    ///
    /// # Errors
    /// [`TreeError`] where rows cannot be read; so for all methods.
    pub fn manifest(&self, id: &ContentId) -> Result<Option<Manifest>, TreeError> {
        let key = keys::manifest(id);
        self.store.get(&key)?.map(|value| decoded(&key, decode_manifest(&value))).transpose()
    }

    /// Which chunks hold a content's list of chunks, where that could not be read yet.
    ///
    /// # Errors
    /// As [`Tree::manifest`].
    pub fn wanted_list(&self, id: &ContentId) -> Result<Option<Manifest>, TreeError> {
        let key = keys::wanted(id);
        self.store.get(&key)?.map(|value| decoded(&key, decode_manifest(&value))).transpose()
    }

    /// The contents whose list of chunks could not be read yet, with the chunks that hold it.
    ///
    /// # Errors
    /// As [`Tree::manifest`].
    pub fn wanted_lists(&self) -> Result<Vec<(ContentId, Manifest)>, TreeError> {
        let mut lists = Vec::new();
        let mut failure = None;
        self.store.scan_family(family::WANTED, &mut |key, value| {
            let id = key.get(1..).and_then(|id| id.try_into().ok()).ok_or(DecodeError::Invalid("a key"));
            match id.and_then(|id| Ok((ContentId(id), decode_manifest(value)?))) {
                Ok(list) => {
                    lists.push(list);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    failure = Some(TreeError::corrupt(key, error));
                    ControlFlow::Break(())
                }
            }
        })?;
        failure.map_or(Ok(lists), Err)
    }

    /// Where a chunk lies, where that is known.
    ///
    /// # Errors
    /// As [`Tree::manifest`].
    pub fn chunk_location(&self, id: &ChunkId) -> Result<Option<ChunkLocation>, TreeError> {
        let key = keys::chunk(id);
        self.store.get(&key)?.map(|value| decoded(&key, decode_location(&value))).transpose()
    }

    /// What was uploaded of an inode's local content.
    ///
    /// # Errors
    /// As [`Tree::manifest`].
    pub fn snapshot(&self, ino: InodeNo) -> Result<Option<Snapshot>, TreeError> {
        snapshot(&*self.store, ino)
    }

    /// Keeps what was uploaded of an inode's local content, for the next cut. Does nothing where the content is not local
    /// (any more).
    ///
    /// # Errors
    /// As [`Tree::manifest`], and where the store takes no operations.
    pub fn set_snapshot(&self, ino: InodeNo, snapshot: &Snapshot) -> Result<(), TreeError> {
        let mut change = self.change(&[ino])?;
        if change.inode(ino)?.is_some_and(|row| matches!(row.content, ContentState::Local { .. })) {
            change.rows().put(&keys::snapshot(ino), snapshot.encode());
            change.commit();
        }
        Ok(())
    }
}

impl Tree {
    /// As [`Tree::set_snapshot`], where the local content began as `base`: what was uploaded may be of a content that was
    /// replaced since. Answers whether the snapshot was kept.
    ///
    /// # Errors
    /// As [`Tree::set_snapshot`].
    pub fn set_snapshot_over(
        &self,
        ino: InodeNo,
        base: Option<Content>,
        snapshot: &Snapshot,
    ) -> Result<bool, TreeError> {
        let mut change = self.change(&[ino])?;
        let began_so = change.inode(ino)?.is_some_and(|row| row.content == ContentState::Local { base });
        if began_so {
            change.rows().put(&keys::snapshot(ino), snapshot.encode());
            change.commit();
        }
        Ok(began_so)
    }
}

pub(super) fn snapshot(rows: &impl Rows, ino: InodeNo) -> Result<Option<Snapshot>, TreeError> {
    let key = keys::snapshot(ino);
    rows.get(&key)?.map(|value| decoded(&key, Snapshot::decode(&value))).transpose()
}

fn encode_manifest(manifest: &Manifest) -> Vec<u8> {
    let mut writer = Writer::with_capacity(16 + manifest.chunks.len() * 36);
    writer.u8(VERSION);
    writer.varint(manifest.size);
    writer.length(manifest.chunks.len());
    let mut chunks = manifest.chunks.as_slice();
    while let Some(first) = chunks.first() {
        let run = chunks.iter().take_while(|chunk| *chunk == first).count();
        writer.length(run);
        writer.varint(first.len.into());
        writer.raw(&first.id.0);
        chunks = &chunks[run..];
    }
    writer.into_vec()
}

pub(super) fn decode_manifest(bytes: &[u8]) -> Result<Manifest, DecodeError> {
    let mut reader = Reader::new(bytes);
    reader.version(VERSION, "a manifest row")?;
    let size = reader.varint("a size")?;
    let count = reader.varint("a number of chunks")?;
    if count > Manifest::CHUNKS_MAX as u64 {
        return Err(DecodeError::Invalid("a number of chunks"));
    }
    let mut chunks = Vec::new();
    while (chunks.len() as u64) < count {
        let run = reader.varint("a number of equal chunks")?;
        if run == 0 || run > count - chunks.len() as u64 {
            return Err(DecodeError::Invalid("a number of equal chunks"));
        }
        let len = u32::try_from(reader.varint("a length")?).map_err(|_| DecodeError::Invalid("a length"))?;
        let chunk = ChunkRef { id: ChunkId(reader.array("a chunk id")?), len };
        chunks.extend(std::iter::repeat_n(chunk, run as usize));
    }
    reader.finish()?;
    Ok(Manifest { size, chunks })
}

pub(super) fn decode_location(bytes: &[u8]) -> Result<ChunkLocation, DecodeError> {
    let mut reader = Reader::new(bytes);
    reader.version(VERSION, "a chunk row")?;
    let pack = PackId(reader.array("a pack id")?);
    let mut numbers = [0; 5];
    for number in &mut numbers {
        *number = reader.u32("a number of a location")?;
    }
    reader.finish()?;
    let [offset, sealed_len, plain_len, index, epoch] = numbers;
    ChunkLocation::checked(pack, epoch, [index, offset, sealed_len, plain_len].map(u64::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_round_trip_with_runs_of_equal_chunks() {
        let chunk = |byte, len| ChunkRef { id: ChunkId([byte; 32]), len };
        let mut chunks = vec![chunk(0, 2048); 1000];
        chunks.extend([chunk(1, 10), chunk(2, 20), chunk(1, 10)]);
        let manifest = Manifest { size: 2048 * 1000 + 40, chunks };
        let bytes = encode_manifest(&manifest);
        assert!(bytes.len() < 200);
        assert_eq!(decode_manifest(&bytes), Ok(manifest));
        assert!(decode_manifest(&bytes[..bytes.len() - 1]).is_err());
        assert_eq!(decode_manifest(&encode_manifest(&Manifest::default())), Ok(Manifest::default()));
    }
}
