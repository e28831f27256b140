//! A disk that can lose its power: a file system in memory that keeps what was synced apart from what was only written.
//!
//! As harsh as what POSIX promises, and harsher than ext4 and xfs are: `fsync` of a file makes its content, length and times
//! durable, and not its name; `fsync` of a directory makes durable what was done to its names, and what that depends on.
//! Nothing else is durable. [`Disk::lose`] takes the rest away: all of it, or all but an arbitrary part of the blocks,
//! lengths and names.
//!
//! Two things it does not take apart: a rename is done or not, and the blocks that survive of a file come with its times, as
//! with file systems that keep a journal.
//!
//! As on Linux, a sync that fails leaves the pages as if they had been written: a later one has nothing to do for them.

mod vfs;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cairn_platform_api::{
    Attributes, Caller, FileKind, FsError, HandleNo, InodeNo, RenameMode, Timestamp, VfsName, VfsResult,
};

use crate::dice::Dice;

const BLOCK: usize = 4096;

type Block = Arc<[u8; BLOCK]>;
type Names = BTreeMap<VfsName, u64>;

/// A file as it is, or as it would be without power.
#[derive(Clone)]
struct Version {
    mode: u16,
    owner: (u32, u32),
    size: u64,
    mtime: Timestamp,
    ctime: Timestamp,
    blocks: BTreeMap<u64, Block>,
}

impl Version {
    fn new(caller: Caller, mode: u16) -> Self {
        let now = Timestamp::now();
        Self { mode, owner: (caller.uid, caller.gid), size: 0, mtime: now, ctime: now, blocks: BTreeMap::new() }
    }

    /// Nothing lies behind the end.
    fn trim(&mut self) {
        let (whole, rest) = (self.size / BLOCK as u64, (self.size % BLOCK as u64) as usize);
        self.blocks.split_off(&self.size.div_ceil(BLOCK as u64));
        if let Some(last) = self.blocks.get_mut(&whole) {
            Arc::make_mut(last)[rest..].fill(0);
        }
    }
}

struct Inode {
    kind: FileKind,
    /// The target of a symbolic link.
    target: Vec<u8>,
    live: Version,
    durable: Version,
    /// The blocks in which the two may differ.
    dirty: BTreeSet<u64>,
    names: Names,
    durable_names: Names,
    /// The last path it had, to tell what it is.
    path: String,
}

/// A change of names that is not durable yet.
#[derive(Clone)]
enum Change {
    Add { at: (u64, VfsName), ino: u64 },
    Remove { at: (u64, VfsName), ino: u64 },
    Move { from: (u64, VfsName), to: (u64, VfsName), ino: u64, replaced: Option<u64> },
}

impl Change {
    fn places(&self) -> Vec<(u64, VfsName)> {
        match self {
            Self::Add { at, .. } | Self::Remove { at, .. } => vec![at.clone()],
            Self::Move { from, to, .. } => vec![from.clone(), to.clone()],
        }
    }
}

enum Open {
    File(u64),
    Directory(u64, Vec<(VfsName, u64)>),
}

/// What survives of what was not synced.
#[derive(Debug, Clone, Copy)]
pub enum Survival {
    Nothing,
    /// Each block, length and name by chance.
    Parts {
        seed: u64,
    },
}

struct State {
    inodes: HashMap<u64, Inode>,
    handles: HashMap<u64, Open>,
    changes: Vec<Change>,
    next: u64,
    powered: bool,
    /// The power goes when this many more changes and syncs were done.
    left: Option<u64>,
    /// Syncs of files whose path has this in it fail, this often.
    failing: Option<(String, u32)>,
    /// Syncs that failed.
    failed: u32,
    refusal: Option<Refusal>,
}

/// What a disk that works refuses.
#[derive(Debug, Clone, Copy)]
pub enum Refusal {
    /// Every change: it is read-only.
    Changes,
    /// New files, and bytes where there were none, of backing files: their owner has as many as he may have.
    Contents,
}

pub struct Disk {
    state: Mutex<State>,
}

