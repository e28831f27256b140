//! Random operations on the content of a file, each checked against what the file must be, as fsx does it. Between them the file
//! is published and evicted, so that what is read or written next comes from the remote, in parts or as a whole. (fsx keeps its
//! file open and mapped all the time, so nothing of it can be evicted.)
//!
//! The operations follow from the seed. What the drive does beside them (it publishes all the time) does not.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom};

use crate::dice::Dice;
use crate::patience::eventually;
use crate::posix::mappings::Mapping;

/// The longest operation.
const LENGTH_MAX: usize = 64 << 10;
/// The most operations between an open and a close.
const SESSION_MAX: usize = 60;
/// What is told of a failure.
const DIARY_LINES: usize = 80;

pub struct Exerciser {
    path: PathBuf,
    seed: u64,
    dice: Dice,
    /// What the file must be.
    content: Vec<u8>,
    /// As long as the file may become.
    longest: usize,
    done: usize,
    evictions: usize,
    diary: VecDeque<String>,
}

impl Exerciser {
    /// Works on a new file in this directory.
    pub fn new(directory: &Path, seed: u64) -> Self {
        let path = directory.join(format!("exercised-{seed}"));
        File::create_new(&path).expect("a new file");
        // One chunk, or several.
        let longest = if seed % 2 == 0 { 3 << 20 } else { 256 << 10 };
        let dice = Dice::new(seed);
        Self { path, seed, dice, content: Vec::new(), longest, done: 0, evictions: 0, diary: VecDeque::new() }
    }

    /// Does so many operations. Answers how often the file was evicted meanwhile.
    pub fn run(&mut self, operations: usize) -> usize {
        while self.done < operations {
            if self.dice.below(4) == 0 && !self.content.is_empty() {
                self.wait_for_eviction();
            }
            match self.dice.below(10) {
                0..3 => self.read_session(),
                3..8 => self.write_session(),
                8 => self.append(),
                _ => self.replace(),
            }
        }
        self.check_all();
        self.evictions
    }

    /// Closed and published it goes by itself, since the budget of the cache is next to nothing.
    fn wait_for_eviction(&mut self) {
        self.note("is evicted".to_owned());
        self.evictions += 1;
        eventually(&format!("{} is evicted", self.path.display()), || {
            let mut state = [0; 16];
            let length = rustix::fs::getxattr(&self.path, "user.cairn.state", &mut state).expect("a state");
            &state[..length] == b"remote"
        });
    }

    fn read_session(&mut self) {
        self.note("opened for reading".to_owned());
        let file = File::open(&self.path).expect("opened");
        for _ in 0..1 + self.dice.below(SESSION_MAX) {
            self.done += 1;
            match self.dice.below(10) {
                0..5 => self.read(&file),
                5..8 => self.read_mapped(&file),
                _ => self.seek(&file),
            }
            self.check_length(&file);
        }
    }

    fn write_session(&mut self) {
        self.note("opened for writing".to_owned());
        let file = OpenOptions::new().read(true).write(true).open(&self.path).expect("opened");
        for _ in 0..1 + self.dice.below(SESSION_MAX) {
            self.done += 1;
            match self.dice.below(100) {
                0..22 => self.write(&file),
                22..37 => self.write_mapped(&file),
                37..55 => self.read(&file),
                55..68 => self.read_mapped(&file),
                68..74 => self.cut(&file),
                74..84 => self.allocate(&file),
                84..92 => self.copy(&file),
                92..97 => self.seek(&file),
                97 => file.sync_all().expect("synced"),
                98 => file.sync_data().expect("synced"),
                _ => self.check_all(),
            }
            self.check_length(&file);
        }
    }

    /// A range that may lie anywhere in a file of this length.
    fn range(&mut self, length: usize) -> Range<usize> {
        if length == 0 {
            return 0..0;
        }
        let start = self.dice.below(length);
        start..length.min(start + 1 + self.dice.below(LENGTH_MAX))
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let start = self.dice.next();
        (0..length as u64).map(|at| 1 + ((start + at * 7 + (at >> 8)) % 255) as u8).collect()
    }

    fn note(&mut self, what: String) {
        if self.diary.len() == DIARY_LINES {
            self.diary.pop_front();
        }
        self.diary.push_back(format!("{}: {what}", self.done));
    }

    fn extend_to(&mut self, length: usize) {
        self.content.resize(self.content.len().max(length), 0);
    }

    #[track_caller]
    fn check(&self, range: Range<usize>, found: &[u8]) {
        let expected = &self.content[range.clone()];
        if found == expected {
            return;
        }
        let different = |(found, expected): (&u8, &u8)| found != expected;
        let first = found.iter().zip(expected).position(different).unwrap_or(found.len().min(expected.len()));
        self.fail(&format!(
            "{range:?} of {}: {} bytes of {}, different at {:#x}: {:?} and not {:?}",
            self.content.len(),
            found.len(),
            expected.len(),
            range.start + first,
            found.get(first),
            expected.get(first),
        ));
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        let diary: Vec<&str> = self.diary.iter().map(String::as_str).collect();
        panic!("seed {} after {} operations: {what}\n{}", self.seed, self.done, diary.join("\n"));
    }

    #[track_caller]
    fn check_length(&self, file: &File) {
        let found = file.metadata().expect("attributes").len();
        if found != self.content.len() as u64 {
            self.fail(&format!("{found:#x} bytes long and not {:#x}", self.content.len()));
        }
    }

