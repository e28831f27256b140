//! Content that is local, published, partly here, evicted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cairn_platform_api::{Allocate, FsError, RenameMode, SeekTo, SetAttributes, SetTime, SyncScope, Timestamp, Vfs};
use cairnfs::drive::{Drive, DriveError, DriveSettings, MemorySource, OpenForWrite};

use super::{Machine, READ, ROOT, USER, WRITE, named, noise};
use crate::harness::eventually;

#[test]
fn a_second_process_is_refused_with_a_sentence() {
    let machine = Machine::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let settings = DriveSettings::new(machine.drive().tree().device().clone(), runtime.handle().clone());
    let error = Drive::open(machine.directory(), settings, Arc::new(MemorySource::default())).err().expect("refused");
    assert!(matches!(error, DriveError::InUse(_)));
    assert!(error.to_string().ends_with("is in use by another cairn process"), "{error}");
}

#[test]
fn a_local_file_survives_restarts_of_both_kinds() {
    let mut machine = Machine::new();
    let bytes = noise(1, 50_000);
    let ino = machine.file("f", &bytes);
    let before = machine.attributes(ino);
    machine.restart();
    assert!(machine.bytes(ino).as_deref() == Ok(&bytes[..]), "other bytes");
    machine.crash();
    assert!(machine.bytes(ino).as_deref() == Ok(&bytes[..]), "other bytes");
    assert_eq!(machine.attributes(ino), before);
    assert_eq!(machine.state(ino), "local");
}

#[test]
fn a_published_file_is_clean_and_comes_back_from_the_remote_after_eviction() {
    let mut machine = Machine::new();
    let bytes = noise(2, 100_000);
    let ino = machine.file("f", &bytes);
    let before = machine.attributes(ino);
    assert_eq!(machine.publish(), 1);
    assert_eq!(machine.state(ino), "replicated");
    assert!(machine.drive().dirty_files().expect("listed").is_empty());
    assert!(machine.drive().evict(ino).expect("evicted") >= 100_000);
    assert_eq!(machine.state(ino), "remote");
    let after = machine.attributes(ino);
    assert_eq!((after.size, after.mtime, after.ctime), (before.size, before.mtime, before.ctime));
    assert!(machine.bytes(ino).as_deref() == Ok(&bytes[..]), "other bytes");
    assert_eq!(machine.state(ino), "replicated");
    let fetched = machine.remote.fetched.load(Ordering::Relaxed);
    assert_eq!(fetched, 13);
    // The stamp of a file that changed just now proves nothing, so a drive that is closed at once records nothing of it.
    let read = Instant::now();
    eventually("the stamp is old enough", || read.elapsed() > Duration::from_millis(200));
    machine.restart();
    machine.remote.fetched.store(0, Ordering::Relaxed);
    assert!(machine.bytes(ino).as_deref() == Ok(&bytes[..]), "other bytes");
    assert_eq!(machine.remote.fetched.load(Ordering::Relaxed), 0, "what was fetched was recorded");
}

#[test]
fn dirty_and_open_files_cannot_be_evicted() {
    let machine = Machine::new();
    let ino = machine.file("f", b"dirty");
    assert_eq!(machine.drive().evict(ino), Ok(0));
    machine.publish();
    let opened = machine.open_file(ino, READ).expect("opened");
    assert_eq!(machine.drive().evict(ino), Ok(0));
    machine.drive().release(opened.handle);
    assert_ne!(machine.drive().evict(ino), Ok(0));
}

#[test]
fn reads_without_the_remote_fail() {
    let machine = Machine::new();
    let ino = machine.file("f", &noise(3, 40_000));
    machine.make_cold(&[ino]);
    machine.remote.gone.store(true, Ordering::Relaxed);
    assert_eq!(machine.bytes(ino), Err(FsError::Io));
    assert_eq!(machine.attributes(ino).size, 40_000);
}

