//! Files that are not here, or not wholly, and are opened for writing.

use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cairn_platform_api::{Attributes, FsError, InodeNo, OpenMode, SetAttributes, SetTime, SyncScope, Timestamp, Vfs};
use cairnfs::tree::{ContentState, Namespace, Touched};

use super::{Machine, READ, ROOT, USER, WRITE, named, noise};
use crate::harness::{eventually, eventually_some};

const APPEND: OpenMode = OpenMode { append: true, ..WRITE };
const TRUNCATE: OpenMode = OpenMode { truncate: true, ..WRITE };

fn cold(machine: &Machine, bytes: &[u8]) -> InodeNo {
    let ino = machine.file("f", bytes);
    machine.make_cold(&[ino]);
    machine.remote.fetched.store(0, Ordering::Relaxed);
    ino
}

fn go_offline(machine: &Machine, offline: bool) {
    machine.remote.gone.store(offline, Ordering::Relaxed);
}

fn fetched(machine: &Machine) -> usize {
    machine.remote.fetched.load(Ordering::Relaxed)
}

/// Reads the first chunk, and waits until a row says that it is here.
fn warm_the_beginning(machine: &mut Machine, ino: InodeNo) {
    let opened = machine.open_file(ino, READ).expect("opened");
    let read = machine.read(opened.handle, 8000, 100);
    assert_eq!(read.map(|bytes| bytes.len()), Ok(100));
    machine.drive().release(opened.handle);
    machine.restart();
    machine.remote.fetched.store(0, Ordering::Relaxed);
}

fn visible(attributes: Attributes) -> (u64, Timestamp, Timestamp) {
    (attributes.size, attributes.mtime, attributes.ctime)
}

#[track_caller]
fn assert_bytes(machine: &Machine, ino: InodeNo, expected: &[u8]) {
    assert!(machine.bytes(ino).as_deref() == Ok(expected), "other bytes");
}

#[test]
fn appending_to_a_cold_file_fetches_it_and_keeps_its_time() {
    let mut machine = Machine::new();
    let mut expected = noise(1, 100_000);
    let ino = machine.file("f", &expected);
    let time = Timestamp::from_parts(77, 5);
    let set = SetAttributes { mtime: Some(SetTime::At(time)), ..SetAttributes::default() };
    machine.drive().setattr(USER, ino, None, set).wait().expect("set");
    machine.make_cold(&[ino]);
    machine.remote.fetched.store(0, Ordering::Relaxed);
    let opened = machine.open_file(ino, APPEND).expect("opened");
    assert_eq!(fetched(&machine), 13);
    assert!(opened.backing.is_some(), "it is complete");
    assert_eq!(machine.attributes(ino).mtime, time, "fetching is not modifying");
    assert_eq!(machine.state(ino), "local");
    machine.write(opened.handle, 0, b"more");
    expected.extend_from_slice(b"more");
    assert_ne!(machine.attributes(ino).mtime, time);
    machine.drive().fsync(opened.handle, SyncScope::All).wait().expect("synced");
    machine.drive().release(opened.handle);
    machine.crash();
    assert_eq!(machine.state(ino), "local");
    go_offline(&machine, true);
    assert_bytes(&machine, ino, &expected);
    go_offline(&machine, false);
    machine.make_cold(&[ino]);
    assert_bytes(&machine, ino, &expected);
}

#[test]
fn a_cold_file_that_is_written_in_part_survives_a_crash_and_is_published_whole() {
    let mut machine = Machine::new();
    let mut expected = noise(2, 100_000);
    let ino = cold(&machine, &expected);
    warm_the_beginning(&mut machine, ino);
    let opened = machine.open_file(ino, WRITE).expect("opened");
    assert_eq!(fetched(&machine), 12, "what was here is not fetched again");
    machine.write(opened.handle, 50_000, b"hello");
    expected[50_000..50_005].copy_from_slice(b"hello");
    machine.drive().fsync(opened.handle, SyncScope::All).wait().expect("synced");
    machine.drive().release(opened.handle);
    machine.crash();
    assert_eq!(machine.state(ino), "local");
    assert_bytes(&machine, ino, &expected);
    machine.crash();
    machine.make_cold(&[ino]);
    assert_bytes(&machine, ino, &expected);
}

