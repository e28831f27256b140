//! Segments: what one device publishes at a time.

use std::collections::HashMap;

use bytes::Bytes;

use super::envelope::{self, BODY_MAX, Label};
use super::error::VaultError;
use super::{SegmentHash, paths};
use crate::base::DeviceId;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::chunk::{ChunkId, ChunkLocation, ContentId, Manifest, PackId};
use crate::crypto::{Purpose, VaultKeys};

const MAGIC: &[u8; 8] = b"cairnseg";
const VERSION: u8 = 1;
const NAME_MAX: usize = 255;
/// More devices than a vault ever had.
const DEVICES_MAX: usize = 1 << 16;

/// Where the list of chunks of a content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestRef {
    /// In the segment.
    Inline(Manifest),
    /// In chunks: the content that they make is the encoded manifest.
    Chunked(Manifest),
}

/// A segment of a device's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The author.
    pub device: DeviceId,
    /// Its number in the log of the author; the first is 1.
    pub seq: u64,
    /// The hash of the segment before; zeros for the first.
    pub previous: SegmentHash,
    /// The newest segment of each other device that the author had applied, by device.
    pub seen: Vec<(DeviceId, u64)>,
    /// What people call the author.
    pub device_name: String,
    /// Encoded change sets, in order; the tree knows what is in them.
    pub change_sets: Vec<Bytes>,
    /// The contents that the change sets name and no earlier segment defined.
    pub manifests: Vec<(ContentId, ManifestRef)>,
    /// Where the chunks lie that were stored since the previous segment.
    pub chunks: Vec<(ChunkId, ChunkLocation)>,
}

impl Segment {
    /// The longest encoding. Readers hold a segment in memory, so it is better to publish many that are far shorter.
    pub const BODY_MAX: usize = BODY_MAX;

    /// The object and its hash.
    ///
    /// # Errors
    /// [`VaultError::TooLarge`] above [`Self::BODY_MAX`].
    pub fn seal(&self, keys: &VaultKeys) -> Result<(Bytes, SegmentHash), VaultError> {
        self.seal_within(BODY_MAX, keys)
    }

    pub(super) fn seal_within(&self, limit: usize, keys: &VaultKeys) -> Result<(Bytes, SegmentHash), VaultError> {
        let object = || paths::segment(self.device, self.seq);
        let body = self.encode();
        if body.len() > limit {
            return Err(VaultError::TooLarge { object: object().to_string(), length: body.len(), limit });
        }
        let bytes = envelope::seal(keys, label(self.device, self.seq), &body).map_err(|damage| damage.of(object()))?;
        let hash = Self::hash(&bytes);
        Ok((bytes, hash))
    }

    /// The segment in an object that was read from the path of `device` and `seq`.
    ///
    /// # Errors
    /// [`VaultError::Damaged`].
    pub fn open(keys: &VaultKeys, device: DeviceId, seq: u64, object: &[u8]) -> Result<Self, VaultError> {
        let opened = envelope::open(keys, label(device, seq), object).and_then(|body| {
            let segment = Self::decode(&body)?;
            if (segment.device, segment.seq) == (device, seq) {
                Ok(segment)
            } else {
                Err(DecodeError::Invalid("the author").into())
            }
        });
        opened.map_err(|damage| damage.of(paths::segment(device, seq)))
    }

    /// What the next segment names the one in `object` by.
    pub fn hash(object: &[u8]) -> SegmentHash {
        *blake3::hash(object).as_bytes()
    }

