use std::sync::Arc;

use zeroize::Zeroizing;

use super::*;

const CHEAP: PassphraseCost = PassphraseCost { memory_kib: 8, passes: 1, lanes: 1 };

fn keys(cipher: Cipher) -> VaultKeys {
    VaultKeys::new(&[7; 32], VaultId::from_bytes([9; 16]), cipher, Arc::new(SeededRandomness::new("crypto tests")))
}

fn place(context: &[u8]) -> Place<'_> {
    Place { purpose: Purpose::Chunk, epoch: FIRST_EPOCH, position: 3, context }
}

fn seal(keys: &VaultKeys, plaintext: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    keys.seal(&place(b"context"), &[plaintext], &mut frame);
    frame
}

fn payload() -> SlotPayload {
    SlotPayload { master: Zeroizing::new([5; 32]), vault: VaultId::from_bytes([6; 16]), descriptor: [8; 32] }
}

fn slot(secret: &Secret) -> Vec<u8> {
    KeySlot::seal(secret, CHEAP, &payload(), &SystemRandomness).expect("the cost is within bounds")
}

fn passphrase(text: &str) -> Secret {
    Secret::passphrase(text).expect("not empty")
}

#[test]
fn frames_open_to_what_was_sealed() {
    for cipher in [Cipher::XChaCha20Poly1305, Cipher::Aes256Gcm] {
        let keys = keys(cipher);
        for plaintext in [&b""[..], b"x", &[0xAB; 5000]] {
            let mut out = b"before".to_vec();
            let (left, right) = plaintext.split_at(plaintext.len() / 2);
            keys.seal(&place(b"context"), &[left, right], &mut out);
            let frame = out.strip_prefix(b"before").expect("what was there stays");
            assert_eq!(frame.len(), plaintext.len() + cipher.overhead());
            assert_eq!(keys.open(&place(b"context"), frame).as_deref(), Ok(plaintext));
        }
    }
}

#[test]
fn sealing_twice_gives_different_frames() {
    for cipher in [Cipher::XChaCha20Poly1305, Cipher::Aes256Gcm] {
        let keys = keys(cipher);
        assert_ne!(seal(&keys, b"the same"), seal(&keys, b"the same"));
    }
}

#[test]
fn a_frame_does_not_open_at_another_place() {
    for cipher in [Cipher::XChaCha20Poly1305, Cipher::Aes256Gcm] {
        let keys = keys(cipher);
        let frame = seal(&keys, b"plaintext");
        let right = place(b"context");
        let wrong = [
            Place { purpose: Purpose::Segment, ..right },
            Place { position: 4, ..right },
            Place { context: b"contexT", ..right },
            Place { context: b"", ..right },
        ];
        for place in wrong {
            assert_eq!(keys.open(&place, &frame), Err(CryptoError::Authentication), "{place:?}");
        }
        assert_eq!(keys.open(&Place { epoch: 2, ..right }, &frame), Err(CryptoError::UnknownEpoch(2)));
    }
}

#[test]
fn a_frame_does_not_open_in_another_vault() {
    let frame = seal(&keys(Cipher::XChaCha20Poly1305), b"plaintext");
    let randomness = || Arc::new(SeededRandomness::new("other"));
    for (master, vault) in [([8; 32], [9; 16]), ([7; 32], [8; 16])] {
        let other = VaultKeys::new(&master, VaultId::from_bytes(vault), Cipher::XChaCha20Poly1305, randomness());
        assert_eq!(other.open(&place(b"context"), &frame), Err(CryptoError::Authentication));
    }
}

#[test]
fn every_flipped_bit_and_every_truncation_of_a_frame_is_noticed() {
    for cipher in [Cipher::XChaCha20Poly1305, Cipher::Aes256Gcm] {
        let keys = keys(cipher);
        let frame = seal(&keys, b"some plaintext");
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(keys.open(&place(b"context"), &flipped), Err(CryptoError::Authentication), "bit {bit}");
        }
        for len in 0..frame.len() {
            assert_eq!(keys.open(&place(b"context"), &frame[..len]), Err(CryptoError::Authentication), "{len} bytes");
        }
    }
}

#[test]
fn slots_open_with_their_secret_only() {
    let key = Secret::new_key_file(&SystemRandomness);
    let phrase = Secret::new_recovery_phrase(&SystemRandomness);
    let secrets = [passphrase("correct horse"), key, phrase];
    for (i, made_with) in secrets.iter().enumerate() {
        let slot = KeySlot::decode(&slot(made_with)).expect("the slot is whole");
        for (j, tried) in secrets.iter().enumerate() {
            match slot.unlock(tried) {
                Ok(opened) => assert!(i == j && opened == payload(), "slot {i} opened with secret {j}"),
                Err(error) => assert!(i != j && error == SlotError::WrongSecret, "slot {i}, secret {j}: {error}"),
            }
        }
        assert_eq!(slot.unlock(&passphrase("Correct horse")).err(), Some(SlotError::WrongSecret));
    }
}

