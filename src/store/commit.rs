//! The committer: the thread that writes the frozen layer to redb, and the way to read both.

use std::collections::VecDeque;
use std::ops::{Bound, ControlFlow};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use redb::Database;

use super::database::{
    Failure, Medium, ROWS, Snapshot, failure, make_safe, open_any, open_database, passing, read_snapshot,
};
use super::layers::Layers;
use super::snapshot::{Snapshots, StoreSnapshot};
use super::{Layer, StoreError, StoreOptions, Visitor};

type Waiter = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
type Action = Box<dyn FnOnce() + Send>;
type Preparation = Box<dyn Fn() + Send + Sync>;

/// What the committer is to do, and how far it is. Layers are numbered in the order they are written.
struct Progress {
    /// The number of the active layer.
    active: u64,
    /// Layers up to this one are durable.
    durable: u64,
    /// Callers that wait until the layer of that number is durable.
    waiters: VecDeque<(u64, Waiter)>,
    /// What to run when the active layer is durable.
    actions: Vec<Action>,
    /// Somebody wants a commit now.
    hurry: bool,
    closing: bool,
    trouble: Option<StoreError>,
    generation: u64,
}

/// Locks in their order: the gate, a shard of the layers, the progress, the snapshots, the reader.
pub(super) struct Committer {
    /// Held shared by operations and exclusively to swap the layers and for bulk work.
    pub gate: RwLock<()>,
    pub layers: Layers,
    /// The active layer has rows. Set with the gate held, cleared with it held exclusively.
    dirty: AtomicBool,
    /// Operations are refused; [`Progress::trouble`] says why.
    refusing: AtomicBool,
    /// Guards [`Progress`].
    progress: Mutex<Progress>,
    /// The committer waits here for work.
    work: Condvar,
    /// Everybody else waits here for the committer.
    change: Condvar,
    /// `None` while the database is being opened again.
    reader: RwLock<Option<Arc<Snapshot>>>,
    /// Guards [`Snapshots`]; taken before the reader.
    snapshots: Mutex<Snapshots>,
    /// Taken out and put back by the committer's thread alone.
    database: Mutex<Option<Database>>,
    medium: Box<dyn Medium>,
    options: StoreOptions,
    prepare: OnceLock<Preparation>,
}

/// What is being committed.
struct Frozen {
    number: u64,
    layers: Vec<Arc<Layer>>,
    actions: Vec<Action>,
}

impl Committer {
    pub fn open(medium: Box<dyn Medium>, options: StoreOptions) -> Result<Self, StoreError> {
        let (database, snapshot) = open_database(&*medium, &options, 0)?;
        Ok(Self {
            gate: RwLock::new(()),
            layers: Layers::new(),
            dirty: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            progress: Mutex::new(Progress {
                active: 1,
                durable: 0,
                waiters: VecDeque::new(),
                actions: Vec::new(),
                hurry: false,
                closing: false,
                trouble: None,
                generation: 0,
            }),
            work: Condvar::new(),
            change: Condvar::new(),
            reader: RwLock::new(Some(snapshot)),
            snapshots: Mutex::default(),
            database: Mutex::new(Some(database)),
            medium,
            options,
            prepare: OnceLock::new(),
        })
    }

    /// Waits until the layers have room; no gate is held.
    pub fn admit(&self) -> Result<(), StoreError> {
        if !self.refusing.load(Ordering::Acquire) && self.layers.size() < self.options.hard_limit {
            return Ok(());
        }
        let mut progress = self.progress.lock();
        loop {
            if let Some(trouble) = &progress.trouble {
                return Err(trouble.clone());
            }
            if self.layers.size() < self.options.hard_limit {
                return Ok(());
            }
            progress.hurry = true;
            self.work.notify_one();
            self.change.wait(&mut progress);
        }
    }

    /// Notes that the active layer was written; the gate is held.
    pub fn wrote(&self) {
        let first = !self.dirty.swap(true, Ordering::AcqRel);
        let large = self.layers.active_size() > self.options.soft_limit;
        if first || large {
            let mut progress = self.progress.lock();
            progress.hurry |= large;
            self.work.notify_one();
        }
    }

