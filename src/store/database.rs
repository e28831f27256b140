//! The redb database below a store: where it lies, how it is opened, what readers see of it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::{FileBackend, InMemoryBackend};
use redb::{Builder, Database, DatabaseError, ReadOnlyTable, StorageBackend, TableDefinition};

use super::{StoreError, StoreOptions};
use crate::base::os::{self, Disposition};

pub(super) const ROWS: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("rows");

/// Where a database lies, so that it can be opened again.
pub(super) trait Medium: Send + Sync {
    fn open(&self) -> Result<Box<dyn StorageBackend>, DatabaseError>;
    fn path(&self) -> PathBuf;
    /// Set when a sync fails: what was written before it may not be there, though it can be read until the power goes.
    fn lost_writes(&self) -> &Arc<AtomicBool>;

    fn has_lost_writes(&self) -> bool {
        self.lost_writes().load(Ordering::Acquire)
    }
}

/// Remembers that a sync failed.
#[derive(Debug)]
struct Watched {
    backend: Box<dyn StorageBackend>,
    lost_writes: Arc<AtomicBool>,
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.backend.read(offset, len)
    }

    /// A length that grows is made durable at once: redb writes a header that counts on it before it syncs, and opens no file that
    /// is shorter than its header says.
    fn set_len(&self, len: u64) -> io::Result<()> {
        let grows = len > self.backend.len()?;
        self.backend.set_len(len)?;
        if grows { self.sync_data(false) } else { Ok(()) }
    }

    fn sync_data(&self, eventual: bool) -> io::Result<()> {
        self.backend.sync_data(eventual).inspect_err(|_| self.lost_writes.store(true, Ordering::Release))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.backend.write(offset, data)
    }
}

/// A file.
pub(super) struct FileMedium {
    path: PathBuf,
    lost_writes: Arc<AtomicBool>,
}

impl FileMedium {
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), lost_writes: Arc::default() }
    }

    /// Makes an empty database, whole or not at all: redb does not open one whose first pages are torn.
    fn make(&self) -> Result<(), DatabaseError> {
        let new = self.path.with_extension("new");
        let file = os::open_private(&new, Disposition::CreateEmpty)?;
        drop(builder().create_with_backend(FileBackend::new(file)?)?);
        os::open_private(&new, Disposition::Existing)?.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        Ok(self.path.parent().map_or(Ok(()), os::sync_directory)?)
    }
}

/// Databases of the format in which redb rewrites no page in place but its header: in the older one a power loss could leave
/// what it does not open again.
fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.create_with_file_format_v3(true);
    builder
}

impl Medium for FileMedium {
    fn open(&self) -> Result<Box<dyn StorageBackend>, DatabaseError> {
        if std::fs::metadata(&self.path).map_or(true, |found| found.len() == 0) {
            self.make()?;
        }
        let file = os::open_private(&self.path, Disposition::Existing)?;
        // A sync that failed in an earlier process may have left pages that are not on the disk: nothing is built on them.
        os::drop_cached_pages(&file)?;
        Ok(Box::new(FileBackend::new(file)?))
    }

    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn lost_writes(&self) -> &Arc<AtomicBool> {
        &self.lost_writes
    }
}

/// Memory, gone when the database is closed.
#[derive(Default)]
pub(super) struct MemoryMedium(Arc<AtomicBool>);

impl Medium for MemoryMedium {
    fn open(&self) -> Result<Box<dyn StorageBackend>, DatabaseError> {
        Ok(Box::new(InMemoryBackend::new()))
    }

    fn path(&self) -> PathBuf {
        "memory".into()
    }

    fn lost_writes(&self) -> &Arc<AtomicBool> {
        &self.0
    }
}

/// What readers see of redb: the state after the last commit.
pub(super) struct Snapshot {
    pub rows: ReadOnlyTable<&'static [u8], &'static [u8]>,
    /// Grows when the database is opened again.
    pub generation: u64,
}

pub(super) fn open_any(medium: &dyn Medium, options: &StoreOptions) -> Result<Database, Failure> {
    let mut builder = builder();
    builder.set_cache_size(options.page_cache);
    let path = medium.path();
    builder.set_repair_callback(move |_| tracing::info!(path = %path.display(), "repairing after an unclean stop"));
    let backend = medium.open().map_err(failure)?;
    let watched = Watched { backend, lost_writes: Arc::clone(medium.lost_writes()) };
    let mut database = builder.create_with_backend(watched).map_err(failure)?;
    database.upgrade().map_err(failure)?;
    let mut transaction = database.begin_write().map_err(failure)?;
    make_safe(&mut transaction);
    transaction.open_table(ROWS).map_err(failure)?;
    transaction.commit().map_err(failure)?;
    Ok(database)
}

/// Has a transaction commit in two phases. In one, redb relies on checksums to tell after a crash which commits are whole; a
/// second crash while it goes back to the last whole one can then destroy the database (redb before 4.2).
pub(super) fn make_safe(transaction: &mut redb::WriteTransaction) {
    transaction.set_durability(redb::Durability::Immediate);
    transaction.set_two_phase_commit(true);
}

pub(super) fn open_database(
    medium: &dyn Medium,
    options: &StoreOptions,
    generation: u64,
) -> Result<(Database, Arc<Snapshot>), StoreError> {
    let opened = open_any(medium, options).and_then(|database| {
        let snapshot = read_snapshot(&database, generation)?;
        Ok((database, snapshot))
    });
    opened.map_err(|error| match &*error {
        redb::Error::DatabaseAlreadyOpen => StoreError::InUse(medium.path()),
        error_of_disk => passing(error_of_disk)
            .unwrap_or_else(|| StoreError::Open { path: medium.path(), source: Arc::clone(&error) }),
    })
}

pub(super) fn read_snapshot(database: &Database, generation: u64) -> Result<Arc<Snapshot>, Failure> {
    let rows = database.begin_read().map_err(failure)?.open_table(ROWS).map_err(failure)?;
    Ok(Arc::new(Snapshot { rows, generation }))
}

/// Shared, since everybody who waits is told, and since redb's error is large.
pub(super) type Failure = Arc<redb::Error>;

pub(super) fn failure(error: impl Into<redb::Error>) -> Failure {
    Arc::new(error.into())
}

/// What a disk says that may take the same bytes later: it is full, or read-only.
pub(super) fn passing(error: &redb::Error) -> Option<StoreError> {
    let redb::Error::Io(error) = error else { return None };
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(StoreError::NoSpace),
        io::ErrorKind::ReadOnlyFilesystem => Some(StoreError::ReadOnly),
        _ => None,
    }
}
