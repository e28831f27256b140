//! Files that are written all the time, and files that cannot be read: what is published is never torn, and who waits is
//! told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairn_platform_api::{HandleNo, InodeNo, OpenMode, RenameMode, SetIdBits, Vfs, VfsName};
use cairnfs::base::os;
use cairnfs::drive::Drive;
use cairnfs::replicate::{DrainError, LeftReason, ReplicateSettings, Replicator, SettlePolicy, Stopped, Urgency};

use super::device::{Device, noise};
use super::world::World;
use crate::harness::eventually;

/// Many chunks of those that these worlds have.
const LENGTH: u64 = 40_000;

/// From now on each time that a content has been read and is to be found the same, `act` comes first: with the number of
/// times.
fn at_each_reading(device: &Device, act: impl Fn(&Drive, u64) + Send + Sync + 'static) {
    let drive = Arc::downgrade(&device.drive);
    let times = AtomicU64::new(0);
    device.engine.failpoints.set_hook(move |step| {
        if step == "push.in_read" {
            let drive = drive.upgrade().expect("the drive is open");
            let times = times.fetch_add(1, Ordering::SeqCst);
            if times > 200 {
                return Err(Stopped("after too many readings"));
            }
            act(&drive, times);
        }
        Ok(())
    });
}

fn write(drive: &Drive, handle: HandleNo, offset: u64, bytes: &[u8]) {
    drive.write(handle, offset, bytes, SetIdBits::Clear).wait().expect("the bytes are accepted");
}

/// A file of [`LENGTH`] that is never found as it was: its first byte changes.
fn restless(device: &Device, path: &str) -> HandleNo {
    device.write(path, &noise(1, LENGTH as usize));
    let handle = device.open_for_writing(path);
    at_each_reading(device, move |drive, times| write(drive, handle, 0, &times.to_le_bytes()));
    handle
}

/// Whether the disk can make a copy of a file in one step: then no file is restless.
fn disk_freezes() -> bool {
    let from = tempfile::tempfile().expect("a temporary file");
    let to = tempfile::tempfile().expect("a temporary file");
    os::clone_content(&from, &to).is_ok()
}

#[test]
fn file_that_grows_all_the_time_is_published_as_it_was_at_one_time() {
    for slice in [u64::MAX, 9_000] {
        let world = World::of_tiny_chunks();
        let (a, b) = (world.device_of_slices("a", slice), world.device("b"));
        let content = noise(1, LENGTH as usize);
        a.write("log", &content);
        let handle = a.open_for_writing("log");
        at_each_reading(&a, move |drive, times| write(drive, handle, LENGTH + times, b"x"));
        let pushed = world.runtime.block_on(a.engine.push_round(Urgency::Drain)).expect("the device pushes");
        assert!(pushed.left.is_empty(), "{pushed:?}");
        world.pull(&b);
        let (ours, theirs) = (a.read("log").expect("readable"), b.read("log").expect("readable"));
        assert!(theirs.len() >= content.len() && ours.starts_with(&theirs), "{} of {}", theirs.len(), ours.len());

        a.drive.release(handle);
        a.engine.failpoints.set_hook(|_| Ok(()));
        world.drain(&a);
        world.pull(&b);
        assert!(b.read("log").expect("readable") == ours);
    }
}

#[test]
fn file_that_is_overwritten_all_the_time_is_left_and_named_and_holds_nobody_up() {
    for slice in [u64::MAX, 9_000] {
        let world = World::of_tiny_chunks();
        let (a, b) = (world.device_of_slices("a", slice), world.device("b"));
        a.mkdir("d");
        let handle = restless(&a, "d/image");
        a.write("other", b"other");
        let pushed = world.runtime.block_on(a.engine.push_round(Urgency::Drain)).expect("the device pushes");
        let status = a.engine.status().expect("there is a status");
        world.pull(&b);
        assert_eq!(b.read("other").expect("it is there"), b"other");
        if disk_freezes() {
            assert!(pushed.left.is_empty(), "{pushed:?}");
        } else {
            assert!(!pushed.left.is_empty() && b.read("d/image").is_err());
            assert_eq!(status.left.len(), 1, "{status:?}");
            assert_eq!((status.left[0].path.as_str(), &status.left[0].reason), ("d/image", &LeftReason::Restless));
            assert!(status.left[0].since_ms > 0);
        }
        a.engine.failpoints.set_hook(|_| Ok(()));
        a.drive.release(handle);
        world.drain(&a);
        assert!(a.engine.status().expect("there is a status").left.is_empty());
        world.pull(&b);
        assert!(b.everything() == a.everything());
    }
}

