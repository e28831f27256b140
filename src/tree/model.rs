//! Devices that change, publish and exchange at random: all end with the same rows, and nothing is lost.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use cairn_platform_api::{FileKind, InodeNo, Timestamp, VfsName};

use super::keys::family;
use super::*;
use crate::base::ChangeId;
use crate::chunk::ContentId;

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators").
pub(super) struct Random(u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

fn cases(default: u64) -> u64 {
    std::env::var("CAIRN_MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default)
}

/// The seeds to try: one, to look at it again, or as many as asked for.
pub(super) fn seeds(default: u64) -> std::ops::Range<u64> {
    match std::env::var("CAIRN_MODEL_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..cases(default),
    }
}

fn content_of(value: u64) -> Content {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&value.to_le_bytes());
    Content { size: value, id: ContentId(id) }
}

fn value_of(content: Content) -> u64 {
    content.size
}

pub(super) fn name(text: &str) -> VfsName {
    VfsName::new(text.as_bytes()).unwrap()
}

/// What a person sees: paths to inodes.
pub(super) type Visible = BTreeMap<(InodeNo, VfsName), InodeNo>;

pub(super) struct Device {
    pub(super) tree: Tree,
    /// The backing files: what local contents are.
    local: HashMap<InodeNo, u64>,
    pub(super) known: BTreeSet<ChangeId>,
    now: i64,
}

impl Device {
    pub(super) fn new(number: u32) -> Self {
        let identity = DeviceIdentity { id: DeviceId(number), name: format!("device {number}") };
        let store = Arc::new(Store::in_memory().unwrap());
        let mut tree = Tree::open_with_clock(store, identity, HybridClock::over(|| UNIX_EPOCH)).unwrap();
        if number % 2 == 0 {
            tree.cut_limits = CutLimits { births: 2, bytes: 500 };
        }
        Self { tree, local: HashMap::new(), known: BTreeSet::new(), now: 0 }
    }

    fn time(&mut self) -> Timestamp {
        self.now += 1;
        Timestamp::from_nanos(self.now * 16 + i64::from(self.tree.device.id.0))
    }

    pub(super) fn names(&self) -> Vec<(InodeNo, VfsName, DentryRow)> {
        let mut names = Vec::new();
        self.tree
            .store
            .scan_family(family::NAME, &mut |key, value| {
                let parent = InodeNo(keys::number(key).unwrap());
                names.push((parent, VfsName::new(&key[9..]).unwrap(), DentryRow::decode(value).unwrap()));
                ControlFlow::Continue(())
            })
            .unwrap();
        names
    }

    pub(super) fn visible(&self) -> Visible {
        self.names().into_iter().map(|(parent, name, row)| ((parent, name), row.ino)).collect()
    }

    fn directories(&self) -> Vec<InodeNo> {
        let directories = self.names().into_iter().filter(|(_, _, row)| row.kind == FileKind::Directory);
        directories.map(|(_, _, row)| row.ino).chain([InodeNo::ROOT]).collect()
    }

    /// The content that somebody who reads the file gets.
    pub(super) fn value(&self, ino: InodeNo) -> Option<u64> {
        match self.tree.inode(ino).unwrap()?.content {
            ContentState::None => None,
            ContentState::Published(content) => Some(value_of(content)),
            ContentState::Local { .. } => Some(*self.local.get(&ino).expect("local content has a backing file")),
        }
    }

    pub(super) fn values(&self) -> BTreeMap<InodeNo, u64> {
        let inos: BTreeSet<_> = self.names().into_iter().map(|(_, _, row)| row.ino).collect();
        inos.into_iter().filter_map(|ino| Some((ino, self.value(ino)?))).collect()
    }

    pub(super) fn check(&self, when: &str) {
        let wrong = invariants::check_invariants(&*self.tree.store).unwrap();
        assert!(wrong.is_empty(), "{when}: {wrong:#?}");
        assert_eq!(self.tree.unsettled().unwrap(), [], "{when}: the pending change does not lie on what is published");
    }
}

/// The backing files in a fold.
struct Files<'a> {
    local: &'a HashMap<InodeNo, u64>,
    random: Option<&'a mut Random>,
    asides: Vec<InodeNo>,
}

