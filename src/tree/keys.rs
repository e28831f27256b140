//! The keys of all rows of a drive: one family byte, a big-endian `u64`, and what else it takes.

use cairn_platform_api::{InodeNo, VfsName};

use super::DentryId;
use crate::base::{ChangeId, DeviceId};
use crate::chunk::{ChunkId, ContentId, PackId};

/// The families of rows. Those of the namespace are the state that the fold makes, and are undone and redone; the others
/// never are.
pub mod family {
    /// Namespace: inodes by number.
    pub const INODE: u8 = b'I';
    /// Namespace: dentries by parent and name.
    pub const NAME: u8 = b'N';
    /// Namespace: places by inode and dentry.
    pub const LINK: u8 = b'L';
    /// Namespace: removed inodes by number.
    pub const GRAVE: u8 = b'G';
    /// Namespace: directories that were merged into another.
    pub const ALIAS: u8 = b'A';
    /// Namespace: names of devices.
    pub const AUTHOR: u8 = b'D';
    /// What rows of the namespace were when they were last published.
    pub const PREIMAGE: u8 = b'P';
    /// Change sets by id.
    pub const LOG: u8 = b'S';
    /// What rows were before a change set was applied.
    pub const UNDO: u8 = b'U';
    /// Lists of chunks by content id.
    pub const MANIFEST: u8 = b'M';
    /// Lists of chunks that are stored as chunks and could not be read yet: the list of those, by content id.
    pub const WANTED: u8 = b'W';
    /// Where chunks lie, by chunk id.
    pub const CHUNK: u8 = b'C';
    /// Packs that are uploaded and in no segment yet.
    pub const PACK: u8 = b'K';
    /// What was uploaded of an inode's local content.
    pub const SNAPSHOT: u8 = b'T';
    /// Which ranges of an inode's content are here.
    pub const CACHE: u8 = b'E';
    /// Contents that a fold replaced while somebody could still write to them.
    pub const REPLACED: u8 = b'V';
    /// How far the log of another device was read.
    pub const CURSOR: u8 = b'R';
    /// Segments to be sent, by sequence number.
    pub const OUTBOX: u8 = b'O';
    /// Rows of the root directory that a checkpoint being loaded has: they are put in place last.
    pub const ASIDE: u8 = b'J';
    /// Packs of rows of a checkpoint that is being written.
    pub const ROWS_PACK: u8 = b'Q';
    /// The drive itself: singular rows.
    pub const META: u8 = b'Z';
    /// Blocks of inode and dentry numbers that were given out.
    pub const BLOCK: u8 = b'B';
}

/// A key of a family and a number; alone, or the prefix of a group.
pub fn numbered(family: u8, number: u64) -> [u8; 9] {
    let mut key = [family; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

/// A key of a family and a number, with more bytes after it.
pub fn extended(family: u8, number: u64, more: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + more.len());
    key.extend_from_slice(&numbered(family, number));
    key.extend_from_slice(more);
    key
}

/// An inode's row.
pub fn inode(ino: InodeNo) -> [u8; 9] {
    numbered(family::INODE, ino.0)
}

/// The row of a name in a directory.
pub fn name(parent: InodeNo, name: &VfsName) -> Vec<u8> {
    extended(family::NAME, parent.0, name.as_bytes())
}

/// The row of a dentry's place.
pub fn link(ino: InodeNo, dentry: DentryId) -> Vec<u8> {
    extended(family::LINK, ino.0, &dentry.0.to_be_bytes())
}

/// A removed inode's row.
pub fn grave(ino: InodeNo) -> [u8; 9] {
    numbered(family::GRAVE, ino.0)
}

/// The row of a content that was set aside under a number of its own.
pub fn aside(number: InodeNo) -> [u8; 9] {
    numbered(family::REPLACED, number.0)
}

/// The row of a directory that was merged into another.
pub fn alias(ino: InodeNo) -> [u8; 9] {
    numbered(family::ALIAS, ino.0)
}

/// The row of a device's name.
pub fn author(device: DeviceId) -> [u8; 9] {
    numbered(family::AUTHOR, device.0.into())
}

/// The pre-image row of a row of the namespace.
pub fn preimage(key: &[u8]) -> Vec<u8> {
    let mut preimage = Vec::with_capacity(key.len() + 1);
    preimage.push(family::PREIMAGE);
    preimage.extend_from_slice(&key[1..9]);
    preimage.push(key[0]);
    preimage.extend_from_slice(&key[9..]);
    preimage
}

/// The row that a pre-image row belongs to.
pub fn of_preimage(preimage: &[u8]) -> Option<Vec<u8>> {
    let (number, rest) = preimage.get(1..)?.split_at_checked(8)?;
    let (family, more) = rest.split_first()?;
    let mut key = Vec::with_capacity(preimage.len() - 1);
    key.push(*family);
    key.extend_from_slice(number);
    key.extend_from_slice(more);
    Some(key)
}

/// A row of the log or of the undo rows.
pub fn change(family: u8, id: ChangeId) -> Vec<u8> {
    let mut key = vec![family];
    key.extend_from_slice(&id.to_bytes());
    key
}

/// The row of a content's list of chunks.
pub fn manifest(id: &ContentId) -> Vec<u8> {
    hashed(family::MANIFEST, &id.0)
}

/// The row of a content's list of chunks that could not be read yet.
pub fn wanted(id: &ContentId) -> Vec<u8> {
    hashed(family::WANTED, &id.0)
}

/// The row of a chunk's location.
pub fn chunk(id: &ChunkId) -> Vec<u8> {
    hashed(family::CHUNK, &id.0)
}

/// The row of a pack.
pub fn pack(id: &PackId) -> Vec<u8> {
    hashed(family::PACK, &id.0)
}

fn hashed(family: u8, hash: &[u8; 32]) -> Vec<u8> {
    let mut key = Vec::with_capacity(33);
    key.push(family);
    key.extend_from_slice(hash);
    key
}

/// The row of an inode's snapshot.
pub fn snapshot(ino: InodeNo) -> [u8; 9] {
    numbered(family::SNAPSHOT, ino.0)
}

/// The row of an inode's cached ranges.
pub fn cache(ino: InodeNo) -> [u8; 9] {
    numbered(family::CACHE, ino.0)
}

/// The row of another device's cursor.
pub fn cursor(device: DeviceId) -> [u8; 9] {
    numbered(family::CURSOR, device.0.into())
}

/// The row of a segment to be sent.
pub fn outbox(sequence: u64) -> [u8; 9] {
    numbered(family::OUTBOX, sequence)
}

/// The number after the family byte.
pub fn number(key: &[u8]) -> Option<u64> {
    key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes)
}
