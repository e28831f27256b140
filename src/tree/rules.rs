//! The table of `docs/ARCHITECTURE.md`, line by line.

mod depth;
mod size;

use std::collections::BTreeMap;

use cairn_platform_api::{FileKind, InodeNo, Timestamp};

use super::model::{Device, World, name};
use super::*;
use crate::base::Hlc;

const ROOT: InodeNo = InodeNo::ROOT;

/// Two devices that know the same; what the second publishes is later.
fn two_devices() -> World {
    let mut world = World::new(0, 2);
    world.devices.iter_mut().for_each(|device| device.tree.cut_limits = CutLimits::default());
    world
}

impl World {
    fn file(&mut self, index: usize, directory: InodeNo, file: &str, value: u64) {
        self.create_with(index, directory, &name(file), value);
    }

    fn at(&self, index: usize, directory: InodeNo, file: &str) -> InodeNo {
        self.devices[index].tree.lookup(directory, &name(file)).unwrap().expect("the name is there").ino
    }

    fn directory(&mut self, index: usize, parent: InodeNo, directory: &str) -> InodeNo {
        self.make_directory(index, parent, &name(directory));
        self.at(index, parent, directory)
    }

    fn set_mode(&self, index: usize, ino: InodeNo, set: impl FnOnce(&mut InodeRow)) {
        let mut change = self.devices[index].tree.change(&[ino]).unwrap();
        let mut row = change.inode(ino).unwrap().unwrap();
        set(&mut row);
        change.put_inode(ino, &row).unwrap();
        change.commit();
    }

    fn publish(&mut self, index: usize) {
        self.upload(index, 1);
        assert!(self.cut(index, 0), "there is something to publish");
        let later = self.devices[index].tree.clock().tick();
        self.devices.iter().for_each(|device| device.tree.clock().observe(Hlc(later.0 + 10)));
    }

    /// Both publish without having seen the other's change, the second later; then both see all.
    fn publish_both(&mut self) {
        self.publish(0);
        self.publish(1);
        self.exchange();
    }

    fn exchange(&mut self) {
        self.receive(0, 1);
        self.receive(1, 1);
        self.check_converged();
    }

    /// Everything there is, with what it holds.
    fn listing(&self) -> BTreeMap<String, String> {
        let mut listing = BTreeMap::new();
        list_below(&self.devices[0], ROOT, "", &mut listing);
        listing
    }

    fn assert_listing(&self, expected: &[(&str, &str)]) {
        let expected: BTreeMap<_, _> = expected.iter().map(|(path, what)| ((*path).into(), (*what).into())).collect();
        assert_eq!(self.listing(), expected);
    }
}

fn list_below(device: &Device, directory: InodeNo, path: &str, listing: &mut BTreeMap<String, String>) {
    for (parent, name, row) in device.names() {
        if parent != directory {
            continue;
        }
        let path = format!("{path}/{name}");
        if row.kind == FileKind::Directory {
            listing.insert(path.clone(), "directory".into());
            list_below(device, row.ino, &path, listing);
        } else {
            listing.insert(path, device.value(row.ino).map_or("no content".into(), |value| value.to_string()));
        }
    }
}

#[test]
fn a_directory_in_which_names_wait_publishes_nothing_by_itself() {
    let mut world = two_devices();
    let directory = world.directory(0, ROOT, "d");
    world.publish(0);
    world.exchange();
    world.file(0, directory, "f", 1);
    world.set_mode(0, directory, |row| row.mtime = Timestamp::from_nanos(77));
    assert!(!world.cut(0, 0), "the file is not uploaded, and the directory's times belong to its name");
    world.publish(0);
    world.exchange();
    world.assert_listing(&[("/d", "directory"), ("/d/f", "1")]);
    let row = world.devices[1].tree.inode(directory).unwrap().unwrap();
    assert_eq!(row.mtime, Timestamp::from_nanos(77));
}

