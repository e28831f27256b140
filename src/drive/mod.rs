//! The drive: [`Vfs`](cairn_platform_api::Vfs) over the tree, the backing files and a content source.
//!
//! - `ops` are the operations, by family; `vfs` hands requests to them.
//! - `node` is an inode in use, `kernel_view` what the kernel still knows of, `inner` what the operations share, `local` how content changes hands between the remote and
//!   us, `content` how what is not here is read, `eviction` how the cache keeps its budget.
//! - `write_back` makes contents durable that somebody relies on without having synced them.
//!   `renewal` gives a file whose sync failed a new backing file.
//! - `aside` keeps contents that were replaced while somebody could write to them.
//! - `replication` is what the background replication asks for.
//!
//! Locks, in their order: the tree's (topology, gate, stripes of inodes), the body of a node, then a shard of a table, the
//! usage, the retirements: these last are held for one look-up. None is held over a network wait or an await; the tree's
//! and a body's are held over calls to local files, but not over a sync.
//!
//! It does not cut, seal or send anything, and it keeps no file locks: the kernel does.

mod aside;
mod background;
mod ballast;
mod content;
mod eviction;
mod handles;
mod inner;
mod kernel_view;
mod layout;
mod local;
mod node;
mod ops;
mod renewal;
mod replication;
mod retiring;
mod source;
mod vfs;
mod write_back;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cairn_platform_api::{InodeNo, VfsResult};
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;

use background::{Background, Recovery};
use ballast::Ballast;
use inner::{Inner, failed};
use write_back::WriteBack;

pub use replication::{ContentReader, DirtyFile, FileState, FrozenContent, Look, OpenForWrite, Synced};
pub use source::{ContentSource, FetchError, MemorySource};

use crate::base::os::{self, Disposition};
use crate::cache::{BackingFiles, DiskSpace, Stamp};
use crate::store::{Exclusive, Store, StoreOptions};
use crate::tree::{ChangeSet, Content, DeviceIdentity, Snapshot, Touched, Tree, TreeError};

/// How a drive behaves on this machine.
#[derive(Debug, Clone)]
pub struct DriveSettings {
    /// This machine as a member of the vault.
    pub device: DeviceIdentity,
    /// How the rows are kept.
    pub store: StoreOptions,
    /// Disk space for contents that are also on the remote, in bytes. Contents that are only here do not count against it.
    pub cache_budget: u64,
    /// Space that is left free on the disk, in bytes: writes are refused before it is touched. The rows need some of it to
    /// record what was accepted.
    pub disk_reserve: u64,
    /// How long a read may wait for the remote.
    pub read_deadline: Duration,
    /// Bytes that may be on their way ahead of readers at any one time.
    pub read_ahead: u64,
    /// Runs disk syncs and fetches.
    pub runtime: tokio::runtime::Handle,
}

impl DriveSettings {
    /// The default behaviour.
    pub fn new(device: DeviceIdentity, runtime: tokio::runtime::Handle) -> Self {
        Self {
            device,
            store: StoreOptions::default(),
            cache_budget: 20 << 30,
            disk_reserve: 64 << 20,
            read_deadline: Duration::from_secs(30),
            read_ahead: 64 << 20,
            runtime,
        }
    }
}

/// Why a drive could not be opened, or its state not read.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// Another process has it open.
    #[error("the drive {} is in use by another cairn process", .0.display())]
    InUse(PathBuf),
    /// A file or directory of the drive failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The rows could not be read or written.
    #[error("the state of the drive failed")]
    Tree(#[from] TreeError),
}

impl From<crate::store::StoreError> for DriveError {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Tree(error.into())
    }
}

/// Ends when what was accepted of an inode before the call is on the remote.
pub type RemoteSync = Box<dyn Fn(InodeNo) -> BoxFuture<'static, VfsResult<()>> + Send + Sync>;

/// An open drive.
pub struct Drive {
    inner: Arc<Inner>,
    background: Mutex<Option<Background>>,
    /// What `fsync` waits for besides this disk.
    remote_sync: OnceLock<RemoteSync>,
}

