//! Making a vault and opening it, with everything that can be wrong.

use std::ops::Range;

use futures::executor::block_on;

use super::*;
use crate::crypto::SlotError;
use crate::provider::memory::MemoryProvider;
use crate::provider::{
    Capabilities, ErrorKind, ObjectEntry, ObjectMeta, ObjectPath, Provider, ProviderError, ProviderFuture, PutMode,
};

fn secret(text: &str) -> Secret {
    Secret::passphrase(text).expect("not empty")
}

fn options(secrets: Vec<Secret>) -> InitOptions {
    InitOptions { cost: CHEAP, ..InitOptions::new(secrets) }
}

fn make(secrets: Vec<Secret>) -> (Arc<MemoryProvider>, Vault) {
    let provider = MemoryProvider::new();
    let vault = block_on(Vault::init(&*provider, options(secrets))).expect("an empty store becomes a vault");
    (provider, vault)
}

fn open(provider: &MemoryProvider, text: &str) -> Result<Vault, VaultError> {
    block_on(Vault::open(provider, &secret(text)))
}

fn put(provider: &MemoryProvider, path: &str, body: impl Into<Bytes>) {
    let path = ObjectPath::new(path).expect("a path");
    block_on(provider.put(&path, body.into(), PutMode::Overwrite)).expect("memory takes everything");
}

fn objects(provider: &MemoryProvider) -> Vec<(String, Bytes)> {
    let entries = block_on(provider.list("", None)).expect("memory lists");
    let read = |path: &ObjectPath| block_on(provider.get(path, None)).expect("it was listed");
    entries.iter().map(|entry| (entry.path.to_string(), read(&entry.path))).collect()
}

/// The error, after checking that nothing was written.
fn refusal(provider: &MemoryProvider, attempt: impl FnOnce() -> Result<Vault, VaultError>) -> VaultError {
    let before = objects(provider);
    let error = attempt().expect_err("it must be refused");
    assert_eq!(objects(provider), before, "a refusal changes nothing: {error}");
    error
}

#[test]
fn every_secret_opens_the_same_vault() {
    let phrase = Secret::new_recovery_phrase(&crate::crypto::SystemRandomness);
    let key = Secret::new_key_file(&crate::crypto::SystemRandomness);
    let secrets = vec![secret("one"), secret("two"), phrase, key];
    let (provider, made) = make(secrets.clone());
    assert_eq!(objects(&provider).len(), 5);
    for secret in &secrets {
        let opened = block_on(Vault::open(&*provider, secret)).expect("each secret has a slot");
        assert_eq!(opened.descriptor(), made.descriptor());
        assert_eq!(opened.keys().chunk_id(b"x"), made.keys().chunk_id(b"x"));
        assert_eq!(opened.files().descriptor, made.files().descriptor);
        let offline = opened.files().clone().unlock(secret).expect("files are all it takes");
        assert_eq!(offline.keys().chunk_id(b"x"), made.keys().chunk_id(b"x"));
    }
}

#[test]
fn a_wrong_passphrase_says_so_and_writes_nothing() {
    let (provider, _) = make(vec![secret("right")]);
    let error = refusal(&provider, || open(&provider, "wrong"));
    assert!(matches!(error, VaultError::WrongSecret { .. }), "{error}");
    let key = Secret::new_key_file(&crate::crypto::SystemRandomness);
    let error = refusal(&provider, || block_on(Vault::open(&*provider, &key)));
    assert!(matches!(error, VaultError::WrongSecret { .. }), "{error}");
}

#[test]
fn what_is_not_a_vault_says_so() {
    let provider = MemoryProvider::new();
    assert!(matches!(refusal(&provider, || open(&provider, "x")), VaultError::NotAVault { .. }));
    put(&provider, "holiday.jpg", "a picture");
    assert!(matches!(refusal(&provider, || open(&provider, "x")), VaultError::NotAVault { .. }));
    put(&provider, "packs/ab/cd", "a pack");
    let error = refusal(&provider, || open(&provider, "x"));
    assert!(matches!(&error, VaultError::DescriptorMissing { object, .. } if object == "packs/ab/cd"), "{error}");
}

