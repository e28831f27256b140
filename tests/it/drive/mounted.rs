//! The drive mounted: the POSIX suite's target, and who serves reads and writes.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairn_platform_api::{InodeNo, SetAttributes, Vfs};
use cairn_platform_fuse::{Access, MountOptions, Passthrough};
use cairnfs::drive::{DriveSettings, OpenForWrite};
use rustix::process::{Pid, Signal, kill_process};

use super::{Machine, noise};
use crate::harness::{Mount, SharedMount, can_mount, eventually};
use crate::posix::mappings::Mapping;

/// A mounted drive. The machine outlives the mount.
struct MountedDrive {
    mount: Mount,
    machine: Machine,
}

impl MountedDrive {
    fn new(passthrough: Passthrough, machine: Machine) -> Self {
        own_root(&machine);
        let access = if rustix::process::geteuid().is_root() { Access::Everybody } else { Access::Owner };
        let options = MountOptions { access, passthrough, ..MountOptions::default() };
        Self { mount: Mount::with_options(machine.drive().clone(), &options), machine }
    }

    fn publish_until_evicted(&self, ino: InodeNo) {
        eventually("it is published and evicted", || {
            self.machine.publish();
            self.machine.state(ino) == "remote"
        });
    }

    fn ino(&self, name: &str) -> InodeNo {
        InodeNo(fs::metadata(self.mount.path().join(name)).expect("it is there").ino())
    }
}

/// Gives the root directory to whoever runs the tests.
fn own_root(machine: &Machine) {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let set = SetAttributes { uid: Some(uid), gid: Some(gid), ..SetAttributes::default() };
    machine.drive().setattr(super::USER, InodeNo::ROOT, None, set).wait().expect("owned");
}

/// Target of the POSIX suite: the drive, with kernel passthrough where it is permitted.
pub fn with_passthrough(name: &str, case: fn(&Path)) {
    static SHARED: SharedMount = SharedMount::new();
    SHARED.with(name, || drive_mount(Passthrough::Auto), case);
}

/// Target of the POSIX suite: the drive, all of whose requests come through the driver.
pub fn without_passthrough(name: &str, case: fn(&Path)) {
    static SHARED: SharedMount = SharedMount::new();
    SHARED.with(name, || drive_mount(Passthrough::Off), case);
}

fn drive_mount(passthrough: Passthrough) -> Mount {
    let MountedDrive { mount, machine } = MountedDrive::new(passthrough, Machine::new());
    mount.keep(machine)
}

/// With no budget at all every published content goes at once, after the kernel was asked to let go of it.
#[test]
fn evicted_files_are_read_and_changed_through_the_mount() {
    if !can_mount() {
        return;
    }
    for passthrough in [Passthrough::Auto, Passthrough::Off] {
        let drive = MountedDrive::new(passthrough, Machine::with(|settings| settings.cache_budget = 0));
        let path = drive.mount.path().join("f");
        let mut expected = noise(1, 300_000);
        fs::write(&path, &expected).expect("written");
        let ino = drive.ino("f");
        for change in [&b"once"[..], b"twice"] {
            drive.publish_until_evicted(ino);
            assert_eq!(fs::metadata(&path).expect("there").len(), 300_000);
            assert!(fs::read(&path).expect("read") == expected);
            let file = fs::File::options().read(true).write(true).open(&path).expect("opened");
            file.write_all_at(change, 100_000).expect("written");
            expected[100_000..100_000 + change.len()].copy_from_slice(change);
            file.sync_all().expect("synced");
            drop(file);
            assert!(fs::read(&path).expect("read") == expected);
        }
    }
}