    pub fn when_durable(&self, waiter: Waiter) {
        let mut progress = self.progress.lock();
        if let Some(trouble @ (StoreError::Failed(_) | StoreError::Closed)) = &progress.trouble {
            let trouble = trouble.clone();
            drop(progress);
            return waiter(Err(trouble));
        }
        let target = if self.dirty.load(Ordering::Acquire) { progress.active } else { progress.active - 1 };
        if progress.durable >= target {
            drop(progress);
            return waiter(Ok(()));
        }
        progress.waiters.push_back((target, waiter));
        progress.hurry = true;
        self.work.notify_one();
    }

    pub fn after_commit(&self, action: Action) {
        let mut progress = self.progress.lock();
        progress.actions.push(action);
        if !self.dirty.swap(true, Ordering::AcqRel) {
            self.work.notify_one();
        }
    }

    pub fn before_commits(&self, prepare: Preparation) {
        // There is one drive to a store, so a second call would set the same.
        let _ = self.prepare.set(prepare);
    }

    pub fn trouble(&self) -> Option<StoreError> {
        self.progress.lock().trouble.clone()
    }

    pub fn close(&self) {
        self.progress.lock().closing = true;
        self.work.notify_one();
    }

    /// The body of the committer's thread: returns once the store is closed.
    pub fn run(&self) {
        let _closing = CloseOnPanic(self);
        let mut quick = true;
        let mut frozen = None;
        while let Some(urgent) = self.wait_for_work(frozen.is_some(), quick) {
            let next = match frozen.take() {
                Some(frozen) => frozen,
                None => {
                    let frozen = self.freeze();
                    if let Some(prepare) = self.prepare.get() {
                        prepare();
                    }
                    frozen
                }
            };
            let close = self.progress.lock().closing;
            quick = close || !urgent;
            match self.write(&next.layers, quick) {
                Ok(snapshot) => self.finish(next, snapshot),
                Err(error) => {
                    let lost = self.medium.has_lost_writes();
                    if let Some(trouble) = passing(&error).filter(|_| !lost) {
                        frozen = Some(next);
                        self.wait_for_disk(&trouble);
                        if close {
                            tracing::error!(%trouble, "the last operations of the drive are not on the disk");
                            break;
                        }
                        continue;
                    }
                    tracing::error!(%error, "cannot write to the database: nothing is accepted any more");
                    self.latch(StoreError::Failed(error));
                    return;
                }
            }
        }
        self.close_readers();
        *self.database.lock() = None;
        self.latch(StoreError::Closed);
    }

    /// Waits until there is something to commit, and answers whether somebody waits for it; `None` at the end.
    fn wait_for_work(&self, retrying: bool, quick: bool) -> Option<bool> {
        let mut progress = self.progress.lock();
        if retrying {
            let deadline = Instant::now() + self.options.full_retry;
            while !progress.closing && !self.work.wait_until(&mut progress, deadline).timed_out() {}
            return Some(true);
        }
        loop {
            let idle = !self.dirty.load(Ordering::Acquire);
            if progress.closing && idle {
                return None;
            }
            // After an urgent commit the next period saves what makes opening quick, if only that.
            if idle && quick {
                self.work.wait(&mut progress);
                continue;
            }
            let deadline = Instant::now() + self.options.commit_interval;
            while !progress.hurry && !progress.closing {
                if self.work.wait_until(&mut progress, deadline).timed_out() {
                    break;
                }
            }
            return Some(std::mem::take(&mut progress.hurry));
        }
    }

    fn freeze(&self) -> Frozen {
        let _gate = self.gate.write();
        let layers = self.layers.freeze();
        let mut progress = self.progress.lock();
        self.dirty.store(false, Ordering::Release);
        let number = progress.active;
        progress.active += 1;
        Frozen { number, layers, actions: std::mem::take(&mut progress.actions) }
    }

