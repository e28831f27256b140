//! POSIX access control lists, as Linux has them ([acl(5)](https://man7.org/linux/man-pages/man5/acl.5.html)): what an
//! inode's mode and its two lists do to each other, and what something new inherits from its directory.
//!
//! A list is the value of an extended attribute in the kernel's format (`linux/posix_acl_xattr.h`): version 2 as `u32`, then
//! for each entry `u16` tag, `u16` permissions, `u32` id, all little-endian. Invariants of what [`Permissions`] leaves
//! behind: every list is valid; owner, group class and others of an access list are those of the mode; an access list
//! that says no more than the mode is not kept; only directories have a default list, and symbolic links have none.
//!
//! Who may do what is checked by the kernel.

use std::collections::BTreeMap;

use crate::{FileKind, FsError, VfsResult};

/// The extended attributes of an inode.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// The longest value: the kernel asks for a list with a buffer of one page, and denies everything where it does not fit.
pub const ACL_VALUE_MAX: usize = 4096;

const VERSION: [u8; 4] = 2_u32.to_le_bytes();
/// Length of an entry in bytes.
const ENTRY: usize = 8;
const NO_ID: u32 = u32::MAX;
const PERMISSIONS: u16 = 0o777;

// The tags, in the order in which a list has its entries.
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Which list of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AclKind {
    /// Who may do what.
    Access,
    /// What is made in a directory begins with.
    Default,
}

impl AclKind {
    /// The list that an extended attribute is.
    pub fn of(name: &[u8]) -> Option<Self> {
        [Self::Access, Self::Default].into_iter().find(|kind| kind.name() == name)
    }

    /// The name of its extended attribute.
    pub const fn name(self) -> &'static [u8] {
        match self {
            Self::Access => b"system.posix_acl_access",
            Self::Default => b"system.posix_acl_default",
        }
    }
}

/// Mode and lists of an inode, which change together.
#[derive(Debug)]
pub struct Permissions<'a> {
    /// What the inode is.
    pub kind: FileKind,
    /// Its mode: permission, set-id and sticky bits.
    pub mode: &'a mut u16,
    /// Its extended attributes, with the lists.
    pub xattrs: &'a mut Xattrs,
}

impl Permissions<'_> {
    /// As `chmod(2)`: owner, mask (the owning group where there is none) and others of the access list follow the mode.
    pub fn set_mode(&mut self, mode: u16) {
        *self.mode = mode;
        if let Some(mut acl) = self.acl(AclKind::Access) {
            acl.set_bits(mode);
            self.keep(AclKind::Access, &acl);
        }
    }

    /// Sets a list; the mode follows the access list. A value without entries removes the list.
    ///
    /// # Errors
    /// As on ext4: [`FsError::NotSupported`] for a symbolic link, [`FsError::AccessDenied`] for a default list of something
    /// else than a directory, [`FsError::Invalid`] for what is no list, [`FsError::AttributeTooLarge`].
    pub fn set_acl(&mut self, kind: AclKind, value: &[u8]) -> VfsResult<()> {
        if self.kind == FileKind::Symlink {
            return Err(FsError::NotSupported);
        }
        let Some(acl) = Acl::decode(value)? else { return self.remove_acl(kind) };
        if kind == AclKind::Default && self.kind != FileKind::Directory {
            return Err(FsError::AccessDenied);
        }
        if kind == AclKind::Access {
            *self.mode = *self.mode & !PERMISSIONS | acl.bits();
        }
        self.keep(kind, &acl);
        Ok(())
    }

    /// Removes a list, if there is one; the mode stays.
    ///
    /// # Errors
    /// [`FsError::NotSupported`] for a symbolic link.
    pub fn remove_acl(&mut self, kind: AclKind) -> VfsResult<()> {
        if self.kind == FileKind::Symlink {
            return Err(FsError::NotSupported);
        }
        self.xattrs.remove(kind.name());
        Ok(())
    }

    /// What a new inode gets from the directory it is made in: the default list, limited by the mode it is made with, or
    /// without one the mode less the umask.
    pub fn inherit(&mut self, directory: &Xattrs, umask: u16) {
        if self.kind == FileKind::Symlink {
            return;
        }
        let Some(default) = list_of(directory, AclKind::Default) else {
            *self.mode &= !(umask & PERMISSIONS);
            return;
        };
        let mut acl = default.clone();
        acl.limit(*self.mode);
        *self.mode = *self.mode & !PERMISSIONS | acl.bits();
        self.keep(AclKind::Access, &acl);
        if self.kind == FileKind::Directory {
            self.keep(AclKind::Default, &default);
        }
    }

    /// Restores the invariants after mode and attributes were changed by themselves: the mode counts, and what is no list
    /// goes.
    pub fn settle(&mut self) {
        for kind in [AclKind::Access, AclKind::Default] {
            let possible = match kind {
                AclKind::Access => self.kind != FileKind::Symlink,
                AclKind::Default => self.kind == FileKind::Directory,
            };
            match self.acl(kind).filter(|_| possible) {
                Some(mut acl) => {
                    if kind == AclKind::Access {
                        acl.set_bits(*self.mode);
                    }
                    self.keep(kind, &acl);
                }
                None => drop(self.xattrs.remove(kind.name())),
            }
        }
    }

    fn acl(&self, kind: AclKind) -> Option<Acl> {
        list_of(self.xattrs, kind)
    }

    fn keep(&mut self, kind: AclKind, acl: &Acl) {
        if kind == AclKind::Access && acl.is_minimal() {
            self.xattrs.remove(kind.name());
        } else {
            self.xattrs.insert(kind.name().to_vec(), acl.encode());
        }
    }
}

