//! FastCDC with a secret gear table.

use fastcdc::v2020;
use serde::{Deserialize, Serialize};

use super::{ChunkId, ChunkRef};
use crate::crypto::VaultKeys;

/// The lengths that chunks are cut to, in bytes. Part of a vault's descriptor: all devices cut alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkerParams {
    /// No chunk is shorter, but the last of a content.
    pub minimum: u32,
    /// What lengths centre on; a power of two.
    pub average: u32,
    /// No chunk is longer.
    pub maximum: u32,
}

impl Default for ChunkerParams {
    fn default() -> Self {
        Self { minimum: 128 << 10, average: 512 << 10, maximum: 2 << 20 }
    }
}

/// Lengths that cannot be cut to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("chunk lengths {minimum}/{average}/{maximum} are out of bounds")]
pub struct InvalidChunkerParams {
    /// As asked.
    pub minimum: u32,
    /// As asked.
    pub average: u32,
    /// As asked.
    pub maximum: u32,
}

impl ChunkerParams {
    /// Checks the lengths: even, ordered, and within what FastCDC is defined for.
    ///
    /// # Errors
    /// [`InvalidChunkerParams`].
    pub fn validate(self) -> Result<Self, InvalidChunkerParams> {
        let Self { minimum, average, maximum } = self;
        let (min, avg, max) = (minimum as usize, average as usize, maximum as usize);
        let bounded = (v2020::MINIMUM_MIN..=v2020::MINIMUM_MAX).contains(&min)
            && (v2020::AVERAGE_MIN..=v2020::AVERAGE_MAX).contains(&avg)
            && (v2020::MAXIMUM_MIN..=v2020::MAXIMUM_MAX).contains(&max);
        let even = [minimum, maximum].iter().all(|length| length % 2 == 0) && average.is_power_of_two();
        if bounded && even && minimum < average && average < maximum {
            Ok(self)
        } else {
            Err(InvalidChunkerParams { minimum, average, maximum })
        }
    }
}

/// Cuts content into chunks and names them.
#[derive(Clone)]
pub struct Chunker {
    keys: VaultKeys,
    params: ChunkerParams,
    gear: Box<[u64; 256]>,
    gear_shifted: Box<[u64; 256]>,
    mask_short: u64,
    mask_long: u64,
    zero: ChunkRef,
}

impl std::fmt::Debug for Chunker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chunker").field("params", &self.params).finish_non_exhaustive()
    }
}

impl Chunker {
    /// A chunker of the vault with these keys.
    ///
    /// # Errors
    /// [`InvalidChunkerParams`] when the lengths are out of bounds.
    pub fn new(keys: &VaultKeys, params: ChunkerParams) -> Result<Self, InvalidChunkerParams> {
        let params = params.validate()?;
        let mut stream = blake3::Hasher::new_keyed(keys.gear_key()).finalize_xof();
        let mut gear = Box::new([0u64; 256]);
        for entry in gear.iter_mut() {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            *entry = u64::from_le_bytes(bytes);
        }
        let gear_shifted = Box::new(gear.map(|entry| entry << 1));
        let bits = params.average.trailing_zeros() as usize;
        let zeros = vec![0; params.maximum as usize];
        Ok(Self {
            keys: keys.clone(),
            params,
            gear,
            gear_shifted,
            // Normalised chunking, level 1: one bit more below the average, one less above it.
            mask_short: v2020::MASKS[bits + 1],
            mask_long: v2020::MASKS[bits - 1],
            zero: ChunkRef { id: keys.chunk_id(&zeros), len: params.maximum },
        })
    }

    /// The lengths it cuts to.
    pub fn params(&self) -> ChunkerParams {
        self.params
    }

    /// Where the first chunk of `buffer` ends. `None` when more bytes are needed to tell, or the buffer is empty: give at least
    /// the maximum length, or the rest of the content with `last` set.
    pub fn next_cut(&self, buffer: &[u8], last: Last) -> Option<usize> {
        let maximum = self.params.maximum as usize;
        if buffer.is_empty() || (last == Last::No && buffer.len() < maximum) {
            return None;
        }
        if buffer.get(..maximum).is_some_and(is_zero) {
            return Some(maximum);
        }
        let (_, cut) = v2020::cut_gear(
            buffer,
            self.params.minimum as usize,
            self.params.average as usize,
            maximum,
            self.mask_short,
            self.mask_long,
            self.mask_short << 1,
            self.mask_long << 1,
            &self.gear[..],
            &self.gear_shifted[..],
        );
        Some(cut)
    }

    /// The reference to a chunk that [`Self::next_cut`] cut.
    pub fn chunk_ref(&self, plaintext: &[u8]) -> ChunkRef {
        debug_assert!(plaintext.len() <= self.params.maximum as usize, "a chunk is not longer than the maximum");
        if plaintext.len() == self.zero.len as usize && is_zero(plaintext) {
            return self.zero;
        }
        ChunkRef { id: self.keys.chunk_id(plaintext), len: plaintext.len() as u32 }
    }

    /// The chunk of zeros of the maximum length. A hole of at least that length, met where a chunk begins, is this chunk, and
    /// need not be read.
    pub fn zero_chunk(&self) -> ChunkRef {
        self.zero
    }

    /// The id of the chunk of zeros, for callers that compare.
    pub fn is_zero_chunk(&self, id: &ChunkId) -> bool {
        self.zero.id == *id
    }
}

/// Whether the buffer given to [`Chunker::next_cut`] reaches the end of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// More follows.
    No,
    /// Nothing follows.
    Yes,
}

/// Whether all bytes are zero; stops at the first block that is not.
fn is_zero(bytes: &[u8]) -> bool {
    let mut blocks = bytes.chunks_exact(256);
    blocks.all(|block| block.iter().fold(0, |bits, byte| bits | byte) == 0)
        && blocks.remainder().iter().all(|byte| *byte == 0)
}