    fn write(&self, layers: &[Arc<Layer>], quick: bool) -> Result<Arc<Snapshot>, Failure> {
        let mut database = self.database.lock();
        let generation = self.progress.lock().generation;
        let database = match &mut *database {
            Some(database) => database,
            // It was full when it was to be opened again.
            none => none.insert(open_any(&*self.medium, &self.options)?),
        };
        let mut rows: Vec<_> = layers.iter().flat_map(|layer| layer.iter()).collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        let mut transaction = database.begin_write().map_err(failure)?;
        make_safe(&mut transaction);
        transaction.set_quick_repair(quick);
        {
            let mut table = transaction.open_table(ROWS).map_err(failure)?;
            for (key, value) in rows {
                match value {
                    Some(value) => drop(table.insert(&**key, &**value).map_err(failure)?),
                    None => drop(table.remove(&**key).map_err(failure)?),
                }
            }
        }
        transaction.commit().map_err(failure)?;
        read_snapshot(database, generation)
    }

    fn finish(&self, frozen: Frozen, snapshot: Arc<Snapshot>) {
        let old = self.reader.write().replace(snapshot);
        drop(old);
        self.layers.thaw();
        let mut progress = self.progress.lock();
        progress.durable = frozen.number;
        progress.trouble = None;
        self.refusing.store(false, Ordering::Release);
        let mut ready = Vec::new();
        while progress.waiters.front().is_some_and(|(number, _)| *number <= frozen.number) {
            ready.extend(progress.waiters.pop_front());
        }
        drop(progress);
        self.change.notify_all();
        ready.into_iter().for_each(|(_, waiter)| waiter(Ok(())));
        frozen.actions.into_iter().for_each(|action| action());
    }

    /// The disk takes nothing for now: tells everybody, and opens the database again, since redb does not go on after an error.
    fn wait_for_disk(&self, trouble: &StoreError) {
        self.refuse(trouble.clone());
        let mut database = self.database.lock();
        self.close_readers();
        *database = None;
        let generation = {
            let mut progress = self.progress.lock();
            progress.generation += 1;
            progress.generation
        };
        match open_database(&*self.medium, &self.options, generation) {
            Ok((opened, snapshot)) => {
                *database = Some(opened);
                *self.reader.write() = Some(snapshot);
            }
            Err(error) => tracing::warn!(%trouble, %error, "the database cannot be opened again yet"),
        }
        self.change.notify_all();
    }

    /// Takes the database away from all who read it.
    fn close_readers(&self) {
        let reader = self.reader.write().take();
        let mut readers = self.snapshots.lock().take_all();
        readers.extend(reader);
        readers.sort_by_key(Arc::as_ptr);
        readers.dedup_by(|one, other| Arc::ptr_eq(one, other));
        readers.into_iter().for_each(wait_for_readers);
    }

    pub fn snapshot(&self) -> Result<StoreSnapshot, StoreError> {
        let snapshot = {
            let mut snapshots = self.snapshots.lock();
            let current = self.reader.read().clone();
            current.map(|current| snapshots.hand_out(current))
        };
        snapshot.ok_or_else(|| self.trouble().unwrap_or(StoreError::NoSpace))
    }

    fn latch(&self, trouble: StoreError) {
        self.refuse(trouble);
        self.change.notify_all();
    }

    fn refuse(&self, trouble: StoreError) {
        let waiters = {
            let mut progress = self.progress.lock();
            progress.trouble = Some(trouble.clone());
            self.refusing.store(true, Ordering::Release);
            std::mem::take(&mut progress.waiters)
        };
        self.change.notify_all();
        waiters.into_iter().for_each(|(_, waiter)| waiter(Err(trouble.clone())));
    }

