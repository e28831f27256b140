//! The store against a model, against crashes at every sync, and against disks that fail or are full.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redb::{DatabaseError, StorageBackend};

use super::database::Medium;
use super::*;

/// A disk in memory that keeps an image of what a crash would leave at every sync, and fails when told to.
#[derive(Debug, Default)]
struct Disk {
    bytes: Vec<u8>,
    /// Bytes as of the last sync, and what was written since.
    synced: Vec<u8>,
    unsynced: Vec<(u64, Vec<u8>)>,
    /// Images after crashes, each with what had been acknowledged then.
    crashes: Vec<(u64, Vec<u8>)>,
    acknowledged: Arc<AtomicU64>,
    keeps_crashes: bool,
    keeps_unsynced: bool,
    /// What cuts leave that take the new length of a file that has grown, and nothing of what was written within the old one.
    shorter: Vec<Vec<u8>>,
    /// Writes and syncs until one fails, and how.
    fail_in: Option<(u64, io::ErrorKind)>,
    /// The next sync fails like this, and loses what it was to make durable.
    fail_sync: Option<io::ErrorKind>,
    /// A full disk takes no writes above this length.
    capacity: Option<u64>,
}

#[derive(Debug, Clone, Default)]
struct SharedDisk(Arc<Mutex<Disk>>, Arc<AtomicBool>);

impl Disk {
    fn may_fail(&mut self) -> io::Result<()> {
        match &mut self.fail_in {
            Some((0, kind)) => Err((*kind).into()),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn apply(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
        let end = offset as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
    }

    fn crash(&mut self) {
        let acknowledged = self.acknowledged.load(Ordering::SeqCst);
        // Not all that was not synced reaches the disk: every other write, in two ways, and none.
        for kept in 0..3 {
            let mut image = self.synced.clone();
            image.resize(self.bytes.len().max(image.len()), 0);
            for (index, (offset, data)) in self.unsynced.iter().enumerate() {
                if index % 2 == kept {
                    Self::apply(&mut image, *offset, data);
                }
            }
            self.crashes.push((acknowledged, image));
        }
        self.crashes.push((acknowledged, self.bytes.clone()));
    }
}

impl StorageBackend for SharedDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().bytes.len() as u64)
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let disk = self.0.lock();
        let range = offset as usize..offset as usize + len;
        disk.bytes.get(range).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.may_fail()?;
        disk.bytes.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self, _eventual: bool) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.may_fail()?;
        if let Some(kind) = disk.fail_sync.take() {
            disk.unsynced.clear();
            return Err(kind.into());
        }
        if disk.keeps_crashes {
            disk.crash();
        }
        if disk.keeps_unsynced && disk.bytes.len() > disk.synced.len() && !disk.unsynced.is_empty() {
            let image = disk.bytes[..disk.synced.len()].to_vec();
            disk.shorter.push(image);
        }
        if disk.keeps_crashes || disk.keeps_unsynced {
            disk.synced = disk.bytes.clone();
            disk.unsynced.clear();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.may_fail()?;
        if disk.capacity.is_some_and(|capacity| offset + data.len() as u64 > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Disk::apply(&mut disk.bytes, offset, data);
        if disk.keeps_crashes || disk.keeps_unsynced {
            disk.unsynced.push((offset, data.to_vec()));
        }
        Ok(())
    }
}

impl Medium for SharedDisk {
    fn open(&self) -> Result<Box<dyn StorageBackend>, DatabaseError> {
        Ok(Box::new(self.clone()))
    }

    fn path(&self) -> PathBuf {
        "disk".into()
    }

    fn lost_writes(&self) -> &Arc<AtomicBool> {
        &self.1
    }
}

impl SharedDisk {
    fn store(&self, options: StoreOptions) -> Store {
        Store::start(Box::new(self.clone()), options).unwrap()
    }

    fn holding(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Disk { bytes, ..Disk::default() })), Arc::default())
    }
}