#[test]
fn a_cold_file_that_is_written_and_not_synced_is_old_or_new_after_a_crash_and_nothing_else() {
    for warm in [false, true] {
        let mut machine = Machine::new();
        let old = noise(3, 60_000);
        let ino = cold(&machine, &old);
        if warm {
            warm_the_beginning(&mut machine, ino);
        }
        let opened = machine.open_file(ino, WRITE).expect("opened");
        machine.write(opened.handle, 0, b"new");
        machine.drive().release(opened.handle);
        machine.crash();
        let mut new = old.clone();
        new[..3].copy_from_slice(b"new");
        let expected = if machine.state(ino) == "local" { new } else { old };
        assert_bytes(&machine, ino, &expected);
    }
}

#[test]
fn a_conversion_that_failed_leaves_nothing_behind_that_a_crash_could_turn_into_content() {
    let mut machine = Machine::new();
    let bytes = noise(4, 60_000);
    let ino = cold(&machine, &bytes);
    warm_the_beginning(&mut machine, ino);
    go_offline(&machine, true);
    assert_eq!(machine.open_file(ino, WRITE).map(|_| ()), Err(FsError::Io));
    machine.crash();
    go_offline(&machine, false);
    assert_eq!(machine.state(ino), "remote");
    assert_bytes(&machine, ino, &bytes);
}

#[test]
fn cutting_a_cold_file_fetches_what_stays_and_no_more() {
    let mut machine = Machine::new();
    let bytes = noise(5, 60_000);
    let ino = cold(&machine, &bytes);
    let size = |size| SetAttributes { size: Some(size), ..SetAttributes::default() };
    let cut = machine.drive().setattr(USER, ino, None, size(10_000)).wait().expect("cut");
    assert_eq!(cut.size, 10_000);
    assert_eq!(fetched(&machine), 2);
    machine.drive().setattr(USER, ino, None, size(30_000)).wait().expect("extended");
    assert_eq!(fetched(&machine), 2);
    let mut expected = bytes[..10_000].to_vec();
    expected.resize(30_000, 0);
    assert_bytes(&machine, ino, &expected);
    let opened = machine.open_file(ino, WRITE).expect("opened");
    machine.drive().fsync(opened.handle, SyncScope::All).wait().expect("synced");
    machine.drive().release(opened.handle);
    machine.crash();
    assert_bytes(&machine, ino, &expected);
    machine.make_cold(&[ino]);
    assert_bytes(&machine, ino, &expected);
}

#[test]
fn extending_a_cold_file_keeps_all_of_it() {
    let machine = Machine::new();
    let mut expected = noise(6, 20_000);
    let ino = cold(&machine, &expected);
    let size = SetAttributes { size: Some(50_000), ..SetAttributes::default() };
    machine.drive().setattr(USER, ino, None, size).wait().expect("extended");
    expected.resize(50_000, 0);
    assert_bytes(&machine, ino, &expected);
}

#[test]
fn emptying_a_cold_file_needs_no_remote() {
    for warm in [false, true] {
        let mut machine = Machine::new();
        let ino = cold(&machine, &noise(7, 60_000));
        if warm {
            warm_the_beginning(&mut machine, ino);
        }
        go_offline(&machine, true);
        let opened = machine.open_file(ino, TRUNCATE).expect("opened");
        machine.write(opened.handle, 0, b"short");
        machine.drive().fsync(opened.handle, SyncScope::All).wait().expect("synced");
        machine.drive().release(opened.handle);
        assert_bytes(&machine, ino, b"short");
        machine.crash();
        assert_bytes(&machine, ino, b"short");
        assert_eq!(fetched(&machine), 0);
        machine.make_cold(&[ino]);
        go_offline(&machine, false);
        assert_bytes(&machine, ino, b"short");
    }
}

