//! Change sets: what one device did between two publications, as a net effect. Their encoding is part of the vault
//! format (`docs/FORMAT.md`).

use cairn_platform_api::{FileKind, InodeNo, SYMLINK_MAX, Timestamp, XATTR_NAME_MAX, XATTR_VALUE_MAX};

use super::rows::{self, Content, Place};
use super::{DentryId, names};
use crate::base::ChangeId;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::chunk::ContentId;

const VERSION: u8 = 1;
/// Times from the year 6429 on: a clock that has seen one would run out of greater ones.
const TIME_MAX: u64 = 1 << 63;
/// The longest name of a device, in bytes.
pub const DEVICE_NAME_MAX: usize = 255;

/// What one device did. Inodes and dentries are each in ascending order of their numbers, without repetition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeSet {
    /// Its place in the order of all change sets.
    pub id: ChangeId,
    /// What the author's device is called; conflict copies are named after it.
    pub device_name: String,
    /// Inodes created or changed. A removed inode is one whose dentries are all removed.
    pub inodes: Vec<InodeChange>,
    /// Dentries created, moved or removed.
    pub dentries: Vec<DentryChange>,
}

/// What a new inode is for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Birth {
    /// What it is.
    pub kind: FileKind,
    /// Device number of a device node.
    pub rdev: u32,
    /// Creation.
    pub btime: Timestamp,
    /// Target of a symbolic link.
    pub target: Option<Vec<u8>>,
}

/// Another content than the author had seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentChange {
    /// What the author's content began as.
    pub base: Option<ContentId>,
    /// What it is now; `None` is local content, which only a pending change has and which is never encoded.
    pub new: Option<Content>,
}

/// Changes of one inode; what is `None` stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InodeChange {
    /// The inode.
    pub ino: InodeNo,
    /// Set for a new inode.
    pub birth: Option<Birth>,
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub atime: Option<Timestamp>,
    /// Last change of content.
    pub mtime: Option<Timestamp>,
    /// Last change of content or attributes.
    pub ctime: Option<Timestamp>,
    /// Extended attributes set, or removed with `None`, in ascending order of names.
    pub xattrs: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Content of a regular file.
    pub content: Option<ContentChange>,
}

impl InodeChange {
    /// A change of nothing.
    pub fn new(ino: InodeNo) -> Self {
        Self {
            ino,
            birth: None,
            mode: None,
            uid: None,
            gid: None,
            atime: None,
            mtime: None,
            ctime: None,
            xattrs: Vec::new(),
            content: None,
        }
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::new(self.ino)
    }

    /// Whether all that it changes are times.
    pub fn changes_times_only(&self) -> bool {
        *self == Self { atime: self.atime, mtime: self.mtime, ctime: self.ctime, ..Self::new(self.ino) }
    }
}

/// The new place of a dentry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DentryChange {
    /// The dentry.
    pub dentry: DentryId,
    /// Its inode, which never changes.
    pub ino: InodeNo,
    /// Where it is now; `None` is removed.
    pub to: Option<Place>,
    /// Of a removal: the content that the author had seen in the inode.
    pub seen: Option<ContentId>,
}

impl ChangeSet {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty() && self.dentries.is_empty()
    }

    /// How many inodes and dentries it changes.
    pub fn len(&self) -> usize {
        self.inodes.len() + self.dentries.len()
    }

    /// The contents it brings.
    pub fn contents(&self) -> impl Iterator<Item = Content> {
        self.inodes.iter().filter_map(|inode| inode.content.and_then(|content| content.new))
    }

    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(64 + 64 * (self.inodes.len() + self.dentries.len()));
        writer.u8(VERSION);
        rows::write_change_id(&mut writer, self.id);
        writer.bytes(names::of_device(&self.device_name).as_bytes());
        writer.length(self.inodes.len());
        self.inodes.iter().for_each(|inode| inode.write(&mut writer));
        writer.length(self.dentries.len());
        self.dentries.iter().for_each(|dentry| dentry.write(&mut writer));
        writer.into_vec()
    }

    /// The inverse of [`ChangeSet::encode`]; only canonical bytes are accepted.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.version(VERSION, "a change set")?;
        let id = rows::read_change_id(&mut reader)?;
        if id.hlc.0 >= TIME_MAX {
            return Err(DecodeError::Invalid("the time of a change set"));
        }
        let device_name = reader.bytes(DEVICE_NAME_MAX, "a device name")?;
        let device_name =
            std::str::from_utf8(device_name).map_err(|_| DecodeError::Invalid("a device name"))?.to_owned();
        let mut inodes: Vec<InodeChange> = Vec::new();
        for _ in 0..reader.count(usize::MAX, "inode changes")? {
            let inode = InodeChange::read(&mut reader)?;
            if inodes.last().is_some_and(|last| last.ino >= inode.ino) {
                return Err(DecodeError::Invalid("the order of inode changes"));
            }
            inodes.push(inode);
        }
        let mut dentries: Vec<DentryChange> = Vec::new();
        for _ in 0..reader.count(usize::MAX, "dentry changes")? {
            let dentry = DentryChange::read(&mut reader)?;
            if dentries.last().is_some_and(|last| last.dentry >= dentry.dentry) {
                return Err(DecodeError::Invalid("the order of dentry changes"));
            }
            dentries.push(dentry);
        }
        reader.finish()?;
        Ok(Self { id, device_name, inodes, dentries })
    }
}