#[test]
fn a_read_that_the_remote_does_not_answer_ends_at_its_deadline() {
    let machine = Machine::with(|settings| settings.read_deadline = Duration::from_millis(20));
    let ino = machine.file("f", &noise(4, 20_000));
    machine.make_cold(&[ino]);
    machine.remote.hanging.store(true, Ordering::Relaxed);
    assert_eq!(machine.bytes(ino), Err(FsError::Io));
}

#[test]
fn what_was_cut_off_a_cold_file_does_not_come_back() {
    let mut machine = Machine::new();
    let bytes = noise(6, 60_000);
    let ino = machine.file("f", &bytes);
    machine.make_cold(&[ino]);
    let opened = machine.open_file(ino, WRITE).expect("opened");
    let size = |size| SetAttributes { size: Some(size), ..SetAttributes::default() };
    machine.drive().setattr(USER, ino, Some(opened.handle), size(10_000)).wait().expect("cut");
    machine.drive().setattr(USER, ino, None, size(30_000)).wait().expect("extended");
    machine.drive().fallocate(opened.handle, 100, 50, Allocate::PunchHole).wait().expect("punched");
    machine.drive().fsync(opened.handle, SyncScope::All).wait().expect("synced");
    machine.drive().release(opened.handle);
    let mut expected = bytes[..10_000].to_vec();
    expected.resize(30_000, 0);
    expected[100..150].fill(0);
    assert!(machine.bytes(ino).as_deref() == Ok(&expected[..]), "other bytes");
    machine.crash();
    assert!(machine.bytes(ino).as_deref() == Ok(&expected[..]), "other bytes");
}

#[test]
fn a_file_opened_for_writing_and_not_written_is_clean_again() {
    let machine = Machine::new();
    let ino = machine.file("f", &noise(8, 1000));
    machine.publish();
    let before = machine.attributes(ino);
    let opened = machine.open_file(ino, WRITE).expect("opened");
    assert_eq!(machine.state(ino), "local");
    let open = machine.attributes(ino);
    assert_eq!((open.mtime, open.ctime), (before.mtime, before.ctime));
    assert_eq!(machine.drive().dirty_files().expect("listed")[0].open_for_write, OpenForWrite::Yes);
    machine.drive().release(opened.handle);
    eventually("it is clean again", || machine.state(ino) == "replicated");
    assert_eq!(machine.publish(), 0);
}

#[test]
fn a_file_that_is_open_for_writing_when_it_is_published_stays_local_until_it_is_closed() {
    let machine = Machine::new();
    let (ino, handle) = machine.create("f");
    machine.write(handle, 0, b"first");
    machine.publish();
    assert_eq!(machine.state(ino), "local");
    machine.drive().release(handle);
    eventually("it is clean", || machine.state(ino) == "replicated");
    let opened = machine.open_file(ino, WRITE).expect("opened");
    machine.publish();
    machine.write(opened.handle, 0, b"other");
    machine.drive().release(opened.handle);
    assert_eq!(machine.publish(), 1);
    assert_eq!(machine.state(ino), "replicated");
    assert!(machine.bytes(ino).as_deref() == Ok(&b"other"[..]), "other bytes");
}

/// A write by the kernel, past the drive, that a crash of the program leaves behind.
#[test]
fn a_clean_file_that_was_written_past_the_drive_is_found_after_an_unclean_stop() {
    let mut machine = Machine::new();
    let ino = machine.file("f", b"published");
    machine.publish();
    let backing = machine.directory().join(format!("content/{:02x}/{:x}", ino.0 & 0xff, ino.0));
    std::fs::write(&backing, b"PUBLISHED").expect("written past the drive");
    machine.crash();
    eventually("the drive notices without being asked for the file", || {
        machine.drive().dirty_files().expect("listed").len() == 1
    });
    assert!(machine.bytes(ino).as_deref() == Ok(&b"PUBLISHED"[..]), "other bytes");
    machine.make_cold(&[ino]);
    assert!(machine.bytes(ino).as_deref() == Ok(&b"PUBLISHED"[..]), "other bytes");
}