#[test]
fn version_before_stays_published_while_a_file_is_restless() {
    let world = World::of_tiny_chunks();
    let (a, b) = (world.device("a"), world.device("b"));
    let before = noise(1, LENGTH as usize);
    a.write("image", &before);
    world.drain(&a);
    let handle = restless(&a, "image");
    world.runtime.block_on(a.engine.push_round(Urgency::Drain)).expect("the device pushes");
    world.pull(&b);
    assert!(b.read("image").expect("it is there") == before || disk_freezes());
    a.drive.release(handle);
}

/// Saves a file as careful programs do: whole under another name, which then takes the place of the old one.
fn save(drive: &Drive, content: &[u8]) {
    let name = |text: &str| VfsName::new(text.as_bytes()).expect("a valid name");
    let mode = OpenMode { read: true, write: true, append: false, truncate: false };
    let made = drive.create(super::device::CALLER, InodeNo::ROOT, &name("tmp"), 0o644, mode).expect("it is made");
    write(drive, made.1.handle, 0, content);
    drive.release(made.1.handle);
    let (tmp, state) = (name("tmp"), name("state"));
    drive.rename(InodeNo::ROOT, &tmp, InodeNo::ROOT, &state, RenameMode::Replace).expect("it takes the name");
}

/// Where nothing ever comes to rest.
fn never_settled(settings: &mut ReplicateSettings) {
    settings.settle = SettlePolicy { settle: Duration::from_secs(3600), max_delay: Duration::from_millis(50) };
}

/// Acts and pushes in turn until `is_there`.
fn until(world: &World, a: &Device, act: impl Fn(u64), is_there: impl Fn() -> bool) {
    let mut turn = 0;
    eventually("it is sent although it does not rest", || {
        turn += 1;
        act(turn);
        world.runtime.block_on(a.engine.push_round(Urgency::Settled)).expect("the device pushes");
        is_there()
    });
}

#[test]
fn file_that_is_replaced_again_and_again_is_published() {
    let world = World::of_tiny_chunks();
    let (a, b) = (world.device_of("a", Arc::clone(&world.remote), never_settled), world.device("b"));
    let content = |turn: u64| noise(turn, 2000);
    let published = || {
        world.pull(&b);
        b.read("state").is_ok()
    };
    until(&world, &a, |turn| save(&a.drive, &content(turn)), published);
    let first = b.read("state").expect("it is there");
    assert!((1..10_000).any(|turn| first == content(turn)), "what was published was never saved");

    // It is replaced also while it is sent, so that none of its versions is there when it could be published.
    let (drive, times) = (Arc::downgrade(&a.drive), AtomicU64::new(1_000_000));
    a.engine.failpoints.set_hook(move |step| {
        if step == "push.after_pack" {
            save(&drive.upgrade().expect("the drive is open"), &noise(times.fetch_add(1, Ordering::SeqCst), 2000));
        }
        Ok(())
    });
    let changed = || {
        world.pull(&b);
        b.read("state").expect("it is there") != first
    };
    until(&world, &a, |turn| save(&a.drive, &content(2_000_000 + turn)), changed);
    let then = b.read("state").expect("it is there");
    assert!((1..10_000).any(|turn| then == content(2_000_000 + turn)), "what was published was never saved");
    assert!(a.read("state").expect("it is there") != then, "a newer one is only here");
    a.engine.failpoints.set_hook(|_| Ok(()));
    world.drain(&a);
    world.pull(&b);
    assert!(b.everything() == a.everything());
    assert_eq!(b.names().len(), a.names().len());
}

#[test]
fn log_that_is_rotated_again_and_again_is_published() {
    let world = World::of_tiny_chunks();
    let (a, b) = (world.device_of("a", Arc::clone(&world.remote), never_settled), world.device("b"));
    for name in ["log", "log.1", "log.2"] {
        a.write(name, b"old");
    }
    world.drain(&a);
    let rotate = |turn: u64| {
        a.rename("log.1", "log.2");
        a.rename("log", "log.1");
        a.write("log", &noise(turn, 2000));
    };
    let published = || {
        world.pull(&b);
        b.read("log").expect("it is there") != b"old"
    };
    until(&world, &a, rotate, published);
    world.drain(&a);
    world.pull(&b);
    assert!(b.everything() == a.everything());
}

