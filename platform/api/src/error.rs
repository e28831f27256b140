//! Why an operation failed, in the words of a file system. Drivers map each to their system's code.

/// The result of a [`crate::Vfs`] operation.
pub type VfsResult<T> = Result<T, FsError>;

/// A file system error. The driver's table is exhaustive: a new variant does not compile until it is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FsError {
    /// No such name, or (for an inode number) never existed.
    #[error("no such file or directory")]
    NotFound,
    /// The inode was there and is gone: the kernel looks the name up again.
    #[error("the file has been replaced or removed")]
    Stale,
    /// The name exists.
    #[error("the file exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotADirectory,
    /// Something else than a directory was needed.
    #[error("is a directory")]
    IsADirectory,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// Not the owner, or not allowed whatever the mode says.
    #[error("operation not permitted")]
    NotPermitted,
    /// The mode denies it.
    #[error("permission denied")]
    AccessDenied,
    /// An argument makes no sense.
    #[error("invalid argument")]
    Invalid,
    /// The handle is not open, or not open for this.
    #[error("bad file handle")]
    BadHandle,
    /// The name is longer than 255 bytes.
    #[error("the name is too long")]
    NameTooLong,
    /// The file would be larger than a file can be.
    #[error("the file is too large")]
    TooLarge,
    /// The inode has as many links as it can have.
    #[error("too many links")]
    TooManyLinks,
    /// No space for the bytes; none of them was accepted.
    #[error("no space left")]
    NoSpace,
    /// The bytes or the file would be more than this user may have on the disk.
    #[error("the quota is exceeded")]
    QuotaExceeded,
    /// The drive cannot be written.
    #[error("the drive is read-only")]
    ReadOnly,
    /// No extended attribute of that name.
    #[error("no such attribute")]
    NoAttribute,
    /// The extended attribute or its list does not fit the caller's buffer.
    #[error("the buffer is too small")]
    Range,
    /// The extended attribute is larger than this file system keeps.
    #[error("the attribute is too large")]
    AttributeTooLarge,
    /// There is no data or hole after this offset.
    #[error("no such offset")]
    NoOffset,
    /// The two names are not on one file system.
    #[error("cross-device link")]
    CrossDevice,
    /// The object is in use.
    #[error("busy")]
    Busy,
    /// The caller got a signal, or nobody waits for the answer any more; nothing was done.
    #[error("interrupted")]
    Interrupted,
    /// This file system does not offer it.
    #[error("not supported")]
    NotSupported,
    /// Input or output failed, or the content is on a remote that cannot be reached.
    #[error("input/output error")]
    Io,
}

impl From<std::io::Error> for FsError {
    /// A failed local file operation: full disks and missing rights keep their meaning, the rest is [`FsError::Io`].
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind as Kind;
        match error.kind() {
            Kind::StorageFull => Self::NoSpace,
            Kind::QuotaExceeded => Self::QuotaExceeded,
            Kind::FileTooLarge => Self::TooLarge,
            Kind::ReadOnlyFilesystem => Self::ReadOnly,
            Kind::InvalidInput => Self::Invalid,
            Kind::Unsupported => Self::NotSupported,
            _ => Self::Io,
        }
    }
}
