//! Checkpoints: the whole tree at a point, so that a new device need not read every log from its beginning.
//!
//! The tree's rows are one stream of bytes that is cut and stored as chunks like content; the checkpoint's object lists
//! those chunks, says where they lie, and which segments are in it.

use bytes::Bytes;

use super::envelope::{self, BODY_MAX, Label};
use super::error::VaultError;
use super::segment::{decode_locations, encode_locations, read_device};
use super::{SegmentHash, paths};
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::{ChangeId, DeviceId};
use crate::chunk::{ChunkId, ChunkLocation, Manifest};
use crate::crypto::{Purpose, VaultKeys};

const MAGIC: &[u8; 8] = b"cairnchk";
const VERSION: u8 = 1;
const DEVICES_MAX: usize = 1 << 16;

/// Up to where a checkpoint has the log of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Covered {
    /// The device.
    pub device: DeviceId,
    /// Its newest segment that is in the checkpoint.
    pub seq: u64,
    /// The hash of that segment.
    pub hash: SegmentHash,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The author.
    pub device: DeviceId,
    /// Its number among the checkpoints of the author.
    pub seq: u64,
    /// What is in it, by device.
    pub covers: Vec<Covered>,
    /// The greatest id of a change set that is in it.
    pub newest: ChangeId,
    /// The chunks of the stream of rows.
    pub rows: Manifest,
    /// Where those chunks lie.
    pub chunks: Vec<(ChunkId, ChunkLocation)>,
}

impl Checkpoint {
    /// The object.
    ///
    /// # Errors
    /// [`VaultError::TooLarge`].
    pub fn seal(&self, keys: &VaultKeys) -> Result<Bytes, VaultError> {
        let object = || paths::checkpoint(self.device, self.seq);
        let body = self.encode();
        if body.len() > BODY_MAX {
            return Err(VaultError::TooLarge { object: object().to_string(), length: body.len(), limit: BODY_MAX });
        }
        envelope::seal(keys, label(self.device, self.seq), &body).map_err(|damage| damage.of(object()))
    }

    /// The checkpoint in an object that was read from the path of `device` and `seq`.
    ///
    /// # Errors
    /// [`VaultError::Damaged`].
    pub fn open(keys: &VaultKeys, device: DeviceId, seq: u64, object: &[u8]) -> Result<Self, VaultError> {
        let opened = envelope::open(keys, label(device, seq), object).and_then(|body| {
            let checkpoint = Self::decode(&body)?;
            if (checkpoint.device, checkpoint.seq) == (device, seq) {
                Ok(checkpoint)
            } else {
                Err(DecodeError::Invalid("the author").into())
            }
        });
        opened.map_err(|damage| damage.of(paths::checkpoint(device, seq)))
    }

    /// The plaintext of a checkpoint.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(VERSION);
        writer.u32(self.device.0);
        writer.u64(self.seq);
        writer.length(self.covers.len());
        for covered in &self.covers {
            writer.u32(covered.device.0);
            writer.varint(covered.seq);
            writer.raw(&covered.hash);
        }
        writer.raw(&self.newest.to_bytes());
        writer.bytes(&self.rows.encode());
        encode_locations(&self.chunks, &mut writer);
        writer.into_vec()
    }

    /// The inverse of [`Self::encode`].
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        reader.version(VERSION, "the checkpoint")?;
        let device = read_device(&mut reader)?;
        let seq = reader.u64("the number of the checkpoint")?;
        let mut covers: Vec<Covered> = Vec::new();
        for _ in 0..reader.count(DEVICES_MAX, "number of devices")? {
            let covered = Covered {
                device: read_device(&mut reader)?,
                seq: reader.varint("the number of a segment")?,
                hash: reader.array("the hash of a segment")?,
            };
            if covers.last().is_some_and(|last| last.device >= covered.device) {
                return Err(DecodeError::Invalid("the order of the devices"));
            }
            covers.push(covered);
        }
        let newest = ChangeId::from_bytes(reader.array("the id of a change set")?);
        let rows = Manifest::decode(reader.bytes(BODY_MAX, "a list of chunks")?)?;
        let chunks = decode_locations(&mut reader)?;
        reader.finish()?;
        Ok(Self { device, seq, covers, newest, rows, chunks })
    }
}

fn label(device: DeviceId, seq: u64) -> Label {
    Label { magic: MAGIC, purpose: Purpose::Checkpoint, device, seq }
}