/// A program that waits for the content of a file that it opens for writing can be ended, others go on meanwhile, and the next
/// one gets it.
#[test]
fn who_waits_for_a_file_to_write_to_can_be_killed() {
    if !can_mount() {
        return;
    }
    let patient = |settings: &mut DriveSettings| {
        settings.read_deadline = Duration::from_secs(3600);
        settings.cache_budget = 0;
    };
    let drive = MountedDrive::new(Passthrough::Auto, Machine::with(patient));
    let path = drive.mount.path().join("cold");
    fs::write(&path, noise(5, 100_000)).expect("written");
    drive.publish_until_evicted(drive.ino("cold"));
    let remote = &drive.machine.remote;
    for signal in [Signal::KILL, Signal::TERM] {
        let before = remote.fetched.load(Ordering::Relaxed);
        remote.hanging.store(true, Ordering::Relaxed);
        let mut opening = Command::new("sh").args(["-c", "exec 3<>\"$1\"", "sh"]).arg(&path).spawn().expect("a shell");
        eventually("the content is asked for", || remote.fetched.load(Ordering::Relaxed) > before);
        fs::write(drive.mount.path().join("other"), "meanwhile").expect("written");
        kill_process(Pid::from_child(&opening), signal).expect("signalled");
        eventually("the program ends", || opening.try_wait().expect("our child").is_some());
        remote.hanging.store(false, Ordering::Relaxed);
    }
    let file = fs::File::options().read(true).write(true).open(&path).expect("opened");
    file.write_all_at(b"new", 50_000).expect("written");
    drop(file);
    let mut expected = noise(5, 100_000);
    expected[50_000..50_003].copy_from_slice(b"new");
    assert!(fs::read(&path).expect("read") == expected);
    let ino = drive.ino("cold");
    let writers = || drive.machine.drive().dirty_files().expect("listed").into_iter().find(|file| file.ino == ino);
    eventually("no handle of those that were ended is left", || {
        writers().is_none_or(|file| file.open_for_write == OpenForWrite::No)
    });
}

/// A program that waits in `fsync` for a remote that is away can be ended, and keeps nobody else waiting.
#[test]
fn who_waits_for_a_sync_with_the_remote_can_be_killed() {
    if !can_mount() {
        return;
    }
    let drive = MountedDrive::new(Passthrough::Auto, Machine::new());
    let asked = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&asked);
    drive.machine.drive().sync_remotely(Box::new(move |_| {
        let counted = Arc::clone(&counted);
        Box::pin(async move {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::pending().await
        })
    }));
    let file = drive.mount.path().join("f");
    fs::write(&file, "only here").expect("written");
    for path in [file.as_path(), drive.mount.path()] {
        for signal in [Signal::TERM, Signal::KILL] {
            let before = asked.load(Ordering::Relaxed);
            let mut syncing = Command::new("sync").arg(path).spawn().expect("sync(1) is there");
            eventually("the remote is asked", || asked.load(Ordering::Relaxed) > before);
            fs::write(drive.mount.path().join("other"), "meanwhile").expect("written");
            kill_process(Pid::from_child(&syncing), signal).expect("signalled");
            eventually("the program ends", || syncing.try_wait().expect("our child").is_some());
        }
    }
}

/// Stores through a mapping that outlives its descriptor are not lost, whatever was published in between.
#[test]
fn a_store_to_a_mapping_after_publication_is_published_too() {
    if !can_mount() {
        return;
    }
    for passthrough in [Passthrough::Auto, Passthrough::Off] {
        store_to_a_mapping_after_publication(passthrough);
    }
}

fn store_to_a_mapping_after_publication(passthrough: Passthrough) {
    let drive = MountedDrive::new(passthrough, Machine::with(|settings| settings.cache_budget = 0));
    let path = drive.mount.path().join("f");
    fs::write(&path, vec![b'a'; 10_000]).expect("written");
    let ino = drive.ino("f");
    let file = fs::File::options().read(true).write(true).open(&path).expect("opened");
    let mapping = Mapping::new(&file, 10_000);
    drop(file);
    mapping.store(5000, b"b");
    // Without passthrough the mapping keeps the file open: it is published, and stays one that may change.
    eventually("it is published", || {
        drive.machine.publish() > 0 || drive.machine.drive().dirty_files().expect("listed").is_empty()
    });
    mapping.store(5001, b"c");
    drop(mapping);
    let mut expected = vec![b'a'; 10_000];
    expected[5000..5002].copy_from_slice(b"bc");
    eventually("the later store is noticed and published", || {
        drive.machine.publish();
        drive.machine.state(ino) == "remote" && drive.machine.bytes(ino).as_deref() == Ok(&expected[..])
    });
}

#[test]
fn reading_leaves_the_access_time() {
    if !can_mount() {
        return;
    }
    for passthrough in [Passthrough::Auto, Passthrough::Off] {
        let drive = MountedDrive::new(passthrough, Machine::new());
        let path = drive.mount.path().join("file");
        fs::write(&path, b"content").expect("written");
        let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let file = fs::File::options().write(true).open(&path).expect("it opens");
        file.set_times(fs::FileTimes::new().set_accessed(old)).expect("times are set");
        drop(file);
        assert_eq!(fs::read(&path).expect("it can be read"), b"content");
        assert_eq!(fs::read_dir(drive.mount.path()).expect("it can be listed").count(), 1);
        assert_eq!(fs::metadata(&path).expect("it is there").accessed().expect("a time"), old);
    }
}