impl Contents for Files<'_> {
    fn is_unmodified(&mut self, ino: InodeNo, content: &Content) -> bool {
        self.local.get(&ino) == Some(&value_of(*content))
    }

    fn replaced(&mut self, _ino: InodeNo, content: &Content) -> Option<Stamp> {
        let time = Timestamp::from_nanos(value_of(*content) as i64);
        let is_open = self.random.as_mut().is_some_and(|random| random.one_in(2));
        is_open.then_some(Stamp { size: value_of(*content), mtime: time, ctime: time })
    }

    fn set_aside(&mut self, _ino: InodeNo, number: InodeNo, _stamp: Stamp) {
        self.asides.push(number);
    }
}

pub(super) struct World {
    pub(super) random: Random,
    pub(super) devices: Vec<Device>,
    pub(super) sets: BTreeMap<ChangeId, (ChangeSet, BTreeSet<ChangeId>)>,
    written: BTreeSet<u64>,
    /// Contents that somebody replaced or removed who had seen them.
    settled: HashSet<u64>,
    next_value: u64,
    /// Whether people have contents open that a fold replaces, and write to some of them afterwards.
    writes_to_old: bool,
}

const NAMES: [&str; 5] = ["a", "b", "c.txt", "d", "e"];

impl World {
    pub(super) fn new(seed: u64, devices: u32) -> Self {
        Self {
            random: Random(seed.wrapping_mul(0xA076_1D64_78BD_642F) ^ 0x5EED),
            devices: (1..=devices).map(Device::new).collect(),
            sets: BTreeMap::new(),
            written: BTreeSet::new(),
            settled: HashSet::new(),
            next_value: 1000,
            writes_to_old: false,
        }
    }

    fn new_value(&mut self) -> u64 {
        let value = if self.random.one_in(5) {
            self.random.below(3) as u64
        } else {
            self.next_value += 1;
            self.next_value
        };
        self.written.insert(value);
        value
    }

    /// One operation of a person on a device.
    pub(super) fn act(&mut self, index: usize) {
        let parent = self.random.pick(&self.devices[index].directories());
        let target = name(self.random.pick(&NAMES));
        let names = self.devices[index].names();
        let existing = (!names.is_empty()).then(|| names[self.random.below(names.len())].clone());
        match (self.random.below(12), existing) {
            (0..=2, _) | (_, None) => self.create(index, parent, &target),
            (3, _) => self.make_directory(index, parent, &target),
            (4 | 5, Some((_, _, row))) => self.write(index, row.ino),
            (6, Some((parent, name, _))) => self.remove(index, parent, &name),
            (7 | 8, Some((from, name, _))) => self.rename(index, (from, &name), (parent, &target)),
            (9, Some((_, _, row))) => self.link(index, row, parent, &target),
            (10, Some((_, _, row))) => self.set_attributes(index, row.ino),
            (_, Some((from, name, _))) => {
                let (other, other_name, _) = names[self.random.below(names.len())].clone();
                self.swap(index, (from, &name), (other, &other_name));
            }
        }
    }

    fn create(&mut self, index: usize, parent: InodeNo, name: &VfsName) {
        let value = self.new_value();
        self.create_with(index, parent, name, value);
    }

    pub(super) fn create_with(&mut self, index: usize, parent: InodeNo, name: &VfsName, value: u64) {
        let device = &mut self.devices[index];
        let now = device.time();
        let mut change = device.tree.change(&[parent]).unwrap();
        if change.lookup(parent, name).unwrap().is_some() {
            self.settled.insert(value);
            return;
        }
        let kind = if value > 1000 && value % 7 == 3 { FileKind::Symlink } else { FileKind::Regular };
        let ino = InodeNo(change.allocate());
        let mut row = InodeRow::new(kind, 0o644, now);
        row.target = (kind == FileKind::Symlink).then(|| b"there".to_vec());
        change.create(ino, parent, name, &row).unwrap();
        touch(&mut change, parent, now);
        change.commit();
        if kind == FileKind::Regular {
            device.local.insert(ino, value);
        } else {
            self.settled.insert(value);
        }
    }

