//! Ordered rows: byte keys to byte values, in memory over one redb table, with group commit.
//!
//! Operations write into the *active* layer; the committer swaps it against an empty one twice a second (at once when
//! somebody waits in [`Store::flush`], early when it grows large) and writes the *frozen* one to redb in one durable
//! transaction. A read asks active, frozen, redb.
//!
//! Invariants:
//! - An [`Operation`] stages its writes and hands them over in [`Operation::commit`] while it holds the gate shared; the
//!   committer swaps with the gate held exclusively. So what becomes durable is always a whole number of operations,
//!   a prefix of them in the order of their commits, and dropping an operation undoes it.
//! - Nobody takes the gate twice: the second shared request of a thread waits for a waiting committer, which waits for
//!   the first. Debug builds check it.
//! - A full disk is a state to recover from: the frozen layer stays, operations are refused with
//!   [`StoreError::NoSpace`], the commit is tried again every second. Any other failure to commit is final, and so is every
//!   failed sync, for it may have lost what a later one would not miss: what was acknowledged by a flush is on disk, and
//!   nothing else is acknowledged any more.
//!
//! Opening after an unclean stop: periodic commits use redb's quick repair (its allocator state is saved, opening does
//! not walk the file); a commit somebody waits for spares that work, and the next period makes up for it.
//!
//! It knows nothing of what rows mean, and keeps no history.

mod commit;
mod database;
mod layers;
mod operation;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use commit::Committer;
use layers::Layers;

pub use operation::{Exclusive, Operation, Reading, Rows};
pub use snapshot::StoreSnapshot;

/// The first bytes of a key that decide its shard: a family byte and a big-endian `u64`.
pub const GROUP_LENGTH: usize = 9;

/// Receives rows in the order of their keys.
pub type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Rows in memory; `None` is a deleted one.
type Layer = BTreeMap<Box<[u8]>, Option<Bytes>>;

/// How a store works; the defaults are what a drive uses.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Bytes of redb's page cache. Hot rows live in it, not in the layers.
    pub page_cache: usize,
    /// The longest time an operation stays in memory only.
    pub commit_interval: Duration,
    /// Bytes in the active layer that start a commit early.
    pub soft_limit: usize,
    /// Bytes in both layers above which operations wait for the committer.
    pub hard_limit: usize,
    /// How long to wait before a commit that found the disk full is tried again.
    pub full_retry: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            page_cache: 64 << 20,
            commit_interval: Duration::from_millis(500),
            soft_limit: 32 << 20,
            hard_limit: 128 << 20,
            full_retry: Duration::from_secs(1),
        }
    }
}

