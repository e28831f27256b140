//! A file that is open for writing when another device's version comes.

use std::fs;

use cairn_platform_api::{SetAttributes, Vfs};
use cairn_platform_fuse::{Access, MountOptions, Passthrough};

use super::device::{CALLER, Device, Listing};
use super::world::World;
use crate::harness::{Mount, can_mount, eventually};
use crate::posix::mappings::Mapping;

const OLD: &[u8] = b"old content";
const NEW: &[u8] = b"the content that the other device made of it";

/// Whether the content is on the device that has the file open.
#[derive(Clone, Copy)]
enum Content {
    Here,
    Remote,
}

/// Two devices that have `file`, and a handle of the second one that writes.
fn opened(world: &World, content: Content, append: bool) -> (Device, Device, cairn_platform_api::HandleNo) {
    let (a, b) = (world.device("a"), world.device("b"));
    match content {
        Content::Here => b.write("file", OLD),
        Content::Remote => a.write("file", OLD),
    }
    world.exchange(&[&a, &b, &a]);
    let handle = b.open_in_mode("file", append);
    (a, b, handle)
}

fn cases() -> impl Iterator<Item = (Content, bool)> {
    [Content::Here, Content::Remote].into_iter().flat_map(|content| [(content, false), (content, true)])
}

fn save(world: &World, a: &Device, b: &Device) {
    a.write("file", NEW);
    world.drain(a);
    world.pull(b);
}

/// What [`OLD`] becomes when `OLD` is written to its beginning, or appended.
fn with_old_written(append: bool) -> &'static [u8] {
    if append { b"old contentOLD" } else { b"OLD content" }
}

fn only(name: &str, content: &[u8]) -> Listing {
    Listing::from([(name.to_owned(), Some(content.to_vec()))])
}

/// Until nothing is set aside any more; then all are equal.
fn settled(world: &World, a: &Device, b: &Device) {
    eventually("what was set aside is decided about", || {
        b.drive.dirty_files().expect("listed");
        b.drive.contents_aside() == 0
    });
    world.exchange(&[b, a, b]);
    assert_eq!(a.everything(), b.everything());
}

/// The content of the only conflict copy that `by` made of `file`.
fn copy(device: &Device, by: &str) -> Vec<u8> {
    let mark = format!("file (conflict {by} ");
    let mut copies = device.everything().into_iter().filter(|(name, _)| name.starts_with(&mark));
    let (_, content) = copies.next().unwrap_or_else(|| panic!("no copy: {:?}", device.everything()));
    assert!(copies.next().is_none());
    content.expect("it is a file")
}

#[test]
fn opening_for_writing_is_no_change() {
    for (content, append) in cases() {
        let world = World::new();
        let (a, b, handle) = opened(&world, content, append);
        save(&world, &a, &b);
        assert_eq!(b.everything(), only("file", NEW));
        assert_eq!(b.read_through(handle), OLD, "whoever has it open goes on with what it was");
        b.drive.release(handle);
        settled(&world, &a, &b);
        assert_eq!(a.everything(), only("file", NEW));
    }
}

#[test]
fn what_is_written_to_a_replaced_content_becomes_a_copy() {
    for (content, append) in cases() {
        let world = World::new();
        let (a, b, handle) = opened(&world, content, append);
        save(&world, &a, &b);
        b.write_through(handle, 0, b"OLD");
        let expected = with_old_written(append);
        assert_eq!(b.read_through(handle), expected);
        assert_eq!(b.everything(), only("file", NEW));
        b.drive.release(handle);
        settled(&world, &a, &b);
        assert_eq!(a.everything().len(), 2);
        assert_eq!(a.read("file").expect("it is there"), NEW);
        assert_eq!(copy(&a, "b"), expected);
    }
}

#[test]
fn what_is_done_through_a_handle_of_a_replaced_content_leaves_the_attributes_of_the_new_alone() {
    let world = World::new();
    let (a, b, handle) = opened(&world, Content::Here, false);
    let cutting = b.open_in_mode("file", false);
    a.write("file", NEW);
    let mode = SetAttributes { mode: Some(0o4755), ..SetAttributes::default() };
    a.drive.setattr(CALLER, a.ino("file"), None, mode).wait().expect("the mode is set");
    world.drain(&a);
    world.pull(&b);
    let attributes = |device: &Device| device.drive.getattr(device.ino("file"), None).expect("it has attributes");
    let published = attributes(&b);
    assert_eq!(published.mode & 0o7777, 0o4755);
    b.write_through(handle, 0, b"OLD");
    let cut = SetAttributes { size: Some(1), ..SetAttributes::default() };
    b.drive.setattr(CALLER, b.ino("file"), Some(cutting), cut).wait().expect("the old content is cut");
    assert_eq!(attributes(&b), published);
    assert_eq!(b.engine.status().expect("there is a status").changes_only_here, 0);
    b.drive.release(handle);
    b.drive.release(cutting);
    settled(&world, &a, &b);
    assert_eq!(copy(&a, "b"), b"O");
}