fn options() -> StoreOptions {
    StoreOptions {
        page_cache: 1 << 20,
        commit_interval: Duration::from_millis(5),
        full_retry: Duration::from_millis(5),
        ..StoreOptions::default()
    }
}

fn key(group: u64, rest: &[u8]) -> Vec<u8> {
    [&b"x"[..], &group.to_be_bytes(), rest].concat()
}

const COUNTER: u64 = 999;
const ROWS: u64 = 7;

/// Operation number `n`: a counter and one of a few rows.
fn count_up(store: &Store, n: u64) -> Result<(), StoreError> {
    let mut operation = store.operation()?;
    operation.put(&key(n % ROWS, b"row"), n.to_le_bytes().to_vec());
    operation.put(&key(COUNTER, b""), n.to_le_bytes().to_vec());
    operation.commit();
    Ok(())
}

/// The number of operations in a store, which must be a prefix of them.
fn counted(store: &Store) -> u64 {
    let number = |key: &[u8]| -> u64 {
        store.get(key).unwrap().map_or(0, |value| u64::from_le_bytes(value[..].try_into().unwrap()))
    };
    let count = number(&key(COUNTER, b""));
    for row in 0..ROWS {
        let last = (0..=count).rev().find(|n| n % ROWS == row).unwrap_or(0);
        assert_eq!(number(&key(row, b"row")), last, "row {row} after {count} operations");
    }
    count
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    // Looks are counted and not time, which also passes while the machine does other things.
    let happened = (0..300_000).any(|_| {
        condition() || {
            std::thread::sleep(Duration::from_millis(1));
            false
        }
    });
    assert!(happened, "{what} does not happen");
}

#[test]
fn a_crash_at_any_sync_leaves_a_prefix_with_all_that_was_acknowledged() {
    let disk = SharedDisk::default();
    disk.0.lock().keeps_crashes = true;
    let acknowledged = Arc::clone(&disk.0.lock().acknowledged);
    let store = disk.store(options());
    for n in 1..=60 {
        count_up(&store, n).unwrap();
        if n % 4 == 0 {
            store.flush().unwrap();
            acknowledged.store(n, Ordering::SeqCst);
        }
    }
    drop(store);
    let crashes = std::mem::take(&mut disk.0.lock().crashes);
    assert!(crashes.len() > 60);
    let mut last = 0;
    for (acknowledged, image) in crashes {
        let opened = Store::start(Box::new(SharedDisk::holding(image)), options());
        let opened = match opened {
            Ok(opened) => opened,
            // Torn while redb made the file: there was nothing in it yet.
            Err(_) if acknowledged == 0 && last == 0 => continue,
            Err(error) => panic!("{error:?}"),
        };
        let count = counted(&opened);
        assert!(count >= acknowledged, "{count} operations survive, {acknowledged} were acknowledged");
        last = count;
    }
    assert_eq!(last, 60, "closing writes everything");
}

/// What is left of a disk whose power went: what was synced, and any of the blocks written since.
fn after_a_power_cut(disk: &Disk, random: &mut impl FnMut(u64) -> u64) -> Vec<u8> {
    const BLOCK: usize = 4096;
    let kept = 1 + random(99);
    let mut image = disk.synced.clone();
    if random(2) == 0 {
        image.resize(disk.bytes.len(), 0);
    }
    let touched = disk.unsynced.iter().flat_map(|(offset, data)| {
        let first = *offset as usize / BLOCK;
        first..(*offset as usize + data.len()).div_ceil(BLOCK)
    });
    for block in touched.collect::<std::collections::BTreeSet<_>>() {
        let end = (block * BLOCK + BLOCK).min(image.len()).min(disk.bytes.len());
        if block * BLOCK < end && random(100) < kept {
            image[block * BLOCK..end].copy_from_slice(&disk.bytes[block * BLOCK..end]);
        }
    }
    image
}