    pub(super) fn make_directory(&mut self, index: usize, parent: InodeNo, name: &VfsName) {
        let device = &mut self.devices[index];
        let now = device.time();
        let mut change = device.tree.change(&[parent]).unwrap();
        if change.lookup(parent, name).unwrap().is_some() {
            return;
        }
        let ino = InodeNo(change.allocate());
        change.create(ino, parent, name, &InodeRow::new(FileKind::Directory, 0o755, now)).unwrap();
        touch(&mut change, parent, now);
        change.commit();
    }

    fn write(&mut self, index: usize, ino: InodeNo) {
        let Some(old) = self.devices[index].value(ino) else { return };
        let value = self.new_value();
        self.settled.insert(old);
        self.write_value(index, ino, value);
    }

    fn open_one(&mut self, index: usize) {
        let names = self.devices[index].names();
        if !names.is_empty() {
            let (_, _, row) = &names[self.random.below(names.len())];
            self.open_for_writing(index, row.ino);
        }
    }

    /// Makes a file local, and leaves it at that.
    fn open_for_writing(&mut self, index: usize, ino: InodeNo) {
        let device = &mut self.devices[index];
        let mut change = device.tree.change(&[ino]).unwrap();
        let mut row = change.inode(ino).unwrap().unwrap();
        if let ContentState::Published(base) = row.content {
            row.content = ContentState::Local { base: Some(base) };
            change.put_inode(ino, &row).unwrap();
            change.commit();
            device.local.insert(ino, value_of(base));
        }
    }

    pub(super) fn write_value(&mut self, index: usize, ino: InodeNo, value: u64) {
        let device = &mut self.devices[index];
        let now = device.time();
        let mut change = device.tree.change(&[ino]).unwrap();
        let mut row = change.inode(ino).unwrap().unwrap();
        if let ContentState::Published(base) = row.content {
            row.content = ContentState::Local { base: Some(base) };
        }
        row.mtime = now;
        change.put_inode(ino, &row).unwrap();
        change.commit();
        device.local.insert(ino, value);
    }

    pub(super) fn remove(&mut self, index: usize, parent: InodeNo, name: &VfsName) {
        let device = &mut self.devices[index];
        let row = device.tree.lookup(parent, name).unwrap().unwrap();
        let value = device.value(row.ino);
        let now = device.time();
        let mut change = device.tree.change(&[parent, row.ino]).unwrap();
        match change.detach(parent, name) {
            Ok(_) => touch(&mut change, parent, now),
            Err(TreeError::NotEmpty(_)) => return,
            Err(error) => panic!("{error}"),
        }
        change.commit();
        self.settled.extend(value);
    }

    pub(super) fn rename(&mut self, index: usize, from: (InodeNo, &VfsName), to: (InodeNo, &VfsName)) {
        let device = &mut self.devices[index];
        let moved = device.tree.lookup(from.0, from.1).unwrap().unwrap();
        let replaced = device.tree.lookup(to.0, to.1).unwrap();
        let replaced_value = replaced.and_then(|row| device.value(row.ino));
        let now = device.time();
        let mut change = device.tree.change_topology(&[from.0, to.0, moved.ino]).unwrap();
        if moved.kind == FileKind::Directory && change.is_within(to.0, moved.ino).unwrap() {
            return;
        }
        if let Some(replaced) = replaced {
            let mixed = (replaced.kind == FileKind::Directory) != (moved.kind == FileKind::Directory);
            if replaced.ino == moved.ino || mixed {
                return;
            }
            match change.detach(to.0, to.1) {
                Ok(_) => {}
                Err(TreeError::NotEmpty(_)) => return,
                Err(error) => panic!("{error}"),
            }
        }
        change.move_name(from.0, from.1, to.0, to.1).unwrap();
        touch(&mut change, from.0, now);
        touch(&mut change, to.0, now);
        change.commit();
        self.settled.extend(replaced_value);
    }