#[test]
fn what_is_synced_to_a_replaced_content_survives_a_crash() {
    for (content, append) in cases() {
        let world = World::new();
        let (a, b, handle) = opened(&world, content, append);
        save(&world, &a, &b);
        b.write_through(handle, 0, b"OLD");
        b.sync(handle);
        let b = world.crash(b);
        assert_eq!(b.read("file").expect("it is there"), NEW);
        let expected = with_old_written(append);
        assert_eq!(copy(&b, "b"), expected);
        settled(&world, &a, &b);
        assert_eq!(copy(&a, "b"), expected);
        assert_eq!(a.everything().len(), 2);
    }
}

#[test]
fn a_replaced_content_that_nobody_wrote_to_is_gone_after_a_crash() {
    for (content, append) in cases() {
        let world = World::new();
        let (a, b, _) = opened(&world, content, append);
        save(&world, &a, &b);
        let b = world.crash(b);
        assert_eq!(b.everything(), only("file", NEW));
        settled(&world, &a, &b);
        assert_eq!(a.everything(), only("file", NEW));
    }
}

#[test]
fn what_was_written_before_the_other_version_comes_is_a_conflict() {
    for (content, append) in cases() {
        let world = World::new();
        let (a, b, handle) = opened(&world, content, append);
        b.write_through(handle, 0, b"OLD");
        save(&world, &a, &b);
        let expected = with_old_written(append);
        assert_eq!(b.read("file").expect("it is there"), expected);
        assert_eq!(copy(&b, "a"), NEW);
        b.drive.release(handle);
        settled(&world, &a, &b);
        assert_eq!(a.everything().len(), 2);
    }
}

#[test]
fn a_removal_takes_a_file_that_is_open_and_was_not_written_to() {
    for (content, append) in cases() {
        let world = World::new();
        let (a, b, handle) = opened(&world, content, append);
        a.remove("file");
        world.drain(&a);
        world.pull(&b);
        assert_eq!(b.everything(), Listing::new());
        assert_eq!(b.read_through(handle), OLD);
        b.drive.release(handle);
        settled(&world, &a, &b);
        assert_eq!(a.everything(), Listing::new());
    }
}

#[test]
fn what_is_written_to_a_file_that_another_device_removed_becomes_a_copy() {
    for crash in [false, true] {
        let world = World::new();
        let (a, b, handle) = opened(&world, Content::Here, false);
        a.remove("file");
        world.drain(&a);
        world.pull(&b);
        b.write_through(handle, 0, b"OLD");
        b.sync(handle);
        let b = if crash {
            world.crash(b)
        } else {
            b.drive.release(handle);
            b
        };
        settled(&world, &a, &b);
        assert_eq!(copy(&a, "b"), b"OLD content");
        assert_eq!(a.everything().len(), 1);
    }
}

#[test]
fn a_fold_leaves_a_file_that_it_does_not_touch_to_its_writers() {
    for (content, append) in cases() {
        let world = World::new();
        let (a, b, handle) = opened(&world, content, append);
        a.write("other", b"other");
        world.drain(&a);
        world.pull(&b);
        assert_eq!(b.state("file"), "local");
        b.write_through(handle, 0, b"OLD");
        b.drive.release(handle);
        let expected = with_old_written(append);
        settled(&world, &a, &b);
        assert_eq!(a.read("file").expect("it is there"), expected);
        assert_eq!(a.everything().len(), 2);
    }
}

#[test]
fn the_new_content_is_not_touched_through_a_handle_of_the_old_one() {
    let world = World::new();
    let (a, b, old) = opened(&world, Content::Here, false);
    save(&world, &a, &b);
    let ino = b.resolve("file").expect("it is there");
    let set = SetAttributes { size: Some(3), ..SetAttributes::default() };
    b.drive.setattr(CALLER, ino, Some(old), set).wait().expect("it is cut");
    assert_eq!(b.read_through(old), b"old");
    let new = b.open_for_writing("file");
    b.write_through(new, 0, b"THE");
    assert_eq!(b.read_through(old), b"old");
    b.drive.release(new);
    b.drive.release(old);
    settled(&world, &a, &b);
    assert_eq!(a.read("file").expect("it is there"), [b"THE", &NEW[3..]].concat());
    assert_eq!(copy(&a, "b"), b"old");
}