#[test]
fn a_store_that_grows_survives_a_power_cut_that_takes_its_new_length_only() {
    let disk = SharedDisk::default();
    drop(disk.store(options()));
    {
        let mut disk = disk.0.lock();
        disk.synced = disk.bytes.clone();
        disk.keeps_unsynced = true;
    }
    let before = disk.0.lock().bytes.len();
    let store = disk.store(options());
    let mut n = 0;
    while disk.0.lock().bytes.len() < 2 * before {
        n += 1;
        let mut operation = store.operation().unwrap();
        operation.put(&key(2000 + n, b"filler"), vec![1; 100_000]);
        operation.commit();
        count_up(&store, n).unwrap();
        store.flush().unwrap();
    }
    drop(store);
    let images = std::mem::take(&mut disk.0.lock().shorter);
    for image in images {
        counted(&SharedDisk::holding(image).store(options()));
    }
}

#[test]
fn a_store_survives_power_cuts_again_and_again() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let (cuts, seed): (u64, u64) = (number("CAIRN_CUTS", 60), number("CAIRN_SEED", 1));
    let mut state = seed;
    let mut random = |limit: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    };
    let new = SharedDisk::default();
    drop(new.store(options()));
    let mut image = std::mem::take(&mut new.0.lock().bytes);
    let (mut done, mut acknowledged) = (0, 0);
    for cut in 0..cuts {
        let disk = SharedDisk::holding(image.clone());
        {
            let mut disk = disk.0.lock();
            disk.synced = image;
            disk.keeps_unsynced = true;
            disk.fail_in = Some((random(if cut % 3 == 0 { 25 } else { 250 }), io::ErrorKind::Other));
        }
        let opened = Store::start(Box::new(disk.clone()), options());
        let failed = matches!(disk.0.lock().fail_in, Some((0, _)));
        assert!(opened.is_ok() || failed, "cut {cut}: {:?}", opened.err());
        if let Ok(store) = opened {
            let count = counted(&store);
            assert!(count >= acknowledged && count <= done, "{count} of {acknowledged} to {done} before cut {cut}");
            (done, acknowledged) = (count, count);
            while {
                done += 1;
                let mut operation = store.operation();
                if let Ok(operation) = &mut operation {
                    // Rows come and go, so that pages do.
                    let row = key(2000 + random(300), b"filler");
                    if random(2) == 0 {
                        operation.put(&row, vec![done as u8; random(3000) as usize]);
                    } else {
                        operation.delete(&row);
                    }
                }
                operation.map(Operation::commit).and_then(|()| count_up(&store, done)).is_ok()
            } {
                if random(4) == 0 && store.flush().is_ok() {
                    acknowledged = done;
                }
            }
        }
        image = after_a_power_cut(&disk.0.lock(), &mut random);
    }
}

#[test]
fn after_a_failed_write_nothing_is_acknowledged_any_more() {
    for fail_in in [0, 1, 2, 3, 5, 8] {
        let disk = SharedDisk::default();
        let store = disk.store(options());
        count_up(&store, 1).unwrap();
        store.flush().unwrap();
        disk.0.lock().fail_in = Some((fail_in, io::ErrorKind::Other));
        let mut n = 1;
        until("the failure", || {
            n += 1;
            count_up(&store, n).is_err() || store.flush().is_err()
        });
        assert!(matches!(store.flush(), Err(StoreError::Failed(_))));
        assert!(matches!(count_up(&store, n + 1), Err(StoreError::Failed(_))));
        assert!(matches!(futures::executor::block_on(store.flush_later()), Err(StoreError::Failed(_))));
        drop(store);
        disk.0.lock().fail_in = None;
        let count = counted(&disk.store(options()));
        assert!(count >= 1 && count <= n);
    }
}

