//! A disk that is full, or as good as full.

use cairn_platform_api::{FsError, SetIdBits, SyncScope, Vfs};

use super::{Machine, ROOT, USER, named, noise};
use crate::harness::{MemoryDisk, eventually, is_root};

#[test]
fn bytes_are_refused_before_the_reserve_is_touched() {
    let machine = Machine::with(|settings| settings.disk_reserve = u64::MAX / 2);
    assert_eq!(
        machine.drive().statfs().map(|space| (space.blocks_available, space.blocks > 0)),
        Ok((0, true)),
        "what is reserved is not shown as free"
    );
    let directory = machine.drive().mkdir(USER, ROOT, &named("d"), 0o755);
    assert!(directory.is_ok(), "names still go");
    let (_, handle) = machine.create("f");
    assert_eq!(machine.drive().write(handle, 0, b"x", SetIdBits::Clear).wait(), Err(FsError::NoSpace));
    assert_eq!(machine.read(handle, 0, 10), Ok(Vec::new()));
}

#[test]
fn a_drive_on_a_full_disk_keeps_what_it_accepted_and_recovers() {
    if !is_root() {
        return;
    }
    let outer = tempfile::tempdir().expect("a temporary directory");
    let _disk = MemoryDisk::mount(outer.path(), "48m");
    let inner = tempfile::tempdir_in(outer.path()).expect("a directory on the small disk");
    let mut machine = Machine::at(inner, |settings| settings.disk_reserve = 16 << 20);
    let block = noise(1, 1 << 20);
    let (ino, handle) = machine.create("f");
    let mut written = 0;
    let refused = loop {
        match machine.drive().write(handle, written, &block, SetIdBits::Clear).wait() {
            Ok(count) => written += u64::from(count),
            Err(error) => break error,
        }
        assert!(written < 64 << 20, "more than the disk holds");
    };
    assert_eq!(refused, FsError::NoSpace);
    assert!(written > 8 << 20, "the disk was not full at {written}");
    assert_eq!(machine.drive().fsync(handle, SyncScope::All).wait(), Ok(()));
    machine.drive().mkdir(USER, ROOT, &named("d"), 0o755).expect("the reserve is for the rows");
    machine.drive().flush().expect("durable");
    machine.drive().release(handle);
    machine.restart();
    assert_eq!(machine.attributes(ino).size, written);
    let opened = machine.open_file(ino, super::READ).expect("opened");
    assert!(machine.read(opened.handle, written - (1 << 20), 1 << 20).as_deref() == Ok(&block[..]));
    machine.drive().release(opened.handle);
    // The backing file too.
    drop(opened);
    machine.drive().unlink(ROOT, &named("f")).expect("removed");
    let (_, handle) = machine.create("g");
    eventually("there is space again", || {
        machine.drive().write(handle, 0, &block, SetIdBits::Clear).wait() == Ok(1 << 20)
    });
}

#[test]
fn on_a_full_disk_clean_contents_give_way() {
    if !is_root() {
        return;
    }
    let outer = tempfile::tempdir().expect("a temporary directory");
    let _disk = MemoryDisk::mount(outer.path(), "48m");
    let inner = tempfile::tempdir_in(outer.path()).expect("a directory on the small disk");
    let machine = Machine::at(inner, |settings| settings.disk_reserve = 8 << 20);
    let bytes = noise(2, 4 << 20);
    let mut inos = Vec::new();
    for n in 0..16 {
        inos.push(machine.file(&format!("f{n}"), &bytes));
        machine.publish();
    }
    assert!(inos.iter().any(|ino| machine.state(*ino) == "remote"), "64 MiB were written to 48");
    for ino in inos {
        assert!(machine.bytes(ino).as_deref() == Ok(&bytes[..]));
    }
}

#[test]
fn without_room_for_one_more_file_a_content_is_read_and_not_kept() {
    if !is_root() {
        return;
    }
    let outer = tempfile::tempdir().expect("a temporary directory");
    // The directories of the backing files take 256.
    let _disk = MemoryDisk::with_files(outer.path(), "64m", 300);
    let inner = tempfile::tempdir_in(outer.path()).expect("a directory on the small disk");
    let machine = Machine::at(inner, |_| {});
    let bytes = noise(3, 3 << 20);
    let ino = machine.file("f", &bytes);
    machine.make_cold(&[ino]);
    let create = |number: usize| machine.drive().create(USER, ROOT, &named(&format!("g{number}")), 0o644, super::WRITE);
    assert_eq!((0..300).find_map(|number| create(number).err()), Some(FsError::NoSpace));
    assert!(machine.bytes(ino).as_deref() == Ok(&bytes[..]));
}
