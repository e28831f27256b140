//! The file system without a kernel: what mounts cannot show, or only by chance.

use cairn_platform_api::{
    Caller, DirectoryDetail, FileKind, FsError, InodeNo, NewNode, OpenMode, RenameMode, SetXattrMode, Vfs, VfsName,
};
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::MemoryFs;

const ROOT: InodeNo = InodeNo::ROOT;
const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0 };
const READ_WRITE: OpenMode = OpenMode { read: true, write: true, append: false, truncate: false };

fn name(name: &str) -> VfsName {
    VfsName::new(name.as_bytes()).unwrap()
}

fn directory(fs: &MemoryFs, parent: InodeNo, called: &str) -> InodeNo {
    fs.mkdir(CALLER, parent, &name(called), 0o755).unwrap().ino
}

fn file(fs: &MemoryFs, parent: InodeNo, called: &str) -> InodeNo {
    let node = NewNode { kind: FileKind::Regular, mode: 0o644, rdev: 0 };
    fs.mknod(CALLER, parent, &name(called), node).unwrap().ino
}

struct Silent;

impl cairn_platform_api::Notifier for Silent {
    fn entry_changed(&self, _parent: InodeNo, _name: &VfsName) {}
    fn inode_changed(&self, _ino: InodeNo) {}
}

#[test]
fn an_inode_without_names_lives_as_long_as_its_handle() {
    let fs = MemoryFs::new();
    let ino = file(&fs, ROOT, "file");
    let opened = fs.open(CALLER, ino, READ_WRITE).wait().unwrap();
    fs.unlink(ROOT, &name("file")).unwrap();
    assert_eq!(fs.getattr(ino, Some(opened.handle)).unwrap().nlink, 0);
    assert_eq!(fs.link(ino, ROOT, &name("again")), Err(FsError::NotFound));
    fs.release(opened.handle);
    assert_eq!(fs.getattr(ino, None), Err(FsError::Stale));
    assert_eq!(fs.open(CALLER, ino, READ_WRITE).wait().err(), Some(FsError::Stale));
}

#[test]
fn a_kernel_keeps_what_it_unlinked_until_it_forgets() {
    let fs = MemoryFs::new();
    fs.attach(Arc::new(Silent));
    let (ino, dir) = (file(&fs, ROOT, "file"), directory(&fs, ROOT, "dir"));
    fs.forget(ino);
    fs.unlink(ROOT, &name("file")).unwrap();
    fs.rmdir(ROOT, &name("dir")).unwrap();
    let opened = fs.open(CALLER, ino, READ_WRITE).wait().unwrap();
    fs.releasedir(fs.opendir(dir).unwrap());
    assert_eq!(fs.mkdir(CALLER, dir, &name("sub"), 0o755).err(), Some(FsError::NotFound));
    fs.forget(ino);
    fs.forget(dir);
    assert_eq!(fs.getattr(ino, None).unwrap().nlink, 0);
    fs.release(opened.handle);
    assert_eq!(fs.getattr(ino, None), Err(FsError::Stale));
    assert_eq!(fs.getattr(dir, None), Err(FsError::Stale));
}

#[test]
fn moves_that_would_close_a_cycle_are_refused() {
    let fs = MemoryFs::new();
    let a = directory(&fs, ROOT, "a");
    let b = directory(&fs, a, "b");
    let c = directory(&fs, b, "c");
    let rename = |from, from_name, to, to_name, mode| fs.rename(from, &name(from_name), to, &name(to_name), mode);
    assert_eq!(rename(ROOT, "a", a, "x", RenameMode::Replace), Err(FsError::Invalid));
    assert_eq!(rename(ROOT, "a", c, "x", RenameMode::NoReplace), Err(FsError::Invalid));
    assert_eq!(rename(ROOT, "a", b, "c", RenameMode::Exchange), Err(FsError::Invalid));
    assert_eq!(rename(b, "c", ROOT, "a", RenameMode::Exchange), Err(FsError::Invalid));
    assert_eq!(rename(b, "c", ROOT, "a", RenameMode::Replace), Err(FsError::NotEmpty));
    rename(b, "c", ROOT, "c", RenameMode::Replace).unwrap();
    rename(ROOT, "a", c, "a", RenameMode::Replace).unwrap();
    assert_eq!(fs.lookup(c, &name("a")).unwrap().ino, a);
}

