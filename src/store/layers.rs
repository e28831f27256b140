//! The two layers in memory, in shards.

use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;

use super::{GROUP_LENGTH, Layer};

/// Enough that threads seldom meet in one.
const SHARDS: usize = 64;
/// What a row takes beside its bytes, roughly: its share of tree nodes and allocations.
const ROW_OVERHEAD: usize = 96;
/// Rows taken from a layer at a time by a scan.
const STEP: usize = 256;

#[derive(Default)]
struct Shard {
    active: Layer,
    frozen: Arc<Layer>,
}

/// The rows that are not in redb yet.
///
/// Lock order: the gate, then at most one shard.
pub(super) struct Layers {
    shards: Vec<RwLock<Shard>>,
    hasher: RandomState,
    active_size: AtomicUsize,
    frozen_size: AtomicUsize,
}

/// A piece of the layers, merged: rows in order, up to `until` where that is not the end.
pub(super) struct Step {
    pub rows: Layer,
    pub until: Option<Box<[u8]>>,
}

impl Layers {
    pub fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: RandomState::new(),
            active_size: AtomicUsize::new(0),
            frozen_size: AtomicUsize::new(0),
        }
    }

    fn shard(&self, key: &[u8]) -> &RwLock<Shard> {
        let group = &key[..key.len().min(GROUP_LENGTH)];
        &self.shards[self.hasher.hash_one(group) as usize % SHARDS]
    }

    /// The row, where the layers know about it: `Some(None)` is a deleted one.
    pub fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        let shard = self.shard(key).read();
        shard.active.get(key).or_else(|| shard.frozen.get(key)).cloned()
    }

    /// Moves staged rows into the active layer; the gate is held.
    pub fn write(&self, staged: Layer) {
        for (key, value) in staged {
            let added = size(&key, value.as_ref());
            let mut shard = self.shard(&key).write();
            let removed = match shard.active.get_mut(&key) {
                Some(old) => {
                    let removed = size(&key, old.as_ref());
                    *old = value;
                    removed
                }
                None => {
                    shard.active.insert(key, value);
                    0
                }
            };
            self.active_size.fetch_add(added, Ordering::Relaxed);
            self.active_size.fetch_sub(removed, Ordering::Relaxed);
        }
    }

    /// Makes the active layer the frozen one, which is empty; the gate is held exclusively.
    pub fn freeze(&self) -> Vec<Arc<Layer>> {
        let frozen = self.shards.iter().map(|shard| {
            let mut shard = shard.write();
            debug_assert!(shard.frozen.is_empty(), "the frozen layer was written");
            shard.frozen = Arc::new(std::mem::take(&mut shard.active));
            Arc::clone(&shard.frozen)
        });
        let frozen = frozen.collect();
        self.frozen_size.store(self.active_size.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        frozen
    }

    /// Forgets the frozen layer, which readers of redb see there by now.
    pub fn thaw(&self) {
        for shard in &self.shards {
            let old = std::mem::take(&mut shard.write().frozen);
            drop(old);
        }
        self.frozen_size.store(0, Ordering::Relaxed);
    }

    pub fn active_size(&self) -> usize {
        self.active_size.load(Ordering::Relaxed)
    }

    pub fn size(&self) -> usize {
        self.active_size() + self.frozen_size.load(Ordering::Relaxed)
    }

    /// The next rows with `prefix` from `start` on; `staged` lies above the layers.
    pub fn step(&self, prefix: &[u8], start: Bound<&[u8]>, staged: Option<&Layer>) -> Step {
        let mut step = Step { rows: Layer::new(), until: None };
        let mut take = |layer: &Layer| {
            let range = layer.range::<[u8], _>((start, Bound::Unbounded));
            for (taken, (key, value)) in range.take_while(|(key, _)| key.starts_with(prefix)).enumerate() {
                if step.until.as_ref().is_some_and(|until| key > until) {
                    break;
                }
                step.rows.insert(key.clone(), value.clone());
                if taken + 1 == STEP {
                    step.until = Some(key.clone());
                    break;
                }
            }
        };
        if prefix.len() >= GROUP_LENGTH {
            let shard = self.shard(prefix).read();
            take(&shard.frozen);
            take(&shard.active);
        } else {
            for shard in &self.shards {
                let shard = shard.read();
                take(&shard.frozen);
                take(&shard.active);
            }
        }
        if let Some(staged) = staged {
            take(staged);
        }
        if let Some(until) = &step.until {
            let mut after = step.rows.split_off(until);
            step.rows.extend(after.remove_entry(until));
        }
        step
    }
}

fn size(key: &[u8], value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len) + ROW_OVERHEAD
}
