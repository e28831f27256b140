use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::base::codec::{Reader, Writer};
use crate::crypto::{Cipher, Randomness, SeededRandomness, VaultId, VaultKeys};

const SMALL: ChunkerParams = ChunkerParams { minimum: 1 << 10, average: 4 << 10, maximum: 16 << 10 };

fn keys(master: u8) -> VaultKeys {
    let randomness = Arc::new(SeededRandomness::new("chunk tests"));
    VaultKeys::new(&[master; 32], VaultId::from_bytes([9; 16]), Cipher::default(), randomness)
}

fn random(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SeededRandomness::new(seed).fill(&mut bytes);
    bytes
}

fn cut(chunker: &Chunker, mut content: &[u8]) -> Vec<ChunkRef> {
    let mut chunks = Vec::new();
    while let Some(end) = chunker.next_cut(content, Last::Yes) {
        let (chunk, rest) = content.split_at(end);
        chunks.push(chunker.chunk_ref(chunk));
        content = rest;
    }
    assert!(content.is_empty());
    chunks
}

fn small(master: u8) -> Chunker {
    Chunker::new(&keys(master), SMALL).expect("the lengths are valid")
}

#[test]
fn chunks_cover_the_content_within_their_bounds() {
    let content = random("content", 300_000);
    let chunks = cut(&small(1), &content);
    assert_eq!(Manifest::new(chunks.clone()).size, 300_000);
    let (last, others) = chunks.split_last().expect("there are chunks");
    assert!(last.len <= SMALL.maximum);
    assert!(others.iter().all(|chunk| (SMALL.minimum..=SMALL.maximum).contains(&chunk.len)));
    // The average is a centre, not a promise; a chunker that always hits a bound would be far outside.
    assert!((30..150).contains(&chunks.len()), "{} chunks", chunks.len());
}

#[test]
fn cuts_do_not_depend_on_how_much_is_given_at_a_time() {
    let chunker = small(1);
    let content = random("content", 200_000);
    let whole = cut(&chunker, &content);
    let maximum = SMALL.maximum as usize;
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < content.len() {
        let end = (start + maximum).min(content.len());
        let last = if end == content.len() { Last::Yes } else { Last::No };
        if last == Last::No {
            assert_eq!(chunker.next_cut(&content[start..end - 1], last), None, "one byte short");
        }
        let len = chunker.next_cut(&content[start..end], last).expect("a whole window");
        pieces.push(chunker.chunk_ref(&content[start..start + len]));
        start += len;
    }
    assert_eq!(pieces, whole);
    assert_eq!(chunker.next_cut(&[], Last::Yes), None);
}

#[test]
fn an_insertion_changes_few_chunks() {
    let chunker = small(1);
    let content = random("content", 400_000);
    let mut edited = content.clone();
    edited.splice(150_000..150_000, *b"inserted");
    let before: HashSet<_> = cut(&chunker, &content).into_iter().collect();
    let new = cut(&chunker, &edited).into_iter().filter(|chunk| !before.contains(chunk)).count();
    assert!((1..=6).contains(&new), "{new} new chunks");
}

#[test]
fn vaults_cut_and_name_differently() {
    let content = random("content", 100_000);
    let [one, two] = [small(1), small(2)].map(|chunker| cut(&chunker, &content));
    let lengths = |chunks: &[ChunkRef]| chunks.iter().map(|chunk| chunk.len).collect::<Vec<_>>();
    assert_ne!(lengths(&one), lengths(&two));
    assert_ne!(keys(1).chunk_id(b"same"), keys(2).chunk_id(b"same"));
    let manifest = Manifest::new(one);
    assert_ne!(manifest.content_id(&keys(1)), manifest.content_id(&keys(2)));
}

#[test]
fn zeros_are_one_chunk_of_the_maximum_length() {
    let chunker = small(1);
    let maximum = SMALL.maximum as usize;
    let zeros = vec![0; maximum * 3 + 100];
    let chunks = cut(&chunker, &zeros);
    assert_eq!(chunks.len(), 4);
    assert!(chunks[..3].iter().all(|chunk| *chunk == chunker.zero_chunk()));
    assert_eq!(chunker.zero_chunk(), ChunkRef { id: keys(1).chunk_id(&zeros[..maximum]), len: SMALL.maximum });
    assert!(chunker.is_zero_chunk(&chunks[0].id) && !chunker.is_zero_chunk(&chunks[3].id));
    let mut nearly = vec![0; maximum];
    nearly[maximum - 1] = 1;
    assert!(cut(&chunker, &nearly).iter().all(|chunk| *chunk != chunker.zero_chunk()));
}

#[test]
fn lengths_out_of_bounds_are_refused() {
    assert!(ChunkerParams::default().validate().is_ok());
    for (minimum, average, maximum) in [
        (0, 4096, 16384),
        (1024, 4095, 16384),
        (1025, 4096, 16384),
        (4096, 4096, 16384),
        (1024, 4096, 4096),
        (1024, 4096, u32::MAX - 1),
        (2 << 20, 4 << 20, 16 << 20),
    ] {
        assert!(ChunkerParams { minimum, average, maximum }.validate().is_err(), "{minimum}/{average}/{maximum}");
    }
}

