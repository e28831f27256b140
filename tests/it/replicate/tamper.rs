//! Objects of the vault are altered, taken away, or go back in time.

use std::sync::Arc;

use bytes::Bytes;
use cairn_platform_api::FsError;
use cairnfs::provider::error::with_causes;
use cairnfs::provider::fs::FsProvider;
use cairnfs::provider::{ObjectPath, PutMode};
use cairnfs::replicate::{ReplicateError, Urgency};
use cairnfs::vault::Vault;

use super::device::{Device, noise};
use super::world::{World, secret};

fn halted(device: &Device) -> Vec<String> {
    let status = device.engine.status().expect("there is a status");
    status.devices.into_iter().filter_map(|device| device.halted).collect()
}

#[test]
fn altered_segment_is_named_and_not_used() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("one", b"1");
    world.exchange(&[&a, &b]);
    a.write("two", b"2");
    world.drain(&a);
    let mut original = Vec::new();
    world.alter_last("log/", |mut body| {
        original.clone_from(&body);
        let middle = body.len() / 2;
        body[middle] ^= 1;
        Some(body)
    });
    world.pull(&b);
    assert!(b.read("two").is_err());
    let reasons = halted(&b);
    assert!(reasons.len() == 1 && reasons[0].contains("log/"), "{reasons:?}");
    assert_eq!(b.read("one").expect("what was read before stays"), b"1");

    world.alter_last("log/", |_| Some(original));
    let b = world.restart(b);
    world.pull(&b);
    assert_eq!(b.read("two").expect("the segment was restored"), b"2");
    assert!(halted(&b).is_empty());
}

#[test]
fn segment_longer_than_any_is_not_read() {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let world = World::over(Arc::new(FsProvider::new(dir.path())));
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("one", b"1");
    world.exchange(&[&a, &b]);
    a.write("two", b"2");
    world.drain(&a);
    let last = std::fs::File::options().write(true).open(dir.path().join(world.last("log/").as_str()));
    last.and_then(|file| file.set_len(5 << 30)).expect("a sparse file can be that long");
    world.pull(&b);
    let reasons = halted(&b);
    assert!(reasons.len() == 1 && reasons[0].contains("more than any segment"), "{reasons:?}");
    assert_eq!(b.read("one").expect("what was read before stays"), b"1");
}

#[test]
fn descriptor_longer_than_any_is_not_read() {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let world = World::over(Arc::new(FsProvider::new(dir.path())));
    let descriptor = std::fs::File::options().write(true).open(dir.path().join("cairn.json"));
    descriptor.and_then(|file| file.set_len(5 << 30)).expect("a sparse file can be that long");
    let opened = world.runtime.block_on(Vault::open(&*world.remote, &secret()));
    let error = with_causes(&opened.expect_err("it is too long"));
    assert!(error.contains("cairn.json") && error.contains("more than the 65536"), "{error}");
}

#[test]
fn segment_in_the_place_of_ours_is_read_no_further_than_ours_is_long() {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let world = World::over(Arc::new(FsProvider::new(dir.path())));
    let a = world.device("a");
    a.write("one", b"1");
    world.drain(&a);
    let next = dir.path().join(world.last("log/").as_str().replace("0001", "0002"));
    a.write("two", b"2");
    // After it was looked at, and before the segment is sent.
    a.engine.failpoints.set_hook(move |step| {
        if step == "push.after_flush" {
            let file = std::fs::File::create(&next).and_then(|file| file.set_len(5 << 30));
            file.expect("a sparse file can be that long");
        }
        Ok(())
    });
    let pushed = world.runtime.block_on(a.engine.push_round(Urgency::Drain));
    assert!(matches!(pushed, Err(ReplicateError::Halted(_))), "{pushed:?}");
}

#[test]
fn log_that_went_backwards_is_noticed_until_it_is_restored() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("one", b"1");
    world.drain(&a);
    a.write("two", b"2");
    world.drain(&a);
    world.pull(&b);
    let mut second = Vec::new();
    world.alter_last("log/", |body| {
        second = body;
        None
    });
    world.pull(&b);
    assert_eq!(halted(&b).len(), 1);
    assert_eq!(b.everything().len(), 2, "what was read stays");

    world.runtime.block_on(b.engine.look_again());
    let last = ObjectPath::new(&world.last("log/").as_str().replace("0001", "0002")).expect("a path");
    world.runtime.block_on(world.remote.put(&last, second.into(), PutMode::Overwrite)).expect("it is restored");
    world.pull(&b);
    assert!(halted(&b).is_empty(), "it was made good for");
}

#[test]
fn log_that_is_gone_is_told_of_until_it_is_there_again_and_what_was_read_stays() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("one", b"1");
    world.drain(&a);
    b.write("two", b"2");
    world.exchange(&[&b, &a]);
    let folder = format!("log/{}", a.id());
    let path = world.last(&format!("{folder}/"));
    let mut segment = Vec::new();
    world.alter(&path, |body| {
        segment = body;
        None
    });
    let missing = || {
        let status = b.engine.status().expect("there is a status");
        status.devices.into_iter().find(|device| device.name == "a").and_then(|device| device.missing)
    };
    assert_eq!(missing(), None);
    world.pull(&b);
    assert!(missing().is_some_and(|missing| missing.contains(&folder)), "{:?}", missing());
    assert_eq!(b.everything().len(), 2);
    assert!(halted(&b).is_empty());
    b.write("three", b"3");
    world.drain(&b);
    world.runtime.block_on(world.remote.put(&path, segment.into(), PutMode::Overwrite)).expect("it is restored");
    world.pull(&b);
    assert_eq!(missing(), None);
}

