//! What is remembered of a backing file.

use cairn_platform_api::Timestamp;

use super::{RangeSet, Stamp};
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::chunk::ContentId;

/// What a backing file holds of a published content. Of a local file: the content it equals as long as it has a stamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRow {
    /// The content.
    pub content: ContentId,
    /// The length of the content.
    pub size: u64,
    /// How much of it is in the backing file.
    pub presence: Presence,
}

/// How much of a content is in a backing file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// All of it, as long as the file has this stamp.
    Complete(Stamp),
    /// These bytes of the backing file are valid; the others of the content's length are holes that stand for the content.
    /// Only bytes that were synced may be claimed: a range that a power loss took away would read as zeros. Never so of a local
    /// file.
    Partial(RangeSet),
}

const VERSION: u8 = 1;
const COMPLETE: u8 = 0;
const PARTIAL: u8 = 1;
/// More ranges than a file is ever left with; a bound for the decoder.
const RANGES_MAX: usize = 1 << 24;

impl CacheRow {
    /// The value of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(VERSION);
        writer.raw(&self.content.0);
        writer.varint(self.size);
        match &self.presence {
            Presence::Complete(stamp) => {
                writer.u8(COMPLETE);
                writer.varint(stamp.size);
                writer.i64(stamp.mtime.as_nanos());
                writer.i64(stamp.ctime.as_nanos());
            }
            Presence::Partial(ranges) => {
                writer.u8(PARTIAL);
                writer.length(ranges.iter().len());
                let mut at = 0;
                for range in ranges.iter() {
                    writer.varint(range.start - at);
                    writer.varint(range.end - range.start);
                    at = range.end;
                }
            }
        }
        writer.into_vec()
    }

    /// Reads the value of the row.
    ///
    /// # Errors
    /// The bytes are not such a row.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.version(VERSION, "cache row")?;
        let content = ContentId(reader.array("content id")?);
        let size = reader.varint("content size")?;
        let presence = match reader.u8("presence")? {
            COMPLETE => Presence::Complete(Stamp {
                size: reader.varint("stamp size")?,
                mtime: Timestamp::from_nanos(reader.i64("stamp mtime")?),
                ctime: Timestamp::from_nanos(reader.i64("stamp ctime")?),
            }),
            PARTIAL => {
                let mut ranges = RangeSet::default();
                let mut at = 0_u64;
                for _ in 0..reader.count(RANGES_MAX, "range count")? {
                    let start = at.checked_add(reader.varint("range start")?);
                    let start = start.ok_or(DecodeError::Invalid("range start"))?;
                    let end = start.checked_add(reader.varint("range length")?);
                    at = end.ok_or(DecodeError::Invalid("range length"))?;
                    ranges.insert(start..at);
                }
                Presence::Partial(ranges)
            }
            _ => return Err(DecodeError::Invalid("presence")),
        };
        reader.finish()?;
        Ok(Self { content, size, presence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip_and_damaged_ones_are_refused() {
        let stamp = Stamp { size: 9, mtime: Timestamp::from_nanos(-4), ctime: Timestamp::from_nanos(1 << 60) };
        let ranges = RangeSet::from_iter([5..10, 700..u64::MAX]);
        for presence in [Presence::Complete(stamp), Presence::Partial(ranges), Presence::Partial(RangeSet::default())] {
            let row = CacheRow { content: ContentId([7; 32]), size: 300, presence };
            let bytes = row.encode();
            assert_eq!(CacheRow::decode(&bytes).as_ref(), Ok(&row));
            for cut in 0..bytes.len() {
                assert!(CacheRow::decode(&bytes[..cut]).is_err());
            }
        }
    }
}
