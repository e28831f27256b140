//! The replicated namespace: rows, local changes, change sets, and the fold that merges them.
//!
//! `docs/ARCHITECTURE.md` says how it works and `docs/CONVERGENCE.md` why all devices end with the same rows. In short:
//! local changes write rows directly and keep the first value they replace as a *pre-image*; the pending change is the
//! difference between the two. [`Tree::cut`] makes a [`ChangeSet`] of it. [`Tree::fold`] takes change sets of other devices
//! in any order: it puts pre-images back, applies all in the order of their ids, and applies the pending change again.
//!
//! Invariants (`invariants` checks them in tests): every name's inode exists and knows the name, every inode but the root
//! has a name, link counts are right, there are no cycles.
//!
//! Locks, in their order: the topology mutex, the gate of the store, stripes of inodes. None is held over a disk sync, a
//! network wait or an await. A thread that holds a [`Change`] or a [`View`] starts no other.
//!
//! It checks what keeps the rows sound, not what POSIX says an operation may do; that is the drive's. It does not know
//! remotes. Log, undo rows and the graveyard are kept for ever in this version.

mod apply;
mod aside;
mod change;
mod change_set;
mod content;
mod dump;
mod fold;
pub mod invariants;
mod join;
#[cfg(test)]
mod joining;
pub mod keys;
#[cfg(test)]
mod model;
mod names;
mod namespace;
mod pending;
mod rows;
#[cfg(test)]
mod rules;
mod surface;

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn_platform_api::{FileKind, InodeNo, Timestamp, VfsName};
use parking_lot::Mutex;

use change::Stripes;
use keys::family;

pub use aside::{AsideRow, Contents};
pub use change::{Change, Detached, Last, View};
pub use change_set::{Birth, ChangeSet, ContentChange, DEVICE_NAME_MAX, DentryChange, InodeChange};
pub use content::ManifestRows;
pub use dump::{RowStream, StreamRow, dump_published};
pub use fold::{Cut, PendingSummary, Touched};
pub use join::{Join, JoinError, JoinSource, JoinState};
pub use namespace::Namespace;
pub use pending::Unpublished;
pub use rows::{Content, ContentState, DentryRow, InodeRow, Link, Place, Snapshot, Stamp, Version};

use crate::base::codec::DecodeError;
use crate::base::{DeviceId, HybridClock};
use crate::store::{Operation, Rows, Store, StoreError};

/// A dentry: a name of an inode, wherever it is. From the same counter as inode numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DentryId(pub u64);

impl fmt::Debug for DentryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dentry {:#x}", self.0)
    }
}

/// Which device this is.
#[derive(Debug, Clone)]
pub struct DeviceIdentity {
    /// Its id, for ever.
    pub id: DeviceId,
    /// What it is called; conflict copies are named after it.
    pub name: String,
}

impl DeviceIdentity {
    /// Whether this can be a device's name: what other devices would not read must not be published.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_name(name: &str) -> Result<(), &'static str> {
        if name.is_empty() {
            return Err("it is empty");
        }
        if name.len() > DEVICE_NAME_MAX {
            return Err("it is longer than 255 bytes");
        }
        if name.chars().any(char::is_control) {
            return Err("it has control characters");
        }
        Ok(())
    }
}

/// Why the tree did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TreeError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A row is not what it should be.
    #[error("the row {key} of the database is damaged")]
    Corrupt {
        /// Its key in hexadecimal.
        key: String,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// There is no such inode.
    #[error("{0:?} does not exist")]
    NoInode(InodeNo),
    /// There is no such name.
    #[error("{:?} has no name {}", .0.parent, .0.name)]
    NoName(Place),
    /// The name is not free.
    #[error("{:?} already has a name {}", .0.parent, .0.name)]
    Taken(Place),
    /// The directory has names.
    #[error("{0:?} is not empty")]
    NotEmpty(InodeNo),
    /// Nothing can be cut yet.
    #[error("a checkpoint is being loaded")]
    Joining,
    /// The database is another device's.
    #[error("the database belongs to device {found}, not {expected}")]
    OtherDevice {
        /// The device in the database.
        found: u64,
        /// The device asked for.
        expected: DeviceId,
    },
}

