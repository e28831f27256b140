//! Secrets, key slots, the key hierarchy, and sealing: everything that knows a cipher.
//!
//! A [`Secret`] (passphrase, key file, recovery phrase) opens a [`KeySlot`], which holds the vault's master key. From
//! the master key and the vault's id one key per purpose is derived, and for sealing one per purpose and epoch.
//! [`VaultKeys`] holds them all and seals *frames*: nonce or salt, ciphertext, tag, nothing else, so that a frame looks
//! like random bytes. What a frame is and where it lies is its [`Place`], and is authenticated with it.
//!
//! Invariants: keys are zeroized when dropped and never printed; a nonce is never used twice with one key, because it is
//! random and long (XChaCha20-Poly1305) or the key is made for one frame (AES-256-GCM); a frame opens only at its place.
//!
//! It does no I/O, and does not know the formats of the objects that the frames are part of (see [`crate::vault`]).

mod keys;
mod random;
mod secret;
mod slot;

pub use keys::{Cipher, CryptoError, FIRST_EPOCH, Place, Purpose, VaultId, VaultKeys};
pub(crate) use random::random_array;
pub use random::{Randomness, SeededRandomness, SystemRandomness};
pub use secret::{Secret, SecretError};
pub use slot::{KeySlot, PassphraseCost, SlotError, SlotKind, SlotPayload};

#[cfg(test)]
mod tests;
