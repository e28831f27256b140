//! A program that changes its directory and knows what may be left of that after a power cut.
//!
//! Names: the directory must be what it was after one of its operations, none before the last one that an fsync made durable
//! and none after the one that was going on. Contents: every byte must be what it was at the file's last fsync or has been
//! since, or zero where there was none at that fsync; the length must be between those it had. What replaced a file by a
//! rename has at least what it had then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::dice::Dice;

/// As much is remembered of a file before it is synced.
const STATES_MAX: usize = 12;
const FILES_MAX: usize = 24;
const DIARY_MAX: usize = 300;

/// A name's file, and the first of its states that the name was given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meaning {
    file: u64,
    since: u64,
}

type Names = BTreeMap<String, Meaning>;

/// What a file was: at its last fsync, and after each change since.
#[derive(Debug, Default)]
struct States(Vec<(u64, Vec<u8>)>);

impl States {
    fn now(&self) -> &[u8] {
        self.0.last().map_or(&[], |(_, content)| content)
    }

    /// Why the file cannot be what was found.
    fn excludes(&self, since: u64, found: &[u8]) -> Option<String> {
        let possible: Vec<&[u8]> =
            self.0.iter().filter(|(number, _)| *number >= since).map(|(_, content)| &**content).collect();
        let shortest = possible.iter().map(|content| content.len()).min().unwrap_or(0);
        let longest = possible.iter().map(|content| content.len()).max().unwrap_or(0);
        if !(shortest..=longest).contains(&found.len()) {
            return Some(format!("{} bytes and not {shortest} to {longest}", found.len()));
        }
        let wrong = found.iter().enumerate().position(|(at, byte)| {
            !possible.iter().any(|content| content.get(at).map_or(*byte == 0, |possible| possible == byte))
        });
        wrong.map(|at| format!("a wrong byte {:#x} at {at} of {}", found[at], found.len()))
    }
}

/// Whether a program calls fsync before it relies on something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Care {
    Syncs,
    Hopes,
}

pub struct Worker {
    directory: PathBuf,
    dice: Dice,
    /// The names after each operation since the last one that is known to be durable, which is the first here.
    history: Vec<Names>,
    files: BTreeMap<u64, States>,
    /// The last number given to a file, a state or a name.
    last: u64,
    /// What it did last, to tell why it is not content.
    diary: Vec<String>,
}

impl Worker {
    /// Makes its directory, durably.
    pub fn new(mountpoint: &Path, number: u64, seed: u64) -> Self {
        let directory = mountpoint.join(format!("worker-{number}"));
        fs::create_dir(&directory).expect("made");
        sync(&directory).expect("durable");
        sync(mountpoint).expect("durable");
        Self {
            directory,
            dice: Dice::new(seed ^ (number << 20)),
            history: vec![Names::new()],
            files: BTreeMap::new(),
            last: 0,
            diary: Vec::new(),
        }
    }

    /// Works until the drive fails.
    pub fn work(&mut self) {
        while self.step().is_ok() {}
    }

    /// Does so many operations, none of which may fail.
    pub fn do_steps(&mut self, count: usize) {
        (0..count).for_each(|_| self.step().expect("the drive works"));
    }

    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn names(&self) -> &Names {
        self.history.last().expect("never empty")
    }

    fn step(&mut self) -> io::Result<()> {
        let done = self.try_step();
        self.note(format!("ended with {:?}", done.as_ref().err()));
        done
    }

    fn note(&mut self, line: String) {
        if self.diary.len() > DIARY_MAX {
            self.diary.drain(..DIARY_MAX / 2);
        }
        self.diary.push(format!("{}: {line}", self.last));
    }

    fn try_step(&mut self) -> io::Result<()> {
        let names: Vec<String> = self.names().keys().cloned().collect();
        let choice = self.dice.below(100);
        if names.is_empty() || (choice < 15 && names.len() < FILES_MAX) {
            let name = format!("file-{}", self.number());
            return self.create(&name).map(drop);
        }
        let name = names[self.dice.below(names.len())].clone();
        if self.states(&name).0.len() > STATES_MAX {
            return self.sync_file(&name);
        }
        match choice {
            0..40 => self.write(&name),
            40..47 => self.cut(&name),
            47..55 => self.rename(&name),
            55..63 => self.save(&name, Care::Syncs),
            63..73 => self.save(&name, Care::Hopes),
            73..78 => self.unlink(&name),
            78..90 => self.sync_file(&name),
            90..95 => self.log(&name),
            _ => self.sync_directory(),
        }
    }

    fn states(&mut self, name: &str) -> &mut States {
        let file = self.names()[name].file;
        self.files.get_mut(&file).expect("every file is known")
    }

    /// Notes what a file is about to be: what fails may have happened.
    fn becomes(&mut self, name: &str, content: Vec<u8>) {
        let number = self.number();
        self.note(format!("{name} becomes {} bytes", content.len()));
        self.states(name).0.push((number, content));
    }

    /// Does an operation that changes names: before it is tried the result is possible.
    fn change(&mut self, names: Names, operation: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        self.note(format!("names change to {names:?}"));
        self.history.push(names);
        operation(&self.directory)
    }

    fn create(&mut self, name: &str) -> io::Result<File> {
        let (file, since) = (self.number(), self.number());
        self.note(format!("{name} is made as {file}"));
        self.files.insert(file, States(vec![(since, Vec::new())]));
        let mut names = self.names().clone();
        names.insert(name.to_owned(), Meaning { file, since });
        self.history.push(names);
        OpenOptions::new().write(true).create_new(true).open(self.directory.join(name))
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let start = self.dice.next();
        (0..length as u64).map(|at| 1 + ((start + at * 7 + (at >> 8)) % 255) as u8).collect()
    }