/// Why the store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be opened.
    #[error("cannot open the database {}", path.display())]
    Open {
        /// The database.
        path: PathBuf,
        /// Why.
        source: Arc<redb::Error>,
    },
    /// Another process has it open.
    #[error("the database {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// The disk is full. It is tried again until it is not.
    #[error("no space left for the database")]
    NoSpace,
    /// The disk cannot be written to. It is tried again until it can.
    #[error("the disk of the database is read-only")]
    ReadOnly,
    /// Reading failed.
    #[error("cannot read from the database")]
    Read(#[source] Arc<redb::Error>),
    /// Writing failed, and nothing is written any more.
    #[error("cannot write to the database")]
    Failed(#[source] Arc<redb::Error>),
    /// The thread that commits cannot be started.
    #[error("cannot start the thread that commits")]
    Thread(#[source] Arc<io::Error>),
    /// The store is closed.
    #[error("the database is closed")]
    Closed,
}

/// Ordered rows. Dropping it writes out what is in memory.
pub struct Store {
    committer: Arc<Committer>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the database at `path`, or makes an empty one.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::InUse`], [`StoreError::NoSpace`] and [`StoreError::Thread`].
    pub fn open(path: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        Self::start(Box::new(database::FileMedium::new(path)), options)
    }

    /// A store that is not kept, for tests and simulations.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn in_memory() -> Result<Self, StoreError> {
        let options = StoreOptions { page_cache: 1 << 20, ..StoreOptions::default() };
        Self::start(Box::<database::MemoryMedium>::default(), options)
    }

    fn start(medium: Box<dyn database::Medium>, options: StoreOptions) -> Result<Self, StoreError> {
        let committer = Arc::new(Committer::open(medium, options)?);
        let thread = std::thread::Builder::new().name("store-commit".into()).spawn({
            let committer = Arc::clone(&committer);
            move || committer.run()
        });
        let thread = thread.map_err(|error| StoreError::Thread(Arc::new(error)))?;
        Ok(Self { committer, thread: Mutex::new(Some(thread)) })
    }

    /// Starts an operation: holds the gate shared until it is committed or dropped. Waits while the layers are too large.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] while the disk is full, [`StoreError::Failed`] once a commit failed.
    pub fn operation(&self) -> Result<Operation<'_>, StoreError> {
        self.committer.admit()?;
        Ok(Operation::shared(&self.committer))
    }

    /// Starts bulk work: holds the gate exclusively, so there are no operations beside it.
    ///
    /// # Errors
    /// As [`Store::operation`].
    pub fn exclusive(&self) -> Result<Exclusive<'_>, StoreError> {
        self.committer.admit()?;
        Ok(Exclusive::new(&self.committer))
    }

    /// Holds the gate shared for reading: no bulk work changes anything meanwhile. Never waits for a disk.
    pub fn reading(&self) -> Reading<'_> {
        Reading::new(&self.committer)
    }

    /// Blocks until everything that operations committed before the call is durable.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] and [`StoreError::Failed`]: it is not durable.
    ///
    /// # Panics
    /// In debug builds, when the thread holds the gate: it would wait for itself.
    pub fn flush(&self) -> Result<(), StoreError> {
        operation::assert_no_gate();
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.committer.when_durable(Box::new(move |result| {
            // The receiver waits below, always.
            let _ = sender.send(result);
        }));
        receiver.recv().unwrap_or(Err(StoreError::Closed))
    }

    /// As [`Store::flush`], as a future.
    pub fn flush_later(&self) -> BoxFuture<'static, Result<(), StoreError>> {
        let (sender, receiver) = oneshot::channel();
        self.committer.when_durable(Box::new(move |result| {
            // Whoever dropped the future does not want to know.
            let _ = sender.send(result);
        }));
        receiver.map(|result| result.unwrap_or(Err(StoreError::Closed))).boxed()
    }

    /// Runs `action` on the committer's thread once everything committed before this call is durable; never if it does
    /// not become so. Starts no commit by itself earlier than the period does.
    pub fn after_commit(&self, action: Box<dyn FnOnce() + Send>) {
        self.committer.after_commit(action);
    }

    /// Before a commit writes the first row, runs `prepare` on the committer's thread: it makes durable what the operations of
    /// the commit rely on. Operations go on meanwhile. Set once.
    pub fn before_commits(&self, prepare: Box<dyn Fn() + Send + Sync>) {
        self.committer.before_commits(prepare);
    }

    /// What is durable at this moment, to be read while operations go on. On a full disk it is taken away again.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] while the database is being opened again on a full disk, [`StoreError::Closed`].
    pub fn snapshot(&self) -> Result<StoreSnapshot, StoreError> {
        self.committer.snapshot()
    }

    /// Whether operations are refused, and why.
    pub fn trouble(&self) -> Option<StoreError> {
        self.committer.trouble()
    }

    fn layers(&self) -> &Layers {
        &self.committer.layers
    }
}

impl Rows for Store {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.layers().get(key) {
            Some(value) => Ok(value),
            None => self.committer.read(key),
        }
    }

    fn scan_from(&self, prefix: &[u8], start: Bound<&[u8]>, visit: &mut Visitor<'_>) -> Result<(), StoreError> {
        self.committer.scan(prefix, start, None, visit)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.committer.close();
        if let Some(thread) = self.thread.lock().take() {
            if thread.join().is_err() {
                tracing::error!("the thread that commits ended in a panic");
            }
        }
    }
}
