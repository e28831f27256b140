//! Key slots: small objects that give up the master key to whoever has a secret.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use zeroize::Zeroizing;

use super::{Randomness, Secret, VaultId, random_array};

const MAGIC: &[u8; 8] = b"cairnkey";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 80;
const PAYLOAD_LEN: usize = 80;
const TAG_LEN: usize = 16;
const SLOT_LEN: usize = HEADER_LEN + PAYLOAD_LEN + TAG_LEN + 32;

/// How expensive a passphrase is to guess. The default, 64 MiB and 3 passes, is the second choice of RFC 9106 section 4 with
/// one lane; it takes a fraction of a second on a small machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassphraseCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl PassphraseCost {
    /// The most that a slot may ask for: whoever can write to the remote could otherwise exhaust the machine that unlocks.
    pub const MAXIMUM: Self = Self { memory_kib: 1 << 20, passes: 32, lanes: 16 };

    fn is_acceptable(self) -> bool {
        self.memory_kib <= Self::MAXIMUM.memory_kib
            && self.passes <= Self::MAXIMUM.passes
            && self.lanes <= Self::MAXIMUM.lanes
    }
}

impl Default for PassphraseCost {
    fn default() -> Self {
        Self { memory_kib: 64 << 10, passes: 3, lanes: 1 }
    }
}

/// Which secrets a slot answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotKind {
    /// A passphrase.
    Passphrase = 1,
    /// A key file or a recovery phrase.
    Key = 2,
}

/// What a slot holds.
#[derive(Clone, PartialEq, Eq)]
pub struct SlotPayload {
    /// The master key.
    pub master: Zeroizing<[u8; 32]>,
    /// The vault it belongs to.
    pub vault: VaultId,
    /// BLAKE3 of the vault's descriptor, so that an altered descriptor is noticed.
    pub descriptor: [u8; 32],
}

/// Why a slot cannot be made or does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// The bytes are not what was written.
    #[error("the key slot is damaged")]
    Damaged,
    /// Written by a later version.
    #[error("the key slot has format version {0}, which this version does not know; update cairn")]
    NewerVersion(u16),
    /// The slot asks for more than [`PassphraseCost::MAXIMUM`], or for what Argon2 cannot do.
    #[error("the key slot asks for {memory_kib} KiB and {passes} passes of Argon2id, which is out of bounds")]
    Cost {
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes.
        passes: u32,
    },
    /// The slot is whole, and the secret is not the one it was made with.
    #[error("wrong passphrase or key")]
    WrongSecret,
}

/// A key slot as it was read; opened with [`KeySlot::unlock`].
#[derive(Debug, Clone)]
pub struct KeySlot {
    kind: SlotKind,
    cost: PassphraseCost,
    header: [u8; HEADER_LEN],
    sealed: [u8; PAYLOAD_LEN + TAG_LEN],
}

impl KeySlot {
    /// The length of a slot in bytes.
    pub const LEN: usize = SLOT_LEN;

    /// The bytes of a new slot that gives `payload` to `secret`. `cost` matters to passphrases only.
    ///
    /// # Errors
    /// [`SlotError::Cost`] when the cost is out of bounds.
    pub fn seal(
        secret: &Secret,
        cost: PassphraseCost,
        payload: &SlotPayload,
        randomness: &dyn Randomness,
    ) -> Result<Vec<u8>, SlotError> {
        let salt: [u8; 32] = random_array(randomness);
        let nonce: [u8; 24] = random_array(randomness);
        let (kind, cost, key) = match secret {
            Secret::Passphrase(text) => (SlotKind::Passphrase, cost, passphrase_key(text, &salt, cost)?),
            Secret::KeyFile(key) | Secret::RecoveryPhrase(key) => {
                (SlotKind::Key, PassphraseCost { memory_kib: 0, passes: 0, lanes: 0 }, machine_key(key, &salt))
            }
        };
        let mut slot = Vec::with_capacity(SLOT_LEN);
        slot.extend_from_slice(MAGIC);
        slot.extend_from_slice(&VERSION.to_le_bytes());
        slot.extend_from_slice(&(kind as u16).to_le_bytes());
        slot.extend_from_slice(&cost.memory_kib.to_le_bytes());
        slot.extend_from_slice(&cost.passes.to_le_bytes());
        slot.extend_from_slice(&cost.lanes.to_le_bytes());
        slot.extend_from_slice(&salt);
        slot.extend_from_slice(&nonce);
        let mut body = Zeroizing::new([0; PAYLOAD_LEN]);
        body[..32].copy_from_slice(&payload.master[..]);
        body[32..48].copy_from_slice(payload.vault.as_bytes());
        body[48..].copy_from_slice(&payload.descriptor);
        let tag = XChaCha20Poly1305::new((&*key).into())
            .encrypt_inout_detached(&nonce.into(), &slot, body.as_mut_slice().into())
            .expect("80 bytes are within the limits of the cipher");
        slot.extend_from_slice(&body[..]);
        slot.extend_from_slice(&tag);
        let checksum = blake3::hash(&slot);
        slot.extend_from_slice(checksum.as_bytes());
        Ok(slot)
    }