#[test]
fn a_recovery_phrase_typed_as_passphrase_opens_its_slot() {
    let phrase = Secret::new_recovery_phrase(&SystemRandomness);
    let slot = KeySlot::decode(&slot(&phrase)).expect("the slot is whole");
    let typed = format!("  {}\n", phrase.reveal().to_uppercase().replace(' ', "   "));
    assert!(slot.unlock(&passphrase(&typed)).is_ok());
    assert!(slot.unlock(&Secret::recovery_phrase(&typed).expect("24 words")).is_ok());
}

#[test]
fn recovery_phrases_are_bip39() {
    let zeros = Secret::RecoveryPhrase(Zeroizing::new([0; 32]));
    let words = zeros.reveal();
    // The vector of BIP39 for 32 bytes of zero.
    assert_eq!(words.as_str(), "abandon ".repeat(23) + "art");
    assert!(Secret::recovery_phrase(&words).is_ok());
    let mistyped = words.replace("art", "able");
    assert_eq!(Secret::recovery_phrase(&mistyped).err(), Some(SecretError::NotARecoveryPhrase));
    let twelve = "abandon ".repeat(11) + "about";
    assert_eq!(Secret::recovery_phrase(&twelve).err(), Some(SecretError::NotARecoveryPhrase));
}

#[test]
fn key_files_are_read_as_hex_or_bytes() {
    let key = Secret::new_key_file(&SystemRandomness);
    let line = key.reveal();
    assert_eq!(line.len(), 65);
    let again = Secret::key_file(line.as_bytes()).expect("what was revealed is a key file");
    assert_eq!(again.reveal(), line);
    assert!(Secret::key_file(&[0xFF; 32]).is_ok());
    for bad in [&b""[..], &[0xFF; 31], b"hello", &line.as_bytes()[1..]] {
        assert_eq!(Secret::key_file(bad).err(), Some(SecretError::NotAKeyFile));
    }
    assert_eq!(Secret::passphrase("").err(), Some(SecretError::EmptyPassphrase));
}

#[test]
fn every_flipped_bit_and_every_truncation_of_a_slot_is_damage() {
    let slot = slot(&passphrase("correct horse"));
    assert_eq!(slot.len(), KeySlot::LEN);
    for bit in 0..slot.len() * 8 {
        let mut flipped = slot.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(KeySlot::decode(&flipped).err(), Some(SlotError::Damaged), "bit {bit}");
    }
    for len in 0..slot.len() {
        assert_eq!(KeySlot::decode(&slot[..len]).err(), Some(SlotError::Damaged), "{len} bytes");
    }
}

/// A slot whose header someone wrote who can compute a checksum.
fn forged(offset: usize, bytes: &[u8]) -> Vec<u8> {
    forged_by(|slot| slot[offset..offset + bytes.len()].copy_from_slice(bytes))
}

fn forged_by(forge: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut slot = slot(&passphrase("correct horse"));
    forge(&mut slot);
    let body_len = slot.len() - 32;
    let checksum = blake3::hash(&slot[..body_len]);
    slot[body_len..].copy_from_slice(checksum.as_bytes());
    slot
}

#[test]
fn a_forged_slot_cannot_exhaust_memory() {
    let error = KeySlot::decode(&forged(12, &(100u32 << 20).to_le_bytes())).err();
    assert_eq!(error, Some(SlotError::Cost { memory_kib: 100 << 20, passes: 1 }));
    assert!(matches!(KeySlot::decode(&forged(16, &[0xFF; 4])), Err(SlotError::Cost { .. })));
    assert!(matches!(KeySlot::decode(&forged(20, &[0xFF; 4])), Err(SlotError::Cost { .. })));
    let zero_passes = KeySlot::decode(&forged(16, &[0; 4])).expect("within the bounds");
    assert!(matches!(zero_passes.unlock(&passphrase("correct horse")), Err(SlotError::Cost { .. })));
}

#[test]
fn a_forged_slot_does_not_open() {
    for offset in [12, 24, 56, 80, 175] {
        let forged = KeySlot::decode(&forged_by(|slot| slot[offset] ^= 1)).expect("its checksum is right");
        assert_eq!(forged.unlock(&passphrase("correct horse")).err(), Some(SlotError::WrongSecret), "byte {offset}");
    }
    assert_eq!(KeySlot::decode(&forged(8, &[2, 0])).err(), Some(SlotError::NewerVersion(2)));
}

#[test]
fn debug_output_has_no_secret_in_it() {
    let secret = passphrase("correct horse");
    let slot = KeySlot::decode(&slot(&secret)).expect("the slot is whole");
    let text = format!("{secret:?} {:?} {:?} {slot:?}", keys(Cipher::Aes256Gcm), Secret::KeyFile([1; 32].into()));
    assert!(!text.contains("horse"));
    assert!(text.starts_with("Passphrase(..) VaultKeys(..) KeyFile(..) KeySlot"), "{text}");
}