    pub(super) fn link(&mut self, index: usize, row: DentryRow, parent: InodeNo, name: &VfsName) {
        let device = &mut self.devices[index];
        let now = device.time();
        let mut change = device.tree.change(&[parent, row.ino]).unwrap();
        if row.kind == FileKind::Directory || change.lookup(parent, name).unwrap().is_some() {
            return;
        }
        let dentry = DentryId(change.allocate());
        change.attach(dentry, row.ino, parent, name).unwrap();
        touch(&mut change, parent, now);
        change.commit();
    }

    fn set_attributes(&mut self, index: usize, ino: InodeNo) {
        let mode = self.random.below(0o1000) as u16;
        let device = &mut self.devices[index];
        let now = device.time();
        let mut change = device.tree.change(&[ino]).unwrap();
        let mut row = change.inode(ino).unwrap().unwrap();
        row.mode = mode;
        row.ctime = now;
        match mode % 3 {
            0 => row.xattrs.insert(b"user.a".to_vec(), vec![mode as u8]),
            1 => row.xattrs.insert(b"user.b".to_vec(), vec![mode as u8]),
            _ => row.xattrs.remove(&b"user.a"[..]),
        };
        change.put_inode(ino, &row).unwrap();
        change.commit();
    }

    pub(super) fn swap(&mut self, index: usize, one: (InodeNo, &VfsName), other: (InodeNo, &VfsName)) {
        let tree = &self.devices[index].tree;
        let first = tree.lookup(one.0, one.1).unwrap().unwrap();
        let second = tree.lookup(other.0, other.1).unwrap().unwrap();
        let mut change = tree.change_topology(&[one.0, other.0, first.ino, second.ino]).unwrap();
        if change.is_within(one.0, second.ino).unwrap() || change.is_within(other.0, first.ino).unwrap() {
            return;
        }
        change.swap_names(one.0, one.1, other.0, other.1).unwrap();
        change.commit();
    }

    /// Uploads some local files, all of them with `share` 1.
    pub(super) fn upload(&mut self, index: usize, share: usize) {
        let mut locals = Vec::new();
        let device = &self.devices[index];
        device
            .tree
            .local_inodes(&mut |ino| {
                locals.push(ino);
                ControlFlow::Continue(())
            })
            .unwrap();
        for ino in locals {
            if self.random.one_in(share) {
                let value = device.local[&ino];
                let time = Timestamp::from_nanos(value as i64);
                let stamp = Stamp { size: value, mtime: time, ctime: time };
                device.tree.set_snapshot(ino, &Snapshot { content: content_of(value), stamp }).unwrap();
            }
        }
    }

    pub(super) fn cut(&mut self, index: usize, doubt: usize) -> bool {
        let device = &mut self.devices[index];
        let (before, values) = (device.visible(), device.values());
        let random = &mut self.random;
        let local = &device.local;
        let cut = device.tree.cut(
            &mut |ino, snapshot| value_of(snapshot.content) == local[&ino] && !(doubt > 0 && random.one_in(doubt)),
            |_, _| Ok::<_, TreeError>(()),
        );
        let cut = cut.unwrap();
        device.check("after a cut");
        assert_eq!(device.visible(), before, "a cut changes no names");
        assert_eq!(device.values(), values, "a cut changes no contents");
        let Some(cut) = cut else { return false };
        assert!(cut.touched.iter().all(|touched| matches!(touched, Touched::Inode(_))));
        let bytes = cut.change_set.encode();
        assert_eq!(ChangeSet::decode(&bytes).as_ref(), Ok(&cut.change_set));
        self.sets.insert(cut.change_set.id, (cut.change_set.clone(), device.known.clone()));
        device.known.insert(cut.change_set.id);
        if self.random.one_in(4) {
            self.check_published(index);
        }
        true
    }