#[test]
fn without_the_remote_a_cold_file_cannot_be_opened_for_writing_and_nothing_changes() {
    let mut machine = Machine::new();
    let bytes = noise(8, 60_000);
    let ino = cold(&machine, &bytes);
    warm_the_beginning(&mut machine, ino);
    let before = visible(machine.attributes(ino));
    go_offline(&machine, true);
    for mode in [WRITE, APPEND] {
        assert_eq!(machine.open_file(ino, mode).map(|_| ()), Err(FsError::Io));
    }
    let size = SetAttributes { size: Some(20_000), ..SetAttributes::default() };
    assert_eq!(machine.drive().setattr(USER, ino, None, size).wait().map(|_| ()), Err(FsError::Io));
    assert_eq!(visible(machine.attributes(ino)), before);
    assert_eq!(machine.state(ino), "remote");
    assert!(machine.drive().dirty_files().expect("listed").is_empty());
    let opened = machine.open_file(ino, READ).expect("opened");
    assert!(machine.read(opened.handle, 0, 8192).as_deref() == Ok(&bytes[..8192]), "what is here can be read");
    machine.drive().release(opened.handle);
    machine.restart();
    let opened = machine.open_file(ino, READ).expect("opened");
    assert!(machine.read(opened.handle, 0, 8192).as_deref() == Ok(&bytes[..8192]), "it is claimed again");
    machine.drive().release(opened.handle);
    go_offline(&machine, false);
    assert_bytes(&machine, ino, &bytes);
}

#[test]
fn who_opens_a_cold_file_at_the_same_time_waits_for_one_transfer() {
    let machine = Machine::new();
    let mut expected = noise(9, 100_000);
    let ino = cold(&machine, &expected);
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for n in 0..4_u64 {
            let (machine, barrier) = (&machine, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let opened = machine.open_file(ino, WRITE).expect("opened");
                machine.write(opened.handle, n * 20_000, &[n as u8; 10]);
                machine.drive().release(opened.handle);
            });
        }
    });
    (0..4).for_each(|n| expected[n * 20_000..n * 20_000 + 10].fill(n as u8));
    assert_eq!(fetched(&machine), 13);
    assert_bytes(&machine, ino, &expected);
}

#[test]
fn reads_go_on_while_a_file_is_being_fetched_for_a_writer() {
    let mut machine = Machine::new();
    let bytes = noise(10, 60_000);
    let ino = cold(&machine, &bytes);
    warm_the_beginning(&mut machine, ino);
    machine.settings.read_deadline = Duration::from_millis(300);
    machine.restart();
    machine.remote.hanging.store(true, Ordering::Relaxed);
    let reader = machine.open_file(ino, READ).expect("opened");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| machine.open_file(ino, WRITE).map(|_| ()));
        while !writer.is_finished() {
            assert!(machine.read(reader.handle, 0, 8192).as_deref() == Ok(&bytes[..8192]), "other bytes");
        }
        assert_eq!(writer.join().expect("it ends"), Err(FsError::Io));
    });
    machine.remote.hanging.store(false, Ordering::Relaxed);
    // A slow machine may miss the short deadline now and then.
    let writer = eventually_some("it opens", || machine.open_file(ino, WRITE).ok());
    machine.write(writer.handle, 0, b"new");
    assert_eq!(machine.read(reader.handle, 0, 3).as_deref(), Ok(&b"new"[..]), "the reader sees what is written");
}

#[test]
fn a_file_without_room_for_it_cannot_be_opened_for_writing_but_emptied() {
    let mut machine = Machine::new();
    let bytes = noise(11, 60_000);
    let ino = cold(&machine, &bytes);
    machine.settings.disk_reserve = u64::MAX / 2;
    machine.restart();
    assert_eq!(machine.open_file(ino, WRITE).map(|_| ()), Err(FsError::NoSpace));
    assert_eq!(fetched(&machine), 0, "it is refused before anything is fetched");
    assert_bytes(&machine, ino, &bytes);
    assert_eq!(machine.open_file(ino, TRUNCATE).map(|_| ()), Ok(()));
    assert_bytes(&machine, ino, b"");
}

