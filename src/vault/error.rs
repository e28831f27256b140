//! What can be wrong with a vault.

use crate::base::codec::DecodeError;
use crate::chunk::CompressionError;
use crate::crypto::{CryptoError, SlotError};
use crate::provider::ProviderError;

/// Why a vault or one of its objects cannot be made, opened or read. Each says which object and what to do.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// There is no descriptor, and nothing else of a vault.
    #[error("there is no vault at {remote}; check the address, or make one with `cairn init`")]
    NotAVault {
        /// The remote.
        remote: String,
    },
    /// There is no descriptor, but other objects of a vault.
    #[error("{remote} holds `{object}` but no `cairn.json`; restore `cairn.json` from another copy of this vault")]
    DescriptorMissing {
        /// The remote.
        remote: String,
        /// One of the objects that are there.
        object: String,
    },
    /// The remote has a vault already.
    #[error("there is a vault at {remote} already; use it with `cairn attach`, or choose another place")]
    AlreadyAVault {
        /// The remote.
        remote: String,
    },
    /// The remote holds something that is not a vault's.
    #[error("{remote} is not empty: it holds `{object}`; choose an empty folder or prefix for a new vault")]
    Occupied {
        /// The remote.
        remote: String,
        /// One of the objects that are there.
        object: String,
    },
    /// A vault needs a way in.
    #[error("a vault needs at least one passphrase, key file or recovery phrase")]
    NoSecrets,
    /// The asked parameters are out of bounds.
    #[error("the vault cannot be made with these parameters: {reason}")]
    InvalidParameters {
        /// What is wrong with them.
        reason: String,
    },
    /// `cairn.json` is not what was written.
    #[error("`cairn.json` at {remote} is damaged ({reason}); restore it from another copy of this vault")]
    DescriptorDamaged {
        /// The remote.
        remote: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `cairn.json` is whole, but is not the one the key slots were made with.
    #[error("`cairn.json` at {remote} was altered, or belongs to another vault; restore it from another copy")]
    DescriptorAltered {
        /// The remote.
        remote: String,
    },
    /// The vault was made by a later version.
    #[error("the vault at {remote} has format version {version}, and this program knows version 1; update cairn")]
    NewerVersion {
        /// The remote.
        remote: String,
        /// The vault's version.
        version: u64,
    },
    /// No key slot is left.
    #[error("the vault at {remote} has no key slot below `keys/`; restore them from another copy of this vault")]
    NoKeySlots {
        /// The remote.
        remote: String,
    },
    /// A key slot cannot be used, and no other opened.
    #[error(
        "`{object}` at {remote} cannot be used, and no other key slot opens with this secret; \
             restore it from another copy, or use another passphrase or key"
    )]
    KeySlot {
        /// The remote.
        remote: String,
        /// The key slot.
        object: String,
        /// What is wrong with it.
        source: SlotError,
    },
    /// The key slots are whole, and none opens.
    #[error("wrong passphrase or key for the vault at {remote}; nothing was changed")]
    WrongSecret {
        /// The remote.
        remote: String,
    },
    /// An object is not what was written.
    #[error("`{object}` is damaged or was replaced; restore it from a replica of this vault")]
    Damaged {
        /// The object.
        object: String,
        /// How that was noticed.
        source: Damage,
    },
    /// A structure is larger than its format allows.
    #[error("`{object}` would hold {length} bytes, more than the {limit} that the format allows")]
    TooLarge {
        /// The object.
        object: String,
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// The remote did not do what was asked.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

/// How damage was noticed.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// The bytes do not hash to the name.
    #[error("the bytes do not match the name")]
    Hash,
    /// A sealed part does not open.
    #[error(transparent)]
    Sealed(#[from] CryptoError),
    /// A compressed part does not decompress.
    #[error(transparent)]
    Compressed(#[from] CompressionError),
    /// A structure does not decode.
    #[error(transparent)]
    Structure(#[from] DecodeError),
}

impl Damage {
    /// The error for `object`.
    pub(super) fn of(self, object: impl ToString) -> VaultError {
        VaultError::Damaged { object: object.to_string(), source: self }
    }
}