    fn check_all(&mut self) {
        self.note("read as a whole".to_owned());
        let found = fs::read(&self.path).expect("read");
        self.check(0..self.content.len(), &found);
    }

    fn read(&mut self, file: &File) {
        let range = self.range(self.content.len());
        self.note(format!("read {range:x?}"));
        let mut found = vec![0; range.len()];
        file.read_exact_at(&mut found, range.start as u64).expect("read");
        self.check(range, &found);
    }

    fn read_mapped(&mut self, file: &File) {
        let range = self.range(self.content.len());
        if range.is_empty() {
            return;
        }
        self.note(format!("read mapped {range:x?}"));
        let mapping = Mapping::to_read(file, self.content.len());
        let found = mapping.load(range.start, range.len());
        self.check(range, &found);
    }

    /// What is said to be a hole has no data.
    fn seek(&mut self, file: &File) {
        let start = self.range(self.content.len()).start;
        self.note(format!("seek from {start:x}"));
        match rustix::fs::seek(file, SeekFrom::Data(start as u64)) {
            Ok(data) => {
                let data = usize::try_from(data).expect("small");
                if data < start || data >= self.content.len() {
                    self.fail(&format!("data at {data:#x}"));
                }
                self.check_hole(start..data);
                let hole = rustix::fs::seek(file, SeekFrom::Hole(data as u64)).expect("every file ends in a hole");
                if hole <= data as u64 || hole > self.content.len() as u64 {
                    self.fail(&format!("a hole at {hole:#x}"));
                }
            }
            Err(rustix::io::Errno::NXIO) => self.check_hole(start..self.content.len()),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    #[track_caller]
    fn check_hole(&self, range: Range<usize>) {
        if self.content[range.clone()].iter().any(|byte| *byte != 0) {
            self.fail(&format!("data in what is said to be a hole, {range:x?}"));
        }
    }

    fn write(&mut self, file: &File) {
        let range = self.range(self.longest);
        self.note(format!("write {range:x?}"));
        let bytes = self.bytes(range.len());
        file.write_all_at(&bytes, range.start as u64).expect("written");
        self.extend_to(range.end);
        self.content[range].copy_from_slice(&bytes);
    }

    fn write_mapped(&mut self, file: &File) {
        let range = self.range(self.longest);
        self.note(format!("write mapped {range:x?}"));
        let bytes = self.bytes(range.len());
        if range.end > self.content.len() {
            file.set_len(range.end as u64).expect("extended");
            self.extend_to(range.end);
        }
        let mapping = Mapping::new(file, self.content.len());
        mapping.store(range.start, &bytes);
        self.content[range].copy_from_slice(&bytes);
        if self.dice.below(2) == 0 {
            mapping.sync();
        }
    }

    fn cut(&mut self, file: &File) {
        let length = if self.dice.below(20) == 0 { 0 } else { self.dice.below(self.longest) };
        self.note(format!("cut to {length:x}"));
        file.set_len(length as u64).expect("cut");
        self.content.resize(length, 0);
    }

    fn allocate(&mut self, file: &File) {
        let kinds = [
            FallocateFlags::empty(),
            FallocateFlags::KEEP_SIZE,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            FallocateFlags::ZERO_RANGE,
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        ];
        let how = kinds[self.dice.below(kinds.len())];
        let range = self.range(self.longest);
        self.note(format!("allocate {range:x?}, {how:?}"));
        rustix::fs::fallocate(file, how, range.start as u64, range.len() as u64).expect("allocated");
        if !how.contains(FallocateFlags::KEEP_SIZE) {
            self.extend_to(range.end);
        }
        if how.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
            let end = range.end.min(self.content.len());
            self.content[range.start.min(end)..end].fill(0);
        }
    }

    /// Within the file, where the two ranges do not overlap.
    fn copy(&mut self, file: &File) {
        let from = self.range(self.content.len());
        let to = self.dice.below(self.longest);
        if from.is_empty() || to + from.len() > self.longest || (from.start < to + from.len() && to < from.end) {
            return;
        }
        self.note(format!("copy {from:x?} to {to:x}"));
        let (mut source, mut target) = (from.start as u64, to as u64);
        while source < from.end as u64 {
            let left = from.end - usize::try_from(source).expect("small");
            let copied = rustix::fs::copy_file_range(file, Some(&mut source), file, Some(&mut target), left);
            if copied.expect("copied") == 0 {
                self.fail("copying ended early");
            }
        }
        self.extend_to(to + from.len());
        self.content.copy_within(from, to);
    }

    fn append(&mut self) {
        let length = 1 + self.dice.below(LENGTH_MAX);
        if self.content.len() + length > self.longest {
            return;
        }
        self.done += 1;
        self.note(format!("append {length:x}"));
        let bytes = self.bytes(length);
        let mut file = OpenOptions::new().append(true).open(&self.path).expect("opened");
        file.write_all(&bytes).expect("appended");
        self.content.extend_from_slice(&bytes);
    }

    /// By a copy with a change in it, as editors save.
    fn replace(&mut self) {
        self.done += 1;
        self.note("replaced by a copy".to_owned());
        let new = self.path.with_extension("new");
        fs::copy(&self.path, &new).expect("copied");
        let range = self.range(self.longest);
        let bytes = self.bytes(range.len());
        let file = OpenOptions::new().write(true).open(&new).expect("opened");
        file.write_all_at(&bytes, range.start as u64).expect("written");
        self.extend_to(range.end);
        self.content[range].copy_from_slice(&bytes);
        drop(file);
        fs::rename(&new, &self.path).expect("renamed");
    }
}