#[test]
fn a_hole_needs_no_room_to_be_opened_for_writing() {
    let mut machine = Machine::new();
    let bytes = vec![0; 60_000];
    let ino = cold(&machine, &bytes);
    machine.settings.disk_reserve = u64::MAX / 2;
    machine.restart();
    assert_eq!(machine.open_file(ino, WRITE).map(|_| ()), Ok(()));
    assert_bytes(&machine, ino, &bytes);
}

#[test]
fn a_cold_file_without_names_can_be_opened_for_writing() {
    let machine = Machine::new();
    let mut expected = noise(12, 30_000);
    let ino = cold(&machine, &expected);
    let reader = machine.open_file(ino, READ).expect("opened");
    machine.drive().unlink(ROOT, &named("f")).expect("unlinked");
    let writer = machine.open_file(ino, WRITE).expect("opened");
    machine.write(writer.handle, 10, b"new");
    machine.write(writer.handle, 30_000, b"more");
    expected[10..13].copy_from_slice(b"new");
    expected.extend_from_slice(b"more");
    assert_eq!(machine.attributes(ino).size, 30_004);
    assert!(machine.read(reader.handle, 0, 40_000).as_deref() == Ok(&expected[..]), "other bytes");
    assert_eq!(machine.drive().fsync(writer.handle, SyncScope::All).wait(), Ok(()));
}

/// What a reader of a replaced content fetches must not go where the new content is.
#[test]
fn a_reader_of_a_replaced_content_does_not_touch_the_file_that_took_its_place() {
    let machine = Machine::new();
    let old = noise(13, 30_000);
    let ino = cold(&machine, &old);
    let reader = machine.open_file(ino, READ).expect("opened");
    let new = machine.store(&noise(14, 20_000));
    let mut change = machine.drive().tree().change(&[ino]).expect("started");
    let mut row = change.inode(ino).expect("read").expect("it is there");
    row.content = ContentState::Published(new);
    change.put_inode(ino, &row).expect("written");
    change.commit();
    machine.drive().apply_touched(&[Touched::Inode(ino)]);
    let writer = machine.open_file(ino, WRITE).expect("opened");
    machine.write(writer.handle, 0, b"only here");
    assert!(machine.read(reader.handle, 0, 40_000).as_deref() == Ok(&old[..]), "other bytes");
    machine.drive().release(reader.handle);
    machine.drive().release(writer.handle);
    let mut machine = machine;
    machine.restart();
    let mut expected = noise(14, 20_000);
    expected[..9].copy_from_slice(b"only here");
    assert_bytes(&machine, ino, &expected);
}

/// Tried again where the machine was so slow that the files came one by one.
#[test]
fn many_fetched_files_are_recorded_with_few_syncs() {
    let mut machine = Machine::new();
    let inos: Vec<_> = (0..600).map(|n| machine.file(&n.to_string(), &noise(n, 100))).collect();
    if machine.drive().sync_contents().expect("synced").is_none() {
        crate::skip::skipped("the temporary directory is on a file system whose files are synced one by one");
        return;
    }
    eventually("what was fetched is recorded, many files with one sync", || {
        machine.make_cold(&inos);
        let before = machine.drive().content_syncs();
        for (n, ino) in inos.iter().enumerate() {
            assert_bytes(&machine, *ino, &noise(n as u64, 100));
        }
        let syncs = machine.drive().content_syncs() - before;
        machine.restart();
        syncs < 100 && inos.iter().filter(|ino| machine.state(**ino) == "replicated").count() >= 500
    });
}

#[test]
fn what_is_fetched_for_a_writer_is_durable_before_the_file_is_local() {
    let machine = Machine::new();
    let bytes = noise(13, 30_000);
    let ino = cold(&machine, &bytes);
    let before = machine.drive().content_syncs();
    let writer = machine.open_file(ino, WRITE).expect("opened");
    assert!(machine.drive().content_syncs() > before, "a power loss would leave a local file of zeros");
    machine.drive().release(writer.handle);
}
