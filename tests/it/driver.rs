//! The driver itself: mounting and unmounting, passthrough, late answers, announcements.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cairn_platform_api::{InodeNo, Vfs, VfsName};
use cairn_platform_fuse::{Access, MountOptions, Passthrough, Writing};
use cairn_platform_memory::MemoryFs;

use crate::harness::backed::BackedFs;
use crate::harness::{Mount, can_mount, eventually, is_root};
use crate::posix::mappings::Mapping;
use crate::posix::memory;

fn name(name: &str) -> VfsName {
    VfsName::new(name.as_bytes()).unwrap()
}

fn backed() -> Arc<BackedFs> {
    Arc::new(BackedFs::new(memory()))
}

/// A mount where every read and write comes to the file system.
fn without_passthrough(fs: Arc<BackedFs>) -> Mount {
    Mount::with_options(fs, &MountOptions { passthrough: Passthrough::Off, ..MountOptions::default() })
}

fn mount_line(path: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    mounts.lines().find(|line| line.split(' ').nth(1) == path.to_str()).map(str::to_owned)
}

#[test]
fn a_mount_is_listed_and_goes_away() {
    if !can_mount() {
        return;
    }
    let options = MountOptions { fsname: "a name".to_owned(), ..MountOptions::default() };
    let mount = Mount::with_options(Arc::new(memory()), &options);
    let line = mount_line(mount.path()).unwrap();
    assert!(line.starts_with("a\\040name ") && line.contains(" fuse.cairn ") && line.contains("nosuid"), "{line}");
    mount.mounted().unmount().unwrap();
    mount.mounted().wait().unwrap();
    assert_eq!(mount_line(mount.path()), None);
    mount.mounted().unmount().unwrap();
}

#[test]
fn a_busy_mount_stays_and_can_be_detached() {
    if !can_mount() {
        return;
    }
    let fs = backed();
    let mount = Mount::new(fs.clone());
    let path = mount.path().join("file");
    fs::write(&path, b"content").unwrap();
    let open = File::open(&path).unwrap();
    assert_eq!(mount.mounted().unmount().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    assert_eq!(fs::read(&path).unwrap(), b"content");
    mount.mounted().detach().unwrap();
    assert!(!path.exists());
    let mut bytes = [0; 7];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"content");
    assert!(!fs.destroyed.load(Ordering::Relaxed));
    drop(open);
    assert!(mount.mounted().wait().is_err(), "what destroy says is passed on");
    assert!(fs.destroyed.load(Ordering::Relaxed));
}

#[test]
fn a_mount_point_that_is_none_is_refused() {
    if !can_mount() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"").unwrap();
    for (path, kind) in [("file", io::ErrorKind::NotADirectory), ("nothing", io::ErrorKind::NotFound)] {
        let path = dir.path().join(path);
        let options = MountOptions::default();
        let refused = cairn_platform_fuse::mount(Arc::new(memory()), &path, &options, runtime.handle().clone());
        assert_eq!(refused.unwrap_err().kind(), kind);
    }
}

#[test]
fn a_read_only_mount_refuses_changes() {
    if !can_mount() {
        return;
    }
    let options = MountOptions { writing: Writing::Refused, ..MountOptions::default() };
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mounted =
        cairn_platform_fuse::mount(Arc::new(memory()), directory.path(), &options, runtime.handle().clone()).unwrap();
    let made = fs::write(directory.path().join("file"), b"").unwrap_err();
    assert_eq!(made.kind(), io::ErrorKind::ReadOnlyFilesystem);
    drop(mounted);
    assert_eq!(mount_line(directory.path()), None);
}

#[test]
fn the_kernel_serves_backing_files_by_itself() {
    if !can_mount() {
        return;
    }
    let fs = backed();
    let mount = Mount::new(fs.clone());
    let bytes = vec![7; 1 << 20];
    fs::write(mount.path().join("file"), &bytes).unwrap();
    assert!(fs::read(mount.path().join("file")).unwrap() == bytes);
    if fs.served() > 0 {
        crate::skip::skipped("no kernel passthrough here (it takes Linux 6.9 and root)");
    } else {
        let meta = fs::metadata(mount.path().join("file")).unwrap();
        assert_eq!((meta.len(), fs.content(InodeNo(meta.ino())).metadata().unwrap().len()), (1 << 20, 1 << 20));
    }
}

