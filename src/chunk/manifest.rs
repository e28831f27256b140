//! Which chunks make a content.

use super::{ChunkId, ContentId};
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::crypto::VaultKeys;

const VERSION: u8 = 1;
/// No chunker cuts longer chunks: the bound of FastCDC as this format defines it.
pub(crate) const CHUNK_LEN_MAX: u32 = 16 << 20;

/// A chunk and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkRef {
    /// The chunk.
    pub id: ChunkId,
    /// Length of the plaintext in bytes, never 0.
    pub len: u32,
}

/// The chunks of one content, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// Length of the content in bytes: the sum of the lengths of the chunks.
    pub size: u64,
    /// The chunks.
    pub chunks: Vec<ChunkRef>,
}

impl Manifest {
    /// The most chunks that a content may have: 4 TiB at the average length, 300 MB in memory.
    pub const CHUNKS_MAX: usize = 1 << 23;
    /// An encoded manifest longer than this is itself cut into chunks, and the log names those. About 1,800 chunks.
    pub const INLINE_MAX: usize = 64 << 10;

    /// The manifest of these chunks.
    pub fn new(chunks: Vec<ChunkRef>) -> Self {
        Self { size: chunks.iter().map(|chunk| u64::from(chunk.len)).sum(), chunks }
    }

    /// The one encoding of this list of chunks; chunks that repeat are stored once with a count.
    pub fn encode(&self) -> Vec<u8> {
        let runs = self.chunks.chunk_by(|a, b| a == b);
        let mut writer = Writer::new();
        writer.u8(VERSION);
        writer.varint(self.size);
        writer.length(runs.clone().count());
        for run in runs {
            writer.raw(&run[0].id.0);
            writer.varint(u64::from(run[0].len));
            writer.length(run.len());
        }
        writer.into_vec()
    }

    /// The inverse of [`Self::encode`]; accepts nothing else.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.version(VERSION, "the list of chunks")?;
        let size = reader.varint("size")?;
        let runs = reader.count(Self::CHUNKS_MAX, "number of chunks")?;
        let mut chunks: Vec<ChunkRef> = Vec::new();
        let mut sum = 0;
        for _ in 0..runs {
            let chunk = ChunkRef {
                id: ChunkId(reader.array("chunk id")?),
                len: chunk_len(reader.varint("length of a chunk")?)?,
            };
            let length = reader.varint("repetitions of a chunk")?;
            let limit = Self::CHUNKS_MAX - chunks.len();
            let repeat = usize::try_from(length)
                .ok()
                .filter(|repeat| *repeat <= limit)
                .ok_or(DecodeError::TooLong { what: "number of chunks", length, limit })?;
            if repeat == 0 || chunks.last() == Some(&chunk) {
                return Err(DecodeError::Invalid("repetitions of a chunk"));
            }
            sum += u64::from(chunk.len) * length;
            chunks.resize(chunks.len() + repeat, chunk);
        }
        reader.finish()?;
        if sum == size { Ok(Self { size, chunks }) } else { Err(DecodeError::Invalid("size")) }
    }

    /// The id of the content in this vault.
    pub fn content_id(&self, keys: &VaultKeys) -> ContentId {
        ContentId(*blake3::keyed_hash(keys.content_id_key(), &self.encode()).as_bytes())
    }
}

pub(crate) fn chunk_len(length: u64) -> Result<u32, DecodeError> {
    match u32::try_from(length) {
        Ok(len @ 1..=CHUNK_LEN_MAX) => Ok(len),
        _ => Err(DecodeError::Invalid("length of a chunk")),
    }
}
