//! Listing directories while they change.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

use rustix::fs::Dir;

use super::support::*;

/// Entries that stay during the pass.
const ENTRIES: usize = 10_000;

pub fn a_listing_is_stable_under_concurrent_change(dir: &Path) {
    let stays = |number: usize| format!("stays{number}");
    for number in 0..ENTRIES {
        rustix::fs::symlink("x", dir.join(stays(number))).unwrap();
        if number % 10 == 0 {
            rustix::fs::symlink("x", dir.join(format!("goes{number}"))).unwrap();
        }
    }
    let mut seen = Vec::new();
    for (step, entry) in fs::read_dir(dir).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("stays") {
            seen.push(name);
        }
        if step % 10 == 0 && step < ENTRIES {
            let _ = fs::remove_file(dir.join(format!("goes{}", ENTRIES - 10 - step)));
            rustix::fs::symlink("x", dir.join(format!("new{step}"))).unwrap();
        }
        if step % 100 == 0 && step < ENTRIES {
            // Replaced, and there all the time.
            rustix::fs::symlink("y", dir.join("temporary")).unwrap();
            fs::rename(dir.join("temporary"), dir.join(stays(step))).unwrap();
        }
    }
    let distinct: BTreeSet<_> = seen.iter().collect();
    assert_eq!((seen.len(), distinct.len()), (ENTRIES, ENTRIES), "each exactly once");
}

pub fn a_listing_ends_although_every_entry_is_renamed(dir: &Path) {
    for number in 0..500 {
        file(&dir.join(format!("{number}")));
    }
    let mut steps = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let _ = fs::rename(&path, path.with_extension("renamed"));
        steps += 1;
        assert!(steps <= 2000, "the listing follows what is renamed");
    }
}

fn list(dir: &mut Dir) -> Vec<(CString, i64)> {
    let mut list = Vec::new();
    while let Some(entry) = dir.read() {
        let entry = entry.unwrap();
        list.push((entry.file_name().to_owned(), entry.offset()));
    }
    list
}

pub fn rewinding_shows_what_is_new(path: &Path) {
    file(&path.join("old"));
    let mut dir = Dir::read_from(File::open(path).unwrap()).unwrap();
    assert_eq!(list(&mut dir).len(), 3);
    file(&path.join("new"));
    fs::remove_file(path.join("old")).unwrap();
    dir.rewind();
    let names: Vec<_> = list(&mut dir).into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&c"new".to_owned()) && !names.contains(&c"old".to_owned()));
}

pub fn seeking_returns_to_a_place(path: &Path) {
    for number in 0..1000 {
        file(&path.join(format!("{number}")));
    }
    let mut dir = Dir::read_from(File::open(path).unwrap()).unwrap();
    let all = list(&mut dir);
    assert_eq!(all.len(), 1002);
    for place in [0, 1, 2, 500, 1000] {
        dir.seek(all[place].1).unwrap();
        let rest: Vec<_> = list(&mut dir).into_iter().map(|(name, _)| name).collect();
        let expected: Vec<_> = all[place + 1..].iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(rest, expected);
    }
}

pub fn listed_numbers_and_types_are_those_of_the_files(dir: &Path) {
    file(&dir.join("file"));
    fs::create_dir(dir.join("sub")).unwrap();
    rustix::fs::symlink("x", dir.join("link")).unwrap();
    for entry in fs::read_dir(dir).unwrap() {
        use std::os::unix::fs::DirEntryExt;
        let entry = entry.unwrap();
        let meta = fs::symlink_metadata(entry.path()).unwrap();
        assert_eq!((entry.ino(), entry.file_type().unwrap()), (ino(&entry.path()), meta.file_type()));
    }
}

pub fn a_removed_directory_takes_nothing_more(dir: &Path) {
    let gone = dir.join("gone");
    fs::create_dir(&gone).unwrap();
    let open = File::open(&gone).unwrap();
    fs::remove_dir(&gone).unwrap();
    let made = rustix::fs::openat(
        &open,
        "file",
        rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY,
        rustix::fs::Mode::RUSR,
    );
    fails(made, rustix::io::Errno::NOENT);
    assert!(list(&mut Dir::read_from(&open).unwrap()).len() <= 2);
}

pub fn many_threads_work_in_one_directory(dir: &Path) {
    std::thread::scope(|scope| {
        for worker in 0..4 {
            scope.spawn(move || {
                for number in 0..100 {
                    let path = dir.join(format!("{worker}-{number}"));
                    fs::write(&path, path.as_os_str().as_encoded_bytes()).unwrap();
                    assert_eq!(fs::read(&path).unwrap(), path.as_os_str().as_encoded_bytes());
                    fs::rename(&path, path.with_extension("done")).unwrap();
                    if number % 2 == 0 {
                        fs::remove_file(path.with_extension("done")).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(names(dir).len(), 200);
}
