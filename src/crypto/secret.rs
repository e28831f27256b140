//! What a person or a machine unlocks a vault with.

use std::fmt;

use bip39::{Language, Mnemonic};
use zeroize::{Zeroize, Zeroizing};

use super::{Randomness, random_array};

/// A passphrase, key file or recovery phrase. `Debug` says which, and nothing else.
#[derive(Clone)]
pub enum Secret {
    /// Words a person made up; made expensive to guess by Argon2id.
    Passphrase(Zeroizing<String>),
    /// The 32 random bytes of a key file.
    KeyFile(Zeroizing<[u8; 32]>),
    /// The 32 random bytes that 24 BIP39 words stand for.
    RecoveryPhrase(Zeroizing<[u8; 32]>),
}

/// Why a text or file is not a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The passphrase is empty.
    #[error("the passphrase is empty")]
    EmptyPassphrase,
    /// Neither 32 bytes nor 64 hex digits.
    #[error("a key file holds 64 hex digits or 32 bytes, and this one does not")]
    NotAKeyFile,
    /// Not 24 words of the list, or the checksum in them is wrong.
    #[error("this is not a recovery phrase: it has 24 English words, and a typing error in them is noticed")]
    NotARecoveryPhrase,
}

impl Secret {
    /// A passphrase, kept exactly as it is. One that is also a recovery phrase opens what either would open.
    ///
    /// # Errors
    /// [`SecretError::EmptyPassphrase`].
    pub fn passphrase(text: &str) -> Result<Self, SecretError> {
        if text.is_empty() {
            return Err(SecretError::EmptyPassphrase);
        }
        Ok(Self::Passphrase(Zeroizing::new(text.to_owned())))
    }

    /// The content of a key file: 64 hex digits and white space around them, or 32 bytes.
    ///
    /// # Errors
    /// [`SecretError::NotAKeyFile`].
    pub fn key_file(content: &[u8]) -> Result<Self, SecretError> {
        let mut key = Zeroizing::new([0; 32]);
        if content.len() == key.len() {
            key.copy_from_slice(content);
        } else {
            hex::decode_to_slice(content.trim_ascii(), &mut key[..]).map_err(|_| SecretError::NotAKeyFile)?;
        }
        Ok(Self::KeyFile(key))
    }

    /// 24 BIP39 words, in any case, with any white space between them.
    ///
    /// # Errors
    /// [`SecretError::NotARecoveryPhrase`].
    pub fn recovery_phrase(words: &str) -> Result<Self, SecretError> {
        recovery_key(words).map(Self::RecoveryPhrase).ok_or(SecretError::NotARecoveryPhrase)
    }

    /// A new key file secret.
    pub fn new_key_file(randomness: &dyn Randomness) -> Self {
        Self::KeyFile(Zeroizing::new(random_array(randomness)))
    }

    /// A new recovery phrase.
    pub fn new_recovery_phrase(randomness: &dyn Randomness) -> Self {
        Self::RecoveryPhrase(Zeroizing::new(random_array(randomness)))
    }

    /// What to write down or to store: the passphrase, the line of a key file, the 24 words.
    pub fn reveal(&self) -> Zeroizing<String> {
        match self {
            Self::Passphrase(text) => text.clone(),
            Self::KeyFile(key) => {
                let mut text = hex::encode(&key[..]);
                text.push('\n');
                Zeroizing::new(text)
            }
            Self::RecoveryPhrase(key) => {
                let words = Mnemonic::from_entropy_in(Language::English, &key[..]).expect("32 bytes make 24 words");
                Zeroizing::new(words.to_string())
            }
        }
    }

    /// The key that this secret is or, for a passphrase, that it spells.
    pub(crate) fn as_key(&self) -> Option<Zeroizing<[u8; 32]>> {
        match self {
            Self::Passphrase(text) => recovery_key(text),
            Self::KeyFile(key) | Self::RecoveryPhrase(key) => Some(key.clone()),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passphrase(_) => "Passphrase(..)",
            Self::KeyFile(_) => "KeyFile(..)",
            Self::RecoveryPhrase(_) => "RecoveryPhrase(..)",
        })
    }
}

fn recovery_key(words: &str) -> Option<Zeroizing<[u8; 32]>> {
    let lower = Zeroizing::new(words.to_ascii_lowercase());
    let mnemonic = Mnemonic::parse_in_normalized(Language::English, &lower).ok()?;
    let (mut entropy, len) = mnemonic.to_entropy_array();
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(&entropy[..32]);
    entropy.zeroize();
    (len == 32).then_some(key)
}
