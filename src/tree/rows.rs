//! What rows hold, and their encodings. Every value begins with a version byte.

use bytes::Bytes;
use cairn_platform_api::{
    FileKind, InodeNo, NAME_MAX, Permissions, SYMLINK_MAX, Timestamp, VfsName, XATTR_NAME_MAX, XATTR_VALUE_MAX, Xattrs,
};

use super::DentryId;
use crate::base::ChangeId;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::chunk::ContentId;

const VERSION: u8 = 1;

/// A published content of a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Content {
    /// Length in bytes.
    pub size: u64,
    /// The hash of its list of chunks.
    pub id: ContentId,
}

/// What an inode's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentState {
    /// Not a regular file.
    None,
    /// As published.
    Published(Content),
    /// The backing file is the truth, for size and mtime too.
    Local {
        /// What was published last, where anything was.
        base: Option<Content>,
    },
}

impl ContentState {
    /// The published content, or the one that local content began as.
    pub fn published(&self) -> Option<Content> {
        match self {
            Self::None => None,
            Self::Published(content) => Some(*content),
            Self::Local { base } => *base,
        }
    }
}

/// Who published the content that an inode has; written by the fold alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The change set it came with.
    pub change: ChangeId,
    /// The content that its author had seen before.
    pub base: Option<ContentId>,
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InodeRow {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Names of a file; 2 and the subdirectories of a directory. Kept by the tree.
    pub nlink: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// Target of a symbolic link.
    pub target: Option<Vec<u8>>,
    /// Content.
    pub content: ContentState,
    /// Where the published content comes from; whoever changes a row leaves it as it is.
    pub version: Option<Version>,
}

impl InodeRow {
    /// An inode without names, owned by root, all of whose times are `now`; a regular file is local and empty.
    pub fn new(kind: FileKind, mode: u16, now: Timestamp) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: if kind == FileKind::Directory { 2 } else { 0 },
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            xattrs: Xattrs::new(),
            target: None,
            content: match kind {
                FileKind::Regular => ContentState::Local { base: None },
                _ => ContentState::None,
            },
            version: None,
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == FileKind::Directory
    }

    /// Mode and access control lists, which change together.
    pub fn permissions(&mut self) -> Permissions<'_> {
        Permissions { kind: self.kind, mode: &mut self.mode, xattrs: &mut self.xattrs }
    }

    /// The value of its row.
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(128);
        writer.u8(VERSION);
        self.write(&mut writer);
        writer.into_bytes()
    }

    /// The inverse of [`InodeRow::encode`].
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.version(VERSION, "an inode row")?;
        let row = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(row)
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u8(kind_byte(self.kind));
        writer.u16(self.mode);
        writer.varint(self.uid.into());
        writer.varint(self.gid.into());
        writer.varint(self.rdev.into());
        writer.varint(self.nlink.into());
        for time in [self.atime, self.mtime, self.ctime, self.btime] {
            writer.i64(time.as_nanos());
        }
        writer.length(self.xattrs.len());
        for (name, value) in &self.xattrs {
            writer.bytes(name);
            writer.bytes(value);
        }
        write_option(writer, self.target.as_ref(), |writer, target| writer.bytes(target));
        match &self.content {
            ContentState::None => writer.u8(0),
            ContentState::Published(content) => {
                writer.u8(1);
                write_content(writer, content);
            }
            ContentState::Local { base } => {
                writer.u8(2);
                write_option(writer, base.as_ref(), write_content);
            }
        }
        write_option(writer, self.version.as_ref(), |writer, version| {
            write_change_id(writer, version.change);
            write_option(writer, version.base.as_ref(), |writer, base| writer.raw(&base.0));
        });
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let kind = read_kind(reader)?;
        let mode = reader.u16("a mode")?;
        let uid = read_u32(reader, "an owner")?;
        let gid = read_u32(reader, "a group")?;
        let rdev = read_u32(reader, "a device number")?;
        let nlink = read_u32(reader, "a link count")?;
        let mut times = [Timestamp::default(); 4];
        for time in &mut times {
            *time = Timestamp::from_nanos(reader.i64("a time")?);
        }
        let [atime, mtime, ctime, btime] = times;
        let mut xattrs = Xattrs::new();
        for _ in 0..reader.count(usize::MAX, "extended attributes")? {
            let name = reader.bytes(XATTR_NAME_MAX, "the name of an attribute")?.to_vec();
            xattrs.insert(name, reader.bytes(XATTR_VALUE_MAX, "an extended attribute")?.to_vec());
        }
        let target = read_option(reader, |reader| Ok(reader.bytes(SYMLINK_MAX, "a link's target")?.to_vec()))?;
        let content = match reader.u8("a content")? {
            0 => ContentState::None,
            1 => ContentState::Published(read_content(reader)?),
            2 => ContentState::Local { base: read_option(reader, read_content)? },
            _ => return Err(DecodeError::Invalid("the state of a content")),
        };
        let version = read_option(reader, |reader| {
            let change = read_change_id(reader)?;
            let base = read_option(reader, |reader| reader.array("a content id").map(ContentId))?;
            Ok(Version { change, base })
        })?;
        Ok(Self { kind, mode, uid, gid, rdev, nlink, atime, mtime, ctime, btime, xattrs, target, content, version })
    }
}