#[test]
fn round_ends_however_many_files_are_made_meanwhile() {
    let world = World::of_tiny_chunks();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("first", b"first");
    at_each_reading(&a, |drive, times| {
        let name = cairn_platform_api::VfsName::new(format!("more {times}").as_bytes()).expect("a valid name");
        let mode = cairn_platform_api::OpenMode { read: true, write: true, append: false, truncate: false };
        let made = drive.create(super::device::CALLER, InodeNo::ROOT, &name, 0o644, mode).expect("it is made");
        write(drive, made.1.handle, 0, &times.to_le_bytes());
        drive.release(made.1.handle);
    });
    let pushed = world.runtime.block_on(a.engine.push_round(Urgency::Drain)).expect("the round ends");
    assert_eq!(pushed.files, 1);
    world.pull(&b);
    assert_eq!(b.read("first").expect("it is there"), b"first");
}

fn start(world: &World, device: &Device) -> Replicator {
    Replicator::over(Arc::clone(&device.engine), world.runtime.handle())
}

#[test]
fn drain_gives_up_a_file_that_never_rests_and_says_which() {
    let world = World::of_tiny_chunks();
    let a = world.device("a");
    let handle = restless(&a, "image");
    a.write("other", b"other");
    let replicator = start(&world, &a);
    let drained = world.runtime.block_on(replicator.drain(|_| {}));
    match drained {
        Ok(()) => assert!(disk_freezes(), "what was drained?"),
        Err(DrainError::Left(message)) => assert!(message.contains("\"image\""), "{message}"),
        Err(error) => panic!("{error}"),
    }
    let b = world.device("b");
    world.pull(&b);
    assert_eq!(b.read("other").expect("it is there"), b"other");
    a.engine.failpoints.set_hook(|_| Ok(()));
    a.drive.release(handle);
    world.runtime.block_on(replicator.drain(|_| {})).expect("it drains");
    world.runtime.block_on(replicator.stop());
}

#[test]
fn who_waits_for_one_file_does_not_wait_for_others() {
    let world = World::of_tiny_chunks();
    let a = world.device("a");
    a.mkdir("d");
    let handle = restless(&a, "image");
    a.write("d/mine", b"mine");
    let replicator = start(&world, &a);
    world.runtime.block_on(replicator.send(a.ino("d/mine"))).expect("it is sent");
    world.runtime.block_on(replicator.send(a.ino("d"))).expect("it is sent");
    let b = world.device("b");
    world.pull(&b);
    assert_eq!(b.read("d/mine").expect("it is there"), b"mine");
    let sent = world.runtime.block_on(replicator.send(a.ino("image")));
    let told = matches!(&sent, Err(DrainError::Left(message)) if message.contains("\"image\""));
    assert!(told || disk_freezes(), "{sent:?}");
    // A directory is there when its names are.
    let named = world.runtime.block_on(replicator.send(InodeNo::ROOT));
    assert!(matches!(named, Err(DrainError::Left(_))) || disk_freezes(), "{named:?}");
    a.engine.failpoints.set_hook(|_| Ok(()));
    a.drive.release(handle);
    world.runtime.block_on(replicator.send(InodeNo::ROOT)).expect("it is sent");
    world.pull(&b);
    assert!(b.everything() == a.everything());
    world.runtime.block_on(replicator.stop());
}

#[test]
fn file_that_cannot_be_read_is_named_and_holds_nobody_up() {
    let world = World::of_tiny_chunks();
    let a = world.device("a");
    a.write("broken", b"broken");
    a.write("fine", b"fine");
    a.drive.flush().expect("durable");
    let backing = world.backing_file("a", a.ino("broken"));
    a.close();
    std::fs::remove_file(&backing).expect("it was there");
    std::fs::create_dir(&backing).expect("something else is there");
    let a = world.device("a");
    let replicator = start(&world, &a);
    let drained = world.runtime.block_on(replicator.drain(|_| {}));
    let told = matches!(&drained, Err(DrainError::Left(message)) if message.contains("\"broken\""));
    assert!(told, "{drained:?}");
    world.runtime.block_on(replicator.send(a.ino("fine"))).expect("it is sent");
    let status = replicator.status().expect("there is a status");
    assert!(matches!(&status.left[..], [left] if left.path == "broken" && left.reason != LeftReason::Restless));
    assert!(status.last_error.is_some() && !status.is_drained());
    let b = world.device("b");
    world.pull(&b);
    assert_eq!(b.everything().keys().collect::<Vec<_>>(), ["fine"]);
    a.remove("broken");
    world.runtime.block_on(replicator.drain(|_| {})).expect("it drains");
    assert!(replicator.status().expect("there is a status").last_error.is_none());
    world.runtime.block_on(replicator.stop());
}