#[test]
fn an_unlinked_file_lives_while_it_is_open_and_leaves_nothing_behind() {
    let machine = Machine::new();
    let (ino, handle) = machine.create("f");
    machine.write(handle, 0, b"still here");
    let backing = machine.directory().join(format!("content/{:02x}/{:x}", ino.0 & 0xff, ino.0));
    assert!(backing.exists());
    machine.drive().unlink(ROOT, &named("f")).expect("unlinked");
    assert_eq!(machine.attributes(ino).nlink, 0);
    assert_eq!(machine.read(handle, 0, 100).as_deref(), Ok(&b"still here"[..]));
    machine.write(handle, 10, b"!");
    assert_eq!(machine.attributes(ino).size, 11);
    machine.drive().release(handle);
    eventually("nobody has it any more", || machine.drive().getattr(ino, None) == Err(FsError::Stale));
    machine.drive().flush().expect("durable");
    eventually("the backing file is gone", || !backing.exists());
}

#[test]
fn a_cold_file_that_is_unlinked_while_open_can_still_be_read() {
    let machine = Machine::new();
    let bytes = noise(9, 30_000);
    let ino = machine.file("f", &bytes);
    machine.make_cold(&[ino]);
    let opened = machine.open_file(ino, READ).expect("opened");
    machine.drive().unlink(ROOT, &named("f")).expect("unlinked");
    assert!(machine.read(opened.handle, 0, 40_000).as_deref() == Ok(&bytes[..]), "other bytes");
    machine.drive().release(opened.handle);
}

#[test]
fn backing_files_without_an_inode_are_swept_after_an_unclean_stop() {
    let mut machine = Machine::new();
    let kept = machine.file("kept", b"kept");
    let stray = machine.directory().join("content/cd/abcd");
    std::fs::write(&stray, b"nobody's").expect("written");
    machine.crash();
    eventually("the stray file is gone", || !stray.exists());
    assert!(machine.bytes(kept).as_deref() == Ok(&b"kept"[..]), "other bytes");
}

#[test]
fn the_cache_keeps_its_budget_and_what_was_used_last() {
    let machine = Machine::with(|settings| settings.cache_budget = 1 << 20);
    let inos: Vec<_> = (0..8).map(|n| machine.file(&n.to_string(), &noise(n, 256 << 10))).collect();
    assert_eq!(machine.drive().cached_bytes(), 0, "what is only here is not counted");
    machine.publish();
    eventually("the cache is within its budget", || machine.drive().cached_bytes() <= 1 << 20);
    assert!(inos.iter().any(|ino| machine.state(*ino) == "replicated"));
    for (n, ino) in inos.iter().enumerate() {
        assert!(machine.bytes(*ino).as_deref() == Ok(&noise(n as u64, 256 << 10)[..]), "other bytes");
    }
    eventually("the cache is within its budget again", || machine.drive().cached_bytes() <= 1 << 20);
}

#[test]
fn a_sequential_reader_is_read_ahead_of_within_bounds() {
    let machine = Machine::with(|settings| settings.read_ahead = 64 << 10);
    let bytes = noise(10, 400_000);
    let ino = machine.file("f", &bytes);
    machine.make_cold(&[ino]);
    let opened = machine.open_file(ino, READ).expect("opened");
    let mut read = Vec::new();
    while read.len() < bytes.len() {
        let part = machine.read(opened.handle, read.len() as u64, 8192).expect("read");
        read.extend_from_slice(&part);
    }
    assert!(read == bytes);
    assert!(machine.remote.fetched.load(Ordering::Relaxed) >= 49);
}