#[test]
fn a_replaced_content_that_cannot_be_moved_at_first_is_kept() {
    let world = World::new();
    let (a, b, handle) = opened(&world, Content::Here, false);
    let backing = world.backing_file("b", b.ino("file"));
    let own = backing.parent().expect("a shard");
    let shards = fs::read_dir(own.parent().expect("the contents")).expect("listed");
    let others = shards.map(|entry| entry.expect("listed").path()).filter(|path| path != own);
    // A move to another shard fails, as on a full disk.
    let gone: Vec<_> = others.filter(|path| fs::remove_dir(path).is_ok()).collect();
    save(&world, &a, &b);
    b.write_through(handle, 0, b"OLD");
    b.drive.flush().expect("flushed");
    assert!(backing.exists(), "its only name is gone");
    gone.iter().for_each(|path| fs::create_dir(path).expect("made"));
    b.sync(handle);
    b.drive.release(handle);
    settled(&world, &a, &b);
    assert_eq!(a.read("file").expect("it is there"), NEW);
    assert_eq!(copy(&a, "b"), b"OLD content");
    let b = world.restart(b);
    b.drive.wait_for_recovery();
    assert_eq!(copy(&b, "b"), b"OLD content");
}

/// The file of two devices, one of them mounted, and mapped there; its descriptor is closed.
fn mapped(world: &World, passthrough: Passthrough) -> (Device, Device, Mount, Mapping) {
    let (a, b) = (world.device("a"), world.device("b"));
    a.write("file", &[b'a'; 10_000]);
    let everybody = SetAttributes { mode: Some(0o666), ..SetAttributes::default() };
    let ino = a.resolve("file").expect("it is there");
    a.drive.setattr(CALLER, ino, None, everybody).wait().expect("its mode is set");
    world.exchange(&[&a, &b]);
    let access = if rustix::process::geteuid().is_root() { Access::Everybody } else { Access::Owner };
    let options = MountOptions { access, passthrough, ..MountOptions::default() };
    let mount = Mount::with_options(b.drive.clone(), &options);
    let file = fs::File::options().read(true).write(true).open(mount.path().join("file")).expect("it opens");
    let mapping = Mapping::new(&file, 10_000);
    (a, b, mount, mapping)
}

#[test]
fn a_store_to_a_mapping_of_a_replaced_content_becomes_a_copy() {
    if !can_mount() {
        return;
    }
    for passthrough in [Passthrough::Auto, Passthrough::Off] {
        let world = World::new();
        let (a, b, mount, mapping) = mapped(&world, passthrough);
        a.write("file", &[b'n'; 10_000]);
        world.drain(&a);
        world.pull(&b);
        mapping.store(5000, b"late");
        drop(mapping);
        settled(&world, &a, &b);
        assert_eq!(a.read("file").expect("it is there"), [b'n'; 10_000]);
        let mut expected = vec![b'a'; 10_000];
        expected[5000..5004].copy_from_slice(b"late");
        assert!(copy(&a, "b") == expected);
        assert_eq!(a.everything().len(), 2);
        drop(mount);
    }
}

#[test]
fn stores_to_a_mapping_during_a_pull_are_kept() {
    if !can_mount() {
        return;
    }
    for passthrough in [Passthrough::Auto, Passthrough::Off] {
        let world = World::new();
        let (a, b, mount, mapping) = mapped(&world, passthrough);
        a.write("file", &[b'n'; 10_000]);
        world.drain(&a);
        let mut last = 0_u32;
        std::thread::scope(|scope| {
            let pull = scope.spawn(|| world.pull(&b));
            while !pull.is_finished() {
                last += 1;
                mapping.store(5000, &last.to_le_bytes());
            }
        });
        drop(mapping);
        settled(&world, &a, &b);
        let contents: Vec<Vec<u8>> = a.everything().into_values().flatten().collect();
        let is_kept = contents.iter().any(|content| content[5000..5004] == last.to_le_bytes());
        assert!(is_kept, "the last store is nowhere");
        assert!(contents.contains(&vec![b'n'; 10_000]), "the other device's version is nowhere");
        drop(mount);
    }
}
