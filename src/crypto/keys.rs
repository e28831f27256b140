//! The keys of an unlocked vault and the frames they seal.

use std::fmt;
use std::sync::Arc;

use aes_gcm::Aes256Gcm;
use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{Randomness, random_array};

/// The key epoch that a new vault starts with; the only one that this version knows.
pub const FIRST_EPOCH: u32 = 1;

const TAG_LEN: usize = 16;
const XCHACHA_NONCE_LEN: usize = 24;
const AES_SALT_LEN: usize = 32;

/// What a vault is called by machines: 16 random bytes, shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VaultId([u8; 16]);

impl VaultId {
    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// A new one.
    pub fn random(randomness: &dyn Randomness) -> Self {
        Self(random_array(randomness))
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for VaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for VaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vault {self}")
    }
}

impl TryFrom<String> for VaultId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 16];
        // One spelling only: what is authenticated is the spelling.
        if text.bytes().any(|b| b.is_ascii_uppercase()) || hex::decode_to_slice(&text, &mut bytes).is_err() {
            return Err("a vault id is 32 lower-case hex digits");
        }
        Ok(Self(bytes))
    }
}

impl From<VaultId> for String {
    fn from(id: VaultId) -> Self {
        id.to_string()
    }
}

/// How the frames of a vault are sealed; chosen when the vault is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Cipher {
    /// XChaCha20-Poly1305 with random 24-byte nonces: fast on every processor.
    #[default]
    #[serde(rename = "xchacha20-poly1305")]
    XChaCha20Poly1305,
    /// AES-256-GCM with a key made for each frame from a random 32-byte salt: fastest where the processor has AES.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
}

impl Cipher {
    /// What sealing adds to the length of a plaintext.
    pub const fn overhead(self) -> usize {
        match self {
            Self::XChaCha20Poly1305 => XCHACHA_NONCE_LEN + TAG_LEN,
            Self::Aes256Gcm => AES_SALT_LEN + TAG_LEN,
        }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::XChaCha20Poly1305 => "xchacha20-poly1305",
            Self::Aes256Gcm => "aes-256-gcm",
        })
    }
}

/// What a frame holds. Each has its own keys, so that a frame of one kind can never pass for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// One chunk of content.
    Chunk = 1,
    /// The directory of a pack.
    PackDirectory = 2,
    /// A segment of a device's log.
    Segment = 3,
    /// A checkpoint.
    Checkpoint = 4,
}

impl Purpose {
    const ALL: [Self; 4] = [Self::Chunk, Self::PackDirectory, Self::Segment, Self::Checkpoint];

    const fn context(self) -> &'static str {
        match self {
            Self::Chunk => "cairnfs 2026 vault v1: seal chunk",
            Self::PackDirectory => "cairnfs 2026 vault v1: seal pack directory",
            Self::Segment => "cairnfs 2026 vault v1: seal segment",
            Self::Checkpoint => "cairnfs 2026 vault v1: seal checkpoint",
        }
    }
}

/// Which frame of which object: authenticated with the frame, so that it cannot be moved.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// What it holds.
    pub purpose: Purpose,
    /// The epoch of the key.
    pub epoch: u32,
    /// Its number in its object, or the sequence number of the object.
    pub position: u64,
    /// What else it belongs to: a chunk id, a device.
    pub context: &'a [u8],
}

/// Why a frame did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The bytes are not what was sealed at this place with these keys.
    #[error("the sealed bytes are damaged or were moved")]
    Authentication,
    /// Sealed with keys of an epoch that this version does not know.
    #[error("sealed in key epoch {0}, which this version does not know; update cairn")]
    UnknownEpoch(u32),
}

type Key = Zeroizing<[u8; 32]>;

/// The keys of an unlocked vault. Cheap to clone.
#[derive(Clone)]
pub struct VaultKeys(Arc<Keyring>);

struct Keyring {
    vault: VaultId,
    cipher: Cipher,
    chunk_id: Key,
    content_id: Key,
    gear: Key,
    seal: [Key; Purpose::ALL.len()],
    randomness: Arc<dyn Randomness>,
}

impl fmt::Debug for VaultKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VaultKeys(..)")
    }
}

impl VaultKeys {
    /// Derives the keys of a vault from its master key.
    pub fn new(master: &[u8; 32], vault: VaultId, cipher: Cipher, randomness: Arc<dyn Randomness>) -> Self {
        let mut material = Zeroizing::new([0; 52]);
        material[..32].copy_from_slice(master);
        material[32..48].copy_from_slice(vault.as_bytes());
        material[48..].copy_from_slice(&FIRST_EPOCH.to_le_bytes());
        let lasting = |context| Zeroizing::new(blake3::derive_key(context, &material[..48]));
        Self(Arc::new(Keyring {
            vault,
            cipher,
            chunk_id: lasting("cairnfs 2026 vault v1: chunk id"),
            content_id: lasting("cairnfs 2026 vault v1: content id"),
            gear: lasting("cairnfs 2026 vault v1: gear table"),
            seal: Purpose::ALL.map(|purpose| Zeroizing::new(blake3::derive_key(purpose.context(), &material[..]))),
            randomness,
        }))
    }

    /// The vault.
    pub fn vault(&self) -> VaultId {
        self.0.vault
    }

