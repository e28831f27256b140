//! Making a vault, and getting from a remote and a secret to its keys.

use std::sync::Arc;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::descriptor::DescriptorFault;
use super::{Compression, Descriptor, Vault, VaultError, paths};
use crate::chunk::{Chunker, ChunkerParams};
use crate::crypto::{
    Cipher, KeySlot, PassphraseCost, Randomness, Secret, SlotError, SlotKind, SlotPayload, SystemRandomness, VaultId,
    VaultKeys, random_array,
};
use crate::provider::{ErrorKind, ObjectPath, Provider, PutMode, holds, read_whole};

/// Trying a slot takes time, and whoever can write to the remote could add any number.
const SLOTS_MAX: usize = 64;

/// What a new vault is to be like.
#[derive(Clone)]
pub struct InitOptions {
    /// How frames are sealed.
    pub cipher: Cipher,
    /// How content is cut.
    pub chunker: ChunkerParams,
    /// The length in bytes at which a pack is full.
    pub pack_target: u32,
    /// How content is compressed.
    pub compression: Compression,
    /// What opens it: one key slot is made for each.
    pub secrets: Vec<Secret>,
    /// How expensive passphrases are to guess.
    pub cost: PassphraseCost,
    /// Where keys, ids and nonces come from.
    pub randomness: Arc<dyn Randomness>,
}

impl InitOptions {
    /// The defaults, with these secrets.
    pub fn new(secrets: Vec<Secret>) -> Self {
        Self {
            cipher: Cipher::default(),
            chunker: ChunkerParams::default(),
            pack_target: 16 << 20,
            compression: Compression::default(),
            secrets,
            cost: PassphraseCost::default(),
            randomness: Arc::new(SystemRandomness),
        }
    }
}

/// The objects that unlocking a vault takes, as they lie on the remote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultFiles {
    /// The remote that they are from, without secrets.
    pub remote: String,
    /// `cairn.json`.
    pub descriptor: Bytes,
    /// The key slots, by their paths.
    pub slots: Vec<(String, Bytes)>,
}

impl VaultFiles {
    /// Reads them.
    ///
    /// # Errors
    /// [`VaultError::NotAVault`], [`VaultError::DescriptorMissing`], [`VaultError::NoKeySlots`], and what the provider says.
    pub async fn fetch(provider: &dyn Provider) -> Result<Self, VaultError> {
        let remote = provider.name();
        let descriptor = match read_whole(provider, &paths::descriptor(), Descriptor::LEN_MAX).await {
            Ok(descriptor) => descriptor,
            Err(error) if error.kind == ErrorKind::NotFound => return Err(without_descriptor(provider, remote).await),
            Err(error) => return Err(error.into()),
        };
        // Said before anything about slots, which a later version may keep elsewhere.
        decode_descriptor(&remote, &descriptor)?;
        const LEN: u64 = KeySlot::LEN as u64;
        let mut slots = Vec::new();
        for entry in provider.list(paths::KEYS, None).await?.into_iter().take(SLOTS_MAX) {
            // A slot with another length is damaged, and its content does not matter.
            let slot = if entry.size == LEN { provider.get(&entry.path, Some(0..LEN)).await? } else { Bytes::new() };
            slots.push((entry.path.as_str().to_owned(), slot));
        }
        if slots.is_empty() {
            return Err(VaultError::NoKeySlots { remote });
        }
        Ok(Self { remote, descriptor, slots })
    }

    /// The parameters of the vault, not yet authenticated.
    ///
    /// # Errors
    /// [`VaultError::DescriptorDamaged`] or [`VaultError::NewerVersion`].
    pub fn descriptor(&self) -> Result<Descriptor, VaultError> {
        decode_descriptor(&self.remote, &self.descriptor)
    }

    /// Opens the vault, without the remote.
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub fn unlock(self, secret: &Secret) -> Result<Vault, VaultError> {
        self.unlock_with(secret, Arc::new(SystemRandomness))
    }

    /// [`Self::unlock`] with another source of nonces.
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub fn unlock_with(self, secret: &Secret, randomness: Arc<dyn Randomness>) -> Result<Vault, VaultError> {
        let descriptor = self.descriptor()?;
        let master = self.master(&descriptor, secret)?;
        vault(descriptor, &master, self, randomness)
    }

    /// Tries the slots, the cheap ones first.
    fn master(&self, descriptor: &Descriptor, secret: &Secret) -> Result<Zeroizing<[u8; 32]>, VaultError> {
        let remote = || self.remote.clone();
        let mut unusable = None;
        let mut altered = false;
        let mut slots = Vec::new();
        for (object, bytes) in &self.slots {
            match KeySlot::decode(bytes) {
                Ok(slot) => slots.push((object, slot)),
                Err(error) => unusable = Some((object, error)),
            }
        }
        slots.sort_by_key(|(_, slot)| slot.kind() == SlotKind::Passphrase);
        for (object, slot) in slots {
            match slot.unlock(secret) {
                Ok(payload) if payload.vault == descriptor.vault && payload.descriptor == descriptor.hash() => {
                    return Ok(payload.master);
                }
                // Another vault's slot may be left of an interrupted `init`, so a later one can still be right.
                Ok(_) => altered = true,
                Err(SlotError::WrongSecret) => {}
                Err(error) => unusable = Some((object, error)),
            }
        }
        match unusable {
            _ if altered => Err(VaultError::DescriptorAltered { remote: remote() }),
            Some((object, source)) => Err(VaultError::KeySlot { remote: remote(), object: object.clone(), source }),
            None => Err(VaultError::WrongSecret { remote: remote() }),
        }
    }
}

