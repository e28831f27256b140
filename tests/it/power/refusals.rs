//! A disk that works and takes nothing: programs get the error that says why, what was accepted stays, and the drive goes on by
//! itself as soon as the disk does.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use super::disk::Refusal;
use super::{Scene, sync};
use crate::harness::{can_mount, eventually};

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

#[test]
fn a_quota_refuses_new_files_and_bytes_and_nothing_else() {
    if !can_mount() {
        return;
    }
    let mut scene = Scene::new();
    let content = vec![7; 50_000];
    fs::write(scene.path("kept"), &content).expect("written");
    fs::write(scene.path("removed"), &content).expect("written");
    let mut file = OpenOptions::new().append(true).open(scene.path("kept")).expect("opened");
    scene.computer.disk.refuse(Some(Refusal::Contents));
    // What still fits in the last block is accepted, and said to be.
    let mut accepted = 0;
    let refused = loop {
        match file.write(&content[accepted..]) {
            Ok(count) => accepted += count,
            error => break error,
        }
    };
    assert_eq!(errno(refused), Some(Errno::DQUOT));
    let length = content.len() + accepted;
    assert_eq!(file.metadata().expect("attributes").len(), length as u64);
    assert_eq!(errno(File::create(scene.path("new"))), Some(Errno::DQUOT));
    assert!(!scene.path("new").exists());
    // What takes no room goes on.
    file.sync_all().expect("synced");
    let same = OpenOptions::new().write(true).open(scene.path("kept")).expect("opened");
    same.write_all_at(&[8; 100], 5000).expect("overwritten");
    fs::create_dir(scene.path("directory")).expect("made");
    fs::rename(scene.path("kept"), scene.path("directory/kept")).expect("renamed");
    fs::remove_file(scene.path("removed")).expect("removed");
    scene.computer.disk.refuse(None);
    file.write_all(&content).expect("there is room again");
    file.sync_all().expect("synced");
    drop((file, same));
    scene.cut();
    let mut expected = [&content[..], &content[..accepted], &content[..]].concat();
    expected[5000..5100].fill(8);
    assert!(fs::read(scene.path("directory/kept")).expect("readable") == expected);
    assert!(!scene.path("new").exists());
}

#[test]
fn a_disk_that_became_read_only_refuses_changes_until_it_is_writable_again() {
    if !can_mount() {
        return;
    }
    let mut scene = Scene::new();
    fs::write(scene.path("kept"), "durable").expect("written");
    sync(&scene.path("kept")).expect("durable");
    let file = OpenOptions::new().read(true).write(true).open(scene.path("kept")).expect("opened");
    scene.computer.disk.refuse(Some(Refusal::Changes));
    assert_eq!(errno(file.write_all_at(b"changed", 0)), Some(Errno::ROFS));
    assert_eq!(errno(File::create(scene.path("new"))), Some(Errno::ROFS));
    // The rows take changes as long as they are in memory; who asks for them to be durable is told.
    eventually("names are refused", || {
        let made = fs::create_dir(scene.path("directory")).and_then(|()| fs::remove_dir(scene.path("directory")));
        errno(made) == Some(Errno::ROFS)
    });
    assert_eq!(errno(file.sync_all()), Some(Errno::ROFS));
    scene.computer.disk.refuse(None);
    eventually("the drive goes on", || fs::write(scene.path("later"), "written later").is_ok());
    file.write_all_at(b"changed", 0).expect("written");
    file.sync_all().expect("synced");
    sync(&scene.path("later")).expect("durable");
    drop(file);
    scene.cut();
    assert_eq!(fs::read_to_string(scene.path("kept")).expect("text"), "changed");
    assert_eq!(fs::read_to_string(scene.path("later")).expect("text"), "written later");
}