    /// The vault's cipher.
    pub fn cipher(&self) -> Cipher {
        self.0.cipher
    }

    /// Where nonces come from.
    pub fn randomness(&self) -> &dyn Randomness {
        &*self.0.randomness
    }

    pub(crate) fn chunk_id_key(&self) -> &[u8; 32] {
        &self.0.chunk_id
    }

    pub(crate) fn content_id_key(&self) -> &[u8; 32] {
        &self.0.content_id
    }

    pub(crate) fn gear_key(&self) -> &[u8; 32] {
        &self.0.gear
    }

    /// Appends to `out` one frame that holds `parts`, one after the other.
    pub fn seal(&self, place: &Place<'_>, parts: &[&[u8]], out: &mut Vec<u8>) {
        let keyring = &*self.0;
        let plain_len: usize = parts.iter().map(|part| part.len()).sum();
        out.reserve(plain_len + keyring.cipher.overhead());
        let aad = self.associated_data(place);
        let key = self.key(place).expect("only places of a known epoch are sealed");
        let tag: [u8; TAG_LEN] = match keyring.cipher {
            Cipher::XChaCha20Poly1305 => {
                let nonce: [u8; XCHACHA_NONCE_LEN] = random_array(self.randomness());
                out.extend_from_slice(&nonce);
                XChaCha20Poly1305::new((&**key).into())
                    .encrypt_inout_detached(&nonce.into(), &aad, append(out, parts).into())
                    .map(Into::into)
            }
            Cipher::Aes256Gcm => {
                let salt: [u8; AES_SALT_LEN] = random_array(self.randomness());
                out.extend_from_slice(&salt);
                frame_cipher(key, &salt)
                    .encrypt_inout_detached(&frame_nonce(place).into(), &aad, append(out, parts).into())
                    .map(Into::into)
            }
        }
        .expect("a frame is far shorter than the limits of the ciphers");
        out.extend_from_slice(&tag);
    }

    /// The plaintext of a frame.
    ///
    /// # Errors
    /// [`CryptoError`] unless the frame is what [`Self::seal`] made for this place.
    pub fn open(&self, place: &Place<'_>, frame: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let key = self.key(place)?;
        let aad = self.associated_data(place);
        let (sealed, tag) = frame.split_last_chunk::<TAG_LEN>().ok_or(CryptoError::Authentication)?;
        let (plaintext, verdict) = match self.0.cipher {
            Cipher::XChaCha20Poly1305 => {
                let (nonce, body) = split_header::<XCHACHA_NONCE_LEN>(sealed)?;
                let mut plaintext = body.to_vec();
                let verdict = XChaCha20Poly1305::new((&**key).into()).decrypt_inout_detached(
                    &(*nonce).into(),
                    &aad,
                    plaintext.as_mut_slice().into(),
                    &(*tag).into(),
                );
                (plaintext, verdict)
            }
            Cipher::Aes256Gcm => {
                let (salt, body) = split_header::<AES_SALT_LEN>(sealed)?;
                let mut plaintext = body.to_vec();
                let verdict = frame_cipher(key, salt).decrypt_inout_detached(
                    &frame_nonce(place).into(),
                    &aad,
                    plaintext.as_mut_slice().into(),
                    &(*tag).into(),
                );
                (plaintext, verdict)
            }
        };
        verdict.map_err(|_| CryptoError::Authentication)?;
        Ok(plaintext)
    }

    fn key(&self, place: &Place<'_>) -> Result<&Key, CryptoError> {
        if place.epoch != FIRST_EPOCH {
            return Err(CryptoError::UnknownEpoch(place.epoch));
        }
        Ok(&self.0.seal[place.purpose as usize - 1])
    }

    fn associated_data(&self, place: &Place<'_>) -> Vec<u8> {
        let mut aad = Vec::with_capacity(29 + place.context.len());
        aad.extend_from_slice(self.0.vault.as_bytes());
        aad.push(place.purpose as u8);
        aad.extend_from_slice(&place.epoch.to_le_bytes());
        aad.extend_from_slice(&place.position.to_le_bytes());
        aad.extend_from_slice(place.context);
        aad
    }
}

/// Appends the parts and gives the place where they now lie.
fn append<'a>(out: &'a mut Vec<u8>, parts: &[&[u8]]) -> &'a mut [u8] {
    let start = out.len();
    for part in parts {
        out.extend_from_slice(part);
    }
    &mut out[start..]
}

fn split_header<const N: usize>(sealed: &[u8]) -> Result<(&[u8; N], &[u8]), CryptoError> {
    sealed.split_first_chunk::<N>().ok_or(CryptoError::Authentication)
}

fn frame_cipher(key: &Key, salt: &[u8; AES_SALT_LEN]) -> Aes256Gcm {
    let mut material = Zeroizing::new([0; 64]);
    material[..32].copy_from_slice(&**key);
    material[32..].copy_from_slice(salt);
    let mut frame_key = blake3::derive_key("cairnfs 2026 vault v1: frame key", &material[..]);
    let cipher = Aes256Gcm::new((&frame_key).into());
    frame_key.zeroize();
    cipher
}

fn frame_nonce(place: &Place<'_>) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&place.position.to_le_bytes());
    nonce
}
