//! What the targets share: the keys of a vault, with which they seal the fuzzer's bytes, as somebody could who has them.

use std::sync::Arc;

use cairnfs::crypto::{Cipher, Place, SeededRandomness, VaultId, VaultKeys};

/// The keys of the fuzzed vault.
pub fn keys() -> VaultKeys {
    let randomness = Arc::new(SeededRandomness::new("fuzz"));
    VaultKeys::new(&[1; 32], VaultId::from_bytes([2; 16]), Cipher::default(), randomness)
}

/// An object with a right header and one frame that holds `plaintext`.
pub fn object(magic: &[u8; 8], place: &Place<'_>, plaintext: &[u8]) -> Vec<u8> {
    let mut object = magic.to_vec();
    object.extend_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0]);
    keys().seal(place, &[plaintext], &mut object);
    object
}