    /// What a device takes for published is what the change sets it knows make elsewhere.
    fn check_published(&self, index: usize) {
        let device = &self.devices[index];
        let elsewhere = Device::new(9);
        let sets = device.known.iter().map(|id| self.sets[id].0.clone()).collect();
        elsewhere.tree.fold(sets, |_| Ok(())).unwrap();
        assert_same(&published(&device.tree), &dump(&elsewhere.tree));
    }

    /// Hands over some change sets of others, never one before those that its author had seen.
    pub(super) fn receive(&mut self, index: usize, share: usize) {
        let device = &mut self.devices[index];
        let mut batch = Vec::new();
        let mut known = device.known.clone();
        for (id, (set, seen)) in &self.sets {
            if seen.is_subset(&known) && (known.contains(id) || self.random.one_in(share)) {
                batch.push(set.clone());
                known.insert(*id);
            }
        }
        for at in (1..batch.len()).rev() {
            batch.swap(at, self.random.below(at + 1));
        }
        let (before, values) = (device.visible(), device.values());
        let random = self.writes_to_old.then_some(&mut self.random);
        let mut files = Files { local: &device.local, random, asides: Vec::new() };
        let touched = device.tree.fold_with(batch, &mut files, |_| Ok(())).unwrap();
        let touched: BTreeSet<_> = touched.into_iter().collect();
        let asides = files.asides;
        device.known = known;
        device.check("after a fold");
        let after = device.visible();
        for place in before.keys().chain(after.keys()) {
            let entry = Touched::Entry { parent: place.0, name: place.1.clone() };
            assert_eq!(before.get(place) != after.get(place), touched.contains(&entry), "{place:?}");
        }
        for (ino, value) in device.values() {
            let is_told = touched.contains(&Touched::Inode(ino));
            assert!(values.get(&ino) == Some(&value) || is_told, "{ino:?} has another content");
        }
        for number in asides {
            self.decide(index, number);
        }
        assert_eq!(self.devices[index].tree.asides().unwrap(), []);
    }

    /// What a fold set aside was written to or not.
    fn decide(&mut self, index: usize, number: InodeNo) {
        let is_written = self.random.one_in(2);
        if is_written {
            let value = self.new_value();
            self.devices[index].local.insert(number, value);
            assert!(self.devices[index].tree.adopt_aside(number).unwrap().is_some());
        } else {
            self.devices[index].tree.forget_aside(number).unwrap();
        }
        self.devices[index].check("after a decision");
    }

    pub(super) fn step(&mut self) {
        let index = self.random.below(self.devices.len());
        if self.writes_to_old && self.random.one_in(6) {
            return self.open_one(index);
        }
        match self.random.below(12) {
            0 | 1 => self.upload(index, 2),
            2 | 3 => drop(self.cut(index, 3)),
            4 | 5 => self.receive(index, 2),
            _ => self.act(index),
        }
    }

    /// Publishes and exchanges everything.
    pub(super) fn finish(&mut self) {
        for _ in 0..20 {
            let mut is_quiet = true;
            for index in 0..self.devices.len() {
                self.receive(index, 1);
                self.upload(index, 1);
                while self.cut(index, 0) {
                    is_quiet = false;
                }
            }
            if is_quiet {
                return;
            }
        }
        panic!("the devices do not come to rest");
    }

    pub(super) fn check_converged(&self) {
        let first = published(&self.devices[0].tree);
        for device in &self.devices {
            // Nothing is pending but times of what cancelled out.
            assert_eq!(device.tree.pending_summary().unwrap(), PendingSummary::default());
            assert_same(&first, &published(&device.tree));
            assert_eq!(device.visible(), self.devices[0].visible());
        }
    }