#[test]
fn a_full_disk_refuses_operations_until_there_is_space() {
    let disk = SharedDisk::default();
    // No commit but those that the test asks for.
    let store = disk.store(StoreOptions { commit_interval: Duration::from_secs(3600), ..options() });
    count_up(&store, 1).unwrap();
    store.flush().unwrap();
    disk.0.lock().capacity = Some(0);
    count_up(&store, 2).unwrap();
    assert!(matches!(store.flush(), Err(StoreError::NoSpace)));
    assert!(matches!(count_up(&store, 3), Err(StoreError::NoSpace)));
    assert!(matches!(store.flush(), Err(StoreError::NoSpace)));
    assert_eq!(store.get(&key(COUNTER, b"")).unwrap().unwrap()[..], 2u64.to_le_bytes(), "what is in memory is seen");
    disk.0.lock().capacity = None;
    until("the recovery", || count_up(&store, 3).is_ok());
    store.flush().unwrap();
    assert_eq!(counted(&store), 3);
    drop(store);
    assert_eq!(counted(&disk.store(options())), 3);
}

#[test]
fn a_sync_that_finds_the_disk_full_is_final() {
    let disk = SharedDisk::default();
    let store = disk.store(StoreOptions { commit_interval: Duration::from_secs(3600), ..options() });
    count_up(&store, 1).unwrap();
    store.flush().unwrap();
    disk.0.lock().fail_sync = Some(io::ErrorKind::StorageFull);
    count_up(&store, 2).unwrap();
    assert!(matches!(store.flush(), Err(StoreError::Failed(_))));
    assert!(matches!(store.flush(), Err(StoreError::Failed(_))), "what was lost is not acknowledged later");
    assert!(matches!(count_up(&store, 3), Err(StoreError::Failed(_))));
}

#[test]
fn a_commit_is_prepared_before_its_first_row_is_written() {
    let disk = SharedDisk::default();
    let store = disk.store(StoreOptions { commit_interval: Duration::from_secs(3600), ..options() });
    let wanted = Arc::new(AtomicU64::new(0));
    let prepared = Arc::new(Mutex::new(Vec::new()));
    store.before_commits(Box::new({
        let (disk, wanted, prepared) = (disk.clone(), Arc::clone(&wanted), Arc::clone(&prepared));
        move || {
            let image = disk.0.lock().bytes.clone();
            prepared.lock().push((wanted.load(Ordering::SeqCst), image));
        }
    }));
    for n in 1..=3u64 {
        let mut operation = store.operation().unwrap();
        operation.put(&key(COUNTER, b""), n.to_le_bytes().to_vec());
        operation.put(&key(n % ROWS, b"row"), n.to_le_bytes().to_vec());
        wanted.store(n, Ordering::SeqCst);
        operation.commit();
        store.flush().unwrap();
    }
    let prepared = std::mem::take(&mut *prepared.lock());
    assert_eq!(prepared.len(), 3);
    for (wanted, image) in prepared {
        assert_eq!(counted(&SharedDisk::holding(image).store(options())) + 1, wanted);
    }
}

#[test]
fn a_snapshot_stays_what_it_was_until_a_full_disk_takes_it_away() {
    let disk = SharedDisk::default();
    let store = disk.store(StoreOptions { commit_interval: Duration::from_secs(3600), ..options() });
    count_up(&store, 1).unwrap();
    store.flush().unwrap();
    let snapshot = store.snapshot().unwrap();
    count_up(&store, 2).unwrap();
    let seen = || snapshot.get(&key(COUNTER, b"")).map(|value| value.unwrap().to_vec());
    assert_eq!(seen().unwrap(), 1u64.to_le_bytes());
    store.flush().unwrap();
    assert_eq!(seen().unwrap(), 1u64.to_le_bytes());
    assert_eq!(rows_of(&snapshot, &[key(COUNTER, b"")[0]]).len(), 2);
    disk.0.lock().capacity = Some(0);
    count_up(&store, 3).unwrap();
    assert!(matches!(store.flush(), Err(StoreError::NoSpace)));
    until("the snapshot is taken away", || matches!(seen(), Err(StoreError::NoSpace)));
    disk.0.lock().capacity = None;
    until("the recovery", || count_up(&store, 4).is_ok());
    store.flush().unwrap();
    let last = store.snapshot().unwrap();
    assert_eq!(last.get(&key(COUNTER, b"")).unwrap().unwrap()[..], 4u64.to_le_bytes());
    drop(store);
    assert!(last.get(&key(COUNTER, b"")).is_err(), "a closed database has no readers");
    assert_eq!(counted(&disk.store(options())), 4);
}

