//! Operations: staged writes under the gate.

use std::ops::{Bound, ControlFlow, Deref, DerefMut};

use bytes::Bytes;
use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

use super::commit::Committer;
use super::{Layer, StoreError, Visitor};

/// Reading rows.
pub trait Rows {
    /// The value of a row.
    ///
    /// # Errors
    /// [`StoreError::Read`]; [`StoreError::NoSpace`] where the database could not be opened again on a full disk.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Visits the rows that begin with `prefix`, from `start` on, in order of keys, until the visitor breaks. A prefix of
    /// one byte visits a family, through all shards and slower; otherwise it has at least
    /// [`super::GROUP_LENGTH`] bytes. No lock is held while visiting; rows that others write meanwhile may be seen or not.
    ///
    /// # Errors
    /// As [`Rows::get`].
    fn scan_from(&self, prefix: &[u8], start: Bound<&[u8]>, visit: &mut Visitor<'_>) -> Result<(), StoreError>;

    /// Visits all rows that begin with `prefix`.
    ///
    /// # Errors
    /// As [`Rows::get`].
    fn scan(&self, prefix: &[u8], visit: &mut Visitor<'_>) -> Result<(), StoreError> {
        self.scan_from(prefix, Bound::Included(prefix), visit)
    }

    /// Visits all rows of a family.
    ///
    /// # Errors
    /// As [`Rows::get`].
    fn scan_family(&self, family: u8, visit: &mut Visitor<'_>) -> Result<(), StoreError> {
        self.scan(&[family], visit)
    }

    /// Whether any row begins with `prefix`.
    ///
    /// # Errors
    /// As [`Rows::get`].
    fn any(&self, prefix: &[u8]) -> Result<bool, StoreError> {
        let mut found = false;
        self.scan(prefix, &mut |_, _| {
            found = true;
            ControlFlow::Break(())
        })?;
        Ok(found)
    }
}

enum Gate<'a> {
    Shared { _guard: RwLockReadGuard<'a, ()> },
    Exclusive { _guard: RwLockWriteGuard<'a, ()> },
}

/// Counts the gates a thread holds, to catch the second one before it deadlocks.
struct Once;

/// Catches, in debug builds, a thread that waits for the committer while it holds the gate that the committer needs.
pub(super) fn assert_no_gate() {
    #[cfg(debug_assertions)]
    GATES.with(|gates| assert_eq!(gates.get(), 0, "a thread waits for a store while it holds its gate"));
}

#[cfg(debug_assertions)]
thread_local! {
    static GATES: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

impl Once {
    fn enter() -> Self {
        #[cfg(debug_assertions)]
        GATES.with(|gates| {
            assert_eq!(gates.get(), 0, "a thread takes the gate of a store while it holds one");
            gates.set(1);
        });
        Self
    }
}

#[cfg(debug_assertions)]
impl Drop for Once {
    fn drop(&mut self) {
        GATES.with(|gates| gates.set(0));
    }
}

/// One operation: reads see its own writes; nothing is written before [`Operation::commit`].
#[must_use = "an operation that is dropped is undone"]
pub struct Operation<'a> {
    staged: Layer,
    committer: &'a Committer,
    _gate: Gate<'a>,
    _once: Once,
}

impl<'a> Operation<'a> {
    pub(super) fn shared(committer: &'a Committer) -> Self {
        let once = Once::enter();
        let gate = Gate::Shared { _guard: committer.gate.read() };
        Self { staged: Layer::new(), committer, _gate: gate, _once: once }
    }

    /// Writes a row.
    pub fn put(&mut self, key: &[u8], value: impl Into<Bytes>) {
        self.stage(key, Some(value.into()));
    }

    /// Removes a row.
    pub fn delete(&mut self, key: &[u8]) {
        self.stage(key, None);
    }

    /// Writes or removes a row.
    pub fn set(&mut self, key: &[u8], value: Option<Bytes>) {
        self.stage(key, value);
    }

    fn stage(&mut self, key: &[u8], value: Option<Bytes>) {
        debug_assert!(key.len() >= super::GROUP_LENGTH, "a key has a family and a group");
        match self.staged.get_mut(key) {
            Some(staged) => *staged = value,
            None => {
                self.staged.insert(key.into(), value);
            }
        }
    }

    /// Hands the writes over: from now on everybody sees them, and a later flush makes them durable.
    pub fn commit(self) {
        if !self.staged.is_empty() {
            self.committer.layers.write(self.staged);
            self.committer.wrote();
        }
    }
}

impl Rows for Operation<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if let Some(value) = self.staged.get(key) {
            return Ok(value.clone());
        }
        match self.committer.layers.get(key) {
            Some(value) => Ok(value),
            None => self.committer.read(key),
        }
    }

    fn scan_from(&self, prefix: &[u8], start: Bound<&[u8]>, visit: &mut Visitor<'_>) -> Result<(), StoreError> {
        self.committer.scan(prefix, start, Some(&self.staged), visit)
    }
}

/// Bulk work: an operation without others beside it.
#[must_use = "bulk work that is dropped is undone"]
pub struct Exclusive<'a>(Operation<'a>);

impl<'a> Exclusive<'a> {
    pub(super) fn new(committer: &'a Committer) -> Self {
        let once = Once::enter();
        let gate = Gate::Exclusive { _guard: committer.gate.write() };
        Self(Operation { staged: Layer::new(), committer, _gate: gate, _once: once })
    }

    /// As [`Operation::commit`].
    pub fn commit(self) {
        self.0.commit();
    }
}

impl<'a> Deref for Exclusive<'a> {
    type Target = Operation<'a>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Exclusive<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Rows for Exclusive<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.0.get(key)
    }

    fn scan_from(&self, prefix: &[u8], start: Bound<&[u8]>, visit: &mut Visitor<'_>) -> Result<(), StoreError> {
        self.0.scan_from(prefix, start, visit)
    }
}

/// The gate held shared, for reading.
pub struct Reading<'a> {
    committer: &'a Committer,
    _gate: RwLockReadGuard<'a, ()>,
    _once: Once,
}

impl<'a> Reading<'a> {
    pub(super) fn new(committer: &'a Committer) -> Self {
        let once = Once::enter();
        Self { committer, _gate: committer.gate.read(), _once: once }
    }
}

impl Rows for Reading<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.committer.layers.get(key) {
            Some(value) => Ok(value),
            None => self.committer.read(key),
        }
    }

    fn scan_from(&self, prefix: &[u8], start: Bound<&[u8]>, visit: &mut Visitor<'_>) -> Result<(), StoreError> {
        self.committer.scan(prefix, start, None, visit)
    }
}