#[test]
fn a_large_change_is_cut_into_several() {
    let mut world = two_devices();
    world.devices[0].tree.cut_limits.births = 3;
    let directory = world.directory(0, ROOT, "d");
    for value in 1..=10 {
        world.file(0, if value % 2 == 0 { directory } else { ROOT }, &format!("f{value}"), value);
    }
    world.upload(0, 1);
    let mut cuts = 0;
    while world.cut(0, 0) {
        cuts += 1;
    }
    assert_eq!(cuts, 4, "ten new files, three at most at once");
    world.exchange();
    assert_eq!(world.listing().len(), 11);
}

#[test]
fn files_that_wait_for_later_ones_are_cut_all_the_same() {
    let mut world = two_devices();
    world.devices[0].tree.cut_limits.births = 0;
    world.file(0, ROOT, "f", 1);
    world.publish(0);
    world.exchange();
    world.assert_listing(&[("/f", "1")]);
}

#[test]
fn changes_of_many_bytes_are_cut_into_several() {
    let mut world = two_devices();
    for value in 1..=4 {
        world.file(0, ROOT, &format!("old {value}"), value);
    }
    world.finish();
    world.devices[0].tree.cut_limits.bytes = 25_000;
    for value in 1..=4 {
        world.file(0, ROOT, &format!("new {value}"), 10 + value);
        for name in ["old", "new"] {
            let ino = world.at(0, ROOT, &format!("{name} {value}"));
            world.set_mode(0, ino, |row| drop(row.xattrs.insert(b"user.fork".to_vec(), vec![7; 10_000])));
        }
    }
    world.upload(0, 1);
    let mut cuts = 0;
    while world.cut(0, 0) {
        cuts += 1;
    }
    assert_eq!(cuts, 4, "eight changes, two at most at once");
    world.exchange();
    for device in &world.devices {
        for (_, _, row) in device.names() {
            let inode = device.tree.inode(row.ino).unwrap().unwrap();
            assert_eq!(inode.xattrs.get(&b"user.fork"[..]).map(Vec::len), Some(10_000));
        }
    }
}

#[test]
fn a_file_renamed_twice_has_the_later_name() {
    let mut world = two_devices();
    world.file(0, ROOT, "a", 1);
    world.finish();
    world.rename(0, (ROOT, &name("a")), (ROOT, &name("b")));
    world.rename(1, (ROOT, &name("a")), (ROOT, &name("c")));
    world.publish_both();
    world.assert_listing(&[("/c", "1")]);
}

#[test]
fn the_directory_move_that_closes_a_cycle_is_skipped() {
    let mut world = two_devices();
    let (a, b) = (world.directory(0, ROOT, "a"), world.directory(0, ROOT, "b"));
    world.finish();
    world.rename(0, (ROOT, &name("a")), (b, &name("a")));
    world.rename(1, (ROOT, &name("b")), (a, &name("b")));
    world.publish_both();
    world.assert_listing(&[("/b", "directory"), ("/b/a", "directory")]);
}

#[test]
fn different_contents_are_both_kept_and_equal_ones_are_one() {
    let mut world = two_devices();
    world.file(0, ROOT, "a.txt", 1);
    world.file(0, ROOT, "same", 2);
    world.finish();
    for (index, value) in [(0, 10), (1, 11)] {
        world.write_value(index, world.at(index, ROOT, "a.txt"), value);
        world.write_value(index, world.at(index, ROOT, "same"), 20);
    }
    world.publish_both();
    world.assert_listing(&[("/a.txt", "11"), ("/a (conflict device 1 1970-01-01 000000).txt", "10"), ("/same", "20")]);
}