#[test]
fn handles_of_one_file_go_one_way_whatever_is_offered() {
    if !can_mount() {
        return;
    }
    let fs = backed();
    let mount = Mount::new(fs.clone());
    let path = mount.path().join("file");
    fs::write(&path, b"0").unwrap();
    let open = || File::options().read(true).write(true).open(&path).unwrap();
    let check = |file: &File, expected: u8| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte[0], expected);
    };
    for (round, first_offers) in [true, false, true, false].into_iter().cycle().take(20).enumerate() {
        fs.offers.store(first_offers, Ordering::Relaxed);
        let first = open();
        fs.offers.store(!first_offers, Ordering::Relaxed);
        let second = open();
        let value = round as u8;
        first.write_all_at(&[value], 0).unwrap();
        check(&second, value);
        second.write_all_at(&[value + 100], 0).unwrap();
        check(&first, value + 100);
        drop(first);
        let third = open();
        check(&third, value + 100);
        drop((second, third));
        assert_eq!(fs::read(&path).unwrap(), [value + 100]);
    }
}

#[test]
fn a_replaced_content_is_not_mixed_with_the_one_before() {
    if !can_mount() {
        return;
    }
    const PAGE: usize = 4096;
    for passthrough in [Passthrough::Auto, Passthrough::Off] {
        let fs = backed();
        let mount = Mount::with_options(fs.clone(), &MountOptions { passthrough, ..MountOptions::default() });
        let path = mount.path().join("file");
        fs::write(&path, vec![b'a'; 8 * PAGE]).unwrap();
        let ino = InodeNo(fs::metadata(&path).unwrap().ino());
        let page_of = |file: &File, index: usize| {
            let mut page = vec![0; PAGE];
            file.read_exact_at(&mut page, (index * PAGE) as u64).unwrap();
            page
        };
        let old = File::open(&path).unwrap();
        assert_eq!(page_of(&old, 0), [b'a'; PAGE]);
        let mut expected = vec![b'b'; 8 * PAGE];
        fs.replace(ino, &expected);
        assert_eq!(page_of(&old, 5), [b'a'; PAGE], "who has it open goes on with it");
        eventually("the new content shows beside it", || fs::read(&path).unwrap() == expected);

        if let Err(error) = File::options().read(true).write(true).truncate(true).open(&path) {
            assert_eq!(error.kind(), io::ErrorKind::ResourceBusy, "a mapping would write to the old content");
        } else {
            fs::write(&path, &expected).unwrap();
        }
        let new = File::options().write(true).open(&path).unwrap();
        new.write_all_at(b"written", 6 * PAGE as u64).unwrap();
        expected[6 * PAGE..][..7].copy_from_slice(b"written");
        assert!(fs::read(&path).unwrap() == expected, "a write went elsewhere");
        assert!(page_of(&old, 6) == [b'a'; PAGE]);
        drop(old);
        drop(new);
        eventually("it can be mapped again", || File::options().read(true).write(true).open(&path).is_ok());
        for _ in 0..2 {
            assert!(fs::read(&path).unwrap() == expected, "pages of the old content stay behind");
        }
        let mut content = vec![0; 8 * PAGE];
        fs.content(ino).read_exact_at(&mut content, 0).unwrap();
        assert!(content == expected, "what was written is not in the file");
    }
}

#[test]
fn a_file_that_gets_set_id_bits_while_open_loses_them_to_a_later_writer() {
    if !can_mount() || !is_root() {
        return;
    }
    let mount = Mount::new(backed());
    let path = mount.path().join("file");
    let _open = File::create(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    if !crate::posix::support::as_nobody(mount.path(), "echo more >> file") {
        crate::skip::skipped(format_args!("other users cannot reach {}", mount.path().display()));
        return;
    }
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
}

/// More than the driver has threads.
const READERS: usize = 8;

#[test]
fn reads_that_wait_hold_up_nobody() {
    if !can_mount() {
        return;
    }
    let fs = backed();
    let mount = without_passthrough(fs.clone());
    let path = |number: usize| mount.path().join(format!("file{number}"));
    for number in 0..READERS {
        fs::write(path(number), [number as u8]).unwrap();
    }
    let reads = fs.reads.clone();
    let all = reads.forget_permits(usize::MAX);
    let before = fs.served();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|number| scope.spawn(move || fs::read(path(number)).unwrap())).collect();
        eventually("all reads arrive", || fs.served() >= before + READERS as u64);
        fs::write(mount.path().join("other"), b"meanwhile").unwrap();
        assert_eq!(fs::read_dir(mount.path()).unwrap().count(), READERS + 1);
        assert!(readers.iter().all(|reader| !reader.is_finished()));
        reads.add_permits(all);
        for (number, reader) in readers.into_iter().enumerate() {
            assert_eq!(reader.join().unwrap(), [number as u8]);
        }
    });
}