    /// Reads a slot without opening it.
    ///
    /// # Errors
    /// [`SlotError::Damaged`], [`SlotError::NewerVersion`] or [`SlotError::Cost`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SlotError> {
        let (body, checksum) = bytes.split_last_chunk::<32>().ok_or(SlotError::Damaged)?;
        if !body.starts_with(MAGIC) || blake3::hash(body) != *checksum {
            return Err(SlotError::Damaged);
        }
        let version = u16::from_le_bytes(field(body, 8)?);
        if version > VERSION {
            return Err(SlotError::NewerVersion(version));
        }
        if version != VERSION || bytes.len() != SLOT_LEN {
            return Err(SlotError::Damaged);
        }
        let kind = match u16::from_le_bytes(field(body, 10)?) {
            1 => SlotKind::Passphrase,
            2 => SlotKind::Key,
            _ => return Err(SlotError::Damaged),
        };
        let cost = PassphraseCost {
            memory_kib: u32::from_le_bytes(field(body, 12)?),
            passes: u32::from_le_bytes(field(body, 16)?),
            lanes: u32::from_le_bytes(field(body, 20)?),
        };
        if !cost.is_acceptable() {
            return Err(SlotError::Cost { memory_kib: cost.memory_kib, passes: cost.passes });
        }
        Ok(Self { kind, cost, header: field(body, 0)?, sealed: field(body, HEADER_LEN)? })
    }

    /// Which secrets it answers to.
    pub fn kind(&self) -> SlotKind {
        self.kind
    }

    /// Opens the slot. Takes the time and memory that the slot's cost says.
    ///
    /// # Errors
    /// [`SlotError::WrongSecret`], or [`SlotError::Cost`] for a cost that Argon2 refuses.
    pub fn unlock(&self, secret: &Secret) -> Result<SlotPayload, SlotError> {
        let salt: [u8; 32] = field(&self.header, 24)?;
        let nonce: [u8; 24] = field(&self.header, 56)?;
        let key = match (self.kind, secret) {
            (SlotKind::Passphrase, Secret::Passphrase(text)) => passphrase_key(text, &salt, self.cost)?,
            (SlotKind::Passphrase, _) => return Err(SlotError::WrongSecret),
            (SlotKind::Key, secret) => machine_key(&*secret.as_key().ok_or(SlotError::WrongSecret)?, &salt),
        };
        let mut body = Zeroizing::new(field::<PAYLOAD_LEN>(&self.sealed, 0)?);
        let tag: [u8; TAG_LEN] = field(&self.sealed, PAYLOAD_LEN)?;
        XChaCha20Poly1305::new((&*key).into())
            .decrypt_inout_detached(&nonce.into(), &self.header, body.as_mut_slice().into(), &tag.into())
            .map_err(|_| SlotError::WrongSecret)?;
        Ok(SlotPayload {
            master: Zeroizing::new(field(&body[..], 0)?),
            vault: VaultId::from_bytes(field(&body[..], 32)?),
            descriptor: field(&body[..], 48)?,
        })
    }
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], SlotError> {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or(SlotError::Damaged)
}

fn passphrase_key(text: &str, salt: &[u8; 32], cost: PassphraseCost) -> Result<Zeroizing<[u8; 32]>, SlotError> {
    let refused = SlotError::Cost { memory_kib: cost.memory_kib, passes: cost.passes };
    if !cost.is_acceptable() {
        return Err(refused);
    }
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(|_| refused)?;
    let mut stretched = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(text.as_bytes(), salt, &mut stretched[..])
        .map_err(|_| refused)?;
    Ok(Zeroizing::new(blake3::derive_key("cairnfs 2026 vault v1: passphrase slot", &stretched[..])))
}

fn machine_key(key: &[u8; 32], salt: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let mut material = Zeroizing::new([0; 64]);
    material[..32].copy_from_slice(key);
    material[32..].copy_from_slice(salt);
    Zeroizing::new(blake3::derive_key("cairnfs 2026 vault v1: key slot", &material[..]))
}
