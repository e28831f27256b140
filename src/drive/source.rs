//! Where content comes from that is not here: the seam to whatever talks to the remote.

use std::collections::HashMap;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use crate::chunk::{ChunkId, ChunkRef};

/// Why a chunk could not be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The remote does not answer, or not in time. Trying later can help.
    #[error("chunk {chunk} cannot be had now: {reason}")]
    Unavailable {
        /// The chunk.
        chunk: String,
        /// What the remote or the network said.
        reason: String,
    },
    /// The remote answered, and what it has is missing or is not this chunk.
    #[error("chunk {chunk} is damaged or missing on the remote: {reason}")]
    Damaged {
        /// The chunk.
        chunk: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Gives the bytes of chunks. Fetching one chunk several times at once costs one transfer: the source sees to that.
pub trait ContentSource: Send + Sync + 'static {
    /// The plaintext of a chunk: exactly `chunk.len` bytes that hash to its id, or an error.
    fn fetch(&self, chunk: ChunkRef) -> BoxFuture<'static, Result<Bytes, FetchError>>;

    /// Whether a chunk is known to be nothing but zeros, which take no room: that of a large hole.
    fn is_hole(&self, chunk: &ChunkRef) -> bool;
}

/// A source in memory, for tests and for drives without a remote.
#[derive(Debug, Default)]
pub struct MemorySource {
    chunks: Mutex<HashMap<ChunkId, Bytes>>,
}

impl MemorySource {
    /// Keeps a chunk.
    pub fn insert(&self, id: ChunkId, bytes: Bytes) {
        self.chunks.lock().insert(id, bytes);
    }
}

impl ContentSource for MemorySource {
    fn fetch(&self, chunk: ChunkRef) -> BoxFuture<'static, Result<Bytes, FetchError>> {
        let found = self.chunks.lock().get(&chunk.id).cloned();
        Box::pin(async move {
            found.ok_or_else(|| FetchError::Damaged {
                chunk: format!("{:?}", chunk.id),
                reason: "it was never stored".to_owned(),
            })
        })
    }

    fn is_hole(&self, chunk: &ChunkRef) -> bool {
        self.chunks.lock().get(&chunk.id).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0))
    }
}
