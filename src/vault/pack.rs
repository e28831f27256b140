//! Packs: many sealed chunks in one object.
//!
//! The frames lie one after the other without anything between them; where one ends and the next begins is said only in the
//! sealed directory at the end and in segments. The directory's plaintext is padded with zeros so that the object's length
//! is one of few.

use bytes::Bytes;

use super::envelope::{HEADER_LEN, header, padded, read_header};
use super::error::{Damage, VaultError};
use super::paths;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::chunk::{ChunkId, ChunkLocation, Encoding, PackId, decompress};
use crate::crypto::{FIRST_EPOCH, Place, Purpose, VaultKeys};

const MAGIC: &[u8; 8] = b"cairnpck";
const TRAILER_MAGIC: &[u8; 4] = b"CPE1";
const TRAILER_LEN: usize = 8;
const DIRECTORY_VERSION: u8 = 1;
/// A chunk in the directory is at least this long.
const ENTRY_MIN: usize = 34;

/// Fills one pack. Holds it in memory, sealed.
pub struct PackBuilder {
    keys: VaultKeys,
    target: usize,
    object: Vec<u8>,
    chunks: Vec<(ChunkId, ChunkLocation)>,
}

impl std::fmt::Debug for PackBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackBuilder({} chunks, {} bytes)", self.chunks.len(), self.object.len())
    }
}

/// A pack that is ready to be stored.
#[derive(Debug, Clone)]
pub struct FinishedPack {
    /// Its id, which is also its name.
    pub id: PackId,
    /// The object.
    pub bytes: Bytes,
    /// Where its chunks lie.
    pub chunks: Vec<(ChunkId, ChunkLocation)>,
}

impl PackBuilder {
    /// An empty pack that is full once it has `target` bytes.
    pub fn new(keys: VaultKeys, target: usize) -> Self {
        Self { keys, target, object: header(MAGIC, FIRST_EPOCH).to_vec(), chunks: Vec::new() }
    }

    /// Seals one chunk, as [`crate::chunk::Compressor`] encoded it, into the pack. `plain_len` is its length before.
    pub fn add(&mut self, id: ChunkId, plain_len: u32, encoding: Encoding, encoded: &[u8]) {
        if self.object.capacity() < self.target && self.object.len() > self.target / 16 {
            // Growing by doubling would copy a large pack several times.
            self.object.reserve_exact(self.target + self.target / 4 - self.object.len());
        }
        let offset = self.object.len();
        let index = self.chunks.len() as u32;
        self.keys.seal(&chunk_place(&id, index, FIRST_EPOCH), &[encoded, &[encoding as u8]], &mut self.object);
        let location = ChunkLocation {
            // Known when the pack is finished.
            pack: PackId([0; 32]),
            offset: u32::try_from(offset).expect("a pack is far shorter than 4 GiB"),
            sealed_len: (self.object.len() - offset) as u32,
            plain_len,
            index,
            epoch: FIRST_EPOCH,
        };
        self.chunks.push((id, location));
    }

    /// Whether the pack has reached its target.
    pub fn is_full(&self) -> bool {
        self.object.len() >= self.target
    }

    /// Whether the pack has no chunk.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes in the pack so far.
    pub fn len(&self) -> usize {
        self.object.len()
    }

    /// The chunks in the pack so far.
    pub fn chunk_ids(&self) -> impl Iterator<Item = &ChunkId> {
        self.chunks.iter().map(|(id, _)| id)
    }

    /// Seals the directory and names the pack.
    pub fn finish(self) -> FinishedPack {
        let Self { keys, mut object, mut chunks, .. } = self;
        let mut directory = Writer::with_capacity(16 + chunks.len() * 44);
        directory.u8(DIRECTORY_VERSION);
        directory.length(chunks.len());
        for (id, location) in &chunks {
            directory.raw(&id.0);
            directory.varint(u64::from(location.sealed_len));
            directory.varint(u64::from(location.plain_len));
        }
        let directory = directory.into_vec();
        let start = object.len();
        let len = start + directory.len() + keys.cipher().overhead() + TRAILER_LEN;
        let padding = vec![0; padded(len) - len];
        object.reserve_exact(padded(len) - start);
        keys.seal(&directory_place(start, FIRST_EPOCH), &[&directory, &padding], &mut object);
        let directory_len = (object.len() - start) as u32;
        object.extend_from_slice(&directory_len.to_le_bytes());
        object.extend_from_slice(TRAILER_MAGIC);
        let id = PackId::of(&object);
        chunks.iter_mut().for_each(|(_, location)| location.pack = id);
        FinishedPack { id, bytes: object.into(), chunks }
    }
}