#[test]
fn what_does_not_get_smaller_is_left_alone() {
    let mut compressor = Compressor::new(3).expect("zstd works");
    for len in [0, 1, 100, 65_535, 65_536, 300_000] {
        let noise = random("noise", len);
        let (encoding, bytes) = compressor.compress(&noise).expect("zstd works");
        assert_eq!((encoding, &bytes), (Encoding::Raw, &Cow::Borrowed(&noise[..])), "{len} bytes");
        assert_eq!(decompress(encoding, &bytes, len).expect("raw bytes"), noise);
    }
}

#[test]
fn text_gets_smaller_and_comes_back() {
    let mut compressor = Compressor::new(3).expect("zstd works");
    for len in [500, 65_535, 65_536, 300_000] {
        let text: Vec<u8> = b"all work and no play ".iter().copied().cycle().take(len).collect();
        let (encoding, bytes) = compressor.compress(&text).expect("zstd works");
        assert!(encoding == Encoding::Zstd && bytes.len() < len / 4, "{len} bytes became {}", bytes.len());
        assert_eq!(decompress(encoding, &bytes, len).expect("whole"), text);
    }
}

#[test]
fn decompression_gives_the_promised_length_or_an_error() {
    let bomb = zstd::bulk::compress(&vec![0; 10 << 20], 3).expect("zstd works");
    assert!(bomb.len() < 2000);
    for promised in [0, 1000, (10 << 20) - 1, (10 << 20) + 1] {
        assert!(decompress(Encoding::Zstd, &bomb, promised).is_err(), "{promised}");
    }
    assert!(decompress(Encoding::Zstd, &bomb[..bomb.len() - 1], 10 << 20).is_err());
    assert!(matches!(decompress(Encoding::Raw, b"abc", 4), Err(CompressionError::Length { expected: 4 })));
}

#[test]
fn a_sparse_terabyte_is_a_short_manifest() {
    let chunker = Chunker::new(&keys(1), ChunkerParams::default()).expect("the defaults are valid");
    let manifest = Manifest::new(vec![chunker.zero_chunk(); 1 << 19]);
    assert_eq!(manifest.size, 1 << 40);
    let encoded = manifest.encode();
    assert!(encoded.len() < 60);
    assert_eq!(Manifest::decode(&encoded), Ok(manifest));
}

#[test]
fn manifests_that_are_not_canonical_are_refused() {
    let encoded = |size: u64, runs: &[(u8, u64, u64)]| {
        let mut writer = Writer::new();
        writer.u8(1);
        writer.varint(size);
        writer.length(runs.len());
        for (id, len, repeat) in runs {
            writer.raw(&[*id; 32]);
            writer.varint(*len);
            writer.varint(*repeat);
        }
        writer.into_vec()
    };
    assert!(Manifest::decode(&encoded(25, &[(1, 10, 2), (2, 5, 1)])).is_ok());
    for (size, runs) in [
        (24, &[(1, 10, 2), (2, 5, 1)][..]),
        (20, &[(1, 10, 1), (1, 10, 1)]),
        (10, &[(1, 10, 1), (2, 5, 0)]),
        (10, &[(1, 10, 1), (2, 0, 1)]),
        (u64::MAX, &[(1, u64::MAX, 1)]),
        (10 << 24, &[(1, 10, 1 << 24)]),
        (u64::MAX, &[(1, 16 << 20, u64::MAX)]),
    ] {
        assert!(Manifest::decode(&encoded(size, runs)).is_err(), "{size} {runs:?}");
    }
    assert!(Manifest::decode(&[encoded(0, &[]), vec![0]].concat()).is_err());
}

fn chunk_refs() -> impl Strategy<Value = Vec<ChunkRef>> {
    let chunk = (0..4u8, 1..300u32).prop_map(|(id, len)| ChunkRef { id: ChunkId([id; 32]), len });
    vec((chunk, 1..4usize), 0..40)
        .prop_map(|runs| runs.into_iter().flat_map(|(chunk, count)| std::iter::repeat_n(chunk, count)).collect())
}

proptest! {
    // The same cases every time.
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        ..ProptestConfig::default()
    })]

    #[test]
    fn manifests_round_trip(chunks in chunk_refs()) {
        let manifest = Manifest::new(chunks);
        prop_assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }

    #[test]
    fn locations_round_trip(pack in any::<[u8; 32]>(), offset in 0..u32::MAX / 2, plain_len in 1..16u32 << 20,
                            index in any::<u32>(), epoch in any::<u32>()) {
        let location =
            ChunkLocation { pack: PackId(pack), offset, sealed_len: plain_len + 41, plain_len, index, epoch };
        let mut writer = Writer::new();
        location.encode(&mut writer);
        let bytes = writer.into_vec();
        let mut reader = Reader::new(&bytes);
        prop_assert_eq!(ChunkLocation::decode(&mut reader), Ok(location));
        prop_assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn what_decodes_as_a_manifest_is_its_encoding(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(manifest) = Manifest::decode(&bytes) {
            prop_assert_eq!(manifest.encode(), bytes);
        }
    }
}
