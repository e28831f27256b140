//! Golden files: the bytes of every structure, as version 1 has them for good.
//!
//! Each is made with fixed keys and nonces, must come out the same again, and must be read back. With `CAIRN_WRITE_GOLDEN`
//! set they are written anew: for structures that are new, never for bytes that vaults already have.

use std::fmt::Write as _;
use std::path::Path;

use cairn_platform_api::{FileKind, InodeNo, Timestamp, VfsName};
use zeroize::Zeroizing;

use super::*;
use crate::base::HybridClock;
use crate::base::codec::{Reader, Writer};
use crate::chunk::{Chunker, Encoding, Last};
use crate::crypto::{KeySlot, SlotPayload};
use crate::store::Store;
use crate::tree::{
    Birth, ChangeSet, Content, ContentChange, DentryChange, DentryId, DeviceIdentity, InodeChange, ManifestRows, Place,
    RowStream, Tree, TreeError, dump_published,
};

pub(super) const CIPHERS: [(Cipher, &str); 2] = [(Cipher::XChaCha20Poly1305, "xchacha"), (Cipher::Aes256Gcm, "aes")];

pub(super) fn descriptor() -> Descriptor {
    Descriptor {
        vault: VaultId::from_bytes(*b"golden vault id."),
        cipher: Cipher::XChaCha20Poly1305,
        chunker: ChunkerParams::default(),
        pack_target: 16 << 20,
        compression: Compression::default(),
    }
}

fn payload() -> SlotPayload {
    let descriptor = descriptor();
    SlotPayload { master: Zeroizing::new([7; 32]), vault: descriptor.vault, descriptor: descriptor.hash() }
}

fn slot(secret: &Secret, seed: &str) -> Vec<u8> {
    KeySlot::seal(secret, CHEAP, &payload(), &SeededRandomness::new(seed)).expect("within bounds")
}

fn passphrase() -> Secret {
    Secret::passphrase("golden passphrase").expect("not empty")
}

fn key() -> Secret {
    Secret::KeyFile(Zeroizing::new([0x42; 32]))
}

/// What a golden pack holds. Compressed by hand, so that its bytes do not depend on the version of zstd.
fn chunks() -> Vec<(Vec<u8>, Encoding, Vec<u8>)> {
    let zstd = include_bytes!("../../../tests/golden/chunk.zst").to_vec();
    vec![
        (b"the first golden chunk".to_vec(), Encoding::Raw, b"the first golden chunk".to_vec()),
        (b"golden ".repeat(40), Encoding::Zstd, zstd),
    ]
}

pub(super) fn pack(cipher: Cipher) -> FinishedPack {
    let keys = keys_from(cipher, "golden pack");
    let mut builder = PackBuilder::new(keys.clone(), 1 << 20);
    for (chunk, encoding, encoded) in chunks() {
        builder.add(keys.chunk_id(&chunk), chunk.len() as u32, encoding, &encoded);
    }
    builder.finish()
}

fn manifest() -> Manifest {
    Manifest::new(vec![chunk_ref(1, 10), chunk_ref(2, 1 << 21), chunk_ref(2, 1 << 21), chunk_ref(3, 7)])
}

/// What the keys derive, and where the chunker cuts.
fn derivation() -> String {
    let keys = keys_from(Cipher::default(), "unused");
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| writeln!(text, "{name} {value}").expect("strings grow");
    line("chunk id of `cairn`:", &keys.chunk_id(b"cairn"));
    line("content id of the manifest:", &manifest().content_id(&keys));
    let chunker = Chunker::new(&keys, ChunkerParams { minimum: 1 << 10, average: 4 << 10, maximum: 16 << 10 });
    let chunker = chunker.expect("the lengths are valid");
    let content = random("golden content", 60_000);
    let mut rest = &content[..];
    while let Some(cut) = chunker.next_cut(rest, Last::Yes) {
        line("cut after", &cut);
        rest = &rest[cut..];
    }
    text
}