/// What a name in a directory means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DentryRow {
    /// The dentry.
    pub dentry: DentryId,
    /// Its inode.
    pub ino: InodeNo,
    /// What the inode is.
    pub kind: FileKind,
}

impl DentryRow {
    pub(super) fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(18);
        writer.u8(VERSION);
        writer.u64(self.dentry.0);
        writer.u64(self.ino.0);
        writer.u8(kind_byte(self.kind));
        writer.into_bytes()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.version(VERSION, "a name row")?;
        let dentry = DentryId(reader.u64("a dentry")?);
        let ino = InodeNo(reader.u64("an inode number")?);
        let kind = read_kind(&mut reader)?;
        reader.finish()?;
        Ok(Self { dentry, ino, kind })
    }
}

/// Where a dentry is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The directory.
    pub parent: InodeNo,
    /// The name in it.
    pub name: VfsName,
}

impl Place {
    pub(super) fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(10 + self.name.as_bytes().len());
        writer.u8(VERSION);
        self.write(&mut writer);
        writer.into_bytes()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.version(VERSION, "a link row")?;
        let place = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(place)
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.u64(self.parent.0);
        writer.bytes(self.name.as_bytes());
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let parent = InodeNo(reader.u64("a directory")?);
        let name = reader.bytes(NAME_MAX, "a name")?;
        Ok(Self { parent, name: VfsName::new(name).map_err(|_| DecodeError::Invalid("a name"))? })
    }
}

/// One of the names of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The dentry.
    pub dentry: DentryId,
    /// Where it is.
    pub place: Place,
}

/// A removed inode: what it was and where, so that a change that had not seen the removal can bring it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GraveRow {
    pub row: InodeRow,
    pub links: Vec<Link>,
}

impl GraveRow {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(160);
        writer.u8(VERSION);
        self.row.write(&mut writer);
        writer.length(self.links.len());
        for link in &self.links {
            writer.u64(link.dentry.0);
            link.place.write(&mut writer);
        }
        writer.into_bytes()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.version(VERSION, "a grave row")?;
        let row = InodeRow::read(&mut reader)?;
        let mut links = Vec::new();
        for _ in 0..reader.count(usize::MAX, "links")? {
            let dentry = DentryId(reader.u64("a dentry")?);
            links.push(Link { dentry, place: Place::read(&mut reader)? });
        }
        reader.finish()?;
        Ok(Self { row, links })
    }
}

/// What a file's metadata was at a moment: two equal stamps mean that nobody changed the file in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Length in bytes.
    pub size: u64,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
}

/// What was uploaded of an inode's local content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The content.
    pub content: Content,
    /// The stamp of the backing file before and after it was read; one that no file has where the file did not stand still.
    pub stamp: Stamp,
}

