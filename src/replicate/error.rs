//! Why a round stopped.

use cairn_platform_api::FsError;

use super::failpoint::Stopped;
use crate::chunk::CompressionError;
use crate::provider::{ErrorKind, ProviderError};
use crate::store::StoreError;
use crate::tree::TreeError;
use crate::vault::VaultError;

/// Why a push or pull round stopped. What it had done stays; the next round goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ReplicateError {
    /// The remote.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The rows of the drive.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The namespace.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The files of the drive.
    #[error("the local files of the drive failed")]
    Files(#[from] FsError),
    /// A local file could not be read.
    #[error("cannot read the content of {ino}")]
    Content {
        /// The inode, as `ino 0x..`.
        ino: String,
        /// Why not.
        source: FsError,
    },
    /// Something could not be sealed or understood.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A chunk could not be compressed.
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// Going on could destroy something; a person has to look.
    #[error("{0}")]
    Halted(String),
    /// A task of the round panicked; that is a defect.
    #[error("a background task failed unexpectedly: {0}")]
    Panicked(String),
    /// Replication was paused or stopped meanwhile.
    #[error("replication was paused or stopped")]
    Interrupted,
    /// A test.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl ReplicateError {
    /// Whether this says that the remote does not answer, which is nobody's error.
    pub(super) fn is_offline(&self) -> bool {
        matches!(
            self,
            Self::Provider(ProviderError {
                kind: ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::RateLimited { .. },
                ..
            })
        )
    }
}