#[test]
fn gap_in_a_log_is_told_of_until_it_is_filled() {
    let world = World::new();
    let a = world.device("a");
    let b = world.device("b");
    for number in 1..=3u8 {
        a.write(&format!("file {number}"), &[number]);
        world.drain(&a);
    }
    let newest = world.last("log/").as_str().to_owned();
    let count = world.objects("log/");
    let last = format!("{count:04}");
    let second = ObjectPath::new(&newest.replace(&last, "0002")).expect("a path");
    let mut segment = Vec::new();
    world.alter(&second, |body| {
        segment = body;
        None
    });
    world.pull(&b);
    let reasons = halted(&b);
    assert!(reasons.len() == 1 && reasons[0].contains(second.as_str()), "{reasons:?}");
    assert_eq!(b.read("file 1").expect("what came before the gap is shown"), [1]);
    assert!(b.read("file 3").is_err());
    world.pull(&b);
    assert_eq!(halted(&b), reasons, "it is told as long as it is so");
    world.runtime.block_on(world.remote.put(&second, segment.into(), PutMode::Overwrite)).expect("it is restored");
    world.pull(&b);
    assert!(halted(&b).is_empty());
    assert!(b.everything() == a.everything());
}

#[test]
fn device_whose_log_continues_elsewhere_stops_loudly() {
    let world = World::new();
    let a = world.device("a");
    a.write("one", b"1");
    world.drain(&a);
    let path = world.last("log/");
    let next = path.as_str().replace("0001", "0002");
    let next = ObjectPath::new(&next).expect("a path");
    world
        .runtime
        .block_on(world.remote.put(&next, Bytes::from_static(b"another copy of this device"), PutMode::Overwrite))
        .expect("it is stored");
    a.write("two", b"2");
    let pushed = world.runtime.block_on(a.engine.push_round(Urgency::Drain));
    assert!(matches!(pushed, Err(ReplicateError::Halted(_))), "{pushed:?}");
    let status = a.engine.status().expect("there is a status");
    assert!(!status.is_drained());
    assert_eq!(a.read("two").expect("it stays here"), b"2");
    // The way out is one that exists.
    let reason = pushed.expect_err("halted").to_string();
    assert!(reason.contains("user.cairn.state") && reason.contains("--discard-unpublished"), "{reason}");
}

#[test]
fn another_vault_in_the_place_of_this_one_is_called_that_by_whoever_notices() {
    let world = World::new();
    let a = world.device("a");
    a.write("one", b"1");
    world.drain(&a);
    let pull = |device: &Device| world.runtime.block_on(device.engine.pull_round()).expect_err("halted").to_string();
    world.alter_last("log/", |_| None);
    let reason = pull(&a);
    assert!(reason.contains("lost segments"), "{reason}");
    let other = World::new();
    let descriptor = other.runtime.block_on(other.remote.get(&descriptor_path(), None)).expect("there");
    world
        .runtime
        .block_on(world.remote.put(&descriptor_path(), descriptor, PutMode::Overwrite))
        .expect("it is replaced");
    let reason = pull(&a);
    assert!(reason.contains("another vault"), "{reason}");
    assert_eq!(a.read("one").expect("it stays here"), b"1");
}

fn descriptor_path() -> ObjectPath {
    ObjectPath::new("cairn.json").expect("a path")
}

#[test]
fn missing_pack_is_an_error_for_readers_and_is_sent_again_by_who_has_the_content() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    let content = noise(1, 100_000);
    a.write("file", &content);
    world.exchange(&[&a, &b]);
    world.alter_last("packs/", |_| None);
    assert_eq!(b.read("file"), Err(FsError::Io));

    // Another process looks whether packs are there before it counts on them.
    let a = world.restart(a);
    a.write("copy", &content);
    world.exchange(&[&a, &b]);
    assert!(b.read("copy").expect("the content was sent again") == content);
    assert!(b.read("file").expect("it is the same content") == content);
}

#[test]
fn list_of_chunks_that_was_missing_is_asked_for_again_and_holds_up_nobody() {
    let world = World::of_tiny_chunks();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("file", b"base");
    world.exchange(&[&a, &b]);
    let content = noise(1, 2 << 20);
    a.write("file", &content);
    world.drain(&a);
    let mut packs = Vec::new();
    let path = world.largest("packs/");
    world.alter(&path, |body| {
        packs = body;
        None
    });
    // Both contents are kept: the one whose list is missing under a conflict name, which b publishes.
    b.write("file", b"from b");
    world.pull(&b);
    assert_eq!(b.read("file").expect("it is here"), b"from b");
    let copy = b.names().into_iter().find(|name| name.contains("conflict")).expect("there is a copy");
    assert_eq!(b.read(&copy), Err(FsError::Io));
    let status = b.engine.status().expect("there is a status");
    assert!(status.last_error.is_some_and(|error| error.message.contains("cannot be read")));
    world.drain(&b);

    world.runtime.block_on(world.remote.put(&path, packs.into(), PutMode::Overwrite)).expect("it is restored");
    // Not in every round: it may be missing for ever.
    (0..3).for_each(|_| world.pull(&b));
    assert!(b.read(&copy).expect("the list is there again") == content);
    assert!(b.engine.status().expect("there is a status").last_error.is_none());
    let c = world.device("c");
    world.exchange(&[&a, &b, &c]);
    assert!(c.everything() == b.everything() && a.everything() == b.everything());
}

#[test]
fn altered_pack_is_never_returned_as_data() {
    let world = World::new();
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("file", &noise(1, 100_000));
    world.exchange(&[&a, &b]);
    world.alter_last("packs/", |mut body| {
        body[1000] ^= 1;
        Some(body)
    });
    assert_eq!(b.read("file"), Err(FsError::Io));
}