impl Snapshot {
    pub(super) fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(72);
        writer.u8(VERSION);
        write_content(&mut writer, &self.content);
        writer.u64(self.stamp.size);
        writer.i64(self.stamp.mtime.as_nanos());
        writer.i64(self.stamp.ctime.as_nanos());
        writer.into_bytes()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        reader.version(VERSION, "a snapshot row")?;
        let content = read_content(&mut reader)?;
        let stamp = read_stamp(&mut reader)?;
        reader.finish()?;
        Ok(Self { content, stamp })
    }
}

pub(super) fn read_stamp(reader: &mut Reader<'_>) -> Result<Stamp, DecodeError> {
    let size = reader.u64("a size")?;
    let mtime = Timestamp::from_nanos(reader.i64("a time")?);
    let ctime = Timestamp::from_nanos(reader.i64("a time")?);
    Ok(Stamp { size, mtime, ctime })
}

/// The value of a row as it was, or that there was none: pre-image rows and undo rows.
pub(super) fn encode_image(value: Option<&[u8]>) -> Bytes {
    match value {
        None => Bytes::from_static(&[0]),
        Some(value) => {
            let mut image = Vec::with_capacity(1 + value.len());
            image.push(1);
            image.extend_from_slice(value);
            image.into()
        }
    }
}

/// The inverse of [`encode_image`].
pub(super) fn decode_image(image: &[u8]) -> Result<Option<&[u8]>, DecodeError> {
    match image.split_first() {
        Some((0, [])) => Ok(None),
        Some((1, value)) => Ok(Some(value)),
        _ => Err(DecodeError::Invalid("a pre-image")),
    }
}

pub(super) fn kind_byte(kind: FileKind) -> u8 {
    match kind {
        FileKind::Regular => 0,
        FileKind::Directory => 1,
        FileKind::Symlink => 2,
        FileKind::Fifo => 3,
        FileKind::Socket => 4,
        FileKind::CharDevice => 5,
        FileKind::BlockDevice => 6,
    }
}

pub(super) fn read_kind(reader: &mut Reader<'_>) -> Result<FileKind, DecodeError> {
    Ok(match reader.u8("a kind")? {
        0 => FileKind::Regular,
        1 => FileKind::Directory,
        2 => FileKind::Symlink,
        3 => FileKind::Fifo,
        4 => FileKind::Socket,
        5 => FileKind::CharDevice,
        6 => FileKind::BlockDevice,
        _ => return Err(DecodeError::Invalid("a kind")),
    })
}

pub(super) fn read_u32(reader: &mut Reader<'_>, what: &'static str) -> Result<u32, DecodeError> {
    u32::try_from(reader.varint(what)?).map_err(|_| DecodeError::Invalid(what))
}

pub(super) fn write_content(writer: &mut Writer, content: &Content) {
    writer.varint(content.size);
    writer.raw(&content.id.0);
}

pub(super) fn read_content(reader: &mut Reader<'_>) -> Result<Content, DecodeError> {
    Ok(Content { size: reader.varint("a size")?, id: ContentId(reader.array("a content id")?) })
}

pub(super) fn write_change_id(writer: &mut Writer, id: ChangeId) {
    writer.raw(&id.to_bytes());
}

pub(super) fn read_change_id(reader: &mut Reader<'_>) -> Result<ChangeId, DecodeError> {
    let id = ChangeId::from_bytes(reader.array("the id of a change set")?);
    if id.device.is_valid() { Ok(id) } else { Err(DecodeError::Invalid("a device id")) }
}

/// A byte 0, or a byte 1 and the value.
pub(super) fn write_option<T>(writer: &mut Writer, value: Option<T>, write: impl FnOnce(&mut Writer, T)) {
    writer.u8(value.is_some().into());
    if let Some(value) = value {
        write(writer, value);
    }
}

pub(super) fn read_option<'a, T>(
    reader: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    match reader.u8("an optional value")? {
        0 => Ok(None),
        1 => read(reader).map(Some),
        _ => Err(DecodeError::Invalid("an optional value")),
    }
}
