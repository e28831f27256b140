//! The names of chunks, contents and packs.

use std::fmt;

use crate::crypto::VaultKeys;

macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident, $short:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($short, " {}"), hex::encode(&self.0[..6]))
            }
        }
    };
}

hash_id! {
    /// A chunk: the keyed BLAKE3 of its plaintext.
    ChunkId, "chunk"
}

hash_id! {
    /// The content of a file: the keyed BLAKE3 of its encoded [`crate::chunk::Manifest`].
    ContentId, "content"
}

hash_id! {
    /// A pack: the BLAKE3 of the object's bytes.
    PackId, "pack"
}

impl VaultKeys {
    /// The id of a chunk of this vault.
    pub fn chunk_id(&self, plaintext: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(self.chunk_id_key(), plaintext).as_bytes())
    }
}

impl PackId {
    /// The id of a pack with these bytes.
    pub fn of(object: &[u8]) -> Self {
        Self(*blake3::hash(object).as_bytes())
    }
}