impl TreeError {
    pub(crate) fn corrupt(key: &[u8], source: DecodeError) -> Self {
        Self::Corrupt { key: hex::encode(key), source }
    }
}

/// Numbers of inodes and dentries. They are reserved in blocks: a number is given out before the row of its block is
/// committed only together with that row.
pub(crate) struct Numbers {
    next: AtomicU64,
    /// Blocks below this one are reserved by rows that were committed.
    reserved: AtomicU64,
}

/// 2^16 numbers.
const BLOCK_BITS: u32 = 16;
/// Blocks after the last whose row is there that may have been used by operations that were lost with their rows: more
/// numbers than the operations take that are in memory at any one time. A number is not used twice, for what is on the disk
/// under it may be there still. A restart skips 2^19 of 2^40 numbers.
const UNSURE_BLOCKS: u64 = 8;

impl Numbers {
    fn open(rows: &impl Rows, device: DeviceId) -> Result<Self, TreeError> {
        let first = u64::from(device.0) << 40 >> BLOCK_BITS;
        let mut block = first;
        rows.scan_family(family::BLOCK, &mut |key, _| {
            block = block.max(keys::number(key).unwrap_or(0) + UNSURE_BLOCKS);
            ControlFlow::Continue(())
        })?;
        // Number 0 of a device is never given out.
        let next = (block << BLOCK_BITS).max((u64::from(device.0) << 40) + 1);
        Ok(Self { next: AtomicU64::new(next), reserved: AtomicU64::new(block) })
    }

    /// A number, and its block where that is to be reserved with it.
    fn next(&self) -> (u64, Option<u64>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let block = number >> BLOCK_BITS;
        (number, (block >= self.reserved.load(Ordering::Acquire)).then_some(block))
    }

    fn reserve(rows: &mut Operation<'_>, block: u64) {
        rows.put(&keys::numbered(family::BLOCK, block), &[1][..]);
    }

    fn reserved(&self, block: u64) {
        self.reserved.fetch_max(block + 1, Ordering::AcqRel);
    }
}

/// The namespace of one drive.
pub struct Tree {
    store: Arc<Store>,
    device: DeviceIdentity,
    clock: HybridClock,
    stripes: Stripes,
    /// Held while a directory moves to another, so that the way up from any directory is stable.
    topology: Mutex<()>,
    numbers: Arc<Numbers>,
    cut_limits: CutLimits,
}

/// How much one cut publishes at most: a change set must fit into a segment, which may hold 256 MiB.
#[derive(Debug, Clone, Copy)]
struct CutLimits {
    /// New inodes, directories aside. With names of usual length about 10 MB.
    births: usize,
    /// Bytes of changes, roughly: names, extended attributes, targets of links, lists of chunks.
    bytes: usize,
}

impl CutLimits {
    fn doubled(self) -> Self {
        Self { births: self.births.max(1).saturating_mul(2), bytes: self.bytes.max(1).saturating_mul(2) }
    }
}

impl Default for CutLimits {
    fn default() -> Self {
        Self { births: 100_000, bytes: 64 << 20 }
    }
}

impl Tree {
    /// Opens the namespace in `store`; an empty one gets a root directory.
    ///
    /// # Errors
    /// [`TreeError::OtherDevice`], and where rows cannot be read.
    pub fn open(store: Arc<Store>, device: DeviceIdentity) -> Result<Self, TreeError> {
        Self::open_with_clock(store, device, HybridClock::new())
    }