#[test]
fn space_comes_back_when_the_last_name_or_handle_goes() {
    let fs = MemoryFs::with_capacity(1 << 20);
    let ino = file(&fs, ROOT, "file");
    let opened = fs.open(CALLER, ino, READ_WRITE).wait().unwrap();
    fs.write(opened.handle, 0, &[1; 1 << 20], cairn_platform_api::SetIdBits::Keep).wait().unwrap();
    let refused = fs.write(opened.handle, 1 << 20, b"x", cairn_platform_api::SetIdBits::Keep).wait();
    assert_eq!(refused, Err(FsError::NoSpace));
    fs.unlink(ROOT, &name("file")).unwrap();
    assert_eq!(fs.statfs().unwrap().blocks_free, 0);
    fs.release(opened.handle);
    assert_eq!(fs.statfs().unwrap().blocks_free, 256);
}

#[test]
fn a_listing_that_found_no_room_goes_on_where_it_stopped() {
    let fs = MemoryFs::new();
    for number in 0..300 {
        file(&fs, ROOT, &number.to_string());
    }
    let handle = fs.opendir(ROOT).unwrap();
    let (mut seen, mut offset) = (Vec::new(), 0);
    loop {
        let mut room = 7;
        fs.readdir(handle, offset, DirectoryDetail::Attributes, &mut |entry| {
            if room == 0 {
                return ControlFlow::Break(());
            }
            room -= 1;
            offset = entry.next;
            seen.push(entry.name.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
        if room > 0 {
            break;
        }
        file(&fs, ROOT, &format!("new{offset}"));
    }
    assert_eq!(seen.len(), 302);
    assert_eq!(seen[..2], [b".".to_vec(), b"..".to_vec()]);
}

#[test]
fn of_the_system_attributes_there_are_access_control_lists_alone() {
    let fs = MemoryFs::new();
    let set = |name: &[u8]| fs.setxattr(ROOT, name, b"x", SetXattrMode::Any);
    assert_eq!(set(b"system.other"), Err(FsError::NotSupported));
    assert_eq!(set(b"system.posix_acl_access"), Err(FsError::Invalid), "it is no list");
    assert_eq!(fs.removexattr(ROOT, b"system.posix_acl_access"), Ok(()), "there is none, and that is fine");
}

#[test]
fn renames_and_removals_from_many_threads_leave_a_tree() {
    let fs = MemoryFs::new();
    let dirs: Vec<_> = (0..4).map(|number| directory(&fs, ROOT, &number.to_string())).collect();
    std::thread::scope(|scope| {
        for worker in 0..4_usize {
            let (fs, dirs) = (&fs, &dirs);
            scope.spawn(move || {
                for step in 0..500_usize {
                    let (from, to) = (dirs[(worker + step) % 4], dirs[(worker * 3 + step / 2) % 4]);
                    let (one, two) = (name(&(step % 3).to_string()), name(&(step % 5).to_string()));
                    let node = NewNode { kind: FileKind::Regular, mode: 0o644, rdev: 0 };
                    // Any of these may find the name gone or taken: what counts is the state they leave.
                    let _ = fs.mknod(CALLER, from, &one, node);
                    let mode = if step % 4 == 0 { RenameMode::Exchange } else { RenameMode::Replace };
                    let _ = fs.rename(from, &one, to, &two, mode);
                    let _ = fs.link(ROOT, to, &one);
                    let _ = fs.unlink(to, &one);
                }
            });
        }
    });
    let mut files = 0;
    for dir in dirs {
        let handle = fs.opendir(dir).unwrap();
        fs.readdir(handle, 0, DirectoryDetail::Attributes, &mut |entry| {
            if entry.kind == FileKind::Regular {
                assert_eq!(entry.attributes.unwrap().nlink, 1);
                files += 1;
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    }
    let statistics = fs.statfs().unwrap();
    assert_eq!(statistics.inodes - statistics.inodes_free, files + 5);
}
