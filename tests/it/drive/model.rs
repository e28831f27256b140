//! Random operations on the file system in memory and on the drive: every answer agrees, with restarts, crashes,
//! publication and eviction of the drive in between. The same sequences every time, unless `CAIRN_MODEL_CASES` says how many
//! others to try.
//!
//! Sequences mostly wait (a file is published once it stands still), so several run at once. They run on a disk in memory where one can
//! be mounted.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use cairn_platform_api::{
    AclKind, Allocate, Attributes, Caller, DirectoryDetail, FileKind, FsError, HandleNo, InodeNo, NewNode, OpenMode,
    RenameMode, SetAttributes, SetIdBits, SetTime, SetXattrMode, SyncScope, Timestamp, Vfs, VfsName, VfsResult, Xattrs,
};
use cairn_platform_memory::MemoryFs;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tempfile::TempDir;

use super::{Machine, noise};
use crate::harness::{MemoryDisk, eventually, is_root};

/// Sequences, together.
const CASES: u32 = 2000;
/// Threads that try them, with other sequences each.
const THREADS: u8 = 8;

#[derive(Debug, Clone)]
enum Step {
    Create { parent: u8, name: u8, mode: u16, user: bool },
    Mknod { parent: u8, name: u8, kind: u8 },
    Mkdir { parent: u8, name: u8, mode: u16 },
    Symlink { parent: u8, name: u8 },
    Link { ino: u8, parent: u8, name: u8 },
    Unlink { parent: u8, name: u8 },
    Rmdir { parent: u8, name: u8 },
    Rename { from: (u8, u8), to: (u8, u8), mode: u8 },
    Lookup { parent: u8, name: u8 },
    List { directory: u8 },
    Open { ino: u8, mode: u8, user: bool },
    Close { handle: u8 },
    Write { handle: u8, offset: u32, length: u16, seed: u8, clear: bool },
    Read { handle: u8, offset: u32, length: u16 },
    Allocate { handle: u8, offset: u32, length: u16, how: u8 },
    Copy { from: u8, from_offset: u32, to: u8, to_offset: u32, length: u16 },
    Fsync { handle: u8 },
    Resize { ino: u8, size: u32, user: bool },
    Change { ino: u8, mode: Option<u16>, owner: Option<u8>, time: Option<i32> },
    SetXattr { ino: u8, name: u8, length: u8, mode: u8 },
    RemoveXattr { ino: u8, name: u8 },
    GetXattrs { ino: u8 },
    Publish,
    Evict,
    Restart,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = || 0..4_u8;
    let byte = any::<u8>;
    let offset = || prop_oneof![3 => 0..70_000_u32, 1 => Just(0_u32), 1 => Just(8192_u32)];
    let length = || prop_oneof![3 => 0..20_000_u16, 1 => Just(8192_u16)];
    let step = prop_oneof![
        6 => (byte(), name(), 0..0o10000_u16, any::<bool>())
            .prop_map(|(parent, name, mode, user)| Step::Create { parent, name, mode, user }),
        1 => (byte(), name(), byte()).prop_map(|(parent, name, kind)| Step::Mknod { parent, name, kind }),
        3 => (byte(), name(), 0..0o10000_u16).prop_map(|(parent, name, mode)| Step::Mkdir { parent, name, mode }),
        1 => (byte(), name()).prop_map(|(parent, name)| Step::Symlink { parent, name }),
        2 => (byte(), byte(), name()).prop_map(|(ino, parent, name)| Step::Link { ino, parent, name }),
        2 => (byte(), name()).prop_map(|(parent, name)| Step::Unlink { parent, name }),
        1 => (byte(), name()).prop_map(|(parent, name)| Step::Rmdir { parent, name }),
        4 => ((byte(), name()), (byte(), name()), 0..4_u8).prop_map(|(from, to, mode)| Step::Rename { from, to, mode }),
        1 => (byte(), name()).prop_map(|(parent, name)| Step::Lookup { parent, name }),
        1 => byte().prop_map(|directory| Step::List { directory }),
        4 => (byte(), byte(), any::<bool>()).prop_map(|(ino, mode, user)| Step::Open { ino, mode, user }),
        2 => byte().prop_map(|handle| Step::Close { handle }),
        8 => (byte(), offset(), length(), byte(), any::<bool>())
            .prop_map(|(handle, offset, length, seed, clear)| Step::Write { handle, offset, length, seed, clear }),
        5 => (byte(), offset(), length()).prop_map(|(handle, offset, length)| Step::Read { handle, offset, length }),
        2 => (byte(), offset(), length(), 0..5_u8)
            .prop_map(|(handle, offset, length, how)| Step::Allocate { handle, offset, length, how }),
        2 => (byte(), offset(), byte(), offset(), length()).prop_map(|(from, from_offset, to, to_offset, length)| {
            Step::Copy { from, from_offset, to, to_offset, length }
        }),
        1 => byte().prop_map(|handle| Step::Fsync { handle }),
        3 => (byte(), offset(), any::<bool>()).prop_map(|(ino, size, user)| Step::Resize { ino, size, user }),
        2 => (byte(), proptest::option::of(0..0o10000_u16), proptest::option::of(0..3_u8), proptest::option::of(any::<i32>()))
            .prop_map(|(ino, mode, owner, time)| Step::Change { ino, mode, owner, time }),
        2 => (byte(), 0..5_u8, byte(), 0..3_u8)
            .prop_map(|(ino, name, length, mode)| Step::SetXattr { ino, name, length, mode }),
        1 => (byte(), 0..5_u8).prop_map(|(ino, name)| Step::RemoveXattr { ino, name }),
        1 => byte().prop_map(|ino| Step::GetXattrs { ino }),
        1 => Just(Step::Publish),
        2 => Just(Step::Evict),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 10..60)
}