    /// As [`Tree::open`], with the clock of a simulation.
    ///
    /// # Errors
    /// As [`Tree::open`].
    pub fn open_with_clock(store: Arc<Store>, device: DeviceIdentity, clock: HybridClock) -> Result<Self, TreeError> {
        let device = DeviceIdentity { name: names::of_device(&device.name).to_owned(), ..device };
        let owner = keys::numbered(family::META, 0);
        {
            let mut rows = store.operation()?;
            match rows.get(&owner)? {
                Some(found) if *found == device.id.0.to_le_bytes() => {}
                Some(found) => {
                    let found = found.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
                    return Err(TreeError::OtherDevice { found, expected: device.id });
                }
                None => {
                    rows.put(&owner, device.id.0.to_le_bytes().to_vec());
                    // The same on all devices: the root belongs to no change set.
                    let root = InodeRow::new(FileKind::Directory, 0o755, Timestamp::default());
                    rows.put(&keys::inode(InodeNo::ROOT), root.encode());
                }
            }
            rows.commit();
        }
        let numbers = Arc::new(Numbers::open(&*store, device.id)?);
        let tree = Self {
            store,
            device,
            clock,
            stripes: Stripes::new(),
            topology: Mutex::new(()),
            numbers,
            cut_limits: CutLimits::default(),
        };
        tree.restore_clock()?;
        Ok(tree)
    }

    /// The rows below.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Which device this is.
    pub fn device(&self) -> &DeviceIdentity {
        &self.device
    }

    /// The clock of change sets.
    pub fn clock(&self) -> &HybridClock {
        &self.clock
    }

    /// An inode, as it is at this moment.
    ///
    /// # Errors
    /// [`TreeError`] where rows cannot be read; so for all methods.
    pub fn inode(&self, ino: InodeNo) -> Result<Option<InodeRow>, TreeError> {
        Namespace::inode(&*self.store, ino)
    }

    /// What a name means at this moment.
    ///
    /// # Errors
    /// As [`Tree::inode`].
    pub fn lookup(&self, parent: InodeNo, name: &VfsName) -> Result<Option<DentryRow>, TreeError> {
        Namespace::lookup(&*self.store, parent, name)
    }

    /// Visits the names in a directory that come after `after`, in the order of their bytes.
    ///
    /// # Errors
    /// As [`Tree::inode`].
    pub fn list(
        &self,
        directory: InodeNo,
        after: Option<&VfsName>,
        visit: &mut dyn FnMut(VfsName, DentryRow) -> ControlFlow<()>,
    ) -> Result<(), TreeError> {
        Namespace::list(&*self.store, directory, after, visit)
    }

    /// All names of an inode.
    ///
    /// # Errors
    /// As [`Tree::inode`].
    pub fn links(&self, ino: InodeNo) -> Result<Vec<Link>, TreeError> {
        Namespace::links(&*self.store, ino)
    }

    /// A number for a new inode or dentry. Not while holding a [`Change`]: that has its own.
    ///
    /// # Errors
    /// [`TreeError::Store`] where the store takes no operations.
    pub fn allocate(&self) -> Result<u64, TreeError> {
        let (number, block) = self.numbers.next();
        if let Some(block) = block {
            let mut rows = self.store.operation()?;
            Numbers::reserve(&mut rows, block);
            rows.commit();
            self.numbers.reserved(block);
        }
        Ok(number)
    }

    /// Starts a change of these inodes: holds the gate, and their stripes exclusively. Waits while the store is behind.
    ///
    /// # Errors
    /// [`TreeError::Store`] where the store takes no operations.
    pub fn change(&self, inos: &[InodeNo]) -> Result<Change<'_>, TreeError> {
        Change::new(self, inos, None)
    }

    /// As [`Tree::change`], for moving a directory to another one: no other directory moves meanwhile, so
    /// [`Namespace::is_within`] stays true.
    ///
    /// # Errors
    /// As [`Tree::change`].
    pub fn change_topology(&self, inos: &[InodeNo]) -> Result<Change<'_>, TreeError> {
        let topology = self.topology.lock();
        Change::new(self, inos, Some(topology))
    }

    /// Locks these inodes for reading: holds the gate, and their stripes shared.
    pub fn view(&self, inos: &[InodeNo]) -> View<'_> {
        View::new(self, inos)
    }
}