#[test]
fn init_refuses_a_place_that_is_not_empty() {
    let (provider, _) = make(vec![secret("x")]);
    let again = |provider: &MemoryProvider| block_on(Vault::init(provider, options(vec![secret("x")])));
    assert!(matches!(refusal(&provider, || again(&provider)), VaultError::AlreadyAVault { .. }));

    let other = MemoryProvider::new();
    put(&other, "holiday.jpg", "a picture");
    let error = refusal(&other, || again(&other));
    assert!(matches!(&error, VaultError::Occupied { object, .. } if object == "holiday.jpg"), "{error}");

    let lost = MemoryProvider::new();
    put(&lost, "log/abcdef/00000000000000000001", "a segment");
    assert!(matches!(refusal(&lost, || again(&lost)), VaultError::DescriptorMissing { .. }));
}

#[test]
fn init_refuses_what_cannot_be_a_vault() {
    let provider = MemoryProvider::new();
    let init = |options| refusal(&provider, || block_on(Vault::init(&*provider, options)));
    assert!(matches!(init(options(vec![])), VaultError::NoSecrets));
    let chunker = ChunkerParams { minimum: 1, average: 2, maximum: 3 };
    let bad = [
        InitOptions { chunker, ..options(vec![secret("x")]) },
        InitOptions { pack_target: 1, ..options(vec![secret("x")]) },
        InitOptions { compression: Compression { level: 99, ..Compression::default() }, ..options(vec![secret("x")]) },
        InitOptions { cost: PassphraseCost { passes: 99, ..CHEAP }, ..options(vec![secret("x")]) },
    ];
    for options in bad {
        assert!(matches!(init(options), VaultError::InvalidParameters { .. }));
    }
}

#[test]
fn an_interrupted_init_does_not_hinder_the_next() {
    let (interrupted, _) = make(vec![secret("x")]);
    block_on(interrupted.delete(&paths::descriptor())).expect("memory deletes");
    assert!(matches!(refusal(&interrupted, || open(&interrupted, "x")), VaultError::NotAVault { .. }));
    block_on(Vault::init(&*interrupted, options(vec![secret("x")]))).expect("only key slots are left");
    open(&interrupted, "x").expect("the stale slot is passed over");
}

/// A store that answers every put with "exists already", as a retried put of what was applied does, and on which somebody else
/// may write a descriptor just after ours.
struct Contended {
    store: Arc<MemoryProvider>,
    rival: Option<Bytes>,
}

impl Provider for Contended {
    fn name(&self) -> String {
        self.store.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    fn put<'a>(&'a self, path: &'a ObjectPath, body: Bytes, mode: PutMode) -> ProviderFuture<'a, ()> {
        Box::pin(async move {
            self.store.put(path, body, mode).await?;
            if let (true, Some(rival)) = (*path == paths::descriptor(), &self.rival) {
                self.store.put(path, rival.clone(), PutMode::Overwrite).await?;
            }
            Err(ProviderError::new(ErrorKind::AlreadyExists, "put", self.name(), path.as_str()))
        })
    }

    fn get<'a>(&'a self, path: &'a ObjectPath, range: Option<Range<u64>>) -> ProviderFuture<'a, Bytes> {
        self.store.get(path, range)
    }

    fn head<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, Option<ObjectMeta>> {
        self.store.head(path)
    }

    fn list<'a>(&'a self, prefix: &'a str, start_after: Option<&'a str>) -> ProviderFuture<'a, Vec<ObjectEntry>> {
        self.store.list(prefix, start_after)
    }

    fn delete<'a>(&'a self, path: &'a ObjectPath) -> ProviderFuture<'a, ()> {
        self.store.delete(path)
    }
}

#[test]
fn init_recognises_its_own_objects_when_a_put_is_repeated() {
    let contended = Contended { store: MemoryProvider::new(), rival: None };
    block_on(Vault::init(&contended, options(vec![secret("x")]))).expect("what exists is ours");
    open(&contended.store, "x").expect("it is whole");
}

#[test]
fn of_two_that_init_at_once_one_is_told() {
    let (_, other) = make(vec![secret("y")]);
    let contended = Contended { store: MemoryProvider::new(), rival: Some(other.files().descriptor.clone()) };
    let error = block_on(Vault::init(&contended, options(vec![secret("x")]))).expect_err("the rival was last");
    assert!(matches!(error, VaultError::AlreadyAVault { .. }), "{error}");
}

