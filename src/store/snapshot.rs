//! Snapshots: all rows as they were at one moment, read while operations go on.
//!
//! A snapshot is what redb has after some commit, so a whole number of operations. It takes no memory, but as long as it
//! lives the file cannot reuse the pages that it sees. On a full disk the committer takes it away: whoever reads it gets
//! an error and starts again later.

use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use super::database::Snapshot;
use super::operation::Rows;
use super::{StoreError, Visitor};

/// Taken away by the committer. A leaf lock, held for as long as it takes to copy what is in it.
type Held = Mutex<Option<Arc<Snapshot>>>;

/// All rows at one moment.
pub struct StoreSnapshot(Arc<Held>);

/// The snapshots of a store that may be alive.
#[derive(Default)]
pub(super) struct Snapshots(Vec<Weak<Held>>);

impl Snapshots {
    pub fn hand_out(&mut self, snapshot: Arc<Snapshot>) -> StoreSnapshot {
        let held = Arc::new(Mutex::new(Some(snapshot)));
        self.0.retain(|other| other.strong_count() > 0);
        self.0.push(Arc::downgrade(&held));
        StoreSnapshot(held)
    }

    /// Takes all of them away.
    pub fn take_all(&mut self) -> Vec<Arc<Snapshot>> {
        self.0.drain(..).filter_map(|held| held.upgrade()?.lock().take()).collect()
    }
}

impl StoreSnapshot {
    fn read<T>(&self, read: impl FnOnce(&Snapshot) -> Result<T, redb::StorageError>) -> Result<T, StoreError> {
        let snapshot = self.0.lock().clone().ok_or(StoreError::NoSpace)?;
        read(&snapshot).map_err(|error| StoreError::Read(Arc::new(error.into())))
    }
}

impl Rows for StoreSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.read(|snapshot| Ok(snapshot.rows.get(key)?.map(|value| Bytes::copy_from_slice(value.value()))))
    }

    fn scan_from(&self, prefix: &[u8], start: Bound<&[u8]>, visit: &mut Visitor<'_>) -> Result<(), StoreError> {
        self.read(|snapshot| {
            for row in snapshot.rows.range::<&[u8]>((start, Bound::Unbounded))? {
                let (key, value) = row?;
                if !key.value().starts_with(prefix) || visit(key.value(), value.value()) == ControlFlow::Break(()) {
                    break;
                }
            }
            Ok(())
        })
    }
}
