//! Why a drive is not mounted, or did not end well.

use std::io;

use cairn_platform_api::FsError;

use super::driver::MountError;
use crate::config::ConfigError;
use crate::drive::DriveError;
use crate::provider::{ProviderError, RemoteUrlError};
use crate::replicate::ReplicateError;
use crate::vault::VaultError;

/// Why a drive is not mounted, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The place does not do.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The drive cannot be opened.
    #[error("cannot open drive {name:?}")]
    Drive {
        /// Its name.
        name: String,
        /// Why.
        source: DriveError,
    },
    /// What was accepted may not be durable.
    #[error("cannot make everything of drive {name:?} durable")]
    Close {
        /// Its name.
        name: String,
        /// Why.
        source: FsError,
    },
    /// The vault cannot be unlocked.
    #[error("cannot unlock the vault of drive {name:?}")]
    Vault {
        /// The drive.
        name: String,
        /// Why.
        source: VaultError,
    },
    /// The content of the vault could not be read for the first time.
    #[error(
        "cannot read the content of the vault for drive {name:?}, which is needed once; try again when the remote answers"
    )]
    Join {
        /// The drive.
        name: String,
        /// Why.
        source: ReplicateError,
    },
    /// The content of the vault is needed once, and cannot all be read.
    #[error("drive {name:?} is not mounted, since it would not show everything: {reason}")]
    JoinDamaged {
        /// The drive.
        name: String,
        /// What cannot be read, and what to do.
        reason: String,
    },
    /// The root of a new vault could not be given to the user.
    #[error("the root directory of drive {name:?} cannot be given to you; mount it again")]
    OwnRoot {
        /// The drive.
        name: String,
        /// Why.
        source: FsError,
    },
    /// The rows of the drive cannot be read.
    #[error("cannot read the state of drive {name:?}")]
    Replication {
        /// The drive.
        name: String,
        /// Why.
        source: ReplicateError,
    },
    /// The record of the drive is not usable.
    #[error("the record of drive {name:?} has an unusable {field}; detach and attach it again")]
    Record {
        /// The drive.
        name: String,
        /// What is wrong.
        field: &'static str,
    },
    /// The remote's URL is not usable.
    #[error("the remote of drive {name:?} is not usable")]
    Url {
        /// The drive.
        name: String,
        /// Why.
        source: RemoteUrlError,
    },
    /// The remote cannot be set up.
    #[error(transparent)]
    Remote(#[from] ProviderError),
    /// A file of the data directory.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The system refused something.
    #[error("cannot {doing}")]
    System {
        /// What.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

pub(super) fn system(doing: &'static str) -> impl Fn(io::Error) -> SessionError {
    move |source| SessionError::System { doing, source }
}