#[test]
fn no_key_slots_is_told_apart() {
    let (provider, vault) = make(vec![secret("x")]);
    for (slot, _) in &vault.files().slots {
        block_on(provider.delete(&ObjectPath::new(slot).expect("a path"))).expect("memory deletes");
    }
    assert!(matches!(refusal(&provider, || open(&provider, "x")), VaultError::NoKeySlots { .. }));
}

#[test]
fn a_damaged_slot_is_named_and_does_not_hinder_the_others() {
    let (provider, vault) = make(vec![secret("one"), secret("two")]);
    let (name, slot) = &vault.files().slots[0];
    for damaged in [slot.slice(..100), Bytes::new(), [&slot[..150], &[!slot[150]], &slot[151..]].concat().into()] {
        put(&provider, name, damaged);
        open(&provider, "two").expect("the other slot is whole");
        let error = refusal(&provider, || open(&provider, "one"));
        let VaultError::KeySlot { object, source, .. } = &error else { panic!("{error}") };
        assert_eq!((object, *source), (name, SlotError::Damaged));
    }
}

#[test]
fn every_flipped_bit_of_the_descriptor_is_noticed() {
    let (_, vault) = make(vec![secret("x")]);
    let right = &vault.files().descriptor;
    for bit in 0..right.len() * 8 {
        let mut flipped = right.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let files = VaultFiles { descriptor: flipped.into(), ..vault.files().clone() };
        // White space that became other white space is the one change that does not matter.
        let harmless = |flipped: &Descriptor| flipped == vault.descriptor();
        match files.descriptor() {
            Ok(descriptor) => assert!(harmless(&descriptor) && right[bit / 8].is_ascii_whitespace(), "bit {bit}"),
            Err(VaultError::DescriptorDamaged { .. } | VaultError::NewerVersion { .. }) => {}
            Err(error) => panic!("bit {bit}: {error}"),
        }
    }
    for len in 0..right.len() - 1 {
        let files = VaultFiles { descriptor: right.slice(..len), ..vault.files().clone() };
        assert!(matches!(files.descriptor(), Err(VaultError::DescriptorDamaged { .. })), "{len} bytes");
    }
}

#[test]
fn a_newer_version_says_to_update_whatever_else_it_has() {
    let (provider, _) = make(vec![secret("x")]);
    put(&provider, "cairn.json", r#"{"magic":"cairn vault","version":2,"anything":["else"]}"#);
    let error = refusal(&provider, || open(&provider, "x"));
    assert!(matches!(error, VaultError::NewerVersion { version: 2, .. }), "{error}");
    put(&provider, "cairn.json", r#"{"magic":"something","version":1}"#);
    assert!(matches!(refusal(&provider, || open(&provider, "x")), VaultError::DescriptorDamaged { .. }));
}

#[test]
fn a_rewritten_descriptor_is_noticed_on_unlocking() {
    let (provider, vault) = make(vec![secret("x")]);
    let right = *vault.descriptor();
    let rewritten = [
        Descriptor { cipher: Cipher::Aes256Gcm, ..right },
        Descriptor { vault: VaultId::from_bytes([1; 16]), ..right },
        Descriptor { pack_target: right.pack_target * 2, ..right },
        Descriptor { compression: Compression { level: 1, ..right.compression }, ..right },
        Descriptor { chunker: ChunkerParams { minimum: 64, ..right.chunker }, ..right },
    ];
    for descriptor in rewritten {
        put(&provider, "cairn.json", descriptor.encode());
        let error = refusal(&provider, || open(&provider, "x"));
        assert!(matches!(error, VaultError::DescriptorAltered { .. }), "{error}");
    }
    put(&provider, "cairn.json", right.encode());
    open(&provider, "x").expect("the right one opens");
}

#[test]
fn errors_are_one_sentence_that_names_the_remote() {
    let (provider, _) = make(vec![secret("x")]);
    let error = open(&provider, "wrong").expect_err("wrong").to_string();
    assert_eq!(error, "wrong passphrase or key for the vault at memory:; nothing was changed");
}
