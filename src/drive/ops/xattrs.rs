//! Extended attributes, and the virtual one that says where a file's content is.

use cairn_platform_api::{
    AclKind, FsError, InodeNo, SetXattrMode, Timestamp, VfsResult, XATTR_NAME_MAX, XATTR_VALUE_MAX, Xattrs,
};

use crate::drive::inner::Inner;
use crate::tree::InodeRow;

/// Readable, never listed, so that copies of a file do not carry it.
const STATE: &[u8] = b"user.cairn.state";
/// The most all names of an inode's extended attributes take (Linux `XATTR_LIST_MAX`).
const XATTR_LIST_MAX: usize = 65536;
/// The most all values of an inode's extended attributes take: they are published together.
const XATTR_VALUES_MAX: usize = 1 << 20;

impl Inner {
    pub(in crate::drive) fn getxattr(&self, ino: InodeNo, name: &[u8]) -> VfsResult<Vec<u8>> {
        check_name(name)?;
        let row = self.row_or_orphan(ino)?;
        if name == STATE {
            return self.state_of(ino, &row).map(|state| state.name().as_bytes().to_vec()).ok_or(FsError::NoAttribute);
        }
        row.xattrs.get(name).cloned().ok_or(FsError::NoAttribute)
    }

    pub(in crate::drive) fn listxattr(&self, ino: InodeNo) -> VfsResult<Vec<Vec<u8>>> {
        Ok(self.row_or_orphan(ino)?.xattrs.into_keys().collect())
    }

    pub(in crate::drive) fn setxattr(
        &self,
        ino: InodeNo,
        name: &[u8],
        value: &[u8],
        mode: SetXattrMode,
    ) -> VfsResult<()> {
        check_writable_name(name)?;
        if value.len() > XATTR_VALUE_MAX {
            return Err(FsError::AttributeTooLarge);
        }
        self.update(ino, |row| {
            match (mode, row.xattrs.contains_key(name)) {
                (SetXattrMode::Create, true) => return Err(FsError::Exists),
                (SetXattrMode::Replace, false) => return Err(FsError::NoAttribute),
                (_, true) => {}
                (_, false) => {
                    let listed: usize = row.xattrs.keys().map(|name| name.len() + 1).sum();
                    if listed + name.len() + 1 > XATTR_LIST_MAX {
                        return Err(FsError::NoSpace);
                    }
                }
            }
            if !has_room(&row.xattrs, name, value.len()) {
                return Err(FsError::NoSpace);
            }
            match AclKind::of(name) {
                Some(acl) => row.permissions().set_acl(acl, value)?,
                None => drop(row.xattrs.insert(name.to_vec(), value.to_vec())),
            }
            row.ctime = Timestamp::now();
            Ok(())
        })
        .map(|_| ())
    }

    pub(in crate::drive) fn removexattr(&self, ino: InodeNo, name: &[u8]) -> VfsResult<()> {
        check_writable_name(name)?;
        self.update(ino, |row| {
            match AclKind::of(name) {
                Some(acl) => row.permissions().remove_acl(acl)?,
                None => drop(row.xattrs.remove(name).ok_or(FsError::NoAttribute)?),
            }
            row.ctime = Timestamp::now();
            Ok(())
        })
        .map(|_| ())
    }

    fn row_or_orphan(&self, ino: InodeNo) -> VfsResult<InodeRow> {
        match self.row(ino)? {
            Some(row) => Ok(row),
            None => self.orphan(ino).ok_or(FsError::Stale),
        }
    }
}

/// Whether an attribute can have a value of this length; one that gets shorter always can.
fn has_room(xattrs: &Xattrs, name: &[u8], length: usize) -> bool {
    let taken: usize = xattrs.values().map(Vec::len).sum();
    let replaced = xattrs.get(name).map_or(0, Vec::len);
    length <= replaced || taken - replaced + length <= XATTR_VALUES_MAX
}

/// Of the kernel's own namespace there are access control lists alone.
fn check_name(name: &[u8]) -> VfsResult<()> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX {
        return Err(FsError::Range);
    }
    if name.starts_with(b"system.") && AclKind::of(name).is_none() {
        return Err(FsError::NotSupported);
    }
    Ok(())
}

fn check_writable_name(name: &[u8]) -> VfsResult<()> {
    check_name(name)?;
    if name == STATE { Err(FsError::NotPermitted) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_an_inode_have_a_limit() {
        let full = vec![0; XATTR_VALUE_MAX];
        let values = XATTR_VALUES_MAX / XATTR_VALUE_MAX;
        let mut xattrs: Xattrs =
            (0..values).map(|number| (format!("user.{number}").into_bytes(), full.clone())).collect();
        assert!(!has_room(&xattrs, b"user.more", 1));
        assert!(has_room(&xattrs, b"user.more", 0));
        assert!(has_room(&xattrs, b"user.0", full.len()));
        xattrs.insert(b"user.0".to_vec(), full[1..].to_vec());
        assert!(has_room(&xattrs, b"user.more", 1));
        assert!(!has_room(&xattrs, b"user.more", 2));
    }
}