impl Disk {
    pub fn new() -> Arc<Self> {
        let caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };
        let (mut inodes, root) = (HashMap::new(), Version::new(caller, 0o755));
        inodes.insert(InodeNo::ROOT.0, inode(FileKind::Directory, root, String::new()));
        let state = State {
            inodes,
            handles: HashMap::new(),
            changes: Vec::new(),
            next: 2,
            powered: true,
            left: None,
            failing: None,
            failed: 0,
            refusal: None,
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// The power goes after this many more changes and syncs.
    pub fn cut_after(&self, steps: u64) {
        self.state().left = Some(steps);
    }

    /// The power goes now.
    pub fn cut(&self) {
        self.state().powered = false;
    }

    pub fn has_power(&self) -> bool {
        self.state().powered
    }

    /// Lets syncs of files whose path has `part` in it fail, that often.
    pub fn fail_syncs(&self, part: &str, times: u32) {
        self.state().failing = Some((part.to_owned(), times));
    }

    /// From now on refuses this, or nothing.
    pub fn refuse(&self, refusal: Option<Refusal>) {
        self.state().refusal = refusal;
    }

    /// Whether files whose path has `part` in it hold what was not synced.
    pub fn has_unsynced(&self, part: &str) -> bool {
        self.state().inodes.values().any(|inode| !inode.dirty.is_empty() && inode.path.contains(part))
    }

    /// How many syncs failed.
    pub fn failed_syncs(&self) -> u32 {
        self.state().failed
    }

    /// Takes away what was not synced, and gives the power back. The file system must not be mounted.
    pub fn lose(&self, survival: Survival) {
        let mut state = self.state();
        if let Survival::Parts { seed } = survival {
            state.save_parts(&mut Dice::new(seed));
        }
        for inode in state.inodes.values_mut() {
            inode.durable.trim();
            inode.live = inode.durable.clone();
            inode.names = inode.durable_names.clone();
            inode.dirty.clear();
        }
        state.changes.clear();
        state.handles.clear();
        (state.powered, state.left, state.failing) = (true, None, None);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For what changes nothing.
    fn reading(&self) -> VfsResult<MutexGuard<'_, State>> {
        let state = self.state();
        if state.powered { Ok(state) } else { Err(FsError::Io) }
    }

    /// For a change.
    fn change(&self) -> VfsResult<MutexGuard<'_, State>> {
        let state = self.step()?;
        if matches!(state.refusal, Some(Refusal::Changes)) { Err(FsError::ReadOnly) } else { Ok(state) }
    }

    /// For a change or a sync.
    fn step(&self) -> VfsResult<MutexGuard<'_, State>> {
        let mut state = self.reading()?;
        match &mut state.left {
            Some(0) => {
                state.powered = false;
                return Err(FsError::Io);
            }
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }
}

fn inode(kind: FileKind, version: Version, path: String) -> Inode {
    Inode {
        kind,
        target: Vec::new(),
        durable: version.clone(),
        live: version,
        dirty: BTreeSet::new(),
        names: Names::new(),
        durable_names: Names::new(),
        path,
    }
}

impl State {
    fn has_no_room_for(&self, path: &str) -> bool {
        matches!(self.refusal, Some(Refusal::Contents)) && path.contains("/content/")
    }