/// The plaintext of a chunk, from the bytes at [`ChunkLocation::range`] of its pack. What it gives is exactly the chunk.
///
/// # Errors
/// [`VaultError::Damaged`], naming the pack.
pub fn read_chunk(
    keys: &VaultKeys,
    id: &ChunkId,
    location: &ChunkLocation,
    frame: &[u8],
) -> Result<Vec<u8>, VaultError> {
    open_chunk(keys, id, location, frame).map_err(|damage| damage.of(paths::pack(&location.pack)))
}

fn open_chunk(keys: &VaultKeys, id: &ChunkId, location: &ChunkLocation, frame: &[u8]) -> Result<Vec<u8>, Damage> {
    let mut plaintext = keys.open(&chunk_place(id, location.index, location.epoch), frame)?;
    let encoding =
        plaintext.pop().and_then(Encoding::from_byte).ok_or(DecodeError::Invalid("the encoding of a chunk"))?;
    let plain_len = location.plain_len as usize;
    let chunk = match encoding {
        Encoding::Raw if plaintext.len() == plain_len => plaintext,
        Encoding::Raw | Encoding::Zstd => decompress(encoding, &plaintext, plain_len)?,
    };
    if keys.chunk_id(&chunk) == *id { Ok(chunk) } else { Err(Damage::Hash) }
}

/// The chunks of a pack and where they lie, from the whole object, which is checked against its name.
///
/// # Errors
/// [`VaultError::Damaged`].
pub fn read_directory(
    keys: &VaultKeys,
    pack: &PackId,
    object: &[u8],
) -> Result<Vec<(ChunkId, ChunkLocation)>, VaultError> {
    if PackId::of(object) != *pack {
        return Err(Damage::Hash.of(paths::pack(pack)));
    }
    open_directory(keys, pack, object).map_err(|damage| damage.of(paths::pack(pack)))
}

fn open_directory(keys: &VaultKeys, pack: &PackId, object: &[u8]) -> Result<Vec<(ChunkId, ChunkLocation)>, Damage> {
    let truncated = DecodeError::Truncated("the pack");
    let epoch = read_header(&mut Reader::new(object), MAGIC)?;
    let (body, trailer) = object.split_last_chunk::<TRAILER_LEN>().ok_or(truncated.clone())?;
    let mut reader = Reader::new(trailer);
    let directory_len = reader.u32("the trailer")? as usize;
    if reader.rest() != TRAILER_MAGIC {
        return Err(DecodeError::Invalid("the trailer").into());
    }
    let start = body.len().checked_sub(directory_len).filter(|start| *start >= HEADER_LEN).ok_or(truncated.clone())?;
    let (frames, directory) = body.split_at_checked(start).ok_or(truncated)?;
    let plaintext = keys.open(&directory_place(start, epoch), directory)?;
    Ok(decode_directory(&plaintext, pack, epoch, frames.len())?)
}

/// Reads the plaintext of a directory. `frames_end` is where the last frame ends.
fn decode_directory(
    plaintext: &[u8],
    pack: &PackId,
    epoch: u32,
    frames_end: usize,
) -> Result<Vec<(ChunkId, ChunkLocation)>, DecodeError> {
    let mut reader = Reader::new(plaintext);
    reader.version(DIRECTORY_VERSION, "the directory")?;
    let count = reader.count(plaintext.len() / ENTRY_MIN, "number of chunks")?;
    let mut chunks = Vec::with_capacity(count);
    let mut offset = HEADER_LEN as u32;
    for index in 0..count as u32 {
        let id = ChunkId(reader.array("chunk id")?);
        let sealed_len = reader.varint("length of a frame")?;
        let plain_len = reader.varint("length of a chunk")?;
        let location =
            ChunkLocation::checked(*pack, epoch, [u64::from(index), u64::from(offset), sealed_len, plain_len])?;
        offset += location.sealed_len;
        chunks.push((id, location));
    }
    if offset as usize != frames_end || reader.rest().iter().any(|byte| *byte != 0) {
        return Err(DecodeError::Invalid("the directory"));
    }
    Ok(chunks)
}

fn chunk_place(id: &ChunkId, index: u32, epoch: u32) -> Place<'_> {
    Place { purpose: Purpose::Chunk, epoch, position: u64::from(index), context: &id.0 }
}

fn directory_place(start: usize, epoch: u32) -> Place<'static> {
    Place { purpose: Purpose::PackDirectory, epoch, position: start as u64, context: &[] }
}
