//! What the rounds share, and the one way to the network: every request can be interrupted by pause and stop, and says
//! whether the remote answers.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::error::ReplicateError;
use super::failpoint::Failpoints;
use super::fetch::Fetcher;
use super::left::{self, Left, LeftFile};
use super::pull::PullState;
use super::push::KnownPacks;
use super::ready::PushState;
use super::rows;
use super::status::{Board, Transition};
use super::wanted::Wanted;
use super::{DrainProgress, Reachability, ReplicateSettings, Status, Transfer};
use crate::drive::Drive;
use crate::provider::{ErrorKind, Provider, ProviderError};
use crate::tree::Tree;
use crate::vault::Vault;

/// Whether replication runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Running,
    Paused,
    Stopped,
}

/// What the rounds share.
pub struct Engine {
    pub(super) drive: Arc<Drive>,
    pub(super) tree: Arc<Tree>,
    pub(super) vault: Arc<Vault>,
    pub(super) provider: Arc<dyn Provider>,
    pub(super) settings: ReplicateSettings,
    pub(super) board: Board,
    /// Where tests make steps fail.
    pub failpoints: Failpoints,
    pub(super) mode: watch::Sender<Mode>,
    pub(super) known_packs: KnownPacks,
    pub(super) wanted: Arc<Wanted>,
    /// There is no checkpoint to begin with: what is made here may be published.
    pub(super) nothing_to_load: AtomicBool,
    pub(super) runtime: Handle,
    /// Held over a whole push round, network waits included: rounds of one kind never overlap. Taken before no other lock.
    pub(super) push: tokio::sync::Mutex<PushState>,
    /// The same for pull rounds.
    pub(super) pull: tokio::sync::Mutex<PullState>,
}

impl Engine {
    /// An engine without tasks: rounds run when they are called. The fetcher is told where the chunks of this drive lie.
    pub fn new(drive: Arc<Drive>, fetcher: &Fetcher, settings: ReplicateSettings) -> Arc<Self> {
        let tree = Arc::clone(drive.tree());
        fetcher.attach(Arc::clone(&tree));
        Arc::new(Self {
            drive,
            tree,
            vault: Arc::clone(fetcher.vault()),
            provider: Arc::clone(fetcher.provider()),
            settings,
            board: Board::default(),
            failpoints: Failpoints::default(),
            mode: watch::Sender::new(Mode::Running),
            known_packs: KnownPacks::default(),
            wanted: Arc::default(),
            nothing_to_load: AtomicBool::default(),
            runtime: fetcher.runtime().clone(),
            push: tokio::sync::Mutex::default(),
            pull: tokio::sync::Mutex::default(),
        })
    }

    /// Once stopped, it stays stopped.
    pub(super) fn set_mode(&self, to: Mode) {
        self.mode.send_if_modified(|mode| {
            let changes = *mode != Mode::Stopped && *mode != to;
            if changes {
                *mode = to;
            }
            changes
        });
    }

    /// Waits while paused; whether rounds may run then.
    pub(super) async fn until_running(&self) -> bool {
        let mut mode = self.mode.subscribe();
        mode.wait_for(|mode| *mode != Mode::Paused).await.is_ok_and(|mode| *mode == Mode::Running)
    }

    /// Ends with [`ReplicateError::Interrupted`] when replication is paused or stopped.
    pub(super) async fn unless_interrupted<T>(
        &self,
        work: impl Future<Output = Result<T, ReplicateError>>,
    ) -> Result<T, ReplicateError> {
        let mut mode = self.mode.subscribe();
        tokio::select! {
            biased;
            // The sender lives as long as `self`.
            _ = mode.wait_for(|mode| *mode != Mode::Running) => Err(ReplicateError::Interrupted),
            result = work => result,
        }
    }

    /// One request to the remote.
    pub(super) async fn request<T>(
        &self,
        request: impl Future<Output = Result<T, ProviderError>>,
    ) -> Result<T, ReplicateError> {
        self.unless_interrupted(async {
            let result = request.await;
            self.note_reachability(result.as_ref().err());
            Ok(result?)
        })
        .await
    }

    fn note_reachability(&self, error: Option<&ProviderError>) {
        let is_away = |kind| matches!(kind, ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::Untrusted);
        let away = error.is_some_and(|error| is_away(error.kind));
        let transition = if away { self.board.unreachable() } else { self.board.reached() };
        let remote = || self.provider.name();
        match (transition, error) {
            (Transition::WentAway, Some(error)) => {
                let error = crate::provider::error::with_causes(error);
                tracing::warn!(remote = remote(), error, "the remote went away; changes are kept here");
            }
            (Transition::CameBack, _) => tracing::info!(remote = remote(), "the remote answers again"),
            _ => {}
        }
    }

    /// Everything there is to say.
    ///
    /// # Errors
    /// When the rows of the drive cannot be read.
    pub fn status(&self) -> Result<Status, ReplicateError> {
        let left = unpublished(&self.drive)?;
        let (upload_limit, download_limit) = self.settings.bandwidth.get();
        let mut status = Status {
            remote: self.provider.name(),
            reachability: Reachability::Unknown,
            paused: *self.mode.borrow() == Mode::Paused,
            changes_only_here: left.changes_left,
            files_only_here: left.files_left,
            bytes_only_here: left.bytes_left,
            outbox: left.segments_left,
            sending: Transfer::default(),
            left: self.left_files(),
            waits_for: self.waits_for()?,
            last_error: None,
            halted: None,
            devices: Vec::new(),
            upload_limit,
            download_limit,
        };
        self.board.fill(&mut status, rows::log_cursors(&**self.tree.store())?);
        Ok(status)
    }

    /// The files that rounds could not send.
    pub(super) fn left_files(&self) -> Vec<LeftFile> {
        let left = self.board.left().into_iter();
        left.map(|(ino, since_ms, reason)| LeftFile { path: self.drive.path_of(ino), reason, since_ms }).collect()
    }

    /// Says which files a round left, and why, in one sentence.
    pub(super) fn describe(&self, left: &Left) -> String {
        let named = |(ino, since_ms, reason)| LeftFile { path: self.drive.path_of(ino), reason, since_ms };
        let files = self.board.left().into_iter().filter(|(ino, ..)| left.0.contains(ino));
        left::sentence(&files.map(named).collect::<Vec<_>>())
    }

    /// Whether no segment waits to be sent.
    pub(super) fn nothing_waits(&self) -> Result<bool, ReplicateError> {
        Ok(rows::outbox_len(&**self.tree.store())? == 0)
    }

    /// Runs work that blocks on the disk off the runtime's threads.
    pub(super) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, ReplicateError> + Send + 'static,
    ) -> Result<T, ReplicateError> {
        let engine = Arc::clone(self);
        match tokio::task::spawn_blocking(move || work(&engine)).await {
            Ok(result) => result,
            Err(error) => Err(ReplicateError::Panicked(error.to_string())),
        }
    }
}

/// What only this device has, whether or not anything is replicating.
///
/// # Errors
/// When the rows of the drive cannot be read.
pub fn unpublished(drive: &Drive) -> Result<DrainProgress, ReplicateError> {
    let dirty = drive.dirty_files()?;
    let tree = drive.tree();
    Ok(DrainProgress {
        changes_left: tree.pending_summary()?.changes,
        files_left: dirty.len() as u64,
        bytes_left: dirty.iter().map(|file| file.size).sum(),
        segments_left: rows::outbox_len(&**tree.store())?,
    })
}