/// Bits of the fields that an inode change has.
mod field {
    pub const BIRTH: u8 = 1;
    pub const MODE: u8 = 2;
    pub const UID: u8 = 4;
    pub const GID: u8 = 8;
    pub const ATIME: u8 = 16;
    pub const MTIME: u8 = 32;
    pub const CTIME: u8 = 64;
    pub const CONTENT: u8 = 128;
}

impl InodeChange {
    /// A new inode has all attributes; a regular file has content, a link a target, and nothing else has.
    fn is_sound(&self) -> bool {
        let Some(birth) = &self.birth else { return true };
        let has_attributes = self.mode.is_some()
            && self.uid.is_some()
            && self.gid.is_some()
            && self.atime.is_some()
            && self.mtime.is_some()
            && self.ctime.is_some();
        has_attributes
            && self.ino != InodeNo::ROOT
            && (birth.kind == FileKind::Regular) == self.content.is_some()
            && (birth.kind == FileKind::Symlink) == birth.target.is_some()
    }

    fn fields(&self) -> u8 {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        bit(self.birth.is_some(), field::BIRTH)
            | bit(self.mode.is_some(), field::MODE)
            | bit(self.uid.is_some(), field::UID)
            | bit(self.gid.is_some(), field::GID)
            | bit(self.atime.is_some(), field::ATIME)
            | bit(self.mtime.is_some(), field::MTIME)
            | bit(self.ctime.is_some(), field::CTIME)
            | bit(self.content.is_some(), field::CONTENT)
    }