    /// Reads from redb; where it has latched an error of the committer, from the database that is opened again.
    fn with_snapshot<T>(
        &self,
        mut read: impl FnMut(&Snapshot) -> Result<T, redb::StorageError>,
    ) -> Result<T, StoreError> {
        loop {
            let snapshot = self.reader.read().clone();
            let Some(snapshot) = snapshot else {
                return Err(self.trouble().unwrap_or(StoreError::NoSpace));
            };
            match read(&snapshot) {
                Ok(value) => return Ok(value),
                Err(redb::StorageError::PreviousIo) => {
                    let generation = snapshot.generation;
                    drop(snapshot);
                    let mut progress = self.progress.lock();
                    while progress.generation == generation {
                        if let Some(trouble @ (StoreError::Failed(_) | StoreError::Closed)) = &progress.trouble {
                            return Err(trouble.clone());
                        }
                        self.change.wait(&mut progress);
                    }
                }
                Err(error) => return Err(StoreError::Read(Arc::new(error.into()))),
            }
        }
    }

    pub fn read(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.with_snapshot(|snapshot| Ok(snapshot.rows.get(key)?.map(|value| Bytes::copy_from_slice(value.value()))))
    }

    /// Visits layers and redb, merged.
    pub fn scan(
        &self,
        prefix: &[u8],
        start: Bound<&[u8]>,
        staged: Option<&Layer>,
        visit: &mut Visitor<'_>,
    ) -> Result<(), StoreError> {
        let mut position: Bound<Vec<u8>> = start.map(<[u8]>::to_vec);
        loop {
            let step = self.layers.step(prefix, position.as_ref().map(Vec::as_slice), staged);
            let flow = self.with_snapshot(|snapshot| {
                let mut merge = Merge { rows: &step.rows, position: &mut position, visit: &mut *visit };
                merge.run(snapshot, prefix, step.until.as_deref())
            })?;
            match (flow, step.until) {
                (ControlFlow::Continue(()), Some(until)) => position = Bound::Excluded(until.into()),
                _ => return Ok(()),
            }
        }
    }
}

/// Merges a piece of the layers over redb. `position` follows what was visited, so that it can be started again.
struct Merge<'a, 'v> {
    rows: &'a Layer,
    position: &'a mut Bound<Vec<u8>>,
    visit: &'a mut Visitor<'v>,
}

impl Merge<'_, '_> {
    fn run(
        &mut self,
        snapshot: &Snapshot,
        prefix: &[u8],
        until: Option<&[u8]>,
    ) -> Result<ControlFlow<()>, redb::StorageError> {
        let start = self.position.clone();
        let start = start.as_ref().map(Vec::as_slice);
        let rows = self.rows;
        let mut above = rows.range::<[u8], _>((start, Bound::Unbounded)).peekable();
        let end = until.map_or(Bound::Unbounded, Bound::Included);
        for row in snapshot.rows.range::<&[u8]>((start, end))? {
            let (key, value) = row?;
            let key = key.value();
            if !key.starts_with(prefix) {
                break;
            }
            while let Some((first, value)) = above.next_if(|(first, _)| ***first < *key) {
                if self.hand_out(first, value.as_deref()).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            let flow = match above.next_if(|(first, _)| ***first == *key) {
                Some((_, above)) => self.hand_out(key, above.as_deref()),
                None => self.hand_out(key, Some(value.value())),
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        for (key, value) in above {
            if self.hand_out(key, value.as_deref()).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn hand_out(&mut self, key: &[u8], value: Option<&[u8]>) -> ControlFlow<()> {
        match &mut *self.position {
            Bound::Excluded(position) => {
                position.clear();
                position.extend_from_slice(key);
            }
            position => *position = Bound::Excluded(key.to_vec()),
        }
        value.map_or(ControlFlow::Continue(()), |value| (self.visit)(key, value))
    }
}

/// Whoever waits for a committer that panicked is told so.
struct CloseOnPanic<'a>(&'a Committer);

impl Drop for CloseOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.latch(StoreError::Closed);
        }
    }
}

/// Waits for the last reads of a database that is to be closed; they wait for nothing.
fn wait_for_readers(reader: Arc<Snapshot>) {
    let mut reader = Err(reader);
    while let Err(shared) = reader {
        std::thread::yield_now();
        reader = Arc::try_unwrap(shared);
    }
}