    fn write(&mut self, name: &str) -> io::Result<()> {
        let mut content = self.states(name).now().to_vec();
        let offset = self.dice.below(content.len() + 1);
        let length = 1 + self.dice.below(16_000);
        let bytes = self.bytes(length);
        content.resize(content.len().max(offset + length), 0);
        content[offset..offset + length].copy_from_slice(&bytes);
        self.becomes(name, content);
        let file = OpenOptions::new().write(true).open(self.directory.join(name))?;
        file.write_all_at(&bytes, offset as u64)
    }

    fn cut(&mut self, name: &str) -> io::Result<()> {
        let content = self.states(name).now().to_vec();
        let length = self.dice.below(content.len() + 1);
        self.becomes(name, content[..length].to_vec());
        OpenOptions::new().write(true).open(self.directory.join(name))?.set_len(length as u64)
    }

    fn rename(&mut self, name: &str) -> io::Result<()> {
        let target = format!("renamed-{}", self.number());
        let mut names = self.names().clone();
        let meaning = names.remove(name).expect("it is there");
        names.insert(target.clone(), meaning);
        self.change(names, |directory| fs::rename(directory.join(name), directory.join(target)))
    }

    /// Replaces a file as editors do.
    fn save(&mut self, name: &str, care: Care) -> io::Result<()> {
        let new = format!("new-{}", self.number());
        let mut file = self.create(&new)?;
        let length = 1 + self.dice.below(16_000);
        let bytes = self.bytes(length);
        self.becomes(&new, bytes.clone());
        file.write_all(&bytes)?;
        if care == Care::Syncs {
            file.sync_all()?;
            self.synced(&new);
        }
        drop(file);
        let mut names = self.names().clone();
        let Meaning { file, .. } = names.remove(&new).expect("made above");
        names.insert(name.to_owned(), Meaning { file, since: self.last });
        self.change(names, |directory| fs::rename(directory.join(new), directory.join(name)))?;
        if care == Care::Syncs { self.sync_directory() } else { Ok(()) }
    }

    fn unlink(&mut self, name: &str) -> io::Result<()> {
        let mut names = self.names().clone();
        names.remove(name);
        self.change(names, |directory| fs::remove_file(directory.join(name)))
    }

    /// Appends and syncs, appends and syncs, as a database does with its log.
    fn log(&mut self, name: &str) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.directory.join(name))?;
        for _ in 0..3 {
            let mut content = self.states(name).now().to_vec();
            let end = content.len();
            let bytes = self.bytes(700);
            content.extend_from_slice(&bytes);
            self.becomes(name, content);
            file.write_all_at(&bytes, end as u64)?;
            file.sync_data()?;
            self.synced(name);
        }
        Ok(())
    }

    fn sync_file(&mut self, name: &str) -> io::Result<()> {
        sync(&self.directory.join(name))?;
        self.synced(name);
        Ok(())
    }

    /// What an fsync of a file makes durable: its content, and all names before it.
    fn synced(&mut self, name: &str) {
        self.note(format!("{name} is durable"));
        let states = self.states(name);
        states.0.drain(..states.0.len() - 1);
        self.all_durable();
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        sync(&self.directory)?;
        self.all_durable();
        Ok(())
    }

    fn all_durable(&mut self) {
        self.history.drain(..self.history.len() - 1);
    }

    /// Notes that everything was made durable.
    pub fn everything_is_durable(&mut self) {
        self.all_durable();
        for states in self.files.values_mut() {
            states.0.drain(..states.0.len() - 1);
        }
    }

    /// Compares the directory with what may be there, and goes on from what is.
    pub fn check_and_adopt(&mut self) {
        let shown: BTreeMap<String, Vec<u8>> = fs::read_dir(&self.directory)
            .expect("the directory is there")
            .map(|entry| {
                let path = entry.expect("readable").path();
                let name = path.file_name().expect("it has a name").to_str().expect("text").to_owned();
                (name, fs::read(&path).expect("readable"))
            })
            .collect();
        let mut reasons = Vec::new();
        let possible = self.history.iter().rev().find(|names| match self.excludes(names, &shown) {
            Some(reason) => {
                reasons.push(reason);
                false
            }
            None => true,
        });
        let Some(names) = possible.cloned() else {
            panic!(
                "{:?} is none of the {} states that it may be in after the cut; from the last:\n{}\nbefore it:\n{}",
                self.directory,
                self.history.len(),
                reasons.join("\n"),
                self.diary.join("\n"),
            );
        };
        let kept: BTreeSet<u64> = names.values().map(|meaning| meaning.file).collect();
        self.files.retain(|file, _| kept.contains(file));
        for (name, meaning) in &names {
            // What was not there before the cut is not there now.
            self.files.insert(meaning.file, States(vec![(meaning.since, shown[name].clone())]));
        }
        self.note(format!("found {:?}", names.keys().map(|name| (name, shown[name].len())).collect::<Vec<_>>()));
        self.history = vec![names];
    }

    /// Why the directory cannot be what is shown.
    fn excludes(&self, names: &Names, shown: &BTreeMap<String, Vec<u8>>) -> Option<String> {
        if !names.keys().eq(shown.keys()) {
            let (names, shown): (BTreeSet<_>, BTreeSet<_>) = (names.keys().collect(), shown.keys().collect());
            return Some(format!(
                "missing {:?}, too much {:?}",
                names.difference(&shown).collect::<Vec<_>>(),
                shown.difference(&names).collect::<Vec<_>>()
            ));
        }
        names.iter().find_map(|(name, meaning)| {
            let reason = self.files[&meaning.file].excludes(meaning.since, &shown[name])?;
            Some(format!("{name} has {reason}"))
        })
    }
}

pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