fn check(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("CAIRN_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, bytes).expect("the golden files can be written");
    }
    let golden = std::fs::read(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(golden == bytes, "{name} would now be written as {}", hex::encode(bytes));
}

#[test]
fn descriptor_and_key_slots_are_as_ever() {
    check("cairn.json", &descriptor().encode());
    assert_eq!(Descriptor::decode(&descriptor().encode()), Ok(descriptor()));
    for (name, secret) in [("slot-passphrase", passphrase()), ("slot-key", key())] {
        let slot = slot(&secret, name);
        check(name, &slot);
        let opened = KeySlot::decode(&slot).and_then(|slot| slot.unlock(&secret));
        assert!(opened == Ok(payload()));
    }
}

#[test]
fn derived_keys_and_cuts_are_as_ever() {
    check("derivation.txt", derivation().as_bytes());
}

#[test]
fn packs_are_as_ever() {
    for (cipher, name) in CIPHERS {
        let pack = pack(cipher);
        check(&format!("pack-{name}"), &pack.bytes);
        let keys = keys_from(cipher, "unused");
        assert_eq!(read_directory(&keys, &pack.id, &pack.bytes).expect("whole"), pack.chunks);
        for ((chunk, ..), (id, location)) in chunks().iter().zip(&pack.chunks) {
            let range = location.range();
            let frame = &pack.bytes[range.start as usize..range.end as usize];
            assert_eq!(&read_chunk(&keys, id, location, frame).expect("whole"), chunk);
        }
    }
}

#[test]
fn lists_of_chunks_and_locations_are_as_ever() {
    check("manifest", &manifest().encode());
    assert_eq!(Manifest::decode(&manifest().encode()), Ok(manifest()));
    let mut writer = Writer::new();
    location(0xA0, 3).encode(&mut writer);
    check("location", writer.as_slice());
    assert_eq!(ChunkLocation::decode(&mut Reader::new(writer.as_slice())), Ok(location(0xA0, 3)));
}

/// One change of everything that a change set can say.
fn change_set() -> ChangeSet {
    let content = |id| Content { size: 1234, id: ContentId([id; 32]) };
    let born = InodeChange {
        birth: Some(Birth {
            kind: FileKind::Symlink,
            rdev: 0,
            btime: Timestamp::from_nanos(-5),
            target: Some(b"../target".to_vec()),
        }),
        mode: Some(0o777),
        uid: Some(1000),
        gid: Some(100_000),
        atime: Some(Timestamp::from_nanos(1)),
        mtime: Some(Timestamp::from_nanos(2)),
        ctime: Some(Timestamp::from_nanos(3)),
        ..InodeChange::new(InodeNo((0xa1_b2c3 << 40) | 7))
    };
    let edited = InodeChange {
        xattrs: vec![(b"user.a".to_vec(), Some(b"value".to_vec())), (b"user.b".to_vec(), None)],
        content: Some(ContentChange { base: Some(ContentId([1; 32])), new: Some(content(2)) }),
        ..InodeChange::new(InodeNo((0xa1_b2c3 << 40) | 8))
    };
    let place = Place { parent: InodeNo::ROOT, name: VfsName::new("näme".as_bytes()).expect("a name") };
    let dentry = |number| DentryChange { dentry: DentryId(number), ino: born.ino, to: None, seen: None };
    ChangeSet {
        id: ChangeId { hlc: Hlc(0x0198_0000_0000_0001), device: DEVICE },
        device_name: "laptop".to_owned(),
        dentries: vec![
            DentryChange { to: Some(place), ..dentry(9) },
            dentry(10),
            DentryChange { seen: Some(ContentId([4; 32])), ..dentry(11) },
        ],
        inodes: vec![born, edited],
    }
}

#[test]
fn change_sets_are_as_ever() {
    check("change-set", &change_set().encode());
    assert_eq!(ChangeSet::decode(&change_set().encode()), Ok(change_set()));
}

/// The plaintext bodies are compared byte for byte; of the objects, whose bytes depend on the version of zstd, only that
/// what was once written is still read.
#[test]
fn segments_and_checkpoints_are_as_ever() {
    check("segment.body", &a_segment().encode());
    check("checkpoint.body", &a_checkpoint().encode());
    assert_eq!(Segment::decode(&a_segment().encode()), Ok(a_segment()));
    assert_eq!(Checkpoint::decode(&a_checkpoint().encode()), Ok(a_checkpoint()));
    for (cipher, name) in CIPHERS {
        let read = |file: &str, fresh: &Bytes| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
            if std::env::var_os("CAIRN_WRITE_GOLDEN").is_some() {
                std::fs::write(&path, fresh).expect("the golden files can be written");
            }
            std::fs::read(&path).unwrap_or_else(|error| panic!("{file}: {error}"))
        };
        let keys = keys_from(cipher, "golden log");
        let (segment, _) = a_segment().seal(&keys).expect("small");
        let golden = read(&format!("segment-{name}"), &segment);
        assert_eq!(Segment::open(&keys, DEVICE, 42, &golden).expect("whole"), a_segment());
        let checkpoint = a_checkpoint().seal(&keys).expect("small");
        let golden = read(&format!("checkpoint-{name}"), &checkpoint);
        assert_eq!(Checkpoint::open(&keys, DEVICE, 5, &golden).expect("whole"), a_checkpoint());
    }
}