    pub(super) fn check_nothing_lost(&self) {
        let there: HashSet<_> = self.devices[0].values().into_values().collect();
        for value in &self.written {
            assert!(there.contains(value) || self.settled.contains(value), "content {value} is lost");
        }
    }
}

fn assert_same(one: &BTreeMap<Vec<u8>, Vec<u8>>, other: &BTreeMap<Vec<u8>, Vec<u8>>) {
    for key in one.keys().chain(other.keys()) {
        assert_eq!(one.get(key), other.get(key), "{} differs", String::from_utf8_lossy(key));
    }
}

/// The names in a directory changed.
fn touch(change: &mut Change<'_>, directory: InodeNo, now: Timestamp) {
    let mut row = change.inode(directory).unwrap().unwrap();
    (row.mtime, row.ctime) = (now, now);
    change.put_inode(directory, &row).unwrap();
}

/// The rows that all devices have in common, without what is pending.
fn published(tree: &Tree) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut published = dump(tree);
    tree.store
        .scan_family(family::PREIMAGE, &mut |key, image| {
            let row = keys::of_preimage(key).unwrap();
            match rows::decode_image(image).unwrap() {
                Some(old) => published.insert(row, old.to_vec()),
                None => published.remove(&row),
            };
            ControlFlow::Continue(())
        })
        .unwrap();
    published
}

/// The rows that all devices have in common.
pub(super) fn dump(tree: &Tree) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut rows = BTreeMap::new();
    let families =
        [family::INODE, family::NAME, family::LINK, family::GRAVE, family::ALIAS, family::AUTHOR, family::LOG];
    for family in families {
        tree.store
            .scan_family(family, &mut |key, value| {
                rows.insert(key.to_vec(), value.to_vec());
                ControlFlow::Continue(())
            })
            .unwrap();
    }
    rows
}

#[test]
fn devices_converge_and_nothing_is_lost() {
    for seed in seeds(100) {
        println!("CAIRN_MODEL_SEED={seed}");
        let mut world = World::new(seed, 2 + (seed % 3) as u32);
        world.writes_to_old = true;
        for _ in 0..60 {
            world.step();
        }
        world.writes_to_old = false;
        world.finish();
        world.check_converged();
        world.check_nothing_lost();
    }
}

#[test]
fn any_order_of_arrival_makes_the_same_rows() {
    for seed in seeds(40) {
        println!("CAIRN_MODEL_SEED={seed}");
        let mut world = World::new(seed + 1_000_000, 3);
        for _ in 0..50 {
            world.step();
        }
        world.finish();
        let expected = published(&world.devices[0].tree);
        let late = Device::new(9);
        let mut sets: Vec<_> = world.sets.values().map(|(set, _)| set.clone()).collect();
        for at in (1..sets.len()).rev() {
            sets.swap(at, world.random.below(at + 1));
        }
        while !sets.is_empty() {
            let count = 1 + world.random.below(sets.len().min(4));
            let batch = sets.split_off(sets.len() - count);
            late.tree.fold(batch.clone(), |_| Ok(())).unwrap();
            late.check("in between");
            assert_eq!(late.tree.fold(batch, |_| Ok(())).unwrap(), []);
        }
        assert_eq!(dump(&late.tree), expected);
    }
}

#[test]
fn one_writer_never_conflicts_with_itself() {
    for seed in seeds(40) {
        println!("CAIRN_MODEL_SEED={seed}");
        let mut world = World::new(seed + 2_000_000, 2);
        for _ in 0..80 {
            match world.random.below(8) {
                0 => world.upload(0, 2),
                1 => drop(world.cut(0, 3)),
                2 => world.receive(1, 2),
                _ => world.act(0),
            }
        }
        world.finish();
        world.check_converged();
        world.check_nothing_lost();
        for device in &world.devices {
            let names = device.names();
            assert!(names.iter().all(|(_, name, _)| !name.to_string().contains("conflict")), "{names:?}");
        }
        assert!(world.sets.keys().all(|id| id.device == DeviceId(1)), "the reader has nothing to publish");
    }
}
