//! Content as chunks: cutting, ids, lists of chunks, compression.
//!
//! A file's content is cut by FastCDC with a gear table made from a vault key, so that equal content gives equal chunks on
//! all devices of a vault and the cuts say nothing to others. A [`ChunkId`] is the keyed BLAKE3 of the chunk's plaintext. A
//! [`Manifest`] lists the chunks of one content, and its keyed hash is the [`ContentId`].
//!
//! Holes are chunks of zeros: a run of zeros is cut at the maximum length, its id is computed once, and a list stores a
//! repetition of one chunk as a count. It does not read files and does not know where chunks are kept, only how that is
//! written down ([`ChunkLocation`]).

mod chunker;
mod compress;
mod ids;
mod location;
mod manifest;

pub use chunker::{Chunker, ChunkerParams, InvalidChunkerParams, Last};
pub use compress::{CompressionError, Compressor, Encoding, decompress};
pub use ids::{ChunkId, ContentId, PackId};
pub use location::ChunkLocation;
pub use manifest::{ChunkRef, Manifest};

#[cfg(test)]
mod tests;