    fn write(&self, writer: &mut Writer) {
        writer.u64(self.ino.0);
        writer.u8(self.fields());
        if let Some(birth) = &self.birth {
            writer.u8(rows::kind_byte(birth.kind));
            writer.varint(birth.rdev.into());
            writer.i64(birth.btime.as_nanos());
            rows::write_option(writer, birth.target.as_ref(), |writer, target| writer.bytes(target));
        }
        if let Some(mode) = self.mode {
            writer.u16(mode);
        }
        for id in [self.uid, self.gid].into_iter().flatten() {
            writer.varint(id.into());
        }
        for time in [self.atime, self.mtime, self.ctime].into_iter().flatten() {
            writer.i64(time.as_nanos());
        }
        if let Some(content) = &self.content {
            rows::write_option(writer, content.base.as_ref(), |writer, base| writer.raw(&base.0));
            rows::write_option(writer, content.new.as_ref(), rows::write_content);
        }
        writer.length(self.xattrs.len());
        for (name, value) in &self.xattrs {
            writer.bytes(name);
            rows::write_option(writer, value.as_ref(), |writer, value| writer.bytes(value));
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut change = Self::new(InodeNo(reader.u64("an inode number")?));
        let fields = reader.u8("the fields of an inode change")?;
        let has = |bit: u8| fields & bit != 0;
        if has(field::BIRTH) {
            let kind = rows::read_kind(reader)?;
            let rdev = rows::read_u32(reader, "a device number")?;
            let btime = Timestamp::from_nanos(reader.i64("a time")?);
            let target =
                rows::read_option(reader, |reader| Ok(reader.bytes(SYMLINK_MAX, "a link's target")?.to_vec()))?;
            change.birth = Some(Birth { kind, rdev, btime, target });
        }
        if has(field::MODE) {
            let mode = reader.u16("a mode")?;
            if mode > 0o7777 {
                return Err(DecodeError::Invalid("a mode"));
            }
            change.mode = Some(mode);
        }
        for (bit, id) in [(field::UID, &mut change.uid), (field::GID, &mut change.gid)] {
            if has(bit) {
                *id = Some(rows::read_u32(reader, "an owner or a group")?);
            }
        }
        let times =
            [(field::ATIME, &mut change.atime), (field::MTIME, &mut change.mtime), (field::CTIME, &mut change.ctime)];
        for (bit, time) in times {
            if has(bit) {
                *time = Some(Timestamp::from_nanos(reader.i64("a time")?));
            }
        }
        if has(field::CONTENT) {
            let base = rows::read_option(reader, |reader| reader.array("a content id").map(ContentId))?;
            let new = rows::read_option(reader, rows::read_content)?;
            if new.is_none() {
                return Err(DecodeError::Invalid("a content that was not published"));
            }
            change.content = Some(ContentChange { base, new });
        }
        for _ in 0..reader.count(usize::MAX, "extended attributes")? {
            let name = reader.bytes(XATTR_NAME_MAX, "the name of an attribute")?.to_vec();
            if change.xattrs.last().is_some_and(|(last, _)| *last >= name) {
                return Err(DecodeError::Invalid("the order of extended attributes"));
            }
            let value = rows::read_option(reader, |reader| {
                Ok(reader.bytes(XATTR_VALUE_MAX, "an extended attribute")?.to_vec())
            })?;
            change.xattrs.push((name, value));
        }
        if change.is_sound() { Ok(change) } else { Err(DecodeError::Invalid("an inode change")) }
    }
}

impl DentryChange {
    fn write(&self, writer: &mut Writer) {
        writer.u64(self.dentry.0);
        writer.u64(self.ino.0);
        rows::write_option(writer, self.to.as_ref(), |writer, to| to.write(writer));
        rows::write_option(writer, self.seen.as_ref(), |writer, seen| writer.raw(&seen.0));
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let dentry = DentryId(reader.u64("a dentry")?);
        let ino = InodeNo(reader.u64("an inode number")?);
        let to = rows::read_option(reader, Place::read)?;
        let seen = rows::read_option(reader, |reader| reader.array("a content id").map(ContentId))?;
        if ino == InodeNo::ROOT || to.is_some() && seen.is_some() {
            return Err(DecodeError::Invalid("a dentry change"));
        }
        Ok(Self { dentry, ino, to, seen })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cairn_platform_api::VfsName;

    use super::*;
    use crate::base::{DeviceId, Hlc};

    fn content(byte: u8) -> Content {
        Content { size: 300, id: ContentId([byte; 32]) }
    }

    fn example() -> ChangeSet {
        let place =
            |parent, name: &str| Place { parent: InodeNo(parent), name: VfsName::new(name.as_bytes()).unwrap() };
        let time = |nanos| Some(Timestamp::from_nanos(nanos));
        let born = InodeChange {
            birth: Some(Birth { kind: FileKind::Regular, rdev: 0, btime: Timestamp::from_nanos(-1), target: None }),
            mode: Some(0o4755),
            uid: Some(1000),
            gid: Some(100),
            atime: time(1),
            mtime: time(2),
            ctime: time(i64::MAX),
            xattrs: vec![(b"user.a".to_vec(), Some(b"1".to_vec())), (b"user.b".to_vec(), None)],
            content: Some(ContentChange { base: Some(ContentId([1; 32])), new: Some(content(2)) }),
            ..InodeChange::new(InodeNo(77))
        };
        let changed = InodeChange { mtime: time(9), ..InodeChange::new(InodeNo(1)) };
        let moved = DentryChange { dentry: DentryId(5), ino: InodeNo(77), to: Some(place(1, "a")), seen: None };
        let removed = DentryChange { dentry: DentryId(6), ino: InodeNo(78), to: None, seen: Some(ContentId([3; 32])) };
        ChangeSet {
            id: ChangeId { hlc: Hlc(12345 << 16), device: DeviceId(9) },
            device_name: "laptop".into(),
            inodes: vec![changed, born],
            dentries: vec![moved, removed],
        }
    }

    #[test]
    fn change_sets_round_trip() {
        let set = example();
        assert_eq!(ChangeSet::decode(&set.encode()), Ok(set));
    }

    #[test]
    fn a_longer_name_of_a_device_is_cut() {
        let set = ChangeSet { device_name: "ü".repeat(200), ..example() };
        let expected = ChangeSet { device_name: "ü".repeat(127), ..example() };
        assert_eq!(ChangeSet::decode(&set.encode()), Ok(expected));
    }

    #[test]
    fn damaged_change_sets_are_refused_or_canonical() {
        let bytes = example().encode();
        for end in 0..bytes.len() {
            assert!(ChangeSet::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        let mut accepted = BTreeSet::new();
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            if let Ok(set) = ChangeSet::decode(&damaged) {
                assert_eq!(set.encode(), damaged, "bit {at}");
                accepted.insert(damaged);
            }
        }
        assert!(!accepted.contains(&bytes));
    }

    #[test]
    fn change_sets_that_make_no_sense_are_refused() {
        let refused = |change: &dyn Fn(&mut ChangeSet)| {
            let mut set = example();
            change(&mut set);
            assert!(ChangeSet::decode(&set.encode()).is_err(), "{set:?}");
        };
        refused(&|set| set.inodes.swap(0, 1));
        refused(&|set| set.dentries.swap(0, 1));
        refused(&|set| set.id.hlc = Hlc(u64::MAX));
        refused(&|set| set.id.device = DeviceId::DERIVED);
        refused(&|set| set.inodes[1].content = None);
        refused(&|set| set.inodes[1].uid = None);
        refused(&|set| set.inodes[1].mode = Some(0o10000));
        refused(&|set| set.inodes[1].xattrs.swap(0, 1));
        refused(&|set| set.dentries[0].ino = InodeNo::ROOT);
        refused(&|set| set.dentries[0].seen = Some(ContentId([1; 32])));
        refused(&|set| set.inodes[1].content = Some(ContentChange { base: None, new: None }));
    }
}
