//! `cairn.json`: what a vault is made of, in the clear.

use serde::{Deserialize, Serialize};

use crate::chunk::ChunkerParams;
use crate::crypto::{Cipher, VaultId};

const MAGIC: &str = "cairn vault";
const VERSION: u64 = 1;
const PACK_TARGETS: std::ops::RangeInclusive<u32> = (64 << 10)..=(256 << 20);
const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

/// How content is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compression {
    /// The algorithm.
    pub algorithm: CompressionAlgorithm,
    /// Its level.
    pub level: i32,
}

impl Default for Compression {
    fn default() -> Self {
        Self { algorithm: CompressionAlgorithm::Zstd, level: 3 }
    }
}

/// The one way to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompressionAlgorithm {
    /// zstd.
    #[serde(rename = "zstd")]
    Zstd,
}

/// The parameters of a vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Its id.
    pub vault: VaultId,
    /// How frames are sealed.
    pub cipher: Cipher,
    /// How content is cut.
    pub chunker: ChunkerParams,
    /// The length in bytes at which a pack is full.
    pub pack_target: u32,
    /// How content is compressed.
    pub compression: Compression,
}

/// The file, field by field.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    magic: String,
    version: u64,
    vault: VaultId,
    cipher: Cipher,
    chunker: ChunkerParams,
    pack_target: u32,
    compression: Compression,
    checksum: String,
}

/// The part of the file that every version has.
#[derive(Deserialize)]
struct Preamble {
    magic: String,
    version: u64,
}

/// What is wrong with a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DescriptorFault {
    /// It is not what was written.
    Damaged(String),
    /// Written by a later version.
    Newer(u64),
}

impl Descriptor {
    /// Far longer than any descriptor, in bytes.
    pub(super) const LEN_MAX: u64 = 64 << 10;

    /// Checks that the parameters are within bounds.
    pub(super) fn validate(&self) -> Result<(), String> {
        self.chunker.validate().map_err(|error| error.to_string())?;
        if !PACK_TARGETS.contains(&self.pack_target) {
            return Err(format!("a pack target of {} bytes is out of bounds", self.pack_target));
        }
        if !LEVELS.contains(&self.compression.level) {
            return Err(format!("zstd level {} is out of bounds", self.compression.level));
        }
        Ok(())
    }

    fn file(&self, checksum: String) -> File {
        File {
            magic: MAGIC.to_owned(),
            version: VERSION,
            vault: self.vault,
            cipher: self.cipher,
            chunker: self.chunker,
            pack_target: self.pack_target,
            compression: self.compression,
            checksum,
        }
    }

    /// BLAKE3 of the file without white space and with an empty checksum: what the key slots bind.
    pub(super) fn hash(&self) -> [u8; 32] {
        let canonical = serde_json::to_vec(&self.file(String::new())).expect("plain fields make JSON");
        *blake3::hash(&canonical).as_bytes()
    }

    /// The bytes of `cairn.json`.
    pub fn encode(&self) -> Vec<u8> {
        let file = self.file(hex::encode(self.hash()));
        let mut bytes = serde_json::to_vec_pretty(&file).expect("plain fields make JSON");
        bytes.push(b'\n');
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DescriptorFault> {
        let damaged = |reason: &dyn ToString| DescriptorFault::Damaged(reason.to_string());
        if bytes.len() as u64 > Self::LEN_MAX {
            return Err(damaged(&"it is far too long"));
        }
        let preamble: Preamble = serde_json::from_slice(bytes).map_err(|error| damaged(&error))?;
        if preamble.magic != MAGIC {
            return Err(damaged(&"it does not begin like the descriptor of a vault"));
        }
        if preamble.version > VERSION {
            return Err(DescriptorFault::Newer(preamble.version));
        }
        let file: File = serde_json::from_slice(bytes).map_err(|error| damaged(&error))?;
        let File { vault, cipher, chunker, pack_target, compression, .. } = file;
        let descriptor = Self { vault, cipher, chunker, pack_target, compression };
        if file.version != VERSION || file.checksum != hex::encode(descriptor.hash()) {
            return Err(damaged(&"its checksum does not match"));
        }
        descriptor.validate().map_err(|reason| damaged(&reason))?;
        Ok(descriptor)
    }
}