fn list_of(xattrs: &Xattrs, kind: AclKind) -> Option<Acl> {
    xattrs.get(kind.name()).and_then(|value| Acl::decode(value).ok().flatten())
}

/// A valid list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Acl(Vec<Entry>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

impl Acl {
    /// `None` where there are no entries.
    fn decode(value: &[u8]) -> VfsResult<Option<Self>> {
        if value.is_empty() {
            return Ok(None);
        }
        if value.len() > ACL_VALUE_MAX {
            return Err(FsError::AttributeTooLarge);
        }
        let (version, entries) = value.split_at_checked(VERSION.len()).ok_or(FsError::Invalid)?;
        if version != VERSION {
            return Err(FsError::NotSupported);
        }
        let entries = entries.chunks(ENTRY).map(|entry| Some(Entry::decode(entry.try_into().ok()?)));
        let acl = Self(entries.collect::<Option<_>>().ok_or(FsError::Invalid)?);
        match &acl.0[..] {
            [] => Ok(None),
            _ if acl.is_valid() => Ok(Some(acl)),
            _ => Err(FsError::Invalid),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_vec();
        self.0.iter().for_each(|entry| value.extend(entry.encode()));
        value
    }

    /// Owner, owning group and others once each, a mask at most once and if there are named users or groups, in order.
    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP) > 0;
        self.0.is_sorted_by_key(|entry| entry.tag)
            && self.0.iter().all(Entry::is_valid)
            && [OWNER, OWNING_GROUP, OTHER].into_iter().all(|tag| count(tag) == 1)
            && (usize::from(named)..=1).contains(&count(MASK))
    }

    /// Whether a mode says as much.
    fn is_minimal(&self) -> bool {
        self.0.iter().all(|entry| matches!(entry.tag, OWNER | OWNING_GROUP | OTHER))
    }

    /// The entries that a mode shows, and how far left: the mask stands for the group where there is one.
    fn shown(&mut self) -> impl Iterator<Item = (u16, &mut u16)> {
        let group = if self.0.iter().any(|entry| entry.tag == MASK) { MASK } else { OWNING_GROUP };
        self.0.iter_mut().filter_map(move |entry| {
            let shift = match entry.tag {
                OWNER => 6,
                tag if tag == group => 3,
                OTHER => 0,
                _ => return None,
            };
            Some((shift, &mut entry.permissions))
        })
    }

    /// The permission bits of the mode.
    fn bits(&self) -> u16 {
        self.clone().shown().fold(0, |bits, (shift, permissions)| bits | *permissions << shift)
    }

    fn set_bits(&mut self, mode: u16) {
        self.shown().for_each(|(shift, permissions)| *permissions = mode >> shift & 7);
    }

    fn limit(&mut self, mode: u16) {
        self.shown().for_each(|(shift, permissions)| *permissions &= mode >> shift & 7);
    }
}

impl Entry {
    fn decode([tag0, tag1, low, high, id @ ..]: [u8; ENTRY]) -> Self {
        let (tag, permissions) = (u16::from_le_bytes([tag0, tag1]), u16::from_le_bytes([low, high]));
        // Of entries that name nobody the kernel does not look at the id.
        let id = if matches!(tag, USER | GROUP) { u32::from_le_bytes(id) } else { NO_ID };
        Self { tag, permissions, id }
    }

    fn encode(self) -> [u8; ENTRY] {
        let ([tag0, tag1], [low, high]) = (self.tag.to_le_bytes(), self.permissions.to_le_bytes());
        let [id0, id1, id2, id3] = self.id.to_le_bytes();
        [tag0, tag1, low, high, id0, id1, id2, id3]
    }

