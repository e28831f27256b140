//! Where a chunk lies.

use std::ops::Range;

use super::PackId;
use super::manifest::chunk_len;
use crate::base::codec::{DecodeError, Reader, Writer};

/// Everything that reading one chunk takes, beside its id: one range of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkLocation {
    /// The pack.
    pub pack: PackId,
    /// Where the frame begins in the pack, in bytes.
    pub offset: u32,
    /// Length of the frame in bytes.
    pub sealed_len: u32,
    /// Length of the chunk in bytes.
    pub plain_len: u32,
    /// The number of the frame in the pack.
    pub index: u32,
    /// The key epoch.
    pub epoch: u32,
}

impl ChunkLocation {
    /// The bytes of the pack to read.
    pub fn range(&self) -> Range<u64> {
        let start = u64::from(self.offset);
        start..start + u64::from(self.sealed_len)
    }

    /// Writes the location, pack id included.
    pub fn encode(&self, writer: &mut Writer) {
        writer.raw(&self.pack.0);
        writer.varint(u64::from(self.epoch));
        self.encode_in_pack(writer);
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let pack = PackId(reader.array("pack id")?);
        let epoch = number(reader.varint("key epoch")?, "key epoch")?;
        Self::decode_in_pack(reader, pack, epoch)
    }

    /// Writes what is left when the pack and its epoch are known.
    pub(crate) fn encode_in_pack(&self, writer: &mut Writer) {
        for value in [self.index, self.offset, self.sealed_len, self.plain_len] {
            writer.varint(u64::from(value));
        }
    }

    /// Reads what [`Self::encode_in_pack`] wrote.
    pub(crate) fn decode_in_pack(reader: &mut Reader<'_>, pack: PackId, epoch: u32) -> Result<Self, DecodeError> {
        let index = reader.varint("number of a frame")?;
        let offset = reader.varint("offset of a frame")?;
        let sealed_len = reader.varint("length of a frame")?;
        Self::checked(pack, epoch, [index, offset, sealed_len, reader.varint("length of a chunk")?])
    }

    /// A location with this index, offset, length of the frame and length of the chunk, if they make sense.
    pub(crate) fn checked(pack: PackId, epoch: u32, numbers: [u64; 4]) -> Result<Self, DecodeError> {
        let [index, offset, sealed_len, plain_len] = numbers;
        let index = number(index, "number of a frame")?;
        let offset = number(offset, "offset of a frame")?;
        let sealed_len = number(sealed_len, "length of a frame")?;
        let plain_len = chunk_len(plain_len)?;
        // A frame is never longer than the chunk and 64 bytes: what does not get smaller is stored as it is.
        if sealed_len > plain_len + 64 || offset.checked_add(sealed_len).is_none() {
            return Err(DecodeError::Invalid("length of a frame"));
        }
        Ok(Self { pack, offset, sealed_len, plain_len, index, epoch })
    }
}

pub(crate) fn number(value: u64, what: &'static str) -> Result<u32, DecodeError> {
    u32::try_from(value).map_err(|_| DecodeError::Invalid(what))
}
