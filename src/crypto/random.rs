//! Where random bytes come from: the operating system, or a seed when the bytes must be the same every time.

use parking_lot::Mutex;

/// A source of random bytes.
pub trait Randomness: Send + Sync {
    /// Fills the whole buffer with bytes that nobody can predict.
    fn fill(&self, buffer: &mut [u8]);
}

/// The operating system's generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandomness;

impl Randomness for SystemRandomness {
    fn fill(&self, buffer: &mut [u8]) {
        // Sealing with a nonce that is not random would break the cipher, so there is nothing to go on with.
        getrandom::fill(buffer).expect("the operating system provides random bytes");
    }
}

/// The same bytes for the same seed: for golden files and simulations, never for a vault that someone uses.
pub struct SeededRandomness(Mutex<blake3::OutputReader>);

impl SeededRandomness {
    /// A generator that starts from `seed`.
    pub fn new(seed: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("cairnfs 2026 seeded randomness, not secret");
        hasher.update(seed.as_bytes());
        Self(Mutex::new(hasher.finalize_xof()))
    }
}

impl Randomness for SeededRandomness {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.lock().fill(buffer);
    }
}

/// A random array.
pub(crate) fn random_array<const N: usize>(randomness: &dyn Randomness) -> [u8; N] {
    let mut bytes = [0; N];
    randomness.fill(&mut bytes);
    bytes
}