impl Drive {
    /// Opens the drive in a directory, making it where there is none. After an unclean stop it is recovered in the
    /// background.
    ///
    /// # Errors
    /// [`DriveError::InUse`], and where the files of the drive fail.
    pub fn open(dir: &Path, settings: DriveSettings, source: Arc<dyn ContentSource>) -> Result<Arc<Self>, DriveError> {
        let at = |action, path: &Path| {
            let path = path.to_owned();
            move |source| DriveError::Io { action, path, source }
        };
        os::create_private_directory(dir).map_err(at("make the directory", dir))?;
        let lock = lock(dir)?;
        let ballast = Ballast::new(dir);
        let state = dir.join("state.redb");
        let store = Arc::new(Store::open(&state, settings.store.clone())?);
        let contents = dir.join("content");
        let files = Arc::new(BackingFiles::open(&contents).map_err(at("make the directory", &contents))?);
        os::sync_directory(dir).map_err(at("sync the directory", dir))?;
        let tree = Arc::new(Tree::open(Arc::clone(&store), settings.device.clone())?);
        let read_ahead = usize::try_from(settings.read_ahead / content::READ_AHEAD_UNIT).unwrap_or(usize::MAX);
        let nodes = node::Nodes::new();
        let write_back = Arc::new(WriteBack::new(&files, &nodes));
        store.before_commits({
            let write_back = Arc::clone(&write_back);
            Box::new(move || write_back.go_ahead_of_rows())
        });
        let inner = Arc::new_cyclic(|this| Inner {
            this: this.clone(),
            tree,
            store,
            space: DiskSpace::new(files.dir(), settings.disk_reserve),
            ballast,
            recovery: Recovery::default(),
            files,
            source,
            nodes,
            write_back,
            handles: handles::Handles::new(),
            notifier: OnceLock::new(),
            retiring: Arc::default(),
            asides: aside::Asides::default(),
            chores: Mutex::default(),
            chores_turn: Mutex::default(),
            sending: RwLock::default(),
            usage: eviction::Usage::default(),
            kernel: kernel_view::KernelView::default(),
            read_ahead_units: Arc::new(Semaphore::new(read_ahead.min(Semaphore::MAX_PERMITS))),
            hydrating: Semaphore::new(content::HYDRATING_MAX),
            settings,
            _lock: lock,
        });
        // The row of the first block of numbers becomes durable with the beginning.
        inner.tree.allocate()?;
        let stop = inner.begin_session()?;
        inner.recover_asides();
        inner.keep_ballast();
        let background = Background::start(&inner, stop).map_err(at("start the background work of", dir))?;
        Ok(Arc::new(Self { inner, background: Mutex::new(Some(background)), remote_sync: OnceLock::new() }))
    }

    /// Waits until the recovery from an unclean stop has ended: before that, files that were written last may still count as
    /// published.
    pub fn wait_for_recovery(&self) {
        self.inner.recovery.wait();
    }

    /// From now on `fsync` waits for this too, after everything is durable here. Set once.
    pub fn sync_remotely(&self, sync: RemoteSync) {
        // There is one remote, so a second call would set the same.
        let _ = self.remote_sync.set(sync);
    }