    fn is_valid(&self) -> bool {
        let named = matches!(self.tag, USER | GROUP);
        matches!(self.tag, OWNER | USER | OWNING_GROUP | GROUP | MASK | OTHER)
            && self.permissions <= 7
            && (!named || self.id != NO_ID)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Entries<'a> = &'a [(u16, u16, u32)];

    fn value(entries: Entries<'_>) -> Vec<u8> {
        Acl(entries.iter().map(|&(tag, permissions, id)| Entry { tag, permissions, id }).collect()).encode()
    }

    struct Inode(FileKind, u16, Xattrs);

    impl Inode {
        fn new(kind: FileKind, mode: u16) -> Self {
            Self(kind, mode, Xattrs::new())
        }

        fn permissions(&mut self) -> Permissions<'_> {
            Permissions { kind: self.0, mode: &mut self.1, xattrs: &mut self.2 }
        }

        fn with(mut self, kind: AclKind, entries: Entries<'_>) -> Self {
            self.permissions().set_acl(kind, &value(entries)).unwrap();
            self
        }

        fn list(&self, kind: AclKind) -> Option<Vec<u8>> {
            self.2.get(kind.name()).cloned()
        }
    }

    const NAMED: Entries<'_> =
        &[(OWNER, 7, NO_ID), (USER, 6, 7), (OWNING_GROUP, 5, NO_ID), (MASK, 4, NO_ID), (OTHER, 1, NO_ID)];

    #[test]
    fn the_mode_follows_an_access_list_and_shows_its_mask() {
        let inode = Inode::new(FileKind::Regular, 0o4600).with(AclKind::Access, NAMED);
        assert_eq!(inode.1, 0o4741);
        assert_eq!(inode.list(AclKind::Access), Some(value(NAMED)));
        assert_eq!(AclKind::of(b"system.posix_acl_access"), Some(AclKind::Access));
    }

    #[test]
    fn a_list_that_says_no_more_than_the_mode_is_not_kept() {
        let minimal: Entries<'_> = &[(OWNER, 6, 0), (OWNING_GROUP, 4, 0), (OTHER, 0, 0)];
        let inode = Inode::new(FileKind::Regular, 0o777).with(AclKind::Access, NAMED).with(AclKind::Access, minimal);
        assert_eq!((inode.1, inode.list(AclKind::Access)), (0o640, None));
        let inode = Inode::new(FileKind::Directory, 0o777).with(AclKind::Default, minimal);
        assert!(inode.list(AclKind::Default).is_some(), "what is made in it begins with that, whatever the umask");
        let mut inode = Inode::new(FileKind::Regular, 0o777).with(AclKind::Access, NAMED);
        inode.permissions().set_acl(AclKind::Access, &VERSION).unwrap();
        assert_eq!((inode.1, inode.list(AclKind::Access)), (0o741, None), "no entries: removed, and the mode stays");
    }

    #[test]
    fn a_change_of_mode_changes_the_mask_and_not_the_group() {
        let mut inode = Inode::new(FileKind::Regular, 0o600).with(AclKind::Access, NAMED);
        inode.permissions().set_mode(0o2670);
        let expected: Entries<'_> =
            &[(OWNER, 6, NO_ID), (USER, 6, 7), (OWNING_GROUP, 5, NO_ID), (MASK, 7, NO_ID), (OTHER, 0, NO_ID)];
        assert_eq!((inode.1, inode.list(AclKind::Access)), (0o2670, Some(value(expected))));
    }

    #[test]
    fn what_is_made_inherits_the_default_list_and_no_umask() {
        let directory = Inode::new(FileKind::Directory, 0o755).with(AclKind::Default, NAMED);
        let mut file = Inode::new(FileKind::Regular, 0o660);
        file.permissions().inherit(&directory.2, 0o077);
        let limited: Entries<'_> =
            &[(OWNER, 6, NO_ID), (USER, 6, 7), (OWNING_GROUP, 5, NO_ID), (MASK, 4, NO_ID), (OTHER, 0, NO_ID)];
        assert_eq!((file.1, file.list(AclKind::Access)), (0o640, Some(value(limited))));
        assert_eq!(file.list(AclKind::Default), None);
        let mut sub = Inode::new(FileKind::Directory, 0o2777);
        sub.permissions().inherit(&directory.2, 0o077);
        assert_eq!((sub.1, sub.list(AclKind::Default)), (0o2741, Some(value(NAMED))));
        let mut link = Inode::new(FileKind::Symlink, 0o777);
        link.permissions().inherit(&directory.2, 0o077);
        assert_eq!((link.1, link.2.len()), (0o777, 0));
    }

