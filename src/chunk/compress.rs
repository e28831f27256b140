//! zstd, and leaving alone what does not get smaller.

use std::borrow::Cow;

/// How the bytes in a frame encode the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As they are.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

impl Encoding {
    /// From the byte that stands for it.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Why bytes could not be compressed or decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// zstd gave up.
    #[error("zstd failed")]
    Zstd(#[source] std::io::Error),
    /// The bytes do not decompress to the expected length.
    #[error("the compressed bytes do not hold {expected} bytes")]
    Length {
        /// The length that was promised.
        expected: usize,
    },
}

/// Below this length, a trial costs as much as compressing.
const TRIAL_FROM: usize = 64 << 10;
/// Three of these are tried, from the start, the middle and the end.
const TRIAL_PIECE: usize = 8 << 10;

/// Compresses chunk after chunk with one context. Not shared between threads: each makes its own.
pub struct Compressor {
    full: zstd::bulk::Compressor<'static>,
    trial: zstd::bulk::Compressor<'static>,
    sample: Vec<u8>,
    trial_out: Vec<u8>,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor")
    }
}

impl Compressor {
    /// A compressor with a zstd level.
    ///
    /// # Errors
    /// [`CompressionError::Zstd`] when zstd cannot be set up.
    pub fn new(level: i32) -> Result<Self, CompressionError> {
        Ok(Self {
            full: zstd::bulk::Compressor::new(level).map_err(CompressionError::Zstd)?,
            trial: zstd::bulk::Compressor::new(1).map_err(CompressionError::Zstd)?,
            sample: Vec::with_capacity(3 * TRIAL_PIECE),
            trial_out: Vec::with_capacity(zstd::zstd_safe::compress_bound(3 * TRIAL_PIECE)),
        })
    }

    /// The bytes to store: compressed when that saves at least a sixteenth, else as they are.
    ///
    /// # Errors
    /// [`CompressionError::Zstd`].
    pub fn compress<'a>(&mut self, plaintext: &'a [u8]) -> Result<(Encoding, Cow<'a, [u8]>), CompressionError> {
        if plaintext.len() >= TRIAL_FROM && !self.trial_saves(plaintext)? {
            return Ok((Encoding::Raw, Cow::Borrowed(plaintext)));
        }
        let compressed = self.full.compress(plaintext).map_err(CompressionError::Zstd)?;
        if saves(plaintext.len(), compressed.len()) {
            Ok((Encoding::Zstd, Cow::Owned(compressed)))
        } else {
            Ok((Encoding::Raw, Cow::Borrowed(plaintext)))
        }
    }

    fn trial_saves(&mut self, plaintext: &[u8]) -> Result<bool, CompressionError> {
        self.sample.clear();
        for start in [0, plaintext.len() / 2, plaintext.len() - TRIAL_PIECE] {
            self.sample.extend_from_slice(&plaintext[start..start + TRIAL_PIECE]);
        }
        self.trial_out.clear();
        let len = self.trial.compress_to_buffer(&self.sample, &mut self.trial_out).map_err(CompressionError::Zstd)?;
        Ok(saves(self.sample.len(), len))
    }
}

fn saves(before: usize, after: usize) -> bool {
    after < before - before / 16
}

/// The plaintext of `encoded`, which must be exactly `plain_len` bytes; memory use is bounded by that.
///
/// # Errors
/// [`CompressionError`] when the bytes hold anything else.
pub fn decompress(encoding: Encoding, encoded: &[u8], plain_len: usize) -> Result<Vec<u8>, CompressionError> {
    let plaintext = match encoding {
        Encoding::Raw => encoded.to_vec(),
        Encoding::Zstd => zstd::bulk::decompress(encoded, plain_len).map_err(CompressionError::Zstd)?,
    };
    if plaintext.len() == plain_len { Ok(plaintext) } else { Err(CompressionError::Length { expected: plain_len }) }
}