#[test]
fn rows_agree_with_a_model_across_commits() {
    let store = SharedDisk::default().store(options());
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut state = 1u64;
    let mut random = |limit: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    };
    for round in 0..1500u64 {
        let mut operation = store.operation().unwrap();
        let mut changed = model.clone();
        for _ in 0..=random(3) {
            let key = key(random(3), &random(700).to_be_bytes());
            if random(3) == 0 {
                operation.delete(&key);
                changed.remove(&key);
            } else {
                operation.put(&key, round.to_le_bytes().to_vec());
                changed.insert(key, round.to_le_bytes().to_vec());
            }
        }
        if round % 50 == 0 {
            assert_eq!(rows_of(&operation, &key(1, b"")), below(&changed, &key(1, b"")));
        }
        if random(10) == 0 {
            drop(operation);
        } else {
            operation.commit();
            model = changed;
        }
        match random(60) {
            0 => store.flush().unwrap(),
            1 => assert_eq!(rows_of(&store, b"x"), below(&model, b"x")),
            2 => assert_eq!(rows_of(&store, &key(2, b"")), below(&model, &key(2, b""))),
            3 => {
                let start = key(0, &random(700).to_be_bytes());
                let mut found = Vec::new();
                store
                    .scan_from(&key(0, b""), Bound::Excluded(&start), &mut |key, _| {
                        found.push(key.to_vec());
                        if found.len() == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                    })
                    .unwrap();
                let expected = model.range(start.clone()..key(1, b"")).map(|(key, _)| key.clone());
                assert_eq!(found, expected.filter(|key| *key != start).take(5).collect::<Vec<_>>());
            }
            _ => {}
        }
    }
    assert_eq!(rows_of(&store, b"x"), below(&model, b"x"));
}

fn rows_of(rows: &impl Rows, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    rows.scan(prefix, &mut |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

fn below(model: &BTreeMap<Vec<u8>, Vec<u8>>, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    model.iter().filter(|(key, _)| key.starts_with(prefix)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[test]
fn an_action_runs_once_what_came_before_it_is_durable() {
    let disk = SharedDisk::default();
    let store = disk.store(options());
    count_up(&store, 1).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    store.after_commit(Box::new({
        let disk = disk.clone();
        move || {
            let bytes = disk.0.lock().bytes.clone();
            sender.send(bytes).unwrap();
        }
    }));
    let image = receiver.recv().unwrap();
    assert_eq!(counted(&SharedDisk::holding(image).store(options())), 1);
}

#[test]
fn many_threads_wait_for_few_commits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let store = Store::open(&path, options()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..25u64 {
                    let mut operation = store.operation().unwrap();
                    operation.put(&key(thread, &n.to_be_bytes()), vec![1]);
                    operation.commit();
                    store.flush().unwrap();
                }
            });
        }
    });
    assert!(matches!(Store::open(&path, options()), Err(StoreError::InUse(_))));
    drop(store);
    let store = Store::open(&path, options()).unwrap();
    assert_eq!(rows_of(&store, b"x").len(), 100);
}

#[test]
fn operations_wait_for_room_and_go_on() {
    let small = StoreOptions { soft_limit: 2_000, hard_limit: 4_000, ..options() };
    let store = SharedDisk::default().store(small);
    for n in 0..200u64 {
        let mut operation = store.operation().unwrap();
        operation.put(&key(n, b""), vec![0; 500]);
        operation.commit();
    }
    assert_eq!(rows_of(&store, b"x").len(), 200);
}

#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "takes the gate")]
fn taking_the_gate_twice_is_noticed() {
    let store = Store::in_memory().unwrap();
    let _first = store.operation().unwrap();
    drop(store.operation());
}