#[test]
fn copies_and_holes_of_files_here_and_not_here() {
    let machine = Machine::new();
    let bytes = noise(11, 30_000);
    let (cold, sparse) = (machine.file("cold", &bytes), machine.file("sparse", b""));
    machine.make_cold(&[cold]);
    let from = machine.open_file(cold, READ).expect("opened").handle;
    let (copy, to) = machine.create("copy");
    assert_eq!(machine.drive().copy_file_range(from, 10_000, to, 5, 99_999).wait(), Ok(20_000));
    let mut expected = vec![0; 5];
    expected.extend_from_slice(&bytes[10_000..]);
    assert!(machine.bytes(copy).as_deref() == Ok(&expected[..]), "other bytes");
    assert_eq!(machine.drive().copy_file_range(from, 30_000, to, 0, 10).wait(), Ok(0));
    let sparse = machine.open_file(sparse, WRITE).expect("opened").handle;
    machine.write(sparse, 1 << 20, b"x");
    assert_eq!(machine.drive().lseek(sparse, 0, SeekTo::Data), Ok(1 << 20));
    assert_eq!(machine.drive().lseek(sparse, 0, SeekTo::Hole), Ok(0));
    assert_eq!(machine.drive().lseek(sparse, 2 << 20, SeekTo::Hole), Err(FsError::NoOffset));
    let cold = machine.open_file(cold, READ).expect("opened").handle;
    assert_eq!(machine.drive().lseek(cold, 7, SeekTo::Data), Ok(7));
    assert_eq!(machine.drive().lseek(cold, 7, SeekTo::Hole), Ok(30_000));
}

#[test]
fn times_that_were_set_survive_publication_and_eviction() {
    let mut machine = Machine::new();
    let ino = machine.file("f", b"old");
    let time = Timestamp::from_parts(-77, 123_456_789);
    let at = Some(SetTime::At(time));
    let set = SetAttributes { mtime: at, atime: at, ..SetAttributes::default() };
    let after = machine.drive().setattr(USER, ino, None, set).wait().expect("set");
    assert_eq!((after.mtime, after.atime), (time, time));
    machine.make_cold(&[ino]);
    machine.restart();
    let after = machine.attributes(ino);
    assert_eq!((after.mtime, after.atime), (time, time));
    let opened = machine.open_file(ino, WRITE).expect("opened");
    assert_eq!(machine.attributes(ino).mtime, time);
    assert_eq!(machine.read(opened.handle, 0, 9).as_deref(), Ok(&b"old"[..]));
    assert_eq!(machine.attributes(ino).mtime, time, "fetching is not modifying");
    machine.write(opened.handle, 0, b"new");
    assert_ne!(machine.attributes(ino).mtime, time);
}

#[test]
fn the_state_attribute_is_not_listed_and_cannot_be_set() {
    let machine = Machine::new();
    let ino = machine.file("f", b"x");
    assert_eq!(machine.drive().listxattr(ino), Ok(Vec::new()));
    machine.drive().set_sending([ino].into());
    assert_eq!(machine.state(ino), "sending");
    let mode = cairn_platform_api::SetXattrMode::Any;
    assert_eq!(machine.drive().setxattr(ino, b"user.cairn.state", b"x", mode), Err(FsError::NotPermitted));
    assert_eq!(machine.drive().getxattr(ROOT, b"user.cairn.state"), Err(FsError::NoAttribute));
}

#[test]
fn a_file_renamed_over_one_that_is_open_leaves_the_old_to_its_readers() {
    let machine = Machine::new();
    let old = machine.file("old", b"old bytes");
    let new = machine.file("new", b"new bytes");
    let opened = machine.open_file(old, READ).expect("opened");
    machine.drive().rename(ROOT, &named("new"), ROOT, &named("old"), RenameMode::Replace).expect("renamed");
    assert_eq!(machine.read(opened.handle, 0, 20).as_deref(), Ok(&b"old bytes"[..]));
    assert_eq!(machine.lookup("old").map(|found| found.ino), Ok(new));
    assert_eq!(machine.lookup("new"), Err(FsError::NotFound));
    assert_eq!(machine.open_file(old, READ).map(|_| ()), Ok(()), "it is still there for who has it open");
    machine.drive().release(opened.handle);
}