async fn without_descriptor(provider: &dyn Provider, remote: String) -> VaultError {
    match provider.list("", None).await {
        Ok(entries) => match entries.iter().find(|entry| belongs_to_a_vault(entry.path.as_str())) {
            Some(entry) => VaultError::DescriptorMissing { remote, object: entry.path.as_str().to_owned() },
            None => VaultError::NotAVault { remote },
        },
        Err(error) => error.into(),
    }
}

/// Whether only a vault that was in use has this object. Key slots alone are left by an interrupted `init`.
fn belongs_to_a_vault(path: &str) -> bool {
    [paths::LOG, paths::PACKS, paths::CHECKPOINTS].iter().any(|prefix| path.starts_with(prefix))
}

fn decode_descriptor(remote: &str, bytes: &[u8]) -> Result<Descriptor, VaultError> {
    let remote = remote.to_owned();
    Descriptor::decode(bytes).map_err(|fault| match fault {
        DescriptorFault::Damaged(reason) => VaultError::DescriptorDamaged { remote, reason },
        DescriptorFault::Newer(version) => VaultError::NewerVersion { remote, version },
    })
}

fn vault(
    descriptor: Descriptor,
    master: &[u8; 32],
    files: VaultFiles,
    randomness: Arc<dyn Randomness>,
) -> Result<Vault, VaultError> {
    let keys = VaultKeys::new(master, descriptor.vault, descriptor.cipher, randomness);
    let chunker = Chunker::new(&keys, descriptor.chunker)
        .map_err(|error| VaultError::InvalidParameters { reason: error.to_string() })?;
    Ok(Vault { descriptor, keys, chunker: Arc::new(chunker), files: Arc::new(files) })
}

pub(super) async fn init(provider: &dyn Provider, options: InitOptions) -> Result<Vault, VaultError> {
    let InitOptions { cipher, chunker, pack_target, compression, secrets, cost, randomness } = options;
    let remote = provider.name();
    if secrets.is_empty() {
        return Err(VaultError::NoSecrets);
    }
    let descriptor = Descriptor { vault: VaultId::random(&*randomness), cipher, chunker, pack_target, compression };
    let invalid = |reason: String| VaultError::InvalidParameters { reason };
    descriptor.validate().map_err(invalid)?;
    refuse_occupied(provider, &remote).await?;
    let master = Zeroizing::new(random_array(&*randomness));
    let payload = SlotPayload { master: master.clone(), vault: descriptor.vault, descriptor: descriptor.hash() };
    let mut slots = Vec::new();
    for secret in &secrets {
        let slot = KeySlot::seal(secret, cost, &payload, &*randomness).map_err(|error| invalid(error.to_string()))?;
        let path = paths::key_slot(&random_array(&*randomness));
        let slot = Bytes::from(slot);
        put_new(provider, &path, slot.clone()).await?;
        slots.push((path.as_str().to_owned(), slot));
    }
    let bytes = Bytes::from(descriptor.encode());
    put_new(provider, &paths::descriptor(), bytes.clone()).await?;
    // Whoever made a vault here at the same time may have been first, or, where the store cannot decide, last.
    if !holds(provider, &paths::descriptor(), &bytes).await? {
        return Err(VaultError::AlreadyAVault { remote });
    }
    vault(descriptor, &master, VaultFiles { remote, descriptor: bytes, slots }, randomness)
}

/// Stores an object that only we can have under this name or that is compared afterwards. A put that was applied, answered with
/// an error and repeated meets itself.
async fn put_new(provider: &dyn Provider, path: &ObjectPath, body: Bytes) -> Result<(), VaultError> {
    match provider.put(path, body, PutMode::IfAbsent).await {
        Err(error) if error.kind != ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}

/// Only an empty place becomes a vault, or one that holds nothing but the key slots of an interrupted attempt.
pub(super) async fn refuse_occupied(provider: &dyn Provider, remote: &str) -> Result<(), VaultError> {
    let entries = provider.list("", None).await?;
    let remote = remote.to_owned();
    if entries.iter().any(|entry| entry.path.as_str() == paths::DESCRIPTOR) {
        return Err(VaultError::AlreadyAVault { remote });
    }
    let slot = |path: &str| path.strip_prefix(paths::KEYS).is_some_and(|id| id.len() == 32 && hex::decode(id).is_ok());
    match entries.iter().find(|entry| !slot(entry.path.as_str())) {
        Some(entry) if belongs_to_a_vault(entry.path.as_str()) => {
            Err(VaultError::DescriptorMissing { remote, object: entry.path.as_str().to_owned() })
        }
        Some(entry) => Err(VaultError::Occupied { remote, object: entry.path.as_str().to_owned() }),
        None => Ok(()),
    }
}