    /// The tree.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.inner.tree
    }

    /// The files whose content is not on the remote.
    ///
    /// # Errors
    /// The rows or the files fail.
    pub fn dirty_files(&self) -> VfsResult<Vec<DirtyFile>> {
        self.inner.judge_asides();
        let mut inos = Vec::new();
        let visited = self.inner.tree.local_inodes(&mut |ino| {
            inos.push(ino);
            ControlFlow::Continue(())
        });
        visited.map_err(failed)?;
        inos.into_iter().filter_map(|ino| self.inner.dirty_file(ino).transpose()).collect()
    }

    /// Opens a local file for upload; `None` when it is gone or not local any more.
    ///
    /// # Errors
    /// The rows or the file fail.
    pub fn open_content(&self, ino: InodeNo) -> VfsResult<Option<ContentReader>> {
        ContentReader::open(&self.inner, ino)
    }

    /// Says that a local file was uploaded as this content, when it had this stamp. Called before the cut that publishes it;
    /// does nothing when the file changed since. Blocks on the disk.
    ///
    /// # Errors
    /// The rows or the file fail.
    pub fn uploaded(&self, ino: InodeNo, content: Content, stamp: Stamp) -> VfsResult<()> {
        self.inner.uploaded(ino, content, stamp, None)
    }

    /// Whether a file that a cut publishes still is what was uploaded and nobody can be writing to it: it becomes published
    /// content then. Otherwise it stays local; one that turns out unchanged when its last writer closes it becomes published
    /// content then. For [`Tree::cut`], in whose bulk work it runs.
    pub fn still_clean(&self, ino: InodeNo, snapshot: &Snapshot) -> bool {
        self.inner.still_clean(ino, snapshot)
    }

    /// Looks for writes through mappings that nobody told us of, before a merge decides what became of the files.
    pub fn notice_writes(&self) {
        self.inner.check_mappable(0, usize::MAX);
    }

    /// As [`Tree::fold`], with this drive's files: a file that is open for writing and was not modified takes the content
    /// of another device, and what is written to the old one after that is kept as a file beside it. Followed by
    /// [`Drive::apply_touched`]. Called without locks and off the request threads.
    ///
    /// # Errors
    /// As [`Tree::fold`].
    pub fn fold(
        &self,
        sets: Vec<ChangeSet>,
        record: impl FnOnce(&mut Exclusive<'_>) -> Result<(), TreeError>,
    ) -> Result<Vec<Touched>, TreeError> {
        self.inner.fold(sets, record)
    }

    /// How many contents that other devices replaced are kept, since somebody could still write to them.
    pub fn contents_aside(&self) -> usize {
        self.inner.asides()
    }

    /// Carries out what a fold or a cut changed: contents that were replaced or removed lose their backing files, and the
    /// kernel is told. Blocks until the kernel has let go, so it is called without locks and off the request threads.
    pub fn apply_touched(&self, touched: &[Touched]) {
        self.inner.apply_touched(touched);
    }

    /// Says which files are being sent, for `user.cairn.state`; replaces what was said before.
    pub fn set_sending(&self, inos: HashSet<InodeNo>) {
        *self.inner.sending.write() = inos;
    }

    /// Evicts the content of a file, if it is clean and nobody has it open. Answers how many bytes that makes.
    ///
    /// # Errors
    /// The rows or the file fail.
    pub fn evict(&self, ino: InodeNo) -> VfsResult<u64> {
        self.inner.do_chore_of(ino);
        Ok(self.inner.evict(ino)?.unwrap_or(0))
    }

    /// Bytes of clean contents on the disk, as far as they were counted by now.
    pub fn cached_bytes(&self) -> u64 {
        self.inner.usage.total()
    }

    /// Makes every operation that was acknowledged before the call durable here, except bytes that were written and not
    /// synced. Blocks on the disk.
    ///
    /// # Errors
    /// The disk failed, or failed before.
    pub fn flush(&self) -> VfsResult<()> {
        self.inner.store.flush().map_err(failed)
    }

    /// Ends the session: makes everything durable and notes that the stop was clean. Calls after it still work, and make the
    /// stop unclean again only by what they do not sync.
    ///
    /// # Errors
    /// The disk failed, or failed before.
    pub fn close(&self) -> VfsResult<()> {
        if let Some(background) = self.background.lock().take() {
            background.stop();
        }
        self.inner.check_mappable(0, usize::MAX);
        self.inner.kernel.unmounted();
        self.inner.end_asides()?;
        self.inner.end_session()
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        if let Some(background) = self.background.lock().take() {
            background.stop();
        }
        // They would keep the nodes, which keep nothing alive but files.
        let chores = std::mem::take(&mut *self.inner.chores.lock());
        drop(chores);
    }
}

/// Takes the lock of a drive directory.
fn lock(dir: &Path) -> Result<File, DriveError> {
    let path = dir.join("lock");
    let failed = |source| DriveError::Io { action: "lock", path: path.clone(), source };
    let file = os::open_private(&path, Disposition::Create).map_err(failed)?;
    match fs4::FileExt::try_lock(&file) {
        Ok(()) => Ok(file),
        Err(fs4::TryLockError::WouldBlock) => Err(DriveError::InUse(dir.to_owned())),
        Err(fs4::TryLockError::Error(error)) => Err(failed(error)),
    }
}
