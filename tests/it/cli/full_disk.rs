//! A data directory on a disk that is too small.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::workload::noise;
use super::world::{Machine, Mounted, World};
use crate::harness::{MemoryDisk, can_mount, eventually, is_root};

#[test]
fn a_drive_is_not_made_on_a_full_disk() {
    if !can_mount() || !is_root() {
        return;
    }
    let world = World::new();
    world.with_vault();
    let disk = MemoryDisk::mount(&world.directory("small"), "64K");
    fill(&disk.path().join("ballast"), 64 << 10);
    let machine = world.machine("small");
    let mountpoint = world.directory("mnt");
    let mountpoint = mountpoint.to_str().expect("text");
    let remote = world.remote();
    machine.refuses(&["mount", &remote, mountpoint, "--key-file", &world.key_file()], &["small", "No space left"]);
    machine.refuses(&["mount", mountpoint], &["small", "No space left"]);
}

/// Fills a disk with a file of at most `limit` bytes.
fn fill(path: &Path, limit: usize) {
    let mut file = File::create(path).expect("a file");
    for _ in 0..limit / 512 {
        if file.write_all(&[1; 512]).is_err() {
            break;
        }
    }
}

#[test]
fn full_disk_refuses_writes_and_keeps_what_it_took() {
    refuses_writes_and_keeps_what_it_took(&[]);
}

#[test]
fn full_disk_refuses_writes_and_keeps_what_it_took_without_passthrough() {
    refuses_writes_and_keeps_what_it_took(&["--no-passthrough"]);
}

fn refuses_writes_and_keeps_what_it_took(options: &[&str]) {
    if !can_mount() || !is_root() {
        return;
    }
    let world = World::new();
    world.with_vault();
    let _disk = MemoryDisk::mount(&world.directory("small"), "160M");
    let machine = world.attached("small");
    let mountpoint = world.directory("mnt");
    let mut mounted = mount(&machine, &mountpoint, options);
    machine.run(&["pause"]);
    fs::write(mountpoint.join("kept"), vec![7; 1 << 20]).expect("there is room");
    File::open(mountpoint.join("kept")).expect("opened").sync_all().expect("synced");
    let block = vec![8; 1 << 20];
    let mut file = File::create(mountpoint.join("large")).expect("made");
    let error = (0..200).find_map(|_| file.write_all(&block).err()).expect("it does not fit");
    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    drop(file);
    let mebibytes = fs::metadata(mountpoint.join("large")).expect("there").len() >> 20;
    assert!(mebibytes > 0);

    // Through passthrough the disk itself is what refuses: then the last bytes may not have been made durable, which fsync says,
    // and what was durable stays so, also after a kill. Removing makes room again.
    let _ = File::open(mountpoint.join("large")).expect("opened").sync_all();
    mounted.kill();
    let mut mounted = mount(&machine, &mountpoint, options);
    machine.run(&["pause"]);
    assert_eq!(fs::read(mountpoint.join("kept")).expect("kept"), vec![7; 1 << 20]);
    eventually("the large file is gone", || match fs::remove_file(mountpoint.join("large")) {
        Err(error) => error.kind() == ErrorKind::NotFound,
        Ok(()) => true,
    });
    eventually("there is room again", || fs::write(mountpoint.join("more"), &block).is_ok());
    machine.run(&["resume"]);
    machine.run(&["drain"]);
    machine.umount(&[]);
    mounted.ended_well();
}

fn mount(machine: &Machine<'_>, mountpoint: &Path, options: &[&str]) -> Mounted {
    let path = mountpoint.to_str().expect("text");
    machine.mount_with(&[&["mount", "shared", path, "--log", "info"], options].concat(), mountpoint)
}

/// Bytes on the disk of the contents that a machine keeps.
fn kept_here(machine: &Machine<'_>) -> u64 {
    let shards = fs::read_dir(machine.drive_dir().join("content")).expect("contents");
    let files = shards.flat_map(|shard| fs::read_dir(shard.expect("an entry").path()).expect("a directory"));
    // One that goes meanwhile takes nothing.
    files.filter_map(|file| file.expect("an entry").metadata().ok()).map(|found| found.blocks() * 512).sum()
}

#[test]
fn contents_that_are_on_the_remote_too_give_way_on_a_full_disk() {
    contents_give_way(&[]);
}

#[test]
fn contents_that_are_on_the_remote_too_give_way_on_a_full_disk_without_passthrough() {
    contents_give_way(&["--no-passthrough"]);
}