#[test]
fn the_kernel_gives_back_every_inode_that_is_removed() {
    if !can_mount() {
        return;
    }
    let fs = Arc::new(memory());
    let mount = Mount::new(fs.clone());
    let inodes = || fs.statfs().unwrap().inodes_free;
    let before = inodes();
    let path = |name: &str| mount.path().join(name);
    for round in 0..20 {
        fs::create_dir(path("dir")).unwrap();
        fs::write(path("dir/file"), b"content").unwrap();
        std::os::unix::fs::symlink("file", path("dir/link")).unwrap();
        fs::hard_link(path("dir/file"), path(&format!("hard{round}"))).unwrap();
        for entry in fs::read_dir(path("dir")).unwrap() {
            entry.unwrap().metadata().unwrap();
        }
        fs::write(path("new"), b"replaces").unwrap();
        fs::rename(path("new"), path("dir/file")).unwrap();
        let open = File::open(path("dir/file")).unwrap();
        fs::remove_dir_all(path("dir")).unwrap();
        assert_eq!(open.metadata().unwrap().nlink(), 0);
        fs::remove_file(path(&format!("hard{round}"))).unwrap();
    }
    eventually("all are forgotten", || inodes() == before);
}

#[test]
fn a_mapping_keeps_its_inode_known() {
    if !can_mount() {
        return;
    }
    let fs = backed();
    let mount = Mount::new(fs.clone());
    let inodes = || fs.statfs().unwrap().inodes_free;
    let before = inodes();
    let (mapped, other) = (mount.path().join("mapped"), mount.path().join("other"));
    fs::write(&mapped, vec![1; 8192]).unwrap();
    let mapping = Mapping::new(&File::options().read(true).write(true).open(&mapped).unwrap(), 8192);
    fs::remove_file(&mapped).unwrap();
    // What was removed later is forgotten, and the mapped file is not.
    fs::write(&other, b"").unwrap();
    fs::remove_file(&other).unwrap();
    eventually("the other is forgotten", || inodes() == before - 1);
    mapping.store(5, b"still here");
    assert_eq!(inodes(), before - 1);
    drop(mapping);
    eventually("both are forgotten", || inodes() == before);
}

#[test]
fn a_reader_that_is_killed_while_it_waits_harms_nobody() {
    if !can_mount() {
        return;
    }
    let fs = backed();
    let mount = without_passthrough(fs.clone());
    let path = mount.path().join("file");
    fs::write(&path, b"content").unwrap();
    let all = fs.reads.forget_permits(usize::MAX);
    let before = fs.served();
    let mut reader = Command::new("cat").arg(&path).stdout(Stdio::null()).spawn().unwrap();
    eventually("the read arrives", || fs.served() > before);
    reader.kill().unwrap();
    fs::write(mount.path().join("other"), b"meanwhile").unwrap();
    fs.reads.add_permits(all);
    assert!(!reader.wait().unwrap().success());
    assert_eq!(fs::read(&path).unwrap(), b"content");
}

/// Set for a process that dies with a mount.
const DYING: &str = "CAIRN_TEST_DIE_WITH_MOUNT";

/// Not a test by itself: the process of [`a_dead_process_leaves_an_error`], which runs this program once more.
#[test]
fn the_process_that_dies() {
    let Some(directory) = std::env::var_os(DYING).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let options = MountOptions::default();
    let _mounted =
        cairn_platform_fuse::mount(Arc::new(memory()), &directory, &options, runtime.handle().clone()).unwrap();
    fs::write(directory.join("file"), b"content").unwrap();
    std::process::exit(17);
}

#[test]
fn a_dead_process_leaves_an_error() {
    if !can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "driver::the_process_that_dies"]).env(DYING, directory.path());
    assert_eq!(child.stdin(Stdio::null()).output().unwrap().status.code(), Some(17));
    let listed = fs::read_dir(directory.path()).unwrap_err();
    let opened = File::open(directory.path().join("file")).unwrap_err();
    let tool = if is_root() { "umount" } else { "fusermount3" };
    let mut unmount = Command::new(tool);
    if tool == "fusermount3" {
        unmount.arg("-u");
    }
    assert!(unmount.arg(directory.path()).status().unwrap().success());
    assert_eq!((listed.kind(), opened.kind()), (io::ErrorKind::NotConnected, io::ErrorKind::NotConnected));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn dropping_a_detached_mount_leaves_its_successor_alone() {
    if !can_mount() {
        return;
    }
    let runtime = crate::harness::runtime();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let mount = || {
        let options = MountOptions::default();
        cairn_platform_fuse::mount(Arc::new(memory()), path, &options, runtime.handle().clone()).unwrap()
    };
    let first = mount();
    fs::write(path.join("file"), b"content").unwrap();
    let open = File::open(path.join("file")).unwrap();
    first.detach().unwrap();
    let second = mount();
    drop(first);
    drop(open);
    assert_eq!(fs::read_dir(path).unwrap().count(), 0);
    assert!(mount_line(path).is_some());
    drop(second);
    assert_eq!(mount_line(path), None);
}

