//! Open files and directories by their numbers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn_platform_api::{FsError, HandleNo, VfsResult};
use parking_lot::RwLock;

/// Enough that requests on different handles rarely meet in one lock.
const SHARDS: usize = 64;

/// A table of handles. The locks guard the maps alone and are held for one look-up.
#[derive(Debug)]
pub(super) struct Handles<T> {
    next: AtomicU64,
    shards: Vec<RwLock<HashMap<u64, Arc<T>>>>,
}

impl<T> Handles<T> {
    pub(super) fn new() -> Self {
        Self { next: AtomicU64::new(1), shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }

    fn shard(&self, number: u64) -> &RwLock<HashMap<u64, Arc<T>>> {
        &self.shards[number as usize % SHARDS]
    }

    pub(super) fn insert(&self, handle: T) -> HandleNo {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(number).write().insert(number, Arc::new(handle));
        HandleNo(number)
    }

    pub(super) fn get(&self, handle: HandleNo) -> VfsResult<Arc<T>> {
        self.shard(handle.0).read().get(&handle.0).cloned().ok_or(FsError::BadHandle)
    }

    pub(super) fn remove(&self, handle: HandleNo) -> Option<Arc<T>> {
        self.shard(handle.0).write().remove(&handle.0)
    }
}