fn born(ino: u64, kind: FileKind, content: Option<u8>) -> InodeChange {
    let time = |nanos| Some(Timestamp::from_nanos(nanos));
    let new = content.map(|id| Content { size: 1234, id: ContentId([id; 32]) });
    InodeChange {
        birth: Some(Birth { kind, rdev: 0, btime: Timestamp::from_nanos(-5), target: None }),
        mode: Some(0o644),
        uid: Some(1000),
        gid: Some(100_000),
        atime: time(1),
        mtime: time(2),
        ctime: time(3),
        xattrs: vec![(b"user.a".to_vec(), Some(b"value".to_vec()))],
        content: new.map(|new| ContentChange { base: None, new: Some(new) }),
        ..InodeChange::new(InodeNo(ino))
    }
}

fn named(dentry: u64, ino: u64, parent: u64, name: &str) -> DentryChange {
    let name = VfsName::new(name.as_bytes()).expect("a name");
    let to = Some(Place { parent: InodeNo(parent), name });
    DentryChange { dentry: DentryId(dentry), ino: InodeNo(ino), to, seen: None }
}

/// Change sets that leave a row of every family: the second merges a directory with one of the first, and removes a file.
fn two_change_sets() -> Vec<ChangeSet> {
    let number = |device: u64, counter: u64| device << 40 | counter;
    let set = |device, inodes, dentries| ChangeSet {
        id: ChangeId { hlc: Hlc(0x0198_0000_0000_0001), device: DeviceId(device) },
        device_name: format!("device {device}"),
        inodes,
        dentries,
    };
    let [directory, file, removed] = [number(1, 1), number(1, 2), number(1, 3)];
    let merged = number(2, 1);
    let removal = DentryChange { to: None, seen: Some(ContentId([2; 32])), ..named(number(1, 6), removed, 1, "x") };
    vec![
        set(
            1,
            vec![
                born(directory, FileKind::Directory, None),
                born(file, FileKind::Regular, Some(1)),
                born(removed, FileKind::Regular, Some(2)),
            ],
            vec![
                named(number(1, 4), directory, 1, "directory"),
                named(number(1, 5), file, directory, "n\u{e4}me"),
                named(number(1, 6), removed, 1, "removed"),
            ],
        ),
        set(
            2,
            vec![born(merged, FileKind::Directory, None)],
            vec![removal, named(number(2, 2), merged, 1, "directory")],
        ),
    ]
}

fn rows_of_a_checkpoint() -> Vec<u8> {
    let store = Arc::new(Store::in_memory().expect("a store opens"));
    let device = DeviceIdentity { id: DEVICE, name: "writer".to_owned() };
    let clock = HybridClock::over(|| std::time::UNIX_EPOCH);
    let tree = Tree::open_with_clock(Arc::clone(&store), device, clock).expect("a tree opens");
    let folded = tree.fold(two_change_sets(), |bulk| {
        bulk.put_manifest(&ContentId([1; 32]), &manifest());
        bulk.put_wanted_list(&ContentId([2; 32]), &manifest());
        bulk.put_chunk_location(&ChunkId([1; 32]), &location(0xA0, 3));
        Ok(())
    });
    folded.expect("they are applied");
    store.flush().expect("memory takes it");
    let mut stream = Vec::new();
    let dumped = dump_published(&store.snapshot().expect("there is one"), &mut |piece| {
        stream.extend_from_slice(piece);
        Ok::<_, TreeError>(())
    });
    assert_eq!(dumped.expect("they read"), Some(two_change_sets()[1].id));
    stream
}

#[test]
fn rows_of_checkpoints_are_as_ever() {
    let stream = rows_of_a_checkpoint();
    check("checkpoint-rows", &stream);
    let mut rows = RowStream::default();
    let mut families = Vec::new();
    for byte in stream {
        rows.push(&[byte]);
        families.extend(rows.next_row().expect("whole").map(|row| row.key[0]));
    }
    rows.finish().expect("it ends with a row");
    families.dedup();
    assert_eq!(families, b"ACDGILMNSUW");
}
