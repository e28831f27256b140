//! Segments and checkpoints as objects: a header in the clear, and one frame that holds the compressed body and padding.

use bytes::Bytes;

use super::Damage;
use crate::base::DeviceId;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::chunk::{Compressor, Encoding, decompress};
use crate::crypto::{CryptoError, FIRST_EPOCH, Place, Purpose, VaultKeys};

pub(super) const VERSION: u16 = 1;
/// Magic, version, two bytes of zero, epoch.
pub(super) const HEADER_LEN: usize = 16;
/// Fixed, so that a device's log does not depend on settings.
const LEVEL: i32 = 3;

/// The longest body, before compression: a change of a million files at once. Bounds the memory that reading one object takes.
pub(super) const BODY_MAX: usize = 256 << 20;
/// The longest object: what does not get smaller, with padding.
pub(super) const STORED_MAX: usize = BODY_MAX + BODY_MAX / 4;

/// Which kind of object, and which one.
#[derive(Clone, Copy)]
pub(super) struct Label {
    pub(super) magic: &'static [u8; 8],
    pub(super) purpose: Purpose,
    pub(super) device: DeviceId,
    pub(super) seq: u64,
}

impl Label {
    /// What the frame is bound to, given the bytes of the device.
    fn place<'a>(&self, epoch: u32, device: &'a [u8; 4]) -> Place<'a> {
        Place { purpose: self.purpose, epoch, position: self.seq, context: device }
    }
}

/// The header of a pack, segment or checkpoint.
pub(super) fn header(magic: &[u8; 8], epoch: u32) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(magic);
    header[8..10].copy_from_slice(&VERSION.to_le_bytes());
    header[12..].copy_from_slice(&epoch.to_le_bytes());
    header
}

/// The epoch in a header.
pub(super) fn read_header(reader: &mut Reader<'_>, magic: &[u8; 8]) -> Result<u32, DecodeError> {
    if reader.array::<8>("the header")? != *magic {
        return Err(DecodeError::Invalid("the header"));
    }
    let version = reader.u16("the header")?;
    if version > VERSION {
        let version = u8::try_from(version).unwrap_or(u8::MAX);
        return Err(DecodeError::Version { what: "the object", version });
    }
    if version != VERSION || reader.u16("the header")? != 0 {
        return Err(DecodeError::Invalid("the header"));
    }
    reader.u32("the header")
}

/// The object that holds `body`.
pub(super) fn seal(keys: &VaultKeys, label: Label, body: &[u8]) -> Result<Bytes, Damage> {
    let (encoding, stored) = Compressor::new(LEVEL)?.compress(body)?;
    let mut prefix = Writer::new();
    prefix.u8(encoding as u8);
    prefix.varint(body.len() as u64);
    prefix.varint(stored.len() as u64);
    let fixed = HEADER_LEN + keys.cipher().overhead();
    let len = fixed + prefix.len() + stored.len();
    let padding = vec![0; padded(len) - len];
    let mut object = Vec::with_capacity(len + padding.len());
    object.extend_from_slice(&header(label.magic, FIRST_EPOCH));
    keys.seal(
        &label.place(FIRST_EPOCH, &label.device.0.to_le_bytes()),
        &[prefix.as_slice(), &stored, &padding],
        &mut object,
    );
    Ok(object.into())
}

/// The body of an object.
pub(super) fn open(keys: &VaultKeys, label: Label, object: &[u8]) -> Result<Vec<u8>, Damage> {
    if object.len() > STORED_MAX {
        return Err(CryptoError::Authentication.into());
    }
    let mut reader = Reader::new(object);
    let epoch = read_header(&mut reader, label.magic)?;
    let plaintext = keys.open(&label.place(epoch, &label.device.0.to_le_bytes()), reader.rest())?;
    let mut reader = Reader::new(&plaintext);
    let encoding = Encoding::from_byte(reader.u8("the encoding")?).ok_or(DecodeError::Invalid("the encoding"))?;
    let length = reader.varint("the length")?;
    let body_len = usize::try_from(length).ok().filter(|length| *length <= BODY_MAX).ok_or(DecodeError::TooLong {
        what: "the body",
        length,
        limit: BODY_MAX,
    })?;
    let stored = reader.bytes(STORED_MAX, "the stored length")?;
    if reader.rest().iter().any(|byte| *byte != 0) {
        return Err(DecodeError::Invalid("the padding").into());
    }
    Ok(decompress(encoding, stored, body_len)?)
}

/// The length that an object of `len` bytes is padded to: at most an eighth more, and of all lengths up to `2^n` only `O(log n)`
/// bits are left to tell objects apart by (Padmé; Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and
/// Communication with PURBs", 2019).
pub(super) fn padded(len: usize) -> usize {
    let Some(exponent) = len.checked_ilog2().filter(|exponent| *exponent > 0) else { return len };
    let kept = exponent.ilog2() + 1;
    let mask = (1usize << exponent.saturating_sub(kept)) - 1;
    (len + mask) & !mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_costs_at_most_an_eighth_and_leaves_few_lengths() {
        let mut lengths = std::collections::BTreeSet::new();
        for len in 1..100_000 {
            let padded = padded(len);
            assert!(padded >= len && padded - len <= len / 8, "{len} -> {padded}");
            lengths.insert(padded);
        }
        assert!(lengths.len() < 200, "{}", lengths.len());
    }
}