#[test]
fn a_pending_change_keeps_the_name_and_the_published_one_is_kept_beside_it() {
    let mut world = two_devices();
    world.file(0, ROOT, "a", 1);
    world.finish();
    world.write_value(0, world.at(0, ROOT, "a"), 10);
    world.write_value(1, world.at(1, ROOT, "a"), 11);
    world.publish(0);
    world.receive(1, 1);
    assert_eq!(world.devices[1].value(world.at(1, ROOT, "a")), Some(11));
    world.write_value(0, world.at(0, ROOT, "a"), 12);
    world.publish(0);
    world.receive(1, 1);
    world.finish();
    world.check_converged();
    world.assert_listing(&[("/a", "11"), ("/a (conflict device 1 1970-01-01 000000)", "12")]);
}

#[test]
fn a_copy_that_its_author_replaced_is_not_kept() {
    let mut world = two_devices();
    world.file(0, ROOT, "a", 1);
    world.finish();
    world.write_value(0, world.at(0, ROOT, "a"), 10);
    world.write_value(1, world.at(1, ROOT, "a"), 11);
    world.publish(0);
    world.publish(1);
    world.write_value(0, world.at(0, ROOT, "a"), 12);
    world.publish(0);
    world.exchange();
    world.assert_listing(&[("/a", "12"), ("/a (conflict device 2 1970-01-01 000000)", "11")]);
}

#[test]
fn a_changed_file_survives_its_removal_in_either_order() {
    for (changes, removes) in [(0, 1), (1, 0)] {
        let mut world = two_devices();
        let directory = world.directory(0, ROOT, "d");
        world.file(0, directory, "a", 1);
        world.finish();
        world.write_value(changes, world.at(changes, directory, "a"), 10);
        world.remove(removes, directory, &name("a"));
        world.remove(removes, ROOT, &name("d"));
        world.publish_both();
        world.assert_listing(&[("/d", "directory"), ("/d/a", "10")]);
    }
}

#[test]
fn a_name_made_in_a_removed_directory_brings_it_back_in_either_order() {
    for (makes, removes) in [(0, 1), (1, 0)] {
        let mut world = two_devices();
        let outer = world.directory(0, ROOT, "outer");
        let inner = world.directory(0, outer, "inner");
        world.finish();
        world.file(makes, inner, "a", 1);
        world.remove(removes, outer, &name("inner"));
        world.remove(removes, ROOT, &name("outer"));
        world.publish_both();
        world.assert_listing(&[("/outer", "directory"), ("/outer/inner", "directory"), ("/outer/inner/a", "1")]);
    }
}

#[test]
fn files_under_one_name_are_both_kept_unless_they_are_equal() {
    let mut world = two_devices();
    for (index, value) in [(0, 10), (1, 11)] {
        world.file(index, ROOT, "a", value);
        world.file(index, ROOT, "same", 20);
    }
    world.publish_both();
    world.assert_listing(&[("/a", "10"), ("/a (conflict device 2 1970-01-01 000000)", "11"), ("/same", "20")]);
}

#[test]
fn a_file_that_collapsed_into_an_equal_one_comes_back_when_it_is_changed() {
    let mut world = two_devices();
    world.file(0, ROOT, "a", 20);
    world.file(1, ROOT, "a", 20);
    world.publish(0);
    world.publish(1);
    world.write_value(1, world.at(1, ROOT, "a"), 30);
    world.exchange_and_publish(1);
    world.assert_listing(&[("/a", "20"), ("/a (conflict device 2 1970-01-01 000000)", "30")]);
}

impl World {
    fn exchange_and_publish(&mut self, index: usize) {
        self.receive(index, 1);
        self.publish(index);
        self.exchange();
    }
}

#[test]
fn directories_under_one_name_merge_recursively() {
    let mut world = two_devices();
    for index in 0..2 {
        let outer = world.directory(index, ROOT, "d");
        let inner = world.directory(index, outer, "e");
        world.file(index, inner, &format!("from {index}"), index as u64);
        world.file(index, inner, "both", 10 + index as u64);
    }
    world.publish_both();
    world.assert_listing(&[
        ("/d", "directory"),
        ("/d/e", "directory"),
        ("/d/e/from 0", "0"),
        ("/d/e/from 1", "1"),
        ("/d/e/both", "10"),
        ("/d/e/both (conflict device 2 1970-01-01 000000)", "11"),
    ]);
}

