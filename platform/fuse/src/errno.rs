//! The one table from [`FsError`] to error numbers.

use cairn_platform_api::FsError;
use fuser::Errno;

/// The error number that says this to a program.
///
/// `NotSupported` is not `ENOSYS`: the kernel would take that as "never ask again" for the whole mount. `Stale` makes
/// the kernel look the name up again, where a path was given.
pub(crate) fn errno(error: FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::Stale => Errno::ESTALE,
        FsError::Exists => Errno::EEXIST,
        FsError::NotADirectory => Errno::ENOTDIR,
        FsError::IsADirectory => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::NotPermitted => Errno::EPERM,
        FsError::AccessDenied => Errno::EACCES,
        FsError::Invalid => Errno::EINVAL,
        FsError::BadHandle => Errno::EBADF,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::TooLarge => Errno::EFBIG,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::NoSpace => Errno::ENOSPC,
        // fuser has no name for it.
        FsError::QuotaExceeded => Errno::from_i32(libc::EDQUOT),
        FsError::ReadOnly => Errno::EROFS,
        FsError::NoAttribute => Errno::ENODATA,
        FsError::Range => Errno::ERANGE,
        FsError::AttributeTooLarge => Errno::E2BIG,
        FsError::NoOffset => Errno::ENXIO,
        FsError::CrossDevice => Errno::EXDEV,
        FsError::Busy => Errno::EBUSY,
        FsError::Interrupted => Errno::EINTR,
        FsError::NotSupported => Errno::EOPNOTSUPP,
        FsError::Io => Errno::EIO,
    }
}
