//! The process is killed at random moments under a mixed workload, again and again, on the same drive.
//!
//! Workers change their own directories and log every operation before and after it. After each kill the drive is mounted again
//! and every worker's directory must be what it was after one of its operations: not before the last one that an fsync has made
//! durable, and not after the one that was going on. Every byte that was fsynced must be there, and no byte may be wrong.
//!
//! The moments are counted in operations, not in time. `CAIRN_KILLS` says how often to kill (default 200), `CAIRN_SEED` repeats a
//! run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::world::{Machine, Mounted, World, snapshot};
use crate::harness::{can_mount, eventually};

const WORKERS: u64 = 2;

/// xorshift64*: enough to choose, and the same on every machine.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).expect("31 bits") % limit
    }
}

/// What a file holds at an offset, by its number: any content can be checked without keeping it.
fn byte(file: u64, offset: usize) -> u8 {
    (file.wrapping_mul(131) as usize).wrapping_add(offset.wrapping_mul(7)).wrapping_add(offset >> 8) as u8
}

/// The names of a worker's directory: which file each one means.
type Names = BTreeMap<String, u64>;

/// What a worker did, so far as it can tell.
struct Worker {
    directory: PathBuf,
    dice: Dice,
    /// The names after each operation since the last one that is known to be durable, which is the first here.
    history: Vec<Names>,
    next_file: u64,
    lengths: BTreeMap<u64, Length>,
}

/// How long a file is, and how long a crash may leave it: between the shortest and the longest it was since its last fsync.
#[derive(Debug, Clone, Copy, Default)]
struct Length {
    now: usize,
    shortest: usize,
    longest: usize,
}

impl Length {
    fn set(&mut self, length: usize) {
        self.now = length;
        self.shortest = self.shortest.min(length);
        self.longest = self.longest.max(length);
    }

    fn synced(&mut self) {
        self.shortest = self.now;
        self.longest = self.now;
    }
}

impl Worker {
    fn new(mountpoint: &Path, number: u64, seed: u64) -> Self {
        let directory = mountpoint.join(format!("worker-{number}"));
        fs::create_dir(&directory).expect("made");
        sync(&directory).expect("durable");
        Self {
            directory,
            dice: Dice::new(seed ^ (number << 32)),
            history: vec![Names::new()],
            next_file: 1,
            lengths: BTreeMap::new(),
        }
    }

    fn names(&self) -> &Names {
        self.history.last().expect("never empty")
    }

