//! How often the kernel was told of each inode, and so when it has let go of one.
//!
//! Every reply that carries an entry counts, and `FORGET` gives some or all of them back. Giving back some does not mean
//! that the inode is out of use: only at zero does nothing (no path, no descriptor, no mapping) refer to it any more.

use std::collections::HashMap;

use parking_lot::Mutex;

/// More than any machine's threads, so that two seldom meet in one shard.
const SHARDS: usize = 64;

/// The inodes that the kernel knows, with the number of times it was told of each.
pub(crate) struct KnownInodes([Mutex<HashMap<u64, u64>>; SHARDS]);

impl KnownInodes {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }

    fn shard(&self, ino: u64) -> &Mutex<HashMap<u64, u64>> {
        &self.0[ino as usize % SHARDS]
    }

    /// Counts an entry, before the reply that carries it.
    pub(crate) fn tell(&self, ino: u64) {
        *self.shard(ino).lock().entry(ino).or_default() += 1;
    }

    /// Counts what the kernel gives back, and calls `unknown` where that was all. The shard is locked meanwhile, so that
    /// an entry told at the same time comes before or after, not between.
    pub(crate) fn forget(&self, ino: u64, times: u64, unknown: impl FnOnce()) {
        let mut shard = self.shard(ino).lock();
        let Some(told) = shard.get_mut(&ino) else { return };
        *told = told.saturating_sub(times);
        if *told == 0 {
            shard.remove(&ino);
            unknown();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_unknown_when_all_was_given_back() {
        let known = KnownInodes::new();
        known.tell(7);
        known.tell(7);
        known.tell(7 + SHARDS as u64);
        known.forget(7, 1, || panic!("it was told twice"));
        let mut unknown = 0;
        known.forget(7, 1, || unknown += 1);
        known.forget(7, 1, || panic!("it was unknown"));
        assert_eq!(unknown, 1);
    }
}