#[test]
fn the_drive_agrees_with_the_model() {
    let asked: Option<u32> = std::env::var("CAIRN_MODEL_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = asked.unwrap_or(CASES).div_ceil(THREADS.into());
    let directory = tempfile::tempdir().expect("a temporary directory");
    let _disk = is_root().then(|| MemoryDisk::mount(directory.path(), "2g"));
    let directory = directory.path();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let config = Config { cases, failure_persistence: None, max_shrink_iters: 60, ..Config::default() };
                let runner = match asked {
                    Some(_) => TestRunner::new(config),
                    None => TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[thread; 32])),
                };
                try_sequences(runner, directory);
            });
        }
    });
}

fn try_sequences(mut runner: TestRunner, directory: &Path) {
    let result = runner.run(&steps(), |steps| {
        let mut pair = Pair::new(tempfile::tempdir_in(directory).expect("a directory"));
        for step in &steps {
            pair.take(step);
            pair.wait_for_what_is_gone();
        }
        pair.compare_all();
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// What an answer is compared by: inode numbers and times differ, and blocks are the disk's.
type Shape = (FileKind, u16, u32, u32, u32, u32, u64);

fn shape(attributes: &Attributes) -> Shape {
    let Attributes { kind, mode, nlink, uid, gid, rdev, size, .. } = *attributes;
    (kind, mode, nlink, uid, gid, rdev, size)
}

/// The model and the drive, and what is the same object in both.
struct Pair {
    model: MemoryFs,
    machine: Machine,
    inos: Vec<(InodeNo, InodeNo)>,
    handles: Vec<(HandleNo, HandleNo)>,
}

impl Pair {
    fn new(directory: TempDir) -> Self {
        let root = (InodeNo::ROOT, InodeNo::ROOT);
        let machine = Machine::at(directory, |_| {});
        Self { model: MemoryFs::new(), machine, inos: vec![root], handles: Vec::new() }
    }

    fn ino(&self, index: u8) -> (InodeNo, InodeNo) {
        self.inos[index as usize % self.inos.len()]
    }

    fn handle(&self, index: u8) -> Option<(HandleNo, HandleNo)> {
        self.handles.get(index as usize % self.handles.len().max(1)).copied()
    }

    fn drive(&self) -> &Arc<cairnfs::drive::Drive> {
        self.machine.drive()
    }

    /// Compares two answers and keeps the pair of inodes they name.
    #[track_caller]
    fn agree_on(&mut self, model: VfsResult<Attributes>, drive: VfsResult<Attributes>) {
        assert_eq!(drive.as_ref().map(shape), model.as_ref().map(shape));
        if let (Ok(model), Ok(drive)) = (model, drive) {
            let pair = (model.ino, drive.ino);
            let known = self.inos.iter().find(|known| known.0 == pair.0 || known.1 == pair.1);
            assert!(known.is_none_or(|known| *known == pair), "the names mean different inodes");
            if known.is_none() {
                self.inos.push(pair);
            }
        }
    }

    fn take(&mut self, step: &Step) {
        match step.clone() {
            Step::Create { parent, name, mode, user } => self.create(parent, name, mode, user),
            Step::Mknod { parent, name, kind } => {
                let kind =
                    [FileKind::Fifo, FileKind::Socket, FileKind::Regular, FileKind::CharDevice][kind as usize % 4];
                let node = NewNode { kind, mode: 0o640, rdev: if kind == FileKind::CharDevice { 259 } else { 0 } };
                let (parent, name) = (self.ino(parent), named(name));
                let model = self.model.mknod(caller(false), parent.0, &name, node);
                let drive = self.drive().mknod(caller(false), parent.1, &name, node);
                self.agree_on(model, drive);
            }
            Step::Mkdir { parent, name, mode } => {
                let (parent, name) = (self.ino(parent), named(name));
                let model = self.model.mkdir(caller(true), parent.0, &name, mode);
                let drive = self.drive().mkdir(caller(true), parent.1, &name, mode);
                self.agree_on(model, drive);
            }
            Step::Symlink { parent, name } => {
                let (parent, name) = (self.ino(parent), named(name));
                let model = self.model.symlink(caller(true), parent.0, &name, b"some/where");
                let drive = self.drive().symlink(caller(true), parent.1, &name, b"some/where");
                self.agree_on(model, drive);
            }
            Step::Link { ino, parent, name } => {
                let (ino, parent, name) = (self.ino(ino), self.ino(parent), named(name));
                let model = self.model.link(ino.0, parent.0, &name);
                let drive = self.drive().link(ino.1, parent.1, &name);
                self.agree_on(model, drive);
            }
            Step::Unlink { parent, name } => {
                let (parent, name) = (self.ino(parent), named(name));
                assert_eq!(self.drive().unlink(parent.1, &name), self.model.unlink(parent.0, &name));
            }
            Step::Rmdir { parent, name } => {
                let (parent, name) = (self.ino(parent), named(name));
                assert_eq!(self.drive().rmdir(parent.1, &name), self.model.rmdir(parent.0, &name));
            }
            Step::Rename { from, to, mode } => {
                let mode = [RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]
                    [mode as usize % 4];
                let (old, new) = (named(from.1), named(to.1));
                let (from, to) = (self.ino(from.0), self.ino(to.0));
                let model = self.model.rename(from.0, &old, to.0, &new, mode);
                assert_eq!(self.drive().rename(from.1, &old, to.1, &new, mode), model);
            }
            Step::Lookup { parent, name } => {
                let (parent, name) = (self.ino(parent), named(name));
                let (model, drive) = (self.model.lookup(parent.0, &name), self.drive().lookup(parent.1, &name));
                self.agree_on(model, drive);
            }
            Step::List { directory } => {
                let directory = self.ino(directory);
                assert_eq!(list(&**self.drive(), directory.1), list(&self.model, directory.0));
            }
            Step::Publish => self.unchanged_by(|machine| {
                machine.publish();
            }),
            Step::Evict => self.evict(),
            Step::Restart => self.stop(Machine::restart),
            Step::Crash => self.stop(Machine::crash),
            step => self.take_on_file(step),
        }
    }

    fn take_on_file(&mut self, step: Step) {
        match step {
            Step::Open { ino, mode, user } => self.open(ino, mode, user),
            Step::Close { handle } => {
                if let Some(handle) = self.handle(handle) {
                    self.model.release(handle.0);
                    self.drive().release(handle.1);
                    self.handles.retain(|kept| *kept != handle);
                }
            }
            Step::Write { handle, offset, length, seed, clear } => {
                let Some(handle) = self.handle(handle) else { return };
                let bytes = noise(seed.into(), length.into());
                let bits = if clear { SetIdBits::Clear } else { SetIdBits::Keep };
                let model = self.model.write(handle.0, offset.into(), &bytes, bits).wait();
                assert_eq!(self.drive().write(handle.1, offset.into(), &bytes, bits).wait(), model);
            }
            Step::Read { handle, offset, length } => {
                let Some(handle) = self.handle(handle) else { return };
                let model = self.model.read(handle.0, offset.into(), length.into()).wait();
                assert!(self.drive().read(handle.1, offset.into(), length.into()).wait() == model, "other bytes");
            }
            Step::Allocate { handle, offset, length, how } => {
                let Some(handle) = self.handle(handle) else { return };
                let how = [
                    Allocate::Extend,
                    Allocate::KeepSize,
                    Allocate::PunchHole,
                    Allocate::ZeroRange,
                    Allocate::ZeroRangeKeepSize,
                ][how as usize % 5];
                let model = self.model.fallocate(handle.0, offset.into(), length.into(), how).wait();
                assert_eq!(self.drive().fallocate(handle.1, offset.into(), length.into(), how).wait(), model);
            }
            Step::Copy { from, from_offset, to, to_offset, length } => {
                let (Some(from), Some(to)) = (self.handle(from), self.handle(to)) else { return };
                // The kernel refuses overlapping ranges of one file before the request is made.
                if from == to {
                    return;
                }
                let (at, into) = (from_offset.into(), to_offset.into());
                let model = self.model.copy_file_range(from.0, at, to.0, into, length.into()).wait();
                let drive = self.drive().copy_file_range(from.1, at, to.1, into, length.into()).wait();
                // Nothing to copy, to a handle that cannot write: the kernel refuses that by itself.
                if (model, drive) != (Ok(0), Err(FsError::BadHandle)) {
                    assert_eq!(drive, model);
                }
            }
            Step::Fsync { handle } => {
                let Some(handle) = self.handle(handle) else { return };
                assert_eq!(self.drive().fsync(handle.1, SyncScope::All).wait(), Ok(()));
            }
            Step::Resize { ino, size, user } => {
                let set = SetAttributes { size: Some(size.into()), ..SetAttributes::default() };
                self.set(ino, user, set);
            }
            Step::Change { ino, mode, owner, time } => {
                let time = time.map(|time| SetTime::At(Timestamp::from_parts(time.into(), 5)));
                let set = SetAttributes {
                    mode,
                    uid: owner.map(u32::from),
                    gid: owner.map(|owner| u32::from(owner) + 10),
                    size: None,
                    atime: time,
                    mtime: time,
                };
                self.set(ino, false, set);
            }
            Step::SetXattr { ino, name, length, mode } => {
                let (ino, name) = (self.ino(ino), xattr(name));
                let value = match AclKind::of(name) {
                    Some(_) => access_control_list(length),
                    None => noise(length.into(), length.into()),
                };
                let mode = [SetXattrMode::Any, SetXattrMode::Create, SetXattrMode::Replace][mode as usize % 3];
                let model = self.model.setxattr(ino.0, name, &value, mode);
                assert_eq!(self.drive().setxattr(ino.1, name, &value, mode), model);
            }
            Step::RemoveXattr { ino, name } => {
                let (ino, name) = (self.ino(ino), xattr(name));
                assert_eq!(self.drive().removexattr(ino.1, name), self.model.removexattr(ino.0, name));
            }
            Step::GetXattrs { ino } => {
                let ino = self.ino(ino);
                assert_eq!(xattrs(&**self.drive(), ino.1), xattrs(&self.model, ino.0));
                let name = AclKind::Default.name();
                assert_eq!(self.drive().getxattr(ino.1, name), self.model.getxattr(ino.0, name));
            }
            other => unreachable!("{other:?} is not about a file"),
        }
    }

    fn create(&mut self, parent: u8, name: u8, mode: u16, user: bool) {
        let (parent, name) = (self.ino(parent), named(name));
        let open = OpenMode { read: true, write: mode & 1 == 0, append: mode & 2 == 0, truncate: false };
        let model = self.model.create(caller(user), parent.0, &name, mode, open);
        let drive = self.drive().create(caller(user), parent.1, &name, mode, open);
        match (model, drive) {
            (Ok((model, opened)), Ok((drive, also))) => {
                self.agree_on(Ok(model), Ok(drive));
                self.handles.push((opened.handle, also.handle));
            }
            (model, drive) => assert_eq!(drive.err(), model.err()),
        }
    }

    fn open(&mut self, ino: u8, bits: u8, user: bool) {
        let ino = self.ino(ino);
        let write = bits & 1 != 0;
        let mode = OpenMode {
            read: !write || bits & 2 != 0,
            write,
            append: write && bits & 12 == 12,
            truncate: write && bits & 48 == 48,
        };
        let model = self.model.open(caller(user), ino.0, mode).wait();
        let drive = self.drive().open(caller(user), ino.1, mode).wait();
        match (model, drive) {
            (Ok(model), Ok(drive)) => self.handles.push((model.handle, drive.handle)),
            (model, drive) => assert_eq!(drive.err(), model.err()),
        }
    }

    fn set(&mut self, ino: u8, user: bool, set: SetAttributes) {
        let ino = self.ino(ino);
        let model = self.model.setattr(caller(user), ino.0, None, set).wait();
        let drive = self.drive().setattr(caller(user), ino.1, None, set).wait();
        assert_eq!(drive.as_ref().map(shape), model.as_ref().map(shape));
        if let (Some(SetTime::At(time)), Ok(drive)) = (set.mtime, drive) {
            assert_eq!((drive.mtime, drive.atime), (time, time));
        }
    }

    /// Background work may keep a removed file for a moment longer than anybody who has it open.
    fn wait_for_what_is_gone(&self) {
        for (model, drive) in &self.inos {
            if self.model.getattr(*model, None) == Err(FsError::Stale) {
                eventually("what is gone is not there", || self.drive().getattr(*drive, None) == Err(FsError::Stale));
            }
        }
    }

    /// Does something to the drive that nobody may notice.
    fn unchanged_by(&mut self, act: impl FnOnce(&mut Machine)) {
        let visible = |machine: &Machine, inos: &[(InodeNo, InodeNo)]| -> Vec<_> {
            let attributes = inos.iter().map(|ino| machine.drive().getattr(ino.1, None));
            attributes.map(|found| found.map(|found| (shape(&found), found.mtime, found.btime))).collect()
        };
        let before = visible(&self.machine, &self.inos);
        act(&mut self.machine);
        assert_eq!(visible(&self.machine, &self.inos), before);
    }

    fn evict(&mut self) {
        let inos: Vec<_> = self.inos.iter().map(|ino| ino.1).collect();
        self.unchanged_by(|machine| {
            for ino in inos {
                machine.drive().evict(ino).expect("evicted, or not");
            }
        });
    }

    /// Stops and starts the drive; open handles go, and with them removed files that were open.
    fn stop(&mut self, stop: fn(&mut Machine)) {
        for (model, drive) in std::mem::take(&mut self.handles) {
            self.model.release(model);
            self.drive().release(drive);
        }
        self.wait_for_what_is_gone();
        self.unchanged_by(stop);
    }

    fn compare_all(&mut self) {
        for index in 0..self.inos.len() {
            let ino = self.inos[index];
            let (model, drive) = (self.model.getattr(ino.0, None), self.drive().getattr(ino.1, None));
            assert_eq!(drive.as_ref().map(shape), model.as_ref().map(shape));
            assert_eq!(xattrs(&**self.drive(), ino.1), xattrs(&self.model, ino.0));
            match model.map(|model| model.kind) {
                Ok(FileKind::Regular) => {
                    let read = OpenMode { read: true, write: false, append: false, truncate: false };
                    let expected = whole(&self.model, ino.0, read);
                    assert!(whole(&**self.drive(), ino.1, read) == expected, "other bytes in the end");
                }
                Ok(FileKind::Directory) => {
                    assert_eq!(list(&**self.drive(), ino.1), list(&self.model, ino.0));
                }
                _ => {}
            }
        }
    }
}

fn whole(vfs: &dyn Vfs, ino: InodeNo, mode: OpenMode) -> VfsResult<Vec<u8>> {
    let opened = vfs.open(caller(false), ino, mode).wait()?;
    let bytes = vfs.read(opened.handle, 0, 1 << 20).wait();
    vfs.release(opened.handle);
    bytes
}

/// The extended attributes of an inode, access control lists among them.
fn xattrs(vfs: &dyn Vfs, ino: InodeNo) -> VfsResult<Xattrs> {
    vfs.listxattr(ino)?.into_iter().map(|name| Ok((name.clone(), vfs.getxattr(ino, &name)?))).collect()
}

/// The entries of a directory, by name.
type Entries = BTreeMap<Vec<u8>, (FileKind, Option<Shape>)>;

fn list(vfs: &dyn Vfs, directory: InodeNo) -> VfsResult<Entries> {
    let handle = vfs.opendir(directory)?;
    let mut entries = BTreeMap::new();
    let listed = vfs.readdir(handle, 0, DirectoryDetail::Attributes, &mut |entry| {
        let found = (entry.kind, entry.attributes.as_ref().map(shape));
        assert!(entries.insert(entry.name.to_vec(), found).is_none(), "listed twice");
        ControlFlow::Continue(())
    });
    vfs.releasedir(handle);
    listed.map(|()| entries)
}

fn named(name: u8) -> VfsName {
    VfsName::new(&[b'a' + name]).expect("a name")
}

fn xattr(name: u8) -> &'static [u8] {
    let names =
        [&b"user.one"[..], b"user.two", b"security.capability", AclKind::Access.name(), AclKind::Default.name()];
    names[name as usize % 5]
}

/// A list with these permissions: one that a mode can say or not, an empty one, or none.
fn access_control_list(seed: u8) -> Vec<u8> {
    let (owner, group, other) = (seed & 7, seed >> 3 & 7, seed >> 5 & 7);
    let entries: &[(u8, u8)] = match seed % 5 {
        0 => &[(1, owner), (4, group), (0x20, other)],
        1 => &[(1, owner), (4, group), (0x10, other), (0x20, other)],
        2 | 3 => &[(1, owner), (2, other), (4, group), (8, owner), (0x10, group), (0x20, other)],
        _ if seed < 128 => &[],
        _ => &[(1, owner), (2, other), (4, group), (0x20, other)],
    };
    let entries = entries.iter().flat_map(|(tag, permissions)| [*tag, 0, *permissions, 0, 7, 0, 0, 0]);
    [2, 0, 0, 0].into_iter().chain(entries).collect()
}

fn caller(user: bool) -> Caller {
    let id = if user { 1000 } else { 0 };
    Caller { uid: id, gid: id, pid: 1, umask: if user { 0o027 } else { 0o022 } }
}
