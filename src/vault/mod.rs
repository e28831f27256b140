//! The remote layout of a vault, format version 1: descriptor, key slots, packs, segments, checkpoints.
//!
//! `docs/FORMAT.md` has every byte. Objects are written once under a unique name and never changed. This module makes and
//! reads their bytes and knows their paths; of a [`Provider`] it uses as much as making and opening a vault takes.
//!
//! Invariants: whatever is read is authenticated, and tied to the place it was written for, before anything of it is
//! used; lengths of chunks appear in sealed places only; objects are padded so that their length says little.
//!
//! It does not decide when to publish, keeps no local state, and does not look into change sets.

mod checkpoint;
mod descriptor;
mod envelope;
mod error;
mod pack;
pub mod paths;
mod segment;
mod unlock;

use std::sync::Arc;

pub use checkpoint::{Checkpoint, Covered};
pub use descriptor::{Compression, CompressionAlgorithm, Descriptor};
pub use error::{Damage, VaultError};
pub use pack::{FinishedPack, PackBuilder, read_chunk, read_directory};
pub use segment::{ManifestRef, Segment};
pub use unlock::{InitOptions, VaultFiles};

use crate::chunk::{Chunker, CompressionError, Compressor};
use crate::crypto::{Secret, VaultId, VaultKeys};
use crate::provider::Provider;

/// The longest object of a segment or checkpoint. Of a longer one nothing is read.
pub const LOG_OBJECT_MAX: u64 = envelope::STORED_MAX as u64;

/// The BLAKE3 of a segment's object: what its successor names it by.
pub type SegmentHash = [u8; 32];

/// An unlocked vault.
#[derive(Debug, Clone)]
pub struct Vault {
    descriptor: Descriptor,
    keys: VaultKeys,
    chunker: Arc<Chunker>,
    files: Arc<VaultFiles>,
}

impl Vault {
    /// Checks that a vault could be made on a remote, before anybody is asked for a passphrase.
    ///
    /// # Errors
    /// As [`Self::init`].
    pub async fn check_vacant(provider: &dyn Provider) -> Result<(), VaultError> {
        unlock::refuse_occupied(provider, &provider.name()).await
    }

    /// Makes a vault on a remote that holds nothing. Key slots are written first and the descriptor last, so what is left
    /// of an interrupted attempt is not a vault, and does not hinder the next.
    ///
    /// # Errors
    /// [`VaultError::AlreadyAVault`] and [`VaultError::Occupied`] where something is there; what the provider says.
    pub async fn init(provider: &dyn Provider, options: InitOptions) -> Result<Self, VaultError> {
        unlock::init(provider, options).await
    }

    /// Opens the vault on a remote. Writes nothing, whatever happens. Takes as long as the key slots make guessing.
    ///
    /// # Errors
    /// [`VaultError`] says which object is missing, damaged, altered or too new, or that the secret is wrong.
    pub async fn open(provider: &dyn Provider, secret: &Secret) -> Result<Self, VaultError> {
        VaultFiles::fetch(provider).await?.unlock(secret)
    }

    /// The vault's id.
    pub fn id(&self) -> VaultId {
        self.descriptor.vault
    }

    /// The vault's parameters.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The vault's keys.
    pub fn keys(&self) -> &VaultKeys {
        &self.keys
    }

    /// The vault's chunker.
    pub fn chunker(&self) -> &Chunker {
        &self.chunker
    }

    /// Descriptor and key slots as they lie on the remote; with a copy of them the vault can be unlocked offline.
    pub fn files(&self) -> &VaultFiles {
        &self.files
    }

    /// A compressor with the vault's level.
    ///
    /// # Errors
    /// [`CompressionError`] when zstd cannot be set up.
    pub fn compressor(&self) -> Result<Compressor, CompressionError> {
        Compressor::new(self.descriptor.compression.level)
    }

    /// An empty pack that aims at the vault's length of packs.
    pub fn pack_builder(&self) -> PackBuilder {
        PackBuilder::new(self.keys.clone(), self.descriptor.pack_target as usize)
    }
}

#[cfg(test)]
mod tests;