    #[test]
    fn without_a_default_list_the_umask_applies() {
        let mut file = Inode::new(FileKind::Regular, 0o4666);
        file.permissions().inherit(&Xattrs::new(), 0o7027);
        assert_eq!((file.1, file.2.len()), (0o4640, 0));
        let minimal: Entries<'_> = &[(OWNER, 7, 0), (OWNING_GROUP, 5, 0), (OTHER, 5, 0)];
        let directory = Inode::new(FileKind::Directory, 0o755).with(AclKind::Default, minimal);
        let mut file = Inode::new(FileKind::Regular, 0o666);
        file.permissions().inherit(&directory.2, 0o077);
        assert_eq!((file.1, file.2.len()), (0o644, 0), "a minimal default list leaves a mode and no list");
    }

    #[test]
    fn what_is_no_list_or_has_no_place_is_refused() {
        let mut file = Inode::new(FileKind::Regular, 0o644);
        let invalid: [Entries<'_>; 9] = [
            &[(OWNER, 7, 0), (OWNING_GROUP, 5, 0)],
            &[(OWNER, 7, 0), (OWNING_GROUP, 5, 0), (OTHER, 8, 0)],
            &[(OWNER, 7, 0), (OTHER, 5, 0), (OWNING_GROUP, 5, 0)],
            &[(OWNER, 7, 0), (OWNER, 7, 0), (OWNING_GROUP, 5, 0), (OTHER, 5, 0)],
            &[(OWNER, 7, 0), (USER, 7, 1), (OWNING_GROUP, 5, 0), (OTHER, 5, 0)],
            &[(OWNER, 7, 0), (USER, 7, NO_ID), (OWNING_GROUP, 5, 0), (MASK, 7, 0), (OTHER, 5, 0)],
            &[(OWNER, 7, 0), (OWNING_GROUP, 5, 0), (MASK, 7, 0), (MASK, 7, 0), (OTHER, 5, 0)],
            &[(OWNER, 7, 0), (OWNING_GROUP, 5, 0), (OTHER, 5, 0), (OTHER, 5, 0)],
            &[(OWNER, 7, 0), (OWNING_GROUP, 5, 0), (OTHER, 5, 0), (0x40, 5, 0)],
        ];
        for entries in invalid {
            let set = file.permissions().set_acl(AclKind::Access, &value(entries));
            assert_eq!(set, Err(FsError::Invalid), "{entries:?}");
        }
        assert_eq!(file.permissions().set_acl(AclKind::Access, b"\x02\0"), Err(FsError::Invalid));
        assert_eq!(file.permissions().set_acl(AclKind::Access, b"\x02\0\0\0\x01"), Err(FsError::Invalid));
        assert_eq!(file.permissions().set_acl(AclKind::Access, b"\x01\0\0\0"), Err(FsError::NotSupported));
        let large = vec![0; ACL_VALUE_MAX + 1];
        assert_eq!(file.permissions().set_acl(AclKind::Access, &large), Err(FsError::AttributeTooLarge));
        assert_eq!(file.permissions().set_acl(AclKind::Default, &value(NAMED)), Err(FsError::AccessDenied));
        assert_eq!(file.permissions().set_acl(AclKind::Default, b""), Ok(()));
        let mut link = Inode::new(FileKind::Symlink, 0o777);
        assert_eq!(link.permissions().set_acl(AclKind::Access, &value(NAMED)), Err(FsError::NotSupported));
        assert_eq!((file.1, file.2.len(), link.2.len()), (0o644, 0, 0));
    }

    #[test]
    fn what_came_from_elsewhere_is_brought_in_step() {
        let mut file = Inode::new(FileKind::Regular, 0o600);
        file.2.insert(AclKind::Access.name().to_vec(), value(NAMED));
        file.2.insert(AclKind::Default.name().to_vec(), value(NAMED));
        file.2.insert(b"user.a".to_vec(), b"1".to_vec());
        file.permissions().settle();
        let masked: Entries<'_> =
            &[(OWNER, 6, NO_ID), (USER, 6, 7), (OWNING_GROUP, 5, NO_ID), (MASK, 0, NO_ID), (OTHER, 0, NO_ID)];
        assert_eq!((file.1, file.list(AclKind::Access)), (0o600, Some(value(masked))));
        assert_eq!(file.2.len(), 2);
        file.2.insert(AclKind::Access.name().to_vec(), b"no list".to_vec());
        file.permissions().settle();
        assert_eq!((file.1, file.2.len()), (0o600, 1));
    }
}
