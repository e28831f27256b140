//! Packs, and that they hide what they are to hide.

use std::collections::BTreeSet;

use super::*;
use crate::chunk::{Compressor, Encoding};

const CIPHERS: [Cipher; 2] = [Cipher::XChaCha20Poly1305, Cipher::Aes256Gcm];

fn build(keys: &VaultKeys, chunks: &[Vec<u8>]) -> FinishedPack {
    let mut compressor = Compressor::new(3).expect("zstd works");
    let mut builder = PackBuilder::new(keys.clone(), 1 << 20);
    for chunk in chunks {
        let (encoding, bytes) = compressor.compress(chunk).expect("zstd works");
        builder.add(keys.chunk_id(chunk), chunk.len() as u32, encoding, &bytes);
    }
    builder.finish()
}

fn some_chunks() -> Vec<Vec<u8>> {
    vec![random("a", 3000), vec![b'x'; 10_000], random("b", 1), random("c", 70_000), b"some text ".repeat(50)]
}

fn frame<'a>(pack: &'a FinishedPack, location: &ChunkLocation) -> &'a [u8] {
    let range = location.range();
    &pack.bytes[range.start as usize..range.end as usize]
}

#[test]
fn each_chunk_is_read_from_its_range_alone() {
    for cipher in CIPHERS {
        let keys = keys_from(cipher, "packs");
        let chunks = some_chunks();
        let pack = build(&keys, &chunks);
        assert_eq!(pack.id, PackId::of(&pack.bytes));
        for (chunk, (id, location)) in chunks.iter().zip(&pack.chunks) {
            let read = read_chunk(&keys, id, location, frame(&pack, location)).expect("whole");
            assert_eq!(&read, chunk);
        }
        assert_eq!(read_directory(&keys, &pack.id, &pack.bytes).expect("whole"), pack.chunks);
    }
}

#[test]
fn an_empty_pack_has_an_empty_directory() {
    let keys = keys_from(Cipher::default(), "packs");
    let builder = PackBuilder::new(keys.clone(), 1 << 20);
    assert!(builder.is_empty() && !builder.is_full());
    let pack = builder.finish();
    assert_eq!(read_directory(&keys, &pack.id, &pack.bytes).expect("whole"), vec![]);
}

#[test]
fn a_pack_is_full_at_its_target() {
    let keys = keys_from(Cipher::default(), "packs");
    let mut builder = PackBuilder::new(keys.clone(), 100_000);
    let chunk = random("chunk", 30_000);
    let id = keys.chunk_id(&chunk);
    for full in [false, false, false, true] {
        builder.add(id, 30_000, Encoding::Raw, &chunk);
        assert_eq!(builder.is_full(), full);
    }
    assert!(builder.len() >= 120_000);
    assert!(builder.chunk_ids().all(|chunk| *chunk == id));
}

#[test]
fn a_chunk_read_for_another_is_refused() {
    for cipher in CIPHERS {
        let keys = keys_from(cipher, "packs");
        let pack = build(&keys, &some_chunks());
        let [(first, at_first), (second, at_second), ..] = &pack.chunks[..] else { panic!("five chunks") };
        assert!(read_chunk(&keys, second, at_first, frame(&pack, at_first)).is_err());
        assert!(read_chunk(&keys, first, at_first, frame(&pack, at_second)).is_err());
        let moved = ChunkLocation { index: 1, ..*at_first };
        assert!(read_chunk(&keys, first, &moved, frame(&pack, at_first)).is_err());
        let longer = ChunkLocation { plain_len: at_first.plain_len + 1, ..*at_first };
        let error = read_chunk(&keys, first, &longer, frame(&pack, at_first)).expect_err("too short");
        assert!(error.to_string().contains(&pack.id.to_string()), "{error}");
    }
}

#[test]
fn a_frame_that_holds_another_chunk_is_refused() {
    // Sealed by somebody with the keys, under a wrong id.
    let keys = keys_from(Cipher::default(), "packs");
    let mut builder = PackBuilder::new(keys.clone(), 1 << 20);
    let id = keys.chunk_id(b"what it says");
    builder.add(id, 12, Encoding::Raw, b"what it has.");
    let pack = builder.finish();
    let (_, location) = &pack.chunks[0];
    let error = read_chunk(&keys, &id, location, frame(&pack, location)).expect_err("another chunk");
    assert!(matches!(error, VaultError::Damaged { source: Damage::Hash, .. }), "{error}");
}

#[test]
fn every_flipped_bit_and_truncation_of_a_small_pack_is_noticed() {
    for cipher in CIPHERS {
        let keys = keys_from(cipher, "packs");
        let pack = build(&keys, &[random("a", 20), b"text ".repeat(30)]);
        for bit in 0..pack.bytes.len() * 8 {
            let mut object = pack.bytes.to_vec();
            object[bit / 8] ^= 1 << (bit % 8);
            assert!(read_directory(&keys, &pack.id, &object).is_err(), "bit {bit}");
            // Somebody who renames the pack too is stopped by the seals: the directory opens as it was, or not at all.
            if let Ok(chunks) = read_directory(&keys, &PackId::of(&object), &object) {
                for ((id, location), (right, at)) in chunks.iter().zip(&pack.chunks) {
                    assert_eq!((id, location.range()), (right, at.range()), "bit {bit}");
                }
            }
            for (id, location) in &pack.chunks {
                let range = location.range();
                let frame = &object[range.start as usize..range.end as usize];
                let hit = range.contains(&(bit as u64 / 8));
                assert_eq!(read_chunk(&keys, id, location, frame).is_err(), hit, "bit {bit}");
            }
        }
        for len in 0..pack.bytes.len() {
            assert!(read_directory(&keys, &pack.id, &pack.bytes[..len]).is_err());
            assert!(read_directory(&keys, &PackId::of(&pack.bytes[..len]), &pack.bytes[..len]).is_err());
        }
    }
}

#[test]
fn lengths_of_packs_tell_little() {
    let keys = keys_from(Cipher::default(), "packs");
    let lengths: BTreeSet<usize> =
        (4000..4400).step_by(7).map(|len| build(&keys, &[random("a", len)]).bytes.len()).collect();
    assert!(lengths.len() <= 4, "{lengths:?}");
}