#[test]
fn what_is_made_in_a_merged_directory_by_its_old_number_is_in_the_new_one() {
    let mut world = two_devices();
    let mine = world.directory(1, ROOT, "d");
    world.directory(0, ROOT, "d");
    world.publish(0);
    world.publish(1);
    world.file(1, mine, "a", 1);
    world.publish(1);
    world.exchange();
    world.assert_listing(&[("/d", "directory"), ("/d/a", "1")]);
}

#[test]
fn attributes_merge_field_by_field() {
    let mut world = two_devices();
    world.file(0, ROOT, "a", 1);
    world.finish();
    let ino = world.at(0, ROOT, "a");
    world.set_mode(0, ino, |row| {
        row.mode = 0o600;
        row.xattrs.insert(b"user.a".to_vec(), b"0".to_vec());
    });
    world.set_mode(1, ino, |row| {
        row.uid = 7;
        row.xattrs.insert(b"user.b".to_vec(), b"1".to_vec());
    });
    world.publish_both();
    let row = world.devices[0].tree.inode(ino).unwrap().unwrap();
    assert_eq!((row.mode, row.uid, row.xattrs.len()), (0o600, 7, 2));
}

#[test]
fn an_edited_file_survives_a_rename_over_it_in_either_order() {
    for (edits, renames) in [(0, 1), (1, 0)] {
        let mut world = two_devices();
        world.file(0, ROOT, "a", 1);
        world.file(0, ROOT, "b", 2);
        world.finish();
        world.write_value(edits, world.at(edits, ROOT, "a"), 10);
        world.rename(renames, (ROOT, &name("b")), (ROOT, &name("a")));
        world.publish_both();
        let copy = format!("/a (conflict device {} 1970-01-01 000000)", edits + 1);
        world.assert_listing(&[("/a", "2"), (&copy, "10")]);
    }
}

#[test]
fn a_replacement_that_is_not_uploaded_holds_back_the_removal_of_what_it_replaces() {
    let mut world = two_devices();
    world.file(0, ROOT, "a", 1);
    world.finish();
    world.file(0, ROOT, "a.new", 2);
    world.rename(0, (ROOT, &name("a.new")), (ROOT, &name("a")));
    let parent = world.directory(0, ROOT, "d");
    world.file(0, parent, "later", 3);
    assert!(world.cut(0, 0), "the directory can be published");
    world.receive(1, 1);
    let seen = world.devices[1].names();
    assert_eq!(seen.len(), 2, "the old file and the directory: {seen:?}");
    assert_eq!(world.devices[1].value(world.at(1, ROOT, "a")), Some(1));
    world.finish();
    world.check_converged();
    world.assert_listing(&[("/a", "2"), ("/d", "directory"), ("/d/later", "3")]);
}

#[test]
fn what_cancels_out_is_not_published() {
    let mut world = two_devices();
    world.file(0, ROOT, "a", 1);
    world.finish();
    world.file(0, ROOT, "temporary", 5);
    world.remove(0, ROOT, &name("temporary"));
    world.set_mode(0, ROOT, |row| {
        row.mtime = Timestamp::default();
        row.ctime = Timestamp::default();
    });
    world.rename(0, (ROOT, &name("a")), (ROOT, &name("b")));
    world.rename(0, (ROOT, &name("b")), (ROOT, &name("a")));
    let before = world.sets.len();
    world.cut(0, 0);
    let inodes: usize = world.sets.values().map(|(set, _)| set.dentries.len()).sum();
    assert!(world.sets.len() <= before + 1 && inodes == 1, "no name was published but the first");
}
