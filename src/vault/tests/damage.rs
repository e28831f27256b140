//! What damaged, moved or made-up bytes do to the decoders: an error, never a panic and never other data.

use proptest::collection::vec;
use proptest::prelude::*;

use super::golden::{CIPHERS, descriptor, pack};
use super::*;
use crate::crypto::KeySlot;

/// Changes bytes the way broken storage, and a fuzzer, would; the same every time.
struct Mutator(u64);

impl Mutator {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    fn mutate(&mut self, original: &[u8]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            let until = (at + self.below(9)).min(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.splice(at..until, [0xFF; 9]).for_each(drop),
                2 => bytes.splice(at..at, original[..until.min(original.len())].to_vec()).for_each(drop),
                3 => bytes.drain(at..until).for_each(drop),
                4 => bytes.extend_from_slice(&[0; 3]),
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
            }
        }
        bytes
    }
}

fn mutations(original: &[u8], count: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
    let mut mutator = Mutator(0x9E37_79B9_7F4A_7C15);
    (0..count).map(move |_| mutator.mutate(original)).filter(move |bytes| bytes != original)
}

#[test]
fn mutated_sealed_objects_are_refused() {
    for (cipher, _) in CIPHERS {
        let keys = keys_from(cipher, "damage");
        let (segment, _) = a_segment().seal(&keys).expect("small");
        for bytes in mutations(&segment, 400) {
            assert!(Segment::open(&keys, DEVICE, 42, &bytes).is_err());
        }
        let checkpoint = a_checkpoint().seal(&keys).expect("small");
        for bytes in mutations(&checkpoint, 400) {
            assert!(Checkpoint::open(&keys, DEVICE, 5, &bytes).is_err());
        }
        let pack = pack(cipher);
        for bytes in mutations(&pack.bytes, 400) {
            assert!(read_directory(&keys, &pack.id, &bytes).is_err());
            // The header is not sealed and frames are sealed one by one, so a renamed pack may open, and then says the same.
            if let Ok(chunks) = read_directory(&keys, &PackId::of(&bytes), &bytes) {
                assert_eq!(chunks.len(), pack.chunks.len());
            }
        }
    }
}

#[test]
fn every_flipped_bit_and_truncation_of_log_objects_is_noticed() {
    for (cipher, _) in CIPHERS {
        let keys = keys_from(cipher, "damage");
        let (segment, _) = a_segment().seal(&keys).expect("small");
        let checkpoint = a_checkpoint().seal(&keys).expect("small");
        let opens = |segment: &[u8], checkpoint: &[u8]| {
            (Segment::open(&keys, DEVICE, 42, segment).is_ok(), Checkpoint::open(&keys, DEVICE, 5, checkpoint).is_ok())
        };
        assert_eq!(opens(&segment, &checkpoint), (true, true));
        let flip = |object: &[u8], bit: usize| {
            let mut flipped = object.to_vec();
            if let Some(byte) = flipped.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
                flipped
            } else {
                Vec::new()
            }
        };
        for bit in 0..segment.len().max(checkpoint.len()) * 8 {
            assert_eq!(opens(&flip(&segment, bit), &flip(&checkpoint, bit)), (false, false), "bit {bit}");
        }
        for len in 0..segment.len().min(checkpoint.len()) {
            assert_eq!(opens(&segment[..len], &checkpoint[..len]), (false, false), "{len} bytes");
        }
    }
}

#[test]
fn log_objects_open_under_their_own_path_only() {
    let keys = keys_from(Cipher::default(), "damage");
    let (segment, _) = a_segment().seal(&keys).expect("small");
    let error = Segment::open(&keys, DEVICE, 43, &segment).expect_err("another number");
    assert!(error.to_string().starts_with("`log/a1b2c3/00000000000000000043` is damaged"), "{error}");
    assert!(Segment::open(&keys, DeviceId(1), 42, &segment).is_err());
    let checkpoint = Checkpoint { seq: 42, ..a_checkpoint() }.seal(&keys).expect("small");
    assert!(Segment::open(&keys, DEVICE, 42, &checkpoint).is_err());
    assert!(Checkpoint::open(&keys, DEVICE, 42, &segment).is_err());
}

#[test]
fn a_newer_log_object_says_so() {
    let keys = keys_from(Cipher::default(), "damage");
    let (segment, _) = a_segment().seal(&keys).expect("small");
    let mut newer = segment.to_vec();
    newer[8] = 2;
    let VaultError::Damaged { source, .. } = Segment::open(&keys, DEVICE, 42, &newer).expect_err("newer") else {
        panic!("an error of the object")
    };
    assert_eq!(source.to_string(), "the object has version 2, which this program does not know");
}