    fn inode(&mut self, ino: u64) -> VfsResult<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or(FsError::Stale)
    }

    fn file(&mut self, handle: HandleNo) -> VfsResult<u64> {
        match self.handles.get(&handle.0) {
            Some(Open::File(ino)) => Ok(*ino),
            _ => Err(FsError::BadHandle),
        }
    }

    fn find(&mut self, parent: u64, name: &VfsName) -> VfsResult<u64> {
        self.inode(parent)?.names.get(name).copied().ok_or(FsError::NotFound)
    }

    fn attributes(&mut self, ino: u64) -> VfsResult<Attributes> {
        let inode = self.inode(ino)?;
        let live = &inode.live;
        Ok(Attributes {
            ino: InodeNo(ino),
            kind: inode.kind,
            mode: live.mode,
            nlink: 1,
            uid: live.owner.0,
            gid: live.owner.1,
            rdev: 0,
            size: if inode.kind == FileKind::Symlink { inode.target.len() as u64 } else { live.size },
            blocks: live.blocks.len() as u64 * (BLOCK as u64 / 512),
            atime: live.mtime,
            mtime: live.mtime,
            ctime: live.ctime,
            btime: live.mtime,
        })
    }

    fn make(
        &mut self,
        caller: Caller,
        (parent, name): (u64, &VfsName),
        kind: FileKind,
        mode: u16,
    ) -> VfsResult<Attributes> {
        let path = format!("{}/{name}", self.inode(parent)?.path);
        if self.inode(parent)?.names.contains_key(name) {
            return Err(FsError::Exists);
        }
        if self.has_no_room_for(&path) {
            return Err(FsError::QuotaExceeded);
        }
        let ino = self.next;
        self.next += 1;
        self.inodes.insert(ino, inode(kind, Version::new(caller, mode), path));
        self.inode(parent)?.names.insert(name.clone(), ino);
        self.changes.push(Change::Add { at: (parent, name.clone()), ino });
        self.attributes(ino)
    }

    fn remove(&mut self, parent: u64, name: &VfsName) -> VfsResult<()> {
        let ino = self.find(parent, name)?;
        if !self.inode(ino)?.names.is_empty() {
            return Err(FsError::NotEmpty);
        }
        self.inode(parent)?.names.remove(name);
        self.changes.push(Change::Remove { at: (parent, name.clone()), ino });
        Ok(())
    }

    fn rename(&mut self, from: (u64, VfsName), to: (u64, VfsName), mode: RenameMode) -> VfsResult<()> {
        let ino = self.find(from.0, &from.1)?;
        let replaced = self.find(to.0, &to.1).ok();
        match mode {
            RenameMode::NoReplace if replaced.is_some() => return Err(FsError::Exists),
            RenameMode::Exchange => return Err(FsError::NotSupported),
            _ => {}
        }
        self.inode(from.0)?.names.remove(&from.1);
        let path = format!("{}/{}", self.inode(to.0)?.path, to.1);
        self.inode(to.0)?.names.insert(to.1.clone(), ino);
        self.inode(ino)?.path = path;
        self.changes.push(Change::Move { from, to, ino, replaced });
        Ok(())
    }

    fn open_handle(&mut self, open: Open) -> HandleNo {
        let handle = self.next;
        self.next += 1;
        self.handles.insert(handle, open);
        HandleNo(handle)
    }

    fn read(&mut self, ino: u64, offset: u64, length: usize) -> VfsResult<Vec<u8>> {
        let live = &self.inode(ino)?.live;
        let length = length.min(live.size.saturating_sub(offset) as usize);
        let mut bytes = vec![0; length];
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let within = (at % BLOCK as u64) as usize;
            let count = (BLOCK - within).min(length - done);
            if let Some(block) = live.blocks.get(&(at / BLOCK as u64)) {
                bytes[done..done + count].copy_from_slice(&block[within..within + count]);
            }
            done += count;
        }
        Ok(bytes)
    }

    fn write(&mut self, ino: u64, offset: u64, data: &[u8]) -> VfsResult<()> {
        let full = self.has_no_room_for(&self.inodes.get(&ino).ok_or(FsError::Stale)?.path);
        let inode = self.inode(ino)?;
        let mut touched = offset / BLOCK as u64..(offset + data.len() as u64).div_ceil(BLOCK as u64);
        if full && !touched.all(|block| inode.live.blocks.contains_key(&block)) {
            return Err(FsError::QuotaExceeded);
        }
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (number, within) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let count = (BLOCK - within).min(data.len() - done);
            let block = inode.live.blocks.entry(number).or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(block)[within..within + count].copy_from_slice(&data[done..done + count]);
            inode.dirty.insert(number);
            done += count;
        }
        inode.live.size = inode.live.size.max(offset + data.len() as u64);
        inode.live.mtime = Timestamp::now();
        inode.live.ctime = inode.live.mtime;
        Ok(())
    }

    fn set_size(&mut self, ino: u64, size: u64) -> VfsResult<()> {
        let inode = self.inode(ino)?;
        let first = size.min(inode.live.size) / BLOCK as u64;
        inode.dirty.extend(inode.live.blocks.range(first..).map(|(number, _)| *number));
        inode.live.size = size;
        inode.live.trim();
        inode.live.mtime = Timestamp::now();
        inode.live.ctime = inode.live.mtime;
        Ok(())
    }

    fn sync_file(&mut self, ino: u64) -> VfsResult<()> {
        let path = self.inode(ino)?.path.clone();
        let fails = match &mut self.failing {
            Some((part, times)) if *times > 0 && path.contains(&**part) => {
                *times -= 1;
                self.failed += 1;
                true
            }
            _ => false,
        };
        let inode = self.inode(ino)?;
        let dirty = std::mem::take(&mut inode.dirty);
        if fails {
            return Err(FsError::Io);
        }
        for number in dirty {
            inode.save_block(number);
        }
        let blocks = std::mem::take(&mut inode.durable.blocks);
        inode.durable = Version { blocks, ..inode.live.clone() };
        inode.durable.trim();
        Ok(())
    }

    fn sync_directory(&mut self, ino: u64) -> VfsResult<()> {
        let mut wanted = BTreeSet::new();
        let mut chosen = Vec::new();
        for (index, change) in self.changes.iter().enumerate().rev() {
            let places = change.places();
            if places.iter().any(|place| place.0 == ino || wanted.contains(place)) {
                wanted.extend(places);
                chosen.push(index);
            }
        }
        for index in chosen.iter().rev() {
            let change = self.changes[*index].clone();
            self.apply(&change);
        }
        for index in chosen {
            self.changes.remove(index);
        }
        Ok(())
    }

    /// Makes a change durable, where the names are such that it can be.
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Add { at, ino } => self.set_durable(at, Some(*ino)),
            Change::Remove { at, ino } if self.durable(at) == Some(*ino) => self.set_durable(at, None),
            Change::Move { from, to, ino, replaced }
                if self.durable(from) == Some(*ino) && self.durable(to) == *replaced =>
            {
                self.set_durable(from, None);
                self.set_durable(to, Some(*ino));
            }
            Change::Remove { .. } | Change::Move { .. } => {}
        }
    }

    fn durable(&self, (directory, name): &(u64, VfsName)) -> Option<u64> {
        self.inodes.get(directory).and_then(|directory| directory.durable_names.get(name)).copied()
    }

    fn set_durable(&mut self, (directory, name): &(u64, VfsName), ino: Option<u64>) {
        let names = &mut self.inodes.get_mut(directory).expect("no inode is forgotten").durable_names;
        match ino {
            Some(ino) => names.insert(name.clone(), ino),
            None => names.remove(name),
        };
    }

    /// Lets an arbitrary part of what was not synced survive.
    fn save_parts(&mut self, dice: &mut Dice) {
        // Nearly all, nearly nothing, and what is between.
        let percent = [10, 50, 90][dice.below(3)];
        for change in std::mem::take(&mut self.changes) {
            if dice.below(100) < percent {
                self.apply(&change);
            }
        }
        let mut inos: Vec<u64> = self.inodes.keys().copied().collect();
        inos.sort_unstable();
        for ino in inos {
            let Ok(inode) = self.inode(ino) else { continue };
            for number in std::mem::take(&mut inode.dirty) {
                if dice.below(100) < percent {
                    inode.save_block(number);
                    inode.save_times();
                }
            }
            if inode.durable.size != inode.live.size && dice.below(100) < percent {
                inode.durable.size = inode.live.size;
                inode.save_times();
            }
        }
    }
}

impl Inode {
    fn save_block(&mut self, number: u64) {
        match self.live.blocks.get(&number) {
            Some(block) => self.durable.blocks.insert(number, Arc::clone(block)),
            None => self.durable.blocks.remove(&number),
        };
    }

    fn save_times(&mut self) {
        (self.durable.mtime, self.durable.ctime) = (self.live.mtime, self.live.ctime);
    }
}