#[test]
fn announced_changes_show() {
    if !can_mount() {
        return;
    }
    let fs = backed();
    let mount = without_passthrough(fs.clone());
    let notifier = fs.notifier.get().unwrap().clone();
    let (one, two) = (mount.path().join("one"), mount.path().join("two"));
    fs::write(&one, b"before").unwrap();
    let ino = InodeNo(fs::metadata(&one).unwrap().ino());
    assert!(!two.exists());
    fs.rename(InodeNo::ROOT, &name("one"), InodeNo::ROOT, &name("two"), cairn_platform_api::RenameMode::Replace)
        .unwrap();
    notifier.entry_changed(InodeNo::ROOT, &name("one"));
    notifier.entry_changed(InodeNo::ROOT, &name("two"));
    // At once on a machine that is not overloaded; the announcer has only so much patience.
    eventually("the old name goes", || !one.exists());
    eventually("the new name shows", || fs::read(&two).is_ok_and(|bytes| bytes == b"before"));
    fs.content(ino).write_all_at(b"after, and longer", 0).unwrap();
    notifier.inode_changed(ino);
    eventually("the new content shows", || fs::read(&two).unwrap() == b"after, and longer");
    assert_eq!(fs::metadata(&two).unwrap().len(), 17);
    notifier.inode_changed(InodeNo(987_654));
    notifier.entry_changed(InodeNo(987_654), &name("x"));
}

#[test]
fn an_announcement_does_not_wait_for_a_read_that_hangs() {
    if !can_mount() {
        return;
    }
    let fs = backed();
    let mount = without_passthrough(fs.clone());
    let notifier = fs.notifier.get().unwrap().clone();
    let path = mount.path().join("file");
    fs::write(&path, b"content").unwrap();
    let ino = InodeNo(fs::metadata(&path).unwrap().ino());
    let all = fs.reads.forget_permits(usize::MAX);
    let before = fs.served();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read(&path).unwrap());
        eventually("the read arrives", || fs.served() > before);
        for _ in 0..100 {
            notifier.inode_changed(ino);
        }
        assert!(!reader.is_finished());
        fs.reads.add_permits(all);
        assert_eq!(reader.join().unwrap(), b"content");
    });
}

#[test]
fn a_full_file_system_says_so_before_it_takes_anything() {
    if !can_mount() {
        return;
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mount = Mount::new(Arc::new(MemoryFs::with_capacity(1 << 20).owned_by(uid, gid)));
    let full = fs::write(mount.path().join("file"), vec![1; 2 << 20]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    fs::write(mount.path().join("file"), vec![1; 1 << 20]).unwrap();
    assert_eq!(rustix::fs::statvfs(mount.path()).unwrap().f_bfree, 0);
}

/// Set for a process that plays an ordinary user.
const CHILD: &str = "CAIRN_TEST_MOUNT_AS_USER";

/// Not a test by itself: the process of [`an_ordinary_user_can_mount`], which runs this program once more.
#[test]
fn the_ordinary_user_mounts() {
    let Some(directory) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let options = MountOptions { access: Access::Owner, fsname: "with,comma".to_owned(), ..MountOptions::default() };
    let fs = Arc::new(BackedFs::new(memory()));
    let mounted = cairn_platform_fuse::mount(fs, &directory, &options, runtime.handle().clone()).unwrap();
    fs::write(directory.join("file"), b"content").unwrap();
    assert_eq!(fs::read(directory.join("file")).unwrap(), b"content");
    let line = mount_line(&directory).unwrap();
    assert!(line.starts_with("with,comma ") && line.contains(" fuse.cairn "), "{line}");
    let open = File::open(directory.join("file")).unwrap();
    assert_eq!(mounted.unmount().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    drop(open);
    mounted.unmount().unwrap();
    assert!(mounted.wait().is_err(), "what destroy says is passed on");
    assert_eq!(mount_line(&directory), None);
    fs::write(directory.join("done"), b"").unwrap();
}

#[test]
fn an_ordinary_user_can_mount() {
    use std::os::unix::process::CommandExt;
    if !can_mount() || !is_root() {
        return;
    }
    if Command::new("fusermount3").arg("-V").stdout(Stdio::null()).status().is_err() {
        crate::skip::skipped("no fusermount3");
        return;
    }
    if fs::metadata("/dev/fuse").unwrap().permissions().mode() & 0o006 != 0o006 {
        crate::skip::skipped("/dev/fuse is for root only");
        return;
    }
    let nobody = crate::posix::support::NOBODY;
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(directory.path(), Some(nobody), Some(nobody)).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "driver::the_ordinary_user_mounts"]).env(CHILD, directory.path());
    match child.uid(nobody).gid(nobody).stdin(Stdio::null()).output() {
        Err(error) => crate::skip::skipped(format_args!(
            "other users cannot run {}: {error}",
            std::env::current_exe().unwrap().display()
        )),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{said}");
            assert!(directory.path().join("done").exists(), "{said}");
        }
    }
}