    /// The plaintext of a segment.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(VERSION);
        writer.u32(self.device.0);
        writer.u64(self.seq);
        writer.raw(&self.previous);
        writer.bytes(name_within_limit(&self.device_name).as_bytes());
        writer.length(self.seen.len());
        for (device, seq) in &self.seen {
            writer.u32(device.0);
            writer.varint(*seq);
        }
        writer.length(self.change_sets.len());
        self.change_sets.iter().for_each(|change_set| writer.bytes(change_set));
        writer.length(self.manifests.len());
        for (id, manifest) in &self.manifests {
            writer.raw(&id.0);
            let (tag, manifest) = match manifest {
                ManifestRef::Inline(manifest) => (0, manifest),
                ManifestRef::Chunked(manifest) => (1, manifest),
            };
            writer.u8(tag);
            writer.bytes(&manifest.encode());
        }
        encode_locations(&self.chunks, &mut writer);
        writer.into_vec()
    }

    /// The inverse of [`Self::encode`].
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        reader.version(VERSION, "the segment")?;
        let device = read_device(&mut reader)?;
        let seq = reader.u64("the number of the segment")?;
        let previous = reader.array("the hash of the segment before")?;
        let name = reader.bytes(NAME_MAX, "the name of the device")?;
        let device_name =
            std::str::from_utf8(name).map_err(|_| DecodeError::Invalid("the name of the device"))?.to_owned();
        let mut seen: Vec<(DeviceId, u64)> = Vec::new();
        for _ in 0..reader.count(DEVICES_MAX, "number of devices")? {
            let other = read_device(&mut reader)?;
            if seen.last().is_some_and(|(last, _)| *last >= other) {
                return Err(DecodeError::Invalid("the order of the devices"));
            }
            seen.push((other, reader.varint("the number of a segment")?));
        }
        let mut change_sets = Vec::new();
        for _ in 0..reader.count(BODY_MAX, "number of change sets")? {
            change_sets.push(Bytes::copy_from_slice(reader.bytes(BODY_MAX, "a change set")?));
        }
        let mut manifests = Vec::new();
        for _ in 0..reader.count(BODY_MAX, "number of contents")? {
            let id = ContentId(reader.array("content id")?);
            let tag = reader.u8("the kind of a list of chunks")?;
            let manifest = Manifest::decode(reader.bytes(BODY_MAX, "a list of chunks")?)?;
            manifests.push((
                id,
                match tag {
                    0 => ManifestRef::Inline(manifest),
                    1 => ManifestRef::Chunked(manifest),
                    _ => return Err(DecodeError::Invalid("the kind of a list of chunks")),
                },
            ));
        }
        let chunks = decode_locations(&mut reader)?;
        reader.finish()?;
        Ok(Self { device, seq, previous, seen, device_name, change_sets, manifests, chunks })
    }
}

fn label(device: DeviceId, seq: u64) -> Label {
    Label { magic: MAGIC, purpose: Purpose::Segment, device, seq }
}

/// As much of a name as a segment takes, cut between characters.
fn name_within_limit(name: &str) -> &str {
    let mut end = name.len().min(NAME_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

pub(super) fn read_device(reader: &mut Reader<'_>) -> Result<DeviceId, DecodeError> {
    let device = DeviceId(reader.u32("a device")?);
    if device.is_valid() { Ok(device) } else { Err(DecodeError::Invalid("a device")) }
}

/// Writes locations with each pack once.
pub(super) fn encode_locations(chunks: &[(ChunkId, ChunkLocation)], writer: &mut Writer) {
    let mut numbers: HashMap<(PackId, u32), usize> = HashMap::new();
    let mut packs = Vec::new();
    for (_, location) in chunks {
        numbers.entry((location.pack, location.epoch)).or_insert_with(|| {
            packs.push((location.pack, location.epoch));
            packs.len() - 1
        });
    }
    writer.length(packs.len());
    for (pack, epoch) in &packs {
        writer.raw(&pack.0);
        writer.varint(u64::from(*epoch));
    }
    writer.length(chunks.len());
    for (id, location) in chunks {
        writer.length(numbers[&(location.pack, location.epoch)]);
        writer.raw(&id.0);
        location.encode_in_pack(writer);
    }
}

/// Reads what [`encode_locations`] wrote.
pub(super) fn decode_locations(reader: &mut Reader<'_>) -> Result<Vec<(ChunkId, ChunkLocation)>, DecodeError> {
    let mut packs = Vec::new();
    for _ in 0..reader.count(BODY_MAX, "number of packs")? {
        let pack = PackId(reader.array("pack id")?);
        let epoch = u32::try_from(reader.varint("key epoch")?).map_err(|_| DecodeError::Invalid("key epoch"))?;
        packs.push((pack, epoch));
    }
    let mut chunks = Vec::new();
    for _ in 0..reader.count(BODY_MAX, "number of chunks")? {
        let number = reader.varint("number of a pack")?;
        let pack = usize::try_from(number).ok().and_then(|number| packs.get(number));
        let (pack, epoch) = pack.ok_or(DecodeError::Invalid("number of a pack"))?;
        let id = ChunkId(reader.array("chunk id")?);
        chunks.push((id, ChunkLocation::decode_in_pack(reader, *pack, *epoch)?));
    }
    Ok(chunks)
}
