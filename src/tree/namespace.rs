//! Reading the namespace out of rows, and the primitive changes of it that keep what they replace.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use cairn_platform_api::{FileKind, InodeNo, VfsName};

use super::keys::{self, family};
use super::rows::{self, DentryRow, GraveRow, InodeRow, Link, Place};
use super::surface::Surface;
use super::{DentryId, TreeError};
use crate::base::codec::DecodeError;
use crate::store::{Operation, Rows};

#[cfg(test)]
thread_local! {
    static CLIMBED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How often this thread asked for the parent of a directory.
#[cfg(test)]
pub(super) fn climbed() -> usize {
    CLIMBED.get()
}

/// Reading the namespace; for the tree, and for everything that holds the gate.
pub trait Namespace: Rows {
    /// An inode.
    ///
    /// # Errors
    /// [`TreeError`] where rows cannot be read; so for all methods.
    fn inode(&self, ino: InodeNo) -> Result<Option<InodeRow>, TreeError> {
        let key = keys::inode(ino);
        self.get(&key)?.map(|value| decoded(&key, InodeRow::decode(&value))).transpose()
    }

    /// What a name means.
    ///
    /// # Errors
    /// As [`Namespace::inode`].
    fn lookup(&self, parent: InodeNo, name: &VfsName) -> Result<Option<DentryRow>, TreeError> {
        let key = keys::name(parent, name);
        self.get(&key)?.map(|value| decoded(&key, DentryRow::decode(&value))).transpose()
    }

    /// Visits the names in a directory that come after `after`, in the order of their bytes.
    ///
    /// # Errors
    /// As [`Namespace::inode`].
    fn list(
        &self,
        directory: InodeNo,
        after: Option<&VfsName>,
        visit: &mut dyn FnMut(VfsName, DentryRow) -> ControlFlow<()>,
    ) -> Result<(), TreeError> {
        let prefix = keys::numbered(family::NAME, directory.0);
        let after = after.map(|after| keys::name(directory, after));
        let start = after.as_deref().map_or(Bound::Included(&prefix[..]), Bound::Excluded);
        let mut failure = None;
        self.scan_from(&prefix, start, &mut |key, value| {
            let name = VfsName::new(&key[prefix.len()..]).map_err(|_| DecodeError::Invalid("a name"));
            match name.and_then(|name| Ok((name, DentryRow::decode(value)?))) {
                Ok((name, row)) => visit(name, row),
                Err(error) => {
                    failure = Some(TreeError::corrupt(key, error));
                    ControlFlow::Break(())
                }
            }
        })?;
        failure.map_or(Ok(()), Err)
    }

    /// Whether a directory has no names.
    ///
    /// # Errors
    /// As [`Namespace::inode`].
    fn is_empty(&self, directory: InodeNo) -> Result<bool, TreeError> {
        Ok(!self.any(&keys::numbered(family::NAME, directory.0))?)
    }

    /// All names of an inode, in the order of their dentries.
    ///
    /// # Errors
    /// As [`Namespace::inode`].
    fn links(&self, ino: InodeNo) -> Result<Vec<Link>, TreeError> {
        let prefix = keys::numbered(family::LINK, ino.0);
        let mut links = Vec::new();
        let mut failure = None;
        self.scan(&prefix, &mut |key, value| {
            let dentry = dentry_of(key).ok_or(DecodeError::Invalid("the key of a link row"));
            match dentry.and_then(|dentry| Ok(Link { dentry, place: Place::decode(value)? })) {
                Ok(link) => {
                    links.push(link);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    failure = Some(TreeError::corrupt(key, error));
                    ControlFlow::Break(())
                }
            }
        })?;
        failure.map_or(Ok(links), Err)
    }

    /// Where a dentry is.
    ///
    /// # Errors
    /// As [`Namespace::inode`].
    fn place(&self, ino: InodeNo, dentry: DentryId) -> Result<Option<Place>, TreeError> {
        let key = keys::link(ino, dentry);
        self.get(&key)?.map(|value| decoded(&key, Place::decode(&value))).transpose()
    }

    /// The directory that a directory is in; the root is in itself.
    ///
    /// # Errors
    /// As [`Namespace::inode`].
    fn parent(&self, directory: InodeNo) -> Result<Option<InodeNo>, TreeError> {
        if directory == InodeNo::ROOT {
            return Ok(Some(directory));
        }
        #[cfg(test)]
        CLIMBED.set(CLIMBED.get() + 1);
        Ok(self.links(directory)?.first().map(|link| link.place.parent))
    }

    /// Whether `directory` is `ancestor` or lies below it. Stable only while no directory can be moved.
    ///
    /// # Errors
    /// As [`Namespace::inode`].
    fn is_within(&self, directory: InodeNo, ancestor: InodeNo) -> Result<bool, TreeError> {
        let mut at = directory;
        loop {
            if at == ancestor {
                return Ok(true);
            }
            match self.parent(at)? {
                Some(parent) if parent != at => at = parent,
                _ => return Ok(false),
            }
        }
    }
}

impl<R: Rows + ?Sized> Namespace for R {}

pub(super) fn decoded<T>(key: &[u8], result: Result<T, DecodeError>) -> Result<T, TreeError> {
    result.map_err(|error| TreeError::corrupt(key, error))
}

/// The dentry in the key of a link row.
pub(super) fn dentry_of(key: &[u8]) -> Option<DentryId> {
    key.get(9..).and_then(|bytes| bytes.try_into().ok()).map(|bytes| DentryId(u64::from_be_bytes(bytes)))
}

/// Rows as they were before something: keys to values.
pub(super) type Images = BTreeMap<Box<[u8]>, Option<Bytes>>;

/// Where the values that changes replace are kept, the first of each row.
pub(super) enum Record {
    /// As pre-image rows: the change is pending. Bulk work wants to know which rows they are of.
    Pending(Option<Images>),
    /// Here, to become an undo row: the change is published.
    Published(Images),
}

/// Primitive changes of the namespace. All of them go through [`State::set`], which keeps what they replace.
pub(super) struct State<'a, 'b> {
    pub rows: Surface<'a, 'b>,
    pub record: Record,
}

impl<'a, 'b> State<'a, 'b> {
    pub fn pending(rows: &'a mut Operation<'b>) -> Self {
        Self { rows: Surface::of(rows), record: Record::Pending(None) }
    }

    pub fn pending_again(rows: &'a mut Operation<'b>) -> Self {
        Self { rows: Surface::of(rows), record: Record::Pending(Some(Images::new())) }
    }

    pub fn published(rows: &'a mut Operation<'b>) -> Self {
        Self { rows: Surface::of(rows), record: Record::Published(Images::new()) }
    }

    /// Published, with the pending change left where it is.
    pub fn beside_pending(rows: &'a mut Operation<'b>) -> Self {
        Self { rows: Surface::published(rows), record: Record::Published(Images::new()) }
    }

    pub fn is_pending(&self) -> bool {
        matches!(self.record, Record::Pending(_))
    }

    fn set(&mut self, key: &[u8], value: Option<Bytes>) -> Result<(), TreeError> {
        match &mut self.record {
            Record::Pending(images) => {
                let preimage = keys::preimage(key);
                if self.rows.get(&preimage)?.is_none() {
                    let old = self.rows.get(key)?;
                    self.rows.rows.put(&preimage, rows::encode_image(old.as_deref()));
                    if let Some(images) = images {
                        images.insert(key.into(), old);
                    }
                }
            }
            Record::Published(images) => {
                if !images.contains_key(key) {
                    images.insert(key.into(), self.rows.get(key)?);
                }
            }
        }
        self.rows.set(key, value);
        Ok(())
    }

    pub fn put_inode(&mut self, ino: InodeNo, row: &InodeRow) -> Result<(), TreeError> {
        self.set(&keys::inode(ino), Some(row.encode()))
    }

    pub fn remove_inode(&mut self, ino: InodeNo) -> Result<(), TreeError> {
        self.set(&keys::inode(ino), None)
    }

    /// Gives an inode that exists a name that is free.
    pub fn attach(&mut self, dentry: DentryId, ino: InodeNo, place: &Place) -> Result<(), TreeError> {
        let mut row = self.rows.inode(ino)?.ok_or(TreeError::NoInode(ino))?;
        let key = keys::name(place.parent, &place.name);
        if self.rows.get(&key)?.is_some() {
            return Err(TreeError::Taken(place.clone()));
        }
        self.set(&key, Some(DentryRow { dentry, ino, kind: row.kind }.encode()))?;
        self.set(&keys::link(ino, dentry), Some(place.encode()))?;
        if row.is_directory() {
            return self.count_subdirectory(place.parent, |nlink| nlink.saturating_add(1));
        }
        row.nlink += 1;
        self.put_inode(ino, &row)
    }

    /// Takes a name away; the inode stays, even without names.
    pub fn detach(&mut self, dentry: DentryId, ino: InodeNo, place: &Place) -> Result<(), TreeError> {
        self.set(&keys::name(place.parent, &place.name), None)?;
        self.set(&keys::link(ino, dentry), None)?;
        let mut row = self.rows.inode(ino)?.ok_or(TreeError::NoInode(ino))?;
        if row.is_directory() {
            return self.count_subdirectory(place.parent, |nlink| nlink.saturating_sub(1));
        }
        row.nlink = row.nlink.saturating_sub(1);
        self.put_inode(ino, &row)
    }

    fn count_subdirectory(&mut self, directory: InodeNo, count: impl FnOnce(u32) -> u32) -> Result<(), TreeError> {
        let mut row = self.rows.inode(directory)?.ok_or(TreeError::NoInode(directory))?;
        row.nlink = count(row.nlink);
        self.put_inode(directory, &row)
    }

    pub fn grave(&self, ino: InodeNo) -> Result<Option<GraveRow>, TreeError> {
        let key = keys::grave(ino);
        self.rows.get(&key)?.map(|value| decoded(&key, GraveRow::decode(&value))).transpose()
    }

    pub fn set_grave(&mut self, ino: InodeNo, grave: Option<&GraveRow>) -> Result<(), TreeError> {
        self.set(&keys::grave(ino), grave.map(GraveRow::encode))
    }

    pub fn alias(&self, ino: InodeNo) -> Result<Option<InodeNo>, TreeError> {
        let key = keys::alias(ino);
        let Some(value) = self.rows.get(&key)? else { return Ok(None) };
        let bytes: [u8; 8] =
            value[..].try_into().map_err(|_| TreeError::corrupt(&key, DecodeError::Invalid("an alias")))?;
        Ok(Some(InodeNo(u64::from_le_bytes(bytes))))
    }

    pub fn set_alias(&mut self, ino: InodeNo, target: InodeNo) -> Result<(), TreeError> {
        self.set(&keys::alias(ino), Some(Bytes::copy_from_slice(&target.0.to_le_bytes())))
    }

    pub fn set_author(&mut self, key: &[u8], name: &str) -> Result<(), TreeError> {
        self.set(key, Some(Bytes::copy_from_slice(name.as_bytes())))
    }

    /// The kinds of an inode's rows decide how its names behave.
    pub fn is_directory(&self, ino: InodeNo) -> Result<bool, TreeError> {
        Ok(self.rows.inode(ino)?.is_some_and(|row| row.kind == FileKind::Directory))
    }
}
