//! Tests of the vault: making and opening, packs, log objects, golden files, damage.

mod damage;
mod golden;
mod opening;
mod packs;

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::base::{ChangeId, DeviceId, Hlc};
use crate::chunk::{ChunkId, ChunkLocation, ChunkRef, ChunkerParams, ContentId, Manifest, PackId};
use crate::crypto::{Cipher, PassphraseCost, Randomness, Secret, SeededRandomness, VaultId, VaultKeys};

const CHEAP: PassphraseCost = PassphraseCost { memory_kib: 8, passes: 1, lanes: 1 };
const DEVICE: DeviceId = DeviceId(0x00a1_b2c3);

fn keys_from(cipher: Cipher, seed: &str) -> VaultKeys {
    VaultKeys::new(&[7; 32], VaultId::from_bytes([9; 16]), cipher, Arc::new(SeededRandomness::new(seed)))
}

fn random(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SeededRandomness::new(seed).fill(&mut bytes);
    bytes
}

fn location(pack: u8, index: u32) -> ChunkLocation {
    ChunkLocation {
        pack: PackId([pack; 32]),
        offset: 16 + index * 1000,
        sealed_len: 900 + index,
        plain_len: 2000,
        index,
        epoch: 1,
    }
}

fn chunk_ref(id: u8, len: u32) -> ChunkRef {
    ChunkRef { id: ChunkId([id; 32]), len }
}

fn a_segment() -> Segment {
    Segment {
        device: DEVICE,
        seq: 42,
        previous: [3; 32],
        seen: vec![(DeviceId(1), 7), (DeviceId(0x00ff_0000), 1 << 40)],
        device_name: "büro-laptop".to_owned(),
        change_sets: vec![Bytes::from_static(b"the first change set"), Bytes::from(vec![0xEE; 300])],
        manifests: vec![
            (ContentId([1; 32]), ManifestRef::Inline(Manifest::new(vec![chunk_ref(1, 10), chunk_ref(2, 20)]))),
            (ContentId([2; 32]), ManifestRef::Inline(Manifest::default())),
            (ContentId([3; 32]), ManifestRef::Chunked(Manifest::new(vec![chunk_ref(3, 70_000); 3]))),
        ],
        chunks: vec![
            (ChunkId([1; 32]), location(0xA0, 0)),
            (ChunkId([2; 32]), location(0xB0, 0)),
            (ChunkId([3; 32]), location(0xA0, 1)),
        ],
    }
}

fn a_checkpoint() -> Checkpoint {
    Checkpoint {
        device: DEVICE,
        seq: 5,
        covers: vec![
            Covered { device: DeviceId(1), seq: 7, hash: [4; 32] },
            Covered { device: DEVICE, seq: 42, hash: [5; 32] },
        ],
        newest: ChangeId { hlc: Hlc(0x0198_0000_0000_0001), device: DEVICE },
        rows: Manifest::new(vec![chunk_ref(8, 500_000), chunk_ref(9, 123)]),
        chunks: vec![(ChunkId([8; 32]), location(0xC0, 0)), (ChunkId([9; 32]), location(0xC0, 1))],
    }
}