    /// Works until the drive fails, which it does when its process is killed.
    fn work(&mut self, done: &AtomicU64) {
        while self.step().is_ok() {
            done.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn step(&mut self) -> io::Result<()> {
        let names: Vec<String> = self.names().keys().cloned().collect();
        let choice = self.dice.below(100);
        match names.len() {
            0 => self.create(),
            count if choice < 25 && count < 40 => self.create(),
            count => {
                let name = names[self.dice.below(count)].clone();
                match choice {
                    0..45 => self.append(&name),
                    45..55 => self.overwrite(&name),
                    55..60 => self.cut(&name),
                    60..75 => self.rename(&name, &names),
                    75..83 => self.unlink(&name),
                    83..95 => self.sync_file(&name),
                    _ => self.sync_directory(),
                }
            }
        }
    }

    /// Does an operation that changes names: before it is tried the result is possible, when it fails unknown.
    fn change(&mut self, names: Names, operation: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        self.history.push(names);
        operation(&self.directory)
    }

    fn create(&mut self) -> io::Result<()> {
        let file = self.next_file;
        self.next_file += 1;
        self.lengths.insert(file, Length::default());
        let name = format!("file-{file}");
        let mut names = self.names().clone();
        names.insert(name.clone(), file);
        self.change(names, |directory| File::create_new(directory.join(name)).map(drop))
    }

    fn append(&mut self, name: &str) -> io::Result<()> {
        let file = self.names()[name];
        let length = 1 + self.dice.below(20_000);
        let known = self.lengths.get_mut(&file).expect("known");
        let bytes: Vec<u8> = (known.now..known.now + length).map(|offset| byte(file, offset)).collect();
        // What fails may have been written.
        known.set(known.now + length);
        OpenOptions::new().append(true).open(self.directory.join(name))?.write_all(&bytes)
    }

    /// Writes what is there already, which wakes everything that a change of published content wakes.
    fn overwrite(&mut self, name: &str) -> io::Result<()> {
        let file = self.names()[name];
        let end = self.lengths[&file].now;
        let start = self.dice.below(end + 1);
        let bytes: Vec<u8> = (start..end.min(start + 5000)).map(|offset| byte(file, offset)).collect();
        OpenOptions::new().write(true).open(self.directory.join(name))?.write_all_at(&bytes, start as u64)
    }

    fn cut(&mut self, name: &str) -> io::Result<()> {
        let file = self.names()[name];
        let known = self.lengths.get_mut(&file).expect("known");
        let length = self.dice.below(known.now + 1);
        known.set(length);
        OpenOptions::new().write(true).open(self.directory.join(name))?.set_len(length as u64)
    }

    fn rename(&mut self, name: &str, others: &[String]) -> io::Result<()> {
        let target = if self.dice.below(2) == 0 {
            others[self.dice.below(others.len())].clone()
        } else {
            format!("renamed-{}", self.dice.below(1000))
        };
        let mut names = self.names().clone();
        let file = names.remove(name).expect("known");
        names.insert(target.clone(), file);
        self.change(names, |directory| fs::rename(directory.join(name), directory.join(target)))
    }

    fn unlink(&mut self, name: &str) -> io::Result<()> {
        let mut names = self.names().clone();
        names.remove(name);
        self.change(names, |directory| fs::remove_file(directory.join(name)))
    }

    fn sync_file(&mut self, name: &str) -> io::Result<()> {
        let file = self.names()[name];
        sync(&self.directory.join(name))?;
        self.lengths.get_mut(&file).expect("known").synced();
        self.all_durable();
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        sync(&self.directory)?;
        self.all_durable();
        Ok(())
    }

    /// What is durable is a prefix of what was done: an fsync makes all names before it durable.
    fn all_durable(&mut self) {
        self.history.drain(..self.history.len() - 1);
    }

    /// Compares the directory with what may be there after a crash, and goes on from what is.
    fn check_and_adopt(&mut self) {
        let shown: BTreeSet<String> = fs::read_dir(&self.directory)
            .expect("the directory is there")
            .map(|entry| entry.expect("readable").file_name().into_string().expect("text"))
            .collect();
        let possible =
            self.history.iter().rev().find(|names| {
                names.keys().eq(shown.iter()) && names.iter().all(|(name, file)| self.is_file(name, *file))
            });
        let Some(names) = possible.cloned() else {
            panic!(
                "{:?} is no state between the last fsync and the kill: {shown:?}, possible were {:?}",
                self.directory, self.history
            );
        };
        for (name, file) in &names {
            let bytes = fs::read(self.directory.join(name)).expect("readable");
            let known = self.lengths.get_mut(file).expect("known");
            assert!(
                bytes.len() >= known.shortest,
                "{name} has {} bytes: fsynced bytes are missing: {known:?}",
                bytes.len()
            );
            assert!(
                bytes.len() <= known.longest,
                "{name} has {} bytes, more than were written: {known:?}",
                bytes.len()
            );
            // What is there now is what later kills are measured by.
            known.set(bytes.len());
        }
        self.history = vec![names];
    }

    /// Whether a name means this file, as its content tells. An empty file could be any.
    fn is_file(&self, name: &str, file: u64) -> bool {
        let bytes = fs::read(self.directory.join(name)).expect("readable");
        bytes.iter().enumerate().all(|(offset, found)| *found == byte(file, offset))
    }
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// Lets the workers work until `end` has seen enough operations and ended the process.
fn work_until(workers: &mut [Worker], mounted: &mut Mounted, end: impl FnOnce(&mut Mounted, &AtomicU64)) {
    let done = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        let threads: Vec<_> = workers.iter_mut().map(|worker| scope.spawn(|| worker.work(&done))).collect();
        end(mounted, &done);
        for thread in threads {
            thread.join().expect("workers only stop");
        }
    });
}

fn only_here(machine: &Machine<'_>) -> u64 {
    let status = machine.json(&["status", "shared"]);
    let replication = &status[0]["replication"];
    let count = |field: &str| replication[field].as_u64().expect("a number");
    count("files_only_here") + count("changes_only_here") + count("outbox")
}

fn configure(machine: &Machine<'_>, settle: &str) {
    // So small a cache that what was published is mostly read from the vault again.
    let text = format!("settle = '{settle}'\nmax-delay = '{settle}'\ncache-budget = '256 KiB'\nread-deadline = '1d'\n");
    machine.set(&text);
}

/// Mounts the drive and compares it with what may be there after a crash.
fn mount_and_check(machine: &Machine<'_>, mountpoint: &Path, settle: &str, workers: &mut [Worker]) -> Mounted {
    configure(machine, settle);
    let mounted = machine.mount("shared", mountpoint);
    workers.iter_mut().for_each(Worker::check_and_adopt);
    mounted
}

/// Two hundred kills, in shares that run beside each other and beside other tests.
const SHARES: u64 = 4;

#[test]
fn killed_at_random_moments_it_loses_nothing_that_was_fsynced_1() {
    kill_and_check(0);
}

#[test]
fn killed_at_random_moments_it_loses_nothing_that_was_fsynced_2() {
    kill_and_check(1);
}

#[test]
fn killed_at_random_moments_it_loses_nothing_that_was_fsynced_3() {
    kill_and_check(2);
}

#[test]
fn killed_at_random_moments_it_loses_nothing_that_was_fsynced_4() {
    kill_and_check(3);
}

fn kill_and_check(share: u64) {
    if !can_mount() {
        return;
    }
    let kills = number("CAIRN_KILLS", 200) / SHARES;
    let seed = number("CAIRN_SEED", 1) + share;
    eprintln!("share {share}: {kills} kills, seed {seed}");
    let world = World::new();
    world.with_vault();
    let machine = world.attached("one");
    let mountpoint = world.directory("mnt");
    let mut dice = Dice::new(seed);
    // No other device writes, so a pull passes none of its steps.
    let steps: Vec<&str> = cairnfs::replicate::STEPS.iter().copied().filter(|step| step.starts_with("push.")).collect();
    let mut mounted = machine.mount("shared", &mountpoint);
    let mut workers: Vec<Worker> = (0..WORKERS).map(|number| Worker::new(&mountpoint, number, seed)).collect();
    mounted.kill();

    for round in 0..kills {
        match round % 3 {
            // Nothing is published, so the backlog is certain.
            0 => {
                mounted = mount_and_check(&machine, &mountpoint, "1h", &mut workers);
                let moment = 1 + dice.below(150) as u64;
                work_until(&mut workers, &mut mounted, |mounted, done| {
                    eventually("the workers work", || done.load(Ordering::SeqCst) >= moment);
                    fs::write(mountpoint.join(format!("backlog-{round}")), "bytes").expect("written");
                    assert_ne!(only_here(&machine), 0, "the backlog is not empty");
                    mounted.kill();
                });
            }
            // Everything is published at once, so that kills meet pushes.
            1 => {
                mounted = mount_and_check(&machine, &mountpoint, "1ms", &mut workers);
                let moment = 1 + dice.below(400) as u64;
                work_until(&mut workers, &mut mounted, |mounted, done| {
                    eventually("the workers work", || done.load(Ordering::SeqCst) >= moment);
                    eventually("there is a backlog", || only_here(&machine) != 0);
                    mounted.kill();
                });
            }
            // The process ends between two steps of a push or pull.
            _ => {
                // What it left last time is looked at first, by a process that does not end meanwhile.
                mounted = mount_and_check(&machine, &mountpoint, "1h", &mut workers);
                machine.umount(&[]);
                mounted.ended_well();
                configure(&machine, "1ms");
                let step = steps[dice.below(steps.len())];
                let at = format!("{step}:{}", 1 + dice.below(2));
                mounted = machine.clone().with("CAIRN_ABORT_AT", at).mount_doomed("shared", &mountpoint);
                work_until(&mut workers, &mut mounted, |mounted, done| {
                    eventually("the process aborts or has had its chance", || {
                        mounted.has_ended() || done.load(Ordering::SeqCst) >= 2000
                    });
                    mounted.kill();
                });
            }
        }
    }

    mounted = mount_and_check(&machine, &mountpoint, "1s", &mut workers);
    machine.run(&["drain"]);
    assert_eq!(only_here(&machine), 0);
    let other = world.attached("two");
    let second = other.mount("shared", &world.directory("mnt-2"));
    assert_eq!(snapshot(second.path()), snapshot(mounted.path()));
}
