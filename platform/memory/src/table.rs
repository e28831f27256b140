//! A map from numbers to shared values that many threads use at once.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

/// More than any machine's threads, so that two seldom meet in one shard.
const SHARDS: usize = 64;

#[derive(Debug)]
pub(crate) struct Table<T> {
    shards: [RwLock<HashMap<u64, Arc<T>>>; SHARDS],
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| RwLock::default()) }
    }
}

impl<T> Table<T> {
    fn shard(&self, number: u64) -> &RwLock<HashMap<u64, Arc<T>>> {
        &self.shards[number as usize % SHARDS]
    }

    pub(crate) fn get(&self, number: u64) -> Option<Arc<T>> {
        self.shard(number).read().get(&number).cloned()
    }

    pub(crate) fn insert(&self, number: u64, value: Arc<T>) {
        self.shard(number).write().insert(number, value);
    }

    pub(crate) fn remove(&self, number: u64) -> Option<Arc<T>> {
        self.shard(number).write().remove(&number)
    }
}