/// Writes more than the disk holds, and each part is published before the next. Where the disk was full for a moment it is tried again,
/// as people do.
fn contents_give_way(options: &[&str]) {
    const PARTS: u8 = 6;
    if !can_mount() || !is_root() {
        return;
    }
    let world = World::new();
    world.with_vault();
    let _disk = MemoryDisk::mount(&world.directory("small"), "160M");
    let machine = world.attached("small");
    let mountpoint = world.directory("mnt");
    let _mounted = mount(&machine, &mountpoint, options);
    // Which costs little to send.
    let part = |number: u8| vec![number + 1; 25 << 20];
    for number in 0..PARTS {
        let path = mountpoint.join(format!("part-{number}"));
        let bytes = part(number);
        eventually("there is room", || match fs::write(&path, &bytes) {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                false
            }
        });
        machine.run(&["drain"]);
    }
    for number in 0..PARTS {
        assert!(fs::read(mountpoint.join(format!("part-{number}"))).expect("read") == part(number), "part {number}");
    }
}

#[test]
fn a_disk_without_room_for_more_files_refuses_them_until_some_can_go() {
    no_room_for_more_files(&[]);
}

#[test]
fn a_disk_without_room_for_more_files_refuses_them_until_some_can_go_without_passthrough() {
    no_room_for_more_files(&["--no-passthrough"]);
}

fn no_room_for_more_files(options: &[&str]) {
    if !can_mount() || !is_root() {
        return;
    }
    let world = World::new();
    world.with_vault();
    // The directories of the backing files take 256.
    let _disk = MemoryDisk::with_files(&world.directory("small"), "1G", 500);
    let machine = world.attached("small");
    let mountpoint = world.directory("mnt");
    let mut mounted = mount(&machine, &mountpoint, options);
    machine.run(&["pause"]);
    let path = |number: usize| mountpoint.join(format!("file-{number}"));
    let made = (0..1000).find(|number| match fs::write(path(*number), number.to_string()) {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
            true
        }
    });
    let made = made.expect("they do not fit");
    assert!(made > 100, "only {made} were made");
    assert!(!path(made).exists(), "what was refused is not there");
    // What takes no file of its own goes on.
    fs::create_dir(mountpoint.join("directory")).expect("made");
    std::os::unix::fs::symlink("file-0", mountpoint.join("link")).expect("made");
    fs::rename(path(0), mountpoint.join("directory/file-0")).expect("renamed");
    fs::write(path(1), "1 and more").expect("there is a file for it");
    for number in 2..12 {
        fs::remove_file(path(number)).expect("removed");
    }
    eventually("there is room for a file", || fs::write(path(made), made.to_string()).is_ok());

    // As soon as they are on the remote others may take their places.
    machine.run(&["resume"]);
    machine.run(&["drain"]);
    for number in made + 1..made + 300 {
        eventually("a published file gives way", || fs::write(path(number), number.to_string()).is_ok());
    }
    machine.run(&["drain"]);
    for number in 12..made + 300 {
        assert_eq!(fs::read_to_string(path(number)).expect("text"), number.to_string());
    }
    assert_eq!(fs::read_to_string(path(1)).expect("text"), "1 and more");
    machine.run(&["umount"]);
    mounted.ended_well();
}

#[test]
fn the_budget_of_the_cache_holds_while_ten_times_as_much_goes_through() {
    budget_holds(&[]);
}

#[test]
fn the_budget_of_the_cache_holds_while_ten_times_as_much_goes_through_without_passthrough() {
    budget_holds(&["--no-passthrough"]);
}

fn budget_holds(options: &[&str]) {
    const BUDGET: u64 = 2 << 20;
    const FILES: u64 = 20;
    if !can_mount() {
        return;
    }
    let world = World::new();
    world.with_vault();
    let [writing, reading] = ["writing", "reading"].map(|name| world.attached(name));
    let mounts = [(&writing, "mnt-1"), (&reading, "mnt-2")].map(|(machine, mountpoint)| {
        machine.set("cache-budget = '2 MiB'\nsettle = '1ms'\nread-deadline = '1d'\n");
        mount(machine, &world.directory(mountpoint), options)
    });
    let content = |number| noise(number, 1 << 20);
    for number in 0..FILES {
        fs::write(mounts[0].path().join(format!("file-{number}")), content(number)).expect("written");
    }
    writing.run(&["drain"]);
    eventually("what was published is within the budget", || kept_here(&writing) <= BUDGET);

    let last = mounts[1].path().join(format!("file-{}", FILES - 1));
    eventually("the other machine knows of them", || last.exists());
    for number in (0..FILES).chain(0..FILES) {
        let found = fs::read(mounts[1].path().join(format!("file-{number}"))).expect("read");
        assert!(found == content(number), "file {number}");
        if number % 5 == 4 {
            eventually("what was read is within the budget", || kept_here(&reading) <= BUDGET);
        }
    }
    // And what is kept is used.
    assert!(kept_here(&reading) > 0);
}