/// Whoever has the keys can seal anything, so what is inside is not trusted either.
#[test]
fn mutated_plaintexts_never_panic_and_mean_one_thing() {
    for bytes in mutations(&a_segment().encode(), 3000) {
        if let Ok(segment) = Segment::decode(&bytes) {
            assert_eq!(Segment::decode(&segment.encode()), Ok(segment));
        }
    }
    for bytes in mutations(&a_checkpoint().encode(), 3000) {
        if let Ok(checkpoint) = Checkpoint::decode(&bytes) {
            assert_eq!(Checkpoint::decode(&checkpoint.encode()), Ok(checkpoint));
        }
    }
}

#[test]
fn mutated_descriptors_and_slots_never_panic() {
    for bytes in mutations(&descriptor().encode(), 2000) {
        if let Ok(read) = Descriptor::decode(&bytes) {
            assert_eq!(read, descriptor(), "only white space can differ");
        }
    }
    for bytes in mutations(include_bytes!("../../../tests/golden/slot-key"), 2000) {
        assert!(KeySlot::decode(&bytes).is_err());
    }
}

#[test]
fn a_segment_that_is_too_large_is_refused_before_it_is_sealed() {
    let keys = keys_from(Cipher::default(), "damage");
    let len = a_segment().encode().len();
    assert!(a_segment().seal_within(len, &keys).is_ok());
    let error = a_segment().seal_within(len - 1, &keys).expect_err("one byte too long");
    assert!(
        matches!(error, VaultError::TooLarge { length, limit, .. } if length == len && limit == len - 1),
        "{error}"
    );
}

#[test]
fn long_device_names_are_cut_between_characters() {
    let segment = Segment { device_name: "ü".repeat(200), ..a_segment() };
    let decoded = Segment::decode(&segment.encode()).expect("whole");
    assert_eq!(decoded.device_name, "ü".repeat(127));
}

fn segments() -> impl Strategy<Value = Segment> {
    let chunk = (any::<[u8; 32]>(), 0..3u8, 0..5u32);
    let manifest = vec((0..3u8, 1..1000u32), 0..6);
    (
        (1..0xFF_FFFFu32, any::<u64>(), any::<[u8; 32]>(), "\\PC{0,20}"),
        proptest::collection::btree_map(1..0xFF_FFFFu32, any::<u64>(), 0..5),
        vec(vec(any::<u8>(), 0..50), 0..4),
        vec((any::<[u8; 32]>(), any::<bool>(), manifest), 0..4),
        vec(chunk, 0..10),
    )
        .prop_map(|((device, seq, previous, device_name), seen, change_sets, manifests, chunks)| Segment {
            device: DeviceId(device),
            seq,
            previous,
            device_name,
            seen: seen.into_iter().map(|(device, seq)| (DeviceId(device), seq)).collect(),
            change_sets: change_sets.into_iter().map(Bytes::from).collect(),
            manifests: manifests
                .into_iter()
                .map(|(id, inline, chunks)| {
                    let manifest = Manifest::new(chunks.into_iter().map(|(id, len)| chunk_ref(id, len)).collect());
                    let kind = if inline { ManifestRef::Inline } else { ManifestRef::Chunked };
                    (ContentId(id), kind(manifest))
                })
                .collect(),
            chunks: chunks.into_iter().map(|(id, pack, index)| (ChunkId(id), location(pack, index))).collect(),
        })
}

proptest! {
    // The same cases every time.
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        ..ProptestConfig::default()
    })]

    #[test]
    fn segments_round_trip(segment in segments(), aes in any::<bool>()) {
        let keys = keys_from(if aes { Cipher::Aes256Gcm } else { Cipher::XChaCha20Poly1305 }, "round trip");
        let (object, hash) = segment.seal(&keys).expect("small");
        prop_assert_eq!(hash, Segment::hash(&object));
        prop_assert_eq!(Segment::open(&keys, segment.device, segment.seq, &object).expect("whole"), segment);
    }

    #[test]
    fn noise_never_panics_a_decoder(bytes in vec(any::<u8>(), 0..300)) {
        let keys = keys_from(Cipher::default(), "noise");
        prop_assert!(Segment::open(&keys, DEVICE, 1, &bytes).is_err());
        prop_assert!(read_directory(&keys, &PackId::of(&bytes), &bytes).is_err());
        prop_assert!(Descriptor::decode(&bytes).is_err());
        let _ = Segment::decode(&bytes);
        let _ = Checkpoint::decode(&bytes);
    }
}
