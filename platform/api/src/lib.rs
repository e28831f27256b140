//! The seam between a file system driver and the product: the [`Vfs`] trait and the values it speaks.
//!
//! A driver (FUSE, WinFsp) decodes a request, calls one method, encodes the answer. Whatever implements
//! [`Vfs`] knows nothing of drivers. Nothing here depends on the product or on an operating system.
//!
//! Rules that every implementation keeps and every driver relies on:
//! - No method waits for a network, and none waits for another request. What may take long answers
//!   [`Answer::Later`], and the driver drives that future away from its request threads.
//! - Inode numbers are node ids: they are never used for a second object while the drive exists.
//! - The driver's kernel checks permissions (`default_permissions`) and keeps file locks; the `Vfs` keeps
//!   owner, mode and the rules that change them.

mod acl;
mod error;
mod types;
mod vfs;

pub use acl::{ACL_VALUE_MAX, AclKind, Permissions, Xattrs};
pub use error::{FsError, VfsResult};
pub use types::*;
pub use vfs::{Answer, DirectorySink, Notifier, ReadAnswer, Vfs};
