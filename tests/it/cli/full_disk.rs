//! A data directory on a disk that is too small.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use super::world::World;
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
    if !can_mount() || !is_root() {
        return;
    }
    let world = World::new();
    world.with_vault();
    let _disk = MemoryDisk::mount(&world.directory("small"), "160M");
    let machine = world.attached("small");
    let mountpoint = world.directory("mnt");
    let mut mounted = machine.mount("shared", &mountpoint);
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
    let mut mounted = machine.mount("shared", &mountpoint);
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
